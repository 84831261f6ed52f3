"""A Functions host as a process of its own, without the rest of `ferry local`."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


class RunningHost:
    """`with RunningHost(command, folder, settings) as ready: ready["functions"]`."""

    def __init__(self, command: list[str], folder: Path, settings: Mapping[str, str]) -> None:
        self._log = folder / "host.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=dict(settings), cwd=folder, stdout=subprocess.PIPE, stderr=log
            )

    @classmethod
    def of_sources(cls, folder: Path, settings: Mapping[str, str]) -> "RunningHost":
        """Run the app as it lies in this repository."""
        module = [sys.executable, "-m", "sessionferry.local.functions_host"]
        where = ["--app", str(ROOT), "--state", str(folder / "state")]
        return cls([*module, *where], folder, {**os.environ, **settings})

    def __enter__(self) -> dict[str, list[str]]:
        assert self._process.stdout is not None
        waiting, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if waiting else b""
        if not line:
            self.__exit__()
            raise AssertionError(self._log.read_text())
        ready: dict[str, list[str]] = json.loads(line)
        return ready

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()
