"""The daemon behind `ferry ship --watch`.

It works by one reading of the configuration at a time. When the file changes, nothing more is read
by the old rules; it goes on by the new ones, and while they are wrong it waits. What may pass, a
full disk or a lock that another process has, is waited out: only a configuration that is wrong at
the start ends the daemon.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from sessionferry import __version__, config
from sessionferry.agent import logs
from sessionferry.agent.daemon import Agent, Habits
from sessionferry.agent.discover import FormatChoice, Source, homes, look
from sessionferry.agent.gate import Checked
from sessionferry.agent.hours import Hours
from sessionferry.agent.priority import stand_back
from sessionferry.agent.spool import Spool, SpoolDamaged, SpoolLock
from sessionferry.agent.tail import Timing
from sessionferry.batch import utc_now
from sessionferry.cli.agent import log_folder
from sessionferry.cli.output import printable, settings
from sessionferry.cli.ship import (
    configured_roots,
    gate_of,
    opened_spool,
    spool_name,
    spool_path,
)
from sessionferry.config import Config
from sessionferry.errors import FerryError, UserError, refused
from sessionferry.host import Identity
from sessionferry.publisher import Publisher
from sessionferry.settings import Endpoints, Settings, config_path, endpoints
from sessionferry.stopping import on_stop

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the configuration is looked at. A change is taken when it is as old as that."""
LINK_SECONDS = 10.0
"""How long the queue is tried before that shows as trouble; the daemon tries again by itself."""
FIRST_PAUSE = 1.0
"""Seconds after a failure that may pass; each further one doubles the pause."""
LONGEST_PAUSE = 60.0


async def watch(data: Path | None, paths: list[Path], file_format: FormatChoice | None) -> None:
    """Follow files until SIGTERM or Ctrl-C. Raises `UserError` for what is wrong at the start."""
    daemon = _Daemon(_Asked(data, paths, file_format))
    on_stop(daemon.stopping.set)
    stand_back()
    await daemon.run()
    typer.echo("Stopped. What was read is in the queue or in the spool.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the command line says."""

    data: Path | None
    paths: list[Path]
    file_format: FormatChoice | None


@dataclass(frozen=True, slots=True)
class _Setup:
    """One reading of the configuration, and what follows from it."""

    seen: tuple[int, ...] | None
    digest: str
    config: Config
    chosen: Settings
    target: Endpoints
    identity: Identity
    gate: Checked
    roots: list[Path]
    asked: _Asked

    @classmethod
    def read(cls, asked: _Asked) -> "_Setup":
        """Read the configuration as it is now; raises `UserError` where it is wrong."""
        # Before anything else: what is written meanwhile is another version.
        path = config_path()
        version = config.seen(path), config.digest(path)
        chosen = settings(asked.data)
        target = endpoints(chosen)
        usual = configured_roots(chosen, asked.file_format, homes(asked.file_format))
        roots = [path.absolute() for path in asked.paths or usual]
        return cls(
            *(*version, chosen.file(), chosen, target, Identity.from_settings(chosen)),
            *(gate_of(chosen), roots, asked),
        )

    @property
    def spool_path(self) -> Path:
        return spool_path(self.chosen, self.target)

    def is_outdated(self) -> bool:
        """Whether the file is another one by now."""
        return config.seen(config_path()) != self.seen

    def scan(self) -> list[Source]:
        described = self.config.sources.jsonl
        return look(self.roots, self.identity.user_id, self.asked.file_format, described)


class _Daemon:
    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Follow files by one setup after the other, until told to stop."""
        setup: _Setup | None = None
        clock = asyncio.get_running_loop().time
        pause = FIRST_PAUSE
        while not self.stopping.is_set():
            began = clock()
            try:
                if setup is None:
                    setup = _Setup.read(self._asked)
                elif setup.is_outdated():
                    # What failed may be what was changed.
                    setup = await self._next_setup(setup)
                if setup is not None:
                    setup = await self._follow(setup)
            except UserError:
                raise
            except FerryError as error:
                if clock() - began > LONGEST_PAUSE:
                    pause = FIRST_PAUSE
                typer.echo(f"ferry: {printable(error)} Tried again in {pause:.0f} s.", err=True)
                await self._is_stopped_within(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _follow(self, setup: _Setup) -> _Setup | None:
        """Follow files by a setup; return the next one, or None at the end."""
        with SpoolLock(setup.spool_path), _logging(setup):
            names = [printable(root) for root in setup.roots]
            told = {"version": __version__, "rules": setup.gate.rules, "roots": " ".join(names)}
            log.info("following", extra={"event": "started", **told})
            typer.echo(f"Following {', '.join(names)}.")
            try:
                await self._work(setup)
                if not self.stopping.is_set():
                    return await self._next_setup(setup) if setup.is_outdated() else setup
            except FerryError as error:
                log.warning("failed: %s", error, extra={"event": "failed"})
                raise
            log.info("stopped", extra={"event": "stopped"})
        return None

    async def _work(self, setup: _Setup) -> None:
        """Let the agent work until it is told to stop, or has to begin anew."""
        damage: SpoolDamaged | None = None
        while True:
            spool = opened_spool(setup.chosen, setup.target, damage)
            spool.note("configuration", None)
            name = spool_name(setup.target, setup.chosen)
            agent = Agent(
                spool,
                setup.gate,
                setup.identity,
                scan=setup.scan,
                roots=setup.roots,
                open_link=lambda: Publisher(setup.target, retry_seconds=LINK_SECONDS),
                habits=_habits(setup.chosen),
                spool_was_lost=setup.identity.knew_spool(name, spool.id),
                configuration=setup.digest,
                is_outdated=setup.is_outdated,
            )
            try:
                with _metrics(setup, spool):
                    await self._until_told(agent, setup, spool)
            except SpoolDamaged as error:
                damage = error
                log.warning("the spool is damaged", extra={"event": "damaged"})
            else:
                return
            finally:
                spool.close()

    async def _until_told(self, agent: Agent, setup: _Setup, spool: Spool) -> None:
        running = asyncio.create_task(agent.run())
        told = asyncio.create_task(self._is_told(setup, spool))
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
        agent.stop()
        told.cancel()
        await running

    async def _is_told(self, setup: _Setup, spool: Spool) -> None:
        """Return once the configuration has changed, the spool is gone, or at the end."""
        while not setup.is_outdated():
            if not spool.is_in_place():
                log.warning("the spool is gone: files are read again", extra={"event": "gone"})
                return
            if await self._is_stopped_within(LOOK_SECONDS):
                return

    async def _next_setup(self, before: _Setup) -> _Setup | None:
        """Read the configuration anew once nobody is writing it; while it is wrong, wait."""
        log.info("the configuration has changed", extra={"event": "configuration"})
        said = ""
        path = config_path()
        now = config.seen(path)
        while not await self._is_stopped_within(LOOK_SECONDS):
            last, now = now, config.seen(path)
            if last != now:
                continue
            try:
                if before.seen and not now:
                    raise UserError(f"{path} is gone.")
                return _Setup.read(self._asked)
            except FerryError as error:
                if str(error) != said:
                    said = str(error)
                    _note_wrong(before, said)
        return None

    async def _is_stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return self.stopping.is_set()


def _note_wrong(setup: _Setup, said: str) -> None:
    """Say where somebody may look that nothing is read before the configuration is right."""
    log.warning("nothing is read: %s", said, extra={"event": "configuration"})
    typer.echo(f"ferry: Nothing is read before this is right: {printable(said)}", err=True)
    # Where the spool is in trouble too, the log says so.
    with suppress(FerryError), closing(opened_spool(setup.chosen, setup.target)) as spool:
        spool.note("configuration", {"error": printable(said), "since": utc_now()})


@contextmanager
def _logging(setup: _Setup) -> Iterator[None]:
    """Log into the data folder; on the terminal only what somebody has to see."""
    for other in logging.getLogger().handlers:
        other.setLevel(logging.WARNING)
    folder = log_folder(setup.chosen)
    try:
        handler = logs.start(folder, setup.config.log)
    except OSError as error:
        raise refused(f"The log in {folder} cannot be written", error) from None
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def _metrics(setup: _Setup, spool: Spool) -> Iterator[None]:
    """Serve metrics, if they are asked for."""
    port = setup.config.metrics.port
    if port is None:
        yield
        return
    from sessionferry.agent.metrics import Snapshot, serve

    try:
        end = serve(port, lambda: Snapshot(spool.ledger(), spool.used_bytes, spool.notes()))
    except OSError as error:
        raise refused(f"metrics.port: {port} cannot be served on", error) from None
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
