"""The functions of the query language; they are undefined for values of the wrong types."""

import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from tests.support.cosmos.sql.values import UNDEFINED, equal

Function = Callable[..., Any]


def is_number(value: Any) -> bool:
    """JSON's numbers, not its booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _strings(function: Callable[..., Any]) -> Function:
    """Undefined unless all arguments but a trailing boolean are strings."""

    def checked(*arguments: Any) -> Any:
        texts = [one for one in arguments if not isinstance(one, bool)]
        if not all(isinstance(one, str) for one in texts):
            return UNDEFINED
        if arguments and arguments[-1] is True:
            return function(*(text.lower() for text in texts))
        return function(*texts)

    return checked


def _number(function: Callable[..., Any]) -> Function:
    def checked(*arguments: Any) -> Any:
        if not all(map(is_number, arguments)):
            return UNDEFINED
        try:
            return function(*arguments)
        except (ValueError, ZeroDivisionError, OverflowError):
            return UNDEFINED

    return checked


def _array_contains(array: Any, wanted: Any, partial: Any = False) -> Any:
    if not isinstance(array, list):
        return UNDEFINED
    if partial is True and isinstance(wanted, dict):
        return any(
            isinstance(one, dict)
            and all(key in one and equal(one[key], value) for key, value in wanted.items())
            for one in array
        )
    return any(equal(one, wanted) for one in array)


def _array_slice(array: Any, start: Any, length: Any = None) -> Any:
    if not isinstance(array, list) or not is_number(start):
        return UNDEFINED
    begin = int(start) if start >= 0 else max(0, len(array) + int(start))
    return array[begin:] if length is None else array[begin : begin + int(length)]


def _array_concat(*arrays: Any) -> Any:
    if not all(isinstance(one, list) for one in arrays):
        return UNDEFINED
    return [element for one in arrays for element in one]


def _substring(text: Any, start: Any, length: Any) -> Any:
    if not isinstance(text, str) or not is_number(start) or not is_number(length):
        return UNDEFINED
    begin = max(0, int(start))
    return text[begin : begin + max(0, int(length))]


def _index_of(text: Any, part: Any, start: Any = 0) -> Any:
    if not isinstance(text, str) or not isinstance(part, str):
        return UNDEFINED
    return text.find(part, int(start))


def _to_string(value: Any) -> Any:
    if value is UNDEFINED or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _to_number(text: Any) -> Any:
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        return UNDEFINED
    return value if is_number(value) else UNDEFINED


def _regex(text: Any, pattern: Any, modifiers: Any = "") -> Any:
    if not isinstance(text, str) or not isinstance(pattern, str):
        return UNDEFINED
    known = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
    flags = re.NOFLAG
    for modifier in modifiers:
        flags |= known.get(modifier, re.NOFLAG)
    try:
        return re.search(pattern, text, flags) is not None
    except re.error:
        return UNDEFINED


def _length(value: Any) -> Any:
    return len(value) if isinstance(value, str) else UNDEFINED


def _array_length(value: Any) -> Any:
    return len(value) if isinstance(value, list) else UNDEFINED


def _left(text: Any, count: Any) -> Any:
    return _substring(text, 0, count)


def _right(text: Any, count: Any) -> Any:
    if not isinstance(text, str) or not is_number(count):
        return UNDEFINED
    return text[-int(count) :] if count > 0 else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"


def _round(value: float) -> float:
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


FUNCTIONS: dict[str, Function] = {
    # kinds of values
    "IS_DEFINED": lambda value: value is not UNDEFINED,
    "IS_NULL": lambda value: value is None,
    "IS_BOOL": lambda value: isinstance(value, bool),
    "IS_NUMBER": is_number,
    "IS_INTEGER": lambda value: is_number(value) and float(value).is_integer(),
    "IS_STRING": lambda value: isinstance(value, str),
    "IS_ARRAY": lambda value: isinstance(value, list),
    "IS_OBJECT": lambda value: isinstance(value, dict),
    "IS_PRIMITIVE": lambda value: value is not UNDEFINED and not isinstance(value, dict | list),
    # strings
    "STARTSWITH": _strings(lambda text, part: text.startswith(part)),
    "ENDSWITH": _strings(lambda text, part: text.endswith(part)),
    "CONTAINS": _strings(lambda text, part: part in text),
    "STRINGEQUALS": _strings(lambda text, other: text == other),
    "LOWER": _strings(lambda text: text.lower()),
    "UPPER": _strings(lambda text: text.upper()),
    "TRIM": _strings(lambda text: text.strip()),
    "LTRIM": _strings(lambda text: text.lstrip()),
    "RTRIM": _strings(lambda text: text.rstrip()),
    "REVERSE": _strings(lambda text: text[::-1]),
    "REPLACE": _strings(lambda text, old, new: text.replace(old, new)),
    "CONCAT": _strings(lambda *texts: "".join(texts)),
    "LENGTH": _length,
    "LEFT": _left,
    "RIGHT": _right,
    "SUBSTRING": _substring,
    "INDEX_OF": _index_of,
    "TOSTRING": _to_string,
    "STRINGTONUMBER": _to_number,
    "REGEXMATCH": _regex,
    # arrays
    "ARRAY_CONTAINS": _array_contains,
    "ARRAY_LENGTH": _array_length,
    "ARRAY_SLICE": _array_slice,
    "ARRAY_CONCAT": _array_concat,
    # numbers
    "ABS": _number(abs),
    "CEILING": _number(math.ceil),
    "FLOOR": _number(math.floor),
    "ROUND": _number(_round),
    "SQRT": _number(math.sqrt),
    "POWER": _number(math.pow),
    "EXP": _number(math.exp),
    "LOG": _number(math.log),
    # time
    "GETCURRENTDATETIME": _now,
    "GETCURRENTTIMESTAMP": lambda: int(time.time() * 1000),
    # choice
    "IIF": lambda condition, one, other: one if condition is True else other,
}
AGGREGATES = frozenset({"COUNT", "SUM", "MIN", "MAX", "AVG", "COUNTIF"})
