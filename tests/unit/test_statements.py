"""Statements: what hosts say is read strictly, and judged against heads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry import heads
from sessionferry.coverage import Coverage
from sessionferry.errors import BadBatch
from sessionferry.heads import Head, StreamHead
from sessionferry.identity import STREAMS, SessionKey
from sessionferry.reconciling import lacking
from sessionferry.statements import Statement, from_heartbeat, own_prefix, parse, render

KEY = SessionKey("anna", "-srv-app", "s1")
FIVE = Statement(KEY.partition_key, "events", 3, 5)
ALL = Coverage.of((0, 4))

parts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)
statements = st.builds(
    Statement,
    st.builds(SessionKey, st.just("anna@h|1"), parts, parts).map(lambda key: key.partition_key),
    st.sampled_from(STREAMS),
    st.integers(0, 2**53 - 1),
    st.integers(0, 10**9),
)


@given(st.lists(statements, unique_by=lambda it: it[:2]))
def test_what_is_written_is_read_by_whoever_knows_the_user(said: list[Statement]) -> None:
    prefix = own_prefix("anna@h|1")
    sent = {key.removeprefix(prefix): value for key, value in render(said).items()}
    assert sorted(from_heartbeat("anna@h|1", sent)) == sorted(parse(render(said))) == sorted(said)


@pytest.mark.parametrize(
    "sent",
    [
        [],
        {"p|s": []},
        {"p|s": {"metadata": [0, 1]}},
        {"p|s": {"events": [0]}},
        {"p|s": {"events": [0, True]}},
        {"p|s": {"events": [0, 1.0]}},
        {"p|s": {"events": [-1, 1]}},
        {"p|s": {"events": [0, 10**9 + 1]}},
        {"p|s": {"events": [2**53, 1]}},
        {"p": {"events": [0, 1]}},
        {"p|": {"events": [0, 1]}},
        {"p|s|t": {"events": [0, 1]}},
        {"p|a/b": {"events": [0, 1]}},
        {"p|" + "s" * 201: {"events": [0, 1]}},
    ],
)
def test_what_no_agent_says_is_refused(sent: Any) -> None:
    with pytest.raises(BadBatch):
        from_heartbeat("anna", sent)


def head(**of_events: Any) -> Head:
    state = StreamHead(generation=3, **of_events)
    return Head.new(KEY).model_copy(update={"streams": {"events": state}})


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        (None, ALL),
        (Head.new(KEY), ALL),
        (head(stored=Coverage.of((0, 4))), Coverage()),
        (head(stored=Coverage.of((0, 99))), Coverage()),
        (head(stored=Coverage.of((0, 2))), Coverage.of((3, 4))),
        (head(stored=Coverage.of((0, 2)), quarantined=Coverage.of((3, 4))), Coverage()),
        (head(stored=Coverage.of((2, 4)), pruned=Coverage.of((0, 1))), Coverage()),
        (head(stored=ALL).model_copy(update={"streams": {}}), ALL),
        (heads.delete(head(), "2026-07-01T00:00:00Z"), Coverage()),
    ],
)
def test_what_is_neither_stored_nor_quarantined_is_missing(
    known: Head | None, missing: Coverage
) -> None:
    assert lacking(FIVE, known) == missing


def test_an_older_generation_lacks_nothing_and_a_newer_one_everything() -> None:
    stored = head(stored=ALL)
    assert lacking(FIVE._replace(generation=2, lines=9), stored) == Coverage()
    assert lacking(FIVE._replace(generation=4, lines=2), stored) == Coverage.of((0, 1))
