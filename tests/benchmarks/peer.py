"""The baseline: storing line by line, as amplifier-session-storage's SQLite backend does.

Per line: `json.loads`, `{**line, ids}`, the size by `json.dumps(...).encode()`, no payload over
400 KB, and one awaited upsert that hops to the connection's thread. That backend commits once per
call, and a call takes as many lines as its caller collected: `commit_each` measures the one end
(lines stored as they come), without it the other (a whole file per call).

What it leaves out is in its favour: no queue, no second process, no archive (what is truncated is
gone), no hashes, no head, no counts, no sessions table, no index but the key.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_BYTES = 400 * 1024
_UPSERT = (
    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
    " data = excluded.data, data_truncated = excluded.data_truncated,"
    " synced_at = excluded.synced_at"
)
_TABLE = (
    "CREATE TABLE events (id TEXT PRIMARY KEY, user_id, project_slug, session_id, sequence,"
    " ts, lvl, event, data, data_truncated, data_size_bytes, synced_at)"
)


class Peer:
    """One database with one connection in one thread, as aiosqlite has it."""

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._connection = self._thread.submit(_open, path).result()

    async def store(self, session: str, lines: list[bytes], *, commit_each: bool) -> None:
        """Upsert lines one after another."""
        for sequence, raw in enumerate(lines):
            await self._call(self._connection.execute, _UPSERT, _row(session, sequence, raw))
            if commit_each:
                await self._call(self._connection.commit)
        await self._call(self._connection.commit)

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Close the database."""
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(_TABLE)
    return connection


def _row(session: str, sequence: int, raw: bytes) -> tuple[Any, ...]:
    line = json.loads(raw)
    identity = f"{session}_evt_{sequence}"
    size = len(json.dumps(line).encode())
    whole = {**line, "id": identity, "user_id": "mara", "session_id": session}
    return (
        *(identity, "mara", "project", session, sequence),
        *(line.get("ts"), line.get("lvl"), line.get("event")),
        json.dumps(whole if size <= MAX_BYTES else {}),
        *(int(size > MAX_BYTES), size, datetime.now(UTC).isoformat()),
    )
