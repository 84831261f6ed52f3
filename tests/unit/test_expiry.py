"""What retention chooses, for any session, policy and time."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.coverage import Coverage
from sessionferry.documents import Facts
from sessionferry.errors import UserError
from sessionferry.expiry import MOST_RANGES, NOISE, Policy, prunable, steps
from sessionferry.heads import Delivery, Head, Mark, StreamHead, delete, merge
from sessionferry.identity import SessionKey
from sessionferry.settings import Settings

NOW = datetime(2026, 7, 1, tzinfo=UTC)
NEW = Head.new(SessionKey("ada", "engine", "s1"))
POLICY = Policy(prune_days=10, hide_days=20, delete_days=30)
MARK = Mark(
    id="m", stream="events", generation=0, lines=Coverage.of((0, 0)), until="2026-08-01T00:00:00Z"
)
days = st.integers(0, 60)


def ago(age: float) -> str:
    return (NOW - timedelta(days=age)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def delivery(sequence: int, age: float | None) -> Delivery:
    digest = hashlib.sha256(b"%d" % sequence).digest()
    at = None if age is None else ago(age)
    return Delivery("events", 0, stored=[Facts(sequence, digest, 1, occurred_at=at)])


def session(age: float | None, **more: object) -> Head:
    return merge(NEW, [delivery(0, age)]).model_copy(update=more)


policies = st.builds(
    lambda ages, deletes: Policy(
        prune_days=min(ages), hide_days=max(ages), delete_days=deletes if max(ages) else 0
    ),
    st.tuples(days, days),
    days,
)
sessions = st.builds(
    lambda age, hidden, pinned, dirty: session(
        age,
        hidden_at=None if hidden is None else ago(hidden),
        pinned=pinned,
        dirty=(MARK,) if dirty else (),
    ),
    st.none() | st.floats(-1, 100),
    st.none() | st.floats(0, 100),
    st.booleans(),
    st.booleans(),
)


@given(sessions, policies)
def test_what_is_pinned_being_written_or_of_unknown_age_is_never_chosen(
    head: Head, policy: Policy
) -> None:
    if head.pinned or head.dirty or head.stream("events").last_time is None:
        assert steps(head, policy, NOW) == ()


@given(st.floats(-60, 14 / 1440), policies, st.none() | st.floats(0, 99))
def test_what_was_active_within_a_quarter_of_an_hour_is_never_chosen(
    age: float, policy: Policy, hidden: float | None
) -> None:
    hidden_at = None if hidden is None else ago(hidden)
    assert steps(session(age, hidden_at=hidden_at), policy, NOW) == ()


@given(sessions, st.sampled_from([Policy(), Policy(prune_days=5, prune_events=frozenset())]))
def test_nothing_is_chosen_while_retention_is_off(head: Head, policy: Policy) -> None:
    assert policy.is_off
    assert steps(head, policy, NOW) == ()


@given(sessions, policies)
def test_only_what_was_hidden_long_enough_is_deleted(head: Head, policy: Policy) -> None:
    chosen = steps(head, policy, NOW)
    if "delete" in chosen:
        assert chosen == ("delete",)
        assert head.hidden_at is not None
        assert head.hidden_at <= ago(policy.delete_days)
        assert policy.delete_days > 0
    if "hide" in chosen:
        assert head.hidden_at is None
    if chosen == ("hide", "prune"):
        pytest.fail("noise goes first")


@pytest.mark.parametrize(
    ("head", "chosen"),
    [
        (session(9.9), ()),
        (session(10), ("prune",)),
        (session(10, pruned_events=tuple(NOISE)), ()),
        (session(10, pruned_events=("llm:request",)), ("prune",)),
        (session(20), ("prune", "hide")),
        (session(99, hidden_at=ago(29), pruned_events=tuple(NOISE)), ()),
        (session(99, hidden_at=ago(30)), ("delete",)),
        (session(5, hidden_at=ago(30)), ()),
        (delete(session(99), ago(50)), ()),
        (NEW, ()),
    ],
)
def test_each_step_has_its_age(head: Head, chosen: tuple[str, ...]) -> None:
    assert steps(head, POLICY, NOW) == chosen


@pytest.mark.parametrize(
    "more", [Delivery("events", 0, conflicts=[0]), Delivery("events", 0, unplaced=True)]
)
def test_documents_that_an_export_needs_are_not_pruned(more: Delivery) -> None:
    assert steps(merge(session(20), [more]), POLICY, NOW) == ("hide",)


@given(st.permutations([delivery(n, n) for n in range(4)]), st.integers(0, 4))
def test_new_lines_show_a_hidden_session_again_in_any_order_and_number(
    order: list[Delivery], count: int
) -> None:
    hidden = session(50, hidden_at=ago(1), pruned_events=("e",))
    seen = merge(hidden, [delivery(0, 50)])
    assert seen == hidden
    head = merge(hidden, order[:count])
    fresh = any(one.stored[0].sequence for one in order[:count])
    assert (head.hidden_at is None, head.pruned_events == ()) == (fresh, fresh)
    assert merge(head, order[:count]) == head


def test_a_head_of_before_is_read_and_nothing_of_it_is_pinned_or_hidden() -> None:
    document = session(50).to_document()
    for name in ("pinned", "hidden_at", "pruned_events"):
        document.pop(name, None)
    head = Head.from_document(document)
    assert (head.pinned, head.hidden_at, head.pruned_events) == (False, None, ())
    pinned = head.model_copy(update={"pinned": True, "hidden_at": ago(1), "pruned_events": ("a",)})
    assert Head.from_document(pinned.to_document()) == pinned


numbers = st.dictionaries(st.integers(0, 40), st.sampled_from("ab"))


@given(numbers, numbers, st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_only_lines_that_are_archived_as_they_are_stored_are_pruned(
    noise: dict[int, str], archived: dict[int, str], stored: set[int], pruned: set[int]
) -> None:
    state = StreamHead(
        stored=Coverage.from_numbers(stored), pruned=Coverage.from_numbers(pruned & stored)
    )
    assert set(prunable(state, noise, archived)) == {
        number for number in stored & set(noise) if noise[number] == archived.get(number)
    }


def test_the_longest_ranges_are_pruned_where_there_are_too_many() -> None:
    noise = {3 * n: "a" for n in range(MOST_RANGES + 5)} | {3 * 500 + 1: "a"}
    state = StreamHead(stored=Coverage.of((0, 9_999)))
    chosen = prunable(state, noise, noise)
    assert len(chosen.ranges) == MOST_RANGES
    assert 1500 in chosen
    assert 1501 in chosen
    full = state.model_copy(update={"pruned": chosen})
    assert prunable(full, noise, noise) == chosen


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UserError, match="is hidden before"):
        Policy(delete_days=3)
    with pytest.raises(UserError, match="pruned first"):
        Policy(prune_days=9, hide_days=8)


def test_a_policy_is_read_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Policy.from_settings(Settings.read()).is_off
    monkeypatch.setenv("FERRY_RETENTION_PRUNE_DAYS", "7")
    monkeypatch.setenv("FERRY_RETENTION_PRUNE_EVENTS", "")
    assert Policy.from_settings(Settings.read()) == Policy(prune_days=7)
    monkeypatch.setenv("FERRY_RETENTION_PRUNE_EVENTS", "a:b, c")
    assert Policy.from_settings(Settings.read()).prune_events == {"a:b", "c"}
