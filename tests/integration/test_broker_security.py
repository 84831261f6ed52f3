"""Who may do what: keys are verified for real, and a hostile client harms only itself."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.exceptions import ServiceBusAuthenticationError, ServiceBusAuthorizationError

from sessionferry.local.broker import Broker, QueueDefinition, SasRule
from support.broker import KEY, RunningBroker, connection_string, forget_leaked_sockets


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    yield
    forget_leaked_sockets()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with RunningBroker(tmp_path_factory.mktemp("broker"), [{"name": "q"}]) as running:
        yield running


def send(connection: str, queue: str = "q") -> None:
    with (
        ServiceBusClient.from_connection_string(connection, retry_total=0) as client,
        client.get_queue_sender(queue, keep_alive=0) as sender,
    ):
        sender.send_messages(ServiceBusMessage("hello"))


def receive(connection: str) -> None:
    with (
        ServiceBusClient.from_connection_string(connection, retry_total=0) as client,
        client.get_queue_receiver("q", keep_alive=0, prefetch_count=1) as receiver,
    ):
        assert receiver.receive_messages(1, max_wait_time=5)


@pytest.mark.parametrize("wrong", [{"key": KEY[:-2] + "A="}, {"key_name": "Another"}])
def test_a_wrong_key_is_refused(broker: RunningBroker, wrong: dict[str, str]) -> None:
    with pytest.raises(ServiceBusAuthenticationError):
        send(connection_string(broker.port, **wrong))


def test_an_unknown_queue_is_an_authentication_error(broker: RunningBroker) -> None:
    with pytest.raises(ServiceBusAuthenticationError):
        send(broker.connection_string, "unknown")


def test_neither_key_nor_token_is_logged(broker: RunningBroker) -> None:
    send(broker.connection_string)
    log = (broker.directory / "broker.log").read_text()
    assert KEY not in log
    assert "SharedAccessSignature" not in log


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[int]:
    rules = [
        SasRule("sender", KEY, frozenset({"send"})),
        SasRule("listener", KEY, frozenset({"listen"})),
    ]
    broker = Broker(tmp_path, lambda name: QueueDefinition(name=name), rules)
    yield await broker.start()
    await broker.close()


async def test_a_key_grants_no_other_right(limited: int) -> None:
    sender = connection_string(limited, key_name="sender")
    listener = connection_string(limited, key_name="listener")
    await asyncio.to_thread(send, sender)
    await asyncio.to_thread(receive, listener)
    with pytest.raises(ServiceBusAuthorizationError, match="'Listen' claim"):
        await asyncio.to_thread(receive, sender)
    with pytest.raises(ServiceBusAuthorizationError, match="'Send' claim"):
        await asyncio.to_thread(send, listener)


AMQP = b"AMQP\x00\x01\x00\x00"
SASL = b"AMQP\x03\x01\x00\x00"
INIT = bytes.fromhex("00000018020100000053 41c00b01a309414e4f4e594d4f5553".replace(" ", ""))


def frame(channel: int, performative: bytes) -> bytes:
    return struct.pack(">IBBH", len(performative) + 8, 2, 0, channel) + performative


OPEN = frame(0, bytes.fromhex("005310c00401a10178"))
BEGIN = frame(0, bytes.fromhex("005311c0060440434370ff".replace("70ff", "52ff")))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"\x00" * 4096, id="zeros"),
        pytest.param(SASL + INIT + AMQP + b"\xff" * 64, id="a frame of four gigabytes"),
        pytest.param(SASL + INIT + AMQP + OPEN + frame(0, b"\x00" * 50), id="descriptors only"),
        pytest.param(SASL + INIT + AMQP + OPEN + frame(7, b"\x00S\x14\x45"), id="no such channel"),
        pytest.param(
            SASL + INIT + AMQP + OPEN + BEGIN + frame(0, b"\x00S\x12\xc0\x03\x02\xa1\x00"),
            id="a truncated attach",
        ),
        pytest.param(SASL + INIT + AMQP + os.urandom(2000), id="noise"),
    ],
)
def test_a_hostile_client_harms_only_itself(broker: RunningBroker, hostile: bytes) -> None:
    with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as peer:
        peer.sendall(hostile)
        peer.shutdown(socket.SHUT_WR)
        try:
            while peer.recv(65_536):
                pass
        except ConnectionResetError:
            pass
    send(broker.connection_string)


def test_a_broken_key_file_is_one_sentence(tmp_path: Path) -> None:
    running = RunningBroker(tmp_path, [{"name": "q"}])
    for content, said in (("{}", "must be a JSON object"), (None, "cannot be read")):
        if content is None:
            running.key_file.unlink()
        else:
            running.key_file.write_text(content)
        done = subprocess.run(
            running.command(), capture_output=True, text=True, timeout=20, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_misspelt_option_is_one_sentence(tmp_path: Path) -> None:
    running = RunningBroker(tmp_path, [{"name": "q", "lockduration": "PT5M"}])
    done = subprocess.run(
        running.command(), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Queue 'q' has unknown options: lockduration.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_broker_with_success(tmp_path: Path, number: int) -> None:
    running = RunningBroker(tmp_path, [{"name": "q"}])
    running.start()
    with (
        ServiceBusClient.from_connection_string(running.connection_string) as client,
        client.get_queue_sender("q", keep_alive=0) as sender,
    ):
        sender.send_messages(ServiceBusMessage("hello"))
        started = time.monotonic()
        assert running.stop(number) == 0
        assert time.monotonic() - started < 2
