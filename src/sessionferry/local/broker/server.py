"""The broker: listens, hands messages to waiting consumers, and commits once per turn.

A turn is everything that arrived in one pass of the event loop. It ends with one durable commit,
and only then do the answers leave: what a client sees acknowledged survives a crash.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sessionferry.local.broker import cbs
from sessionferry.local.broker.connection import ClientConnection
from sessionferry.local.broker.definitions import Definitions
from sessionferry.local.broker.links import Consumer
from sessionferry.local.broker.queues import Queue, Queues, Stored

MESSAGES_FILE: Final = "messages.sqlite3"
TAKE_AT_ONCE: Final = 16  # bodies in memory at a time
_LONGEST_WAIT: Final = 3_600.0  # seconds; a clock that was set is noticed by then

logger = logging.getLogger(__name__)


class Waiting:
    """Consumers with credit, per entity, in the order of their turn."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._consumers: dict[int, deque[Consumer]] = {}

    def add(self, consumer: Consumer) -> None:
        """Let a consumer wait, and see at once whether there is something for it."""
        line = self._consumers.setdefault(consumer.entity, deque())
        if consumer not in line:
            line.append(consumer)
        self._broker.wake(consumer.entity)

    def discard(self, consumer: Consumer) -> None:
        """The consumer is gone."""
        line = self._consumers.get(consumer.entity)
        if line and consumer in line:
            line.remove(consumer)

    def serve(self, entity: int, queue: Queue, now: int) -> None:
        """Give what is there to those who wait, one message each in turn."""
        line = self._consumers.get(entity, deque())
        while places := [consumer for consumer in line if consumer.capacity() > 0]:
            alike = [consumer for consumer in places if consumer.locks == places[0].locks]
            wanted = min(sum(consumer.capacity() for consumer in alike), TAKE_AT_ONCE)
            taken = queue.take(entity, wanted, now, lock=places[0].locks)
            self._share(taken, alike)
            if len(taken) < wanted:
                break
            line.rotate(-1)
        for consumer in line:
            consumer.drain()

    def _share(self, taken: list[Stored], consumers: list[Consumer]) -> None:
        line = deque((consumer, consumer.capacity()) for consumer in consumers)
        for item in taken:
            consumer, places = line.popleft()
            consumer.deliver(item)
            self._broker.touch(consumer.connection)
            if places > 1:
                line.append((consumer, places - 1))


class Broker:
    """Serves the queues of one data directory on one address, within the running event loop."""

    def __init__(self, data: Path, definitions: Definitions, rules: Iterable[cbs.SasRule]) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.rules = {rule.name: rule for rule in rules}
        self.waiting = Waiting(self)
        self.connections: set[ClientConnection] = set()
        self._queues = Queues(data / MESSAGES_FILE, definitions)
        self._touched: set[ClientConnection] = set()
        self._turn_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port, which the system chooses if none is given."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ClientConnection(self), host, port)
        self._schedule_turn()
        bound: int = self._server.sockets[0].getsockname()[1]
        logger.info("listening on %s:%d", host, bound, extra={"action": "broker_started"})
        return bound

    async def close(self) -> None:
        """Say goodbye to the clients and close the file."""
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        self._turn_is_due = True  # no further turn begins
        self._commit()
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()
        self._queues.close()
        logger.info("stopped", extra={"action": "broker_stopped"})

    # What connections ask for

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def find(self, name: str) -> Queue:
        """The queue of that name, or NotFoundError."""
        return self._queues.find(name)

    def wake(self, entity: int) -> None:
        """There may be something to deliver from this entity."""
        self._queues.awake.add(entity)
        self._schedule_turn()

    def touch(self, connection: ClientConnection) -> None:
        """The connection has something to say once the turn is committed."""
        self._touched.add(connection)
        self._schedule_turn()

    # Turns

    def _schedule_turn(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        now = self.now()
        self._queues.move_due(now)
        while self._queues.awake:
            entity = self._queues.awake.pop()
            self.waiting.serve(entity, self._queues.owner(entity), now)
        if self._commit():
            touched, self._touched = self._touched, set()
            for connection in touched:
                connection.flush()
        self._arm()

    def _commit(self) -> bool:
        try:
            self._queues.commit()
        except sqlite3.Error:
            logger.exception(
                "the turn could not be committed, its clients are dropped",
                extra={"action": "commit_failed"},
            )
            self._queues.rollback()
            for connection in self._touched:
                connection.abort()
            self._touched.clear()
            return False
        return True

    def _arm(self) -> None:
        """Wake up when the next message changes by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._queues.next_due()
        if due is not None:
            wait = min(max(due - self.now(), 0) / 1000, _LONGEST_WAIT)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(wait, self._schedule_turn)
