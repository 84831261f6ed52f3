"""When timers fire."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sessionferry.local.functions_host.ncrontab import Schedule


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("* * * * * *", "2026-01-01T00:00:00", "2026-01-01T00:00:01"),
        ("*/2 * * * * *", "2026-01-01T00:00:58", "2026-01-01T00:01:00"),
        ("0 */5 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:05:00"),
        ("0 */5 * * * *", "2026-01-01T00:04:59.999", "2026-01-01T00:05:00"),
        ("0 0 * * * *", "2026-12-31T23:30:00", "2027-01-01T00:00:00"),
        ("30 15 9 * * *", "2026-01-01T09:15:30", "2026-01-02T09:15:30"),
        ("0 30 9 * Jan Mon", "2026-01-01T00:00:00", "2026-01-05T09:30:00"),
        ("0 30 9 * * Mon-Fri", "2026-01-02T09:30:00", "2026-01-05T09:30:00"),
        ("0 0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 0 13 * Friday", "2026-01-01T00:00:00", "2026-02-13T00:00:00"),
        ("5,8,10 * * * * *", "2026-01-01T00:00:08", "2026-01-01T00:00:10"),
        ("5-7 * * * * *", "2026-01-01T00:00:07", "2026-01-01T00:01:05"),
        ("0 0 20/2 * * *", "2026-01-01T20:00:00", "2026-01-01T22:00:00"),
        ("0 10-30/10 * * * *", "2026-01-01T00:20:00", "2026-01-01T00:30:00"),
        ("*/5 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:05:00"),
        ("0 0 0 * * 0", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
    ],
)
def test_next_time(expression, after, expected):
    """The next time is strictly later; day and day of the week must both match."""
    assert Schedule(expression).next_after(_at(after)) == _at(expected)


def test_schedules_are_in_utc():
    """A time in another zone is the same moment."""
    moment = datetime(2026, 1, 1, 1, 59, 59, tzinfo=timezone(timedelta(hours=2)))
    assert Schedule("0 0 * * * *").next_after(moment) == _at("2026-01-01T00:00:00")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("0 0 0 0", "six fields"),
        ("00:05:00", "six fields"),
        ("60 * * * * *", "60 is no second"),
        ("* * * 0 * *", "0 is no day"),
        ("* * * * 13 *", "13 is no month"),
        ("* * * * * 7", "7 is no day of week"),
        ("*/0 * * * * *", "not positive"),
        ("9-5 * * * * *", "runs backwards"),
        ("x * * * * *", "'x' is no second"),
        ("1,,2 * * * * *", "'' is no second"),
        ("0 0 0 30 2 *", "never fires"),
    ],
)
def test_what_is_no_schedule(expression, message):
    """The error says what is wrong."""
    with pytest.raises(ValueError, match=message):
        Schedule(expression)
