"""Replaying the quarantine: what was set aside goes through the newest code.

The bytes are sent to the queue again, out of the archive, and take the way of every message. Ingest
deletes the entries of what is stored now, and writes the others anew, with the time of its verdict.
So a replay that was interrupted has lost nothing, and one that was not needed changed nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sessionferry.archive import Archive, hydrate
from sessionferry.batch import Limits, compress, decode
from sessionferry.errors import BadBatch, PermanentError
from sessionferry.pacing import Pace
from sessionferry.packing import RAW_BYTES, Packed
from sessionferry.publisher import Publisher
from sessionferry.quarantine import CONFLICT
from sessionferry.store import Store

Entry = dict[str, Any]

_POLL_SECONDS = 0.5
_PAGE = 500


@dataclass(slots=True)
class Unit:
    """One message that a replay sends: a whole one, or the batch that some lines are in."""

    entries: list[Entry]

    @property
    def is_whole(self) -> bool:
        """Whether the message was quarantined whole, rather than some of its lines."""
        return bool(self.entries[0]["payload_ref"].get("raw"))

    @property
    def archive_key(self) -> str:
        """Where its bytes lie."""
        return str(self.entries[0]["payload_ref"]["archive_key"])


@dataclass(slots=True)
class Replay:
    """What is to be replayed, and what has become of it so far; entries by partition and id."""

    units: list[Unit]
    conflicts: list[Entry] = field(default_factory=list)
    sent: list[Unit] = field(default_factory=list)
    failed: list[tuple[Unit, str]] = field(default_factory=list)
    left: dict[tuple[str, str], Entry] = field(default_factory=dict)
    waiting: set[tuple[str, str]] = field(default_factory=set)

    @property
    def sent_entries(self) -> int:
        """Entries whose bytes were sent."""
        return sum(len(unit.entries) for unit in self.sent)

    @property
    def counts(self) -> dict[str, int]:
        """The sums, for records and for people."""
        staying = len(self.left) + len(self.waiting)
        return {
            "messages": len(self.sent),
            "entries": self.sent_entries,
            "cleared": self.sent_entries - staying,
            "stay": len(self.left),
            "waiting": len(self.waiting),
            "failed": sum(len(unit.entries) for unit, _ in self.failed),
            "conflicts": len(self.conflicts),
        }


def plan(entries: Iterable[Entry]) -> Replay:
    """Group entries by the message that brings them back; a batch is sent once for all its lines.

    Conflicts are left out: whatever is replayed, the line that is stored stays (R1).
    """
    units: dict[str, Unit] = {}
    conflicts = []
    for entry in entries:
        if entry["reason"] == CONFLICT:
            conflicts.append(entry)
            continue
        units.setdefault(str(entry["payload_ref"]["archive_key"]), Unit([])).entries.append(entry)
    return Replay(list(units.values()), conflicts)


async def send(
    replay: Replay,
    archive: Archive,
    publisher: Publisher,
    *,
    rate: float,
    advance: Callable[[int], None],
) -> None:
    """Send what is planned, at most `rate` messages a second.

    `replay` is filled in as it goes, so that it holds whatever ends this.
    """
    pace = Pace(rate or 0)
    for unit in replay.units:
        await pace.wait()
        try:
            await _send_unit(unit, archive, publisher)
        except PermanentError as error:
            replay.failed.append((unit, str(error)))
        else:
            replay.sent.append(unit)
            replay.waiting |= {_place(entry) for entry in unit.entries}
        advance(1)


async def await_verdicts(replay: Replay, store: Store, seconds: float) -> None:
    """Wait until ingest has judged what was sent: its entry is gone, or was written anew."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    before = {_place(entry): entry for unit in replay.sent for entry in unit.entries}
    while replay.waiting:
        for partition in sorted({partition for partition, _ in replay.waiting}):
            found = {entry["id"]: entry async for entry in entries_of(store, partition)}
            for place in [place for place in replay.waiting if place[0] == partition]:
                entry = found.get(place[1])
                if entry is None:
                    replay.waiting.discard(place)
                elif entry["created_at"] != before[place]["created_at"]:
                    replay.waiting.discard(place)
                    replay.left[place] = entry
        if not replay.waiting or loop.time() > until:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def entries_of(store: Store, partition: str | None = None) -> AsyncIterator[Entry]:
    """Yield quarantine entries, newest first: a partition's, or all."""
    token: str | None = None
    while True:
        page = await store.list_quarantined(partition, limit=_PAGE, continuation=token)
        for entry in page.documents:
            yield entry
        token = page.continuation
        if token is None:
            return


async def _send_unit(unit: Unit, archive: Archive, publisher: Publisher) -> None:
    if unit.is_whole:
        entry = unit.entries[0]
        body = await hydrate(archive, entry)
        name = str(entry.get("message_id") or "")
        await publisher.send_again(body, name, entry.get("content_encoding"))
        return
    await send_archived(unit.archive_key, archive, publisher)


async def send_archived(key: str, archive: Archive, publisher: Publisher) -> None:
    """Send an archived batch to the queue; raises `PermanentError` when it is none."""
    body = await archive.get(key)
    try:
        batch = decode(body, limits=Limits(inline_bytes=Limits().claimed_bytes))
    except BadBatch as error:
        raise PermanentError(f"The archived object is no batch: {error}") from None
    if len(body) <= publisher.limit and batch.header.length <= RAW_BYTES:
        await publisher.send_again(body, batch.id)
        return
    # As it came through the inbox, it goes through the inbox.
    await publisher.send(Packed(batch.header, compress(batch.payload, "zstd"), batch.id))
    await publisher.flush()


def _place(entry: Entry) -> tuple[str, str]:
    return (str(entry["partition_key"]), str(entry["id"]))
