"""Any JSON Lines file, as a plain transcript: what many tools call by the same few names.

Usage is taken as each line's own. OpenAI's spelling counts cached tokens inside the prompt,
Anthropic's beside the input; both are told by their names. For tools with names of their own, the
machine's configuration says where each fact stands; that travels in the batches' `carry`.
"""

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
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
from sessionferry.formats.memory import Carry
from sessionferry.identity import Stream

Interpret = Callable[[Stream, dict[str, Any]], Meaning]

_TIME_KEYS = ("timestamp", "ts", "time", "created_at")
_TEXTS = (
    *("model", "provider", "role", "status", "tool_name", "tool_call_id", "parent_id"),
    *("message_id", "stop_reason"),
)
_INSIDE = ("message", "response")
"""Where a line may hold what it is about."""
TEXT_FIELDS = (*_TEXTS, "event", "working_dir")
USAGE_FIELDS = ("input", "output", "cache_read", "cache_write", "cached_input")
FIELDS = ("time", *TEXT_FIELDS, *USAGE_FIELDS, "cost_usd", "error", "duration_ms")
"""The facts whose place in a line can be told."""
MAX_PATH = 200
"""Longest place of a fact, in characters."""


def explained(carry: Carry | None) -> Interpret:
    """Return how lines are read of which a batch says where the facts stand.

    `carry` is `{"fields": {fact: place}}`: names of `FIELDS`, and the keys that lead there, with
    dots between. What is not so is passed over; a fact that has a place is looked for there alone.
    """
    told = (carry or {}).get("fields")
    places = {
        name: tuple(place.split("."))
        for name, place in (told.items() if isinstance(told, dict) else ())
        if name in FIELDS and isinstance(place, str) and len(place) <= MAX_PATH
    }
    if not places:
        return interpret

    def interpret_as_told(stream: Stream, line: dict[str, Any]) -> Meaning:
        meaning = interpret(stream, line)
        _read_as_told(places, line, meaning)
        return meaning

    return interpret_as_told


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
            meaning.cost = _dollars(place.get("cost_usd"))
    if summary.get("role") == "tool":
        put(summary, "tool_name", line.get("tool_name") or line.get("name"))
    _put_outcome(summary, line.get("error"), line.get("duration_ms"))
    if meaning.cost:
        summary["cost_usd"] = cost_text(meaning.cost)
    return meaning


def about(_stream: Stream, line: dict[str, Any], summary: dict[str, Any]) -> dict[str, str]:
    """Read what a line says about its session."""
    found: dict[str, str] = {}
    put(found, "model", summary.get("model"))
    put(found, "working_dir", summary.get("working_dir") or line.get("cwd"))
    put(found, "parent_id", summary.get("parent_id"))
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


def _put_outcome(summary: dict[str, Any], error: object, duration: object) -> None:
    if error:
        summary["error"] = brief(error)
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        summary["duration_ms"] = duration


def _dollars(value: object) -> int:
    """Read a cost; a number is taken for the shortest decimal that it may have been written as.

    So each line's is exact, to 18 places, and their sum does not depend on the order.
    """
    if isinstance(value, float):
        value = format(Decimal(repr(value)), ".18f")
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return cost(value)


def _read_as_told(
    places: Mapping[str, tuple[str, ...]], line: dict[str, Any], meaning: Meaning
) -> None:
    """Put in place of what was guessed what stands where the batch says."""
    told = {name: _at(line, place) for name, place in places.items()}
    summary = meaning.summary
    for name in told:
        summary.pop(name, None)
    if "time" in told:
        meaning.occurred_at = utc(told["time"])
    for name in TEXT_FIELDS:
        put(summary, name, told.get(name))
    _put_outcome(summary, told.get("error"), told.get("duration_ms"))
    if "cost_usd" in told:
        meaning.cost = _dollars(told["cost_usd"])
        if meaning.cost:
            summary["cost_usd"] = cost_text(meaning.cost)
    if not told.keys().isdisjoint(USAGE_FIELDS):
        summary.pop("usage", None)
        meaning.usage = None
        if any(told.get(name) is not None for name in USAGE_FIELDS):
            meaning.account(_told_usage(told))


def _told_usage(told: Mapping[str, object]) -> Usage:
    """`cached_input` is counted inside `input`, `cache_read` beside it."""
    inside = count(told.get("cached_input"))
    return Usage(
        max(0, count(told.get("input")) - inside),
        count(told.get("output")),
        count(told.get("cache_read")) + inside,
        count(told.get("cache_write")),
    )


def _at(line: object, place: tuple[str, ...]) -> object:
    """Follow keys, and positions in lists; None where they lead nowhere."""
    for key in place:
        if isinstance(line, dict):
            line = line.get(key)
        elif isinstance(line, list) and key.isdecimal() and len(key) < 10:
            line = line[int(key)] if int(key) < len(line) else None
        else:
            return None
    return line
