"""The SQL store's schema on both engines: migrations, versions, opening, and what errors mean."""

import asyncio
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from sessionferry.documents import Document, Facts
from sessionferry.errors import PermanentError, TransientError, UserError
from sessionferry.identity import SessionKey
from sessionferry.store import EventFilter, engines, schema, tables
from sessionferry.store.sql import SqlStore

KEY = SessionKey("ada", "engine", "s1")
HEAD = {"id": "head", "partition_key": "p"}
OPEN_AND_CHECK = """
import asyncio, sys
from sessionferry.store.sql import SqlStore
async def main():
    sys.stdin.readline()
    async with SqlStore.open(sys.argv[1]) as store:
        await store.write_item("heads", {"id": sys.argv[2], "partition_key": "p"}, None)
print("ready", flush=True)
asyncio.run(main())
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A database without tables."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("empty_postgres_url"))
    return f"sqlite:///{request.getfixturevalue('tmp_path') / 'new' / 'store.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """A migrated database."""
    opened = schema.open_engine(url)
    yield opened
    opened.dispose()


def line(sequence: int) -> Document:
    body = (
        b'{"format":"jsonl","_type":"event","sequence":%d,"line_sha256":"%s","line_size_bytes":1,'
    )
    rest = b'"data_truncated":false,"occurred_at":null,"text":"nul \\u0000"}'
    sha256 = b"\x01" * 32
    return Document(Facts(sequence, sha256, 1), body % (sequence, sha256.hex().encode()) + rest)


def set_revision(url: str, revision: str) -> None:
    engine = schema.open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.update(tables.VERSION).values(version_num=revision))
    engine.dispose()


# ---------------------------------------------------------------- migrations


def test_migrations_make_the_tables_of_the_metadata(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        options = {"version_table": tables.VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


def test_tables_in_memory_are_those_of_the_migrations(tmp_path: Path) -> None:
    def made(url: str) -> set[str]:
        engine = schema.open_engine(url)
        with engine.connect() as connection:
            texts = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql > ''")
            found = {re.sub(r"\s+", " ", text) for text in texts.scalars()}
        engine.dispose()
        return {text for text in found if tables.VERSION_TABLE not in text}

    assert made("sqlite://") == made(f"sqlite:///{tmp_path / 'file.db'}") != set()


def test_revisions_are_numbers_that_end_in_the_one_this_program_knows() -> None:
    config = Config()
    config.set_main_option("script_location", "sessionferry.store:migrations")
    revisions = [it.revision for it in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]
    assert revisions[-1] == tables.REVISION


def test_upgrading_tells_the_revisions_and_may_be_repeated(url: str) -> None:
    assert schema.upgrade(url) == (None, tables.REVISION)
    assert schema.upgrade(url) == (tables.REVISION, tables.REVISION)


def test_events_of_the_first_schema_can_be_searched_after_the_upgrade(url: str) -> None:
    lines = [
        (number, {"event": "e", "lvl": None, "summary": {"model": "m" if number % 2 else 5}})
        for number in range(1201)
    ]
    engine = engines.create(engines.parse(url))
    if engines.is_sqlite(engine):
        engines.prepare_file(engine.url, may_create=True)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "sessionferry.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        insert = sa.text(
            "INSERT INTO events (partition_key, generation, sequence, id, line_sha256, body)"
            " VALUES ('ada|engine|s1', 0, :sequence, 's1_evt', 'ff', :body)"
        )
        for sequence, line in lines:
            more = {"user_id": "ada", "occurred_at": None, "sequence": sequence, "text": "\0"}
            body = orjson.dumps(line | more).decode()
            connection.execute(insert, {"sequence": sequence, "body": body})
    engine.dispose()
    assert schema.upgrade(url) == ("0001", tables.REVISION)

    async def found() -> list[int]:
        async with SqlStore.open(url) as store:
            page = await store.search_events(EventFilter(user_id="ada", model="m"), limit=1000)
        return [line["sequence"] for line in page.documents]

    assert asyncio.run(found()) == list(range(1199, 0, -2))


def test_a_migration_that_fails_leaves_nothing_behind(engine: sa.Engine, url: str) -> None:
    with engine.begin() as connection:
        tables.metadata.drop_all(connection)
        tables.VERSION.drop(connection)
        connection.exec_driver_sql("CREATE TABLE quarantine (theirs TEXT)")
    with pytest.raises(UserError, match="quarantine"):
        SqlStore.open(url)
    assert sa.inspect(engine).get_table_names() == ["quarantine"]


# ---------------------------------------------------------------- opening


async def test_an_older_schema_asks_for_the_command(url: str) -> None:
    set_revision(url, "0000")
    with pytest.raises(UserError, match=r"schema 0000.*run `ferry migrate`"):
        SqlStore.open(url)


async def test_a_newer_schema_asks_for_a_newer_program(url: str) -> None:
    set_revision(url, "9999")
    with pytest.raises(UserError, match=r"schema 9999.*too old"):
        SqlStore.open(url)
    with pytest.raises(UserError, match=r"schema 9999.*too old"):
        schema.upgrade(url)


async def test_a_schema_that_changes_under_an_open_store_fails_its_check(url: str) -> None:
    async with SqlStore.open(url) as store:
        await store.check()
        set_revision(url, "9999")
        with pytest.raises(UserError, match="too old"):
            await store.check()


def test_a_fresh_database_is_left_alone_when_asked(empty_postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tables yet; `ferry migrate`"):
        SqlStore.open(empty_postgres_url, migrate="never")
    file = tmp_path / "store.db"
    with pytest.raises(UserError, match="There is no database"):
        SqlStore.open(f"sqlite:///{file}", migrate="never")
    assert not file.exists()


def test_processes_that_start_at_once_migrate_once(url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", OPEN_AND_CHECK, url]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, f"i{n}"], **pipes) for n in range(4)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    engine = schema.open_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.select(tables.VERSION)).all() == [(tables.REVISION,)]
        count = sa.select(sa.func.count()).select_from(tables.ITEMS["heads"])
        assert connection.execute(count).scalar() == 4
    engine.dispose()


def test_a_new_sqlite_file_is_for_its_owner_only_and_keeps_a_log(tmp_path: Path) -> None:
    file = tmp_path / "data" / "store.db"
    engine = schema.open_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    engine.dispose()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "cannot be read"),
        ("no url at all", "cannot be read"),
        ("postgresql://u:secret@host:port/db", "cannot be read"),
        ("mysql://u:secret@host/db", "kind mysql is not supported"),
        ("postgresql+asyncpg://u:secret@host/db", "not supported"),
        ("postgresql://u:secret@127.0.0.1:1/db", r"u:\*\*\*@127.0.0.1:1/db cannot be opened"),
        ("postgresql://127.0.0.1:1/db?password=secret", "127.0.0.1:1/db cannot be opened"),
        ("postgresql://u@127.0.0.1:1/db?nonsense=secret", "cannot be opened"),
        ("sqlite:////dev/null/store.db", "cannot be made"),
        ("sqlite:////", "cannot be"),
    ],
)
def test_a_database_that_cannot_be_opened_is_the_users_error(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        SqlStore.open(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_the_users_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 1000)
    with pytest.raises(UserError, match="not a database"):
        SqlStore.open(f"sqlite:///{file}")
    assert file.read_text().startswith("not a database")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
async def test_postgresql_goes_by_its_usual_names(scheme: str, postgres_url: str) -> None:
    async with SqlStore.open(postgres_url.replace("postgresql", scheme, 1)) as store:
        await store.check()


# ---------------------------------------------------------------- bodies


async def test_bodies_are_json_for_the_database_too(url: str) -> None:
    async with SqlStore.open(url) as store:
        await store.create_lines(KEY, "events", 0, [line(7)])
    function = "json_extract(body, '$.sequence')"
    if url.startswith("postgresql"):
        function = "(replace(body, '\\u0000', '')::jsonb ->> 'sequence')::int"
    engine = schema.open_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT {function} FROM events").scalar() == 7  # noqa: S608
    engine.dispose()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (sqlite3.OperationalError("database is locked"), TransientError),
        (sqlite3.OperationalError("database or disk is full"), TransientError),
        (sqlite3.OperationalError("disk I/O error"), TransientError),
        (sqlite3.DatabaseError("database disk image is malformed"), TransientError),
        (sqlite3.DataError("string or blob too big"), PermanentError),
        (sqlite3.IntegrityError("NOT NULL constraint failed"), PermanentError),
        (psycopg.OperationalError("the connection is lost"), TransientError),
        (psycopg.errors.SerializationFailure("40001"), TransientError),
        (psycopg.errors.DeadlockDetected("40P01"), TransientError),
        (psycopg.errors.LockNotAvailable("55P03"), TransientError),
        (psycopg.errors.DiskFull("53100"), TransientError),
        (psycopg.errors.TooManyConnections("53300"), TransientError),
        (psycopg.errors.AdminShutdown("57P01"), TransientError),
        (psycopg.errors.InsufficientPrivilege("42501"), TransientError),
        (psycopg.errors.ProgramLimitExceeded("54000"), PermanentError),
        (psycopg.errors.NumericValueOutOfRange("22003"), PermanentError),
        (psycopg.errors.NotNullViolation("23502"), PermanentError),
        (psycopg.DataError("text fields cannot contain NUL"), PermanentError),
    ],
)
def test_what_a_database_error_asks_for(cause: Exception, expected: type[Exception]) -> None:
    driver: Any = sqlite3 if isinstance(cause, sqlite3.Error) else psycopg
    error = sa.exc.DBAPIError.instance("SELECT 1", {}, cause, driver.Error)
    with pytest.raises(expected) as caught, engines.translated():
        raise error
    assert str(cause) in str(caught.value)


def test_a_pool_without_a_free_connection_is_transient() -> None:
    with pytest.raises(TransientError), engines.translated():
        raise sa.exc.TimeoutError("QueuePool limit reached")


async def test_a_locked_file_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0)
    async with SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientError, match="locked"):
            await store.write_item("heads", HEAD, None)
        assert await store.read_item("heads", "p", "head") is None
        other.close()
        await store.write_item("heads", HEAD, None)


async def test_a_full_disk_is_transient_and_leaves_no_half_batch(tmp_path: Path) -> None:
    async with SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count=60")
        with pytest.raises(TransientError, match="full"):
            await store.create_lines(KEY, "events", 0, [line(n) for n in range(5000)])
        assert await store.read_lines(KEY, "events", 0) == []
        assert await store.create_lines(KEY, "events", 0, [line(0)]) == {}


@pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)
async def test_values_that_a_column_cannot_hold_are_permanent(url: str) -> None:
    async with SqlStore.open(url) as store:
        with pytest.raises(PermanentError):
            await store.create_lines(KEY, "events", 2**70, [line(0)])
        with pytest.raises(PermanentError):
            await store.read_item("heads", "lone surrogate \ud800", "head")
        await store.check()


async def test_a_lost_connection_is_transient_once(postgres_server: Any, postgres_url: str) -> None:
    async with SqlStore.open(postgres_url) as store:

        def lose(connection: sa.Connection) -> None:
            own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            postgres_server.execute(f"SELECT pg_terminate_backend({own}, 5000)")
            connection.exec_driver_sql("SELECT 1")

        with pytest.raises(TransientError):
            await store._write(lose)
        await store.write_item("heads", HEAD, None)


# ---------------------------------------------------------------- races on PostgreSQL


def _insert_seven(connection: psycopg.Connection[Any]) -> None:
    body = line(7).json.decode().replace('"line_size_bytes":1', '"line_size_bytes":99')
    connection.execute(
        "INSERT INTO events (partition_key, generation, sequence, id, line_sha256, user_id,"
        " occurred_at, body) VALUES (%s, 0, 7, 's1_evt_7', 'ff', 'ada', '', %s)",
        (KEY.partition_key, body),
    )


async def _until_blocked(server: Any) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    deadline = time.monotonic() + 20
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        while connection.execute(query).fetchone() == (0,):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_a_line_created_by_another_process_in_between_stays(
    postgres_server: Any, postgres_url: str
) -> None:
    async with SqlStore.open(postgres_url) as store:
        with psycopg.connect(postgres_url) as other:
            _insert_seven(other)
            wanted = [line(number) for number in (6, 7, 8)]
            creating = asyncio.create_task(store.create_lines(KEY, "events", 0, wanted))
            await _until_blocked(postgres_server)
            other.commit()
            known = await creating
        assert {number: facts.size for number, facts in known.items()} == {7: 99}
        assert [it["sequence"] for it in await store.read_lines(KEY, "events", 0)] == [6, 7, 8]


async def test_a_line_that_another_process_gives_up_is_ours(
    postgres_server: Any, postgres_url: str
) -> None:
    async with SqlStore.open(postgres_url) as store:
        with psycopg.connect(postgres_url) as other:
            _insert_seven(other)
            creating = asyncio.create_task(store.create_lines(KEY, "events", 0, [line(7)]))
            await _until_blocked(postgres_server)
            other.rollback()
            assert await creating == {}
        stored = await store.read_line(KEY, "events", 0, 7)
        assert stored is not None
        assert stored["line_size_bytes"] == 1


def test_threads_of_one_process_may_migrate_at_once(url: str, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def start(own: str) -> None:
        try:
            schema.open_engine(own).dispose()
        except BaseException as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    urls = [url, url, f"sqlite:///{tmp_path / 'other.db'}"]
    threads = [threading.Thread(target=start, args=(it,)) for it in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
