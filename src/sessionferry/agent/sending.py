"""Sending: batches go from the spool to the queue in the order of their reading.

A batch is removed from the spool only once the queue has taken it. What happens in between, a
crash or a broken link, means that it is sent again, under the same message id.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from sessionferry import telemetry
from sessionferry.agent.heart import Heart
from sessionferry.agent.spool import Sent, Spool
from sessionferry.batch import Header
from sessionferry.pacing import Pace
from sessionferry.packing import Packed
from sessionferry.statements import Statement

LOOK_AHEAD_BYTES = 1024 * 1024
"""Compressed bytes that are taken out of the spool at a time."""
STATED_BYTES = 48 * 1024
"""Bytes of statements in one heartbeat, about: the consumer takes 64 KiB with all the rest."""


class _UnderWay(NamedTuple):
    """A batch that was handed over, its trace, and since when."""

    sent: Sent
    traceparent: str | None
    since_ns: int


class Link(Protocol):
    """The part of `Publisher` that sending needs."""

    async def send(self, packed: Packed) -> list[Header]:
        """Take a batch; return what is safely in the queue now, in the order it was given."""
        ...

    async def flush(self) -> list[Header]:
        """Send what is held; return what is safely in the queue now."""
        ...


class Sending:
    """Sends a spool's batches over one link, which it must have to itself.

    `is_time` is asked now and then whether more may be sent.
    """

    def __init__(
        self,
        spool: Spool,
        link: Link,
        pace: Pace | None = None,
        is_time: Callable[[], bool] = lambda: True,
    ) -> None:
        self._spool = spool
        self._link = link
        self._pace = pace or Pace(0)
        self._is_time = is_time
        self._under_way: deque[_UnderWay | None] = deque()
        self._last = 0

    async def send_all(self) -> int:
        """Send what waits, as far as it fills messages; return how many batches that was."""
        count = 0
        while self._is_time() and (sent := await self._send_next()):
            count += sent
            await asyncio.to_thread(self._spool.settle)
        return count

    async def beat(self, heart: Heart, *, state: bool) -> None:
        """Send a heartbeat, which is not in the spool; with `state` also what the queue took.

        That takes more than one where much is new. What the queue took of them is not said again.
        """
        ledger = await asyncio.to_thread(self._spool.ledger)
        statements = await self._unstated(heart) if state else []
        while True:
            heartbeat = heart.beat(ledger, statements)
            await self._pace.wait(len(heartbeat.compressed))
            self._under_way.append(None)
            self._note(await self._link.send(heartbeat))
            await self.flush()
            if not statements:
                return
            await asyncio.to_thread(self._spool.state, statements)
            statements = await self._unstated(heart)
            if not statements:
                return

    async def flush(self) -> None:
        """Send what is held back, and remove from the spool what was taken."""
        self._note(await self._link.flush())
        await asyncio.to_thread(self._spool.settle)

    async def _unstated(self, heart: Heart) -> list[Statement]:
        return await asyncio.to_thread(self._spool.unstated, heart.prefix, STATED_BYTES)

    async def _send_next(self) -> int:
        batches = await asyncio.to_thread(self._spool.waiting, self._last, LOOK_AHEAD_BYTES)
        for number, packed in batches:
            size = len(packed.compressed)
            await self._pace.wait(size)
            # Not the batch itself: what is under way may be many, or large.
            sent = Sent(number, size)
            self._under_way.append(_UnderWay(sent, packed.header.traceparent, time.time_ns()))
            self._last = number
            self._note(await self._link.send(packed))
        return len(batches)

    def _note(self, accepted: list[Header]) -> None:
        """Remove the batches that the queue took: they come back in the order they were given."""
        taken = [self._under_way.popleft() for _ in accepted]
        batches = [one for one in taken if one is not None]
        for one in batches:
            telemetry.spanned("send batch", one.since_ns, one.traceparent, bytes=one.sent.size)
        if batches:
            self._spool.taken([one.sent for one in batches])
