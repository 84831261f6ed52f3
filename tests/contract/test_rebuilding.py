"""A session made anew: from its archive alone, from its documents, and beside everybody else."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sessionferry import head_store
from sessionferry.archive import Archive, NoArchive
from sessionferry.coverage import Coverage
from sessionferry.errors import UserError
from sessionferry.heads import HEAD_ID, prune
from sessionferry.identity import SessionKey
from sessionferry.ingest import Ingest
from sessionferry.rebuilding import Rebuilder
from sessionferry.replacing import json_line
from sessionferry.store import Store
from sessionferry.store.cosmos.store import CosmosStore
from sessionferry.store.sql import SqlStore
from support import schedules
from support.schedules import World, check_exact, line, message, metadata

KEY = SessionKey("ada", "engine", "s1")
SHIPPED = [line(0), b"not json", line(2), line(3, data="x" * 500_000), line(4)]


@pytest.fixture(params=["sqlite", "postgresql", "cosmos"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "cosmos":
        opened: Any = await CosmosStore.open(request.getfixturevalue("cosmos_access"))
    elif request.param == "postgresql":
        opened = SqlStore.open(request.getfixturevalue("postgres_url"))
    else:
        opened = SqlStore.open("sqlite://")
    async with opened:
        yield opened


@pytest.fixture
def world(store: Store) -> World:
    return World(store, Archive.open("memory://"), Archive.open("memory://"))


async def ship(world: World, *messages: Any) -> None:
    clock = {"clock": lambda: schedules.NOW}
    await Ingest(world.store, world.archive, world.inbox, **clock).take_in(messages)


async def fill(world: World) -> None:
    """A fleet's session, of which one line was replaced since, and two were added."""
    sent = [
        message(KEY, SHIPPED[first:end], first, whole=SHIPPED) for first, end in ((0, 3), (2, 5))
    ]
    await ship(world, *sent, metadata(KEY, 5, title="first"), metadata(KEY, 7, title="second"))
    for version in ("second", "third"):
        lines = [json_line({"event": "e", "version": version, "n": n}) for n in range(3)]
        await Rebuilder(world.store, world.archive).write_lines(KEY, "events", "h", 4, lines)


async def lose(world: World, *, head: bool = True) -> None:
    await world.store.delete_lines(KEY, "events", 0, Coverage.of((0, 9)))
    await world.store.clear_quarantine(KEY.partition_key)
    await world.store.delete_item("sessions", KEY.user_id, KEY.session_id)
    if head:
        await world.store.delete_item("heads", KEY.partition_key, HEAD_ID)


@pytest.mark.parametrize("head", [True, False])
async def test_what_was_lost_comes_back_from_the_archive(world: World, head: bool) -> None:
    await fill(world)
    before = await schedules.view(world, KEY)
    await lose(world, head=head)
    done = await Rebuilder(world.store, world.archive).rebuild(KEY)
    assert (done.created, done.archived) == (6, 7)
    after = await schedules.view(world, KEY)
    assert after == before
    assert {document.get("version") for document in after.documents.values()} == {None, "third"}
    await check_exact(world, KEY)


async def test_rebuilding_what_is_whole_changes_nothing(world: World) -> None:
    await fill(world)
    before = await schedules.view(world, KEY)
    done = await Rebuilder(world.store, world.archive).rebuild(KEY)
    assert (done.created, done.renewed) == (0, 7)
    assert await schedules.view(world, KEY) == before


async def test_a_head_that_is_wrong_is_counted_anew(world: World) -> None:
    await fill(world)
    before = await schedules.view(world, KEY)

    def spoil(head: Any) -> Any:
        wrong = {"line_bytes": 1, "digest": "0" * 64, "stored": Coverage.of((0, 99))}
        state = head.streams["events"].model_copy(update=wrong)
        return head.model_copy(update={"streams": {"events": state}})

    await head_store.change_head(world.store, KEY, spoil)
    await Rebuilder(world.store, world.archive).rebuild(KEY)
    assert await schedules.view(world, KEY) == before


async def test_the_newest_generation_is_rebuilt(world: World) -> None:
    await fill(world)
    newer = [line(7), line(8)]
    await ship(world, message(KEY, newer, whole=newer, generation=2))
    before = await schedules.view(world, KEY)
    await lose(world, head=False)
    await world.store.delete_lines(KEY, "events", 2, Coverage.of((0, 9)))
    await Rebuilder(world.store, world.archive).rebuild(KEY)
    assert await schedules.view(world, KEY) == before


async def test_without_an_archive_the_documents_are_counted() -> None:
    async with SqlStore.open("sqlite://") as store:
        rebuilder = Rebuilder(store, NoArchive())
        await rebuilder.write_lines(KEY, "events", "h", 0, SHIPPED[2:5])
        before = (await head_store.read_head(store, KEY)).head
        await store.delete_lines(KEY, "events", 0, Coverage.of((2, 2)))
        done = await rebuilder.rebuild(KEY)
        assert (done.created, done.renewed) == (0, 0)
        assert done.head.stream("events").stored == Coverage.of((0, 1))
        await rebuilder.write_lines(KEY, "events", "h", 2, SHIPPED[4:5])
        after = (await head_store.read_head(store, KEY)).head
        assert after.streams == before.streams


async def test_what_cannot_be_rebuilt_is_said() -> None:
    async with SqlStore.open("sqlite://") as store:
        rebuilder = Rebuilder(store, Archive.open("memory://"))
        with pytest.raises(UserError, match="Nothing of session"):
            await rebuilder.rebuild(KEY)
        await rebuilder.write_lines(KEY, "events", "h", 0, SHIPPED[2:5])
        await head_store.change_head(
            store, KEY, lambda head: prune(head, "events", Coverage.of((0, 0)))
        )
        with pytest.raises(UserError, match="pruned"):
            await rebuilder.rebuild(KEY)
