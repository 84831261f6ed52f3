"""The SQLite store under several processes, and under processes that are killed."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sessionferry.errors import UserError
from sessionferry.identity import SessionKey
from sessionferry.store import EventFilter, schema
from sessionferry.store.sql import SqlStore

KEY = SessionKey("ada", "engine", "s1")

COMMON = """
import asyncio, sys
from sessionferry.documents import Document, Facts
from sessionferry.errors import ItemChanged
from sessionferry.errors import UserError
from sessionferry.identity import SessionKey
from sessionferry.store.sql import SqlStore

KEY = SessionKey("ada", "engine", "s1")
url, writer = sys.argv[1], int(sys.argv[2])

def line(sequence):
    sha256 = (b"%d" % writer).rjust(32, b"0")
    text = (
        b'{"format":"jsonl","_type":"event","sequence":%d,"line_sha256":"%s","line_size_bytes":%d,'
        b'"data_truncated":false,"occurred_at":null,"padding":"%s"}'
    ) % (sequence, sha256.hex().encode(), writer, b"x" * 500)
    return Document(Facts(sequence, sha256, writer), text)
"""

# Each process creates the same lines as the others, and its share of a counter.
WRITER = """
async def main():
    async with SqlStore.open(url) as store:
        created = 0
        for first in range(0, 400, 20):
            lines = [line(sequence) for sequence in range(first, first + 30)]
            created += len(lines) - len(await store.create_lines(KEY, "events", 0, lines))
            while True:
                item = await store.read_item("heads", "p", "head")
                count = item.document["count"] if item else 0
                document = {"id": "head", "partition_key": "p", "count": count + 1}
                try:
                    await store.write_item("heads", document, item and item.etag)
                except ItemChanged:
                    continue
                break
        print(created)
asyncio.run(main())
"""

# Writes batches for ever, and says after each what is on disk now.
ENDLESS = """
async def main():
    async with SqlStore.open(url) as store:
        first = writer
        while True:
            lines = [line(sequence) for sequence in range(first, first + 50)]
            await store.create_lines(KEY, "events", 0, lines)
            first += 50
            print(first, flush=True)
asyncio.run(main())
"""


def run(script: str, url: str, writer: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-c", COMMON + script, url, str(writer)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def stored(url: str) -> list[dict[str, Any]]:
    async with SqlStore.open(url) as store:
        return await store.read_lines(KEY, "events", 0, limit=1_000_000)


async def test_processes_that_write_one_file_at_once_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    processes = [run(WRITER, url, writer) for writer in range(4)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    lines = await stored(url)
    assert [it["sequence"] for it in lines] == list(range(410))
    assert sum(int(output) for output in outputs) == 410
    async with SqlStore.open(url) as store:
        head = await store.read_item("heads", "p", "head")
    assert head is not None
    assert head.document["count"] == 4 * 20


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    first = 0
    for _ in range(4):
        process = run(ENDLESS, url, first)
        assert process.stdout is not None
        acknowledged = int(process.stdout.readline())
        await asyncio.sleep(random.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=30)[0].split()
        acknowledged = max([acknowledged, *map(int, rest)])
        sequences = [it["sequence"] for it in await stored(url)]
        assert sequences == list(range(len(sequences)))
        assert len(sequences) in {acknowledged, acknowledged + 50}
        first = len(sequences)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_process_killed_while_it_migrates_leaves_a_file_that_opens(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    script = """
import os, signal
from sessionferry.store import EventFilter, schema
really = schema._run_alembic
def killed(connection):
    really(connection)
    os.kill(os.getpid(), signal.SIGKILL)
schema._run_alembic = killed
SqlStore.open(url)
"""
    process = run(script, url, 0)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert schema.upgrade(url).before is None


async def test_two_stores_of_one_process_share_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with SqlStore.open(url) as one, SqlStore.open(url) as other:
        etag = await one.write_item("hosts", {"id": "h", "user_id": "u", "n": 1}, None)
        await other.write_item("hosts", {"id": "h", "user_id": "u", "n": 2}, etag)
        item = await one.read_item("hosts", "u", "h")
    assert item is not None
    assert item.document["n"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be made"):
        SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (EventFilter(user_id="ada", tool_name="grep"), "events_by_time (user_id=?)"),
        (
            EventFilter(user_id="ada", since="2026", until="2027"),
            "events_by_time (user_id=? AND occurred_at>? AND occurred_at<?)",
        ),
        (EventFilter(user_id="ada", session=KEY, event="e"), "(partition_key=?)"),
    ],
)
async def test_a_search_reads_an_index_and_no_whole_table(wanted: EventFilter, index: str) -> None:
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    async with SqlStore.open("sqlite://") as store:
        sa.event.listen(store._engine, "before_cursor_execute", note)
        await store.search_events(wanted)
        statement, parameters = asked[-1]
        with store._engine.connect() as connection:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            first = plan.all()[0][3]
    assert first.startswith("SEARCH events USING")
    assert index in first
