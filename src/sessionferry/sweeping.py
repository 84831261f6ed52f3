"""The sweep: what a delivery or a deletion left unfinished when its process ended.

Ingest finishes what it finds whenever a session is heard of again (R5). The sweep is the backstop
for sessions that are never heard of again, and for writes that came too late (R6).
"""

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sessionferry import counting, head_store
from sessionferry.archive import Archive
from sessionferry.batch import utc_now
from sessionferry.coverage import Coverage
from sessionferry.deletion import delete_session
from sessionferry.errors import ItemChanged, UserError
from sessionferry.heads import Garbage, Head
from sessionferry.identity import STREAMS, Stream, session_folder
from sessionferry.store import ItemContainer, Store

log = logging.getLogger(__name__)

INBOX_DAYS = 90
"""After so long nothing in the inbox is waited for: a message lives 14 days, and its dead letter
was noticed since."""
DELETION_MINUTES = 30
"""A deletion that is younger may be going on."""
_PAGE = 100
_LATE_LINES = 1_000
_PLACES: Final[ItemContainer] = "attempts"
_PLACE = "sweep"
_PLACE_ID = "heads"


class Swept(NamedTuple):
    """What a sweep found, and finished."""

    heads: int = 0
    garbage: int = 0
    deletions: int = 0
    marks: int = 0
    late_lines: int = 0
    late_objects: int = 0

    def plus(self, more: "Swept") -> "Swept":
        """Add up."""
        return Swept(*(mine + its for mine, its in zip(self, more, strict=True)))


async def sweep_heads(
    store: Store, archive: Archive, *, seconds: float | None = None, dry_run: bool = False
) -> Swept:
    """Look at every head, and finish what it says is unfinished.

    With `seconds` it stops after that time, and the next such call goes on from there. Without it
    starts at the beginning.
    """
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    token = await read_place(store, _PLACE) if seconds is not None else None
    swept = Swept()
    while True:
        page = await store.list_items("heads", limit=_PAGE, continuation=token)
        for document in page.documents:
            head = Head.from_document(document)
            swept = swept.plus(await sweep_head(store, archive, head, dry_run=dry_run))
        token = page.continuation
        if token is None or (until is not None and loop.time() > until):
            break
    if seconds is not None:
        await keep_place(store, _PLACE, token)
    facts = {**swept._asdict(), "complete": token is None}
    shown = " ".join(f"{name}={value}" for name, value in facts.items())
    log.info("heads swept: %s", shown, extra={"event": "swept", **facts})
    return swept


async def sweep_head(store: Store, archive: Archive, head: Head, *, dry_run: bool = False) -> Swept:
    """Finish one session: lines that a writer left uncounted, its deletion, its garbage, and what
    was written too late for either.
    """
    left = [mark for mark in head.dirty if mark.until < utc_now()]
    if left and not dry_run:
        head = await counting.recover(store, archive, head, utc_now())
    found = await _sweep_counted(store, archive, head, dry_run=dry_run)
    return found._replace(marks=len(left))


async def _sweep_counted(store: Store, archive: Archive, head: Head, *, dry_run: bool) -> Swept:
    if head.tombstone is None:
        late = await _late_lines(store, head, _superseded(head))
        if not dry_run and (late or head.garbage):
            newest = await _with_garbage(store, head, late)
            await head_store.sweep(store, newest)
        lines = sum(len(garbage.lines) for garbage in late)
        return Swept(heads=1, garbage=len(head.garbage), late_lines=lines)
    if not head.tombstone.finished:
        if _age(head.tombstone.deleted_at) < timedelta(minutes=DELETION_MINUTES):
            return Swept(heads=1)
        found = Swept(heads=1, deletions=1, garbage=len(head.garbage))
    else:
        found = await _late_for_deletion(store, archive, head)
    if not dry_run and found != Swept(heads=1):
        await _delete_again(store, archive, head)
    return found


async def sweep_inbox(inbox: Archive, now: datetime, *, dry_run: bool = False) -> int:
    """Delete what no message can be waiting for any more; returns how many objects.

    A cloud's inbox has a lifecycle rule for that; this is for a folder.
    """
    oldest = now - timedelta(days=INBOX_DAYS)
    old = [found.key async for found in inbox.objects("") if found.written_at < oldest]
    if not dry_run:
        await inbox.delete(old)
    log.info(
        "inbox swept: objects=%d", len(old), extra={"event": "inbox_swept", "objects": len(old)}
    )
    return len(old)


def _superseded(head: Head) -> list[tuple[Stream, int]]:
    return [
        (name, generation)
        for name, state in head.streams.items()
        for generation in state.superseded
        if generation < state.generation
    ]


async def _late_lines(
    store: Store, head: Head, versions: Iterable[tuple[Stream, int]]
) -> list[Garbage]:
    """Find documents that the head rules out and does not list: written by one that came late."""
    found = []
    for stream, generation in versions:
        lines = await store.read_lines(head.key, stream, generation, limit=_LATE_LINES)
        numbers = Coverage.from_numbers(int(line["sequence"]) for line in lines)
        if numbers:
            found.append(Garbage(stream=stream, generation=generation, lines=numbers))
    return [late for late in found if late not in head.garbage]


async def _with_garbage(store: Store, head: Head, late: list[Garbage]) -> Head:
    """List what came late in the head, unless the head that was read is not the newest (R5)."""

    def change(newest: Head) -> Head:
        if newest.deletions != head.deletions or newest.tombstone is not None:
            return newest
        return newest.model_copy(update={"garbage": (*newest.garbage, *late)})

    return await head_store.change_head(store, head.key, change)


async def _late_for_deletion(store: Store, archive: Archive, head: Head) -> Swept:
    """Count what lies under a tombstone although the deletion has finished."""
    first = [(stream, 0) for stream in STREAMS]
    lines = await _late_lines(store, head, first)
    entries = await store.list_quarantined(head.key.partition_key, limit=1)
    objects = [found.key async for found in archive.objects(session_folder(head.key))]
    return Swept(
        heads=1,
        late_lines=sum(len(garbage.lines) for garbage in lines) + len(entries.documents),
        late_objects=len(objects),
    )


async def _delete_again(store: Store, archive: Archive, head: Head) -> None:
    """Go on with a deletion, or repeat it; not where somebody has lifted it since."""
    late = await _late_lines(store, head, [(stream, 0) for stream in STREAMS])

    def reopen(newest: Head) -> Head:
        if newest.tombstone is None or newest.deletions != head.deletions:
            return newest
        # An unfinished deletion cannot be lifted: nothing is sent anew while this removes.
        unfinished = newest.tombstone.model_copy(update={"finished": False})
        return newest.model_copy(
            update={"tombstone": unfinished, "garbage": (*newest.garbage, *late)}
        )

    newest = await head_store.change_head(store, head.key, reopen)
    if newest.tombstone is not None and newest.deletions == head.deletions:
        await delete_session(store, archive, head.key)


async def read_place(store: Store, work: str) -> str | None:
    """Read where a walk over all heads has to go on; None at the beginning."""
    item = await store.read_item(_PLACES, work, _PLACE_ID)
    token = item.document.get("token") if item else None
    if token is None:
        return None
    try:
        await store.list_items("heads", limit=1, continuation=token)
    except UserError:
        return None  # a token of another version: start at the beginning
    return str(token)


async def keep_place(store: Store, work: str, token: str | None) -> None:
    """Note where the next walk of this name goes on."""
    item = await store.read_item(_PLACES, work, _PLACE_ID)
    document = {"id": _PLACE_ID, "partition_key": work, "token": token}
    try:
        await store.write_item(_PLACES, document, item.etag if item else None)
    except ItemChanged:
        log.debug("another %s has noted its place", work)


def _age(moment: str) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(moment)
