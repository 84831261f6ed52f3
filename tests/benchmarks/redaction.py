"""Redaction and filters, as the agent's gate applies them to a file's blocks."""

import random
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.benchmarks import fleets
from tests.benchmarks.figures import Figure, cpu_seconds

from sessionferry.agent.discover import Source
from sessionferry.agent.filters import Kinds, Places
from sessionferry.agent.policy import Policy
from sessionferry.agent.reading import Blocks
from sessionferry.agent.redaction import Redactor
from sessionferry.packing import pieces

SECRET_EVERY = 200
"""Of the lines with secrets: one in so many, as in sessions in which somebody prints one."""


def measure(folder: Path, suffix: str, runs: int) -> Iterator[Figure]:
    """Speed over the files' bytes: without secrets, with some, and with raw payloads stripped."""
    read = [(source, list(_pieces(source))) for source in fleets.streams(folder)]
    size = sum(len(piece) for _, cut in read for piece in cut)
    planted = [(source, [_with_secrets(piece) for piece in cut]) for source, cut in read]
    redacting = Policy(Places(), None, Redactor(b"k" * 32))
    stripping = Policy(Places(), Kinds(drop=["llm:stream_*"], strip_raw=True))
    for name, policy, files in (
        ("redaction_speed", redacting, read),
        ("redaction_speed_with_secrets", redacting, planted),
        ("strip_raw_speed", stripping, read),
    ):
        taken = median(cpu_seconds(lambda p=policy, f=files: _pass(p, f)) for _ in range(runs))
        yield Figure(f"{name}{suffix}", size / taken / 1e6, "MB/s")


def _pass(policy: Policy, files: list[tuple[Source, list[bytes]]]) -> None:
    for source, cut in files:
        for piece in cut:
            policy.lines(source, piece)


def _pieces(source: Source) -> Iterator[bytes]:
    with source.path.open("rb") as file:
        for block in Blocks(file):
            yield from pieces(block)


def _with_secrets(piece: bytes) -> bytes:
    chance = random.Random(piece)
    secret = b"ghp_" + bytes(chance.choices(b"abcdefXYZ0123456789", k=36))
    lines = piece.split(b"\n")
    return b"\n".join(
        line[:-1] + b', "t": "export GH_TOKEN=%s"}' % secret
        if line.endswith(b"}") and chance.randrange(SECRET_EVERY) == 0
        else line
        for line in lines
    )
