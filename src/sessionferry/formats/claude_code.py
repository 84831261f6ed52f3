"""Claude Code's session files: one JSON object per line, one file per session or sub-agent.

A reply of the model stands on several lines, one per content block, and each repeats the usage of
the whole message (`message.id`); counts may grow from line to line and the last one counts. So the
increment due to a line is its usage less what was counted for the message already, per kind; a
count that falls gives a negative increment, and the sum is that of the last line in every case.
The files state no costs.
"""

import hashlib
from typing import Any

from sessionferry.formats.meaning import Meaning, Usage, brief, count, prompt, put, text, utc
from sessionferry.formats.memory import Carry
from sessionferry.identity import Stream

MAX_MESSAGES = 64
"""Messages whose usage is remembered. Repetitions follow one another, but for parallel sub-agents
that older versions wrote into one file."""

_ABOUT = (
    *(("working_dir", "cwd"), ("git_branch", "gitBranch"), ("tool_version", "version")),
    *(("native_session_id", "sessionId"), ("agent_name", "agentName")),
    *(("name", "customTitle"), ("name", "aiTitle")),
)
_ENDED = frozenset({"end_turn", "stop_sequence", "max_tokens", "refusal"})
_NOT_BILLED = "<synthetic>"
_KEY_DIGITS = 16
_NOTHING: dict[str, Any] = {}


def interpret(_stream: Stream, line: dict[str, Any]) -> Meaning:
    """Read one line. Usage is that of the whole message; `Memory` makes it an increment."""
    meaning = Meaning(occurred_at=utc(line.get("timestamp")))
    summary = meaning.summary
    message = _object(line.get("message"))
    put(summary, "event", _event(line))
    put(summary, "role", _role(line, message))
    put(summary, "native_session_id", line.get("sessionId"))
    if line.get("isSidechain") is True and "agentId" in line:
        put(summary, "parent_id", line.get("sessionId"))
    for name, key in (("model", "model"), ("message_id", "id"), ("stop_reason", "stop_reason")):
        put(summary, name, message.get(key))
    _read_blocks(message.get("content"), summary)
    _read_outcome(line, summary)
    usage = message.get("usage")
    if isinstance(usage, dict) and message.get("model") != _NOT_BILLED:
        meaning.account(_usage(usage))
    meaning.lifecycle = lifecycle(_stream, line, summary)
    return meaning


def lifecycle(_stream: Stream, _fields: dict[str, Any], summary: dict[str, Any]) -> str | None:
    """Say where a run stands, in Amplifier's words: a prompt begins it, a final reply ends it."""
    match summary.get("event"), summary.get("role"):
        case "user", "user":
            return "prompt:submit"
        case "assistant", _ if summary.get("status") == "error":
            return "orchestrator:complete=error"
        case "assistant", _ if summary.get("stop_reason") in _ENDED:
            return "orchestrator:complete"
    return None


def about(_stream: Stream, line: dict[str, Any], _summary: dict[str, Any]) -> dict[str, str]:
    """Read what a line says about its session: the file has no metadata beside it."""
    found: dict[str, str] = {}
    for name, key in _ABOUT:
        if key in line:
            put(found, name, line[key])
    message = _object(line.get("message"))
    if message.get("model") != _NOT_BILLED:
        put(found, "model", message.get("model"))
    if line.get("isSidechain") is True and "agentId" in line:
        put(found, "parent_id", line.get("sessionId"))
    if line.get("type") == "user" and _role(line, message) == "user":
        put(found, "first_prompt", prompt(message.get("content")))
    return found


class Memory:
    """The usage counted so far of the messages that were seen last."""

    def __init__(self, carry: Carry | None) -> None:
        self._counted: dict[str, Usage] = {}
        entries = (carry or _NOTHING).get("messages")
        for entry in entries[-MAX_MESSAGES:] if isinstance(entries, list) else ():
            if isinstance(entry, list) and len(entry) == 1 + len(Usage._fields):
                self._counted[str(entry[0])[:_KEY_DIGITS]] = Usage(*map(count, entry[1:]))

    def concerns(self, line: bytes) -> bool:
        """Whether a line may state usage."""
        return b'"usage"' in line

    def recall(self, fields: dict[str, Any], meaning: Meaning) -> None:
        """Take off what was counted for the same message already."""
        message = _object(fields.get("message"))
        usage, identity = message.get("usage"), message.get("id")
        if not isinstance(usage, dict) or not isinstance(identity, str):
            return
        if message.get("model") == _NOT_BILLED:
            return
        key = hashlib.sha256(identity.encode()).hexdigest()[:_KEY_DIGITS]
        stated = _usage(usage)
        meaning.account(stated.less(self._counted.pop(key, Usage())))
        self._counted[key] = stated
        if len(self._counted) > MAX_MESSAGES:
            del self._counted[next(iter(self._counted))]

    def carry(self) -> Carry | None:
        """Return the messages, oldest first: `[key, input, output, cache_read, cache_write]`."""
        if not self._counted:
            return None
        return {"messages": [[key, *usage] for key, usage in self._counted.items()]}


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        input=count(usage.get("input_tokens")),
        output=count(usage.get("output_tokens")),
        cache_read=count(usage.get("cache_read_input_tokens")),
        cache_write=count(usage.get("cache_creation_input_tokens")),
    )


def _event(line: dict[str, Any]) -> str | None:
    kind, subtype = text(line.get("type")), text(line.get("subtype"))
    return f"{kind}:{subtype}" if kind and subtype else kind


def _role(line: dict[str, Any], message: dict[str, Any]) -> object:
    if line.get("isMeta") is True:
        return "meta"
    if line.get("type") == "system":
        return "system"
    content = message.get("content")
    if isinstance(content, list) and content and all(map(_is_result, content)):
        return "tool"
    return message.get("role")


def _is_result(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "tool_result"


def _read_blocks(content: object, summary: dict[str, Any]) -> None:
    """Lift the first tool call or tool result."""
    for block in content if isinstance(content, list) else ():
        match block:
            case {"type": "tool_use"}:
                put(summary, "tool_name", block.get("name"))
                put(summary, "tool_call_id", block.get("id"))
                return
            case {"type": "tool_result"}:
                put(summary, "tool_call_id", block.get("tool_use_id"))
                summary["status"] = "error" if block.get("is_error") is True else "success"
                return


def _read_outcome(line: dict[str, Any], summary: dict[str, Any]) -> None:
    if line.get("isApiErrorMessage") is True or line.get("subtype") == "api_error":
        summary["status"] = "error"
    if error := line.get("error"):
        summary["error"] = brief(error)
    result = _object(line.get("toolUseResult"))
    for value in (line.get("durationMs"), result.get("totalDurationMs"), result.get("durationMs")):
        if isinstance(value, int | float) and not isinstance(value, bool):
            summary["duration_ms"] = value
            return


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else _NOTHING
