"""The agent follows files that are written, replaced, cut and moved; in the end it has them all.

Files, events of the file system and the spool are real; the queue is in memory. Each test is one
thing that tools, users and disks do to files.
"""

import asyncio
import hashlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import orjson
import pytest
import zstandard

from sessionferry.agent.daemon import Agent, Habits
from sessionferry.agent.discover import Source, look
from sessionferry.agent.gate import Checked, OpenGate
from sessionferry.agent.hours import Hours
from sessionferry.agent.spool import Spool, SpoolDamaged, open_spool
from sessionferry.agent.tail import Timing
from sessionferry.batch import Batch
from sessionferry.errors import TransientError, UserError
from sessionferry.host import Identity
from sessionferry.hosts import parse_heartbeat
from support.links import MemorySender, generations, of

HABITS = Habits(
    timing=Timing(live_seconds=0.1, live_bytes=200_000, quiet_seconds=0.6),
    scan_seconds=0.1,
    heartbeat_seconds=0.5,
    idle_seconds=0.2,
)
PATIENCE = 20.0


class Machine:
    """A home with sessions, an agent that can be started, and a queue that remembers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.session = self.home / "projects" / "-p" / "sessions" / "s1"
        self.session.mkdir(parents=True)
        self.spool_path = folder / "agent" / "spool.db"
        self.links: list[MemorySender] = []
        self.trouble: Exception | None = None
        self.habits = HABITS
        self.opened = 0
        self.roots = [self.home]
        self.spool_bytes = 10**9
        self.damage: SpoolDamaged | None = None

    @property
    def queue(self) -> list[Batch]:
        return [batch for link in self.links for batch in link.accepted]

    def link(self) -> MemorySender:
        self.opened += 1
        if self.trouble is not None:
            raise self.trouble
        self.links.append(MemorySender(limit=200_000))
        return self.links[-1]

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Run the agent while the block runs; its end must be clean."""
        identity = Identity(self.folder / "identity", host_id="h1", user_id="anna")
        spool = open_spool(
            self.spool_path, most_bytes=self.spool_bytes, free_bytes=0, damage=self.damage
        )
        agent = Agent(
            spool,
            Checked(OpenGate()),
            identity,
            scan=self.look,
            roots=self.roots,
            open_link=self.link,
            habits=self.habits,
            spool_was_lost=identity.knew_spool("queue", spool.id),
        )
        running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            agent.stop()
            await asyncio.wait_for(running, PATIENCE)
            spool.close()

    def look(self) -> list[Source]:
        return look([self.home], "anna", None)

    def write(self, name: str, content: bytes) -> Path:
        path = self.session / name
        path.write_bytes(content)
        return path

    def append(self, name: str, content: bytes) -> None:
        with (self.session / name).open("ab") as file:
            file.write(content)

    def arrived(self, stream: str = "events") -> bytes:
        """What the newest generation has."""
        found = generations(of(self.queue, "lines", stream))
        return found[max(found)] if found else b""

    async def has(self, content: bytes, stream: str = "events") -> None:
        """Wait until the newest generation is this."""
        await until(lambda: self.arrived(stream) == content)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def lines(first: int, count: int = 3) -> bytes:
    return b"".join(b'{"n":%d}\n' % number for number in range(first, first + count))


# ------------------------------------------------------------ what tools do


async def test_lines_are_read_once_as_they_are_written(machine: Machine) -> None:
    machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await machine.has(lines(0))
        for first in (3, 6, 9):
            machine.append("events.jsonl", lines(first))
            await machine.has(lines(0, first + 3))
        assert agent.report.bytes == len(lines(0, 12))
    assert len(generations(of(machine.queue, "lines", "events"))) == 1


async def test_a_line_counts_when_its_newline_is_there(machine: Machine) -> None:
    machine.habits = HABITS._replace(timing=Timing(0.1, 200_000, 60.0))
    machine.write("events.jsonl", b'{"n":0}\n{"n"')
    async with machine.agent():
        await machine.has(b'{"n":0}\n')
        machine.append("events.jsonl", b":1}")
        await asyncio.sleep(0.5)
        assert machine.arrived() == b'{"n":0}\n'
        machine.append("events.jsonl", b"\n")
        await machine.has(b'{"n":0}\n{"n":1}\n')
    assert of(machine.queue, "tail", "events") == []


async def test_a_torn_line_is_sent_as_a_tail_after_a_quiet_time(machine: Machine) -> None:
    async with machine.agent():
        machine.write("events.jsonl", b'{"n":0}\n{"n"')
        await until(lambda: bool(of(machine.queue, "tail", "events")))
        machine.append("events.jsonl", b":1}\n")
        await machine.has(b'{"n":0}\n{"n":1}\n')
    (tail,) = of(machine.queue, "tail", "events")
    assert (tail.payload, tail.header.offset, tail.header.start_sequence) == (b'{"n"', 8, 1)


async def test_a_new_session_and_a_new_project_are_found(machine: Machine) -> None:
    async with machine.agent():
        machine.write("events.jsonl", lines(0))
        await machine.has(lines(0))
        other = machine.home / "projects" / "-new" / "sessions" / "s2"
        other.mkdir(parents=True)
        (other / "transcript.jsonl").write_bytes(lines(5))
        await machine.has(lines(5), "transcript")


async def test_rotation_loses_nothing_of_the_old_file(machine: Machine) -> None:
    machine.habits = HABITS._replace(timing=Timing(2.0, 200_000, 5.0))
    path = machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await machine.has(lines(0))
        machine.append("events.jsonl", lines(3))
        await until(lambda: bool(agent._tail._held))
        path.rename(path.with_name("events.jsonl.1"))
        machine.write("events.jsonl", lines(100))
        await machine.has(lines(100))
    found = generations(of(machine.queue, "lines", "events"))
    assert found[0] == lines(0, 6)


@pytest.mark.parametrize("is_recreated", [True, False])
async def test_what_was_written_just_before_a_rotation_arrives(
    machine: Machine, is_recreated: bool
) -> None:
    """Between the writing and the rotation nobody has looked at the file."""
    path = machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await machine.has(lines(0))
        agent._tail.changed = lambda _paths: False
        machine.append("events.jsonl", lines(3))
        path.rename(path.with_name("events.jsonl.1"))
        if is_recreated:
            machine.write("events.jsonl", lines(100))
            await machine.has(lines(100))
        await until(lambda: generations(of(machine.queue, "lines", "events"))[0] == lines(0, 6))


async def test_a_log_of_any_tool_is_read_to_its_end_when_it_is_rotated(machine: Machine) -> None:
    logs = machine.folder / "logs"
    logs.mkdir()
    machine.roots = [logs]
    machine.look = lambda: look([logs], "anna", "jsonl")
    path = logs / "app.jsonl"
    path.write_bytes(lines(0))
    async with machine.agent():
        await machine.has(lines(0), "transcript")
        with path.open("ab") as file:
            file.write(lines(3))
        path.rename(logs / "app.jsonl.1")
        path.write_bytes(lines(100))
        await machine.has(lines(100), "transcript")
    found = generations(of(machine.queue, "lines", "transcript"))
    assert found[0] == lines(0, 6)


async def test_a_log_that_was_changed_in_its_middle_is_the_next_generation(
    machine: Machine,
) -> None:
    path = machine.write("events.jsonl", lines(0, 50))
    async with machine.agent():
        await machine.has(lines(0, 50))
        changed = lines(500, 1) + lines(0, 50)[len(lines(500, 1)) :] + lines(50, 3)
        with path.open("r+b") as file:
            file.write(changed)
        await machine.has(changed)
    assert len(generations(of(machine.queue, "lines", "events"))) == 2


async def test_a_file_that_was_moved_goes_on_where_it_was(machine: Machine) -> None:
    machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await machine.has(lines(0))
        elsewhere = machine.home / "archive" / "projects" / "-p" / "sessions"
        elsewhere.mkdir(parents=True)
        machine.session.rename(elsewhere / "s1")
        machine.session = elsewhere / "s1"
        machine.append("events.jsonl", lines(3))
        await machine.has(lines(0, 6))
        assert agent.report.bytes == len(lines(0, 6))
    assert len(generations(of(machine.queue, "lines", "events"))) == 1


async def test_a_thread_is_followed_through_its_compression_and_back(machine: Machine) -> None:
    first = b'{"cwd":"/srv/app"}\n'
    folder = machine.home / "sessions" / "2026" / "03" / "02"
    folder.mkdir(parents=True)
    plain = folder / "rollout-2026-03-02T09-00-00-t1.jsonl"
    packed = plain.with_name(f"{plain.name}.zst")
    plain.write_bytes(first + lines(0))
    async with machine.agent() as agent:
        await machine.has(first + lines(0), "transcript")
        packed.write_bytes(zstandard.compress(plain.read_bytes() + lines(3)))
        plain.unlink()
        await machine.has(first + lines(0, 6), "transcript")
        plain.write_bytes(first + lines(0, 9))
        packed.unlink()
        await machine.has(first + lines(0, 9), "transcript")
        assert agent.report.bytes == len(first + lines(0, 9))
    assert set(generations(of(machine.queue, "lines", "transcript"))) == {0}


async def test_an_atomic_replacement_that_only_grew_is_no_rewrite(machine: Machine) -> None:
    path = machine.write("transcript.jsonl", lines(0))
    async with machine.agent():
        await machine.has(lines(0), "transcript")
        fresh = path.with_name("transcript.new")
        fresh.write_bytes(lines(0, 5))
        fresh.replace(path)
        await machine.has(lines(0, 5), "transcript")
    assert set(generations(of(machine.queue, "lines", "transcript"))) == {0}


async def test_a_transcript_rewritten_in_the_middle_is_the_next_generation(
    machine: Machine,
) -> None:
    path = machine.write("transcript.jsonl", lines(0, 50))
    async with machine.agent():
        await machine.has(lines(0, 50), "transcript")
        changed = lines(0, 20) + lines(700, 10) + lines(30, 25)
        path.write_bytes(changed)
        await machine.has(changed, "transcript")
    assert len(generations(of(machine.queue, "lines", "transcript"))) == 2


async def test_a_large_transcript_that_is_changed_while_it_grows_is_noticed_when_quiet(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its middle, at the same length, and with an end like the one that was read."""
    monkeypatch.setattr("sessionferry.agent.collecting.SURE_BYTES", 50)
    monkeypatch.setattr("sessionferry.agent.collecting.END_BYTES", 20)
    machine.habits = HABITS._replace(timing=Timing(0.1, 200_000, 1.5))
    path = machine.write("transcript.jsonl", lines(100, 50))
    async with machine.agent() as agent:
        await machine.has(lines(100, 50), "transcript")
        changed = lines(100, 20) + lines(777, 1) + lines(121, 40)
        with path.open("r+b") as file:
            file.write(changed)
        await until(lambda: agent.report.lines == 61)
        await machine.has(changed, "transcript")
    assert len(generations(of(machine.queue, "lines", "transcript"))) == 2


async def test_a_truncated_file_starts_anew(machine: Machine) -> None:
    path = machine.write("events.jsonl", lines(0, 9))
    async with machine.agent():
        await machine.has(lines(0, 9))
        os.truncate(path, len(lines(0, 2)))
        await machine.has(lines(0, 2))
        machine.append("events.jsonl", lines(50))
        await machine.has(lines(0, 2) + lines(50))


async def test_copy_truncate_with_the_same_head_is_noticed(machine: Machine) -> None:
    """The same file, the same first line, and longer than what was read."""
    path = machine.write("events.jsonl", lines(0, 9))
    async with machine.agent():
        await machine.has(lines(0, 9))
        shutil.copy(path, path.with_name("events.jsonl.1"))
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(lines(0, 1) + lines(300, 40))
        await machine.has(lines(0, 1) + lines(300, 40))


async def test_a_rewrite_of_a_lost_spools_file_wins(machine: Machine) -> None:
    machine.write("transcript.jsonl", lines(0, 9))
    async with machine.agent():
        await machine.has(lines(0, 9), "transcript")
    machine.spool_path.unlink()
    machine.write("transcript.jsonl", lines(0, 2) + lines(60, 4))
    async with machine.agent():
        await machine.has(lines(0, 2) + lines(60, 4), "transcript")
    assert len(generations(of(machine.queue, "lines", "transcript"))) == 2


async def test_a_lost_spool_does_not_send_a_rewritten_log_as_an_old_one(machine: Machine) -> None:
    """A log that was cut once is above generation 0, and the store takes nothing below that."""
    machine.write("events.jsonl", lines(0, 9))
    async with machine.agent():
        await machine.has(lines(0, 9))
        machine.write("events.jsonl", lines(70, 2))
        await machine.has(lines(70, 2))
    machine.spool_path.unlink()
    machine.append("events.jsonl", lines(72, 2))
    async with machine.agent():
        await machine.has(lines(70, 4))
    assert max(generations(of(machine.queue, "lines", "events"))) > 0


async def test_where_nothing_is_reported_the_scans_find_what_changed(machine: Machine) -> None:
    """A single file is not watched: whoever replaces it would end the watching."""
    machine.roots = [machine.write("events.jsonl", lines(0))]
    async with machine.agent():
        await machine.has(lines(0))
        machine.append("events.jsonl", lines(3))
        await machine.has(lines(0, 6))


# ------------------------------------------------------------ what is in files


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"a":1}\r\n{"b":2}\r\n', id="CRLF"),
        pytest.param(b'\xef\xbb\xbf{"a":1}\n{"b":2}\n', id="BOM"),
        pytest.param(b'{"a":1}\n' + bytes(4096) + b'\n{"b":2}\n', id="NUL"),
        pytest.param('{"a":"\u2028\u2029\u0085"}\n{"b":2}\n'.encode(), id="U+2028"),
        pytest.param(b'{"a":"\xff\xfe\xed\xa0\x80"}\n{"b":2}\n', id="invalid UTF-8"),
        pytest.param(b'\n\n{"a":1}\n \t\r\n\n', id="blank"),
    ],
)
async def test_every_byte_is_carried_as_it_is(machine: Machine, content: bytes) -> None:
    machine.write("events.jsonl", content)
    async with machine.agent():
        await machine.has(content)
        machine.append("events.jsonl", content)
        await machine.has(content + content)


# ------------------------------------------------------------ what disks and users do


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_an_unreadable_file_is_named_and_read_once_it_can_be(machine: Machine) -> None:
    path = machine.write("events.jsonl", lines(0))
    path.chmod(0)
    machine.write("transcript.jsonl", lines(5))
    async with machine.agent():
        await machine.has(lines(5), "transcript")
        path.chmod(0o600)
        machine.append("events.jsonl", lines(3))
        await machine.has(lines(0, 6))


async def test_a_file_that_cannot_be_read_stops_no_other(machine: Machine) -> None:
    (machine.session / "metadata.json").mkdir()
    (machine.session / "events.jsonl").symlink_to(machine.session / "events.jsonl")
    machine.write("transcript.jsonl", lines(5))
    async with machine.agent():
        await machine.has(lines(5), "transcript")
        machine.append("transcript.jsonl", lines(8))
        await machine.has(lines(5, 6), "transcript")


async def test_a_loop_of_links_is_not_followed(machine: Machine) -> None:
    (machine.session / "loop").symlink_to(machine.home, target_is_directory=True)
    (machine.home / "again").symlink_to(machine.home, target_is_directory=True)
    async with machine.agent():
        machine.write("events.jsonl", lines(0))
        await machine.has(lines(0))
    sent = of(machine.queue, "lines", "events")
    assert len({batch.header.session_id for batch in sent}) == 1


async def test_folders_may_vanish_and_come_back(machine: Machine) -> None:
    machine.write("events.jsonl", lines(0))
    async with machine.agent():
        await machine.has(lines(0))
        shutil.rmtree(machine.home)
        await asyncio.sleep(0.5)
        machine.session.mkdir(parents=True)
        machine.write("events.jsonl", lines(0, 7))
        await machine.has(lines(0, 7))
    assert set(generations(of(machine.queue, "lines", "events"))) == {0}


async def test_what_was_written_before_a_file_is_deleted_arrives(machine: Machine) -> None:
    machine.habits = HABITS._replace(timing=Timing(2.0, 200_000, 5.0))
    path = machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await machine.has(lines(0))
        machine.append("events.jsonl", lines(3))
        await until(lambda: bool(agent._tail._held))
        path.unlink()
        await machine.has(lines(0, 6))


async def test_thousands_of_files_are_followed(machine: Machine) -> None:
    count = 1500
    for number in range(count):
        folder = machine.session.parent / f"many-{number}"
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(lines(number, 1))
    last = machine.session.parent / f"many-{count - 1}" / "events.jsonl"
    async with machine.agent() as agent:
        await until(lambda: len(of(machine.queue, "lines", "events")) == count)
        before = agent.report.bytes
        with last.open("ab") as file:
            file.write(lines(7, 1))
        await until(lambda: len(of(machine.queue, "lines", "events")) == count + 1)
        assert agent.report.bytes == before + len(lines(7, 1))


async def test_memory_stays_bounded_with_lines_of_50_mb(machine: Machine) -> None:
    """In a process of its own: what this one has ever used would be counted too."""
    with (machine.session / "events.jsonl").open("wb") as file:
        for number in range(2):
            words = hashlib.sha256(b"%d" % number).hexdigest().encode() * 8
            file.write(b'{"text":"' + words * (50_000_000 // len(words)) + b'"}\n' + lines(number))
    collect = Path(__file__).parents[1] / "support" / "collect.py"
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, str(collect), str(machine.folder)), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await started.communicate()
    count, failed, peak = orjson.loads(out)
    assert (count, failed) == (8, [])
    assert peak < 150 * 2**20


# ------------------------------------------------------------ the queue


async def test_offline_everything_is_read_and_sent_when_the_queue_is_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionferry.agent.daemon.FIRST_PAUSE", 0.1)
    machine.trouble = TransientError("The queue cannot be reached.")
    path = machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await until(lambda: agent.report.lines == 3 and machine.opened > 2)
        trouble = await asyncio.to_thread(_notes, machine.spool_path)
        assert trouble["trouble"]["error"] == "The queue cannot be reached."
        path.unlink()
        machine.trouble = None
        await machine.has(lines(0))
        await until(lambda: "trouble" not in _notes(machine.spool_path))


async def test_outside_the_hours_all_is_read_and_nothing_sent(machine: Machine) -> None:
    minute = datetime.now().astimezone().hour * 60
    machine.habits = HABITS._replace(hours=Hours((minute + 120) % 1440, (minute + 180) % 1440))
    machine.write("events.jsonl", lines(0))
    async with machine.agent() as agent:
        await until(lambda: agent.report.lines == 3)
        await asyncio.sleep(0.5)
    assert machine.opened == 0
    machine.habits = HABITS._replace(hours=Hours(minute, (minute + 120) % 1440))
    async with machine.agent():
        await machine.has(lines(0))


async def test_sending_ends_with_the_hours_though_much_waits(machine: Machine) -> None:
    phase = "closed"

    class Changing(Hours):
        def seconds_until(self, now: datetime) -> float:
            is_open = phase == "open" or (phase == "opened" and not machine.queue)
            return 0.0 if is_open else 0.2

    machine.habits = HABITS._replace(hours=Changing(0, 0))
    content = b"".join(b'{"n":"%s"}\n' % os.urandom(20_000).hex().encode() for _ in range(200))
    machine.write("events.jsonl", content)
    async with machine.agent() as agent:
        await until(lambda: agent.report.lines == 200)
        phase = "opened"
        await until(lambda: bool(machine.queue))
        await asyncio.sleep(0.5)
        assert len(machine.arrived()) < len(content) / 2
        phase = "open"
        await machine.has(content)


async def test_no_failure_of_a_library_or_a_folder_ends_the_agent(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionferry.agent.daemon.FIRST_PAUSE", 0.1)
    machine.trouble = AttributeError("'NoneType' object has no attribute 'send'")
    look_well, looks = machine.look, []

    def look_badly() -> list[Source]:
        looks.append(1)
        if len(looks) == 1:
            raise PermissionError(13, "Permission denied")
        return look_well()

    machine.look = look_badly
    machine.roots = [machine.home / "projects" / "-p" / "sessions" / "s1" / "events.jsonl"]
    machine.write("events.jsonl", lines(0))
    async with machine.agent():
        await until(lambda: machine.opened > 2)
        machine.trouble = None
        await machine.has(lines(0))


async def test_missing_rights_are_one_sentence_and_are_tried_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sessionferry.agent.daemon.FIRST_PAUSE", 0.1)
    machine.trouble = UserError("The queue refused this sender.")
    machine.write("events.jsonl", lines(0))
    async with machine.agent():
        await until(lambda: machine.opened > 2)
        assert _notes(machine.spool_path)["trouble"]["kind"] == "rights"
        machine.trouble = None
        await machine.has(lines(0))
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.exc_info for record in warned] == [None]


async def test_the_link_is_closed_when_idle_and_heartbeats_open_it(machine: Machine) -> None:
    machine.write("events.jsonl", lines(0))
    async with machine.agent():
        await until(lambda: len(of(machine.queue, "heartbeat", None)) >= 3)
    assert len(machine.links) >= 2
    beats = of(machine.queue, "heartbeat", None)
    last = parse_heartbeat(beats[-1].header, orjson.loads(beats[-1].payload))
    assert (last.ledger["read"], last.ledger["sent"], last.ledger["spooled"]) == (3, 3, 0)
    runs = {parse_heartbeat(b.header, orjson.loads(b.payload)).run_id for b in beats}
    assert len(runs) == 1


async def test_a_full_spool_makes_reading_wait_and_nothing_is_lost(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionferry.agent.daemon.FIRST_PAUSE", 0.2)
    monkeypatch.setattr("sessionferry.agent.daemon.ROOM_SECONDS", 0.1)
    monkeypatch.setattr("sessionferry.agent.collecting.COMMIT_BYTES", 10_000)
    machine.trouble = TransientError("The queue cannot be reached.")
    machine.spool_bytes = 50_000
    contents = {}
    for number in range(5):
        folder = machine.session.parent / f"s{number}"
        folder.mkdir(exist_ok=True)
        contents[f"s{number}"] = b'{"x":"%b"}\n' % os.urandom(15_000).hex().encode()
        (folder / "events.jsonl").write_bytes(contents[f"s{number}"])
    async with machine.agent() as agent:
        await until(lambda: "full" in _notes(machine.spool_path))
        assert agent.report.lines >= 3
        assert _waiting(machine.spool_path) < 5
        machine.trouble = None
        await until(lambda: len(of(machine.queue, "lines", "events")) == 5)
        await until(lambda: "full" not in _notes(machine.spool_path))
    arrived = {b.header.session_id: b.payload for b in of(machine.queue, "lines", "events")}
    assert arrived == contents


async def test_a_spool_that_breaks_at_work_is_set_aside_and_the_files_are_read_again(
    machine: Machine,
) -> None:
    machine.trouble = TransientError("The queue cannot be reached.")
    machine.write("events.jsonl", lines(0))
    try:
        async with machine.agent():
            await until(lambda: _waiting(machine.spool_path) == 1)
            with sqlite3.connect(machine.spool_path) as other:
                other.execute("UPDATE batches SET compressed = x'00'")
            other.close()
            machine.trouble = None
            await until(lambda: machine.opened > 1)
            await asyncio.sleep(0.2)
    except SpoolDamaged as error:
        machine.damage = error
    assert machine.damage is not None
    async with machine.agent():
        await machine.has(lines(0))
    assert [path for path in machine.spool_path.parent.iterdir() if ".damaged-" in path.name]


async def test_the_end_is_prompt_though_the_queue_hangs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionferry.agent.daemon.STOP_SECONDS", 0.3)

    class Hanging(MemorySender):
        async def flush(self) -> list[object]:  # type: ignore[override]
            await asyncio.sleep(3600)
            return []

    machine.link = Hanging
    machine.write("events.jsonl", lines(0))
    began = time.monotonic()
    async with machine.agent() as agent:
        await until(lambda: agent.report.lines == 3)
        await asyncio.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    machine.link = Machine.link.__get__(machine)
    async with machine.agent():
        await machine.has(lines(0))


def _notes(path: Path) -> dict[str, dict[str, str]]:
    spool = Spool(path, check=False)
    try:
        return spool.notes()
    finally:
        spool.close()


def _waiting(path: Path) -> int:
    spool = Spool(path, check=False)
    try:
        return len(spool.waiting(0, 10**9))
    finally:
        spool.close()
