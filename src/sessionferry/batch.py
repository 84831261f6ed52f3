r"""The wire format: a batch is a contiguous byte range of one file, in one message.

    {"v":1,"kind":"lines","stream":"events",...}\n     the header, one line of JSON
    {"ts":"...","event":"session:start",...}\n         the source's bytes, verbatim
    ...

The whole is compressed with zstd or gzip; several frames (or members) after one another are one
batch. Concatenating the payloads of a stream's batches by `offset` gives the file back. Batches too
large for a message lie in the inbox, at a place computed from the header; the message then carries
the header alone, with a `claim`.
"""

import hashlib
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Annotated, Any, Literal

import orjson
import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sessionferry.errors import BadBatch, BadIdentity, BatchTooLarge, UnsupportedBatch
from sessionferry.identity import SessionKey, Stream, check_part
from sessionferry.truncation import too_deep

VERSION = 1
KINDS = ("lines", "tail", "metadata", "heartbeat")
ENCODINGS = ("zstd", "gzip", "identity")
Encoding = Literal["zstd", "gzip", "identity"]

MAX_HEADER_BYTES = 64 * 1024
MAX_CARRY_BYTES = 8 * 1024
MAX_SEQUENCE = 10**9
MAX_FUTURE_MS = 24 * 3600 * 1000
ZSTD_LEVEL = 3
REPLAY_MARK = ".r"
"""Appended to the message id, with a random part, when something is sent again on purpose."""
MAX_MESSAGE_ID = 128
"""Longest message id that Service Bus takes, in characters."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 256 * 1024
_SPACE = 0x20
_REPLAYED = re.compile(re.escape(REPLAY_MARK) + r"[0-9a-f]{16}\Z")
_GZIP_INPUT = 16 * 1024

Span = tuple[int, int]
"""Start and end of a line in a payload."""

_Part = Annotated[str, Field(min_length=1, max_length=1024)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Nanoseconds = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is unpacked, enforced while streaming. Sizes in bytes."""

    inline_bytes: int = 16 * 1024 * 1024
    claimed_bytes: int = 128 * 1024 * 1024
    zstd_window: int = 16 * 1024 * 1024
    lines: int = 10_000


class Claim(BaseModel):
    """What lies in the inbox for this message: the encoded batch's size and hash."""

    model_config = ConfigDict(frozen=True)

    size: _Count = Field(description="Size of the inbox object in bytes.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the inbox object.")


class Header(BaseModel):
    """The first line of a batch. Unknown fields are kept and ignored."""

    model_config = ConfigDict(frozen=True, extra="allow", title="sessionferry batch header")

    v: Annotated[int, Field(ge=1, strict=True, description="Version of the wire format.")] = VERSION
    kind: str = Field(description="lines, tail, metadata or heartbeat.", max_length=64)
    stream: Stream | None = Field(None, description="Which file; null for metadata, heartbeat.")
    user_id: _Part
    host_id: _Part
    project_slug: _Part | None = Field(None, description="Null for a heartbeat only.")
    session_id: _Part | None = Field(None, description="Null for a heartbeat only.")
    generation: _Count = Field(0, description="Which version of a rewritten file.")
    revision: _Nanoseconds = Field(0, description="Metadata: file time in ns; heartbeat: counter.")
    start_sequence: Annotated[int, Field(ge=0, lt=MAX_SEQUENCE)] = 0
    line_count: Annotated[int, Field(ge=0)] = Field(0, description="Non-blank lines.")
    offset: _Count = Field(0, description="First byte's place in the file.")
    length: _Count = Field(0, description="Bytes after the header line.")
    format: str = Field("jsonl", max_length=64, description="What the lines mean.")
    file_name: str | None = Field(None, max_length=1024, description="The file's own name.")
    agent: str = Field("", max_length=256, description="Program and version that sent this.")
    rules: str | None = Field(
        None, max_length=256, description="Filters and redaction that the bytes went through."
    )
    sent_at: str = Field("", max_length=64, description="ISO 8601, UTC.")
    traceparent: str | None = Field(None, max_length=256, description="W3C trace context.")
    carry: dict[str, Any] | None = Field(None, description="State from earlier lines, <= 8 KB.")
    claim: Claim | None = Field(None, description="Set when the payload lies in the inbox.")
    key_id: str | None = Field(None, max_length=256, description="Reserved.")
    signature: str | None = Field(None, max_length=4096, description="Reserved.")

    @field_validator("carry")
    @classmethod
    def _carry_is_small(cls, carry: dict[str, Any] | None) -> dict[str, Any] | None:
        if carry is not None and len(orjson.dumps(carry)) > MAX_CARRY_BYTES:
            raise ValueError(f"carry is over {MAX_CARRY_BYTES} bytes")
        return carry

    @property
    def key(self) -> SessionKey:
        """The session this belongs to; raises `BadBatch` for a heartbeat."""
        if self.project_slug is None or self.session_id is None:
            raise BadBatch(f"A batch of kind {self.kind} needs project_slug and session_id.")
        return SessionKey(self.user_id, self.project_slug, self.session_id)

    def to_json(self) -> bytes:
        """Serialise as the header line, without its newline."""
        return orjson.dumps(self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class Batch:
    """A header and the source bytes it describes."""

    header: Header
    payload: bytes

    @cached_property
    def spans(self) -> list[Span]:
        """Where the non-blank lines stand; a header that announces too few gets one more."""
        return list(islice(line_spans(self.payload), self.header.line_count + 1))

    @cached_property
    def line_hashes(self) -> list[bytes]:
        """The SHA-256 of each of these lines."""
        view = memoryview(self.payload)
        return [hashlib.sha256(view[start:end]).digest() for start, end in self.spans]

    def lines(self) -> Iterator[tuple[int, int, bytes, bytes]]:
        """Yield (sequence, offset, line, SHA-256) for each of these lines."""
        sequence = self.header.start_sequence
        for (start, end), sha256 in zip(self.spans, self.line_hashes, strict=True):
            yield sequence, start, self.payload[start:end], sha256
            sequence += 1

    @property
    def id(self) -> str:
        """SHA-256 over identity, kind, version, position and bytes: same content, same id.

        Where lines are, their hashes stand for them: each byte is hashed once.
        """
        if self.header.kind != "lines":
            return batch_id(self.header, hashlib.sha256(self.payload).hexdigest())
        rest = hashlib.sha256()
        at = 0
        for (start, end), sha256 in zip(self.spans, self.line_hashes, strict=True):
            rest.update(self.payload[at:start] + sha256)
            at = end
        rest.update(self.payload[at:])
        return batch_id(self.header, rest.hexdigest())


def batch_id(header: Header, content_sha256: str) -> str:
    """Hash what identifies a batch, its content by a hash. 64 hex characters."""
    identity = [
        *(header.user_id, header.project_slug, header.session_id, header.kind, header.stream),
        *(header.generation, header.revision, header.start_sequence, header.offset),
        content_sha256,
    ]
    if header.kind == "heartbeat":
        identity.append(header.host_id)
    return hashlib.sha256(orjson.dumps(identity)).hexdigest()


def replay_id(message_id: str) -> str:
    """Return an id under which a message can be sent again: no duplicate detection knows it."""
    base = _REPLAYED.sub("", message_id)
    mark = REPLAY_MARK + secrets.token_hex(8)
    if len(base) + len(mark) > MAX_MESSAGE_ID:
        base = hashlib.sha256(base.encode()).hexdigest()
    return base + mark


def utc_now() -> str:
    """Return the current time as headers carry it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---------------------------------------------------------------- encoding


def encode(batch: Batch, encoding: Encoding = "zstd") -> bytes:
    """Compress a batch into a message body (or an inbox object)."""
    return encode_parts(batch.header, compress(batch.payload, encoding), encoding)


def encode_parts(header: Header, compressed_payload: bytes, encoding: Encoding = "zstd") -> bytes:
    """Put a header's frame before a payload that is compressed already."""
    return compress(header.to_json() + b"\n", encoding) + compressed_payload


def compress(data: bytes, encoding: Encoding) -> bytes:
    """Compress into one zstd frame or gzip member; nothing for nothing."""
    if not data or encoding == "identity":
        return data
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


# ---------------------------------------------------------------- decoding


def decode(
    body: bytes,
    encoding: str | None = None,
    *,
    limits: Limits | None = None,
    claimed: bool = False,
) -> Batch:
    """Unpack and check a message body (or, with `claimed`, an inbox object).

    Raises `BatchTooLarge` as soon as a bound is passed, `UnsupportedBatch` for what a newer version
    may understand, `BadBatch` for everything else that is wrong. A declared size is never believed.
    """
    bounds = limits or Limits()
    most = bounds.claimed_bytes if claimed else bounds.inline_bytes
    raw = _unpack(body, _which_encoding(body, encoding), most, bounds.zstd_window)
    end = raw.find(b"\n", 0, MAX_HEADER_BYTES + 1)
    if end < 0:
        raise BadBatch(f"The first line is no header: no newline within {MAX_HEADER_BYTES} bytes.")
    header = parse_header(bytes(raw[:end]))
    batch = Batch(header, bytes(memoryview(raw)[end + 1 :]))
    _check(batch, bounds)
    return batch


def parse_header(line: bytes) -> Header:
    """Read a header line; raises `BadBatch` or `UnsupportedBatch`."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadBatch(f"The header is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadBatch("The header is not a JSON object.")
    if too_deep(fields):
        raise BadBatch("The header is nested too deeply.")
    _refuse_unknown(fields)
    try:
        header = Header.model_validate(fields)
    except ValidationError as error:
        raise BadBatch(f"The header is not valid: {_sentence(error)}") from None
    for name in ("user_id", "host_id"):
        check_part(name, getattr(header, name))
    if header.kind != "heartbeat":
        header.key  # noqa: B018  raises when the session's parts are missing
    return header


def check_time(header: Header, enqueued_ms: int) -> None:
    """Refuse a generation or metadata revision over 24 h after the message was enqueued.

    Such a one would win against every later version of its file.
    """
    latest = enqueued_ms + MAX_FUTURE_MS
    if header.generation > latest:
        raise BadBatch(f"Generation {header.generation} lies over 24 h in the future.")
    if header.kind == "metadata" and header.revision > latest * 1_000_000:
        raise BadBatch(f"Revision {header.revision} lies over 24 h in the future.")


def _refuse_unknown(fields: dict[str, Any]) -> None:
    version = fields.get("v")
    if isinstance(version, int) and version > VERSION:
        raise UnsupportedBatch(f"Version {version} of the wire format; this knows up to {VERSION}.")
    kind = fields.get("kind")
    if isinstance(kind, str) and kind not in KINDS:
        raise UnsupportedBatch(f"Unknown kind of batch: {kind[:64]!r}.")


def _check(batch: Batch, bounds: Limits) -> None:
    header, payload = batch.header, batch.payload
    if header.claim is not None:
        if payload:
            raise BadBatch("A message with a claim carries no payload of its own.")
        return
    if len(payload) != header.length:
        raise BadBatch(f"The header says {header.length} bytes, there are {len(payload)}.")
    if header.kind in ("lines", "tail") and header.stream is None:
        raise BadBatch(f"A batch of kind {header.kind} needs a stream.")
    if header.kind == "tail" and (not payload or b"\n" in payload):
        raise BadBatch("A tail is one unterminated line: not empty, and without a newline.")
    if header.kind == "lines":
        _check_lines(batch, bounds)


def _check_lines(batch: Batch, bounds: Limits) -> None:
    header, payload = batch.header, batch.payload
    if payload and not payload.endswith(b"\n"):
        raise BadBatch("The last line is not terminated; send it as a tail.")
    if header.line_count > bounds.lines:
        raise BatchTooLarge(f"{header.line_count} lines; at most {bounds.lines} are allowed.")
    if len(batch.spans) != header.line_count:
        found = sum(1 for _ in line_spans(payload))
        raise BadBatch(f"The header says {header.line_count} lines, there are {found}.")
    if header.start_sequence + header.line_count > MAX_SEQUENCE:
        raise BadBatch(f"Sequences must stay below {MAX_SEQUENCE}.")


def lines_of(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) for each non-blank line, without its newline, one copy at a time."""
    for start, end in line_spans(payload):
        yield start, payload[start:end]


def line_spans(payload: bytes) -> Iterator[Span]:
    """Yield (start, end) of each non-blank line, without its newline."""
    start = 0
    while start < len(payload):
        end = payload.find(b"\n", start)
        if end < 0:
            end = len(payload)
        # White space is at most 32: most lines need no second look.
        if payload[start] > _SPACE or not is_blank(payload[start:end]):
            yield start, end
        start = end + 1


def is_blank(line: bytes) -> bool:
    """Whether a line is nothing but ASCII white space: such lines have no sequence."""
    return not line or line.isspace()


def _which_encoding(body: bytes, named: str | None) -> Encoding:
    if named in ENCODINGS:
        return named  # type: ignore[return-value]
    if named is not None:
        raise UnsupportedBatch(f"Unknown content_encoding: {named[:64]!r}.")
    if body.startswith(_ZSTD_MAGIC):
        return "zstd"
    return "gzip" if body.startswith(_GZIP_MAGIC) else "identity"


def _unpack(body: bytes, encoding: Encoding, most: int, window: int) -> bytearray:
    pieces = {"zstd": _unzstd, "gzip": _gunzip, "identity": _as_it_is}[encoding](body, window)
    out = bytearray()
    allowed = most + MAX_HEADER_BYTES
    for piece in pieces:
        out += piece
        if len(out) > allowed:
            raise BatchTooLarge(f"The batch unpacks to more than {most} bytes.")
    return out


def _as_it_is(body: bytes, _window: int) -> Iterable[bytes]:
    return (body,)


def _unzstd(body: bytes, window: int) -> Iterator[bytes]:
    unpacker = zstandard.ZstdDecompressor(max_window_size=window)
    try:
        with unpacker.stream_reader(body, read_across_frames=True) as reader:
            while piece := reader.read(_CHUNK):
                yield piece
    except zstandard.ZstdError as error:
        raise BadBatch(f"The body is not valid zstd: {error}") from None


def _gunzip(body: bytes, _window: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        # zlib copies what it leaves over at each call; small pieces keep that cheap.
        for start in range(0, len(body), _GZIP_INPUT):
            piece = body[start : start + _GZIP_INPUT]
            while piece:
                if unpacker.eof:
                    unpacker = zlib.decompressobj(wbits=31)
                yield unpacker.decompress(piece, _CHUNK)
                piece = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    except zlib.error as error:
        raise BadBatch(f"The body is not valid gzip: {error}") from None
    if not unpacker.eof:
        raise BadBatch("The body is not valid gzip: it ends in the middle.")


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"


def peek_key(body: bytes, encoding: str | None = None) -> SessionKey | None:
    """Find out which session an unusable message was about; None when that cannot be told."""
    try:
        kind = _which_encoding(body, encoding)
        pieces = {"zstd": _unzstd, "gzip": _gunzip, "identity": _as_it_is}[kind]
        start = next(iter(pieces(body, Limits().zstd_window)), b"")[: MAX_HEADER_BYTES + 1]
        fields = orjson.loads(start.partition(b"\n")[0])
        return SessionKey(fields["user_id"], fields["project_slug"], fields["session_id"])
    except (BadBatch, BadIdentity, ValueError, KeyError, TypeError, AttributeError):
        return None
