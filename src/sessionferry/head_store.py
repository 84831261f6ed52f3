"""The head in the store: read it, merge into it conditionally, and clear away what it rules out."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sessionferry.errors import ItemChanged
from sessionferry.heads import HEAD_ID, Garbage, Head
from sessionferry.identity import SessionKey
from sessionferry.store import Store

_FIRST_WAIT = 0.02  # seconds; doubles up to _LONGEST_WAIT, as simulated for 640 writers on one head
_LONGEST_WAIT = 1.0


class Versioned(NamedTuple):
    """A head and the ETag it was read with; None when it is not stored yet."""

    head: Head
    etag: str | None


async def read_head(store: Store, key: SessionKey) -> Versioned:
    """Read a session's head; an empty one if there is none."""
    item = await store.read_item("heads", key.partition_key, HEAD_ID)
    if item is None:
        return Versioned(Head.new(key), None)
    return Versioned(Head.from_document(item.document), item.etag)


async def change_head(store: Store, key: SessionKey, change: Callable[[Head], Head]) -> Head:
    """Apply a pure change to the stored head, conditionally, until nobody else was faster.

    The head is written even when the change makes no difference: only a conditional write proves
    that the head that was read was the newest (R7).
    """

    async def compute(head: Head) -> Head:
        return change(head)

    return await recompute_head(store, key, compute)


async def recompute_head(
    store: Store, key: SessionKey, compute: Callable[[Head], Awaitable[Head]]
) -> Head:
    """Like `change_head`, for a change that reads or clears away what depends on the head."""
    attempt = 0
    while True:
        head, etag = await read_head(store, key)
        changed = (await compute(head)).model_copy(update={"head_version": head.head_version + 1})
        try:
            await store.write_item("heads", changed.to_document(), etag)
        except ItemChanged:
            await asyncio.sleep(_wait(attempt))
            attempt += 1
        else:
            return changed


async def sweep(store: Store, head: Head) -> Head:
    """Delete what the head lists as garbage, then clear the list (R5). Returns the newer head."""
    if not head.garbage:
        return head
    for garbage in head.garbage:
        await _delete_garbage(store, head, garbage)
    done = set(head.garbage)
    return await change_head(store, head.key, lambda newest: _without(newest, done))


async def _delete_garbage(store: Store, head: Head, garbage: Garbage) -> None:
    partition = head.key.partition_key
    await store.delete_lines(head.key, garbage.stream, garbage.generation, garbage.lines)
    if head.tombstone is not None:
        await store.clear_quarantine(partition)
    else:
        newest = head.stream(garbage.stream).generation
        await store.clear_quarantine(partition, garbage.stream, newest)


def _without(head: Head, done: set[Garbage]) -> Head:
    left = tuple(garbage for garbage in head.garbage if garbage not in done)
    return head.model_copy(update={"garbage": left})


def _wait(attempt: int) -> float:
    return random.uniform(0.01, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt))  # noqa: S311  jitter
