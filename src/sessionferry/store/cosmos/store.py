"""The store on Cosmos DB: point reads, conditional writes, transactional batches per partition.

A batch is all or nothing, so one surprise, a document that is there already or is gone, leaves it
undone. Then one query says what is there, and the rest is written. Surprises are rare but for
deliveries that come again, whose first batch shows it; so the first batch goes ahead, the others
follow together.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import orjson
from azure.core import MatchConditions
from azure.cosmos.aio import ContainerProxy

from sessionferry.coverage import Coverage
from sessionferry.documents import Document, Facts, stored_facts
from sessionferry.errors import ItemChanged, PermanentError, TransientError
from sessionferry.identity import SessionKey, Stream, line_id, line_id_prefix
from sessionferry.store import (
    LINE_CONTAINER,
    PARTITION_FIELD,
    EventFilter,
    Item,
    ItemContainer,
    Page,
)
from sessionferry.store.cosmos import faults, queries
from sessionferry.store.cosmos.access import Access
from sessionferry.store.cosmos.account import Account
from sessionferry.store.cosmos.containers import LISTING_KEY
from sessionferry.store.cosmos.faults import Refusal
from sessionferry.store.cosmos.packing import halves, pack
from sessionferry.store.cosmos.queries import Query
from sessionferry.store.cosmos.transport import write_batch

_T = TypeVar("_T")

_SYSTEM_FIELDS: Final = ("_rid", "_self", "_etag", "_attachments", "_ts", LISTING_KEY)
_PAGE_ROWS: Final = 1000
_PORTION: Final = 1000
_MOST_ROUNDS: Final = 20
"""So often a batch may meet others who write the same; each of them got something done."""
_FIRST_WAIT: Final = 0.01  # seconds; doubles
_LONGEST_WAIT: Final = 1.0


_SURPRISES: Final = {"create": faults.CONFLICT, "delete": faults.NOT_FOUND}


class Operation(NamedTuple):
    """One operation of a batch: the key by which it is looked up, and what is written.

    That is a document's JSON, or the id of one that is deleted.
    """

    key: Any
    body: Any
    size: int


class CosmosStore:
    """Documents in Cosmos DB; open one with `CosmosStore.open`."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._is_closed = False

    @classmethod
    async def open(cls, access: Access) -> Self:
        """Connect; raises `UserError` when the database or one of its containers is not there.

        A local endpoint gets what is missing, an account in Azure only where the access says so.
        """
        return cls(await Account.open(access))

    # ------------------------------------------------------------ items

    async def read_item(
        self, container: ItemContainer, partition: str, item_id: str
    ) -> Item | None:
        """Read one small item by its key; None if there is none."""
        found = await self._read(container, partition, item_id)
        return Item(_own(found), found["_etag"]) if found is not None else None

    async def write_item(
        self, container: ItemContainer, document: Mapping[str, Any], etag: str | None
    ) -> str:
        """Write one small item and return its new ETag; raises `ItemChanged`."""
        body = _standard(document)
        if container != "sessions" or not body.get("deleted"):
            partition = body[PARTITION_FIELD[container]]
            key = queries.listing_key(body.get("last_time"), body["id"], partition)
            body[LISTING_KEY] = key
        items = self.account.container(container)
        changed = ItemChanged(f"{container}: item {body['id']} was written by somebody else.")
        if etag is not None and not _may_be_etag(etag):
            raise changed
        try:
            if etag is None:
                written = await self.account.send(lambda: items.create_item(body, no_response=True))
            else:
                written = await self.account.send(
                    lambda: items.replace_item(
                        body["id"],
                        body,
                        etag=etag,
                        match_condition=MatchConditions.IfNotModified,
                        no_response=True,
                    )
                )
        except Refusal as refusal:
            if refusal.status in {faults.CONFLICT, faults.PRECONDITION_FAILED, faults.NOT_FOUND}:
                raise changed from refusal
            raise
        return str(written.get_response_headers()["etag"])

    async def delete_item(self, container: ItemContainer, partition: str, item_id: str) -> None:
        """Delete one small item; succeeds when it is absent."""
        items = self.account.container(container)
        try:
            await self.account.send(lambda: items.delete_item(item_id, partition))
        except Refusal as refusal:
            if refusal.status != faults.NOT_FOUND:
                raise

    async def list_items(
        self,
        container: ItemContainer,
        *,
        partition: str | None = None,
        project_slug: str | None = None,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List items by last activity, newest first."""
        project = project_slug if container == "sessions" else None
        return await self._page(container, partition, limit, continuation, project)

    # ------------------------------------------------------------ lines

    async def create_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> dict[int, Facts]:
        """Create the documents that are absent; return the facts of those that stood there."""
        partition, container = key.partition_key, LINE_CONTAINER[stream]

        async def find(wanted: Sequence[Operation]) -> dict[Any, Facts]:
            first, last = _span(wanted)
            query = queries.facts_between(generation, first, last)
            rows = [row async for row in self._rows(container, partition, query)]
            return {row["sequence"]: stored_facts(row) for row in rows}

        operations = [
            Operation(document.facts.sequence, document.json, len(document.json))
            for document in sorted(documents, key=lambda it: it.facts.sequence)
        ]
        return await self._create_absent(container, partition, operations, find)

    async def replace_lines(
        self,
        key: SessionKey,
        stream: Stream,
        generation: int,  # noqa: ARG002  it stands in each document's id
        documents: Sequence[Document],
    ) -> None:
        """Write documents, whatever stands in their places."""
        items = self.account.container(LINE_CONTAINER[stream])
        operations = [
            Operation(document.facts.sequence, document.json, len(document.json))
            for document in documents
        ]
        await _together(partial(self._batch, items, key.partition_key, "upsert"), operations)

    async def delete_lines(
        self, key: SessionKey, stream: Stream, generation: int, lines: Coverage
    ) -> None:
        """Delete line documents by id; succeeds where they are absent."""
        partition, container = key.partition_key, LINE_CONTAINER[stream]
        prefix = line_id_prefix(key.session_id, stream, generation)

        async def find(wanted: Sequence[Operation]) -> set[Any]:
            first, last = _span(wanted)
            query = queries.sequences_between(generation, first, last)
            return {number async for number in self._rows(container, partition, query)}

        portion: list[Operation] = []
        for sequence in lines:
            portion.append(Operation(sequence, f"{prefix}{sequence}", 0))
            if len(portion) == queries.MAX_SPAN:
                await self._delete_present(container, partition, portion, find)
                portion = []
        await self._delete_present(container, partition, portion, find)

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
        found: list[dict[str, Any]] = []
        container = LINE_CONTAINER[stream]
        while len(found) < limit:
            portion = min(_PORTION, limit - len(found))
            query = queries.lines_after(generation, after, portion)
            rows = [_own(row) async for row in self._rows(container, key.partition_key, query)]
            found += rows
            if len(rows) < portion:
                break
            after = rows[-1]["sequence"]
        return found

    async def read_line(
        self, key: SessionKey, stream: Stream, generation: int, sequence: int
    ) -> dict[str, Any] | None:
        """Read one line's document."""
        line = line_id(key.session_id, stream, generation, sequence)
        found = await self._read(LINE_CONTAINER[stream], key.partition_key, line)
        return _own(found) if found is not None else None

    async def search_events(
        self, wanted: EventFilter, *, limit: int = 100, continuation: str | None = None
    ) -> Page:
        """Find events, newest first."""
        after = queries.read_place("search", continuation)
        partition = wanted.session.partition_key if wanted.session else None
        rows: list[dict[str, Any]] = []
        if after is None or after.occurred_at is not None:
            timed = queries.timed_events(wanted, after, limit + 1)
            rows = await self._ordered("events", partition, timed)
            after = None
        if len(rows) <= limit and wanted.since is None and wanted.until is None:
            untimed = queries.untimed_events(wanted, after, limit + 1 - len(rows))
            rows += await self._ordered("events", partition, untimed)
        last = None
        if len(rows) > limit > 0:
            end = rows[limit - 1]
            place = (end["occurred_at"], end["sequence"], end["partition_key"])
            last = queries.token("search", *place)
        return Page([_own(row) for row in rows[:limit]], last)

    # ------------------------------------------------------------ quarantine

    async def create_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Create quarantine entries that are absent, by (partition_key, id)."""
        for partition, operations in _by_partition(entries).items():

            async def find(wanted: Sequence[Operation], at: str = partition) -> dict[Any, None]:
                return dict.fromkeys(await self._existing_entries(at, wanted))

            await self._create_absent("quarantine", partition, list(operations.values()), find)

    async def replace_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write quarantine entries, whatever stands in their places."""
        items = self.account.container("quarantine")
        for partition, operations in _by_partition(entries).items():
            write = partial(self._batch, items, partition, "upsert")
            await _together(write, list(operations.values()))

    async def delete_quarantined(self, partition: str, ids: Sequence[str]) -> None:
        """Delete quarantine entries by id; succeeds where they are absent."""
        # Most of them are absent: they are named because they could be there.
        operations = [Operation(entry, entry, 0) for entry in dict.fromkeys(ids)]
        present = await self._existing_entries(partition, operations)

        async def find(wanted: Sequence[Operation]) -> set[Any]:
            return await self._existing_entries(partition, wanted)

        there = [operation for operation in operations if operation.key in present]
        await self._delete_present("quarantine", partition, there, find)

    async def clear_quarantine(
        self, partition: str, stream: Stream | None = None, below_generation: int | None = None
    ) -> None:
        """Delete the partition's entries: all, or those of older generations of one stream."""
        query = queries.entries_of(stream, below_generation)
        await self.delete_quarantined(
            partition, [entry async for entry in self._rows("quarantine", partition, query)]
        )

    async def list_quarantined(
        self,
        partition: str | None = None,
        *,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List quarantine entries, newest first."""
        return await self._page("quarantine", partition, limit, continuation)

    async def _existing_entries(self, partition: str, wanted: Sequence[Operation]) -> set[Any]:
        found: set[Any] = set()
        for at in range(0, len(wanted), queries.MAX_IDS):
            query = queries.ids_among([it.key for it in wanted[at : at + queries.MAX_IDS]])
            found |= {entry async for entry in self._rows("quarantine", partition, query)}
        return found

    # ------------------------------------------------------------ life

    async def check(self) -> None:
        """Prove that the account answers and has every container."""
        await self.account.check()

    async def close(self) -> None:
        """Release the connections, unless others in this process use them."""
        if not self._is_closed:
            self._is_closed = True
            await self.account.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ batches

    async def _create_absent(
        self,
        container: str,
        partition: str,
        operations: Sequence[Operation],
        find: Callable[[Sequence[Operation]], Awaitable[dict[Any, _T]]],
    ) -> dict[Any, _T]:
        """Create what is absent; return, by key, what `find` says of the others."""
        items = self.account.container(container)
        known: dict[Any, _T] = {}

        create = partial(self._batch, items, partition, "create")
        left = await _go_ahead(create, operations)
        for attempt in range(_MOST_ROUNDS):
            if not left:
                return known
            wanted = {operation.key for operation in left}
            found = {key: it for key, it in (await find(left)).items() if key in wanted}
            known |= found
            if not found:
                # Another replica knows of it already, this one not yet.
                await _wait(attempt)
            absent = [operation for operation in left if operation.key not in known]
            left = await _together(create, absent)
        raise TransientError(f"{container}: others are writing the same documents.")

    async def _delete_present(
        self,
        container: str,
        partition: str,
        operations: Sequence[Operation],
        find: Callable[[Sequence[Operation]], Awaitable[set[Any]]],
    ) -> None:
        items = self.account.container(container)

        delete = partial(self._batch, items, partition, "delete")
        left = await _go_ahead(delete, operations)
        for attempt in range(_MOST_ROUNDS):
            if not left:
                return
            present = await find(left)
            if attempt:
                await _wait(attempt)
            left = await _together(delete, [it for it in left if it.key in present])
        raise TransientError(f"{container}: others are deleting the same documents.")

    async def _batch(
        self, items: ContainerProxy, partition: str, kind: str, batch: list[Operation]
    ) -> list[Operation]:
        """Write one batch; return all of it if one of its operations met a surprise."""

        async def write() -> None:
            if kind == "delete":
                names: list[Any] = [(kind, (operation.body,)) for operation in batch]
                await items.execute_item_batch(names, partition)
            else:
                await write_batch(items, partition, kind, [it.body for it in batch])

        try:
            await self.account.send(write)
        except Refusal as refusal:
            if refusal.status == _SURPRISES.get(kind):
                return batch
            if refusal.status == faults.TOO_LARGE and len(batch) > 1:
                parts = [await self._batch(items, partition, kind, it) for it in halves(batch)]
                return [operation for part in parts for operation in part]
            raise
        return []

    # ------------------------------------------------------------ reading

    async def _read(self, container: str, partition: str, item_id: str) -> dict[str, Any] | None:
        items = self.account.container(container)
        try:
            return await self.account.send(lambda: items.read_item(item_id, partition))
        except Refusal as refusal:
            if refusal.status != faults.NOT_FOUND:
                raise
            return None

    async def _rows(self, container: str, partition: str, query: Query) -> AsyncIterator[Any]:
        """Run a query within a partition, page by page; each page is a request of its own."""
        items = self.account.container(container)
        continuation: str | None = None

        async def page() -> tuple[list[Any], str | None]:
            found = items.query_items(
                query.text,
                parameters=query.parameters,
                partition_key=partition,
                max_item_count=_PAGE_ROWS,
            ).by_page(continuation)
            try:
                rows = [row async for row in await anext(found)]
            except StopAsyncIteration:
                return [], None
            return rows, getattr(found, "continuation_token", None)

        while True:
            rows, continuation = await self.account.send(page)
            for row in rows:
                yield row
            if not continuation:
                return

    async def _page(
        self,
        container: str,
        partition: str | None,
        limit: int,
        continuation: str | None,
        project_slug: str | None = None,
    ) -> Page:
        before = queries.read_key(container, continuation)
        query = queries.listed(before, limit + 1, project_slug)
        rows = await self._ordered(container, partition, query)
        more = len(rows) > limit > 0
        last = queries.token(container, rows[limit - 1][LISTING_KEY]) if more else None
        return Page([_own(row) for row in rows[:limit]], last)

    async def _ordered(
        self, container: str, partition: str | None, query: Query
    ) -> list[dict[str, Any]]:
        """Run a query that may go over all partitions, where the client merges what they say."""
        items = self.account.container(container)
        scope: dict[str, Any] = {} if partition is None else {"partition_key": partition}

        async def fetch() -> list[dict[str, Any]]:
            found = items.query_items(
                query.text, parameters=query.parameters, max_item_count=_PAGE_ROWS, **scope
            )
            return [row async for row in found]

        return await self.account.send(fetch)


def _by_partition(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Operation]]:
    """Render quarantine entries, by partition and id; of several with one id the first counts."""
    partitions: dict[str, dict[str, Operation]] = {}
    for entry in entries:
        body = _standard(entry)
        partition, entry_id = body["partition_key"], body["id"]
        body[LISTING_KEY] = queries.listing_key(body.get("created_at"), entry_id, partition)
        rendered = orjson.dumps(body)
        operation = Operation(entry_id, rendered, len(rendered))
        partitions.setdefault(partition, {}).setdefault(entry_id, operation)
    return partitions


async def _go_ahead(
    write: Callable[[list[Operation]], Awaitable[list[Operation]]], operations: Sequence[Operation]
) -> list[Operation]:
    """Write the first batch, then the others together; return what met a surprise.

    If the first one does, the others are not tried: they would too.
    """
    first, *others = pack(operations, _size) if operations else [[]]
    if not first:
        return []
    if await write(first):
        return list(operations)
    return await _all(write, others)


async def _together(
    write: Callable[[list[Operation]], Awaitable[list[Operation]]], operations: Sequence[Operation]
) -> list[Operation]:
    return await _all(write, list(pack(operations, _size)))


async def _all(
    write: Callable[[list[Operation]], Awaitable[list[Operation]]], batches: list[list[Operation]]
) -> list[Operation]:
    """Write batches at the same time; when one fails, the others are finished all the same."""
    results = await asyncio.gather(*map(write, batches), return_exceptions=True)
    left: list[Operation] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        left += result
    return left


async def _wait(attempt: int) -> None:
    most = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
    await asyncio.sleep(random.uniform(0, most))  # noqa: S311  jitter


def _size(operation: Operation) -> int:
    return operation.size


def _span(operations: Sequence[Operation]) -> tuple[int, int]:
    numbers = [operation.key for operation in operations]
    return min(numbers), max(numbers)


def _own(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what we wrote, without what the service and this store add."""
    return {name: value for name, value in found.items() if name not in _SYSTEM_FIELDS}


def _standard(document: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a document, as JSON can carry it; raises `PermanentError` when it cannot."""
    try:
        copied: dict[str, Any] = orjson.loads(orjson.dumps(dict(document)))
    except TypeError as error:
        raise PermanentError(f"The document cannot be written as JSON: {error}") from error
    return copied


def _may_be_etag(etag: str) -> bool:
    """Whether a text can stand in the header that an ETag is compared in."""
    return bool(etag) and etag.isascii() and etag.isprintable()
