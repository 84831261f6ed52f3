"""The links of a connection, by what lies behind them: a queue, its management, or `$cbs`.

A link belongs to one client connection. Inboxes are fed by the client, outboxes feed it.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol
from uuid import uuid4

from cproton import bytes2pybytes, lib
from proton import Condition, Delivery, Disposition, Link, Receiver, Sender, Terminus, symbol

from sessionferry.local.broker import management, message, queues
from sessionferry.local.broker.errors import DecodeError, LockLostError, ServiceError
from sessionferry.local.broker.queues import Queue, Stored

CREDIT: Final = 200  # transfers that a client may have under way on one link
MAX_UNREAD_REPLIES: Final = 100
MAX_UNSENT_BYTES: Final = 1 << 20  # per session, beyond which nothing more is delivered to it
MAX_PARTIAL_BYTES: Final = 4 * message.MAX_MESSAGE_BYTES  # then the link ends, complete or not


def condition(error: ServiceError) -> Condition:
    """The AMQP form of a refusal.

    azure-servicebus 7.15.0 hangs if the field behind the description is left out, and proton
    leaves out an empty one.
    """
    return Condition(error.condition, error.description, {symbol("tracking-id"): str(uuid4())})


def end(link: Link, error: ServiceError) -> None:
    """Close a link from the broker's side, with the reason."""
    link.condition = condition(error)
    link.close()


def refuse(link: Link, error: ServiceError) -> None:
    """Answer an attach without the terminus that it asked for, which means no, then say why."""
    wanted = link.source if link.is_sender else link.target
    wanted.type = Terminus.UNSPECIFIED
    link.open()
    end(link, error)


def settle(delivery: Delivery, outcome: Any, error: ServiceError | None = None) -> None:
    """Answer a delivery and be done with it."""
    if error is not None:
        delivery.local.condition = condition(error)
    delivery.update(outcome)
    delivery.settle()


class Node(Protocol):
    """What a connection does with any of its links."""

    path: str
    right: str

    def on_delivery(self, delivery: Delivery) -> None:
        """A transfer came in, or the client answered one."""

    def on_flow(self) -> None:
        """The client changed its credit."""

    def on_close(self) -> None:
        """The link is gone."""


class Inbox:
    """A link on which the client sends; `handle` takes one whole transfer."""

    def __init__(
        self,
        link: Receiver,
        path: str,
        right: str,
        handle: Callable[[bytes, Delivery], None],
    ) -> None:
        self.link = link
        self.path = path
        self.right = right
        self._handle = handle
        link.flow(CREDIT)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take the transfer once it is whole, and answer it."""
        if delivery.aborted:
            self._next(delivery, Disposition.RELEASED)
        elif delivery.partial:
            if delivery.pending > MAX_PARTIAL_BYTES:
                end(self.link, queues.too_large(delivery.pending))
        elif delivery.readable:
            self._take(delivery)

    def _take(self, delivery: Delivery) -> None:
        size = delivery.pending
        raw = bytes(self.link.recv(size) or b"") if size else b""
        try:
            self._handle(raw, delivery)
        except ServiceError as error:
            self._next(delivery, Disposition.REJECTED, error)
        except DecodeError as error:
            refusal = ServiceError("amqp:decode-error", str(error))
            self._next(delivery, Disposition.REJECTED, refusal)
        else:
            self._next(delivery, Disposition.ACCEPTED)

    def _next(self, delivery: Delivery, outcome: Any, error: ServiceError | None = None) -> None:
        self.link.advance()
        settle(delivery, outcome, error)
        self.link.flow(1)

    def on_flow(self) -> None:
        """A sender's flow changes nothing here."""

    def on_close(self) -> None:
        """Nothing is kept for an inbox."""


def tag_of(delivery: Delivery) -> bytes:
    """The delivery tag as bytes; proton's own property takes it for text."""
    tag: bytes = bytes2pybytes(lib.pn_delivery_tag(delivery._impl))  # noqa: SLF001
    return tag


def enqueue(queue: Queue, raw: bytes, now: int, *, batch: bool) -> None:
    """Store a transfer: a message, or each message of a batch."""
    if len(raw) > message.MAX_MESSAGE_BYTES:
        raise queues.too_large(len(raw))
    parts = message.unbatch(raw) if batch and message.looks_like_batch(raw) else [raw]
    for item in [message.envelope(part) for part in parts]:
        queue.send(item, now)


class ReplyBox:
    """The link on which a client gets the answers to its requests."""

    def __init__(self, link: Sender, path: str, right: str) -> None:
        self.link = link
        self.path = path
        self.right = right
        self.address = link.remote_target.address
        self._count = 0

    def send(self, raw: bytes) -> None:
        """Answer a request; a client that never reads its answers loses the link."""
        if self.link.queued > MAX_UNREAD_REPLIES:
            end(self.link, ServiceError("amqp:resource-limit-exceeded", "Replies are not read."))
            return
        self._count += 1
        delivery = self.link.delivery(str(self._count))
        self.link.stream(raw)
        self.link.advance()
        delivery.settle()

    def on_delivery(self, delivery: Delivery) -> None:
        """Replies are sent settled."""

    def on_flow(self) -> None:
        """proton sends what waits for credit."""

    def on_close(self) -> None:
        """Nothing is kept for a reply box."""


class Consumer:
    """A link on which a client receives from a queue or a dead-letter queue."""

    def __init__(
        self,
        link: Sender,
        path: str,
        target: management.Target,
        *,
        connection: Any,
        waiting: "WaitingRoom",
        clock: Callable[[], int],
    ) -> None:
        self.link = link
        self.path = path
        self.right = "listen"
        self.entity = target.entity
        self.connection = connection
        self.locks = link.remote_snd_settle_mode != Link.SND_SETTLED
        self.congested = False
        self._queue = target.queue
        self._waiting = waiting
        self._clock = clock
        self._tokens: dict[Delivery, bytes] = {}
        self._count = 0

    def capacity(self) -> int:
        """How many messages may be delivered now."""
        self.congested = self.link.session.outgoing_bytes > MAX_UNSENT_BYTES
        return 0 if self.congested else max(self.link.credit, 0)

    def deliver(self, item: Stored) -> None:
        """Send one message that was taken for this link."""
        self._count += 1
        tag: Any = item.token or str(self._count)  # proton's own hints know texts only
        delivery = self.link.delivery(tag)
        for part in management.head_and_rest(item):
            self.link.stream(part)
        self.link.advance()
        if item.token is None:
            delivery.settle()
        else:
            self._tokens[delivery] = item.token

    def on_flow(self) -> None:
        """Credit came; what it does not use up goes back when the client drains."""
        self._waiting.add(self)

    def drain(self) -> None:
        """Give unused credit back if the client asked for that."""
        if self.link.drain_mode and not self.congested:
            self.link.drained()

    def on_delivery(self, delivery: Delivery) -> None:
        """The client settles a message, or tells its wish and waits for the answer."""
        token = self._tokens.get(delivery)
        outcome = delivery.remote_state
        final = outcome in _SETTLEMENTS
        if token is None or not (final or delivery.settled):
            return
        del self._tokens[delivery]
        try:
            if final:
                _SETTLEMENTS[outcome](self._queue, token, delivery, self._clock())
        except LockLostError as error:
            settle(delivery, Disposition.REJECTED, error)
        else:
            settle(delivery, outcome)

    def on_close(self) -> None:
        """Locks stay until they expire, as in the service."""
        self._tokens.clear()
        self._waiting.discard(self)


class WaitingRoom(Protocol):
    """Where consumers with credit wait for messages."""

    def add(self, consumer: Consumer) -> None:
        """Let a consumer wait, and see at once whether there is something for it."""

    def discard(self, consumer: Consumer) -> None:
        """The consumer is gone."""


def _modified(queue: Queue, token: bytes, delivery: Delivery, now: int) -> None:
    if delivery.remote.undeliverable:
        queue.defer(token, now)
    elif delivery.remote.failed:
        queue.abandon(token, now)
    else:
        queue.release(token, now)


def _rejected(queue: Queue, token: bytes, delivery: Delivery, now: int) -> None:
    found = delivery.remote.condition
    info = found.info if found is not None and isinstance(found.info, dict) else {}
    reason, text = info.get("DeadLetterReason"), info.get("DeadLetterErrorDescription")
    queue.dead_letter(token, now, *(str(cause) if cause else None for cause in (reason, text)))


_SETTLEMENTS: Final[dict[Any, Callable[[Queue, bytes, Delivery, int], None]]] = {
    Disposition.ACCEPTED: lambda queue, token, _, now: queue.complete(token, now),
    Disposition.RELEASED: lambda queue, token, _, now: queue.release(token, now),
    Disposition.MODIFIED: _modified,
    Disposition.REJECTED: _rejected,
}
