"""The broker's socket: what a real client once sent, spoiled, must neither end it nor hang it."""

import random
import socket
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import psutil
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from fuzz.mutation import spoil
from fuzz.watching import GROWTH_BYTES, Broken
from support.broker import RunningBroker, connection_string

QUEUE = "fuzzed"
ANSWER_SECONDS = 10.0
"""The broker ends a broken connection within its idle time; nobody waits longer here."""
HEALTH_EVERY = 200
_CHUNK = 65_536


class Target:
    """A broker of its own, and the recorded sessions of a real client."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="ferry-fuzz-")
        self._broker = RunningBroker(Path(self._folder.name), [{"name": QUEUE}])
        self._recorded: tuple[bytes, ...] = ()
        self._fed = 0
        self._memory = 0

    def __enter__(self) -> Self:
        self._broker.start()
        self._recorded = tuple(record(self._broker.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.stop()
        self._folder.cleanup()

    def feed(self, rng: random.Random) -> str:
        """Send one spoiled session, and wait until the broker has ended it or says no more."""
        result = _replay(self._broker.port, spoil(rng, rng.choice(self._recorded), self._recorded))
        self._fed += 1
        if self._fed % HEALTH_EVERY == 0:
            use(connection_string(self._broker.port))
        if self._fed == HEALTH_EVERY:
            self._memory = self._resident()
        return result

    def growth(self) -> int:
        """Bytes by which the broker grew after its first inputs; raises `Broken` if too many."""
        grown = self._resident() - self._memory
        if grown > GROWTH_BYTES:
            raise Broken(f"The broker grew by {grown:,} bytes.")
        return grown

    def _resident(self) -> int:
        return int(psutil.Process(self._broker.pid).memory_info().rss)


def use(connection: str) -> None:
    """Send and receive with the real client: whoever behaves is served."""
    with ServiceBusClient.from_connection_string(connection, retry_total=0) as client:
        with client.get_queue_sender(QUEUE) as sender:
            sender.send_messages([ServiceBusMessage(b"one"), ServiceBusMessage(b"two")])
        with client.get_queue_receiver(QUEUE) as receiver:
            received = receiver.receive_messages(2, max_wait_time=5)
            if not received:
                raise AssertionError("The broker delivered nothing.")
            for message in received:
                receiver.complete_message(message)
            receiver.peek_messages(5)


def record(port: int) -> list[bytes]:
    """What the real client's connections send, one entry each."""
    with Recorder(port) as recorder:
        use(connection_string(recorder.port))
    return [bytes(sent) for sent in recorder.sent if sent]


class Recorder:
    """A TCP proxy that keeps what clients send."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent: list[bytearray] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self.sent.append(bytearray())
            self._start(_pump, client, server, self.sent[-1])
            self._start(_pump, server, client, bytearray())


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    try:
        while data := source.recv(_CHUNK):
            kept += data
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        if source.fileno() >= 0:
            source.close()


def _replay(port: int, data: bytes) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(_CHUNK):
                pass
        except TimeoutError:
            raise Broken(f"The broker did not end a connection in {ANSWER_SECONDS} s.") from None
        except OSError:
            return "reset"
    return "closed"
