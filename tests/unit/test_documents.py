"""Lines become documents: nothing lost, nothing obeyed, the same however they arrive."""

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessionferry.archive import Archive, batch_key, hydrate, session_folder
from sessionferry.batch import encode, lines_of
from sessionferry.documents import (
    DOCUMENTED_KEYS,
    OUR_KEYS,
    PER_DELIVERY_KEYS,
    RESERVED,
    Document,
    DocumentBuilder,
    Position,
    Rejected,
    payload_ref,
    stored_facts,
)
from sessionferry.errors import (
    ArchiveMismatch,
    BadBatch,
    FerryError,
    PermanentError,
    UnsupportedBatch,
)
from sessionferry.formats import format_named
from sessionferry.formats.meaning import usage_summary
from sessionferry.identity import SessionKey, Stream
from sessionferry.quarantine import rejected_line, whole_message
from sessionferry.truncation import MAX_DEPTH, MAX_EVENT_BYTES, MAX_PARSED_BYTES
from support.strategies import batch, header, json_values, objects, payloads, scalars

SYNCED = "2026-07-01T00:00:00.000Z"
BOM = b"\xef\xbb\xbf"
COSMOS_LIMIT = 2_000_000


def builder(archive_key: str = "somewhere", **changes: object) -> DocumentBuilder:
    return DocumentBuilder(header(**changes), archive_key, SYNCED)


def build(line: bytes, sequence: int = 7, offset: int = 11, **changes: object) -> Any:
    return builder(**changes).build(Position(sequence, offset), line)


def document(line: bytes, **changes: object) -> dict[str, Any]:
    built = build(line, **changes)
    assert isinstance(built, Document), built
    return built.fields


def reject_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strict(text: bytes) -> Any:
    """Parse as the standard says, and refuse what it does not know."""
    return json.loads(text.decode(), parse_constant=reject_constant)


# ---------------------------------------------------------------- the usual document


def test_a_line_keeps_its_fields_and_gets_ours() -> None:
    line = b'{"ts":"2026-06-22T16:27:02Z","event":"tool:pre","data":{"tool_name":"bash"},"x":[1]}'
    assert document(line) == {
        "ts": "2026-06-22T16:27:02Z",
        "event": "tool:pre",
        "data": {"tool_name": "bash"},
        "x": [1],
        "session_id": "sess-abc",
        "partition_key": "user-123|my-project|sess-abc",
        "user_id": "user-123",
        "host_id": "host-1",
        "project_slug": "my-project",
        "generation": 0,
        "_type": "event",
        "format": "amplifier",
        "synced_at": SYNCED,
        "id": "sess-abc_evt_7",
        "sequence": 7,
        "line_sha256": hashlib.sha256(line).hexdigest(),
        "line_size_bytes": len(line),
        "data_truncated": False,
        "data_size_bytes": len(line),
        "occurred_at": "2026-06-22T16:27:02.000000000Z",
        "summary": {"tool_name": "bash"},
    }


def test_a_message_of_a_later_generation_says_so() -> None:
    fields = document(b'{"role":"user"}', stream="transcript", generation=3)
    assert (fields["id"], fields["_type"]) == ("sess-abc~3_msg_7", "transcript_message")


def test_an_empty_object_becomes_a_document() -> None:
    assert document(b"{}")["data_size_bytes"] == 2


def test_a_session_id_that_is_the_sessions_own_is_not_shadowed() -> None:
    fields = document(b'{"session_id":"sess-abc","event":"x"}')
    assert fields["session_id"] == "sess-abc"
    assert "shadowed" not in fields


def expected_document(line: bytes, fields: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """Build the expected document independently: the line minus shadowed, then ours."""
    meaning = format_named("amplifier").interpret(stream, fields)
    session = {"user_id": "user-123", "project_slug": "my-project", "session_id": "sess-abc"}
    ours = session | {
        "id": f"sess-abc_{'evt' if stream == 'events' else 'msg'}_7",
        "partition_key": "user-123|my-project|sess-abc",
        "host_id": "host-1",
        "generation": 0,
        "sequence": 7,
        "_type": "event" if stream == "events" else "transcript_message",
        "format": "amplifier",
        "synced_at": SYNCED,
        "line_sha256": hashlib.sha256(line).hexdigest(),
        "line_size_bytes": len(line),
        "data_truncated": False,
        "data_size_bytes": len(orjson.dumps(fields)),
        "occurred_at": meaning.occurred_at,
        "summary": meaning.summary,
    }
    never_kept = RESERVED - DOCUMENTED_KEYS | PER_DELIVERY_KEYS
    shadowed = {
        key: value
        for key, value in fields.items()
        if key in RESERVED
        and (
            key in never_kept
            or orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
            != orjson.dumps(ours[key], option=orjson.OPT_SORT_KEYS)
        )
    }
    plain = {key: value for key, value in fields.items() if key not in shadowed}
    return plain | ours | ({"shadowed": shadowed} if shadowed else {})


clashing_values = json_values | st.sampled_from(
    ["sess-abc", "user-123", "host-1", "my-project", SYNCED, "amplifier", "event", 7, 0, False]
)
clashing_objects = objects | st.dictionaries(
    st.sampled_from(sorted(RESERVED)), clashing_values, max_size=3
)


@settings(max_examples=150)
@given(clashing_objects, st.sampled_from(["events", "transcript"]))
@example({"session_id": "sess-abc"}, "events")
@example({"session_id": "sess-abc", "ttl": 1}, "events")
@example({"ttl": None}, "events")
@example({"sequence": 7.0}, "events")
@example({"sequence": True}, "events")
@example({"shadowed": {"id": 1}}, "events")
def test_a_document_is_the_line_without_what_is_shadowed_and_ours(
    fields: dict[str, Any], stream: Stream
) -> None:
    line = orjson.dumps(fields)
    assert document(line, stream=stream) == expected_document(line, fields, stream)


@given(objects)
def test_nothing_of_a_line_is_lost(fields: dict[str, Any]) -> None:
    made = document(orjson.dumps(fields))
    aside = made.get("shadowed", {})
    assert {key: aside.get(key, made.get(key)) for key in fields} == fields


@pytest.mark.parametrize("key", sorted(RESERVED))
@pytest.mark.parametrize("value", [1, "sess-xyz", 7.0, True, {"archive_key": "x"}])
def test_a_reserved_key_is_shadowed_and_never_obeyed(key: str, value: object) -> None:
    made = document(orjson.dumps({"event": "x", key: value}))
    plain = document(b'{"event":"x"}')
    assert made["shadowed"] == {key: value}
    ignored = {"line_sha256", "line_size_bytes", "data_size_bytes", "shadowed"}
    assert {k: v for k, v in made.items() if k not in ignored} == {
        k: v for k, v in plain.items() if k not in ignored
    }


def test_every_key_of_ours_is_reserved() -> None:
    long = document(b'{"x":"' + b"y" * MAX_EVENT_BYTES + b'","ttl":1,"n":NaN}')
    for made in (document(b'{"ttl":1}'), long):
        assert made.keys() - {"ttl", "x", "n"} <= OUR_KEYS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("payload_ref", {"archive_key": "../other", "offset": 0, "length": 1, "sha256": "0"}),
        ("data_truncated", True),
        ("repaired", True),
        ("summary", {"usage": {"input": 10**9}, "cost_usd": "99"}),
        ("occurred_at", "2099-01-01T00:00:00.000000000Z"),
        ("line_sha256", "0" * 64),
    ],
)
def test_a_line_cannot_mislead_about_itself(key: str, value: object) -> None:
    built = build(orjson.dumps({"event": "x", key: value}))
    assert stored_facts(built.fields) == built.facts
    assert not built.facts.truncated
    assert not built.facts.repaired
    assert built.facts.usage is None
    assert "payload_ref" not in built.fields


# ---------------------------------------------------------------- truncation


def event_of(size: int, letter: str = "x") -> bytes:
    """Return an event of exactly so many bytes as compact JSON."""
    frame = b'{"event":"tool:post","lvl":"INFO","turn":4,"status":"ok","data":{"a":""}}'
    room = size - len(frame)
    filling = letter * (room // len(letter.encode()))
    filling += "y" * (room - len(filling.encode()))
    return frame.replace(b'""', b'"' + filling.encode() + b'"')


@pytest.mark.parametrize("letter", ["x", "é", "\u4e2d", "\U0001f600"])
@pytest.mark.parametrize(("size", "truncated"), [(409_600, False), (409_601, True)])
def test_events_over_409600_utf8_bytes_are_truncated(
    letter: str, size: int, truncated: bool
) -> None:
    line = event_of(size, letter)
    made = document(line)
    assert made["data_size_bytes"] == size == len(line)
    assert made["data_truncated"] is truncated
    assert ("data" in made) is not truncated


@pytest.mark.parametrize("escape", [True, False])
def test_the_measure_is_compact_json_whatever_the_line_looks_like(escape: bool) -> None:
    fields = json.loads(event_of(409_600, "\u4e2d"))
    loose = json.dumps(fields, ensure_ascii=escape, indent=None, separators=(" , ", " : ")).encode()
    assert len(loose) > 409_600
    assert document(loose)["data_truncated"] is False


def test_a_truncated_event_keeps_its_scalars_summary_and_a_way_back() -> None:
    line = event_of(409_601)
    made = builder("key", generation=2).build(Position(7, 11), line)
    assert isinstance(made, Document)
    fields = made.fields
    assert [fields[name] for name in ("event", "lvl", "turn")] == ["tool:post", "INFO", 4]
    assert fields["summary"] == {"status": "ok"}
    assert fields["payload_ref"] == {
        "archive_key": "key",
        "offset": 11,
        "length": len(line),
        "sha256": hashlib.sha256(line).hexdigest(),
    }
    assert fields["id"] == "sess-abc~2_evt_7"
    assert len(made.json) < 2_000


def test_a_truncated_event_keeps_no_field_of_any_size() -> None:
    fields: dict[str, Any] = dict.fromkeys(("event", "ts", "lvl", "role", "id"), "x" * 600000)
    made = build(orjson.dumps(fields | {"turn": [1], "error": "e" * 10**6}))
    assert made.facts.truncated
    assert "turn" not in made.fields
    assert len(made.json) < 10_000


@pytest.mark.parametrize(("filling", "truncated"), [(1_890_000, False), (1_900_000, True)])
def test_messages_are_truncated_when_the_finished_document_would_pass_1_9_mb(
    filling: int, truncated: bool
) -> None:
    line = b'{"role":"user","content":"' + b"x" * filling + b'"}'
    made = build(line, stream="transcript")
    assert made.facts.truncated is truncated
    assert ("content" in made.fields) is not truncated
    assert made.fields["role"] == "user"


def test_the_finished_document_is_measured_with_our_fields() -> None:
    finished = len(build(b'{"role":"user","content":""}', stream="transcript").json)
    two_sizes_of_seven_digits = 2 * 5
    room = 1_900_000 - finished - two_sizes_of_seven_digits
    for more in (0, 1):
        filling = b"x" * (room + more)
        made = build(b'{"role":"user","content":"' + filling + b'"}', stream="transcript")
        assert made.facts.truncated is (more > 0)


def test_a_line_over_16_mib_is_scanned_and_not_parsed() -> None:
    start = b'{"event":"llm:request","ts":"2026-06-22T16:27:02Z","data":{"model":"m-1","x":"'
    made = build(start + b"x" * MAX_PARSED_BYTES + b'"}')
    assert made.facts.truncated
    assert made.fields["event"] == "llm:request"
    assert made.fields["summary"] == {"model": "m-1"}
    assert made.fields["occurred_at"] == "2026-06-22T16:27:02.000000000Z"
    assert stored_facts(made.fields) == made.facts


def test_a_line_over_16_mib_that_is_no_object_is_rejected() -> None:
    assert build(b"x" * (MAX_PARSED_BYTES + 1)).reason == "not_an_object"


# ---------------------------------------------------------------- unusual lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello", "not_json"),
        (b'{"a":1}{"b":2}', "not_json"),
        (b'{"a":1', "not_json"),
        (b'{"a":' + b"1" * 5000 + b"}", "not_json"),
        (b"\x00", "not_json"),
        (BOM + b'{"a":1}', "not_json"),
        (b'{"a":"\xff"}', "not_utf8"),
        (b'{"a":"\xed\xa0\x80"}', "not_utf8"),
        (b"[1]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"NaN", "not_an_object"),
        (b"[NaN]", "not_an_object"),
        (b"[" * 10_000, "not_an_object"),
        (b"[" * 150 + b"]" * 150, "not_an_object"),
    ],
)
def test_what_is_no_json_object_is_rejected_with_a_reason(line: bytes, reason: str) -> None:
    rejected = build(line)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == reason
    assert rejected.sha256 == hashlib.sha256(line).digest()
    assert (rejected.sequence, rejected.position, rejected.length) == (7, 11, len(line))
    assert len(rejected.preview) <= 256
    assert len(rejected.detail) <= 256


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"x":NaN}', None),
        (b'{"x":[Infinity,-Infinity]}', [None, None]),
        (b'{"x":"\\ud800"}', "\ufffd"),
        (b'{"x":"a\\udc00b"}', "a\ufffdb"),
        (b'{"x":{"\\ud800":1}}', {"\ufffd": 1}),
        (b'{"x":[NaN,"\\ud83d\\ude00"]}', [None, "\U0001f600"]),
        (b'{"x":1e400}', None),
        (b'{"x":NaN,"y":' + b"1" * 400 + b"}", None),
    ],
)
def test_what_python_accepts_and_the_standard_does_not_is_repaired(
    line: bytes, value: object
) -> None:
    made = build(line)
    assert made.facts.repaired
    assert made.fields["repaired"] is True
    assert made.fields["x"] == value
    assert made.fields["payload_ref"]["sha256"] == hashlib.sha256(line).hexdigest()
    assert stored_facts(made.fields) == made.facts


def test_a_bom_at_the_start_of_a_file_is_no_fault() -> None:
    made = build(BOM + b'{"event":"x"}', offset=0)
    assert isinstance(made, Document)
    assert not made.facts.repaired
    assert made.facts.size == 16
    broken = build(BOM + b'{"event":"x","n":NaN}', offset=0)
    assert broken.facts.repaired


@pytest.mark.parametrize(
    "line", [b'{"a":1}\r', b' {"a":1} ', b'{"a":0,"a":1}', b'\t{"a":1}', b'{"\\u0061":1}']
)
def test_harmless_oddities_are_no_fault(line: bytes) -> None:
    made = build(line)
    assert made.fields["a"] == 1
    assert not made.facts.repaired
    assert made.facts.size == len(line)


def nested(depth: int, inner: str, kind: str) -> bytes:
    """Return an object nested exactly so deep."""
    text, outer = inner, depth
    while outer > 1:
        array = kind == "arrays" or (kind == "both" and outer % 2)
        text = f"[{text}]" if array else f'{{"a":{text}}}'
        outer -= 1
    return f'{{"event":"x","b":{text}}}'.encode()


@pytest.mark.parametrize("kind", ["objects", "arrays", "both"])
@pytest.mark.parametrize("inner", ["1", "NaN", '"[[[["', '"}}}"', '"\\""'])
@pytest.mark.parametrize("depth", [2, 99, 100, 101, 102, 150, 250, 300, 1_500, 10_000])
def test_lines_nested_deeper_than_100_are_truncated_and_not_parsed(
    depth: int, inner: str, kind: str
) -> None:
    made = build(nested(depth, inner, kind))
    assert isinstance(made, Document)
    assert made.facts.truncated is (depth > MAX_DEPTH)
    assert ("b" in made.fields) is (depth <= MAX_DEPTH)
    assert made.facts.repaired is (depth <= MAX_DEPTH and inner == "NaN")
    assert made.fields["event"] == "x"


@pytest.mark.parametrize("closed", [b"", b"}" * 101, b"]" * 500])
def test_brackets_that_do_not_match_are_not_json(closed: bytes) -> None:
    rejected = build(b'{"a":[[[1' + closed)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "not_json"


def test_a_line_of_escapes_costs_little() -> None:
    made = build(b'{"n":NaN,"x":"' + b"\\n" * 2_000_000 + b'"}')
    assert made.facts.truncated
    assert made.facts.repaired


json_text = st.lists(
    st.sampled_from(
        [
            *("{", "}", "[", "]", ":", ",", '"', "\\", " ", "a", "1", "-", ".", "e", "null"),
            *('"a"', '"a":', "NaN", "Infinity", "-Infinity", "\\ud800", "\\u0000", "true"),
            *('{"a":1}', '{"event":"session:end"', "\ufeff", "9" * 30, "9" * 5000, "1e999"),
            *('"ts":"2026-06-22T16:27:02Z"', '"status":"ok"', '{"a":' * 99, "}" * 99, "[" * 101),
        ]
    ),
    max_size=12,
).map(lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass"))

wild_values = st.recursive(
    scalars
    | st.integers(-(10**40), 10**40)
    | st.sampled_from([math.nan, math.inf, -math.inf, 10**400])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
wild_objects = st.dictionaries(
    st.text(max_size=3) | st.sampled_from(["event", "ts", "status", "data", "ttl", "usage"]),
    wild_values,
    max_size=6,
)
any_line = st.one_of(
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b"")),
    json_text,
    wild_objects.map(lambda fields: json.dumps(fields).encode()),
)


@settings(max_examples=250)
@given(any_line, st.sampled_from(["events", "transcript"]), st.sampled_from([0, 11]))
def test_any_line_becomes_a_document_or_is_rejected(
    line: bytes, stream: Stream, offset: int
) -> None:
    built = build(line, offset=offset, stream=stream)
    if isinstance(built, Rejected):
        assert built.sha256 == hashlib.sha256(line).digest()
        assert built.reason in {"not_json", "not_utf8", "not_an_object"}
        return
    fields = strict(built.json)
    assert fields == built.fields
    assert len(built.json) <= COSMOS_LIMIT
    assert stored_facts(fields) == built.facts
    assert fields["line_sha256"] == hashlib.sha256(line).hexdigest()
    assert ("payload_ref" in fields) is (built.facts.truncated or built.facts.repaired)


@settings(max_examples=80)
@given(wild_objects)
def test_every_object_that_python_writes_becomes_a_document(fields: dict[str, Any]) -> None:
    assert isinstance(build(json.dumps(fields).encode()), Document)


def large_line(fields: dict[str, Any], size: int, letter: str) -> bytes:
    return orjson.dumps(fields | {"big": letter * size})


@settings(max_examples=15)
@given(objects, st.sampled_from([400_000, 500_000, 1_900_000, 3_000_000]), st.sampled_from('x"é'))
def test_documents_of_large_lines_stay_below_2_mb(
    fields: dict[str, Any], size: int, letter: str
) -> None:
    for stream in ("events", "transcript"):
        made = build(large_line(fields, size, letter), stream=stream)
        assert len(made.json) <= COSMOS_LIMIT
        assert stored_facts(made.fields) == made.facts


# ---------------------------------------------------------------- facts


def llm_response(padding: int = 0, **changes: Any) -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 2, "cache_read_tokens": 4, "cost_usd": "0.10"}
    data = {"model": "m", "usage": usage | changes, "padding": "x" * padding}
    return orjson.dumps({"event": "llm:response", "ts": "2026-06-22T16:27:02Z", "data": data})


@pytest.mark.parametrize("padding", [0, 500_000])
def test_what_a_head_counts_can_be_read_back_from_the_document(padding: int) -> None:
    made = build(llm_response(padding))
    assert made.facts.usage == (5, 2, 4, 0)
    assert made.facts.cost == 10**17
    assert made.fields["summary"]["usage"] == usage_summary(made.facts.usage)
    assert stored_facts(made.fields) == made.facts


@pytest.mark.parametrize("padding", [0, 500_000, MAX_PARSED_BYTES])
@pytest.mark.parametrize("place", ["top", "data", "none"])
def test_the_lifecycle_survives_truncation(padding: int, place: str) -> None:
    fields: dict[str, Any] = {"event": "execution:end", "data": {}}
    if place != "none":
        (fields if place == "top" else fields["data"])["status"] = "completed"
    made = build(orjson.dumps(fields | {"response": "x" * padding}))
    assert made.facts.truncated is (padding > 0)
    expected = "execution:end" if place == "none" else "execution:end=completed"
    assert made.facts.lifecycle == expected
    assert stored_facts(made.fields) == made.facts


def test_a_repaired_and_truncated_line_is_both() -> None:
    made = build(llm_response(500_000)[:-1] + b',"n":NaN}')
    assert (made.facts.repaired, made.facts.truncated) == (True, True)
    assert stored_facts(made.fields) == made.facts


# ---------------------------------------------------------------- batches


def documents_of(payload: bytes, cuts: Sequence[int]) -> list[Document | Rejected]:
    """Build a file's documents out of batches that end after these numbers of pieces."""
    pieces = [line + b"\n" for line in payload.split(b"\n")[:-1]]
    bounds = sorted({0, len(pieces), *(min(cut, len(pieces)) for cut in cuts)})
    built: list[Document | Rejected] = []
    offset = 0
    for first, last in pairwise(bounds):
        part = b"".join(pieces[first:last])
        made = builder(offset=offset, start_sequence=len(built))
        built += [
            made.build(Position(sequence, place), line)
            for sequence, (place, line) in enumerate(lines_of(part), len(built))
        ]
        offset += len(part)
    return built


def without_place(built: Document | Rejected) -> object:
    if isinstance(built, Rejected):
        return built._replace(position=0)
    return {key: value for key, value in built.fields.items() if key != "payload_ref"}


@given(
    payloads | payloads.map(lambda payload: BOM + payload),
    st.lists(st.integers(0, 12), max_size=5),
)
def test_documents_do_not_depend_on_how_a_file_was_cut(payload: bytes, cuts: list[int]) -> None:
    whole = documents_of(payload, [])
    pieces = documents_of(payload, cuts)
    assert [without_place(built) for built in pieces] == [without_place(b) for b in whole]


def test_a_batch_without_a_stream_or_with_an_unknown_format_holds_no_lines() -> None:
    with pytest.raises(BadBatch, match="with a stream"):
        builder(stream=None)
    with pytest.raises(UnsupportedBatch, match="Unknown format"):
        builder(format="novel")


# ---------------------------------------------------------------- hydrate


UNUSUAL = [
    event_of(409_601),
    b'{"event":"x","n":NaN}',
    b'{"event":"x","n":"\\ud800"}\r',
    b"hello",
    b"\xff\x00",
    nested(300, "1", "both"),
]


async def archived(payload: bytes) -> tuple[Archive, list[dict[str, Any]]]:
    """Archive a batch, and return what would be stored or quarantined of it."""
    sent = batch(payload, start_sequence=5)
    archive = Archive.open("memory:///")
    key = batch_key(sent.header, sent.id)
    await archive.put(key, encode(sent))
    made = DocumentBuilder(sent.header, key, SYNCED)
    stored = []
    for sequence, (offset, line) in enumerate(lines_of(payload), 5):
        built = made.build(Position(sequence, offset), line)
        if isinstance(built, Document):
            stored.append(built.fields)
        else:
            stored.append(rejected_line(sent.header, built, key, SYNCED))
    return archive, stored


async def test_hydrate_gives_the_original_bytes_of_what_was_not_stored_whole() -> None:
    payload = b"\n".join([b"", *UNUSUAL, b'{"event":"whole"}', b""])
    archive, stored = await archived(payload)
    assert [await hydrate(archive, item) for item in stored[:-1]] == UNUSUAL
    with pytest.raises(PermanentError, match="is complete"):
        await hydrate(archive, stored[-1])


async def test_hydrate_is_not_misled_by_a_reference_inside_a_line() -> None:
    reference = payload_ref("elsewhere", 0, 1, b"")
    archive, stored = await archived(orjson.dumps({"event": "x", "payload_ref": reference}) + b"\n")
    with pytest.raises(PermanentError, match="is complete"):
        await hydrate(archive, stored[0])


async def test_hydrate_refuses_other_bytes_than_were_stored() -> None:
    archive, stored = await archived(UNUSUAL[1] + b"\n")
    stored[0]["payload_ref"]["offset"] = 1
    with pytest.raises(ArchiveMismatch, match="SHA-256"):
        await hydrate(archive, stored[0])


async def test_hydrate_refuses_an_object_that_is_missing_or_is_no_batch() -> None:
    archive, stored = await archived(UNUSUAL[1] + b"\n")
    folder = session_folder(SessionKey("user-123", "my-project", "sess-abc"))
    stored[0]["payload_ref"]["archive_key"] = f"{folder}/none"
    with pytest.raises(ArchiveMismatch, match="no archived object"):
        await hydrate(archive, stored[0])
    await archive.put(f"{folder}/none", b"garbage")
    with pytest.raises(ArchiveMismatch, match="is no batch"):
        await hydrate(archive, stored[0])


@pytest.mark.parametrize(
    "key",
    [
        session_folder(SessionKey("user-123", "my-project", "other")) + "/x",
        session_folder(SessionKey("user-123", "my-project", "sess-abc")),
        session_folder(SessionKey("user-123", "my-project", "sess-abc")) + "/../x",
        "_unattributed/../other/x",
        "/etc/hostname",
        "../x",
        "",
    ],
)
async def test_hydrate_refuses_a_reference_that_leads_elsewhere(key: str) -> None:
    archive, stored = await archived(UNUSUAL[1] + b"\n")
    stored[0]["payload_ref"]["archive_key"] = key
    with pytest.raises(ArchiveMismatch, match="reference"):
        await hydrate(archive, stored[0])


async def test_hydrate_gives_a_quarantined_message_back_as_it_came() -> None:
    archive = Archive.open("memory:///")
    body = b"\x28\xb5\x2f\xfdbroken"
    await archive.put("_unattributed/x", body)
    entry = whole_message(
        body, None, FerryError(), "_unattributed/x", message_id="m", created_at=SYNCED
    )
    assert await hydrate(archive, entry) == body
