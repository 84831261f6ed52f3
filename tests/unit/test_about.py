"""What the lines of Claude Code and Codex say: of themselves, and about their session."""

import itertools
from typing import Any

import orjson
import pytest

from sessionferry.documents import Document, DocumentBuilder, Facts, Position, stored_facts
from sessionferry.formats import FORMATS, format_named
from sessionferry.formats.meaning import MAX_PROMPT
from sessionferry.heads import FIRST_STATED, Delivery, Head, merge
from sessionferry.projection import STATED
from support.strategies import header

claude = format_named("claude_code")
codex = format_named("codex")
amplifier = format_named("amplifier")

CLAUDE_HEAD = {
    "sessionId": "native-1",
    "cwd": "/srv/app",
    "gitBranch": "main",
    "version": "2.1.17",
    "isSidechain": False,
    "timestamp": "2026-05-08T06:55:12.765Z",
}


def of_claude(kind: str, content: Any = None, **more: Any) -> dict[str, Any]:
    line: dict[str, Any] = {**CLAUDE_HEAD, "type": kind, "uuid": "u"}
    if content is not None:
        line["message"] = {"role": kind, "content": content} | more.pop("message", {})
    return line | more


def of_codex(kind: str, payload: Any) -> dict[str, Any]:
    return {"timestamp": "2026-05-08T06:55:12.765Z", "type": kind, "payload": payload}


# ---------------------------------------------------------------- a line's summary


@pytest.mark.parametrize(
    ("line", "summary", "lifecycle"),
    [
        (of_claude("user", "do it"), {"event": "user", "role": "user"}, "prompt:submit"),
        (of_claude("user", "x", isMeta=True), {"event": "user", "role": "meta"}, None),
        (
            of_claude(
                "user",
                [{"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "no"}],
                toolUseResult={"durationMs": 12},
            ),
            {
                "event": "user",
                "role": "tool",
                "tool_call_id": "t1",
                "status": "error",
                "duration_ms": 12,
            },
            None,
        ),
        (
            of_claude(
                "assistant",
                [{"type": "text"}, {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}],
                message={"id": "m1", "model": "claude-opus-4-8", "stop_reason": "tool_use"},
            ),
            {
                "event": "assistant",
                "role": "assistant",
                "model": "claude-opus-4-8",
                "message_id": "m1",
                "stop_reason": "tool_use",
                "tool_name": "Bash",
                "tool_call_id": "t1",
            },
            None,
        ),
        (
            of_claude("assistant", [], message={"stop_reason": "end_turn"}),
            {"event": "assistant", "role": "assistant", "stop_reason": "end_turn"},
            "orchestrator:complete",
        ),
        (
            of_claude("assistant", "overloaded", isApiErrorMessage=True, error="rate_limit"),
            {"event": "assistant", "role": "assistant", "status": "error", "error": "rate_limit"},
            "orchestrator:complete=error",
        ),
        (
            of_claude("system", subtype="turn_duration", durationMs=1500),
            {"event": "system:turn_duration", "role": "system", "duration_ms": 1500},
            None,
        ),
        (
            of_claude("user", "go", isSidechain=True, agentId="7"),
            {"event": "user", "role": "user", "parent_id": "native-1"},
            "prompt:submit",
        ),
    ],
)
def test_a_claude_line_is_summed_up(
    line: dict[str, Any], summary: dict[str, Any], lifecycle: str | None
) -> None:
    meaning = claude.interpret("transcript", line)
    assert meaning.summary == {"native_session_id": "native-1"} | summary
    assert meaning.lifecycle == lifecycle
    assert meaning.occurred_at == "2026-05-08T06:55:12.765000000Z"


@pytest.mark.parametrize(
    ("line", "summary", "lifecycle"),
    [
        (
            of_codex(
                "session_meta", {"id": "t", "forked_from_id": "p", "model_provider": "openai"}
            ),
            {
                "event": "session_meta",
                "provider": "openai",
                "native_session_id": "t",
                "parent_id": "p",
            },
            None,
        ),
        (
            of_codex(
                "session_meta",
                {"source": {"subagent": {"thread_spawn": {"parent_thread_id": "p", "depth": 1}}}},
            ),
            {"event": "session_meta", "parent_id": "p"},
            None,
        ),
        (
            of_codex("response_item", {"type": "message", "role": "developer", "content": []}),
            {"event": "response_item:message", "role": "developer"},
            None,
        ),
        (
            of_codex("response_item", {"type": "function_call", "name": "exec", "call_id": "c"}),
            {
                "event": "response_item:function_call",
                "role": "assistant",
                "tool_name": "exec",
                "tool_call_id": "c",
            },
            None,
        ),
        (
            of_codex("response_item", {"type": "function_call_output", "call_id": "c"}),
            {"event": "response_item:function_call_output", "role": "tool", "tool_call_id": "c"},
            None,
        ),
        (
            of_codex(
                "event_msg",
                {
                    "type": "exec_command_end",
                    "call_id": "c",
                    "exit_code": 1,
                    "duration": {"secs": 2, "nanos": 5_000_000},
                },
            ),
            {
                "event": "event_msg:exec_command_end",
                "tool_call_id": "c",
                "status": "error",
                "duration_ms": 2005,
            },
            None,
        ),
        (
            of_codex("event_msg", {"type": "error", "message": "it broke"}),
            {"event": "event_msg:error", "status": "error", "error": "it broke"},
            None,
        ),
        (
            of_codex("event_msg", {"type": "task_complete", "duration_ms": 7}),
            {"event": "event_msg:task_complete", "duration_ms": 7},
            "orchestrator:complete",
        ),
        (
            of_codex("event_msg", {"type": "turn_aborted"}),
            {"event": "event_msg:turn_aborted"},
            "cancel:completed",
        ),
        (of_codex("brand_new", ["x"]), {"event": "brand_new"}, None),
        (
            {"role": "user", "created_at": "2026-05-08T06:55:12.765Z", "message": "hello"},
            {"role": "user"},
            None,
        ),
    ],
)
def test_a_codex_line_is_summed_up(
    line: dict[str, Any], summary: dict[str, Any], lifecycle: str | None
) -> None:
    meaning = codex.interpret("transcript", line)
    assert (meaning.summary, meaning.lifecycle) == (summary, lifecycle)
    assert meaning.occurred_at == "2026-05-08T06:55:12.765000000Z"


# ---------------------------------------------------------------- about the session


def stated(*lines: tuple[str, dict[str, Any]], stream: str = "transcript") -> dict[str, str]:
    """Merge lines into a head, backwards, and return what it says of the session."""
    head = Head.new(header().key)
    for sequence, (name, line) in reversed(list(enumerate(lines))):
        found = fact(sequence, line, format=name, stream=stream)
        head = merge(head, [Delivery("transcript", 0, stored=[found])])
    return {name: each.value for name, each in head.stream("transcript").about.items()}


def fact(sequence: int, line: dict[str, Any], **changes: Any) -> Facts:
    builder = DocumentBuilder(header(**changes), "somewhere", "2026-07-01T00:00:00.000Z")
    made = builder.build(Position(sequence, 9), orjson.dumps(line))
    assert isinstance(made, Document)
    assert stored_facts(made.fields) == made.facts
    return made.facts


def test_claude_says_where_a_session_began_and_what_it_came_to() -> None:
    lines = [
        {"type": "summary", "summary": "Another session", "leafUuid": "x"},
        of_claude("user", "<command-name>/init</command-name>"),
        of_claude("user", "Caveat", isMeta=True),
        of_claude("user", [{"type": "text", "text": "  Port it to Rust  "}]),
        of_claude("assistant", [], message={"model": "one"}),
        of_claude("user", "And now?", cwd="/srv/other", gitBranch="topic", sessionId="native-2"),
        of_claude("assistant", [], message={"model": "two"}, cwd="/srv/other", gitBranch="topic"),
        of_claude("assistant", [], message={"model": "<synthetic>"}, gitBranch="topic"),
        {"type": "ai-title", "aiTitle": "Porting"},
        {"type": "custom-title", "customTitle": "Port to Rust"},
    ]
    assert stated(*[("claude_code", line) for line in lines]) == {
        "working_dir": "/srv/app",
        "native_session_id": "native-1",
        "first_prompt": "Port it to Rust",
        "name": "Port to Rust",
        "model": "two",
        "git_branch": "topic",
        "tool_version": "2.1.17",
    }


def test_a_claude_agent_names_its_parent() -> None:
    line = of_claude("user", "look around", isSidechain=True, agentId="3430b97e")
    found = stated(("claude_code", line))
    assert found["parent_id"] == "native-1"


def test_codex_says_where_a_thread_began_and_what_it_came_to() -> None:
    meta = {
        "id": "t",
        "cwd": "/srv/app",
        "cli_version": "0.98",
        "model_provider": "openai",
        "git": {"branch": "main"},
        "agent_nickname": "Ada",
        "parent_thread_id": "p",
    }
    lines = [
        of_codex("session_meta", meta),
        of_codex("turn_context", {"cwd": "/srv/app", "model": "one"}),
        of_codex("event_msg", {"type": "user_message", "message": "Fix it\n" + "x" * 999}),
        of_codex("turn_context", {"cwd": "/srv/other", "model": "two"}),
        of_codex("event_msg", {"type": "thread_name_updated", "thread_name": "A fix"}),
    ]
    assert stated(*[("codex", line) for line in lines]) == {
        "working_dir": "/srv/app",
        "native_session_id": "t",
        "parent_id": "p",
        "name": "A fix",
        "model": "two",
        "provider": "openai",
        "tool_version": "0.98",
        "git_branch": "main",
        "agent_name": "Ada",
        "first_prompt": "Fix it\n" + "x" * (MAX_PROMPT - 7),
    }


def test_amplifiers_events_say_what_a_lost_metadata_file_would() -> None:
    lines = [
        {"event": "session:fork", "data": {"parent": "root"}},
        {"event": "session:config", "data": {"raw": {"working_dir": "/srv/app"}}},
        {"event": "prompt:submit", "data": {"prompt": "Hello"}},
        {"event": "llm:response", "data": {"model": "m"}},
    ]
    assert stated(*[("amplifier", line) for line in lines], stream="events") == {
        "parent_id": "root",
        "working_dir": "/srv/app",
        "first_prompt": "Hello",
        "model": "m",
    }


def test_a_truncated_line_says_nothing_about_its_session() -> None:
    line = of_claude("user", "x" * 2_000_000)
    assert fact(0, line, format="claude_code", stream="transcript").about is None


def test_a_shadowed_field_still_says_what_it_says() -> None:
    line = of_claude("user", "hello", summary="theirs", id="theirs")
    about = fact(0, line, format="claude_code", stream="transcript").about
    assert about is not None
    assert about["first_prompt"] == "hello"


def test_the_order_of_delivery_does_not_show() -> None:
    lines = [of_claude("user", text, cwd=f"/{text}", gitBranch=text) for text in "abc"]
    found = [
        fact(n, line, format="claude_code", stream="transcript") for n, line in enumerate(lines)
    ]
    heads = []
    for order in itertools.permutations(found):
        head = Head.new(header().key)
        for each in (*order, *order[:1]):
            head = merge(head, [Delivery("transcript", 0, stored=[each])])
        heads.append(head)
    assert all(head == heads[0] for head in heads)
    about = heads[0].stream("transcript").about
    assert (about["working_dir"].value, about["git_branch"].value) == ("/a", "c")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_fact_that_is_stated_is_shown(name: str) -> None:
    assert set(STATED) >= FIRST_STATED
    whole = of_claude("user", "x", isSidechain=True, agentId="7", customTitle="t")
    whole |= of_codex("session_meta", {"id": "i", "cwd": "/", "forked_from_id": "p", "git": {}})
    assert set(FORMATS[name].about("transcript", whole, {})) <= set(STATED)
