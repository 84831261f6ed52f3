"""Reading more documents than one call gives."""

from collections.abc import AsyncIterator
from typing import Any

from sessionferry.identity import SessionKey, Stream
from sessionferry.store import Store

PAGE_LINES = 200
"""Documents that are read at once: at most 400 MB of the largest ones."""


async def all_lines(
    store: Store, key: SessionKey, stream: Stream, generation: int, after: int = -1
) -> AsyncIterator[dict[str, Any]]:
    """Yield the documents of one stream in order of sequence, greater than `after`."""
    while True:
        found = await store.read_lines(key, stream, generation, after=after, limit=PAGE_LINES)
        for document in found:
            yield document
        if len(found) < PAGE_LINES:
            return
        after = found[-1]["sequence"]
