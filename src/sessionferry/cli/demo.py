"""`ferry demo`: the main job from beginning to end, on made-up sessions, with the books shown."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer

from sessionferry import hydration
from sessionferry.agent.discover import Source, discover
from sessionferry.cli.output import NOT_ALL_WELL, number, print_json, print_table, settings, size
from sessionferry.cli.reading import Reader, open_reader
from sessionferry.cli.ship import ship_sources
from sessionferry.errors import TransientError
from sessionferry.host import Identity
from sessionferry.settings import Settings
from sessionferry.simulate import FleetPlan, Oracle
from sessionferry.simulate import simulate as write_fleet
from sessionferry.verification import Finding, verify

SETTLE_SECONDS = 120.0


@dataclass(slots=True)
class Row:
    """One machine's line of the ledger."""

    host: str
    files: int = 0
    read: int = 0
    stored: int = 0
    quarantined: int = 0
    truncated: int = 0
    tails: int = 0
    read_bytes: int = 0
    sent_bytes: int = 0

    @property
    def in_flight(self) -> int:
        """Lines that were read but are neither stored nor quarantined."""
        return self.read - self.stored - self.quarantined


@dataclass(slots=True)
class Result:
    """What the demo found out."""

    rows: list[Row] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    archived_bytes: int = 0
    hydrated: int = 0
    seconds: float = 0.0
    example: str = ""


def demo(
    megabytes: int = typer.Option(60, min=1, help="About so much is generated."),
    seed: int = typer.Option(1, help="The same seed gives the same fleet."),
    keep: Path | None = typer.Option(
        None, "--keep", help="Keep everything in this new folder, to look at afterwards."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Run the main job on a made-up fleet: generate, ship, store, verify, and show the books.

    Starts the whole stack on this machine by itself. Exit code 0 only if everything balances.

    Example: ferry demo --keep /tmp/ferry-demo
    """
    folder = keep.absolute() if keep else Path(tempfile.mkdtemp(prefix="ferry-demo-"))
    say = (lambda _text: None) if as_json else typer.echo
    try:
        result = asyncio.run(_run(folder, megabytes * 1_000_000, seed, say))
        _print(result, folder if keep else None, as_json=as_json)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if result.wrong:
        raise typer.Exit(NOT_ALL_WELL)


async def _run(folder: Path, target: int, seed: int, say: Callable[[str], None]) -> Result:
    fleet = folder / "fleet"
    plan = FleetPlan(seed=seed, target_bytes=target)
    oracle = await asyncio.to_thread(write_fleet, fleet, plan)
    say(
        f"1. generated  {number(plan.machines)} machines, {number(oracle.totals.files)} files, "
        f"{number(oracle.totals.lines)} lines, {size(oracle.totals.bytes)}"
    )
    chosen = settings(folder / "data")
    async with _stack(chosen):
        say("2. started    queue, function app and store on this machine")
        return await _through(chosen, fleet, oracle, say)


async def _through(
    chosen: Settings, fleet: Path, oracle: Oracle, say: Callable[[str], None]
) -> Result:
    began = time.monotonic()
    result = Result()
    shipped: list[tuple[Row, list[Source]]] = []
    for home in sorted(path for path in fleet.iterdir() if path.is_dir()):
        row, sources = await _ship_machine(chosen, home)
        result.rows.append(row)
        shipped.append((row, sources))
    say(f"3. shipped    {size(sum(row.sent_bytes for row in result.rows))} in compressed batches")
    async with open_reader(chosen) as reader:
        for row, sources in shipped:
            await _wait_until_settled(reader, sources)
            await _account(reader, row, sources, result)
        result.seconds = time.monotonic() - began
        say("4. settled    every file compared with the store, byte by byte")
        await _hydrate_truncated(reader, result)
        result.archived_bytes = await _archived(reader)
    result.wrong += _against_oracle(result, oracle)
    return result


async def _ship_machine(chosen: Settings, home: Path) -> tuple[Row, list[Source]]:
    """Ship one machine's home folder, as that machine would."""
    own = chosen.model_copy(update={"data": chosen.data, "identity": home / "identity"})
    identity = Identity(own.identity, host_id=home.name)
    sources = discover([home / ".amplifier"], identity.user_id, None)
    report = await ship_sources(own, identity, sources)
    row = Row(
        host=home.name,
        files=len(sources),
        read=report.lines,
        tails=report.tails,
        read_bytes=report.bytes,
        sent_bytes=report.sent_bytes,
    )
    return row, sources


async def _wait_until_settled(reader: Reader, sources: list[Source]) -> None:
    """Return when nothing of these sources is missing any more, or the time is up."""
    until = time.monotonic() + SETTLE_SECONDS
    left = list(sources)
    while left and time.monotonic() < until:
        findings = [await verify(reader.store, reader.archive, source) for source in left]
        left = [finding.source for finding in findings if finding.verdict != "ok"]
        if left:
            await asyncio.sleep(0.3)


async def _account(reader: Reader, row: Row, sources: list[Source], result: Result) -> None:
    for source in sources:
        finding = await verify(reader.store, reader.archive, source, whole_bytes=True)
        row.stored += finding.stored
        row.quarantined += finding.quarantined
        row.truncated += finding.truncated
        if finding.verdict != "ok":
            result.wrong.append(f"{source.path}: {finding.verdict}, {finding.detail}")
        if source.stream == "events" and not result.example:
            result.example = source.key.session_id


async def _hydrate_truncated(reader: Reader, result: Result) -> None:
    """Fetch the original bytes of truncated lines of the largest session; hashes are checked."""
    page = await reader.store.list_items("sessions", limit=500)
    for document in page.documents:
        for line in await hydration.truncated_lines(reader.store, document, limit=20):
            await hydration.hydrate(reader.archive, line)
            result.hydrated += 1
