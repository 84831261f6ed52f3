"""The storage itself: what callers of amplifier-session-storage call, over a store of ours."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from sessionferry import deletion, head_store
from sessionferry.archive import Archive, NoArchive, hydrate
from sessionferry.coverage import Coverage
from sessionferry.errors import UserError
from sessionferry.formats.meaning import utc
from sessionferry.heads import Head, StreamHead
from sessionferry.identity import SessionKey, Stream, escape, partition_key
from sessionferry.lifecycle import QUIET, projected_status
from sessionferry.replacing import Replacer, json_line
from sessionferry.storage import documented
from sessionferry.storage.config import CosmosFileConfig
from sessionferry.store import EventFilter, Page, Store
from sessionferry.store.pages import all_lines

log = logging.getLogger(__name__)

Documents = list[dict[str, Any]]

_DEFAULT_PROJECT = "default"


class SyncGaps(NamedTuple):
    """What is stored of a session, and which sequences are not.

    Sequences iterate as numbers and know their length. Quarantined lines have arrived, but cannot
    be stored as they are; they are not among the missing ones.
    """

    transcript_stored_count: int
    transcript_missing_sequences: Coverage
    transcript_quarantined_sequences: Coverage
    event_stored_count: int
    event_missing_sequences: Coverage
    event_quarantined_sequences: Coverage


class SyncStats(NamedTuple):
    """Counts and sums of a session. Times are `occurred_at`, from the first to the last."""

    event_count: int
    transcript_count: int
    event_ts_range: tuple[str, str] | None
    transcript_ts_range: tuple[str, str] | None
    event_bytes: int
    transcript_bytes: int
    truncated: int
    usage: dict[str, int]
    cost_usd: str


class CosmosFileStorage:
    """Sessions of many users: their metadata, transcripts and events.

    Every method raises `UserError` for wrong arguments, `SessionDeleted` when it would write to a
    deleted session, `TransientError` or `ThrottledError` when the store does not answer.
    """

    def __init__(self, config: CosmosFileConfig) -> None:
        self.config = config
        self._replacer: Replacer | None = None

    @classmethod
    async def create(cls, config: CosmosFileConfig | None = None) -> Self:
        """Open a storage; without a configuration, that of the environment."""
        storage = cls(config or CosmosFileConfig.from_env())
        await storage.initialize()
        return storage

    @classmethod
    def over(cls, store: Store, archive: Archive | None = None) -> Self:
        """Use a store and an archive that are open already; `close` closes the store."""
        storage = cls(CosmosFileConfig(endpoint=""))
        storage._replacer = Replacer(store, archive or NoArchive())
        return storage

    async def initialize(self) -> None:
        """Open the store and the archive, unless they are open."""
        if self._replacer is not None:
            return
        archive = Archive.open(self.config.archive) if self.config.archive else NoArchive()
        if not self.config.archive:
            log.warning(
                "no archive is configured: what is too large for a document is not kept",
                extra={"event": "no_archive"},
            )
        self._replacer = Replacer(await self.config.open_store(), archive)

    async def close(self) -> None:
        """Release connections; `initialize` opens them again."""
        replacer, self._replacer = self._replacer, None
        if replacer is not None:
            await replacer.store.close()

    async def verify_connection(self) -> bool:
        """Return True when the store answers and has what it needs; raises an error otherwise."""
        await self.initialize()
        await self._store.check()
        return True

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @staticmethod
    def make_partition_key(user_id: str, project_slug: str, session_id: str) -> str:
        """Return the partition key of a session's lines; unsafe characters are escaped."""
        return partition_key(user_id, project_slug, session_id)

    # ------------------------------------------------------------ sessions

    async def upsert_session_metadata(
        self, user_id: str, host_id: str, metadata: Mapping[str, Any]
    ) -> None:
        """Write a session's metadata, which names its `session_id` and `project_slug`.

        Without a `project_slug` it goes to the project in which the session is known already, else
        to `default`.
        """
        session_id = metadata.get("session_id")
        if not isinstance(session_id, str):
            raise UserError("The metadata needs a session_id, which is a text.")
        project = metadata.get("project_slug") or await self._known_project(user_id, session_id)
        key = SessionKey(user_id, str(project), session_id)
        await self._writer.write_metadata(key, host_id, metadata)

    async def get_session_metadata(self, user_id: str, session_id: str) -> dict[str, Any] | None:
        """Return a session's metadata document; None if there is no such session."""
        document = await self._session(user_id, session_id)
        return documented.session(document) if document else None

    async def list_sessions(
        self, user_id: str, project_slug: str | None = None, limit: int = 100
    ) -> Documents:
        """List a user's sessions, last activity first."""
        found: Documents = []
        token: str | None = None
        while len(found) < limit:
            page = await self.list_sessions_page(
                user_id, project_slug, limit=min(limit - len(found), 500), continuation=token
            )
            found += page.documents
            token = page.continuation
            if token is None:
                break
        return found

    async def list_sessions_page(
        self,
        user_id: str,
        project_slug: str | None = None,
        *,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List a user's sessions by the page: `documents`, `continuation` for the next ones."""
        page = await self._sessions_page(user_id, project_slug, limit, continuation)
        documents = [documented.session(document) for document in page.documents]
        return Page(documents, page.continuation)

    async def get_active_sessions(
        self,
        user_id: str,
        project_slug: str | None = None,
        *,
        within: timedelta = QUIET,
        limit: int = 100,
    ) -> Documents:
        """List the sessions whose run did not end and that had a line not longer ago than `within`.

        Each has its `last_time` beside its metadata. Sessions are read newest first, up to the
        first one that was quiet for longer.
        """
        now = datetime.now(UTC)
        found: Documents = []
        async for document in self._recent_sessions(user_id, project_slug, now - within):
            states = [projected_status(entry, now, quiet=within) for entry in document["projects"]]
            if "active" in states:
                last_time = {"last_time": document["last_time"]}
                found.append(documented.session(document) | last_time)
            if len(found) >= limit:
                break
        return found

    async def delete_session(self, user_id: str, project_slug: str, session_id: str) -> bool:
        """Delete a session's documents, quarantine and archive; a tombstone stays.

        Returns whether there was anything to delete. A deletion that was interrupted is finished.
        """
        key = SessionKey(user_id, project_slug, session_id)
        head, etag = await head_store.read_head(self._store, key)
        if etag is None or (head.tombstone is not None and head.tombstone.finished):
            return False
        await deletion.delete_session(self._store, self._writer.archive, key)
        return True

    async def undelete_session(self, user_id: str, project_slug: str, session_id: str) -> None:
        """Lift a deleted session's tombstone, so that it can be synced again."""
        key = SessionKey(user_id, project_slug, session_id)
        await deletion.undelete_session(self._store, self._writer.archive, key)

    # ------------------------------------------------------------ transcript

    async def sync_transcript_lines(  # noqa: PLR0917  as documented
        self,
        user_id: str,
        host_id: str,
        project_slug: str,
        session_id: str,
        lines: Sequence[Mapping[str, Any]],
        start_sequence: int = 0,
    ) -> int:
        """Store transcript lines from `start_sequence` on, over what is there; return how many."""
        key = SessionKey(user_id, project_slug, session_id)
        return await self._sync(key, "transcript", host_id, lines, start_sequence)

    async def get_transcript_lines(
        self, user_id: str, project_slug: str, session_id: str, after_sequence: int = -1
    ) -> Documents:
        """Return the transcript's documents after a sequence, in order."""
        key = SessionKey(user_id, project_slug, session_id)
        return await self._lines(key, "transcript", after_sequence)

    async def get_transcript_count(self, user_id: str, project_slug: str, session_id: str) -> int:
        """Return how many transcript lines are stored."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return len(head.stream("transcript").stored)

    async def get_last_transcript_sequence(
        self, user_id: str, project_slug: str, session_id: str
    ) -> int:
        """Return the greatest stored sequence of the transcript, -1 if there is none."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return head.stream("transcript").stored.last

    async def get_last_transcript_ts(
        self, user_id: str, project_slug: str, session_id: str
    ) -> str | None:
        """Return the time of the last stored transcript line, as the line states it."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return await self._last_ts(head, "transcript")

    # ------------------------------------------------------------ events

    async def sync_event_lines(  # noqa: PLR0917  as documented
        self,
        user_id: str,
        host_id: str,
        project_slug: str,
        session_id: str,
        lines: Sequence[Mapping[str, Any]],
        start_sequence: int = 0,
    ) -> int:
        """Store events from `start_sequence` on, over what is there; return how many."""
        key = SessionKey(user_id, project_slug, session_id)
        return await self._sync(key, "events", host_id, lines, start_sequence)

    async def get_event_lines(
        self, user_id: str, project_slug: str, session_id: str, after_sequence: int = -1
    ) -> Documents:
        """Return the events' documents after a sequence, in order."""
        key = SessionKey(user_id, project_slug, session_id)
        return await self._lines(key, "events", after_sequence)

    async def get_event_count(self, user_id: str, project_slug: str, session_id: str) -> int:
        """Return how many events are stored."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return len(head.stream("events").stored)

    async def get_last_event_sequence(
        self, user_id: str, project_slug: str, session_id: str
    ) -> int:
        """Return the greatest stored sequence of the events, -1 if there is none."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return head.stream("events").stored.last

    async def get_last_event_ts(
        self, user_id: str, project_slug: str, session_id: str
    ) -> str | None:
        """Return the time of the last stored event, as the event states it."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        return await self._last_ts(head, "events")

    async def search_events(
        self,
        user_id: str,
        *,
        project_slug: str | None = None,
        session_id: str | None = None,
        event_type: str | None = None,
        tool_name: str | None = None,
        model: str | None = None,
        provider: str | None = None,
        level: str | None = None,
        status: str | None = None,
        start_date: str | datetime | None = None,
        end_date: str | datetime | None = None,
        limit: int = 50,
        continuation: str | None = None,
    ) -> Page:
        """Find a user's events by what they say, newest first: `documents` and `continuation`.

        `start_date` is inclusive, `end_date` is not. A `session_id` confines the search to one
        partition, and needs the `project_slug`.
        """
        if session_id is not None and project_slug is None:
            raise UserError("A search in one session needs its project_slug too.")
        session = SessionKey(user_id, str(project_slug), session_id) if session_id else None
        wanted = EventFilter(
            user_id=user_id,
            project_slug=project_slug,
            session=session,
            event=event_type,
            level=level,
            tool_name=tool_name,
            model=model,
            provider=provider,
            status=status,
            since=_moment("start_date", start_date),
            until=_moment("end_date", end_date),
        )
        page = await self._store.search_events(wanted, limit=limit, continuation=continuation)
        return Page([documented.line(document) for document in page.documents], page.continuation)

    async def get_whole_line(
        self, user_id: str, project_slug: str, session_id: str, stream: Stream, sequence: int
    ) -> dict[str, Any] | None:
        """Return one line's document; what was too large for it comes out of the archive.

        None if it is not stored; raises `ArchiveMismatch` when the archive does not have it.
        """
        key = SessionKey(user_id, project_slug, session_id)
        head = await self._head(key)
        generation = head.stream(stream).generation
        document = await self._store.read_line(key, stream, generation, sequence)
        if document is None:
            return None
        shown = documented.line(document)
        if not document["data_truncated"]:
            return shown
        own: dict[str, Any] = orjson.loads(await hydrate(self._writer.archive, document))
        return own | shown

    # ------------------------------------------------------------ sync status

    async def get_sync_status(
        self, user_id: str, project_slug: str, session_id: str
    ) -> dict[str, Any]:
        """Return where a sync has to go on: counts, last sequences and last times."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        events, transcript = head.stream("events"), head.stream("transcript")
        return {
            "session_exists": head.metadata is not None or bool(events.stored or transcript.stored),
            "last_event_sequence": events.stored.last,
            "last_event_ts": await self._last_ts(head, "events"),
            "event_count": len(events.stored),
            "last_transcript_sequence": transcript.stored.last,
            "last_transcript_ts": await self._last_ts(head, "transcript"),
            "message_count": len(transcript.stored),
        }

    async def find_missing_sequences(
        self,
        user_id: str,
        project_slug: str,
        session_id: str,
        transcript_line_count: int | None = None,
        event_line_count: int | None = None,
    ) -> SyncGaps:
        """Say which sequences are missing, up to the line counts, else up to the last one."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        transcript, events = head.stream("transcript"), head.stream("events")
        return SyncGaps(
            len(transcript.stored),
            _missing(transcript, transcript_line_count),
            transcript.quarantined,
            len(events.stored),
            _missing(events, event_line_count),
            events.quarantined,
        )

    async def get_session_sync_stats(
        self, user_id: str, project_slug: str, session_id: str
    ) -> SyncStats:
        """Return a session's counts, times and sums; one point read."""
        head = await self._head(SessionKey(user_id, project_slug, session_id))
        events, transcript = head.stream("events"), head.stream("transcript")
        return SyncStats(
            event_count=len(events.stored),
            transcript_count=len(transcript.stored),
            event_ts_range=_ts_range(events),
            transcript_ts_range=_ts_range(transcript),
            event_bytes=events.line_bytes,
            transcript_bytes=transcript.line_bytes,
            truncated=events.truncated + transcript.truncated,
            usage=events.usage._asdict(),
            cost_usd=events.cost_usd,
        )

    # ------------------------------------------------------------ inside

    @property
    def _writer(self) -> Replacer:
        if self._replacer is None:
            raise UserError("The storage is not open: call initialize(), or use `async with`.")
        return self._replacer

    @property
    def _store(self) -> Store:
        return self._writer.store

    async def _sync(
        self,
        key: SessionKey,
        stream: Stream,
        host_id: str,
        lines: Sequence[Mapping[str, Any]],
        start: int,
    ) -> int:
        if lines:
            encoded = [json_line(line) for line in lines]
            await self._writer.write_lines(key, stream, host_id, start, encoded)
        return len(lines)

    async def _lines(self, key: SessionKey, stream: Stream, after: int) -> Documents:
        head = await self._head(key)
        found = all_lines(self._store, key, stream, head.stream(stream).generation, after)
        return [documented.line(document) async for document in found]

    async def _head(self, key: SessionKey) -> Head:
        """Read the head; where a writer died, go on in its place first."""
        head = (await head_store.read_head(self._store, key)).head
        return await self._writer.recover(head) if head.dirty else head

    async def _last_ts(self, head: Head, stream: Stream) -> str | None:
        state = head.stream(stream)
        version = (head.key, stream, state.generation)
        document = await self._store.read_line(*version, state.stored.last)
        return documented.stated_time(document) if document else None

    async def _session(self, user_id: str, session_id: str) -> dict[str, Any] | None:
        item = await self._store.read_item("sessions", user_id, escape(session_id))
        return item.document if item and not item.document.get("deleted") else None

    async def _known_project(self, user_id: str, session_id: str) -> str:
        item = await self._store.read_item("sessions", user_id, escape(session_id))
        if item is None:
            return _DEFAULT_PROJECT
        # A session that retention has hidden is not shown, and goes on where it was.
        projects: list[dict[str, Any]] = item.document.get("projects", [])
        if item.document.get("deleted") and all(entry["deleted"] for entry in projects):
            return _DEFAULT_PROJECT
        return str(item.document["project_slug"])

    async def _sessions_page(
        self, user_id: str, project_slug: str | None, limit: int, continuation: str | None
    ) -> Page:
        return await self._store.list_items(
            "sessions",
            partition=user_id,
            project_slug=project_slug,
            limit=limit,
            continuation=continuation,
        )

    async def _recent_sessions(
        self, user_id: str, project_slug: str | None, since: datetime
    ) -> AsyncIterator[dict[str, Any]]:
        oldest = utc(since.isoformat()) or ""
        token: str | None = None
        while True:
            page = await self._sessions_page(user_id, project_slug, 100, token)
            for document in page.documents:
                if (document["last_time"] or "") < oldest:
                    return
                yield document
            token = page.continuation
            if token is None:
                return


def _missing(state: StreamHead, count: int | None) -> Coverage:
    arrived = state.stored | state.quarantined
    return arrived.gaps() if count is None else Coverage.of((0, count - 1)) - arrived


def _ts_range(state: StreamHead) -> tuple[str, str] | None:
    if state.first_time is None or state.last_time is None:
        return None
    return (state.first_time, state.last_time)


def _moment(name: str, value: str | datetime | None) -> str | None:
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, datetime) else value
    found = utc(text) or utc(f"{text}T00:00:00Z")
    if found is None:
        raise UserError(f"{name} is no time: {str(value)[:64]!r}; write 2026-03-01T10:00:00Z.")
    return found
