"""What lines mean: time, cost, usage and lifecycle, in the same words for every tool."""

import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sessionferry.config import Fields
from sessionferry.errors import UnsupportedBatch
from sessionferry.formats import FORMATS, format_named
from sessionferry.formats.amplifier import LIFECYCLE_EVENTS
from sessionferry.formats.jsonl import FIELDS, MAX_PATH
from sessionferry.formats.meaning import (
    COST_SCALE,
    MAX_COUNT,
    MAX_TEXT,
    Meaning,
    Usage,
    cost,
    cost_text,
    count,
    text,
    usage_summary,
    utc,
)
from sessionferry.identity import STREAMS, Stream
from support.strategies import json_values, objects

amplifier = format_named("amplifier").interpret
jsonl = format_named("jsonl").interpret

# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-06-22T16:27:02.403793730+00:00", "2026-06-22T16:27:02.403793730Z"),
        ("2026-06-22T16:27:02.403Z", "2026-06-22T16:27:02.403000000Z"),
        ("2026-06-22T16:27:02z", "2026-06-22T16:27:02.000000000Z"),
        ("2026-06-22T16:27:02+0000", "2026-06-22T16:27:02.000000000Z"),
        ("2026-06-22T16:27:02,5+02:00", "2026-06-22T14:27:02.500000000Z"),
        ("2026-06-22T16:27:02.5-0730", "2026-06-22T23:57:02.500000000Z"),
        ("2026-06-22 16:27:02", "2026-06-22T16:27:02.000000000Z"),
        ("2026-06-22T16:27:02.1234567891Z", "2026-06-22T16:27:02.123456789Z"),
        ("2024-02-29T00:00:00+00:01", "2024-02-28T23:59:00.000000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000000Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"),
        (1_782_145_622, "2026-06-22T16:27:02.000000000Z"),
        (1_782_145_622.25, "2026-06-22T16:27:02.250000000Z"),
        (1_782_145_622_403, "2026-06-22T16:27:02.403000000Z"),
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-60_000_000_000, "0068-09-03T13:20:00.000000000Z"),
    ],
)
def test_times_have_one_sortable_form(written: object, expected: str) -> None:
    assert utc(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        *(None, True, False, "", "yesterday", "2026-06-22", "[REDACTED:PII]T15:35:23Z", [], {}),
        *("2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-06-22T25:00:00Z"),
        *("2026-06-22T16:27:02Z ", " 2026-06-22T16:27:02Z", "2026-06-22T16:27:02Z\n"),
        *("0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-02:00", "12026-06-22T16:27:02Z"),
        *("\u0662\u0660\u0662\u0666-06-22T16:27:02Z", "2026-06-22T16:27:02." + "1" * 50 + "+02:00"),
        *(math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), 10**17),
    ],
)
def test_what_is_no_time_is_none(written: object) -> None:
    assert utc(written) is None


@given(
    st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
)
def test_a_time_means_the_same_moment_in_every_zone(moment: datetime, minutes: int) -> None:
    there = moment.replace(tzinfo=UTC).astimezone(timezone(timedelta(minutes=minutes)))
    expected = moment.isoformat(timespec="microseconds") + "000Z"
    assert utc(there.isoformat(timespec="microseconds")) == expected


@given(st.lists(st.integers(-(10**10), 10**10), min_size=2, max_size=5))
def test_sorting_texts_sorts_times(seconds: list[int]) -> None:
    written = [utc(value) for value in seconds]
    assert sorted(str(value) for value in written) == [utc(value) for value in sorted(seconds)]


@given(json_values | st.text() | st.floats() | st.integers())
def test_reading_a_time_never_fails_and_is_stable(value: object) -> None:
    found = utc(value)
    assert found is None or utc(found) == found


# ---------------------------------------------------------------- cost, counts, text


@pytest.mark.parametrize(
    ("written", "units"),
    [
        ("0.66016625", 660_166_250_000_000_000),
        ("0", 0),
        ("12", 12 * COST_SCALE),
        ("0.000000000000000001", 1),
        ("999999999999.999999999999999999", 10**30 - 1),
        *[(bad, 0) for bad in (None, 0.5, 1, True, "", ".5", "5.", "-1", "+1", "1e3", "NaN", "$1")],
        *[(bad, 0) for bad in ("1" * 13, "0." + "1" * 19, " 1", "1\n", "\u0661", "1,5", [], {})],
    ],
)
def test_a_cost_is_an_exact_decimal_text_or_nothing(written: object, units: int) -> None:
    assert cost(written) == units


@given(st.decimals(0, 10**12 - 1, places=18, allow_nan=False))
def test_costs_are_exact(amount: Decimal) -> None:
    units = cost(f"{amount:f}")
    assert units == Fraction(amount) * COST_SCALE
    assert cost(cost_text(units)) == units
    assert "e" not in cost_text(units).lower()


@pytest.mark.parametrize(
    ("units", "expected"),
    [(0, "0"), (1, "0.000000000000000001"), (10 * COST_SCALE, "10"), (COST_SCALE // 2, "0.5")],
)
def test_a_cost_is_written_without_needless_digits(units: int, expected: str) -> None:
    assert cost_text(units) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (7, 7),
        (MAX_COUNT, MAX_COUNT),
        *[(bad, 0) for bad in (MAX_COUNT + 1, -1, 1.5, "7", True, None, [], 10**400)],
    ],
)
def test_a_count_is_a_bounded_whole_number_or_zero(value: object, expected: int) -> None:
    assert count(value) == expected


def test_sums_over_the_longest_stream_fit_into_64_bits() -> None:
    assert MAX_COUNT * 10**9 < 2**63


def test_texts_are_cut_and_other_things_are_none() -> None:
    assert text("x" * 5000) == "x" * MAX_TEXT
    assert text("") == ""
    assert [text(value) for value in (None, 1, [], {})] == [None] * 4


def test_a_usage_shows_what_is_not_zero() -> None:
    assert usage_summary(Usage(input=1, cache_write=2)) == {"input": 1, "cache_write": 2}
    assert usage_summary(Usage()) == {}


# ---------------------------------------------------------------- amplifier events


def response(**usage: Any) -> dict[str, Any]:
    return {
        "ts": "2026-06-22T16:27:02.403793730+00:00",
        "lvl": "INFO",
        "event": "llm:response",
        "duration_ms": 1250,
        "status": "ok",
        "data": {"provider": "anthropic", "model": "m-1", "usage": usage},
    }


def test_a_response_accounts_its_usage_and_cost() -> None:
    line = response(
        input_tokens=100,
        output_tokens=20,
        cache_read_tokens=60,
        cache_write_tokens=7,
        cost_usd="0.66016625",
    )
    assert amplifier("events", line) == Meaning(
        summary={
            "model": "m-1",
            "provider": "anthropic",
            "status": "ok",
            "duration_ms": 1250,
            "usage": {"input": 40, "output": 20, "cache_read": 60, "cache_write": 7},
            "cost_usd": "0.66016625",
        },
        occurred_at="2026-06-22T16:27:02.403793730Z",
        usage=Usage(40, 20, 60, 7),
        cost=660_166_250_000_000_000,
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"input": 5, "output": 6}, Usage(5, 6)),
        ({"input_tokens": 5, "input": 99}, Usage(5)),
        ({"input_tokens": 5, "cache_read_tokens": 9}, Usage(0, 0, 9)),
        ({"input_tokens": 5, "cache_creation_input_tokens": 9}, Usage(5)),
        ({"input_tokens": None, "output_tokens": "7"}, Usage()),
        ({"input_tokens": -1, "output_tokens": True}, Usage()),
        ({}, Usage()),
    ],
)
def test_usage_is_read_in_old_and_new_spellings(usage: dict[str, Any], expected: Usage) -> None:
    assert amplifier("events", response(**usage)).usage == expected


@pytest.mark.parametrize("usage", [None, [], "x", 7])
def test_a_response_without_usage_accounts_nothing(usage: object) -> None:
    meaning = amplifier("events", {"event": "llm:response", "data": {"usage": usage}})
    assert (meaning.usage, meaning.cost) == (None, 0)


@pytest.mark.parametrize("event", ["content_block:end", "llm:request", "provider:response"])
def test_only_llm_response_is_accounted(event: str) -> None:
    line = response(input_tokens=100, cost_usd="1") | {"event": event}
    meaning = amplifier("events", line)
    assert (meaning.usage, meaning.cost) == (None, 0)
    assert not {"usage", "cost_usd"} & meaning.summary.keys()


@pytest.mark.parametrize("value", [None, 0.66, 1, "free", "-1"])
def test_a_cost_that_is_no_decimal_text_is_not_summed(value: object) -> None:
    meaning = amplifier("events", response(cost_usd=value))
    assert meaning.cost == 0
    assert "cost_usd" not in meaning.summary


@pytest.mark.parametrize(
    ("event", "is_lifecycle"),
    [
        *[(name, True) for name in sorted(LIFECYCLE_EVENTS)],
        *[(name, False) for name in ("tool:pre", "session.start", "session:config", "", None, 7)],
    ],
)
def test_lifecycle_events_are_told_from_others(event: object, is_lifecycle: bool) -> None:
    assert amplifier("events", {"event": event}).lifecycle == (event if is_lifecycle else None)


@pytest.mark.parametrize(
    ("line", "lifecycle"),
    [
        ({"event": "execution:end", "status": "completed"}, "execution:end=completed"),
        ({"event": "execution:end", "data": {"status": "error"}}, "execution:end=error"),
        ({"event": "execution:end", "status": None}, "execution:end"),
        ({"event": "llm:response", "status": "ok"}, None),
    ],
)
def test_a_lifecycle_event_carries_its_status(line: dict[str, Any], lifecycle: str | None) -> None:
    assert amplifier("events", line).lifecycle == lifecycle


def test_completion_is_never_read_off_the_end_event() -> None:
    assert "session:end" not in LIFECYCLE_EVENTS
    assert "orchestrator:complete" in LIFECYCLE_EVENTS


@pytest.mark.parametrize(
    ("line", "summary"),
    [
        ({"data": {"tool_name": "bash", "tool_call_id": "t1"}}, True),
        ({"status": "completed", "data": {"status": "x"}}, {"status": "completed"}),
        ({"data": {"status": "late"}}, {"status": "late"}),
        ({"error": {"type": "E", "message": "it broke"}}, {"error": "it broke"}),
        ({"error": {"type": "E"}}, {"error": "E"}),
        ({"error": {"code": 7}}, {"error": "{'code': 7}"}),
        ({"error": "x" * 5000}, {"error": "x" * MAX_TEXT}),
        ({"error": None, "data": {"error": "inner"}}, {}),
        ({"duration_ms": 0.5}, {"duration_ms": 0.5}),
        ({"duration_ms": True}, {}),
        ({"duration_ms": "5"}, {}),
        ({"data": {"duration_ms": 3}}, {"duration_ms": 3}),
        ({"data": {"parent_id": "p"}}, {"parent_id": "p"}),
        ({"data": {"parent_id": None, "parent": "p"}}, {}),
        ({"event": "session:fork", "data": {"parent": "p"}}, {"parent_id": "p"}),
        (
            {"event": "tool:post", "data": {"result": {"success": False, "error": "no"}}},
            {"status": "error", "error": "no"},
        ),
        (
            {"event": "tool:post", "status": "late", "data": {"tool_result": {"success": False}}},
            {"status": "late"},
        ),
        ({"event": "tool:post", "data": {"result": {"success": True, "error": None}}}, {}),
        ({"data": {"model": "", "provider": 7}}, {}),
        ({"data": "text"}, {}),
        ({"data": None}, {}),
        ({}, {}),
    ],
)
def test_a_summary_lifts_what_people_query(line: dict[str, Any], summary: Any) -> None:
    expected = line["data"] if summary is True else summary
    assert amplifier("events", line).summary == expected


def test_an_event_of_the_second_logger_has_its_time_elsewhere() -> None:
    line = {"event": "x", "timestamp": "2026-06-22T16:27:02Z", "workspace": "w", "data": {}}
    assert amplifier("events", line).occurred_at == "2026-06-22T16:27:02.000000000Z"


# ---------------------------------------------------------------- transcripts


TIME = "2026-09-14T14:46:53.436+00:00"
AS_UTC = "2026-09-14T14:46:53.436000000Z"


@pytest.mark.parametrize(
    ("line", "occurred_at", "summary"),
    [
        (
            {"role": "tool", "name": "edit", "tool_call_id": "t", "metadata": {"timestamp": TIME}},
            AS_UTC,
            {"tool_name": "edit", "tool_call_id": "t"},
        ),
        ({"role": "user", "name": "Ada", "ts": TIME}, AS_UTC, {}),
        ({"role": "assistant", "timestamp": TIME, "content": []}, AS_UTC, {}),
        ({"role": "user", "metadata": {"timestamp": None}, "ts": TIME}, AS_UTC, {}),
        ({"role": "user", "metadata": "x"}, None, {}),
        ({"role": 7, "name": 7, "tool_call_id": 7}, None, {}),
    ],
)
def test_a_message_has_a_time_and_maybe_a_tool(
    line: dict[str, Any], occurred_at: str | None, summary: dict[str, Any]
) -> None:
    assert amplifier("transcript", line) == Meaning(summary=summary, occurred_at=occurred_at)


def test_a_message_has_no_lifecycle_and_no_usage() -> None:
    meaning = amplifier("transcript", response(input_tokens=5) | {"event": "session:end"})
    assert (meaning.lifecycle, meaning.usage, meaning.cost) == (None, None, 0)


# ---------------------------------------------------------------- any JSON Lines


@pytest.mark.parametrize("key", ["timestamp", "ts", "time", "created_at"])
def test_plain_json_lines_have_a_time_where_it_is_easy_to_see(key: str) -> None:
    assert jsonl("transcript", {key: TIME}).occurred_at == AS_UTC


def test_plain_json_lines_skip_a_time_that_is_none() -> None:
    line = {"timestamp": "soon", "created_at": TIME, "model": "m", "status": "ok", "role": "user"}
    summary = {"model": "m", "role": "user", "status": "ok"}
    assert jsonl("events", line) == Meaning(summary, AS_UTC)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 2}, Usage(10, 2)),
        (
            {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 7}},
            Usage(3, 0, 7),
        ),
        (
            {"input_tokens": 10, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 7}},
            Usage(3, 2, 7),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 2,
                "cache_read_input_tokens": 7,
                "cache_creation_input_tokens": 4,
            },
            Usage(10, 2, 7, 4),
        ),
        ({"prompt_tokens": -1, "completion_tokens": "2", "prompt_tokens_details": []}, Usage()),
        ({}, Usage()),
    ],
)
@pytest.mark.parametrize("inside", [None, "message", "response"])
def test_plain_json_lines_state_usage_in_two_spellings(
    usage: dict[str, Any], expected: Usage, inside: str | None
) -> None:
    stated = {"usage": usage, "model": "m"}
    meaning = jsonl("transcript", {inside: stated} if inside else stated)
    assert meaning.usage == expected
    assert meaning.summary["model"] == "m"


def test_plain_json_lines_say_what_a_tool_did() -> None:
    line = {
        "role": "tool",
        "name": "bash",
        "tool_call_id": "t",
        "error": {"message": "no"},
        "duration_ms": 5,
        "cost_usd": "0.5",
        "message": {"role": "ignored", "cost_usd": "9"},
    }
    meaning = jsonl("transcript", line)
    assert meaning.summary == {
        "role": "tool",
        "tool_name": "bash",
        "tool_call_id": "t",
        "error": "no",
        "duration_ms": 5,
        "cost_usd": "0.5",
    }
    assert meaning.cost == COST_SCALE // 2


def test_plain_json_lines_say_where_they_come_from() -> None:
    line = {"cwd": "/srv/app", "parent_id": "p", "message": {"model": "m"}}
    assert FORMATS["jsonl"].about("transcript", line, jsonl("transcript", line).summary) == {
        "working_dir": "/srv/app",
        "parent_id": "p",
        "model": "m",
    }


def told(**fields: str) -> Callable[[Stream, dict[str, Any]], Meaning]:
    return format_named("jsonl").interpreter({"fields": fields})


def test_facts_are_found_where_the_configuration_says() -> None:
    line = {
        "at": TIME,
        "who": "assistant",
        "kind": "reply",
        "llm": {"name": "m-1", "vendor": "v", "tokens": [5, 2], "dollars": 0.1},
        "calls": [{"tool": "bash", "id": "c1"}],
        "outcome": {"state": "failed", "why": {"message": "no"}, "took": 12.5},
        "where": {"folder": "/srv/app", "above": "p1"},
    }
    read = told(
        time="at",
        role="who",
        event="kind",
        model="llm.name",
        provider="llm.vendor",
        input="llm.tokens.0",
        output="llm.tokens.1",
        cost_usd="llm.dollars",
        tool_name="calls.0.tool",
        tool_call_id="calls.0.id",
        status="outcome.state",
        error="outcome.why",
        duration_ms="outcome.took",
        working_dir="where.folder",
        parent_id="where.above",
    )
    meaning = read("transcript", line)
    assert meaning == Meaning(
        summary={
            "role": "assistant",
            "event": "reply",
            "model": "m-1",
            "provider": "v",
            "usage": {"input": 5, "output": 2},
            "cost_usd": "0.1",
            "tool_name": "bash",
            "tool_call_id": "c1",
            "status": "failed",
            "error": "no",
            "duration_ms": 12.5,
            "working_dir": "/srv/app",
            "parent_id": "p1",
        },
        occurred_at=AS_UTC,
        usage=Usage(5, 2),
        cost=COST_SCALE // 10,
    )
    assert FORMATS["jsonl"].about("transcript", line, meaning.summary) == {
        "model": "m-1",
        "working_dir": "/srv/app",
        "parent_id": "p1",
    }


def test_a_fact_that_has_a_place_is_looked_for_there_alone() -> None:
    line = {"timestamp": TIME, "model": "guess", "usage": {"input_tokens": 5}, "cost_usd": "1"}
    read = told(time="at", model="llm", output="spent", cost_usd="price", role="who")
    assert read("transcript", line) == Meaning()
    guessed = jsonl("transcript", line)
    assert told(role="who")("transcript", line) == guessed
    assert guessed.usage == Usage(5)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.1, "0.1"),
        (3, "3"),
        (1e-7, "0.0000001"),
        (1.2345678901234567e-5, "0.000012345678901235"),
        (1e300, None),
        (-1.5, None),
        (True, None),
    ],
)
def test_plain_json_lines_may_state_dollars_as_a_number(number: float, shown: str | None) -> None:
    assert jsonl("transcript", {"cost_usd": number}).summary.get("cost_usd") == shown


@given(st.dictionaries(st.sampled_from([*FIELDS, "x"]), json_values | st.text()) | json_values)
def test_hostile_places_lead_nowhere(fields: Any) -> None:
    read = format_named("jsonl").interpreter({"fields": fields})
    for line in ({"a": [{"": 1}]}, {"usage": {}, "x": {"y": "z"}}):
        assert read("transcript", line).cost >= 0


def test_the_configuration_knows_the_facts_that_the_format_knows() -> None:
    assert set(Fields.model_fields) == set(FIELDS)
    longest = Fields(model="x" * MAX_PATH)
    assert longest.model is not None
    with pytest.raises(ValidationError):
        Fields(model="x" * (MAX_PATH + 1))


# ---------------------------------------------------------------- every format


@pytest.mark.parametrize(("name", "stream"), list(itertools.product(sorted(FORMATS), STREAMS)))
def test_any_object_has_a_bounded_meaning(name: str, stream: Stream) -> None:
    @given(objects, st.dictionaries(st.sampled_from(["usage", "error", "model"]), json_values))
    def check(line: dict[str, Any], data: dict[str, Any]) -> None:
        meaning = format_named(name).interpret(stream, line | {"data": data})
        assert meaning.cost >= 0
        texts = [value for value in meaning.summary.values() if isinstance(value, str)]
        assert all(len(value) <= MAX_TEXT for value in texts)
        assert meaning.usage is None or all(0 <= n <= MAX_COUNT for n in meaning.usage)

    check()


@pytest.mark.parametrize("name", ["", "Amplifier", "x" * 1000])
def test_an_unknown_format_is_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedBatch, match="Unknown format"):
        format_named(name)
