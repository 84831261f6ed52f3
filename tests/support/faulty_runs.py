"""Many messages, in any order and some twice, through a store that fails: what is left?"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from sessionferry.archive import Archive
from sessionferry.delivery import Message
from sessionferry.errors import FerryError
from sessionferry.identity import SessionKey
from sessionferry.ingest import Ingest
from sessionferry.store import Store
from support.schedules import MemoryArchive, MemoryStore, World, line, message, metadata, tail

LOCK = 300.0
INVOCATION = 16
"""Messages that are handled together, as host.json says."""
WORKERS = 8
LINES = 20
"""Lines of a session."""


def fleet(sessions: int, seed: int) -> tuple[list[SessionKey], list[Message]]:
    """Sessions with broken lines, batches that overlap, metadata, tails and rewritten files."""
    chance = random.Random(seed)
    keys = [SessionKey(f"user{n % 7}", f"project{n % 3}", f"s{n}") for n in range(sessions)]
    return keys, [sent for key in keys for sent in _session(key, chance)]


def _session(key: SessionKey, chance: random.Random) -> list[Message]:
    sent = _file(key, chance, 0)
    if chance.random() < 0.1:
        sent += _file(key, chance, 1)
    sent += [metadata(key, revision, name=f"name {revision}") for revision in (1, 2)]
    return sent


def _file(key: SessionKey, chance: random.Random, generation: int) -> list[Message]:
    whole = [
        b"no json" if chance.random() < 0.05 else line(number % 5 + 7 * generation, place=number)
        for number in range(LINES)
    ]
    cuts = [0, *sorted(chance.sample(range(1, LINES), 9)), LINES]
    ranges = list(itertools.pairwise(cuts))
    ranges += [(max(0, a - 2), b) for a, b in chance.sample(ranges, 2)]
    end = sum(len(one) + 1 for one in whole)
    return [
        *(message(key, whole[a:b], a, whole=whole, generation=generation) for a, b in ranges),
        tail(key, b'{"unfin', LINES, end, generation=generation),
    ]


async def calm_run(messages: Sequence[Message]) -> World:
    """Each message once, in order, where nothing fails."""
    world = World(MemoryStore(), MemoryArchive(), MemoryArchive())
    taker = Ingest(world.store, world.archive, world.inbox, clock=lambda: _enqueued(messages[0]))
    for sent in messages:
        await taker.take_in([replace(sent, locked_until=None)])
    return world


async def troubled_run(
    open_store: Callable[[], Store], archive: Archive, messages: Sequence[Message], seed: int
) -> int:
    """Deliver in random order, some of it again, until all is completed; the deliveries it took.

    What a worker's fault leaves undone goes back to the queue, as a queue does it.
    """
    chance = random.Random(seed)
    queue = [*messages, *chance.sample(list(messages), len(messages) // 10)]
    chance.shuffle(queue)
    deliveries = 0

    async def work() -> None:
        nonlocal deliveries
        taker = Ingest(open_store(), archive, MemoryArchive(), clock=lambda: _enqueued(messages[0]))
        while queue:
            taken = [queue.pop() for _ in range(min(INVOCATION, len(queue)))]
            deliveries += len(taken)
            locked = time.monotonic() + LOCK
            try:
                await taker.take_in([replace(sent, locked_until=locked) for sent in taken])
            except FerryError:
                back = [replace(it, delivery_count=it.delivery_count + 1) for it in taken]
                queue[:0] = back

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return deliveries


def _enqueued(sent: Message) -> float:
    return sent.enqueued_at or 0.0
