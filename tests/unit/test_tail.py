"""When files are read: soon after a change, at once when much waits, and once more when quiet."""

import os
from pathlib import Path

import pytest

from sessionferry.agent.discover import Source
from sessionferry.agent.tail import RETRY_SECONDS, Due, Followed, Seen, Tail, Timing
from sessionferry.identity import SessionKey

TIMING = Timing(live_seconds=30, live_bytes=1000, quiet_seconds=300)
LONG_AGO = 1_700_000_000


def source(path: Path, role: str = "events") -> Source:
    key = SessionKey("user-123", "p", path.parent.name)
    return Source(path, key, role, "amplifier")  # type: ignore[arg-type]


def seen(size: int, *, inode: int = 1, modified: int = 0) -> Seen:
    return Seen((1, inode), size, modified or size)


@pytest.fixture
def followed() -> Followed:
    one = Followed(source(Path("/s/events.jsonl")))
    one.notice(seen(100), 0, TIMING)
    one.done(seen(100), 30)
    one.quiet_at = None
    return one


def test_a_change_is_due_after_a_while_and_further_changes_do_not_put_it_off(
    followed: Followed,
) -> None:
    assert followed.notice(seen(200), 100, TIMING)
    assert not followed.notice(seen(200), 110, TIMING)
    assert followed.notice(seen(300), 120, TIMING)
    assert not followed.is_due(129)
    assert followed.is_due(130)
    assert followed.next_time() == 130


def test_much_is_due_at_once_by_what_it_will_compress_to(followed: Followed) -> None:
    followed.ratio = 10
    followed.notice(seen(100 + 9999), 100, TIMING)
    assert not followed.is_due(100)
    followed.notice(seen(100 + 10_000), 101, TIMING)
    assert followed.is_due(101)


@pytest.mark.parametrize("now_there", [seen(5000, inode=2), seen(50, modified=5)])
def test_of_a_file_that_was_replaced_or_cut_all_waits(followed: Followed, now_there: Seen) -> None:
    followed.ratio = 1
    timing = TIMING._replace(live_bytes=50)
    followed.notice(now_there, 100, timing)
    assert followed.is_due(100)


def test_a_quiet_file_is_due_once_more(followed: Followed) -> None:
    followed.notice(seen(200), 100, TIMING)
    followed.done(seen(200), 130)
    assert not followed.is_due(399)
    assert followed.is_due(400)
    followed.begun_at = 400
    followed.done(seen(200), 400)
    assert followed.next_time() is None


def test_a_reading_that_began_before_the_file_was_quiet_does_not_count_as_the_last(
    followed: Followed,
) -> None:
    followed.notice(seen(200), 100, TIMING)
    followed.begun_at = 399
    followed.done(seen(200), 500)
    assert followed.is_due(500)


def test_a_file_that_could_not_be_read_is_tried_again(followed: Followed) -> None:
    followed.notice(seen(200), 100, TIMING)
    followed.begun_at = 500
    followed.done(seen(100), 500, failed=True)
    assert followed.next_time() == 500 + RETRY_SECONDS


# ------------------------------------------------------------ the file system


class Folder:
    """Sessions on disk, a clock that is set by hand, and a tail."""

    def __init__(self, folder: Path, *, newest_first: bool = False) -> None:
        self.folder = folder
        self.now = 1000.0
        self.tail = Tail(self.look, TIMING, newest_first=newest_first, clock=lambda: self.now)

    def look(self) -> list[Source]:
        paths = sorted(self.folder.glob("*/*.jsonl"))
        return [source(path, path.stem) for path in paths]

    def write(self, session: str, content: bytes, name: str = "events", day: int = 0) -> Path:
        path = self.folder / session / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        time = LONG_AGO + day * 86_400
        os.utime(path, (time, time))
        return path

    def due(self) -> list[str]:
        """Sessions that are due, and read now."""
        found = self.tail.due()
        for one in found:
            self.tail.done(one.source, None)
        return [one.source.key.session_id for one in found]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_is_there_at_the_start_is_due_at_once_and_what_comes_later_after_a_while(
    folder: Folder,
) -> None:
    folder.write("a", b"1\n")
    folder.tail.scan()
    assert folder.due() == ["a"]
    folder.write("b", b"1\n")
    folder.tail.scan()
    assert folder.due() == []
    folder.now += 30
    assert folder.due() == ["b"]
    assert len(folder.tail) == 2


def test_a_path_that_is_not_known_asks_for_a_scan(folder: Folder) -> None:
    path = folder.write("a", b"1\n")
    assert folder.tail.changed([path])
    folder.tail.scan()
    assert not folder.tail.changed([path])


def test_newest_days_come_first_and_a_days_files_keep_their_order(tmp_path: Path) -> None:
    folder = Folder(tmp_path, newest_first=True)
    for day, session in ((0, "a"), (2, "b"), (1, "c"), (2, "d")):
        folder.write(session, b"1\n", day=day)
    folder.tail.scan()
    assert folder.due() == ["b", "d", "c", "a"]


def test_a_file_that_changed_is_held_open_until_it_was_read(folder: Folder) -> None:
    path = folder.write("a", b"1\n")
    folder.tail.scan()
    folder.due()
    folder.write("a", b"1\n2\n", day=1)
    folder.tail.changed([path])
    path.rename(path.with_suffix(".old"))
    folder.write("a", b"new\n", day=2)
    folder.now += 30
    old, new = folder.tail.due()
    assert old.content is not None
    assert (old.content.read(), new) == (b"1\n2\n", Due(new.source, None))
    folder.tail.done(old.source, None)
    assert old.content.closed


def test_a_rewritable_file_is_read_by_its_name_alone(folder: Folder) -> None:
    path = folder.write("a", b"1\n", "transcript")
    folder.tail.scan()
    folder.due()
    folder.write("a", b"1\n2\n", "transcript", day=1)
    folder.tail.changed([path])
    path.unlink()
    folder.write("a", b"new\n", "transcript", day=2)
    folder.now += 30
    (only,) = folder.tail.due()
    assert only.content is None
    folder.tail.close()


def test_a_deleted_file_is_read_to_its_end_and_then_forgotten(folder: Folder) -> None:
    path = folder.write("a", b"1\n")
    folder.tail.scan()
    folder.due()
    folder.write("a", b"1\n2\n", day=1)
    folder.tail.changed([path])
    path.unlink()
    folder.tail.scan()
    (last,) = folder.tail.due()
    assert last.content is not None
    assert last.content.read() == b"1\n2\n"
    folder.tail.done(last.source, None)
    folder.tail.scan()
    assert len(folder.tail) == 0
    assert folder.tail.next_time() is None
