"""Keeps an account in a SQLite file, so that it is there again after the server was killed."""

import sqlite3
from pathlib import Path
from typing import Any

import orjson
from tests.support.cosmos.items import Item
from tests.support.cosmos.partitions import Key

SCHEMA = """
CREATE TABLE IF NOT EXISTS databases (name TEXT PRIMARY KEY, number INTEGER);
CREATE TABLE IF NOT EXISTS containers (
    path TEXT PRIMARY KEY, number INTEGER, definition TEXT, throughput TEXT
);
CREATE TABLE IF NOT EXISTS items (
    path TEXT, key TEXT, id TEXT, number INTEGER, body BLOB, PRIMARY KEY (path, key, id)
) WITHOUT ROWID;
"""
PUT_ITEM = "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)"
PUT_DATABASE = "INSERT OR REPLACE INTO databases VALUES (?, ?)"
PUT_CONTAINER = "INSERT OR REPLACE INTO containers VALUES (?, ?, ?, ?)"


class Journal:
    """Keeps nothing: the account is gone with the server."""

    def put_database(self, name: str, number: int) -> None:
        """A database as it is now."""

    def remove_database(self, name: str) -> None:
        """A database is gone; its containers go each by itself."""

    def put_container(
        self, path: str, number: int, definition: dict[str, Any], throughput: dict[str, Any] | None
    ) -> None:
        """A container as it is now."""

    def remove_container(self, path: str) -> None:
        """A container is gone, with its items."""

    def put(self, path: str, key: Key, item: Item) -> None:
        """An item as it is now."""

    def remove(self, path: str, key: Key, item_id: str) -> None:
        """An item is gone."""

    def commit(self) -> None:
        """All since the last commit stands, together."""

    def rollback(self) -> None:
        """All since the last commit is forgotten."""


class SqliteJournal(Journal):
    """What is committed survives a killed server, but not a failing computer.

    A request is answered after its commit.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(SCHEMA)
        self._pending: list[tuple[str, tuple[Any, ...]]] = []

    def put_database(self, name: str, number: int) -> None:
        self._pending.append((PUT_DATABASE, (name, number)))

    def remove_database(self, name: str) -> None:
        self._pending.append(("DELETE FROM databases WHERE name = ?", (name,)))

    def put_container(
        self, path: str, number: int, definition: dict[str, Any], throughput: dict[str, Any] | None
    ) -> None:
        row = (path, number, orjson.dumps(definition), orjson.dumps(throughput))
        self._pending.append((PUT_CONTAINER, row))

    def remove_container(self, path: str) -> None:
        self._pending.append(("DELETE FROM containers WHERE path = ?", (path,)))
        self._pending.append(("DELETE FROM items WHERE path = ?", (path,)))

    def put(self, path: str, key: Key, item: Item) -> None:
        row = (path, _encode(key), item.id, item.number, item.raw)
        self._pending.append((PUT_ITEM, row))

    def remove(self, path: str, key: Key, item_id: str) -> None:
        statement = "DELETE FROM items WHERE path = ? AND key = ? AND id = ?"
        self._pending.append((statement, (path, _encode(key), item_id)))

    def commit(self) -> None:
        if not self._pending:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for statement, values in self._pending:
            self._connection.execute(statement, values)
        self._connection.execute("COMMIT")
        self._pending.clear()

    def rollback(self) -> None:
        self._pending.clear()

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    # ------------------------------------------------------------ reading back

    def databases(self) -> list[tuple[str, int]]:
        """Names and numbers."""
        return self._connection.execute("SELECT * FROM databases ORDER BY number").fetchall()

    def containers(self) -> list[tuple[str, int, dict[str, Any], dict[str, Any] | None]]:
        """Paths, numbers, definitions and throughputs."""
        rows = self._connection.execute("SELECT * FROM containers ORDER BY number")
        return [
            (path, number, orjson.loads(definition), orjson.loads(throughput))
            for path, number, definition, throughput in rows
        ]

    def items(self, path: str) -> list[tuple[Key, int, bytes]]:
        """Partition keys, numbers and bodies of a container, in the order of their creation."""
        rows = self._connection.execute(
            "SELECT key, number, body FROM items WHERE path = ? ORDER BY number", (path,)
        )
        return [(_decode(key), number, body) for key, number, body in rows]


def _encode(key: Key) -> str:
    return ",".join(part.hex() for part in key)


def _decode(text: str) -> Key:
    return tuple(map(bytes.fromhex, text.split(",")))
