"""What the lines of a file used, counted a second time by plain means."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

COUNT_LIMIT: Final = 2**53 - 1
LINE_LIMIT: Final = 10**9
"""Greatest count that one line of Claude Code may state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Token counts that do not overlap: `input` is without what was read from the cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input=self.input + other.input,
            output=self.output + other.output,
            cache_read=self.cache_read + other.cache_read,
            cache_write=self.cache_write + other.cache_write,
        )


class PerLine:
    """Usage that each line states for itself is counted with the line."""

    def __init__(self) -> None:
        self.due: list[Usage] = []

    def add(self, line: dict[str, Any]) -> None:
        """Look at one parsed line."""


class _LastOfMessage(PerLine):
    """Claude Code: the last usage of each message."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, Usage] = {}

    def add(self, line: dict[str, Any]) -> None:
        message = line.get("message")
        usage = message.get("usage") if isinstance(message, dict) else None
        if not isinstance(usage, dict) or line["message"]["model"] == "<synthetic>":
            return
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens")
        counts = [_small(usage, name) for name in (*names, "cache_creation_input_tokens")]
        used = Usage(**dict(zip(_KINDS, counts, strict=True)))
        self._last[line["message"].get("id", f"line {len(self._last)}")] = used
        self.due = list(self._last.values())


class _OwnCalls(PerLine):
    """Codex: what each call used, wherever the totals changed; a fork's copied calls apart."""

    def __init__(self) -> None:
        super().__init__()
        self._totals: object = None
        self._copied_until: datetime | None = None
        self._begun = False

    def add(self, line: dict[str, Any]) -> None:
        payload: Any = line.get("payload")
        kind = line.get("type")
        if not isinstance(payload, dict):
            return
        if kind == "session_meta" and not self._begun:
            self._begun = True
            if "forked_from_id" in payload:
                self._copied_until = _moment(line)
        info = payload.get("info")
        if kind != "event_msg" or payload.get("type") != "token_count":
            return
        if not isinstance(info, dict) or info["total_token_usage"] == self._totals:
            return
        self._totals = info["total_token_usage"]
        if self._copied_until:
            if _moment(line) - self._copied_until <= timedelta(seconds=1):
                self._copied_until = _moment(line)
                return
            self._copied_until = None
        last = info["last_token_usage"]
        read = last["cached_input_tokens"]
        own = Usage(input=last["input_tokens"] - read, output=last["output_tokens"])
        self.due.append(own + Usage(cache_read=read))


def _moment(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["timestamp"])


_KINDS = ("input", "output", "cache_read", "cache_write")
LEDGERS: dict[str, type[PerLine]] = {
    "amplifier": PerLine,
    "claude_code": _LastOfMessage,
    "codex": _OwnCalls,
}


def count(usage: dict[str, Any], *names: str) -> int:
    """Return the first of these counts that is one; 0 without."""
    for name in names:
        value = usage.get(name)
        if type(value) is int and 0 <= value <= COUNT_LIMIT:
            return value
    return 0


def _small(usage: dict[str, Any], name: str) -> int:
    found = count(usage, name)
    return found if found <= LINE_LIMIT else 0
