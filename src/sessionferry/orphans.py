"""Archived objects that nothing refers to: bytes that were never counted, and bytes that are spent.

A delivery puts its bytes first. When its process ends there, and its message is lost with the queue
or purged from the dead letters, the bytes lie in the archive and no head counts them: sent again,
they take their place. A message that was quarantined whole and taken in later leaves its body
behind, which is archived a second time as a batch: that one may go.
"""

import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from sessionferry import head_store
from sessionferry.archive import Archive, ArchivedObject
from sessionferry.batch import peek_key
from sessionferry.coverage import Coverage
from sessionferry.heads import Head
from sessionferry.identity import AUDIT, STREAMS, UNATTRIBUTED, session_folder
from sessionferry.replaying import entries_of
from sessionferry.store import Store

ORPHAN_DAYS = 30
"""An object that is younger may belong to a message on its way: one lives 14 days in the queue."""

Kind = Literal["uncounted", "spent"]
_LINES = re.compile(r"(\w+)/(\d{16})/lines/(\d{15})-(\d+)-\w+\Z")
_OTHER = re.compile(r"(\w+)/(\d{16})/(?:tails|unplaced)/")
_METADATA = re.compile(r"metadata/(\d{20})-\w+\Z")
_MESSAGE = re.compile(r"messages/\w+\Z")


class Orphan(NamedTuple):
    """An object that nothing refers to, and whether its bytes were ever counted."""

    key: str
    size: int
    written_at: datetime
    kind: Kind


async def find_orphans(
    store: Store, archive: Archive, now: datetime, days: float = ORPHAN_DAYS
) -> AsyncIterator[Orphan]:
    """Yield orphans that are older than so many days, session by session.

    Deleted sessions are left out: what lies under a tombstone is the sweep's.
    """
    oldest = now - timedelta(days=days)
    folder, session = "", None
    async for found in archive.objects(""):
        if found.key.startswith(f"{AUDIT}/"):
            continue
        name = _folder(found.key)
        if name != folder or session is None:
            folder, session = name, await _Session.read(store, archive, name, found.key)
        if found.written_at < oldest and (kind := session.judge(found)) is not None:
            yield Orphan(*found, kind)


class _Session:
    """What is known of the session that a folder belongs to."""

    def __init__(
        self, folder: str, head: Head | None = None, referred: set[str] | None = None
    ) -> None:
        self._prefix = f"{folder}/"
        self._head = head
        self._referred = referred

    @classmethod
    async def read(cls, store: Store, archive: Archive, folder: str, key: str) -> "_Session":
        """Read the head of the session that an object names, and what its entries refer to."""
        if folder == UNATTRIBUTED:
            return cls(folder, referred=await _referred(store, UNATTRIBUTED))
        session = peek_key(await archive.get(key))
        if session is None or session_folder(session) != folder:
            return cls(folder)
        head, _ = await head_store.read_head(store, session)
        return cls(folder, head, await _referred(store, session.partition_key))

    def judge(self, found: ArchivedObject) -> Kind | None:
        """Say what kind of orphan an object is; None for one that is not, or cannot be told."""
        name = found.key.removeprefix(self._prefix)
        if self._referred is None or found.key in self._referred:
            return None
        if self._prefix == f"{UNATTRIBUTED}/" or _MESSAGE.match(name):
            return "spent"
        if self._head is None or self._head.tombstone is not None:
            return None
        return None if _is_counted(self._head, name) else "uncounted"


def _is_counted(head: Head, name: str) -> bool:
    """Whether a head knows of an object, by its name within the session's folder."""
    if match := _METADATA.match(name):
        return head.metadata is not None and int(match[1]) <= head.metadata.revision
    match = _LINES.match(name) or _OTHER.match(name)
    if match is None or match[1] not in STREAMS:
        return True  # not a name of ours: nothing to be judged
    state = head.streams.get(match[1])
    generation = int(match[2])
    if state is None or generation > state.generation:
        return False
    if generation < state.generation or len(match.groups()) == 2:
        return True
    offset, length = int(match[3]), int(match[4])
    return length == 0 or not Coverage.of((offset, offset + length - 1)) - state.extent


async def _referred(store: Store, partition: str) -> set[str]:
    return {entry["payload_ref"]["archive_key"] async for entry in entries_of(store, partition)}


def _folder(key: str) -> str:
    parts = key.split("/")
    return UNATTRIBUTED if parts[0] == UNATTRIBUTED else "/".join(parts[:3])
