"""The spool: places and batches commit together, and what is damaged is set aside."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sessionferry.agent import spool as spooling
from sessionferry.agent.spool import (
    PIECE_BYTES,
    FileId,
    Known,
    Ledger,
    Sent,
    Spool,
    SpoolDamaged,
    SpoolFull,
    SpoolLock,
    Step,
    Waiting,
    open_spool,
)
from sessionferry.errors import FerryError, TransientError, UserError
from sessionferry.identity import SessionKey
from sessionferry.packing import Packed, Place, pack_whole
from sessionferry.statements import Statement
from support.strategies import header

EVENTS = FileId(SessionKey("user-123", "p", "s1"), "events")
OTHER = FileId(SessionKey("user-123", "p", "s2"), "transcript")
PATH = Path("/home/anna/events.jsonl")
KNOWN = Known(
    *(3, "rules-1", 1000, "ab", Place(900, 10), 2, 5, {"model": "m"}, "cd"),
    size=1100,
    modified_ns=1_700_000_000_000_000_000,
)


def packed(number: int, *, generation: int = 3, lines: int = 4, size: int = 200) -> Packed:
    one = header(generation=generation, start_sequence=number, line_count=lines)
    return pack_whole(one, os.urandom(size))


def step(*batches: Packed, known: Known = KNOWN, file: FileId = EVENTS) -> Step:
    made = Step()
    for batch in batches:
        made.add(file, PATH, known, batch)
    made.add(file, PATH, known)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "spool.db"


def test_a_place_and_its_batches_are_there_after_a_restart(path: Path) -> None:
    spool = Spool(path)
    assert spool.known(EVENTS) is None
    batches = [packed(0), packed(4)]
    spool.commit(step(*batches))
    own = spool.id
    spool.close()
    again = Spool(path)
    assert again.known(EVENTS) == KNOWN
    assert again.known(OTHER) is None
    assert [waiting.packed for waiting in again.waiting(0, 10**9)] == batches
    assert again.used_bytes == sum(len(batch.compressed) for batch in batches)
    assert again.id == own
    again.close()


def sent(batches: list[Waiting]) -> list[Sent]:
    return [Sent(number, len(batch.compressed)) for number, batch in batches]


def test_batches_are_for_the_owners_eyes_only(path: Path) -> None:
    Spool(path).close()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_what_the_queue_took_is_removed_and_numbers_are_never_used_again(path: Path) -> None:
    spool = Spool(path)
    spool.commit(step(packed(0), packed(4), packed(8)))
    first, second, third = spool.waiting(0, 10**9)
    spool.taken(sent([third]))
    spool.settle()
    assert [waiting.number for waiting in spool.waiting(0, 10**9)] == [first.number, second.number]
    assert spool.waiting(first.number, 10**9) == [second]
    assert spool.waiting(0, 1) == [first]
    spool.taken(sent([first, second]))
    spool.commit(step(packed(12)))
    (fourth,) = spool.waiting(0, 10**9)
    assert fourth.number > third.number
    assert spool.used_bytes == len(fourth.packed.compressed)
    spool.close()


def test_large_batches_are_kept_in_pieces_and_come_back_whole(path: Path) -> None:
    spool = Spool(path)
    batches = [packed(n, size=size) for n, size in enumerate((PIECE_BYTES + 1, 10, 3_500_000))]
    spool.commit(step(*batches))
    assert [waiting.packed for waiting in spool.waiting(0, 10**9)] == batches
    spool.close()


def test_a_step_is_all_or_nothing(path: Path) -> None:
    spool = Spool(path)
    bad = step(packed(0))
    bad.files[OTHER] = (PATH, Known(offset=2**70))
    with pytest.raises(OverflowError):
        spool.commit(bad)
    assert spool.known(EVENTS) is None
    assert spool.waiting(0, 10**9) == []
    assert spool.used_bytes == 0
    spool.close()


def test_a_full_spool_takes_nothing_until_batches_are_gone(path: Path) -> None:
    spool = Spool(path, most_bytes=1000)
    spool.commit(step(packed(0, size=600)))
    with pytest.raises(SpoolFull):
        spool.commit(step(packed(4, size=600), known=Known(generation=4)))
    assert spool.known(EVENTS) == KNOWN
    assert not spool.has_room(600)
    spool.taken(sent(spool.waiting(0, 10**9)))
    spool.commit(step(packed(4, size=600), known=Known(generation=4)))
    assert spool.known(EVENTS) == Known(generation=4)
    spool.close()


def test_one_batch_larger_than_the_bound_still_passes(path: Path) -> None:
    spool = Spool(path, most_bytes=1000)
    spool.commit(step(packed(0, size=5000)))
    assert len(spool.waiting(0, 10**9)) == 1
    spool.close()


def test_a_part_of_the_disk_stays_free(path: Path) -> None:
    spool = Spool(path, free_bytes=2**62)
    with pytest.raises(SpoolFull):
        spool.commit(step(packed(0)))
    spool.close()


def test_the_file_gets_smaller_when_batches_are_gone(path: Path) -> None:
    spool = Spool(path)
    for number in range(8):
        spool.commit(step(packed(number, size=500_000)))
    spool.taken(sent(spool.waiting(0, 10**9)))
    spool.close()
    assert path.stat().st_size < 2_000_000


def test_the_ledger_says_where_each_line_is(path: Path) -> None:
    spool = Spool(path)
    assert spool.ledger() == Ledger()
    spool.commit(step(packed(0), packed(4)))
    spool.commit(step(packed(0, generation=0, lines=90)))
    metadata = Known(offset=50, prefix_sha256="ee")
    spool.commit(step(file=FileId(OTHER.key, "metadata"), known=metadata))
    spool.fail(OTHER, PATH, "Permission denied")
    assert spool.ledger() == Ledger(
        files=2, bytes=1050, read=12, filtered=2, redacted=5, spooled=8, sent=2, failing=1
    )
    (events, other) = spool.files()
    assert (events.known, events.spooled, events.path) == (KNOWN, 8, str(PATH))
    assert events.oldest is not None
    assert (other.spooled, other.spooled_bytes, other.oldest) == (0, 0, None)
    spool.taken(sent(spool.waiting(0, 10**9)))
    assert spool.ledger().sent == 10
    spool.close()


def test_what_the_queue_took_is_told_once_and_again_when_there_is_more(path: Path) -> None:
    spool = Spool(path)
    spool.commit(step(packed(0), packed(4)))
    metadata = Known(offset=50, prefix_sha256="ee", sent=Place(50, 1))
    spool.commit(step(file=FileId(OTHER.key, "metadata"), known=metadata))
    own = EVENTS.key.partition_key
    assert spool.unstated("user-123|", 10**6) == [Statement(own, "events", 3, 2)]
    assert spool.unstated("user-12|", 10**6) == []
    spool.state([Statement(own, "events", 3, 2)])
    assert spool.unstated("user-123|", 10**6) == []
    spool.taken(sent(spool.waiting(0, 10**9)))
    assert spool.unstated("user-123|", 10**6) == [Statement(own, "events", 3, 10)]
    spool.state([Statement(own, "events", 3, 10)])
    spool.commit(step(known=Known(generation=4, sent=Place(9, 1))))
    assert spool.unstated("user-123|", 10**6) == [Statement(own, "events", 4, 1)]
    spool.commit(step(file=OTHER, known=Known(sent=Place(9, 3))))
    assert len(spool.unstated("user-123|", 10**6)) == 2
    assert len(spool.unstated("user-123|", 1)) == 1
    spool.close()


def test_all_is_told_again_on_demand(path: Path) -> None:
    spool = Spool(path)
    spool.commit(step())
    said = spool.unstated("", 10**6)
    spool.state(said)
    spool.state_anew([OTHER])
    assert spool.unstated("", 10**6) == []
    spool.state_anew([EVENTS])
    assert spool.unstated("", 10**6) == said
    spool.state(said)
    spool.state_anew()
    assert spool.unstated("", 10**6) == said
    spool.close()


def test_errors_last_until_the_file_is_read_on(path: Path) -> None:
    spool = Spool(path)
    spool.fail(EVENTS, PATH, "Permission denied")
    spool.fail(EVENTS, PATH, "Is a directory")
    spool.fail(OTHER, PATH, "Permission denied")
    found = spool.errors()
    assert found[EVENTS.key.partition_key, "events"][:2] == (str(PATH), "Is a directory")
    spool.commit(step())
    spool.heal(OTHER)
    assert spool.errors() == {}
    spool.close()


def test_errors_of_files_that_are_gone_are_forgotten(path: Path, tmp_path: Path) -> None:
    spool = Spool(path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    spool.fail(EVENTS, loop, "Too many levels of symbolic links")
    spool.fail(OTHER, tmp_path / "gone", "Permission denied")
    spool.heal_gone()
    assert [error[0] for error in spool.errors().values()] == [str(loop)]
    spool.close()


def test_a_path_that_is_not_text_can_be_kept(path: Path) -> None:
    spool = Spool(path)
    made = Step()
    made.add(EVENTS, Path("/x\udcff"), KNOWN)
    spool.commit(made)
    assert spool.known(EVENTS) == KNOWN
    spool.close()


def test_only_one_process_works_on_a_spool(path: Path) -> None:
    with SpoolLock(path) as lock:
        assert lock.is_held()
        with pytest.raises(TransientError, match="Another `ferry ship`"), SpoolLock(path):
            pass
    assert not lock.is_held()
    with SpoolLock(path):
        pass


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_a_fault_that_may_pass(path: Path) -> None:
    with files_of_at_most(2000), pytest.raises(TransientError):
        Spool(path)
    spool = Spool(path)
    made = step(packed(0, size=100_000))
    with files_of_at_most(60_000), pytest.raises((TransientError, SpoolFull)):
        spool.commit(made)
    spool.commit(made)
    assert spool.known(EVENTS) == KNOWN
    spool.close()


def test_a_spool_whose_file_was_removed_or_replaced_is_known(path: Path) -> None:
    spool = Spool(path)
    assert spool.is_in_place()
    path.rename(path.with_name("elsewhere"))
    assert not spool.is_in_place()
    other = Spool(path)
    assert not spool.is_in_place()
    assert other.is_in_place()
    for one in (spool, other):
        one.close()


# ------------------------------------------------------------ damage


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "no database":
            content[:4096] = os.urandom(4096)
        case "cut off":
            del content[len(content) // 2 :]
        case "page":
            content[4096:8192] = os.urandom(4096)
        case "empty":
            content.clear()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["no database", "cut off", "page"])
def test_a_damaged_spool_is_set_aside_and_a_new_one_begun(path: Path, how: str) -> None:
    spool = Spool(path)
    for number in range(5):
        spool.commit(step(packed(number, size=3000)))
    old = spool.id
    spool.close()
    damaged(path, how)
    with pytest.raises(SpoolDamaged):
        Spool(path)
    fresh = open_spool(path, most_bytes=10**9, free_bytes=0)
    assert fresh.id != old
    assert fresh.known(EVENTS) is None
    aside = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert aside
    fresh.close()


def test_sound_batches_of_a_damaged_spool_are_saved(path: Path) -> None:
    spool = Spool(path)
    batches = [packed(number, size=3000) for number in range(20)]
    spool.commit(step(*batches))
    spool.close()
    content = path.read_bytes()
    at = content.find(batches[3].compressed[-200:-100])
    path.write_bytes(content[:at] + bytes(100) + content[at + 100 :])
    spool = Spool(path)
    with pytest.raises(SpoolDamaged, match="batch 4"):
        spool.waiting(0, 10**9)
    spool.close()
    aside = spooling.set_aside(path)
    fresh = Spool(path)
    assert spooling.salvage(aside, fresh) == 19
    saved = [waiting.packed for waiting in fresh.waiting(0, 10**9)]
    assert saved == batches[:3] + batches[4:]
    fresh.close()


def test_a_spool_of_a_newer_version_is_left_alone(path: Path) -> None:
    Spool(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UserError, match="newer version"):
        open_spool(path, most_bytes=10**9, free_bytes=0)
    assert path.exists()


def test_a_spool_that_cannot_be_opened_is_a_sentence(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(FerryError, match="cannot be used"):
        Spool(path)
    with pytest.raises(FerryError, match="cannot be used"):
        Spool(path.parent / "file" / "spool.db" if (path.parent / "file").write_text("") else path)
