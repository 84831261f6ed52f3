"""What hypothesis draws in more than one test file."""

import orjson
from hypothesis import strategies as st

from sessionferry.batch import Batch, Header, lines_of
from sessionferry.coverage import Coverage
from sessionferry.documents import RESERVED
from sessionferry.identity import MAX_PART_BYTES, SessionKey

NASTY = [
    *("a", "A", "user-123", "my-project", "sess-abc", "sess-abc~3", "a_evt_0", "x" * 300),
    *("|", "a|b", "%", "%7C", "%%", "=", "==", "=7C", "/", "\\", "?", "#", "a/b", ":", "C:\\x"),
    *(
        ".",
        "..",
        "...",
        ".a",
        "a.",
        " ",
        " a",
        "a ",
        "  ",
        "a b",
        "\t",
        "\n",
        "a\n",
        "\x7f",
    ),
    *(
        "caf\u00e9",
        "cafe\u0301",
        "\u212b",
        "\u00c5",
        "\u2028",
        "\u0085",
        "\ufeff",
        "\U0001f600" * 250,
    ),
    *("x" * 200, "x" * 201, "x" * 199 + "y", "\u4e2d" * 200, "\u4e2d" * 201, "|" * 70, "|" * 300),
    *("_unattributed", "=5Funattributed", "~", "con", "a+b@c", "x" * 1024),
]

_pieces = st.sampled_from([*"ab|%=/\\?#~:_. \t\n", "%7C", "=2E", "\u00e9", "e\u0301", "\u4e2d"])
_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12
)


def _fits(part: str) -> bool:
    return 0 < len(part.encode()) <= MAX_PART_BYTES


parts = st.one_of(
    st.sampled_from(NASTY),
    st.lists(_pieces, min_size=1, max_size=6).map("".join),
    _text,
    st.builds(lambda text, times: text * times, _text, st.integers(1, 60)).filter(_fits),
)
"""Valid identity parts, most of them unpleasant."""

session_keys = st.builds(SessionKey, parts, parts, parts)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
clashing_keys = st.sampled_from(
    [*sorted(RESERVED), *("event", "ts", "role", "lvl", "turn", "data", "status", "usage", "x")]
)
objects = st.dictionaries(clashing_keys | _text, json_values, max_size=10)
"""JSON objects whose keys are often ours or Cosmos DB's."""

coverages = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=6
).map(lambda ranges: Coverage.of(*ranges))

raw_lines = st.one_of(
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from(
        [b"", b" ", b"\r", b'{"a":1}\r', b"\x00", b"\xff\xfe", b'\xef\xbb\xbf{"a":1}', b"\x0b"]
    ),
    st.just('{"a":"\u2028\u0085"}'.encode()),
    objects.map(orjson.dumps),
)
payloads = st.lists(raw_lines, max_size=12).map(lambda lines: b"".join(x + b"\n" for x in lines))
"""Whole files of terminated lines, blank and broken ones included."""


def header(**changes: object) -> Header:
    """Return a header that stands for an ordinary batch."""
    return Header.model_validate(
        {
            "kind": "lines",
            "stream": "events",
            "user_id": "user-123",
            "host_id": "host-1",
            "project_slug": "my-project",
            "session_id": "sess-abc",
            "format": "amplifier",
        }
        | changes
    )


def batch(payload: bytes, **changes: object) -> Batch:
    """Return a batch whose counts fit its payload."""
    counts = {"length": len(payload), "line_count": sum(1 for _ in lines_of(payload))}
    return Batch(header(**(counts | changes)), payload)
