"""How functions are called, and how they end."""

import asyncio
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sessionferry.local.functions_host.app import Function, TimerTrigger
from sessionferry.local.functions_host.ncrontab import Schedule
from sessionferry.local.functions_host.timers import timer_request
from sessionferry.local.functions_host.waiting import unless_set
from sessionferry.local.functions_host.worker import Worker

TRIGGER = TimerTrigger(schedule=Schedule("* * * * * *"), run_on_startup=False, use_monitor=False)


def _function(handler, *, wants_context: bool = False) -> Function:
    return Function(
        name="f", handler=handler, parameter="x", wants_context=wants_context, trigger=TRIGGER
    )


@pytest.fixture
async def worker():
    made = Worker(Path("/app"), 0.2)
    yield made
    made.close()


async def test_coroutines_run_on_the_loop_and_others_in_threads(worker):
    """As in the Python worker."""
    seen = []

    async def on_loop(x):
        seen.append((x, threading.current_thread() is threading.main_thread()))

    def in_thread(x):
        seen.append((x, threading.current_thread() is threading.main_thread()))

    assert await worker.invoke(_function(on_loop), lambda: 1)
    assert await worker.invoke(_function(in_thread), lambda: 2)
    assert seen == [(1, True), (2, False)]


async def test_the_context_is_given_to_those_who_ask(worker):
    """With the fields that functions use."""
    seen = []

    def handler(x, context):
        seen.append(context)
        assert context.thread_local_storage.invocation_id == context.invocation_id

    assert await worker.invoke(_function(handler, wants_context=True), lambda: 1)
    assert (seen[0].function_name, seen[0].function_directory) == ("f", "/app")
    assert seen[0].trace_context.trace_parent == ""
    assert seen[0].retry_context.retry_count == 0


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_an_exception_is_an_outcome(worker, caplog, error):
    """One line with the trace; a cancellation that leaks out of a function ends nothing else."""

    async def handler(x):
        raise error

    assert not await worker.invoke(_function(handler), lambda: 1, messages=3)
    (record,) = caplog.records
    assert "function=f messages=3" in record.getMessage()
    assert "outcome=failed" in record.getMessage()
    assert record.exc_info


async def test_a_value_that_cannot_be_built_is_an_outcome(worker):
    """The messages are abandoned then, as when the worker cannot decode them."""

    def build():
        raise IndexError("short")

    assert not await worker.invoke(_function(lambda x: None), build)


async def test_a_timeout_ends_all_invocations(worker, caplog):
    """The real host kills the worker process, and with it whatever runs there."""
    caplog.set_level(logging.ERROR)

    async def handler(x):
        await asyncio.sleep(60)

    first = asyncio.create_task(worker.invoke(_function(handler), lambda: 1))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(worker.invoke(_function(handler), lambda: 1))
    assert [await first, await second] == [False, False]
    assert worker.dead.is_set()
    texts = [record.getMessage() for record in caplog.records]
    assert all("outcome=timed_out" in text for text in texts)
    assert len(texts) == 2


async def test_waiting_ends_with_the_event():
    """Work that is done wins; other work is cancelled."""
    event = asyncio.Event()
    assert await unless_set(event, asyncio.sleep(0, "done")) == "done"
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await unless_set(event, asyncio.sleep(60, "late")) is None


def test_a_timer_request_is_the_converters():
    """Built from the JSON that the host sends."""
    upcoming = datetime(2026, 1, 1, tzinfo=UTC)
    request = timer_request(None, upcoming, past_due=True)
    assert request.past_due is True
    assert request.schedule_status["Last"] == "0001-01-01T00:00:00"
    assert request.schedule_status["Next"] == "2026-01-01T00:00:00+00:00"
