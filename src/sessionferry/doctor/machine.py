"""Checks of this machine as one that sends: from its configuration to its spool."""

import asyncio
import email.utils
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from uuid import uuid4

from sessionferry.agent.discover import Source
from sessionferry.agent.policy import Policy
from sessionferry.agent.retention import days_left, kept_by
from sessionferry.agent.spool import Spool, SpoolDamaged, SpoolLock
from sessionferry.agent.status import take_status
from sessionferry.archive import Archive
from sessionferry.config import digest, is_private
from sessionferry.doctor import Check, Finding, Verdict
from sessionferry.errors import FerryError, UserError
from sessionferry.host import Identity, redaction_key
from sessionferry.settings import Endpoints, Settings, holds_key

QUEUE_SECONDS = 20.0
"""How long the queue may take to answer."""
CLOCK_LOOKS_WRONG = 60.0
"""Seconds beside the server's time from which a clock is worth a look."""
CLOCK_IS_WRONG = 300.0
"""Seconds from which tokens are refused."""
DAYS_TO_ACT = 2.0
"""Days before a tool deletes unread sessions from which that is wrong."""
DAYS_TO_LOOK = 7.0
"""Days from which it is worth a look."""
PROBES = "_doctor"
"""Folder of the inbox in which `ferry doctor` tries whether it may add."""
_MOST_NAMED = 3


class _Said(NamedTuple):
    """How something is, and what to do about it."""

    verdict: Verdict
    said: str
    fix: str = ""


_Told = _Said | None
"""None: there is nothing to look at."""
_Look = Callable[[], _Told] | Callable[[], Awaitable[_Told]]


def _ok(said: str) -> _Said:
    return _Said(Verdict.OK, said)


def _warning(said: str, fix: str) -> _Said:
    return _Said(Verdict.WARNING, said, fix)


def _wrong(said: str, fix: str) -> _Said:
    return _Said(Verdict.WRONG, said, fix)


class Machine:
    """This machine, as the checks see it."""

    def __init__(
        self,
        settings: Settings,
        *,
        target: Callable[[], Endpoints],
        spool: Callable[[Endpoints], Path],
        sources: Callable[[], list[Source]],
        queue_seconds: float = QUEUE_SECONDS,
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._queue_seconds = queue_seconds
        self._target: Endpoints | None = None
        self._spool: Path | None = None
        self._no_target = ""
        try:
            self._target = target()
            self._spool = spool(self._target)
        except FerryError as error:
            self._no_target = str(error)

    def checks(self) -> list[Check]:
        """Return the checks in the order in which trouble is best looked for."""
        named: list[tuple[str, _Look]] = [
            ("configuration", self._configuration),
            ("redaction", self._redaction),
            ("identity", self._identity),
            ("permissions", self._permissions),
            ("sources", self._readable),
            ("retention", self._retention),
            ("queue", self._queue),
            ("inbox", self._inbox),
            ("clock of the queue", self._clock),
            ("disk", self._disk),
            ("spool", self._integrity),
            ("agent", self._agent),
        ]
        return [_check(subject, look) for subject, look in named]

    # ------------------------------------------------------------ configuration

    def _configuration(self) -> _Told:
        path = self._settings.config_path
        if not path.exists():
            return _ok(f"none ({path}); the defaults hold")
        found = self._settings.file()
        if holds_key(found.settings) and not is_private(path):
            return _wrong(f"{path} holds a key, and others may read it", _private_fix(path))
        return _ok(str(path))

    def _redaction(self) -> _Told:
        found = self._settings.file()
        policy = Policy.of(found, lambda: redaction_key(self._settings.identity))
        if found.redact.enabled:
            return _ok(f"on ({policy.rules})")
        target = self._target
        if target is None or target.local is not None or not _sends(target):
            return _ok("off; nothing leaves this machine")
        return _warning(
            "off: secrets in session files leave this machine",
            "`ferry agent config --init` writes a configuration in which it is on",
        )

    def _identity(self) -> _Told:
        identity = Identity.from_settings(self._settings)
        if not is_private(identity.path):
            return _warning(f"others may read {identity.path}", _private_fix(identity.path))
        return _ok(f"user {identity.user_id}, host {identity.host_id}")

    # ------------------------------------------------------------ files

    def _permissions(self) -> _Told:
        data = self._settings.data
        if not data.exists():
            return _ok(f"{data} is made on first use")
        if not os.access(data, os.W_OK | os.X_OK):
            return _wrong(f"{data} cannot be written to", f"make {data} yours: chown, chmod 700")
        if not is_private(data):
            return _warning(f"others may look into {data}", _private_fix(data))
        return _ok(f"{data} is yours alone")

    def _readable(self) -> _Told:
        try:
            sources = self._sources()
        except UserError as error:
            return _warning(str(error), "name them in sources.paths of the configuration")
        bad = [source.path for source in sources if not os.access(source.path, os.R_OK)]
        if bad:
            named = ", ".join(str(path) for path in bad[:_MOST_NAMED])
            more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
            return _wrong(
                f"{len(bad)} of {len(sources)} session files cannot be read: {named}{more}",
                "let the agent's user read them, or exclude them in filter.exclude_paths",
            )
        return _ok(f"{len(sources):,} session files, all readable")

    def _retention(self) -> _Told:
        """Say how long the tools leave us for what is not read yet."""
        try:
            sources = self._sources()
        except UserError:
            return None
        kept = [kept for source in sources if (kept := kept_by(source))]
        if not kept:
            return _ok("no tool here deletes its sessions")
        shortest, own = min(kept)
        told = f"Claude Code deletes sessions after {shortest:g} days"
        fix = f"raise cleanupPeriodDays in {own}, e.g. to 365; run `ferry ship`"
        left = self._days_left(sources)
        if left is None:
            return _ok(f"{told}; all of them are read") if shortest else _warning(told, fix)
        told = f"{told}; what is not read yet is safe for {left:.0f} days"
        if left < DAYS_TO_ACT:
            return _wrong(told, fix)
        return _ok(told) if left >= DAYS_TO_LOOK else _warning(told, fix)

    def _days_left(self, sources: list[Source]) -> float | None:
        if self._spool is not None and self._spool.exists():
            with suppress(SpoolDamaged), closing(Spool(self._spool, check=False)) as spool:
                return take_status(spool, sources, is_running=False).safe_days
        # Nothing says what was read.
        now = time.time()
        days = [
            days_left(source.path.stat().st_mtime, kept.days, now)
            for source in sources
            if (kept := kept_by(source))
        ]
        return min(days, default=None)

    def _disk(self) -> _Told:
        place = self._settings.data
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free // 1_000_000
        least, most = self._settings.spool_free_mb, self._settings.spool_mb
        if free <= least:
            return _wrong(
                f"{free:,} MB are free; below {least:,} MB nothing is spooled",
                "free some space, or lower FERRY_SPOOL_FREE_MB",
            )
        if free < least + most:
            return _warning(
                f"{free:,} MB are free; the spool may take {most:,} MB and leave {least:,} MB",
                "free some space, or lower FERRY_SPOOL_MB",
            )
        return _ok(f"{free:,} MB are free")

    # ------------------------------------------------------------ queue

    async def _queue(self) -> _Told:
        from sessionferry.publisher import Publisher

        target = self._target
        if target is None:
            return _wrong(self._no_target, "docs/guides/agent.md shows what a configuration names")
        if not _sends(target):
            return None
        if target.local is not None and not target.local.is_running(self._settings.data):
            return _wrong("`ferry local` is not running", "start it: ferry local")
        try:
            async with asyncio.timeout(self._queue_seconds):
                async with Publisher(target, retry_seconds=self._queue_seconds / 2) as publisher:
                    limit = publisher.limit // 1024
        except UserError as error:
            return _wrong(str(error), "docs/guides/fleet.md says how it gets the right to send")
        except (FerryError, TimeoutError) as error:
            return _wrong(
                str(error) or f"no answer within {self._queue_seconds:.0f} s",
                "look at the network and the proxy; port 5671 has to be open",
            )
        return _ok(f"{target.destination} takes messages of {limit:,} KB")

    async def _inbox(self) -> _Told:
        target = self._target
        if target is None or not _sends(target):
            return None
        try:
            async with asyncio.timeout(self._queue_seconds):
                # A right to add is proved by adding; what is old in an inbox is cleared away.
                await Archive.open(target.inbox).put(f"{PROBES}/{uuid4().hex}", b"\n")
        except (FerryError, TimeoutError) as error:
            return _wrong(
                str(error) or f"no answer within {self._queue_seconds:.0f} s",
                "what is too large for a message goes there: see FERRY_INBOX in "
                "docs/reference/settings.md, and docs/guides/fleet.md for the right to add",
            )
        url = urlsplit(target.inbox)
        return _ok(f"{url.scheme}://{url.hostname or ''}{url.path} takes what is put there")

    async def _clock(self) -> _Told:
        target = self._target
        if target is None or target.local is not None or not _sends(target):
            return None
        host = target.destination.partition("/")[0]
        try:
            ahead = await asyncio.to_thread(_seconds_ahead, f"https://{host}/")
        except (OSError, ValueError, TypeError):
            return None
        told = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {host}"
        if abs(ahead) >= CLOCK_IS_WRONG:
            return _wrong(told, "set the clock (timedatectl set-ntp true): tokens are refused")
        if abs(ahead) >= CLOCK_LOOKS_WRONG:
            return _warning(told, "set the clock: timedatectl set-ntp true")
        return _ok(told)

    # ------------------------------------------------------------ spool

    def _integrity(self) -> _Told:
        path = self._spool
        if path is None or not path.exists():
            return _ok("empty: nothing was shipped from here yet")
        try:
            with closing(Spool(path, check=True)) as spool:
                ledger = spool.ledger()
                failing = list(spool.errors().values())
                size = spool.used_bytes // 1000
        except SpoolDamaged as error:
            return _wrong(
                f"{path} is damaged ({error})",
                "nothing: the next `ferry ship` sets it aside and reads the files again",
            )
        if failing:
            where, reason, since = failing[0]
            return _warning(
                f"{len(failing)} files are not read on, e.g. {where} since {since}: {reason}",
                "`ferry status` names them all",
            )
        return _ok(f"sound; {ledger.spooled:,} lines ({size:,} KB) wait to be sent")

    def _agent(self) -> _Told:
        path = self._spool
        if path is None or not path.exists():
            return None
        running = SpoolLock(path).is_held()
        notes: dict[str, Any] = {}
        with suppress(SpoolDamaged), closing(Spool(path, check=False)) as spool:
            notes = spool.notes()
        if trouble := notes.get("trouble"):
            return _wrong(
                f"sending fails since {trouble['since']}: {trouble['error']}",
                "see `queue` above; what is read waits in the spool",
            )
        if running and (full := notes.get("full")):
            return _wrong(
                f"the spool is full since {full['since']}: reading waits",
                "make sure that the queue can be reached, or raise FERRY_SPOOL_MB",
            )
        if not running:
            return _warning("nothing follows the files", "`ferry agent install`")
        if wrong := notes.get("configuration"):
            return _wrong(
                f"it reads nothing since {wrong['since']}: {wrong['error']}",
                "correct that; it goes on by itself",
            )
        return self._at_work(notes.get("running") or {})

    def _at_work(self, running: dict[str, Any]) -> _Told:
        path = self._settings.config_path
        rules = running.get("rules") or "none"
        if running.get("configuration", "") != digest(path):
            return _warning(
                f"running, by another configuration than {path} is now (rules: {rules})",
                "it takes a change within seconds; else it was started with another FERRY_CONFIG",
            )
        return _ok(f"running (rules: {rules})")


def _check(subject: str, look: "_Look") -> Check:
    async def check(_settings: Settings) -> AsyncIterator[Finding]:
        try:
            told = look()
            told = told if isinstance(told, _Said | None) else await told
        except FerryError as error:
            told = _wrong(str(error), "")
        except OSError as error:
            told = _wrong(error.strerror or type(error).__name__, "")
        if told is not None:
            yield Finding(subject, *told)

    check.__name__ = "check_" + subject.replace(" ", "_")
    return check


def _private_fix(path: Path) -> str:
    if sys.platform == "win32":
        return f"move it into your profile: {Path.home()}"
    else:  # noqa: RET505 - mypy reads only its own platform's branch
        return f"chmod {700 if path.is_dir() else 600} {path}"


def _sends(target: Endpoints) -> bool:
    named = (target.connection, target.namespace, target.sas_file)
    return any(one is not None for one in named)


def _seconds_ahead(url: str) -> float:
    """Compare this clock with the time in a server's answer, whatever it answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - https only
            date = answer.headers["Date"]
    except HTTPError as error:
        date = error.headers["Date"]
    except URLError as error:
        raise OSError(str(error.reason)) from None
    return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
