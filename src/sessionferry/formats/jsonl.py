"""Any JSON Lines file, as a plain transcript: a time and a role where they are easy to see."""

from typing import Any

from sessionferry.formats.meaning import Meaning, text, utc
from sessionferry.identity import Stream

_TIME_KEYS = ("timestamp", "ts", "time", "created_at")


def interpret(_stream: Stream, line: dict[str, Any]) -> Meaning:
    """Read what a line of unknown origin is likely to mean."""
    meaning = Meaning()
    for key in _TIME_KEYS:
        if key in line and (moment := utc(line[key])):
            meaning.occurred_at = moment
            break
    for key in ("model", "status"):
        if value := text(line.get(key)):
            meaning.summary[key] = value
    return meaning


def about(_stream: Stream, _line: dict[str, Any]) -> dict[str, str]:
    """Say nothing: where such a line would have it is not known."""
    return {}


def lifecycle(_stream: Stream, _fields: dict[str, Any], _summary: dict[str, Any]) -> str | None:
    """Say nothing: what a run's events are is not known."""
    return None
