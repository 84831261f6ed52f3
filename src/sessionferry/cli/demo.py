"""`ferry demo`: the main job from beginning to end, on made-up sessions, with the books shown."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer

from sessionferry import head_store
from sessionferry.agent.discover import Source, discover
from sessionferry.archive import hydrate
from sessionferry.cli.output import NOT_ALL_WELL, number, print_json, print_table, settings, size
from sessionferry.cli.reading import Reader, open_reader
from sessionferry.cli.ship import ship_sources
from sessionferry.errors import UserError
from sessionferry.formats.meaning import Usage, cost_text
from sessionferry.heads import Head, total_cost
from sessionferry.host import Identity
from sessionferry.identity import STREAMS, SessionKey
from sessionferry.settings import Settings
from sessionferry.simulate import FleetPlan, Oracle
from sessionferry.simulate import simulate as write_fleet
from sessionferry.verification import verify

SETTLE_SECONDS = 120.0
HYDRATED_LINES = 50


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
    cost_usd: str = "0"
    tokens: int = 0
    keys: list[SessionKey] = field(default_factory=list)

    @property
    def example(self) -> str:
        """A session to look at."""
        return self.keys[0].session_id if self.keys else ""


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
    if keep and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UserError(f"{keep} is not empty; choose another folder.")
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
    for home in await asyncio.to_thread(_machines, fleet):
        row, sources = await _ship_machine(chosen, home)
        result.rows.append(row)
        shipped.append((row, sources))
    say(f"3. shipped    {size(sum(row.sent_bytes for row in result.rows))} in compressed batches")
    async with open_reader(chosen) as reader:
        await _wait_until_settled(reader, [source for _, own in shipped for source in own])
        for row, sources in shipped:
            await _account(reader, row, sources, result)
        result.seconds = time.monotonic() - began
        say("4. settled    every file compared with the store, byte by byte")
        await _hydrate_truncated(reader, result)
        result.archived_bytes = await _archived_bytes(reader)
        result.wrong += await _against_oracle(reader, result, oracle)
    return result


def _machines(fleet: Path) -> list[Path]:
    return sorted(path for path in fleet.iterdir() if path.is_dir())


async def _ship_machine(chosen: Settings, home: Path) -> tuple[Row, list[Source]]:
    """Ship one machine's home folder, as that machine would."""
    own = chosen.model_copy(update={"data": chosen.data, "identity": home / "identity"})
    identity = Identity(own.identity, host_id=home.name)
    sources = discover([home], identity.user_id, None)
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
        if source.key not in result.keys:
            result.keys.append(source.key)


async def _hydrate_truncated(reader: Reader, result: Result) -> None:
    """Fetch original bytes of truncated lines; `hydrate` checks their hashes."""
    for key in result.keys:
        head = (await head_store.read_head(reader.store, key)).head
        for name in STREAMS:
            if head.stream(name).truncated and result.hydrated < HYDRATED_LINES:
                await _hydrate_some(reader, head, result)


async def _hydrate_some(reader: Reader, head: Head, result: Result) -> None:
    for name in STREAMS:
        generation = head.stream(name).generation
        after = -1
        while page := await reader.store.read_lines(
            head.key, name, generation, after=after, limit=50
        ):
            after = page[-1]["sequence"]
            for line in (line for line in page if line["data_truncated"]):
                await hydrate(reader.archive, line)
                result.hydrated += 1


async def _archived_bytes(reader: Reader) -> int:
    return sum([found.size async for found in reader.archive.objects("")])


async def _against_oracle(reader: Reader, result: Result, oracle: Oracle) -> list[str]:
    """Compare the books with what the generator knows, which shares no code with ingest."""
    cost, used = 0, Usage()
    for key in result.keys:
        head = (await head_store.read_head(reader.store, key)).head
        for name in STREAMS:
            cost += total_cost(head.stream(name).cost_usd)
            used = used.plus(head.stream(name).usage)
    totals = oracle.totals
    result.cost_usd = cost_text(cost)
    expected = {
        "lines": (sum(row.read for row in result.rows), totals.lines),
        "stored": (sum(row.stored for row in result.rows), totals.stored),
        "quarantined": (sum(row.quarantined for row in result.rows), totals.quarantined),
        "truncated": (sum(row.truncated for row in result.rows), totals.truncated),
        "bytes": (sum(row.read_bytes for row in result.rows), totals.bytes),
        "cost": (cost, total_cost(f"{totals.cost_usd:f}")),
        **{
            f"{name} tokens": (number, getattr(totals.usage, name))
            for name, number in used._asdict().items()
        },
    }
    result.tokens = sum(used)
    return [
        f"{name}: counted {found:,}, the generator wrote {right:,}"
        for name, (found, right) in expected.items()
        if found != right
    ]


@asynccontextmanager
async def _stack(chosen: Settings) -> AsyncIterator[None]:
    from sessionferry.local.stack import Stack

    stack = Stack(chosen)
    try:
        await stack.start()
        supervision = asyncio.create_task(stack.supervise())
        yield
        supervision.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervision
    finally:
        await stack.stop()


def _print(result: Result, kept: Path | None, *, as_json: bool) -> None:
    if as_json:
        rows = [asdict(row) | {"in_flight": row.in_flight} for row in result.rows]
        print_json(
            {
                "balanced": not result.wrong,
                "machines": rows,
                "archived_bytes": result.archived_bytes,
                "hydrated": result.hydrated,
                "cost_usd": result.cost_usd,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 2),
                "wrong": result.wrong,
            }
        )
        return
    typer.echo("")
    print_table(_COLUMNS, [_cells(row) for row in (*result.rows, _total(result.rows))])
    typer.echo(_summary(result))
    for wrong in result.wrong[:20]:
        typer.echo(f"  WRONG  {wrong}")
    typer.echo("\n".join(_next_steps(result, kept)))


_COLUMNS = (
    *("machine", "files", "read", "=  stored", "+  quarantined", "+  in flight"),
    *("truncated", "tails", "bytes read", "sent"),
)


def _cells(row: Row) -> tuple[object, ...]:
    counts = (row.files, row.read, row.stored, row.quarantined, row.in_flight)
    return (row.host, *counts, row.truncated, row.tails, size(row.read_bytes), size(row.sent_bytes))


def _total(rows: list[Row]) -> Row:
    total = Row(host="all")
    for row in rows:
        for name, value in asdict(row).items():
            if name != "host":
                setattr(total, name, getattr(total, name) + value)
    return total


def _summary(result: Result) -> str:
    read = sum(row.read_bytes for row in result.rows)
    speed = size(int(read / result.seconds)) if result.seconds else "-"
    verdict = "The books balance" if not result.wrong else "The books DO NOT balance"
    return (
        f"\n{verdict}: {size(result.archived_bytes)} archived, every file byte for byte as it "
        f"was; {number(result.hydrated)} truncated lines fetched back with their hash checked; "
        f"{number(result.tokens)} tokens and ${result.cost_usd} of model usage. "
        f"{result.seconds:.1f} s, {speed}/s."
    )


def _next_steps(result: Result, kept: Path | None) -> list[str]:
    if kept is None:
        return ["", "To look around afterwards: ferry demo --keep FOLDER"]
    data = kept / "data"
    return [
        "",
        "Look at what is stored:",
        f"  ferry sessions --data {data}",
        f"  ferry show {result.example} --data {data}",
        f"  ferry export {result.example} --to /tmp/back --data {data}",
    ]
