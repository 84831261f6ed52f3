"""Serving timers: one run at a time, late rather than never."""

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from azure.functions import TimerRequest
from azure.functions.meta import Datum

from sessionferry.local.functions_host.app import Function, TimerTrigger, converter_of
from sessionferry.local.functions_host.ncrontab import Schedule
from sessionferry.local.functions_host.waiting import unless_set
from sessionferry.local.functions_host.worker import Worker
from sessionferry.sharing import patiently

log = logging.getLogger(__name__)

_MONITORED_INTERVAL: Final = timedelta(minutes=1)  # the real host monitors no shorter schedule
_LONGEST_SLEEP: Final = 3600.0  # seconds: so that a changed clock is noticed


class TimerListener:
    """Calls one function on its schedule until told to stop.

    Occurrences during a run are not queued: one run follows at once, then the schedule goes on.
    """

    def __init__(
        self,
        function: Function,
        trigger: TimerTrigger,
        worker: Worker,
        stopping: asyncio.Event,
        state_dir: Path | None = None,
    ) -> None:
        self._function = function
        self._trigger = trigger
        self._worker = worker
        self._stopping = stopping
        monitored = (
            state_dir is not None and trigger.use_monitor and _is_monitored(trigger.schedule)
        )
        self._record = state_dir / f"{function.name}.json" if state_dir and monitored else None
        self._last: datetime | None = None

    async def run(self) -> None:
        """Catch up or run on startup where asked for, then follow the schedule."""
        schedule = self._trigger.schedule
        now = datetime.now(UTC)
        self._last = self._recorded()
        upcoming = schedule.next_after(self._last or now)
        if self._last is not None and upcoming <= now:
            await self._invoke(now, past_due=True)
            upcoming = schedule.next_after(now)
        elif self._trigger.run_on_startup:
            await self._invoke(now)
            upcoming = schedule.next_after(now)
        else:
            self._note(self._last or now)
        while await self._sleep_until(upcoming):
            due = max(datetime.now(UTC), upcoming)
            await self._invoke(due)
            upcoming = schedule.next_after(due)

    async def _invoke(self, moment: datetime, *, past_due: bool = False) -> None:
        upcoming = self._trigger.schedule.next_after(moment)
        build = partial(timer_request, self._last, upcoming, past_due=past_due)
        await self._worker.invoke(self._function, build)
        self._note(moment)

    async def _sleep_until(self, moment: datetime) -> bool:
        """Say whether the time came, rather than the end of the host."""
        while not self._stopping.is_set():
            left = (moment - datetime.now(UTC)).total_seconds()
            if left <= 0:
                return True
            await unless_set(self._stopping, asyncio.sleep(min(left, _LONGEST_SLEEP)))
        return False

    def _note(self, moment: datetime) -> None:
        """Remember the last run, for the host's next start."""
        self._last = moment
        record = self._record
        if record is None:
            return
        record.parent.mkdir(parents=True, exist_ok=True)
        fresh = record.with_suffix(".new")
        fresh.write_text(json.dumps({"Last": moment.isoformat()}), encoding="utf-8")
        patiently(lambda: fresh.replace(record))

    def _recorded(self) -> datetime | None:
        if self._record is None:
            return None
        try:
            last = datetime.fromisoformat(json.loads(self._record.read_bytes())["Last"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("function=%s its timer record is not readable", self._function.name)
            return None
        return last.astimezone(UTC)


def timer_request(last: datetime | None, upcoming: datetime, *, past_due: bool) -> TimerRequest:
    """What the function gets: the real converter's reading of the host's JSON."""
    moment = "0001-01-01T00:00:00" if last is None else last.isoformat()
    status = {"Last": moment, "Next": upcoming.isoformat(), "LastUpdated": moment}
    info = {"Schedule": {"AdjustForDST": True}, "ScheduleStatus": status, "IsPastDue": past_due}
    make = cast("Callable[[object, str], Any]", Datum)
    datum = make(json.dumps(info), "json")
    return cast("TimerRequest", converter_of("timerTrigger").decode(datum, trigger_metadata={}))


def _is_monitored(schedule: Schedule) -> bool:
    first = schedule.next_after(datetime.now(UTC))
    return schedule.next_after(first) - first >= _MONITORED_INTERVAL
