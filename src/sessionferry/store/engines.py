"""Databases by URL, and what their failures mean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, StaticPool
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from sessionferry.errors import FerryError, PermanentError, TransientError, UserError

BUSY_SECONDS: Final = 30
THREADS: Final = 8  # each holds at most one connection
PAGE_BYTES: Final = 8192
_CHECKPOINT_PAGES: Final = 4000

_CONNECT: Final = {"connect_timeout": 10, "application_name": "sessionferry"}

_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
# SQLSTATE classes of which the statement's values are the cause: data, integrity, size limits.
_PERMANENT_STATES: Final = frozenset({"22", "23", "54"})


def parse(url: str) -> URL:
    """Read a database URL; raises `UserError` without showing it, as it may hold a password."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise UserError(
            "The database URL cannot be read; it looks like sqlite:///folder/file.db"
            " or postgresql://user@host/database."
        ) from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise UserError(
            f"A database of kind {parsed.drivername} is not supported;"
            " use sqlite:///… or postgresql://…"
        )
    return parsed.set(drivername=driver)


def shown(url: URL) -> str:
    """Return the URL for people; options are left out because they too may hold a password."""
    return url.set(query={}).render_as_string(hide_password=True)


def is_memory(url: URL) -> bool:
    """Whether the database lives in this process only."""
    return url.drivername == "sqlite" and url.database in (None, "", ":memory:")


def is_sqlite(engine: Engine | Connection) -> bool:
    """Whether the engine speaks to SQLite; else it is PostgreSQL."""
    return engine.dialect.name == "sqlite"


def create(url: URL) -> Engine:
    """Create an engine; connects to nothing yet."""
    if url.drivername == "sqlite":
        return _sqlite(url)
    return sa.create_engine(
        url,
        hide_parameters=True,
        pool_size=THREADS,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args={name: it for name, it in _CONNECT.items() if name not in url.query},
    )


def writing(engine: Engine) -> Engine:
    """Return the engine for transactions that write."""
    return engine.execution_options(begin="BEGIN IMMEDIATE") if is_sqlite(engine) else engine


def single(engine: Engine) -> Engine:
    """Return the engine for single statements that write."""
    return writing(engine) if is_sqlite(engine) else reading(engine)


def reading(engine: Engine) -> Engine:
    """Return the engine for queries."""
    return engine if is_sqlite(engine) else engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def translated() -> Iterator[None]:
    """Raise what a database raises as an error of our tree."""
    try:
        yield
    except SQLAlchemyError as error:
        raise meaning(error) from error
    except (OverflowError, UnicodeError) as error:
        raise PermanentError(f"The database cannot hold this: {error}") from error


def meaning(error: SQLAlchemyError) -> FerryError:
    """Say what a database error asks for; what is not the values' fault may work later."""
    message = f"The database did not do this: {brief(error)}"
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    if state is not None:
        permanent = state[:2] in _PERMANENT_STATES
    else:
        permanent = isinstance(error, sa.exc.DataError | sa.exc.IntegrityError)
    return PermanentError(message) if permanent else TransientError(message)


def brief(error: SQLAlchemyError) -> str:
    """Return the error's first line, without statement and values."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def prepare_file(url: URL, *, may_create: bool) -> None:
    """Make a SQLite file that only its owner may read; sessions hold secrets."""
    path = Path(url.database or "")
    if not may_create and not path.exists():
        raise UserError(f"There is no database {shown(url)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        raise UserError(f"The database {shown(url)} cannot be made: {error.strerror}.") from None


def _sqlite(url: URL) -> Engine:
    if is_memory(url):
        arguments: dict[str, Any] = {
            "poolclass": StaticPool,
            "connect_args": {"check_same_thread": False},
        }
    else:
        arguments = {"pool_size": THREADS, "max_overflow": 0}
    engine = sa.create_engine(url, hide_parameters=True, **arguments)
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late and deferred; `_begin` says when and how.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_SECONDS * 1000}",
        f"page_size={PAGE_BYTES}",
        "synchronous=FULL",
        f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get("begin")
    if statement is not None:
        connection.exec_driver_sql(statement)
