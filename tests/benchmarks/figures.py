"""Figures: how they are measured, kept and shown."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; `ratio_to` says what a ratio compares with."""

    name: str
    value: float
    unit: str
    ratio_to: str | None = None


class Unsettled(Exception):
    """The stack did not do what was measured, so there is no figure."""


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of this process: other tenants of the machine disturb it least."""
    began = time.process_time()
    work()
    return time.process_time() - began


def seconds(work: Callable[[], object]) -> float:
    """Time on the wall."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(
    clock: Callable[[Callable[[], object]], float], runs: int, *works: Callable[[], object]
) -> list[tuple[float, ...]]:
    """Measure each work in turn, `runs` times over; one tuple of seconds per round."""
    return [tuple(clock(work) for work in works) for _ in range(runs)]


def median_ratio(rounds: list[tuple[float, ...]], over: int, under: int) -> float:
    """The median, over the rounds, of one work's time divided by another's."""
    return median(row[over] / row[under] for row in rounds)


def write(figures: list[Figure], path: Path) -> None:
    """Keep the figures for others to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


def show(figure: Figure) -> None:
    """Print one row of the table."""
    print(
        f"{figure.name:<52}{figure.value:>12,.3f}  {figure.unit:<12}{figure.ratio_to or ''}",
        flush=True,
    )
