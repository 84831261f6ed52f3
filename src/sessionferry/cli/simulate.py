"""`ferry simulate`: a made-up fleet's session files, to try things with."""

from pathlib import Path

import typer

from sessionferry.cli.output import number, progress, size
from sessionferry.errors import UserError


def simulate(
    out_dir: Path = typer.Argument(..., help="Folder to write to; it must be empty or absent."),
    seed: int = typer.Option(1, help="The same seed and options give the same bytes."),
    machines: int = typer.Option(3, min=1, help="Machines of the fleet."),
    sessions: int = typer.Option(4, min=1, help="Root sessions per machine."),
    megabytes: int | None = typer.Option(None, min=1, help="Go on until so much is written."),
    raw: bool = typer.Option(True, help="Requests repeat the whole conversation: huge lines."),
    hostile: bool = typer.Option(True, help="Add lines that break naive code."),
) -> None:
    """Write the session files of a made-up fleet, and an oracle of what must become of them.

    Example: ferry simulate /tmp/fleet --megabytes 300
    """
    from sessionferry.simulate import FleetPlan
    from sessionferry.simulate import simulate as write_fleet

    target = megabytes * 1_000_000 if megabytes else None
    plan = FleetPlan(
        seed=seed,
        machines=machines,
        sessions=sessions,
        target_bytes=target,
        raw=raw,
        hostile=hostile,
    )
    written = 0

    def report(total: int) -> None:
        nonlocal written
        advance(total - written)
        written = total

    try:
        with progress("writing", target or 0) as advance:
            oracle = write_fleet(out_dir, plan, report)
    except FileExistsError:
        raise UserError(f"{out_dir} is not empty; choose another folder.") from None
    totals = oracle.totals
    typer.echo(
        f"Wrote {number(totals.files)} files, {number(totals.lines)} lines, "
        f"{size(totals.bytes)} to {out_dir}. What must become of them: {out_dir / 'oracle.json'}"
    )
