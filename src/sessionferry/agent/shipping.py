"""Shipping once: files are collected into the spool and sent out of it at the same time."""

import asyncio
import threading
from collections.abc import Callable

from sessionferry.agent.collecting import Collector, Report, Stopped
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked
from sessionferry.agent.heart import Heart
from sessionferry.agent.sending import Link, Sending
from sessionferry.agent.spool import FileId, Spool
from sessionferry.errors import TransientError
from sessionferry.host import Identity
from sessionferry.pacing import Pace

ROOM_SECONDS = 0.2
"""How often a full spool is looked at again."""


class Shipper:
    """Ships sources through one link: what an earlier run left behind first, then what is new."""

    def __init__(
        self,
        spool: Spool,
        gate: Checked,
        identity: Identity,
        *,
        limit: int,
        bytes_per_second: int = 0,
        spool_was_lost: bool = False,
        resend: bool = False,
        supersede: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self._spool = spool
        self._resend = resend
        self._heart = Heart(identity)
        self._pace = Pace(bytes_per_second)
        self._stopping = threading.Event()
        self._is_full = threading.Event()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._collector = Collector(
            spool,
            gate,
            identity,
            limit=limit,
            spool_was_lost=spool_was_lost,
            resend=resend,
            supersede=supersede,
            advance=advance,
            committed=self._wake,
            make_room=self._wait_for_room,
        )

    async def ship(self, sources: list[Source], link: Link) -> Report:
        """Collect what is new and send everything that waits.

        A file that cannot be read is reported and does not stop the rest. When the link fails, what
        was read stays in the spool for the next run.
        """
        if self._resend:
            self._spool.state_anew(FileId(source.key, source.role) for source in sources)
        sending = Sending(self._spool, link, self._pace)
        collecting = asyncio.create_task(asyncio.to_thread(self._collect, sources))
        try:
            while not collecting.done():
                self._news.clear()
                await sending.send_all()
                if self._is_full.is_set():
                    # What the link holds back to fill a message takes room, too.
                    self._is_full.clear()
                    await sending.flush()
                await asyncio.wait(
                    {collecting, waker := asyncio.create_task(self._news.wait())},
                    return_when=asyncio.FIRST_COMPLETED,
                )
                waker.cancel()
            report = collecting.result()
            await sending.send_all()
            await sending.flush()
            await sending.beat(self._heart, state=True)
            return report
        finally:
            self._stopping.set()
            self._collector.stop()
            await asyncio.wait({collecting})

    def _collect(self, sources: list[Source]) -> Report:
        self._spool.heal_gone()
        try:
            return self._collector.collect(sources)
        except Stopped:
            return self._collector.report
        finally:
            self._wake()

    def _wake(self) -> None:
        """Tell the sender, which lives in the loop's thread, that batches are waiting."""
        self._loop.call_soon_threadsafe(self._news.set)

    def _wait_for_room(self) -> None:
        if not self._spool.has_batches():
            folder = self._spool.path.parent
            raise TransientError(
                f"The disk of {folder} is too full: FERRY_SPOOL_FREE_MB stay free."
            )
        self._is_full.set()
        self._wake()
        self._stopping.wait(ROOM_SECONDS)
