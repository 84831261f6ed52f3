"""The whole local path against storing line by line, and the memory of its processes."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import orjson
from tests.benchmarks import core, fleets
from tests.benchmarks.figures import Figure, Unsettled, seconds
from tests.benchmarks.peer import Peer
from tests.benchmarks.stack import BenchStack, PeakMemory

from sessionferry.agent.discover import discover
from sessionferry.cli.ship import ship_sources
from sessionferry.host import Identity

PER_LINE = "one awaited upsert and one durable commit per line"
PER_FILE = "one awaited upsert per line, one commit per file"


def measure(folder: Path, suffix: str, runs: int, sample: int) -> Iterator[Figure]:
    """Lines per second from the start of shipping until all is stored, beside the baseline."""
    files = [_lines(source.path) for source in fleets.streams(folder)]
    every = max(1, sum(map(len, files)) // sample)
    sampled = [lines[::every] for lines in files]
    rounds = [
        (
            asyncio.run(_through_the_stack(folder)),
            asyncio.run(_line_by_line(sampled, commit_each=True)),
            asyncio.run(_line_by_line(files, commit_each=False)),
            _least(files),
        )
        for _ in range(runs)
    ]
    ours, each, whole, _ = (median(column) for column in zip(*rounds, strict=True))
    yield Figure(f"local_path_lines_per_second{suffix}", ours, "lines/s")
    yield Figure(f"line_by_line_lines_per_second{suffix}", each, "lines/s")
    yield Figure(f"file_by_file_lines_per_second{suffix}", whole, "lines/s")
    ratio = median(row[0] / row[1] for row in rounds)
    yield Figure(f"local_path_ratio_to_line_by_line{suffix}", ratio, "ratio", PER_LINE)
    # What the ratio would be if storing were nothing but parsing, rendering and hashing each line.
    ceiling = median(row[3] / row[1] for row in rounds)
    yield Figure(f"local_path_ratio_ceiling{suffix}", ceiling, "ratio", PER_LINE)
    ratio = median(row[0] / row[2] for row in rounds)
    yield Figure(f"local_path_ratio_to_file_by_file{suffix}", ratio, "ratio", PER_FILE)


def measure_memory(folder: Path) -> Iterator[Figure]:
    """The most memory that each process ever held while a fleet was shipped."""
    for name, peak in asyncio.run(_memory(folder)).items():
        yield Figure(f"peak_memory_{name}", peak / 2**20, "MiB")


async def _through_the_stack(fleet: Path) -> float:
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        async with BenchStack(Path(name)) as stack:
            identity = Identity(stack.settings.identity, host_id="birch-01")
            sources = discover([fleet], identity.user_id, None)
            # A running stack: its function has opened the store, as with any later message.
            await ship_sources(stack.settings, identity, [])
            async with stack.receiver() as receiver:
                await stack.until_empty(receiver)
            began = time.perf_counter()
            report = await ship_sources(stack.settings, identity, sources)
            await stack.until_stored(report.lines)
            taken = time.perf_counter() - began
            return report.lines / taken


def _least(files: list[list[bytes]]) -> float:
    """Lines per second of what no way of storing them can leave out, on one core."""
    lines = [line for file in files for line in file]
    return len(lines) / seconds(lambda: (core.parse_and_render(lines), core.hash_each(lines)))


async def _line_by_line(files: list[list[bytes]], *, commit_each: bool) -> float:
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        peer = Peer(Path(name) / "peer.db")
        began = time.perf_counter()
        for number, lines in enumerate(files):
            await peer.store(f"session-{number}", lines, commit_each=commit_each)
        taken = time.perf_counter() - began
        peer.close()
    return sum(map(len, files)) / taken


async def _memory(fleet: Path) -> dict[str, int]:
    with TemporaryDirectory(prefix="ferry-bench-") as name:
        async with BenchStack(Path(name)) as stack, stack.receiver() as receiver:
            ship = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sessionferry.cli", "ship", str(fleet), "--json"),
                env=os.environ
                | {
                    "FERRY_DATA": str(stack.settings.data),
                    "FERRY_IDENTITY": str(stack.settings.identity),
                },
                stdout=asyncio.subprocess.PIPE,
            )
            with PeakMemory({"ship": ship.pid, **stack.pids()}) as memory:
                out, _ = await ship.communicate()
                if ship.returncode != 0:
                    raise Unsettled(f"`ferry ship` ended with {ship.returncode}.")
                await stack.until_empty(receiver)
            await stack.check_lines(orjson.loads(out)["lines"])
            return memory.peaks


def _lines(path: Path) -> list[bytes]:
    payload = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    return [line for line in payload[: payload.rfind(b"\n") + 1].split(b"\n") if line.strip()]
