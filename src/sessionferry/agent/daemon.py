"""The agent as a daemon: follow the files, spool what is new, send it, say that all is well.

Two tasks share one spool. Following reads files in a thread of its own and never waits for the
network; sending opens a link when something waits and closes it when nothing does.
"""

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from watchfiles import awatch

from sessionferry import __version__
from sessionferry.agent.collecting import STANDARD_LIMIT, Collector, Report, Stopped
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked
from sessionferry.agent.heart import Heart
from sessionferry.agent.hours import Hours
from sessionferry.agent.sending import Link, Sending
from sessionferry.agent.spool import Spool, SpoolDamaged
from sessionferry.agent.tail import Due, Tail, Timing
from sessionferry.batch import utc_now
from sessionferry.errors import UserError, classify, retry_after
from sessionferry.host import Identity
from sessionferry.pacing import Pace

log = logging.getLogger(__name__)

FIRST_PAUSE = 2.0
"""Seconds after a first failure to send; each further one doubles the pause."""
LONGEST_PAUSE = 300.0
"""Seconds at most between attempts to send."""
ROOM_SECONDS = 1.0
"""How often a full spool is looked at again."""
WATCHED_SCANS = 10
"""How much rarer scans are where the file system reports changes."""
RESCAN_SECONDS = 5.0
"""Least time between scans that unknown files ask for."""
STATE_SECONDS = 1800.0
"""How often the consumer is told what the queue took: it looks an hour later at the earliest."""
STOP_SECONDS = 10.0
"""How long the end of the agent may take, to send what waits."""


class LimitedLink(Link, Protocol):
    """A link that says what it takes."""

    @property
    def limit(self) -> int:
        """Most bytes of one message's body."""
        ...


OpenLink = Callable[[], AbstractAsyncContextManager[LimitedLink]]


class Habits(NamedTuple):
    """How the agent works. Times in seconds."""

    timing: Timing = Timing()
    scan_seconds: float = 30.0
    heartbeat_seconds: float = 300.0
    idle_seconds: float = 60.0
    bytes_per_second: int = 0
    hours: Hours | None = None
    newest_first: bool = False


class Agent:
    """Follows files and sends what is new, until it is told to stop."""

    def __init__(
        self,
        spool: Spool,
        gate: Checked,
        identity: Identity,
        *,
        scan: Callable[[], list[Source]],
        roots: Sequence[Path],
        open_link: OpenLink,
        habits: Habits | None = None,
        spool_was_lost: bool = False,
        configuration: str = "",
        is_outdated: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what to follow, and how.

        `configuration` names what all this was read from. `is_outdated` says whether that has
        changed: asked before each file, and then nothing more is read.
        """
        self._spool = spool
        self._rules = gate.rules
        self._configuration = configuration
        self._is_outdated = is_outdated
        self._habits = habits or Habits()
        self._roots = roots
        self._open_link = open_link
        self._heart = Heart(identity)
        self._tail = Tail(scan, self._habits.timing, newest_first=self._habits.newest_first)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._ended = threading.Event()
        self._news = asyncio.Event()
        self._is_full = False
        self._collector = Collector(
            spool,
            gate,
            identity,
            limit=int(spool.notes().get("limit", STANDARD_LIMIT)),
            spool_was_lost=spool_was_lost,
            tail_seconds=self._habits.timing.quiet_seconds,
            committed=self._wake,
            make_room=self._wait_for_room,
        )

    @property
    def report(self) -> Report:
        """What was collected since the start."""
        return self._collector.report

    def stop(self) -> None:
        """End soon: nothing more is read, and what waits is sent if the queue can be reached."""
        self._stopping.set()
        self._ended.set()
        self._collector.stop()

    async def run(self) -> None:
        """Work until `stop`, or until it is outdated; what fails in passing is tried again."""
        running = {
            "pid": os.getpid(),
            "since": utc_now(),
            "version": __version__,
            "roots": [str(root) for root in self._roots],
            "rules": self._rules,
            "hours": str(self._habits.hours) if self._habits.hours else None,
            "configuration": self._configuration,
        }
        self._spool.note("running", running)
        following = asyncio.create_task(self._follow())
        sending = asyncio.create_task(self._send())
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({following, sending, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            await asyncio.wait({following, told})
            await _ended_within(sending, STOP_SECONDS)
            self._tail.close()
        for task in (following, sending):
            if not task.cancelled():
                task.result()
        self._spool.note("running", None)

    # ------------------------------------------------------------ following

    async def _follow(self) -> None:
        changes = _Changes(self._roots)
        try:
            await self._scan()
            scanned = self._loop.time()
            while not self._stopping.is_set():
                await self._collect_due()
                changed = await self._next_changes(changes, scanned)
                unknown = self._tail.changed(changed)
                since = self._loop.time() - scanned
                if since >= self._scan_every(changes) or (unknown and since >= RESCAN_SECONDS):
                    await self._scan()
                    changes.renew()
                    scanned = self._loop.time()
        finally:
            await changes.close()

    async def _scan(self) -> None:
        try:
            await asyncio.to_thread(self._tail.scan)
            await asyncio.to_thread(self._spool.heal_gone)
        except OSError as error:
            # A folder that cannot be entered now may be open to us at the next look.
            log.warning("the files could not be looked for: %s", error)

    async def _next_changes(self, changes: "_Changes", scanned: float) -> set[Path]:
        """Wait for the file system, the next file that is due, the next scan, or the end."""
        now = self._loop.time()
        until = scanned + self._scan_every(changes) - now
        due = self._tail.next_time()
        if due is not None:
            until = min(until, due - time.monotonic())
        return await changes.within(max(until, 0.0), self._stopping)

    def _scan_every(self, changes: "_Changes") -> float:
        """Return the seconds between looks at all files: few where changes are reported anyway."""
        return self._habits.scan_seconds * (WATCHED_SCANS if changes.are_reported else 1)

    async def _collect_due(self) -> None:
        due = self._tail.due()
        if due:
            with suppress(Stopped):
                await asyncio.to_thread(self._collect, due)

    def _collect(self, due: list[Due]) -> None:
        report = self._collector.report
        lines, filtered = report.lines, report.filtered
        try:
            for source, content in due:
                if self._is_outdated():
                    self._loop.call_soon_threadsafe(self.stop)
                    raise Stopped
                size, sent = report.bytes, report.sent_bytes
                well = self._collector.collect_one(source, content)
                packed = report.sent_bytes - sent
                ratio = (report.bytes - size) / packed if packed else None
                self._tail.done(source, ratio, failed=not well)
        finally:
            report.failed.clear()
            self._collector.commit()
            if report.lines > lines:
                counts = {"lines": report.lines - lines, "filtered": report.filtered - filtered}
                log.info("read", extra={"event": "read", "files": len(due), **counts})

    def _wake(self) -> None:
        """Tell the sender, which lives in the loop's thread, that batches are waiting."""
        if self._is_full:
            self._is_full = False
            self._spool.note("full", None)
        self._loop.call_soon_threadsafe(self._news.set)

    def _wait_for_room(self) -> None:
        if not self._is_full:
            self._is_full = True
            self._spool.note("full", {"since": utc_now()})
            log.warning("the spool is full: reading waits until batches were sent")
        self._loop.call_soon_threadsafe(self._news.set)
        self._ended.wait(ROOM_SECONDS)

    # ------------------------------------------------------------ sending

    async def _send(self) -> None:
        failures = 0
        self._beat_at = self._state_at = self._loop.time()
        while not self._stopping.is_set() or self._spool.has_batches():
            await self._until_there_is_something()
            if self._stopping.is_set() and (failures or self._seconds_to_wait()):
                return
            try:
                async with self._open_link() as link:
                    self._collector.limit = link.limit
                    self._spool.note("limit", link.limit)
                    await self._send_while_busy(link)
                    failures = 0
            except SpoolDamaged:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the client raises may pass
                failures += 1
                await self._pause(error, failures)

    async def _send_while_busy(self, link: LimitedLink) -> None:
        """Send until nothing was to be sent for a while, or the hours are over."""
        pace = Pace(self._habits.bytes_per_second)
        sending = Sending(self._spool, link, pace, lambda: not self._seconds_to_wait())
        while True:
            self._news.clear()
            count = await sending.send_all()
            if count:
                await sending.flush()
                log.info("sent", extra={"event": "sent", "batches": count})
            if self._loop.time() >= self._beat_at or self._stopping.is_set():
                await self._beat(sending)
                count += 1
            if count:
                self._spool.note("contact", {"at": utc_now()})
                self._spool.note("trouble", None)
            if self._stopping.is_set() or self._seconds_to_wait():
                return
            if not await self._woken_within(self._habits.idle_seconds):
                return

    async def _beat(self, sending: Sending) -> None:
        """Send a heartbeat; once in a while, and at the end, with what the queue took."""
        now = self._loop.time()
        is_due = now >= self._state_at or self._stopping.is_set()
        await sending.beat(self._heart, state=is_due)
        self._beat_at = now + self._habits.heartbeat_seconds
        if is_due:
            self._state_at = now + STATE_SECONDS

    async def _until_there_is_something(self) -> None:
        """Wait for a batch or the time of a heartbeat, and for the hours of sending."""
        while not self._stopping.is_set():
            closed_for = self._seconds_to_wait()
            is_time = self._loop.time() >= self._beat_at
            if not closed_for and (is_time or self._spool.has_batches()):
                return
            self._news.clear()
            until_beat = max(self._beat_at - self._loop.time(), 0.0)
            await self._woken_within(min(closed_for, 60.0) if closed_for else until_beat)

    def _seconds_to_wait(self) -> float:
        hours = self._habits.hours
        return hours.seconds_until(datetime.now().astimezone()) if hours else 0.0

    async def _woken_within(self, seconds: float) -> bool:
        """Wait for batches, or the end; whether either came in time."""
        waits = [asyncio.create_task(event.wait()) for event in (self._news, self._stopping)]
        done, waiting = await asyncio.wait(
            waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waiting:
            wait.cancel()
        return bool(done)

    async def _pause(self, error: Exception, failures: int) -> None:
        """Note why sending failed, and wait: longer each time, or as long as the server said."""
        longest = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        seconds = retry_after(error, longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        level = logging.WARNING if failures == 1 else logging.INFO
        log.log(level, "sending failed, tried again in %.0f s: %s", seconds, error)
        said = str(error) or type(error).__name__
        trouble = {"error": said, "kind": _kind(error), "since": utc_now()}
        known = self._spool.notes().get("trouble")
        if known and known.get("error") == trouble["error"]:
            trouble["since"] = known["since"]
        self._spool.note("trouble", trouble)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


class _Changes:
    """Paths that the file system reports; none, where it reports nothing."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots
        self._watched: set[Path] = set()
        self._stop = asyncio.Event()
        self._found: set[Path] = set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.renew()

    def renew(self) -> None:
        """Watch again after a failure, or when a folder has come into being."""
        # A single file is replaced under our hands; the scans look at it.
        there = {root.resolve() for root in self._roots if _is_folder(root)}
        if there != self._watched or (self._task is not None and self._task.done()):
            self._stop.set()
            self._stop = asyncio.Event()
            self._watched = there
            self._task = asyncio.create_task(self._watch(there)) if there else None

    @property
    def are_reported(self) -> bool:
        """Whether all that is followed is watched by the file system."""
        is_watching = self._task is not None and not self._task.done()
        return is_watching and len(self._watched) == len(self._roots)

    async def within(self, seconds: float, stopping: asyncio.Event) -> set[Path]:
        """Return what changed as soon as something does; nothing after so many seconds."""
        waits = [asyncio.create_task(event.wait()) for event in (self._news, stopping)]
        _, waiting = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waiting:
            wait.cancel()
        self._news.clear()
        found, self._found = self._found, set()
        return found

    async def close(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _watch(self, roots: set[Path]) -> None:
        try:
            async for paths in _events(roots, self._stop):
                self._found |= paths
                self._news.set()
        except (OSError, RuntimeError) as error:
            # No events here, or too many folders: the scans find what changed.
            log.info("the file system reports no changes (%s); files are looked at in turn", error)


async def _events(roots: set[Path], stop: asyncio.Event) -> AsyncIterator[set[Path]]:
    # A step is the wait between looks at the events: 50 ms by default would never let us sleep.
    async for changes in awatch(
        *roots,
        watch_filter=None,
        stop_event=stop,
        step=200,
        debounce=1000,
        force_polling=False,
        ignore_permission_denied=True,
    ):
        yield {Path(path) for _, path in changes}


async def _ended_within(task: "asyncio.Task[None]", seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _kind(error: Exception) -> str:
    return "rights" if isinstance(error, UserError) else classify(error).value
