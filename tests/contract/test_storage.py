"""The API of amplifier-session-storage: every documented method, argument and result, and more."""

import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings

from sessionferry import head_store
from sessionferry.archive import Archive, NoArchive
from sessionferry.coverage import Coverage
from sessionferry.documents import COSMOS_KEYS, OUR_KEYS, Document, Facts
from sessionferry.errors import (
    ArchiveMismatch,
    BadIdentity,
    FerryError,
    SessionDeleted,
    UserError,
)
from sessionferry.export import file_bytes
from sessionferry.heads import Head
from sessionferry.identity import SessionKey, session_folder
from sessionferry.ingest import Ingest
from sessionferry.storage import CosmosFileConfig, CosmosFileStorage, IdentityContext
from sessionferry.store.sql import SqlStore
from support import schedules
from support.strategies import objects, parts

PLACE = ("grace", "compiler", "run-7")
WRITER = ("grace", "ship-1", "compiler", "run-7")
KEY = SessionKey(*PLACE)


def _sqlite(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"endpoint": f"sqlite:///{request.getfixturevalue('tmp_path') / 'store.db'}"}


def _postgres(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"endpoint": request.getfixturevalue("postgres_url")}


def _cosmos(request: pytest.FixtureRequest) -> dict[str, Any]:
    access = request.getfixturevalue("cosmos_access")
    key = access.key.get_secret_value()
    account = {"endpoint": access.endpoint, "database_name": access.database}
    return account | {"auth_method": "key", "key": key}


STORES: Mapping[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "cosmos": _cosmos,
}
VARIABLES = {
    "endpoint": "ENDPOINT",
    "database_name": "DATABASE",
    "auth_method": "AUTH_METHOD",
    "key": "KEY",
}


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a configuration says of a store that is empty."""
    return STORES[request.param](request)


@pytest.fixture
def config(place: dict[str, Any], tmp_path: Path) -> CosmosFileConfig:
    return CosmosFileConfig(**place, archive=f"file://{tmp_path / 'archive'}")


@pytest.fixture
async def storage(config: CosmosFileConfig) -> AsyncIterator[CosmosFileStorage]:
    async with CosmosFileStorage(config) as opened:
        yield opened


@pytest.fixture
async def light() -> AsyncIterator[CosmosFileStorage]:
    """A storage in memory, for what does not depend on the store."""
    async with CosmosFileStorage.over(SqlStore.open("sqlite://"), Archive.open("memory://")) as it:
        yield it


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"event": "tool:post", "ts": f"2026-03-01T10:00:{number:02}Z", "lvl": "INFO"} | more


def turn(number: int) -> dict[str, Any]:
    return {"role": "user" if number % 2 == 0 else "assistant", "content": f"{number}", "turn": 1}


async def head_of(storage: CosmosFileStorage, key: SessionKey = KEY) -> Head:
    return (await head_store.read_head(storage._store, key)).head


async def check_exact(storage: CosmosFileStorage, key: SessionKey = KEY) -> None:
    """What is stored is what the head counts, and the session's document says the same."""
    world = schedules.World(storage._store, storage._writer.archive, Archive.open("memory://"))
    await schedules.check_exact(world, key)


async def exported(storage: CosmosFileStorage, stream: Any, key: SessionKey = KEY) -> bytes:
    head = await head_of(storage, key)
    blocks = file_bytes(storage._store, storage._writer.archive, head, stream)
    return b"".join([block async for block in blocks])


# ---------------------------------------------------------------- the documented examples


async def test_a_first_session_as_the_quick_start_writes_it(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.items():
        monkeypatch.setenv(f"AMPLIFIER_COSMOS_{VARIABLES[name]}", value)
    monkeypatch.setenv("FERRY_ARCHIVE", f"file://{tmp_path / 'archive'}")
    async with CosmosFileStorage(CosmosFileConfig.from_env()) as storage:
        await storage.upsert_session_metadata(
            user_id="grace",
            host_id="ship-1",
            metadata={
                "session_id": "run-7",
                "project_slug": "compiler",
                "bundle": "navy",
                "created": "2026-03-01T09:59:00Z",
                "turn_count": 2,
            },
        )
        written = await storage.sync_transcript_lines(
            user_id="grace",
            host_id="ship-1",
            project_slug="compiler",
            session_id="run-7",
            lines=[turn(0), turn(1)],
            start_sequence=0,
        )
        events = await storage.sync_event_lines(
            user_id="grace",
            host_id="ship-1",
            project_slug="compiler",
            session_id="run-7",
            lines=[event(0), event(1), event(2)],
            start_sequence=0,
        )
        assert (written, events) == (2, 3)
        assert await storage.get_transcript_count(*PLACE) == 2
        assert await storage.get_event_count(*PLACE) == 3
        await check_exact(storage)


async def test_documents_have_the_documented_schema(storage: CosmosFileStorage) -> None:
    """Read as somebody does who knows containers, ids and fields from the library's page alone."""
    metadata = {"session_id": "run-7", "project_slug": "compiler", "bundle": "navy"}
    await storage.upsert_session_metadata("grace", "ship-1", metadata)
    await storage.sync_transcript_lines(*WRITER, lines=[turn(0), turn(1)])
    large = event(1, data="x" * 500_000, turn=4)
    await storage.sync_event_lines(*WRITER, lines=[event(0), large])
    store = storage._store
    session = await store.read_item("sessions", "grace", "run-7")
    assert session is not None
    assert (
        session.document.items()
        >= {
            "id": "run-7",
            "user_id": "grace",
            "host_id": "ship-1",
            "_type": "session",
            **metadata,
        }.items()
    )
    datetime.fromisoformat(session.document["synced_at"])
    lines = await store.read_lines(KEY, "transcript", 0)
    for number, document in enumerate(lines):
        shared = {"partition_key": "grace|compiler|run-7", "user_id": "grace", "host_id": "ship-1"}
        place = {"project_slug": "compiler", "session_id": "run-7", "sequence": number}
        named = {"id": f"run-7_msg_{number}", "_type": "transcript_message"}
        assert document.items() >= (shared | place | named | turn(number)).items()
    first, second = await store.read_lines(KEY, "events", 0)
    assert (
        first.items()
        >= (event(0) | {"id": "run-7_evt_0", "_type": "event", "data_truncated": False}).items()
    )
    assert first["data_size_bytes"] == len(orjson.dumps(event(0)))
    kept = {name: large[name] for name in ("event", "ts", "lvl", "turn")}
    sizes = {"data_truncated": True, "data_size_bytes": len(orjson.dumps(large))}
    assert second.items() >= (kept | sizes | {"id": "run-7_evt_1"}).items()
    assert "data" not in second


async def test_results_have_the_documented_fields_and_no_others(
    storage: CosmosFileStorage,
) -> None:
    metadata = {"session_id": "run-7", "project_slug": "compiler", "turn_count": 2, "deleted": 0}
    await storage.upsert_session_metadata("grace", "ship-1", metadata)
    await storage.sync_transcript_lines(*WRITER, lines=[turn(0)])
    await storage.sync_event_lines(*WRITER, lines=[event(0)])
    (message,) = await storage.get_transcript_lines(*PLACE)
    (occurrence,) = await storage.get_event_lines(*PLACE)
    session = await storage.get_session_metadata("grace", "run-7")
    assert session is not None
    assert message.pop("synced_at")
    assert occurrence.pop("synced_at")
    assert session.pop("synced_at")
    place = {
        "user_id": "grace",
        "host_id": "ship-1",
        "project_slug": "compiler",
        "session_id": "run-7",
    }
    line = place | {"partition_key": "grace|compiler|run-7", "sequence": 0}
    assert message == turn(0) | line | {"id": "run-7_msg_0", "_type": "transcript_message"}
    size = {"data_truncated": False, "data_size_bytes": len(orjson.dumps(event(0)))}
    assert occurrence == event(0) | line | size | {"id": "run-7_evt_0", "_type": "event"}
    assert session == metadata | place | {"id": "run-7", "_type": "session"}


async def test_only_what_is_new_is_synced_by_counts(storage: CosmosFileStorage) -> None:
    local_transcript = [turn(number) for number in range(5)]
    local_events = [event(number) for number in range(9)]
    for known in (3, 5):
        transcript_count = await storage.get_transcript_count(*PLACE)
        event_count = await storage.get_event_count(*PLACE)
        new_lines = local_transcript[transcript_count:known]
        new_events = local_events[event_count : known * 2 - 1]
        await storage.sync_transcript_lines(
            *WRITER, lines=new_lines, start_sequence=transcript_count
        )
        await storage.sync_event_lines(*WRITER, lines=new_events, start_sequence=event_count)
    found = await storage.get_transcript_lines(*PLACE)
    assert [line["content"] for line in found] == ["0", "1", "2", "3", "4"]
    assert len(await storage.get_event_lines(*PLACE)) == 9
    assert await exported(storage, "events") == b"".join(
        orjson.dumps(line) + b"\n" for line in local_events
    )
    await check_exact(storage)


async def test_a_restarted_daemon_resumes_by_the_sync_status(storage: CosmosFileStorage) -> None:
    nothing = {
        "session_exists": False,
        "last_event_sequence": -1,
        "last_event_ts": None,
        "event_count": 0,
        "last_transcript_sequence": -1,
        "last_transcript_ts": None,
        "message_count": 0,
    }
    assert await storage.get_sync_status(*PLACE) == nothing
    local = [event(number) for number in range(6)]
    await storage.sync_event_lines(*WRITER, lines=local[:4])
    await storage.sync_transcript_lines(
        *WRITER, lines=[turn(0) | {"timestamp": "2026-03-01T11:00:00+01:00"}]
    )
    status = await storage.get_sync_status(*PLACE)
    assert status == {
        "session_exists": True,
        "last_event_sequence": 3,
        "last_event_ts": "2026-03-01T10:00:03Z",
        "event_count": 4,
        "last_transcript_sequence": 0,
        "last_transcript_ts": "2026-03-01T11:00:00+01:00",
        "message_count": 1,
    }
    last = status["last_event_sequence"]
    new = [line for number, line in enumerate(local) if number > last]
    assert await storage.sync_event_lines(*WRITER, lines=new, start_sequence=last + 1) == 2
    assert await storage.get_last_event_sequence(*PLACE) == 5
    assert await storage.get_last_event_ts(*PLACE) == "2026-03-01T10:00:05Z"
    assert await storage.get_last_transcript_sequence(*PLACE) == 0
    assert await storage.get_last_transcript_ts(*PLACE) == "2026-03-01T11:00:00+01:00"


async def test_uploading_again_neither_duplicates_nor_archives_again(
    storage: CosmosFileStorage,
) -> None:
    lines = [event(number) for number in range(20)]
    await storage.sync_event_lines(*WRITER, lines=lines)
    before = await storage.get_event_lines(*PLACE)
    kept = [it async for it in storage._writer.archive.objects(session_folder(KEY))]
    assert await storage.sync_event_lines(*WRITER, lines=lines) == 20
    await storage.sync_event_lines(*WRITER, lines=lines[5:9], start_sequence=5)
    assert await storage.get_event_lines(*PLACE) == before
    assert [it async for it in storage._writer.archive.objects(session_folder(KEY))] == kept
    await check_exact(storage)


async def test_daemons_that_sync_one_session_at_once_make_no_duplicates(
    storage: CosmosFileStorage,
) -> None:
    lines = [event(number % 60, n=number) for number in range(300)]
    ranges = [(0, 200), (100, 300), (0, 300), (150, 160), (250, 300), (0, 50)]
    await asyncio.gather(
        *(
            storage.sync_event_lines(*WRITER, lines=lines[first:end], start_sequence=first)
            for first, end in ranges
        )
    )
    found = await storage.get_event_lines(*PLACE)
    assert [line["n"] for line in found] == list(range(300))
    assert await storage.get_event_count(*PLACE) == 300
    assert not (await head_of(storage)).dirty
    await check_exact(storage)


async def test_daemons_that_replace_at_once_leave_one_version_of_each_line(
    storage: CosmosFileStorage,
) -> None:
    await storage.sync_event_lines(*WRITER, lines=[event(0, n=n) for n in range(60)])

    async def rewrite(version: int, first: int) -> None:
        lines = [event(version, n=n, version=version) for n in range(first, first + 30)]
        await storage.sync_event_lines(*WRITER, lines=lines, start_sequence=first)

    await asyncio.gather(*(rewrite(version, version * 6) for version in range(6)))
    found = await storage.get_event_lines(*PLACE)
    assert [line["n"] for line in found] == list(range(60))
    assert {line["version"] for line in found[30:]} <= set(range(6))
    assert not (await head_of(storage)).dirty
    await check_exact(storage)


def test_the_configuration_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"ENDPOINT": "https://x.documents.azure.com:443/", "AUTH_METHOD": "key", "KEY": "c2U="}
    for name, value in values.items():
        monkeypatch.setenv(f"AMPLIFIER_COSMOS_{name}", value)
    config = CosmosFileConfig.from_env()
    assert config.endpoint == "https://x.documents.azure.com:443/"
    assert config.database_name == "amplifier-db"
    assert (config.auth_method, config.key) == ("key", "c2U=")
    assert "c2U=" not in repr(config)
    monkeypatch.setenv("AMPLIFIER_COSMOS_DATABASE", "other")
    assert CosmosFileConfig.from_env().database_name == "other"


def test_a_configuration_by_hand_has_the_documented_fields() -> None:
    config = CosmosFileConfig("https://x", "db", "key", "k")
    documented = [field.name for field in fields(config)][:4]
    assert documented == ["endpoint", "database_name", "auth_method", "key"]
    assert CosmosFileConfig(endpoint="https://x").auth_method == "default_credential"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "Set AMPLIFIER_COSMOS_ENDPOINT"),
        ({"ENDPOINT": "https://x", "AUTH_METHOD": "key"}, "set AMPLIFIER_COSMOS_KEY"),
        ({"ENDPOINT": "https://x", "AUTH_METHOD": "magic"}, "FERRY_COSMOS_AUTH_METHOD is wrong"),
    ],
)
def test_a_wrong_configuration_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    monkeypatch.delenv("FERRY_STORE", raising=False)
    for name in ("ENDPOINT", "DATABASE", "AUTH_METHOD", "KEY"):
        monkeypatch.delenv(f"AMPLIFIER_COSMOS_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"AMPLIFIER_COSMOS_{name}", value)
    with pytest.raises(UserError, match=sentence):
        CosmosFileConfig.from_env()


def test_the_identity_is_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_IDENTITY", str(tmp_path))
    monkeypatch.setenv("FERRY_USER_ID", "grace")
    monkeypatch.setenv("FERRY_HOST_ID", "ship-1")
    IdentityContext.initialize()
    assert (IdentityContext.get_user_id(), IdentityContext.get_host_id()) == ("grace", "ship-1")


@given(parts, parts, parts)
def test_partition_keys_are_the_documented_ones_and_apart(user: str, project: str, s: str) -> None:
    made = CosmosFileStorage.make_partition_key(user, project, s)
    assert made.count("|") == 2
    assert made == SessionKey(user, project, s).partition_key
    assert CosmosFileStorage.make_partition_key("u-1", "my-app", "s_2") == "u-1|my-app|s_2"


# ---------------------------------------------------------------- life


async def test_a_storage_opens_closes_and_opens_again(config: CosmosFileConfig) -> None:
    storage = CosmosFileStorage(config)
    with pytest.raises(UserError, match="initialize"):
        await storage.get_event_count(*PLACE)
    assert await storage.verify_connection()
    await storage.initialize()
    await storage.sync_event_lines(*WRITER, lines=[event(0)])
    await storage.close()
    await storage.close()
    again = await CosmosFileStorage.create(config)
    assert await again.get_event_count(*PLACE) == 1
    await again.close()


async def test_a_store_that_is_not_there_is_an_error_not_a_false(tmp_path: Path) -> None:
    storage = CosmosFileStorage(CosmosFileConfig(endpoint="nosuch://host/db"))
    with pytest.raises(UserError):
        await storage.verify_connection()


# ---------------------------------------------------------------- replacing


async def test_a_changed_line_replaces_what_is_stored_and_every_sum_follows(
    storage: CosmosFileStorage,
) -> None:
    def paid(number: int, tokens: int) -> dict[str, Any]:
        usage = {"input_tokens": tokens, "output_tokens": 1, "cost_usd": f"0.{tokens}"}
        return {
            "event": "llm:response",
            "ts": f"2026-03-01T10:00:{number:02}Z",
            "data": {"usage": usage},
        }

    await storage.sync_event_lines(*WRITER, lines=[paid(n, 10 + n) for n in range(5)])
    last = paid(40, 99) | {"text": "é"}
    assert await storage.sync_event_lines(*WRITER, lines=[last], start_sequence=2) == 1
    stats = await storage.get_session_sync_stats(*PLACE)
    assert stats.event_count == 5
    assert stats.usage["input"] == 10 + 11 + 99 + 13 + 14
    assert stats.cost_usd == "1.47"
    assert stats.event_ts_range == (
        "2026-03-01T10:00:00.000000000Z",
        "2026-03-01T10:00:40.000000000Z",
    )
    await check_exact(storage)
    await storage.sync_event_lines(*WRITER, lines=[paid(1, 12)], start_sequence=2)
    stats = await storage.get_session_sync_stats(*PLACE)
    assert stats.event_ts_range == (
        "2026-03-01T10:00:00.000000000Z",
        "2026-03-01T10:00:04.000000000Z",
    )
    await check_exact(storage)
    assert (await exported(storage, "events")).count(b"\n") == 5


async def test_a_transcript_that_was_rewritten_is_uploaded_over_the_old_one(
    storage: CosmosFileStorage,
) -> None:
    await storage.sync_transcript_lines(*WRITER, lines=[turn(n) for n in range(2500)])
    rewritten = [turn(n) | {"content": f"new {n}"} for n in range(2500)]
    await storage.sync_transcript_lines(*WRITER, lines=rewritten)
    found = await storage.get_transcript_lines(*PLACE, after_sequence=2397)
    assert [line["content"] for line in found] == [f"new {n}" for n in range(2398, 2500)]
    assert await exported(storage, "transcript") == b"".join(
        orjson.dumps(line) + b"\n" for line in rewritten
    )
    head = await head_of(storage)
    assert head.stream("transcript").stored == Coverage.of((0, 2499))


async def test_lines_with_gaps_are_stored_and_named(storage: CosmosFileStorage) -> None:
    for first in (0, 10, 20):
        lines = [event(n) for n in range(first, first + 5)]
        await storage.sync_event_lines(*WRITER, lines=lines, start_sequence=first)
    gaps = await storage.find_missing_sequences(*PLACE, event_line_count=27)
    assert list(gaps.event_missing_sequences) == [*range(5, 10), *range(15, 20), 25, 26]
    assert (gaps.event_stored_count, gaps.transcript_stored_count) == (15, 0)
    assert not gaps.transcript_missing_sequences
    known = await storage.find_missing_sequences(*PLACE)
    assert list(known.event_missing_sequences) == [*range(5, 10), *range(15, 20)]
    for first, last in gaps.event_missing_sequences.ranges:
        lines = [event(n) for n in range(first, last + 1)]
        await storage.sync_event_lines(*WRITER, lines=lines, start_sequence=first)
    healed = await storage.find_missing_sequences(*PLACE, event_line_count=27)
    assert not healed.event_missing_sequences
    await check_exact(storage)


@given(objects)
@example({"ttl": 5, "_etag": "x", "id": 3, "generation": 0, "summary": {}, "shadowed": {"id": 1}})
@example({"session_id": "run-7", "data_truncated": False, "occurred_at": None})
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_line_comes_back_with_its_own_fields(
    light: CosmosFileStorage, line: dict[str, Any]
) -> None:
    await light.sync_event_lines(*WRITER, lines=[line])
    await light.sync_transcript_lines(*WRITER, lines=[line])
    (found,) = await light.get_event_lines(*PLACE)
    documented = {"data_truncated", "data_size_bytes"}
    ours = {name for name in (*found,) if name in OUR_KEYS and name not in line} | {
        *("id", "partition_key", "user_id", "host_id", "project_slug", "session_id"),
        *("sequence", "_type", "synced_at"),
    }
    assert {k: v for k, v in found.items() if k not in ours | documented} == {
        k: v for k, v in line.items() if k not in ours | documented
    }
    (message,) = await light.get_transcript_lines(*PLACE)
    assert {k: v for k, v in message.items() if k not in ours} == {
        k: v for k, v in line.items() if k not in ours
    }
    assert COSMOS_KEYS & set(message) == COSMOS_KEYS & set(line)


async def test_what_json_cannot_carry_is_repaired_as_in_files(light: CosmosFileStorage) -> None:
    line = {"event": "x", "n": float("nan"), "text": "a\ud800b", "big": 2**70, 5: (1, 2)}
    await light.sync_event_lines(*WRITER, lines=[line, event(1)])
    first, _ = await light.get_event_lines(*PLACE)
    assert (first["n"], first["text"], first["5"]) == (None, "a\ufffdb", [1, 2])
    assert (await head_of(light)).stream("events").repaired == 1
    await light.sync_event_lines(*WRITER, lines=[line, event(1)])
    await check_exact(light)


@pytest.mark.parametrize(
    ("lines", "start"),
    [
        ([["no", "object"]], 0),
        ([{"a": {1, 2}}], 0),
        ([{"a": object()}], 0),
        ([event(0)], -1),
        ([event(0)], 10**9),
        ([json.loads("[" * 900 + "]" * 900)], 0),
    ],
)
async def test_what_cannot_be_stored_is_the_callers_error_and_stores_nothing(
    light: CosmosFileStorage, lines: list[Any], start: int
) -> None:
    with pytest.raises(UserError):
        await light.sync_event_lines(*WRITER, lines=[*lines, event(1)], start_sequence=start)
    assert await light.get_sync_status(*PLACE) == await light.get_sync_status("x", "y", "z")


@pytest.mark.parametrize("place", [("", "h", "p", "s"), ("u", "", "p", "s"), ("u", "h", "p", "")])
async def test_an_empty_identity_is_refused(light: CosmosFileStorage, place: Any) -> None:
    with pytest.raises(BadIdentity):
        await light.sync_event_lines(*place, lines=[event(0)])


async def test_no_lines_are_nothing(light: CosmosFileStorage) -> None:
    assert await light.sync_event_lines(*WRITER, lines=[]) == 0
    assert await light.sync_transcript_lines(*WRITER, lines=[], start_sequence=7) == 0
    assert (await head_store.read_head(light._store, KEY)).etag is None


# ---------------------------------------------------------------- large lines


async def test_a_truncated_event_keeps_its_summary_and_its_bytes(
    storage: CosmosFileStorage,
) -> None:
    usage = {"input_tokens": 7, "output_tokens": 2}
    data = {"model": "m", "text": "ß" * 300_000, "usage": usage}
    large = {"event": "llm:response", "ts": "2026-03-01T10:00:00Z", "data": data}
    await storage.sync_event_lines(*WRITER, lines=[event(0), large])
    (found,) = await storage.get_event_lines(*PLACE, after_sequence=0)
    assert found["data_truncated"]
    assert "data" not in found
    whole = await storage.get_whole_line(*PLACE, "events", 1)
    assert whole == large | found
    assert (
        await storage.get_whole_line(*PLACE, "events", 0)
        == (await storage.get_event_lines(*PLACE))[0]
    )
    assert await storage.get_whole_line(*PLACE, "events", 2) is None
    stats = await storage.get_session_sync_stats(*PLACE)
    assert (stats.truncated, stats.usage["input"]) == (1, 7)
    page = await storage.search_events("grace", model="m")
    assert page.documents == [found]


async def test_without_an_archive_everything_works_but_payloads_of_large_lines(
    place: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with CosmosFileStorage(CosmosFileConfig(**place)) as storage:
        assert "no archive" in caplog.text
        lines = [event(0), event(1, data="x" * 500_000)]
        await storage.sync_event_lines(*WRITER, lines=lines)
        await storage.sync_event_lines(*WRITER, lines=[event(5)])
        await storage.sync_event_lines(*WRITER, lines=lines)
        assert len(await storage.get_event_lines(*PLACE)) == 2
        with pytest.raises(ArchiveMismatch, match="no archive"):
            await storage.get_whole_line(*PLACE, "events", 1)
        await check_exact(storage)
        huge = {"session_id": "run-7", "project_slug": "compiler", "x": "y" * 2_000_000}
        with pytest.raises(UserError, match="FERRY_ARCHIVE"):
            await storage.upsert_session_metadata("grace", "ship-1", huge)
        assert await storage.delete_session(*PLACE)


# ---------------------------------------------------------------- sessions


@pytest.fixture(params=["archive", "no archive"])
async def any_storage(request: pytest.FixtureRequest) -> AsyncIterator[CosmosFileStorage]:
    archive = Archive.open("memory://") if request.param == "archive" else NoArchive()
    async with CosmosFileStorage.over(SqlStore.open("sqlite://"), archive) as opened:
        yield opened


async def test_metadata_is_replaced_as_a_whole(any_storage: CosmosFileStorage) -> None:
    storage = any_storage
    first = {"session_id": "run-7", "project_slug": "compiler", "a": 1, "metadata": {"x": [1]}}
    second = {"session_id": "run-7", "project_slug": "compiler", "b": 2, "usage": None}
    for metadata in (first, second, second, first):
        await storage.upsert_session_metadata("grace", "ship-1", metadata)
        await storage.sync_transcript_lines(*WRITER, lines=[turn(0)])
        found = await storage.get_session_metadata("grace", "run-7")
        assert found is not None
        assert {k: v for k, v in found.items() if k in metadata} == metadata
        assert len(found) == len(metadata) + 5
    await check_exact(storage)


async def test_a_session_without_metadata_is_known_by_its_lines(
    any_storage: CosmosFileStorage,
) -> None:
    assert await any_storage.get_session_metadata("grace", "run-7") is None
    await any_storage.sync_event_lines(*WRITER, lines=[event(0)])
    found = await any_storage.get_session_metadata("grace", "run-7")
    assert found is not None
    assert (found["project_slug"], found["host_id"]) == ("compiler", "ship-1")


async def test_metadata_without_a_project_goes_where_the_session_is(
    any_storage: CosmosFileStorage,
) -> None:
    await any_storage.sync_event_lines(*WRITER, lines=[event(0)])
    await any_storage.upsert_session_metadata("grace", "ship-1", {"session_id": "run-7", "a": 1})
    await any_storage.upsert_session_metadata("grace", "ship-1", {"session_id": "new"})
    sessions = await any_storage.list_sessions("grace")
    assert {(s["session_id"], s["project_slug"]) for s in sessions} == {
        ("run-7", "compiler"),
        ("new", "default"),
    }


@pytest.mark.parametrize(
    "metadata", [{}, {"session_id": 5}, {"session_id": "s", "x": float("nan")}, {"session_id": ""}]
)
async def test_unusable_metadata_is_refused(
    any_storage: CosmosFileStorage, metadata: dict[str, Any]
) -> None:
    with pytest.raises(FerryError):
        await any_storage.upsert_session_metadata("grace", "ship-1", metadata)
    assert await any_storage.list_sessions("grace") == []


async def test_metadata_written_while_lines_are_synced_is_shown(
    any_storage: CosmosFileStorage,
) -> None:
    async def upsert(number: int) -> None:
        metadata = {"session_id": "run-7", "project_slug": "compiler", "n": number}
        await any_storage.upsert_session_metadata("grace", "ship-1", metadata)

    async def sync(number: int) -> None:
        await any_storage.sync_event_lines(*WRITER, lines=[event(number)], start_sequence=number)

    await asyncio.gather(*(work(n) for n in range(8) for work in (upsert, sync)))
    found = await any_storage.get_session_metadata("grace", "run-7")
    head = await head_of(any_storage)
    assert found is not None
    assert head.metadata is not None
    wanted = {"session_id": "run-7", "project_slug": "compiler", "n": found["n"]}
    assert head.metadata.length == len(orjson.dumps(wanted))
    await check_exact(any_storage)


async def test_sessions_are_listed_by_user_and_project_last_activity_first(
    storage: CosmosFileStorage,
) -> None:
    for number in range(7):
        project = "odd" if number % 2 else "even"
        place = ("grace", "ship-1", project, f"s{number}")
        await storage.sync_event_lines(*place, lines=[event(number)])
    await storage.sync_event_lines("ada", "h", "odd", "other", lines=[event(50)])
    assert [s["id"] for s in await storage.list_sessions("grace")] == [
        f"s{n}" for n in range(6, -1, -1)
    ]
    assert [s["id"] for s in await storage.list_sessions("grace", "odd")] == ["s5", "s3", "s1"]
    assert [s["id"] for s in await storage.list_sessions("grace", limit=2)] == ["s6", "s5"]
    assert await storage.list_sessions("grace", limit=0) == []
    assert await storage.list_sessions("nobody") == []
    first = await storage.list_sessions_page("grace", "even", limit=3)
    second = await storage.list_sessions_page("grace", "even", continuation=first.continuation)
    assert [s["id"] for s in first.documents + second.documents] == ["s6", "s4", "s2", "s0"]
    assert second.continuation is None


async def test_active_sessions_are_those_with_recent_lines_whose_run_goes_on(
    light: CosmosFileStorage,
) -> None:
    now = datetime.now(UTC)

    async def sync(session: str, minutes: int, event_type: str) -> None:
        ts = (now - timedelta(minutes=minutes)).isoformat()
        line = {"event": event_type, "ts": ts, "data": {}}
        await light.sync_event_lines("grace", "h", "p", session, lines=[line])

    await sync("running", 2, "tool:pre")
    await sync("ended", 1, "orchestrator:complete")
    await sync("slow", 40, "tool:pre")
    await sync("old", 300, "tool:pre")
    found = await light.get_active_sessions("grace")
    assert [s["id"] for s in found] == ["running"]
    assert found[0]["last_time"]
    hour = await light.get_active_sessions("grace", within=timedelta(hours=1))
    assert [s["id"] for s in hour] == ["running", "slow"]
    assert await light.get_active_sessions("grace", "other") == []
    assert len(await light.get_active_sessions("grace", within=timedelta(hours=9), limit=2)) == 2


# ---------------------------------------------------------------- deleting


async def test_a_deleted_session_is_gone_until_it_is_undeleted(
    storage: CosmosFileStorage,
) -> None:
    metadata = {"session_id": "run-7", "project_slug": "compiler"}
    await storage.upsert_session_metadata("grace", "ship-1", metadata)
    await storage.sync_event_lines(*WRITER, lines=[event(0), event(1)])
    assert await storage.delete_session("grace", "compiler", "nothing") is False
    assert await storage.delete_session(*PLACE) is True
    assert await storage.delete_session(*PLACE) is False
    assert await storage.get_session_metadata("grace", "run-7") is None
    assert await storage.list_sessions("grace") == []
    assert await storage.get_event_lines(*PLACE) == []
    assert (await storage.get_sync_status(*PLACE))["session_exists"] is False
    assert (await storage.search_events("grace")).documents == []
    for attempt in (
        storage.sync_event_lines(*WRITER, lines=[event(0)]),
        storage.upsert_session_metadata("grace", "ship-1", metadata),
    ):
        with pytest.raises(SessionDeleted):
            await attempt
    await check_exact(storage)
    await storage.undelete_session(*PLACE)
    await storage.sync_event_lines(*WRITER, lines=[event(3)])
    assert await storage.get_event_count(*PLACE) == 1
    await check_exact(storage)


# ---------------------------------------------------------------- search


async def test_events_are_searched_by_what_they_say(storage: CosmosFileStorage) -> None:
    calls = {"tool_name": "grep"}, {"model": "m-1", "provider": "p-1"}
    events = [
        event(0, data=calls[0], status="error"),
        event(1, data=calls[1], event="llm:response"),
        event(2, lvl="DEBUG"),
    ]
    await storage.sync_event_lines(*WRITER, lines=events)
    await storage.sync_event_lines("grace", "h", "other", "s2", lines=[event(9)])

    async def found(**filters: Any) -> list[int]:
        page = await storage.search_events("grace", **filters)
        return [document["sequence"] for document in page.documents]

    assert await found() == [0, 2, 1, 0]
    assert await found(project_slug="compiler") == [2, 1, 0]
    assert await found(project_slug="compiler", session_id="run-7", level="INFO") == [1, 0]
    assert await found(event_type="llm:response") == [1]
    assert await found(tool_name="grep", status="error") == [0]
    assert await found(model="m-1", provider="p-1") == [1]
    assert await found(start_date="2026-03-01T10:00:02Z") == [0, 2]
    assert await found(start_date="2026-03-01", end_date="2026-03-01T11:00:02+01:00") == [1, 0]
    assert await found(start_date=datetime(2026, 3, 1, 10, 0, 9, tzinfo=UTC)) == [0]
    page = await storage.search_events("grace", limit=3)
    rest = await storage.search_events("grace", limit=3, continuation=page.continuation)
    assert len(page.documents + rest.documents) == 4
    assert rest.continuation is None


@pytest.mark.parametrize("filters", [{"session_id": "s"}, {"start_date": "yesterday"}])
async def test_a_search_that_makes_no_sense_is_the_callers_error(
    light: CosmosFileStorage, filters: dict[str, str]
) -> None:
    with pytest.raises(UserError):
        await light.search_events("grace", **filters)


# ---------------------------------------------------------------- beside a fleet


async def test_lines_of_a_fleet_and_of_this_api_meet_in_one_session(
    light: CosmosFileStorage,
) -> None:
    archive = light._writer.archive
    ingest = Ingest(light._store, archive, Archive.open("memory://"), clock=lambda: schedules.NOW)
    shipped = [schedules.line(n) for n in range(4)]
    broken = [shipped[0], b"not json", shipped[2], shipped[3]]
    await ingest.take_in([schedules.message(KEY, broken, whole=broken)])
    gaps = await light.find_missing_sequences(*PLACE)
    assert list(gaps.event_quarantined_sequences) == [1]
    assert not gaps.event_missing_sequences
    await light.sync_event_lines(*WRITER, lines=[event(1), event(2)], start_sequence=1)
    found = await light.get_event_lines(*PLACE)
    assert [line.get("number") for line in found] == [0, None, None, 3]
    assert (await light._store.list_quarantined()).documents == []
    await check_exact(light)
    lines = (await exported(light, "events")).splitlines()
    assert lines == [shipped[0], orjson.dumps(event(1)), orjson.dumps(event(2)), shipped[3]]
    await ingest.take_in([schedules.message(KEY, shipped, whole=shipped)])
    assert await light.get_event_lines(*PLACE) == found
    assert list((await head_of(light)).stream("events").conflicts) == [1, 2]
    await check_exact(light)


async def test_a_newer_generation_of_a_fleet_is_what_is_written_to(
    light: CosmosFileStorage,
) -> None:
    archive = light._writer.archive
    ingest = Ingest(light._store, archive, Archive.open("memory://"), clock=lambda: schedules.NOW)
    await light.sync_event_lines(*WRITER, lines=[event(n) for n in range(5)])
    newer = [schedules.line(n) for n in range(2)]
    await ingest.take_in([schedules.message(KEY, newer, whole=newer, generation=2)])
    assert await light.get_event_count(*PLACE) == 2
    await light.sync_event_lines(*WRITER, lines=[event(7)], start_sequence=2)
    found = await light.get_event_lines(*PLACE)
    assert [line["id"] for line in found] == [f"run-7~2_evt_{n}" for n in range(3)]
    await check_exact(light)


# ---------------------------------------------------------------- what the library left


async def test_a_session_that_the_library_wrote_is_taken_over_by_the_next_sync(
    storage: CosmosFileStorage,
) -> None:
    """Its documents have the documented fields and no others, and there is no head."""
    place = {"user_id": "grace", "project_slug": "compiler", "session_id": "run-7"}
    written = {"host_id": "old", "synced_at": "2025-01-01T00:00:00+00:00"}
    session = {"id": "run-7", "_type": "session", "bundle": "navy", **place, **written}
    await storage._store.write_item("sessions", session, None)
    line = {"partition_key": "grace|compiler|run-7", "_type": "event", **place, **written}
    size = {"data_truncated": False, "data_size_bytes": 150}
    left = [event(n) | line | size | {"id": f"run-7_evt_{n}", "sequence": n} for n in range(3)]
    made = [Document(Facts(n, bytes(32), 0), orjson.dumps(one)) for n, one in enumerate(left)]
    await storage._store.create_lines(KEY, "events", 0, made)
    known = await storage.get_session_metadata("grace", "run-7")
    assert known is not None
    assert known["bundle"] == "navy"
    assert await storage.get_event_count(*PLACE) == 0
    await storage.sync_event_lines(*WRITER, lines=[event(n) for n in range(5)])
    assert [one["host_id"] for one in await storage.get_event_lines(*PLACE)] == ["ship-1"] * 5
    assert await storage.get_event_count(*PLACE) == 5
    await check_exact(storage)
    metadata = {"session_id": "run-7", "project_slug": "compiler", "bundle": "new"}
    await storage.upsert_session_metadata("grace", "ship-1", metadata)
    (listed,) = await storage.list_sessions("grace")
    assert listed["bundle"] == "new"


# ---------------------------------------------------------------- the guide

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "amplifier-session-storage.md"
DOCUMENTED = {
    "initialize": [],
    "close": [],
    "verify_connection": [],
    "upsert_session_metadata": ["user_id", "host_id", "metadata"],
    "get_session_metadata": ["user_id", "session_id"],
    "list_sessions": ["user_id", "project_slug", "limit"],
    "delete_session": ["user_id", "project_slug", "session_id"],
    **{
        f"sync_{name}_lines": [
            *("user_id", "host_id", "project_slug", "session_id", "lines", "start_sequence")
        ]
        for name in ("transcript", "event")
    },
    **{
        f"get_{name}_lines": ["user_id", "project_slug", "session_id", "after_sequence"]
        for name in ("transcript", "event")
    },
    **{
        method: ["user_id", "project_slug", "session_id"]
        for method in (
            *("get_transcript_count", "get_last_transcript_sequence", "get_last_transcript_ts"),
            *("get_event_count", "get_last_event_sequence", "get_last_event_ts"),
            *("get_sync_status", "make_partition_key"),
        )
    },
}


@pytest.mark.parametrize("method", DOCUMENTED)
def test_a_documented_method_takes_the_documented_arguments(method: str) -> None:
    function = getattr(CosmosFileStorage, method)
    taken = [name for name in inspect.signature(function).parameters if name != "self"]
    assert taken == DOCUMENTED[method]
    is_static = method == "make_partition_key"
    assert inspect.iscoroutinefunction(function) is not is_static


def test_every_method_is_in_the_guide() -> None:
    page = GUIDE.read_text(encoding="utf-8")
    public = [name for name in vars(CosmosFileStorage) if not name.startswith("_")]
    assert set(DOCUMENTED) <= set(public)
    assert [name for name in public if f"{name}(" not in page and f"`{name}`" not in page] == [
        "over"
    ]


async def test_the_example_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("FERRY_STORE", store)
    (example,) = re.findall(r"```python\n(import asyncio.*?)```", GUIDE.read_text(), re.DOTALL)
    for _ in range(2):
        await asyncio.to_thread(exec, compile(example, str(GUIDE), "exec"), {})
    async with CosmosFileStorage(CosmosFileConfig(endpoint=store)) as storage:
        (found,) = await storage.get_event_lines(*PLACE)
    assert found["event"] == "session:start"
