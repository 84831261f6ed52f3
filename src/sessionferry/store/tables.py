"""The tables of the SQL store, as the newest migration leaves them.

Bodies are the documents as JSON text, for people and for `json_extract` or `::jsonb`. On PostgreSQL
they are TEXT because JSONB refuses the escape `\\u0000`, which lines may hold.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, MetaData, String, Table, Text

from sessionferry.identity import Stream
from sessionferry.store import SEARCHED, ItemContainer

REVISION: Final = "0002"
"""The newest migration. Revisions are numbers of four digits, so that they compare."""

metadata = MetaData()

# Keys sort by code point on both engines, as they do in Python and Cosmos DB.
_Key = Text().with_variant(Text(collation="C"), "postgresql")


def _items(name: str, *more: Column[bool] | Column[str]) -> Table:
    table = Table(
        name,
        metadata,
        Column("partition_key", _Key, primary_key=True),
        Column("id", _Key, primary_key=True),
        Column("etag", BigInteger, nullable=False),
        Column("last_time", _Key, nullable=False),
        *more,
        Column("body", Text, nullable=False),
    )
    Index(f"{name}_by_time", table.c.last_time, table.c.id, table.c.partition_key)
    Index(f"{name}_by_partition", table.c.partition_key, table.c.last_time, table.c.id)
    return table


def _lines(name: str, *searched: Column[str]) -> Table:
    return Table(
        name,
        metadata,
        Column("partition_key", _Key, primary_key=True),
        Column("generation", BigInteger, primary_key=True, autoincrement=False),
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
        Column("id", _Key, nullable=False),
        Column("line_sha256", _Key, nullable=False),
        *searched,
        Column("body", Text, nullable=False),
    )


def _events() -> Table:
    searched = [Column(name, _Key) for name in SEARCHED]
    owner = (Column("user_id", _Key, nullable=False), Column("occurred_at", _Key, nullable=False))
    table = _lines("events", *owner, *searched)
    Index("events_by_time", table.c.user_id, table.c.occurred_at)
    return table


def _quarantine() -> Table:
    table = Table(
        "quarantine",
        metadata,
        Column("partition_key", _Key, primary_key=True),
        Column("id", _Key, primary_key=True),
        Column("stream", _Key),
        Column("generation", BigInteger),
        Column("created_at", _Key, nullable=False),
        Column("body", Text, nullable=False),
    )
    Index("quarantine_by_time", table.c.created_at, table.c.id, table.c.partition_key)
    Index("quarantine_by_partition", table.c.partition_key, table.c.created_at, table.c.id)
    return table


ITEMS: Final[dict[ItemContainer, Table]] = {
    "heads": _items("heads"),
    "sessions": _items(
        "sessions",
        Column("project_slug", _Key, nullable=False),
        Column("deleted", Boolean, nullable=False),
    ),
    "hosts": _items("hosts"),
    "attempts": _items("attempts"),
}
LINES: Final[dict[Stream, Table]] = {
    "events": _events(),
    "transcript": _lines("transcripts"),
}
QUARANTINE: Final = _quarantine()

VERSION_TABLE: Final = "sessionferry_schema"
"""Where Alembic keeps the revision; not its default name, so that a database can be shared."""
VERSION: Final = Table(
    VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True)
)
