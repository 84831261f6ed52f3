"""What the lines of a file mean, one module per tool that writes them.

A format turns a parsed line into a `Meaning`: the few facts that people query and that heads sum.
It knows neither queue nor store. Vocabularies are open: what a format does not know passes through
with an empty meaning.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sessionferry.errors import UnsupportedBatch
from sessionferry.formats import amplifier, jsonl
from sessionferry.formats.meaning import Meaning
from sessionferry.identity import Stream

Interpreter = Callable[[Stream, dict[str, Any]], Meaning]

INTERPRETERS: Mapping[str, Interpreter] = {
    "amplifier": amplifier.interpret,
    "jsonl": jsonl.interpret,
}


def interpreter(name: str) -> Interpreter:
    """Return the function that reads lines of this format; raises `UnsupportedBatch`."""
    try:
        return INTERPRETERS[name]
    except KeyError:
        raise UnsupportedBatch(f"Unknown format: {name[:64]!r}.") from None


__all__ = ["INTERPRETERS", "Interpreter", "Meaning", "interpreter"]
