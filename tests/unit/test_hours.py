"""The hours in which the agent may send."""

from datetime import datetime

import pytest

from sessionferry.agent.hours import Hours


@pytest.mark.parametrize(
    ("text", "clock", "seconds"),
    [
        ("22:00-06:00", "23:30", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16 * 3600),
        ("22:00-06:00", "21:59", 60),
        ("09:00-17:30", "12:00", 0),
        ("09:00-17:30", "17:30", 15.5 * 3600),
        ("09:00-17:30", "08:00", 3600),
        ("00:00-00:01", "00:01", 86_340),
    ],
)
def test_outside_the_hours_it_is_known_when_they_begin(
    text: str, clock: str, seconds: float
) -> None:
    hours = Hours.parse(text)
    assert hours is not None
    hour, minute = map(int, clock.split(":"))
    assert hours.seconds_until(datetime(2026, 7, 1, hour, minute)) == seconds  # noqa: DTZ001


def test_no_hours_are_any_time() -> None:
    assert Hours.parse("") is None


def test_hours_read_as_they_are_written() -> None:
    assert str(Hours.parse("22:00-06:05")) == "22:00-06:05"


def test_hours_in_which_nothing_could_be_sent_are_refused() -> None:
    with pytest.raises(ValueError, match="another time than they begin"):
        Hours.parse("08:00-08:00")


@pytest.mark.parametrize("text", ["22-06", "24:00-06:00", "22:00", "22:00-6:00", "x"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="22:00-06:00"):
        Hours.parse(text)
