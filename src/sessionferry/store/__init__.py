"""What a store of documents must do. One contract suite holds every implementation to this.

Containers are those of the design: `heads`, `sessions`, `hosts` hold small items that are written
conditionally on their ETag; `events` and `transcripts` hold one document per line, created once and
never overwritten; `quarantine` holds what could not become a document.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

from sessionferry.coverage import Coverage
from sessionferry.documents import Document, Facts
from sessionferry.identity import SessionKey, Stream

ItemContainer = Literal["heads", "sessions", "hosts", "attempts"]
PARTITION_FIELD: Mapping[ItemContainer, str] = {
    "heads": "partition_key",
    "sessions": "user_id",
    "hosts": "user_id",
    "attempts": "partition_key",
}
LINE_CONTAINER: Mapping[Stream, str] = {"events": "events", "transcript": "transcripts"}


SEARCHED: Mapping[str, tuple[str, ...]] = {
    "event": ("event",),
    "level": ("lvl",),
    "tool_name": ("summary", "tool_name"),
    "model": ("summary", "model"),
    "provider": ("summary", "provider"),
    "status": ("summary", "status"),
}
"""Where a document keeps what an `EventFilter` compares. Stores index these paths, `user_id` and
`occurred_at`."""


class Item(NamedTuple):
    """A small document and the ETag it was read with."""

    document: dict[str, Any]
    etag: str


class Page(NamedTuple):
    """Some documents, and an opaque token for the next ones; None after the last page."""

    documents: list[dict[str, Any]]
    continuation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events a search finds: those of a user that equal every text that is given.

    `session` confines it to one partition. `since` is inclusive, `until` is not; both are compared
    with `occurred_at` and have its form, so that an event without a time fits neither.
    """

    user_id: str
    project_slug: str | None = None
    session: SessionKey | None = None
    event: str | None = None
    level: str | None = None
    tool_name: str | None = None
    model: str | None = None
    provider: str | None = None
    status: str | None = None
    since: str | None = None
    until: str | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The texts that must be equal, by the names in `SEARCHED`."""
        given = {name: getattr(self, name) for name in SEARCHED}
        return {name: text for name, text in given.items() if text is not None}


class Store(Protocol):
    """A store of documents. Ids are escaped as `identity.escape` does; partitions are any text.

    Every method raises `TransientError` or `ThrottledError` when the store cannot answer now, and
    `PermanentError` when it never will.
    """

    async def read_item(
        self, container: ItemContainer, partition: str, item_id: str
    ) -> Item | None:
        """Read one small item by its key; None if there is none."""
        ...

    async def write_item(
        self, container: ItemContainer, document: Mapping[str, Any], etag: str | None
    ) -> str:
        """Write one small item and return its new ETag.

        `etag` None creates, else the stored ETag must match; raises `ItemChanged` otherwise. The
        partition is the document's field `PARTITION_FIELD[container]`, the id its field `id`.
        """
        ...

    async def delete_item(self, container: ItemContainer, partition: str, item_id: str) -> None:
        """Delete one small item; succeeds when it is absent."""
        ...

    async def list_items(
        self,
        container: ItemContainer,
        *,
        partition: str | None = None,
        project_slug: str | None = None,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List items by last activity, newest first (`last_time`, then id).

        Sessions marked `deleted` are left out. `project_slug` applies to `sessions`.
        """
        ...

    async def create_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> dict[int, Facts]:
        """Create the documents that are absent; never overwrite one (R1).

        Returns, by sequence, the facts of those that stood there before. A sequence occurs at most
        once in `documents`. Whatever was created is durable when this returns.
        """
        ...

    async def replace_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> None:
        """Write documents, whatever stands in their places; as durable as `create_lines`.

        Only for callers that have marked the head dirty before. A sequence occurs at most once.
        """
        ...

    async def delete_lines(
        self, key: SessionKey, stream: Stream, generation: int, lines: Coverage
    ) -> None:
        """Delete line documents by id; succeeds where they are absent."""
        ...

    async def read_lines(
        self,
        key: SessionKey,
        stream: Stream,
        generation: int,
        *,
        after: int = -1,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Read documents of one stream in order of sequence, greater than `after`."""
        ...

    async def read_line(
        self, key: SessionKey, stream: Stream, generation: int, sequence: int
    ) -> dict[str, Any] | None:
        """Read one line's document."""
        ...

    async def search_events(
        self, wanted: EventFilter, *, limit: int = 100, continuation: str | None = None
    ) -> Page:
        """Find events, newest first (`occurred_at`, then `sequence`, then `partition_key`).

        Events without a time come last. A token is good for the same filter only.
        """
        ...

    async def create_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Create quarantine entries that are absent, by (partition_key, id)."""
        ...

    async def replace_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write quarantine entries, whatever stands in their places."""
        ...

    async def delete_quarantined(self, partition: str, ids: Sequence[str]) -> None:
        """Delete quarantine entries by id; succeeds where they are absent."""
        ...

    async def clear_quarantine(
        self, partition: str, stream: Stream | None = None, below_generation: int | None = None
    ) -> None:
        """Delete the partition's entries: all, or those of older generations of one stream."""
        ...

    async def list_quarantined(
        self,
        partition: str | None = None,
        *,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List quarantine entries, newest first (`created_at`, then id)."""
        ...

    async def check(self) -> None:
        """Prove that the store answers and has what it needs; raises an error that says why not."""
        ...

    async def close(self) -> None:
        """Release connections. The store cannot be used afterwards."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
