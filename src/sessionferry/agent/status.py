"""What the agent has done and what it has not, file by file, out of its spool.

`stored` is not known here: the store is asked where it can be reached.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sessionferry.agent.content import is_packed
from sessionferry.agent.discover import Source
from sessionferry.agent.retention import days_left, kept_by
from sessionferry.agent.spool import FileState, Ledger, Spool


@dataclass(slots=True)
class FileStatus:
    """One file. Lines are those of its newest generation; `lag` is in bytes and in seconds."""

    source: Source
    read: int = 0
    filtered: int = 0
    spooled: int = 0
    sent: int = 0
    stored: int | None = None
    quarantined: int | None = None
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    error: str | None = None
    safe_days: float | None = None
    """Days until the tool may delete what was not read; None where it does not, or all was."""

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
    """The daemon at work: pid, since, version, roots, rules, configuration (its digest)."""
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


def take_status(spool: Spool, sources: Iterable[Source], *, is_running: bool) -> Status:
    """Compare what the spool knows with what lies on the disk now."""
    now = time.time()
    known = {(state.partition_key, state.role): state for state in spool.files()}
    errors = spool.errors()
    files = []
    for source in sources:
        name = (source.key.partition_key, source.role)
        status = _file_status(source, known.get(name), now)
        if name in errors:
            status.error = errors[name][1]
        files.append(status)
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


def _file_status(source: Source, state: FileState | None, now: float) -> FileStatus:
    status = FileStatus(source)
    known = state.known if state else None
    if state is not None and known is not None:
        status.read = known.lines
        status.filtered = known.filtered
        status.spooled = state.spooled
        status.sent = known.sent.sequence - state.spooled
        if state.oldest is not None:
            status.lag_seconds = max(0.0, now - state.oldest)
    try:
        there = source.path.stat()
    except OSError as error:
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
