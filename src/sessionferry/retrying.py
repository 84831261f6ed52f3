"""Retries: jittered waits, as long as the fault may pass and the time allows."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay
from tenacity.wait import wait_base, wait_random_exponential

from sessionferry.errors import Kind, classify, retry_after

Result = TypeVar("Result")


class _WaitAsTold(wait_base):
    """Wait as long as the server asked for, else a random, growing time."""

    def __init__(self, first: float, most: float) -> None:
        self._backoff = wait_random_exponential(multiplier=first, max=most)

    def __call__(self, retry_state: RetryCallState) -> float:
        backoff = self._backoff(retry_state)
        error = retry_state.outcome.exception() if retry_state.outcome else None
        if error is None or classify(error) is not Kind.THROTTLED:
            return backoff
        return retry_after(error, backoff) + backoff / 10


async def retry(
    work: Callable[[], Awaitable[Result]],
    *,
    seconds: float,
    first: float = 0.05,
    most: float = 5.0,
) -> Result:
    """Run `work` until it succeeds; give up after `seconds`, or at once on a permanent error."""
    attempts = AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(max(seconds, 0)),
        wait=_WaitAsTold(first, most),
        reraise=True,
    )

    # tenacity does not await what a lambda returns, only what a coroutine function does.
    async def attempt() -> Result:
        try:
            return await work()
        except Exception:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # A library turned our cancellation into an error of its own.
                raise asyncio.CancelledError from None
            raise

    return await attempts(attempt)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and classify(error) is not Kind.PERMANENT
