"""A user's mistakes: one sentence and exit code 2, never a stack trace. And every help page."""

from pathlib import Path
from typing import Any

import pytest
import typer.main

from sessionferry.cli import app
from support.commands import CommandServer
from support.stack import Ferry

GROUP: Any = typer.main.get_command(app)
COMMANDS = [
    f"{name} {inner}".strip()
    for name, command in GROUP.commands.items()
    for inner in getattr(command, "commands", [""])
]


@pytest.fixture
def alone(tmp_path: Path, server: CommandServer) -> Ferry:
    """The command on a machine where nothing runs."""
    return Ferry(tmp_path / "home", server=server)


def sentence(ferry: Ferry, *arguments: object, code: int = 2) -> str:
    """The one sentence on standard error."""
    ran = ferry.run(*arguments, code=code)
    assert ran.stdout == ""
    assert ran.stderr.startswith("ferry: ")
    assert ran.stderr.count("\n") == 1
    return ran.stderr


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"event": "tool:pre"}\n')
    return path


def test_a_missing_path(alone: Ferry, tmp_path: Path) -> None:
    for command in ("ship", "verify"):
        said = sentence(alone, command, tmp_path / "nowhere")
        assert said == f"ferry: There is no file or folder {tmp_path / 'nowhere'}.\n"


def test_no_amplifier_folder(alone: Ferry) -> None:
    assert "No tool has sessions" in sentence(alone, "ship")
    assert "No tool has sessions" in sentence(alone, "verify")


def test_nothing_to_ship(alone: Ferry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = sentence(alone, "ship", tmp_path / "empty")
    assert "no sessions of Amplifier, Claude Code or Codex below" in said
    said = sentence(alone, "ship", tmp_path / "empty", "--format", "jsonl")
    assert "no .jsonl files below" in said


def test_two_files_that_would_be_one_stream(alone: Ferry, tmp_path: Path) -> None:
    for machine in ("a", "b"):
        write(tmp_path / machine / "projects" / "-p" / "sessions" / "same" / "events.jsonl")
    ran = alone.run("ship", tmp_path / "a", tmp_path / "b", "--dry-run", code=1)
    assert "Would ship 1 lines" in ran.stdout
    twin = tmp_path / "b" / "projects" / "-p" / "sessions" / "same" / "events.jsonl"
    assert f"not shipped: {twin}: it is the same stream as {tmp_path / 'a'}" in ran.stderr


def test_no_stack_and_no_settings(alone: Ferry, tmp_path: Path) -> None:
    write(tmp_path / "s" / "events.jsonl")
    for command in (
        ("ship", tmp_path / "s"),
        ("verify", tmp_path / "s"),
        ("sessions",),
        ("show", "any"),
        ("export", "any", "--to", tmp_path / "back"),
        ("migrate",),
    ):
        assert "Start one with `ferry local`" in sentence(alone, *command)


def test_incomplete_and_wrong_settings(alone: Ferry, tmp_path: Path) -> None:
    session = write(tmp_path / "s" / "events.jsonl")
    some = Ferry(alone.home, environment={"ServiceBusConnection": "nonsense"})
    assert "is missing" in sentence(some, "ship", session)
    places = {
        "FERRY_STORE": f"sqlite:///{tmp_path / 'store.db'}",
        "FERRY_ARCHIVE": (tmp_path / "archive").as_uri(),
        "FERRY_INBOX": (tmp_path / "inbox").as_uri(),
    }
    nonsense = {**places, "ServiceBusConnection": "nonsense"}
    said = sentence(Ferry(alone.home, environment=nonsense), "ship", session)
    assert said == "ferry: ServiceBusConnection is not a connection string.\n"
    wrong = Ferry(alone.home, environment={**places, "FERRY_STORE": "mysql://secret@host/db"})
    assert "secret" not in sentence(wrong, "sessions")


def test_a_user_id_that_is_too_long(tmp_path: Path) -> None:
    session = write(tmp_path / "s" / "events.jsonl")
    bad = Ferry(tmp_path / "home", user="x" * 2000)
    assert "user_id" in sentence(bad, "ship", session)


@pytest.mark.parametrize("arguments", [("shipp",), ("ship", "--nope"), ("show",), ("export", "x")])
def test_wrong_usage(alone: Ferry, arguments: tuple[str, ...]) -> None:
    ran = alone.run(*arguments, code=2)
    assert "Usage: " in ran.stderr


def test_simulate_keeps_its_hands_off_a_full_folder(alone: Ferry, tmp_path: Path) -> None:
    write(tmp_path / "full" / "mine.txt")
    assert "is not empty" in sentence(alone, "simulate", tmp_path / "full")
    assert "is not empty" in sentence(alone, "demo", "--keep", tmp_path / "full")


def test_a_data_folder_that_is_a_file(alone: Ferry, tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    assert "cannot be used" in sentence(alone, "local", "--data", path)


def test_help_names_every_command(alone: Ferry) -> None:
    said = alone.run("--help").stdout
    assert all(name.split()[0] in said for name in COMMANDS)
    assert alone.run("--version").stdout.startswith("sessionferry ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_has_an_example(alone: Ferry, command: str) -> None:
    said = alone.run(*command.split(), "--help").stdout
    assert "Example" in said
    assert f"ferry {command}" in said.partition("Example")[2]
