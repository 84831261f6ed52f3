"""The agent on a machine: memory and speed while it catches up, and what it costs when idle."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import orjson
import psutil
from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure, Unsettled
from tests.benchmarks.stack import BenchStack, PeakMemory

IDLE_FILES = 2_000
IDLE_SECONDS = 30.0
_CHUNK = 1024 * 1024


def measure(folder: Path, megabytes: int, runs: int) -> Iterator[Figure]:
    """One file of that size, of raw requests, and many small ones; the function app is stopped."""
    yield from _start_up(runs)
    with TemporaryDirectory(prefix="ferry-bench-agent-") as name:
        home = Path(name) / "home"
        size = _write(folder, home, megabytes)
        yield from asyncio.run(_follow(Path(name), home, size))


def _start_up(runs: int) -> Iterator[Figure]:
    """`ferry --help`: the fastest run, and the processor time of all that were measured."""
    command = [sys.executable, "-m", "sessionferry.cli", "--help"]
    wall, cpu = [], []
    for _ in range(2 + 3 * runs):
        before = os.times()
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall.append((time.perf_counter() - began) * 1000)
        after = os.times()
        used = after.children_user + after.children_system
        cpu.append((used - before.children_user - before.children_system) * 1000)
    yield Figure("cli_help_ms", min(wall), "ms")
    yield Figure("cli_help_cpu_ms", median(cpu), "ms")


def _write(folder: Path, home: Path, megabytes: int) -> int:
    """Put the fleet's events one after another into one file, again and again."""
    sessions = home / "projects" / "-bench" / "sessions"
    large = sessions / "large" / "events.jsonl"
    large.parent.mkdir(parents=True)
    sources = [one.path for one in fleets.streams(folder) if one.stream == "events"]
    with large.open("wb") as out:
        while out.tell() < megabytes * 1_000_000:
            for path in sources:
                with path.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        out.write(chunk)
    for number in range(IDLE_FILES):
        path = sessions / f"small-{number}" / "transcript.jsonl"
        path.parent.mkdir()
        path.write_bytes(b'{"role":"user","content":"hello"}\n')
    return large.stat().st_size


async def _follow(folder: Path, home: Path, size: int) -> list[Figure]:
    async with BenchStack(folder / "stack") as stack:
        await stack.stop_consumer()
        environment = os.environ | {
            "FERRY_DATA": str(stack.settings.data),
            "FERRY_IDENTITY": str(stack.settings.identity),
        }
        command = [sys.executable, "-m", "sessionferry.cli"]
        began = time.perf_counter()
        agent = await asyncio.create_subprocess_exec(
            *(*command, "ship", str(home), "--watch"),
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            process = psutil.Process(agent.pid)
            with PeakMemory({"agent": agent.pid}) as memory:
                while not await _has_sent(command, environment, home):
                    if time.perf_counter() - began > 600:
                        raise Unsettled("The agent did not send everything in ten minutes.")
                    await asyncio.sleep(1)
                taken = time.perf_counter() - began
                busy = sum(process.cpu_times()[:2])
                await asyncio.sleep(5)
                before = sum(process.cpu_times()[:2])
                await asyncio.sleep(IDLE_SECONDS)
                idle = sum(process.cpu_times()[:2]) - before
                resident = process.memory_info().rss
        finally:
            agent.terminate()
            await agent.wait()
    return [
        Figure("agent_peak_memory", memory.peaks["agent"] / 2**20, "MiB"),
        Figure("agent_idle_memory", resident / 2**20, "MiB"),
        Figure("agent_catch_up_speed", size / taken / 1e6, "MB/s"),
        Figure("agent_cpu_seconds_per_gb", busy / (size / 1e9), "s"),
        Figure("agent_idle_cpu_percent", idle / IDLE_SECONDS * 100, "%"),
    ]


async def _has_sent(command: list[str], environment: dict[str, str], home: Path) -> bool:
    """Whether the spool says that everything was read and sent; the store is not asked."""
    status = await asyncio.create_subprocess_exec(
        *(*command, "status", str(home), "--json"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await status.communicate()
    if status.returncode != 0:
        return False
    found = orjson.loads(out)
    waits = sum(file["lag_bytes"] + file["spooled"] for file in found["files"])
    return waits == 0 and found["ledger"]["files"] == IDLE_FILES + 1
