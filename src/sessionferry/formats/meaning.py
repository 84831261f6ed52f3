"""The facts that a line states, in the same words whatever tool wrote it."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

MAX_TEXT = 1024
"""Longest text in a summary, in characters: summaries are indexed, payloads are not."""

MAX_PROMPT = 300
"""Longest beginning of a prompt that describes a session, in characters."""

MAX_TIME_CHARS = 64

MAX_COUNT = 10**9
"""Greatest token count of one line; sums over 10^9 lines stay below 2^63, so a head always fits."""

COST_SCALE = 10**18
"""Costs are summed as whole numbers of 10^-18 US dollars: exact, and of bounded size."""

_COST = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,18}))?")
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,](\d{1,9})\d*)?"
    r"(?:Z|z|\+00:?00|([+-]\d\d:?\d\d))?",
    re.ASCII,
)


class Usage(NamedTuple):
    """Tokens due to one line: four disjoint counts, their sum is all that was processed."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Add, kind by kind."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    def less(self, other: "Usage") -> "Usage":
        """Subtract, kind by kind."""
        return Usage(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(slots=True)
class Meaning:
    """What a line says: `summary` is stored and indexed, the rest feeds the head."""

    summary: dict[str, Any] = field(default_factory=dict)
    occurred_at: str | None = None
    usage: Usage | None = None
    cost: int = 0
    lifecycle: str | None = None

    def account(self, usage: Usage) -> None:
        """Set the tokens due to this line; the summary shows those that are not zero."""
        self.usage = usage
        self.summary["usage"] = usage_summary(usage)


def text(value: object) -> str | None:
    """Return a short text, cut at `MAX_TEXT` characters; None for what is no text."""
    return value[:MAX_TEXT] if isinstance(value, str) else None


def put(found: dict[str, Any], name: str, value: object) -> None:
    """Add a text, cut to its bound, unless there is none."""
    if shown := text(value):
        found[name] = shown


def prompt(value: object) -> str | None:
    """Return the beginning of what a user asked for; None for what a tool wrote in their name."""
    if isinstance(value, list):
        texts = (block.get("text") for block in value if isinstance(block, dict))
        value = next((shown for shown in texts if isinstance(shown, str)), None)
    if not isinstance(value, str) or value.lstrip()[:1] in ("", "<"):
        return None
    return value.strip()[:MAX_PROMPT]


def count(value: object) -> int:
    """Return a token count; 0 for what is none, or is absurd."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    return 0


def increment(value: object) -> int:
    """Return tokens due to one line as a document has them: a count, or a correction below zero."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_COUNT:
        return value
    return 0


def brief(value: object) -> str:
    """Return a short text for an error or a status, whatever form it has."""
    if isinstance(value, dict):
        value = value.get("message", value.get("type", value))
    return value[:MAX_TEXT] if isinstance(value, str) else str(value)[:MAX_TEXT]


def cost(value: object) -> int:
    """Read a decimal string of dollars as units of 10^-18; 0 for anything else.

    Floats are refused: a sum of floats depends on its order.
    """
    match = _COST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return 0
    return int(match[1]) * COST_SCALE + int((match[2] or "").ljust(18, "0"))


def cost_text(units: int) -> str:
    """Write units of 10^-18 dollars as a plain decimal string: `0.66016625`, `0`."""
    whole, part = divmod(units, COST_SCALE)
    return f"{whole}.{part:018d}".rstrip("0").rstrip(".") if part else str(whole)


def usage_summary(usage: Usage) -> dict[str, int]:
    """Return the counts as a summary shows them: those that are not zero."""
    return {name: n for name, n in zip(Usage._fields, usage, strict=True) if n}


def utc(value: object) -> str | None:
    """Return a time in one sortable form, `2026-06-22T16:27:02.403793730Z`, else None.

    Nine fraction digits, always UTC. A time without a zone is taken as UTC; a number is seconds or
    milliseconds since 1970.
    """
    if isinstance(value, str):
        return _utc_from_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _utc_from_number(value)
    return None


def _utc_from_text(value: str) -> str | None:
    match = _TIME.fullmatch(value) if len(value) <= MAX_TIME_CHARS else None
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    second = _utc_second(day, clock, zone)
    return f"{second}.{fraction or '':0<9}Z" if second else None


@lru_cache(maxsize=4096)
def _utc_second(day: str, clock: str, zone: str | None) -> str | None:
    """Check and shift a whole second; lines that follow one another often share theirs."""
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}")
        if zone:
            moment += _shift(zone[0], int(zone[1:3]), int(zone[-2:]))
    except (ValueError, OverflowError):
        return None
    return moment.isoformat()


def _shift(sign: str, hours: int, minutes: int) -> timedelta:
    ahead = timedelta(hours=hours, minutes=minutes)
    return -ahead if sign == "+" else ahead


def _utc_from_number(value: float) -> str | None:
    try:
        seconds = value / 1000 if abs(value) >= 10**11 else value
        moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return None
    return moment.isoformat(timespec="microseconds") + "000Z"
