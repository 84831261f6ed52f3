"""Packing and compressing files into batches, as the agent does."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure, seconds


def measure(folder: Path, suffix: str, runs: int) -> Iterator[Figure]:
    """Speed over the files' bytes, and how much smaller the messages are."""
    taken = median(seconds(lambda: list(fleets.packed(folder))) for _ in range(runs))
    batches = list(fleets.packed(folder))
    source = sum(batch.header.length for batch in batches)
    sent = sum(len(batch.compressed) for batch in batches)
    yield Figure(f"packing_speed{suffix}", source / taken / 1e6, "MB/s")
    yield Figure(f"packing_compression{suffix}", source / sent, "ratio", "bytes sent")
