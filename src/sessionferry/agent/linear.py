"""Regular expressions over bytes whose time is linear in the text, whatever the text is: RE2's."""

from typing import Any

import re2

from sessionferry.errors import UserError

_MEMORY = 32 * 1024 * 1024


def compiled(pattern: str) -> Any:
    """Compile an expression over bytes (Latin-1); it never matches a newline.

    Raises `UserError`, whose text is RE2's reason.
    """
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_nl = True
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        return re2.compile(pattern.encode("latin-1"), options)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise UserError(text) from None
    except UnicodeEncodeError:
        raise UserError("only characters up to U+00FF are understood") from None
