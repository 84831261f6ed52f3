"""The daemon behind `ferry ship --watch`."""

import asyncio
import os
import signal
from pathlib import Path

import typer

from sessionferry.agent.daemon import Agent, Habits
from sessionferry.agent.discover import FormatChoice, homes, look
from sessionferry.agent.gate import Checked
from sessionferry.agent.pace import Hours
from sessionferry.agent.spool import SpoolDamaged, SpoolLock
from sessionferry.agent.tail import Timing
from sessionferry.cli.output import printable
from sessionferry.cli.ship import opened_spool, spool_name, spool_path
from sessionferry.host import Identity
from sessionferry.publisher import Publisher
from sessionferry.settings import Settings, endpoints

NICENESS = 10
"""How far the daemon stands back from everything else on the machine."""


async def watch(
    chosen: Settings,
    gate: Checked,
    identity: Identity,
    paths: list[Path],
    file_format: FormatChoice | None,
) -> None:
    """Follow files until SIGTERM or Ctrl-C."""
    target = endpoints(chosen)
    configured = [path.expanduser() for path in chosen.file().sources.paths]
    roots = [path.absolute() for path in paths or configured or homes(file_format)]
    os.nice(NICENESS)
    damage: SpoolDamaged | None = None
    with SpoolLock(spool_path(chosen, target)):
        typer.echo(f"Following {', '.join(printable(root) for root in roots)}.")
        while True:
            spool = opened_spool(chosen, target, damage)
            agent = Agent(
                spool,
                gate,
                identity,
                scan=lambda: look(roots, identity.user_id, file_format),
                roots=roots,
                open_link=lambda: Publisher(target),
                habits=_habits(chosen),
                spool_was_lost=identity.knew_spool(spool_name(target, chosen), spool.id),
            )
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, agent.stop)
            try:
                await agent.run()
                break
            except SpoolDamaged as error:
                damage = error
            finally:
                spool.close()
    typer.echo("Stopped. What was read is in the queue or in the spool.")


def _habits(chosen: Settings) -> Habits:
    return Habits(
        timing=Timing(chosen.live_seconds, chosen.live_kb * 1000, chosen.tail_seconds),
        scan_seconds=chosen.scan_seconds,
        heartbeat_seconds=chosen.heartbeat_seconds,
        idle_seconds=chosen.idle_seconds,
        bytes_per_second=chosen.rate_kb * 1000,
        hours=Hours.parse(chosen.hours or ""),
        newest_first=chosen.newest_first,
    )
