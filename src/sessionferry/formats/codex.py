"""Codex's rollout files: `{timestamp, type, payload}`, one file per thread.

Usage comes from `token_count` events alone. Their totals are cumulative, so the increment due to a
line is its total less the one before; unchanged totals are emitted again and count nothing. Where a
total falls, or is no more than the line's `last_token_usage`, the counter began anew, and the
latter counts (without one, the total). The files state no costs.

The file of a forked thread or sub-agent begins with a copy of its parent's lines, with new times.
They are written in one go: token counts that follow the file's first line, and one another, within
`COPY_GAP` are taken for copies and count nothing, only their totals are remembered.
"""

from datetime import datetime, timedelta
from typing import Any

from sessionferry.formats.meaning import MAX_COUNT, Meaning, Usage, brief, prompt, put, text, utc
from sessionferry.formats.memory import Carry
from sessionferry.identity import Stream

COPY_GAP = timedelta(seconds=1)
"""Copies lie milliseconds apart; a model's first own reply takes seconds."""
MAX_NAME = 256
"""Longest model or provider that is remembered, in characters."""
MAX_TOTAL = 2**53
"""Totals of a thread are below this; the increment of one line is bounded as everywhere."""

_ABOUT = (
    *(("working_dir", "cwd"), ("tool_version", "cli_version"), ("provider", "model_provider")),
    *(("native_session_id", "id"), ("agent_name", "agent_nickname")),
)
_LIFECYCLE = {
    "event_msg:user_message": "prompt:submit",
    "event_msg:task_started": "execution:start",
    "event_msg:task_complete": "orchestrator:complete",
    "event_msg:turn_aborted": "cancel:completed",
}
_ASSISTANT = frozenset(
    {
        *("agent_message", "agent_reasoning", "reasoning", "function_call", "custom_tool_call"),
        *("web_search_call", "tool_search_call", "local_shell_call", "image_generation_call"),
    }
)
_MARKS = (b'"token_count"', b'"turn_context"', b'"session_meta"')
_NOTHING: dict[str, Any] = {}


def interpret(_stream: Stream, line: dict[str, Any]) -> Meaning:
    """Read one line. Usage is not in it: `Memory` tells a total's increment."""
    # The oldest files have no envelope: the line is its own payload.
    payload = _object(line.get("payload", line))
    meaning = Meaning(occurred_at=utc(line.get("timestamp", line.get("created_at"))))
    summary = meaning.summary
    put(summary, "event", _event(line, payload))
    put(summary, "role", _role(payload))
    put(summary, "tool_call_id", payload.get("call_id", payload.get("callId")))
    if "call_id" in payload:
        put(summary, "tool_name", payload.get("name", payload.get("tool_name")))
    match line.get("type"):
        case "session_meta":
            put(summary, "provider", payload.get("model_provider"))
            put(summary, "native_session_id", payload.get("id"))
            put(summary, "parent_id", _parent(payload))
        case "turn_context":
            put(summary, "model", payload.get("model"))
    _read_outcome(payload, summary)
    meaning.lifecycle = lifecycle(_stream, line, summary)
    return meaning


def lifecycle(_stream: Stream, _fields: dict[str, Any], summary: dict[str, Any]) -> str | None:
    """Say where a run stands, in Amplifier's words."""
    return _LIFECYCLE.get(summary.get("event", ""))


def about(_stream: Stream, line: dict[str, Any], _summary: dict[str, Any]) -> dict[str, str]:
    """Read what a line says about its thread: the file has no metadata beside it."""
    payload = _object(line.get("payload"))
    found: dict[str, str] = {}
    match line.get("type"), payload.get("type"):
        case "session_meta", _:
            for name, key in _ABOUT:
                put(found, name, payload.get(key))
            put(found, "git_branch", _object(payload.get("git")).get("branch"))
            put(found, "parent_id", _parent(payload))
        case "turn_context", _:
            put(found, "model", payload.get("model"))
            put(found, "working_dir", payload.get("cwd"))
        case "event_msg", "user_message":
            put(found, "first_prompt", prompt(payload.get("message")))
        case "event_msg", "thread_name_updated":
            put(found, "name", payload.get("thread_name", payload.get("threadName")))
    return found


class Memory:
    """The last totals, the model in use, and whether what comes is still the parent's copy."""

    def __init__(self, carry: Carry | None) -> None:
        known = carry or _NOTHING
        self._begun = known.get("begun") is True
        self._model = _name(known.get("model"))
        self._provider = _name(known.get("provider"))
        # The time of the last copied line; None when what follows is the thread's own.
        self._copied_at = utc(known.get("copied_at"))
        totals = known.get("totals")
        good = isinstance(totals, list) and len(totals) == len(Usage._fields)
        self._totals = Usage(*map(_total, totals)) if good and totals else Usage()

    def concerns(self, line: bytes) -> bool:
        """Whether a line may state totals, a model, or where the thread comes from."""
        return any(mark in line for mark in _MARKS)

    def recall(self, fields: dict[str, Any], meaning: Meaning) -> None:
        """Account for a token count; learn from the others."""
        payload = _object(fields.get("payload"))
        match fields.get("type"), payload.get("type"):
            case "session_meta", _ if not self._begun:
                self._begin(payload, utc(fields.get("timestamp")))
            case "turn_context", _:
                self._model = _name(payload.get("model")) or self._model
            case "event_msg", "token_count":
                info = _object(payload.get("info"))
                self._account(info, utc(fields.get("timestamp")), meaning)

    def carry(self) -> Carry | None:
        """Return what is known, as a JSON object; None before the first line that says anything."""
        known = {
            "begun": self._begun or None,
            "model": self._model,
            "provider": self._provider,
            "copied_at": self._copied_at,
            "totals": list(self._totals) if any(self._totals) else None,
        }
        return {name: value for name, value in known.items() if value is not None} or None

    def _begin(self, payload: dict[str, Any], moment: str | None) -> None:
        self._begun = True
        self._provider = _name(payload.get("model_provider"))
        if _parent(payload):
            self._copied_at = moment

    def _account(self, info: dict[str, Any], moment: str | None, meaning: Meaning) -> None:
        put(meaning.summary, "model", info.get("model") or self._model)
        put(meaning.summary, "provider", self._provider)
        stated, last = info.get("total_token_usage"), info.get("last_token_usage")
        if not isinstance(stated, dict) and not isinstance(last, dict):
            return
        due = _usage(_object(last))
        totals = _usage(stated) if isinstance(stated, dict) else self._totals.plus(due)
        before, self._totals = self._totals, totals
        if self._is_copy(moment):
            return
        more = totals.less(before)
        if min(more) < 0 or (any(more) and totals == due):
            more = due if isinstance(last, dict) else totals
        meaning.account(Usage(*(n if n <= MAX_COUNT else 0 for n in more)))

    def _is_copy(self, moment: str | None) -> bool:
        if self._copied_at is None:
            return False
        near = moment is not None and abs(_time(moment) - _time(self._copied_at)) <= COPY_GAP
        self._copied_at = moment if near else None
        return near


def _usage(stated: dict[str, Any]) -> Usage:
    """Make the counts disjoint: cached and written tokens are inside input."""
    read = _total(stated.get("cached_input_tokens"))
    written = _total(stated.get("cache_write_input_tokens"))
    return Usage(
        input=max(0, _total(stated.get("input_tokens")) - read - written),
        output=_total(stated.get("output_tokens")),
        cache_read=read,
        cache_write=written,
    )


def _total(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOTAL:
        return value
    return 0


def _event(line: dict[str, Any], payload: dict[str, Any]) -> str | None:
    outer, inner = text(line.get("type")), text(payload.get("type"))
    return f"{outer}:{inner}" if outer and inner and payload is not line else outer


def _role(payload: dict[str, Any]) -> object:
    kind = payload.get("type")
    if isinstance(kind, str):
        if kind.endswith("_output"):
            return "tool"
        if kind in _ASSISTANT:
            return "assistant"
        if kind == "user_message":
            return "user"
    return payload.get("role")


def _parent(payload: dict[str, Any]) -> str | None:
    """Find the thread that this one was forked from or started by."""
    source = _object(_object(payload.get("source")).get("subagent"))
    spawned = _object(source.get("thread_spawn"))
    found = (
        payload.get("parent_thread_id"),
        spawned.get("parent_thread_id"),
        payload.get("forked_from_id"),
    )
    return next((shown for value in found if (shown := text(value))), None)


def _read_outcome(payload: dict[str, Any], summary: dict[str, Any]) -> None:
    put(summary, "status", payload.get("status"))
    code = payload.get("exit_code")
    if isinstance(code, int) and "status" not in summary:
        summary["status"] = "error" if code else "success"
    if payload.get("type") == "error":
        summary["status"] = "error"
        summary["error"] = brief(payload.get("message"))
    duration = payload.get("duration_ms", payload.get("duration"))
    match duration:
        case {"secs": int() as seconds, "nanos": int() as nanos}:
            summary["duration_ms"] = seconds * 1000 + nanos // 1_000_000
        case int() | float() if not isinstance(duration, bool):
            summary["duration_ms"] = duration


def _name(value: object) -> str | None:
    return value[:MAX_NAME] or None if isinstance(value, str) else None


def _time(moment: str) -> datetime:
    """Read a time as `utc` writes it, to the microsecond."""
    return datetime.fromisoformat(moment[:26])


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else _NOTHING
