"""What state a session is in: read off facts and the clock, never from session:end alone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from sessionferry import heads
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.heads import Delivery, Head, merge
from sessionferry.identity import SessionKey, Stream
from sessionferry.lifecycle import QUIET, status
from support.strategies import header

START = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MESSAGE = {"role": "user", "content": "hello"}


def event(name: str, seconds: float = 0, **fields: object) -> dict[str, object]:
    return {"ts": (START + seconds * SECOND).isoformat(), "event": name, **fields}


def facts(stream: Stream, number: int, line: object) -> Facts:
    builder = DocumentBuilder(header(stream=stream), "a/b", "now")
    built = builder.build(Position(number, 0), orjson.dumps(line))
    assert isinstance(built, Document)
    return built.facts


def head_of(events: Sequence[object] = (), transcript: Sequence[object] = ()) -> Head:
    """The head of a session with these lines."""
    streams: list[tuple[Stream, Sequence[object]]] = [
        ("events", events),
        ("transcript", transcript),
    ]
    deliveries = [
        Delivery(name, 0, stored=[facts(name, *numbered) for numbered in enumerate(lines)])
        for name, lines in streams
    ]
    return merge(Head.new(SessionKey("u", "p", "s")), deliveries)


def test_a_session_without_lines_is_created() -> None:
    assert status(head_of(), START) == "created"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (event("orchestrator:complete", status="success"), "completed"),
        (event("orchestrator:complete"), "completed"),
        (event("orchestrator:complete", data={"status": "incomplete"}), "completed"),
        (event("orchestrator:complete", data={"status": "error"}), "failed"),
        (event("execution:end", data={"status": "failed"}), "failed"),
        (event("orchestrator:complete", data={"status": "cancelled"}), "terminated"),
        (event("execution:end", data={"status": "canceled"}), "terminated"),
        (event("cancel:completed"), "terminated"),
        (event("cancel:completed", status="success"), "terminated"),
        (event("cancel:requested"), "active"),
        (event("execution:end", status="completed"), "active"),
        (event("session:end"), "active"),
        (event("llm:response"), "active"),
    ],
)
def test_the_last_lifecycle_event_says_how_a_run_ended(
    last: dict[str, object], expected: str
) -> None:
    head = head_of([event("session:start"), event("prompt:submit", 1), last])
    assert status(head, START + 2 * SECOND) == expected


def test_other_events_after_the_end_do_not_change_it() -> None:
    lines = [event("orchestrator:complete"), event("session:end"), event("llm:response", 1)]
    assert status(head_of(lines), START + 2 * QUIET) == "completed"


def test_a_next_prompt_makes_a_completed_session_active_again() -> None:
    head = head_of([event("orchestrator:complete"), event("prompt:submit", 60)])
    assert status(head, START + 61 * SECOND) == "active"
    assert status(head, START + timedelta(days=1)) == "interrupted"


def test_a_session_that_fell_silent_is_interrupted() -> None:
    head = head_of([event("session:start"), event("llm:request", 5)])
    assert status(head, START + 5 * SECOND + QUIET - SECOND) == "active"
    assert status(head, START + 5 * SECOND + QUIET) == "interrupted"


def test_an_end_without_completion_is_no_evidence() -> None:
    head = head_of([event("session:start"), event("session:end", 1)])
    assert status(head, START + timedelta(days=1)) == "interrupted"


def test_either_stream_keeps_a_session_active() -> None:
    later = {**MESSAGE, "metadata": {"timestamp": (START + QUIET).isoformat()}}
    head = head_of([event("session:start")], [MESSAGE, later])
    assert status(head, START + QUIET + SECOND) == "active"


def test_lines_without_times_are_long_ago() -> None:
    assert status(head_of([], [MESSAGE]), START) == "interrupted"


@pytest.mark.parametrize(
    "text",
    [
        *("2026-07-01T12:00:00Z", "2026-07-01T12:00:00.1Z", "2026-07-01T14:00:00.123456789+02:00"),
        *("2026-07-01T12:00:00", "2026-07-01T12:00:00.123456"),
    ],
)
def test_a_time_of_any_precision_and_zone_is_understood(text: str) -> None:
    head = head_of([{"ts": text, "event": "session:start"}])
    assert status(head, START + QUIET - SECOND) == "active"
    assert status(head, START + QUIET + SECOND) == "interrupted"


def test_deleted_is_deleted_whatever_was_known() -> None:
    head = head_of([event("orchestrator:complete")])
    assert status(heads.delete(head, "2026-07-01T00:00:00.000Z"), START) == "deleted"
