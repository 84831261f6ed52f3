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
from sessionferry.deletion import delete_session
from sessionferry.delivery import Message
from sessionferry.errors import TransientError
from sessionferry.ingest import Ingest
from sessionferry.reconciling import SETTLED_AFTER, reconcile, write_off
from sessionferry.settings import Settings
from sessionferry.statements import Sent
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from sessionferry.watching import (
    FORGOTTEN_AFTER,
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


def beat(host: str, sent: datetime, said: Sent | None = None, revision: int = 1) -> Batch:
    """A host's sign of life, and what it says the queue took."""
    body = {"run_id": "r", "machine": "m", "hostname": host, "started_at": "x", "ledger": {}}
    fields: dict[str, object] = {"stream": None, "project_slug": None, "session_id": None}
    about = {"host_id": host, "sent_at": sent.isoformat(), "revision": revision, "line_count": 0}
    return batch(orjson.dumps(body | {"sent": said or {}}), kind="heartbeat", **fields, **about)


def said(session: str, lines: int, generation: int = 0) -> Sent:
    """What a host says of a session's events."""
    return {f"my-project|{session}": {"events": [generation, lines]}}


async def missing_of(store: Store, host: str) -> int:
    """What the host's document says is missing."""
    item = await store.read_item("hosts", "user-123", host)
    assert item is not None
    return int(item.document["missing"])


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
    looks = [text for text in caplog.messages if text.startswith("store watched: ")]
    assert "hosts=0 silent_hosts=0 sessions=1 unbalanced=1 statements=0" in looks[-1]
    assert f"unbalanced session: {missing.header.key.partition_key}" in caplog.messages


async def test_a_quarantined_line_is_not_missing(store: Store) -> None:
    good = orjson.dumps({"ts": LAST_LINE.isoformat(), "event": "e"}) + b"\n"
    await take(store, batch(b"not json\n" + good))
    look = await watch_store(store, LAST_LINE + SETTLED_AFTER * 2)
    assert (look.sessions, look.unbalanced) == (1, [])


LATER = timedelta(hours=2)


async def test_a_lost_end_and_a_lost_session_are_named_by_host_stream_and_lines(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    told = said("sess-abc", 5) | said("sess-lost", 2)
    await take(store, lines(0, 3), beat("laptop-7", now, told))
    assert (await watch_store(store, now)).unbalanced == []
    look = await watch_store(store, now + LATER)
    assert sorted(look.unbalanced) == [
        "user-123|my-project|sess-abc",
        "user-123|my-project|sess-lost",
    ]
    assert (look.statements, look.missing_lines) == (2, 4)
    assert (
        "unbalanced session: user-123|my-project|sess-abc events: host laptop-7 sent 5 lines of"
        " generation 0; 3 are stored, 0 quarantined, 2 missing: 3 to 4" in caplog.messages
    )
    assert await missing_of(store, "laptop-7") == 4


async def test_a_shortfall_is_named_by_every_look_until_its_lines_are_there(store: Store) -> None:
    now = datetime.now(UTC)
    await take(store, lines(0, 3), beat("laptop-7", now, said("sess-abc", 5)))
    for days in (1, 2, 3):
        assert len((await watch_store(store, now + timedelta(days=days))).unbalanced) == 1
    await take(store, lines(3, 2))
    assert (await watch_store(store, now + LATER)).unbalanced == []
    assert await missing_of(store, "laptop-7") == 0
    assert (await watch_store(store, now + LATER)).statements == 0


async def test_what_was_said_later_stands_for_what_was_said_before(store: Store) -> None:
    now = datetime.now(UTC)
    beats = [beat("h", now, said("sess-abc", count), count) for count in (5, 7, 9)]
    await take(store, lines(0, 3), *beats, beats[0])
    assert (await watch_store(store, now + LATER)).missing_lines == 6
    assert (await watch_store(store, now + LATER)).statements == 1
    await take(store, lines(3, 6))
    assert (await watch_store(store, now + LATER)).missing_lines == 0


async def test_deleted_and_replaced_sessions_lack_nothing(store: Store) -> None:
    now = datetime.now(UTC)
    archive = Archive.open("memory://")
    gone = lines(0, 1, session_id="gone")
    await take(store, gone, lines(0, 1, generation=7))
    await delete_session(store, archive, gone.header.key)
    await take(store, beat("h", now, said("gone", 9) | said("sess-abc", 9, generation=2)))
    look = await watch_store(store, now + LATER)
    assert (look.statements, look.unbalanced) == (2, [])


async def test_quarantined_messages_are_named_beside_what_is_missing(store: Store) -> None:
    now = datetime.now(UTC)
    await take(store, lines(0, 2, v=99), beat("h", now, said("sess-abc", 2)))
    found = await reconcile(store, now + LATER)
    assert [it.set_aside for it in found.shortfalls] == [1]


async def test_names_that_hosts_choose_cannot_forge_a_line_of_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    evil = "h\nstore watched: unbalanced=0\x1b[2J"
    await take(store, beat(evil, now - SILENT_AFTER * 2, said("sess-abc", 1)))
    await watch_store(store, now + LATER)
    told = [text for text in caplog.messages if "unbalanced=0" in text]
    assert len(told) == 2
    assert not [text for text in told if "\n" in text or "\x1b" in text]


async def test_what_is_written_off_is_not_looked_for_any_more(store: Store) -> None:
    now = datetime.now(UTC)
    await take(store, beat("h", now, said("sess-abc", 2) | said("other", 3)))
    gone = await write_off(store, lambda _user, _host, it: it.partition_key.endswith("|other"))
    assert [statement.lines for statement in gone] == [3]
    assert (await watch_store(store, now + LATER)).missing_lines == 2


async def test_a_look_that_takes_too_long_goes_on_with_the_next(store: Store) -> None:
    now = datetime.now(UTC)
    beats = [beat("h", now, said("sess-abc", 1), count) for count in range(3)]
    await take(store, lines(0, 1), *beats)
    found = await reconcile(store, now + LATER, seconds=-1)
    assert (found.is_complete, found.statements) == (False, 0)
    assert (await reconcile(store, now + LATER, seconds=60)).is_complete


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
