"""After an upgrade: what an older version refused is judged anew, what it derived is made anew.

Both are walks that are done once per version, some of it at a time: where a walk is, and what it
was at when it ended, is kept in the store. What is refused again waits for the next version.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sessionferry import __version__
from sessionferry.archive import Archive, hydrate
from sessionferry.audit import recorded
from sessionferry.batch import replay_id
from sessionferry.delivery import Message
from sessionferry.errors import PermanentError, UserError
from sessionferry.heads import DERIVATION, Head
from sessionferry.identity import STREAMS, SessionKey
from sessionferry.ingest import Ingest
from sessionferry.rebuilding import Rebuilder
from sessionferry.replaying import Entry, Unit, plan
from sessionferry.store import ItemContainer, Page, Store

log = logging.getLogger(__name__)

ROLLED_OUT_AFTER = timedelta(hours=1)
"""A version that was first seen so long ago is alone: no older one judges beside it any more."""
MOST_TRIES = 3
"""How often something is begun that ends the worker, or fails in passing, before it is left out."""
HELD_SECONDS = 300.0
"""How long a message is ours that is taken in from here: as long as one of the queue (R6)."""
_CONTAINER: Final[ItemContainer] = "attempts"
_ID = "round"
_PAGE = 100
_NEVER_EXPIRES = -1


class Round(NamedTuple):
    """A walk over everything for one version."""

    work: str
    version: str
    first_seen: str
    token: str | None = None
    is_done: bool = False
    trying: str | None = None
    tries: int = 0

    def is_due(self, now: datetime) -> bool:
        """Whether there is something to do yet, and still."""
        rolled_out = datetime.fromisoformat(self.first_seen) + ROLLED_OUT_AFTER
        return not self.is_done and now >= rolled_out

    def trying_at(self, what: str) -> "Round":
        """Count that something is begun."""
        tries = self.tries + 1 if what == self.trying else 1
        return self._replace(trying=what, tries=tries)


class Judged(NamedTuple):
    """What became of entries that an older version had quarantined."""

    messages: int = 0
    entries: int = 0
    refused: int = 0
    failed: int = 0


class Renewed(NamedTuple):
    """What became of sessions that an older version had derived."""

    heads: int = 0
    rebuilt: int = 0
    pruned: int = 0
    failed: int = 0


async def judge_anew(
    ingest: Ingest, now: datetime, *, most: int, seconds: float, version: str = __version__
) -> Judged:
    """Judge what another version quarantined, at most so many messages; the next run goes on.

    Conflicts stay, whatever the version (R1), and so do messages that ended their worker. Raises
    what the infrastructure raises; the next run goes on there.
    """
    place = await _read(ingest.store, "replay", version, now)
    if not place.is_due(now):
        return Judged()
    until = asyncio.get_running_loop().time() + seconds
    done = Judged()
    while not place.is_done and done.messages < most and _is_time_left(until):
        page = await ingest.store.list_quarantined(limit=_PAGE, continuation=place.token)
        units = plan(entry for entry in page.documents if _is_outdated(entry, version)).units
        if units:
            async with recorded(ingest.archive, "quarantine replay", version=version) as record:
                for unit in units:
                    done, place = await _judge(ingest, unit, place, done)
                record.counts = done._asdict()
        place = await _next_page(ingest.store, place, page)
    _log("quarantine judged anew", place, done)
    return done


async def rebuild_outdated(
    store: Store,
    archive: Archive,
    now: datetime,
    *,
    most: int,
    seconds: float,
    version: int = DERIVATION,
) -> Renewed:
    """Rebuild sessions that an older version derived, at most so many; the next run goes on.

    Sessions with pruned lines stay as they are. Raises what the infrastructure raises.
    """
    place = await _read(store, "rebuild", str(version), now)
    if not place.is_due(now):
        return Renewed()
    until = asyncio.get_running_loop().time() + seconds
    done = Renewed()
    while not place.is_done and done.rebuilt < most and _is_time_left(until):
        page = await store.list_items("heads", limit=_PAGE, continuation=place.token)
        async for head in _outdated(page, version):
            if done.rebuilt >= most or not _is_time_left(until):
                break
            done, place = await _rebuild(store, archive, head, place, done)
        else:
            done = done._replace(heads=done.heads + len(page.documents))
            place = await _next_page(store, place, page)
    _log("sessions made anew", place, done)
    return done


async def outdated_sessions(store: Store, version: int = DERIVATION) -> AsyncIterator[SessionKey]:
    """Yield the sessions that an older version derived, and that can be rebuilt."""
    token: str | None = None
    while True:
        page = await store.list_items("heads", limit=_PAGE, continuation=token)
        async for head in _outdated(page, version):
            if not _is_pruned(head):
                yield head.key
        token = page.continuation
        if token is None:
            return


def _is_outdated(entry: Entry, version: str) -> bool:
    ended_its_worker = entry["reason"] == PermanentError.code
    return entry.get("judged_by") != version and not ended_its_worker


async def _judge(ingest: Ingest, unit: Unit, place: Round, done: Judged) -> tuple[Judged, Round]:
    """Take one message in once more, in the place of the queue."""
    place = place.trying_at(unit.archive_key)
    done = done._replace(messages=done.messages + 1, entries=done.entries + len(unit.entries))
    if place.tries > MOST_TRIES:
        log.warning("left in the quarantine after %d tries: %s", MOST_TRIES, unit.archive_key)
        return done._replace(failed=done.failed + 1), place
    await _keep(ingest.store, place)
    try:
        message = await _message(ingest.archive, unit)
    except PermanentError as error:
        log.warning("left in the quarantine: %s", error)
        return done._replace(failed=done.failed + 1), place
    (outcome,) = await (ingest if unit.is_whole else _for_archived(ingest)).take_in([message])
    is_refused = outcome.error is not None or outcome.quarantined > 0
    return done._replace(refused=done.refused + is_refused), place


def _for_archived(ingest: Ingest) -> Ingest:
    """Take in what may have come through the inbox, and is larger than a message may be."""
    limits = replace(ingest.limits, inline_bytes=ingest.limits.claimed_bytes)
    return Ingest(ingest.store, ingest.archive, ingest.inbox, limits=limits)


async def _message(archive: Archive, unit: Unit) -> Message:
    entry = unit.entries[0]
    body = await (hydrate(archive, entry) if unit.is_whole else archive.get(unit.archive_key))
    return Message(
        body=body,
        message_id=replay_id(str(entry.get("message_id") or entry["id"])),
        content_encoding=entry.get("content_encoding"),
        enqueued_at=time.time(),
        locked_until=time.monotonic() + HELD_SECONDS,
    )


async def _outdated(page: Page, version: int) -> AsyncIterator[Head]:
    for document in page.documents:
        head = Head.from_document(document)
        if head.derived < version and head.tombstone is None and head.streams:
            yield head


async def _rebuild(
    store: Store, archive: Archive, head: Head, place: Round, done: Renewed
) -> tuple[Renewed, Round]:
    if _is_pruned(head):
        return done._replace(pruned=done.pruned + 1), place
    place = place.trying_at(head.key.partition_key)
    if place.tries > MOST_TRIES:
        log.warning("not rebuilt after %d tries: %s", MOST_TRIES, place.trying)
        return done._replace(failed=done.failed + 1), place
    await _keep(store, place)
    try:
        await Rebuilder(store, archive).rebuild(head.key)
    except (PermanentError, UserError) as error:
        log.warning("not rebuilt: %s: %s", place.trying, error)
        return done._replace(failed=done.failed + 1), place
    return done._replace(rebuilt=done.rebuilt + 1), place


def _is_pruned(head: Head) -> bool:
    return any(head.stream(name).pruned for name in STREAMS)


def _is_time_left(until: float) -> bool:
    return asyncio.get_running_loop().time() < until


async def _read(store: Store, work: str, version: str, now: datetime) -> Round:
    item = await store.read_item(_CONTAINER, work, _ID)
    if item is not None and item.document["version"] == version:
        return Round(*(item.document[name] for name in Round._fields))
    place = Round(work, version, now.isoformat())
    await _keep(store, place)
    return place


async def _next_page(store: Store, place: Round, page: Page) -> Round:
    place = place._replace(token=page.continuation, is_done=page.continuation is None)
    await _keep(store, place)
    return place


async def _keep(store: Store, place: Round) -> None:
    """Write where the walk is; there is one timer, so that nobody else does."""
    item = await store.read_item(_CONTAINER, place.work, _ID)
    document = {"id": _ID, "partition_key": place.work, "ttl": _NEVER_EXPIRES, **place._asdict()}
    await store.write_item(_CONTAINER, document, item.etag if item else None)


def _log(what: str, place: Round, done: Judged | Renewed) -> None:
    facts: dict[str, Any] = {"version": place.version, **done._asdict(), "complete": place.is_done}
    shown = " ".join(f"{name}={value}" for name, value in facts.items())
    log.info("%s: %s", what, shown, extra={"event": what.replace(" ", "_"), **facts})
