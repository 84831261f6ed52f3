"""When tools delete their own sessions: how long the source is a safe buffer.

Claude Code deletes transcripts at its start once they are older than `cleanupPeriodDays` (30 unless
its `settings.json` says otherwise; 0 deletes them all). Amplifier and Codex delete nothing.
"""

from pathlib import Path
from typing import NamedTuple

import orjson

from sessionferry.agent.discover import Source

CLAUDE_DAYS = 30
SETTINGS_FILE = "settings.json"
_DAY = 86_400.0


class Kept(NamedTuple):
    """For how many days a tool keeps what it wrote, and the settings that say so."""

    days: float
    settings: Path


def days_kept(file_format: str, claude_home: Path | None = None) -> float | None:
    """Return after how many days the tool deletes what it wrote; None for never."""
    if file_format != "claude_code":
        return None
    return _cleanup_period((claude_home or Path.home() / ".claude") / SETTINGS_FILE)


def kept_by(source: Source) -> Kept | None:
    """Return how long a file's tool keeps it; None for ever."""
    # The folder above `projects`: CLAUDE_CONFIG_DIR, or ~/.claude.
    above = (folder.parent for folder in source.path.parents if folder.name == "projects")
    home = next(above, Path.home() / ".claude")
    days = days_kept(source.format, home)
    return None if days is None else Kept(days, home / SETTINGS_FILE)


def days_left(modified: float, kept: float, now: float) -> float:
    """Return how many days a file is safe that was changed then; times in seconds since 1970."""
    return max(0.0, kept - (now - modified) / _DAY)


def _cleanup_period(path: Path) -> float:
    try:
        days = orjson.loads(path.read_bytes())["cleanupPeriodDays"]
    except (OSError, ValueError, KeyError, TypeError):
        return CLAUDE_DAYS
    is_number = isinstance(days, int | float) and not isinstance(days, bool)
    return max(float(days), 0.0) if is_number else CLAUDE_DAYS
