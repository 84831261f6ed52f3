"""`python -m sessionferry.cli.env NAME=VALUE… ARGUMENTS`: `ferry` with variables of its own.

For what starts programs and can set no variables, as Windows' task scheduler. That may also give a
program no standard output, which would be an error when the first word is said.
"""

import os
import re
import sys
from pathlib import Path

from sessionferry.cli import main

_VARIABLE = re.compile(r"\w+=.*", re.ASCII | re.DOTALL)


def set_variables(words: list[str]) -> list[str]:
    """Set the variables that come first, and return the words behind them."""
    for at, word in enumerate(words):
        if not _VARIABLE.fullmatch(word):
            return words[at:]
        name, _, value = word.partition("=")
        os.environ[name] = value
    return []


def _be_silent() -> None:
    """Say into the void what would have nowhere to go."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    _be_silent()
    sys.argv[1:] = set_variables(sys.argv[1:])
    main()
