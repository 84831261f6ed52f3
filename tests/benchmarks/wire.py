"""How many bytes of raw Amplifier logs one byte on the wire carries.

Raw logs repeat the whole conversation in each request, so the figure depends on how much of the
past the compressor sees: everything while catching up, one request while it is written.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure

from sessionferry.agent.discover import Source
from sessionferry.agent.reading import Blocks
from sessionferry.batch import encode_parts
from sessionferry.packing import Packed, Packer


def measure(folder: Path) -> Iterator[Figure]:
    """The events of long sessions, packed while catching up and while they are written."""
    events = [source for source in fleets.streams(folder) if source.stream == "events"]
    together = [batch for source in events for batch in fleets.packed_file(source)]
    yield Figure("wire_ratio_catch_up", _ratio(together), "ratio", "bytes sent")
    apart = [batch for source in events for batch in _as_written(source)]
    yield Figure("wire_ratio_live", _ratio(apart), "ratio", "bytes sent")


def _as_written(source: Source) -> Iterator[Packed]:
    """One batch for each request, with the small lines before it."""
    packer = Packer(fleets.header_of(source), fleets.LINK_LIMIT)
    with source.path.open("rb") as file:
        for block in Blocks(file):
            for line in block.splitlines(keepends=True):
                yield from packer.add(line)
                if b'"llm:request"' in line[:400]:
                    yield from packer.flush()
    yield from packer.flush()


def _ratio(batches: list[Packed]) -> float:
    sent = sum(len(encode_parts(batch.header, batch.compressed)) for batch in batches)
    return sum(batch.header.length for batch in batches) / sent
