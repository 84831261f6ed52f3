"""The daemon behind `ferry ship --watch`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from sessionferry import __version__
from sessionferry.agent import logs
from sessionferry.agent.daemon import Agent, Habits
from sessionferry.agent.discover import FormatChoice, homes, look
from sessionferry.agent.gate import Checked
from sessionferry.agent.hours import Hours
from sessionferry.agent.priority import stand_back
from sessionferry.agent.spool import Spool, SpoolDamaged, SpoolLock
from sessionferry.agent.tail import Timing
from sessionferry.cli.agent import log_folder
from sessionferry.cli.output import printable
from sessionferry.cli.ship import configured_roots, opened_spool, spool_name, spool_path
from sessionferry.errors import UserError
from sessionferry.host import Identity
from sessionferry.publisher import Publisher
from sessionferry.settings import Settings, endpoints
from sessionferry.stopping import on_stop

log = logging.getLogger(__name__)


async def watch(
    chosen: Settings,
    gate: Checked,
    identity: Identity,
    paths: list[Path],
    file_format: FormatChoice | None,
) -> None:
    """Follow files until SIGTERM or Ctrl-C."""
    target = endpoints(chosen)
    usual = configured_roots(chosen, file_format, homes(file_format))
    roots = [path.absolute() for path in paths or usual]
    described = chosen.file().sources.jsonl
    stand_back()
    damage: SpoolDamaged | None = None
    with SpoolLock(spool_path(chosen, target)), _logging(chosen):
        log.info(
            "following",
            extra={
                "event": "started",
                "version": __version__,
                "rules": gate.rules,
                "roots": " ".join(map(printable, roots)),
            },
        )
        typer.echo(f"Following {', '.join(printable(root) for root in roots)}.")
        while True:
            spool = opened_spool(chosen, target, damage)
            agent = Agent(
                spool,
                gate,
                identity,
                scan=lambda: look(roots, identity.user_id, file_format, described),
                roots=roots,
                open_link=lambda: Publisher(target),
                habits=_habits(chosen),
                spool_was_lost=identity.knew_spool(spool_name(target, chosen), spool.id),
            )
            on_stop(agent.stop)
            try:
                with _metrics(chosen, spool):
                    await agent.run()
                break
            except SpoolDamaged as error:
                damage = error
                log.warning("the spool is damaged", extra={"event": "damaged"})
            finally:
                spool.close()
        log.info("stopped", extra={"event": "stopped"})
    typer.echo("Stopped. What was read is in the queue or in the spool.")


@contextmanager
def _logging(chosen: Settings) -> Iterator[None]:
    """Log into the data folder; on the terminal only what somebody has to see."""
    for other in logging.getLogger().handlers:
        other.setLevel(logging.WARNING)
    handler = logs.start(log_folder(chosen), chosen.file().log)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def _metrics(chosen: Settings, spool: Spool) -> Iterator[None]:
    """Serve metrics, if they are asked for."""
    port = chosen.file().metrics.port
    if port is None:
        yield
        return
    from sessionferry.agent.metrics import Snapshot, serve

    try:
        end = serve(port, lambda: Snapshot(spool.ledger(), spool.used_bytes, spool.notes()))
    except OSError as error:
        reason = error.strerror or "it cannot be used"
        raise UserError(f"metrics.port: {port} cannot be served on: {reason}.") from None
    try:
        yield
    finally:
        end()


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
