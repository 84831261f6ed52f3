"""Quarantine entries: what could not be a document, with a reason and a way to its bytes."""

import hashlib
from typing import Any

import orjson

from sessionferry import __version__
from sessionferry.batch import Header
from sessionferry.documents import Facts, Rejected, payload_ref
from sessionferry.errors import FerryError
from sessionferry.identity import UNATTRIBUTED, SessionKey

CONFLICT = "conflict"


def line_entry_id(
    header: Header, sequence: int, sha256: bytes, *, is_conflict: bool = False
) -> str:
    """Return the id of a line's entry; the same line at the same place has the same id.

    A conflict has another one than a line that is no document: that goes when the line is stored.
    """
    place = [header.key.partition_key, header.stream, header.generation, sequence, sha256.hex()]
    if is_conflict:
        place.append(CONFLICT)
    return hashlib.sha256(orjson.dumps(place)).hexdigest()


def message_entry_id(partition: str, body_sha256: str) -> str:
    """Return the id of a whole message's entry."""
    return hashlib.sha256(orjson.dumps([partition, "message", body_sha256])).hexdigest()


def rejected_line(
    header: Header, rejected: Rejected, archive_key: str, created_at: str
) -> dict[str, Any]:
    """Describe a line that is no document."""
    reference = payload_ref(archive_key, rejected.position, rejected.length, rejected.sha256)
    return _line_entry(
        header,
        rejected.sequence,
        rejected.sha256,
        created_at,
        {
            "reason": rejected.reason,
            "detail": rejected.detail,
            "preview": rejected.preview,
            "payload_ref": reference,
        },
    )


def conflicting_line(
    header: Header, facts: Facts, position: int, archive_key: str, created_at: str
) -> dict[str, Any]:
    """Describe a line whose place is taken by a stored line of other content (R1)."""
    reference = payload_ref(archive_key, position, facts.size, facts.sha256)
    return _line_entry(
        header,
        facts.sequence,
        facts.sha256,
        created_at,
        {
            "reason": CONFLICT,
            "detail": "Another line is stored at this place.",
            "payload_ref": reference,
        },
    )


def whole_message(
    body: bytes,
    key: SessionKey | None,
    error: FerryError,
    archive_key: str,
    *,
    message_id: str,
    created_at: str,
    content_encoding: str | None = None,
) -> dict[str, Any]:
    """Describe a message of which nothing could be stored."""
    sha256 = hashlib.sha256(body)
    partition = key.partition_key if key else UNATTRIBUTED
    return {
        "id": message_entry_id(partition, sha256.hexdigest()),
        "partition_key": partition,
        "_type": "quarantined_message",
        **(_session(key) if key else {}),
        "reason": error.code,
        "detail": str(error)[:500],
        "message_id": message_id[:256],
        **({"content_encoding": content_encoding[:256]} if content_encoding else {}),
        "size_bytes": len(body),
        "created_at": created_at,
        "judged_by": __version__,
        "payload_ref": {
            **payload_ref(archive_key, 0, len(body), sha256.digest()),
            "raw": True,
        },
    }


def _line_entry(
    header: Header, sequence: int, sha256: bytes, created_at: str, more: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": line_entry_id(header, sequence, sha256, is_conflict=more["reason"] == CONFLICT),
        "partition_key": header.key.partition_key,
        "_type": "quarantined_line",
        **_session(header.key),
        "host_id": header.host_id,
        "stream": header.stream,
        "generation": header.generation,
        "sequence": sequence,
        "format": header.format,
        "line_sha256": sha256.hex(),
        "created_at": created_at,
        "judged_by": __version__,
        **more,
    }


def _session(key: SessionKey) -> dict[str, str]:
    return {
        "user_id": key.user_id,
        "project_slug": key.project_slug,
        "session_id": key.session_id,
    }
