"""Sets of whole numbers as sorted, disjoint, inclusive ranges.

Heads keep which sequences of a stream they cover, and which bytes are archived, in this form:
a stream that arrived completely is one range, whatever its length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Range = tuple[int, int]


class Coverage:
    """An immutable set of whole numbers, e.g. `Coverage.of((0, 9), (12, 12))`."""

    __slots__ = ("ranges",)

    ranges: tuple[Range, ...]

    def __init__(self, ranges: tuple[Range, ...] = ()) -> None:
        self.ranges = ranges

    @classmethod
    def of(cls, *ranges: Range) -> Coverage:
        """Build from inclusive ranges in any order, overlapping or not."""
        return cls(_normalise(ranges))

    @classmethod
    def from_numbers(cls, numbers: Iterable[int]) -> Coverage:
        """Build from single numbers in any order."""
        return cls(_normalise((n, n) for n in numbers))

    def __or__(self, other: Coverage) -> Coverage:
        if not other.ranges:
            return self
        if not self.ranges:
            return other
        return Coverage(_normalise(self.ranges + other.ranges))

    def __sub__(self, other: Coverage) -> Coverage:
        if not other.ranges or not self.ranges:
            return self
        return Coverage(tuple(_subtract(self.ranges, other.ranges)))

    def __and__(self, other: Coverage) -> Coverage:
        return self - (self - other)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.ranges, number, key=lambda r: r[0]) - 1
        return at >= 0 and number <= self.ranges[at][1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coverage) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        shown = ", ".join(str(r) for r in self.ranges[:5])
        return f"Coverage.of({shown}{', ...' if len(self.ranges) > 5 else ''})"

    @property
    def last(self) -> int:
        """The greatest number, -1 if there is none."""
        return self.ranges[-1][1] if self.ranges else -1

    def gaps(self) -> Coverage:
        """What is missing between 0 and the greatest number."""
        return Coverage.of((0, self.last)) - self if self.ranges else Coverage()

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: type[Any], _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        pairs = core_schema.list_schema(
            core_schema.tuple_schema([core_schema.int_schema(ge=0), core_schema.int_schema(ge=0)])
        )
        from_json = core_schema.no_info_after_validator_function(lambda rs: cls.of(*rs), pairs)
        return core_schema.json_or_python_schema(
            json_schema=from_json,
            python_schema=core_schema.union_schema(
                [core_schema.is_instance_schema(cls), from_json]
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda coverage: [list(r) for r in coverage.ranges]
            ),
        )


def _normalise(ranges: Iterable[Range]) -> tuple[Range, ...]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if last < first:
            continue
        if merged and first <= merged[-1][1] + 1:
            if last > merged[-1][1]:
                merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def _subtract(ranges: tuple[Range, ...], holes: tuple[Range, ...]) -> Iterator[Range]:
    at = 0
    for first, last in ranges:
        start = first
        while at < len(holes) and holes[at][1] < start:
            at += 1
        scan = at
        while scan < len(holes) and holes[scan][0] <= last:
            hole_first, hole_last = holes[scan]
            if hole_first > start:
                yield start, hole_first - 1
            start = max(start, hole_last + 1)
            scan += 1
        if start <= last:
            yield start, last
