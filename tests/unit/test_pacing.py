"""How fast something may go on."""

from hypothesis import given
from hypothesis import strategies as st

from sessionferry.pacing import Pace


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
