"""Fixtures of the contract suites."""

from support.cosmos_stores import cosmos_access, cosmos_server, cosmos_url, named_cosmos_access
from support.postgres import (
    empty_postgres_url,
    migrated_postgres_url,
    postgres_server,
    postgres_url,
)

__all__ = [
    "cosmos_access",
    "cosmos_server",
    "cosmos_url",
    "empty_postgres_url",
    "migrated_postgres_url",
    "named_cosmos_access",
    "postgres_server",
    "postgres_url",
]
