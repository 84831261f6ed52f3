"""The sweep over a real store and archive: what ended processes left, and what must stay."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from sessionferry import head_store, heads
from sessionferry.archive import Archive
from sessionferry.batch import Batch, encode, utc_now
from sessionferry.consumer import Consumer
from sessionferry.coverage import Coverage
from sessionferry.deletion import delete_session, undelete_session
from sessionferry.delivery import Message
from sessionferry.heads import Delivery, Head, Mark, Tombstone
from sessionferry.identity import SessionKey, session_folder
from sessionferry.ingest import Ingest
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from sessionferry.sweeping import (
    DELETION_MINUTES,
    INBOX_DAYS,
    Swept,
    sweep_head,
    sweep_heads,
    sweep_inbox,
)
from support.strategies import batch, header

KEY = header().key
LONG_AGO = "2026-01-01T00:00:00.000Z"
LINES = b"".join(orjson.dumps({"event": "e", "n": n}) + b"\n" for n in range(6)) + b"[1]\n"


class World:
    """A store and an archive with one session of seven lines, one of them in the quarantine."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.archive = Archive.open("memory://")

    async def take(self, *batches: Batch) -> None:
        ingest = Ingest(self.store, self.archive, Archive.open("memory://"), retry_seconds=5)
        await ingest.take_in([Message(body=encode(one), message_id=one.id) for one in batches])

    async def head(self) -> Head:
        return (await head_store.read_head(self.store, KEY)).head

    async def left(self, generation: int = 0) -> tuple[int, int, int]:
        """Documents, quarantine entries and archived objects of the session."""
        lines = await self.store.read_lines(KEY, "events", generation)
        entries = (await self.store.list_quarantined(KEY.partition_key)).documents
        objects = [found async for found in self.archive.objects(session_folder(KEY))]
        return len(lines), len(entries), len(objects)

    async def sweep(self, *, dry_run: bool = False) -> Swept:
        return await sweep_heads(self.store, self.archive, dry_run=dry_run)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with await open_store("sqlite://") as store:
        made = World(store)
        await made.take(batch(LINES))
        yield made


async def test_a_healthy_session_is_left_alone(world: World) -> None:
    before = await world.head()
    assert await world.sweep() == Swept(heads=1)
    assert await world.head() == before
    assert await world.left() == (6, 1, 1)


async def test_lines_of_an_older_generation_are_removed_when_their_process_ended(
    world: World,
) -> None:
    """It wrote the head that raises the generation, and no more (R5)."""
    newer = Delivery("events", 9)
    await head_store.change_head(world.store, KEY, lambda head: heads.merge(head, [newer]))
    assert (await world.sweep(dry_run=True)).garbage == 1
    assert await world.left() == (6, 1, 1)
    assert (await world.sweep()).garbage == 1
    assert await world.left() == (0, 0, 1)
    assert (await world.head()).garbage == ()
    assert await world.sweep() == Swept(heads=1)


async def test_documents_that_came_too_late_for_their_generation_are_removed(world: World) -> None:
    other = batch(LINES, session_id="stays")
    await world.take(other, batch(LINES, generation=9))
    assert await world.left() == (0, 1, 2)
    await write_late(world.store)
    assert (await world.sweep(dry_run=True)).late_lines == 6
    assert (await world.sweep()).late_lines == 6
    assert await world.left() == (0, 1, 2)
    assert await world.left(generation=9) == (6, 1, 2)
    assert len(await world.store.read_lines(other.header.key, "events", 0)) == 6
    assert await world.sweep() == Swept(heads=2)


async def test_a_deletion_that_was_interrupted_is_finished_once_it_is_old(world: World) -> None:
    await head_store.change_head(world.store, KEY, lambda head: heads.delete(head, utc_now()))
    assert await world.sweep() == Swept(heads=1)
    assert await world.left() == (6, 1, 1)

    def age(head: Head) -> Head:
        return head.model_copy(update={"tombstone": Tombstone(deleted_at=LONG_AGO)})

    await head_store.change_head(world.store, KEY, age)
    assert (await world.sweep()).deletions == 1
    tombstone = (await world.head()).tombstone
    assert tombstone is not None
    assert tombstone.finished
    assert DELETION_MINUTES > 10  # an invocation's limit, and more
    assert await world.left() == (0, 0, 0)


async def test_lines_of_a_writer_that_ended_are_counted(world: World) -> None:
    """It marked the head, wrote its documents, and ended before it counted them."""
    await write_late(world.store, session_id="marked")
    key = header(session_id="marked").key
    for until, dirty in (("2999-01-01T00:00:00.000Z", 1), (LONG_AGO, 0)):
        wanted = Mark(id="w", stream="events", generation=0, lines=Coverage.of((0, 5)), until=until)
        await head_store.change_head(world.store, key, lambda head, it=wanted: heads.mark(head, it))
        assert (await world.sweep()).marks == 1 - dirty
        head = (await head_store.read_head(world.store, key)).head
        assert len(head.dirty) == dirty
    assert len(head.stream("events").stored) == 6


async def test_what_is_written_under_a_tombstone_is_removed(world: World) -> None:
    await delete_session(world.store, world.archive, KEY)
    assert await world.sweep() == Swept(heads=1)
    await write_late(world.store)
    await world.archive.put(f"{session_folder(KEY)}/events/late", b"x")
    assert await world.sweep(dry_run=True) == Swept(heads=1, late_lines=6, late_objects=1)
    await world.sweep()
    assert await world.left() == (0, 0, 0)
    tombstone = (await world.head()).tombstone
    assert tombstone is not None
    assert tombstone.finished


async def test_a_session_that_was_undeleted_meanwhile_is_not_deleted_again(world: World) -> None:
    """The sweep has read its head while it was deleted, and acts after it was sent anew."""
    stale = await delete_session(world.store, world.archive, KEY)
    await undelete_session(world.store, world.archive, KEY)
    await world.take(batch(LINES))
    await sweep_head(world.store, world.archive, stale)
    assert await world.left() == (6, 1, 1)
    assert (await world.head()).tombstone is None


async def test_a_session_whose_generation_began_anew_is_not_taken_for_the_old_one(
    world: World,
) -> None:
    await world.take(batch(LINES, generation=9))
    stale = await world.head()
    await delete_session(world.store, world.archive, KEY)
    await undelete_session(world.store, world.archive, KEY)
    await world.take(batch(LINES))
    await sweep_head(world.store, world.archive, stale)
    assert (await world.left())[:2] == (6, 1)


async def test_a_sweep_that_ran_out_of_time_goes_on_where_it_stopped(world: World) -> None:
    for number in range(150):
        head = Head.new(SessionKey("u", "p", f"s{number}"))
        await world.store.write_item("heads", head.to_document(), None)
    seen = [(await sweep_heads(world.store, world.archive, seconds=0)).heads for _ in range(4)]
    assert seen == [100, 51, 100, 51]
    item = await world.store.read_item("attempts", "sweep", "heads")
    assert item is not None
    await world.store.write_item("attempts", {**item.document, "token": "nonsense"}, item.etag)
    assert (await sweep_heads(world.store, world.archive, seconds=9)).heads == 151


async def test_only_what_nobody_waits_for_any_more_leaves_the_inbox(tmp_path: Path) -> None:
    inbox = Archive.open(tmp_path.as_uri())
    await inbox.put("u/p/s.1/lines/old", b"x")
    await inbox.put("u/p/s.1/lines/new", b"x")
    old = time.time() - timedelta(days=INBOX_DAYS, hours=1).total_seconds()
    await asyncio.to_thread(os.utime, tmp_path / "u/p/s.1/lines/old", (old, old))
    now = datetime.now(UTC)
    assert await sweep_inbox(inbox, now, dry_run=True) == 1
    assert await sweep_inbox(inbox, now) == 1
    assert [found.key async for found in inbox.objects("")] == ["u/p/s.1/lines/new"]


async def test_the_timer_sweeps_what_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    for name in ("archive", "inbox"):
        monkeypatch.setenv(f"FERRY_{name.upper()}", (tmp_path / name).as_uri())
    consumer = Consumer()
    await consumer.sweep()
    ingest = await consumer._open()
    await ingest.take_in([Message(body=encode(batch(LINES)))])
    await head_store.change_head(
        ingest.store, KEY, lambda head: heads.merge(head, [Delivery("events", 9)])
    )
    await consumer.sweep()
    assert await ingest.store.read_lines(KEY, "events", 0) == []
    await ingest.store.close()


async def write_late(store: Store, **changes: object) -> None:
    """Do what a slow delivery does that read the head long ago, and ends before it writes it."""

    class Late(Ingest):
        async def _settle(self, session: object) -> None:
            return

    before = BeforeAll(store)
    late = Late(before, Archive.open("memory://"), Archive.open("memory://"))  # type: ignore[arg-type]
    await late.take_in([Message(body=encode(batch(LINES[: LINES.index(b"[1]")], **changes)))])


class BeforeAll:
    """A store as it looked before anything was known of the session."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def read_item(self, *_: object) -> None:
        return None
