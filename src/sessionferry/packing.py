"""Packing lines into batches by compressed size.

Blocks of whole lines go into one compressor until the next would pass the limit; then a new batch
begins. A line that does not fit a message by itself becomes a batch for the inbox.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import zstandard

from sessionferry.batch import ZSTD_LEVEL, Header, Limits, compress, is_blank, lines_of, utc_now
from sessionferry.formats import FORMATS, Carry, Memory
from sessionferry.parsing import follow

BLOCK_BYTES = 64 * 1024
"""Lines are compressed in blocks of about this size; shorter ones fill messages better."""
RAW_BYTES = 15 * 1024 * 1024
"""Most source bytes in one message: below the consumer's bound of 16 MiB."""
WINDOW_LOG = 23
"""zstd looks back over 2^23 bytes: a raw request repeats the one before, up to megabytes earlier.
Half of what the consumer allows."""

_MAX_LINES = Limits().lines
_ZSTD = zstandard.ZstdCompressionParameters.from_level(
    ZSTD_LEVEL, window_log=WINDOW_LOG, write_content_size=False
)
# RFC 8878, 3.1.1.2: an empty, raw, last block. After a flushed block it ends a frame.
_EMPTY_LAST_BLOCK = b"\x01\x00\x00"


class Packed(NamedTuple):
    """A batch ready to be sent: its header, and its payload as compressed frames."""

    header: Header
    compressed: bytes
    sha256: str
    """Of the file up to the batch's end; of the payload where that is the whole."""
    next_carry: Carry | None = None
    """What the batch behind this one carries: keep it with the place, to go on from there."""


class Place(NamedTuple):
    """A position in a file: byte offset and sequence of the next line."""

    offset: int = 0
    sequence: int = 0


START = Place()


@dataclass(slots=True)
class _Open:
    """A batch that still takes blocks."""

    start: Place
    carry: Carry | None = None
    frame: bytearray = field(default_factory=bytearray)
    length: int = 0
    lines: int = 0
    compressor: "zstandard.ZstdCompressionObj" = field(
        default_factory=lambda: zstandard.ZstdCompressor(compression_params=_ZSTD).compressobj()
    )


class Packer:
    """Packs one stream's blocks into batches of at most `limit` compressed bytes.

    `digest` is the SHA-256 of everything that was packed; one that has seen the file up to `place`
    can be handed in. So is the template's `carry` that of `place`: None at a file's start.
    """

    def __init__(
        self,
        template: Header,
        limit: int,
        place: Place = START,
        digest: "hashlib._Hash | None" = None,
    ) -> None:
        self._template = template
        self._most = limit
        self._memory = _memory(template)
        self._limit = self._room(template)
        self._open = _Open(place, template.carry)
        self.digest = digest or hashlib.sha256()

    @property
    def place(self) -> Place:
        """Where the next line stands."""
        start = self._open.start
        return Place(start.offset + self._open.length, start.sequence + self._open.lines)

    @property
    def carry(self) -> Carry | None:
        """What a batch that begins at `place` must carry."""
        return self._memory.carry() if self._memory else self._template.carry

    def add(self, block: bytes) -> Iterator[Packed]:
        """Take a block of whole, terminated lines; yield the batches that it completes."""
        for piece in pieces(block):
            yield from self.add_piece(piece, count_lines(piece))

    def add_piece(self, piece: bytes, lines: int) -> Iterator[Packed]:
        """Take one of `pieces`; a batch ends before it or behind it, never inside."""
        if self._is_past_bounds(len(piece), lines):
            yield from self.flush()
        if not self._try(piece, lines):
            yield from self.flush()
            if not self._try(piece, lines):
                yield from self._alone(piece, lines)

    def flush(self) -> Iterator[Packed]:
        """Yield what is packed so far, if anything."""
        done = self._open
        # Always afresh: the compressor may have seen a piece that did not fit.
        self._begin(self.place)
        if done.length:
            frame = bytes(done.frame) + _EMPTY_LAST_BLOCK
            yield Packed(self._header(done), frame, self.digest.hexdigest(), self._open.carry)

    def _is_past_bounds(self, length: int, lines: int) -> bool:
        done = self._open
        return bool(done.length) and (
            done.length + length > RAW_BYTES or done.lines + lines > _MAX_LINES
        )

    def _try(self, piece: bytes, lines: int) -> bool:
        """Compress a piece into the open batch; False when it did not fit."""
        done = self._open
        if len(piece) > RAW_BYTES:
            return False
        added = done.compressor.compress(piece)
        added += done.compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if len(done.frame) + len(added) > self._limit:
            return False
        done.frame += added
        self.digest.update(piece)
        self._follow(piece)
        done.length += len(piece)
        done.lines += lines
        return True

    def _alone(self, piece: bytes, lines: int) -> Iterator[Packed]:
        alone = _Open(self._open.start, self._open.carry, length=len(piece), lines=lines)
        self.digest.update(piece)
        self._follow(piece)
        self._begin(Place(alone.start.offset + len(piece), alone.start.sequence + lines))
        whole = compress(piece, "zstd")
        yield Packed(self._header(alone), whole, self.digest.hexdigest(), self._open.carry)

    def _follow(self, piece: bytes) -> None:
        """Show the memory the lines of a piece, before the place moves behind it."""
        memory = self._memory
        if memory is None or not memory.concerns(piece):
            return
        offset = self.place.offset
        for start, line in lines_of(piece):
            follow(memory, line, starts_file=offset + start == 0)

    def _begin(self, place: Place) -> None:
        self._open = _Open(place, self.carry)
        if self._memory:
            self._limit = self._room(self._template.model_copy(update={"carry": self.carry}))

    def _room(self, header: Header) -> int:
        """Bytes left for the payload: the header's own frame is short, long identities apart."""
        return self._most - len(compress(header.to_json(), "zstd")) - 512

    def _header(self, done: _Open) -> Header:
        return self._template.model_copy(
            update={
                "start_sequence": done.start.sequence,
                "offset": done.start.offset,
                "line_count": done.lines,
                "length": done.length,
                "sent_at": utc_now(),
                "carry": done.carry,
            }
        )


def _memory(template: Header) -> Memory | None:
    known = FORMATS.get(template.format)
    return known.remember(template.carry) if known and known.remember else None


def pack(
    template: Header, blocks: Iterable[bytes], limit: int, place: Place = START
) -> Iterator[Packed]:
    """Pack a stream's blocks from `place` on."""
    packer = Packer(template, limit, place)
    for block in blocks:
        yield from packer.add(block)
    yield from packer.flush()


def pack_whole(template: Header, payload: bytes) -> Packed:
    """Pack a payload that is one piece: a tail, a metadata file, a heartbeat."""
    header = template.model_copy(update={"length": len(payload), "sent_at": utc_now()})
    return Packed(header, compress(payload, "zstd"), hashlib.sha256(payload).hexdigest())


def pieces(block: bytes) -> Iterator[bytes]:
    """Cut a block of terminated lines into runs of about `BLOCK_BYTES`, never inside a line.

    No run has more lines than a batch may have.
    """
    start = 0
    while start < len(block):
        end = block.rfind(b"\n", start, start + BLOCK_BYTES) + 1
        if block.count(b"\n", start, end) > _MAX_LINES:
            # A line that is not blank has at least two bytes.
            end = block.rfind(b"\n", start, start + 2 * _MAX_LINES) + 1
        if end <= start:
            end = block.find(b"\n", start) + 1 or len(block)
        yield block[start:end]
        start = end


def count_lines(piece: bytes) -> int:
    """Count the non-blank lines of a piece whose lines are all terminated."""
    if piece.find(b"\n") == len(piece) - 1:
        return int(not is_blank(piece))  # one line, maybe a huge one: not copied
    return sum(not is_blank(line) for line in piece.split(b"\n"))
