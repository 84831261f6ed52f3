"""The gate: every byte that is to leave this machine passes here, before it is even spooled.

There is one place that calls it (`Checked`), and it fails closed: whatever a gate raises, and
whatever it returns that is not what it had to return, is a `Refusal`, and nothing of that piece is
spooled.

A gate decides line by line and remembers nothing between lines, so that pieces may be cut anywhere:
what passes of two pieces, one after the other, is what passes of both together. For the same rules
it gives the same bytes at any time. Other rules are another version of the file: it is read again,
and sent as a new generation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sessionferry.agent.discover import Source
from sessionferry.packing import count_lines

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Passed:
    """What may leave of a piece."""

    payload: bytes
    filtered: int = 0
    """Lines that were left out."""
    redacted: Mapping[str, int] = field(default_factory=dict)
    """How often something was replaced, by the name of the rule."""


class Gate(Protocol):
    """What decides about bytes; used from one thread at a time."""

    @property
    def rules(self) -> str:
        """Name these rules, at most 256 characters: other rules have another name.

        Empty when everything passes as it is: then nothing is called but `admits`.
        """
        ...

    def admits(self, source: Source) -> bool:
        """Whether anything of this file may leave."""
        ...

    def lines(self, source: Source, piece: bytes) -> Passed:
        """Decide about whole, terminated lines, blank ones too; what passes is such lines."""
        ...

    def tail(self, source: Source, rest: bytes) -> Passed:
        """Decide about the unterminated end of a file; nothing passes, or something without LF."""
        ...

    def metadata(self, source: Source, payload: bytes) -> Passed:
        """Decide about a session's metadata file, as a whole."""
        ...


class Refusal(Exception):
    """The gate could not decide about a piece of a file; it stays here, and so does what follows.

    The sentence names the rule or the kind of failure, never the bytes.
    """


class OpenGate:
    """Lets everything pass as it is."""

    rules = ""

    def admits(self, source: Source) -> bool:  # noqa: ARG002
        """Let every file pass."""
        return True

    def lines(self, source: Source, piece: bytes) -> Passed:  # noqa: ARG002
        """Let lines pass."""
        return Passed(piece)

    tail = lines
    metadata = lines


class Checked:
    """A gate that is not trusted to work: the only way to it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.rules = gate.rules[:256]
        self.is_open = not self.rules

    def admits(self, source: Source) -> bool:
        """Whether anything of this file may leave; raises `Refusal`."""
        return _guarded(lambda: self._gate.admits(source)) is True

    def lines(self, source: Source, piece: bytes) -> Passed:
        """Pass whole lines; raises `Refusal`."""
        if self.is_open:
            return Passed(piece)
        passed = _guarded(lambda: self._gate.lines(source, piece))
        if passed.payload and not passed.payload.endswith(b"\n"):
            raise Refusal("The gate left a line without its end.")
        if count_lines(passed.payload) + passed.filtered != count_lines(piece):
            raise Refusal("The gate does not account for every line.")
        return passed

    def tail(self, source: Source, rest: bytes) -> Passed:
        """Pass an unterminated end; raises `Refusal`."""
        if self.is_open:
            return Passed(rest)
        passed = _guarded(lambda: self._gate.tail(source, rest))
        if b"\n" in passed.payload:
            raise Refusal("The gate made lines of an unterminated end.")
        return passed

    def metadata(self, source: Source, payload: bytes) -> Passed:
        """Pass a metadata file; raises `Refusal`."""
        if self.is_open:
            return Passed(payload)
        return _guarded(lambda: self._gate.metadata(source, payload))


OPEN = Checked(OpenGate())
"""Lets everything pass as it is."""


def _guarded(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing may pass
        # Only the kind: the text of an error may quote the line.
        raise Refusal(f"The gate failed: {type(error).__name__}.") from None
