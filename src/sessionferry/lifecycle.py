"""What state a session is in, read off the facts in its head with the clock.

Completion is `orchestrator:complete`: `session:end` is missing from many sessions, stands several
times in others, and is therefore no evidence.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sessionferry.coverage import Coverage
from sessionferry.heads import Head, StreamHead
from sessionferry.identity import STREAMS, Stream

Status = Literal["created", "active", "completed", "failed", "terminated", "interrupted", "deleted"]
QUIET = timedelta(minutes=15)
"""Without a line for so long, a session whose run did not end counts as interrupted (ours)."""

_FAILED = frozenset({"error", "failed"})
_TERMINATED = frozenset({"cancelled", "canceled"})


def status(head: Head, now: datetime, *, quiet: timedelta = QUIET) -> Status:
    """Return a session's state. `now` is aware."""
    if head.tombstone is not None:
        return "deleted"
    states = [head.stream(name) for name in STREAMS]
    if not any(state.stored for state in states):
        return "created"
    ended = _ended(head.stream("events")) or _ended(head.stream("transcript"))
    if ended is not None:
        return ended
    return "active" if _last_time(states) > now - quiet else "interrupted"


def projected_status(
    entry: Mapping[str, Any], now: datetime, *, quiet: timedelta = QUIET
) -> Status:
    """Return the state that a project's entry in a `sessions` document tells of."""
    if entry["deleted"]:
        return "deleted"
    names = ("lifecycle", "last_time")
    streams: dict[Stream, StreamHead] = {
        name: StreamHead.model_validate(
            {field: entry[name][field] for field in names}
            | {"stored": Coverage.of((0, entry[name]["stored"] - 1))}
        )
        for name in STREAMS
    }
    return status(
        Head(user_id="", project_slug="", session_id="", streams=streams), now, quiet=quiet
    )


def _ended(state: StreamHead) -> Status | None:
    if state.lifecycle is None:
        return None
    name, _, result = state.lifecycle.event.partition("=")
    if name == "cancel:completed" or result in _TERMINATED:
        return "terminated"
    if result in _FAILED:
        return "failed"
    return "completed" if name == "orchestrator:complete" else None


def _last_time(states: list[StreamHead]) -> datetime:
    times = [state.last_time for state in states if state.last_time]
    if not times:
        return datetime.min.replace(tzinfo=UTC)
    return datetime.fromisoformat(max(times)[:26]).replace(tzinfo=UTC)
