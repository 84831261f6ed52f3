"""`--dry-run`: it says what shipping would do, and changes nothing."""

from pathlib import Path

import pytest

from sessionferry.agent.discover import Source, discover
from sessionferry.agent.gate import OPEN
from sessionferry.agent.policy import gate_of
from sessionferry.agent.rehearsal import rehearse
from sessionferry.agent.shipping import Shipper
from sessionferry.agent.spool import Spool
from sessionferry.host import Identity
from sessionferry.settings import Settings
from support.links import MemorySender

LINE = b'{"event":"a"}\n'


class Machine:
    """A home with one session, and what an agent keeps of it."""

    def __init__(self, folder: Path) -> None:
        self.spool = folder / "agent" / "spool.db"
        self.settings = Settings(data=folder / "data", identity=folder / "id")
        self.home = folder / "home"
        self.events = self.home / "projects" / "-p" / "sessions" / "s1" / "events.jsonl"
        self.events.parent.mkdir(parents=True)
        self.events.write_bytes(LINE * 3)
        self.kept = (self.spool.parent, self.settings.identity, self.settings.data)

    @property
    def sources(self) -> list[Source]:
        return discover([self.home], "ada", None)

    def content(self) -> dict[Path, bytes]:
        """Every file that the agent keeps."""
        files = (path for folder in self.kept for path in folder.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    async def ship(self) -> None:
        sender = MemorySender()
        spool = Spool(self.spool)
        identity = Identity.from_settings(self.settings)
        await Shipper(spool, OPEN, identity, limit=sender.limit).ship(self.sources, sender)
        spool.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_before_anything_was_shipped_nothing_is_made(machine: Machine) -> None:
    config = machine.settings.config_path
    config.parent.mkdir()
    config.write_text("[redact]\n")
    gate = gate_of(machine.settings, lasts=False)
    report = rehearse(machine.spool, gate, Identity.as_it_is(machine.settings), machine.sources)
    assert (report.files, report.lines) == (1, 3)
    assert list(machine.content()) == [config]


async def test_a_rewritten_file_is_noted_by_shipping_alone(machine: Machine) -> None:
    await machine.ship()
    machine.events.write_bytes(b'{"event":"b"}\n' * 2)
    before = machine.content()
    report = rehearse(machine.spool, OPEN, Identity.as_it_is(machine.settings), machine.sources)
    assert (report.lines, report.rewritten) == (2, 1)
    assert machine.content() == before
    await machine.ship()
    assert machine.content() != before


async def test_what_would_be_sent_again_is_counted(machine: Machine) -> None:
    await machine.ship()
    own = Identity.as_it_is(machine.settings)
    assert rehearse(machine.spool, OPEN, own, machine.sources).lines == 0
    assert rehearse(machine.spool, OPEN, own, machine.sources, resend=True).lines == 3
    superseded = rehearse(machine.spool, OPEN, own, machine.sources, supersede=True)
    assert (superseded.lines, superseded.rewritten) == (3, 1)


async def test_what_a_daemon_has_just_written_is_seen(machine: Machine) -> None:
    await machine.ship()
    spool = Spool(machine.spool)
    spool.note("running", {"pid": 1})
    own = Identity.as_it_is(machine.settings)
    assert rehearse(machine.spool, OPEN, own, machine.sources).unchanged == 1
    spool.close()


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\x00" + b"\xff" * 9000])
def test_a_damaged_spool_would_be_read_anew(
    machine: Machine, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    machine.spool.parent.mkdir(parents=True)
    machine.spool.write_bytes(content)
    report = rehearse(machine.spool, OPEN, Identity.as_it_is(machine.settings), machine.sources)
    assert report.lines == 3
    assert "every file would be read again" in caplog.text
    assert machine.content() == {machine.spool: content}
