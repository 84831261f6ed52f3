"""A message's way: archive, documents, head, repair, projection.

The order is what makes any order, any number and any interruption of deliveries safe; the rules R1
to R9 that the comments name are explained in docs/guarantees.md. Nothing here knows Azure, SQL or
files: a store, an archive and an inbox are handed in.
"""

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import orjson

from sessionferry import head_store, hosts, projection, quarantine
from sessionferry.archive import Archive, batch_key, inbox_key, unattributed_key
from sessionferry.batch import (
    REPLAY_MARK,
    Batch,
    Header,
    Limits,
    check_time,
    decode,
    lines_of,
    peek_key,
    utc_now,
)
from sessionferry.coverage import Coverage, Range
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.errors import (
    ArchiveMismatch,
    BadBatch,
    BadClaim,
    BadIdentity,
    FerryError,
    ItemChanged,
    PermanentError,
    TransientError,
)
from sessionferry.heads import (
    Delivery,
    Head,
    Metadata,
    StreamHead,
    Tail,
    merge,
    must_not_exist,
    would_split,
)
from sessionferry.identity import SessionKey, Stream, escape, session_folder
from sessionferry.retrying import retry
from sessionferry.store import Store

log = logging.getLogger(__name__)
Result = TypeVar("Result")

WRITE_MARGIN = 30.0
"""Seconds before a lock ends after which nothing is written any more (R6)."""
ALONE_FROM_DELIVERY = 5
"""From this delivery on a message is handled after all others, by itself."""
FATAL_ATTEMPTS = 3
"""A message that ended its worker this often is quarantined without being decoded."""
_UNDELETED = "The session was undeleted meanwhile; its lines must come again."
_LOGGED = (
    *("kind", "session", "stream", "lines", "stored", "duplicate", "quarantined", "truncated"),
    "error",
)
_CHUNK_LINES = 1_000
_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What the queue delivers. Times in seconds since 1970."""

    body: bytes
    message_id: str = ""
    content_encoding: str | None = None
    enqueued_at: float | None = None
    delivery_count: int = 1
    locked_until: float | None = None

    @property
    def is_repeated(self) -> bool:
        """Whether an earlier attempt at this message may have left something behind."""
        return self.delivery_count > 1 or REPLAY_MARK in self.message_id


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


class _Entry(NamedTuple):
    """A quarantine entry that this delivery made, or may have made in an earlier attempt."""

    sequence: int
    id: str
    conflict: bool = False


@dataclass(slots=True)
class _Handled:
    """What one batch needs when the new head is known."""

    message: Message
    header: Header
    archive_key: str
    sequences: Range | None = None
    entries: list[_Entry] = field(default_factory=list)
    stored: list[Facts] = field(default_factory=list)


@dataclass(slots=True)
class _Session:
    """One session's share of an invocation: its head as first read, and what to merge into it."""

    first: Head
    deliveries: list[Delivery] = field(default_factory=list)
    metadata: list[Metadata] = field(default_factory=list)
    handled: list[_Handled] = field(default_factory=list)
    redelivered: bool = False


class Ingest:
    """Takes messages in. One instance per process, any number of concurrent calls."""

    def __init__(
        self,
        store: Store,
        archive: Archive,
        inbox: Archive,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        retry_seconds: float = 60.0,
    ) -> None:
        self.store = store
        self.archive = archive
        self.inbox = inbox
        self.limits = limits or Limits()
        self._clock = clock
        self._retry_seconds = retry_seconds

    async def take_in(self, messages: Sequence[Message]) -> list[Outcome]:
        """Bring messages to their final state; when this returns, they may be completed.

        Raises only for faults of the infrastructure: the queue then redelivers all of them, which
        is harmless. One bad line costs one line, one bad message one message.
        """
        calm = [m for m in messages if m.delivery_count < ALONE_FROM_DELIVERY]
        outcomes = await self._together(calm)
        for message in messages:
            if message.delivery_count >= ALONE_FROM_DELIVERY:
                outcomes.append(await self._alone(message))
        for outcome in outcomes:
            _log(outcome)
        return outcomes

    # ------------------------------------------------------------ invocation

    async def _together(self, messages: Sequence[Message]) -> list[Outcome]:
        sessions: dict[SessionKey, _Session] = {}
        outcomes = [await self._handle(message, sessions) for message in messages]
        for session in sessions.values():
            await self._settle(session)
        return outcomes

    async def _alone(self, message: Message) -> Outcome:
        """Handle a message that failed often, so that it harms no other one."""
        marker = hashlib.sha256(message.message_id.encode() or message.body).hexdigest()
        if await self._count_attempt(marker) > FATAL_ATTEMPTS:
            error = PermanentError("The message ended its worker again and again; not decoded.")
            outcome = await self._quarantine_whole(message, error)
        else:
            try:
                outcome = (await self._together([message]))[0]
            except Exception:
                # A fault that can be raised did not end the worker.
                await self._forget_attempts(marker)
                raise
        await self._forget_attempts(marker)
        return outcome

    async def _count_attempt(self, marker: str) -> int:
        while True:
            item = await self._retry(lambda: self.store.read_item("attempts", "attempts", marker))
            count = (item.document["count"] if item else 0) + 1
            document = {"id": marker, "partition_key": "attempts", "count": count}
            try:
                await self.store.write_item("attempts", document, item.etag if item else None)
            except ItemChanged:
                continue
            return int(count)

    async def _forget_attempts(self, marker: str) -> None:
        await self._retry(lambda: self.store.delete_item("attempts", "attempts", marker))

    async def _handle(self, message: Message, sessions: dict[SessionKey, _Session]) -> Outcome:
        try:
            self._check_lock(message)
            body, batch = await self._decode(message)
            if batch.header.kind == "heartbeat":
                return await self._heartbeat(message, batch)
            return await self._session_batch(message, body, batch, sessions)
        except (BadBatch, BadClaim, BadIdentity) as error:
            return await self._quarantine_whole(message, error)

    async def _decode(self, message: Message) -> tuple[bytes, Batch]:
        batch = decode(message.body, message.content_encoding, limits=self.limits)
        enqueued = message.enqueued_at if message.enqueued_at is not None else self._clock()
        check_time(batch.header, int(enqueued * 1000))
        if batch.header.claim is None:
            return message.body, batch
        body = await self._claimed(batch.header)
        return body, _same_batch(batch.header, decode(body, limits=self.limits, claimed=True))

    async def _claimed(self, header: Header) -> bytes:
        claim = header.claim
        if claim is None or claim.size > self.limits.claimed_bytes:
            raise BadClaim("The inbox object is larger than what is allowed.")
        key = inbox_key(header, claim.sha256)
        try:
            body = await self._retry(lambda: self.inbox.get(key))
        except ArchiveMismatch as error:
            raise BadClaim(f"The inbox does not hold what the message announced: {error}") from None
        if len(body) != claim.size or hashlib.sha256(body).hexdigest() != claim.sha256:
            raise BadClaim("The inbox object is not what the message announced.")
        return body

    # ------------------------------------------------------------ batches

    async def _session_batch(
        self, message: Message, body: bytes, batch: Batch, sessions: dict[SessionKey, _Session]
    ) -> Outcome:
        header = batch.header
        builder = None
        archive_key = batch_key(header, batch.id)
        if header.kind == "lines":
            builder = DocumentBuilder(header, archive_key, utc_now())
        session = await self._session(header.key, sessions)
        session.redelivered |= message.is_repeated
        if builder and header.line_count and _splits(session, header):
            raise BadBatch("The session's coverage is too fragmented to take another gap.")
        await self._write(message, lambda: self.archive.put(archive_key, body))
        outcome = Outcome(
            message_id=message.message_id,
            kind=header.kind,
            session=header.key.partition_key,
            stream=header.stream,
            lines=header.line_count,
            payload_bytes=header.length,
            archived_bytes=len(body),
        )
        if builder:
            await self._lines(message, batch, builder, session, outcome)
        elif header.kind == "tail":
            _tail(message, batch, archive_key, session)
        else:
            await self._metadata(message, batch, archive_key, session, outcome)
        return outcome

    async def _session(self, key: SessionKey, sessions: dict[SessionKey, _Session]) -> _Session:
        if key not in sessions:
            head = await self._retry(lambda: head_store.read_head(self.store, key))
            sessions[key] = _Session(first=head.head)
        return sessions[key]

    async def _lines(
        self,
        message: Message,
        batch: Batch,
        builder: DocumentBuilder,
        session: _Session,
        outcome: Outcome,
    ) -> None:
        header = batch.header
        handled = _Handled(message, header, builder.archive_key, _sequences(header))
        session.handled.append(handled)
        if _is_superseded(session.first, header):
            # R4: an earlier attempt, before the head ruled these lines out, may have written them.
            handled.entries = _possible_entries(batch)
            outcome.superseded = header.line_count
            session.deliveries.append(_delivery(builder.stream, handled, []))
            return
        if message.is_repeated:
            handled.entries = _entries_of_pruned(batch, session.first.stream(builder.stream))
        for chunk in _chunks(batch, builder, session.first):
            handled.stored += await self._store_chunk(chunk, builder, handled, outcome)
        outcome.truncated = sum(facts.truncated for facts in handled.stored)
        session.deliveries.append(_delivery(builder.stream, handled, handled.entries))

    async def _store_chunk(
        self, chunk: "_Chunk", builder: DocumentBuilder, handled: _Handled, outcome: Outcome
    ) -> list[Facts]:
        """Create a chunk's documents and entries; return the facts of what is stored now."""
        header = handled.header
        version = (header.key, builder.stream, header.generation)
        existing = await self._write(
            handled.message, lambda: self.store.create_lines(*version, chunk.documents)
        )
        entries = list(chunk.entries)
        stored = []
        for document in chunk.documents:
            facts = document.facts
            there = existing.get(facts.sequence, facts)
            stored.append(there)
            if there.sha256 != facts.sha256:
                position = chunk.positions[facts.sequence]
                entries.append(
                    quarantine.conflicting_line(
                        header, facts, position, builder.archive_key, utc_now()
                    )
                )
        if entries:
            await self._write(handled.message, lambda: self.store.create_quarantined(entries))
        handled.entries += [_entry(entry) for entry in entries]
        outcome.stored += len(chunk.documents) - len(existing)
        outcome.conflicts += len(entries) - len(chunk.entries)
        outcome.duplicate += len(existing) - (len(entries) - len(chunk.entries))
        outcome.quarantined += len(chunk.entries)
        return stored

    async def _metadata(
        self,
        message: Message,
        batch: Batch,
        archive_key: str,
        session: _Session,
        outcome: Outcome,
    ) -> None:
        header = batch.header
        valid = projection.parse_metadata(batch.payload) is not None
        session.handled.append(_Handled(message, header, archive_key))
        session.metadata.append(
            Metadata(
                revision=header.revision,
                sha256=hashlib.sha256(batch.payload).hexdigest(),
                length=header.length,
                archive_key=archive_key,
                host_id=header.host_id,
                valid=valid,
            )
        )
        outcome.error = None if valid else "metadata_not_json"

    async def _heartbeat(self, message: Message, batch: Batch) -> Outcome:
        header = batch.header
        try:
            body = orjson.loads(batch.payload)
        except orjson.JSONDecodeError as error:
            raise BadBatch(f"The heartbeat is not JSON: {error}") from None
        heartbeat = hosts.parse_heartbeat(header, body)
        host_id = escape(header.host_id)
        while True:
            item = await self._retry(lambda: self.store.read_item("hosts", header.user_id, host_id))
            document = hosts.merge_heartbeat(item.document if item else None, header, heartbeat)
            try:
                await self.store.write_item("hosts", document, item.etag if item else None)
            except ItemChanged:
                continue
            if document["clones"]:
                log.warning(
                    "two machines share one host_id",
                    extra={"event": "host_cloned", "machines": document["clones"]},
                )
            return Outcome(message_id=message.message_id, kind="heartbeat")

    # ------------------------------------------------------------ the head and after

    async def _settle(self, session: _Session) -> None:
        """Merge into the head (R7), repair what it rules out (R3, R4), project it (R9)."""
        key = session.first.key
        before: list[Head] = []

        def change(head: Head) -> Head:
            before[:] = [head]
            if _was_lifted(session.first, head):
                return head
            return merge(head, session.deliveries, session.metadata)

        head = await self._retry(lambda: head_store.change_head(self.store, key, change))
        if _was_lifted(session.first, head):
            raise TransientError(_UNDELETED)
        for handled in session.handled:
            await self._repair(head, before[0], session, handled)
        if head.tombstone is not None:
            await self._confirm_deleted(key)
        elif head.garbage:
            head = await self._retry(lambda: head_store.sweep(self.store, head))
        host_id = session.handled[-1].header.host_id if session.handled else ""
        await self._retry(lambda: projection.project(self.store, self.archive, head, host_id))

    async def _repair(self, head: Head, before: Head, session: _Session, handled: _Handled) -> None:
        """Delete what this delivery may have written although the head says it must not exist."""
        header, stream = handled.header, handled.header.stream
        if head.tombstone is not None:
            await self._remove(handled, head, lambda: self.archive.delete([handled.archive_key]))
        if stream is None or handled.sequences is None:
            return
        wrong = _ruled_out(head, stream, header.generation, handled.sequences)
        if wrong:
            version = (header.key, stream, header.generation)
            await self._remove(handled, head, lambda: self.store.delete_lines(*version, wrong))
        stale = _stale_entries(head, before, session, handled, wrong)
        if stale:
            partition = header.key.partition_key
            await self._remove(
                handled, head, lambda: self.store.delete_quarantined(partition, stale)
            )

    async def _remove(
        self, handled: _Handled, head: Head, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Repair; within the lock under a tombstone, the one verdict that can be lifted."""
        if head.tombstone is not None:
            await self._write(handled.message, work)
        else:
            await self._retry(work)

    async def _quarantine_whole(self, message: Message, error: FerryError) -> Outcome:
        body = message.body
        key = peek_key(body, message.content_encoding)
        sha256 = hashlib.sha256(body).hexdigest()
        archive_key = (
            f"{session_folder(key)}/messages/{sha256}" if key else unattributed_key(sha256)
        )
        await self._write(message, lambda: self.archive.put(archive_key, body))
        entry = quarantine.whole_message(
            *(body, key, error, archive_key),
            message_id=message.message_id,
            created_at=utc_now(),
        )
        await self._write(message, lambda: self.store.create_quarantined([entry]))
        if key is not None:
            await self._forget_if_deleted(message, key, entry["id"], archive_key)
        return Outcome(
            message_id=message.message_id,
            kind="quarantined",
            session=key.partition_key if key else "",
            archived_bytes=len(body),
            error=error.code,
        )

    async def _forget_if_deleted(
        self, message: Message, key: SessionKey, entry_id: str, archive_key: str
    ) -> None:
        """Let a late message of a deleted session leave nothing behind."""
        if not await self._is_deleted(key):
            return
        partition = key.partition_key
        await self._write(message, lambda: self.store.delete_quarantined(partition, [entry_id]))
        await self._write(message, lambda: self.archive.delete([archive_key]))
        await self._confirm_deleted(key)

    async def _is_deleted(self, key: SessionKey) -> bool:
        head = await self._retry(lambda: head_store.change_head(self.store, key, lambda head: head))
        return head.tombstone is not None

    async def _confirm_deleted(self, key: SessionKey) -> None:
        """Come again if the session was undeleted: what was sent anew may have been removed here.

        Handling the same message once more brings back whatever its repair could remove.
        """
        if not await self._is_deleted(key):
            raise TransientError(_UNDELETED)

    # ------------------------------------------------------------ time

    def _check_lock(self, message: Message) -> None:
        """Refuse to write when the message may soon be delivered to somebody else (R6)."""
        if message.locked_until is None:
            return
        if self._clock() > message.locked_until - WRITE_MARGIN:
            raise TransientError("The message's lock runs out; it is left to the queue.")

    def _seconds_left(self, message: Message) -> float:
        if message.locked_until is None:
            return self._retry_seconds
        return min(self._retry_seconds, message.locked_until - WRITE_MARGIN - self._clock())

    async def _write(self, message: Message, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do what may not happen after the lock ended; this holds for each attempt at it (R6)."""

        async def attempt() -> Result:
            self._check_lock(message)
            return await work()

        self._check_lock(message)
        return await retry(attempt, seconds=self._seconds_left(message))

    async def _retry(self, work: Callable[[], Awaitable[Result]]) -> Result:
        return await retry(work, seconds=self._retry_seconds)


@dataclass(slots=True)
class _Chunk:
    """Some of a batch's lines, made ready for one write."""

    documents: list[Document] = field(default_factory=list)
    entries: list[dict[str, object]] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    size: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.documents) >= _CHUNK_LINES or self.size >= _CHUNK_BYTES


def _chunks(batch: Batch, builder: DocumentBuilder, head: Head) -> Iterator[_Chunk]:
    header = batch.header
    created_at = utc_now()
    chunk = _Chunk()
    for sequence, (offset, line) in enumerate(lines_of(batch.payload), header.start_sequence):
        if must_not_exist(head, builder.stream, header.generation, sequence):
            continue
        built = builder.build(Position(sequence, offset), line)
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
            chunk = _Chunk()
    if chunk.documents or chunk.entries:
        yield chunk


def _tail(message: Message, batch: Batch, archive_key: str, session: _Session) -> None:
    header = batch.header
    tail = Tail(
        offset=header.offset,
        length=header.length,
        sequence=header.start_sequence,
        sha256=hashlib.sha256(batch.payload).hexdigest(),
        archive_key=archive_key,
    )
    stream: Stream = header.stream or "events"
    session.handled.append(_Handled(message, header, archive_key))
    session.deliveries.append(Delivery(stream, header.generation, tail=tail))


def _same_batch(announced: Header, found: Batch) -> Batch:
    """Check that an inbox object is the batch that its message announced."""
    same = ("kind", "stream", "user_id", "project_slug", "session_id", "generation", "revision")
    place = ("start_sequence", "line_count", "offset", "length", "format")
    for name in (*same, *place):
        if getattr(announced, name) != getattr(found.header, name):
            raise BadClaim(f"The inbox object and its message differ in {name}.")
    return found


def _sequences(header: Header) -> Range | None:
    if not header.line_count:
        return None
    return (header.start_sequence, header.start_sequence + header.line_count - 1)


def _extent(header: Header) -> Range | None:
    return (header.offset, header.offset + header.length - 1) if header.length else None


def _splits(session: _Session, header: Header) -> bool:
    head = session.first
    first, last = _sequences(header) or (0, 0)
    if header.stream is None or header.generation != head.stream(header.stream).generation:
        return False
    return would_split(head, header.stream, first, last, session.deliveries)


def _is_superseded(head: Head, header: Header) -> bool:
    if head.tombstone is not None or header.stream is None:
        return True
    return header.generation < head.stream(header.stream).generation


def _ruled_out(head: Head, stream: Stream, generation: int, sequences: Range) -> Coverage:
    state = head.stream(stream)
    own = Coverage.of(sequences)
    if head.tombstone is not None or generation < state.generation:
        return own
    return own & state.pruned if generation == state.generation else Coverage()


def _entry(entry: dict[str, object]) -> _Entry:
    conflict = entry["reason"] == quarantine.CONFLICT
    return _Entry(int(str(entry["sequence"])), str(entry["id"]), conflict)


def _was_lifted(first: Head, head: Head) -> bool:
    """Whether the session was undeleted since it was first read: what was written may be gone."""
    if head.tombstone is not None:
        return False
    return first.tombstone is not None or first.deletions != head.deletions


def _possible_entries(batch: Batch) -> list[_Entry]:
    """Name every quarantine entry that a delivery of this batch can make."""
    header = batch.header
    return [
        _Entry(sequence, quarantine.line_entry_id(header, sequence, hashlib.sha256(line).digest()))
        for sequence, (_, line) in enumerate(lines_of(batch.payload), header.start_sequence)
    ]


def _entries_of_pruned(batch: Batch, state: StreamHead) -> list[_Entry]:
    """Name what an earlier attempt may have left of lines that are pruned by now (R4)."""
    if not state.pruned or batch.header.generation != state.generation:
        return []
    return [entry for entry in _possible_entries(batch) if entry.sequence in state.pruned]


def _stale_entries(
    head: Head, before: Head, session: _Session, handled: _Handled, wrong: Coverage
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


def _delivery(stream: Stream, handled: _Handled, entries: Sequence[_Entry]) -> Delivery:
    header = handled.header
    return Delivery(
        stream,
        header.generation,
        stored=handled.stored,
        quarantined=[entry.sequence for entry in entries if not entry.conflict],
        conflicts=[entry.sequence for entry in entries if entry.conflict],
        sequences=handled.sequences,
        extent=_extent(header),
    )


def _log(outcome: Outcome) -> None:
    facts = {name: getattr(outcome, name) for name in Outcome.__slots__}
    shown = " ".join(f"{name}={facts[name]}" for name in _LOGGED)
    log.info("message taken in: %s", shown, extra={"event": "message", **facts})
