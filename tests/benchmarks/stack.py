"""A whole local stack of the benchmark's own, and when it has done everything."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from tests.benchmarks.figures import Unsettled

from sessionferry.local.stack import Child, Stack
from sessionferry.settings import Endpoints, LocalStack, Settings, endpoints
from sessionferry.store import Store
from sessionferry.store.opening import open_store

SETTLE_SECONDS = 180.0


class BenchStack:
    """Broker and Functions host as `ferry local` runs them; the consumer can be stopped alone."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.read(data=folder / "data", identity=folder / "identity")
        self._stack = Stack(self.settings)

    async def __aenter__(self) -> Self:
        await self._stack.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.stop()

    @property
    def described(self) -> LocalStack:
        """What to connect to."""
        if self._stack.described is None:
            raise Unsettled("The stack was not started.")
        return self._stack.described

    @property
    def endpoints(self) -> Endpoints:
        """Where a publisher sends."""
        return endpoints(self.settings)

    async def stop_consumer(self) -> None:
        """Let messages pile up."""
        await _required(self._stack._host).stop()

    async def start_consumer(self) -> None:
        """Go on taking messages in."""
        await _required(self._stack._host).start(self.settings.data / "logs")

    async def restart_broker(self) -> None:
        """End the broker and start it on what it kept."""
        broker = _required(self._stack._broker)
        await broker.stop()
        await broker.start(self.settings.data / "logs")

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        found = {"broker": self._stack._broker, "functions_host": self._stack._host}
        return {name: _pid(child) for name, child in found.items() if _runs(child)}

    @asynccontextmanager
    async def receiver(self) -> AsyncIterator[ServiceBusReceiver]:
        """A receiver on the queue, through the real client."""
        connection = self.described.connection
        async with (
            ServiceBusClient.from_connection_string(connection) as client,
            client.get_queue_receiver(self.described.queue) as receiver,
        ):
            yield receiver

    async def until_empty(self, receiver: ServiceBusReceiver) -> None:
        """Return when the queue holds nothing, locked or not; raises `Unsettled`."""
        until = time.monotonic() + SETTLE_SECONDS
        while await receiver.peek_messages(max_message_count=1, sequence_number=1):
            if time.monotonic() > until:
                raise Unsettled(
                    f"The queue was not empty {SETTLE_SECONDS:.0f} s after everything was sent; "
                    f"see {self.settings.data / 'logs'}."
                )
            await asyncio.sleep(0.1)

    async def until_stored(self, expected: int) -> None:
        """Return when so many lines are accounted for; raises `Unsettled`.

        It looks into the store: the queue's client takes a good part of a core to wait.
        """
        until = time.monotonic() + SETTLE_SECONDS
        async with await open_store(self.described.store) as store:
            while (found := await _accounted(store)) != expected:
                if time.monotonic() > until:
                    raise Unsettled(f"{expected:,} lines were sent, {found:,} are accounted for.")
                await asyncio.sleep(0.1)

    async def begun(self, receiver: ServiceBusReceiver) -> int:
        """Return how many messages are done when the consumer has settled its first ones."""
        until = time.monotonic() + SETTLE_SECONDS
        first = await receiver.peek_messages(max_message_count=1, sequence_number=1)
        while time.monotonic() < until:
            now = await receiver.peek_messages(max_message_count=1, sequence_number=1)
            if not now or not first:
                break
            done = (now[0].sequence_number or 0) - (first[0].sequence_number or 0)
            if done:
                return done
            await asyncio.sleep(0.02)
        raise Unsettled("The backlog was not seen while it was worked off.")

    async def check_lines(self, expected: int) -> None:
        """Compare the stored sums with what was sent; raises `Unsettled`."""
        async with await open_store(self.described.store) as store:
            stored = await _accounted(store)
        if stored != expected:
            raise Unsettled(f"{expected:,} lines were sent, {stored:,} are accounted for.")


class PeakMemory:
    """Samples the resident memory of processes while the block runs; in bytes, by name."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.peaks = dict.fromkeys(pids, 0)
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            for name, process in self._processes.items():
                try:
                    self.peaks[name] = max(self.peaks[name], process.memory_info().rss)
                except psutil.Error:
                    continue


async def _accounted(store: Store) -> int:
    total, token = 0, None
    while True:
        page = await store.list_items("heads", limit=500, continuation=token)
        for head in page.documents:
            total += sum(_lines(state) for state in head["streams"].values())
        token = page.continuation
        if token is None:
            return total


def _lines(state: dict[str, list[list[int]]]) -> int:
    ranges = (*state["stored"], *state["quarantined"])
    return sum(last - first + 1 for first, last in ranges)


def _required(child: Child | None) -> Child:
    if child is None:
        raise Unsettled("The stack was not started.")
    return child


def _runs(child: Child | None) -> bool:
    return child is not None and child.process is not None and child.process.returncode is None


def _pid(child: Child | None) -> int:
    process = _required(child).process
    return process.pid if process is not None else 0
