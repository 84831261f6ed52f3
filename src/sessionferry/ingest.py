"""A message's way: archive, documents, head, repair, projection.

The order is what makes any order, any number and any interruption of deliveries safe; the rules R1
to R9 that the comments name are explained in docs/guarantees.md. Nothing here knows Azure, SQL or
files: a store, an archive and an inbox are handed in.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson

from sessionferry import (
    counting,
    head_store,
    hosts,
    projection,
    quarantine,
    reconciling,
    telemetry,
)
from sessionferry.archive import Archive, batch_key, inbox_key, unattributed_key
from sessionferry.batch import (
    Batch,
    Header,
    Limits,
    check_time,
    decode,
    peek_key,
    utc_now,
)
from sessionferry.delivery import (
    CHUNK_LINES,
    Chunk,
    Handled,
    Message,
    Outcome,
    Work,
    chunks,
    describe,
    entries_of_pruned,
    entry_of,
    is_superseded,
    note_tail,
    possible_entries,
    ruled_out,
    same_batch,
    sequences,
    splits,
    stale_entries,
    was_lifted,
)
from sessionferry.documents import DocumentBuilder, Facts
from sessionferry.errors import (
    ArchiveMismatch,
    BadBatch,
    BadClaim,
    FerryError,
    ItemChanged,
    PermanentError,
    TransientError,
)
from sessionferry.heads import Head, Metadata, merge
from sessionferry.identity import UNATTRIBUTED, SessionKey, escape, session_folder
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
QUARANTINED = "quarantined"
"""The kind of outcome of a message that was quarantined whole."""
_UNDELETED = "The session was undeleted meanwhile; its lines must come again."
_LOGGED = (
    *("kind", "session", "stream", "lines", "stored", "duplicate", "quarantined", "truncated"),
    *("error", "trace"),
)


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
        steady: Callable[[], float] = time.monotonic,
        retry_seconds: float = 60.0,
    ) -> None:
        self.store = store
        self.archive = archive
        self.inbox = inbox
        self.limits = limits or Limits()
        self._clock = clock
        self._steady = steady
        self._retry_seconds = retry_seconds

    async def take_in(self, messages: Sequence[Message]) -> list[Outcome]:
        """Bring messages to their final state; when this returns, they may be completed.

        Raises only for faults of the infrastructure: the queue then redelivers all of them, which
        is harmless. One bad line costs one line, one bad message one message.
        """
        telemetry.add("ferry_messages_in_flight", len(messages))
        try:
            outcomes = await self._each(messages)
        except BaseException:
            telemetry.add("ferry_messages_failed", len(messages))
            raise
        finally:
            telemetry.add("ferry_messages_in_flight", -len(messages))
        for outcome in outcomes:
            _log(outcome)
            _measure(outcome)
        for message in messages:
            if message.enqueued_at is not None:
                telemetry.observe("ferry_messages_lag", self._clock() - message.enqueued_at)
        return outcomes

    async def _each(self, messages: Sequence[Message]) -> list[Outcome]:
        calm = [m for m in messages if m.delivery_count < ALONE_FROM_DELIVERY]
        outcomes = await self._together(calm)
        for message in messages:
            if message.delivery_count >= ALONE_FROM_DELIVERY:
                outcomes.append(await self._alone(message))
        return outcomes

    # ------------------------------------------------------------ invocation

    async def _together(self, messages: Sequence[Message]) -> list[Outcome]:
        sessions: dict[SessionKey, Work] = {}
        outcomes = [await self._handle(message, sessions) for message in messages]
        for session in sessions.values():
            await self._settle(session)
        for message, outcome in zip(messages, outcomes, strict=True):
            if message.is_replayed and outcome.kind != QUARANTINED:
                await self._leave_quarantine(message, outcome)
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
        return await self._retry(lambda: self._add_attempt(marker))

    async def _add_attempt(self, marker: str) -> int:
        while True:
            item = await self.store.read_item("attempts", "attempts", marker)
            count = (item.document["count"] if item else 0) + 1
            document = {"id": marker, "partition_key": "attempts", "count": count}
            try:
                await self.store.write_item("attempts", document, item.etag if item else None)
            except ItemChanged:
                continue
            return int(count)

    async def _forget_attempts(self, marker: str) -> None:
        await self._retry(lambda: self.store.delete_item("attempts", "attempts", marker))

    async def _handle(self, message: Message, sessions: dict[SessionKey, Work]) -> Outcome:
        try:
            self._check_lock(message)
            body, batch = await self._decode(message)
            header = batch.header
            with telemetry.span("take in batch", header.traceparent, kind=header.kind):
                if header.kind == "heartbeat":
                    outcome = await self._heartbeat(message, batch)
                else:
                    outcome = await self._session_batch(message, body, batch, sessions)
                outcome.trace = telemetry.trace_id(header.traceparent)
                return outcome
        except PermanentError as error:
            return await self._quarantine_whole(message, error)

    async def _decode(self, message: Message) -> tuple[bytes, Batch]:
        batch = decode(message.body, message.content_encoding, limits=self.limits)
        enqueued = message.enqueued_at if message.enqueued_at is not None else self._clock()
        check_time(batch.header, int(enqueued * 1000))
        if batch.header.claim is None:
            return message.body, batch
        body = await self._claimed(batch.header)
        return body, same_batch(batch.header, decode(body, limits=self.limits, claimed=True))

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
        self, message: Message, body: bytes, batch: Batch, sessions: dict[SessionKey, Work]
    ) -> Outcome:
        header = batch.header
        builder = None
        archive_key = batch_key(header, batch.id)
        if header.kind == "lines":
            builder = DocumentBuilder(header, archive_key, utc_now())
        session = await self._session(header.key, sessions)
        session.redelivered |= message.is_repeated
        if builder and header.line_count and splits(session, header):
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
            note_tail(message, batch, archive_key, session)
        else:
            await self._metadata(message, batch, archive_key, session, outcome)
        return outcome

    async def _session(self, key: SessionKey, sessions: dict[SessionKey, Work]) -> Work:
        if key not in sessions:
            head = await self._retry(lambda: head_store.read_head(self.store, key))
            sessions[key] = Work(first=head.head)
        return sessions[key]

    async def _lines(
        self,
        message: Message,
        batch: Batch,
        builder: DocumentBuilder,
        session: Work,
        outcome: Outcome,
    ) -> None:
        header = batch.header
        handled = Handled(message, header, builder.archive_key, sequences(header))
        session.handled.append(handled)
        if is_superseded(session.first, header):
            # R4: an earlier attempt, before the head ruled these lines out, may have written them.
            handled.entries = possible_entries(batch)
            outcome.superseded = header.line_count
            session.deliveries.append(describe(builder.stream, handled, []))
            return
        if message.is_repeated:
            handled.entries = entries_of_pruned(batch, session.first.stream(builder.stream))
        ready = chunks(batch, builder, session.first)
        if header.line_count <= CHUNK_LINES:
            for chunk in ready:
                handled.stored += await self._store_chunk(chunk, builder, handled, outcome)
        else:
            await self._store_while_building(ready, builder, handled, outcome)
        outcome.truncated = sum(facts.truncated for facts in handled.stored)
        session.deliveries.append(describe(builder.stream, handled, handled.entries))

    async def _store_while_building(
        self,
        ready: Iterator[Chunk],
        builder: DocumentBuilder,
        handled: Handled,
        outcome: Outcome,
    ) -> None:
        """Build one chunk, in a thread, while the one before it is written."""
        writing: asyncio.Task[list[Facts]] | None = None
        try:
            while chunk := await asyncio.to_thread(next, ready, None):
                if writing is not None:
                    handled.stored += await writing
                written = self._store_chunk(chunk, builder, handled, outcome)
                writing = asyncio.create_task(written)
        finally:
            # Whatever happened: nothing is being written any more when this returns.
            if writing is not None:
                handled.stored += await writing

    async def _store_chunk(
        self, chunk: Chunk, builder: DocumentBuilder, handled: Handled, outcome: Outcome
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
            await self._keep_entries(handled.message, entries)
        handled.entries += [entry_of(entry) for entry in entries]
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
        session: Work,
        outcome: Outcome,
    ) -> None:
        header = batch.header
        valid = projection.parse_metadata(batch.payload) is not None
        session.handled.append(Handled(message, header, archive_key))
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
        said = heartbeat.statements
        await self._retry(lambda: reconciling.keep(self.store, header, batch.id, said))
        document = await self._retry(lambda: self._merge_heartbeat(header, heartbeat))
        if document["clones"]:
            log.warning(
                "two machines share one host_id",
                extra={"event": "host_cloned", "machines": document["clones"]},
            )
        return Outcome(message_id=message.message_id, kind="heartbeat")

    async def _merge_heartbeat(self, header: Header, heartbeat: hosts.Heartbeat) -> dict[str, Any]:
        host_id = escape(header.host_id)
        while True:
            item = await self.store.read_item("hosts", header.user_id, host_id)
            document = hosts.merge_heartbeat(item.document if item else None, header, heartbeat)
            try:
                await self.store.write_item("hosts", document, item.etag if item else None)
            except ItemChanged:
                continue
            return document

    # ------------------------------------------------------------ the head and after

    async def _settle(self, session: Work) -> None:
        """Merge into the head (R7), repair what it rules out (R3, R4), project it (R9)."""
        key = session.first.key
        before: list[Head] = []

        def change(head: Head) -> Head:
            before[:] = [head]
            if was_lifted(session.first, head):
                return head
            return merge(head, session.deliveries, session.metadata)

        head = await self._retry(lambda: head_store.change_head(self.store, key, change))
        if was_lifted(session.first, head):
            raise TransientError(_UNDELETED)
        for handled in session.handled:
            await self._repair(head, before[0], session, handled)
        if head.tombstone is not None:
            await self._confirm_deleted(key)
        elif head.garbage:
            head = await self._retry(lambda: head_store.sweep(self.store, head))
        if head.dirty and head.tombstone is None:
            head = await self._retry(lambda: self._recover(head))
        host_id = session.handled[-1].header.host_id if session.handled else ""
        await self._retry(lambda: projection.project(self.store, self.archive, head, host_id))

    async def _recover(self, head: Head) -> Head:
        """Go on where a writer of the storage API died."""
        now = counting.moment(self._clock())
        return await counting.recover(self.store, self.archive, head, now)

    async def _repair(self, head: Head, before: Head, session: Work, handled: Handled) -> None:
        """Delete what this delivery may have written although the head says it must not exist."""
        header, stream = handled.header, handled.header.stream
        if head.tombstone is not None:
            await self._remove(handled, head, lambda: self.archive.delete([handled.archive_key]))
        if stream is None or handled.sequences is None:
            return
        wrong = ruled_out(head, stream, header.generation, handled.sequences)
        if wrong:
            version = (header.key, stream, header.generation)
            await self._remove(handled, head, lambda: self.store.delete_lines(*version, wrong))
        stale = stale_entries(head, before, session, handled, wrong)
        if stale:
            partition = header.key.partition_key
            await self._remove(
                handled, head, lambda: self.store.delete_quarantined(partition, stale)
            )

    async def _remove(
        self, handled: Handled, head: Head, work: Callable[[], Awaitable[None]]
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
            content_encoding=message.content_encoding,
            created_at=utc_now(),
        )
        await self._keep_entries(message, [entry])
        if key is not None:
            await self._forget_if_deleted(message, key, entry["id"], archive_key)
        return Outcome(
            message_id=message.message_id,
            kind=QUARANTINED,
            session=key.partition_key if key else "",
            archived_bytes=len(body),
            error=error.code,
        )

    async def _keep_entries(self, message: Message, entries: list[dict[str, object]]) -> None:
        """Put into the quarantine; what a replay comes to is written anew, with its time."""
        if message.is_replayed:
            await self._write(message, lambda: self.store.replace_quarantined(entries))
        else:
            await self._write(message, lambda: self.store.create_quarantined(entries))

    async def _leave_quarantine(self, message: Message, outcome: Outcome) -> None:
        """Delete the entry of a whole message that was taken in after all (R2)."""
        sha256 = hashlib.sha256(message.body).hexdigest()
        for partition in {outcome.session or UNATTRIBUTED, UNATTRIBUTED}:
            entry_id = quarantine.message_entry_id(partition, sha256)
            await self._write(
                message, partial(self.store.delete_quarantined, partition, [entry_id])
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
        if self._steady() > message.locked_until - WRITE_MARGIN:
            raise TransientError("The message's lock runs out; it is left to the queue.")

    def _seconds_left(self, message: Message) -> float:
        if message.locked_until is None:
            return self._retry_seconds
        return min(self._retry_seconds, message.locked_until - WRITE_MARGIN - self._steady())

    async def _write(self, message: Message, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do what may not happen after the lock ended; this holds for each attempt at it (R6)."""

        async def attempt() -> Result:
            self._check_lock(message)
            return await work()

        self._check_lock(message)
        return await retry(attempt, seconds=self._seconds_left(message))

    async def _retry(self, work: Callable[[], Awaitable[Result]]) -> Result:
        return await retry(work, seconds=self._retry_seconds)


def _measure(outcome: Outcome) -> None:
    telemetry.add("ferry_messages_received")
    telemetry.add("ferry_messages_quarantined", int(outcome.kind == "quarantined"))
    for name, amount in (
        ("received", outcome.lines),
        ("stored", outcome.stored),
        ("duplicate", outcome.duplicate),
        ("quarantined", outcome.quarantined),
        ("conflicting", outcome.conflicts),
        ("superseded", outcome.superseded),
        ("truncated", outcome.truncated),
    ):
        telemetry.add(f"ferry_lines_{name}", amount)
    telemetry.add("ferry_archive_written", outcome.archived_bytes)


def _log(outcome: Outcome) -> None:
    facts = {name: getattr(outcome, name) for name in Outcome.__slots__}
    shown = " ".join(f"{name}={facts[name]}" for name in _LOGGED)
    log.info("message taken in: %s", shown, extra={"event": "message", **facts})
