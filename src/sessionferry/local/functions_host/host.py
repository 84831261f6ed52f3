"""The host: loads an app, starts a listener per function, and ends them in good order."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sessionferry.local.functions_host.app import (
    Function,
    HttpTrigger,
    Settings,
    TimerTrigger,
    load_app,
)
from sessionferry.local.functions_host.config import read_host_config
from sessionferry.local.functions_host.http import HttpListener
from sessionferry.local.functions_host.queues import QueueListener
from sessionferry.local.functions_host.timers import TimerListener
from sessionferry.local.functions_host.worker import FunctionTimedOut, Worker

log = logging.getLogger(__name__)

DRAIN_TIMEOUT: Final = 25.0  # seconds for running invocations when the host stops


class FunctionsHost:
    """Runs the function app in a folder.

    `settings` stand for the app settings in bindings; the app itself reads the environment.
    With `state_dir`, timers remember their last run and catch up after a pause.
    """

    def __init__(
        self,
        app_dir: Path,
        settings: Mapping[str, str] | None = None,
        *,
        state_dir: Path | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        on_hang: Callable[[], None] | None = None,
        http_port: int = 0,
    ) -> None:
        folder = app_dir.resolve()
        self._config = read_host_config(folder / "host.json")
        self._functions = load_app(folder, Settings(os.environ if settings is None else settings))
        self._worker = Worker(folder, self._config.function_timeout, on_hang)
        self._stopping = asyncio.Event()
        self._state_dir = state_dir
        self._drain_timeout = drain_timeout
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted_port = http_port
        self._http: HttpListener | None = None
        self.http_port: int | None = None
        """Where HTTP functions are served, once started; None without any."""

    @property
    def functions(self) -> list[str]:
        """The names of the functions that are served."""
        return [function.name for function in self._functions]

    async def run(self) -> None:
        """Serve until `stop`; raises as `wait` does."""
        await self.start()
        await self.wait()

    async def start(self) -> None:
        """Start the listeners; a broker that is away does not matter."""
        requested = [it for it in self._functions if isinstance(it.trigger, HttpTrigger)]
        if requested:
            self._http = HttpListener(requested, self._config.route_prefix, self._worker)
            self.http_port = await self._http.start(self._wanted_port)
        for function in self._functions:
            if function not in requested:
                listener = self._listener(function)
                self._tasks.append(asyncio.create_task(listener.run(), name=function.name))

    def stop(self) -> None:
        """Receive no more; running invocations finish."""
        self._stopping.set()

    async def wait(self) -> None:
        """Serve until `stop` and drain.

        Raises `FunctionTimedOut` when a function ran into `functionTimeout`, and `TimeoutError`
        when invocations outlast the drain; the process should end then, as threads may still run.
        """
        watches = [asyncio.create_task(e.wait()) for e in (self._stopping, self._worker.dead)]
        waited: set[asyncio.Task[Any]] = {*self._tasks, *watches}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            watch.cancel()
        self.stop()
        await self._drain()
        if self._worker.dead.is_set():
            raise FunctionTimedOut("A function ran longer than functionTimeout.")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        await self.wait()

    def _listener(self, function: Function) -> QueueListener | TimerListener:
        trigger = function.trigger
        if isinstance(trigger, HttpTrigger):
            raise TypeError("Requests have a listener of their own.")
        if isinstance(trigger, TimerTrigger):
            return TimerListener(function, trigger, self._worker, self._stopping, self._state_dir)
        if not trigger.binary:
            log.warning(
                "function=%s gets bodies as text, as in Azure: declare data_type=BINARY for bytes",
                function.name,
            )
        options = self._config.service_bus
        return QueueListener(function, trigger, options, self._worker, self._stopping)

    async def _drain(self) -> None:
        """Let the listeners end; the worker is closed whatever happens."""
        try:
            if self._http is not None:
                await self._http.close()
            if not self._tasks:
                return
            done, late = await asyncio.wait(self._tasks, timeout=self._drain_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            for task in done:
                task.result()
            if late:
                raise TimeoutError("Invocations were still running when the drain ended.")
        finally:
            self._worker.close()
