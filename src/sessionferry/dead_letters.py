"""The queue's dead letters: look at them, send them again, remove them.

Replaying receives a message from the dead-letter sub-queue, sends a copy under a new id and
completes the original only after the copy was taken. Ended in between, the message is sent twice,
which is harmless: ingest takes any message any number of times.
"""

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from azure.core.exceptions import AzureError
from azure.servicebus import ServiceBusReceivedMessage, ServiceBusSubQueue
from azure.servicebus._pyamqp.utils import amqp_long_value
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageSizeExceededError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
)

from sessionferry.archive import Archive
from sessionferry.audit import recorded
from sessionferry.batch import replay_id
from sessionferry.errors import PermanentError, TransientError, UserError
from sessionferry.pacing import Pace
from sessionferry.queue_client import open_client
from sessionferry.retrying import retry
from sessionferry.settings import Endpoints

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

REPLAYS = "ferry_replays"
"""Application property: how often a message was sent again from the dead letters."""
OUTAGE = "MaxDeliveryCountExceeded"
"""The queue's reason for what no delivery brought to an end: what an outage leaves behind."""
MOST_REPLAYS = 3
"""Replays after which the timer leaves a message: what fails so often fails for itself."""
MOST_REDRIVEN = 1_000
"""Messages that one run of the timer sends again."""
REDRIVE_RATE = 20.0
"""How many of them a second: an outage's backlog must not cause the next one."""
MOST_AT_ONCE = 16
"""Messages that are locked at a time."""
MOST_HELD = 1_000
"""Messages that were not asked for, kept to be given back at the end; locks of more just end."""
CLOSE_SECONDS = 5.0
"""How long a queue that no longer answers may hold up the closing of a link."""
_CHUNK_SECONDS = 10.0  # work that is locked at a time, at the given rate: well below any lock
_PEEKED = 100
_INT = 2**31
_CAUSES = ("DeadLetterReason", "DeadLetterErrorDescription")
# Of the annotations that begin so, these are a sender's; the others are the queue's own.
_OPTIONAL = "x-opt-"
_SENDERS = ("x-opt-partition-key", "x-opt-via-partition-key")


class DeadLetter(NamedTuple):
    """A dead letter as it lies in the queue."""

    number: int
    message_id: str
    reason: str
    description: str
    enqueued_at: str
    delivery_count: int
    properties: dict[str, Any]
    body: bytes

    @property
    def content_encoding(self) -> str | None:
        """How the body says it is compressed."""
        named = self.properties.get("content_encoding")
        return None if named is None else str(named)

    @property
    def replays(self) -> int:
        """How often it was sent again already."""
        count = self.properties.get(REPLAYS, 0)
        return count if isinstance(count, int) else 0


@dataclass(slots=True)
class Moved:
    """Which dead letters are asked for, and what has become of them so far."""

    asked: frozenset[int]
    done: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Those that are dead letters still, for whatever reason."""
        return len(self.asked - self.done)

    @property
    def counts(self) -> dict[str, int]:
        """The sums, for records."""
        return {"asked": len(self.asked), "done": len(self.done), "failed": len(self.failed)}

    @property
    def open(self) -> int:
        """Those that were not come to yet."""
        return self.left - len(self.failed)


class DeadLetters:
    """The dead letters of one queue. Not for concurrent use."""

    def __init__(
        self, endpoints: Endpoints, *, patience: float = 5.0, retry_seconds: float = 60.0
    ) -> None:
        self._endpoints = endpoints
        self._patience = patience  # seconds to wait for one that somebody else may have locked
        self._retry_seconds = retry_seconds
        self._client: ServiceBusClient | None = None
        self._credential: DefaultAzureCredential | None = None
        self._receiver: ServiceBusReceiver | None = None

    async def __aenter__(self) -> Self:
        self._client, self._credential = open_client(self._endpoints)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for part in (self._receiver, self._client, self._credential):
                    if part is not None:
                        await part.close()
        except (TimeoutError, AzureError, OSError) as failure:
            log.debug("closing the link to the queue failed: %s", _brief(failure))

    async def peek(self, first: int = 1) -> AsyncIterator[DeadLetter]:
        """Yield dead letters from a number on, in order; nothing is locked."""
        with self._explained("receive", "Data Receiver"):
            receiver = self._opened()
            while found := await receiver.peek_messages(_PEEKED, sequence_number=max(first, 1)):
                for message in found:
                    yield dead_letter(message)
                first = _number(found[-1]) + 1

    async def replay(
        self, moved: Moved, *, rate: float, advance: Callable[[int], None] | None = None
    ) -> None:
        """Send again what is asked for, at most `rate` messages a second.

        `moved` is filled in as it goes, so that it holds whatever ends this. Started anew, it goes
        on with what is left.
        """
        with self._explained("send", "Data Sender"):
            async with self._open().get_queue_sender(self._endpoints.queue) as sender:

                async def send(message: ServiceBusReceivedMessage) -> None:
                    await self._send(sender, message)

                await self._each(moved, send, rate, advance)

    async def purge(self, moved: Moved, *, advance: Callable[[int], None] | None = None) -> None:
        """Remove what is asked for, for good."""

        async def nothing(_: ServiceBusReceivedMessage) -> None:
            return

        await self._each(moved, nothing, None, advance)

    # ------------------------------------------------------------ taking

    async def _each(
        self,
        moved: Moved,
        work: Callable[[ServiceBusReceivedMessage], Awaitable[None]],
        rate: float | None,
        advance: Callable[[int], None] | None,
    ) -> None:
        """Receive until all that is asked for was worked on, or none of it comes any more."""
        pace = Pace(rate or 0)
        at_once = MOST_AT_ONCE if rate is None else max(1, int(rate * _CHUNK_SECONDS))
        others: set[int] = set()
        held: list[ServiceBusReceivedMessage] = []
        again = 0  # others that came again, in a row: more than there are means only they are left
        with self._explained("receive", "Data Receiver"):
            receiver = self._opened()
            while moved.open and again <= len(others):
                received = await receiver.receive_messages(
                    min(MOST_AT_ONCE, at_once, moved.open + len(others)),
                    max_wait_time=self._patience,
                )
                if not received:
                    break
                for message in received:
                    number = _number(message)
                    if number in moved.done:
                        await _complete(receiver, message)
                        continue
                    if number in moved.asked and number not in moved.failed:
                        again = 0
                        await pace.wait()
                        await self._one(receiver, message, work, moved)
                        if advance is not None:
                            advance(1)
                    else:
                        again = again + 1 if number in others else 0
                        others.add(number)
                    if number not in moved.done and len(held) < MOST_HELD:
                        held.append(message)
            await _give_back(receiver, held)

    async def _one(
        self,
        receiver: ServiceBusReceiver,
        message: ServiceBusReceivedMessage,
        work: Callable[[ServiceBusReceivedMessage], Awaitable[None]],
        moved: Moved,
    ) -> None:
        number = _number(message)
        try:
            await work(message)
        except PermanentError as error:
            moved.failed[number] = str(error)
            return
        # From here on it must not be sent again in this run, even if its lock is lost.
        moved.done.add(number)
        await _complete(receiver, message)

    async def _send(self, sender: ServiceBusSender, message: ServiceBusReceivedMessage) -> None:
        copy = resent(message)

        async def attempt() -> None:
            try:
                await sender.send_messages(copy)
            except MessageSizeExceededError:
                raise PermanentError("The message is larger than what the queue takes.") from None
            except (ValueError, TypeError, struct.error) as error:
                sentence = f"A property cannot be sent as it was received: {_brief(error)}"
                raise PermanentError(sentence) from None

        await retry(attempt, seconds=self._retry_seconds)

    # ------------------------------------------------------------ link

    def _open(self) -> ServiceBusClient:
        if self._client is None:
            raise TransientError("The queue is not open.")
        return self._client

    def _opened(self) -> ServiceBusReceiver:
        if self._receiver is None:
            self._receiver = self._open().get_queue_receiver(
                self._endpoints.queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER
            )
        return self._receiver

    @contextmanager
    def _explained(self, right: str, role: str) -> Iterator[None]:
        queue = self._endpoints.queue
        try:
            yield
        except (ServiceBusAuthenticationError, ServiceBusAuthorizationError) as error:
            raise UserError(
                f"The queue {queue} refused: {_brief(error)} "
                f"This needs the right to {right} (role Azure Service Bus {role})."
            ) from None
        except (AzureError, OSError) as error:
            raise TransientError(
                f"The queue failed: {_brief(error)} What was done is done; run it again to go on."
            ) from error


def is_redriven(letter: DeadLetter) -> bool:
    """Whether the timer sends this again: an outage left it, and it was not tried too often."""
    return letter.reason == OUTAGE and letter.replays < MOST_REPLAYS


async def redrive(endpoints: Endpoints, archive: Archive) -> Moved:
    """Send again what an outage left, some of it at a time; leaves a record if there was any.

    Call this only while the store answers: what is sent during an outage comes back.
    """
    async with DeadLetters(endpoints) as letters:
        found: list[int] = []
        waiting = 0
        async for letter in letters.peek():
            waiting += 1
            if is_redriven(letter):
                found.append(letter.number)
                if len(found) == MOST_REDRIVEN:
                    break
        moved = Moved(frozenset(found))
        if found:
            async with recorded(archive, "dlq redrive", queue=endpoints.destination) as record:
                try:
                    await letters.replay(moved, rate=REDRIVE_RATE)
                finally:
                    record.counts |= moved.counts
    log.info(
        *("dead letters redriven: seen=%d done=%d left=%d", waiting, len(moved.done), moved.left),
        extra={"event": "redriven", "seen": waiting, **moved.counts},
    )
    return moved


def dead_letter(message: ServiceBusReceivedMessage) -> DeadLetter:
    """Take over what is shown of a message."""
    enqueued = message.enqueued_time_utc
    return DeadLetter(
        number=_number(message),
        message_id=str(message.message_id or ""),
        reason=message.dead_letter_reason or "",
        description=message.dead_letter_error_description or "",
        enqueued_at=enqueued.isoformat(timespec="milliseconds") if enqueued else "",
        delivery_count=message.delivery_count or 0,
        properties=_properties(message),
        body=_bytes(message),
    )


def resent(message: ServiceBusReceivedMessage) -> AmqpAnnotatedMessage:
    """Copy a message under a new id, without what the queue itself had added to it."""
    raw = message.raw_amqp_message
    header = raw.header
    properties = dict(raw.properties or {})
    # Both are set anew from the time to live, which is a sender's and stays.
    properties |= {"creation_time": None, "absolute_expiry_time": None}
    properties["message_id"] = replay_id(str(message.message_id or ""))
    own = _properties(message)
    for name in _CAUSES:
        own.pop(name, None)
    count = own.get(REPLAYS, 0)
    own[REPLAYS] = count + 1 if isinstance(count, int) else 1
    annotations = {_text(name): value for name, value in (raw.annotations or {}).items()}
    return AmqpAnnotatedMessage(
        **_body(raw),
        header={
            "durable": header.durable,
            "priority": header.priority,
            "time_to_live": header.time_to_live,
        }
        if header
        else None,
        footer=raw.footer,
        properties=properties,
        application_properties={name: _encodable(value) for name, value in own.items()},
        annotations={
            name: value
            for name, value in annotations.items()
            if not name.startswith(_OPTIONAL) or name in _SENDERS
        },
    )


async def _complete(receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> None:
    try:
        await receiver.complete_message(message)
    except MessageLockLostError:
        log.debug("the lock of dead letter %d ended before it was completed", _number(message))


async def _give_back(
    receiver: ServiceBusReceiver, messages: list[ServiceBusReceivedMessage]
) -> None:
    for message in messages:
        try:
            await receiver.abandon_message(message)
        except MessageLockLostError:
            continue


def _number(message: ServiceBusReceivedMessage) -> int:
    return message.sequence_number or 0


def _properties(message: ServiceBusReceivedMessage) -> dict[str, Any]:
    # The client gives names and texts as bytes.
    found = message.application_properties or {}
    return {_text(name): _text_or_bytes(value) for name, value in found.items()}


def _body(raw: AmqpAnnotatedMessage) -> dict[str, Any]:
    if raw.body_type is AmqpMessageBodyType.DATA:
        return {"data_body": list(raw.body)}
    if raw.body_type is AmqpMessageBodyType.SEQUENCE:
        return {"sequence_body": list(raw.body)}
    return {"value_body": raw.body}


def _bytes(message: ServiceBusReceivedMessage) -> bytes:
    body = message.body
    if message.body_type is AmqpMessageBodyType.DATA:
        return b"".join(body)
    if message.body_type is AmqpMessageBodyType.SEQUENCE:
        body = list(body)
    return body if isinstance(body, bytes) else repr(body).encode()


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


def _encodable(value: Any) -> Any:
    """Name the type of an integer beyond 32 bits: the client receives it, and would not send it."""
    if isinstance(value, bool) or not isinstance(value, int) or -_INT <= value < _INT:
        return value
    typed: dict[str, Any] = amqp_long_value(value)  # type: ignore[no-untyped-call]
    return typed


def _text_or_bytes(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _brief(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:300]
