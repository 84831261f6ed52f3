"""The embedded stack: broker and Functions host as supervised processes over one data folder.

DATA/            0700
  local.json     what to connect to (0600: it holds the queue's key)
  key.json       the queue's shared access key, made once
  queues.json    queue definitions, in Bicep's words; made once, then yours to edit
  broker/        messages        store.db   documents
  archive/       batches         inbox/     batches too large for a message
  logs/          one file per process
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sessionferry
from sessionferry.errors import TransientError, UserError
from sessionferry.locking import Lock
from sessionferry.settings import LOCK_FILE, LocalStack, Settings
from sessionferry.stopping import on_stop
from sessionferry.store.cosmos.access import SCHEMES, access

log = logging.getLogger(__name__)


def _deployed_queue() -> dict[str, Any]:
    """The options of the queue that infra/ deploys."""
    text = resources.files("sessionferry").joinpath("queues.json").read_text(encoding="utf-8")
    (definition,) = json.loads(text)["queues"]
    return {option: value for option, value in definition.items() if option != "name"}


# Shorter than in Azure: after a crash a person at the machine waits for the locks to end.
QUEUE_OPTIONS = _deployed_queue() | {"lockDuration": "PT1M"}
KEY_NAME = "ferry-local"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
_LONGEST_WAIT = 10.0


@dataclass(slots=True)
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    async def start(self, log_folder: Path) -> dict[str, Any]:
        """Start, and return the line that says it is ready; raises `TransientError`."""
        with (log_folder / f"{self.name}.log").open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                # The child ends when this pipe does: it never outlives its supervisor.
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=os.environ | self.environment | {"FERRY_SUPERVISED": "1"},
                # Ctrl-C reaches the supervisor alone, which stops its children in order.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        stdout = self.process.stdout
        try:
            line = await asyncio.wait_for(stdout.readline(), START_SECONDS) if stdout else b""
            ready: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError):
            await self.stop()
            last = _last_line(log_folder / f"{self.name}.log")
            raise TransientError(f"The {self.name} did not start: {last}") from None
        return ready

    async def stop(self) -> None:
        """Ask the process to end; end it after `STOP_SECONDS`."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


class Stack:
    """The stack of one data folder. `start`, then `supervise` until stopped, then `stop`."""

    def __init__(self, settings: Settings, *, port: int = 0) -> None:
        self.data = settings.data.absolute()
        self._settings = settings
        self._asked_port = port
        self._port = port
        self._lock: Lock | None = None
        self._broker: Child | None = None
        self._host: Child | None = None
        self._stopping = False
        self.described: LocalStack | None = None

    async def start(self) -> LocalStack:
        """Start both processes; returns once messages can be sent and are taken in."""
        await asyncio.to_thread(self._prepare)
        self._broker = await self._started_broker()
        described = self._describe()
        self._host = Child("functions-host", _host_command(self.data), _environment(described))
        ready = await self._host.start(self.data / "logs")
        described = described.model_copy(update={"http": ready.get("http")})
        await asyncio.to_thread(described.write, self.data)
        self.described = described
        return described

    async def _started_broker(self) -> Child:
        broker = Child("broker", self._broker_command())
        try:
            ready = await broker.start(self.data / "logs")
        except TransientError:
            if self._port == self._asked_port:
                raise
            # The remembered port is taken by now; commands read the new one from local.json.
            self._port = 0
            broker = Child("broker", self._broker_command())
            ready = await broker.start(self.data / "logs")
        self._port = int(ready["port"])
        return broker

    async def supervise(self) -> None:
        """Restart what ends, with growing waits, until cancelled."""
        await asyncio.gather(
            *(self._keep(child) for child in (self._broker, self._host) if child is not None)
        )

    async def stop(self) -> None:
        """Stop the host, which finishes its running invocation, then the broker."""
        self._stopping = True
        for child in (self._host, self._broker):
            if child is not None:
                await child.stop()
        if self._lock is not None:
            self._lock.release()

    async def _keep(self, child: Child) -> None:
        wait = 0.5
        while child.process is not None:
            code = await child.process.wait()
            if self._stopping:
                return
            log.warning("%s ended with %s and is started again", child.name, code)
            await asyncio.sleep(wait)
            try:
                if child is self._broker:
                    child.command = self._broker_command()
                await child.start(self.data / "logs")
                wait = 0.5
            except TransientError as error:
                log.warning("%s", error)
                wait = min(wait * 2, _LONGEST_WAIT)

    # ------------------------------------------------------------ folder

    def _prepare(self) -> None:
        try:
            for folder in (self.data, self.data / "logs", self.data / "broker"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.data.chmod(0o700)
            self._lock = _locked(self.data)
            known = LocalStack.read(self.data)
            self._port = self._port or (known.port if known else 0)
            _write_once(self.data / "key.json", _fresh_key())
            _write_once(self.data / "queues.json", _queues(self._settings.queue))
        except OSError as error:
            raise UserError(f"The data folder {self.data} cannot be used: {error}") from None

    def _broker_command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "sessionferry.local.broker"),
            *("--data", str(self.data / "broker"), "--queues", str(self.data / "queues.json")),
            *("--key-file", str(self.data / "key.json"), "--port", str(self._port)),
        ]

    def _describe(self) -> LocalStack:
        key = json.loads((self.data / "key.json").read_text())
        return LocalStack(
            port=self._port,
            queue=self._settings.queue,
            connection=(
                f"Endpoint=sb://127.0.0.1:{self._port};"
                f"SharedAccessKeyName={key['SharedAccessKeyName']};"
                f"SharedAccessKey={key['SharedAccessKey']};UseDevelopmentEmulator=true;"
            ),
            store=self._store_url(),
            archive=self._settings.archive or (self.data / "archive").as_uri(),
            inbox=self._settings.inbox or (self.data / "inbox").as_uri(),
        )

    def _store_url(self) -> str:
        named = self._settings.store
        if named is None:
            return f"sqlite:///{self.data / 'store.db'}"
        url = named.get_secret_value()
        # Written out, so that commands find it whose environment names no account.
        return access(url, self._settings).url if urlsplit(url).scheme in SCHEMES else url


async def run(settings: Settings, port: int, on_ready: Callable[[LocalStack], None]) -> None:
    """Run the stack until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    on_stop(stop.set)
    stack = Stack(settings, port=port)
    try:
        on_ready(await stack.start())
        supervision = asyncio.create_task(stack.supervise())
        await stop.wait()
        supervision.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervision
    finally:
        await stack.stop()


def app_folder() -> Path:
    """Return the folder of function_app.py: beside the sources, or where a wheel puts it."""
    beside = Path(sessionferry.__file__).resolve().parents[2]
    installed = Path(sysconfig.get_path("data")) / "share" / "sessionferry"
    for folder in (beside, installed):
        if (folder / "function_app.py").is_file() and (folder / "host.json").is_file():
            return folder
    raise UserError("function_app.py was not installed with this program; install it again.")


def _host_command(data: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "sessionferry.local.functions_host"),
        *("--app", str(app_folder()), "--state", str(data / "timers")),
    ]


def _environment(stack: LocalStack) -> dict[str, str]:
    return {
        "ServiceBusConnection": stack.connection,
        "FERRY_QUEUE": stack.queue,
        "FERRY_STORE": stack.store,
        "FERRY_ARCHIVE": stack.archive,
        "FERRY_INBOX": stack.inbox,
    }


def _locked(data: Path) -> Lock:
    lock = Lock(data / LOCK_FILE)
    if not lock.acquire():
        raise UserError(f"Another `ferry local` is running with the data folder {data}.")
    return lock


def _write_once(path: Path, content: dict[str, Any]) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w") as file:
        json.dump(content, file, indent=2)


def _fresh_key() -> dict[str, str]:
    return {"SharedAccessKeyName": KEY_NAME, "SharedAccessKey": secrets.token_urlsafe(32)}


def _queues(name: str) -> dict[str, Any]:
    return {"queues": [{"name": name, **QUEUE_OPTIONS}]}


def _last_line(path: Path) -> str:
    lines: Iterator[str] = reversed(path.read_text(errors="replace").splitlines())
    return next((line for line in lines if line.strip()), "it said nothing")
