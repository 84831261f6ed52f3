"""What `ferry status` knows of each file without asking the store."""

import os
import time
from pathlib import Path

import orjson
import pytest

from sessionferry.agent.discover import Source, look
from sessionferry.agent.retention import CLAUDE_DAYS, days_kept, days_left
from sessionferry.agent.spool import FileId, Known, Spool, Step
from sessionferry.agent.status import FileStatus, take_status
from sessionferry.identity import SessionKey
from sessionferry.packing import Place, pack_whole
from support.strategies import header

DAY = 86_400


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "agent" / "spool.db")


def claude(home: Path, *, age_days: float = 0) -> Source:
    folder = home / ".claude" / "projects" / "-srv-app"
    folder.mkdir(parents=True)
    path = folder / "0c473079-aaaa-bbbb-cccc-000000000000.jsonl"
    path.write_bytes(b'{"type":"user","sessionId":"x"}\n')
    moment = time.time() - age_days * DAY
    os.utime(path, (moment, moment))
    (source,) = look([home / ".claude" / "projects"], "user-123", None)
    return source


def read(spool: Spool, source: Source, *, size: int, spooled: int = 0, generation: int = 0) -> None:
    """Note that a file was read up to a size, of which some lines wait."""
    state = source.path.stat()
    known = Known(
        generation,
        offset=size,
        sent=Place(size, 10),
        filtered=2,
        size=size,
        modified_ns=state.st_mtime_ns,
    )
    step = Step()
    file = FileId(source.key, source.role)
    if spooled:
        one = header(stream="transcript", generation=0, line_count=spooled)
        step.add(file, source.path, known, pack_whole(one, b"x"))
    step.add(file, source.path, known)
    spool.commit(step)


def only(spool: Spool, source: Source) -> FileStatus:
    (status,) = take_status(spool, [source], is_running=False).files
    return status


def test_what_was_never_read_lags_as_a_whole(tmp_path: Path, spool: Spool) -> None:
    source = claude(tmp_path, age_days=20)
    status = only(spool, source)
    assert status.lag_bytes == source.path.stat().st_size
    assert status.lag_seconds == pytest.approx(20 * DAY, abs=60)
    assert status.safe_days == pytest.approx(10, abs=0.01)
    assert not status.is_settled


def test_what_was_read_and_sent_is_settled(tmp_path: Path, spool: Spool) -> None:
    source = claude(tmp_path)
    read(spool, source, size=source.path.stat().st_size)
    status = only(spool, source)
    assert (status.read, status.filtered, status.spooled, status.sent) == (12, 2, 0, 10)
    assert (status.lag_bytes, status.safe_days, status.is_settled) == (0, None, True)
    status.stored = 9
    assert not status.is_settled
    status.quarantined = 1
    assert status.is_settled


def test_what_waits_in_the_spool_is_not_sent(tmp_path: Path, spool: Spool) -> None:
    source = claude(tmp_path)
    read(spool, source, size=source.path.stat().st_size, spooled=4)
    status = only(spool, source)
    assert (status.spooled, status.sent, status.is_settled) == (4, 6, False)


def test_a_longer_file_lags_by_what_is_new_and_a_shorter_one_as_a_whole(
    tmp_path: Path, spool: Spool
) -> None:
    source = claude(tmp_path)
    size = source.path.stat().st_size
    read(spool, source, size=size - 5)
    assert only(spool, source).lag_bytes == 5
    read(spool, source, size=size + 5)
    assert only(spool, source).lag_bytes == size


def test_errors_and_files_that_are_gone_are_named(tmp_path: Path, spool: Spool) -> None:
    source = claude(tmp_path)
    spool.fail(FileId(source.key, source.role), source.path, "Permission denied")
    assert only(spool, source).error == "Permission denied"
    source.path.unlink()
    spool.heal(FileId(source.key, source.role))
    assert only(spool, source).error == "No such file or directory"


def elsewhere(folder: Path, name: str, size: int = 20) -> Source:
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"x" * size)
    return Source(path, SessionKey("user-123", "-elsewhere", name), "transcript", "jsonl")


def test_files_that_were_shipped_from_elsewhere_are_looked_at_too(
    tmp_path: Path, spool: Spool
) -> None:
    usual = claude(tmp_path / "home")
    read(spool, usual, size=usual.path.stat().st_size)
    waiting, failing, gone, lost = (elsewhere(tmp_path, name) for name in "abcd")
    read(spool, waiting, size=20, spooled=10)
    spool.fail(FileId(failing.key, failing.role), failing.path, "Permission denied")
    read(spool, gone, size=20)
    gone.path.unlink()
    read(spool, lost, size=20, spooled=10)
    lost.path.unlink()

    found = take_status(spool, [usual], is_running=False, also=lambda _: True).files
    assert [(one.source.path, one.spooled, one.error, one.is_settled) for one in found] == [
        (usual.path, 0, None, True),
        (waiting.path, 10, None, False),
        (failing.path, 0, "Permission denied", False),
        (lost.path, 10, None, False),
    ]
    assert found[1].source.key == waiting.key
    (alone,) = take_status(spool, [usual], is_running=False).files
    assert alone.source == usual


def test_lines_of_another_generation_are_not_stored(tmp_path: Path, spool: Spool) -> None:
    source = claude(tmp_path)
    read(spool, source, size=source.path.stat().st_size, generation=7)
    status = only(spool, source)
    status.note_stored(6, 30, 1)
    assert (status.stored, status.quarantined, status.is_settled) == (0, 0, False)
    status.note_stored(7, 9, 1)
    assert (status.stored, status.quarantined, status.is_settled) == (9, 1, True)
    status.note_stored(8, 10, 0)
    assert status.error == "generation 8 is stored, 7 was sent from here"
    assert not status.is_settled


def test_a_daemon_that_was_killed_does_not_run(spool: Spool) -> None:
    spool.note("running", {"pid": 1})
    spool.note("full", {"since": "now"})
    spool.note("trouble", {"error": "no link", "since": "then"})
    dead = take_status(spool, [], is_running=False)
    assert (dead.running, dead.full_since) == (None, None)
    alive = take_status(spool, [], is_running=True)
    assert (alive.running, alive.full_since) == ({"pid": 1}, "now")
    assert alive.trouble == {"error": "no link", "since": "then"}


# ------------------------------------------------------------ retention


@pytest.mark.parametrize(
    ("settings", "days"),
    [
        (b'{"cleanupPeriodDays": 90}', 90),
        (b'{"cleanupPeriodDays": 0}', 0),
        (b'{"cleanupPeriodDays": -3}', 0),
        (b'{"cleanupPeriodDays": true}', CLAUDE_DAYS),
        (b'{"cleanupPeriodDays": "7"}', CLAUDE_DAYS),
        (b"{}", CLAUDE_DAYS),
        (b"[]", CLAUDE_DAYS),
        (b"not json", CLAUDE_DAYS),
        (None, CLAUDE_DAYS),
    ],
)
def test_claude_codes_own_setting_says_how_long_it_keeps_transcripts(
    tmp_path: Path, settings: bytes | None, days: float
) -> None:
    if settings is not None:
        (tmp_path / "settings.json").write_bytes(settings)
    assert days_kept("claude_code", tmp_path) == days


@pytest.mark.parametrize("tool", ["amplifier", "codex", "jsonl"])
def test_other_tools_delete_nothing(tool: str) -> None:
    assert days_kept(tool) is None


def test_days_are_counted_from_the_last_change_and_end_at_none() -> None:
    assert days_left(0, 30, 10 * DAY) == 20
    assert days_left(0, 30, 40 * DAY) == 0


def test_notes_are_json(spool: Spool) -> None:
    spool.note("contact", {"at": "now"})
    spool.note("limit", 5)
    spool.note("limit", None)
    assert spool.notes() == {"contact": orjson.loads(b'{"at":"now"}')}
