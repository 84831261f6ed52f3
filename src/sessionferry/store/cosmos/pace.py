"""How many requests are under way at once: more while all goes well, half as many when throttled.

An account has a rate, not a number of connections, so nobody can know the right number beforehand.
Additive increase and multiplicative decrease find it, and leave room for other clients of the same
account: a fleet's burst becomes slower instead of failing, and dashboards keep their share.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from sessionferry.errors import ThrottledError

FIRST: Final = 8
"""Requests at once, at first."""
LEAST: Final = 4
"""Requests at once, at least: one physical partition that throttles must not stop the others."""
MOST: Final = 64
"""Requests at once, at most: what the client's connections carry without waiting."""


@dataclass(slots=True)
class Window:
    """The number itself. Pure, but for being changed."""

    size: float = float(FIRST)
    epoch: int = 0
    """Grows with each decrease; a request remembers the one it was sent in."""

    @property
    def limit(self) -> int:
        return int(self.size)

    def succeeded(self, running: int) -> None:
        """Grow by one per window's worth of successes, if the window is used at all."""
        if running >= self.limit:
            self.size = min(float(MOST), self.size + 1 / self.size)

    def throttled(self, sent_in: int) -> None:
        """Halve, once for all requests that were under way together."""
        if sent_in == self.epoch:
            self.size = max(float(LEAST), self.size / 2)
            self.epoch += 1


class Pace:
    """Lets requests go when it is their turn, first come, first served."""

    def __init__(self) -> None:
        self.window = Window()
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; what comes of it decides how many others may go."""
        await self._enter()
        epoch = self.window.epoch
        try:
            yield
            self.window.succeeded(self._running)
        except ThrottledError:
            self.window.throttled(epoch)
            raise
        finally:
            self._leave()

    async def _enter(self) -> None:
        if not self._waiting and self._running < self.window.limit:
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # it was our turn already
            raise

    def _leave(self) -> None:
        self._running -= 1
        while self._waiting and self._running < self.window.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)
