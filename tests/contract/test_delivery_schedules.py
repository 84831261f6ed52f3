"""Any order, number and interruption of deliveries leaves what one calm run leaves.

The real code runs here, one operation at a time; see `support.schedules`.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionferry import head_store, heads, ingest, projection
from sessionferry.archive import Archive
from sessionferry.batch import Batch, decode, encode
from sessionferry.coverage import Coverage
from sessionferry.delivery import Message
from sessionferry.errors import ItemChanged, TransientError, UserError
from sessionferry.identity import SessionKey, Stream
from sessionferry.store.opening import open_store
from support import schedules
from support.schedules import (
    NEWER,
    OPERATIONS,
    MemoryArchive,
    MemoryStore,
    Scenario,
    Step,
    View,
    World,
    calm,
    check_exact,
    claimed,
    delete,
    line,
    message,
    metadata,
    prune,
    run,
    tail,
    undelete,
    view,
)

FUZZED = int(os.environ.get("FERRY_TEST_SCHEDULES", "60"))
"""Random schedules per scenario. More are worth their time after a change of a rule."""
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "retry", schedules.retry_at_once)
    monkeypatch.setattr(head_store, "_wait", lambda _attempt: 0)
    monkeypatch.setattr(ingest, "DocumentBuilder", schedules.RollingBuilder)


def new_key(project: str = "engine", session: str = "s") -> SessionKey:
    return SessionKey("ada", project, f"{session}{next(_numbers)}")


def memory_world() -> World:
    return World(MemoryStore(), MemoryArchive(), MemoryArchive())


# ---------------------------------------------------------------- scenarios


def parts(
    key: SessionKey, lines: Sequence[bytes], *ranges: tuple[int, int], **changes: Any
) -> list[Message]:
    return [message(key, lines[a:b], a, whole=lines, **changes) for a, b in ranges]


OVERLAPPING = ((0, 1), (1, 3), (3, 4), (0, 2), (1, 4))
LINES = [line(number) for number in range(4)]
REJECTED = [LINES[0], b"no json", LINES[2], b"[1]"]
ROLLING = [LINES[0], line(1, more=NEWER.decode()), LINES[2], LINES[3]]


def plain() -> Scenario:
    key = new_key()
    return Scenario("plain", (key,), tuple(parts(key, LINES, *OVERLAPPING)))


def rejected() -> Scenario:
    key = new_key()
    return Scenario("rejected", (key,), tuple(parts(key, REJECTED, *OVERLAPPING)))


def rolling() -> Scenario:
    key = new_key()
    sent = parts(key, ROLLING, (0, 2), (1, 2), (1, 4), (2, 4))
    again = parts(key, ROLLING, (0, 2), (1, 2), replay="1")
    return Scenario("rolling", (key,), (*sent, *again), is_rolling=True)


def rewritten() -> Scenario:
    key = new_key()
    second = [line(4), b"no json", line(6)]
    sent = (
        *parts(key, REJECTED, (0, 2), (2, 4), (1, 3)),
        *parts(key, second, (0, 2), (1, 3), generation=1),
        *parts(key, [line(7), b"none"], (0, 2), (1, 2), generation=2),
    )
    return Scenario("rewritten", (key,), sent)


def conflicting() -> Scenario:
    key = new_key()
    other = [line(5), line(6), LINES[2], line(7)]
    sent = (*parts(key, LINES, (0, 2), (1, 4)), *parts(key, other, (1, 2), (0, 3)))
    second = parts(key, LINES, (0, 1), generation=1)
    return Scenario("conflicting", (key,), (*sent, *second[: len(sent) % 2]), is_ordered=False)


def deleted() -> Scenario:
    key = new_key()
    sent = (
        *parts(key, REJECTED, (0, 2), (1, 4), (0, 2)),
        tail(key, b'{"un', 4, 500),
        metadata(key, 1, name="first"),
        broken(key),
    )
    return Scenario("deleted", (key,), sent, acts=(delete(key),), is_ordered=False)


def broken(key: SessionKey) -> Message:
    """Return a message of which nothing can be stored."""
    whole = decode(message(key, LINES[:1]).body)
    header = whole.header.model_copy(update={"line_count": 7})
    return Message(body=encode(Batch(header, whole.payload)), message_id="broken")


def undeleted() -> Scenario:
    key = new_key()
    sent = (*parts(key, REJECTED, (0, 2), (1, 4)), metadata(key, 1, name="first"))
    return Scenario(
        "undeleted",
        (key,),
        sent,
        acts=(delete(key), undelete(key)),
        last_acts=(undelete(key),),
        is_lifted=True,
        resends=True,
    )


def lifted() -> Scenario:
    """The same, but nobody sends again what is gone."""
    return replace(undeleted(), name="lifted", resends=False, is_ordered=False)


def pruned() -> Scenario:
    key = new_key()
    retention = prune(key, Coverage.of((0, 1)))
    sent = parts(key, ROLLING, (0, 2), (1, 3), (2, 4), (0, 2))
    again = parts(key, ROLLING, (1, 2), replay="1")
    return Scenario(
        *("pruned", (key,), (*sent, *again)),
        acts=(retention,),
        last_acts=(retention,),
        is_rolling=True,
    )


def two_projects() -> Scenario:
    one = new_key("one")
    two = SessionKey(one.user_id, "two", one.session_id)
    sent = (
        *parts(one, LINES, (0, 2), (1, 4)),
        *parts(two, REJECTED, (0, 2), (1, 4)),
        metadata(one, 1, name="early"),
        metadata(two, 2, name="late"),
        metadata(two, 3, name="early"),
    )
    return Scenario(
        *("two projects", (one, two), sent), acts=(delete(two),), last_acts=(delete(two),)
    )


def tails_and_metadata() -> Scenario:
    key = new_key()
    start = sum(len(one) + 1 for one in LINES[:2])
    sent = (
        *parts(key, LINES, (0, 1), (0, 2)),
        tail(key, LINES[2][:5], 2, start),
        tail(key, LINES[2][:9], 2, start),
        *parts(key, LINES, (2, 3)),
        tail(key, LINES[3][:9], 3, start + len(LINES[2]) + 1),
        metadata(key, 1, name="one"),
        metadata(key, 3, name="three"),
        metadata(key, 2, name="two", session_id="foreign"),
        message(key, [b'{"role":"user"}'], stream="transcript"),
    )
    return Scenario("tails and metadata", (key,), sent)


def several_sessions() -> Scenario:
    keys = tuple(new_key() for _ in range(3))
    sent = [
        found
        for key, lines in zip(keys, (LINES, REJECTED, LINES), strict=True)
        for found in parts(key, lines, (0, 2), (1, 4))
    ]
    return Scenario("several sessions", keys, tuple(sent))


def in_the_inbox() -> Scenario:
    key = new_key()
    inbox: dict[str, bytes] = {}
    small = parts(key, REJECTED, (0, 2), (2, 4), (1, 3))
    sent = (claimed(inbox, small[0]), claimed(inbox, small[1]), small[2])
    return Scenario("in the inbox", (key,), sent, inbox=inbox)


SCENARIOS: tuple[Callable[[], Scenario], ...] = (
    *(plain, rejected, rolling, rewritten, conflicting, deleted, undeleted, lifted, pruned),
    *(two_projects, tails_and_metadata, several_sessions, in_the_inbox),
)


def named(make: Callable[[], Scenario]) -> str:
    return make.__name__


# ---------------------------------------------------------------- searching


async def expected(scenario: Scenario) -> list[View]:
    world = memory_world()
    await calm(world, scenario)
    return [await view(world, key) for key in scenario.keys]


async def follow(
    world: World, scenario: Scenario, schedule: Sequence[Step], wanted: Sequence[View]
) -> None:
    """Run a schedule and check what is left."""
    await run(world, scenario, schedule)
    for key, want in zip(scenario.keys, wanted, strict=True):
        await check_exact(world, key)
        if scenario.is_ordered:
            found = await view(world, key)
            for name, left, right in zip(View._fields, found, want, strict=True):
                assert left == right, name


def random_schedule(chance: random.Random) -> list[Step]:
    length = chance.randrange(4, 45)
    return [
        Step(chance.choice(OPERATIONS), chance.randrange(8), chance.randrange(6))
        for _ in range(length)
    ]


async def search(make: Callable[[], Scenario], seed: int, schedules_: int) -> None:
    """Try random schedules; an assertion fails, with its schedule, when a promise is broken."""
    scenario = make()
    wanted = await expected(scenario)
    chance = random.Random(f"{scenario.name} {seed}")
    for number in range(schedules_):
        schedule = random_schedule(chance)
        try:
            await follow(memory_world(), scenario, schedule, wanted)
        except AssertionError as error:
            error.add_note(f"schedule {number} of {scenario.name}, seed {seed}: {schedule}")
            raise


@pytest.mark.parametrize("make", SCENARIOS, ids=named)
def test_no_random_schedule_breaks_a_promise(make: Callable[[], Scenario]) -> None:
    asyncio.run(search(make, seed=1, schedules_=FUZZED))


# ---------------------------------------------------------------- on every store

schedule_steps = st.lists(
    st.builds(Step, st.sampled_from(OPERATIONS), st.integers(0, 7), st.integers(0, 5)),
    max_size=40,
)
drawn = {
    "max_examples": 10,
    "suppress_health_check": list(HealthCheck),
    "deadline": None,
}


@pytest.mark.parametrize("make", SCENARIOS, ids=named)
def test_no_schedule_breaks_a_promise_in_sqlite_in_memory(make: Callable[[], Scenario]) -> None:
    with _store_runner("sqlite://") as check:

        @settings(**drawn)
        @given(schedule_steps)
        def follow_drawn(schedule: list[Step]) -> None:
            check(make(), schedule)

        follow_drawn()


def _database_url(request: pytest.FixtureRequest) -> str:
    if request.param in {"postgresql", "cosmos"}:
        fixture = {"postgresql": "postgres_url", "cosmos": "cosmos_url"}[request.param]
        return str(request.getfixturevalue(fixture))
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'store.db'}"


@pytest.fixture(params=["sqlite-file", "postgresql", "cosmos"])
def database_url(request: pytest.FixtureRequest) -> str:
    return _database_url(request)


def test_no_schedule_breaks_a_promise_in_a_database(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    with _store_runner(database_url, f"file://{folder}") as check:

        @settings(**drawn | {"max_examples": 15})
        @given(st.sampled_from(SCENARIOS), schedule_steps)
        def follow_drawn(make: Callable[[], Scenario], schedule: list[Step]) -> None:
            check(make(), schedule)

        follow_drawn()


@contextmanager
def _store_runner(
    url: str, archive_url: str = "memory:///"
) -> Iterator[Callable[[Scenario, list[Step]], None]]:
    """One store for all examples: each scenario has sessions of its own."""
    archive = Archive.open(archive_url)

    async def check(scenario: Scenario, schedule: list[Step]) -> None:
        wanted = await expected(scenario)
        await follow(World(store, archive, MemoryArchive()), scenario, schedule, wanted)

    with asyncio.Runner() as runner:
        store = runner.run(open_store(url))
        yield lambda scenario, schedule: runner.run(check(scenario, schedule))
        runner.run(store.close())


# ---------------------------------------------------------------- hard schedules, by hand


async def settled(world: World, *keys: SessionKey) -> None:
    """Deliver what the queue still holds, and check what is left."""
    while world.queue:
        delivery = await world.deliver(world.queue.pop(0))
        await delivery.finish()
        delivery.settle()
    for key in keys:
        await check_exact(world, key)


async def taken_in(world: World, *messages: Message) -> None:
    for each in messages:
        delivery = await world.deliver(each)
        await delivery.finish()
        assert delivery.error is None


async def done(world: World, act: schedules.Act) -> None:
    actor = await world.act(act)
    await actor.finish()
    assert actor.error is None


async def test_a_zombie_of_an_older_generation_leaves_no_document() -> None:
    key, world = new_key(), memory_world()
    old, new = parts(key, LINES, (0, 2)), parts(key, [line(9)], (0, 1), generation=1)
    zombie = await world.deliver(*old)
    await zombie.step_to("create_lines")
    await zombie.lose_lock()
    assert not zombie.is_done, "what it was writing ended within its lock"
    await taken_in(world, *new)
    await settled(world, key)


async def test_a_lock_that_ran_out_forbids_any_further_write() -> None:
    """R6: whatever a zombie wrote after its redelivery ended, nobody would ever remove."""
    key, world = new_key(), memory_world()
    zombie = await world.deliver(*parts(key, LINES, (0, 2)))
    await zombie.step_to("read_heads")
    await zombie.lose_lock()
    await done(world, delete(key))
    await taken_in(world, world.queue.pop())
    await zombie.step(3)
    refused = zombie.error
    await zombie.die()
    await settled(world, key)
    assert isinstance(refused, TransientError)


async def test_no_retry_of_a_write_starts_after_the_lock() -> None:
    """R6 holds for each attempt: the answer to the first got lost, then the lock."""
    key, world = new_key(), memory_world()
    zombie = await world.deliver(*parts(key, LINES, (0, 1)))
    await zombie.step_to("create_lines")
    zombie.fails_next = True
    zombie.now += schedules.LOCK
    await zombie.step()
    assert isinstance(zombie.error, TransientError)


async def test_a_stale_read_of_a_deleted_head_lets_nothing_through() -> None:
    key, world = new_key(), memory_world()
    (sent,) = parts(key, LINES, (0, 1))
    await taken_in(world, sent)
    await done(world, delete(key))
    first = await world.store.read_item("heads", key.partition_key, "head")
    alive = heads.merge(heads.Head.new(key), []).to_document()
    world.previous[key.partition_key] = first._replace(document=alive, etag="1")
    world.stale_reads = 2
    await taken_in(world, sent)
    await settled(world, key)


async def test_a_late_message_leaves_nothing_of_a_deleted_session() -> None:
    key, world = new_key(), memory_world()
    sent = (*parts(key, REJECTED, (0, 4)), metadata(key, 1, name="n"), broken(key))
    await done(world, delete(key))
    await taken_in(world, *sent)
    await settled(world, key)


async def test_a_redelivery_removes_what_its_superseded_attempt_wrote() -> None:
    """R4: the second attempt writes nothing itself."""
    key, world = new_key(), memory_world()
    attempt = await world.deliver(*parts(key, REJECTED, (0, 2)))
    await attempt.step_to("write_heads")
    await attempt.crash()
    await taken_in(world, *parts(key, [line(9)], (0, 1), generation=1))
    await settled(world, key)


async def test_a_head_written_twice_counts_once_when_the_first_answer_got_lost() -> None:
    key, world = new_key(), memory_world()
    delivery = await world.deliver(*parts(key, LINES, (0, 4)))
    await delivery.step_to("write_heads")
    delivery.fails_next = True
    await delivery.finish()
    assert delivery.error is None
    await settled(world, key)


async def test_a_replayed_line_takes_its_entry_along_after_a_crash() -> None:
    """R2, R3: the head says stored, the crash came before the entry was removed."""
    key, world = new_key(), memory_world()
    old = await world.deliver(*parts(key, ROLLING, (0, 2)), is_old=True)
    await old.finish()
    assert (await view(world, key)).entries
    replayed = await world.deliver(*parts(key, ROLLING, (1, 2), replay="1"))
    await replayed.step_to("delete_quarantined")
    await replayed.crash()
    await settled(world, key)
    assert not (await view(world, key)).entries


async def test_an_entry_of_a_pruned_line_goes_with_its_redelivery() -> None:
    """The redelivery skips the pruned line, and still has to clear what its first attempt left."""
    key, world = new_key(), memory_world()
    old = await world.deliver(*parts(key, ROLLING, (0, 2)), is_old=True)
    await old.step_to("write_heads")
    await taken_in(world, *parts(key, ROLLING, (1, 2), replay="1"))
    await done(world, prune(key, Coverage.of((0, 1))))
    await old.crash()
    await settled(world, key)


async def test_a_session_undeleted_during_a_delivery_gets_its_lines_again() -> None:
    """What the delivery found stored was deleted meanwhile; the head must not count it."""
    key, world = new_key(), memory_world()
    (sent,) = parts(key, REJECTED, (0, 4))
    await taken_in(world, sent)
    again = await world.deliver(sent)
    await again.step_to("write_heads")
    await done(world, delete(key))
    await done(world, undelete(key))
    await again.finish()
    again.settle()
    assert world.queue, "it comes again"
    await settled(world, key)
    assert len((await view(world, key)).documents) == 2


async def test_what_a_late_repair_removed_after_an_undelete_comes_back() -> None:
    key, world = new_key(), memory_world()
    (sent,) = parts(key, LINES, (0, 2))
    await done(world, delete(key))
    late = await world.deliver(sent)
    await late.step_to("delete_lines")
    await done(world, undelete(key))
    await taken_in(world, sent)
    await late.finish()
    late.settle()
    await settled(world, key)
    assert len((await view(world, key)).documents) == 2


async def test_a_session_cannot_be_undeleted_while_its_archive_is_being_removed() -> None:
    key, world = new_key(), memory_world()
    await taken_in(world, *parts(key, LINES, (0, 2)))
    deletion = await world.act(delete(key))
    await deletion.step_to("delete")
    lifting = await world.act(undelete(key))
    await lifting.finish()
    assert isinstance(lifting.error, UserError)
    await deletion.finish()
    await done(world, undelete(key))
    await settled(world, key)


async def test_a_session_deleted_in_one_of_two_projects_shows_the_other_ones_metadata() -> None:
    """Both projects get the same metadata file; the archive of one of them is gone already."""
    one, world = new_key("one"), memory_world()
    two = SessionKey(one.user_id, "two", one.session_id)
    await taken_in(world, metadata(one, 1, name="first"))
    late = await world.deliver(metadata(two, 2, name="same"))
    await late.step_to("read_sessions")
    deletion = await world.act(delete(two))
    await deletion.step_to("read_sessions")
    await late.finish()
    await taken_in(world, metadata(one, 3, name="same"))
    await deletion.finish()
    await settled(world, one, two)
    shown = (await view(world, one)).session
    assert shown["name"] == "same"
    assert shown["project_slug"] == "one"


async def test_a_projection_never_goes_back_to_an_older_head() -> None:
    key, world = new_key(), memory_world()
    first, second = parts(key, LINES, (0, 2), (2, 4))
    slow = await world.deliver(first)
    await slow.step_to("read_sessions")
    await taken_in(world, second)
    await slow.finish()
    await settled(world, key)


# ---------------------------------------------------------------- every rule is needed


async def _overwrite(
    self: MemoryStore, key: SessionKey, stream: Stream, generation: int, documents: Any
) -> dict[int, Any]:
    for document in documents:
        place = (key.partition_key, stream, generation, document.facts.sequence)
        self.lines[place] = (document.json, document.facts)
    return {}


async def _count_incoming(
    self: MemoryStore, key: SessionKey, stream: Stream, generation: int, documents: Any
) -> dict[int, Any]:
    for document in documents:
        place = (key.partition_key, stream, generation, document.facts.sequence)
        self.lines.setdefault(place, (document.json, document.facts))
    return {}


async def _no_repair(*_: Any) -> None:
    pass


_repair = ingest.Ingest._repair


async def _repair_own_writes_only(self: Any, head: Any, before: Any, session: Any, handled: Any):  # type: ignore[no-untyped-def]
    if handled.stored:
        await _repair(self, head, before, session, handled)


async def _write_changes_only(store: Any, key: SessionKey, change: Any) -> Any:
    while True:
        head, etag = await head_store.read_head(store, key)
        changed = change(head)
        if changed == head and etag is not None:
            return head
        changed = changed.model_copy(update={"head_version": head.head_version + 1})
        try:
            await store.write_item("heads", changed.to_document(), etag)
        except ItemChanged:
            continue
        return changed


async def _write_blindly(store: Any, key: SessionKey, change: Any) -> Any:
    head, _ = await head_store.read_head(store, key)
    changed = change(head).model_copy(update={"head_version": head.head_version + 1})
    while True:
        item = await store.read_item("heads", key.partition_key, "head")
        try:
            await store.write_item("heads", changed.to_document(), item.etag if item else None)
        except ItemChanged:
            continue
        return changed


_project = projection.project


async def _project_blindly(store: Any, archive: Any, head: Any, host_id: str) -> None:
    while True:
        item = await store.read_item("sessions", head.user_id, head.session_id)
        known = item.document if item else {}
        entries = {entry["project_slug"]: entry for entry in known.get("projects", [])}
        entries[head.project_slug] = projection._entry(head)
        document = projection.render(head, host_id, list(entries.values()), {})
        try:
            await store.write_item("sessions", document, item.etag if item else None)
        except ItemChanged:
            continue
        return


RULES: dict[str, tuple[Any, str, Any, Callable[[], Scenario]]] = {
    "R1 create, never overwrite": (MemoryStore, "create_lines", _overwrite, conflicting),
    "R1 count what is stored": (MemoryStore, "create_lines", _count_incoming, conflicting),
    "R2 stored beats quarantined": (ingest, "stale_entries", lambda *_: [], rolling),
    "R3 repair, generations": (ingest.Ingest, "_repair", _no_repair, rewritten),
    "R3 repair, deletion": (ingest.Ingest, "_repair", _no_repair, deleted),
    "R3 repair, pruning": (ingest.Ingest, "_repair", _no_repair, pruned),
    "R4 repair without writes": (ingest.Ingest, "_repair", _repair_own_writes_only, rewritten),
    "R4 possible entries": (ingest, "possible_entries", lambda _: [], rewritten),
    "R5 garbage": (heads, "_as_garbage", lambda *_: (), rewritten),
    "R7 confirm": (head_store, "change_head", _write_changes_only, deleted),
    "R7 conditional": (head_store, "change_head", _write_blindly, plain),
    "R9 project newer heads only": (projection, "project", _project_blindly, plain),
    "undelete": (ingest, "was_lifted", lambda *_: False, lifted),
}


@pytest.mark.parametrize("rule", RULES)
def test_without_this_rule_a_schedule_breaks_a_promise(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, weakened, make = RULES[rule]
    monkeypatch.setattr(owner, name, weakened)
    with pytest.raises(AssertionError):
        asyncio.run(search(make, seed=4, schedules_=2_000))


async def test_without_the_deadline_a_zombie_leaves_lines_in_a_deleted_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R6, by hand: random schedules find this one too, but only after hundreds."""
    monkeypatch.setattr(ingest.Ingest, "_check_lock", lambda *_: None)
    with pytest.raises(AssertionError, match="deleted session"):
        await test_a_lock_that_ran_out_forbids_any_further_write()


async def test_without_a_second_look_a_late_repair_after_an_undelete_loses_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ingest.Ingest, "_confirm_deleted", _no_repair)
    with pytest.raises(AssertionError):
        await test_what_a_late_repair_removed_after_an_undelete_comes_back()
