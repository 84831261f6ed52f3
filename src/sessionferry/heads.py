"""The head: one small document that sums a session up, and how deliveries merge into it.

Merging is a pure function. It is idempotent and commutes: the same deliveries in any order, any
number of times, give the same head (but for `head_version`, which counts writes). That rests on
sets: sums grow only when a sequence *becomes* stored (R2), never when it is merely seen again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from sessionferry.coverage import Coverage, Range
from sessionferry.documents import Facts
from sessionferry.errors import TransientError
from sessionferry.formats.meaning import COST_SCALE, Usage, cost, cost_text
from sessionferry.identity import STREAMS, SessionKey, Stream

MAX_RANGES = 5_000
"""A head with more ranges than this takes no batch that would split it further (design)."""
MAX_FRAGMENTS = 20_000
"""With so many ranges in all, whatever they are of, a stream's generation takes no more lines at
all: good and bad lines in turn leave no gap, and still may not grow a head past 2 MB."""
MAX_SUPERSEDED = 1_000
"""Superseded generations of which the coverage is kept; older ones are forgotten, lowest first."""
FIRST_STATED = frozenset({"working_dir", "native_session_id", "parent_id", "first_prompt"})
"""Facts about a session of which the first statement counts; of all others it is the last."""
DERIVATION = 1
"""Which way documents, sums and projections are made of lines. Raise it when the same lines give
other ones: sessions that were made the old way are then made anew, some of them at a time."""
DIGEST_MODULUS = 2**256
HEAD_ID = "head"
_DOCUMENT_KEYS = frozenset({"id", "partition_key"})


class _Model(BaseModel):
    # A newer version's fields survive being rewritten by an older one during a rolling deploy.
    model_config = ConfigDict(frozen=True, extra="allow")


class Tail(_Model):
    """An unterminated last line: its bytes are archived, it is no document yet."""

    offset: int
    length: int
    sequence: int
    sha256: str
    archive_key: str

    @property
    def rank(self) -> tuple[int, int, str]:
        """The later tail wins; of the same place the longer one."""
        return (self.offset, self.length, self.sha256)


class Lifecycle(_Model):
    """The last lifecycle event by position; what it means is read off with the clock."""

    sequence: int
    event: str
    occurred_at: str | None = None


class Stated(_Model):
    """What a line says about its session, and which line."""

    sequence: int
    value: str


class StreamHead(_Model):
    """What is known of one stream's newest generation. Sums count stored lines only."""

    generation: int = 0
    stored: Coverage = Coverage()
    quarantined: Coverage = Coverage()
    conflicts: Coverage = Coverage()
    pruned: Coverage = Coverage()
    extent: Coverage = Field(default=Coverage(), description="Archived bytes of the file.")
    line_bytes: int = 0
    truncated: int = 0
    repaired: int = 0
    first_time: str | None = None
    last_time: str | None = None
    usage: Usage = Usage()
    cost_usd: str = "0"
    digest: str = "0" * 64
    lifecycle: Lifecycle | None = None
    about: dict[str, Stated] = Field(default_factory=dict)
    format: str | None = None
    last_tail: Tail | None = None
    unplaced: bool = Field(
        default=False, description="Lines came without their place in a file: export goes by line."
    )
    superseded: dict[int, Coverage] = Field(default_factory=dict)

    @field_validator("usage", mode="before")
    @classmethod
    def _usage_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return Usage(*(value.get(name, 0) for name in Usage._fields))

    @field_serializer("usage")
    def _usage_with_names(self, usage: Usage) -> dict[str, int]:
        return usage._asdict()

    @property
    def tail(self) -> Tail | None:
        """The unterminated last line, unless it was finished since."""
        last = self.last_tail
        return last if last is not None and last.offset not in self.extent else None

    @property
    def superseded_lines(self) -> int:
        """Lines that were delivered for generations older than this one."""
        return sum(len(coverage) for coverage in self.superseded.values())

    @property
    def range_count(self) -> int:
        """How fragmented the coverage is."""
        return len(self.stored.ranges) + len(self.quarantined.ranges) + len(self.extent.ranges)

    @property
    def fragment_count(self) -> int:
        """How many ranges there are to be written, of whatever."""
        known = (self.conflicts, self.pruned, *self.superseded.values())
        return self.range_count + sum(len(coverage.ranges) for coverage in known)


_EMPTY = StreamHead()
_COUNTED = (
    *("stored", "quarantined", "pruned", "line_bytes", "truncated", "repaired", "first_time"),
    *("last_time", "usage", "cost_usd", "digest", "lifecycle", "about"),
)


class Metadata(_Model):
    """The newest metadata file of the session: the higher (revision, hash) wins."""

    revision: int
    sha256: str
    length: int
    archive_key: str
    host_id: str = ""
    valid: bool = True

    @property
    def rank(self) -> tuple[int, str]:
        """What decides between two versions."""
        return (self.revision, self.sha256)


class Garbage(_Model):
    """Documents of a superseded generation or deleted session, still to be removed (R5)."""

    stream: Stream
    generation: int
    lines: Coverage


class Tombstone(_Model):
    """The session was deleted; late messages, replays and spools cannot pass."""

    deleted_at: str
    finished: bool = Field(default=False, description="Nothing is left to be removed.")


class Mark(_Model):
    """Lines that somebody is writing: until that ends the head may not count what is stored.

    After `until` the writer writes no more; whoever finds the mark then counts in his place.
    """

    id: str
    stream: Stream
    generation: int
    lines: Coverage
    until: str
    replaces: bool = Field(default=False, description="Stored lines may have changed: count anew.")


class Head(_Model):
    """Coverage, sums and state of one session in one project."""

    user_id: str
    project_slug: str
    session_id: str
    head_version: int = 0
    streams: dict[Stream, StreamHead] = Field(default_factory=dict)
    metadata: Metadata | None = None
    garbage: tuple[Garbage, ...] = ()
    dirty: tuple[Mark, ...] = ()
    tombstone: Tombstone | None = None
    deletions: int = Field(default=0, description="How often it was deleted, undeleted or not.")
    derived: int = Field(
        default=1, description="The oldest way in which something of it was made; see DERIVATION."
    )
    pinned: bool = Field(default=False, description="Retention leaves it alone.")
    hidden_at: str | None = Field(
        default=None, description="Retention hid it then; new lines show it again."
    )
    pruned_events: tuple[str, ...] = Field(
        default=(), description="Events of which retention has left no document."
    )

    @classmethod
    def new(cls, key: SessionKey) -> Head:
        """Return the head of a session that nothing is known of."""
        named = {"user_id": key.user_id, "project_slug": key.project_slug}
        return cls(**named, session_id=key.session_id, derived=DERIVATION)

    @property
    def key(self) -> SessionKey:
        """The session this is the head of."""
        return SessionKey(self.user_id, self.project_slug, self.session_id)

    def stream(self, name: Stream) -> StreamHead:
        """Return a stream's state; an empty one if nothing has arrived yet."""
        return self.streams.get(name) or _EMPTY

    def to_document(self) -> dict[str, Any]:
        """Render as the document `head` of the session's partition."""
        own = self.model_dump(mode="json", exclude_none=True)
        return {"id": HEAD_ID, "partition_key": self.key.partition_key, "_type": "head", **own}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Head:
        """Read a stored head."""
        ours = {k: v for k, v in document.items() if k not in _DOCUMENT_KEYS and k[:1] != "_"}
        return cls.model_validate_json(orjson.dumps(ours))


class Delivery(NamedTuple):
    """What one batch brings to the head."""

    stream: Stream
    generation: int
    stored: Sequence[Facts] = ()
    quarantined: Sequence[int] = ()
    conflicts: Sequence[int] = ()
    sequences: Range | None = None
    extent: Range | None = None
    tail: Tail | None = None
    format: str | None = None
    unplaced: bool = False


def merge(head: Head, deliveries: Iterable[Delivery], metadata: Iterable[Metadata] = ()) -> Head:
    """Return the head after these deliveries. A tombstone takes nothing in."""
    if head.tombstone is not None:
        return head
    before = head
    for delivery in deliveries:
        head = _merge_one(head, delivery)
    head = _with_activity(before, head)
    for candidate in metadata:
        if head.metadata is None or candidate.rank > head.metadata.rank:
            head = head.model_copy(update={"metadata": candidate})
    return head


def is_ruled_out(head: Head, written: Mark) -> bool:
    """Whether the head says that none of a mark's lines has a document."""
    return (
        head.tombstone is not None or written.generation != head.stream(written.stream).generation
    )


def must_not_exist(head: Head, stream: Stream, generation: int, sequence: int) -> bool:
    """Whether the head says that this line has no document (R3)."""
    if head.tombstone is not None:
        return True
    state = head.stream(stream)
    if generation != state.generation:
        return generation < state.generation
    return sequence in state.pruned


def delete(head: Head, deleted_at: str) -> Head:
    """Put a tombstone on the session: all it covered becomes garbage."""
    if head.tombstone is not None:
        return head
    garbage = head.garbage
    for name, state in head.streams.items():
        garbage += _as_garbage(name, state)
    return Head.new(head.key).model_copy(
        update={
            "head_version": head.head_version,
            "tombstone": Tombstone(deleted_at=deleted_at),
            "deletions": head.deletions + 1,
            "garbage": garbage,
            "dirty": head.dirty,
        }
    )


def mark(head: Head, wanted: Mark) -> Head:
    """Mark lines as being written; a mark of the same id is renewed."""
    return head.model_copy(update={"dirty": (*unmark(head, [wanted.id]).dirty, wanted)})


def unmark(head: Head, ids: Collection[str]) -> Head:
    """Take marks off: what they stand for is counted, or removed."""
    left = tuple(known for known in head.dirty if known.id not in ids)
    return head.model_copy(update={"dirty": left})


def restate(head: Head, stream: Stream, deliveries: Iterable[Delivery]) -> Head:
    """Count a stream anew: what is stored, and every sum of it, is what these deliveries say.

    What does not follow from documents stays: extent, conflicts, tail, superseded lines.
    """
    state = head.stream(stream)
    counted = state.model_copy(update={name: getattr(_EMPTY, name) for name in _COUNTED})
    for delivery in deliveries:
        counted = _add(counted, delivery)
    refused = (state.quarantined | counted.quarantined) - counted.stored
    update = {"quarantined": refused, "pruned": state.pruned & counted.stored}
    counted = counted.model_copy(update=update)
    return _with_activity(head, _with_stream(head, stream, counted))


def prune(head: Head, stream: Stream, sequences: Coverage) -> Head:
    """Mark stored lines as pruned: their documents go, their counts stay.

    Raises `TransientError` while lines of the stream are replaced: they are counted anew then.
    """
    if head.tombstone is not None:
        return head
    if any(known.stream == stream and known.replaces for known in head.dirty):
        raise TransientError("Lines of this stream are being replaced; prune it later.")
    state = head.stream(stream)
    pruned = state.pruned | (sequences & state.stored)
    return _with_stream(head, stream, state.model_copy(update={"pruned": pruned}))


def would_split(
    head: Head, stream: Stream, first: int, last: int, deliveries: Iterable[Delivery] = ()
) -> bool:
    """Whether a fragmented head would have to take yet another range for these sequences.

    `deliveries` are about to be merged into the head, before these sequences.
    """
    state = head.stream(stream)
    coming = sum(_fragments(delivery) for delivery in deliveries if delivery.stream == stream)
    if state.fragment_count + coming >= MAX_FRAGMENTS:
        return True
    if state.range_count < MAX_RANGES:
        return False
    covered = state.stored | state.quarantined
    return len((covered | Coverage.of((first, last))).ranges) > len(covered.ranges)


def _fragments(delivery: Delivery) -> int:
    """Count the ranges that lines other than stored ones add: each may part stored ones too."""
    unusual = (delivery.quarantined, delivery.conflicts)
    return sum(2 * len(Coverage.from_numbers(numbers).ranges) for numbers in unusual)


def line_digest(sequence: int, sha256: bytes) -> int:
    """Return one line's share of a stream's digest: SHA-256(sequence, SHA-256(line)).

    The sequence is 8 bytes, big-endian.
    """
    return int.from_bytes(hashlib.sha256(sequence.to_bytes(8, "big") + sha256).digest(), "big")


def add_digest(digest: str, more: int) -> str:
    """Add to a digest in its hexadecimal form, modulo 2^256."""
    return f"{(int(digest, 16) + more) % DIGEST_MODULUS:064x}"


def total_cost(amount: str) -> int:
    """Read a sum of costs in units of 10^-18 dollars.

    A sum may have more digits before the point than a single line's cost is allowed.
    """
    whole, _, part = amount.partition(".")
    return int(whole) * COST_SCALE + cost(f"0.{part or '0'}")


def _merge_one(head: Head, delivery: Delivery) -> Head:
    state = head.stream(delivery.stream)
    if delivery.generation < state.generation:
        return _with_stream(head, delivery.stream, _supersede(state, delivery))
    if delivery.generation > state.generation:
        head = head.model_copy(
            update={"garbage": head.garbage + _as_garbage(delivery.stream, state)}
        )
        state = _next_generation(state, delivery.generation)
    return _with_stream(head, delivery.stream, _add(state, delivery))


def _with_activity(before: Head, head: Head) -> Head:
    """Show a hidden session again that has other lines now; it may have events to be pruned."""
    lines = ((now.generation, now.stored, now.digest) for now in map(head.stream, STREAMS))
    known = ((was.generation, was.stored, was.digest) for was in map(before.stream, STREAMS))
    if tuple(lines) == tuple(known):
        return head
    return head.model_copy(update={"hidden_at": None, "pruned_events": ()})


def _with_stream(head: Head, name: Stream, state: StreamHead) -> Head:
    return head.model_copy(update={"streams": head.streams | {name: state}})


def _as_garbage(stream: Stream, state: StreamHead) -> tuple[Garbage, ...]:
    lines = state.stored | state.quarantined | state.conflicts
    if not lines:
        return ()
    return (Garbage(stream=stream, generation=state.generation, lines=lines),)


def _next_generation(state: StreamHead, generation: int) -> StreamHead:
    seen = state.stored | state.quarantined
    superseded = _with_superseded(state.superseded, state.generation, seen)
    return StreamHead(generation=generation, superseded=superseded)


def _supersede(state: StreamHead, delivery: Delivery) -> StreamHead:
    if delivery.sequences is None:
        return state
    late = Coverage.of(delivery.sequences)
    superseded = _with_superseded(state.superseded, delivery.generation, late)
    return state.model_copy(update={"superseded": superseded})


def _with_superseded(
    known: dict[int, Coverage], generation: int, lines: Coverage
) -> dict[int, Coverage]:
    if not lines:
        return known
    merged = known | {generation: known.get(generation, Coverage()) | lines}
    kept: dict[int, Coverage] = {}
    ranges = 0
    for number in sorted(merged, reverse=True)[:MAX_SUPERSEDED]:
        ranges += len(merged[number].ranges)
        if ranges > MAX_FRAGMENTS // 2:
            break
        kept[number] = merged[number]
    return dict(sorted(kept.items()))


def _add(state: StreamHead, delivery: Delivery) -> StreamHead:
    changes: dict[str, Any] = {}
    fresh = _fresh(state, delivery.stored)
    if fresh:
        changes |= _sums(state, fresh)
    stored = state.stored | Coverage.from_numbers(facts.sequence for facts in fresh)
    refused = Coverage.from_numbers(delivery.quarantined)
    changes["stored"] = stored
    changes["quarantined"] = (state.quarantined | refused) - stored - state.pruned
    if delivery.conflicts:
        changes["conflicts"] = state.conflicts | Coverage.from_numbers(delivery.conflicts)
    if delivery.extent is not None:
        changes["extent"] = state.extent | Coverage.of(delivery.extent)
    changes["last_tail"] = _later_tail(state.last_tail, delivery.tail)
    # One file has one format; should deliveries differ, their order must not show.
    changes["format"] = max([*_present(state.format), *_present(delivery.format)], default=None)
    changes["unplaced"] = state.unplaced or delivery.unplaced
    return state.model_copy(update=changes)


def _fresh(state: StreamHead, stored: Sequence[Facts]) -> list[Facts]:
    """Keep the lines that become stored by this delivery, each once."""
    once = {facts.sequence: facts for facts in reversed(stored)}
    if not state.stored and not state.pruned:
        return list(once.values())
    return [
        facts
        for sequence, facts in once.items()
        if sequence not in state.stored and sequence not in state.pruned
    ]


def _sums(state: StreamHead, fresh: list[Facts]) -> dict[str, Any]:
    digest = sum(line_digest(facts.sequence, facts.sha256) for facts in fresh)
    times = [facts.occurred_at for facts in fresh if facts.occurred_at]
    usages = [state.usage, *(facts.usage for facts in fresh if facts.usage)]
    return {
        "line_bytes": state.line_bytes + sum(facts.size for facts in fresh),
        "truncated": state.truncated + sum(facts.truncated for facts in fresh),
        "repaired": state.repaired + sum(facts.repaired for facts in fresh),
        "digest": add_digest(state.digest, digest),
        "usage": Usage(*(sum(column) for column in zip(*usages, strict=True))),
        "cost_usd": cost_text(total_cost(state.cost_usd) + sum(facts.cost for facts in fresh)),
        "first_time": min([*times, *_present(state.first_time)], default=None),
        "last_time": max([*times, *_present(state.last_time)], default=None),
        "lifecycle": _last_lifecycle(state.lifecycle, fresh),
        "about": _about(state.about, fresh),
    }


def _present(value: str | None) -> list[str]:
    return [] if value is None else [value]


def _last_lifecycle(known: Lifecycle | None, fresh: list[Facts]) -> Lifecycle | None:
    last = known
    for facts in fresh:
        if facts.lifecycle and (last is None or facts.sequence > last.sequence):
            last = Lifecycle(
                sequence=facts.sequence, event=facts.lifecycle, occurred_at=facts.occurred_at
            )
    return last


def _about(known: dict[str, Stated], fresh: list[Facts]) -> dict[str, Stated]:
    """Keep of each fact the first statement, or the last, by position."""
    found = {name: (stated.sequence, stated.value) for name, stated in known.items()}
    for facts in fresh:
        for name, value in (facts.about or {}).items():
            here, there = (facts.sequence, value), found.get(name)
            if there is None or (here < there) == (name in FIRST_STATED):
                found[name] = here
    return {
        name: Stated(sequence=sequence, value=value)
        for name, (sequence, value) in sorted(found.items())
    }


def _later_tail(known: Tail | None, tail: Tail | None) -> Tail | None:
    if tail is None:
        return known
    return tail if known is None or tail.rank > known.rank else known
