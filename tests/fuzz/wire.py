"""The wire decoder: whatever a message holds, it is a batch or a named error."""

import gzip
import hashlib
import random
from typing import Any

import orjson
import zstandard

from fuzz.mutation import distort, spoil
from sessionferry.batch import (
    ENCODINGS,
    Batch,
    Encoding,
    Header,
    Limits,
    compress,
    decode,
    encode,
    line_spans,
    peek_key,
)
from sessionferry.errors import PermanentError

LIMITS = Limits(inline_bytes=2**20, claimed_bytes=2**21)
_IDENTITY: dict[str, Any] = {
    "user_id": "mara",
    "host_id": "birch-01",
    "project_slug": "p",
    "session_id": "s",
    "format": "amplifier",
    "agent": "fuzz",
}
_LINES = b'{"ts":"2026-01-01T00:00:00Z","event":"session:start"}\n\n{"n":1}\r\n not json\n' * 9
_BOMB = b"\0" * 40_000_000


def _batch(kind: str, payload: bytes, **more: Any) -> Batch:
    count = sum(1 for _ in line_spans(payload)) if kind == "lines" else 0
    fields = {**_IDENTITY, "kind": kind, "length": len(payload), "line_count": count, **more}
    return Batch(Header.model_validate(fields), payload)


BATCHES = (
    _batch("lines", _LINES, stream="events", carry={"total": 7}),
    _batch("lines", b"", stream="transcript"),
    _batch("tail", b'{"unfinished":', stream="events", offset=9, start_sequence=3),
    _batch("metadata", b'{"name":"x"}', revision=5),
    _batch("heartbeat", b'{"run_id":"a","ledger":{}}', project_slug=None, session_id=None),
)
BODIES = (
    *(encode(batch, encoding) for batch in BATCHES for encoding in ("zstd", "gzip", "identity")),
    compress(BATCHES[0].header.to_json() + b"\n", "zstd") + zstandard.compress(_BOMB),
    gzip.compress(BATCHES[0].header.to_json() + b"\n" + _BOMB),
)


def feed(rng: random.Random) -> str:
    """Decode one spoiled message; what comes out of it must be consistent."""
    body = _spoiled(rng)
    named = rng.choice((None, None, *ENCODINGS, "br"))
    peek_key(body, named)
    try:
        batch = decode(body, named, limits=LIMITS, claimed=rng.random() < 0.1)
    except PermanentError as error:
        return error.code
    _check(batch)
    return "batch"


def _spoiled(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return spoil(rng, rng.choice(BODIES), BODIES)
    batch = rng.choice(BATCHES)
    encoding: Encoding = rng.choice(ENCODINGS)  # type: ignore[arg-type]
    if rng.random() < 0.5:
        plain = batch.header.to_json() + b"\n" + batch.payload
        return compress(spoil(rng, plain, (plain, _LINES)), encoding)
    fields = distort(rng, orjson.loads(batch.header.to_json()))
    try:
        header = orjson.dumps(fields)
    except TypeError:  # an integer beyond 64 bits: as text, it is one all the same
        header = repr(fields).encode(errors="replace")
    return compress(header + b"\n", encoding) + compress(batch.payload, encoding)


def _check(batch: Batch) -> None:
    header = batch.header
    if header.claim is None:
        assert header.length == len(batch.payload)
    assert len(batch.payload) <= LIMITS.claimed_bytes
    assert len(batch.id) == 64
    if header.kind == "lines" and header.claim is None:
        lines = list(batch.lines())
        assert [number for number, *_ in lines] == list(
            range(header.start_sequence, header.start_sequence + header.line_count)
        )
        for _, offset, line, sha256 in lines:
            assert batch.payload[offset : offset + len(line)] == line
            assert sha256 == hashlib.sha256(line).digest()
