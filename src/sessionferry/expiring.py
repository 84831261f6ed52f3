"""Retention at work: what a policy chooses is pruned, hidden or deleted, and pinned sessions stay.

Every step is decided on the head that was read, and once more on the one that is written: a session
that was pinned or went on meanwhile is left alone.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import NamedTuple

from sessionferry import deletion, head_store, heads, projection
from sessionferry.archive import Archive
from sessionferry.audit import Record, recorded
from sessionferry.batch import lines_of, utc_now
from sessionferry.coverage import Coverage
from sessionferry.errors import ArchiveMismatch, UserError
from sessionferry.expiry import Policy, Step, prunable, steps
from sessionferry.export import archived_pieces, read_batch
from sessionferry.heads import Head
from sessionferry.identity import STREAMS, SessionKey
from sessionferry.store import EventFilter, Store
from sessionferry.sweeping import keep_place, read_place

log = logging.getLogger(__name__)

_PAGE = 20
_PLACE = "expire"
_EVENTS_PAGE = 50


class Due(NamedTuple):
    """What is due for a session: its steps, and what goes with them.

    `events` are documents to be pruned, `unarchived` those that stay because the archive does not
    have their bytes; `lines` are stored lines that are deleted.
    """

    head: Head
    steps: tuple[Step, ...]
    events: Coverage = Coverage()
    unarchived: int = 0
    lines: int = 0


class Expired(NamedTuple):
    """What a run looked at and did."""

    sessions: int = 0
    pruned: int = 0
    unarchived: int = 0
    hidden: int = 0
    deleted: int = 0


async def expire(
    store: Store,
    archive: Archive,
    policy: Policy,
    now: datetime,
    *,
    seconds: float | None = None,
    dry_run: bool = False,
    say: Callable[[Due], None] = lambda _: None,
) -> Expired:
    """Look at every head and do what is due; `say` is told of each session before that.

    With `seconds` it stops after that time, and the next such call goes on from there. A run that
    changes something leaves a record in the archive.
    """
    if policy.is_off:
        return Expired()
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    token = await read_place(store, _PLACE) if seconds is not None else None
    run = _Run(store, archive, policy, now)
    is_late = False
    async with AsyncExitStack() as stack:
        while not is_late:
            page = await store.list_items("heads", limit=_PAGE, continuation=token)
            seen = 0
            for document in page.documents:
                await run.look(stack, Head.from_document(document), say, dry_run=dry_run)
                seen += 1
                is_late = until is not None and loop.time() > until
                if is_late:
                    break
            if seen < len(page.documents):
                # One session may take minutes: the place is behind the last that was looked at.
                page = await store.list_items("heads", limit=seen, continuation=token)
            token = page.continuation
            if token is None:
                break
    if seconds is not None:
        await keep_place(store, _PLACE, token)
    facts = {**run.done._asdict(), "complete": token is None}
    shown = " ".join(f"{name}={value}" for name, value in facts.items())
    log.info("retention done: %s", shown, extra={"event": "expired", **facts})
    return run.done


async def pin_session(store: Store, archive: Archive, key: SessionKey, *, pinned: bool) -> Head:
    """Keep a session from retention, or no longer; one that was hidden is shown again.

    Raises `UserError` for one that is deleted.
    """

    def change(head: Head) -> Head:
        if head.tombstone is not None:
            raise UserError(f"Session {key.session_id} is deleted.")
        return head.model_copy(update={"pinned": pinned, "hidden_at": None})

    head = await head_store.change_head(store, key, change)
    await projection.project(store, archive, head, "")
    return head


class _Run:
    def __init__(self, store: Store, archive: Archive, policy: Policy, now: datetime) -> None:
        self._store = store
        self._archive = archive
        self._policy = policy
        self._now = now
        self._record: Record | None = None
        self.done = Expired()

    async def look(
        self, stack: AsyncExitStack, head: Head, say: Callable[[Due], None], *, dry_run: bool
    ) -> None:
        """Find what is due for one session, and do it."""
        due = await self._due(head)
        if due.steps:
            say(due)
        self._add(sessions=1)
        if dry_run:
            self._add(
                pruned=len(due.events),
                unarchived=due.unarchived,
                hidden=int("hide" in due.steps),
                deleted=int("delete" in due.steps),
            )
        elif due.steps:
            if self._record is None:
                action = recorded(self._archive, "expire", **self._policy.document())
                self._record = await stack.enter_async_context(action)
            await self._act(due)

    def _add(self, **counts: int) -> None:
        before = self.done._asdict()
        self.done = Expired(**{name: n + counts.get(name, 0) for name, n in before.items()})
        if self._record is not None:
            self._record.counts.update(self.done._asdict())

    async def _due(self, head: Head) -> Due:
        due = Due(head, steps(head, self._policy, self._now))
        if "prune" in due.steps:
            noise = await self._noise(head)
            archived = await self._archived(head, noise)
            events = prunable(head.stream("events"), noise, archived)
            missing = sum(archived.get(number) != sha256 for number, sha256 in noise.items())
            return due._replace(events=events, unarchived=missing)
        if "delete" in due.steps:
            return due._replace(lines=sum(len(head.stream(name).stored) for name in STREAMS))
        return due

    async def _noise(self, head: Head) -> dict[int, str]:
        """Read which lines have a document of a noisy event."""
        found: dict[int, str] = {}
        generation = head.stream("events").generation
        for event in sorted(self._policy.prune_events):
            wanted = EventFilter(user_id=head.user_id, session=head.key, event=event)
            token: str | None = None
            while True:
                page = await self._store.search_events(
                    wanted, limit=_EVENTS_PAGE, continuation=token
                )
                found |= {
                    line["sequence"]: line["line_sha256"]
                    for line in page.documents
                    if line["generation"] == generation
                }
                token = page.continuation
                if token is None:
                    break
        return found

    async def _archived(self, head: Head, wanted: dict[int, str]) -> dict[int, str]:
        """Read wanted lines out of the archive: only bytes that can be read back count."""
        found: dict[int, str] = {}
        if not wanted:
            return found
        for piece in await archived_pieces(self._archive, head, "events"):
            try:
                batch = await read_batch(self._archive, piece.key)
            except ArchiveMismatch:
                continue
            for number, (_, line) in enumerate(
                lines_of(batch.payload), batch.header.start_sequence
            ):
                if number in wanted:
                    found[number] = hashlib.sha256(line).hexdigest()
            if found == wanted:
                break
        return found

    async def _act(self, due: Due) -> None:
        if "prune" in due.steps:
            await self._prune(due)
        if "hide" in due.steps:
            await self._hide(due.head.key)
        if "delete" in due.steps:
            await self._delete(due.head.key)

    async def _prune(self, due: Due) -> None:
        """Write the head first: whoever stores a line late is then told that it must not exist."""
        key, stored = due.head.key, due.head.stream("events")

        def is_same(head: Head) -> bool:
            state = head.stream("events")
            return (state.generation, state.stored) == (stored.generation, stored.stored)

        def begin(head: Head) -> Head:
            if not is_same(head) or "prune" not in steps(head, self._policy, self._now):
                return head
            return heads.prune(head, "events", due.events)

        def finish(head: Head) -> Head:
            if not is_same(head) or head.tombstone is not None:
                return head
            return head.model_copy(update={"pruned_events": tuple(sorted(known))})

        head = await head_store.change_head(self._store, key, begin)
        if not is_same(head) or due.events - head.stream("events").pruned:
            return
        await self._store.delete_lines(key, "events", stored.generation, due.events)
        known = self._policy.prune_events | set(head.pruned_events)
        if not due.unarchived:
            head = await head_store.change_head(self._store, key, finish)
        await projection.project(self._store, self._archive, head, "")
        self._add(pruned=len(due.events), unarchived=due.unarchived)

    async def _hide(self, key: SessionKey) -> None:
        hidden_at = self._now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

        def hide(head: Head) -> Head:
            if "hide" not in steps(head, self._policy, self._now):
                return head
            return head.model_copy(update={"hidden_at": hidden_at})

        head = await head_store.change_head(self._store, key, hide)
        await projection.project(self._store, self._archive, head, "")
        if head.hidden_at == hidden_at:
            self._add(hidden=1)

    async def _delete(self, key: SessionKey) -> None:
        deleted_at = utc_now()

        def bury(head: Head) -> Head:
            if "delete" not in steps(head, self._policy, self._now):
                return head
            return heads.delete(head, deleted_at)

        head = await head_store.change_head(self._store, key, bury)
        if head.tombstone is None or head.tombstone.deleted_at != deleted_at:
            return
        if self._record is not None:
            self._record.counts.setdefault("deleted_sessions", []).append(key.partition_key)
        await deletion.delete_session(self._store, self._archive, key)
        self._add(deleted=1)
