"""What a line's bytes parse to: one answer, for who sends the line and for who stores it.

What Python's json accepts and the standard does not (NaN, infinities, lone surrogates) is mended.
"""

import json
import math
from typing import Any, NamedTuple

import orjson

from sessionferry import truncation
from sessionferry.formats.meaning import Meaning
from sessionferry.formats.memory import Memory

_BOM = b"\xef\xbb\xbf"
_LONG_LINE = 16 * 1024


class Parsed(NamedTuple):
    """A line that is a JSON object; `repaired` when the standard does not allow what it holds."""

    fields: dict[str, Any]
    repaired: bool = False


class Unparsed(NamedTuple):
    """A line that looks like an object and is too long or too deep to be parsed."""


class Refused(NamedTuple):
    """A line that cannot be a document, and why."""

    reason: str
    detail: str = ""


def parse(line: bytes, *, starts_file: bool = False) -> Parsed | Unparsed | Refused:
    """Parse one line (without its newline). A byte order mark is allowed where a file starts."""
    if len(line) > truncation.MAX_PARSED_BYTES:
        return _unparsed(line)
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _lenient(line, starts_file=starts_file)
    if type(fields) is not dict:
        return Refused("not_an_object")
    if _may_be_deep(line) and truncation.too_deep(fields):
        return _unparsed(line)
    return Parsed(fields)


def _lenient(line: bytes, *, starts_file: bool) -> Parsed | Unparsed | Refused:
    """Read what Python's json accepts and the standard does not."""
    text = line.removeprefix(_BOM) if starts_file else line
    if truncation.text_too_deep(text):
        return _unparsed(line)
    try:
        fields = json.loads(text.decode())
    except UnicodeDecodeError as error:
        return Refused("not_utf8", str(error))
    except ValueError as error:
        return Refused("not_json", str(error))
    if type(fields) is not dict:
        return Refused("not_an_object")
    mended = _mend(fields)
    return Parsed(mended, repaired=text is line or mended != fields)


def _unparsed(line: bytes) -> Unparsed | Refused:
    if truncation.looks_like_object(line.removeprefix(_BOM)):
        return Unparsed()
    return Refused("not_an_object")


def _may_be_deep(line: bytes) -> bool:
    """Whether a line could be too deep; counting brackets pays off for short lines only."""
    if len(line) > _LONG_LINE:
        return True
    return line.count(b"{") + line.count(b"[") > truncation.MAX_DEPTH


def _mend(value: Any) -> Any:
    """Replace what standard JSON cannot carry: NaN, infinities, lone surrogates, huge integers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**64 else _as_float(value)
    if isinstance(value, list):
        return [_mend(item) for item in value]
    if isinstance(value, dict):
        return {_mend(key): _mend(item) for key, item in value.items()}
    return value


def _as_float(value: int) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


def follow(memory: Memory, line: bytes, *, starts_file: bool = False) -> None:
    """Show a memory a line of which nothing else is wanted; one that is no document is nothing."""
    if memory.concerns(line):
        found = parse(line, starts_file=starts_file)
        if isinstance(found, Parsed):
            memory.recall(found.fields, Meaning())
