"""Calling functions as the Python worker does: coroutines on the loop, others in threads."""

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from sessionferry.local.functions_host.app import Function

log = logging.getLogger(__name__)

_HANG_GRACE: Final = 2.0  # seconds that a blocked event loop may overrun functionTimeout


class FunctionTimedOut(Exception):
    """A function ran longer than `functionTimeout`, so the worker has to go."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The value of a parameter named `context`; the fields of `azure.functions.Context`."""

    function_name: str
    function_directory: str
    invocation_id: str
    thread_local_storage: Any
    trace_context: Any = field(
        default_factory=lambda: SimpleNamespace(trace_parent="", trace_state="", attributes={})
    )
    retry_context: Any = field(
        default_factory=lambda: SimpleNamespace(retry_count=0, max_retry_count=0, exception=None)
    )


class Worker:
    """Runs invocations. One that outlasts the timeout ends the worker, and with it all others."""

    def __init__(
        self, folder: Path, timeout: float | None, on_hang: Callable[[], None] | None = None
    ) -> None:
        self._folder = folder
        self._timeout = timeout
        self._on_hang = on_hang
        self._threads = ThreadPoolExecutor(_thread_count(), thread_name_prefix="function")
        self._local = threading.local()
        self.dead = asyncio.Event()

    async def invoke(
        self, function: Function, build: Callable[[], object], *, messages: int = 0
    ) -> bool:
        """Call a function with what `build` makes; log the outcome and say if it returned."""
        error, _ = await self._outcome(function, build, messages)
        return error is None

    async def respond(self, function: Function, build: Callable[[], object]) -> object:
        """Call a function likewise, and return what it returned; raises what it raised."""
        error, value = await self._outcome(function, build, 0)
        if error is not None:
            raise error
        return value

    async def _outcome(
        self, function: Function, build: Callable[[], object], messages: int
    ) -> tuple[Exception | None, object]:
        invocation_id = str(uuid.uuid4())
        started = time.monotonic()
        error: Exception | None = None
        value: object = None
        try:
            value = await self._guarded(function, build(), invocation_id)
        except Exception as raised:  # noqa: BLE001 - whatever the app raises is its outcome
            error = raised
        log.log(
            logging.ERROR if error else logging.INFO,
            "function=%s messages=%d duration_ms=%d outcome=%s invocation_id=%s",
            function.name,
            messages,
            (time.monotonic() - started) * 1000,
            _outcome(error),
            invocation_id,
            exc_info=error,
        )
        return error, value

    def close(self) -> None:
        """Take no more work; threads that still run are left to themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _guarded(self, function: Function, value: object, invocation_id: str) -> object:
        call = asyncio.ensure_future(self._call(function, value, invocation_id))
        death = asyncio.ensure_future(self.dead.wait())
        watchdog = self._watch()
        try:
            await asyncio.wait(
                {call, death}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if call.cancelled():
                raise RuntimeError("The function was cancelled from within.")
            if call.done():
                return call.result()
        finally:
            watchdog.cancel()
            call.cancel()
            death.cancel()
        if self.dead.is_set():
            raise FunctionTimedOut("The worker ended while this function was running.")
        self.dead.set()
        raise FunctionTimedOut(f"Function {function.name} ran longer than {self._timeout:g} s.")

    async def _call(self, function: Function, value: object, invocation_id: str) -> object:
        arguments = {function.parameter: value}
        if function.wants_context:
            arguments["context"] = Context(
                function_name=function.name,
                function_directory=str(self._folder),
                invocation_id=invocation_id,
                thread_local_storage=self._local,
            )
        if function.is_async:
            return await function.handler(**arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._in_thread, function.handler, arguments, invocation_id
        )

    def _in_thread(
        self, handler: Callable[..., Any], arguments: dict[str, object], invocation_id: str
    ) -> object:
        self._local.invocation_id = invocation_id
        return handler(**arguments)

    def _watch(self) -> threading.Timer:
        """A timer in a thread, for a function that blocks the loop on which its timeout runs."""
        watchdog = threading.Timer((self._timeout or 0) + _HANG_GRACE, self._hung)
        watchdog.daemon = True
        if self._timeout is not None and self._on_hang is not None:
            watchdog.start()
        return watchdog

    def _hung(self) -> None:
        log.critical("a function blocks the event loop beyond functionTimeout")
        if self._on_hang is not None:
            self._on_hang()


def _outcome(error: Exception | None) -> str:
    if error is None:
        return "succeeded"
    return "timed_out" if isinstance(error, FunctionTimedOut) else "failed"


def _thread_count() -> int | None:
    """The worker's own setting; `None` is Python's default, as it is the worker's."""
    text = os.environ.get("PYTHON_THREADPOOL_THREAD_COUNT", "")
    return int(text) if text.isdigit() and int(text) > 0 else None
