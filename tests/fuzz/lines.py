"""Lines of every format: each becomes a document within its bounds, or is rejected."""

import random
from typing import Any

import orjson

from fuzz.mutation import distort, spoil
from sessionferry.batch import Header
from sessionferry.documents import Document, DocumentBuilder, Position, stored_facts
from sessionferry.formats import FORMATS
from sessionferry.identity import Stream
from sessionferry.truncation import MAX_DOCUMENT_BYTES

_USAGE = {"input_tokens": 7, "output_tokens": 5, "cache_read_tokens": 2, "cost_usd": "0.0125"}
LINES: tuple[dict[str, Any], ...] = (
    {"ts": "2026-01-01T00:00:00.5Z", "lvl": "INFO", "event": "llm:response", "session_id": "s"}
    | {"data": {"usage": _USAGE, "model": "m", "provider": "p"}, "status": "ok"},
    {"ts": 1767225600.25, "event": "tool:post", "duration_ms": 5, "error": {"message": "no"}}
    | {"data": {"tool_name": "bash", "tool_call_id": "c1", "parent_id": "s0"}},
    {"role": "tool", "name": "read", "tool_call_id": "c1", "content": [{"type": "text"}]}
    | {"metadata": {"timestamp": "2026-01-01T00:00:01+02:00"}},
    {"type": "assistant", "uuid": "u", "parentUuid": "v", "isSidechain": True, "cwd": "/w"}
    | {"message": {"id": "m1", "role": "assistant", "model": "c", "usage": _USAGE, "content": []}},
    {"type": "event_msg", "timestamp": "2026-01-01T00:00:02.000Z"}
    | {"payload": {"type": "token_count", "info": {"total_token_usage": _USAGE}}},
)
_RAW = tuple(orjson.dumps(line) for line in LINES)
_HEADER = Header(
    kind="lines",
    stream="events",
    user_id="mara",
    host_id="h",  # type: ignore[arg-type]
    project_slug="p",
    session_id="s",  # type: ignore[arg-type]
)
_STREAMS: tuple[Stream, ...] = ("events", "transcript")


def feed(rng: random.Random) -> str:
    """Build one spoiled line's document, and read its facts back."""
    changes = {"stream": rng.choice(_STREAMS), "format": rng.choice(sorted(FORMATS))}
    builder = DocumentBuilder(_HEADER.model_copy(update=changes), "key", "2026-01-01T00:00:00Z")
    line = _spoiled(rng).replace(b"\n", b" ")
    built = builder.build(Position(rng.randrange(3), rng.choice((0, 7))), line)
    if not isinstance(built, Document):
        assert built.length == len(line)
        assert len(orjson.dumps(built.preview)) < 4096
        return built.reason
    assert len(built.json) <= MAX_DOCUMENT_BYTES
    assert stored_facts(built.fields) == built.facts
    return "truncated" if built.facts.truncated else "document"


def _spoiled(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return spoil(rng, rng.choice(_RAW), _RAW)
    value = rng.choice(LINES)
    for _ in range(rng.choice((1, 1, 2, 5))):
        value = distort(rng, value)
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return repr(value).replace("'", '"').encode(errors="replace")
