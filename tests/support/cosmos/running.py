"""Runs the server in a thread of this process, or as a process of its own."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.cosmos.account import Account
from tests.support.cosmos.auth import EMULATOR_KEY, Authority
from tests.support.cosmos.faults import Faults
from tests.support.cosmos.server import CosmosServer

START_SECONDS = 20.0
ROOT = Path(__file__).parents[3]


class RunningCosmos:
    """`with RunningCosmos() as cosmos: CosmosClient(cosmos.endpoint, cosmos.key)`.

    The server runs in a thread of its own, so that synchronous clients of this process can use it.
    """

    def __init__(
        self,
        *,
        physical_partitions: int = 4,
        authority: Authority | None = None,
        tls: bool = False,
        port: int = 0,
    ) -> None:
        self.tls = tls
        self.server = CosmosServer(
            Account(physical_partitions=physical_partitions), authority=authority
        )
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cosmos", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = self.server.start(port=self.port, tls=self.tls)
        asyncio.run_coroutine_threadsafe(started, self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        stopped = self.server.stop()
        asyncio.run_coroutine_threadsafe(stopped, self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self.server.endpoint

    @property
    def key(self) -> str:
        """The account's key."""
        return self.server.authority.key

    @property
    def faults(self) -> Faults:
        """What goes wrong; assign new ones, or change a field."""
        return self.server.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        faults.check()
        self.server.faults = faults

    def split(self, database: str, container: str, range_id: str) -> None:
        """Divide a physical partition of a container in two."""

        async def divide() -> None:
            self.server.split(database, container, range_id)

        asyncio.run_coroutine_threadsafe(divide(), self._loop).result(START_SECONDS)

    def statistics(self) -> dict[str, Any]:
        """Requests and request units so far."""
        return self.server.statistics()

    def clear_statistics(self) -> None:
        """Begin to count anew."""
        self.server.counts.clear()
        self.server.charges.clear()


class CosmosProcess:
    """The server as a process of its own, for benchmarks and for kills; faults go over HTTP."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        self.arguments = arguments
        self.port = port
        self.endpoint = ""
        self.key = EMULATOR_KEY
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return once it listens; a restart keeps the port."""
        command = [sys.executable, "-m", "tests.support.cosmos", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, *self.arguments], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise AssertionError("the Cosmos test server did not start")
        self.endpoint = json.loads(line)["endpoint"]
        self.port = int(self.endpoint.rstrip("/").rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        try:
            return self._process.wait(timeout=10)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def kill(self) -> None:
        """As a power cut does it: no chance to tidy up."""
        self.stop(signal.SIGKILL)

    def inject(self, **faults: Any) -> None:
        """Replace the faults; no arguments end them."""
        self._control("PUT", "faults", json.dumps(faults).encode())

    def statistics(self) -> dict[str, Any]:
        """Requests and request units so far."""
        found: dict[str, Any] = self._control("GET", "statistics", None)
        return found

    def clear_statistics(self) -> None:
        """Begin to count anew."""
        self._control("DELETE", "statistics", None)

    def _control(self, method: str, what: str, data: bytes | None) -> Any:
        request = urllib.request.Request(  # noqa: S310
            f"{self.endpoint}_control/{what}", data=data, method=method
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return json.loads(response.read())
