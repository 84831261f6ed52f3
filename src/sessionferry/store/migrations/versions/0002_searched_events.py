"""What searches compare, beside each event."""

from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_TEXTS = ("event", "level", "tool_name", "model", "provider", "status")
_PORTION = 500


def upgrade() -> None:
    """Apply."""
    # A new table, not new columns: the body stays the last, so that the others are read without it.
    op.rename_table("events", "events_before")
    events = op.create_table(
        "events",
        sa.Column("partition_key", _KEY, primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", _KEY, nullable=False),
        sa.Column("line_sha256", _KEY, nullable=False),
        sa.Column("user_id", _KEY, nullable=False),
        sa.Column("occurred_at", _KEY, nullable=False),
        *(sa.Column(name, _KEY) for name in _TEXTS),
        sa.Column("body", sa.Text, nullable=False),
    )
    for rows in _portions():
        op.get_bind().execute(sa.insert(events), rows)
    op.drop_table("events_before")
    op.create_index("events_by_time", "events", ["user_id", "occurred_at"])


def _portions() -> Iterator[list[dict[str, Any]]]:
    names = ("partition_key", "generation", "sequence", "id", "line_sha256", "body")
    before = sa.table("events_before", *(sa.column(name) for name in names))
    key = [before.c[name] for name in names[:3]]
    query = sa.select(before).order_by(*key).limit(_PORTION)
    rows = op.get_bind().execute(query).mappings().all()
    while rows:
        yield [dict(row) | _searched(orjson.loads(row["body"])) for row in rows]
        after = [rows[-1][column.name] for column in key]
        rows = op.get_bind().execute(query.where(sa.tuple_(*key) > after)).mappings().all()


def _searched(document: dict[str, Any]) -> dict[str, str | None]:
    summary = document["summary"]
    values = (document.get("event"), document.get("lvl"), *(summary.get(n) for n in _TEXTS[2:]))
    return {
        "user_id": document["user_id"],
        "occurred_at": document["occurred_at"] or "",
        **{name: _text(value) for name, value in zip(_TEXTS, values, strict=True)},
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None
