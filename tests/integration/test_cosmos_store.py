"""The Cosmos DB store when things go wrong: each fault once, at the request where it hurts."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.support.cosmos import Authority, Faults, RunningCosmos, ServiceError

from sessionferry.batch import Header
from sessionferry.coverage import Coverage
from sessionferry.documents import Document, DocumentBuilder, Position
from sessionferry.errors import ItemChanged, ThrottledError, TransientError, UserError
from sessionferry.identity import SessionKey
from sessionferry.retrying import retry
from sessionferry.store.cosmos import account, transport
from sessionferry.store.cosmos.access import Access
from sessionferry.store.cosmos.containers import CONTAINERS
from sessionferry.store.cosmos.pace import FIRST
from sessionferry.store.cosmos.store import CosmosStore

KEY = SessionKey("ada", "engine", "s")
HEAD = {"id": "head", "partition_key": "p"}


@pytest.fixture
async def store(cosmos_server: RunningCosmos, cosmos_access: Access) -> AsyncIterator[CosmosStore]:
    async with await CosmosStore.open(cosmos_access) as opened:
        cosmos_server.clear_statistics()
        yield opened
        cosmos_server.faults = Faults()


def lines(*numbers: int, key: SessionKey = KEY) -> list[Document]:
    header = Header(
        kind="lines",
        stream="events",
        user_id=key.user_id,
        host_id="host",
        project_slug=key.project_slug,
        session_id=key.session_id,
        format="amplifier",
    )
    builder = DocumentBuilder(header, "archive/key", "2026-01-01T00:00:00.000000Z")
    built = [builder.build(Position(number, 0), b'{"event":"e"}') for number in numbers]
    return [it for it in built if isinstance(it, Document)]


async def create(store: CosmosStore, *numbers: int) -> list[int]:
    return sorted(await store.create_lines(KEY, "events", 0, lines(*numbers)))


async def stored(store: CosmosStore) -> list[int]:
    return [it["sequence"] for it in await store.read_lines(KEY, "events", 0, limit=10_000)]


def requests(server: RunningCosmos, operation: str) -> int:
    """How many requests of a kind there were, whatever became of them."""
    counted = server.statistics()["requests"]
    return sum(n for name, n in counted.items() if name.startswith(f"{operation} "))


PASSING = ["429", "449", "408", "410", "500", "503", "reset_before"]


# ------------------------------------------------------------ faults that pass


@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_fault_is_not_seen_by_readers(
    store: CosmosStore, cosmos_server: RunningCosmos, fault: str
) -> None:
    etag = await store.write_item("heads", HEAD, None)
    await create(store, 1)
    for read in (
        lambda: store.read_item("heads", "p", "head"),
        lambda: store.list_items("heads"),
        lambda: store.read_lines(KEY, "events", 0),
    ):
        cosmos_server.faults = Faults(next=[fault, fault])
        assert await read()
    assert (await store.list_items("heads")).documents == [HEAD]
    assert await store.read_item("heads", "p", "head") == (HEAD, etag)


@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_fault_is_not_seen_by_writers(
    store: CosmosStore, cosmos_server: RunningCosmos, fault: str
) -> None:
    cosmos_server.faults = Faults(next=[fault, fault])
    assert await create(store, *range(250)) == []
    cosmos_server.faults = Faults(next=[fault])
    etag = await store.write_item("heads", HEAD, None)
    cosmos_server.faults = Faults(next=[fault])
    await store.write_item("heads", HEAD | {"n": 2}, etag)
    cosmos_server.faults = Faults(next=[fault])
    await store.delete_lines(KEY, "events", 0, Coverage.of((0, 100)))
    assert await stored(store) == list(range(101, 250))


@pytest.mark.parametrize("status", [429, 449, 503])
async def test_a_batch_whose_operations_fail_for_now_is_sent_again(
    store: CosmosStore, cosmos_server: RunningCosmos, status: int
) -> None:
    """The batch itself is answered with 200 or 207; its real status stands inside."""
    cosmos_server.faults = Faults(seed=3, operation_error_rates={status: 0.01})
    assert await create(store, *range(300)) == []
    cosmos_server.faults = Faults()
    assert await stored(store) == list(range(300))
    assert requests(cosmos_server, "item.batch") > 3


async def test_the_answer_to_a_batch_that_was_lost_shows_its_lines_as_stored(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    cosmos_server.faults = Faults(next=["reset_after"])
    assert await create(store, *range(50)) == list(range(50))
    assert await stored(store) == list(range(50))


async def test_the_answer_to_a_conditional_write_that_was_lost_is_a_change_by_another(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    cosmos_server.faults = Faults(next=["reset_after"])
    with pytest.raises(ItemChanged):
        await store.write_item("heads", HEAD | {"n": 1}, None)
    found = await store.read_item("heads", "p", "head")
    assert found is not None
    cosmos_server.faults = Faults(next=["reset_after"])
    with pytest.raises(ItemChanged):
        await store.write_item("heads", HEAD | {"n": 2}, found.etag)
    after = await store.read_item("heads", "p", "head")
    assert after is not None
    assert after.document["n"] == 2


async def test_the_answer_to_deletions_that_was_lost_leaves_nothing(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    await create(store, *range(30))
    cosmos_server.faults = Faults(next=["reset_after"])
    await store.delete_lines(KEY, "events", 0, Coverage.of((0, 29)))
    assert await stored(store) == []


async def test_a_batch_that_is_too_large_is_split_until_it_fits(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    cosmos_server.faults = Faults(next=["413", "413", "pass", "413"])
    assert await create(store, *range(40)) == []
    assert await stored(store) == list(range(40))


async def test_a_throttled_request_waits_as_long_as_it_was_told(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    cosmos_server.faults = Faults(next=["429"], retry_after_ms=300)
    started = time.monotonic()
    await store.read_item("heads", "p", "head")
    assert time.monotonic() - started >= 0.3
    assert requests(cosmos_server, "item.read") == 2, "the client does not retry by itself"


# ------------------------------------------------------------ faults that stay


async def test_what_does_not_pass_in_time_is_left_to_the_queue(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    """R6: the retry around it ends before the message's lock does, and nothing goes on after it."""
    cosmos_server.faults = Faults(throttle_rate=1.0, retry_after_ms=20)
    started = time.monotonic()
    with pytest.raises((ThrottledError, TransientError)):
        await retry(lambda: create(store, *range(250)), seconds=0.5)
    assert time.monotonic() - started < 5
    sent = requests(cosmos_server, "item.batch")
    cosmos_server.faults = Faults()
    await asyncio.sleep(0.2)
    assert requests(cosmos_server, "item.batch") == sent
    assert await stored(store) == []
    assert await create(store, *range(250)) == []


async def test_a_slow_server_is_given_up_and_asked_again(
    cosmos_server: RunningCosmos, cosmos_access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "READ_SECONDS", 0.3)
    async with await CosmosStore.open(cosmos_access) as store:
        cosmos_server.faults = Faults(latency_ms=3_000)
        asked = asyncio.create_task(create(store, *range(20)))
        await asyncio.sleep(0.5)
        cosmos_server.faults = Faults()
        await asked
        assert await stored(store) == list(range(20))


async def test_a_refused_identity_is_said_in_a_sentence(
    store: CosmosStore, cosmos_server: RunningCosmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosmos_server.server, "authority", Authority("b3RoZXI="))
    with pytest.raises(TransientError, match=r"refused \(401\)"):
        await store.read_item("heads", "p", "head")


# ------------------------------------------------------------ pace


async def test_a_burst_slows_down_instead_of_failing(
    store: CosmosStore, cosmos_server: RunningCosmos
) -> None:
    keys = [SessionKey("ada", "engine", f"s{n}") for n in range(60)]
    cosmos_server.faults = Faults(throttle_rate=0.5, retry_after_ms=5)
    await asyncio.gather(*(store.create_lines(key, "events", 0, lines(1, key=key)) for key in keys))
    assert store.account.pace.window.size < FIRST
    cosmos_server.faults = Faults()
    slow = store.account.pace.window.size
    for _ in range(5):
        await asyncio.gather(*(store.read_line(key, "events", 0, 1) for key in keys))
    assert store.account.pace.window.size > slow


# ------------------------------------------------------------ accounts


async def test_stores_of_one_account_share_a_client_until_the_last_is_closed(
    cosmos_access: Access,
) -> None:
    one, other = await asyncio.gather(*(CosmosStore.open(cosmos_access) for _ in range(2)))
    assert one.account is other.account
    await one.close()
    await one.close()
    await other.check()
    await other.close()
    third = await CosmosStore.open(cosmos_access)
    assert third.account is not one.account
    await third.close()


async def test_nothing_is_created_where_that_was_forbidden(cosmos_access: Access) -> None:
    forbidden = replace(cosmos_access, may_create=False)
    with pytest.raises(UserError, match="has no container"):
        await CosmosStore.open(forbidden)


async def test_a_container_with_another_partition_key_is_refused(
    cosmos_access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await CosmosStore.open(cosmos_access):
        pass
    other = replace(CONTAINERS["hosts"], partition_key="/host_id")
    monkeypatch.setitem(CONTAINERS, "hosts", other)
    with pytest.raises(UserError, match="partitioned by /user_id, not by /host_id"):
        await CosmosStore.open(cosmos_access)


async def test_an_account_that_does_not_answer_is_said_in_a_sentence(
    cosmos_access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "RETRY_SECONDS", 0.1)
    away = replace(cosmos_access, endpoint="http://127.0.0.1:9/")
    with pytest.raises(TransientError, match="Cosmos DB did not answer"):
        await CosmosStore.open(away)


class Forgetful(Authority):
    """Refuses one request, as when a token expires between two."""

    has_refused = False

    def check(self, *request: Any, **options: Any) -> None:
        if not self.has_refused:
            self.has_refused = True
            raise ServiceError(401, "The token has expired.")
        super().check(*request, **options)


async def test_a_request_whose_token_expired_is_asked_again(
    store: CosmosStore, cosmos_server: RunningCosmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client drops the token that was refused; getting another one takes a second request."""
    etag = await store.write_item("heads", HEAD, None)
    monkeypatch.setattr(cosmos_server.server, "authority", Forgetful())
    assert await store.read_item("heads", "p", "head") == (HEAD, etag)
    assert cosmos_server.server.authority.has_refused


async def test_a_client_that_marks_batches_otherwise_quarantines_nothing(
    store: CosmosStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_IS_BATCH", "x-another-header")
    monkeypatch.setattr(account, "RETRY_SECONDS", 0.1)
    with pytest.raises(TransientError, match="does not mark batches"):
        await create(store, 1)
