"""NCRONTAB: `{second} {minute} {hour} {day} {month} {day of week}`, in UTC.

Unlike cron, a day must match both the day of the month and the day of the week.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple

# fmt: off
_MONTHS: Final = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
)
# fmt: on
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_HORIZON: Final = 366 * 40  # days: 29 February falls on each day of the week within that


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS: Final = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, _DAYS),
)


class Schedule:
    """When a timer fires."""

    def __init__(self, expression: str) -> None:
        parts = expression.split()
        if len(parts) == 5:
            parts = ["0", *parts]
        if len(parts) != len(_FIELDS):
            raise ValueError(f"the schedule {expression!r} does not have six fields")
        sets = [_values(field, part) for field, part in zip(_FIELDS, parts, strict=True)]
        self._seconds, self._minutes, self._hours, self._days, self._months, self._weekdays = sets
        self.expression = expression
        self.next_after(datetime(2000, 1, 1, tzinfo=UTC))

    def next_after(self, moment: datetime) -> datetime:
        """The first time strictly after `moment`; raises `ValueError` when there is none."""
        start = moment.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        earliest = start.time()
        for offset in range(_HORIZON):
            day = start.date() + timedelta(days=offset)
            found = self._first(earliest) if self._on(day) else None
            if found is not None:
                return datetime.combine(day, found, UTC)
            earliest = time()
        raise ValueError(f"the schedule {self.expression!r} never fires")

    def _on(self, day: date) -> bool:
        return (
            day.month in self._months
            and day.day in self._days
            and day.isoweekday() % 7 in self._weekdays
        )

    def _first(self, earliest: time) -> time | None:
        for hour in (h for h in self._hours if h >= earliest.hour):
            minute_low = earliest.minute if hour == earliest.hour else 0
            for minute in (m for m in self._minutes if m >= minute_low):
                exact = (hour, minute) == (earliest.hour, earliest.minute)
                second_low = earliest.second if exact else 0
                for second in (s for s in self._seconds if s >= second_low):
                    return time(hour, minute, second)
        return None


def _values(field: _Field, text: str) -> tuple[int, ...]:
    """All values of a comma-separated list."""
    values: set[int] = set()
    for item in text.split(","):
        values.update(_range(field, item))
    return tuple(sorted(values))


def _range(field: _Field, item: str) -> range:
    """The values of `*`, `a`, `a-b`, each with an optional `/step`; `a/step` runs to the end."""
    span, slash, step_text = item.partition("/")
    step = _number(field, step_text) if slash else 1
    if step < 1:
        raise ValueError(f"the step {item!r} of the {field.name} is not positive")
    if span == "*":
        return range(field.low, field.high + 1, step)
    first, dash, last = span.partition("-")
    start = _value(field, first)
    end = _value(field, last) if dash else (field.high if slash else start)
    if end < start:
        raise ValueError(f"the range {item!r} of the {field.name} runs backwards")
    return range(start, end + 1, step)


def _value(field: _Field, text: str) -> int:
    name = text.lower()[:3]
    if name in field.names:
        return field.names.index(name) + field.low
    value = _number(field, text)
    if not field.low <= value <= field.high:
        raise ValueError(f"{value} is no {field.name} ({field.low} to {field.high})")
    return value


def _number(field: _Field, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is no {field.name}")
    return int(text)
