"""One table for each container."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Apply."""
    _create_items("heads")
    _create_items(
        "sessions",
        sa.Column("project_slug", _KEY, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )
    _create_items("hosts")
    _create_items("attempts")
    _create_lines("events")
    _create_lines("transcripts")
    _create_quarantine()


def _create_items(name: str, *more: sa.Column[bool] | sa.Column[str]) -> None:
    op.create_table(
        name,
        sa.Column("partition_key", _KEY, primary_key=True),
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("etag", sa.BigInteger, nullable=False),
        sa.Column("last_time", _KEY, nullable=False),
        *more,
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index(f"{name}_by_time", name, ["last_time", "id", "partition_key"])
    op.create_index(f"{name}_by_partition", name, ["partition_key", "last_time", "id"])


def _create_lines(name: str) -> None:
    op.create_table(
        name,
        sa.Column("partition_key", _KEY, primary_key=True),
        sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", _KEY, nullable=False),
        sa.Column("line_sha256", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )


def _create_quarantine() -> None:
    op.create_table(
        "quarantine",
        sa.Column("partition_key", _KEY, primary_key=True),
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("stream", _KEY),
        sa.Column("generation", sa.BigInteger),
        sa.Column("created_at", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("quarantine_by_time", "quarantine", ["created_at", "id", "partition_key"])
    op.create_index("quarantine_by_partition", "quarantine", ["partition_key", "created_at", "id"])
