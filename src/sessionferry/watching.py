"""What nobody else notices: messages that wait, hosts that are silent, lines that are missing.

The timers in function_app.py call this; each look ends in one log line, from which the alerts in
infra/modules/alerts.bicep read their numbers.
"""

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from azure.core.exceptions import AzureError

from sessionferry import hosts, telemetry
from sessionferry.errors import ItemChanged, TransientError
from sessionferry.heads import HEAD_ID, Head
from sessionferry.identity import STREAMS
from sessionferry.preview import visible
from sessionferry.queue_client import open_client
from sessionferry.reconciling import SETTLED_AFTER, Reconciled, reconcile
from sessionferry.settings import Settings, endpoints
from sessionferry.store import ItemContainer, Store

log = logging.getLogger(__name__)

SILENT_AFTER = timedelta(days=3)
"""A host that has said nothing for so long is silent: longer than a weekend."""
FORGOTTEN_AFTER = timedelta(days=30)
"""A host that has said nothing for so long was retired, and is no longer named."""
WATCHED_FOR = timedelta(hours=26)
"""Sessions whose last line is older are not looked at again: more than a day, so that each is."""
MOST_SESSIONS = 20_000
"""Sessions that are looked at, newest first."""
RECONCILE_SECONDS = 120.0
"""How long what hosts say is compared: well below the invocation's limit of ten minutes."""
_NAMED = 10


class StoreLook(NamedTuple):
    """What a look at the store found.

    `unbalanced` names the partitions of sessions that lack lines: by a gap in their head, or
    because a host sent more than the store has. `missing_lines` are those that hosts sent.
    """

    hosts: int
    silent_hosts: list[str]
    sessions: int
    unbalanced: list[str]
    statements: int
    missing_lines: int


async def watch_queue(settings: Settings) -> float:
    """Log, and return, how many seconds the queue's oldest message has waited; 0 without any.

    Raises `TransientError` when the queue does not answer.
    """
    enqueued = await _oldest(settings)
    seconds = max(0.0, time.time() - enqueued.timestamp()) if enqueued else 0.0
    log.info(
        "queue watched: oldest_message_seconds=%d",
        seconds,
        extra={"event": "queue_watched", "oldest_message_seconds": seconds},
    )
    return seconds


async def watch_store(store: Store, now: datetime) -> StoreLook:
    """Log, and return, which hosts are silent and which sessions lack lines."""
    books = await reconcile(store, now, seconds=RECONCILE_SECONDS)
    count, silent_hosts = await _look_at_hosts(store, now, books)
    said = {short.statement.partition_key: str(short) for short in books.shortfalls}
    sessions, gaps = await _look_at_sessions(store, now)
    unbalanced = [*said, *(partition for partition in gaps if partition not in said)]
    missing = books.missing_lines
    look = StoreLook(count, silent_hosts, sessions, unbalanced, books.statements, missing)
    log.info(
        "store watched: hosts=%d silent_hosts=%d sessions=%d unbalanced=%d statements=%d"
        " missing_lines=%d complete=%s",
        *(count, len(silent_hosts), sessions, len(unbalanced), books.statements, missing),
        books.is_complete,
        extra={"event": "store_watched", **look._asdict(), "complete": books.is_complete},
    )
    telemetry.level("ferry_ledger_missing", missing)
    telemetry.level("ferry_ledger_unbalanced", len(unbalanced))
    for name in silent_hosts[:_NAMED]:
        log.warning("silent host: %s", name)
    for partition in unbalanced[:_NAMED]:
        log.warning("unbalanced session: %s", said.get(partition, visible(partition)))
    return look


def lacks_lines(head: Head) -> bool:
    """Whether a head has a gap: lines below its greatest that are neither here nor there."""
    if head.tombstone is not None:
        return False
    streams = [head.stream(name) for name in STREAMS]
    return any((one.stored | one.quarantined | one.pruned).gaps() for one in streams)


async def _look_at_hosts(store: Store, now: datetime, books: Reconciled) -> tuple[int, list[str]]:
    """Count the hosts, name the silent ones, and write into their documents what is missing."""
    count, silent = 0, []
    missing = books.by_host()
    async for host in _since(store, "hosts", now - FORGOTTEN_AFTER):
        count += 1
        if _time(host["last_time"]) < now - SILENT_AFTER:
            silent.append(visible(f"{host['user_id']}/{host['host_id']}"))
        lines = missing[host["user_id"], host["host_id"]]
        if books.is_complete and lines != host.get("missing", 0):
            await _note_missing(store, host, lines)
    return count, silent


async def _note_missing(store: Store, host: dict[str, Any], lines: int) -> None:
    item = await store.read_item("hosts", host["user_id"], host["id"])
    if item is None:
        return
    try:
        await store.write_item("hosts", hosts.with_missing(item.document, lines), item.etag)
    except ItemChanged:
        log.debug("a heartbeat was faster; the next look writes it")


async def _look_at_sessions(store: Store, now: datetime) -> tuple[int, list[str]]:
    """Count the sessions that had time to settle, and name those whose head has a gap."""
    sessions, gaps = 0, []
    async for session in _since(store, "sessions", now - WATCHED_FOR):
        if _time(session["last_time"]) > now - SETTLED_AFTER:
            continue
        gaps += [partition async for partition in _unbalanced(store, session)]
        sessions += 1
        if sessions == MOST_SESSIONS:
            break
    return sessions, gaps


async def _unbalanced(store: Store, session: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the partitions of a session, one per project, whose head has a gap."""
    for project in session["projects"]:
        item = await store.read_item("heads", project["partition_key"], HEAD_ID)
        if item is not None and lacks_lines(Head.from_document(item.document)):
            yield str(project["partition_key"])


async def _since(
    store: Store, container: ItemContainer, oldest: datetime
) -> AsyncIterator[dict[str, Any]]:
    """Yield a container's items, newest first, down to a time."""
    continuation = None
    while True:
        page = await store.list_items(container, limit=1000, continuation=continuation)
        for document in page.documents:
            # An item without a time sorts last: nothing after it has one.
            if not document.get("last_time") or _time(document["last_time"]) < oldest:
                return
            yield document
        continuation = page.continuation
        if continuation is None:
            return


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def _oldest(settings: Settings) -> datetime | None:
    """Peek: nothing is locked, and no delivery is counted."""
    try:
        async with contextlib.AsyncExitStack() as stack:
            client, credential = open_client(endpoints(settings))
            if credential is not None:
                stack.push_async_callback(credential.close)
            await stack.enter_async_context(client)
            receiver = client.get_queue_receiver(settings.queue)
            await stack.enter_async_context(receiver)
            waiting = await receiver.peek_messages(max_message_count=1)
    except (AzureError, OSError) as error:
        raise TransientError(f"The queue did not answer: {str(error)[:300]}") from error
    return waiting[0].enqueued_time_utc if waiting else None
