"""What Windows refuses while a file is open is tried again; elsewhere a refusal is one."""

import sys
from pathlib import Path

import pytest

from sessionferry.sharing import patiently


class Busy:
    """A file that others have open for the first attempts."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.attempts = 0

    def read(self) -> bytes:
        self.attempts += 1
        if self.attempts <= self.times:
            raise PermissionError(13, "The file is used by another process")
        return b"content"


def test_on_windows_a_refusal_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    busy = Busy(3)
    assert patiently(busy.read) == b"content"
    assert busy.attempts == 4


def test_on_windows_a_lasting_refusal_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    busy = Busy(10**9)
    with pytest.raises(PermissionError, match="another process"):
        patiently(busy.read)
    assert busy.attempts > 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses for a moment only")
def test_elsewhere_a_refusal_is_told_at_once() -> None:
    busy = Busy(1)
    with pytest.raises(PermissionError):
        patiently(busy.read)
    assert busy.attempts == 1


def test_a_file_that_is_not_there_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(FileNotFoundError):
        patiently((tmp_path / "gone").read_bytes)
