"""The runbooks are walked through on a local stack: a fault is made, and their commands end it."""

import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient

from support.broker import RunningBroker, forget_leaked_sockets
from support.commands import CommandServer
from support.hosting import RunningHost
from support.stack import Ferry, RunningStack

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = b'{"event": "tool:pre", "ts": "2026-07-01T00:00:00Z"}\n'


def commands(page: str) -> list[str]:
    """Return the `ferry` commands of a runbook, in order."""
    text = (RUNBOOKS / f"{page}.md").read_text(encoding="utf-8")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("ferry ")]


def follow(ferry: Ferry, page: str, **places: object) -> list[str]:
    """Run a runbook's commands, placeholders filled in; each must know what it is asked."""
    said = []
    for command in commands(page):
        words = [str(places.get(word, word)) for word in shlex.split(command)[1:]]
        ran = ferry.run(*words, code=None)
        assert ran.code in {0, 3}, f"{command}: {ran.output}"
        said.append(ran.output)
    assert said, f"{page} has no command"
    return said


def write(ferry: Ferry, session: str, lines: int) -> Path:
    """Write a session of so many lines."""
    folder = ferry.home / ".amplifier" / "projects" / "-p" / "sessions" / session
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.jsonl"
    path.write_bytes(LINE * lines)
    return path


def dead_letter_all(connection: str) -> None:
    """Do to the queue's messages what an outage longer than their time to live does.

    For this reason no timer sends them back in the middle of the test.
    """
    with (
        ServiceBusClient.from_connection_string(connection) as client,
        client.get_queue_receiver("sessions", keep_alive=0, prefetch_count=1) as receiver,
    ):
        while receiver.peek_messages(1, sequence_number=1):
            for message in receiver.receive_messages(10, max_wait_time=5):
                receiver.dead_letter_message(message, reason="TTLExpiredException")


def dead_letters(ferry: Ferry) -> list[dict[str, Any]]:
    """Return the dead letters."""
    return list(ferry.run("dlq", "list", "--json").json)


@pytest.mark.parametrize(
    "page", ["backlog", "oldest-message", "silent-host", "function-errors", "unwatched"]
)
def test_the_commands_of_a_runbook_work(
    stack: RunningStack, ferry: Ferry, tmp_path: Path, page: str
) -> None:
    path = write(ferry, page, 3)
    ferry.run("ship")
    ferry.wait()
    follow(ferry, page, SESSION=page, PATH=path, FOLDER=tmp_path / "out")
    ferry.wait("--bytes")


def test_dead_letters_are_sent_back_and_one_that_was_purged_is_missed(
    tmp_path: Path, server: CommandServer
) -> None:
    with RunningBroker(tmp_path / "broker", [{"name": "sessions"}]) as broker:
        settings = {
            "ServiceBusConnection": broker.connection_string,
            "FERRY_QUEUE": "sessions",
            "FERRY_STORE": f"sqlite:///{tmp_path / 'store.db'}",
            "FERRY_ARCHIVE": (tmp_path / "archive").as_uri(),
            "FERRY_INBOX": (tmp_path / "inbox").as_uri(),
        }
        ferry = Ferry(tmp_path / "home", environment=settings, server=server)
        path = write(ferry, "late", 3)
        ferry.run("ship")
        cut = write(ferry, "cut", 3)
        ferry.run("ship")
        write(ferry, "cut", 5)
        ferry.run("ship")
        dead_letter_all(broker.connection_string)
        first, *_ = letters = dead_letters(ferry)
        assert first["reason"] == "TTLExpiredException"
        lost = [it["number"] for it in letters if (it["session"] or "").endswith("|cut")][-1]
        ferry.run("dlq", "purge", lost, "--yes")
        # The cause has ended: the app runs again.
        with RunningHost.of_sources(tmp_path, settings):
            follow(ferry, "dead-letters", NUMBER=first["number"], PATH=path)
            assert dead_letters(ferry) == []
            ferry.wait(path, "--bytes")
            mend(ferry, cut, tmp_path / "out")
    forget_leaked_sockets()


def mend(ferry: Ferry, cut: Path, folder: Path) -> None:
    """The host and the lines are named that the purged message took away, and sent again."""
    (short,) = until_known(ferry, shortfalls=1)
    (host,) = ferry.run("hosts", "--json").json
    assert (short["host_id"], short["partition_key"]) == (host["host_id"], "mara|-p|cut")
    assert (short["stream"], short["lines"], short["missing"]) == ("events", 5, [[3, 4]])
    follow(ferry, "ledger-out-of-balance", SESSION="cut", PATH=cut, FOLDER=folder)
    ferry.wait("--bytes")
    until_known(ferry, shortfalls=0)
    assert "with the next `ferry ship`" in ferry.run("agent", "restate").stdout
    ferry.run("ship")
    until_known(ferry, shortfalls=0, statements=2)


def until_known(ferry: Ferry, shortfalls: int, statements: int = 0) -> list[dict[str, Any]]:
    """Wait for what hosts said to arrive, and return what does not balance."""
    until = time.monotonic() + 60
    while True:
        found = ferry.run("reconcile", "--unsettled", "--json", code=None).json
        if len(found["shortfalls"]) == shortfalls and found["statements"] >= statements:
            return list(found["shortfalls"])
        assert time.monotonic() < until, found
        time.sleep(0.3)


def test_every_page_has_the_same_parts_and_is_listed() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    for page in sorted(RUNBOOKS.glob("*.md")):
        if page.name == "README.md":
            continue
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Look", "Do", "Over when"], page
        assert f"({page.name})" in index
