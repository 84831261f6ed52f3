"""`ferry doctor`: what is wrong is said in a sentence, with what to do about it."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from azure.cosmos import PartitionKey
from azure.cosmos.aio import CosmosClient
from tests.support.cosmos import Authority, CosmosProcess, RunningCosmos

from sessionferry.doctor import Finding, Verdict, examine, stores
from sessionferry.doctor.stores import check_cosmos, check_store
from sessionferry.errors import TransientError
from sessionferry.settings import Settings
from sessionferry.store.cosmos.access import Access
from sessionferry.store.cosmos.account import Account
from sessionferry.store.cosmos.containers import CONTAINERS
from sessionferry.store.cosmos.store import CosmosStore
from support.stack import Ferry


async def examined(wanted: Access) -> dict[str, Finding]:
    return {finding.subject: finding async for finding in check_cosmos(wanted)}


def verdicts(found: dict[str, Finding]) -> set[Verdict]:
    return {finding.verdict for finding in found.values()}


@pytest.fixture
async def ready(cosmos_access: Access) -> Access:
    """An account with everything in its place; nothing may be created by looking at it."""
    async with await CosmosStore.open(cosmos_access):
        return replace(cosmos_access, may_create=False)


async def test_an_account_as_infrastructure_makes_it_is_right(ready: Access) -> None:
    found = await examined(ready)
    assert verdicts(found) == {Verdict.OK}
    assert set(found) == {"account", "clock", "rights", *(f"container {it}" for it in CONTAINERS)}


async def test_looking_leaves_nothing_behind(ready: Access) -> None:
    await examined(ready)
    async with await CosmosStore.open(ready) as store:
        assert await store.list_items("attempts") == ([], None)


async def test_missing_containers_are_named_and_nothing_is_created(cosmos_access: Access) -> None:
    found = await examined(replace(cosmos_access, may_create=False))
    assert found["container events"].verdict is Verdict.WRONG
    assert "azd provision" in found["container events"].fix
    assert "rights" not in found
    assert await examined(replace(cosmos_access, may_create=False)) == found


async def test_an_index_that_lacks_something_is_a_warning(ready: Access) -> None:
    assert ready.key is not None
    async with CosmosClient(ready.endpoint, ready.key.get_secret_value()) as client:
        await client.get_database_client(ready.database).replace_container(
            "events",
            PartitionKey(CONTAINERS["events"].partition_key),
            indexing_policy=CONTAINERS["events"].indexing_policy | {"compositeIndexes": []},
            default_ttl=-1,
        )
    found = await examined(ready)
    assert found["container events"].verdict is Verdict.WARNING
    assert "no composite index on /user_id descending" in found["container events"].said
    assert found["rights"].verdict is Verdict.OK


async def test_a_wrong_key_is_told_from_a_wrong_address(
    ready: Access, cosmos_server: RunningCosmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosmos_server.server, "authority", Authority("b3RoZXI="))
    (account,) = (await examined(ready)).values()
    assert account.verdict is Verdict.WRONG
    assert "FERRY_COSMOS_KEY" in account.fix
    monkeypatch.setattr(stores, "_PATIENCE", 0.3)
    (account,) = (await examined(replace(ready, endpoint="http://127.0.0.1:9/"))).values()
    assert account.verdict is Verdict.WRONG
    assert "FERRY_COSMOS_ENDPOINT" in account.fix


@pytest.mark.parametrize(("seconds", "said"), [(600, "behind"), (-600, "ahead of")])
async def test_a_clock_that_is_off_is_wrong(
    ready: Access, monkeypatch: pytest.MonkeyPatch, seconds: int, said: str
) -> None:
    count = Account._count

    def shifted(self: Account, response: object) -> None:
        count(self, response)
        told = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        self.last_date = (told, datetime.now(UTC).timestamp())

    monkeypatch.setattr(Account, "_count", shifted)
    clock = (await examined(ready))["clock"]
    assert clock.verdict is Verdict.WRONG
    assert said in clock.said
    assert "NTP" in clock.fix


async def test_a_store_of_another_kind_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.read(data=tmp_path, store=f"sqlite:///{tmp_path / 'store.db'}")
    assert [finding.verdict async for finding in check_store(settings)] == [Verdict.OK]
    (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
    settings = Settings.read(data=tmp_path, store=f"sqlite:///{tmp_path / 'bad.db'}")
    assert [finding.verdict async for finding in check_store(settings)] == [Verdict.WRONG]


async def test_a_check_that_fails_by_itself_does_not_stop_the_others(tmp_path: Path) -> None:
    async def check_broken_thing(_settings: Settings) -> Iterator[Finding]:
        raise TransientError("It broke.")
        yield

    async def check_whole(_settings: Settings) -> Iterator[Finding]:
        yield Finding("whole", Verdict.OK, "It is whole.")

    settings = Settings.read(data=tmp_path)
    found = [it async for it in examine(settings, (check_broken_thing, check_whole))]  # type: ignore[arg-type]
    assert [(it.subject, it.verdict) for it in found] == [
        ("broken thing", Verdict.WRONG),
        ("whole", Verdict.OK),
    ]


def test_the_command_says_it_to_people_and_to_programs(tmp_path: Path) -> None:
    with CosmosProcess() as server:
        url = f"cosmos+http://{server.endpoint.split('//')[1]}d"
        named = {"FERRY_STORE": url, "FERRY_COSMOS_CREATE": "false"}
        ferry = Ferry(tmp_path, environment=named)
        said = ferry.run("doctor", code=1).stdout
        assert "WRONG    container events: It is not there" in said
        found = ferry.run("doctor", "--json", code=1).json
        assert {it["verdict"] for it in found} == {"ok", "warning", "wrong"}
        ferry.environment["FERRY_COSMOS_CREATE"] = "true"
        assert "WRONG" not in ferry.run("doctor").stdout
