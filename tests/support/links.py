"""A link to a queue in memory, and what arrived through it.

It packs nothing itself, holds batches back as the real one does, and can refuse at any point. The
real one is tested in tests/integration/test_publisher.py.
"""

from collections import defaultdict
from types import TracebackType
from typing import Self

from sessionferry.batch import Batch, Header, decode, encode_parts
from sessionferry.errors import TransientError
from sessionferry.packing import Packed

LIMIT = 2500


class MemorySender:
    """Holds batches back, some at a time; `calls` counts down to a refusal."""

    def __init__(self, *, hold: int = 3, calls: int = 10**9, limit: int = LIMIT) -> None:
        self.limit = limit
        self.accepted: list[Batch] = []
        self._held: list[Packed] = []
        self._hold = hold
        self._calls = calls

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held = []

    async def send(self, packed: Packed) -> list[Header]:
        self._count()
        accepted = await self.flush() if len(self._held) >= self._hold else []
        self._held.append(packed)
        return accepted

    async def flush(self) -> list[Header]:
        if not self._held:
            return []
        self._count()
        for packed in self._held:
            self.accepted.append(decoded(packed))
        headers = [packed.header for packed in self._held]
        self._held = []
        return headers

    def _count(self) -> None:
        self._calls -= 1
        if self._calls < 0:
            raise TransientError("The queue did not take a batch.")


def decoded(packed: Packed) -> Batch:
    return decode(encode_parts(packed.header, packed.compressed), claimed=True)


def of(batches: list[Batch], kind: str, stream: str | None) -> list[Batch]:
    """The batches of one kind and stream."""
    return [b for b in batches if (b.header.kind, b.header.stream) == (kind, stream)]


def generations(batches: list[Batch]) -> dict[int, bytes]:
    """Put lines together, per generation, by offset; gaps and contradictions fail."""
    pieces: dict[int, dict[int, bytes]] = defaultdict(dict)
    for batch in batches:
        of_generation = pieces[batch.header.generation]
        at = batch.header.offset
        shorter, longer = sorted((of_generation.get(at, b""), batch.payload), key=len)
        assert longer.startswith(shorter), f"two versions of the bytes at {at}"
        of_generation[at] = longer
    return {generation: _joined(them) for generation, them in pieces.items()}


def _joined(pieces: dict[int, bytes]) -> bytes:
    whole = b""
    for at in sorted(pieces):
        assert at <= len(whole), f"bytes {len(whole)} to {at} are missing"
        known = whole[at : at + len(pieces[at])]
        assert pieces[at].startswith(known), f"two versions of the bytes at {at}"
        whole += pieces[at][len(known) :]
    return whole
