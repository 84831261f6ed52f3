"""Runs one part over many inputs and watches it: no crash, no hang, no growth."""

import faulthandler
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

HANG_SECONDS = 20
"""One input that takes longer ends the run with the place where it hangs."""
WARM_UP = 2_000
GROWTH_BYTES = 100 * 2**20

Part = Callable[[random.Random], str]
"""Makes one input from the generator, feeds it, and names what became of it."""


@dataclass(slots=True)
class Report:
    """What became of the inputs, and what they cost."""

    name: str
    inputs: int = 0
    results: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    growth: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {count:,}" for name, count in self.results.most_common())
        return (
            f"{self.name}: {self.inputs:,} inputs in {self.seconds:.0f} s; slowest"
            f" {self.slowest * 1000:.0f} ms; memory grew by {self.growth / 2**20:.0f} MiB; {shown}"
        )


class Broken(Exception):
    """An input did what none may do; its seed is named."""


def watch(name: str, part: Part, seed: int, inputs: int) -> Report:
    """Feed `inputs` inputs; raises `Broken`, with the seed of the one that broke it."""
    report = Report(name, inputs)
    process = psutil.Process()
    began = time.monotonic()
    before = 0
    for number in range(inputs):
        if number == min(WARM_UP, inputs // 2):
            before = process.memory_info().rss
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
        at = time.perf_counter()
        try:
            result = part(random.Random(f"{seed}/{number}"))
        except Exception as error:
            raise Broken(f"{name}: seed {seed}, input {number}: {error!r}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
        report.slowest = max(report.slowest, time.perf_counter() - at)
        report.results[result] += 1
    report.growth = process.memory_info().rss - before
    report.seconds = time.monotonic() - began
    if report.growth > GROWTH_BYTES:
        raise Broken(f"{name}: seed {seed}: memory grew by {report.growth:,} bytes")
    return report
