"""Dead letters: seen, replayed and purged through the real client and the embedded broker."""

import asyncio
import datetime as dt
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
    ServiceBusSubQueue,
)
from azure.servicebus._pyamqp.utils import amqp_long_value
from azure.servicebus.amqp import AmqpAnnotatedMessage
from pydantic import SecretStr

from sessionferry.archive import Archive
from sessionferry.batch import MAX_MESSAGE_ID, REPLAY_MARK, encode, replay_id
from sessionferry.consumer import Consumer
from sessionferry.dead_letters import (
    MOST_REPLAYS,
    OUTAGE,
    REPLAYS,
    DeadLetter,
    DeadLetters,
    Moved,
    redrive,
)
from sessionferry.errors import TransientError, UserError
from sessionferry.preview import read_contents
from sessionferry.settings import Endpoints
from support.broker import RunningBroker, connection_string, forget_leaked_sockets
from support.strategies import batch

_numbers = count()
QUEUES = [
    *({"name": f"q{number}", "lockDuration": "PT30S"} for number in range(20)),
    {"name": "once-each", "requiresDuplicateDetection": True},
    {"name": "brief", "lockDuration": "PT1S"},
    {"name": "fleeting", "deadLetteringOnMessageExpiration": True},
]


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    yield
    forget_leaked_sockets()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with RunningBroker(tmp_path_factory.mktemp("broker"), QUEUES) as running:
        yield running


@pytest.fixture(scope="module")
def client(broker: RunningBroker) -> Iterator[ServiceBusClient]:
    with ServiceBusClient.from_connection_string(broker.connection_string, retry_total=0) as found:
        yield found


@pytest.fixture
def target(broker: RunningBroker) -> Endpoints:
    """A queue of one's own."""
    return endpoints(broker.connection_string, f"q{next(_numbers)}")


def endpoints(connection: str, queue: str) -> Endpoints:
    nowhere: dict[str, Any] = dict.fromkeys(
        ("namespace", "store_url", "archive_url", "inbox_url", "local")
    )
    return Endpoints(queue=queue, connection=SecretStr(connection), **nowhere)


def receiver(client: ServiceBusClient, queue: str, *, dead: bool = False) -> ServiceBusReceiver:
    sub_queue = ServiceBusSubQueue.DEAD_LETTER if dead else None
    return client.get_queue_receiver(queue, sub_queue=sub_queue, keep_alive=0, prefetch_count=1)


def bury(client: ServiceBusClient, queue: str, *messages: Any, reason: str = "broken") -> None:
    """Send messages, and dead-letter them for a reason."""
    with client.get_queue_sender(queue, keep_alive=0) as sender:
        for message in messages:
            sender.send_messages(message)
    with receiver(client, queue) as receiving:
        left = len(messages)
        while left:
            for found in receiving.receive_messages(left, max_wait_time=5):
                receiving.dead_letter_message(found, reason=reason, error_description="as a test")
                left -= 1


def take(client: ServiceBusClient, queue: str, wanted: int) -> list[ServiceBusReceivedMessage]:
    """Receive and complete so many messages, and see that there are no more."""
    found: list[ServiceBusReceivedMessage] = []
    with receiver(client, queue) as receiving:
        while len(found) < wanted:
            more = receiving.receive_messages(wanted - len(found), max_wait_time=5)
            assert more, f"{len(found)} of {wanted} came"
            for message in more:
                receiving.complete_message(message)
            found += more
        assert receiving.peek_messages(10) == []
    return found


async def listed(letters: DeadLetters) -> list[DeadLetter]:
    return [letter async for letter in letters.peek()]


async def replay(letters: DeadLetters, chosen: list[DeadLetter], rate: float = 1000) -> Moved:
    moved = Moved(frozenset(letter.number for letter in chosen))
    await letters.replay(moved, rate=rate)
    return moved


async def test_dead_letters_are_shown_decoded_and_purged(
    target: Endpoints, client: ServiceBusClient
) -> None:
    good = batch(b'{"event": "x"}\n')
    body = ServiceBusMessage(
        encode(good), message_id="m1", application_properties={"content_encoding": "zstd"}
    )
    bury(client, target.queue, body, ServiceBusMessage(b"\x1b[31mnonsense"))
    async with DeadLetters(target) as letters:
        decodable, broken = await listed(letters)
        moved = Moved(frozenset({decodable.number}))
        await letters.purge(moved)
        assert moved.left == 0
        assert await listed(letters) == [broken]
    contents = read_contents(decodable.body, decodable.content_encoding)
    assert contents.header == good.header
    assert contents.lines == ('{"event": "x"}',)
    assert (decodable.message_id, decodable.reason) == ("m1", "broken")
    assert decodable.description == "as a test"
    contents = read_contents(broken.body, broken.content_encoding)
    assert (contents.kind, contents.session) == ("undecodable", "")
    assert contents.lines == ("\\x1b[31mnonsense",)
    assert broken.number == decodable.number + 1


NO_BYTES: tuple[dict[str, Any], ...] = (
    {"sequence_body": [[1, "two"], [3]]},
    {"value_body": {"a": 1}},
)


async def test_a_replay_keeps_every_property(target: Endpoints, client: ServiceBusClient) -> None:
    properties: dict[Any, Any] = {
        "content_encoding": "zstd",
        "text": "grüße",
        "whole": 7,
        "large": amqp_long_value(2**40),
        "real": 1.5,
        "flag": True,
        "uuid": uuid.UUID(int=5),
        "nothing": None,
    }
    before = ServiceBusMessage(
        b"\x00\xffbody",
        message_id="original",
        application_properties=properties,
        content_type="application/zstd",
        correlation_id="trace",
        subject="label",
        to="there",
        reply_to="here",
        time_to_live=dt.timedelta(days=3),
        partition_key="mine",
    )
    before.raw_amqp_message.annotations = {"x-custom": "kept", "x-opt-partition-key": "mine"}
    # The client receives binary properties, and cannot send them.
    binary = ServiceBusMessage(b"bad", message_id="bad")
    binary.raw_amqp_message.application_properties = {"raw": bytearray(b"\xff\xfe")}  # type: ignore[dict-item]
    others = (binary, *(AmqpAnnotatedMessage(**body) for body in NO_BYTES))
    bury(client, target.queue, before, *others)
    async with DeadLetters(target) as letters:
        dead = await listed(letters)
        assert [read_contents(letter.body).kind for letter in dead] == ["undecodable"] * 4
        moved = Moved(frozenset(letter.number for letter in dead))
        await letters.replay(moved, rate=1000)
        stayed = dead[1]
        assert (moved.left, len(moved.done)) == (1, 3)
        assert "property cannot be sent" in moved.failed[stayed.number]
        assert [letter.number for letter in await listed(letters)] == [stayed.number]
    after, *bodies = take(client, target.queue, 3)
    assert [list(bodies[0].body), bodies[1].body] == [[[1, b"two"], [3]], {b"a": 1}]
    assert b"".join(after.body) == b"\x00\xffbody"
    found = {k.decode(): v for k, v in (after.application_properties or {}).items()}
    assert found.pop("text").decode() == "grüße"
    assert found.pop("content_encoding") == b"zstd"
    plain = ("whole", "real", "flag", "uuid", "nothing")
    assert found == {**{k: properties[k] for k in plain}, "large": 2**40, REPLAYS: 1}
    for name in ("content_type", "correlation_id", "subject", "to", "reply_to", "time_to_live"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.partition_key == "mine"
    assert (after.raw_amqp_message.annotations or {})[b"x-custom"] == b"kept"
    assert after.delivery_count == 0
    assert after.dead_letter_reason is None
    assert after.expires_at_utc is not None
    assert after.expires_at_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=2)
    assert str(after.message_id).startswith(f"original{REPLAY_MARK}")


async def test_a_replay_passes_duplicate_detection(
    broker: RunningBroker, client: ServiceBusClient
) -> None:
    target = endpoints(broker.connection_string, "once-each")
    bury(client, "once-each", ServiceBusMessage(b"one", message_id="same"))
    with client.get_queue_sender("once-each", keep_alive=0) as sender:
        sender.send_messages(ServiceBusMessage(b"one", message_id="same"))  # swallowed
    async with DeadLetters(target) as letters:
        for replays in (1, 2):
            assert (await replay(letters, await listed(letters))).left == 0
            with receiver(client, "once-each") as receiving:
                (message,) = receiving.receive_messages(1, max_wait_time=5)
                assert (message.application_properties or {})[REPLAYS.encode()] == replays
                assert str(message.message_id).count(REPLAY_MARK) == 1
                receiving.dead_letter_message(message, reason="again")


async def test_only_what_is_asked_for_is_replayed_and_no_faster_than_asked(
    target: Endpoints, client: ServiceBusClient
) -> None:
    for reason in ("outage", "poison"):
        messages = (ServiceBusMessage(f"{reason}{number}") for number in range(20))
        bury(client, target.queue, *messages, reason=reason)
    async with DeadLetters(target) as letters:
        chosen = [letter for letter in await listed(letters) if letter.reason == "poison"]
        began = time.monotonic()
        assert (await replay(letters, chosen, rate=20)).left == 0
        assert time.monotonic() - began >= 19 / 20
        # The others were given back at once, not left to the end of their locks.
        chosen = await listed(letters)
        assert {letter.reason for letter in chosen} == {"outage"}
        assert (await replay(letters, chosen)).left == 0
    bodies = [b"".join(message.body).decode() for message in take(client, target.queue, 40)]
    wanted = [f"{reason}{number}" for reason in ("poison", "outage") for number in range(20)]
    assert bodies == wanted


async def test_locks_that_end_while_others_are_looked_for_do_not_keep_it_busy_for_ever(
    broker: RunningBroker, client: ServiceBusClient
) -> None:
    target = endpoints(broker.connection_string, "brief")
    bury(client, "brief", *(ServiceBusMessage(f"m{number}") for number in range(5)))
    async with DeadLetters(target, patience=1.5) as letters:
        moved = Moved(frozenset({10**6}))
        await letters.replay(moved, rate=1000)
        assert (moved.done, moved.left) == (set(), 1)
        found = await listed(letters)
        assert len(found) == 5
        await letters.purge(Moved(frozenset(letter.number for letter in found)))


async def test_a_replay_killed_between_send_and_complete_loses_nothing(
    broker: RunningBroker, client: ServiceBusClient
) -> None:
    """The next run sends the one message again; ingest takes it twice without harm."""
    queue = "brief"
    target = endpoints(broker.connection_string, queue)
    bury(client, queue, ServiceBusMessage(b"precious", message_id="p"))
    async with DeadLetters(target) as letters:
        (dead,) = await listed(letters)
    program = (
        "import asyncio, os, signal, sys\n"
        "from pydantic import SecretStr\n"
        "from sessionferry import dead_letters\n"
        "from sessionferry.settings import Endpoints\n"
        "class Killed(dead_letters.DeadLetters):\n"
        "    async def _send(self, sender, message):\n"
        "        await super()._send(sender, message)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "async def main():\n"
        "    target = Endpoints(queue=sys.argv[2], connection=SecretStr(sys.argv[1]),\n"
        "        namespace=None, store_url=None, archive_url=None, inbox_url=None, local=None)\n"
        "    async with Killed(target) as letters:\n"
        "        await letters.replay(dead_letters.Moved(frozenset({int(sys.argv[3])})), rate=9)\n"
        "asyncio.run(main())\n"
    )
    arguments = [sys.executable, "-c", program, broker.connection_string, queue, str(dead.number)]
    killed = await asyncio.create_subprocess_exec(*arguments)
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    await asyncio.sleep(1.2)  # its lock
    async with DeadLetters(target) as letters:
        found = await listed(letters)
        assert [letter.number for letter in found] == [dead.number]
        assert (await replay(letters, found)).left == 0
    messages = take(client, queue, 2)
    assert {b"".join(message.body) for message in messages} == {b"precious"}
    assert len({message.message_id for message in messages}) == 2


async def test_only_what_an_outage_left_is_redriven_and_not_for_ever(
    broker: RunningBroker,
    client: ServiceBusClient,
    target: Endpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ServiceBusConnection", broker.connection_string)
    monkeypatch.setenv("FERRY_QUEUE", target.queue)
    monkeypatch.setenv("FERRY_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    for name in ("archive", "inbox"):
        monkeypatch.setenv(f"FERRY_{name.upper()}", (tmp_path / name).as_uri())
    archive = Archive.open((tmp_path / "archive").as_uri())
    often = {REPLAYS: MOST_REPLAYS}
    bury(
        client,
        target.queue,
        ServiceBusMessage(b"outage"),
        ServiceBusMessage(b"hopeless", application_properties=dict(often)),
        reason=OUTAGE,
    )
    bury(client, target.queue, ServiceBusMessage(b"poison"))
    consumer = Consumer()
    await consumer.redrive()
    (message,) = take(client, target.queue, 1)
    assert b"".join(message.body) == b"outage"
    records = sorted([found.key async for found in archive.objects("_audit")])
    assert [key.rpartition("/")[2] for key in records] == ["begun.json", "ended.json"]
    assert orjson.loads(await archive.get(records[1]))["counts"] == {
        "asked": 1,
        "done": 1,
        "failed": 0,
    }
    # Nothing to do leaves no record.
    assert (await redrive(target, archive)).counts["asked"] == 0
    assert len([found async for found in archive.objects("_audit")]) == 2
    async with DeadLetters(target) as letters:
        assert [letter.body for letter in await listed(letters)] == [b"hopeless", b"poison"]
    await (await consumer._open()).store.close()


async def test_failures_are_sentences(broker: RunningBroker) -> None:
    wrong = connection_string(broker.port, key="d3Jvbmc=")
    for target, error, sentence in (
        (endpoints(wrong, "q0"), UserError, "needs the right to receive"),
        (endpoints(connection_string(1), "q0"), TransientError, "The queue failed"),
    ):
        async with DeadLetters(target) as letters:
            with pytest.raises(error, match=sentence):
                await listed(letters)


def test_ids_of_replays_stay_within_the_limit_and_do_not_grow() -> None:
    first = replay_id("a" * 64)
    assert replay_id(first) != first
    assert replay_id(first)[: 64 + len(REPLAY_MARK)] == "a" * 64 + REPLAY_MARK
    assert len(replay_id(first)) == len(first)
    assert len(replay_id("b" * MAX_MESSAGE_ID)) <= MAX_MESSAGE_ID
    assert replay_id("b" * MAX_MESSAGE_ID)[:64] != replay_id("c" * MAX_MESSAGE_ID)[:64]
    assert replay_id("my.report").startswith("my.report.r")
