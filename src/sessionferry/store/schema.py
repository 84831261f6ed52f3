"""The schema of a database: made when fresh, checked when opened, upgraded on demand."""

import threading
import time
from typing import Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from sessionferry.errors import UserError
from sessionferry.store import engines
from sessionferry.store.tables import REVISION, VERSION, VERSION_TABLE, metadata

Migrate = Literal["fresh", "never"]

_ADVISORY_LOCK: Final = 0x5E55_10_4E
# Alembic works through module globals: one migration at a time in a process.
_one_at_a_time = threading.Lock()


class Upgrade(NamedTuple):
    """The revisions before and after; `before` is None where there was no schema."""

    before: str | None
    after: str


def open_engine(url: str, migrate: Migrate = "fresh") -> Engine:
    """Open a database whose schema is this program's; raises `UserError` that says why not."""
    engine = _engine(url, may_create=migrate == "fresh")
    try:
        if engines.is_memory(engine.url):
            _create_all(engine)
        elif migrate == "fresh":
            _migrate_if_fresh(engine)
        with engine.connect() as connection:
            require_current(connection)
    except BaseException as error:
        engine.dispose()
        if isinstance(error, SQLAlchemyError):
            raise _cannot_open(engine, error) from error
        raise
    return engine


def upgrade(url: str) -> Upgrade:
    """Bring a database to the newest schema."""
    engine = _engine(url, may_create=True)
    try:
        return _migrate(engine)
    except SQLAlchemyError as error:
        raise _cannot_open(engine, error) from error
    finally:
        engine.dispose()


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, None if there is no schema."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(sa.select(VERSION.c.version_num)).scalar()
    return found


def require_current(connection: Connection) -> None:
    """Raise `UserError` unless the schema is the one this program is written for."""
    found = revision(connection)
    if found == REVISION:
        return
    name = engines.shown(connection.engine.url)
    if found is None:
        raise UserError(f"The database {name} has no tables yet; `ferry migrate` makes them.")
    if found < REVISION:
        raise UserError(
            f"The database {name} has schema {found}, this program needs {REVISION};"
            " run `ferry migrate`."
        )
    raise _too_old(connection, found)


def _engine(url: str, *, may_create: bool) -> Engine:
    parsed = engines.parse(url)
    engine = engines.create(parsed)
    if engines.is_sqlite(engine) and not engines.is_memory(parsed):
        engines.prepare_file(parsed, may_create=may_create)
    return engine


def _migrate_if_fresh(engine: Engine) -> None:
    with engines.reading(engine).connect() as connection:
        if revision(connection) is not None:
            return
    _migrate(engine, only_fresh=True)


def _migrate(engine: Engine, *, only_fresh: bool = False) -> Upgrade:
    if engines.is_sqlite(engine):
        _use_wal(engine)
    with _one_at_a_time, engines.writing(engine).begin() as connection:
        if not engines.is_sqlite(engine):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        before = revision(connection)
        if before is not None and before > REVISION:
            raise _too_old(connection, before)
        if before is None or not only_fresh:
            _run_alembic(connection)
        return Upgrade(before, REVISION)


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "sessionferry.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _create_all(engine: Engine) -> None:
    """Make the tables without Alembic, which is slow to import; tests prove the result equal."""
    with engine.begin() as connection:
        metadata.create_all(connection, checkfirst=False)
        VERSION.create(connection, checkfirst=False)
        connection.execute(sa.insert(VERSION).values(version_num=REVISION))


def _use_wal(engine: Engine) -> None:
    """Switch the file to WAL, for good. SQLite does not wait for others here, so we do."""
    deadline = time.monotonic() + engines.BUSY_SECONDS
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        except OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _too_old(connection: Connection, found: str) -> UserError:
    return UserError(
        f"The database {engines.shown(connection.engine.url)} has schema {found}, this program"
        f" knows only {REVISION}: it is too old; install a newer sessionferry."
    )


def _cannot_open(engine: Engine, error: SQLAlchemyError) -> UserError:
    return UserError(
        f"The database {engines.shown(engine.url)} cannot be opened: {engines.brief(error)}"
    )
