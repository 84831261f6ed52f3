"""The `ferry` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but not all is well."""

import logging
import sys

import typer

from sessionferry import __version__
from sessionferry.cli.lazy import STYLE, Command, LazyGroup
from sessionferry.errors import FerryError, UserError

COMMANDS = {
    "demo": Command(
        "demo:demo",
        "Run the main job on a made-up fleet: generate, ship, store, verify, and show the books.",
    ),
    "local": Command(
        "local:local",
        "Run the whole stack on this machine: queue, function app and store, until Ctrl-C.",
    ),
    "simulate": Command(
        "simulate:simulate",
        "Write the session files of a made-up fleet, and an oracle of what must become of them.",
    ),
    "ship": Command(
        "ship:ship", "Send what is new in session files to the queue: once, or all the time."
    ),
    "status": Command(
        "status:status", "Show what was read, spooled, sent and stored, and what is in the way."
    ),
    "agent": Command(
        "agent:app",
        "The agent that runs in the background: its configuration, its service, its log.",
    ),
    "hosts": Command(
        "books:hosts",
        "List the machines that send, and each one's books, last heard of first.",
    ),
    "reconcile": Command(
        "books:reconcile_books",
        "Compare what hosts say they sent with what is stored, as the timer does every hour.",
    ),
    "sessions": Command("reading:sessions", "List stored sessions, last activity first."),
    "show": Command("reading:show", "Show what is stored of one session, or its lines."),
    "export": Command(
        "reading:export", "Write a session's files back, byte for byte, out of the archive."
    ),
    "verify": Command(
        "reading:verify",
        "Compare source files with what is stored: by count and digest, or byte by byte.",
    ),
    "delete": Command(
        "deleting:delete",
        "Delete a session: documents, quarantine, archived bytes. What comes late stays out.",
    ),
    "undelete": Command(
        "deleting:undelete",
        "Allow a deleted session to be sent again. What was deleted stays deleted.",
    ),
    "rebuild": Command(
        "rebuilding:rebuild",
        "Make a session's documents anew from the archive, and count them anew.",
    ),
    "doctor": Command(
        "doctor:doctor",
        "Check what this machine is set up to use, and say how to mend what is wrong.",
    ),
    "migrate": Command(
        "local:migrate", "Bring the schema of an existing store up to this version."
    ),
    "quarantine": Command(
        "quarantine:app", "Look at what could not become a document, and replay it."
    ),
    "dlq": Command("dlq:app", "Look at the queue's dead letters, send them again, remove them."),
    "orphans": Command(
        "orphans:orphans", "Find archived objects that nothing refers to: never counted, or spent."
    ),
    "pin": Command("expiring:pin", "Keep a session from retention; shows it if it was hidden."),
    "unpin": Command("expiring:unpin", "Let retention have a pinned session again."),
    "expire": Command(
        "expiring:expire", "Prune, hide and delete what the retention settings say is old."
    ),
    "sweep": Command(
        "sweep:sweep",
        "Finish what ended deliveries and deletions have left, as the timer does four times a day.",
    ),
}
"""Every command, in the order of `ferry --help`; none is imported before it is run."""


class _Ferry(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    name="ferry",
    cls=_Ferry,
    no_args_is_help=True,
    help="Carries AI-agent sessions into a store that dashboards read, and counts every line.",
    **STYLE,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sessionferry {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
    verbose: bool = typer.Option(False, "--verbose", help="Show what libraries log."),
) -> None:
    level = logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("sessionferry").setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command; a person's mistake and a failure each end in one sentence."""
    try:
        app()
    except UserError as error:
        _end(error, 2)
    except FerryError as error:
        _end(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: FerryError, code: int) -> None:
    sys.stderr.write(f"ferry: {error}\n")
    sys.exit(code)


__all__ = ["COMMANDS", "app", "main"]
