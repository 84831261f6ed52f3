"""What one message brings to its session, as values: everything that ingest decides without I/O.

`ingest` carries these decisions out, in the order that the rules R1 to R9 ask for
(docs/guarantees.md explains them).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sessionferry import quarantine
from sessionferry.batch import REPLAY_MARK, Batch, Header, utc_now
from sessionferry.coverage import Coverage, Range
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.errors import BadClaim
from sessionferry.heads import (
    Delivery,
    Head,
    Metadata,
    StreamHead,
    Tail,
    must_not_exist,
    would_split,
)
from sessionferry.identity import Stream

CHUNK_LINES = 1_000
"""Documents that are written at once, at most."""
CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of documents that are written at once, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What the queue delivers.

    `enqueued_at` is in seconds since 1970, `locked_until` on the steady clock: a clock that is set
    while a message is handled must not make its lock look longer.
    """

    body: bytes
    message_id: str = ""
    content_encoding: str | None = None
    enqueued_at: float | None = None
    delivery_count: int = 1
    locked_until: float | None = None

    @property
    def is_repeated(self) -> bool:
        """Whether an earlier attempt at this message may have left something behind."""
        return self.delivery_count > 1 or self.is_replayed

    @property
    def is_replayed(self) -> bool:
        """Whether somebody sent this again on purpose."""
        return REPLAY_MARK in self.message_id


@dataclass(slots=True)
class Outcome:
    """What became of one message, in numbers of lines; the canonical log line shows it."""

    message_id: str
    kind: str = ""
    session: str = ""
    stream: str | None = None
    lines: int = 0
    stored: int = 0
    duplicate: int = 0
    quarantined: int = 0
    conflicts: int = 0
    truncated: int = 0
    superseded: int = 0
    payload_bytes: int = 0
    archived_bytes: int = 0
    error: str | None = None
    trace: str | None = None


class Entry(NamedTuple):
    """A quarantine entry that this delivery made, or may have made in an earlier attempt."""

    sequence: int
    id: str
    conflict: bool = False


@dataclass(slots=True)
class Handled:
    """What one batch needs when the new head is known."""

    message: Message
    header: Header
    archive_key: str
    sequences: Range | None = None
    entries: list[Entry] = field(default_factory=list)
    stored: list[Facts] = field(default_factory=list)


@dataclass(slots=True)
class Work:
    """One session's share of an invocation: its head as first read, and what to merge into it."""

    first: Head
    deliveries: list[Delivery] = field(default_factory=list)
    metadata: list[Metadata] = field(default_factory=list)
    handled: list[Handled] = field(default_factory=list)
    redelivered: bool = False


@dataclass(slots=True)
class Chunk:
    """Some of a batch's lines, made ready for one write."""

    documents: list[Document] = field(default_factory=list)
    entries: list[dict[str, object]] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    size: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.documents) >= CHUNK_LINES or self.size >= CHUNK_BYTES


def chunks(batch: Batch, builder: DocumentBuilder, head: Head) -> Iterator[Chunk]:
    header = batch.header
    created_at = utc_now()
    chunk = Chunk()
    for sequence, offset, line, sha256 in batch.lines():
        position = Position(sequence, offset)
        if must_not_exist(head, builder.stream, header.generation, sequence):
            builder.skip(position, line)
            continue
        built = builder.build(position, line, sha256)
        if isinstance(built, Document):
            chunk.documents.append(built)
            chunk.positions[sequence] = offset
            chunk.size += len(built.json)
        else:
            chunk.entries.append(
                quarantine.rejected_line(header, built, builder.archive_key, created_at)
            )
        if chunk.is_full:
            yield chunk
            chunk = Chunk()
    if chunk.documents or chunk.entries:
        yield chunk


def note_tail(message: Message, batch: Batch, archive_key: str, session: Work) -> None:
    header = batch.header
    tail = Tail(
        offset=header.offset,
        length=header.length,
        sequence=header.start_sequence,
        sha256=hashlib.sha256(batch.payload).hexdigest(),
        archive_key=archive_key,
    )
    stream: Stream = header.stream or "events"
    session.handled.append(Handled(message, header, archive_key))
    session.deliveries.append(Delivery(stream, header.generation, tail=tail, format=header.format))


def same_batch(announced: Header, found: Batch) -> Batch:
    """Check that an inbox object is the batch that its message announced."""
    same = ("kind", "stream", "user_id", "project_slug", "session_id", "generation", "revision")
    place = ("start_sequence", "line_count", "offset", "length", "format")
    for name in (*same, *place):
        if getattr(announced, name) != getattr(found.header, name):
            raise BadClaim(f"The inbox object and its message differ in {name}.")
    return found


def sequences(header: Header) -> Range | None:
    if not header.line_count:
        return None
    return (header.start_sequence, header.start_sequence + header.line_count - 1)


def _extent(header: Header) -> Range | None:
    return (header.offset, header.offset + header.length - 1) if header.length else None


def splits(session: Work, header: Header) -> bool:
    head = session.first
    first, last = sequences(header) or (0, 0)
    if header.stream is None or header.generation != head.stream(header.stream).generation:
        return False
    return would_split(head, header.stream, first, last, session.deliveries)


def is_superseded(head: Head, header: Header) -> bool:
    if head.tombstone is not None or header.stream is None:
        return True
    return header.generation < head.stream(header.stream).generation


def ruled_out(head: Head, stream: Stream, generation: int, sequences: Range) -> Coverage:
    state = head.stream(stream)
    own = Coverage.of(sequences)
    if head.tombstone is not None or generation < state.generation:
        return own
    return own & state.pruned if generation == state.generation else Coverage()


def entry_of(entry: dict[str, object]) -> Entry:
    conflict = entry["reason"] == quarantine.CONFLICT
    return Entry(int(str(entry["sequence"])), str(entry["id"]), conflict)


def was_lifted(first: Head, head: Head) -> bool:
    """Whether the session was undeleted since it was first read: what was written may be gone."""
    if head.tombstone is not None:
        return False
    return first.tombstone is not None or first.deletions != head.deletions


def possible_entries(batch: Batch) -> list[Entry]:
    """Name every quarantine entry that a delivery of this batch can make."""
    header = batch.header
    return [
        Entry(sequence, quarantine.line_entry_id(header, sequence, sha256, is_conflict=is_conflict))
        for sequence, sha256 in enumerate(batch.line_hashes, header.start_sequence)
        for is_conflict in (False, True)
    ]


def entries_of_pruned(batch: Batch, state: StreamHead) -> list[Entry]:
    """Name what an earlier attempt may have left of lines that are pruned by now (R4)."""
    if not state.pruned or batch.header.generation != state.generation:
        return []
    return [entry for entry in possible_entries(batch) if entry.sequence in state.pruned]


def stale_entries(
    head: Head, before: Head, session: Work, handled: Handled, wrong: Coverage
) -> list[str]:
    """Name the entries that must go: of lines that are ruled out, or are stored by now (R2)."""
    header = handled.header
    state = head.stream(header.stream or "events")
    stale = [
        entry.id
        for entry in handled.entries
        if entry.sequence in wrong or (entry.sequence in state.stored and not entry.conflict)
    ]
    earlier = before.stream(header.stream or "events").quarantined
    if session.redelivered or any(facts.sequence in earlier for facts in handled.stored):
        stale += [
            quarantine.line_entry_id(header, facts.sequence, facts.sha256)
            for facts in handled.stored
        ]
    return stale


def describe(stream: Stream, handled: Handled, entries: Sequence[Entry]) -> Delivery:
    header = handled.header
    return Delivery(
        stream,
        header.generation,
        stored=handled.stored,
        quarantined=[entry.sequence for entry in entries if not entry.conflict],
        conflicts=[entry.sequence for entry in entries if entry.conflict],
        sequences=handled.sequences,
        extent=_extent(header),
        format=header.format,
    )
