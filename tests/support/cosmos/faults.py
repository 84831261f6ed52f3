"""Faults on demand: what fails, how often, and how slow the server is."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from tests.support.cosmos.errors import ServiceError, throttled

STATUSES = {401, 403, 408, 410, 413, 429, 449, 500, 503}
UNCERTAIN = {408, 500, 503}  # a client cannot know whether its write was done


@dataclass
class Faults:
    """Each rate is a probability from 0 to 1, drawn per request (or per operation of a batch).

    Only requests for items are hit, and of these what `target` says; requests for accounts,
    databases, containers, partition ranges and query plans are let alone. `next` and
    `next_operations` are used up first, one word a request: `pass`, a status such as `429`,
    `503_after`, `reset_before`, `reset_after` or `hang_after`.
    """

    seed: int = 0
    target: str = "all"  # all, writes, reads, batches
    throttle_rate: float = 0.0
    operation_throttle_rate: float = 0.0  # inside batches
    retry_after_ms: float = 10.0
    error_rates: dict[int, float] = dataclasses.field(default_factory=dict)  # status: rate
    error_after_rates: dict[int, float] = dataclasses.field(default_factory=dict)  # but done
    operation_error_rates: dict[int, float] = dataclasses.field(default_factory=dict)
    reset_before_rate: float = 0.0  # the connection ends, nothing was done
    reset_after_rate: float = 0.0  # the connection ends, the write stands
    hang_after_rate: float = 0.0  # the write stands, the answer comes after hang_ms
    hang_ms: float = 60_000.0
    latency_ms: float = 0.0
    latency_jitter_ms: float = 0.0
    short_page_rate: float = 0.0  # a page of a query holds 0 to 3 results, and goes on
    request_units_per_second: float = 0.0  # of a container; 0 is no limit
    next: list[str] = dataclasses.field(default_factory=list)  # one-off faults, first in first out
    next_operations: list[str] = dataclasses.field(default_factory=list)  # inside batches

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @classmethod
    def parse(cls, given: dict[str, Any]) -> "Faults":
        """Read what a control request says.

        Raises:
            ValueError: an unknown name or an impossible value.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - names):
            raise ValueError(f"unknown faults: {', '.join(unknown)}")
        rates = {
            name: {int(status): float(rate) for status, rate in given[name].items()}
            for name in ("error_rates", "error_after_rates", "operation_error_rates")
            if name in given
        }
        faults = cls(**(given | rates))
        faults.check()
        return faults

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: it says what.
        """
        if strange := sorted(set(self.error_after_rates) - UNCERTAIN):
            raise ValueError(f"no such faults after a write: {strange}")
        for rates in (self.error_rates, self.operation_error_rates):
            if strange := sorted(set(rates) - STATUSES):
                raise ValueError(f"no such faults: {strange}; there are {sorted(STATUSES)}")
        if self.target not in {"all", "writes", "reads", "batches"}:
            raise ValueError(f"no such target: {self.target}")
        statuses = {str(status) for status in STATUSES}
        after = {f"{status}_after" for status in UNCERTAIN}
        known = statuses | after | {"pass", "reset_before", "reset_after", "hang_after"}
        if strange_words := sorted(set(self.next) - known):
            raise ValueError(f"no such faults: {strange_words}; there are {sorted(known)}")
        if strange_words := sorted(set(self.next_operations) - statuses - {"pass"}):
            raise ValueError(f"no such faults of operations: {strange_words}")

    def hits(self, *, write: bool, batch: bool) -> bool:
        """Whether requests of this kind may fail."""
        return {
            "all": True,
            "writes": write,
            "reads": not write,
            "batches": batch,
        }[self.target]

    def delay(self) -> float:
        """How long a request waits before it is looked at, in seconds."""
        if not self.latency_ms and not self.latency_jitter_ms:
            return 0.0
        return (self.latency_ms + self._random.random() * self.latency_jitter_ms) / 1000

    def draw(self) -> str:
        """What befalls a request: a word of `next`, or "" for nothing."""
        if self.next:
            word = self.next.pop(0)
            return "" if word == "pass" else word
        if self._chance(self.throttle_rate):
            return "429"
        for status, rate in self.error_rates.items():
            if self._chance(rate):
                return str(status)
        for status, rate in self.error_after_rates.items():
            if self._chance(rate):
                return f"{status}_after"
        if self._chance(self.reset_before_rate):
            return "reset_before"
        if self._chance(self.reset_after_rate):
            return "reset_after"
        return "hang_after" if self._chance(self.hang_after_rate) else ""

    def page(self, size: int) -> int:
        """How many results a page may hold at most."""
        return self._random.randint(0, 3) if self._chance(self.short_page_rate) else size

    def draw_operation(self) -> ServiceError | None:
        """What befalls an operation inside a batch."""
        if self.next_operations:
            word = self.next_operations.pop(0)
            return None if word == "pass" else self.error(int(word))
        if self._chance(self.operation_throttle_rate):
            return self.error(429)
        for status, rate in self.operation_error_rates.items():
            if self._chance(rate):
                return self.error(status)
        return None

    def error(self, status: int) -> ServiceError:
        """The refusal with a status."""
        if status == 429:
            return throttled(self.retry_after_ms)
        substatus = {410: 1002, 503: 1007}.get(status, 0)
        return ServiceError(status, "A fault that a test asked for.", substatus=substatus)

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self._random.random() < rate
