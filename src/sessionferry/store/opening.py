"""Which store a URL names."""

import asyncio
from urllib.parse import urlsplit

from sessionferry.errors import UserError
from sessionferry.store import Store

_SQL_SCHEMES = frozenset({"sqlite", "postgresql", "postgresql+psycopg"})


async def open_store(url: str) -> Store:
    """Open the store of a URL; raises `UserError` for a URL that names none."""
    scheme = urlsplit(url).scheme
    if scheme not in _SQL_SCHEMES:
        raise UserError(f"FERRY_STORE names no store: {scheme or 'no scheme'}://… is unknown.")
    from sessionferry.store.sql import SqlStore

    return await asyncio.to_thread(SqlStore.open, url)
