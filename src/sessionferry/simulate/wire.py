"""Times and JSON as Amplifier writes them."""

import json
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from random import Random
from typing import Any, Final

import orjson

from sessionferry.simulate.oracle import EVENT_LIMIT, PLAIN, Facts

_MARK: Final = "\x00"  # stands for bytes that are spliced in; the generated text has no NUL
_MARK_JSON: Final = orjson.dumps(_MARK)
_KEPT: Final = 6  # messages that outlive a compaction


class TimeStyle(Enum):
    """How versions of the writer print times."""

    NANOS = "9 digits, +00:00"
    MILLIS = "3 digits, Z"
    OFFSET = "9 digits, +02:00"


class Clock:
    """The time of a simulated session, in nanoseconds."""

    def __init__(self, rng: Random, start: int, style: TimeStyle) -> None:
        self._rng = rng
        self._style = style
        self.now = start

    def tick(self, low: int, high: int) -> int:
        """Let some milliseconds pass, and say how many."""
        passed = self._rng.randint(low * 1000, high * 1000) * 1000 + self._rng.randrange(1000)
        self.now += passed
        return passed // 1_000_000

    def stamp(self, shift_ms: int = 0) -> str:
        """The time as an event has it."""
        seconds, nanos = divmod(self.now + shift_ms * 1_000_000, 1_000_000_000)
        if self._style is TimeStyle.MILLIS:
            return f"{_iso(seconds)}.{nanos // 1_000_000:03}Z"
        if self._style is TimeStyle.OFFSET:
            return f"{_iso(seconds, hours=2)}.{nanos:09}+02:00"
        return f"{_iso(seconds)}.{nanos:09}+00:00"

    def short(self) -> str:
        """The time as transcripts and metadata have it."""
        seconds, nanos = divmod(self.now, 1_000_000_000)
        return f"{_iso(seconds)}.{nanos // 1_000_000:03}+00:00"

    def compact(self) -> str:
        """The time as in the id of a recipe session."""
        return datetime.fromtimestamp(self.now // 1_000_000_000, UTC).strftime("%Y%m%d-%H%M%S")


def _iso(seconds: int, hours: int = 0) -> str:
    zone = timezone(timedelta(hours=hours))
    return datetime.fromtimestamp(seconds, zone).strftime("%Y-%m-%dT%H:%M:%S")


def dump(value: object) -> bytes:
    """JSON as Amplifier writes it: spaced, and not escaped to ASCII."""
    return json.dumps(value, ensure_ascii=False).encode()


def compact_size(value: object) -> int:
    """Bytes of the same JSON without spaces, the measure of truncation."""
    return len(orjson.dumps(value))


def event_facts(size: int, facts: Facts = PLAIN) -> Facts:
    """The facts of an event whose compact JSON has this size."""
    if size <= EVENT_LIMIT:
        return facts
    return Facts(truncated=True, usage=facts.usage, cost=facts.cost)


class Frame:
    """A JSON value with one hole, dumped once and filled many times."""

    def __init__(self, value: dict[str, Any], key: str) -> None:
        value = {**value, key: _MARK}
        self.head, self.tail = dump(value).split(_MARK_JSON)
        self.size = compact_size(value) - len(_MARK_JSON)


class Conversation:
    """The messages so far, kept as the bytes that every request repeats."""

    def __init__(self, limit: int) -> None:
        self.text = bytearray(b"[]")
        self.size = 2  # of the compact form
        self.count = 0
        self._limit = limit
        self._recent: deque[tuple[bytes, int]] = deque(maxlen=_KEPT)

    def add(self, message: dict[str, Any]) -> None:
        """Append a message."""
        self._append(dump(message), compact_size(message))

    def is_full(self) -> bool:
        """Whether the agent would compact now."""
        return len(self.text) > self._limit

    def compacted(self, summary: dict[str, Any]) -> None:
        """Start again from a summary and the latest messages, as an agent does."""
        recent: Sequence[tuple[bytes, int]] = [
            entry for entry in self._recent if len(entry[0]) < self._limit // 20
        ]
        self.text, self.size, self.count = bytearray(b"[]"), 2, 0
        self.add(summary)
        for text, size in recent:
            self._append(text, size)

    def _append(self, text: bytes, size: int) -> None:
        self.text.pop()
        if self.count:
            self.text += b", "
        self.text += text
        self.text += b"]"
        self.size += size + (self.count > 0)
        self.count += 1
        self._recent.append((text, size))
