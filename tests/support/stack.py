"""The `ferry` command as a user types it, and a `ferry local` of a test's own."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from sessionferry.local.stack import QUEUE_OPTIONS
from sessionferry.settings import DEFAULT_QUEUE, LocalStack
from support.commands import CommandServer

START_SECONDS = 60.0
STOP_SECONDS = 40.0
_MODULES = {"broker": "sessionferry.local.broker", "host": "sessionferry.local.functions_host"}


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Ferry:
    """Runs `ferry` with a home, data folder, identity and user that are nobody else's."""

    def __init__(
        self,
        home: Path,
        *,
        data: Path | None = None,
        user: str | None = "mara",
        environment: Mapping[str, str] | None = None,
        server: CommandServer | None = None,
    ) -> None:
        self.home = home
        self._server = server
        self.data = data or home / "data"
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not _is_setting(name)},
            "HOME": str(home),
            "XDG_DATA_HOME": str(home / "xdg-data"),
            "XDG_CONFIG_HOME": str(home / "xdg-config"),
            "FERRY_DATA": str(self.data),
            "FERRY_IDENTITY": str(home / "identity"),
            **({"FERRY_USER_ID": user} if user else {}),
            **(environment or {}),
        }

    def start(self, *arguments: object, stderr: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own, so that only it gets the test's signals."""
        with (stderr or self.home / "stderr.log").open("ab") as log:
            return subprocess.Popen(
                _command(arguments),
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *arguments: object, code: int | None = 0, seconds: float = 120.0) -> Ran:
        """Run a command in a pipe; whatever it says, it shows no stack trace and no colours."""
        ran = self._run(arguments, seconds)
        said = f"ferry {' '.join(map(str, arguments))}: exit code {ran.code}\n{ran.output}"
        assert code is None or ran.code == code, said
        assert "Traceback" not in ran.output, said
        assert "\x1b" not in ran.output, said
        assert "\r" not in ran.stderr, said
        return ran

    def _run(self, arguments: tuple[object, ...], seconds: float) -> Ran:
        if self._server is not None:
            words = [str(argument) for argument in arguments]
            code, out, err = self._server.run(words, self.environment, self.home, seconds)
            return Ran(code, out.decode(), err.decode())
        done = subprocess.run(
            _command(arguments),
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def verify(self, *arguments: object, code: int | None = None) -> list[dict[str, Any]]:
        """Compare files with what is stored."""
        return list(self.run("verify", *arguments, "--json", code=code).json)

    def wait(self, *arguments: object, seconds: float = 90.0) -> list[dict[str, Any]]:
        """Wait until every file is stored completely; returns the last findings."""
        until = time.monotonic() + seconds
        while True:
            findings = self.verify(*arguments)
            wrong = [found for found in findings if found["verdict"] != "ok"]
            if not wrong:
                return findings
            assert time.monotonic() < until, wrong
            time.sleep(0.3)


class RunningStack:
    """`with RunningStack(folder) as stack: stack.ferry("mara").run("sessions")`."""

    def __init__(
        self,
        folder: Path,
        *,
        lock: str = QUEUE_OPTIONS["lockDuration"],
        store: str | None = None,
    ) -> None:
        named = {"FERRY_STORE": store} if store else {}
        self.owner = Ferry(folder, user=None, environment=named)
        self.data = self.owner.data
        self.process: subprocess.Popen[bytes] | None = None
        self._pids: set[int] = set()
        self.data.mkdir(parents=True, mode=0o700)
        queue = {"name": DEFAULT_QUEUE, **QUEUE_OPTIONS, "lockDuration": lock}
        (self.data / "queues.json").write_text(json.dumps({"queues": [queue]}))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def described(self) -> LocalStack:
        stack = LocalStack.read(self.data)
        assert stack is not None
        return stack

    def ferry(
        self, user: str, home: Path | None = None, server: CommandServer | None = None
    ) -> Ferry:
        """The command as another user of this stack types it."""
        folder = home or self.owner.home / "homes" / user
        return Ferry(folder, data=self.data, user=user, server=server)

    def start(self) -> str:
        """Start, and return what it says once it is ready."""
        log = self.data.parent / "local.log"
        self.process = self.owner.start("local", "--data", self.data, stderr=log)
        said = b""
        until = time.monotonic() + START_SECONDS
        assert self.process.stdout is not None
        while b"ferry verify" not in said:
            ready, _, _ = select.select([self.process.stdout], [], [], until - time.monotonic())
            chunk = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not chunk:
                self.stop()
                raise AssertionError(f"`ferry local` did not start:\n{log.read_text()}")
            said += chunk
        assert said.startswith(b"Ready."), said
        return said.decode()

    def child(self, name: str, *, other_than: int = 0) -> int:
        """The process id of `broker` or `host`; waits for a new one after a kill."""
        assert self.process is not None
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            for process in psutil.Process(self.process.pid).children():
                try:
                    arguments = process.cmdline()
                except psutil.Error:
                    continue
                if _MODULES[name] in arguments and process.pid != other_than:
                    self._pids.add(process.pid)
                    return process.pid
            time.sleep(0.05)
        raise AssertionError(f"There is no {name}.")

    def kill(self, name: str) -> int:
        """End the broker or the host as a power cut does; its process id."""
        pid = self.child(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Stop as Ctrl-C does; exit code, and the last words."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        if process.stdout.closed:
            return process.returncode, ""
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                self._pids.add(child.pid)
            process.send_signal(number)
        try:
            code = process.wait(timeout=STOP_SECONDS)
            return code, process.stdout.read().decode()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()

    def orphans(self) -> list[int]:
        """The stack's processes that still run."""
        return [pid for pid in self._pids if _is_alive(pid)]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Leave no process behind, whatever happens."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "sessionferry.cli", *map(str, arguments)]


def _is_setting(name: str) -> bool:
    return name.startswith(("FERRY_", "ServiceBus", "AZURE_", "AMPLIFIER_", "XDG_"))


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
