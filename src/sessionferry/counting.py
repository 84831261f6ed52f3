"""Counting what is stored into the head, where no delivery does: after lines were replaced, and in
the place of a writer that died.

A writer of the storage API puts a mark on the head before it writes, and takes it off with the
write that counts its lines. A mark that outlives its time belongs to a writer that is gone; what it
wrote is counted from the documents, or removed where the head says that it must not exist.
"""

from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime

from sessionferry import head_store, heads
from sessionferry.archive import Archive
from sessionferry.coverage import Coverage
from sessionferry.documents import stored_facts
from sessionferry.heads import Delivery, Head, Mark
from sessionferry.identity import SessionKey, Stream, session_folder
from sessionferry.quarantine import CONFLICT
from sessionferry.store import Store
from sessionferry.store.pages import PAGE_LINES, all_lines


class RuledOut(Exception):
    """What was written must not exist: the session was deleted, or the file has a newer version."""


def moment(seconds: float) -> str:
    """Write a time since 1970 as marks have it."""
    exact = datetime.fromtimestamp(seconds, UTC)
    return exact.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def recover(store: Store, archive: Archive, head: Head, now: str) -> Head:
    """Count or remove what writers have left that are gone. Returns the newest head."""
    for left in head.dirty:
        if left.until < now:
            head = await _end_mark(store, archive, head.key, left)
    return head


async def count_marked(store: Store, head: Head, mark: Mark, delivery: Delivery) -> Head:
    """Count a mark's lines by what is known of them since `head`, and take the mark off.

    Raises `RuledOut` when they must not exist, or may have been removed.
    """

    async def compute(newest: Head) -> Head:
        if heads.is_ruled_out(newest, mark) or newest.deletions != head.deletions:
            raise RuledOut
        counted = heads.unmark(heads.merge(newest, [delivery]), [mark.id])
        await _leave_quarantine(store, newest, counted, mark.stream)
        return counted

    return await head_store.recompute_head(store, head.key, compute)


async def count_anew(
    store: Store,
    key: SessionKey,
    stream: Stream,
    generation: int,
    *,
    marks: Collection[str] = (),
    more: Collection[Delivery] = (),
) -> Head:
    """Count all documents of a stream, and what else there is to count; take these marks off.

    Raises `RuledOut` when the generation is none any more.
    """

    async def compute(newest: Head) -> Head:
        if newest.tombstone is not None or newest.stream(stream).generation != generation:
            raise RuledOut
        deliveries = [found async for found in _found(store, key, stream, generation)]
        counted = heads.unmark(heads.restate(newest, stream, [*deliveries, *more]), marks)
        await _leave_quarantine(store, newest, counted, stream)
        return counted

    return await head_store.recompute_head(store, key, compute)


async def remove(store: Store, archive: Archive, head: Head, mark: Mark) -> Head:
    """Remove what a writer left of lines that are ruled out; take its mark off.

    Only a session without marks can be undeleted, so that nothing sent anew is removed here.
    """
    await store.delete_lines(head.key, mark.stream, mark.generation, mark.lines)
    if head.tombstone is not None:
        await archive.delete_folder(session_folder(head.key))
    return await head_store.change_head(
        store, head.key, lambda newest: heads.unmark(newest, [mark.id])
    )


async def _end_mark(store: Store, archive: Archive, key: SessionKey, mark: Mark) -> Head:
    while True:
        head = (await head_store.read_head(store, key)).head
        if mark.id not in {known.id for known in head.dirty}:
            return head
        if heads.is_ruled_out(head, mark):
            return await remove(store, archive, head, mark)
        try:
            if mark.replaces:
                return await count_anew(store, key, mark.stream, mark.generation, marks=[mark.id])
            return await _count_left(store, head, mark)
        except RuledOut:
            continue


async def _count_left(store: Store, head: Head, mark: Mark) -> Head:
    facts, name = [], None
    for first, last in mark.lines.ranges:
        version = (head.key, mark.stream, mark.generation)
        async for document in all_lines(store, *version, after=first - 1):
            if document["sequence"] > last:
                break
            facts.append(stored_facts(document))
            name = document.get("format", name)
    delivery = Delivery(
        mark.stream, mark.generation, stored=facts, format=name, unplaced=bool(facts)
    )
    return await count_marked(store, head, mark, delivery)


async def _found(
    store: Store, key: SessionKey, stream: Stream, generation: int
) -> AsyncIterator[Delivery]:
    facts = []
    async for document in all_lines(store, key, stream, generation):
        facts.append(stored_facts(document))
        if len(facts) == PAGE_LINES:
            yield Delivery(stream, generation, stored=facts)
            facts = []
    yield Delivery(stream, generation, stored=facts)


async def _leave_quarantine(store: Store, before: Head, after: Head, stream: Stream) -> None:
    """Delete the entries of lines that are stored now (R2), before the head forgets them."""
    state = after.stream(stream)
    left = before.stream(stream).quarantined & state.stored
    if not left:
        return
    partition = before.key.partition_key
    stale = [id_ async for id_ in _entries(store, partition, stream, state.generation, left)]
    await store.delete_quarantined(partition, stale)


async def _entries(
    store: Store, partition: str, stream: Stream, generation: int, lines: Coverage
) -> AsyncIterator[str]:
    token: str | None = None
    while True:
        page = await store.list_quarantined(partition, limit=500, continuation=token)
        for entry in page.documents:
            place = (entry.get("stream"), entry.get("generation"))
            is_line = place == (stream, generation) and entry["reason"] != CONFLICT
            if is_line and entry["sequence"] in lines:
                yield entry["id"]
        token = page.continuation
        if token is None:
            return
