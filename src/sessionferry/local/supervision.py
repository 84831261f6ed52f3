"""A supervised process ends when its supervisor does, however that ended."""

import asyncio
import os
import sys
from collections.abc import Callable


def stop_with_supervisor(stop: Callable[[], object]) -> None:
    """Call `stop` once when the supervisor's pipe on standard input closes.

    Does nothing for a process that was not started by `ferry local`.
    """
    if os.environ.get("FERRY_SUPERVISED") != "1":
        return
    loop = asyncio.get_running_loop()
    handle = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(handle, 4096):
            loop.remove_reader(handle)
            stop()

    loop.add_reader(handle, readable)
