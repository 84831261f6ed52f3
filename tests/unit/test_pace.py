"""When and how fast the agent may send."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.agent.pace import Hours, Pace


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


@pytest.mark.parametrize("text", ["22-06", "24:00-06:00", "22:00", "22:00-6:00", "x"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="22:00-06:00"):
        Hours.parse(text)


def test_no_limit_never_waits() -> None:
    assert Pace(0).spend(10**12) == 0


@given(
    counts=st.lists(st.integers(1, 5000), min_size=1, max_size=50),
    pauses=st.lists(st.floats(0, 3), min_size=50, max_size=50),
)
def test_no_more_is_sent_than_the_rate_and_a_seconds_saving(
    counts: list[int], pauses: list[float]
) -> None:
    now = 0.0
    pace = Pace(1000, clock=lambda: now)
    sent = 0
    for count, pause in zip(counts, pauses, strict=False):
        now += pause + pace.spend(count)
        # What was sent before this message had its time; the message itself is the only advance.
        assert sent <= 1000 * (now + 1) + 1e-6
        sent += count
