"""The quarantine's way back: archive, real client, embedded broker, ingest, store."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from azure.servicebus import ServiceBusClient
from pydantic import SecretStr

from sessionferry import head_store, heads, quarantine, replaying
from sessionferry.archive import Archive, batch_key
from sessionferry.batch import REPLAY_MARK, Batch, Limits, encode
from sessionferry.delivery import Message
from sessionferry.documents import Rejected
from sessionferry.errors import ArchiveMismatch
from sessionferry.heads import Delivery
from sessionferry.identity import UNATTRIBUTED
from sessionferry.ingest import Ingest
from sessionferry.publisher import Publisher
from sessionferry.replaying import Replay
from sessionferry.settings import Endpoints
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from support.broker import RunningBroker, forget_leaked_sockets
from support.strategies import batch

OLD = Limits(lines=2)
"""What an older version took; everything longer was too large for it."""
_numbers = count()


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    yield
    forget_leaked_sockets()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    queues = [{"name": f"q{number}"} for number in range(9)]
    with RunningBroker(tmp_path_factory.mktemp("broker"), queues) as running:
        yield running


class Place:
    """A queue, a store, an archive and an inbox of one's own."""

    def __init__(self, broker: RunningBroker, store: Store, folder: Path) -> None:
        self.store = store
        self.archive = Archive.open("memory://")
        inbox = (folder / "inbox").as_uri()
        self.inbox = Archive.open(inbox)
        nowhere: dict[str, Any] = dict.fromkeys(("namespace", "store_url", "archive_url", "local"))
        self.target = Endpoints(
            queue=f"q{next(_numbers)}",
            connection=SecretStr(broker.connection_string),
            inbox_url=inbox,
            **nowhere,
        )

    def ingest(self, limits: Limits | None = None) -> Ingest:
        return Ingest(self.store, self.archive, self.inbox, limits=limits, retry_seconds=5)

    async def entries(self) -> list[dict[str, Any]]:
        return [entry async for entry in replaying.entries_of(self.store)]

    async def send(self, *, rate: float = 1000) -> Replay:
        """Plan the whole quarantine, and send it."""
        planned = replaying.plan(await self.entries())
        async with Publisher(self.target, resend=True) as publisher:
            await replaying.send(
                planned, self.archive, publisher, rate=rate, advance=lambda _: None
            )
        return planned

    async def deliver(self, limits: Limits | None = None) -> int:
        """Be the function app for what lies in the queue."""
        received = await asyncio.to_thread(self._received)
        await self.ingest(limits).take_in(received)
        return len(received)

    def _received(self) -> list[Message]:
        connection = self.target.connection
        assert connection is not None
        found = []
        with (
            ServiceBusClient.from_connection_string(connection.get_secret_value()) as client,
            client.get_queue_receiver(
                self.target.queue, keep_alive=0, prefetch_count=1
            ) as receiver,
        ):
            while receiver.peek_messages(1, sequence_number=1):
                for message in receiver.receive_messages(9, max_wait_time=5):
                    named = (message.application_properties or {}).get(b"content_encoding")
                    found.append(
                        Message(
                            body=b"".join(message.body),
                            message_id=str(message.message_id),
                            content_encoding=named.decode() if named else None,  # type: ignore[union-attr]
                        )
                    )
                    receiver.complete_message(message)
        return found


@pytest.fixture
async def place(broker: RunningBroker, tmp_path: Path) -> AsyncIterator[Place]:
    async with await open_store("sqlite://") as store:
        yield Place(broker, store, tmp_path)


def lines(number: int, size: int = 1) -> bytes:
    rng = random.Random(number)
    return b"".join(
        orjson.dumps({"event": "e", "n": n, "x": rng.randbytes(size).hex()}) + b"\n"
        for n in range(number)
    )


def deflated(made: Batch) -> bytes:
    """A body that only its property tells from bytes of another kind."""
    packer = zlib.compressobj(wbits=31)
    body = made.header.to_json() + b"\n" + made.payload
    return packer.compress(body) + packer.flush()


async def test_messages_that_newer_code_understands_leave_the_quarantine(place: Place) -> None:
    made = batch(lines(5))
    gzip = batch(lines(3), session_id="other")
    messages = [
        Message(body=encode(made), message_id="first"),
        Message(body=deflated(gzip), message_id="second", content_encoding="gzip"),
        Message(body=b"nonsense", message_id="third"),
    ]
    await place.ingest(OLD).take_in(messages)
    before = {entry["message_id"]: entry for entry in await place.entries()}
    assert before["second"]["content_encoding"] == "gzip"
    assert before["third"]["partition_key"] == UNATTRIBUTED

    planned = await place.send()
    assert (planned.counts["messages"], planned.counts["waiting"]) == (3, 3)
    await replaying.await_verdicts(planned, place.store, 0)
    assert planned.counts["waiting"] == 3, "nobody has judged them yet"
    assert await place.deliver() == 3
    await replaying.await_verdicts(planned, place.store, 5)
    counts = planned.counts
    assert (counts["cleared"], counts["stay"], counts["waiting"]) == (2, 1, 0)
    (left,) = await place.entries()
    assert left["id"] == before["third"]["id"]
    assert left["message_id"].startswith(f"third{REPLAY_MARK}")
    for key, stored in ((made.header.key, 5), (gzip.header.key, 3)):
        head = (await head_store.read_head(place.store, key)).head
        assert len(head.stream("events").stored) == stored
        assert len(await place.store.read_lines(key, "events", 0)) == stored


async def test_a_batch_that_came_through_the_inbox_goes_through_the_inbox_again(
    place: Place,
) -> None:
    made = batch(lines(30, size=9_000))  # half a megabyte, and hardly compressible
    await set_line_aside(place, made, 7)
    planned = await place.send()
    assert len([found async for found in place.inbox.objects("")]) == 1
    await place.deliver()
    await replaying.await_verdicts(planned, place.store, 5)
    assert (planned.counts["cleared"], planned.counts["stay"]) == (1, 0)
    head = (await head_store.read_head(place.store, made.header.key)).head
    assert head.stream("events").stored.ranges == ((0, 29),)
    assert not head.stream("events").quarantined


async def test_a_replay_that_is_sent_twice_stores_and_counts_once(place: Place) -> None:
    """As after a kill between sending and the verdict: the next run sends all of it again."""
    made = batch(lines(4))
    await set_line_aside(place, made, 2)
    await place.send()
    planned = await place.send()
    assert await place.deliver() == 2
    await replaying.await_verdicts(planned, place.store, 5)
    assert planned.counts["cleared"] == 1
    assert await place.entries() == []
    state = (await head_store.read_head(place.store, made.header.key)).head.stream("events")
    assert (len(state.stored), len(state.quarantined)) == (4, 0)
    fresh = await fresh_head(made)
    assert (state.digest, state.line_bytes) == (fresh.digest, fresh.line_bytes)


async def test_a_batch_is_sent_once_for_all_its_lines_and_conflicts_not_at_all(
    place: Place,
) -> None:
    made = batch(b'{"a":1}\n{"a":\n[1]\n\xff\n')
    other = batch(b'{"a":2}\n')
    for one in (made, other):
        await place.ingest().take_in([Message(body=encode(one))])
    planned = replaying.plan(await place.entries())
    assert [len(unit.entries) for unit in planned.units] == [3]
    assert [entry["reason"] for entry in planned.conflicts] == ["conflict"]
    planned = await place.send()
    await place.deliver()
    await replaying.await_verdicts(planned, place.store, 5)
    assert planned.counts | {"messages": 1} == {
        "messages": 1,
        "entries": 3,
        "cleared": 0,
        "stay": 3,
        "waiting": 0,
        "failed": 0,
        "conflicts": 1,
    }
    assert len(await place.entries()) == 4


async def test_bytes_that_are_gone_are_said_and_stop_nobody(place: Place) -> None:
    await place.ingest(OLD).take_in([Message(body=encode(batch(lines(5))))])
    await place.ingest(OLD).take_in([Message(body=encode(batch(lines(4), session_id="b")))])
    for entry in await place.entries():
        if entry["session_id"] == "b":
            await place.archive.delete([entry["payload_ref"]["archive_key"]])
    planned = await place.send()
    assert planned.counts["failed"] == planned.counts["messages"] == 1
    assert "no archived object" in planned.failed[0][1]
    with pytest.raises(ArchiveMismatch):
        await place.archive.get(planned.failed[0][0].archive_key)


async def set_line_aside(place: Place, made: Batch, sequence: int) -> None:
    """Leave what a version leaves that takes a line for none: here, one that newer code takes."""
    key = batch_key(made.header, made.id)
    await place.archive.put(key, encode(made))
    for number, offset, line, sha256 in made.lines():
        if number != sequence:
            continue
        rejected = Rejected(
            position=offset,
            sequence=number,
            length=len(line),
            sha256=sha256,
            reason="not_json",
            detail="",
            preview="",
        )
        entry = quarantine.rejected_line(made.header, rejected, key, "2026-01-01T00:00:00Z")
        await place.store.create_quarantined([entry])
    delivery = Delivery("events", 0, quarantined=[sequence], extent=(0, made.header.length - 1))
    await head_store.change_head(
        place.store, made.header.key, lambda head: heads.merge(head, [delivery])
    )


async def fresh_head(made: Batch) -> heads.StreamHead:
    """The head of a store that has seen the batch once, and nothing else."""
    async with await open_store("sqlite://") as store:
        ingest = Ingest(store, Archive.open("memory://"), Archive.open("memory://"))
        await ingest.take_in([Message(body=encode(made))])
        return (await head_store.read_head(store, made.header.key)).head.stream("events")
