"""Values of the query language: JSON's, and undefined. How they compare."""

from typing import Any


class Undefined:
    """What an expression is worth where a property is missing."""

    def __repr__(self) -> str:
        return "undefined"

    def __bool__(self) -> bool:
        return False


UNDEFINED = Undefined()


def rank(value: Any) -> int:
    """The order of types: undefined, null, false and true, numbers, strings, arrays, objects."""
    if value is UNDEFINED:
        return 0
    if value is None:
        return 1
    if value is False:
        return 2
    if value is True:
        return 3
    if isinstance(value, int | float):
        return 4
    if isinstance(value, str):
        return 5
    return 6 if isinstance(value, list) else 7


def sort_key(value: Any) -> tuple[int, Any]:
    """What to sort by: type first; strings by code point."""
    place = rank(value)
    return (place, value) if place in {4, 5} else (place, 0)


def same_type(left: Any, right: Any) -> bool:
    """Whether two values have one JSON type."""
    return _type(left) == _type(right)


def _type(value: Any) -> int:
    place = rank(value)
    return 2 if place == 3 else place


def equal(left: Any, right: Any) -> bool:
    """Deep equality of two defined values; true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)
