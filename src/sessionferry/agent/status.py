"""What the agent has done and what it has not, file by file, out of its spool.

`stored` is not known here: the store is asked where it can be reached.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sessionferry.agent.content import is_packed
from sessionferry.agent.discover import Role, Source
from sessionferry.agent.retention import days_left, kept_by
from sessionferry.agent.spool import FileState, Ledger, Spool
from sessionferry.identity import SEPARATOR, SessionKey


@dataclass(slots=True)
class FileStatus:
    """One file. Lines are those of its newest generation; `lag` is in bytes and in seconds."""

    source: Source
    read: int = 0
    filtered: int = 0
    spooled: int = 0
    sent: int = 0
    generation: int = 0
    stored: int | None = None
    """Lines of this very generation, and so `quarantined`; None while the store was not asked."""
    quarantined: int | None = None
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    error: str | None = None
    is_gone: bool = False
    safe_days: float | None = None
    """Days until the tool may delete what was not read; None where it does not, or all was."""

    def note_stored(self, generation: int, stored: int, quarantined: int) -> None:
        """Take in what is stored of the newest generation there."""
        is_ours = generation == self.generation
        self.stored = stored if is_ours else 0
        self.quarantined = quarantined if is_ours else 0
        if generation > self.generation and self.read:
            self.error = f"generation {generation} is stored, {self.generation} was sent from here"

    @property
    def is_settled(self) -> bool:
        """Whether nothing of the file is left to do, as far as is known."""
        waits = self.spooled or self.lag_bytes or self.error
        kept = (self.stored or 0) + (self.quarantined or 0)
        return not waits and (self.stored is None or kept >= self.sent)


@dataclass(frozen=True, slots=True)
class Status:
    """The agent as a whole."""

    ledger: Ledger
    files: list[FileStatus]
    running: dict[str, Any] | None
    """The daemon at work: pid, since, version, roots, rules, hours, configuration
    (its digest)."""
    wrong: dict[str, Any] | None
    """Why the daemon reads nothing: the configuration's error, since."""
    contact: str | None
    """When the queue last took something."""
    trouble: dict[str, Any] | None
    """Why sending fails: error, kind, since."""
    full_since: str | None
    spool_bytes: int
    safe_days: float | None
    """The shortest of the files' days, while something is unread."""


def take_status(
    spool: Spool,
    sources: Iterable[Source],
    *,
    is_running: bool,
    also: Callable[[Path], bool] = lambda _: False,
) -> Status:
    """Compare what the spool knows with what lies on the disk now.

    Of the other files that the spool knows those are looked at too that are `also` asked for.
    """
    now = time.time()
    known = {(state.partition_key, state.role): state for state in spool.files()}
    errors = spool.errors()
    files = []
    for source in sources:
        name = (source.key.partition_key, source.role)
        status = _file_status(source, known.pop(name, None), now)
        if failure := errors.pop(name, None):
            status.error = failure[1]
        files.append(status)
    others = [
        _other_status(name, known.get(name), errors.get(name), now)
        for name in known.keys() | errors.keys()
    ]
    asked = [one for one in others if one is not None and also(one.source.path)]
    files += sorted(asked, key=lambda one: one.source.path)
    notes = spool.notes()
    days = [status.safe_days for status in files if status.safe_days is not None]
    return Status(
        ledger=spool.ledger(),
        files=files,
        running=notes.get("running") if is_running else None,
        wrong=notes.get("configuration") if is_running else None,
        contact=(notes.get("contact") or {}).get("at"),
        trouble=notes.get("trouble"),
        full_since=(notes.get("full") or {}).get("since") if is_running else None,
        spool_bytes=spool.used_bytes,
        safe_days=min(days, default=None),
    )


def _other_status(
    name: tuple[str, str], state: FileState | None, failure: tuple[str, str, str] | None, now: float
) -> FileStatus | None:
    """Look at a file that only the spool names; None when it is gone, and all of it was sent."""
    path = Path(failure[0] if failure else state.path if state else "")
    key = SessionKey.of(name[0])
    source = Source(path, key or SessionKey(*name[0].split(SEPARATOR)), cast("Role", name[1]), "")
    status = _file_status(source, state, now)
    if status.is_gone:
        # What was read of it is safe, and there is no more.
        status.error = None
    if failure is not None:
        status.error = failure[1]
    # Where the key cannot be told the store cannot be asked either.
    is_of_interest = key is not None and not status.is_gone
    return status if is_of_interest or not status.is_settled else None


def _file_status(source: Source, state: FileState | None, now: float) -> FileStatus:
    status = FileStatus(source)
    known = state.known if state else None
    if state is not None and known is not None:
        status.read = known.lines
        status.filtered = known.filtered
        status.spooled = state.spooled
        status.generation = known.generation
        status.sent = known.sent.sequence - state.spooled
        if state.oldest is not None:
            status.lag_seconds = max(0.0, now - state.oldest)
    try:
        there = source.path.stat()
    except OSError as error:
        status.is_gone = isinstance(error, FileNotFoundError)
        status.error = error.strerror
        return status
    read = known.size if known and known.size >= 0 else known.offset if known else 0
    unchanged = known is not None and known.modified_ns == there.st_mtime_ns
    same_size = read == there.st_size or is_packed(source.path)
    status.lag_bytes = 0 if unchanged and same_size else _unread(there.st_size, read)
    if status.lag_bytes:
        status.lag_seconds = max(status.lag_seconds, now - there.st_mtime, 0.0)
        if kept := kept_by(source):
            status.safe_days = days_left(there.st_mtime, kept.days, now)
    return status


def _unread(size: int, read: int) -> int:
    """Return how much is to be read: all of a file that was rewritten."""
    return size - read if size > read else size
