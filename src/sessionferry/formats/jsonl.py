"""Any JSON Lines file, as a plain transcript: what many tools call by the same few names.

Usage is taken as each line's own. OpenAI's spelling counts cached tokens inside the prompt,
Anthropic's beside the input; both are told by their names.
"""

from collections.abc import Iterator
from typing import Any

from sessionferry.formats.meaning import (
    Meaning,
    Usage,
    brief,
    cost,
    cost_text,
    count,
    put,
    utc,
)
from sessionferry.identity import Stream

_TIME_KEYS = ("timestamp", "ts", "time", "created_at")
_TEXTS = (
    *("model", "provider", "role", "status", "tool_name", "tool_call_id", "parent_id"),
    *("message_id", "stop_reason"),
)
_INSIDE = ("message", "response")
"""Where a line may hold what it is about."""


def interpret(_stream: Stream, line: dict[str, Any]) -> Meaning:
    """Read what a line of unknown origin is likely to mean."""
    meaning = Meaning()
    for key in _TIME_KEYS:
        if key in line and (moment := utc(line[key])):
            meaning.occurred_at = moment
            break
    summary = meaning.summary
    for place in _places(line):
        for name in _TEXTS:
            if name not in summary and name in place:
                put(summary, name, place[name])
        if meaning.usage is None and isinstance(usage := place.get("usage"), dict):
            meaning.account(_usage(usage))
        if not meaning.cost:
            meaning.cost = cost(place.get("cost_usd"))
    if summary.get("role") == "tool":
        put(summary, "tool_name", line.get("tool_name") or line.get("name"))
    _read_outcome(line, summary)
    if meaning.cost:
        summary["cost_usd"] = cost_text(meaning.cost)
    return meaning


def about(_stream: Stream, line: dict[str, Any]) -> dict[str, str]:
    """Read what a line says about its session."""
    found: dict[str, str] = {}
    for place in _places(line):
        put(found, "model", place.get("model"))
    put(found, "working_dir", line.get("cwd"))
    put(found, "parent_id", line.get("parent_id"))
    return found


def lifecycle(_stream: Stream, _fields: dict[str, Any], _summary: dict[str, Any]) -> str | None:
    """Say nothing: what a run's events are is not known."""
    return None


def _places(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield line
    for key in _INSIDE:
        if isinstance(inner := line.get(key), dict):
            yield inner


def _usage(usage: dict[str, Any]) -> Usage:
    prompt = "prompt_tokens" if "prompt_tokens" in usage else "input_tokens"
    reply = "completion_tokens" if "completion_tokens" in usage else "output_tokens"
    whole, output = count(usage.get(prompt)), count(usage.get(reply))
    details = usage.get(f"{prompt}_details")
    if isinstance(details, dict):
        inside = count(details.get("cached_tokens"))
        return Usage(max(0, whole - inside), output, inside)
    read = count(usage.get("cache_read_input_tokens"))
    return Usage(whole, output, read, count(usage.get("cache_creation_input_tokens")))


def _read_outcome(line: dict[str, Any], summary: dict[str, Any]) -> None:
    if error := line.get("error"):
        summary["error"] = brief(error)
    duration = line.get("duration_ms")
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        summary["duration_ms"] = duration
