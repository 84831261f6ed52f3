"""Amplifier's `events.jsonl` and `transcript.jsonl`.

Events have an envelope (`ts, lvl, event, session_id`, sometimes `status, duration_ms, error`) and
the rest in `data`. Usage is accounted from `llm:response` alone: `content_block:end` repeats it.
"""

from typing import Any

from sessionferry.formats.meaning import (
    Meaning,
    Usage,
    brief,
    cost,
    cost_text,
    count,
    prompt,
    put,
    text,
    utc,
)
from sessionferry.identity import Stream

LIFECYCLE_EVENTS = frozenset(
    {
        *("session:start", "session:resume", "session:fork", "prompt:submit"),
        *("execution:start", "execution:end", "orchestrator:complete"),
        *("cancel:requested", "cancel:completed"),
    }
)
"""Events that say where a run stands. `session:end` is not among them: it is missing, repeated or
out of order too often to be evidence."""
_NOTHING: dict[str, Any] = {}


def interpret(stream: Stream, line: dict[str, Any]) -> Meaning:
    """Read one line of either file."""
    return _event(line) if stream == "events" else _message(line)


def lifecycle(stream: Stream, fields: dict[str, Any], summary: dict[str, Any]) -> str | None:
    """Return a lifecycle event's name, with its status if it has one."""
    name = fields.get("event")
    if stream != "events" or not isinstance(name, str) or name not in LIFECYCLE_EVENTS:
        return None
    state = summary.get("status")
    return f"{name}={state}" if state else name


def about(stream: Stream, line: dict[str, Any], _summary: dict[str, Any]) -> dict[str, str]:
    """Read what an event says about its session; the metadata file may never be written."""
    name, data = line.get("event"), line.get("data")
    if stream != "events" or not isinstance(data, dict):
        return _NOTHING
    found: dict[str, str] = {}
    if name == "llm:response":
        put(found, "model", data.get("model"))
    elif name == "session:config" and isinstance(raw := data.get("raw"), dict):
        put(found, "working_dir", raw.get("working_dir"))
    elif name == "prompt:submit" and (asked := prompt(data.get("prompt"))):
        found["first_prompt"] = asked
    put(found, "parent_id", data.get("parent_id") or _forked_from(name, data))
    return found


def _event(line: dict[str, Any]) -> Meaning:
    data = line.get("data")
    if not isinstance(data, dict):
        data = _NOTHING
    name = line.get("event")
    meaning = Meaning(occurred_at=utc(line.get("ts", line.get("timestamp"))))
    summary = meaning.summary
    for key in ("model", "provider", "tool_name", "tool_call_id"):
        if key in data and (value := text(data[key])):
            summary[key] = value
    for key in ("status", "error"):
        if (value := line.get(key, data.get(key))) is not None:
            summary[key] = brief(value)
    duration = line.get("duration_ms", data.get("duration_ms"))
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        summary["duration_ms"] = duration
    if parent := text(data.get("parent_id")) or _forked_from(name, data):
        summary["parent_id"] = parent
    if name == "llm:response":
        _account(data, meaning)
    elif name == "tool:post":
        _read_result(data.get("result", data.get("tool_result")), summary)
    meaning.lifecycle = lifecycle("events", line, summary)
    return meaning


def _read_result(result: object, summary: dict[str, Any]) -> None:
    """Say that a tool failed, unless the event itself has a status."""
    if isinstance(result, dict) and result.get("success") is False:
        summary.setdefault("status", "error")
        if error := result.get("error"):
            summary.setdefault("error", brief(error))


def _account(data: dict[str, Any], meaning: Meaning) -> None:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return
    cached = count(usage.get("cache_read_tokens"))
    due = Usage(
        # The provider's input count includes what was read from the cache, not what was written.
        input=max(0, count(usage.get("input_tokens", usage.get("input"))) - cached),
        output=count(usage.get("output_tokens", usage.get("output"))),
        cache_read=cached,
        cache_write=count(usage.get("cache_write_tokens")),
    )
    meaning.account(due)
    meaning.cost = cost(usage.get("cost_usd"))
    if meaning.cost:
        meaning.summary["cost_usd"] = cost_text(meaning.cost)


def _message(line: dict[str, Any]) -> Meaning:
    metadata = line.get("metadata")
    time = metadata.get("timestamp") if isinstance(metadata, dict) else None
    meaning = Meaning(occurred_at=utc(time or line.get("ts") or line.get("timestamp")))
    if value := text(line.get("tool_call_id")):
        meaning.summary["tool_call_id"] = value
    if line.get("role") == "tool" and (value := text(line.get("name"))):
        meaning.summary["tool_name"] = value
    return meaning


def _forked_from(name: object, data: dict[str, Any]) -> str | None:
    return text(data.get("parent")) if name == "session:fork" else None
