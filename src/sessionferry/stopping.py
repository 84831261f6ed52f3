"""How a process that goes on for ever is asked to end: SIGTERM, Ctrl-C, and Ctrl-Break on Windows.

On Windows a task that is ended, or a logoff, asks nobody: the process is gone. What it was doing is
made up for as after any crash.
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` in the running event loop for every such signal; replaces an earlier one."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":

        def ask(*_: object) -> None:
            # After the loop has ended there is nothing left to stop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(stop)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGBREAK):
            signal.signal(number, ask)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
