"""`ferry agent`: the agent's configuration."""

from pathlib import Path

import typer

from sessionferry.agent.policy import Policy
from sessionferry.cli.output import DataOption, settings
from sessionferry.config import example
from sessionferry.errors import UserError
from sessionferry.host import redaction_key
from sessionferry.settings import config_path

app = typer.Typer(
    name="agent",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The agent that runs in the background: its configuration.",
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
    policy = Policy.of(found, lambda: redaction_key(chosen.identity))
    if not path.exists():
        typer.echo(f"There is no {path}: every file is sent as it is.")
        typer.echo("`ferry agent config --init` writes one.")
        return
    typer.echo(f"{path} is right.")
    typer.echo(f"redaction  {'on' if found.redact.enabled else 'off'}")
    typer.echo(f"rules      {policy.rules or 'none: what is read is sent as it is'}")


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
