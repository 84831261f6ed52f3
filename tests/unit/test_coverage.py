"""A coverage is a set of whole numbers, whatever its ranges look like."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sessionferry.coverage import Coverage
from support.strategies import coverages

numbers = st.sets(st.integers(0, 60), max_size=30)


class Holder(BaseModel):
    coverage: Coverage = Coverage()


@given(numbers, numbers)
def test_set_operations_equal_those_of_sets(a: set[int], b: set[int]) -> None:
    left, right = Coverage.from_numbers(a), Coverage.from_numbers(b)
    assert set(left | right) == a | b
    assert set(left - right) == a - b
    assert set(left & right) == a & b


@given(coverages, coverages)
def test_operations_on_ranges_equal_those_on_sets_and_stay_canonical(
    left: Coverage, right: Coverage
) -> None:
    a, b = set(left), set(right)
    for made, expected in ((left | right, a | b), (left - right, a - b), (left & right, a & b)):
        assert list(made) == sorted(expected)
        assert made == Coverage.from_numbers(expected)
        assert hash(made) == hash(Coverage.from_numbers(expected))


@given(coverages)
def test_length_membership_truth_and_last_are_those_of_the_set(coverage: Coverage) -> None:
    members = set(coverage)
    assert len(coverage) == len(members)
    assert bool(coverage) is bool(members)
    assert coverage.last == max(members, default=-1)
    assert [n for n in range(-2, 63) if n in coverage] == sorted(members)


@given(coverages)
def test_gaps_are_what_is_missing_below_the_greatest(coverage: Coverage) -> None:
    assert set(coverage.gaps()) == set(range(coverage.last + 1)) - set(coverage)


@given(coverages)
def test_ranges_are_sorted_disjoint_and_never_adjacent(coverage: Coverage) -> None:
    assert all(first <= last for first, last in coverage.ranges)
    pairs = zip(coverage.ranges, coverage.ranges[1:], strict=False)
    assert all(before[1] + 1 < after[0] for before, after in pairs)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8))
def test_any_ranges_in_any_order_make_the_union_of_those_that_are_not_empty(
    ranges: list[tuple[int, int]],
) -> None:
    expected = {n for first, last in ranges for n in range(first, last + 1)}
    assert set(Coverage.of(*ranges)) == expected
    assert Coverage.of(*ranges) == Coverage.of(*reversed(ranges))


@given(coverages)
def test_json_gives_the_same_coverage_back(coverage: Coverage) -> None:
    held = Holder(coverage=coverage)
    assert Holder.model_validate_json(held.model_dump_json()) == held
    assert Holder.model_validate(held.model_dump(mode="json")) == held


def test_json_is_a_list_of_inclusive_pairs() -> None:
    held = Holder(coverage=Coverage.of((12, 12), (0, 9)))
    assert held.model_dump_json() == '{"coverage":[[0,9],[12,12]]}'


def test_json_that_is_not_canonical_is_made_so() -> None:
    held = Holder.model_validate_json('{"coverage":[[5,9],[0,4],[7,8],[9,3]]}')
    assert held.coverage.ranges == ((0, 9),)


@pytest.mark.parametrize("text", ['[["a",1]]', "[[1]]", "[[-1,2]]", "[1,2]", '"0-9"', "[[1,2,3]]"])
def test_json_that_is_no_list_of_ranges_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate_json(f'{{"coverage":{text}}}')


def test_a_stream_that_arrived_completely_is_one_range() -> None:
    whole = Coverage.of((0, 999_999_999))
    assert whole.ranges == ((0, 999_999_999),)
    assert len(whole) == 10**9
    assert not whole.gaps()


def test_coverage_is_not_equal_to_other_things_and_shows_few_ranges() -> None:
    assert Coverage.of((0, 1)) != ((0, 1),)
    assert repr(Coverage.of((0, 1))) == "Coverage.of((0, 1))"
    assert repr(Coverage.from_numbers(range(0, 40, 2))).endswith(", ...)")
