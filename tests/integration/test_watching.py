"""What the timers see, on a real store and a real queue; alerts read their numbers from the log."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from sessionferry.archive import Archive
from sessionferry.batch import Batch, encode
from sessionferry.delivery import Message
from sessionferry.errors import TransientError
from sessionferry.ingest import Ingest
from sessionferry.settings import Settings
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from sessionferry.watching import (
    FORGOTTEN_AFTER,
    SETTLED_AFTER,
    SILENT_AFTER,
    watch_queue,
    watch_store,
)
from support.broker import RunningBroker
from support.cosmos_stores import cosmos_server, cosmos_url
from support.strategies import batch

LAST_LINE = datetime(2026, 7, 1, 12, tzinfo=UTC)
QUEUE = {"name": "sessions", "lockDuration": "PT1M"}


__all__ = ["cosmos_server", "cosmos_url"]


@pytest.fixture(params=["sqlite", "cosmos"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    is_sqlite = request.param == "sqlite"
    url = "sqlite://" if is_sqlite else request.getfixturevalue("cosmos_url")
    async with await open_store(url) as opened:
        yield opened


async def take(store: Store, *batches: Batch) -> None:
    """Take batches in, as the function app does."""
    ingest = Ingest(store, Archive.open("memory://"), Archive.open("memory://"))
    await ingest.take_in([Message(body=encode(one), message_id=one.id) for one in batches])


def lines(first: int, count: int, **changes: object) -> Batch:
    """Lines of a session, all of one length."""
    one = orjson.dumps({"ts": LAST_LINE.isoformat(), "event": "e"}) + b"\n"
    place = {"start_sequence": first, "offset": first * len(one)}
    return batch(one * count, **(place | changes))


def beat(host: str, sent: datetime) -> Batch:
    """A host's sign of life."""
    body = {"run_id": "r", "machine": "m", "hostname": host, "started_at": "x", "ledger": {}}
    fields: dict[str, object] = {"stream": None, "project_slug": None, "session_id": None}
    about = {"host_id": host, "sent_at": sent.isoformat(), "revision": 1, "line_count": 0}
    return batch(orjson.dumps(body), kind="heartbeat", **fields, **about)


async def test_a_session_with_all_its_lines_is_in_balance(store: Store) -> None:
    await take(store, lines(3, 2), lines(0, 3))
    look = await watch_store(store, LAST_LINE + SETTLED_AFTER * 2)
    assert (look.sessions, look.unbalanced) == (1, [])


async def test_a_session_that_lacks_lines_is_named_once_it_had_time_to_settle(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    missing = lines(3, 2)
    await take(store, missing)
    assert (await watch_store(store, LAST_LINE + SETTLED_AFTER / 2)).unbalanced == []
    look = await watch_store(store, LAST_LINE + SETTLED_AFTER * 2)
    assert look.unbalanced == [missing.header.key.partition_key]
    assert "store watched: hosts=0 silent_hosts=0 sessions=1 unbalanced=1" in caplog.messages
    assert f"unbalanced session: {missing.header.key.partition_key}" in caplog.messages


async def test_a_quarantined_line_is_not_missing(store: Store) -> None:
    good = orjson.dumps({"ts": LAST_LINE.isoformat(), "event": "e"}) + b"\n"
    await take(store, batch(b"not json\n" + good))
    look = await watch_store(store, LAST_LINE + SETTLED_AFTER * 2)
    assert (look.sessions, look.unbalanced) == (1, [])


async def test_a_host_is_silent_after_a_while_and_forgotten_after_a_longer_one(
    store: Store,
) -> None:
    now = LAST_LINE
    await take(
        store,
        beat("fresh", now - timedelta(hours=1)),
        beat("quiet", now - SILENT_AFTER - timedelta(hours=1)),
        beat("retired", now - FORGOTTEN_AFTER - timedelta(hours=1)),
    )
    look = await watch_store(store, now)
    assert look.hosts == 2
    assert [name.rpartition("/")[2] for name in look.silent_hosts] == ["quiet"]


async def test_the_oldest_message_is_seen_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sessionferry")
    with RunningBroker(tmp_path, [QUEUE]) as broker:
        settings = Settings.read(connection=broker.connection_string)
        assert await watch_queue(settings) == 0
        client = ServiceBusClient.from_connection_string(broker.connection_string)
        with client, client.get_queue_sender("sessions") as sender:
            sender.send_messages(ServiceBusMessage(b"old"))
            await asyncio.sleep(1.1)
            sender.send_messages(ServiceBusMessage(b"new"))
            seconds = await watch_queue(settings)
            assert 1 <= seconds < 60
            with client.get_queue_receiver("sessions", max_wait_time=5) as receiver:
                (taken,) = receiver.receive_messages(max_message_count=1)
                assert str(taken) == "old"
        said = [text for text in caplog.messages if text.startswith("queue watched: ")]
        numbers = [re.findall(r"oldest_message_seconds=([0-9]+)", text) for text in said]
        assert numbers == [["0"], [str(int(seconds))]]


async def test_a_queue_that_does_not_answer_fails_the_look(tmp_path: Path) -> None:
    with RunningBroker(tmp_path, [QUEUE]) as broker:
        settings = Settings.read(connection=broker.connection_string)
    with pytest.raises(TransientError, match="The queue did not answer"):
        await watch_queue(settings)
