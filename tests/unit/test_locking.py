"""A lock is held by one process, for as long as it lives."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sessionferry.locking import Lock, is_held

HOLDER = """
import sys
from pathlib import Path
from sessionferry.locking import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_free_as_soon_as_that_is_killed(path: Path) -> None:
    with another_process(path) as other:
        assert is_held(path)
        assert not Lock(path).acquire()
        other.kill()
        other.wait()
        assert not is_held(path)
        assert Lock(path).acquire()


def test_within_one_process_too_it_is_held_once(path: Path) -> None:
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire(0)
    first.release()
    assert second.acquire(0)
    second.release()


def test_who_asks_makes_no_file_and_leaves_one_that_is_there(path: Path) -> None:
    assert not is_held(path)
    assert not path.exists()
    path.write_bytes(b"as it was")
    assert not is_held(path)
    assert path.read_bytes() == b"as it was"


def test_who_asks_keeps_nobody_from_taking_it(path: Path) -> None:
    path.touch()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.001):
            is_held(path)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(20):
            lock = Lock(path)
            assert lock.acquire()
            lock.release()
    finally:
        is_over.set()
        for thread in asking:
            thread.join()


def test_where_there_can_be_no_lock_that_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Lock(tmp_path / "file" / "lock").acquire()
