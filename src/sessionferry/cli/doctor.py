"""`ferry doctor`: is everything set up, and what is to be done where it is not?"""

import asyncio
from pathlib import Path

import typer

from sessionferry.cli.output import DataOption, JsonOption, print_json, printable, settings
from sessionferry.cli.ship import sources_of, spool_path
from sessionferry.doctor import Check, Finding, Verdict, examine
from sessionferry.doctor.machine import Machine
from sessionferry.doctor.stores import check_store
from sessionferry.host import Identity
from sessionferry.settings import Settings, endpoints

_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.WRONG: "WRONG"}


def doctor(data: Path | None = DataOption, as_json: bool = JsonOption) -> None:
    """Check what this machine is set up to use, and say how to mend what is wrong.

    Exit code 1 if something is wrong; warnings alone leave it 0.

    Example: ferry doctor
    """
    findings = asyncio.run(_examined(settings(data), shown=not as_json))
    if as_json:
        print_json([finding.as_json() for finding in findings])
    if any(finding.verdict is Verdict.WRONG for finding in findings):
        raise typer.Exit(1)


def _checks(chosen: Settings) -> tuple[Check, ...]:
    """Name all checks: this machine's as an agent first, then the store's."""
    machine = Machine(
        chosen,
        target=lambda: endpoints(chosen),
        spool=lambda target: spool_path(chosen, target),
        sources=lambda: sources_of(chosen, Identity.from_settings(chosen), [], None),
    )
    return (*machine.checks(), check_store)


async def _examined(chosen: Settings, *, shown: bool) -> list[Finding]:
    findings = []
    async for finding in examine(chosen, _checks(chosen)):
        findings.append(finding)
        if shown:
            told = f"{finding.subject}: {finding.said}"
            typer.echo(f"{_MARKS[finding.verdict]:<9}{printable(told)}")
            if finding.fix:
                typer.echo(f"{'':<9}{printable(finding.fix)}")
    return findings
