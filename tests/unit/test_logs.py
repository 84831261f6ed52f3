"""The agent's log: JSON lines, rotated, without anything that was read."""

import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessionferry.agent import logs
from sessionferry.config import Log

SECRET = "sk-ant-abc"
log = logging.getLogger("sessionferry.agent.test")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is logged into."""
    root, own = logging.getLogger(), logging.getLogger("sessionferry")
    levels = root.level, own.level
    handler = logs.start(tmp_path / "log", Log())
    yield tmp_path / "log"
    root.removeHandler(handler)
    handler.close()
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def test_a_line_has_what_the_caller_said(folder: Path) -> None:
    log.info("sent %d batches", 3, extra={"event": "sent", "batches": 3, "path": Path("/a")})
    log.debug("too fine")
    logging.getLogger("azure").info("not ours")
    logging.getLogger("azure").warning("theirs")
    first, second = logs.last(folder, 10)
    assert first.pop("at").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "sessionferry.agent.test",
        "message": "sent 3 batches",
        "event": "sent",
        "batches": 3,
        "path": "/a",
    }
    assert (second["logger"], second["message"]) == ("azure", "theirs")


def test_the_words_of_an_error_are_left_out(folder: Path) -> None:
    try:
        int(SECRET)
    except ValueError:
        log.exception("a line could not be read")
    text = (folder / logs.FILE_NAME).read_text()
    assert SECRET not in text
    (line,) = logs.last(folder, 1)
    assert line["error"] == "ValueError"
    assert line["from"][-1].startswith("test_the_words_of_an_error_are_left_out:")


def test_only_the_owner_may_read_the_log(folder: Path) -> None:
    log.warning("x")
    assert stat.S_IMODE((folder / logs.FILE_NAME).stat().st_mode) == 0o600


def test_files_are_put_aside_and_read_in_order(tmp_path: Path) -> None:
    root = logging.getLogger()
    handler = logs.start(tmp_path, Log(megabytes=1, files=2))
    try:
        for number in range(4000):
            log.warning("%s", "x" * 900, extra={"number": number})
    finally:
        root.removeHandler(handler)
        handler.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"agent.jsonl", "agent.jsonl.1", "agent.jsonl.2"}
    assert [line["number"] for line in logs.last(tmp_path, 1500)] == list(range(2500, 4000))
    assert all(path.stat().st_size <= 1_000_000 for path in tmp_path.iterdir())


def test_lines_are_followed_through_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / logs.FILE_NAME
    path.write_text('{"message":"old"}\n')
    lines = logs.follow(tmp_path)
    assert next(lines) is None
    with path.open("a") as file:
        file.write('{"message":"a"}\nnot json\n{"mess')
        file.flush()
        assert [next(lines), next(lines)] == [{"message": "a"}, None]
        file.write('age":"b"}\n')
    assert [next(lines), next(lines)] == [{"message": "b"}, None]
    path.rename(tmp_path / "agent.jsonl.1")
    assert next(lines) is None
    path.write_text('{"message":"c"}\n')
    assert [next(lines), next(lines)] == [{"message": "c"}, None]


def test_a_line_becomes_a_sentence() -> None:
    line = {"at": "2026-01-02T03:04:05.678+00:00", "level": "info", "message": "m", "n": 1}
    assert logs.sentence(line) == "2026-01-02 03:04:05  info     m  n=1"


def test_text_that_is_no_unicode_is_written_all_the_same() -> None:
    record = logging.makeLogRecord({"msg": "cannot be read: %s", "args": ("a/\udcff",)})
    assert json.loads(logs.JsonLines().format(record))["message"].endswith("\\udcff")
