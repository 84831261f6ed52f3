"""`python -m tests.benchmarks [--quick]`: measure, print a table, write build/bench.json.

Ratios are medians of interleaved runs in this very process or on this very machine at this very
time, so they can be compared between machines; absolute figures cannot.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.benchmarks import (
    agent,
    backlog,
    broker,
    core,
    cosmos,
    fleets,
    packing,
    path,
    redaction,
    wire,
)
from tests.benchmarks.figures import Figure, Unsettled, show, write

OUTPUT = Path("build/bench.json")


class Plan(NamedTuple):
    """How much is measured."""

    raw_mb: int = 100
    small_mb: int = 20
    memory_mb: int = 300
    long_mb: int = 200
    agent_mb: int = 1_000
    core_runs: int = 5
    path_runs: int = 3
    path_sample: int = 800
    backlog: int = 200
    backlog_runs: int = 2
    depth: int = 1_000_000
    cosmos_documents: int = 20_000
    cosmos_sample: int = 2_000
    cosmos_runs: int = 3


QUICK = Plan(
    40,
    6,
    80,
    130,
    130,
    core_runs=3,
    path_runs=1,
    path_sample=300,
    backlog=80,
    backlog_runs=1,
    depth=20_000,
    cosmos_documents=10_000,
    cosmos_sample=600,
    cosmos_runs=1,
)


def main() -> int:
    """Measure everything; 1 when a stack did not do its work."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute, on smaller fleets")
    parser.add_argument("--only", metavar="PART", choices=_PARTS, help="one part, not written")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    began = time.monotonic()
    figures: list[Figure] = []
    try:
        with TemporaryDirectory(prefix="ferry-bench-fleets-") as folder:
            for figure in _measured(Fleets(Path(folder), plan), plan, arguments.only):
                show(figure)
                figures.append(figure)
    except Unsettled as error:
        sys.stderr.write(f"No figure: {error}\n")
        return 1
    if arguments.only is None:
        write(figures, OUTPUT)
    print(f"{len(figures)} figures, {time.monotonic() - began:.0f} s")
    return 0


class Fleets:
    """The fleets of a plan, each written when it is first needed."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan

    def raw(self) -> Path:
        return self._fleet("raw", self._plan.raw_mb, raw=True)

    def small(self) -> Path:
        return self._fleet("small", self._plan.small_mb, raw=False)

    def memory(self) -> Path:
        return self._fleet("memory", self._plan.memory_mb, raw=True)

    def long(self) -> Path:
        folder = self._folder / "long"
        return folder if folder.exists() else fleets.long_sessions(folder, self._plan.long_mb)

    def _fleet(self, name: str, megabytes: int, *, raw: bool) -> Path:
        folder = self._folder / name
        return folder if folder.exists() else fleets.fleet(folder, megabytes, raw=raw)


def _core(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from core.measure(made.raw(), "", plan.core_runs)
    yield from core.measure(made.small(), "_small_lines", plan.core_runs)


def _packing(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from packing.measure(made.raw(), "", plan.path_runs)
    yield from packing.measure(made.small(), "_small_lines", plan.path_runs)


def _redaction(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from redaction.measure(made.raw(), "", plan.path_runs)
    yield from redaction.measure(made.small(), "_small_lines", plan.path_runs)


def _wire(made: Fleets, _plan: Plan) -> Iterator[Figure]:
    yield from wire.measure(made.long())


def _path(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from path.measure(made.raw(), "", plan.path_runs, plan.path_sample)
    yield from path.measure(made.small(), "_small_lines", plan.path_runs, plan.path_sample)


def _broker(_made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from broker.measure(plan.path_runs)
    yield from broker.measure_depth(plan.depth)


def _backlog(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from backlog.measure(fleets.lines(made.small()), plan.backlog, plan.backlog_runs)


def _memory(made: Fleets, _plan: Plan) -> Iterator[Figure]:
    yield from path.measure_memory(made.memory())


def _agent(made: Fleets, plan: Plan) -> Iterator[Figure]:
    yield from agent.measure(made.long(), plan.agent_mb, plan.path_runs)


def _cosmos(made: Fleets, plan: Plan) -> Iterator[Figure]:
    how_much = (plan.cosmos_documents, plan.cosmos_sample, plan.cosmos_runs)
    yield from cosmos.measure(made.small(), *how_much)


_PARTS = {
    "core": _core,
    "packing": _packing,
    "redaction": _redaction,
    "wire": _wire,
    "path": _path,
    "broker": _broker,
    "backlog": _backlog,
    "memory": _memory,
    "agent": _agent,
    "cosmos": _cosmos,
}


def _measured(made: Fleets, plan: Plan, only: str | None) -> Iterator[Figure]:
    wanted = [_PARTS[only]] if only else _PARTS.values()
    return itertools.chain.from_iterable(part(made, plan) for part in wanted)


if __name__ == "__main__":
    raise SystemExit(main())
