"""What was acknowledged survives, and what was held by the dead comes back."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient as AsyncClient

from support.broker import RunningBroker, forget_leaked_sockets

QUEUES = [{"name": "q", "lockDuration": "PT2S"}, {"name": "large", "lockDuration": "PT5M"}]


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    yield
    forget_leaked_sockets()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with RunningBroker(tmp_path, QUEUES) as running:
        yield running


def receive_all(connection: str, queue: str = "q") -> list[tuple[str, int]]:
    """Body and delivery count of everything there is, completed."""
    found = []
    with (
        ServiceBusClient.from_connection_string(connection) as client,
        client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver,
    ):
        while more := receiver.receive_messages(100, max_wait_time=1):
            for message in more:
                receiver.complete_message(message)
                found.append((str(message), message.delivery_count))
    return found


async def send_until_it_dies(connection: str, acknowledged: set[str]) -> None:
    async def one(name: int) -> None:
        async with (
            AsyncClient.from_connection_string(connection, retry_total=0) as client,
            client.get_queue_sender("q", keep_alive=0) as sender,
        ):
            for number in range(10_000):
                await sender.send_messages(ServiceBusMessage(f"{name}-{number}"))
                acknowledged.add(f"{name}-{number}")

    await asyncio.gather(*(one(name) for name in range(4)), return_exceptions=True)


async def test_no_acknowledged_message_is_lost_by_kill_nine(broker: RunningBroker) -> None:
    acknowledged: set[str] = set()
    sending = asyncio.create_task(send_until_it_dies(broker.connection_string, acknowledged))
    async with asyncio.timeout(20):
        while len(acknowledged) < 200:  # noqa: ASYNC110 - the sender knows of no event
            await asyncio.sleep(0.01)
    broker.kill()
    await sending
    del sending
    forget_leaked_sockets()
    broker.start()
    found = [body for body, _ in await asyncio.to_thread(receive_all, broker.connection_string)]
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))


def test_no_completed_message_returns_after_kill_nine(broker: RunningBroker) -> None:
    with ServiceBusClient.from_connection_string(broker.connection_string) as client:
        with client.get_queue_sender("q", keep_alive=0) as sender:
            sender.send_messages([ServiceBusMessage(str(number)) for number in range(10)])
        with client.get_queue_receiver("q", keep_alive=0, prefetch_count=10) as receiver:
            completed = 0
            while completed < 5:
                for message in receiver.receive_messages(5 - completed, max_wait_time=5):
                    receiver.complete_message(message)
                    completed += 1
            broker.kill()
    forget_leaked_sockets()
    broker.start()
    found = receive_all(broker.connection_string)
    assert [body for body, _ in found] == [str(number) for number in range(5, 10)]


def test_a_delivery_before_the_crash_counts(broker: RunningBroker) -> None:
    with ServiceBusClient.from_connection_string(broker.connection_string) as client:
        with client.get_queue_sender("q", keep_alive=0) as sender:
            sender.send_messages(ServiceBusMessage("held"))
        with client.get_queue_receiver("q") as receiver:
            assert receiver.receive_messages(1, max_wait_time=5)
            broker.kill()
    forget_leaked_sockets()
    broker.start()
    assert receive_all(broker.connection_string) == [("held", 1)]


HOLD_A_MESSAGE = """
import sys, time
from azure.servicebus import ServiceBusClient
with ServiceBusClient.from_connection_string(sys.argv[1]) as client:
    with client.get_queue_receiver("q") as receiver:
        print(len(receiver.receive_messages(1, max_wait_time=5)), flush=True)
        time.sleep(60)
"""


def test_the_lock_of_a_killed_receiver_holds_until_it_expires(broker: RunningBroker) -> None:
    with ServiceBusClient.from_connection_string(broker.connection_string) as client:
        with client.get_queue_sender("q", keep_alive=0) as sender:
            sender.send_messages(ServiceBusMessage("held"))
        command = [sys.executable, "-c", HOLD_A_MESSAGE, broker.connection_string]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"1\n"
            holder.kill()
        with client.get_queue_receiver("q") as receiver:
            assert receiver.receive_messages(1, max_wait_time=0.5) == []
            (message,) = receiver.receive_messages(1, max_wait_time=5)
            assert message.delivery_count == 1


async def test_a_client_carries_on_after_a_restart(broker: RunningBroker) -> None:
    async with (
        AsyncClient.from_connection_string(broker.connection_string) as client,
        client.get_queue_sender("q", keep_alive=0) as sender,
        client.get_queue_receiver("q") as inbox,
    ):
        await sender.send_messages(ServiceBusMessage("before"))
        (message,) = await inbox.receive_messages(1, max_wait_time=5)
        await inbox.complete_message(message)
        broker.stop()
        broker.start()
        await sender.send_messages(ServiceBusMessage("after"))
        (message,) = await inbox.receive_messages(1, max_wait_time=10)
        assert str(message) == "after"
        await inbox.complete_message(message)


async def test_waiting_receivers_take_turns(broker: RunningBroker) -> None:
    async with (
        AsyncClient.from_connection_string(broker.connection_string) as client,
        client.get_queue_sender("q", keep_alive=0) as sender,
        client.get_queue_receiver("q") as first,
        client.get_queue_receiver("q") as second,
    ):
        waiting = [
            asyncio.create_task(receiver.receive_messages(1, max_wait_time=10))
            for receiver in (first, second)
        ]
        await asyncio.sleep(0.5)
        await sender.send_messages([ServiceBusMessage("1"), ServiceBusMessage("2")])
        found = [str(message) for (message,) in await asyncio.gather(*waiting)]
        assert sorted(found) == ["1", "2"]


async def test_a_waiting_receiver_gets_a_message_at_once(broker: RunningBroker) -> None:
    async with (
        AsyncClient.from_connection_string(broker.connection_string) as client,
        client.get_queue_sender("q", keep_alive=0) as sender,
        client.get_queue_receiver("q") as inbox,
    ):
        waiting = asyncio.create_task(inbox.receive_messages(1, max_wait_time=10))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await sender.send_messages(ServiceBusMessage("now"))
        (message,) = await waiting
        assert time.monotonic() - started < 1
        await inbox.complete_message(message)


def test_a_backlog_stays_on_disk(broker: RunningBroker) -> None:
    process = psutil.Process(broker.pid)
    body = os.urandom(240 * 1024)
    with ServiceBusClient.from_connection_string(broker.connection_string) as client:
        with client.get_queue_sender("large", keep_alive=0) as sender:
            sender.send_messages(ServiceBusMessage(body))
            before = process.memory_info().rss
            for _ in range(300):
                sender.send_messages(ServiceBusMessage(body))
        with client.get_queue_receiver("large", keep_alive=0, prefetch_count=300) as receiver:
            assert receiver.receive_messages(1, max_wait_time=5)
            time.sleep(0.5)
            assert process.memory_info().rss - before < 40 << 20


def test_a_second_broker_cannot_take_the_same_directory(broker: RunningBroker) -> None:
    second = RunningBroker(broker.directory, QUEUES)
    with pytest.raises(AssertionError, match="cannot start"):
        second.start()
    with (
        ServiceBusClient.from_connection_string(broker.connection_string) as client,
        client.get_queue_sender("q", keep_alive=0) as sender,
    ):
        sender.send_messages(ServiceBusMessage("still here"))
