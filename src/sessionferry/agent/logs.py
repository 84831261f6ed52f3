"""The log of the agent in the background: JSON lines in a file that is rotated.

A line has `at, level, logger, message`, what the caller added with `extra`, and of an error its
kind and where it came from. An error's own words are left out: they may quote what was read.
"""

import logging
import traceback
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import orjson

from sessionferry.agent.opening import open_shared
from sessionferry.config import Log

FILE_NAME = "agent.jsonl"
MAX_MESSAGE_CHARS = 2000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _text(record.getMessage()),
            **{key: _plain(value) for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)[-5:]
            line["from"] = [f"{frame.name}:{frame.lineno}" for frame in frames]
        return orjson.dumps(line).decode()


def start(folder: Path, chosen: Log) -> logging.Handler:
    """Log into a folder from now on: everything of ours from the chosen level, warnings of others.

    Return the handler, which the caller removes from the root logger when it ends.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / FILE_NAME
    path.touch(mode=0o600)
    handler = RotatingFileHandler(
        path, maxBytes=chosen.megabytes * 1_000_000, backupCount=chosen.files, encoding="utf-8"
    )
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("sessionferry").setLevel(chosen.level.upper())
    return handler


def last(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the newest lines, oldest first, across rotated files; broken ones are left out."""
    lines: deque[dict[str, Any]] = deque(maxlen=count)
    for path in _files(folder):
        with open_shared(path) as file:
            lines.extend(_parsed(file.readlines()))
    return list(lines)


def follow(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Yield lines as they are written; None whenever there is nothing new. Follows rotations."""
    path = folder / FILE_NAME
    place, inode = (path.stat().st_size, path.stat().st_ino) if path.exists() else (0, 0)
    while True:
        try:
            state = path.stat()
            if state.st_ino != inode or state.st_size < place:
                place, inode = 0, state.st_ino
            with open_shared(path) as file:
                file.seek(place)
                fresh = file.read()
        except FileNotFoundError:
            fresh = b""
        whole = fresh[: fresh.rfind(b"\n") + 1]
        place += len(whole)
        yield from _parsed(whole.splitlines())
        yield None


def sentence(line: dict[str, Any]) -> str:
    """Write a line for people."""
    rest = {key: line[key] for key in line if key not in {"at", "level", "logger", "message"}}
    extra = " ".join(f"{key}={_text(str(value))}" for key, value in rest.items())
    at = str(line.get("at", ""))[:19].replace("T", " ")
    head = f"{at}  {line.get('level', ''):7}  {line.get('message', '')}"
    return f"{head}  {extra}" if extra else head


def _files(folder: Path) -> list[Path]:
    def age(path: Path) -> int:
        number = path.name.removeprefix(FILE_NAME).removeprefix(".")
        return int(number) if number.isdigit() else 0

    return sorted(folder.glob(f"{FILE_NAME}*"), key=age, reverse=True)


def _parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict):
            yield found


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | bool | None) else _text(str(value))


def _text(text: str) -> str:
    """Shorten a text, and make one of it that JSON can carry."""
    return text[:MAX_MESSAGE_CHARS].encode("utf-8", "backslashreplace").decode()
