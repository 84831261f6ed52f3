"""Writing to Cosmos DB: ours, and what others do, against the same server in the same run.

Like is compared with like: documents that are ready, written by each. `_from_messages` is the whole
way, from compressed messages to documents, archive, heads and projections.

The server is the test server of this project, in a process of its own: requests are what the client
sent, request units follow its published cost model, and nothing of it is Azure's speed.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from azure.cosmos.aio import ContainerProxy, CosmosClient
from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure
from tests.support.cosmos import CosmosProcess

from sessionferry import head_store
from sessionferry.archive import Archive
from sessionferry.batch import Header, encode_parts, lines_of
from sessionferry.delivery import Message
from sessionferry.documents import Document, DocumentBuilder, Position
from sessionferry.identity import SessionKey
from sessionferry.ingest import Ingest
from sessionferry.packing import Packer
from sessionferry.settings import Settings
from sessionferry.store.cosmos.access import access
from sessionferry.store.cosmos.packing import pack
from sessionferry.store.cosmos.store import CosmosStore

LONG = 5_000
"""Lines of a long session."""
SHORT = 42
"""Events of a sub-session: the mean of the fleet that was measured."""
INVOCATION = 16
"""Messages of an invocation, as in host.json."""
TOGETHER = 32
LINE_BY_LINE = "upserts one after another, as amplifier-session-storage does"
BARE = "execute_item_batch of documents that were ready"


class Sessions(NamedTuple):
    """Sessions to be written: as messages, and as documents that are ready."""

    messages: list[Message]
    documents: list[Document]


class Measured(NamedTuple):
    """What one way to write took."""

    documents: int
    seconds: float
    cpu: float
    requests: int
    units: float

    @property
    def speed(self) -> float:
        return self.documents / self.seconds

    @property
    def work(self) -> float:
        """The client's processor time per document: other tenants disturb it least."""
        return self.cpu / self.documents


def measure(folder: Path, documents: int, sample: int, runs: int) -> Iterator[Figure]:
    """Compare the ways, each into a database of its own."""
    lines = itertools.islice(itertools.cycle(fleets.lines(folder)), documents)
    found = asyncio.run(_measured(list(lines), sample, runs))
    for name, suffix in (("stored", ""), ("ours", "_from_messages")):
        for than, other, said in (
            ("line_by_line", "line", LINE_BY_LINE),
            ("concurrent_upserts", "many", f"{TOGETHER} upserts at a time"),
            ("bare_batches", "bare", BARE),
        ):
            rounds = list(zip(found[name], found[other], strict=True))
            ratio = median(ours.speed / theirs.speed for ours, theirs in rounds)
            yield Figure(f"cosmos_ratio_to_{than}{suffix}", ratio, "ratio", said)
            ratio = median(theirs.work / ours.work for ours, theirs in rounds)
            yield Figure(f"cosmos_cpu_ratio_to_{than}{suffix}", ratio, "ratio", said)
    yield from _absolute("", found["stored"])
    yield from _absolute("_from_messages", found["ours"])
    yield from _absolute("_line_by_line", found["line"])
    yield from _absolute("_concurrent_upserts", found["many"])
    yield from _absolute("_bare_batches", found["bare"])
    yield from _absolute("_sub_sessions", found["short"])
    yield from _absolute("_redelivery", found["again"])


def _absolute(suffix: str, rounds: Sequence[Measured]) -> Iterator[Figure]:
    middle = sorted(rounds, key=lambda it: it.seconds)[len(rounds) // 2]
    count = middle.documents
    yield Figure(f"cosmos_documents_per_second{suffix}", middle.speed, "documents/s")
    yield Figure(f"cosmos_requests_per_document{suffix}", middle.requests / count, "requests")
    yield Figure(f"cosmos_units_per_document{suffix}", middle.units / count, "RU (modelled)")


async def _measured(lines: list[bytes], sample: int, runs: int) -> dict[str, list[Measured]]:
    long, short = _sessions(lines, LONG), _sessions(lines[: len(lines) // 4], SHORT)
    some = long.documents[:sample]
    found: dict[str, list[Measured]] = {}
    with CosmosProcess() as server:
        for number in range(runs):
            run = _Run(server, f"bench{number}")
            for name, result in (
                ("line", await run.bare(some, _line_by_line)),
                ("many", await run.bare(some, _concurrent)),
                ("bare", await run.bare(long.documents, _batches)),
                ("stored", await run.stored(long.documents)),
                ("ours", await run.ours("ours", long)),
                ("again", await run.ours("ours", long, delivery_count=2)),
                ("short", await run.ours("short", short)),
            ):
                found.setdefault(name, []).append(result)
    return found


class _Run:
    """One round. Every way to write has a database of its own."""

    def __init__(self, server: CosmosProcess, name: str) -> None:
        self._server = server
        self._name = name
        self._archive = Archive.open("memory://")

    async def bare(
        self,
        documents: list[Document],
        write: Callable[[ContainerProxy, list[dict[str, object]]], Awaitable[None]],
    ) -> Measured:
        ready = [document.fields for document in documents]
        async with await self._open(write.__name__):
            pass
        async with CosmosClient(self._server.endpoint, self._server.key) as client:
            database = client.get_database_client(f"{self._name}{write.__name__}")
            events = database.get_container_client("events")
            await events.read()
            return await self._timed(len(ready), lambda: write(events, ready))

    async def stored(self, documents: list[Document]) -> Measured:
        """Documents that are ready, as in the others' case, and each session's head."""
        grouped = [list(group) for _, group in itertools.groupby(documents, _partition)]
        sessions = [(_key(group[0]), group) for group in grouped]
        async with await self._open("stored") as store:

            async def write() -> None:
                for key, group in sessions:
                    for at in range(0, len(group), 1000):
                        await store.create_lines(key, "events", 0, group[at : at + 1000])
                    await head_store.change_head(store, key, lambda head: head)

            return await self._timed(len(documents), write)

    async def ours(self, name: str, sessions: Sessions, delivery_count: int = 1) -> Measured:
        """The whole way of the messages: archive, documents, heads, projections."""
        async with await self._open(name) as store:
            taker = Ingest(store, self._archive, self._archive)
            sent = [replace(it, delivery_count=delivery_count) for it in sessions.messages]

            async def write() -> None:
                for at in range(0, len(sent), INVOCATION):
                    await taker.take_in(sent[at : at + INVOCATION])

            return await self._timed(len(sessions.documents), write)

    async def _open(self, name: str) -> CosmosStore:
        host = self._server.endpoint.split("//")[1]
        url = f"cosmos+http://{host}{self._name}{name}"
        return await CosmosStore.open(access(url, Settings.read()))

    async def _timed(self, documents: int, work: Callable[[], Awaitable[None]]) -> Measured:
        self._server.clear_statistics()
        began, began_cpu = time.perf_counter(), time.process_time()
        await work()
        taken, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        found = self._server.statistics()
        requests = sum(n for what, n in found["requests"].items() if what.startswith("item."))
        units = sum(n for what, n in found["request_units"].items() if what.startswith("item."))
        return Measured(documents, taken, cpu, requests, units)


async def _line_by_line(events: ContainerProxy, documents: list[dict[str, object]]) -> None:
    for document in documents:
        await events.upsert_item(document)


async def _concurrent(events: ContainerProxy, documents: list[dict[str, object]]) -> None:
    waiting = iter(documents)

    async def work() -> None:
        for document in waiting:
            await events.upsert_item(document)

    await asyncio.gather(*(work() for _ in range(TOGETHER)))


async def _batches(events: ContainerProxy, documents: list[dict[str, object]]) -> None:
    for partition, group in itertools.groupby(documents, lambda it: str(it["partition_key"])):
        for batch in pack(group, lambda it: int(str(it["line_size_bytes"])) + 600):
            await events.execute_item_batch([("create", (it,)) for it in batch], partition)


def _sessions(lines: list[bytes], length: int) -> Sessions:
    made = Sessions([], [])
    for number in range(0, len(lines), length):
        header = Header(
            kind="lines",
            stream="events",
            user_id="mara",
            host_id="birch-01",
            project_slug="bench",
            session_id=f"session-{length}-{number}",
            format="amplifier",
        )
        payload = b"".join(line + b"\n" for line in lines[number : number + length])
        packer = Packer(header, fleets.LINK_LIMIT)
        for batch in (*packer.add(payload), *packer.flush()):
            body = encode_parts(batch.header, batch.compressed)
            made.messages.append(Message(body=body, message_id=str(len(made.messages))))
        builder = DocumentBuilder(header, "archive/key", "2026-01-01T00:00:00.000000Z")
        for at, (offset, line) in enumerate(lines_of(payload)):
            built = builder.build(Position(at, offset), line)
            if isinstance(built, Document):
                made.documents.append(built)
    return made


def _partition(document: Document) -> str:
    return str(document.fields["partition_key"])


def _key(document: Document) -> SessionKey:
    fields = document.fields
    return SessionKey(fields["user_id"], fields["project_slug"], fields["session_id"])
