"""`ferry expire`, `ferry pin` and the timer, over a store that nothing else uses."""

import asyncio
from pathlib import Path

import pytest

from sessionferry.consumer import Consumer
from sessionferry.storage import CosmosFileConfig, CosmosFileStorage
from support.commands import CommandServer
from support.stack import Ferry

LINES = [
    {"event": event, "ts": f"2026-01-01T10:00:{n:02}Z"}
    for n, event in enumerate(("prompt:submit", "thinking:delta", "orchestrator:complete"))
]
POLICY = {"FERRY_RETENTION_HIDE_DAYS": "20", "FERRY_RETENTION_DELETE_DAYS": "30"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    config = CosmosFileConfig(
        endpoint=f"sqlite:///{tmp_path / 'store.db'}", archive=(tmp_path / "archive").as_uri()
    )

    async def sync() -> None:
        async with CosmosFileStorage(config) as storage:
            for session in ("s1", "s2"):
                await storage.sync_event_lines("mara", "host", "p", session, LINES)

    asyncio.run(sync())
    return {
        "FERRY_STORE": config.endpoint,
        "FERRY_ARCHIVE": str(config.archive),
        "FERRY_INBOX": (tmp_path / "inbox").as_uri(),
    }


def sessions(ferry: Ferry) -> list[str]:
    return sorted(found["session_id"] for found in ferry.run("sessions", "--json").json)


def test_what_is_old_is_hidden_when_it_is_confirmed_and_a_pin_keeps_it(
    environment: dict[str, str], tmp_path: Path, server: CommandServer
) -> None:
    off = Ferry(tmp_path / "home", environment=environment, server=server)
    assert "Retention is off" in off.run("expire").stdout
    ferry = Ferry(tmp_path / "home", environment=environment | POLICY, server=server)
    pinned = ferry.run("pin", "s2", "--user", "mara", "--json").json
    assert (pinned["project_slug"], pinned["pinned"]) == ("p", True)
    shown = ferry.run("expire", "--dry-run", "--json").json
    assert [(due["session_id"], due["steps"]) for due in shown["due"]] == [("s1", ["hide"])]
    refused = ferry.run("expire", code=2)
    assert "hide 1 sessions and delete 0 for good?" in refused.stderr
    assert "s1" in refused.stdout
    assert sessions(ferry) == ["s1", "s2"]
    assert "1 sessions were hidden and 0 deleted" in ferry.run("expire", "--yes").stdout
    assert sessions(ferry) == ["s2"]
    assert "is pinned" in ferry.run("pin", "s1", "--user", "mara").stdout
    assert sessions(ferry) == ["s1", "s2"]
    assert "is not pinned" in ferry.run("unpin", "s2", "--user", "mara").stdout
    assert ferry.run("expire", "--yes", "--json").json["hidden"] == 1
    assert sessions(ferry) == ["s1"]
    assert "No session s9 of mara" in ferry.run("pin", "s9", "--user", "mara", code=2).stderr


def test_a_policy_that_contradicts_itself_is_refused(
    environment: dict[str, str], tmp_path: Path, server: CommandServer
) -> None:
    wrong = environment | {"FERRY_RETENTION_DELETE_DAYS": "5"}
    ferry = Ferry(tmp_path / "home", environment=wrong, server=server)
    assert "needs FERRY_RETENTION_HIDE_DAYS" in ferry.run("expire", code=2).stderr


def test_the_timer_does_nothing_while_retention_is_off_and_then_what_is_due(
    environment: dict[str, str],
    tmp_path: Path,
    server: CommandServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ferry = Ferry(tmp_path / "home", environment=environment, server=server)

    async def run() -> bool:
        consumer = Consumer()
        await consumer.expire()
        opened = consumer._ingest
        if opened is not None:
            await opened.store.close()
        return opened is not None

    assert not asyncio.run(run())
    assert sessions(ferry) == ["s1", "s2"]
    monkeypatch.setenv("FERRY_RETENTION_HIDE_DAYS", "20")
    assert asyncio.run(run())
    assert sessions(ferry) == []


def test_a_hidden_session_takes_metadata_where_it_was(
    environment: dict[str, str], tmp_path: Path, server: CommandServer
) -> None:
    ferry = Ferry(tmp_path / "home", environment=environment | POLICY, server=server)
    ferry.run("expire", "--yes")
    config = CosmosFileConfig(
        endpoint=environment["FERRY_STORE"], archive=environment["FERRY_ARCHIVE"]
    )

    async def rename() -> None:
        async with CosmosFileStorage(config) as storage:
            named = {"session_id": "s1", "name": "better"}
            await storage.upsert_session_metadata("mara", "host", named)

    asyncio.run(rename())
    assert sessions(ferry) == []
    ferry.run("pin", "s1", "--user", "mara")
    (found,) = ferry.run("sessions", "--json").json
    assert [entry["project_slug"] for entry in found["projects"]] == ["p"]
    assert found["name"] == "better"
