"""Retries end at once for what never works, and in time for the rest."""

import asyncio
import time

import pytest

from sessionferry.errors import BadBatch, FerryError, ThrottledError, TransientError
from sessionferry.retrying import check_time, retry


class Work:
    """Fails with these errors, one after another, then succeeds."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


async def test_passing_faults_are_retried_until_it_works() -> None:
    work = Work(TransientError(), ConnectionResetError(), TimeoutError())
    assert await retry(work, seconds=5, first=0.001, most=0.01) == "done"
    assert work.calls == 4


@pytest.mark.parametrize("error", [BadBatch("no"), KeyboardInterrupt()])
async def test_what_never_works_is_raised_at_once(error: BaseException) -> None:
    work = Work(error)
    with pytest.raises(type(error)):
        await retry(work, seconds=5)
    assert work.calls == 1


@pytest.mark.parametrize("seconds", [0, -1, 0.05])
async def test_the_last_error_is_raised_when_the_time_is_over(seconds: float) -> None:
    work = Work(*[TransientError(f"fault {number}") for number in range(10_000)])
    with pytest.raises(FerryError, match="fault"):
        await retry(work, seconds=seconds, first=0.001, most=0.01)


async def test_a_throttled_call_waits_as_long_as_it_was_told() -> None:
    started = time.monotonic()
    assert await retry(Work(ThrottledError(retry_after=0.15)), seconds=5, first=0.001) == "done"
    assert time.monotonic() - started >= 0.15


async def test_a_cancellation_that_a_library_swallows_still_ends_the_retries() -> None:
    attempts = 0

    async def swallows() -> None:
        nonlocal attempts
        attempts += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise TransientError("closed") from None

    task = asyncio.create_task(retry(swallows, seconds=60))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert attempts == 1


async def test_a_retry_inside_another_ends_when_the_outer_one_does() -> None:
    inner = Work(*[TransientError(f"fault {number}") for number in range(10_000)])
    started = time.monotonic()
    with pytest.raises(TransientError, match="fault"):
        await retry(lambda: retry(inner, seconds=60, first=0.001, most=0.01), seconds=0.1)
    assert time.monotonic() - started < 2


async def test_nothing_begins_when_the_time_around_it_is_over() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        check_time()
        begun += 1
        await asyncio.sleep(0.05)
        check_time()
        begun += 1

    with pytest.raises(TransientError, match="time for it is over"):
        await retry(work, seconds=0.03)
    assert begun == 1


async def test_what_failed_is_named_when_there_is_no_time_for_another_attempt() -> None:
    refused = Work(TransientError("refused"))

    async def work() -> None:
        await refused()
        await asyncio.sleep(0.06)
        check_time()

    with pytest.raises(TransientError, match="refused"):
        await retry(work, seconds=0.05, first=0.001, most=0.001)
    assert refused.calls == 2


async def test_a_wait_that_would_last_longer_than_the_time_is_not_begun() -> None:
    started = time.monotonic()
    work = Work(ThrottledError(retry_after=30))
    with pytest.raises(ThrottledError):
        await retry(work, seconds=5)
    assert time.monotonic() - started < 1
    assert work.calls == 1


async def test_without_a_retry_around_it_there_is_time_for_everything() -> None:
    check_time()
