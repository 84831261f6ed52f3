"""The wire format: what goes in comes out, and what is wrong is refused in time."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tracemalloc
import zlib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessionferry.batch import (
    ENCODINGS,
    KINDS,
    MAX_CARRY_BYTES,
    MAX_FUTURE_MS,
    MAX_HEADER_BYTES,
    MAX_SEQUENCE,
    Batch,
    Claim,
    Encoding,
    Header,
    Limits,
    batch_id,
    check_time,
    compress,
    decode,
    encode,
    encode_parts,
    is_blank,
    lines_of,
    parse_header,
    peek_key,
    utc_now,
)
from sessionferry.errors import BadBatch, BadIdentity, BatchTooLarge, UnsupportedBatch
from sessionferry.formats.meaning import utc
from sessionferry.identity import SessionKey
from support.strategies import batch, header, json_values, payloads, raw_lines

MB = 1024 * 1024
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "batch-header.schema.json"
encodings = st.sampled_from(ENCODINGS)
LINE = b'{"event":"session:start"}\n'


def message(fields: dict[str, Any] | None = None, payload: bytes = b"", **changes: Any) -> bytes:
    """Return an uncompressed message whose header may be wrong."""
    plain = batch(payload).header.model_dump(exclude_none=True) if fields is None else fields
    return orjson.dumps(plain | changes) + b"\n" + payload


# ---------------------------------------------------------------- there and back


@given(payloads, encodings, st.booleans())
def test_a_batch_survives_the_way(payload: bytes, encoding: Encoding, named: bool) -> None:
    sent = batch(payload, offset=7, start_sequence=3, generation=2, carry={"last": [1, "é"]})
    body = encode(sent, encoding)
    assert decode(body, encoding if named else None) == sent


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_magic_bytes_tell_the_encoding_when_it_is_not_named(encoding: Encoding) -> None:
    assert decode(encode(batch(LINE), encoding)).payload == LINE


@given(st.lists(payloads, max_size=4), encodings)
def test_several_frames_or_members_are_one_batch(pieces: list[bytes], encoding: Encoding) -> None:
    sent = batch(b"".join(pieces))
    frames = [compress(piece, encoding) for piece in pieces]
    assert decode(encode_parts(sent.header, b"".join(frames), encoding)) == sent


@pytest.mark.parametrize("empty", [zstandard.compress(b""), b"\x50\x2a\x4d\x18\x02\0\0\0ab"])
def test_empty_and_skippable_zstd_frames_change_nothing(empty: bytes) -> None:
    sent = batch(LINE)
    frames = [compress(piece, "zstd") for piece in (sent.header.to_json() + b"\n", LINE)]
    assert decode(empty.join([b"", *frames, b""]), "zstd") == sent


def test_empty_gzip_members_change_nothing() -> None:
    sent = batch(LINE)
    parts = [gzip.compress(piece) for piece in (sent.header.to_json() + b"\n", b"", LINE, b"")]
    assert decode(b"".join(parts)) == sent


def test_a_gzip_batch_can_be_made_with_a_shell_alone() -> None:
    if not shutil.which("gzip"):
        pytest.skip("no gzip here")
    head = (
        '{"v":1,"kind":"lines","stream":"events","user_id":"u","host_id":"h","project_slug":"p",'
        '"session_id":"s","line_count":2,"length":18,"format":"amplifier"}'
    )
    script = """printf '%s\\n{"a":1}\\r\\n{"b":2}\\n\\n' "$HEAD" | gzip -c"""
    made = subprocess.run(
        ["sh", "-c", script], env={**os.environ, "HEAD": head}, capture_output=True, check=True
    )
    assert decode(made.stdout).payload == b'{"a":1}\r\n{"b":2}\n\n'


@given(payloads, st.lists(st.integers(0, 12), max_size=5), encodings)
def test_batches_of_any_size_join_to_the_file(
    payload: bytes, cuts: list[int], encoding: Encoding
) -> None:
    pieces = [line + b"\n" for line in payload.split(b"\n")[:-1]]
    bounds = [0, *sorted(min(cut, len(pieces)) for cut in cuts), len(pieces)]
    joined, sequence = b"", 0
    for first, last in pairwise(bounds):
        sent = batch(b"".join(pieces[first:last]), offset=len(joined), start_sequence=sequence)
        got = decode(encode(sent, encoding))
        assert got.header.offset == len(joined)
        joined += got.payload
        sequence += got.header.line_count
    assert joined == payload
    assert sequence == sum(1 for _ in lines_of(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"\n\n \n",
        b'\xef\xbb\xbf{"a":1}\r\n{"b":2}\r\n',
        b"\x00\x00\n\xff\xfe\xfd\n",
        '{"a":"\u2028\u2029\u0085"}\n'.encode(),
        b'{"a":\r1}\n',
        b"",
    ],
)
def test_payloads_pass_verbatim(payload: bytes) -> None:
    assert decode(encode(batch(payload))).payload == payload


def test_unknown_header_fields_are_kept_and_ignored() -> None:
    got = decode(message(payload=LINE, colour="blue")).header
    assert orjson.loads(got.to_json())["colour"] == "blue"


# ---------------------------------------------------------------- lines


@given(st.lists(raw_lines, max_size=8), st.booleans())
def test_lines_are_the_non_blank_pieces_between_newlines(raw: list[bytes], ended: bool) -> None:
    payload = b"\n".join(raw) + (b"\n" if ended else b"")
    found = list(lines_of(payload))
    assert [line for _, line in found] == [line for line in payload.split(b"\n") if line.strip()]
    assert all(payload[offset : offset + len(line)] == line for offset, line in found)


@pytest.mark.parametrize(
    ("line", "blank"),
    [(b"", True), (b" \t\r\x0b\x0c", True), (b"\x00", False), (b"\xc2\x85", False), (b"0", False)],
)
def test_only_ascii_white_space_is_blank(line: bytes, blank: bool) -> None:
    assert is_blank(line) is blank


# ---------------------------------------------------------------- bounds


def bomb(encoding: Encoding, size: int, *, states_size: bool = True) -> bytes:
    """Return a valid message whose payload unpacks to `size` zero bytes."""
    chunk = bytes(MB)
    if encoding == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        packed = b"".join(packer.compress(chunk) for _ in range(size // MB)) + packer.flush()
    else:
        writer = zstandard.ZstdCompressor().compressobj(size=size if states_size else -1)
        packed = b"".join(writer.compress(chunk) for _ in range(size // MB)) + writer.flush()
    return encode_parts(header(length=size), packed, encoding)


@pytest.mark.parametrize(
    ("encoding", "states_size"), [("zstd", True), ("zstd", False), ("gzip", True)]
)
def test_a_bomb_is_refused_while_unpacking_in_bounded_memory(
    encoding: Encoding, states_size: bool
) -> None:
    body = bomb(encoding, 256 * MB, states_size=states_size)
    assert len(body) < MB
    tracemalloc.start()
    try:
        with pytest.raises(BatchTooLarge, match="unpacks to more than 2097152 bytes"):
            decode(body, limits=Limits(inline_bytes=2 * MB))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MB


def test_claimed_batches_may_be_larger_than_inline_ones() -> None:
    limits = Limits(inline_bytes=1000, claimed_bytes=2_000_000)
    body = encode(batch(b"x" * 1_000_000 + b"\n"))
    with pytest.raises(BatchTooLarge):
        decode(body, limits=limits)
    assert len(decode(body, limits=limits, claimed=True).payload) == 1_000_001


def test_a_zstd_window_over_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=25)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packer.compress(message(payload=LINE)) + packer.flush()
    with pytest.raises(BadBatch, match="not valid zstd"):
        decode(body)
    assert decode(body, limits=Limits(zstd_window=32 * MB)).payload == LINE


def test_ten_thousand_lines_are_taken_and_one_more_is_not() -> None:
    assert decode(encode(batch(b"{}\n" * 10_000))).header.line_count == 10_000
    with pytest.raises(BatchTooLarge, match="10001 lines; at most 10000"):
        decode(encode(batch(b"{}\n" * 10_001)))


def test_many_small_gzip_members_cost_time_in_proportion() -> None:
    body = gzip.compress(message(payload=LINE)) + gzip.compress(b"") * 20_000
    assert decode(body, "gzip").payload == LINE


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_message_cut_anywhere_is_refused(encoding: Encoding) -> None:
    body = encode(batch(LINE * 50), encoding)
    for end in range(0, len(body) - 1, 7):
        with pytest.raises(BadBatch):
            decode(body[:end], encoding)


WRONG: list[tuple[str, bytes, str]] = [
    ("too few lines", message(payload=LINE, line_count=0), "says 0 lines, there are 1"),
    ("too many lines", message(payload=LINE, line_count=2), "says 2 lines, there are 1"),
    ("wrong length", message(payload=LINE, length=1), "says 1 bytes, there are 26"),
    ("unterminated", message(payload=b"{}", length=2, line_count=1), "not terminated"),
    ("no stream", message(payload=LINE, stream=None), "needs a stream"),
    ("no session", message(payload=LINE, session_id=None), "needs project_slug and session_id"),
    ("tail without stream", message(kind="tail", stream=None), "needs a stream"),
    ("no header", b"{}\n", "The header is not valid: kind: Field required"),
    ("nothing", b"", "no newline within 65536 bytes"),
    ("no newline", b"x" * 70_000, "no newline within 65536 bytes"),
    ("not JSON", b"hello\n", "The header is not JSON"),
    ("not an object", b"[1]\n", "The header is not a JSON object"),
    ("long header", message(agent="x", note="x" * 70_000), "no newline within 65536 bytes"),
    ("deep header", b'{"a":' * 101 + b"1" + b"}" * 101 + b"\n", "nested too deeply"),
    ("carry over 8 KB", message(carry={"x": "y" * MAX_CARRY_BYTES}), "carry is over 8192 bytes"),
    ("carry is a list", message(carry=[]), "carry: "),
    ("version 0", message(v=0), "v: "),
    ("version as text", message(v="2"), "v: "),
    ("negative offset", message(offset=-1), "offset: "),
    ("absurd revision", message(revision=2**63), "revision: "),
    ("absurd offset", message(offset=2**53), "offset: "),
    ("sequence out of range", message(start_sequence=MAX_SEQUENCE), "start_sequence: "),
    ("unknown stream", message(stream="logs"), "stream: "),
    ("claim with a payload", message(payload=LINE, claim={"size": 1, "sha256": "0" * 64}), "claim"),
    ("claim with a path", message(claim={"size": 1, "sha256": "../" * 20}), "claim.sha256"),
]


@pytest.mark.parametrize(
    ("body", "why"),
    [pytest.param(body, why, id=name) for name, body, why in WRONG],
)
def test_what_is_wrong_is_refused_with_a_sentence(body: bytes, why: str) -> None:
    with pytest.raises(BadBatch, match=why):
        decode(body)


def test_sequences_stay_below_the_greatest() -> None:
    assert decode(encode(batch(LINE, start_sequence=MAX_SEQUENCE - 1)))
    with pytest.raises(BadBatch, match="Sequences must stay below 1000000000"):
        decode(encode(batch(LINE * 2, start_sequence=MAX_SEQUENCE - 1)))


@pytest.mark.parametrize("name", ["user_id", "host_id", "project_slug", "session_id"])
@pytest.mark.parametrize("value", ["", "x" * 1025, 7, "\u4e2d" * 1024])
def test_identity_parts_that_cannot_be_used_are_refused(name: str, value: object) -> None:
    with pytest.raises((BadBatch, BadIdentity), match=name):
        decode(message(payload=LINE, **{name: value}))


@pytest.mark.parametrize("changes", [{"v": 2}, {"v": 99, "kind": "novel"}, {"kind": "novel"}])
def test_what_a_newer_version_may_know_is_unsupported(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedBatch):
        decode(message(**changes))


@pytest.mark.parametrize("named", ["br", "", "ZSTD", "gzip, zstd", "x" * 1000])
def test_an_unknown_content_encoding_is_unsupported(named: str) -> None:
    with pytest.raises(UnsupportedBatch, match="Unknown content_encoding"):
        decode(encode(batch(LINE)), named)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_understood(kind: str) -> None:
    fields = {"kind": kind, "line_count": 1 if kind == "lines" else 0}
    payload = LINE.rstrip() if kind == "tail" else LINE
    assert decode(message(payload=payload, **fields)).header.kind == kind


@pytest.mark.parametrize("payload", [b"", b"\n", LINE, b'{"a":1}\n{"b'])
def test_a_tail_is_one_unterminated_line(payload: bytes) -> None:
    with pytest.raises(BadBatch, match="unterminated"):
        decode(message(payload=payload, kind="tail", line_count=0))


def test_a_heartbeat_has_no_session() -> None:
    body = message(kind="heartbeat", line_count=0, stream=None, project_slug=None, session_id=None)
    found = decode(body).header
    with pytest.raises(BadBatch, match="heartbeat needs project_slug"):
        _ = found.key


def test_a_claim_stands_for_a_payload_that_is_elsewhere() -> None:
    claim = Claim(size=10, sha256="a" * 64)
    body = message(payload=b"", claim=claim.model_dump(), length=10**7, line_count=5)
    assert decode(body).header.claim == claim


NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("changes", "fine"),
    [
        ({"generation": NOW_MS + MAX_FUTURE_MS}, True),
        ({"generation": NOW_MS + MAX_FUTURE_MS + 1}, False),
        ({"kind": "metadata", "revision": (NOW_MS + MAX_FUTURE_MS) * 10**6}, True),
        ({"kind": "metadata", "revision": (NOW_MS + MAX_FUTURE_MS) * 10**6 + 1}, False),
        ({"kind": "heartbeat", "revision": 2**52}, True),
    ],
)
def test_versions_may_lie_24_hours_ahead_and_no_more(changes: dict[str, Any], fine: bool) -> None:
    made = header(**changes)
    if fine:
        check_time(made, NOW_MS)
    else:
        with pytest.raises(BadBatch, match="lies over 24 h in the future"):
            check_time(made, NOW_MS)


VALID = {name: encode(batch(LINE * 3, carry={"a": 1}), name) for name in ENCODINGS}


def refused_or_read(body: bytes, encoding: str | None) -> None:
    """Decode; only the two errors that mean a bad message may come out."""
    with suppress(BadBatch, BadIdentity):
        decode(body, encoding, limits=Limits(inline_bytes=MB))
    peek_key(body)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.sampled_from([None, *ENCODINGS]))
@example(b"\x28\xb5\x2f\xfd", None)
@example(b"\x1f\x8b", None)
def test_random_bytes_are_a_bad_batch_and_nothing_else(body: bytes, encoding: str | None) -> None:
    refused_or_read(body, encoding)


@settings(max_examples=150)
@given(
    st.sampled_from(ENCODINGS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from(["set", "insert", "delete"]),
)
def test_a_damaged_message_is_a_bad_batch_and_nothing_else(
    encoding: Encoding, damage: list[tuple[int, int]], how: str
) -> None:
    body = bytearray(VALID[encoding])
    for place, value in damage:
        at = place % len(body)
        if how == "set":
            body[at] = value
        elif how == "insert":
            body.insert(at, value)
        else:
            del body[at : at + value % 5]
    refused_or_read(bytes(body), None)
    refused_or_read(bytes(body), encoding)


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([*Header.model_fields, "more"]), json_values | st.integers(), max_size=4
    )
)
def test_a_header_with_any_values_is_read_or_is_a_bad_batch(changes: dict[str, Any]) -> None:
    fields = orjson.loads(VALID["identity"].split(b"\n")[0]) | changes
    with suppress(BadBatch, BadIdentity):
        parse_header(json.dumps(fields).encode()).to_json()


@pytest.mark.parametrize("name", ["carry", "more"])
@pytest.mark.parametrize("depth", [101, 300, 900, 20_000])
def test_a_deeply_nested_header_is_a_bad_batch(name: str, depth: int) -> None:
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    plain = message().rstrip(b"\n")[:-1]
    with pytest.raises(BadBatch):
        decode(plain + b',"%s":%s}\n' % (name.encode(), deep))


# ---------------------------------------------------------------- identity of a batch


def test_the_same_content_has_the_same_id_from_any_host_at_any_time() -> None:
    one = batch(LINE, host_id="a", sent_at="2026-01-01T00:00:00Z", agent="x 1", traceparent="00-1")
    other = batch(LINE, host_id="b", sent_at="2026-02-02T00:00:00Z")
    assert one.id == other.id
    assert len(one.id) == 64


def test_an_id_is_made_of_the_payload_with_each_line_replaced_by_its_hash() -> None:
    first, second = b'{"a":1}\r', b" \xff"
    found = batch(b"\n" + first + b"\n \t\n" + second + b"\n")
    hashes = [hashlib.sha256(line).digest() for line in (first, second)]
    assert found.line_hashes == hashes
    content = hashlib.sha256(b"\n%b\n \t\n%b\n" % tuple(hashes))
    assert found.id == batch_id(found.header, content.hexdigest())


@given(payloads)
def test_a_batch_knows_its_lines_their_places_and_hashes(payload: bytes) -> None:
    found = batch(payload, start_sequence=7)
    assert list(found.lines()) == [
        (sequence, offset, line, hashlib.sha256(line).digest())
        for sequence, (offset, line) in enumerate(lines_of(payload), 7)
    ]


@given(payloads, payloads)
def test_two_payloads_have_one_id_only_if_they_are_equal(one: bytes, other: bytes) -> None:
    assert (batch(one).id == batch(other).id) == (one == other)


@pytest.mark.parametrize(("one", "other"), [(b"\na\n", b"a\n\n"), (b"a\n b\n", b"a\n\nb\n")])
def test_where_the_blank_lines_stand_is_part_of_the_id(one: bytes, other: bytes) -> None:
    assert batch(one).id != batch(other).id


@given(payloads, encodings)
def test_an_id_survives_the_way(payload: bytes, encoding: Encoding) -> None:
    sent = batch(payload)
    assert decode(encode(sent, encoding)).id == sent.id


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "other"},
        {"project_slug": "other"},
        {"session_id": "other"},
        {"stream": "transcript"},
        {"generation": 1},
        {"revision": 1},
        {"start_sequence": 1},
        {"offset": 1},
        {"kind": "tail"},
    ],
)
def test_another_place_or_version_has_another_id(changes: dict[str, Any]) -> None:
    assert batch(LINE, **changes).id != batch(LINE).id


def test_other_bytes_have_another_id() -> None:
    assert batch(LINE).id != batch(LINE + b"\n").id


def test_heartbeats_of_two_hosts_have_two_ids() -> None:
    ids = {batch(LINE, kind="heartbeat", host_id=host).id for host in ("a", "b")}
    assert len(ids) == 2


# ---------------------------------------------------------------- peeking, time, schema


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_session_of_an_unusable_message_can_be_found_out(encoding: Encoding) -> None:
    body = encode(Batch(header(kind="novel", length=99), b"x"), encoding)
    assert peek_key(body) == SessionKey("user-123", "my-project", "sess-abc")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"[1]\n",
        b"{}\n",
        b'{"user_id":1,"project_slug":2,"session_id":3}\n',
        b'{"user_id":"","project_slug":"p","session_id":"s"}\n',
        b'{"user_id":null,"project_slug":"p","session_id":"s"}\n',
        b"\x28\xb5\x2f\xfdxx",
        b"\x1f\x8bxx",
    ],
)
def test_peeking_finds_nothing_where_there_is_nothing(body: bytes) -> None:
    assert peek_key(body) is None


def test_peeking_does_not_unpack_a_bomb() -> None:
    tracemalloc.start()
    try:
        assert peek_key(bomb("zstd", 64 * MB)) is not None
        assert tracemalloc.get_traced_memory()[1] < 12 * MB
    finally:
        tracemalloc.stop()


def test_the_current_time_is_written_as_documents_read_it() -> None:
    now = utc_now()
    assert now.endswith("Z")
    assert utc(now) == now[:-1] + "000000Z"


def test_a_header_line_stays_small() -> None:
    assert len(header(carry={"x": "y" * 8000}).to_json()) < MAX_HEADER_BYTES


def test_the_published_schema_is_that_of_the_header() -> None:
    expected = json.dumps(Header.model_json_schema(), indent=2, sort_keys=True) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == expected
