"""One client connection: bytes in and out of proton, and its links."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from proton import (
    Collector,
    Connection,
    Delivery,
    Event,
    Link,
    Receiver,
    Sender,
    Terminus,
    Transport,
)

from sessionferry.local.broker import cbs, links, management, message
from sessionferry.local.broker.errors import ServiceError
from sessionferry.local.broker.frames import FrameWatch
from sessionferry.local.broker.queues import Queue

MAX_FRAME_BYTES: Final = 65_536
IDLE_SECONDS: Final = 240  # Service Bus closes connections that are silent for four minutes
OPEN_SECONDS: Final = 30  # a client that has not opened its connection by then is dropped
_CBS: Final = "$cbs"
_MANAGEMENT: Final = "/$management"
_DEAD_LETTERS: Final = "/$deadletterqueue"
_SESSION_FILTER: Final = b"com.microsoft:session-filter"

logger = logging.getLogger(__name__)


class Host(Protocol):
    """What a connection needs of its broker."""

    rules: dict[str, cbs.SasRule]
    connections: set["ClientConnection"]

    @property
    def waiting(self) -> links.WaitingRoom:
        """Where consumers wait."""

    def now(self) -> int:
        """Milliseconds since the epoch."""

    def find(self, name: str) -> Queue:
        """The queue of that name, or NotFoundError."""

    def touch(self, connection: "ClientConnection") -> None:
        """The connection has something to say once the turn is committed."""


class ClientConnection(asyncio.Protocol):
    """Feeds proton with what the client sends; a fault in here costs this client only."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.claims = cbs.Claims()
        self._nodes: dict[Link, links.Node] = {}
        self._watch = FrameWatch()
        self._collector = Collector()
        self._amqp = Connection()
        self._amqp.collect(self._collector)
        self._engine = Transport(mode=Transport.SERVER)
        self._engine.max_frame_size = MAX_FRAME_BYTES
        self._engine.idle_timeout = IDLE_SECONDS
        self._engine.sasl().allowed_mechs("ANONYMOUS")
        self._engine.bind(self._amqp)
        self._socket: Any = None
        self._paused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._handlers: dict[Any, Callable[[Any], None]] = {
            Event.CONNECTION_REMOTE_OPEN: self._on_open,
            Event.CONNECTION_REMOTE_CLOSE: self._on_close,
            Event.SESSION_REMOTE_OPEN: lambda event: event.session.open(),
            Event.SESSION_REMOTE_CLOSE: self._on_session_close,
            Event.LINK_REMOTE_OPEN: self._on_link_open,
            Event.LINK_REMOTE_CLOSE: self._on_link_close,
            Event.LINK_REMOTE_DETACH: self._on_link_close,
            Event.LINK_FLOW: self._on_link_flow,
            Event.DELIVERY: self._on_delivery,
            Event.TRANSPORT_ERROR: self._on_transport_error,
        }

    # Bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._socket = transport
        self._host.connections.add(self)
        self._later("open", OPEN_SECONDS, self._drop_unless_open)
        self._host.touch(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone; what it holds locked stays so until the locks expire."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for node in self._nodes.values():
            node.on_close()
        self._nodes.clear()
        self._host.connections.discard(self)
        self._engine.unbind()
        self._collector.release()
        logger.debug("client disconnected", extra={"action": "client_disconnected"})

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        try:
            self._push(data)
        except Exception:  # whatever a client provokes must not reach the others
            logger.warning(
                "dropped a client: its input was not understood",
                exc_info=True,
                extra={"action": "client_dropped"},
            )
            self.abort()

    def _push(self, data: bytes) -> None:
        data = self._watch.feed(data)
        pos = 0
        while pos < len(data):
            room = self._engine.capacity()
            if room < 0:
                break
            self._engine.push(data[pos : pos + room] if pos or room < len(data) else data)
            pos += room
            self._process()
        self._host.touch(self)

    def eof_received(self) -> None:
        """The client sends no more, so the connection ends."""
        self.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly; proton keeps what follows."""
        self._paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._paused = False
        self._host.touch(self)

    def flush(self) -> None:
        """Write what proton has to say."""
        if self._socket is None or self._socket.is_closing():
            return
        self._process()
        while not self._paused:
            pending = self._engine.pending()
            if pending <= 0:
                break
            self._socket.write(self._engine.peek(pending))
            self._engine.pop(pending)
        self._wake_congested()
        if self._engine.pending() < 0:
            self._socket.close()

    def _wake_congested(self) -> None:
        for node in self._nodes.values():
            if isinstance(node, links.Consumer) and node.congested and not self._paused:
                node.on_flow()

    def abort(self) -> None:
        """End the connection at once."""
        if self._socket is not None:
            self._socket.abort()

    def close(self) -> None:
        """Tell the client that the broker shuts down."""
        self._amqp.condition = links.condition(
            ServiceError("amqp:connection:forced", "The broker shuts down.")
        )
        self._amqp.close()
        self.flush()
        if self._socket is not None:
            self._socket.close()

    # Time

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, call)

    def _drop_unless_open(self) -> None:
        if not self._amqp.state & Connection.REMOTE_ACTIVE:
            self.abort()

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        deadline = self._engine.tick(now)
        if deadline:
            self._later("tick", max(deadline - now, 0.01), self._tick)
        self._host.touch(self)

    def _end_unauthorized(self) -> None:
        """Links end with the token that allowed them."""
        now = self._host.now() / 1000
        for link, node in list(self._nodes.items()):
            if node.path != _CBS and not self.claims.allow(node.path, node.right, now):
                links.end(link, ServiceError("amqp:unauthorized-access", "The token expired."))
                self._forget(link)
        self._host.touch(self)

    # Events

    def _process(self) -> None:
        while (event := self._collector.peek()) is not None:
            handler = self._handlers.get(event.type)
            if handler is not None:
                handler(event)
            self._collector.pop()

    def _on_open(self, _event: Any) -> None:
        self._amqp.container = "sessionferry"
        self._amqp.open()
        self._tick()

    def _on_close(self, _event: Any) -> None:
        self._amqp.close()

    def _on_session_close(self, event: Any) -> None:
        for link in [link for link in self._nodes if link.session == event.session]:
            self._forget(link)
        event.session.close()
        event.session.free()

    def _on_transport_error(self, _event: Any) -> None:
        found = self._engine.condition
        logger.info(
            "connection failed: %s",
            found.description if found else "no reason given",
            extra={"action": "connection_failed"},
        )

    def _on_link_flow(self, event: Any) -> None:
        node = self._nodes.get(event.link)
        if node is not None:
            node.on_flow()

    def _on_delivery(self, event: Any) -> None:
        delivery: Delivery = event.delivery
        node = self._nodes.get(delivery.link)
        if node is not None:
            node.on_delivery(delivery)

    def _on_link_close(self, event: Any) -> None:
        self._forget(event.link)
        event.link.close()
        event.link.free()

    def _forget(self, link: Link) -> None:
        node = self._nodes.pop(link, None)
        if node is not None:
            node.on_close()

    # Links

    def _on_link_open(self, event: Any) -> None:
        link: Any = event.link  # a Sender or a Receiver
        link.snd_settle_mode = link.remote_snd_settle_mode
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        if link.is_receiver:
            link.max_message_size = message.MAX_MESSAGE_BYTES
        try:
            self._nodes[link] = self._sender(link) if link.is_sender else self._receiver(link)
        except ServiceError as error:
            logger.info("refused a link: %s", error, extra={"action": "link_refused"})
            links.refuse(link, error)
        else:
            link.source.copy(link.remote_source)
            link.target.copy(link.remote_target)
            link.open()

    def _receiver(self, link: Receiver) -> links.Node:
        if link.remote_target.type == Terminus.COORDINATOR:
            raise ServiceError("amqp:not-implemented", "Transactions are not supported.", 501)
        path = cbs.path_of(link.remote_target.address or "")
        if path == _CBS:
            return links.Inbox(link, path, "", lambda raw, _: self._put_token(link, raw))
        if path.endswith(_MANAGEMENT):
            target = self._target(path.removesuffix(_MANAGEMENT), "")
            return links.Inbox(
                link, target.path, "", lambda raw, _: self._manage(link, target, raw)
            )
        target = self._target(path, "send")
        if target.entity != target.queue.active:
            raise ServiceError("amqp:not-allowed", "Nothing is sent to a dead-letter queue.")

        def store(raw: bytes, delivery: Delivery) -> None:
            batch = self._watch.take_batch(links.tag_of(delivery))
            links.enqueue(target.queue, raw, self._host.now(), batch=batch)

        return links.Inbox(link, path, "send", store)

    def _sender(self, link: Sender) -> links.Node:
        path = cbs.path_of(link.remote_source.address or "")
        if path == _CBS:
            return links.ReplyBox(link, path, "")
        if path.endswith(_MANAGEMENT):
            return links.ReplyBox(link, self._target(path.removesuffix(_MANAGEMENT), "").path, "")
        target = self._target(path, "listen")
        if _SESSION_FILTER in link.remote_source.filter.encode():
            raise ServiceError(
                "amqp:not-allowed",
                "It is not possible for an entity that doesn't require sessions to create a "
                "sessionful message receiver.",
            )
        return links.Consumer(
            link,
            path,
            target,
            connection=self,
            waiting=self._host.waiting,
            clock=self._host.now,
        )

    def _target(self, path: str, right: str) -> management.Target:
        now = self._host.now() / 1000
        self.claims.require(path, right, now)
        name = path.removesuffix(_DEAD_LETTERS)
        queue = self._host.find(name)
        entity = queue.active if name == path else queue.dead
        return management.Target(queue=queue, entity=entity, path=path, claims=self.claims)

    # Requests

    def _put_token(self, link: Link, raw: bytes) -> None:
        request = management.parse(raw)
        now = self._host.now() / 1000
        answer = management.put_token(request, self._host.rules, self._check, self.claims, now)
        self._answer(link, request, answer)
        self._watch_expiry(now)

    def _watch_expiry(self, now: float) -> None:
        expires = self.claims.next_expiry(now)
        if expires is not None:
            self._later("token", min(expires - now + 1, 86_400), self._end_unauthorized)

    def _check(self, path: str) -> None:
        if path:
            self._host.find(path.removesuffix(_MANAGEMENT).removesuffix(_DEAD_LETTERS))

    def _manage(self, link: Link, target: management.Target, raw: bytes) -> None:
        request = management.parse(raw)
        self._answer(link, request, management.manage(request, target, self._host.now()))

    def _answer(self, link: Link, request: management.Request, answer: bytes) -> None:
        boxes = [
            node
            for other, node in self._nodes.items()
            if isinstance(node, links.ReplyBox)
            and other.session == link.session
            and node.path == self._nodes[link].path
        ]
        if not boxes:
            raise ServiceError("amqp:not-found", "There is no link to send the response on.")
        named = [box for box in boxes if request.reply_to in (None, box.address)]
        (named or boxes)[-1].send(answer)
