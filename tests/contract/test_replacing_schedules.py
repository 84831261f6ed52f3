"""Replacing lines, interrupted anywhere and beside everybody else, leaves an exact head.

The real code runs here, one operation at a time; see `support.schedules`.
"""

import itertools
import os
import random
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sessionferry import counting, head_store, heads, ingest, replacing
from sessionferry.archive import Archive
from sessionferry.coverage import Coverage
from sessionferry.errors import SessionDeleted, TransientError, UserError
from sessionferry.identity import SessionKey
from sessionferry.replacing import LEASE_SECONDS, Replacer
from sessionferry.store import pages
from support import schedules
from support.schedules import (
    NOW,
    Act,
    Actor,
    Delivery,
    MemoryArchive,
    MemoryStore,
    World,
    check_exact,
    delete,
    line,
    message,
    prune,
    undelete,
)

FUZZED = int(os.environ.get("FERRY_TEST_SCHEDULES", "60")) * 2
"""Random schedules. More are worth their time after a change of `replacing` or `counting`."""
WRITES = frozenset({"put", "create_lines", "replace_lines", "delete_lines", "delete"})
"""What is under way when a mark ends is over by its end: a margin is kept for that."""
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ingest, replacing):
        monkeypatch.setattr(module, "retry", schedules.retry_at_once)
    monkeypatch.setattr(head_store, "_wait", lambda _attempt: 0)
    monkeypatch.setattr(pages, "PAGE_LINES", 2)
    monkeypatch.setattr(replacing, "MAX_PORTION_LINES", 2)


class Clock:
    """What the writers of one world take for the time."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def new_key() -> SessionKey:
    return SessionKey("ada", "engine", f"s{next(_numbers)}")


def world() -> World:
    return World(MemoryStore(), MemoryArchive(), MemoryArchive())


def sync(key: SessionKey, clock: Clock, lines: Sequence[bytes], start: int = 0) -> Act:
    async def act(store: Any, archive: Archive) -> None:
        try:
            await Replacer(store, archive, clock=clock).write_lines(
                key, "events", "host-1", start, lines
            )
        except SessionDeleted:
            return

    return act


def recover(key: SessionKey, clock: Clock) -> Act:
    async def act(store: Any, archive: Archive) -> None:
        head = (await head_store.read_head(store, key)).head
        await Replacer(store, archive, clock=clock).recover(head)

    return act


def versions(numbers: Iterator[int] | range, version: int) -> list[bytes]:
    """Lines whose usage, time and content differ from version to version."""
    return [line(number + 6 * version, version=version) for number in numbers]


async def stored(of: World, key: SessionKey) -> dict[int, int | None]:
    """Which version of each sequence is stored."""
    generation = (await head_store.read_head(of.store, key)).head.stream("events").generation
    found = await of.store.read_lines(key, "events", generation)
    return {document["sequence"]: document.get("version") for document in found}


async def finish(of: World, act: Act) -> None:
    actor = await of.act(act)
    await actor.finish()
    assert actor.error is None


async def is_dirty(of: World, key: SessionKey) -> bool:
    return bool((await head_store.read_head(of.store, key)).head.dirty)


# ---------------------------------------------------------------- each point of a replacement


async def interrupted(steps: int) -> tuple[World, SessionKey, Clock, Actor]:
    """A session of five lines; a writer that replaces three and adds two ends after some steps."""
    place, key, clock = world(), new_key(), Clock()
    await finish(place, sync(key, clock, versions(range(5), 1)))
    junk = [b"no json"] * 7
    delivery = await place.deliver(message(key, junk[5:], 5, whole=junk))
    await delivery.finish()
    writer = await place.act(sync(key, clock, versions(range(2, 7), 2), 2))
    await writer.step(steps)
    return place, key, clock, writer


async def points() -> int:
    _, _, _, writer = await interrupted(0)
    number = 0
    while not writer.is_done:
        await writer.step()
        number += 1
    return number


async def test_a_replacement_that_ends_anywhere_is_counted_by_the_next_reader() -> None:
    dirty = 0
    for steps in range(await points()):
        place, key, clock, writer = await interrupted(steps)
        await writer.die()
        dirty += await is_dirty(place, key)
        clock.now += LEASE_SECONDS + 1
        await finish(place, recover(key, clock))
        assert not await is_dirty(place, key)
        left = await stored(place, key)
        assert [left[number] for number in range(2)] == [1, 1]
        await check_all_but_the_listing(place, key)
    assert dirty > 10


async def check_all_but_the_listing(place: World, key: SessionKey) -> None:
    """The session's document may lag behind the head by one write (R9)."""
    await place.store.delete_item("sessions", key.user_id, key.session_id)
    await check_exact(place, key)


async def test_a_replacement_that_ends_anywhere_is_completed_by_its_repetition() -> None:
    for steps in range(await points()):
        place, key, clock, writer = await interrupted(steps)
        await writer.die()
        await finish(place, sync(key, clock, versions(range(2, 7), 2), 2))
        assert await stored(place, key) == {0: 1, 1: 1} | dict.fromkeys(range(2, 7), 2)
        clock.now += LEASE_SECONDS + 1
        await finish(place, recover(key, clock))
        await check_exact(place, key)


async def test_a_replacement_that_ends_anywhere_is_counted_by_the_next_delivery() -> None:
    for steps in range(await points()):
        place, key, clock, writer = await interrupted(steps)
        await writer.die()
        clock.now += LEASE_SECONDS + 1
        delivery = Delivery(place, [message(key, versions(range(8, 9), 3), 8)])
        delivery.now = clock.now
        delivery.messages = [schedules.replace(m, locked_until=None) for m in delivery.messages]
        await delivery.begin()
        await delivery.finish()
        assert not await is_dirty(place, key)
        assert (await stored(place, key))[8] == 3
        await check_exact(place, key)


async def test_an_answer_that_is_lost_anywhere_changes_nothing() -> None:
    for steps in range(await points()):
        place, key, _, writer = await interrupted(steps)
        writer.fails_next = True
        await writer.finish()
        assert writer.error is None
        assert await stored(place, key) == {0: 1, 1: 1} | dict.fromkeys(range(2, 7), 2)
        assert not await is_dirty(place, key)
        await check_exact(place, key)


async def test_a_session_that_is_deleted_anywhere_in_a_replacement_stays_deleted() -> None:
    for steps in range(await points()):
        for ends in (False, True):
            place, key, clock, writer = await interrupted(steps)
            await finish(place, delete(key))
            if ends:
                await writer.die()
            await writer.finish()
            lifted = await place.act(undelete(key))
            await lifted.finish()
            if lifted.error is not None:
                assert isinstance(lifted.error, UserError)
                clock.now += LEASE_SECONDS + 1
                await finish(place, recover(key, clock))
                await finish(place, undelete(key))
            assert await stored(place, key) == {}
            await finish(place, sync(key, clock, versions(range(1), 4)))
            assert await stored(place, key) == {0: 4}
            await check_exact(place, key)


async def test_a_file_that_is_rewritten_anywhere_in_a_replacement_wins() -> None:
    for steps in range(await points()):
        for ends in (False, True):
            place, key, clock, writer = await interrupted(steps)
            newer = versions(range(3), 5)
            delivery = await place.deliver(message(key, newer, whole=newer, generation=1))
            await delivery.finish()
            if ends:
                await writer.die()
            await writer.finish()
            clock.now += LEASE_SECONDS + 1
            await finish(place, recover(key, clock))
            left = await stored(place, key)
            assert left[0] == 5
            assert ends or {left.get(number) for number in range(3, 7)} in ({2}, {None})
            await check_exact(place, key)


async def test_a_writer_that_stalls_past_its_mark_writes_nothing_more() -> None:
    for steps in range(await points()):
        place, key, clock, writer = await interrupted(steps)
        while writer.at in WRITES and not writer.is_done:
            await writer.step()
        clock.now += LEASE_SECONDS + 1
        await finish(place, recover(key, clock))
        await writer.finish()
        assert writer.error is None or isinstance(writer.error, TransientError)
        clock.now += LEASE_SECONDS + 1
        await finish(place, recover(key, clock))
        await check_exact(place, key)


async def test_a_long_write_renews_its_mark() -> None:
    place, key, clock = world(), new_key(), Clock()
    writer = await place.act(sync(key, clock, versions(range(9), 1)))
    while not writer.is_done:
        clock.now += 20
        await writer.step()
    assert writer.error is None
    assert clock.now - NOW > LEASE_SECONDS
    assert len(await stored(place, key)) == 9
    await check_exact(place, key)


async def test_pruned_lines_and_replaced_ones_keep_out_of_each_others_way() -> None:
    place, key, clock = world(), new_key(), Clock()
    await finish(place, sync(key, clock, versions(range(4), 1)))
    await finish(place, prune(key, Coverage.of((0, 0))))
    writer = await place.act(sync(key, clock, versions(range(2, 3), 2), 2))
    await writer.finish()
    assert isinstance(writer.error, UserError)
    await finish(place, sync(key, clock, versions(range(4, 6), 1), 4))
    assert sorted(await stored(place, key)) == [1, 2, 3, 4, 5]
    head = (await head_store.read_head(place.store, key)).head
    busy = heads.mark(
        head,
        heads.Mark(
            id="m",
            stream="events",
            generation=0,
            lines=Coverage.of((1, 1)),
            until=counting.moment(NOW),
            replaces=True,
        ),
    )
    with pytest.raises(TransientError):
        heads.prune(busy, "events", Coverage.of((1, 1)))


# ---------------------------------------------------------------- everybody at once


class Crowd:
    """Writers, deliveries and deletions of one session, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world, self.key, self.clock = world(), new_key(), Clock()
        lines = [line(number, version=0) for number in range(6)]
        lines[4] = b"no json"
        self.world.queue = [
            message(self.key, lines[first:end], first, whole=lines)
            for first, end in ((0, 2), (2, 5), (3, 6), (4, 5))
        ]
        if seed % 3 == 1:
            newer = [line(number, version=9) for number in range(3)]
            self.world.queue.append(message(self.key, newer, whole=newer, generation=1))
        self.acts = [
            sync(self.key, self.clock, versions(range(first, first + 3), version), first)
            for version, first in enumerate((0, 1, 3, 4), 1)
        ]
        if seed % 4 == 2:
            self.acts += [delete(self.key), undelete(self.key)]
        self.live: list[Actor] = []

    async def run(self) -> None:
        for _ in range(self.random.randrange(20, 120)):
            await self.move()
        while self.live:
            actor = self.random.choice(self.live)
            actor.fails_next = False
            await actor.step(self.random.randrange(1, 6))
            self.drop_if_done(actor)
        while self.world.queue:
            delivery = await self.world.deliver(self.world.queue.pop(0))
            await delivery.finish()
            delivery.settle()
        self.clock.now += LEASE_SECONDS + 1
        await finish(self.world, recover(self.key, self.clock))
        head = (await head_store.read_head(self.world.store, self.key)).head
        if head.tombstone is not None:  # what an interrupted deletion left, the next one removes
            await finish(self.world, delete(self.key))

    async def move(self) -> None:
        chance = self.random.random()
        if chance < 0.1 and self.world.queue:
            number = self.random.randrange(len(self.world.queue))
            self.live.append(await self.world.deliver(self.world.queue.pop(number)))
        elif chance < 0.2 and self.acts:
            self.live.append(await self.world.act(self.random.choice(self.acts)))
        elif self.live:
            await self.disturb(self.random.choice(self.live), self.random.random())
        elif chance > 0.9:
            self.clock.now += LEASE_SECONDS + 1

    async def disturb(self, actor: Actor, chance: float) -> None:
        if chance < 0.06 and isinstance(actor, Delivery):
            if actor.may_be_disturbed:
                await actor.crash()
        elif chance < 0.06:
            await actor.die()
        elif chance < 0.1:
            actor.fails_next = True
        else:
            await actor.step(self.random.randrange(1, 6))
        self.drop_if_done(actor)

    def drop_if_done(self, actor: Actor) -> None:
        if actor.is_done:
            self.live.remove(actor)
            assert actor.error is None or isinstance(actor.error, Exception | CancelledError)
            if isinstance(actor, Delivery):
                actor.settle()


@pytest.mark.parametrize("part", range(4))
async def test_whoever_writes_at_once_and_dies_the_head_is_exact(part: int) -> None:
    for seed in range(part, FUZZED, 4):
        crowd = Crowd(seed)
        await crowd.run()
        assert not await is_dirty(crowd.world, crowd.key), seed
        try:
            await check_exact(crowd.world, crowd.key)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
