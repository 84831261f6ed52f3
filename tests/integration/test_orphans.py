"""Orphans of the archive: what is one, what is none, and that sending brings bytes home."""

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from sessionferry import head_store
from sessionferry.archive import Archive, batch_key, unattributed_key
from sessionferry.audit import recorded
from sessionferry.batch import REPLAY_MARK, Batch, Limits, encode, utc_now
from sessionferry.deletion import delete_session
from sessionferry.delivery import Message
from sessionferry.ingest import Ingest
from sessionferry.orphans import ORPHAN_DAYS, Orphan, find_orphans
from sessionferry.reconciling import reconcile
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from support.strategies import batch

LINES = b'{"a":1}\n{"a":2}\n[3]\n'
LATER = timedelta(days=ORPHAN_DAYS + 1)


class World:
    """A store and an archive."""

    def __init__(self, store: Store, archive: Archive | None = None) -> None:
        self.store = store
        self.archive = archive or Archive.open("memory://")

    async def take(self, *messages: Message, limits: Limits | None = None) -> None:
        inbox = Archive.open("memory://")
        await Ingest(self.store, self.archive, inbox, limits=limits).take_in(messages)

    async def put(self, made: Batch) -> str:
        """Do what a delivery does that ends after its first step."""
        key = batch_key(made.header, made.id)
        await self.archive.put(key, encode(made))
        return key

    async def orphans(self, after: timedelta = LATER) -> list[Orphan]:
        now = datetime.now(UTC) + after
        return [found async for found in find_orphans(self.store, self.archive, now)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with await open_store("sqlite://") as store:
        yield World(store)


def message(made: Batch, mark: str = "") -> Message:
    return Message(body=encode(made), message_id=made.id + mark)


async def test_what_a_head_counts_is_no_orphan(world: World) -> None:
    await world.take(
        message(batch(LINES)),
        message(batch(LINES, generation=9)),
        message(batch(b'{"name": "m"}', kind="metadata", stream=None, line_count=0, revision=5)),
        message(batch(b'{"a"', kind="tail", line_count=0, offset=20, start_sequence=3)),
        Message(body=b"nonsense"),
    )
    async with recorded(world.archive, "test"):
        pass
    assert await world.orphans() == []


async def test_bytes_that_were_never_counted_are_found_once_they_are_old(world: World) -> None:
    await world.take(message(batch(LINES)), message(batch(LINES, session_id="deleted")))
    behind = batch(LINES, offset=len(LINES), start_sequence=3)
    wanted = {
        await world.put(behind),
        await world.put(batch(LINES, generation=4)),
        await world.put(batch(LINES, stream="transcript")),
        await world.put(batch(LINES, session_id="unknown")),
    }
    assert await world.orphans(timedelta(days=1)) == []
    found = await world.orphans()
    assert {orphan.key for orphan in found} == wanted
    assert {orphan.kind for orphan in found} == {"uncounted"}


async def test_what_is_sent_again_takes_its_place(world: World) -> None:
    first, behind = batch(LINES), batch(LINES, offset=len(LINES), start_sequence=3)
    await world.take(message(first))
    key = await world.put(behind)
    assert [orphan.key for orphan in await world.orphans()] == [key]
    await world.take(message(behind, f"{REPLAY_MARK}{'0' * 16}"))
    assert await world.orphans() == []
    head = (await head_store.read_head(world.store, first.header.key)).head
    assert len(head.stream("events").stored) == 4


async def test_the_body_of_a_message_is_spent_once_it_was_taken_in(world: World) -> None:
    made = batch(LINES)
    await world.take(message(made), limits=Limits(lines=1))
    assert await world.orphans() == []
    await world.take(message(made, f"{REPLAY_MARK}{'0' * 16}"))
    (orphan,) = await world.orphans()
    assert (orphan.kind, "/messages/" in orphan.key) == ("spent", True)
    await world.archive.put(unattributed_key("0" * 64), b"x")
    assert [it.kind for it in await world.orphans()] == ["spent", "spent"]


async def test_a_database_that_was_restored_is_made_whole_out_of_the_archive(
    tmp_path: Path,
) -> None:
    path, saved = tmp_path / "store.db", tmp_path / "saved.db"
    archive, before = Archive.open("memory://"), batch(LINES)
    after = [batch(LINES, offset=len(LINES), start_sequence=3), batch(LINES, session_id="new")]

    async def use(*taken: Message) -> tuple[int, list[bytes]]:
        """Take messages in; return what is missing then, and what is archived and not counted."""
        async with await open_store(f"sqlite:///{path}") as store:
            world = World(store, archive)
            await world.take(*taken)
            found = await reconcile(store, datetime.now(UTC), settled_after=timedelta(0))
            now = datetime.now(UTC) + timedelta(minutes=1)
            lost = [it.key async for it in find_orphans(store, archive, now, days=0)]
            return found.missing_lines, [await archive.get(key) for key in lost]

    await use(message(before))
    shutil.copy(path, saved)
    assert await use(*map(message, after)) == (0, [])
    shutil.copy(saved, path)
    stated = {"my-project|sess-abc": {"events": [0, 6]}, "my-project|new": {"events": [0, 3]}}
    missing, bodies = await use(message(heartbeat(stated)))
    assert (missing, len(bodies)) == (6, 2)
    await use(*(Message(body=body, message_id=f"m{REPLAY_MARK}{'0' * 16}") for body in bodies))
    assert await use() == (0, [])


def heartbeat(stated: object) -> Batch:
    """What `ferry agent restate` leads to."""
    body = {"run_id": "r", "machine": "m", "hostname": "h", "started_at": "x", "ledger": {}}
    nobody = dict.fromkeys(("stream", "project_slug", "session_id"))
    content = orjson.dumps(body | {"sent": stated})
    return batch(content, kind="heartbeat", revision=1, line_count=0, sent_at=utc_now(), **nobody)


async def test_what_cannot_be_told_and_what_was_deleted_is_left_alone(world: World) -> None:
    made = batch(LINES)
    await world.take(message(made))
    await delete_session(world.store, world.archive, made.header.key)
    await world.put(made)
    await world.archive.put("somebody/elses/folder/messages/file", b"x")
    await world.archive.put("file", b"x")
    assert await world.orphans() == []
