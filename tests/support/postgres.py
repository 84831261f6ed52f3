"""Databases for tests. PostgreSQL is started once per session, and only if a test asks for it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from sessionferry.store import schema
from sessionferry.store.tables import metadata

START_SECONDS = 30
# Nothing here has to outlive a crash of the machine.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Server:
    """A PostgreSQL server of our own: reached through a socket in its folder only."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self.process: subprocess.Popen[bytes]
        self._as = _unprivileged()
        if self._as:
            os.chown(folder, self._as["user"], self._as["group"])

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> "subprocess.Popen[bytes]":
        initdb = ["initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        self._run([*initdb, "--locale=C", "--no-sync"]).wait(START_SECONDS)
        return self.launch()

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start the server on the data that is there, also after a crash."""
        settings = FAST | {"unix_socket_directories": str(self.folder), "listen_addresses": ""}
        options = [f"--{name}={value}" for name, value in settings.items()]
        self.process = self._run(["postgres", "-D", "data", *options])
        self._wait_for(self.process)
        return self.process

    def kill(self) -> None:
        """End the server and its backends as a crash does."""
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=10)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _run(self, command: list[str]) -> "subprocess.Popen[bytes]":
        program = str(self.binaries / command[0])
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *command[1:]], cwd=self.folder, stdout=log, stderr=log, **self._as
            )

    def _wait_for(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        process.kill()
        process.wait()
        raise RuntimeError(f"PostgreSQL did not start:\n{self.log}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A running server."""
    with _running_server() as server:
        yield server


@pytest.fixture
def killable_postgres() -> Iterator[Server]:
    """A server of the test's own, which it may kill, with a database `chaos`."""
    with _running_server() as server:
        server.execute("CREATE DATABASE chaos")
        yield server


@contextmanager
def _running_server() -> Iterator[Server]:
    binaries = _find_binaries()
    if binaries is None:
        reason = "There are no PostgreSQL programs (initdb, postgres) on this machine."
        if os.environ.get("FERRY_REQUIRE_POSTGRES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ferry-pg-"))  # socket paths must be short
    try:
        server = Server(binaries, folder)
        server.start()
        try:
            yield server
        finally:
            server.process.send_signal(signal.SIGINT)  # does not wait for clients
            server.process.wait(START_SECONDS)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def empty_postgres_url(postgres_server: Server) -> Iterator[str]:
    """A database without tables."""
    name = f"empty_{uuid4().hex}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: Server) -> str:
    """A database with our tables, which tests leave empty."""
    postgres_server.execute("CREATE DATABASE migrated")
    schema.upgrade(postgres_server.url("migrated"))
    return postgres_server.url("migrated")


@pytest.fixture
def postgres_url(postgres_server: Server, migrated_postgres_url: str) -> Iterator[str]:
    """A database with our tables, empty."""
    yield migrated_postgres_url
    postgres_server.execute(";".join(f"DELETE FROM {it}" for it in metadata.tables), "migrated")  # noqa: S608


def _find_binaries() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    config = shutil.which("pg_config")
    if config:
        folders.append(Path(subprocess.check_output([config, "--bindir"], text=True).strip()))
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(debian, key=lambda path: path.parent.name.zfill(3), reverse=True)
    needed = ("initdb", "postgres")
    return next((it for it in folders if all((it / name).exists() for name in needed)), None)


def _unprivileged() -> dict[str, Any]:
    """Whom to run the server as: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return {}
    known = {user.pw_name: user for user in pwd.getpwall()}
    user = known.get("postgres") or known["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
