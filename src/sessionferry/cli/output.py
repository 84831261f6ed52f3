"""What commands print: tables for people, JSON for programs, progress only on a terminal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from sessionferry.errors import UserError
from sessionferry.settings import Settings

NOT_ALL_WELL = 3

DataOption = typer.Option(
    None, "--data", help="Data folder of `ferry local` (default: FERRY_DATA, or the user's)."
)
JsonOption = typer.Option(False, "--json", help="Print JSON.")


def settings(data: Any) -> Settings:
    """Read the settings; a folder given on the command line wins."""
    return Settings.read(data=data.absolute()) if data else Settings.read()


def printable(name: object) -> str:
    r"""Make a path or a sentence text: bytes that are not UTF-8 become `\xff`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows; numbers stand right, and nothing is cut off."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for at, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[at]) for row in rows)
        # The first column names the row: an id that is folded cannot be copied.
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", no_wrap=at == 0
        )
    for row in rows:
        table.add_row(*(number(cell) if _is_number(cell) else str(cell) for cell in row))
    # Without markup: what was sent may hold [brackets], and is shown as it is.
    console = Console(highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        # A pipe has no width to fit: a row is a line.
        console = Console(highlight=False, markup=False, width=max(240, table_width(columns, rows)))
    console.print(table)


def table_width(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Return how wide a table is when nothing is folded."""
    cells = [columns, *rows]
    return sum(max(len(str(row[at])) for row in cells) + 4 for at in range(len(columns)))


def number(value: object) -> str:
    """Write a number with thousands separators."""
    return f"{value:,}" if _is_number(value) else str(value)


def size(count: int) -> str:
    """Write a number of bytes for people: `1.5 MB`."""
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{count} B"


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """Show a bar of bytes on a terminal, nothing in a pipe; yields a function that advances it."""
    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def counting(title: str, total: int) -> Iterator[Any]:
    """Like `progress`, for a number of things."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; raises `UserError` where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Nobody can answer here; say --yes.")
    typer.confirm(question, abort=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
