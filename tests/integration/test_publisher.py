"""The client library, with the real azure-servicebus client and the embedded broker."""

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage
from pydantic import SecretStr

from sessionferry import publisher as module
from sessionferry.archive import Archive, inbox_key
from sessionferry.batch import REPLAY_MARK, Header, batch_id, decode
from sessionferry.errors import TransientError, UserError
from sessionferry.packing import Packed, pack, pack_whole
from sessionferry.publisher import Publisher
from sessionferry.settings import Endpoints
from support.broker import KEY, RunningBroker, connection_string, forget_leaked_sockets
from support.strategies import header

QUEUES = [f"q{number}" for number in range(20)]
_free = iter(QUEUES)
_sessions = count()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    directory = tmp_path_factory.mktemp("broker")
    with RunningBroker(directory, [{"name": name} for name in QUEUES]) as running:
        yield running


@pytest.fixture
def target(broker: RunningBroker, tmp_path: Path) -> Endpoints:
    """A queue of one's own, and an inbox in a folder."""
    return endpoints_of(broker, tmp_path)


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    forget_leaked_sockets()


def endpoints_of(broker: RunningBroker, folder: Path, **changes: Any) -> Endpoints:
    fields: dict[str, Any] = {
        "queue": next(_free),
        "connection": SecretStr(broker.connection_string),
        "namespace": None,
        "store_url": None,
        "archive_url": None,
        "inbox_url": (folder / "inbox").as_uri(),
        "local": None,
    }
    return Endpoints(**(fields | changes))


@pytest.fixture
async def sender(target: Endpoints) -> AsyncIterator[Publisher]:
    async with Publisher(target, retry_seconds=20) as opened:
        yield opened


def stream(seed: int, size: int) -> bytes:
    """Lines that do not compress."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        out += rng.randbytes(3000).replace(b"\n", b"n") + b"\n"
    return bytes(out)


def packed(payload: bytes, limit: int = 200_000, **changes: object) -> list[Packed]:
    """Batches of a session of its own."""
    template = header(**({"session_id": f"s{next(_sessions)}"} | changes))
    return list(pack(template, [payload], limit))


def received(target: Endpoints) -> list[ServiceBusReceivedMessage]:
    """All that is in the queue, left there."""
    assert target.connection is not None
    connection = target.connection.get_secret_value()
    found: list[ServiceBusReceivedMessage] = []
    with (
        ServiceBusClient.from_connection_string(connection) as client,
        client.get_queue_receiver(target.queue) as receiver,
    ):
        while more := receiver.peek_messages(
            200, sequence_number=(found[-1].sequence_number or 0) + 1 if found else 1
        ):
            found += more
    return found


def body_of(message: ServiceBusReceivedMessage) -> bytes:
    return b"".join(message.body)


async def queued(target: Endpoints) -> list[ServiceBusReceivedMessage]:
    return await asyncio.to_thread(received, target)


def content(messages: list[ServiceBusReceivedMessage]) -> dict[int, bytes]:
    """The payloads by offset; duplicates are equal."""
    batches = [decode(body_of(message)) for message in messages]
    return {batch.header.offset: batch.payload for batch in batches}


# ------------------------------------------------------------ what arrives


async def test_batches_arrive_as_they_were_packed(target: Endpoints, sender: Publisher) -> None:
    payload = stream(1, 1_000_000)
    batches = packed(payload, sender.limit)
    accepted: list[Header] = []
    for batch in batches:
        accepted += await sender.send(batch)
    assert len(accepted) < len(batches)
    accepted += await sender.flush()
    assert accepted == [batch.header for batch in batches]
    messages = await queued(target)
    assert b"".join(body for _, body in sorted(content(messages).items())) == payload
    assert [m.message_id for m in messages] == [batch_id(*_named(batch)) for batch in batches]
    for message in messages:
        assert message.application_properties == {b"content_encoding": b"zstd"}
        assert len(body_of(message)) <= sender.limit
    assert sender.sent_bytes == sum(len(body_of(message)) for message in messages)


def _named(batch: Packed) -> tuple[Header, str]:
    return batch.header, batch.sha256


async def test_what_is_accepted_is_in_the_queue_and_nothing_else(
    target: Endpoints, sender: Publisher
) -> None:
    accepted: list[Header] = []
    for batch in packed(stream(2, 400_000), 135_000):
        accepted += await sender.send(batch)
    assert accepted
    assert [decode(body_of(m)).header for m in await queued(target)] == accepted
    accepted += await sender.flush()
    assert [decode(body_of(m)).header for m in await queued(target)] == accepted
    assert await sender.flush() == []


async def test_small_batches_share_transfers(
    target: Endpoints, sender: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = 0
    assert sender._sender is not None
    real = sender._sender.send_messages

    async def counted(*arguments: Any, **named: Any) -> None:
        nonlocal transfers
        transfers += 1
        await real(*arguments, **named)

    monkeypatch.setattr(sender._sender, "send_messages", counted)
    for number in range(300):
        await sender.send(pack_whole(header(kind="tail", offset=number), b"%d" % number))
    await sender.flush()
    assert len(await queued(target)) == 300
    assert transfers <= 3


async def test_no_more_than_some_batches_are_held_back(
    sender: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 10)
    tails = [pack_whole(header(kind="tail", offset=number), b"x") for number in range(25)]
    accepted = [len(await sender.send(tail)) for tail in tails]
    assert [number for number, size in enumerate(accepted) if size] == [10, 20]
    assert len(await sender.flush()) == 5


async def test_messages_fill_the_links_own_limit(target: Endpoints, sender: Publisher) -> None:
    assert sender.limit == 262_144 - module.PROPERTY_ROOM
    largest = max(packed(stream(3, 600_000), sender.limit), key=lambda p: len(p.compressed))
    assert len(largest.compressed) > 0.7 * sender.limit
    await sender.send(largest)
    await sender.flush()
    assert len(await queued(target)) == 1


async def test_messages_that_just_fit_together_are_taken_by_the_queue(
    target: Endpoints, sender: Publisher
) -> None:
    """The SDK counts a group's transfer too small by what it repeats of the first message."""
    sender._retry_seconds = 1
    first = pack_whole(header(kind="metadata", session_id="a"), random_line(130_000))
    second = 262_144 - len(_encoded(first)) - 1500
    sizes = range(second, second + 1500, 40)
    for size in sizes:
        await sender.send(first)
        await sender.send(pack_whole(header(kind="metadata", session_id="b"), random_line(size)))
        await sender.flush()
    assert len(await queued(target)) == 2 * len(sizes)


# ------------------------------------------------------------ the inbox


def random_line(size: int) -> bytes:
    return random.Random(size).randbytes(size).replace(b"\n", b"n") + b"\n"


def just_fitting(limit: int) -> Packed:
    """A line whose message has the size that the publisher allows, but for some bytes."""
    (batch,) = packed(random_line(limit), 10**7, session_id="exact")
    (batch,) = packed(random_line(2 * limit - len(_encoded(batch)) - 9), 10**7, session_id="exact")
    assert limit - 18 <= len(_encoded(batch)) <= limit
    return batch


def _encoded(batch: Packed) -> bytes:
    from sessionferry.batch import encode_parts

    return encode_parts(batch.header, batch.compressed)


@pytest.mark.parametrize(
    "line",
    [random_line(400_000), random_line(262_144), b"x" * 20_000_000 + b"\n"],
    ids=["large", "just too large", "too large when unpacked"],
)
async def test_a_batch_too_large_goes_to_the_inbox_and_its_message_claims_it(
    target: Endpoints, sender: Publisher, line: bytes
) -> None:
    (batch,) = packed(line)
    assert await sender.send(batch) == []
    assert await sender.flush() == [batch.header]
    (message,) = await queued(target)
    announced = decode(body_of(message))
    assert announced.payload == b""
    claim = announced.header.claim
    assert claim is not None
    body = await Archive.open(target.inbox).get(inbox_key(batch.header, claim.sha256))
    assert (len(body), hashlib.sha256(body).hexdigest()) == (claim.size, claim.sha256)
    assert decode(body, claimed=True).payload == line
    assert message.message_id == batch_id(batch.header, batch.sha256)
    without = announced.header.model_copy(update={"claim": None})
    assert without == batch.header


async def test_a_message_at_the_limit_is_sent_alone(target: Endpoints, sender: Publisher) -> None:
    exact = just_fitting(sender.limit)
    small = pack_whole(header(kind="tail"), b"small")
    accepted = [*await sender.send(small), *await sender.send(exact), *await sender.send(small)]
    accepted += await sender.flush()
    assert accepted == [small.header, exact.header, small.header]
    messages = await queued(target)
    assert [decode(body_of(m)).header.claim for m in messages] == [None] * 3


# ------------------------------------------------------------ ids


async def test_ids_are_equal_for_equal_content(target: Endpoints) -> None:
    async with Publisher(target) as sender:
        for changes in ({}, {"agent": "other", "host_id": "h2"}, {"generation": 1}):
            (batch,) = packed(b'{"a":1}\n', session_id="same", **changes)
            await sender.send(batch)
        await sender.flush()
    first, second, other = [message.message_id for message in await queued(target)]
    assert first == second
    assert first != other


async def test_what_is_sent_again_on_purpose_is_marked(target: Endpoints) -> None:
    (batch,) = packed(b'{"a":1}\n')
    async with Publisher(target, resend=True) as sender:
        await sender.send(batch)
        await sender.send(batch)
        await sender.flush()
    one, two = [str(message.message_id) for message in await queued(target)]
    assert one != two
    expected = batch_id(batch.header, batch.sha256) + REPLAY_MARK
    assert one.startswith(expected)
    assert two.startswith(expected)
    assert len(one) <= 128


# ------------------------------------------------------------ faults


async def test_a_broker_that_is_killed_and_restarted_loses_nothing(tmp_path: Path) -> None:
    with RunningBroker(tmp_path / "broker", [{"name": name} for name in QUEUES]) as broker:
        target = endpoints_of(broker, tmp_path)
        payload = stream(5, 600_000)
        accepted: list[Header] = []
        batches = packed(payload, 150_000)
        async with Publisher(target, retry_seconds=30) as sender:
            for number, batch in enumerate(batches):
                if number == 2:
                    await asyncio.to_thread(broker.kill)
                    await asyncio.to_thread(broker.start)
                accepted += await sender.send(batch)
            accepted += await sender.flush()
        assert accepted == [batch.header for batch in batches]
        arrived = content(await queued(target))
        assert b"".join(arrived[offset] for offset in sorted(arrived)) == payload
        forget_leaked_sockets()


async def test_batches_are_held_until_the_broker_is_back(tmp_path: Path) -> None:
    with RunningBroker(tmp_path / "broker", [{"name": name} for name in QUEUES]) as broker:
        target = endpoints_of(broker, tmp_path)
        batches = packed(stream(6, 600_000), 200_000)
        async with Publisher(target, retry_seconds=0) as sender:
            assert await sender.send(batches[0]) == []
            await asyncio.to_thread(broker.kill)
            with pytest.raises(TransientError, match="queue"):
                await sender.send(batches[1])
            await asyncio.to_thread(broker.start)
            assert await sender.send(batches[1]) == [batches[0].header]
            assert await sender.flush() == [batches[1].header]
        assert [decode(body_of(m)).header for m in await queued(target)] == [
            batches[0].header,
            batches[1].header,
        ]
        forget_leaked_sockets()


# The SDK leaves its socket open, which is closed after the loop that it belongs to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_queue_that_never_answers_is_not_waited_for(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 1.0)

    async def said_of(port: int) -> str:
        connection = SecretStr(connection_string(port))
        try:
            async with Publisher(
                endpoints_of(broker, tmp_path, connection=connection), retry_seconds=0.1
            ):
                return ""
        except TransientError as error:
            return str(error)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer within 1 s" in await said_of(silent.getsockname()[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_link_that_falls_silent_is_given_up_and_its_batch_sent_again(
    broker: RunningBroker, target: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKEN_SECONDS", 1.0)
    packed = pack_whole(header(kind="metadata", stream=None), b"{}")
    async with Publisher(target, retry_seconds=0.5) as sender:
        await sender.send(packed)
        with broker.frozen(), pytest.raises(TransientError, match="within 1 s"):
            await sender.flush()
        assert await sender.flush() == [packed.header]
    assert {decode(body_of(m)).payload for m in await queued(target)} == {b"{}"}


async def test_a_queue_that_is_not_there_is_named(broker: RunningBroker, tmp_path: Path) -> None:
    target = endpoints_of(broker, tmp_path).model_copy(update={"queue": "nope"})
    with pytest.raises(UserError, match=r"There is no queue nope .*FERRY_QUEUE names it"):
        async with Publisher(target):
            pass


async def test_a_wrong_key_is_one_clear_sentence_without_the_key(
    broker: RunningBroker, tmp_path: Path
) -> None:
    wrong = "d3Jvbmcta2V5LWJ1dC1zdGlsbC1hLXNlY3JldA=="
    target = endpoints_of(
        broker, tmp_path, connection=SecretStr(connection_string(broker.port, key=wrong))
    )
    with pytest.raises(UserError) as raised:
        async with Publisher(target):
            pass
    assert "Its key or token is not valid there" in str(raised.value)
    assert "\n" not in str(raised.value)
    for secret in (wrong, KEY):
        assert secret not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("text", ["nonsense", "Endpoint=sb://x/;SharedAccessKey=c2VjcmV0"])
async def test_a_malformed_connection_string_is_not_quoted(tmp_path: Path, text: str) -> None:
    target = Endpoints(
        queue="q",
        connection=SecretStr(text),
        namespace=None,
        store_url=None,
        archive_url=None,
        inbox_url=(tmp_path / "inbox").as_uri(),
        local=None,
    )
    with pytest.raises(UserError, match="not a connection string") as raised:
        async with Publisher(target):
            pass
    assert text not in str(raised.value)


async def test_without_a_queue_there_is_a_sentence(tmp_path: Path) -> None:
    target = Endpoints(
        queue="q",
        connection=None,
        namespace=None,
        store_url=None,
        archive_url=None,
        inbox_url=(tmp_path / "inbox").as_uri(),
        local=None,
    )
    with pytest.raises(UserError, match="No queue is named"):
        async with Publisher(target):
            pass


async def test_a_broker_that_is_not_there_is_a_passing_fault(tmp_path: Path) -> None:
    target = Endpoints(
        queue="q",
        connection=SecretStr(connection_string(1)),
        namespace=None,
        store_url=None,
        archive_url=None,
        inbox_url=(tmp_path / "inbox").as_uri(),
        local=None,
    )
    with pytest.raises(TransientError, match="queue cannot be reached"):
        async with Publisher(target, retry_seconds=0):
            pass
