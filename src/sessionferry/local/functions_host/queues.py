"""Serving queues: receive under a lock, call the function, settle."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus.aio import AutoLockRenewer, ServiceBusClient, ServiceBusReceiver
from azure.servicebus.exceptions import MessageLockLostError

from sessionferry.local.functions_host.app import Connection, Function, ServiceBusTrigger
from sessionferry.local.functions_host.config import ServiceBusOptions
from sessionferry.local.functions_host.messages import many_messages, one_message
from sessionferry.local.functions_host.waiting import T, unless_set
from sessionferry.local.functions_host.worker import Worker

log = logging.getLogger(__name__)

_RECEIVE_WAIT: Final = 30.0  # seconds per receive; stopping does not wait for it
# Seconds that the client waits for a frame. It waits once in vain when messages are completed at
# the same time: with its default, 0.2, that is as long as taking them in.
_SOCKET_WAIT: Final = 0.05
_FIRST_PAUSE: Final = 0.25  # seconds before the first reconnect; doubled each time
_LONGEST_PAUSE: Final = 5.0  # seconds


class QueueListener:
    """Feeds one function from its queue until told to stop."""

    def __init__(
        self,
        function: Function,
        trigger: ServiceBusTrigger,
        options: ServiceBusOptions,
        worker: Worker,
        stopping: asyncio.Event,
    ) -> None:
        self._function = function
        self._trigger = trigger
        self._options = options
        self._worker = worker
        self._stopping = stopping
        self._away = False
        self._pause = _FIRST_PAUSE

    async def run(self) -> None:
        """Serve, and connect again for ever when the broker is away."""
        while not self._stopping.is_set():
            try:
                async with self._receiver() as receiver:
                    await self._serve(receiver)
            except Exception as error:  # noqa: BLE001 - no fault of the broker may end the host
                await self._wait_after(error)

    @asynccontextmanager
    async def _receiver(self) -> AsyncIterator[ServiceBusReceiver]:
        """A receiver that is open, unless the host is stopping."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                open_client(self._trigger.connection, self._options)
            )
            receiver = client.get_queue_receiver(
                self._trigger.queue,
                prefetch_count=self._options.prefetch_count,
                socket_timeout=_SOCKET_WAIT,
            )
            stack.push_async_callback(receiver.close)
            await self._unless_stopped(receiver.__aenter__())
            yield receiver

    async def _serve(self, receiver: ServiceBusReceiver) -> None:
        log.info("function=%s queue=%s connected", self._function.name, self._trigger.queue)
        self._away = False
        if self._trigger.many:
            await self._serve_batches(receiver)
        else:
            await self._serve_singly(receiver)

    async def _wait_after(self, error: Exception) -> None:
        """Back off, with one warning per outage."""
        log.log(
            logging.DEBUG if self._away else logging.WARNING,
            "function=%s queue=%s disconnected, connecting again: %s: %s",
            self._function.name,
            self._trigger.queue,
            type(error).__name__,
            error,
        )
        self._away = True
        await self._unless_stopped(asyncio.sleep(self._pause))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _serve_batches(self, receiver: ServiceBusReceiver) -> None:
        """One batch at a time, as the real listener does; batches' locks are not renewed."""
        while not self._stopping.is_set():
            messages = await self._batch(receiver)
            if messages:
                build = partial(many_messages, messages, binary=self._trigger.binary)
                returned = await self._worker.invoke(self._function, build, messages=len(messages))
                await self._settle(receiver, messages, returned=returned)

    async def _batch(self, receiver: ServiceBusReceiver) -> list[ServiceBusReceivedMessage]:
        """What one receive gives; below the minimum, wait for more up to `maxBatchWaitTime`.

        What was collected when the host stops is still dispatched, as the real host does.
        """
        options = self._options
        messages = await self._receive(receiver, options.max_message_batch_size, _RECEIVE_WAIT)
        deadline = time.monotonic() + options.max_batch_wait_time
        while messages and len(messages) < options.min_message_batch_size:
            left = deadline - time.monotonic()
            if left <= 0 or self._stopping.is_set():
                break
            room = options.max_message_batch_size - len(messages)
            messages += await self._receive(receiver, room, left)
        return messages

    async def _serve_singly(self, receiver: ServiceBusReceiver) -> None:
        """Up to `maxConcurrentCalls` messages at a time, whose locks are renewed."""
        running: set[asyncio.Task[None]] = set()
        async with AutoLockRenewer() as renewer:
            try:
                while not self._stopping.is_set():
                    room = self._options.max_concurrent_calls - len(running)
                    if room == 0:
                        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                        continue
                    for message in await self._receive(receiver, room, _RECEIVE_WAIT):
                        task = asyncio.create_task(self._one(receiver, renewer, message))
                        running.add(task)
                        task.add_done_callback(running.discard)
            finally:
                await asyncio.gather(*running)

    async def _one(
        self,
        receiver: ServiceBusReceiver,
        renewer: AutoLockRenewer,
        message: ServiceBusReceivedMessage,
    ) -> None:
        duration = self._options.max_auto_lock_renewal_duration
        if duration > 0:
            renewer.register(receiver, message, max_lock_renewal_duration=duration)
        build = partial(one_message, message, binary=self._trigger.binary)
        returned = await self._worker.invoke(self._function, build, messages=1)
        await self._settle(receiver, [message], returned=returned)

    async def _receive(
        self, receiver: ServiceBusReceiver, count: int, wait: float
    ) -> list[ServiceBusReceivedMessage]:
        """Receive; when the host stops, what is under way is released as the receiver closes."""
        receiving = receiver.receive_messages(max_message_count=count, max_wait_time=wait)
        messages = await self._unless_stopped(receiving) or []
        self._pause = _FIRST_PAUSE
        return messages

    async def _settle(
        self,
        receiver: ServiceBusReceiver,
        messages: Sequence[ServiceBusReceivedMessage],
        *,
        returned: bool,
    ) -> None:
        """Complete all, or abandon all; what cannot be settled is left to its lock."""
        if returned and not self._auto_complete:
            return
        settle = receiver.complete_message if returned else receiver.abandon_message
        results = await asyncio.gather(*map(settle, messages), return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                log.warning(
                    "function=%s queue=%s could not %s a message: %s",
                    self._function.name,
                    self._trigger.queue,
                    "complete" if returned else "abandon",
                    "its lock was lost" if isinstance(error, MessageLockLostError) else error,
                )

    @property
    def _auto_complete(self) -> bool:
        own = self._trigger.auto_complete
        return self._options.auto_complete_messages if own is None else own

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        return await unless_set(self._stopping, work)


@asynccontextmanager
async def open_client(
    connection: Connection, options: ServiceBusOptions
) -> AsyncIterator[ServiceBusClient]:
    """A client by connection string, or by identity for a namespace."""
    retry = options.client_retry_options
    arguments: dict[str, Any] = {
        "retry_total": retry.max_retries,
        "retry_backoff_factor": retry.delay,
        "retry_backoff_max": retry.max_delay,
        "retry_mode": retry.mode,
        "try_timeout": retry.try_timeout,
    }
    if connection.connection_string is not None:
        client = ServiceBusClient.from_connection_string(connection.connection_string, **arguments)
        async with client:
            yield client
        return
    from azure.identity.aio import DefaultAzureCredential

    async with (
        DefaultAzureCredential(managed_identity_client_id=connection.client_id) as credential,
        ServiceBusClient(connection.namespace or "", credential, **arguments) as client,
    ):
        yield client
