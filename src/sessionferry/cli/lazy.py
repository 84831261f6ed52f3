"""Commands that are imported when they are run: `ferry --help` must not load what it only names."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
import typer.main
from typer.core import TyperGroup

STYLE: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class Command(NamedTuple):
    """Where a command is, `module:name` below this package, and what it does in one sentence."""

    place: str
    summary: str


class LazyCommands(Mapping[str, Any]):
    """Commands by name, imported when they are looked up."""

    def __init__(self, table: Mapping[str, Command]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self._table[name].place.partition(":")
        found = getattr(import_module(f"sessionferry.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        own = typer.Typer(**STYLE)
        own.command(name)(found)
        return typer.main.get_command(own)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class LazyGroup(TyperGroup):
    """A group of such commands; a subclass names them in its `table`."""

    table: ClassVar[Mapping[str, Command]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LazyCommands(self.table)  # type: ignore[assignment]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """List the commands from the table."""
        width = formatter.width - 6 - max(map(len, self.table))
        rows = [(name, _shortened(command.summary, width)) for name, command in self.table.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _shortened(summary: str, width: int) -> str:
    if len(summary) <= width:
        return summary
    return f"{summary[: width - 3].rsplit(' ', 1)[0]}..."
