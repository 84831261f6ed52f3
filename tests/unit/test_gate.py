"""The gate fails closed: what it cannot account for does not pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked, OpenGate, Passed, Refusal
from sessionferry.identity import SessionKey
from support.strategies import payloads

SOURCE = Source(Path("/x/events.jsonl"), SessionKey("u", "p", "s"), "events", "jsonl")
SECRET = b'{"key":"sk-1234"}'


class OneRule:
    """A gate made of one function."""

    rules = "test-1"

    def __init__(self, work: Callable[[bytes], Passed]) -> None:
        self._work = work

    def admits(self, source: Source) -> bool:
        return bool(self._work(b"").payload)

    def lines(self, source: Source, piece: bytes) -> Passed:
        return self._work(piece)

    tail = lines
    metadata = lines


@given(payloads)
def test_an_open_gate_changes_nothing(payload: bytes) -> None:
    gate = Checked(OpenGate())
    assert gate.admits(SOURCE)
    assert gate.lines(SOURCE, payload) == Passed(payload)
    assert gate.tail(SOURCE, b"{") == Passed(b"{")
    assert gate.metadata(SOURCE, payload) == Passed(payload)


def test_what_a_gate_accounts_for_passes() -> None:
    passed = Passed(b'{"a":1}\n', filtered=1, redacted={"aws": 2})
    gate = Checked(OneRule(lambda _piece: passed))
    assert gate.lines(SOURCE, b'{"a":"x"}\n\n{"b":2}\n') == passed
    assert gate.metadata(SOURCE, b"x") == passed
    assert (gate.rules, gate.is_open) == ("test-1", False)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (Passed(b'{"a":1}'), "without its end"),
        (Passed(b'{"a":1}\n{"b":2}\n'), "every line"),
        (Passed(b""), "every line"),
        (Passed(b'{"a":1}\n', filtered=1), "every line"),
        (Passed(b"\n"), "every line"),
    ],
)
def test_lines_that_are_not_accounted_for_stay_here(returned: Passed, sentence: str) -> None:
    gate = Checked(OneRule(lambda _piece: returned))
    with pytest.raises(Refusal, match=sentence):
        gate.lines(SOURCE, b'{"a":1}\n')


def test_a_tail_never_becomes_lines() -> None:
    gate = Checked(OneRule(lambda _piece: Passed(b"{}\n")))
    with pytest.raises(Refusal, match="unterminated"):
        gate.tail(SOURCE, b"{")


@given(st.sampled_from([ValueError, KeyError, RecursionError, MemoryError, UnicodeError]))
def test_a_gate_that_fails_lets_nothing_pass_and_its_error_says_nothing_of_the_line(
    kind: type[Exception],
) -> None:
    def fail(piece: bytes) -> Passed:
        raise kind(piece)

    gate = Checked(OneRule(fail))
    for ask in (gate.lines, gate.tail, gate.metadata):
        with pytest.raises(Refusal) as caught:
            ask(SOURCE, SECRET)
        assert "sk-1234" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    with pytest.raises(Refusal):
        gate.admits(SOURCE)
