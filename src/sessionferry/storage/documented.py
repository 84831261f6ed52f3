"""Documents as amplifier-session-storage documents them: our further fields are left out."""

from collections.abc import Mapping
from typing import Any

from sessionferry import documents, projection

SIZE_FIELDS = frozenset({"data_truncated", "data_size_bytes"})


def line(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line's document with the fields that the library documents, and no other of ours."""
    shown = documents.DOCUMENTED_KEYS
    if document["_type"] == "event" or document["data_truncated"]:
        shown |= SIZE_FIELDS
    return _own(document, documents.OUR_KEYS) | {name: document[name] for name in shown}


def session(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a session's document with the fields that the library documents."""
    own = _own(document, projection.OUR_KEYS)
    return own | {name: document[name] for name in projection.DOCUMENTED_KEYS if name in document}


def _own(document: Mapping[str, Any], ours: frozenset[str]) -> dict[str, Any]:
    """Return the fields that were given, those that had to make room included."""
    own = {name: value for name, value in document.items() if name not in ours}
    return own | dict(document.get("shadowed", {}))


def stated_time(document: Mapping[str, Any]) -> str | None:
    """Return a line's time as the line writes it; None if it has none."""
    metadata = document.get("metadata")
    inner = metadata.get("timestamp") if isinstance(metadata, dict) else None
    for value in (document.get("ts"), document.get("timestamp"), inner, document["occurred_at"]):
        if isinstance(value, str):
            return value
    return None
