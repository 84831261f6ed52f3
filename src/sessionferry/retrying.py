"""Retries: jittered waits, as long as the fault may pass and the time allows.

Retries may be nested: a delivery retries what it asks of a store, and the store retries each of its
requests. Those inside never go on after those around them have to end.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_base, wait_random_exponential

from sessionferry import telemetry
from sessionferry.errors import Kind, TransientError, classify, retry_after

Result = TypeVar("Result")

_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)
"""When the innermost retry around the running code ends, on the monotonic clock."""


class OutOfTime(TransientError):
    """It was not begun: the retry around it has no time left."""


def check_time() -> None:
    """Refuse to begin what the retry around it has no time left for; raises `OutOfTime`."""
    if time.monotonic() > _ends_at.get():
        raise OutOfTime("The time for it is over.")


class _WaitAsTold(wait_base):
    """Wait as long as the server asked for, else a random, growing time."""

    def __init__(self, first: float, most: float) -> None:
        self._backoff = wait_random_exponential(multiplier=first, max=most)

    def __call__(self, retry_state: RetryCallState) -> float:
        backoff = self._backoff(retry_state)
        error = retry_state.outcome.exception() if retry_state.outcome else None
        if error is None or classify(error) is not Kind.THROTTLED:
            return backoff
        telemetry.add("ferry_requests_throttled")
        return retry_after(error, backoff) + backoff / 10


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let every retry in here end after so many seconds, if not earlier."""
    token = _ends_at.set(min(time.monotonic() + seconds, _ends_at.get()))
    try:
        yield
    finally:
        _ends_at.reset(token)


async def retry(
    work: Callable[[], Awaitable[Result]],
    *,
    seconds: float,
    first: float = 0.05,
    most: float = 5.0,
) -> Result:
    """Run `work` until it succeeds; give up after `seconds`, or at once on a permanent error.

    What waiting would carry past the end is given up at once.
    """

    def is_over(state: RetryCallState) -> bool:
        return time.monotonic() + state.upcoming_sleep >= _ends_at.get()

    attempts = AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        stop=is_over,
        wait=_WaitAsTold(first, most),
        reraise=True,
    )

    failure: Exception | None = None

    # tenacity does not await what a lambda returns, only what a coroutine function does.
    async def attempt() -> Result:
        nonlocal failure
        try:
            return await work()
        except OutOfTime as error:
            # What failed before says why there is no time left.
            raise failure or error from None
        except Exception as error:
            failure = error
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # A library turned our cancellation into an error of its own.
                raise asyncio.CancelledError from None
            raise

    with within(max(seconds, 0)):
        return await attempts(attempt)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and classify(error) is not Kind.PERMANENT
