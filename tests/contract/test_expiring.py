"""Retention over every store: what goes, what stays, and what comes back."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from sessionferry import head_store
from sessionferry.archive import Archive
from sessionferry.errors import UserError
from sessionferry.expiring import Due, Expired, expire, pin_session
from sessionferry.expiry import Policy
from sessionferry.export import archived_pieces, file_bytes
from sessionferry.heads import Head
from sessionferry.identity import AUDIT, SessionKey
from sessionferry.ingest import Ingest
from sessionferry.store import Store
from sessionferry.store.cosmos.store import CosmosStore
from sessionferry.store.sql import SqlStore
from support import schedules
from support.schedules import World, check_exact, line, message

KEY = SessionKey("ada", "engine", "s1")
OTHER = SessionKey("ada", "engine", "s2")
NOISY = {"event": "content_block:delta"}
LINES = [
    line(0),
    line(1, **NOISY),
    line(2, **NOISY),
    line(3),
    line(4, event="llm:request", raw="x" * 500_000),
    line(5),
]
END = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = Policy(prune_days=10, hide_days=20, delete_days=30)


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
async def world(store: Store) -> World:
    made = World(store, Archive.open("memory://"), Archive.open("memory://"))
    await ship(made, *halves(KEY), *halves(OTHER))
    return made


def halves(key: SessionKey) -> list[Any]:
    return [message(key, LINES[at : at + 3], at, whole=LINES) for at in (0, 3)]


async def ship(world: World, *messages: Any) -> None:
    clock = {"clock": lambda: schedules.NOW}
    await Ingest(world.store, world.archive, world.inbox, **clock).take_in(messages)


async def run(world: World, day: int, **options: Any) -> Expired:
    now = END + timedelta(days=day, hours=1)
    return await expire(world.store, world.archive, POLICY, now, **options)


async def head_of(world: World, key: SessionKey = KEY) -> Head:
    return (await head_store.read_head(world.store, key)).head


async def documents(world: World) -> list[int]:
    return [found["sequence"] for found in await world.store.read_lines(KEY, "events", 0)]


async def exported(world: World) -> bytes:
    blocks = file_bytes(world.store, world.archive, await head_of(world), "events")
    return b"".join([block async for block in blocks])


async def shown(world: World) -> list[str]:
    page = await world.store.list_items("sessions", partition="ada")
    return sorted(document["session_id"] for document in page.documents)


async def records(world: World) -> int:
    return len([found async for found in world.archive.objects(AUDIT)])


async def ended(world: World) -> list[dict[str, Any]]:
    """Return the counts of all runs' records."""
    keys = [found.key async for found in world.archive.objects(AUDIT)]
    ends = [
        orjson.loads(await world.archive.get(key)) for key in keys if key.endswith("ended.json")
    ]
    return [end["counts"] for end in ends]


async def test_noise_loses_its_documents_and_nothing_else(world: World) -> None:
    before = (await head_of(world)).stream("events")
    assert await run(world, 9) == Expired(sessions=2)
    told: list[Due] = []
    assert await run(world, 11, dry_run=True, say=told.append) == Expired(sessions=2, pruned=6)
    assert [(due.steps, len(due.events)) for due in told] == [(("prune",), 3)] * 2
    assert await documents(world) == [0, 1, 2, 3, 4, 5]
    assert await records(world) == 0
    assert await run(world, 11) == Expired(sessions=2, pruned=6)
    assert await documents(world) == [0, 3, 5]
    after = (await head_of(world)).stream("events")
    assert set(after.pruned) == {1, 2, 4}
    assert after.model_copy(update={"pruned": before.pruned}) == before
    assert await exported(world) == b"".join(one + b"\n" for one in LINES)
    assert await records(world) == 2
    assert await run(world, 12) == Expired(sessions=2)
    await check_exact(world, KEY)


async def test_late_deliveries_bring_no_pruned_document_back(world: World) -> None:
    await run(world, 11)
    again = await head_of(world)
    await ship(world, *halves(KEY))
    assert await documents(world) == [0, 3, 5]
    head = await head_of(world)
    assert head.model_copy(update={"head_version": again.head_version}) == again


async def test_a_line_whose_archived_bytes_are_gone_keeps_its_document(world: World) -> None:
    pieces = await archived_pieces(world.archive, await head_of(world), "events")
    await world.archive.delete([pieces[1].key])
    assert await run(world, 11) == Expired(sessions=2, pruned=5, unarchived=1)
    assert await documents(world) == [0, 3, 4, 5]
    assert (await head_of(world)).pruned_events == ()


async def test_documents_that_an_interrupted_run_left_go_with_the_next(world: World) -> None:
    head = await head_of(world)
    lines = await world.store.read_lines(KEY, "events", 0)
    await schedules.prune(KEY, head.stream("events").stored)(_Keeping(world.store), world.archive)
    assert await documents(world) == [found["sequence"] for found in lines]
    assert (await run(world, 11)).pruned == 6
    assert await documents(world) == [0, 3, 5]


class _Keeping:
    """A store whose process ends before it deletes lines."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete_lines(self, *_: Any) -> None:
        return


async def test_a_session_is_hidden_first_and_deleted_later(world: World) -> None:
    await pin_session(world.store, world.archive, OTHER, pinned=True)
    assert await run(world, 21) == Expired(sessions=2, pruned=3, hidden=1)
    assert await shown(world) == ["s2"]
    assert await documents(world) == [0, 3, 5]
    assert await run(world, 50) == Expired(sessions=2)
    assert await run(world, 51) == Expired(sessions=2, deleted=1)
    head = await head_of(world)
    assert head.tombstone is not None
    assert head.tombstone.finished
    assert await documents(world) == []
    assert [found["deleted_sessions"] for found in await ended(world) if found["deleted"]] == [
        [KEY.partition_key]
    ]
    assert await shown(world) == ["s2"]
    assert await run(world, 99) == Expired(sessions=2)
    await check_exact(world, KEY)
    await check_exact(world, OTHER)


async def test_a_hidden_session_is_shown_again_by_a_pin_and_by_new_lines(world: World) -> None:
    assert (await run(world, 21)).hidden == 2
    assert await shown(world) == []
    await pin_session(world.store, world.archive, KEY, pinned=True)
    assert await shown(world) == ["s1"]
    whole = [*LINES, line(6)]
    await ship(world, message(OTHER, whole[6:], 6, whole=whole))
    assert await shown(world) == ["s1", "s2"]
    await pin_session(world.store, world.archive, KEY, pinned=False)
    assert (await run(world, 60)).hidden == 2
    await check_exact(world, KEY)


@pytest.mark.parametrize("is_hidden", [False, True])
async def test_what_is_pinned_while_a_run_looks_at_it_stays(world: World, is_hidden: bool) -> None:
    """The run has read the head before; it decides again on the one that it writes."""
    if is_hidden:
        await run(world, 21)
    left = await documents(world)
    before = await head_of(world)
    stale = _Stale(world.store, before)
    await pin_session(world.store, world.archive, KEY, pinned=True)
    digest = hashlib.sha256(await exported(world)).digest()
    for day in (22, 60):
        await expire(stale, world.archive, POLICY, END + timedelta(days=day))  # type: ignore[arg-type]
    assert (await head_of(world)).tombstone is None
    assert await documents(world) == left
    assert hashlib.sha256(await exported(world)).digest() == digest
    assert await shown(world) == ["s1"]


class _Stale:
    """A store whose list of heads shows one as it was before."""

    def __init__(self, store: Store, head: Head) -> None:
        self._store = store
        self._old = head.to_document()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def list_items(self, container: Any, **options: Any) -> Any:
        page = await self._store.list_items(container, **options)
        key = self._old["partition_key"]
        old = [self._old if one["partition_key"] == key else one for one in page.documents]
        return page._replace(documents=old)


async def test_a_run_without_time_goes_on_where_the_last_one_stopped(world: World) -> None:
    counts = [await run(world, 11, seconds=0.0) for _ in range(4)]
    assert [found.pruned for found in counts] == [3, 3, 0, 0]
    assert [found.sessions for found in counts] == [1, 1, 1, 1]


async def test_a_deleted_session_is_not_pinned(world: World) -> None:
    await run(world, 21)
    await run(world, 60)
    with pytest.raises(UserError, match="is deleted"):
        await pin_session(world.store, world.archive, KEY, pinned=True)
