"""The broker through the real client: messages per second, sent one by one, then received."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.exceptions import MessageSizeExceededError
from tests.benchmarks.figures import Figure, Unsettled
from tests.benchmarks.stack import BenchStack

SIZES_KB = {1: 300, 60: 150, 240: 60}
"""Message sizes, and how many messages of each are measured."""
RECEIVED_AT_ONCE = 16
DEPTH_SAMPLE = 800


def measure(runs: int) -> Iterator[Figure]:
    """Each message is acknowledged durably; receiving includes completing."""
    for kilobytes, rounds in asyncio.run(_all_sizes(runs)).items():
        sent, received = (median(column) for column in zip(*rounds, strict=True))
        yield Figure(f"broker_send_{kilobytes}kb", sent, "messages/s")
        yield Figure(f"broker_receive_{kilobytes}kb", received, "messages/s")


def measure_depth(depth: int) -> Iterator[Figure]:
    """The broker's memory, speed and restart with a very long queue."""
    shallow, deep = (asyncio.run(_at_depth(messages)) for messages in (depth // 10, depth))
    yield Figure("broker_depth", depth, "messages")
    compared = f"a queue of {depth // 10:,} messages"
    for name in ("receive", "memory", "restart"):
        yield Figure(f"broker_depth_{name}", deep[name] / shallow[name], "ratio", compared)


async def _at_depth(messages: int) -> dict[str, float]:
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        async with BenchStack(Path(name)) as stack:
            await stack.stop_consumer()
            described = stack.described
            async with ServiceBusClient.from_connection_string(described.connection) as client:
                async with client.get_queue_sender(described.queue) as sender:
                    await _fill(sender, messages)
                found = {"receive": await _receive_some(client, described.queue)}
            found["memory"] = psutil.Process(stack.pids()["broker"]).memory_info().rss
            began = time.perf_counter()
            await stack.restart_broker()
            return found | {"restart": time.perf_counter() - began}


async def _fill(sender: ServiceBusSender, messages: int) -> None:
    message = ServiceBusMessage(os.urandom(1000))
    sent = 0
    while sent < messages:
        group = await sender.create_message_batch()
        while sent < messages:
            try:
                group.add_message(message)
            except MessageSizeExceededError:
                break
            sent += 1
        await sender.send_messages(group)


async def _receive_some(client: ServiceBusClient, queue: str) -> float:
    """Messages per second, completed one by one, from the head of the queue."""
    async with client.get_queue_receiver(queue) as receiver:
        began = time.perf_counter()
        done = 0
        while done < DEPTH_SAMPLE:
            for message in await receiver.receive_messages(RECEIVED_AT_ONCE, max_wait_time=10):
                await receiver.complete_message(message)
                done += 1
        return done / (time.perf_counter() - began)


async def _all_sizes(runs: int) -> dict[int, list[tuple[float, float]]]:
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES_KB}
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        async with BenchStack(Path(name)) as stack:
            await stack.stop_consumer()
            for _ in range(runs):
                for size, count in SIZES_KB.items():
                    found[size].append(await _one_size(stack, size * 1024, count))
    return found


async def _one_size(stack: BenchStack, size: int, count: int) -> tuple[float, float]:
    described = stack.described
    body = os.urandom(size - 1024 if size > 200 * 1024 else size)
    async with ServiceBusClient.from_connection_string(described.connection) as client:
        async with client.get_queue_sender(described.queue) as sender:
            began = time.perf_counter()
            for _ in range(count):
                await sender.send_messages(ServiceBusMessage(body))
            sent = count / (time.perf_counter() - began)
        async with client.get_queue_receiver(described.queue) as receiver:
            began = time.perf_counter()
            left = count
            while left:
                messages = await receiver.receive_messages(RECEIVED_AT_ONCE, max_wait_time=10)
                if not messages:
                    raise Unsettled(f"The broker kept {left} of {count} messages.")
                for message in messages:
                    await receiver.complete_message(message)
                left -= len(messages)
            return sent, count / (time.perf_counter() - began)
