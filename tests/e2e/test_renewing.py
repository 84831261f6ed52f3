"""The daemon outlasts what passes, and works by no other configuration than the one that is there.

Its queue cannot be reached: what it read is looked for in the spool.
"""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sessionferry.agent.spool import Spool, SpoolLock
from sessionferry.cli.ship import spool_path
from sessionferry.config import digest
from sessionferry.settings import Settings, endpoints
from support.stack import Ferry, wait_for

NOWHERE = "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=a;SharedAccessKey=YQ=="
LINE = '{"event":"a"}\n'


class Watched:
    """A machine with projects, whose daemon reaches no queue."""

    def __init__(self, folder: Path) -> None:
        self.ferry = Ferry(folder / "home", user="ada")
        self.config = self.ferry.home / "identity" / "agent.toml"
        self.config.parent.mkdir()
        later = datetime.now().astimezone() + timedelta(hours=12)
        self.ferry.environment |= {
            "ServiceBusConnection": NOWHERE,
            "FERRY_INBOX": (folder / "inbox").as_uri(),
            "FERRY_LIVE_SECONDS": "0",
            # Not now: no connection is tried, whose end would have to be waited for.
            "FERRY_HOURS": f"{later:%H}:00-{later:%H}:59",
        }
        own = {"data": self.ferry.data, "identity": self.config.parent, "connection": NOWHERE}
        chosen = Settings.read(**own)
        self.spool = spool_path(chosen, endpoints(chosen))

    @property
    def said(self) -> str:
        return (self.ferry.home / "stderr.log").read_text()

    def write(self, project: str, text: str = LINE) -> None:
        path = self.ferry.home / ".amplifier" / "projects" / project / "sessions" / "s"
        path.mkdir(parents=True, exist_ok=True)
        with (path / "events.jsonl").open("a") as file:
            file.write(text)

    def read(self) -> dict[str, int]:
        """How many lines of each project were read."""
        spool = Spool(self.spool, check=False)
        try:
            return {state.partition_key.split("|")[1]: state.known.lines for state in spool.files()}
        finally:
            spool.close()

    def note(self, name: str) -> dict[str, str]:
        spool = Spool(self.spool, check=False)
        try:
            return spool.notes().get(name) or {}
        finally:
            spool.close()

    def wrong(self) -> str:
        """Why the daemon reads nothing."""
        return self.note("configuration").get("error", "")

    @contextmanager
    def daemon(self) -> Iterator["subprocess.Popen[bytes]"]:
        process = self.ferry.start("ship", "--watch")
        try:
            yield process
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0, self.said
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def machine(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def soon(check: Callable[[], object]) -> bool:
    return wait_for(lambda: bool(check()), seconds=30)


def test_a_changed_configuration_holds_from_the_next_line_on(machine: Watched) -> None:
    machine.write("-open")
    machine.write("-secret")
    with machine.daemon():
        assert soon(lambda: machine.spool.exists() and machine.read() == {"-open": 1, "-secret": 1})
        machine.config.write_text("[filter]\nexclude_projects = ['-secret']\n")
        machine.write("-secret", LINE * 5)
        machine.write("-open")
        assert soon(lambda: machine.note("running").get("configuration") == digest(machine.config))
        assert soon(lambda: machine.read()["-open"] == 2)

        machine.config.write_text("[filter]\nexclude = 7\n")
        machine.write("-open")
        assert soon(lambda: "toml:2: filter.exclude: " in machine.wrong())
        assert "Nothing is read before this is right" in machine.said
        machine.config.unlink()
        machine.write("-secret")
        assert soon(lambda: "agent.toml is gone" in machine.wrong())
        assert "reads nothing since" in machine.ferry.run("status").stdout
        assert machine.read() == {"-open": 2, "-secret": 1}

        machine.config.write_text("[filter]\nexclude_projects = ['-secret']\n[redact]\n")
        assert soon(lambda: machine.read()["-open"] == 3)
        assert machine.read()["-secret"] == 1
        told = machine.ferry.run("status").stdout
        assert "Rules: redaction:1-" in told
        assert "Outside of FERRY_HOURS" in told
    assert machine.note("configuration") == {}


def test_what_another_process_has_or_takes_away_is_waited_for_or_made_anew(
    machine: Watched,
) -> None:
    machine.write("-open")
    port = socket.create_server(("127.0.0.1", 0))
    machine.config.write_text(f"[metrics]\nport = {port.getsockname()[1]}\n")
    other = SpoolLock(machine.spool)
    other.__enter__()
    with port, machine.daemon() as process:
        assert soon(lambda: "Another `ferry ship` is at work" in machine.said)
        assert process.poll() is None
        other.__exit__()
        assert soon(lambda: "metrics.port: " in machine.said)
        assert process.poll() is None
        machine.config.write_text("[metrics]\n")
        assert soon(lambda: machine.spool.exists() and machine.read())
        for path in machine.spool.parent.glob(f"{machine.spool.name}*"):
            path.unlink()
        assert soon(lambda: machine.spool.exists() and machine.read() == {"-open": 1})
        assert "the spool is gone" in machine.said


def test_a_configuration_that_is_wrong_at_the_start_ends_the_daemon(machine: Watched) -> None:
    machine.config.write_text("[filter]\nexclude = 7\n")
    ran = machine.ferry.run("ship", "--watch", code=2)
    assert "agent.toml:2: filter.exclude: there is no such key." in ran.stderr
