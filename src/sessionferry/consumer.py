"""The Function App's side of ingest: one `Ingest` per process, and messages as it wants them."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Protocol

from sessionferry import dead_letters, expiring, sweeping, telemetry, upgrading, watching
from sessionferry.archive import Archive, is_folder
from sessionferry.delivery import Message, Outcome
from sessionferry.errors import FerryError, UserError
from sessionferry.expiry import Policy
from sessionferry.ingest import Ingest
from sessionferry.settings import Settings, endpoints
from sessionferry.store.opening import open_store

log = logging.getLogger(__name__)

READINESS_SECONDS = 10.0
"""How long an answer about readiness holds: whoever asks more often costs nothing."""
READINESS_TIMEOUT = 10.0
LOCK_SECONDS = 300.0
"""How long a message is ours when the host does not say: the queue's lock duration, PT5M."""

SWEEP_SECONDS = 240.0
"""How long one run of the sweep goes on: well below the invocation's limit of ten minutes."""
EXPIRE_SECONDS = 240.0
"""The same for a run of the retention."""


REPLAY_SECONDS = 240.0
MOST_REPLAYED = 500
"""Messages that are judged anew in one run of that timer."""
REBUILD_SECONDS = 240.0


class QueueMessage(Protocol):
    """The part of `azure.functions.ServiceBusMessage` that is used."""

    def get_body(self) -> bytes: ...

    @property
    def message_id(self) -> str: ...

    @property
    def application_properties(self) -> dict[str, object]: ...

    @property
    def enqueued_time_utc(self) -> datetime | None: ...

    @property
    def delivery_count(self) -> int | None: ...

    @property
    def locked_until(self) -> datetime | None: ...


class Consumer:
    """Opens its store and archive on first use, so that the app starts without them."""

    def __init__(self) -> None:
        self._ingest: Ingest | None = None
        self._opening = asyncio.Lock()
        self._readiness = HTTPStatus.SERVICE_UNAVAILABLE
        self._readiness_until = -1.0

    async def take_in(self, messages: Sequence[QueueMessage]) -> list[Outcome]:
        """Bring the messages of one invocation to their final state.

        Raises only for faults of the infrastructure; the queue then delivers them again.
        """
        ingest = await self._open()
        return await ingest.take_in([message_from(message) for message in messages])

    async def watch_queue(self) -> None:
        """Look at how long the queue's oldest message has waited."""
        await watching.watch_queue(Settings.read())

    async def watch_store(self) -> None:
        """Look for hosts that fell silent and sessions that lack lines."""
        ingest = await self._open()
        await watching.watch_store(ingest.store, datetime.now(UTC))

    async def redrive(self) -> None:
        """Send again what an outage dead-lettered; raises while the store does not answer."""
        ingest = await self._open()
        await ingest.store.check()
        await dead_letters.redrive(endpoints(Settings.read()), ingest.archive)

    async def sweep(self) -> None:
        """Finish what was left unfinished, as far as the time goes; the next run goes on."""
        ingest = await self._open()
        settings = Settings.read()
        await sweeping.sweep_heads(ingest.store, ingest.archive, seconds=SWEEP_SECONDS)
        if is_folder(settings.inbox or ""):
            await sweeping.sweep_inbox(ingest.inbox, datetime.now(UTC))

    async def expire(self) -> None:
        """Do what retention is due, as far as the time goes; nothing while it is off."""
        policy = Policy.from_settings(Settings.read())
        if policy.is_off:
            return
        ingest = await self._open()
        now = datetime.now(UTC)
        await expiring.expire(ingest.store, ingest.archive, policy, now, seconds=EXPIRE_SECONDS)

    async def replay(self) -> None:
        """Judge anew what an older version quarantined; raises while the store does not answer."""
        ingest = await self._open()
        await upgrading.judge_anew(
            ingest, datetime.now(UTC), most=MOST_REPLAYED, seconds=REPLAY_SECONDS
        )

    async def rebuild(self) -> None:
        """Make anew what an older version derived; nothing where the settings say none."""
        settings = Settings.read()
        if not settings.rebuild_sessions:
            return
        ingest = await self._open()
        now = datetime.now(UTC)
        await upgrading.rebuild_outdated(
            *(ingest.store, ingest.archive, now),
            most=settings.rebuild_sessions,
            seconds=REBUILD_SECONDS,
        )

    async def readiness(self) -> HTTPStatus:
        """Return 200 if messages could be taken in now, else 503; asked often, it looks seldom."""
        if time.monotonic() > self._readiness_until:
            self._readiness = await self._look()
            self._readiness_until = time.monotonic() + READINESS_SECONDS
        return self._readiness

    async def _look(self) -> HTTPStatus:
        try:
            async with asyncio.timeout(READINESS_TIMEOUT):
                ingest = await self._open()
                await ingest.store.check()
                await ingest.archive.check()
        except (FerryError, TimeoutError) as error:
            log.warning("not ready: %s", error, extra={"event": "not_ready"})
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.OK

    async def _open(self) -> Ingest:
        async with self._opening:
            if self._ingest is None:
                settings = Settings.read()
                telemetry.start(settings.metrics_port)
                self._ingest = await open_ingest(settings)
            return self._ingest


async def open_ingest(settings: Settings) -> Ingest:
    """Open what the settings name; raises `UserError` when one is missing."""
    url = settings.store_url
    if url is None or settings.archive is None or settings.inbox is None:
        raise UserError(
            "The Function App needs FERRY_ARCHIVE, FERRY_INBOX, and FERRY_STORE or "
            "FERRY_COSMOS_ENDPOINT."
        )
    store = await open_store(url.get_secret_value(), settings)
    return Ingest(store, Archive.open(settings.archive), Archive.open(settings.inbox))


def message_from(received: QueueMessage) -> Message:
    """Take over what ingest needs of a Functions message."""
    encoding = (received.application_properties or {}).get("content_encoding")
    return Message(
        body=received.get_body(),
        message_id=received.message_id or "",
        content_encoding=str(encoding) if encoding is not None else None,
        enqueued_at=_seconds(received.enqueued_time_utc),
        delivery_count=received.delivery_count or 1,
        locked_until=time.monotonic() + _lock_seconds(received.locked_until),
    )


def _lock_seconds(locked_until: datetime | None) -> float:
    """Return how long a lock holds from now; never longer than the queue's, whatever the clock."""
    until = _seconds(locked_until)
    if until is None:
        return LOCK_SECONDS
    return min(max(until - time.time(), 0.0), LOCK_SECONDS)


def _seconds(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
