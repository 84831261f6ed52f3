"""`ferry delete`, `ferry undelete` and `ferry rebuild`, over a store that nothing else uses."""

import asyncio
from pathlib import Path

import pytest

from sessionferry import head_store, heads
from sessionferry.coverage import Coverage
from sessionferry.identity import SessionKey
from sessionferry.storage import CosmosFileConfig, CosmosFileStorage
from support.commands import CommandServer
from support.stack import Ferry

LINES = [{"event": "tool:pre", "ts": f"2026-03-01T10:00:{n:02}Z"} for n in range(12)]


@pytest.fixture
def config(tmp_path: Path) -> CosmosFileConfig:
    places = {name: tmp_path / name for name in ("store.db", "archive")}
    return CosmosFileConfig(
        endpoint=f"sqlite:///{places['store.db']}", archive=places["archive"].as_uri()
    )


@pytest.fixture
def ferry(config: CosmosFileConfig, tmp_path: Path, server: CommandServer) -> Ferry:
    environment = {"FERRY_STORE": config.endpoint, "FERRY_ARCHIVE": str(config.archive)}
    return Ferry(tmp_path / "home", environment=environment, server=server)


def sync(config: CosmosFileConfig, session: str, user: str = "mara", project: str = "p") -> None:
    async def work() -> None:
        async with CosmosFileStorage(config) as storage:
            await storage.sync_event_lines(user, "host", project, session, LINES)

    asyncio.run(work())


def kept(config: CosmosFileConfig, session: str) -> list[str]:
    """Files of the archive that name the session; audit records do not count."""
    folder = Path(str(config.archive).removeprefix("file://"))
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in found if f"/{session}." in path.as_posix()]


def test_a_session_is_deleted_and_may_be_sent_again(ferry: Ferry, config: CosmosFileConfig) -> None:
    sync(config, "s1")
    sync(config, "s2")
    refused = ferry.run("delete", "s1", code=2)
    assert "12 lines" in refused.stderr
    assert "--yes" in refused.stderr
    assert kept(config, "s1")
    assert "was deleted at" in ferry.run("delete", "s1", "--yes").stdout
    assert not kept(config, "s1")
    assert kept(config, "s2")
    assert [it["session_id"] for it in ferry.run("sessions", "--json").json] == ["s2"]
    assert "No session s1 is stored" in ferry.run("delete", "s1", "--yes", code=2).stderr
    again = ferry.run("delete", "s1", "--yes", "--user", "mara", "--project", "p", "--json").json
    assert (again["deletions"], again["tombstone"]["finished"]) == (1, True)
    assert "may be sent again" in ferry.run("undelete", "s1").stdout
    assert "No deleted session s1" in ferry.run("undelete", "s1", code=2).stderr
    sync(config, "s1")
    assert len(ferry.run("sessions", "--json").json) == 2
    assert ferry.run("show", "s1", "--json").json["streams"]["events"]["stored"] == [[0, 11]]


def test_a_deletion_that_was_interrupted_is_finished(
    ferry: Ferry, config: CosmosFileConfig
) -> None:
    sync(config, "s1")
    key = SessionKey("mara", "p", "s1")

    async def interrupted() -> None:
        async with CosmosFileStorage(config) as storage:
            await head_store.change_head(
                storage._store, key, lambda head: heads.delete(head, "2026-03-02T00:00:00Z")
            )

    asyncio.run(interrupted())
    assert kept(config, "s1")
    unfinished = ferry.run("undelete", "s1", "--project", "p", code=2)
    assert "has not finished" in unfinished.stderr
    found = ferry.run("delete", "s1", "--yes", "--json").json
    assert found["tombstone"] == {"deleted_at": "2026-03-02T00:00:00Z", "finished": True}
    assert not kept(config, "s1")
    assert ferry.run("undelete", "s1", "--json").json["tombstone"] is None


def test_which_of_several_sessions_is_meant_has_to_be_said(
    ferry: Ferry, config: CosmosFileConfig
) -> None:
    sync(config, "s1")
    sync(config, "s1", project="q")
    assert "--project q" in ferry.run("delete", "s1", "--yes", code=2).stderr
    for project in ("p", "q"):
        ferry.run("delete", "s1", "--yes", "--project", project)
    assert "--project q" in ferry.run("undelete", "s1", code=2).stderr
    ferry.run("undelete", "s1", "--project", "q")
    ferry.run("undelete", "s1")


@pytest.mark.parametrize("arguments", [("--user", "mara", "--project", "p"), ("--project", "p")])
def test_an_unknown_session_is_not_deleted(
    ferry: Ferry, config: CosmosFileConfig, arguments: tuple[str, ...]
) -> None:
    sync(config, "other")
    assert "No session s1" in ferry.run("delete", "s1", "--yes", *arguments, code=2).stderr


def test_documents_that_were_lost_are_rebuilt(ferry: Ferry, config: CosmosFileConfig) -> None:
    sync(config, "s1")

    async def lose() -> None:
        async with CosmosFileStorage(config) as storage:
            await storage._store.delete_lines(
                SessionKey("mara", "p", "s1"), "events", 0, Coverage.of((3, 7))
            )
            await storage._store.delete_item("heads", "mara|p|s1", "head")

    asyncio.run(lose())
    assert "5 documents were missing" in ferry.run("rebuild", "s1").stdout
    again = ferry.run("rebuild", "s1", "--user", "mara", "--project", "p", "--json").json
    assert (again["created"], again["renewed"], again["archived"]) == (0, 12, 12)
    assert ferry.run("show", "s1", "--json").json["streams"]["events"]["stored"] == [[0, 11]]
    unknown = ferry.run("rebuild", "s9", "--user", "mara", "--project", "p", code=2)
    assert "Nothing of session s9" in unknown.stderr
