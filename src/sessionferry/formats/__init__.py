"""What the lines of a file mean, one module per tool that writes them.

A format turns a parsed line into a `Meaning`: the few facts that people query and that heads sum.
It knows neither queue nor store. Vocabularies are open: what a format does not know passes through
with an empty meaning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sessionferry.errors import UnsupportedBatch
from sessionferry.formats import amplifier, claude_code, codex, jsonl
from sessionferry.formats.meaning import Meaning
from sessionferry.formats.memory import Carry, Memory
from sessionferry.identity import Stream

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """How one tool's lines are read."""

    interpret: Callable[[Stream, Fields], Meaning]
    """What a line says by itself."""

    lifecycle: Callable[[Stream, Fields, Fields], str | None]
    """The lifecycle event of a line, from what every document keeps of it and its summary."""

    about: Callable[[Stream, Fields, Fields], Mapping[str, str]]
    """What a line and its summary say about its session, by the names in `projection.STATED`."""

    remember: Callable[[Carry | None], Memory] | None = None
    """Begin, or go on, with what earlier lines say; None where lines stand by themselves."""

    explained: Callable[[Carry | None], Callable[[Stream, Fields], Meaning]] | None = None
    """Return the `interpret` of a batch that says where facts stand; None where that is known."""

    def interpreter(self, carry: Carry | None) -> Callable[[Stream, Fields], Meaning]:
        """Return what reads the lines of a batch."""
        return self.explained(carry) if self.explained else self.interpret


FORMATS: Mapping[str, Format] = {
    "amplifier": Format(amplifier.interpret, amplifier.lifecycle, amplifier.about),
    "claude_code": Format(
        claude_code.interpret, claude_code.lifecycle, claude_code.about, claude_code.Memory
    ),
    "codex": Format(codex.interpret, codex.lifecycle, codex.about, codex.Memory),
    "jsonl": Format(jsonl.interpret, jsonl.lifecycle, jsonl.about, explained=jsonl.explained),
}


def format_named(name: str) -> Format:
    """Return the format of this name; raises `UnsupportedBatch`."""
    try:
        return FORMATS[name]
    except KeyError:
        raise UnsupportedBatch(f"Unknown format: {name[:64]!r}.") from None


__all__ = ["FORMATS", "Carry", "Format", "Meaning", "Memory", "format_named"]
