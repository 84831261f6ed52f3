"""What Windows refuses while another process has a file open, tried again for a moment.

A file cannot be replaced, renamed or removed there while it is read, be it by a virus scanner, and
cannot be read in the instant of its replacement. Elsewhere a refusal is one, and nothing waits.
"""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential

PATIENCE_SECONDS = 2.0
_T = TypeVar("_T")

_again = retry(
    retry=retry_if_exception_type(PermissionError),
    stop=stop_after_delay(PATIENCE_SECONDS),
    wait=wait_exponential(multiplier=0.01, max=0.2),
    sleep=time.sleep,
    reraise=True,
)


def patiently(do: Callable[[], _T]) -> _T:
    """Do something with a file that others may have open; raises `OSError` as it does."""
    return _again(do)() if sys.platform == "win32" else do()
