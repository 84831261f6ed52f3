"""Fixtures of the contract suites."""

from support.postgres import (
    empty_postgres_url,
    migrated_postgres_url,
    postgres_server,
    postgres_url,
)

__all__ = ["empty_postgres_url", "migrated_postgres_url", "postgres_server", "postgres_url"]
