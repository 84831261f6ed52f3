"""Values of the query language: JSON's, and undefined. How they compare."""

from typing import Any


class Undefined:
    """What an expression is worth where a property is missing."""

    def __repr__(self) -> str:
        return "undefined"

    def __bool__(self) -> bool:
        return False


UNDEFINED = Undefined()


KINDS: dict[type, int] = {
    Undefined: 0,
    type(None): 1,
    bool: 2,
    int: 4,
    float: 4,
    str: 5,
    list: 6,
    dict: 7,
}
"""The order of types; true comes after false, at 3."""


def sort_key(value: Any) -> tuple[int, Any]:
    """What to sort by: type first; strings by code point, arrays and objects not at all."""
    kind = KINDS[type(value)]
    if kind in {4, 5}:
        return kind, value
    return (3, 0) if value is True else (kind, 0)


def same_type(left: Any, right: Any) -> bool:
    """Whether two values have one JSON type."""
    return KINDS[type(left)] == KINDS[type(right)]


def is_ordered(value: Any) -> bool:
    """Whether values of this one's type can be less or more."""
    return 0 < KINDS[type(value)] < 6


def equal(left: Any, right: Any) -> bool:
    """Deep equality of two defined values; true is not 1."""
    if not same_type(left, right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)
