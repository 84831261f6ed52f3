"""Which store a URL names."""

import asyncio
from urllib.parse import urlsplit

from sessionferry.errors import UserError
from sessionferry.settings import Settings
from sessionferry.store import Store

_SQL_SCHEMES = frozenset({"sqlite", "postgresql", "postgresql+psycopg"})
_COSMOS_SCHEMES = frozenset({"cosmos", "cosmos+http"})


async def open_store(url: str, settings: Settings | None = None) -> Store:
    """Open the store of a URL; raises `UserError` for a URL that names none.

    A Cosmos DB account is reached as `settings` say, by default those of the environment.
    """
    scheme = urlsplit(url).scheme
    if scheme in _COSMOS_SCHEMES:
        from sessionferry.store.cosmos.access import access
        from sessionferry.store.cosmos.store import CosmosStore

        return await CosmosStore.open(access(url, settings or Settings.read()))
    if scheme not in _SQL_SCHEMES:
        raise UserError(f"FERRY_STORE names no store: {scheme or 'no scheme'}://… is unknown.")
    from sessionferry.store.sql import SqlStore

    return await asyncio.to_thread(SqlStore.open, url)
