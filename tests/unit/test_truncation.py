"""The rule of what is stored in full, and the bounded scan of what is not parsed."""

import hashlib
import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessionferry.errors import ArchiveMismatch
from sessionferry.formats.meaning import MAX_TEXT
from sessionferry.identity import Stream
from sessionferry.truncation import (
    KEPT_FIELDS,
    MAX_DEPTH,
    check_hash,
    kept,
    looks_like_object,
    must_truncate,
    scan,
    text_too_deep,
    too_deep,
)
from support.strategies import json_values


@pytest.mark.parametrize(
    ("stream", "data", "document", "expected"),
    [
        ("events", 409_600, 410_000, False),
        ("events", 409_601, 410_000, True),
        ("events", 10, 1_900_001, True),
        ("transcript", 409_601, 410_000, False),
        ("transcript", 1_899_000, 1_900_000, False),
        ("transcript", 1_899_000, 1_900_001, True),
    ],
)
def test_the_rule(stream: Stream, data: int, document: int, expected: bool) -> None:
    assert must_truncate(stream, data, document) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"event": "x", "ts": 1.5, "lvl": "INFO", "turn": 4, "role": "user", "data": {}}, 5),
        ({"event": None, "ts": True, "lvl": [], "turn": {}, "role": ""}, 1),
        ({"content": "x", "type": "y"}, 0),
    ],
)
def test_only_named_scalars_are_kept(fields: dict[str, Any], expected: int) -> None:
    found = kept(fields)
    assert len(found) == expected
    assert all(fields[name] == value for name, value in found.items())


def test_kept_texts_are_cut() -> None:
    assert kept(dict.fromkeys(KEPT_FIELDS, "x" * 10**6)) == dict.fromkeys(
        KEPT_FIELDS, "x" * MAX_TEXT
    )


# ---------------------------------------------------------------- scanning


@pytest.mark.parametrize(
    ("line", "fields", "summary"),
    [
        (b'{"event":"x","ts":"t","data":{"model":"m"}', {"event": "x", "ts": "t"}, {"model": "m"}),
        (b'{"turn": 12 , "status" : "ok"}', {"turn": 12}, {"status": "ok"}),
        (b'{"event":"first","data":{"event":"second"}}', {"event": "first"}, {}),
        (b'{"event":"a\\"b\\u00e9"}', {"event": 'a"b\u00e9'}, {}),
        (b'{"event":"\\ud800","lvl":"INFO"}', {"lvl": "INFO"}, {}),
        (b'{"event":"\xff","lvl":"INFO"}', {"lvl": "INFO"}, {}),
        (b'{"event":"' + b"x" * 300 + b'"}', {}, {}),
        (b'{"event":{"x":1},"turn":1.5}', {}, {}),
        (b'{"x":"' + b"y" * 70_000 + b'","event":"late"}', {}, {}),
        (b"{", {}, {}),
    ],
)
def test_a_scan_finds_short_scalars_near_the_start(
    line: bytes, fields: dict[str, Any], summary: dict[str, Any]
) -> None:
    assert scan(line) == (fields, summary)


@given(st.binary(max_size=80) | st.text('"event\\:{},1 ', max_size=60).map(str.encode))
def test_scanning_never_fails(line: bytes) -> None:
    found = scan(line)
    assert orjson.dumps(found)


def test_scanning_takes_bounded_time() -> None:
    started = time.perf_counter()
    for line in (b'"event":"' * 10**6, b'{"event":"' + b"\\" * 10**7, b'"turn":' + b"1" * 10**7):
        scan(line)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [(b"{", True), (b" \t{", True), (b"[", False), (b"", False), (b" " * 70_000 + b"{", False)],
)
def test_an_object_shows_at_its_first_sign(line: bytes, expected: bool) -> None:
    assert looks_like_object(line) is expected


# ---------------------------------------------------------------- depth


def depth_of(value: object) -> int:
    """Return how deeply a value is nested; `{}` is one deep, a text is not."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(json_values, st.integers(0, 120), st.integers(0, 2**120))
def test_both_measures_of_depth_agree_with_the_definition(
    value: object, more: int, kinds: int
) -> None:
    for level in range(more):
        value = {"a": value, "b": "]}"} if kinds >> level & 1 else ["[{", value]
    expected = depth_of(value) > MAX_DEPTH
    assert too_deep([value]) is (depth_of([value]) > MAX_DEPTH)
    assert text_too_deep(json.dumps(value).encode()) is expected


@given(st.text('[]{}"\\a', max_size=300).map(str.encode))
@example(b'"' + b"[" * 200)
@example(b'"\\"' + b"[" * 200)
@example(b"]" * 200 + b"[" * 100)
def test_a_text_that_is_not_found_deep_can_be_parsed_without_deep_recursion(line: bytes) -> None:
    opened = depth = 0
    in_string = escaped = False
    for sign in line.decode():
        if in_string:
            in_string = escaped or sign != '"'
            escaped = sign == "\\" and not escaped
        elif sign == '"':
            in_string = True
        else:
            opened += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
            depth = max(depth, opened)
    assert text_too_deep(line) is (depth > MAX_DEPTH)


def test_measuring_a_long_text_takes_bounded_time() -> None:
    started = time.perf_counter()
    for line in (b'"' + b"\\n" * 4_000_000 + b'"', b"[]" * 1_000_000, b'""' * 1_000_000):
        assert not text_too_deep(line)
    assert time.perf_counter() - started < 5


# ---------------------------------------------------------------- hashes


def test_bytes_pass_when_their_hash_is_right() -> None:
    assert check_hash(b"x", hashlib.sha256(b"x").hexdigest()) == b"x"


def test_bytes_of_another_hash_are_refused_with_both_hashes() -> None:
    with pytest.raises(ArchiveMismatch, match=f"the document says {'0' * 64}"):
        check_hash(b"x", "0" * 64)
