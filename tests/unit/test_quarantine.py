"""Quarantine entries: one per fault, whoever reports it, with a way to the bytes."""

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry import __version__
from sessionferry.documents import DocumentBuilder, Facts, Position, Rejected
from sessionferry.errors import BadBatch, FerryError, UnsupportedBatch
from sessionferry.identity import UNATTRIBUTED, SessionKey
from sessionferry.quarantine import (
    CONFLICT,
    conflicting_line,
    line_entry_id,
    rejected_line,
    whole_message,
)
from support.strategies import header

NOW = "2026-07-01T00:00:00.000Z"
LINE = b"hello"
SHA = hashlib.sha256(LINE).digest()
KEY = SessionKey("user-123", "my-project", "sess-abc")


def rejected(line: bytes = LINE) -> Rejected:
    built = DocumentBuilder(header(), "k", NOW).build(Position(7, 11), line)
    assert isinstance(built, Rejected)
    return built


def test_a_rejected_line_is_described_with_a_way_to_its_bytes() -> None:
    entry = rejected_line(header(generation=2), rejected(), "archive-key", NOW)
    assert entry == {
        "id": line_entry_id(header(generation=2), 7, SHA),
        "partition_key": "user-123|my-project|sess-abc",
        "_type": "quarantined_line",
        "user_id": "user-123",
        "project_slug": "my-project",
        "session_id": "sess-abc",
        "host_id": "host-1",
        "stream": "events",
        "generation": 2,
        "sequence": 7,
        "format": "amplifier",
        "line_sha256": SHA.hex(),
        "created_at": NOW,
        "judged_by": __version__,
        "reason": "not_json",
        "detail": rejected().detail,
        "preview": "hello",
        "payload_ref": {
            "archive_key": "archive-key",
            "offset": 11,
            "length": 5,
            "sha256": SHA.hex(),
        },
    }


def test_a_conflict_is_described_like_a_rejected_line() -> None:
    entry = conflicting_line(header(), Facts(7, SHA, 5), 11, "archive-key", NOW)
    plain = rejected_line(header(), rejected(), "archive-key", NOW)
    assert entry["reason"] == CONFLICT
    shown = {"id", "reason", "detail", "preview"}
    assert entry["id"] == line_entry_id(header(), 7, SHA, is_conflict=True) != plain["id"]
    assert {k: v for k, v in entry.items() if k not in shown} == {
        k: v for k, v in plain.items() if k not in shown
    }


@pytest.mark.parametrize("changes", [{"host_id": "other"}, {"offset": 5}, {"start_sequence": 3}])
def test_the_same_line_at_the_same_place_has_the_same_id(changes: dict[str, Any]) -> None:
    assert line_entry_id(header(**changes), 7, SHA) == line_entry_id(header(), 7, SHA)


@pytest.mark.parametrize(
    "changes",
    [{"user_id": "other"}, {"session_id": "x"}, {"stream": "transcript"}, {"generation": 1}],
)
def test_another_place_has_another_id(changes: dict[str, Any]) -> None:
    ids = {line_entry_id(header(**each), 7, SHA) for each in ({}, changes)}
    ids |= {line_entry_id(header(), 8, SHA), line_entry_id(header(), 7, bytes(32))}
    assert len(ids) == 4


@given(st.binary(min_size=1, max_size=400).map(lambda raw: b"!" + raw.replace(b"\n", b"")))
def test_any_rejected_line_makes_a_small_entry_of_valid_json(line: bytes) -> None:
    entry = rejected_line(header(), rejected(line), "k", NOW)
    assert len(orjson.dumps(entry)) < 4_000


@pytest.mark.parametrize("key", [KEY, None])
def test_a_whole_message_is_kept_with_its_reason(key: SessionKey | None) -> None:
    body = b"\x00\xff"
    error = BadBatch("It is late.")
    entry = whole_message(body, key, error, "archive-key", message_id="m" * 999, created_at=NOW)
    assert entry["partition_key"] == (KEY.partition_key if key else UNATTRIBUTED)
    assert (entry["reason"], entry["detail"]) == ("bad_batch", "It is late.")
    assert entry.get("session_id") == ("sess-abc" if key else None)
    assert (entry["size_bytes"], len(entry["message_id"])) == (2, 256)
    assert entry["payload_ref"] == {
        "archive_key": "archive-key",
        "offset": 0,
        "length": 2,
        "sha256": hashlib.sha256(body).hexdigest(),
        "raw": True,
    }


def test_the_same_message_has_one_entry_whatever_it_was_called_and_however_it_failed() -> None:
    def entry_id(body: bytes, key: SessionKey | None, error: FerryError, message_id: str) -> str:
        entry = whole_message(body, key, error, "k", message_id=message_id, created_at=NOW)
        return str(entry["id"])

    same = {
        entry_id(b"x", KEY, BadBatch(), "one"),
        entry_id(b"x", KEY, UnsupportedBatch("z" * 9999), "two"),
    }
    assert len(same) == 1
    others = {entry_id(b"y", KEY, BadBatch(), "one"), entry_id(b"x", None, BadBatch(), "one")}
    assert len(same | others) == 3


def test_a_long_reason_is_cut() -> None:
    entry = whole_message(b"", None, BadBatch("z" * 9999), "k", message_id="", created_at=NOW)
    assert len(entry["detail"]) == 500
