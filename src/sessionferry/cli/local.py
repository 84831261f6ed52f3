"""`ferry local`, `ferry migrate`: the stack on this machine, and the store's schema."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import typer

from sessionferry.cli.output import DataOption, settings
from sessionferry.errors import UserError
from sessionferry.settings import LocalStack, endpoints


def local(
    data: Path | None = DataOption,
    port: int = typer.Option(0, help="Port of the queue (default: the last one, or a free one)."),
) -> None:
    """Run the whole stack on this machine: queue, function app and store, until Ctrl-C.

    Everything lies in one data folder, which the other commands find by themselves.

    Example: ferry local --data ~/ferry
    """
    from sessionferry.local import stack

    chosen = settings(data)
    asyncio.run(stack.run(chosen, port, lambda described: _ready(chosen.data, described)))
    typer.echo("Stopped. Nothing is lost: `ferry local` goes on where this ended.")


def migrate(data: Path | None = DataOption) -> None:
    """Bring the schema of an existing store up to this version.

    Example: FERRY_STORE=postgresql://… ferry migrate
    """
    from sessionferry.store.cosmos.access import SCHEMES
    from sessionferry.store.schema import upgrade

    url = endpoints(settings(data)).store.get_secret_value()
    if urlsplit(url).scheme in SCHEMES:
        raise UserError(
            "Cosmos DB has no schema to migrate; `ferry doctor` looks at its containers."
        )
    upgrade(url)
    typer.echo("The store's schema is up to date.")


def _ready(data: Path, stack: LocalStack) -> None:
    lines = (
        "Ready. Press Ctrl-C to stop.",
        "",
        f"  data folder   {data}",
        f"  queue         sb://127.0.0.1:{stack.port}/{stack.queue}",
        f"  connect with  the string in {data / 'local.json'}",
        f"  health        http://127.0.0.1:{stack.http}/readyz",
        "",
        "In another terminal:",
        "  ferry ship                     send sessions",
        "  ferry sessions                 see what is stored",
        "  ferry verify                   compare with the files",
    )
    typer.echo("\n".join(lines))
