"""Packing: the batches hold exactly the stream, each fits a message, and messages are few."""

import hashlib
import random
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.batch import Batch, Limits, batch_id, decode, encode, encode_parts, lines_of
from sessionferry.packing import (
    RAW_BYTES,
    START,
    Packed,
    Packer,
    Place,
    count_lines,
    pack,
    pack_whole,
    pieces,
)
from support.strategies import header, payloads

STANDARD = 256 * 1024 - 2048
HEADER = header()
MAX_LINES = Limits().lines

long_lines = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size).replace(b"\n", b"n"),
    st.integers(0, 9),
    st.integers(1, 9000),
)
lines = st.one_of(
    long_lines,
    st.integers(1, 20_000).map(lambda size: b"x" * size),
    st.sampled_from([b"", b"\r", b" \t", b'{"a":1}', b'{"a":1}\r', b"\xff\x00"]),
)
streams = st.lists(lines, max_size=40).map(lambda them: b"".join(x + b"\n" for x in them))
limits = st.integers(1500, 12_000)


def cut(stream: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut a stream into blocks of whole lines, as reading does it."""
    start = 0
    for size in [*sizes, len(stream)]:
        end = stream.find(b"\n", min(start + size, len(stream) - 1)) + 1
        if end > start:
            yield stream[start:end]
            start = end


def decoded(packed: Packed) -> Batch:
    """What the consumer makes of it; checks lengths and line counts on the way."""
    return decode(encode_parts(packed.header, packed.compressed), claimed=True)


def check_is(stream: bytes, batches: list[Packed], place: Place = START) -> None:
    """Check that batches are this stream, contiguous, counted and hashed."""
    found = b""
    for packed in batches:
        batch = decoded(packed)
        assert (batch.header.offset, batch.header.start_sequence) == place
        assert batch.header.line_count <= MAX_LINES
        assert batch.payload
        found += batch.payload
        assert packed.sha256 == hashlib.sha256(found).hexdigest()
        place = Place(place.offset + batch.header.length, place.sequence + batch.header.line_count)
    assert found == stream


@given(stream=streams, limit=limits, sizes=st.lists(st.integers(1, 30_000), max_size=4))
def test_batches_give_the_stream_back_and_fit_their_messages(
    stream: bytes, limit: int, sizes: list[int]
) -> None:
    batches = list(pack(HEADER, cut(stream, sizes), limit))
    check_is(stream, batches)
    for packed in batches:
        is_one_piece = len(list(pieces(decoded(packed).payload))) == 1
        assert len(encode_parts(packed.header, packed.compressed)) <= limit or is_one_piece


@given(stream=payloads, place=st.builds(Place, st.integers(0, 10**9), st.integers(0, 10**8)))
def test_packing_goes_on_from_any_place(stream: bytes, place: Place) -> None:
    packer = Packer(HEADER, STANDARD, place)
    batches = [*packer.add(stream), *packer.flush()]
    check_is(stream, batches, place)
    assert packer.place == (
        place.offset + len(stream),
        place.sequence + sum(1 for _ in lines_of(stream)),
    )
    assert list(packer.flush()) == []


@pytest.mark.parametrize("limit", [4096, STANDARD])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lines_too_large_for_a_message_are_whole_wherever_they_stand(
    limit: int, count: int
) -> None:
    large = random.Random(4).randbytes(limit + 500).replace(b"\n", b"n") + b"\n"
    small = b'{"small":true}\n'
    stream = large * count + small + large + small
    check_is(stream, list(pack(HEADER, [stream], limit)))
    check_is(stream, list(pack(HEADER, [*[large] * count, small, large, small], limit)))


@given(payloads)
def test_lines_are_counted_as_ingest_counts_them(payload: bytes) -> None:
    assert count_lines(payload) == sum(1 for _ in lines_of(payload))


@pytest.mark.parametrize("blank", [b"", b"\r", b" ", b"\t", b"\x0b", b"\x0c", b" \r\t"])
def test_blank_lines_are_carried_but_not_counted(blank: bytes) -> None:
    stream = blank + b'\n{"a":1}\r\n' + blank + b"\n" + blank + b'\n{"b":1}\n' + blank + b"\n"
    (packed,) = pack(HEADER, [stream], STANDARD)
    assert decoded(packed).header.line_count == 2
    assert decoded(packed).payload == stream


@pytest.mark.parametrize(
    "line", [b"1\n", b"{}\n", b"\n", b"1\n\n", b'{"a":"' + b"b" * 90 + b'"}\n']
)
def test_a_batch_never_has_more_lines_than_the_consumer_takes(line: bytes) -> None:
    stream = line * 50_000
    batches = list(pack(HEADER, [stream], STANDARD))
    check_is(stream, batches)
    for packed in batches:
        decode(encode_parts(packed.header, packed.compressed))


def test_a_batch_stays_below_the_bound_on_decoded_bytes_however_well_it_compresses() -> None:
    stream = (b"x" * 99_999 + b"\n") * 400
    batches = list(pack(HEADER, [stream], STANDARD))
    assert sum(packed.header.length for packed in batches) == len(stream)
    assert all(packed.header.length <= RAW_BYTES for packed in batches)
    assert len(batches) == 3
    for packed in batches:
        decode(encode_parts(packed.header, packed.compressed))


def test_a_line_past_that_bound_is_a_batch_of_its_own() -> None:
    stream = b"{}\n" + b"x" * (RAW_BYTES + 5) + b"\n{}\n"
    batches = list(pack(HEADER, [stream], STANDARD))
    assert [packed.header.line_count for packed in batches] == [1, 1, 1]
    check_is(stream, batches)


def ordinary_text(size: int) -> bytes:
    """Lines as agents write them: prose and ids, about 4:1 to compress."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.randint(1, 5)).hex() for _ in range(3000)]
    out = bytearray()
    while len(out) < size:
        text = " ".join(rng.choices(words, k=rng.randint(5, 400)))
        out += orjson.dumps({"ts": rng.random(), "event": "llm:response", "data": text}) + b"\n"
    return bytes(out)


def test_messages_are_well_filled() -> None:
    stream = ordinary_text(4_000_000)
    batches = list(pack(HEADER, [stream], STANDARD))
    sizes = [len(encode_parts(packed.header, packed.compressed)) for packed in batches]
    assert len(sizes) > 3
    assert min(sizes[:-1]) >= 0.6 * STANDARD
    assert max(sizes) <= STANDARD


def test_incompressible_lines_fill_messages_too() -> None:
    rng = random.Random(2)
    stream = b"".join(rng.randbytes(5000).replace(b"\n", b"n") + b"\n" for _ in range(400))
    batches = list(pack(HEADER, [stream], STANDARD))
    check_is(stream, batches)
    sizes = [len(encode_parts(packed.header, packed.compressed)) for packed in batches]
    assert min(sizes[:-1]) >= 0.6 * STANDARD
    assert max(sizes) <= STANDARD


def test_long_identities_leave_room_for_themselves() -> None:
    rng = random.Random(3)
    long = {name: rng.randbytes(512).hex() for name in ("user_id", "project_slug", "session_id")}
    stream = ordinary_text(600_000)
    for packed in pack(header(**long), [stream], STANDARD):
        assert len(encode_parts(packed.header, packed.compressed)) <= STANDARD


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        *(("metadata", b""), ("metadata", b"{}"), ("metadata", b'{"unfinished":')),
        *(("tail", b"{}"), ("tail", b'{"unfinished":')),
    ],
)
def test_a_payload_that_is_one_piece_is_packed_whole(kind: str, payload: bytes) -> None:
    packed = pack_whole(header(kind=kind, offset=7, start_sequence=2), payload)
    batch = decoded(packed)
    assert batch.payload == payload
    assert (batch.header.offset, batch.header.start_sequence) == (7, 2)
    assert packed.sha256 == hashlib.sha256(payload).hexdigest()


def test_equal_content_has_an_equal_id_whatever_the_compression_and_the_time() -> None:
    payload = ordinary_text(50_000)
    (packed,) = pack(HEADER, [payload], STANDARD)
    (again,) = pack(header(sent_at="2001-01-01T00:00:00.000Z", agent="other"), [payload], STANDARD)
    one = batch_id(packed.header, packed.sha256)
    assert one == batch_id(again.header, again.sha256)
    for encoding in ("zstd", "gzip", "identity"):
        body = encode(Batch(packed.header, payload), encoding)  # type: ignore[arg-type]
        assert decode(body).id == decoded(packed).id


def test_packing_goes_on_with_the_hash_of_what_stands_before() -> None:
    whole = ordinary_text(50_000)
    cut = whole.index(b"\n") + 1
    before = hashlib.sha256(whole[:cut])
    packer = Packer(HEADER, STANDARD, Place(cut, 1), before)
    (packed,) = [*packer.add(whole[cut:]), *packer.flush()]
    assert packed.sha256 == packer.digest.hexdigest() == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "other"},
        {"project_slug": "other"},
        {"session_id": "other"},
        {"stream": "transcript"},
        {"generation": 1},
        {"start_sequence": 1},
        {"offset": 1},
        {"kind": "tail"},
        {"revision": 1},
    ],
)
def test_other_content_has_another_id(change: dict[str, object]) -> None:
    digest = hashlib.sha256(b"{}\n").hexdigest()
    assert batch_id(HEADER, digest) != batch_id(header(**change), digest)
    assert batch_id(HEADER, digest) != batch_id(HEADER, hashlib.sha256(b"{ }\n").hexdigest())
