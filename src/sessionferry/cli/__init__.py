"""The `ferry` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but not all is well."""

import logging
import sys

import typer

from sessionferry import __version__
from sessionferry.cli import (
    agent,
    demo,
    dlq,
    local,
    quarantine,
    reading,
    ship,
    simulate,
    status,
)
from sessionferry.errors import FerryError, UserError

app = typer.Typer(
    name="ferry",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Carries AI-agent sessions into a store that dashboards read, and counts every line.",
)
app.command("demo")(demo.demo)
app.command("local")(local.local)
app.command("simulate")(simulate.simulate)
app.command("ship")(ship.ship)
app.command("status")(status.status)
app.add_typer(agent.app)
app.command("sessions")(reading.sessions)
app.command("show")(reading.show)
app.command("export")(reading.export)
app.command("verify")(reading.verify)
app.command("migrate")(local.migrate)
app.add_typer(dlq.app)
app.add_typer(quarantine.app)


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


__all__ = ["app", "main"]
