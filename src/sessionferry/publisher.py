"""The client library: sends batches to the queue, and says which are safely there.

async with Publisher(endpoints) as publisher:
    for packed in pack(header, blocks, publisher.limit):
        for header in await publisher.send(packed):
            ...                     # this batch is in the queue: it may be forgotten here
    for header in await publisher.flush():
        ...
"""

import asyncio
import hashlib
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Self

from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.servicebus import ServiceBusMessage, ServiceBusMessageBatch
from azure.servicebus._common.message import PrimitiveTypes
from azure.servicebus.aio import ServiceBusClient, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
)

from sessionferry.archive import Archive, inbox_key
from sessionferry.batch import (
    Claim,
    Header,
    batch_id,
    encode_parts,
    replay_id,
)
from sessionferry.errors import Kind, ThrottledError, TransientError, UserError, classify
from sessionferry.packing import RAW_BYTES, Packed
from sessionferry.queue_client import open_client
from sessionferry.retrying import retry
from sessionferry.settings import Endpoints

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

PROPERTY_ROOM = 2 * 1024
"""Bytes of a message left for its properties: Service Bus counts them towards its limit."""
CLOSE_SECONDS = 5.0
"""How long a queue that no longer answers may hold up the closing of a link."""
ANSWER_SECONDS = 30.0
"""How long a link may take to open, the way to an Entra token included."""
TAKEN_SECONDS = 60.0
"""How long a message may be under way: a network that is left says nothing."""
THROTTLED_SECONDS = 10.0
"""How long a queue that is busy is left alone: as Service Bus asks for."""
MOST_PENDING = 500
"""Batches held back to be sent together, however small they are."""


_NOT_FOUND = 404
_REFUSALS = (
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    MessagingEntityNotFoundError,
)


class Publisher:
    """One sending link to one queue. Not for concurrent use: one task sends at a time."""

    def __init__(
        self, endpoints: Endpoints, *, resend: bool = False, retry_seconds: float = 60.0
    ) -> None:
        self._endpoints = endpoints
        self._inbox = Archive.open(endpoints.inbox)
        self._resend = resend
        self._retry_seconds = retry_seconds
        self._client: ServiceBusClient | None = None
        self._sender: ServiceBusSender | None = None
        self._credential: DefaultAzureCredential | None = None
        self._group: ServiceBusMessageBatch | None = None  # the pending messages, as one transfer
        self._pending: list[tuple[Header, ServiceBusMessage]] = []
        self._limit = 0
        self.sent_bytes = 0
        """Bytes of encoded batches that were handed over, in messages or through the inbox."""

    async def __aenter__(self) -> Self:
        try:
            await retry(self._connect, seconds=self._retry_seconds)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def limit(self) -> int:
        """Most bytes that one message's body may have: the link's own limit, less properties."""
        return self._limit - PROPERTY_ROOM

    async def send(self, packed: Packed) -> list[Header]:
        """Take a batch; return the headers of those that are now safely in the queue.

        A batch too large for a message goes to the inbox first. After an error this batch was not
        taken, and every earlier one that was not returned is still held: `flush` tries them again.
        """
        message = await self._message(packed)
        accepted = []
        if len(self._pending) >= MOST_PENDING or not self._fits(message):
            accepted = await self.flush()
            self._fits(message)
        self._pending.append((packed.header, message))
        return accepted

    async def send_again(
        self, body: bytes, message_id: str, content_encoding: str | None = None
    ) -> None:
        """Send a message's body as it came, by itself, under an id that is new to the queue."""
        properties: dict[str | bytes, PrimitiveTypes] | None = (
            {"content_encoding": content_encoding} if content_encoding else None
        )
        message = ServiceBusMessage(
            body, message_id=replay_id(message_id), application_properties=properties
        )
        await retry(lambda: self._hand_over(message), seconds=self._retry_seconds)

    async def flush(self) -> list[Header]:
        """Send what is held; return the headers of the batches that are now in the queue."""
        if not self._pending:
            return []
        await retry(self._send_pending, seconds=self._retry_seconds)
        accepted = [header for header, _ in self._pending]
        self._pending = []
        self._group = None
        return accepted

    async def close(self) -> None:
        """Close the link; batches that were not flushed are not sent."""
        parts = (self._sender, self._client, self._credential)
        self._sender = self._client = self._credential = None
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for part in parts:
                    if part is not None:
                        await part.close()
        except TimeoutError:
            log.debug("the queue did not answer while the link was closed")

    # ------------------------------------------------------------ link

    async def _connect(self) -> None:
        await self.close()
        self._client, self._credential = open_client(self._endpoints)
        self._sender = self._client.get_queue_sender(self._endpoints.queue)
        try:
            # The SDK waits for ever where a firewall swallows what is sent.
            async with asyncio.timeout(ANSWER_SECONDS):
                self._limit = (await self._sender.create_message_batch()).max_size_in_bytes
        except TimeoutError:
            await self._drop_link()
            raise TransientError(
                f"The queue cannot be reached: it does not answer within {ANSWER_SECONDS:.0f} s."
            ) from None
        except _REFUSALS as error:
            raise UserError(_refusal(self._endpoints, error)) from None
        except ClientAuthenticationError as error:
            raise UserError(
                f"This machine has no identity that the queue accepts: {_brief(error)} "
                "Sign in with `az login`, or set AZURE_CLIENT_ID or FERRY_SAS_FILE."
            ) from None
        except (AzureError, OSError) as error:
            raise TransientError(f"The queue cannot be reached: {_brief(error)}") from error

    async def _send_pending(self) -> None:
        group = self._group if len(self._pending) > 1 else None
        await self._hand_over(group or self._pending[0][1])

    async def _hand_over(self, messages: ServiceBusMessageBatch | ServiceBusMessage) -> None:
        if self._sender is None:
            await self._connect()
        sender = self._sender
        if sender is None:
            raise TransientError("The queue cannot be reached.")
        try:
            async with asyncio.timeout(TAKEN_SECONDS):
                await sender.send_messages(messages)
        except TimeoutError:
            await self._drop_link()
            raise TransientError(
                f"The queue did not take a batch within {TAKEN_SECONDS:.0f} s."
            ) from None
        except (AzureError, OSError) as error:
            await self._drop_link()
            sentence = f"The queue did not take a batch: {_brief(error)}"
            if classify(error) is Kind.THROTTLED:
                raise ThrottledError(sentence, retry_after=THROTTLED_SECONDS) from error
            raise TransientError(sentence) from error

    async def _drop_link(self) -> None:
        try:
            await self.close()
        except (AzureError, OSError, asyncio.CancelledError) as error:
            log.debug("closing a broken link failed", extra={"error": _brief(error)})

    # ------------------------------------------------------------ messages

    async def _message(self, packed: Packed) -> ServiceBusMessage:
        header = packed.header
        body = encode_parts(header, packed.compressed)
        self.sent_bytes += len(body)
        if len(body) > self.limit or header.length > RAW_BYTES:
            header = await self._claim(header, body)
            body = encode_parts(header, b"")
        message_id = batch_id(header, packed.sha256)
        if self._resend:
            message_id = replay_id(message_id)
        properties: dict[str | bytes, PrimitiveTypes] = {"content_encoding": "zstd"}
        return ServiceBusMessage(body, message_id=message_id, application_properties=properties)

    async def _claim(self, header: Header, body: bytes) -> Header:
        claim = Claim(size=len(body), sha256=hashlib.sha256(body).hexdigest())
        key = inbox_key(header, claim.sha256)
        await retry(lambda: self._inbox.put(key, body), seconds=self._retry_seconds)
        return header.model_copy(update={"claim": claim})

    def _fits(self, message: ServiceBusMessage) -> bool:
        """Whether a message can go with those that are held; the first one always does."""
        if not self._pending:
            # The SDK does not count what the transfer itself repeats of the first message.
            self._group = ServiceBusMessageBatch(self._limit - PROPERTY_ROOM)
        if self._group is None:
            return False
        try:
            self._group.add_message(message)
        except MessageSizeExceededError:
            # By itself it fits: a group costs a few bytes more than a message alone.
            if not self._pending:
                self._group = None
            return not self._pending
        return True


def _refusal(endpoints: Endpoints, error: AzureError) -> str:
    """Say why the queue refuses us: it is not there, or who we are, or what we may do."""
    # What the queue said of our token; the SDK's own error has not kept it.
    inner = error.inner_exception
    status = getattr(inner, "status_code", None)
    described = getattr(inner, "status_description", None) or b""
    said = described.decode(errors="replace") if isinstance(described, bytes) else str(described)
    queue = endpoints.queue
    if status == _NOT_FOUND or isinstance(error, MessagingEntityNotFoundError):
        return f"There is no queue {queue} ({endpoints.destination}); FERRY_QUEUE names it."
    if isinstance(error, ServiceBusAuthenticationError) and "claim" not in said:
        told = said.split("\n", 1)[0][:300] or _brief(error)
        return (
            f"The queue {queue} refused this sender: {told} Its key or token is not valid there; "
            "take a new one, and look at this machine's clock."
        )
    return (
        f"The queue {queue} refused this sender: {_brief(error)} "
        "It needs the right to send (role Azure Service Bus Data Sender)."
    )


def _brief(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:300]
