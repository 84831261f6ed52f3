"""Deliveries of real messages through the real code, stepped one operation at a time.

Every operation on a store or an archive waits at a gate. A schedule says whose gate opens next,
who crashes there, who loses its lock, which read of a head is stale, when somebody deletes or
prunes. When the schedule is at its end everything still queued is delivered, so that what is left
must be what a calm run leaves.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import orjson

from sessionferry import deletion, head_store, heads, ingest
from sessionferry.archive import Archive, ArchivedObject, inbox_key
from sessionferry.batch import REPLAY_MARK, Batch, Claim, Header, encode, lines_of
from sessionferry.coverage import Coverage
from sessionferry.delivery import Message
from sessionferry.documents import (
    PER_DELIVERY_KEYS,
    Document,
    DocumentBuilder,
    Facts,
    Position,
    Rejected,
    stored_facts,
)
from sessionferry.errors import ArchiveMismatch, ItemChanged, TransientError, UserError
from sessionferry.identity import STREAMS, SessionKey, Stream, session_folder
from sessionferry.ingest import Ingest
from sessionferry.parsing import Refused
from sessionferry.store import Item, Page

Result = TypeVar("Result")
NOW = 1_800_000_000.0
LOCK = 300.0
NEWER = b"newer-format"
"""A line with this in it is rejected by an older consumer, and understood by a newer one."""
GUARDED = frozenset({"put", "create_lines", "create_quarantined"})
REPAIRS = frozenset({"delete", "delete_lines", "delete_quarantined"})
"""Guarded too as long as the session is deleted (it may be undeleted)."""
GENERATIONS = range(3)
UNDISTURBED_FROM = 7
"""From this delivery on nothing more happens to a message: it would count as deadly."""

_is_old: ContextVar[bool] = ContextVar("is_old", default=False)


class RollingBuilder(DocumentBuilder):
    """A builder of a fleet that is being upgraded: older consumers reject newer lines."""

    def build(
        self, position: Position, line: bytes, sha256: bytes | None = None
    ) -> Document | Rejected:
        if _is_old.get() and NEWER in line:
            sha256 = sha256 or hashlib.sha256(line).digest()
            return self._reject(position, line, sha256, Refused("not_json"))
        return super().build(position, line, sha256)


async def retry_at_once(work: Callable[[], Awaitable[Result]], *, seconds: float) -> Result:
    """Stand in for `retrying.retry`: the same, without its waits."""
    for _ in range(2):
        try:
            return await work()
        except TransientError:
            continue
    return await work()


# ---------------------------------------------------------------- stores that need no disk


class MemoryStore:
    """The part of a store that deliveries use, in dictionaries: fast enough for many schedules."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str, str], tuple[bytes, int]] = {}
        self.lines: dict[tuple[str, Stream, int, int], tuple[bytes, Facts]] = {}
        self.entries: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes = 0

    async def read_item(self, container: str, partition: str, item_id: str) -> Item | None:
        found = self.items.get((container, partition, item_id))
        return Item(orjson.loads(found[0]), str(found[1])) if found else None

    async def write_item(
        self, container: str, document: Mapping[str, Any], etag: str | None
    ) -> str:
        field_name = "partition_key" if container in ("heads", "attempts") else "user_id"
        place = (container, document[field_name], document["id"])
        known = self.items.get(place)
        if (str(known[1]) if known else None) != etag:
            raise ItemChanged(container)
        self.writes += 1
        self.items[place] = (orjson.dumps(document), self.writes)
        return str(self.writes)

    async def delete_item(self, container: str, partition: str, item_id: str) -> None:
        self.items.pop((container, partition, item_id), None)

    async def create_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> dict[int, Facts]:
        existing = {}
        for document in documents:
            place = (key.partition_key, stream, generation, document.facts.sequence)
            if place in self.lines:
                existing[document.facts.sequence] = self.lines[place][1]
            else:
                self.lines[place] = (document.json, stored_facts(document.fields))
        return existing

    async def delete_lines(
        self, key: SessionKey, stream: Stream, generation: int, lines: Coverage
    ) -> None:
        for sequence in lines:
            self.lines.pop((key.partition_key, stream, generation, sequence), None)

    async def replace_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> None:
        for document in documents:
            place = (key.partition_key, stream, generation, document.facts.sequence)
            self.lines[place] = (document.json, stored_facts(document.fields))

    async def read_lines(
        self,
        key: SessionKey,
        stream: Stream,
        generation: int,
        *,
        after: int = -1,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        version = (key.partition_key, stream, generation)
        found = [at for at in sorted(self.lines) if at[:3] == version and at[3] > after]
        return [orjson.loads(self.lines[at][0]) for at in found[:limit]]

    async def create_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            self.entries.setdefault((entry["partition_key"], entry["id"]), dict(entry))

    async def replace_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            self.entries[entry["partition_key"], entry["id"]] = dict(entry)

    async def delete_quarantined(self, partition: str, ids: Sequence[str]) -> None:
        for entry_id in ids:
            self.entries.pop((partition, entry_id), None)

    async def clear_quarantine(
        self, partition: str, stream: Stream | None = None, below_generation: int | None = None
    ) -> None:
        for place, entry in list(self.entries.items()):
            older = below_generation is None or entry.get("generation", 2**60) < below_generation
            if place[0] == partition and stream in (None, entry.get("stream")) and older:
                del self.entries[place]

    async def list_quarantined(
        self,
        partition: str | None = None,
        *,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        return Page([e for at, e in self.entries.items() if at[0] == partition], None)

    async def close(self) -> None:
        pass


_WRITTEN_AT = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryArchive(Archive):
    """An archive in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.held.setdefault(key, data)

    async def get(self, key: str) -> bytes:
        if key not in self.held:
            raise ArchiveMismatch(f"There is no archived object {key}.")
        return self.held[key]

    async def objects(self, folder: str) -> AsyncIterator[ArchivedObject]:
        for key in list(self.held):
            if not folder or key.startswith(f"{folder}/"):
                yield ArchivedObject(key, len(self.held.get(key, b"")), _WRITTEN_AT)

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.held.pop(key, None)


# ---------------------------------------------------------------- gates


class Actor:
    """Somebody who changes the store: a delivery, a deletion, a pruning."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.at = ""
        self.fails_next = False
        self._reached = asyncio.Event()
        self._go: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    async def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let the work run up to its first gate."""

        async def run() -> None:
            await work()

        self.task = asyncio.create_task(run())
        self.task.add_done_callback(lambda _: self._reached.set())
        await self._reached.wait()

    async def gate(self, operation: str) -> None:
        self.at = operation
        self._go = asyncio.get_running_loop().create_future()
        self._reached.set()
        await self._go

    async def do(self, operation: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do one operation when the gate opens; its answer may get lost."""
        await self.gate(operation)
        result = await work()
        if self.fails_next:
            self.fails_next = False
            raise TransientError("The answer got lost.")
        return result

    @property
    def is_done(self) -> bool:
        return self.task is not None and self.task.done()

    async def step(self, times: int = 1) -> None:
        for _ in range(times):
            if self.is_done:
                return
            assert self._go is not None
            self._reached.clear()
            self._go.set_result(None)
            await self._reached.wait()

    async def step_to(self, operation: str, number: int = 1) -> None:
        """Stop in front of an operation; of the `number`-th of its kind, counted from here."""
        while not self.is_done:
            number -= self.at == operation
            if number == 0:
                return
            await self.step()

    async def finish(self) -> None:
        while not self.is_done:
            await self.step()

    async def die(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    @property
    def error(self) -> BaseException | None:
        """Why it gave up, as is its right; an error of any other kind is a bug, and raised."""
        assert self.task is not None
        if not self.task.done():
            return None
        if self.task.cancelled():
            return asyncio.CancelledError()
        error = self.task.exception()
        if error is None or isinstance(error, TransientError | UserError):
            return error
        raise error


class GatedStore:
    """A store each single change of which waits at its actor's gate."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._world = actor.world
        self._inner = actor.world.store

    async def read_item(self, container: Any, partition: str, item_id: str) -> Item | None:
        async def read() -> Item | None:
            if container == "heads" and self._world.stale_reads > 0:
                self._world.stale_reads -= 1
                return self._world.previous.get(partition)
            return await self._inner.read_item(container, partition, item_id)

        return await self._actor.do(f"read_{container}", read)

    async def write_item(
        self, container: Any, document: Mapping[str, Any], etag: str | None
    ) -> str:
        async def write() -> str:
            if container != "heads":
                return await self._inner.write_item(container, document, etag)
            partition = document["partition_key"]
            before = await self._inner.read_item("heads", partition, document["id"])
            written = await self._inner.write_item(container, document, etag)
            self._world.previous[partition] = before
            return written

        return await self._actor.do(f"write_{container}", write)

    async def delete_item(self, container: Any, partition: str, item_id: str) -> None:
        await self._actor.do(
            "delete_item", lambda: self._inner.delete_item(container, partition, item_id)
        )

    async def create_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> dict[int, Facts]:
        existing: dict[int, Facts] = {}
        for document in documents:
            create = _bound(self._inner.create_lines, key, stream, generation, [document])
            existing |= await self._actor.do("create_lines", create)
        return existing

    async def replace_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> None:
        for document in documents:
            change = _bound(self._inner.replace_lines, key, stream, generation, [document])
            await self._actor.do("replace_lines", change)

    async def read_lines(self, *place: Any, **portion: Any) -> list[dict[str, Any]]:
        return await self._actor.do("read_lines", lambda: self._inner.read_lines(*place, **portion))

    async def list_quarantined(self, partition: str, **portion: Any) -> Page:
        return await self._actor.do(
            "list_quarantined", lambda: self._inner.list_quarantined(partition, **portion)
        )

    async def delete_lines(
        self, key: SessionKey, stream: Stream, generation: int, lines: Coverage
    ) -> None:
        for sequence in lines:
            one = Coverage.of((sequence, sequence))
            delete = _bound(self._inner.delete_lines, key, stream, generation, one)
            await self._actor.do("delete_lines", delete)

    async def create_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            create = _bound(self._inner.create_quarantined, [entry])
            await self._actor.do("create_quarantined", create)

    async def replace_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            replace = _bound(self._inner.replace_quarantined, [entry])
            await self._actor.do("create_quarantined", replace)

    async def delete_quarantined(self, partition: str, ids: Sequence[str]) -> None:
        for entry_id in ids:
            delete = _bound(self._inner.delete_quarantined, partition, [entry_id])
            await self._actor.do("delete_quarantined", delete)

    async def clear_quarantine(self, *place: Any) -> None:
        await self._actor.do("clear_quarantine", lambda: self._inner.clear_quarantine(*place))


class GatedArchive(Archive):
    """An archive each operation of which waits at its actor's gate."""

    def __init__(self, actor: Actor, inner: Archive) -> None:
        self._actor = actor
        self._inner = inner

    async def put(self, key: str, data: bytes) -> None:
        await self._actor.do("put", lambda: self._inner.put(key, data))

    async def get(self, key: str) -> bytes:
        return await self._actor.do("get", lambda: self._inner.get(key))

    async def objects(self, folder: str) -> AsyncIterator[ArchivedObject]:
        async def listed() -> list[ArchivedObject]:
            return [found async for found in self._inner.objects(folder)]

        for found in await self._actor.do("list", listed):
            yield found

    async def delete(self, keys: list[str]) -> None:
        for key in keys:
            await self._actor.do("delete", _bound(self._inner.delete, [key]))


def _bound(work: Callable[..., Awaitable[Result]], *args: Any) -> Callable[[], Awaitable[Result]]:
    return lambda: work(*args)


# ---------------------------------------------------------------- the world


@dataclass
class World:
    """A store, an archive, an inbox, and the queue in front of them."""

    store: Any
    archive: Archive
    inbox: Archive
    queue: list[Message] = field(default_factory=list)
    stale_reads: int = 0
    guarded: frozenset[str] = GUARDED
    previous: dict[str, Item | None] = field(default_factory=dict)

    async def deliver(self, *messages: Message, is_old: bool = False) -> "Delivery":
        delivery = Delivery(self, messages, is_old=is_old)
        await delivery.begin()
        return delivery

    async def act(self, act: "Act") -> Actor:
        actor = Actor(self)
        await actor.start(lambda: act(GatedStore(actor), GatedArchive(actor, self.archive)))
        return actor


Act = Callable[[Any, Archive], Awaitable[None]]


class Delivery(Actor):
    """One invocation: some messages, their locks, and the consumer that handles them."""

    def __init__(self, world: World, messages: Sequence[Message], *, is_old: bool = False) -> None:
        super().__init__(world)
        self.messages = [replace(m, locked_until=NOW + LOCK) for m in messages]
        self.is_old = is_old and not any(REPLAY_MARK in m.message_id for m in messages)
        self.has_lock = True
        self.now = NOW

    async def begin(self) -> None:
        taker = Ingest(
            GatedStore(self),  # type: ignore[arg-type]
            GatedArchive(self, self.world.archive),
            GatedArchive(self, self.world.inbox),
            clock=lambda: self.now,
            steady=lambda: self.now,
        )

        async def work() -> None:
            _is_old.set(self.is_old)
            await taker.take_in(self.messages)
            await self.gate("complete")

        await self.start(work)

    @property
    def may_be_disturbed(self) -> bool:
        return all(m.delivery_count < UNDISTURBED_FROM for m in self.messages)

    async def crash(self) -> None:
        """The process ends here; the queue delivers its messages again."""
        await self.die()
        self._back_to_queue()

    async def lose_lock(self) -> None:
        """The messages are delivered again while this goes on; what it is writing ends first."""
        self.now += LOCK
        while self.at in self.world.guarded and not self.is_done:
            await self.step()
        if not self.is_done:
            self._back_to_queue()

    def settle(self) -> None:
        """What the queue does when the invocation has ended."""
        if self.error is not None:
            self._back_to_queue()

    def _back_to_queue(self) -> None:
        if self.has_lock:
            self.has_lock = False
            self.world.queue += [
                replace(m, delivery_count=m.delivery_count + 1) for m in self.messages
            ]


def delete(key: SessionKey) -> Act:
    async def act(store: Any, archive: Archive) -> None:
        await deletion.delete_session(store, archive, key)

    return act


def undelete(key: SessionKey) -> Act:
    async def act(store: Any, archive: Archive) -> None:
        await deletion.undelete_session(store, archive, key)

    return act


def prune(key: SessionKey, lines: Coverage, stream: Stream = "events") -> Act:
    """Retention, as a caller has to do it: mark, delete by id, project."""

    async def act(store: Any, archive: Archive) -> None:
        head = await head_store.change_head(
            store, key, lambda head: heads.prune(head, stream, lines)
        )
        state = head.stream(stream)
        if head.tombstone is None:
            await store.delete_lines(key, stream, state.generation, state.pruned)
        await ingest.projection.project(store, archive, head, "host-1")

    return act


# ---------------------------------------------------------------- messages


def line(number: int, **more: Any) -> bytes:
    """Return one event whose share in every sum is its own power of two."""
    usage = {"input_tokens": 2**number, "output_tokens": 3**number, "cost_usd": f"0.{number:03d}1"}
    at = f"2026-03-01T00:00:{number:02d}.000Z"
    event = {"ts": at, "event": "llm:response", "data": {"usage": usage}, "number": number}
    return orjson.dumps(event | more)


def message(
    key: SessionKey,
    lines: Sequence[bytes],
    start: int = 0,
    *,
    generation: int = 0,
    replay: str = "",
    whole: Sequence[bytes] = (),
    **changes: Any,
) -> Message:
    """Return a batch of lines; `whole` is the file that they are a part of."""
    payload = b"".join(one + b"\n" for one in lines)
    place = {
        "start_sequence": start,
        "offset": sum(len(one) + 1 for one in whole[:start]),
        "generation": generation,
        "line_count": sum(1 for _ in lines_of(payload)),
    }
    batch = Batch(_header(key, payload, **(place | changes)), payload)
    suffix = f"{REPLAY_MARK}{replay}" if replay else ""
    return Message(body=encode(batch), message_id=batch.id + suffix, enqueued_at=NOW)


def tail(key: SessionKey, text: bytes, start: int, offset: int, **changes: Any) -> Message:
    place = {"kind": "tail", "start_sequence": start, "offset": offset}
    batch = Batch(_header(key, text, **(place | changes)), text)
    return Message(body=encode(batch), message_id=batch.id, enqueued_at=NOW)


def metadata(key: SessionKey, revision: int, **fields: Any) -> Message:
    payload = orjson.dumps(fields)
    place = {"kind": "metadata", "stream": None, "revision": revision}
    batch = Batch(_header(key, payload, **place), payload)
    return Message(body=encode(batch), message_id=batch.id, enqueued_at=NOW)


def claimed(inbox: dict[str, bytes], whole: Message) -> Message:
    """Put a message's batch into the inbox, and announce it instead."""
    batch = ingest.decode(whole.body)
    claim = Claim(size=len(whole.body), sha256=hashlib.sha256(whole.body).hexdigest())
    header = batch.header.model_copy(update={"claim": claim})
    inbox[inbox_key(header, claim.sha256)] = whole.body
    return replace(whole, body=encode(Batch(header, b"")), message_id=whole.message_id + ".claim")


def _header(key: SessionKey, payload: bytes, **changes: Any) -> Header:
    return Header.model_validate(
        {
            "kind": "lines",
            "stream": "events",
            "user_id": key.user_id,
            "host_id": "host-1",
            "project_slug": key.project_slug,
            "session_id": key.session_id,
            "format": "amplifier",
            "length": len(payload),
        }
        | changes
    )


# ---------------------------------------------------------------- schedules

OPERATIONS = (
    *(["receive"] * 3 + ["step"] * 7 + ["act"] * 2),
    *("crash", "lose", "lose", "stale", "duplicate", "fault"),
)


class Step(NamedTuple):
    operation: str
    which: int
    times: int


@dataclass(frozen=True)
class Scenario:
    """Messages, and who else is at work; `expected` is what a calm run leaves, if that is fixed."""

    name: str
    keys: tuple[SessionKey, ...]
    messages: tuple[Message, ...]
    acts: tuple[Act, ...] = ()
    inbox: Mapping[str, bytes] = field(default_factory=dict)
    is_ordered: bool = True
    is_rolling: bool = False
    last_acts: tuple[Act, ...] = ()
    is_lifted: bool = False
    resends: bool = False


async def run(world: World, scenario: Scenario, schedule: Sequence[Step]) -> None:
    """Follow a schedule, then let everything come to its end."""
    for key, body in scenario.inbox.items():
        await world.inbox.put(key, body)
    runner = _Runner(world, scenario)
    for step in schedule:
        await runner.follow(step)
    await runner.quiesce()


class _Runner:
    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world = world
        self.scenario = scenario
        self.acts = list(scenario.acts)
        self.live: list[Actor] = []
        self.doing: dict[Actor, Act] = {}
        world.queue = list(scenario.messages)
        world.guarded = GUARDED | REPAIRS if scenario.is_lifted else GUARDED

    async def follow(self, step: Step) -> None:
        operation, which, times = step
        queue = self.world.queue
        actor = self.live[which % len(self.live)] if self.live else None
        if operation == "receive" and queue:
            count = min(1 + times % 3, len(queue))
            messages = [queue.pop(which % len(queue)) for _ in range(count)]
            is_old = self.scenario.is_rolling and times % 2 == 0
            self.live.append(await self.world.deliver(*messages, is_old=is_old))
        elif operation == "duplicate" and queue:
            queue.append(replace(queue[which % len(queue)], delivery_count=1))
        elif operation == "stale":
            self.world.stale_reads = 1 + times % 2
        elif operation == "act" and self.acts:
            act = self.acts.pop(0)
            actor = await self.world.act(act)
            self.doing[actor] = act
            self.live.append(actor)
        elif actor is not None:
            await self._disturb(actor, operation, times)

    async def _disturb(self, actor: Actor, operation: str, times: int) -> None:
        if operation == "step":
            await actor.step(1 + times)
        elif operation == "fault":
            actor.fails_next = True
        elif isinstance(actor, Delivery) and actor.may_be_disturbed:
            if operation == "crash":
                await actor.crash()
            elif operation == "lose" and actor.has_lock:
                await actor.lose_lock()
        elif operation == "crash" and not isinstance(actor, Delivery):
            await actor.die()
        self._drop_if_done(actor)

    def _drop_if_done(self, actor: Actor) -> None:
        if not actor.is_done:
            return
        self.live.remove(actor)
        if isinstance(actor, Delivery):
            actor.settle()
        elif actor.error is not None:
            self.acts.insert(0, self.doing[actor])

    async def quiesce(self) -> None:
        """Zombies come to an end, now or after all others; everything else is delivered."""
        world = self.world
        world.stale_reads = 0
        zombies = [a for a in self.live if isinstance(a, Delivery) and not a.has_lock]
        for number, actor in enumerate(zombies):
            if number % 2 == 0:
                await actor.die()
        for actor in [a for a in self.live if a not in zombies]:
            actor.fails_next = False
            await actor.finish()
            self._drop_if_done(actor)
        await self._drain()
        for act in (*self.acts, *self.scenario.last_acts):
            actor = await world.act(act)
            await actor.finish()
            assert not isinstance(actor.error, TransientError)
        if self.scenario.resends:
            world.queue = [_again(m) for m in self.scenario.messages]
            await self._drain()
        for actor in zombies:
            actor.fails_next = False
            if not actor.is_done:
                await actor.finish()
                _ = actor.error

    async def _drain(self) -> None:
        for _ in range(100):
            if not self.world.queue:
                return
            delivery = await self.world.deliver(self.world.queue.pop(0))
            await delivery.finish()
            delivery.settle()
        raise AssertionError("The queue does not come to an end.")


def _again(sent: Message) -> Message:
    return replace(sent, message_id=sent.message_id + f"{REPLAY_MARK}again", delivery_count=1)


async def calm(world: World, scenario: Scenario) -> None:
    """Deliver everything once, in order, without a fault."""
    await run(world, replace(scenario, resends=False, acts=()), [])


# ---------------------------------------------------------------- what must hold


class View(NamedTuple):
    """What is left of one session, but for what differs from delivery to delivery."""

    documents: dict[str, Any]
    entries: dict[str, Any]
    head: dict[str, Any]
    session: dict[str, Any]
    archived: list[str]


async def view(world: World, key: SessionKey) -> View:
    store = world.store
    documents = {}
    for stream in STREAMS:
        for generation in GENERATIONS:
            for found in await store.read_lines(key, stream, generation, limit=1000):
                documents[found["id"]] = _without(found, *PER_DELIVERY_KEYS)
    entries = (await store.list_quarantined(key.partition_key, limit=1000)).documents
    changing = ("created_at", *PER_DELIVERY_KEYS)
    head = await head_store.read_head(store, key)
    return View(
        documents=documents,
        entries={entry["id"]: _without(entry, *changing) for entry in entries},
        head=_timeless(head.head),
        session=await _session(store, key),
        archived=sorted([x.key async for x in world.archive.objects(session_folder(key))]),
    )


def _timeless(head: heads.Head) -> dict[str, Any]:
    if head.tombstone is not None:
        tombstone = head.tombstone.model_copy(update={"deleted_at": ""})
        head = head.model_copy(update={"tombstone": tombstone})
    return _without(head.to_document(), "head_version", "deletions")


async def _session(store: Any, key: SessionKey) -> dict[str, Any]:
    item = await store.read_item("sessions", key.user_id, key.session_id)
    if item is None:
        return {}
    document = _without(item.document, *PER_DELIVERY_KEYS)
    projects = [_without(entry, "head_version") for entry in document["projects"]]
    return document | {"projects": projects}


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


async def check_exact(world: World, key: SessionKey) -> None:
    """The head equals what lies there, and nothing lies there that it rules out."""
    found = await view(world, key)
    head = heads.Head.from_document(found.head)
    assert not head.garbage, "garbage is left"
    if head.tombstone is not None:
        assert not found.documents, "a deleted session has documents"
        assert not found.entries, "a deleted session has quarantine entries"
        assert not found.archived, "a deleted session has archived bytes"
    for stream in STREAMS:
        _check_stream(head, stream, found)
    item = await world.store.read_item("sessions", key.user_id, key.session_id)
    if item is not None:
        entries = {entry["project_slug"]: entry for entry in item.document["projects"]}
        shown = _without(entries[key.project_slug], "head_version")
        wanted = _without(ingest.projection._entry(head), "head_version")
        assert shown == wanted, "the session document is not its head's"


def _check_stream(head: heads.Head, stream: Stream, found: View) -> None:
    state = head.stream(stream)
    kind = {"events": "event", "transcript": "transcript_message"}[stream]
    documents = [d for d in found.documents.values() if d["_type"] == kind]
    entries = [
        e
        for e in found.entries.values()
        if e["_type"] == "quarantined_line" and e["stream"] == stream
    ]
    for lying in (*documents, *entries):
        assert lying["generation"] == state.generation, "something of another generation is left"
    assert {d["sequence"] for d in documents} == set(state.stored - state.pruned), "documents"
    refused = {e["sequence"] for e in entries if e["reason"] != "conflict"}
    conflicts = {e["sequence"] for e in entries if e["reason"] == "conflict"}
    assert refused == set(state.quarantined), "quarantine entries"
    assert conflicts == set(state.conflicts), "conflict entries"
    if not state.pruned:
        _check_sums(state, documents)
    if stream == "events":
        _check_archive(state, found.archived)


def _check_sums(state: heads.StreamHead, documents: Sequence[Mapping[str, Any]]) -> None:
    usage: dict[str, int] = defaultdict(int)
    cost, digest = Decimal(0), 0
    for document in documents:
        for name, count in document["summary"].get("usage", {}).items():
            usage[name] += count
        cost += Decimal(document["summary"].get("cost_usd", "0"))
        place = document["sequence"].to_bytes(8, "big")
        share = hashlib.sha256(place + bytes.fromhex(document["line_sha256"])).digest()
        digest += int.from_bytes(share, "big")
    assert {n: c for n, c in state.usage._asdict().items() if c} == {
        n: c for n, c in usage.items() if c
    }, "usage"
    assert Decimal(state.cost_usd) == cost, "cost"
    assert int(state.digest, 16) == digest % 2**256, "digest"
    assert state.line_bytes == sum(d["line_size_bytes"] for d in documents), "bytes"


def _check_archive(state: heads.StreamHead, archived: Sequence[str]) -> None:
    folder = f"/events/{state.generation:016d}/lines/"
    held = Coverage()
    for key in archived:
        if folder in key:
            offset, length, _ = key.rpartition("/")[2].split("-")
            held |= Coverage.of((int(offset), int(offset) + int(length) - 1))
    assert not state.extent - held, "the head says that bytes are archived which are not"
