"""Tailing: which files have something new, and when it is time to read them.

A file that was found when tailing began is due at once. One that changes later is due some seconds
after its first change, or when enough has been written, so that batches are few. When it has been
quiet for a while it is due once more: for an unterminated last line, and for a sure comparison.

`Tail` asks the file system; what it decides on is in `Followed`, with the clock handed in.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sessionferry.agent.discover import Source
from sessionferry.agent.opening import open_shared

log = logging.getLogger(__name__)

CLOCK_SECONDS = 0.05
"""By how much the file system's clock and ours may differ."""
FIRST_RATIO = 4.0
"""What a file's bytes are expected to compress to before any of them were."""
RETRY_SECONDS = 300.0
"""When a file that could not be read is tried again, though it has not changed."""
MOST_HELD = 256
"""Changed files that are held open until they are read, so that their end survives a rotation."""


class Timing(NamedTuple):
    """When changed files are read. Seconds, and compressed bytes."""

    live_seconds: float = 30.0
    live_bytes: int = 200_000
    quiet_seconds: float = 300.0


class Seen(NamedTuple):
    """What the file system says of a file."""

    inode: tuple[int, int]
    size: int
    modified_ns: int

    @classmethod
    def of(cls, state: os.stat_result) -> "Seen":
        """Read what a call of `stat` returned."""
        return cls((state.st_dev, state.st_ino), state.st_size, state.st_mtime_ns)


@dataclass(slots=True)
class Followed:
    """One file, and what is to be done with it. Times are those of a monotonic clock."""

    source: Source
    seen: Seen | None = None
    read: Seen | None = None
    """What the file system said when it was last read."""
    due_at: float | None = None
    quiet_at: float | None = None
    ratio: float = FIRST_RATIO
    begun_at: float = -math.inf
    """When its last reading began."""

    def notice(self, seen: Seen, now: float, timing: Timing) -> bool:
        """Take in what the file system says; whether that is a change."""
        if seen == self.seen:
            return False
        self.seen = seen
        self.quiet_at = now + timing.quiet_seconds
        soon = now + timing.live_seconds
        self.due_at = soon if self.due_at is None else min(self.due_at, soon)
        if self._waiting(seen) >= timing.live_bytes * self.ratio:
            self.due_at = now
        return True

    def done(self, seen: Seen, now: float, *, failed: bool = False) -> None:
        """Note that the file was read, or tried."""
        self.read = seen
        self.due_at = now + RETRY_SECONDS if failed else None
        # A reading that began before the file was quiet has not sent its torn line.
        if self.quiet_at is not None and self.quiet_at <= self.begun_at:
            self.quiet_at = None

    def is_due(self, now: float) -> bool:
        """Whether it is time to read the file."""
        return any(at is not None and at <= now for at in (self.due_at, self.quiet_at))

    def next_time(self) -> float | None:
        """When that will be, if nothing else happens."""
        return min((at for at in (self.due_at, self.quiet_at) if at is not None), default=None)

    def _waiting(self, seen: Seen) -> int:
        if self.read is None or self.read.inode != seen.inode or self.read.size > seen.size:
            return seen.size
        return seen.size - self.read.size


class Due(NamedTuple):
    """A file to be read now; `content` is open where its name may lead elsewhere by now."""

    source: Source
    content: BinaryIO | None = None


class Tail:
    """Follows the files that `scan` finds."""

    def __init__(
        self,
        scan: Callable[[], list[Source]],
        timing: Timing,
        *,
        newest_first: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scan = scan
        self._timing = timing
        self._newest_first = newest_first
        self._clock = clock
        self._files: dict[Path, Followed] = {}
        self._held: dict[Path, BinaryIO] = {}
        self._begun = False

    def __len__(self) -> int:
        return len(self._files)

    def scan(self) -> None:
        """Look at all files: new ones, changed ones, and those that are gone."""
        now = self._clock()
        found = {source.path: source for source in self._scan()}
        for path in self._files.keys() - found.keys():
            self._lose(path)
        for path, source in found.items():
            followed = self._files.setdefault(path, Followed(source))
            # A file may become another one: its session is told from its place.
            followed.source = source
            self._look(followed, now)
        self._begun = True

    def changed(self, paths: Iterable[Path]) -> bool:
        """Look at these files; whether one of them is unknown, so that a scan is worth while."""
        now = self._clock()
        unknown = False
        for path in paths:
            followed = self._files.get(path)
            if followed is None:
                unknown = True
            else:
                self._look(followed, now)
        return unknown

    def due(self) -> list[Due]:
        """Return what is to be read now: parents first, or days newest first."""
        now = self._clock()
        files = [followed for followed in self._files.values() if followed.is_due(now)]
        if self._newest_first:
            files.sort(key=_day, reverse=True)
        found: list[Due] = []
        for followed in files:
            followed.begun_at = now
            # Another file may be in its place since the last look.
            self._look(followed, now)
            found += self._of(followed)
        return found

    def done(self, source: Source, ratio: float | None, *, failed: bool = False) -> None:
        """Note that a file was read, and what its bytes were compressed to."""
        followed = self._files.get(source.path)
        if followed is None or followed.seen is None:
            return
        if ratio is not None:
            followed.ratio = max(ratio, 1.0)
        followed.done(followed.seen, self._clock(), failed=failed)
        self._release(source.path)

    def next_time(self) -> float | None:
        """When the next file is due, if nothing else happens."""
        times = (followed.next_time() for followed in self._files.values())
        return min((at for at in times if at is not None), default=None)

    def close(self) -> None:
        """Let go of all files."""
        for path in list(self._held):
            self._release(path)

    # ------------------------------------------------------------ files

    def _look(self, followed: Followed, now: float) -> None:
        path = followed.source.path
        try:
            state = path.stat()
        except OSError:
            # Gone for a moment, as in an atomic replacement, or for good: the scan will tell.
            return
        seen = Seen.of(state)
        if not self._begun:
            followed.due_at = now
            quiet_for = max(time.time() - state.st_mtime, 0)
            if quiet_for < self._timing.quiet_seconds:
                followed.quiet_at = now + self._timing.quiet_seconds - quiet_for + CLOCK_SECONDS
            followed.seen = seen
            return
        before = followed.seen
        if followed.notice(seen, now, self._timing):
            if before is not None and before.inode != seen.inode and followed.source.is_log:
                self._hold_moved(path, before.inode)
            self._hold(followed.source)

    def _of(self, followed: Followed) -> list[Due]:
        """A file that was replaced is read twice: its old content to the end, then the new one."""
        path = followed.source.path
        held = self._held.get(path)
        if held is None:
            return [Due(followed.source)]
        try:
            now_there = path.stat()
        except OSError:
            return [Due(followed.source, held)]
        was_there = os.fstat(held.fileno())
        if (was_there.st_dev, was_there.st_ino) == (now_there.st_dev, now_there.st_ino):
            return [Due(followed.source)]
        if not followed.source.is_log:
            # The tool replaced its own file: the new one says all that the old one said.
            return [Due(followed.source)]
        return [Due(followed.source, held), Due(followed.source)]

    def _hold(self, source: Source) -> None:
        path = source.path
        if path in self._held or len(self._held) >= MOST_HELD:
            return
        if sys.platform == "win32" and source.stream != "events":
            # An open file cannot be replaced there, and its tool may be about to do so.
            return
        with suppress(OSError):
            self._held[path] = open_shared(path)

    def _hold_moved(self, path: Path, inode: tuple[int, int]) -> None:
        """Open what was in this place, if it lies beside it under another name: a rotation."""
        if path in self._held:
            return
        with suppress(OSError), os.scandir(path.parent) as entries:
            for entry in entries:
                # Not `entry.inode()`: an overlay's folders may tell another one than its files.
                state = Path(entry.path).stat(follow_symlinks=False)
                if (state.st_dev, state.st_ino) == inode:
                    self._held[path] = open_shared(Path(entry.path))
                    return

    def _release(self, path: Path) -> None:
        held = self._held.pop(path, None)
        if held is not None:
            held.close()

    def _lose(self, path: Path) -> None:
        """Forget a file that is gone; what can still be read of it is read to its end first."""
        followed = self._files[path]
        if followed.source.is_log and followed.seen is not None:
            self._hold_moved(path, followed.seen.inode)
        held = self._held.get(path)
        if held is not None:
            seen = Seen.of(os.fstat(held.fileno()))
            if followed.due_at is not None or seen != followed.read:
                followed.seen = seen
                followed.due_at = self._clock()
                return
        self._release(path)
        del self._files[path]


def _day(followed: Followed) -> int:
    """Number a file's day, in UTC; within a day parents stay before their children."""
    return followed.seen.modified_ns // 86_400_000_000_000 if followed.seen else 0
