"""Runs many `ferry` commands, each in a process of its own, but imports the program only once.

Half a test's time went into imports. `python commands.py` is the server: it forks for each request
that it reads.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn


class CommandServer:
    """`run` is like `subprocess.run` of a command, with its output in a file, not a terminal."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, seconds: float
    ) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            request = [arguments, dict(environment), str(folder), str(out), str(err)]
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            if not ready:
                self.close()
                raise AssertionError(f"ferry {' '.join(arguments)} took over {seconds} s")
            return int(process.stdout.readline()), out.read_bytes(), err.read_bytes()

    def close(self) -> None:
        """End the server, and a command that hangs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve() -> None:
    """Fork for each request on standard input; answer with the exit code."""
    import sessionferry.cli
    import sessionferry.publisher
    import sessionferry.store.sql  # noqa: F401 - imported for the commands to come

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _command(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(arguments: list[str], environment: dict[str, Any], *places: str) -> NoReturn:
    from sessionferry.cli import main

    folder, out, err = places
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ferry", *arguments]
    code: Any = 1
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
