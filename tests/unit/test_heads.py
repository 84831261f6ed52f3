"""Heads merge to the same sums in any order, any number of times, however the lines were cut."""

import hashlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionferry.coverage import Coverage
from sessionferry.documents import Facts
from sessionferry.formats.meaning import COST_SCALE, MAX_COUNT, Usage, cost_text
from sessionferry.heads import (
    MAX_FRAGMENTS,
    MAX_RANGES,
    MAX_SUPERSEDED,
    Delivery,
    Garbage,
    Head,
    Lifecycle,
    Metadata,
    StreamHead,
    Tail,
    Tombstone,
    add_digest,
    delete,
    line_digest,
    merge,
    must_not_exist,
    prune,
    total_cost,
    would_split,
)
from sessionferry.identity import SessionKey, Stream
from support.strategies import coverages, session_keys

KEY = SessionKey("user-123", "my-project", "sess-abc")
NEW = Head.new(KEY)


class Line(NamedTuple):
    """A line of the model: stored with these facts, or quarantined, and so many bytes long."""

    facts: Facts | None
    size: int


class Version(NamedTuple):
    """One generation of a file."""

    number: int
    lines: tuple[Line, ...]

    def delivery(self, first: int, last: int, tail: Tail | None = None) -> Delivery:
        """Return the delivery of the lines from `first` to before `last`."""
        part = list(enumerate(self.lines))[first:last]
        start = sum(line.size for line in self.lines[:first])
        size = sum(line.size for _, line in part)
        return Delivery(
            "events",
            self.number,
            stored=[line.facts for _, line in part if line.facts],
            quarantined=[at for at, line in part if not line.facts],
            sequences=(first, last - 1) if part else None,
            extent=(start, start + size - 1) if size else None,
            tail=tail,
        )


times = st.integers(0, 99).map(lambda n: f"2026-06-22T16:27:{n % 60:02d}.0000000{n:02d}Z")


@st.composite
def line_of(draw: st.DrawFn, sequence: int) -> Line:
    size = draw(st.integers(1, 50))
    if draw(st.integers(0, 4)) == 0:
        return Line(None, size)
    facts = Facts(
        sequence,
        hashlib.sha256(draw(st.binary(max_size=2))).digest(),
        size,
        truncated=draw(st.booleans()),
        repaired=draw(st.booleans()),
        occurred_at=draw(st.none() | times),
        usage=draw(st.none() | st.builds(Usage, *[st.integers(0, MAX_COUNT)] * 4)),
        cost=draw(st.integers(0, 10**20)),
        lifecycle=draw(st.sampled_from([None, None, "session:start", "execution:end=completed"])),
    )
    return Line(facts, size)


@st.composite
def version_of(draw: st.DrawFn, number: int) -> Version:
    count = draw(st.integers(0, 8))
    return Version(number, tuple(draw(line_of(sequence)) for sequence in range(count)))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Version], list[Delivery]]:
    """Return a file's versions, and deliveries that cover them: overlapping, in any order."""
    numbers = sorted(draw(st.sets(st.sampled_from([0, 1, 2, 7]), min_size=1, max_size=3)))
    versions = [draw(version_of(number)) for number in numbers]
    deliveries = []
    for version in versions:
        size = len(version.lines)
        places = st.integers(0, size)
        bounds = sorted({0, size, *draw(st.lists(places, max_size=3))})
        cuts = list(pairwise(bounds)) + draw(
            st.lists(st.tuples(places, places).map(sorted), max_size=3)
        )
        deliveries += [version.delivery(first, last) for first, last in cuts]
    repeated = draw(st.lists(st.sampled_from(deliveries), max_size=4)) if deliveries else []
    return versions, draw(st.permutations(deliveries + repeated))


def comparable(head: Head) -> Head:
    """Leave out what counts writes and what is still to be cleared away."""
    return head.model_copy(update={"head_version": 0, "garbage": ()})


def expected(version: Version) -> dict[str, Any]:
    """Sum up one generation by brute force over its stored lines."""
    facts = [line.facts for line in version.lines if line.facts]
    stamps = [each.occurred_at for each in facts if each.occurred_at]
    last = [each for each in facts if each.lifecycle][-1:]
    usages = [each.usage for each in facts if each.usage]
    return {
        "generation": version.number,
        "stored": [each.sequence for each in facts],
        "quarantined": [at for at, line in enumerate(version.lines) if not line.facts],
        "extent": list(range(sum(line.size for line in version.lines))),
        "line_bytes": sum(each.size for each in facts),
        "truncated": sum(each.truncated for each in facts),
        "repaired": sum(each.repaired for each in facts),
        "first_time": min(stamps, default=None),
        "last_time": max(stamps, default=None),
        "usage": tuple(sum(getattr(u, name) for u in usages) for name in Usage._fields),
        "cost_usd": cost_text(sum(each.cost for each in facts)),
        "digest": f"{sum(line_digest(each.sequence, each.sha256) for each in facts) % 2**256:064x}",
        "lifecycle": last[0].lifecycle if last else None,
    }


def summed(state: StreamHead) -> dict[str, Any]:
    return {
        **{name: getattr(state, name) for name in ("generation", "line_bytes", "truncated")},
        **{name: getattr(state, name) for name in ("repaired", "first_time", "last_time")},
        **{name: list(getattr(state, name)) for name in ("stored", "quarantined", "extent")},
        "usage": tuple(state.usage),
        "cost_usd": state.cost_usd,
        "digest": state.digest,
        "lifecycle": state.lifecycle.event if state.lifecycle else None,
    }


# ---------------------------------------------------------------- the invariants


@settings(max_examples=80)
@given(histories())
def test_a_head_sums_the_newest_generation_whatever_the_order(
    history: tuple[list[Version], list[Delivery]],
) -> None:
    versions, deliveries = history
    state = merge(NEW, deliveries).stream("events")
    delivered = {delivery.generation for delivery in deliveries}
    newest = [version for version in versions if version.number in delivered][-1:]
    if newest:
        assert summed(state) == expected(newest[0])
        older = [version for version in versions if version.number < newest[0].number]
        assert {number: len(lines) for number, lines in state.superseded.items()} == {
            version.number: len(version.lines) for version in older if version.lines
        }
        assert state.superseded_lines == sum(len(version.lines) for version in older)


@settings(max_examples=80)
@given(histories(), st.data())
def test_merging_commutes_and_is_idempotent(
    history: tuple[list[Version], list[Delivery]], data: st.DataObject
) -> None:
    deliveries = history[1]
    other = data.draw(st.permutations(deliveries))
    first, second = merge(NEW, deliveries), merge(NEW, other)
    assert comparable(first) == comparable(second)
    assert comparable(first).to_document() == comparable(second).to_document()
    assert merge(first, deliveries) == first


@given(histories(), st.data())
def test_merging_together_equals_merging_one_after_another(
    history: tuple[list[Version], list[Delivery]], data: st.DataObject
) -> None:
    deliveries = history[1]
    cut = data.draw(st.integers(0, len(deliveries)))
    head = NEW
    for part in (deliveries[:cut], deliveries[cut:]):
        head = Head.from_document(merge(head, part).to_document())
    assert head == merge(NEW, deliveries)


@given(histories())
def test_a_head_survives_its_json_document(
    history: tuple[list[Version], list[Delivery]],
) -> None:
    head = merge(NEW, history[1]).model_copy(update={"head_version": 3})
    stored = orjson.loads(orjson.dumps(head.to_document()))
    assert Head.from_document(stored) == head
    assert Head.from_document(stored | {"_etag": "x", "_ts": 1}) == head


@given(histories())
def test_garbage_is_what_was_covered_before_a_generation_was_raised(
    history: tuple[list[Version], list[Delivery]],
) -> None:
    head, covered = NEW, dict[int, set[int]]()
    for delivery in history[1]:
        before = head.stream("events")
        head = merge(head, [delivery])
        if delivery.generation >= before.generation:
            lines = [facts.sequence for facts in delivery.stored] + [*delivery.quarantined]
            covered.setdefault(delivery.generation, set()).update(lines)
    newest = head.stream("events").generation
    found = {garbage.generation: set(garbage.lines) for garbage in head.garbage}
    assert found == {n: lines for n, lines in covered.items() if n < newest and lines}
    assert len(found) == len(head.garbage)


@given(session_keys)
def test_a_head_belongs_to_its_session(key: SessionKey) -> None:
    head = Head.new(key)
    document = head.to_document()
    assert (document["id"], document["partition_key"]) == ("head", key.partition_key)
    assert Head.from_document(document).key == key


# ---------------------------------------------------------------- single rules


def facts(sequence: int, text: bytes = b"x", **more: Any) -> Facts:
    return Facts(sequence, hashlib.sha256(text).digest(), len(text), **more)


def stored(*sequences: int, generation: int = 0, stream: Stream = "events") -> Delivery:
    return Delivery(
        stream,
        generation,
        stored=[facts(sequence) for sequence in sequences],
        sequences=(min(sequences), max(sequences)),
    )


def quarantined(*sequences: int, generation: int = 0) -> Delivery:
    bounds = (min(sequences), max(sequences))
    return Delivery("events", generation, quarantined=sequences, sequences=bounds)


def state_after(*deliveries: Delivery) -> StreamHead:
    return merge(NEW, deliveries).stream("events")


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1), (0, 1, 0)])
def test_stored_beats_quarantined_in_any_order(order: Iterable[int]) -> None:
    both = [stored(0, 1), quarantined(1, 2)]
    state = state_after(*(both[at] for at in order))
    assert (list(state.stored), list(state.quarantined)) == ([0, 1], [2])
    assert state.line_bytes == 2


def test_a_conflict_is_noted_and_the_stored_line_stays_counted() -> None:
    conflict = Delivery("events", 0, stored=[facts(3)], conflicts=[3], sequences=(3, 3))
    state = state_after(stored(3), conflict, conflict)
    assert (list(state.stored), list(state.conflicts)) == ([3], [3])
    assert (state.line_bytes, list(state.quarantined)) == (1, [])


def test_streams_do_not_touch_each_other() -> None:
    head = merge(NEW, [stored(0), stored(0, 1, generation=4, stream="transcript")])
    assert list(head.stream("events").stored) == [0]
    assert head.stream("transcript").generation == 4
    assert not head.garbage


def test_a_newer_generation_starts_from_nothing() -> None:
    head = merge(NEW, [stored(0, 1, 2), quarantined(4), stored(0, generation=5)])
    state = head.stream("events")
    assert (state.generation, list(state.stored), state.line_bytes) == (5, [0], 1)
    assert not state.quarantined
    old = Coverage.from_numbers([0, 1, 2, 4])
    assert head.garbage == (Garbage(stream="events", generation=0, lines=old),)
    assert state.superseded == {0: old}


def test_a_conflicts_place_is_garbage_too() -> None:
    conflict = Delivery("events", 0, stored=[facts(1)], conflicts=[1, 3], sequences=(1, 1))
    head = merge(NEW, [conflict, stored(0, generation=1)])
    assert set(head.garbage[0].lines) == {1, 3}


def test_a_late_older_generation_is_counted_once_and_changes_nothing_else() -> None:
    newest = state_after(stored(0, generation=5))
    late = state_after(stored(0, generation=5), stored(2, 3), stored(3, 2), stored(3))
    assert late.superseded_lines == 2
    assert late.model_copy(update={"superseded": {}}) == newest


def test_only_the_newest_superseded_generations_are_remembered() -> None:
    count = MAX_SUPERSEDED + 5
    everything = [stored(0, generation=number) for number in range(count + 1)]
    forward, backward = merge(NEW, everything), merge(NEW, reversed(everything))
    assert comparable(forward) == comparable(backward)
    assert min(forward.stream("events").superseded) == 5


@pytest.mark.parametrize(
    ("generation", "sequence", "gone"),
    [(4, 0, True), (5, 0, False), (5, 1, True), (5, 99, False), (6, 0, False)],
)
def test_a_head_says_what_must_not_exist(generation: int, sequence: int, gone: bool) -> None:
    head = prune(merge(NEW, [stored(0, 1, generation=5)]), "events", Coverage.of((1, 1)))
    assert must_not_exist(head, "events", generation, sequence) is gone


# ---------------------------------------------------------------- tails


def tail(offset: int, length: int = 4, sequence: int = 0) -> Tail:
    digest = hashlib.sha256(b"%d %d" % (offset, length)).hexdigest()
    place = {"offset": offset, "length": length, "sequence": sequence}
    return Tail(sha256=digest, archive_key=f"tails/{offset}-{length}", **place)


def with_tail(found: Tail, generation: int = 0) -> Delivery:
    return Delivery("events", generation, tail=found)


def with_extent(first: int, last: int, generation: int = 0) -> Delivery:
    return Delivery("events", generation, extent=(first, last))


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        ([with_tail(tail(10))], tail(10)),
        ([with_extent(0, 9), with_tail(tail(10))], tail(10)),
        ([with_extent(0, 10), with_tail(tail(10))], None),
        ([with_tail(tail(10)), with_tail(tail(10, 9))], tail(10, 9)),
        ([with_tail(tail(10)), with_tail(tail(30))], tail(30)),
        ([with_tail(tail(10)), with_tail(tail(30)), with_extent(5, 29)], tail(30)),
        ([with_tail(tail(10)), with_tail(tail(30)), with_extent(5, 40)], None),
        ([with_tail(tail(10)), with_tail(tail(0, 2), generation=1)], tail(0, 2)),
        ([with_tail(tail(10)), with_extent(0, 3, generation=1)], None),
    ],
)
def test_a_tail_stays_until_its_line_is_finished_in_any_order(
    deliveries: list[Delivery], expected: Tail | None
) -> None:
    assert state_after(*deliveries).tail == expected
    assert state_after(*reversed(deliveries)).tail == expected


@given(
    st.lists(
        st.builds(tail, st.integers(0, 9), st.integers(1, 3)).map(with_tail)
        | st.builds(lambda at: with_extent(at, at + 1), st.integers(0, 9)),
        max_size=8,
    ),
    st.data(),
)
def test_tails_do_not_depend_on_order(deliveries: list[Delivery], data: st.DataObject) -> None:
    other = data.draw(st.permutations(deliveries))
    assert state_after(*deliveries) == state_after(*other, *other)


# ---------------------------------------------------------------- metadata, tombstone, prune


metadata = st.builds(
    lambda revision, text: Metadata(
        revision=revision, sha256=text * 64, length=1, archive_key=f"{revision}{text}"
    ),
    st.integers(0, 4),
    st.sampled_from("abc"),
)


@given(st.lists(metadata, max_size=6), st.data())
def test_the_greatest_revision_and_hash_of_the_metadata_wins(
    versions: list[Metadata], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(versions))
    found = merge(merge(NEW, [], shuffled), [], versions).metadata
    assert found == max(versions, key=lambda version: version.rank, default=None)


@given(histories(), st.lists(metadata, max_size=2))
def test_a_tombstone_takes_nothing_in(
    history: tuple[list[Version], list[Delivery]], versions: list[Metadata]
) -> None:
    head = delete(merge(NEW, history[1][:3]), "2026-07-01T00:00:00Z")
    assert merge(head, history[1], versions) == head
    assert delete(head, "2027-01-01T00:00:00Z") == head
    assert prune(head, "events", Coverage.of((0, 9))) == head
    assert all(must_not_exist(head, "events", number, 0) for number in (0, 1, 99))
    assert Head.from_document(head.to_document()) == head


def test_deleting_turns_everything_into_garbage_and_forgets_the_rest() -> None:
    lines = [stored(0, 1), stored(0, generation=1), stored(3, stream="transcript")]
    before = merge(NEW, lines).model_copy(update={"head_version": 8})
    head = delete(before, "2026-07-01T00:00:00Z")
    assert {(each.stream, each.generation, len(each.lines)) for each in head.garbage} == {
        ("events", 0, 2),
        ("events", 1, 1),
        ("transcript", 0, 1),
    }
    assert head.tombstone == Tombstone(deleted_at="2026-07-01T00:00:00Z")
    assert (head.head_version, head.streams, head.metadata) == (8, {}, None)


@given(histories(), coverages)
def test_pruning_keeps_every_count_whatever_comes_again(
    history: tuple[list[Version], list[Delivery]], sequences: Coverage
) -> None:
    head = merge(NEW, history[1])
    state = head.stream("events")
    after = merge(prune(head, "events", sequences), history[1])
    assert after.stream("events").pruned == sequences & state.stored
    assert summed(after.stream("events")) == summed(state)
    assert prune(after, "events", sequences) == after


# ---------------------------------------------------------------- documents of other versions


def test_fields_of_a_newer_version_survive() -> None:
    head = merge(NEW, [stored(0), with_tail(tail(99))], [Metadata.model_validate(META)])
    document = head.to_document()
    document["colour"] = "blue"
    for place in (
        document["streams"]["events"],
        document["streams"]["events"]["last_tail"],
        document["metadata"],
    ):
        place["colour"] = {"deep": [1, None]}
    again = Head.from_document(merge(Head.from_document(document), [stored(1)]).to_document())
    written = again.to_document()
    assert written["colour"] == "blue"
    assert written["streams"]["events"]["colour"] == {"deep": [1, None]}
    assert written["streams"]["events"]["last_tail"]["colour"] == {"deep": [1, None]}
    assert written["metadata"]["colour"] == {"deep": [1, None]}


META = {"revision": 1, "sha256": "a" * 64, "length": 1, "archive_key": "k"}


def test_counts_of_a_newer_version_do_not_break_an_older_one() -> None:
    document = merge(NEW, [stored(0)]).to_document()
    document["streams"]["events"]["usage"] = {"input": 3, "reasoning": 4}
    assert Head.from_document(document).stream("events").usage == Usage(3)


def test_a_head_without_streams_is_empty() -> None:
    assert NEW.stream("events") == StreamHead()
    assert NEW.stream("events").tail is None
    assert NEW.stream("events").superseded_lines == 0


# ---------------------------------------------------------------- sums and bounds


def test_a_digest_is_of_the_sequence_and_the_lines_hash() -> None:
    sha256 = hashlib.sha256(b"line").digest()
    expected = hashlib.sha256((7).to_bytes(8, "big") + sha256).hexdigest()
    assert add_digest("0" * 64, line_digest(7, sha256)) == expected


@given(st.lists(st.integers(0, 2**256 - 1), max_size=5))
def test_digests_add_up_modulo_2_to_the_256(shares: list[int]) -> None:
    digest = "0" * 64
    for share in shares:
        digest = add_digest(digest, share)
    assert int(digest, 16) == sum(shares) % 2**256
    assert len(digest) == 64


@given(st.integers(0, 10**45))
def test_a_sum_of_costs_is_exact_at_any_size(units: int) -> None:
    assert total_cost(cost_text(units)) == units


def test_the_greatest_sums_fit_into_a_document() -> None:
    usage = Usage(*[MAX_COUNT] * 4)
    lines = [facts(at, usage=usage, cost=10**12 * COST_SCALE - 1) for at in range(5_000)]
    head = merge(NEW, [Delivery("events", 0, stored=lines, sequences=(0, 4_999))])
    assert Head.from_document(orjson.loads(orjson.dumps(head.to_document()))) == head


def test_the_last_lifecycle_event_is_the_last_by_position() -> None:
    early = facts(2, lifecycle="session:end", occurred_at="2026-06-22T16:27:09.000000000Z")
    late = facts(5, lifecycle="orchestrator:complete")
    both = [Delivery("events", 0, stored=[each]) for each in (late, early)]
    assert state_after(*both).lifecycle == Lifecycle(sequence=5, event="orchestrator:complete")


def fragmented(ranges: int) -> Head:
    """Return a head whose stored lines are so many single ones: 0, 2, 4, ..."""
    return merge(NEW, [Delivery("events", 0, stored=[facts(2 * at) for at in range(ranges)])])


@pytest.mark.parametrize(
    ("ranges", "first", "last", "splits"),
    [
        (MAX_RANGES - 1, 999_999, 999_999, False),
        (MAX_RANGES, 999_999, 999_999, True),
        (MAX_RANGES, 1, 1, False),
        (MAX_RANGES, 2 * MAX_RANGES - 1, 2 * MAX_RANGES + 5, False),
        (MAX_RANGES, 2 * MAX_RANGES, 2 * MAX_RANGES + 5, True),
        (MAX_RANGES, 0, 2 * MAX_RANGES, False),
    ],
)
def test_a_fragmented_head_takes_no_batch_that_would_split_it_further(
    ranges: int, first: int, last: int, splits: bool
) -> None:
    assert would_split(fragmented(ranges), "events", first, last) is splits


def mixed(ranges: int) -> Delivery:
    """Good and bad lines in turn: no gap, and as many ranges."""
    good = [facts(at) for at in range(0, ranges, 2)]
    place = (0, ranges - 1)
    return Delivery("events", 0, stored=good, quarantined=range(1, ranges, 2), sequences=place)


def test_good_and_bad_lines_in_turn_do_not_grow_a_head_without_bound() -> None:
    below = merge(NEW, [mixed(MAX_FRAGMENTS - 1)])
    full = merge(NEW, [mixed(MAX_FRAGMENTS)])
    after = (MAX_FRAGMENTS - 1, MAX_FRAGMENTS + 9)
    assert not would_split(below, "events", *after)
    assert would_split(full, "events", *after)
    assert not would_split(full, "transcript", *after)
    assert len(orjson.dumps(full.to_document())) < 600_000


def test_what_the_same_invocation_brings_counts_too() -> None:
    coming = [mixed(MAX_FRAGMENTS)]
    assert would_split(NEW, "events", 0, 9, coming)
    assert not would_split(NEW, "transcript", 0, 9, coming)


def test_conflicts_and_pruned_lines_count_as_fragments() -> None:
    lines = [facts(at) for at in range(2 * MAX_FRAGMENTS)]
    every_other = range(0, 2 * MAX_FRAGMENTS, 2)
    conflicts = merge(NEW, [Delivery("events", 0, stored=lines, conflicts=every_other)])
    pruned = prune(
        merge(NEW, [Delivery("events", 0, stored=lines)]),
        "events",
        Coverage.from_numbers(every_other),
    )
    for head in (conflicts, pruned):
        assert would_split(head, "events", 0, 9)


def test_fragmented_generations_are_forgotten_lowest_first() -> None:
    head = NEW
    for generation in range(6):
        odd = [facts(2 * at) for at in range(MAX_FRAGMENTS // 8)]
        head = merge(head, [Delivery("events", generation, stored=odd)])
    assert list(head.stream("events").superseded) == [1, 2, 3, 4]


def test_fragmentation_is_counted_per_stream() -> None:
    assert not would_split(fragmented(MAX_RANGES + 1), "transcript", 50, 60)
