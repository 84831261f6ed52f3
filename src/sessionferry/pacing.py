"""How fast something may go on that nobody waits for."""

import asyncio


class Pace:
    """Lets at most so many pass a second; everything, when no rate is given."""

    def __init__(self, rate: float | None) -> None:
        self._every = 1 / rate if rate else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Return when the next one may pass."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now)
        await asyncio.sleep(self._next - now)
        self._next += self._every
