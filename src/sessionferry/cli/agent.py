"""`ferry agent`: the agent's configuration, its life as a service, and its log."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import typer

from sessionferry.cli.output import DataOption, JsonOption, printable, settings
from sessionferry.config import example
from sessionferry.errors import FerryError, UserError
from sessionferry.host import redaction_key
from sessionferry.settings import Settings, config_path, endpoints
from sessionferry.sharing import patiently

if TYPE_CHECKING:
    from sessionferry.agent.service import Plan, System

FOLLOW_SECONDS = 0.5
COMMAND_SECONDS = 60

app = typer.Typer(
    name="agent",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The agent that runs in the background: its configuration, its service, its log.",
)


@app.command("config")
def config(
    init: bool = typer.Option(False, "--init", help="Write a commented example, if there is none."),
    data: Path | None = DataOption,
) -> None:
    """Check the configuration file and say what it means; or begin one.

    Examples: ferry agent config --init; ferry agent config
    """
    path = _begin() if init else None
    chosen = settings(data)
    path = path or chosen.config_path
    found = chosen.file()
    rules = _checked_rules(chosen)
    if not path.exists():
        typer.echo(f"There is no {path}: every file is sent as it is.")
        typer.echo("`ferry agent config --init` writes one.")
        return
    typer.echo(f"{path} is right.")
    typer.echo(f"redaction  {'on' if found.redact.enabled else 'off'}")
    typer.echo(f"rules      {rules or 'none: what is read is sent as it is'}")


@app.command("install")
def install(
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the file and the commands only."),
    data: Path | None = DataOption,
) -> None:
    """Install `ferry ship --watch` as a service of yours: it starts now, and when you log in.

    A systemd user unit on Linux, a launchd agent on macOS, a scheduled task on Windows.

    Example: ferry agent install
    """
    from sessionferry.agent.environment import for_service

    chosen = settings(data)
    # What is wrong is better said here than in the log of a service that does not start.
    endpoints(chosen)
    _checked_rules(chosen)
    made = _plan(for_service(chosen, os.environ))
    if dry_run:
        _show(made)
        return
    path = Path(made.file)
    before = path.read_bytes() if path.exists() else None
    _write(path, made.content)
    _failures(made.end)
    try:
        for command in made.start:
            _run(command)
    except FerryError:
        if before is not None:
            _write(path, before)
            _failures(made.start)
        else:
            _failures(made.stop)
            patiently(path.unlink)
        raise
    typer.echo(f"Installed {made.file}. {made.hint}")
    typer.echo("`ferry status` and `ferry agent logs` show what it does.")


@app.command("uninstall")
def uninstall() -> None:
    """Stop the service and remove it; the spool, the identity and the configuration stay.

    Example: ferry agent uninstall
    """
    made = _plan({})
    path = Path(made.file)
    if not path.exists():
        raise UserError(f"There is no {path}: the agent is not installed.")
    _failures(made.end)
    failed = _failures(made.stop)
    patiently(path.unlink)
    _failures(made.forget)
    typer.echo(f"Removed {path}. What waits in the spool stays there.")
    if failed:
        raise FerryError(f"{failed[0]} If the agent still runs, end its process.")


@app.command("logs")
def logs(
    lines: int = typer.Option(50, "--lines", min=1, max=100_000, help="So many of the newest."),
    follow: bool = typer.Option(False, "--follow", help="Go on until Ctrl-C."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Show the log of the agent in the background.

    Examples: ferry agent logs; ferry agent logs --follow
    """
    from sessionferry.agent import logs as agent_logs

    folder = log_folder(settings(data))

    def show(line: dict[str, object]) -> None:
        typer.echo(orjson.dumps(line).decode() if as_json else agent_logs.sentence(line))

    newer = agent_logs.follow(folder)
    if follow:
        # Where it goes on is settled before the old lines are read: none is missed.
        next(newer)
    elif not folder.exists():
        raise UserError(f"There is no {folder}: the agent has not run in the background yet.")
    for line in agent_logs.last(folder, lines):
        show(line)
    while follow:
        fresh = next(newer)
        if fresh is None:
            time.sleep(FOLLOW_SECONDS)
        else:
            show(fresh)


@app.command("restate")
def restate(data: Path | None = DataOption) -> None:
    """Say again how much of every file was sent, without sending it: the store was restored.

    Example: ferry agent restate
    """
    from sessionferry.agent.spool import Spool, SpoolLock
    from sessionferry.cli.ship import spool_path

    chosen = settings(data)
    path = spool_path(chosen, endpoints(chosen))
    if not path.exists():
        raise UserError("Nothing was shipped from here yet.")
    spool = Spool(path, check=False)
    try:
        spool.state_anew()
    finally:
        spool.close()
    when = "within half an hour" if SpoolLock(path).is_held() else "with the next `ferry ship`"
    typer.echo(f"What was sent is stated again {when}; `ferry reconcile` says what is missing.")


def _checked_rules(chosen: Settings) -> str:
    """Name the rules of the configuration; raises `UserError` for wrong ones."""
    from sessionferry.agent.policy import Policy

    return Policy.of(chosen.file(), lambda: redaction_key(chosen.identity)).rules


def log_folder(chosen: Settings) -> Path:
    """Return where the agent in the background writes its log."""
    return chosen.data / "agent" / "log"


def _begin() -> Path:
    """Write the example; a file that is there already stays, right or wrong."""
    path = config_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("x", encoding="utf-8") as file:
            file.write(example())
        path.chmod(0o600)
    except FileExistsError:
        raise UserError(f"{path} exists already; it stays as it is.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    typer.echo(f"Wrote {path}.")
    return path


def _plan(environment: dict[str, str]) -> "Plan":
    from sessionferry.agent.service import plan

    systems: dict[str, System] = {"linux": "linux", "darwin": "darwin", "win32": "win32"}
    if sys.platform not in systems:
        raise UserError("Services are installed on Linux (systemd), macOS and Windows only.")
    program = (str(_python()), "ship", "--watch")
    return plan(systems[sys.platform], Path.home(), program, environment, _user())


def _python() -> Path:
    """Return the interpreter for a process in the background: on Windows one without a window."""
    python = Path(sys.executable)
    without_window = python.with_name("pythonw.exe")
    return without_window if sys.platform == "win32" and without_window.exists() else python


def _user() -> str:
    """Return what the system calls this user: a number, or on Windows a security id."""
    if sys.platform != "win32":
        return str(os.getuid())
    else:  # noqa: RET505 - mypy reads only its own platform's branch
        # Names have more than one spelling there: of a domain, of a cloud account.
        told = _run(("whoami", "/user", "/fo", "csv", "/nh"))
        return told.strip().rpartition(",")[2].strip('"')


def _show(made: "Plan") -> None:
    is_wide = made.content.startswith(b"\xff\xfe")
    typer.echo(f"# {made.file}\n{made.content.decode('utf-16' if is_wide else 'utf-8')}")
    for command in (*made.end, *made.start):
        typer.echo(f"$ {' '.join(command)}")


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_bytes(content)
        patiently(lambda: fresh.replace(path))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None


def _failures(commands: "tuple[tuple[str, ...], ...]") -> list[str]:
    """Run all commands, whatever becomes of each; return what those said that failed."""
    failed = []
    for command in commands:
        try:
            _run(command)
        except FerryError as error:
            failed.append(str(error))
    return failed


def _run(command: tuple[str, ...]) -> str:
    """Run a command and return what it says; raises `FerryError` for one that fails."""
    line = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603 - made by `plan`
            command, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not on this machine; `ferry agent install --dry-run` shows what to "
            "set up by hand."
        ) from None
    except subprocess.TimeoutExpired:
        raise FerryError(f"`{line}` did not end within {COMMAND_SECONDS} s.") from None
    if done.returncode:
        said = printable((done.stderr or done.stdout).strip().split("\n", 1)[0])
        raise FerryError(f"`{line}` failed: {said or f'exit code {done.returncode}'}")
    return done.stdout
