"""A backlog: time and memory to work off N and 10 N messages that waited."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks.figures import Figure
from tests.benchmarks.stack import BenchStack, PeakMemory

from sessionferry.batch import Header
from sessionferry.packing import Place, pack
from sessionferry.publisher import Publisher

LINES_PER_MESSAGE = 20
MESSAGES_PER_SESSION = 10
TEN = "a tenth of the messages"


class Drained(NamedTuple):
    """How one backlog was worked off: after the first messages, so without the cold start."""

    seconds_each: float
    peaks: dict[str, int]


def measure(lines: list[bytes], messages: int, runs: int) -> Iterator[Figure]:
    """Compare a backlog with one ten times as long."""
    rounds = [
        (asyncio.run(_drain(lines, messages)), asyncio.run(_drain(lines, 10 * messages)))
        for _ in range(runs)
    ]
    ratio = median(10 * long.seconds_each / short.seconds_each for short, long in rounds)
    yield Figure("backlog_time_ratio_10x", ratio, "ratio", TEN)
    speed = median(1 / long.seconds_each for _, long in rounds)
    yield Figure("backlog_messages_per_second", speed, "messages/s")
    ratios: list[float] = []
    for name in rounds[0][0].peaks:
        for length, column in ((messages, 0), (10 * messages, 1)):
            peak = median(row[column].peaks[name] for row in rounds)
            yield Figure(f"backlog_memory_{name}_{length}", peak / 2**20, "MiB")
        ratios.append(median(long.peaks[name] / short.peaks[name] for short, long in rounds))
    yield Figure("backlog_memory_ratio_10x", max(ratios), "ratio", TEN)


async def _drain(lines: list[bytes], messages: int) -> Drained:
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        async with BenchStack(Path(name)) as stack, stack.receiver() as receiver:
            await stack.stop_consumer()
            with PeakMemory(stack.pids()) as filling:
                await _fill(stack, lines, messages)
            await stack.start_consumer()
            with PeakMemory(stack.pids()) as memory:
                left = messages - await stack.begun(receiver)
                began = time.perf_counter()
                await stack.until_empty(receiver)
                taken = time.perf_counter() - began
            await stack.check_lines(messages * LINES_PER_MESSAGE)
            broker = max(filling.peaks["broker"], memory.peaks["broker"])
            return Drained(taken / left, {**memory.peaks, "broker": broker})


async def _fill(stack: BenchStack, lines: list[bytes], messages: int) -> None:
    async with Publisher(stack.endpoints) as publisher:
        place = Place()
        for number in range(messages):
            session, part = divmod(number, MESSAGES_PER_SESSION)
            place = place if part else Place()
            start = number * LINES_PER_MESSAGE
            chosen = (lines[n % len(lines)] for n in range(start, start + LINES_PER_MESSAGE))
            block = b"".join(line + b"\n" for line in chosen)
            for packed in pack(_header(session), [block], publisher.limit, place):
                await publisher.send(packed)
            place = Place(place.offset + len(block), place.sequence + LINES_PER_MESSAGE)
        await publisher.flush()


def _header(session: int) -> Header:
    return Header(
        kind="lines",
        stream="events",
        user_id="mara",
        host_id="birch-01",
        project_slug="backlog",
        session_id=f"session-{session:06d}",
        format="amplifier",
    )
