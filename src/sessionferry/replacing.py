"""Writing lines and metadata over what is stored: the way of the storage API.

Ingest never overwrites (R1). Here the head is marked first, in a conditional write that names the
lines. Then bytes go to the archive and documents to the store; before a stored one is replaced, the
mark says so. At last the lines are counted, all of the stream's anew if some were replaced, and the
mark comes off in the same conditional write. Whoever dies in between leaves the mark, from which
`counting.recover` goes on.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sessionferry import __version__, counting, head_store, heads, projection
from sessionferry.archive import Archive, NoArchive, batch_key, unplaced_key
from sessionferry.batch import MAX_SEQUENCE, Batch, Header, encode, utc_now
from sessionferry.coverage import Coverage
from sessionferry.documents import Document, DocumentBuilder, Facts, Position, stored_facts
from sessionferry.errors import SessionDeleted, TransientError, UserError
from sessionferry.heads import Delivery, Head, Mark, Metadata
from sessionferry.identity import SessionKey, Stream, check_part
from sessionferry.projection import Given
from sessionferry.retrying import retry
from sessionferry.store import Store
from sessionferry.truncation import MAX_DOCUMENT_BYTES

Result = TypeVar("Result")

LEASE_SECONDS = 300.0
"""How long a mark holds; its writer renews it while it goes on."""
LEASE_MARGIN = 30.0
"""Seconds before a mark ends after which its writer starts no write any more."""
MAX_PORTION_LINES = 1_000
"""Lines that are archived and written at once, at most."""
MAX_PORTION_BYTES = 8 * 1024 * 1024
"""Their bytes, unless a single line has more."""
MAX_GIVEN_BYTES = 120 * 1024 * 1024
"""Longest line or metadata that is taken: archived batches are read back up to 128 MiB."""
FORMAT = "amplifier"
_AGENT = f"sessionferry-storage/{__version__}"


class Portion(NamedTuple):
    """Lines that follow one another, each as JSON without a newline."""

    start: int
    lines: Sequence[bytes]


@dataclass(slots=True)
class Task:
    """One call's work: its mark, the head that it began with, what is done so far."""

    key: SessionKey
    host_id: str
    mark: Mark
    first: Head
    deadline: float
    archived: list[str] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)


class Replacer:
    """Writes lines and metadata of any session. Any number of concurrent calls.

    Its methods raise `SessionDeleted` for a session with a tombstone, `UserError` for what cannot
    be stored, and `TransientError` or `ThrottledError` when the store or the archive does not
    answer; the call may be repeated then.
    """

    def __init__(
        self,
        store: Store,
        archive: Archive,
        *,
        clock: Callable[[], float] = time.time,
        retry_seconds: float = 60.0,
    ) -> None:
        self.store = store
        self.archive = archive
        self._clock = clock
        self._retry_seconds = retry_seconds

    async def write_lines(
        self, key: SessionKey, stream: Stream, host_id: str, start: int, lines: Sequence[bytes]
    ) -> Head:
        """Make these lines the stored ones from sequence `start` on; return the head after that.

        There is at least one line. Lines that are stored already as they are stay untouched.
        """
        check_part("host_id", host_id)
        _check_place(start, len(lines))
        head = None
        while head is None:
            head = await self._write_once(key, stream, host_id, start, lines)
        return head

    async def _write_once(
        self, key: SessionKey, stream: Stream, host_id: str, start: int, lines: Sequence[bytes]
    ) -> Head | None:
        """Write for the newest version of the file; None when there is a newer one by now."""
        task = await self._begin(key, stream, host_id, (start, start + len(lines) - 1))
        for portion in _portions(start, lines):
            await self._renew_if_due(task)
            await self._write_portion(task, portion)
        try:
            head = await self._count(task)
        except counting.RuledOut:
            await self._take_back(task)
            return None
        swept = await self._retry(lambda: head_store.sweep(self.store, head))
        await self._retry(lambda: projection.project(self.store, self.archive, swept, host_id))
        return swept

    async def write_metadata(
        self, key: SessionKey, host_id: str, fields: Mapping[str, Any]
    ) -> Head:
        """Make these fields the session's metadata; return the head after that."""
        payload = json_line(fields)
        given = self._given(payload)
        newest = (await self._read(key)).metadata
        now = int(self._clock() * 1e9)
        header = _header(
            key,
            host_id,
            kind="metadata",
            revision=max(now, newest.revision + 1 if newest else 0),
            length=len(payload),
        )
        batch = Batch(header, payload)
        archive_key = self._archive_key(batch_key(header, batch.id))
        await self._retry(lambda: self.archive.put(archive_key, encode(batch)))
        metadata = Metadata(
            revision=header.revision,
            sha256=given.sha256,
            length=len(payload),
            archive_key=archive_key,
            host_id=host_id,
        )
        head = await self._change(key, lambda head: heads.merge(head, [], [metadata]))
        if head.tombstone is not None:
            await self._retry(lambda: self.archive.delete([archive_key]))
            raise _deleted(key)
        await self._retry(
            lambda: projection.project(self.store, self.archive, head, host_id, given)
        )
        return head

    def _given(self, payload: bytes) -> Given:
        fields = projection.parse_metadata(payload)
        if fields is None:
            raise UserError("The metadata holds what JSON cannot carry, or is nested too deeply.")
        if not self._keeps_bytes and len(payload) > MAX_DOCUMENT_BYTES:
            raise UserError(
                f"The metadata has {len(payload):,} bytes; over {MAX_DOCUMENT_BYTES:,} it needs an"
                " archive (FERRY_ARCHIVE)."
            )
        return Given(hashlib.sha256(payload).hexdigest(), fields)

    # ------------------------------------------------------------ the mark

    async def _begin(
        self, key: SessionKey, stream: Stream, host_id: str, span: tuple[int, int]
    ) -> Task:
        mark_id = secrets.token_hex(8)
        deadline = self._clock() + LEASE_SECONDS

        def begin(head: Head) -> Head:
            if head.tombstone is not None:
                raise _deleted(key)
            if heads.would_split(head, stream, *span):
                raise UserError(
                    f"{stream} of session {key.session_id} has too many gaps to take another one;"
                    " sync the missing lines first."
                )
            mark = Mark(
                id=mark_id,
                stream=stream,
                generation=head.stream(stream).generation,
                lines=Coverage.of(span),
                until=counting.moment(deadline),
            )
            return heads.mark(head, mark)

        head = await self._change(key, begin)
        task = Task(key, host_id, head.dirty[-1], head, deadline)
        await self.recover(head)
        return task

    async def _renew_if_due(self, task: Task) -> None:
        if self._clock() > task.deadline - LEASE_SECONDS / 2:
            await self._mark_again(task)

    async def _announce_replacing(self, task: Task) -> None:
        if task.mark.replaces:
            return
        head = await self._mark_again(task, replaces=True)
        if head.stream(task.mark.stream).pruned:
            raise UserError(
                f"Lines of {task.mark.stream} of session {task.key.session_id} were pruned;"
                " the others can no more be replaced."
            )

    async def _mark_again(self, task: Task, **changes: Any) -> Head:
        deadline = self._clock() + LEASE_SECONDS
        mark = task.mark.model_copy(update={"until": counting.moment(deadline), **changes})
        head = await self._change(task.key, lambda head: heads.mark(head, mark))
        task.mark, task.deadline = mark, deadline
        return head

    async def recover(self, head: Head) -> Head:
        """Go on where writers ended that left marks; returns the newest head."""
        now = counting.moment(self._clock())
        found = await self._retry(lambda: counting.recover(self.store, self.archive, head, now))
        if found is not head:
            await self._retry(lambda: projection.project(self.store, self.archive, found, ""))
        return found

    # ------------------------------------------------------------ lines

    async def _write_portion(self, task: Task, portion: Portion) -> None:
        batch = self._batch(task, portion)
        known = await self._known(task, batch.header)
        if len(known) == len(portion.lines) and all(
            known[sequence].sha256 == sha256 for sequence, _, _, sha256 in batch.lines()
        ):
            task.facts += known.values()
            return
        stream = task.mark.stream
        archive_key = self._archive_key(unplaced_key(batch.header, stream, batch.id))
        task.archived.append(archive_key)
        await self._guarded(task, lambda: self.archive.put(archive_key, encode(batch)))
        documents = _documents(batch, archive_key)
        version = (task.key, stream, batch.header.generation)
        existing = await self._guarded(task, lambda: self.store.create_lines(*version, documents))
        changed = [
            document
            for document in documents
            if existing.get(document.facts.sequence, document.facts).sha256 != document.facts.sha256
        ]
        if changed:
            await self._announce_replacing(task)
            await self._guarded(task, lambda: self.store.replace_lines(*version, changed))
        task.facts += [document.facts for document in documents]

    def _batch(self, task: Task, portion: Portion) -> Batch:
        payload = b"".join(line + b"\n" for line in portion.lines)
        header = _header(
            task.key,
            task.host_id,
            kind="lines",
            stream=task.mark.stream,
            generation=task.mark.generation,
            revision=int(self._clock() * 1e9),
            start_sequence=portion.start,
            line_count=len(portion.lines),
            length=len(payload),
        )
        return Batch(header, payload)

    async def _known(self, task: Task, header: Header) -> dict[int, Facts]:
        """Read the facts of what the head says is stored of these lines."""
        stream: Stream = task.mark.stream
        last = header.start_sequence + header.line_count - 1
        state = task.first.stream(stream)
        if not state.stored & Coverage.of((header.start_sequence, last)):
            return {}
        found = await self._retry(
            lambda: self.store.read_lines(
                task.key,
                stream,
                header.generation,
                after=header.start_sequence - 1,
                limit=header.line_count,
            )
        )
        facts = [stored_facts(document) for document in found if document["sequence"] <= last]
        return {one.sequence: one for one in facts}

    # ------------------------------------------------------------ the end

    async def _count(self, task: Task) -> Head:
        mark = task.mark
        delivery = Delivery(mark.stream, mark.generation, format=FORMAT, unplaced=True)
        if not mark.replaces:
            counted = delivery._replace(stored=task.facts)
            return await self._retry(
                lambda: counting.count_marked(self.store, task.first, mark, counted)
            )
        version = (task.key, mark.stream, mark.generation)
        return await self._retry(
            lambda: counting.count_anew(self.store, *version, marks=[mark.id], more=[delivery])
        )

    async def _take_back(self, task: Task) -> None:
        """Remove what was written for a version that is none any more (R3)."""
        head = await self._read(task.key)
        if head.tombstone is None and head.deletions != task.first.deletions:
            # What was sent since is not to be removed.
            raise TransientError("The session was deleted and undeleted meanwhile; sync it again.")
        mark = task.mark
        version = (task.key, mark.stream, mark.generation)
        await self._guarded(task, lambda: self.store.delete_lines(*version, mark.lines))
        if head.tombstone is not None:
            await self._guarded(task, lambda: self.archive.delete(task.archived))
        await self._change(task.key, lambda head: heads.unmark(head, [mark.id]))
        if head.tombstone is not None:
            raise _deleted(task.key)

    # ------------------------------------------------------------ doing

    @property
    def _keeps_bytes(self) -> bool:
        return not isinstance(self.archive, NoArchive)

    def _archive_key(self, key: str) -> str:
        return key if self._keeps_bytes else ""

    async def _read(self, key: SessionKey) -> Head:
        return (await self._retry(lambda: head_store.read_head(self.store, key))).head

    async def _change(self, key: SessionKey, change: Callable[[Head], Head]) -> Head:
        return await self._retry(lambda: head_store.change_head(self.store, key, change))

    async def _guarded(self, task: Task, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do what may not happen after the mark ended; this holds for each attempt at it."""

        async def attempt() -> Result:
            if self._clock() > task.deadline - LEASE_MARGIN:
                raise TransientError("Writing took too long; sync these lines again.")
            return await work()

        left = task.deadline - LEASE_MARGIN - self._clock()
        return await retry(attempt, seconds=min(self._retry_seconds, left))

    async def _retry(self, work: Callable[[], Awaitable[Result]]) -> Result:
        return await retry(work, seconds=self._retry_seconds)


def json_line(value: Mapping[str, Any]) -> bytes:
    """Render an object as one line of compact JSON; raises `UserError` when it is none.

    NaN, infinities and lone surrogates are written as Python does, and repaired on the way into a
    document like those of files.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"A line is an object, not {type(value).__name__}.")
    try:
        text = json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"))
        line = _utf8(text, value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"A line cannot be written as JSON: {error}") from None
    if len(line) > MAX_GIVEN_BYTES:
        raise UserError(f"A line has {len(line):,} bytes; at most {MAX_GIVEN_BYTES:,} are taken.")
    return line


def _utf8(text: str, value: Mapping[str, Any]) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(dict(value), separators=(",", ":")).encode()


def _documents(batch: Batch, archive_key: str) -> list[Document]:
    builder = DocumentBuilder(batch.header, archive_key, utc_now())
    documents = []
    for sequence, offset, line, sha256 in batch.lines():
        built = builder.build(Position(sequence, offset), line, sha256)
        if not isinstance(built, Document):
            raise UserError(f"Line {sequence} cannot be stored ({built.reason}): {built.detail}")
        documents.append(built)
    return documents


def _portions(start: int, lines: Sequence[bytes]) -> Iterator[Portion]:
    portion: list[bytes] = []
    size = 0
    for sequence, line in enumerate(lines, start):
        if portion and (len(portion) == MAX_PORTION_LINES or size + len(line) > MAX_PORTION_BYTES):
            yield Portion(sequence - len(portion), portion)
            portion, size = [], 0
        portion.append(line)
        size += len(line)
    yield Portion(start + len(lines) - len(portion), portion)


def _header(key: SessionKey, host_id: str, **fields: Any) -> Header:
    return Header(
        user_id=key.user_id,
        host_id=host_id,
        project_slug=key.project_slug,
        session_id=key.session_id,
        format=FORMAT,
        agent=_AGENT,
        sent_at=utc_now(),
        **fields,
    )


def _check_place(start: int, count: int) -> None:
    if start < 0:
        raise UserError(f"start_sequence is {start}; the first line's is 0.")
    if start + count > MAX_SEQUENCE:
        raise UserError(f"Sequences must stay below {MAX_SEQUENCE:,}.")


def _deleted(key: SessionKey) -> SessionDeleted:
    return SessionDeleted(f"Session {key.session_id} was deleted; `ferry undelete` lifts that.")
