"""Documents fill transactional batches, by count and by bytes."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sessionferry.store.cosmos.packing import (
    MAX_BATCH_BYTES,
    MAX_OPERATIONS,
    OPERATION_BYTES,
    halves,
    pack,
)

COSMOS_REQUEST_BYTES = 2 * 1024 * 1024
sizes = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 1_900_000)), max_size=350)


@given(sizes)
def test_every_operation_is_in_one_batch_and_in_order(given_sizes: list[int]) -> None:
    numbered = list(enumerate(given_sizes))
    batches = list(pack(numbered, lambda it: it[1]))
    assert list(itertools.chain.from_iterable(batches)) == numbered
    assert all(batches)


@given(sizes)
def test_a_batch_is_within_the_limits_of_cosmos_db(given_sizes: list[int]) -> None:
    for batch in pack(given_sizes, int):
        assert len(batch) <= MAX_OPERATIONS
        assert sum(batch) + OPERATION_BYTES * len(batch) < COSMOS_REQUEST_BYTES


@given(sizes)
def test_no_two_neighbours_would_fit_into_one(given_sizes: list[int]) -> None:
    for one, other in itertools.pairwise(pack(given_sizes, int)):
        together = sum(one) + other[0] + OPERATION_BYTES * (len(one) + 1)
        assert len(one) == MAX_OPERATIONS or together > MAX_BATCH_BYTES


@given(st.lists(st.integers(), min_size=2))
def test_both_halves_hold_something(batch: list[int]) -> None:
    first, second = halves(batch)
    assert first + second == batch
    assert first
    assert second
