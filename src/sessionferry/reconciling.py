"""Reconciling: what hosts say the queue took, against what the heads have.

A gap in a head shows lines that are missing below its last one. A lost end of a file, or a session
of which nothing ever arrived, shows only here. Statements wait in the store until they had time to
settle; what is accounted for is forgotten, and what is not stays, and is named by every look.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sessionferry import statements
from sessionferry.batch import Header, utc_now
from sessionferry.coverage import Coverage
from sessionferry.errors import ItemChanged
from sessionferry.heads import HEAD_ID, Head
from sessionferry.preview import visible
from sessionferry.statements import Statement
from sessionferry.store import ItemContainer, Store

log = logging.getLogger(__name__)

SETTLED_AFTER = timedelta(hours=1)
"""Lines arrive in any order, and behind what is said of them; what is missing after so long is
missing."""
NEVER_EXPIRES = -1
_CONTAINER: Final[ItemContainer] = "attempts"
PARTITION = "statements"
_PAGE = 50
_AT_A_TIME = 16


class Shortfall(NamedTuple):
    """Lines of one stream that a host sent, and that are neither stored nor quarantined."""

    user_id: str
    host_id: str
    statement: Statement
    stored: int
    quarantined: int
    missing: Coverage
    set_aside: int
    """Whole messages of the session that lie in the quarantine: the lines may be in them."""

    @property
    def host(self) -> tuple[str, str]:
        """The key of the host's document."""
        return (self.user_id, self.host_id)

    def __str__(self) -> str:
        statement, ranges = self.statement, self.missing.ranges
        shown = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in ranges[:3])
        more = f" and {len(ranges) - 3} more ranges" if len(ranges) > 3 else ""
        aside = f"; {self.set_aside} whole messages are quarantined" if self.set_aside else ""
        return (
            f"{visible(statement.partition_key)} {statement.stream}: host"
            f" {visible(self.host_id)} sent"
            f" {statement.lines} lines of generation {statement.generation};"
            f" {self.stored} are stored, {self.quarantined} quarantined,"
            f" {len(self.missing)} missing: {shown}{more}{aside}"
        )


class Reconciled(NamedTuple):
    """What a look found: statements that were judged, and those that still wait."""

    statements: int
    unsettled: int
    shortfalls: list[Shortfall]
    is_complete: bool

    @property
    def missing_lines(self) -> int:
        """Lines that are missing, over all hosts."""
        return sum(len(shortfall.missing) for shortfall in self.shortfalls)

    def by_host(self) -> Counter[tuple[str, str]]:
        """Count the missing lines of each host."""
        found: Counter[tuple[str, str]] = Counter()
        for shortfall in self.shortfalls:
            found[shortfall.host] += len(shortfall.missing)
        return found


def lacking(statement: Statement, head: Head | None) -> Coverage:
    """Return the lines that were sent and are not accounted for.

    Nothing is lacking of a deleted session, or of a generation that a newer one has replaced.
    """
    sent = Coverage.of((0, statement.lines - 1))
    if head is None:
        return sent
    state = head.stream(statement.stream)
    if head.tombstone is not None or state.generation > statement.generation:
        return Coverage()
    if state.generation < statement.generation:
        return sent
    return sent - (state.stored | state.quarantined | state.pruned)


async def keep(store: Store, header: Header, batch_id: str, said: Iterable[Statement]) -> None:
    """Keep what a heartbeat says, until it is judged; once more is harmless."""
    sent = statements.render(said)
    if not sent:
        return
    document = {
        "id": batch_id,
        "partition_key": PARTITION,
        "_type": "statements",
        "user_id": header.user_id,
        "host_id": header.host_id,
        "last_time": utc_now(),
        "sent": sent,
        # Other items of this container expire.
        "ttl": NEVER_EXPIRES,
    }
    try:
        await store.write_item(_CONTAINER, document, None)
    except ItemChanged:
        log.debug("this heartbeat's statements are known")


async def reconcile(
    store: Store,
    now: datetime,
    *,
    settled_after: timedelta = SETTLED_AFTER,
    seconds: float | None = None,
) -> Reconciled:
    """Judge what was said, newest first, and forget what is accounted for.

    With `seconds` it stops after that time. What it has forgotten by then is not looked at again,
    so that the next look comes further.
    """
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    found: dict[tuple[str, str, str, str], Shortfall] = {}
    judged = unsettled = 0
    is_complete = True
    async for document in _documents(store):
        if until is not None and loop.time() > until:
            is_complete = False
            break
        said = statements.parse(document["sent"])
        if datetime.fromisoformat(document["last_time"]) > now - settled_after:
            unsettled += len(said)
            continue
        judged += len(said)
        kept = []
        for shortfall in await _judge(store, document, said):
            place = (*shortfall.host, *shortfall.statement[:2])
            if place in found and found[place].statement.reach >= shortfall.statement.reach:
                continue
            found[place] = shortfall
            kept.append(shortfall.statement)
        await _keep_only(store, document, kept)
    return Reconciled(judged, unsettled, list(found.values()), is_complete)


async def write_off(
    store: Store, is_meant: Callable[[str, str, Statement], bool]
) -> list[Statement]:
    """Forget statements, by user, host and statement: their lines will not come any more."""
    forgotten = []
    async for document in _documents(store):
        named = document["user_id"], document["host_id"]
        said = statements.parse(document["sent"])
        meant = [statement for statement in said if is_meant(*named, statement)]
        if meant:
            await _keep_only(store, document, [it for it in said if it not in meant])
            forgotten += meant
    return forgotten


async def _documents(store: Store) -> AsyncIterator[dict[str, Any]]:
    token: str | None = None
    while True:
        page = await store.list_items(
            _CONTAINER, partition=PARTITION, limit=_PAGE, continuation=token
        )
        for document in page.documents:
            yield document
        token = page.continuation
        if token is None:
            return


async def _judge(
    store: Store, document: dict[str, Any], said: Iterable[Statement]
) -> list[Shortfall]:
    """Compare a heartbeat's statements with the heads, each head read once."""
    gate = asyncio.Semaphore(_AT_A_TIME)
    by_session: dict[str, list[Statement]] = {}
    for statement in said:
        by_session.setdefault(statement.partition_key, []).append(statement)

    async def judge(partition: str, of_session: list[Statement]) -> list[Shortfall]:
        async with gate:
            item = await store.read_item("heads", partition, HEAD_ID)
            head = Head.from_document(item.document) if item is not None else None
            judged = [(it, lacking(it, head)) for it in of_session]
            short = [(it, missing) for it, missing in judged if missing]
            set_aside = await _whole_messages(store, partition) if short else 0
        return [_shortfall(document, head, *one, set_aside) for one in short]

    judged = await asyncio.gather(*(judge(*session) for session in by_session.items()))
    return [shortfall for of_session in judged for shortfall in of_session]


def _shortfall(
    document: dict[str, Any],
    head: Head | None,
    statement: Statement,
    missing: Coverage,
    set_aside: int,
) -> Shortfall:
    own = Coverage.of((0, statement.lines - 1))
    stored = quarantined = Coverage()
    if head is not None and head.stream(statement.stream).generation == statement.generation:
        state = head.stream(statement.stream)
        stored, quarantined = own & (state.stored | state.pruned), own & state.quarantined
    named = document["user_id"], document["host_id"]
    return Shortfall(*named, statement, len(stored), len(quarantined), missing, set_aside)


async def _whole_messages(store: Store, partition: str) -> int:
    page = await store.list_quarantined(partition, limit=500)
    return sum(entry["_type"] == "quarantined_message" for entry in page.documents)


async def _keep_only(store: Store, document: dict[str, Any], kept: list[Statement]) -> None:
    """Forget the other statements of a heartbeat; nobody else changes it but another look."""
    if not kept:
        await store.delete_item(_CONTAINER, PARTITION, document["id"])
        return
    sent = statements.render(kept)
    if sent == document["sent"]:
        return
    item = await store.read_item(_CONTAINER, PARTITION, document["id"])
    if item is None:
        return
    try:
        await store.write_item(_CONTAINER, item.document | {"sent": sent}, item.etag)
    except ItemChanged:
        log.debug("another look was faster")
