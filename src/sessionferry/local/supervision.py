"""A supervised process ends when its supervisor's pipe does, however that ended."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress


def stop_with_supervisor(stop: Callable[[], object]) -> None:
    """Call `stop` once when the supervisor's pipe on standard input closes.

    Does nothing for a process that was not started by `ferry local`.
    """
    if os.environ.get("FERRY_SUPERVISED") != "1":
        return
    loop = asyncio.get_running_loop()
    handle = sys.stdin.fileno()

    def wait() -> None:
        with suppress(OSError):
            while os.read(handle, 4096):
                pass
        # A loop that has ended needs no stop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop)

    # A thread of its own: event loops of Windows cannot wait for a pipe that is only inherited.
    threading.Thread(target=wait, name="supervisor", daemon=True).start()
