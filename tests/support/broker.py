"""Starts the embedded broker as a process of its own, as `ferry local` does."""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

KEY_NAME = "RootManageSharedAccessKey"
KEY = "bm90LWEtc2VjcmV0LW9ubHktZm9yLXRlc3RzLTEyMzQ="
START_SECONDS = 20.0


def connection_string(port: int, *, key_name: str = KEY_NAME, key: str = KEY) -> str:
    """What a client needs to reach a broker on this machine."""
    return (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName={key_name};"
        f"SharedAccessKey={key};UseDevelopmentEmulator=true;"
    )


def forget_leaked_sockets() -> None:
    """The client leaves a socket open when it is refused or its broker dies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class RunningBroker:
    """`with RunningBroker(directory, queues) as broker: broker.connection_string`."""

    def __init__(self, directory: Path, queues: list[dict[str, Any]], *, port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.queue_file = directory / "queues.json"
        self.queue_file.write_text(json.dumps({"queues": queues}))
        self.key_file = directory / "key.json"
        self.key_file.write_text(
            json.dumps({"SharedAccessKeyName": KEY_NAME, "SharedAccessKey": KEY})
        )
        self.key_file.chmod(0o600)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it say nothing meanwhile, with its connections open."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @property
    def connection_string(self) -> str:
        return connection_string(self.port)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "sessionferry.local.broker"),
            *("--data", str(self.directory / "data"), "--queues", str(self.queue_file)),
            *("--key-file", str(self.key_file), "--port", str(self.port)),
        ]

    def start(self) -> None:
        """Start, and return once the broker says that it is ready; a restart keeps the port."""
        with (self.directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.stop()
            raise AssertionError((self.directory / "broker.log").read_text())
        self.port = json.loads(line)["port"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        try:
            return self._process.wait(timeout=10)
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def kill(self) -> None:
        """As a power cut does it: no chance to tidy up."""
        self.stop(signal.SIGKILL)
