"""`ferry ship`: send session files to the queue."""

import asyncio
import hashlib
from datetime import datetime
from pathlib import Path

import typer

from sessionferry import telemetry
from sessionferry.agent.collecting import Report, planned_bytes
from sessionferry.agent.discover import (
    NO_HOMES,
    FormatChoice,
    Problem,
    Source,
    default_paths,
    discover,
    warn,
)
from sessionferry.agent.gate import OPEN, Checked
from sessionferry.agent.hours import Hours
from sessionferry.agent.rehearsal import rehearse
from sessionferry.agent.shipping import Shipper
from sessionferry.agent.spool import Spool, SpoolDamaged, SpoolLock, open_spool
from sessionferry.cli.output import (
    DataOption,
    JsonOption,
    number,
    print_json,
    printable,
    progress,
    settings,
    size,
)
from sessionferry.errors import UserError
from sessionferry.host import Identity
from sessionferry.settings import Endpoints, Settings, check_running, endpoints


def ship(
    paths: list[Path] = typer.Argument(
        None, help="Session folders or files (default: where the tools keep them)."
    ),
    file_format: FormatChoice | None = typer.Option(
        None, "--format", help="Only this format; jsonl: every .jsonl file is a plain transcript."
    ),
    supersede: bool = typer.Option(
        False, help="Send files anew, as a new generation that replaces what is stored."
    ),
    resend: bool = typer.Option(False, help="Send again what was sent before; harmless."),
    watch: bool = typer.Option(False, "--watch", help="Go on, as a daemon, until told to stop."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Only say what would be sent, filtered and redacted."
    ),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Send what is new in session files to the queue: once, or all the time.

    Examples: ferry ship; ferry ship ~/work/.amplifier; ferry ship logs/ --format jsonl;
    ferry ship --watch
    """
    if watch and (resend or supersede or dry_run or as_json):
        raise UserError("--watch goes without --resend, --supersede, --dry-run and --json.")
    if watch:
        from sessionferry.cli import watch as daemon

        with telemetry.tracing(telemetry.AGENT):
            asyncio.run(daemon.watch(data, paths or [], file_format))
        return
    chosen = settings(data)
    gate = gate_of(chosen, lasts=not dry_run)
    identity = Identity.as_it_is(chosen) if dry_run else Identity.from_settings(chosen)
    problems: list[str] = []
    sources = sources_of(chosen, identity, paths, file_format, problems.append)
    if dry_run:
        report = _rehearse(chosen, gate, identity, sources, resend=resend, supersede=supersede)
    else:
        with telemetry.tracing(telemetry.AGENT):
            report = asyncio.run(
                ship_sources(
                    chosen, identity, sources, gate=gate, resend=resend, supersede=supersede
                )
            )
    report.failed = problems + report.failed
    _print(report, as_json=as_json, dry_run=dry_run)
    if report.failed:
        raise typer.Exit(1)


def gate_of(chosen: Settings, *, lasts: bool = True) -> Checked:
    """Return the gate of the configuration file; its rules are loaded only where they are used."""
    from sessionferry.agent import policy

    return policy.gate_of(chosen, lasts=lasts)


def sources_of(
    chosen: Settings,
    identity: Identity,
    paths: list[Path],
    file_format: FormatChoice | None,
    problem: Problem = warn,
) -> list[Source]:
    """Find the files: below the given paths, else the configured ones, else where tools put them.

    `problem` is told what is left out. Raises `UserError` when there are no files.
    """
    wanted = paths or configured_roots(chosen, file_format, default_paths(file_format))
    if not wanted:
        raise UserError(NO_HOMES)
    return discover(wanted, identity.user_id, file_format, chosen.file().sources.jsonl, problem)


def configured_roots(
    chosen: Settings, file_format: FormatChoice | None, usual: list[Path]
) -> list[Path]:
    """Return where the configuration looks for files; where it names no places, the usual ones."""
    sources = chosen.file().sources
    roots = [path.expanduser() for path in sources.paths] or usual
    if file_format not in (None, "jsonl"):
        return roots
    return roots + [path.expanduser() for entry in sources.jsonl for path in entry.paths]


def _rehearse(
    chosen: Settings,
    gate: Checked,
    identity: Identity,
    sources: list[Source],
    *,
    resend: bool,
    supersede: bool,
) -> Report:
    try:
        path = spool_path(chosen, endpoints(chosen))
    except UserError:
        # Without a destination nothing was sent yet.
        path = None
    with progress("reading", planned_bytes(sources)) as advance:
        anew = {"resend": resend, "supersede": supersede}
        return rehearse(path, gate, identity, sources, **anew, advance=advance)


async def ship_sources(
    chosen: Settings,
    identity: Identity,
    sources: list[Source],
    *,
    gate: Checked = OPEN,
    resend: bool = False,
    supersede: bool = False,
) -> Report:
    """Ship sources to the endpoints of these settings."""
    target = endpoints(chosen)
    check_running(target, chosen)
    hours = Hours.parse(chosen.hours or "")
    if hours and hours.seconds_until(datetime.now().astimezone()):
        typer.echo(f"It is outside of FERRY_HOURS ({hours}); what you ask for is sent.", err=True)
    with SpoolLock(spool_path(chosen, target)):
        damage: SpoolDamaged | None = None
        while True:
            try:
                return await _ship_once(
                    *(chosen, target, identity, sources, gate, damage),
                    resend=resend,
                    supersede=supersede,
                )
            except SpoolDamaged as error:
                damage = error


async def _ship_once(
    chosen: Settings,
    target: Endpoints,
    identity: Identity,
    sources: list[Source],
    gate: Checked,
    damage: SpoolDamaged | None,
    *,
    resend: bool,
    supersede: bool,
) -> Report:
    from sessionferry.publisher import Publisher

    spool = opened_spool(chosen, target, damage)
    try:
        lost = identity.knew_spool(spool_name(target, chosen), spool.id)
        async with Publisher(target, resend=resend) as publisher:
            with progress("shipping", planned_bytes(sources)) as advance:
                shipper = Shipper(
                    spool,
                    gate,
                    identity,
                    limit=publisher.limit,
                    bytes_per_second=chosen.rate_kb * 1000,
                    spool_was_lost=lost,
                    resend=resend,
                    supersede=supersede,
                    advance=advance,
                )
                report = await shipper.ship(sources, publisher)
                report.sent_bytes = publisher.sent_bytes
                return report
    finally:
        spool.close()


def opened_spool(chosen: Settings, target: Endpoints, damage: SpoolDamaged | None = None) -> Spool:
    """Open the spool of this destination, bounded as the settings say."""
    return open_spool(
        spool_path(chosen, target),
        most_bytes=chosen.spool_mb * 1_000_000,
        free_bytes=chosen.spool_free_mb * 1_000_000,
        damage=damage,
    )


def spool_path(chosen: Settings, target: Endpoints) -> Path:
    """Return where lies what was read for this destination and not sent yet."""
    if target.local is not None:
        return chosen.data / "agent" / "spool.db"
    name = hashlib.sha256(target.destination.encode()).hexdigest()[:16]
    return chosen.data / "agent" / f"spool-{name}.db"


def spool_name(target: Endpoints, chosen: Settings) -> str:
    """Name a destination in the identity file."""
    return f"local:{chosen.data}" if target.local is not None else target.destination


def _print(report: Report, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "files": report.files,
                "unchanged": report.unchanged,
                "lines": report.lines,
                "filtered": report.filtered,
                "redacted": dict(sorted(report.redacted.items())),
                "bytes": report.bytes,
                "sent_bytes": report.sent_bytes,
                "tails": report.tails,
                "rewritten": report.rewritten,
                "failed": [printable(failure) for failure in report.failed],
            }
        )
        return
    typer.echo(
        f"{'Would ship' if dry_run else 'Shipped'} {number(report.lines)} lines, "
        f"{size(report.bytes)} as {size(report.sent_bytes)}, "
        f"from {number(report.files)} files ({number(report.unchanged)} unchanged, "
        f"{number(report.rewritten)} rewritten, {number(report.tails)} with an unterminated line)."
    )
    if report.filtered:
        typer.echo(f"  filtered: {number(report.filtered)} of these lines stay here")
    if report.redacted:
        rules = ", ".join(f"{rule} {number(n)}" for rule, n in sorted(report.redacted.items()))
        typer.echo(f"  redacted: {rules}")
    for failure in report.failed:
        typer.echo(f"  not shipped: {printable(failure)}", err=True)
