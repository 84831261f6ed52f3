"""The short form of `make fuzz`: mutated input neither breaks nor hangs what takes it."""

import os
import time

import pytest

from fuzz import amqp, lines, redaction, wire
from fuzz.watching import Broken, Report, watch

SEED = int(os.environ.get("FERRY_FUZZ_SEED") or time.time_ns() % 10**9)


@pytest.mark.parametrize("part", [wire, lines], ids=["wire decoder", "lines"])
def test_whatever_is_fed_becomes_a_value_or_a_named_refusal(part: object) -> None:
    report = watch("fuzz", part.feed, SEED, 3_000)  # type: ignore[attr-defined]
    assert report.inputs == sum(report.results.values()) == 3_000
    assert len(report.results) > 3


def test_whatever_is_redacted_stays_what_it_was_and_has_nothing_left() -> None:
    report = watch("redaction", redaction.feed, SEED, 300)
    assert len(report.results) >= 3


def test_a_broker_that_is_fed_nonsense_goes_on_serving_those_who_behave() -> None:
    with amqp.Target() as target:
        report: Report = watch("AMQP entry", target.feed, SEED, 200)
        assert report.inputs == 200
        assert target.growth() < 50 * 2**20


def test_the_watch_names_the_input_that_broke_something() -> None:
    def breaks(rng: object) -> str:
        raise RecursionError

    with pytest.raises(Broken, match=r"part: seed 7, input 0: RecursionError"):
        watch("part", breaks, 7, 3)
