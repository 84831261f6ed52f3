"""The hours in which the agent may send."""

import re
from datetime import datetime, timedelta
from typing import NamedTuple

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Hours(NamedTuple):
    """A part of each day, in minutes since midnight; it may pass midnight."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Hours | None":
        """Read `22:00-06:00`; nothing is any time. Raises `ValueError`, also for no time at all."""
        if not text:
            return None
        match = _HOURS.fullmatch(text)
        if match is None:
            raise ValueError("hours are written as 22:00-06:00")
        first, second, third, fourth = (int(part) for part in match.groups())
        hours = cls(first * 60 + second, third * 60 + fourth)
        if hours.start == hours.end:
            raise ValueError("hours end at another time than they begin; leave them out for always")
        return hours

    def __str__(self) -> str:
        times = (f"{at // 60:02}:{at % 60:02}" for at in self)
        return "-".join(times)

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
