"""The SQLite file behind the queues: schema, transactions, rows.

Everything that a queue knows is a row, so memory stays flat with any backlog, and a rolled back
transaction leaves no trace. A turn of the event loop is one transaction: nothing is answered to a
client before the commit that made it true.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

_SEQUENCE_BITS: Final = 40
PAGE_BYTES: Final = 16_384  # large bodies span few pages
CHECKPOINT_PAGES: Final = 2_000

# A message's id holds its entity and its sequence number, so that one primary key serves
# delivery order and peeking. `due` is when the row changes by itself: a lock ends, a time to live
# is over, a schedule begins. Bodies live apart, so that state changes touch small rows only.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS queues (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    definition TEXT NOT NULL, next_sequence INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, state INTEGER NOT NULL, deliveries INTEGER NOT NULL,
    enqueued INTEGER NOT NULL, expires INTEGER, due INTEGER, lock INTEGER
);
CREATE INDEX IF NOT EXISTS ready ON messages (id) WHERE state = 0;
CREATE INDEX IF NOT EXISTS due ON messages (due) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS payloads (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS message_ids (
    queue INTEGER NOT NULL, message_id TEXT NOT NULL, seen INTEGER NOT NULL,
    PRIMARY KEY (queue, message_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_ids_seen ON message_ids (queue, seen);
"""


def message_id(entity: int, sequence: int) -> int:
    """The row id of a message; a number that no message can have gives that of no message."""
    return entity << _SEQUENCE_BITS | (sequence if 0 < sequence < 1 << _SEQUENCE_BITS else 0)


def bounds(entity: int, first: int = 0) -> tuple[int, int]:
    """The row ids of an entity, from a sequence number on: including, excluding."""
    beyond = (entity + 1) << _SEQUENCE_BITS
    return min((entity << _SEQUENCE_BITS) + max(first, 0), beyond), beyond


def entity_of(row_id: int) -> int:
    """The entity that a row belongs to: a queue, or its dead-letter queue."""
    return row_id >> _SEQUENCE_BITS


def sequence_of(row_id: int) -> int:
    """The sequence number of a row."""
    return row_id & ((1 << _SEQUENCE_BITS) - 1)


class Storage:
    """One connection to the file, and its transaction."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, cached_statements=64, timeout=0.5)
        self._open = False
        for pragma in (
            f"page_size={PAGE_BYTES}",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            "locking_mode=EXCLUSIVE",
            "secure_delete=OFF",  # many builds overwrite what is deleted, which doubles the writing
        ):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_SCHEMA)

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        return self._db.execute(sql, values).fetchall()

    def each(self, sql: str, *values: Any) -> Iterator[Any]:
        """The rows of a query one by one, to be left as soon as there are enough."""
        yield from self._db.execute(sql, values)

    def row(self, sql: str, *values: Any) -> Any:
        """The first row of a query, or None."""
        return self._db.execute(sql, values).fetchone()

    def write(self, sql: str, *values: Any) -> int:
        """Change something within the turn's transaction; the number of rows changed."""
        if not self._open:
            self._db.execute("BEGIN IMMEDIATE")
            self._open = True
        return self._db.execute(sql, values).rowcount

    def write_all(self, sql: str, values: Iterable[tuple[Any, ...]]) -> None:
        """The same change for many rows."""
        for row in values:
            self.write(sql, *row)

    def commit(self) -> None:
        """Make the turn durable."""
        if self._open:
            self._db.execute("COMMIT")
            self._open = False

    def rollback(self) -> None:
        """Forget the turn."""
        if self._open:
            self._open = False
            self._db.rollback()

    def close(self) -> None:
        """Commit and close the file."""
        self.commit()
        self._db.close()
