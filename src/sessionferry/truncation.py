"""Which lines are stored in full, and what is kept of those that are not.

The measure is the line's compact UTF-8 JSON before our own fields are added (`data_size_bytes`).
An event over 409,600 bytes (400 KB, the limit that amplifier-session-storage documents), and any
line whose finished document would pass 1.9 MB (Cosmos DB takes items of 2 MB), is stored as its
identity, a few scalar fields and its summary. Nothing is lost: the archive keeps the bytes, and
`hydrate` gives them back.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import orjson

from sessionferry.errors import ArchiveMismatch
from sessionferry.formats.meaning import MAX_TEXT
from sessionferry.identity import Stream

MAX_EVENT_BYTES = 409_600
MAX_DOCUMENT_BYTES = 1_900_000
MAX_PARSED_BYTES = 16 * 1024 * 1024
"""Longer lines are not parsed: a parsed line takes up to 24 times its size in memory (measured)."""
MAX_DEPTH = 100
"""Deeper lines are not parsed (Cosmos DB takes 128 levels; ours add a few)."""

KEPT_FIELDS = ("event", "ts", "lvl", "turn", "role")
_SCANNED_FIELDS = ("model", "provider", "tool_name", "tool_call_id", "status")
_SCAN_BYTES = 64 * 1024
_SCAN = re.compile(
    rb'"(%s)"\s*:\s*("(?:[^"\\]|\\.){0,256}"|-?[0-9]{1,15})(?=\s*[,}\]])'
    % "|".join(KEPT_FIELDS + _SCANNED_FIELDS).encode()
)
# Possessive (`*+`): a string of millions of escapes would else be remembered step by step.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def must_truncate(stream: Stream, data_size: int, document_size: int) -> bool:
    """Decide whether a line is stored without its payload. Sizes in UTF-8 bytes."""
    if stream == "events" and data_size > MAX_EVENT_BYTES:
        return True
    return document_size > MAX_DOCUMENT_BYTES


def kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the few scalar fields of a line that survive truncation, cut to a bounded length."""
    return {name: _brief(fields[name]) for name in KEPT_FIELDS if _is_scalar(fields.get(name))}


def scan(line: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find a line's kept and summary fields without parsing it: its first 64 KiB are searched."""
    found: dict[str, Any] = {}
    for match in _SCAN.finditer(line[:_SCAN_BYTES]):
        name = match[1].decode()
        if name not in found and (value := _scanned(match[2])) is not None:
            found[name] = value
    return (
        {name: found[name] for name in KEPT_FIELDS if name in found},
        {name: found[name] for name in _SCANNED_FIELDS if name in found},
    )


def looks_like_object(line: bytes) -> bool:
    """Whether the first sign of a line that is not parsed opens an object."""
    return line[:_SCAN_BYTES].lstrip().startswith(b"{")


def too_deep(value: object) -> bool:
    """Whether a parsed value is nested deeper than `MAX_DEPTH`."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


def text_too_deep(line: bytes) -> bool:
    """Like `too_deep`, for bytes that were not parsed; in time proportional to their length."""
    brackets = _STRING.sub(b"", line).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH


def check_hash(raw: bytes, sha256: str) -> bytes:
    """Return `raw`, or raise `ArchiveMismatch` when its SHA-256 is another."""
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise ArchiveMismatch(f"Archived bytes have SHA-256 {found}, the document says {sha256}.")
    return raw


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _brief(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _scanned(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
