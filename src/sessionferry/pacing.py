"""How fast something may go on that nobody waits for."""

import asyncio
import time
from collections.abc import Callable


class Pace:
    """Keeps a number a second, of bytes or of messages; 0 is no limit.

    What was not used is saved for one second, so that one take may be larger than a second's worth
    and is waited for afterwards.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = clock()

    def spend(self, count: int) -> float:
        """Take so many; return how many seconds to wait before going on."""
        if not self._rate:
            return 0.0
        now = self._clock()
        wait = max(self._free_at - now, 0.0)
        self._free_at = max(self._free_at, now - 1.0) + count / self._rate
        return wait

    async def wait(self, count: int = 1) -> None:
        """Wait until so many may pass."""
        seconds = self.spend(count)
        if seconds:
            await asyncio.sleep(seconds)
