"""The store on SQLite or PostgreSQL: SQLAlchemy Core, run in threads."""

import asyncio
import base64
import binascii
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Delete, Engine, Insert, Row, Select, Table, Update
from sqlalchemy.dialects import postgresql, sqlite

from sessionferry.coverage import Coverage, Range
from sessionferry.documents import Document, Facts, stored_facts
from sessionferry.errors import ItemChanged, PermanentError, UserError
from sessionferry.identity import SEPARATOR, SessionKey, Stream, escape, line_id_prefix
from sessionferry.store import (
    PARTITION_FIELD,
    SEARCHED,
    EventFilter,
    Item,
    ItemContainer,
    Page,
    engines,
    schema,
)
from sessionferry.store.tables import ITEMS, LINES, QUARANTINE

_T = TypeVar("_T")
_Change = Insert | Update | Delete
_Values = dict[str, Any] | list[dict[str, Any]] | None

_CHUNK_ROWS: Final = 1000
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_CHUNK_RANGES: Final = 100
_MAX_TIME_CHARS: Final = 64  # a time is shorter; an index entry must stay short
# Without this option SQLAlchemy does not tell how many rows an INSERT made.
_COUNTED: Final = {"preserve_rowcount": True}
_MAX_INT: Final = 2**63 - 1
_AFTER_SEPARATOR: Final = chr(ord(SEPARATOR) + 1)
_IN_SUMMARY: Final = [path[-1] for path in SEARCHED.values() if path[0] == "summary"]


class SqlStore:
    """Documents in a SQL database; open one with `SqlStore.open`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = engines.reading(engine)
        self._single = engines.single(engine)
        self._writing = engines.writing(engine)
        self._readers, self._writers = _executors(engine)

    @classmethod
    def open(cls, url: str, *, migrate: schema.Migrate = "fresh") -> Self:
        """Open by URL: `sqlite:///folder/file.db`, `sqlite://` (in memory) or `postgresql://…`.

        A database without tables gets them, unless `migrate` is "never". Raises `UserError` when
        the database is unreachable or its schema is not this program's.
        """
        return cls(schema.open_engine(url, migrate))

    # ------------------------------------------------------------ items

    async def read_item(
        self, container: ItemContainer, partition: str, item_id: str
    ) -> Item | None:
        """Read one small item by its key; None if there is none."""
        query = _item_query(ITEMS[container])
        rows = await self._rows(query, {"at_partition": partition, "at_id": item_id})
        return Item(orjson.loads(rows[0].body), str(rows[0].etag)) if rows else None

    async def write_item(
        self, container: ItemContainer, document: Mapping[str, Any], etag: str | None
    ) -> str:
        """Write one small item and return its new ETag; raises `ItemChanged`."""
        row = _item_row(container, document)
        if etag is None:
            # Starting anywhere, so that the ETag of a deleted item never fits its successor.
            row["etag"] = secrets.randbits(59)
            changed = await self._change(_insert_absent(self._engine, ITEMS[container]), row)
        else:
            known = _etag_number(etag)
            row["etag"] = known + 1
            place = {"at_partition": row["partition_key"], "at_id": row["id"], "at_etag": known}
            changed = await self._change(_item_update(ITEMS[container]), row | place)
        if changed != 1:
            raise ItemChanged(f"{container}: item {row['id']} was written by somebody else.")
        return str(row["etag"])

    async def delete_item(self, container: ItemContainer, partition: str, item_id: str) -> None:
        """Delete one small item; succeeds when it is absent."""
        table = ITEMS[container]
        await self._change(
            sa.delete(table).where(table.c.partition_key == partition, table.c.id == item_id)
        )

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
        table = ITEMS[container]
        query = _within(sa.select(table.c.body), table, partition)
        if container == "sessions":
            query = query.where(table.c.deleted.is_(False))
            if project_slug is not None:
                query = query.where(table.c.project_slug == project_slug)
        order = _Order(container, (table.c.last_time, table.c.id, table.c.partition_key))
        return await self._page(query, order, limit, continuation)

    # ------------------------------------------------------------ lines

    async def create_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> dict[int, Facts]:
        """Create the documents that are absent; return the facts of those that stood there."""
        if not documents:
            return {}
        place = _Place.of(key, stream, generation)
        wanted = {document.facts.sequence: document for document in documents}
        bodies = None
        while bodies is None:
            bodies = await self._write(lambda connection: _create_absent(connection, place, wanted))
        return await self._call(_facts, bodies) if bodies else {}

    async def replace_lines(
        self, key: SessionKey, stream: Stream, generation: int, documents: Sequence[Document]
    ) -> None:
        """Write documents, whatever stands in their places."""
        place = _Place.of(key, stream, generation)
        if documents:
            await self._write(lambda connection: _replace(connection, place, documents))

    async def delete_lines(
        self, key: SessionKey, stream: Stream, generation: int, lines: Coverage
    ) -> None:
        """Delete line documents; succeeds where they are absent."""
        place = _Place.of(key, stream, generation)
        if lines:
            await self._write(lambda connection: _delete_ranges(connection, place, lines.ranges))

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
        place = _Place.of(key, stream, generation)
        sequence = place.table.c.sequence
        query = place.select().where(sequence > after).order_by(sequence).limit(limit)
        return [orjson.loads(row.body) for row in await self._rows(query)]

    async def read_line(
        self, key: SessionKey, stream: Stream, generation: int, sequence: int
    ) -> dict[str, Any] | None:
        """Read one line's document."""
        documents = await self.read_lines(key, stream, generation, after=sequence - 1, limit=1)
        return documents[0] if documents and documents[0]["sequence"] == sequence else None

    async def search_events(
        self, wanted: EventFilter, *, limit: int = 100, continuation: str | None = None
    ) -> Page:
        """Find events, newest first."""
        columns = LINES["events"].c
        query = sa.select(columns.body).where(*_matches(wanted))
        order = _Order("search", (columns.occurred_at, columns.sequence, columns.partition_key))
        return await self._page(query, order, limit, continuation)

    # ------------------------------------------------------------ quarantine

    async def create_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Create quarantine entries that are absent, by (partition_key, id)."""
        rows = [_quarantine_row(entry) for entry in entries]
        if not rows:
            return
        rows.sort(key=lambda row: (row["partition_key"], row["id"]))  # one order: no deadlocks
        statement = _insert_absent(self._engine, QUARANTINE)
        await self._write(lambda connection: connection.execute(statement, rows))

    async def replace_quarantined(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Write quarantine entries, whatever stands in their places."""
        rows = {(entry["partition_key"], entry["id"]): _quarantine_row(entry) for entry in entries}
        if not rows:
            return
        ordered = [rows[place] for place in sorted(rows)]
        statement = _insert_absent(self._engine, QUARANTINE)

        def write(connection: Connection) -> None:
            connection.execute(_delete_entry(), ordered)
            connection.execute(statement, ordered)

        await self._write(write)

    async def delete_quarantined(self, partition: str, ids: Sequence[str]) -> None:
        """Delete quarantine entries by id; succeeds where they are absent."""
        if not ids:
            return
        statement = sa.delete(QUARANTINE).where(
            QUARANTINE.c.partition_key == partition, QUARANTINE.c.id == sa.bindparam("entry")
        )
        values = [{"entry": entry} for entry in sorted(ids)]
        await self._write(lambda connection: connection.execute(statement, values))

    async def clear_quarantine(
        self, partition: str, stream: Stream | None = None, below_generation: int | None = None
    ) -> None:
        """Delete the partition's entries: all, or those of older generations of one stream."""
        statement = sa.delete(QUARANTINE).where(QUARANTINE.c.partition_key == partition)
        if stream is not None:
            statement = statement.where(QUARANTINE.c.stream == stream)
        if below_generation is not None:
            statement = statement.where(QUARANTINE.c.generation < below_generation)
        await self._change(statement)

    async def list_quarantined(
        self,
        partition: str | None = None,
        *,
        limit: int = 100,
        continuation: str | None = None,
    ) -> Page:
        """List quarantine entries, newest first."""
        columns = QUARANTINE.c
        query = _within(sa.select(columns.body), QUARANTINE, partition)
        order = _Order("quarantine", (columns.created_at, columns.id, columns.partition_key))
        return await self._page(query, order, limit, continuation)

    # ------------------------------------------------------------ life

    async def check(self) -> None:
        """Prove that the database answers and has the schema of this program."""
        await self._call(_run, self._reading, schema.require_current)

    async def close(self) -> None:
        """Wait for what is under way, and release the connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.shutdown()
        self._writers.shutdown()
        self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ threads

    async def _call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, function, *arguments)

    async def _rows(self, query: Select[Any], values: _Values = None) -> Sequence[Row[Any]]:
        return await self._call(_run, self._reading, lambda c: c.execute(query, values).all())

    async def _write(self, work: Callable[[Connection], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, _run, self._writing, work)

    async def _change(self, statement: _Change, values: _Values = None) -> int:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._writers, _run, self._single, lambda c: _execute(c, statement, values)
        )

    async def _page(
        self,
        query: Select[Any],
        order: "_Order",
        limit: int,
        continuation: str | None,
    ) -> Page:
        if continuation is not None:
            query = query.where(sa.tuple_(*order.columns) < order.read_token(continuation))
        columns = [column.desc() for column in order.columns]
        query = query.add_columns(*order.columns).order_by(*columns).limit(limit + 1)
        rows = await self._rows(query)
        more = len(rows) > limit > 0
        documents = [orjson.loads(row.body) for row in rows[:limit]]
        return Page(documents, order.token(rows[limit - 1]) if more else None)


class _Place(NamedTuple):
    """Where the documents of one generation of a stream are."""

    table: Table
    partition: str
    generation: int
    id_prefix: str
    user_id: str
    is_searched: bool

    @classmethod
    def of(cls, key: SessionKey, stream: Stream, generation: int) -> "_Place":
        prefix = line_id_prefix(key.session_id, stream, generation)
        place = (LINES[stream], key.partition_key, generation, prefix)
        return cls(*place, key.user_id, stream == "events")

    def select(self) -> Select[Any]:
        return sa.select(self.table.c.sequence, self.table.c.body).where(*self.conditions())

    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        columns = self.table.c
        return (columns.partition_key == self.partition, columns.generation == self.generation)

    def row(self, document: Document) -> tuple[Any, ...]:
        facts, body, event, level, summary = document
        sequence = facts.sequence
        place = (self.partition, self.generation, sequence, f"{self.id_prefix}{sequence}")
        if not self.is_searched:
            return (*place, facts.sha256.hex(), body.decode())
        # What is no text is found by no search; PostgreSQL takes no NUL in one.
        texts = [event, level, *map(summary.get, _IN_SUMMARY)]
        for at, text in enumerate(texts):
            if text is not None and (type(text) is not str or "\0" in text):
                texts[at] = None
        time = facts.occurred_at or ""
        return (*place, facts.sha256.hex(), self.user_id, time, *texts, body.decode())


class _Order(NamedTuple):
    """How something is listed: newest first, and where a page left off."""

    name: str
    columns: tuple[ColumnElement[Any], ...]

    def token(self, row: Row[Any]) -> str:
        return base64.urlsafe_b64encode(orjson.dumps([self.name, *row[1:]])).decode()

    def read_token(self, token: str) -> tuple[Any, ...]:
        try:
            name, *place = orjson.loads(base64.b64decode(token, b"-_", validate=True))
        except (binascii.Error, ValueError, TypeError):
            name, place = None, []
        if name != self.name or [type(part) for part in place] != self._types:
            raise UserError("The continuation token is not one of this listing.")
        return tuple(place)

    @property
    def _types(self) -> list[type]:
        return [column.type.python_type for column in self.columns]


def _executors(engine: Engine) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
    """Threads for reading and for writing: SQLite has one writer, in memory one connection."""
    if engines.is_memory(engine.url):
        only = ThreadPoolExecutor(1, "store")
        return only, only
    if engines.is_sqlite(engine):
        return ThreadPoolExecutor(engines.THREADS - 1, "store"), ThreadPoolExecutor(1, "store")
    shared = ThreadPoolExecutor(engines.THREADS, "store")
    return shared, shared


def _run(engine: Engine, work: Callable[[Connection], _T]) -> _T:
    with engines.translated(), engine.begin() as connection:
        return work(connection)


def _execute(connection: Connection, statement: _Change, values: _Values) -> int:
    return connection.execute(statement, values, execution_options=_COUNTED).rowcount


def _insert_absent(engine: Engine | Connection, table: Table) -> Insert:
    return _sqlite_insert(table) if engines.is_sqlite(engine) else _postgres_insert(table)


@cache
def _sqlite_insert(table: Table) -> Insert:
    return sqlite.insert(table).on_conflict_do_nothing()


@cache
def _postgres_insert(table: Table) -> Insert:
    return postgresql.insert(table).on_conflict_do_nothing()


@cache
def _item_query(table: Table) -> Select[Any]:
    return sa.select(table.c.body, table.c.etag).where(*_at_item(table))


@cache
def _item_update(table: Table) -> Update:
    return sa.update(table).where(*_at_item(table), table.c.etag == sa.bindparam("at_etag"))


def _at_item(table: Table) -> tuple[ColumnElement[bool], ...]:
    return (
        table.c.partition_key == sa.bindparam("at_partition"),
        table.c.id == sa.bindparam("at_id"),
    )


def _within(query: Select[Any], table: Table, partition: str | None) -> Select[Any]:
    return query if partition is None else query.where(table.c.partition_key == partition)


def _matches(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    columns = LINES["events"].c
    texts = wanted.texts
    if wanted.session is None:
        texts["user_id"] = wanted.user_id
    elif wanted.session.user_id == wanted.user_id:
        # Alone, so that no planner prefers the index by user, who has many sessions.
        yield columns.partition_key == wanted.session.partition_key
    else:
        yield sa.false()
    for name, text in texts.items():
        yield columns[name] == text if "\0" not in text else sa.false()
    if wanted.project_slug is not None:
        project = f"{escape(wanted.user_id)}{SEPARATOR}{escape(wanted.project_slug)}"
        yield columns.partition_key >= f"{project}{SEPARATOR}"
        yield columns.partition_key < f"{project}{_AFTER_SEPARATOR}"
    if wanted.since is not None:
        yield columns.occurred_at >= wanted.since
    if wanted.until is not None:
        yield columns.occurred_at > ""  # those without a time
        yield columns.occurred_at < wanted.until


def _etag_number(etag: str) -> int:
    """Read an ETag of ours; another becomes one that fits no item."""
    return int(etag) if etag.isdecimal() and len(etag) < 19 else -1


def _item_row(container: ItemContainer, document: Mapping[str, Any]) -> dict[str, Any]:
    last_time = document.get("last_time")
    row = {
        "partition_key": document[PARTITION_FIELD[container]],
        "id": document["id"],
        "last_time": last_time[:_MAX_TIME_CHARS] if isinstance(last_time, str) else "",
        "body": _json(document),
    }
    if container == "sessions":
        row["project_slug"] = document.get("project_slug") or ""
        row["deleted"] = bool(document.get("deleted"))
    return row


@cache
def _delete_entry() -> sa.Delete:
    columns = QUARANTINE.c
    # Named otherwise than the columns, which an insert's parameters may not be.
    return sa.delete(QUARANTINE).where(
        columns.partition_key == sa.bindparam("partition_key"), columns.id == sa.bindparam("id")
    )


def _quarantine_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    generation = entry.get("generation")
    return {
        "partition_key": entry["partition_key"],
        "id": entry["id"],
        "stream": entry.get("stream"),
        "generation": min(generation, _MAX_INT) if isinstance(generation, int) else None,
        "created_at": entry.get("created_at") or "",
        "body": _json(entry),
    }


def _json(document: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(dict(document)).decode()
    except TypeError as error:
        raise PermanentError(f"The document cannot be written as JSON: {error}") from error


def _create_absent(
    connection: Connection, place: _Place, wanted: Mapping[int, Document]
) -> dict[int, str] | None:
    """Create what is absent and return the bodies of what was there.

    On PostgreSQL another process may create some of it in between: then nothing is done, the
    result is None, and the next attempt sees what that process made.
    """
    bodies = dict(_bodies(connection, place, Coverage.from_numbers(wanted).ranges))
    # In order of sequence, so that two writers of the same lines cannot deadlock.
    absent = [wanted[number] for number in sorted(wanted) if number not in bodies]
    statement = _line_insert(connection, place.table)
    for chunk in _chunks(absent):
        rows = [place.row(document) for document in chunk]
        if connection.exec_driver_sql(statement, rows, _COUNTED).rowcount != len(rows):
            connection.rollback()
            return None
    return bodies


def _replace(connection: Connection, place: _Place, documents: Sequence[Document]) -> None:
    keys = ", ".join(column.name for column in place.table.primary_key)
    others = [column.name for column in place.table.columns if not column.primary_key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in others)
    insert = _line_insert(connection, place.table).removesuffix("DO NOTHING")
    statement = f"{insert}({keys}) DO UPDATE SET {changes}"
    for chunk in _chunks(sorted(documents, key=lambda document: document.facts.sequence)):
        connection.exec_driver_sql(statement, [place.row(document) for document in chunk])


def _line_insert(connection: Connection, table: Table) -> str:
    """Render the insert for the driver: it is half of the time that Core would take."""
    columns = ", ".join(column.name for column in table.columns)
    mark = "?" if engines.is_sqlite(connection) else "%s"
    values = ", ".join(mark for _ in table.columns)
    return f"INSERT INTO {table.name} ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING"  # noqa: S608


def _bodies(
    connection: Connection, place: _Place, ranges: tuple[Range, ...]
) -> Iterator[tuple[int, str]]:
    sequence = place.table.c.sequence
    for at in range(0, len(ranges), _CHUNK_RANGES):
        within = (sequence.between(*pair) for pair in ranges[at : at + _CHUNK_RANGES])
        for row in connection.execute(place.select().where(sa.or_(*within))):
            yield row.sequence, row.body


def _chunks(documents: list[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        if chunk and (len(chunk) == _CHUNK_ROWS or size + len(document.json) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(document)
        size += len(document.json)
    if chunk:
        yield chunk


def _delete_ranges(connection: Connection, place: _Place, ranges: tuple[Range, ...]) -> None:
    within = place.table.c.sequence.between(sa.bindparam("first"), sa.bindparam("last"))
    statement = sa.delete(place.table).where(*place.conditions(), within)
    connection.execute(statement, [{"first": first, "last": last} for first, last in ranges])


def _facts(bodies: Mapping[int, str]) -> dict[int, Facts]:
    return {number: stored_facts(orjson.loads(body)) for number, body in bodies.items()}
