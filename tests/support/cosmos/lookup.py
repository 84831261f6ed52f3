"""Sorted items, so that a query need not look at all of a large partition each time.

This is about the speed of the server only: what a query finds and costs is the same without it.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.support.cosmos.indexing import Path
from tests.support.cosmos.items import Item
from tests.support.cosmos.sql.nodes import Between, Binary, Expression, Literal, Parameter
from tests.support.cosmos.sql.values import KINDS, UNDEFINED, sort_key

FEW = 500  # so many items are looked at one by one
REMEMBERED = 16
NUMBER, STRING = KINDS[float], KINDS[str]
MIRRORED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class Bounds(NamedTuple):
    """What a condition leaves of the sort keys of a path: from `low` on, below `high`.

    A key with a third element lies just behind the key of its first two.
    """

    path: Path
    low: tuple[Any, ...]
    high: tuple[Any, ...]


class Sorted(NamedTuple):
    """The items of a scope by a path, as they were at a version."""

    version: int
    keys: list[tuple[int, Any]]
    items: list[Item]

    def between(self, bounds: Bounds) -> slice:
        """Where the items of some bounds stand."""
        return slice(bisect_left(self.keys, bounds.low), bisect_left(self.keys, bounds.high))


class Lookups:
    """Sorts a scope by a path when it is asked a second time without a change in between."""

    def __init__(self) -> None:
        self._sorted: OrderedDict[tuple[bytes, Path], Sorted] = OrderedDict()
        self._seen: dict[bytes, int] = {}

    def narrow(
        self, scope: bytes, version: int, bounds: list[Bounds], items: Callable[[], list[Item]]
    ) -> list[Item]:
        """The items that may match, in the order of their creation: all, or fewer."""
        found = [
            (one, known)
            for one in bounds
            if (known := self._sorted.get((scope, one.path))) is not None
            and known.version == version
        ]
        if not found and bounds and self._seen.get(scope) == version:
            found = [(one, self._sort(scope, version, one.path, items())) for one in bounds]
        self._note(scope, version)
        if not found:
            return items()
        chosen = min(
            ((known, known.between(one)) for one, known in found),
            key=lambda pair: pair[1].stop - pair[1].start,
        )
        return sorted(chosen[0].items[chosen[1]], key=lambda item: item.number)

    def _sort(self, scope: bytes, version: int, path: Path, items: list[Item]) -> Sorted:
        pairs = [(sort_key(_at(item.body, path)), item) for item in items]
        pairs.sort(key=lambda pair: pair[0])
        made = Sorted(version, [key for key, _ in pairs], [item for _, item in pairs])
        if len(items) > FEW:
            self._sorted[scope, path] = made
            while len(self._sorted) > REMEMBERED:
                self._sorted.popitem(last=False)
        return made

    def _note(self, scope: bytes, version: int) -> None:
        if len(self._seen) > 10_000:
            self._seen.clear()
        self._seen[scope] = version


def bounds_of(
    condition: Expression, parameters: Mapping[str, Any]
) -> tuple[Expression, Any] | None:
    """A comparison with a constant, as (what is compared, its low and high sort key)."""
    match condition:
        case Binary(operator, left, Literal() | Parameter() as right) if operator in MIRRORED:
            return _pair(left, operator, _value(right, parameters))
        case Binary(operator, Literal() | Parameter() as left, right) if operator in MIRRORED:
            return _pair(right, MIRRORED[operator], _value(left, parameters))
        case Between(operand, Literal() | Parameter() as low, Literal() | Parameter() as high):
            first, last = sort_key(_value(low, parameters)), sort_key(_value(high, parameters))
            if first[0] == last[0] and first[0] in {NUMBER, STRING}:
                return operand, (first, (*last, 1))
    return None


def _pair(operand: Expression, operator: str, value: Any) -> tuple[Expression, Any] | None:
    key = sort_key(value)
    kind = key[0]
    if kind not in {NUMBER, STRING}:
        return None
    behind = (*key, 1)
    return operand, {
        "=": (key, behind),
        "<": ((kind,), key),
        "<=": ((kind,), behind),
        ">": (behind, (kind + 1,)),
        ">=": (key, (kind + 1,)),
    }[operator]


def _value(node: Literal | Parameter, parameters: Mapping[str, Any]) -> Any:
    return node.value if isinstance(node, Literal) else parameters.get(node.name)


def _at(body: dict[str, Any], path: Path) -> Any:
    value: Any = body
    for name in path:
        if not isinstance(value, dict):
            return UNDEFINED
        value = value.get(name, UNDEFINED)
    return value
