"""The fleets that are measured, and their lines and batches."""

from collections.abc import Iterator
from pathlib import Path

from sessionferry.agent.discover import Source, discover
from sessionferry.agent.reading import Blocks
from sessionferry.batch import Header, lines_of
from sessionferry.packing import Packed, Packer
from sessionferry.simulate import FleetPlan, simulate

LINK_LIMIT = 256 * 1024 - 2 * 1024
"""Bytes of one message's body on Service Bus Standard, less what its properties take."""


def fleet(folder: Path, megabytes: int, *, raw: bool) -> Path:
    """Write a fleet of well-formed sessions, with raw requests or without."""
    plan = FleetPlan(target_bytes=megabytes * 1_000_000, raw=raw, hostile=False)
    simulate(folder, plan)
    return folder


def long_sessions(folder: Path, megabytes: int) -> Path:
    """Write raw sessions of up to 75 MB, as long as the largest of the logs that were measured."""
    plan = FleetPlan(machines=1, turns=34, target_bytes=megabytes * 1_000_000, hostile=False)
    simulate(folder, plan)
    return folder


def streams(folder: Path) -> list[Source]:
    """The files that hold lines."""
    return [source for source in discover([folder], "mara", None) if source.stream]


def header_of(source: Source) -> Header:
    """What an agent says of a file's batches."""
    return Header(
        kind="lines",
        stream=source.stream,
        user_id=source.key.user_id,
        host_id="birch-01",
        project_slug=source.key.project_slug,
        session_id=source.key.session_id,
        format=source.format,
    )


def packed(folder: Path) -> Iterator[Packed]:
    """Every batch of a fleet, packed as the agent does."""
    for source in streams(folder):
        yield from packed_file(source)


def packed_file(source: Source) -> Iterator[Packed]:
    """Every batch of one file."""
    packer = Packer(header_of(source), LINK_LIMIT)
    with source.path.open("rb") as file:
        for block in Blocks(file):
            yield from packer.add(block)
    yield from packer.flush()


def lines(folder: Path) -> list[bytes]:
    """Every terminated line that is standard JSON, without a byte order mark."""
    found: list[bytes] = []
    for source in streams(folder):
        payload = source.path.read_bytes()
        payload = payload[: payload.rfind(b"\n") + 1].removeprefix(b"\xef\xbb\xbf")
        found += [line for _, line in lines_of(payload)]
    return found
