"""Session files are opened so that the tools they belong to can go on."""

import re
from pathlib import Path

import pytest

import sessionferry
from sessionferry.agent.opening import (
    MAX_WINDOWS_CHARS,
    extended,
    open_shared,
    snapshot,
    unextended,
    usual_folder,
)

SOURCE = Path(sessionferry.__file__).parent


def test_an_open_file_can_be_written_renamed_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "session.jsonl"
    path.write_bytes(b"1\r\n\x1a2\n")
    with open_shared(path) as file:
        assert file.readline() == b"1\r\n"
        with path.open("ab") as tool:
            tool.write(b"3\n")
        moved = path.rename(tmp_path / "moved.jsonl")
        path.write_bytes(b"new\n")
        moved.unlink()
        assert file.read() == b"\x1a2\n3\n"
    assert path.read_bytes() == b"new\n"


def test_what_may_be_replaced_can_be_once_there_is_a_snapshot(tmp_path: Path) -> None:
    path, other = tmp_path / "transcript.jsonl", tmp_path / "new"
    path.write_bytes(b"1\n")
    other.write_bytes(b"2\n")
    with open_shared(path) as file:
        content = snapshot(file, 2)
        other.replace(path)
        assert content.read() == b"1\n"
    assert path.read_bytes() == b"2\n"


def test_a_file_that_is_not_there_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("gone.jsonl")):
        open_shared(tmp_path / "gone.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises((IsADirectoryError, PermissionError)):
        open_shared(tmp_path)


@pytest.mark.parametrize(
    ("path", "written"),
    [
        (r"C:\Users\me\a.jsonl", r"\\?\C:\Users\me\a.jsonl"),
        (r"\\server\share\a.jsonl", r"\\?\UNC\server\share\a.jsonl"),
        (r"\\?\C:\a.jsonl", r"\\?\C:\a.jsonl"),
    ],
)
def test_a_windows_path_may_be_longer_than_260_characters(path: str, written: str) -> None:
    assert extended(path) == written
    assert unextended(written) == path.removeprefix("\\\\?\\")


@pytest.mark.parametrize(
    ("walked", "length", "named"),
    [
        ("\\\\?\\C:\\a", 20, "C:\\a"),
        ("\\\\?\\C:\\a", MAX_WINDOWS_CHARS - len("C:\\a\\"), "C:\\a"),
        ("\\\\?\\C:\\a", MAX_WINDOWS_CHARS - len("C:\\a\\") + 1, "\\\\?\\C:\\a"),
        ("\\\\?\\UNC\\server\\share", 20, "\\\\server\\share"),
        ("/srv/app", 300, "/srv/app"),
    ],
)
def test_a_folder_keeps_the_longer_form_only_for_names_that_need_it(
    walked: str, length: int, named: str
) -> None:
    assert usual_folder(walked, ["a", "x" * length]) == Path(named)


def test_all_of_the_agent_opens_files_for_reading_so() -> None:
    readers = [*(SOURCE / "agent").rglob("*.py"), SOURCE / "verification.py"]
    plain = re.compile(r"""(?<!_)\bopen\((?!\))[^)]*["']rb["']""")
    found = [path.name for path in readers if plain.search(path.read_text(encoding="utf-8"))]
    assert found == ["opening.py"]
