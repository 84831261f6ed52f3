"""What was shipped already: per stream its generation, position and a hash of what lies before it.

One small SQLite file per destination. A row is written only after the queue has taken the batch, so
it never runs ahead of what is safe; when it lags behind, lines are sent again, which is harmless.
"""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from sessionferry.errors import UserError
from sessionferry.formats import Carry
from sessionferry.identity import SessionKey

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shipped (
    partition_key TEXT NOT NULL,
    role TEXT NOT NULL,
    path TEXT NOT NULL,
    generation INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    prefix_sha256 TEXT NOT NULL,
    tail_sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    carry TEXT,
    PRIMARY KEY (partition_key, role)
);
"""


@dataclass(frozen=True, slots=True)
class Shipped:
    """How far one file was shipped. For metadata, `prefix_sha256` is the whole file's hash."""

    generation: int
    offset: int
    sequence: int
    prefix_sha256: str
    tail_sha256: str = ""
    size: int = -1
    modified_ns: int = -1
    carry: Carry | None = None
    """What the next batch carries: what its format must know of the lines before it."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The agent's side of the ledger: what was read from the sources and sent."""

    files: int
    lines: int
    bytes: int


class Progress:
    """The memory of one destination."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._add_carry()
            self.spool_id = self._own_id()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"The agent's memory {path} cannot be used ({error}). Move it away and ship "
                "again: sources are read anew, and sending twice is harmless."
            ) from None

    def get(self, key: SessionKey, role: str) -> Shipped | None:
        """Return how far a file was shipped; None if never."""
        row = self._db.execute(
            "SELECT generation, offset, sequence, prefix_sha256, tail_sha256, size, modified_ns,"
            " carry FROM shipped WHERE partition_key = ? AND role = ?",
            (key.partition_key, role),
        ).fetchone()
        if row is None:
            return None
        shipped = Shipped(*row[:-1])
        return replace(shipped, carry=orjson.loads(row[-1])) if row[-1] else shipped

    def put(self, key: SessionKey, role: str, path: Path, shipped: Shipped) -> None:
        """Remember how far a file was shipped; on disk when this returns."""
        self._db.execute(
            "INSERT OR REPLACE INTO shipped VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key.partition_key, role, str(path).encode("utf-8", "replace").decode()),
                *(shipped.generation, shipped.offset, shipped.sequence, shipped.prefix_sha256),
                *(shipped.tail_sha256, shipped.size, shipped.modified_ns),
                orjson.dumps(shipped.carry).decode() if shipped.carry else None,
            ),
        )

    def forget(self, key: SessionKey, role: str) -> None:
        """Forget a file, so that it is shipped from its beginning."""
        self._db.execute(
            "DELETE FROM shipped WHERE partition_key = ? AND role = ?", (key.partition_key, role)
        )

    def totals(self) -> Totals:
        """Sum up everything that was shipped to this destination."""
        row = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(sequence), 0), COALESCE(SUM(offset), 0) FROM shipped"
        ).fetchone()
        return Totals(*row)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit everything inside at once."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _add_carry(self) -> None:
        """Bring a memory up to date that was made before formats needed one themselves."""
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(shipped)")]
        if "carry" not in columns:
            self._db.execute("ALTER TABLE shipped ADD COLUMN carry TEXT")

    def _own_id(self) -> str:
        with self.together():
            row = self._db.execute("SELECT id FROM spool").fetchone()
            if row is not None:
                return str(row[0])
            fresh = uuid.uuid4().hex
            self._db.execute("INSERT INTO spool VALUES (?)", (fresh,))
            return fresh
