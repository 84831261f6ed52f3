"""`ferry ship`: send session files to the queue."""

import asyncio
import hashlib
from pathlib import Path

import typer

from sessionferry.agent.collecting import Report, planned_bytes
from sessionferry.agent.discover import NO_HOMES, FormatChoice, Source, default_paths, discover
from sessionferry.agent.gate import Checked, OpenGate
from sessionferry.agent.shipping import Shipper
from sessionferry.agent.spool import Spool, SpoolLock, open_spool
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
from sessionferry.settings import Endpoints, Settings, endpoints


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
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Send what is new in session files to the queue, once.

    Examples: ferry ship; ferry ship ~/work/.amplifier; ferry ship logs/ --format jsonl
    """
    chosen = settings(data)
    identity = Identity.from_settings(chosen)
    wanted = paths or default_paths(file_format)
    if not wanted:
        raise UserError(NO_HOMES)
    sources = discover(wanted, identity.user_id, file_format)
    report = asyncio.run(
        ship_sources(chosen, identity, sources, resend=resend, supersede=supersede)
    )
    _print(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(1)


async def ship_sources(
    chosen: Settings,
    identity: Identity,
    sources: list[Source],
    *,
    resend: bool = False,
    supersede: bool = False,
) -> Report:
    """Ship sources to the endpoints of these settings."""
    from sessionferry.publisher import Publisher

    target = endpoints(chosen)
    _check_running(target, chosen)
    with SpoolLock(spool_path(chosen, target)):
        spool = opened_spool(chosen, target)
        try:
            lost = identity.knew_spool(spool_name(target, chosen), spool.id)
            async with Publisher(target, resend=resend) as publisher:
                with progress("shipping", planned_bytes(sources)) as advance:
                    shipper = Shipper(
                        spool,
                        Checked(OpenGate()),
                        identity,
                        limit=publisher.limit,
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


def opened_spool(chosen: Settings, target: Endpoints) -> Spool:
    """Open the spool of this destination, bounded as the settings say."""
    return open_spool(
        spool_path(chosen, target),
        most_bytes=chosen.spool_mb * 1_000_000,
        free_bytes=chosen.spool_free_mb * 1_000_000,
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


def _check_running(target: Endpoints, chosen: Settings) -> None:
    if target.local is not None and not target.local.is_running(chosen.data):
        raise UserError(
            f"No `ferry local` is running with the data folder {chosen.data}. Start it first."
        )


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "files": report.files,
                "unchanged": report.unchanged,
                "lines": report.lines,
                "bytes": report.bytes,
                "sent_bytes": report.sent_bytes,
                "tails": report.tails,
                "rewritten": report.rewritten,
                "failed": [printable(failure) for failure in report.failed],
            }
        )
        return
    typer.echo(
        f"Shipped {number(report.lines)} lines, {size(report.bytes)} as {size(report.sent_bytes)}, "
        f"from {number(report.files)} files ({number(report.unchanged)} unchanged, "
        f"{number(report.rewritten)} rewritten, {number(report.tails)} with an unterminated line)."
    )
    for failure in report.failed:
        typer.echo(f"  not shipped: {printable(failure)}", err=True)
