"""When tools delete their own sessions: how long the source is a safe buffer.

Claude Code deletes transcripts at its start once they are older than `cleanupPeriodDays` (30 unless
its `settings.json` says otherwise; 0 deletes them all). Amplifier and Codex delete nothing.
"""

from pathlib import Path

import orjson

CLAUDE_DAYS = 30
_DAY = 86_400.0


def days_kept(file_format: str, claude_home: Path | None = None) -> float | None:
    """Return after how many days the tool deletes what it wrote; None for never."""
    if file_format != "claude_code":
        return None
    return _cleanup_period((claude_home or Path.home() / ".claude") / "settings.json")


def days_left(modified: float, kept: float | None, now: float) -> float | None:
    """Return how many days a file is safe that was changed then; times in seconds since 1970."""
    return None if kept is None else max(0.0, kept - (now - modified) / _DAY)


def _cleanup_period(path: Path) -> float:
    try:
        days = orjson.loads(path.read_bytes())["cleanupPeriodDays"]
    except (OSError, ValueError, KeyError, TypeError):
        return CLAUDE_DAYS
    is_number = isinstance(days, int | float) and not isinstance(days, bool)
    return max(float(days), 0.0) if is_number else CLAUDE_DAYS
