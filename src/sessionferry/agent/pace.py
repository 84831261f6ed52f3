"""When and how fast the agent may send."""

import asyncio
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Hours(NamedTuple):
    """A part of each day, in minutes since midnight; it may pass midnight."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Hours | None":
        """Read `22:00-06:00`; nothing is any time. Raises `ValueError`."""
        if not text:
            return None
        match = _HOURS.fullmatch(text)
        if match is None:
            raise ValueError("hours are written as 22:00-06:00")
        first, second, third, fourth = (int(part) for part in match.groups())
        return cls(first * 60 + second, third * 60 + fourth)

    def seconds_until(self, now: datetime) -> float:
        """How long it takes until this part of the day has begun; 0 inside it."""
        minute = now.hour * 60 + now.minute
        if self.start <= self.end:
            inside = self.start <= minute < self.end
        else:
            inside = minute >= self.start or minute < self.end
        if inside:
            return 0.0
        start = now.replace(hour=self.start // 60, minute=self.start % 60, second=0, microsecond=0)
        if start <= now:
            start += timedelta(days=1)
        return (start - now).total_seconds()


class Pace:
    """Keeps sending below a number of bytes per second; 0 is no limit.

    What was not used is saved for one second, so that a message may be larger than a second's worth
    and is waited for afterwards.
    """

    def __init__(self, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._free_at = clock()

    def spend(self, count: int) -> float:
        """Take so many bytes; return how many seconds to wait before sending them."""
        if not self._rate:
            return 0.0
        now = self._clock()
        wait = max(self._free_at - now, 0.0)
        self._free_at = max(self._free_at, now - 1.0) + count / self._rate
        return wait

    async def wait(self, count: int) -> None:
        """Wait until so many bytes may be sent."""
        seconds = self.spend(count)
        if seconds:
            await asyncio.sleep(seconds)
