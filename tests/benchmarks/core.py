"""The core: from a message's bytes to documents and heads, without queue, store or archive."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import orjson
from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure, cpu_seconds, interleaved, median_ratio

from sessionferry.archive import batch_key
from sessionferry.batch import Batch, decode, encode_parts, lines_of, utc_now
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.heads import Delivery, Head, merge

ORJSON = "orjson.loads + orjson.dumps of the same lines"
WITH_HASHES = "the same, and the SHA-256 of each line"


def measure(folder: Path, suffix: str, runs: int) -> Iterator[Figure]:
    """Compare the core with the least that any Python program would do."""
    messages = [encode_parts(batch.header, batch.compressed) for batch in fleets.packed(folder)]
    batches = [decode(message) for message in messages]
    lines = [_standard(line) for batch in batches for _, line in lines_of(batch.payload)]
    rounds = interleaved(
        cpu_seconds,
        runs,
        lambda: parse_and_render(lines),
        lambda: _take_in(messages),
        lambda: _decode(messages),
        lambda: hash_each(lines),
    )
    yield Figure(f"core_ratio_to_orjson{suffix}", median_ratio(rounds, 0, 1), "ratio", ORJSON)
    # What the ratio would be if the core did nothing but parse, render and hash each line.
    ceiling = median(row[0] / (row[0] + row[3]) for row in rounds)
    yield Figure(f"core_ratio_to_orjson_ceiling{suffix}", ceiling, "ratio", ORJSON)
    without_decode = median(row[0] / (row[1] - row[2]) for row in rounds)
    yield Figure(f"core_ratio_to_orjson_decoded{suffix}", without_decode, "ratio", ORJSON)
    against_hashes = median((row[0] + row[3]) / row[1] for row in rounds)
    yield Figure(f"core_ratio_to_orjson_and_sha256{suffix}", against_hashes, "ratio", WITH_HASHES)
    each = median(row[1] for row in rounds) / len(lines)
    yield Figure(f"core_lines_per_second{suffix}", 1 / each, "lines/s")
    share = median(row[3] / row[1] for row in rounds)
    yield Figure(f"core_share_of_sha256{suffix}", share, "ratio", "the core's whole time")


def parse_and_render(lines: list[bytes]) -> None:
    """Parse and render every line."""
    for line in lines:
        orjson.dumps(orjson.loads(line))


def _decode(messages: list[bytes]) -> None:
    for message in messages:
        decode(message)


def hash_each(pieces: list[bytes]) -> None:
    """Hash every line."""
    for piece in pieces:
        hashlib.sha256(piece).digest()


def _take_in(messages: list[bytes]) -> None:
    head = None
    for message in messages:
        batch = decode(message)
        key = batch.header.key
        if head is None or head.key != key:
            head = Head.new(key)
        head = merge(head, [_delivery(batch)])


def _delivery(batch: Batch) -> Delivery:
    header = batch.header
    builder = DocumentBuilder(header, batch_key(header, batch.id), utc_now())
    facts: list[Facts] = []
    for sequence, offset, line, sha256 in batch.lines():
        built = builder.build(Position(sequence, offset), line, sha256)
        if isinstance(built, Document):
            facts.append(built.facts)
    return Delivery(
        builder.stream,
        header.generation,
        stored=facts,
        sequences=(header.start_sequence, header.start_sequence + header.line_count - 1),
        extent=(header.offset, header.offset + header.length - 1),
    )


def _standard(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf")
