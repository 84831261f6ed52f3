"""Which stored sessions have lived long enough, and what of them goes next.

Pure: a head, a policy and the time say it. Ages count from the last activity, which is the latest
time that a stored line states; a session without any is never chosen. First the documents of noisy
events go, then the session is hidden, and only one that was hidden long enough is deleted.
(`agent/retention.py` is about something else: when tools delete their own files on a machine.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sessionferry.coverage import Coverage
from sessionferry.errors import UserError
from sessionferry.heads import Head, StreamHead
from sessionferry.identity import STREAMS
from sessionferry.lifecycle import status
from sessionferry.settings import Settings

MOST_RANGES = 1_000
"""Ranges of pruned lines in one stream: noise lies between other lines, and a head must not grow
by it without end. The longest ranges are taken."""

NOISE = frozenset({"llm:request", "content_block:start", "content_block:delta", "thinking:delta"})
"""Events that repeat what others say: whole histories, and replies in pieces."""

Step = Literal["prune", "hide", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Ages in days; 0 is never. `delete_days` count from the day on which a session was hidden."""

    prune_days: int = 0
    prune_events: frozenset[str] = NOISE
    hide_days: int = 0
    delete_days: int = 0

    def __post_init__(self) -> None:
        if self.delete_days and not self.hide_days:
            raise UserError(
                "FERRY_RETENTION_DELETE_DAYS needs FERRY_RETENTION_HIDE_DAYS: a session is hidden"
                " before it is deleted."
            )
        if self.hide_days and self.prune_days > self.hide_days:
            raise UserError(
                "FERRY_RETENTION_PRUNE_DAYS is more than FERRY_RETENTION_HIDE_DAYS: noisy events"
                " are pruned first."
            )

    @classmethod
    def from_settings(cls, settings: Settings) -> "Policy":
        """Read the policy; raises `UserError` for one that contradicts itself."""
        names = (name.strip() for name in (settings.retention_prune_events or "").split(","))
        return cls(
            prune_days=settings.retention_prune_days,
            prune_events=frozenset(name for name in names if name) or NOISE,
            hide_days=settings.retention_hide_days,
            delete_days=settings.retention_delete_days,
        )

    @property
    def is_off(self) -> bool:
        """Whether it never chooses anything."""
        return not self.hide_days and not (self.prune_days and self.prune_events)

    def document(self) -> dict[str, Any]:
        """Say it in JSON's values."""
        ages = {name: getattr(self, name) for name in ("prune_days", "hide_days", "delete_days")}
        return {**ages, "prune_events": sorted(self.prune_events)}


def steps(head: Head, policy: Policy, now: datetime) -> tuple[Step, ...]:
    """Return what is due for a session, in the order in which it is done. `now` is aware."""
    last = _last_activity(head)
    if last is None or head.pinned or head.dirty or status(head, now) in ("active", "deleted"):
        return ()
    idle = now - last
    if _is_due(idle, policy.hide_days) and head.hidden_at is not None:
        hidden = now - datetime.fromisoformat(head.hidden_at)
        if _is_due(hidden, policy.delete_days):
            return ("delete",)
    due: list[Step] = []
    if _is_due(idle, policy.prune_days) and _has_noise(head, policy):
        due.append("prune")
    if _is_due(idle, policy.hide_days) and head.hidden_at is None:
        due.append("hide")
    return tuple(due)


def prunable(state: StreamHead, noise: Mapping[int, str], archived: Mapping[int, str]) -> Coverage:
    """Choose the lines whose documents may go: their bytes are archived as they were stored.

    `noise` and `archived` are SHA-256 sums of lines, by sequence.
    """
    safe = (number for number, sha256 in noise.items() if archived.get(number) == sha256)
    chosen = Coverage.from_numbers(safe) & state.stored
    again, fresh = chosen & state.pruned, chosen - state.pruned
    room = max(MOST_RANGES - len(state.pruned.ranges), 0)
    longest = sorted(fresh.ranges, key=lambda found: found[0] - found[1])[:room]
    return again | Coverage.of(*longest)


def _has_noise(head: Head, policy: Policy) -> bool:
    """Whether there may be documents to prune, and an export does not need them."""
    state = head.stream("events")
    needed = state.conflicts or state.unplaced
    return bool(state.stored) and not needed and not policy.prune_events <= set(head.pruned_events)


def _last_activity(head: Head) -> datetime | None:
    times = [state.last_time for name in STREAMS if (state := head.stream(name)).last_time]
    if not times:
        return None
    return datetime.fromisoformat(max(times)[:26].removesuffix("Z")).replace(tzinfo=UTC)


def _is_due(age: timedelta, days: int) -> bool:
    return days > 0 and age >= timedelta(days=days)
