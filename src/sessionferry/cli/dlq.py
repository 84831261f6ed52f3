"""`ferry dlq`: the queue's dead letters, on a local stack and in Azure alike."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from sessionferry.archive import Archive
from sessionferry.audit import recorded
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    confirm,
    counting,
    print_json,
    print_table,
    settings,
    size,
)
from sessionferry.errors import UserError
from sessionferry.preview import Contents, read_contents, visible
from sessionferry.settings import Endpoints, check_running, endpoints

if TYPE_CHECKING:
    from sessionferry.dead_letters import DeadLetter, DeadLetters, Moved

Result = TypeVar("Result")

app = typer.Typer(
    name="dlq",
    no_args_is_help=True,
    help="Look at the queue's dead letters, send them again, remove them.",
)

NumbersArgument = typer.Argument(None, help="Numbers that `ferry dlq list` shows (default: all).")
ReasonOption = typer.Option(None, "--reason", help="Only those that have this reason.")
DryRunOption = typer.Option(False, "--dry-run", help="Only say what would be done.")


@app.command("list")
def list_(
    reason: str | None = ReasonOption,
    limit: int = typer.Option(100, min=1, help="At most so many, oldest number first."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """List dead letters: why they are here, and what is in them.

    Example: ferry dlq list --reason MaxDeliveryCountExceeded
    """

    async def read(letters: "DeadLetters") -> list[dict[str, Any]]:
        found = []
        async for letter in _chosen(letters, None, reason):
            found.append(_summary(letter))
            if len(found) == limit:
                break
        return found

    found = _with_letters(_target(data), read)
    if as_json:
        print_json(found)
    elif not found:
        typer.echo("There are no dead letters.")
    else:
        print_table(_COLUMNS, [_row(summary) for summary in found])


@app.command("show")
def show(
    number: int = typer.Argument(..., help="Number that `ferry dlq list` shows."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Show one dead letter: its properties, its header, its first lines.

    Example: ferry dlq show 17
    """

    async def read(letters: "DeadLetters") -> "DeadLetter":
        async for letter in letters.peek(number):
            if letter.number == number:
                return letter
            break
        raise UserError(f"There is no dead letter {number}.")

    letter = _with_letters(_target(data), read)
    contents = read_contents(letter.body, letter.content_encoding)
    if as_json:
        properties = {visible(name): _plain(value) for name, value in letter.properties.items()}
        print_json(_summary(letter) | {"properties": properties} | contents.to_document())
    else:
        _print_letter(letter, contents)


@app.command("replay")
def replay(
    numbers: list[int] = NumbersArgument,
    reason: str | None = ReasonOption,
    rate: float = typer.Option(50.0, min=0.01, help="At most so many messages a second."),
    dry_run: bool = DryRunOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Send dead letters again, under new ids; what was interrupted goes on when run again.

    Exit code 3: some of them are dead letters still.

    Examples: ferry dlq replay --dry-run; ferry dlq replay --reason MaxDeliveryCountExceeded
    """
    target = _target(data)

    async def work(letters: "DeadLetters") -> dict[str, Any]:
        chosen = [letter async for letter in _briefly(letters, numbers, reason)]
        if dry_run or not chosen:
            return _planned(chosen)
        moved = _moving(chosen)
        what = {**_asked(target, numbers, reason), "rate": rate}
        async with recorded(Archive.open(target.archive), "dlq replay", **what) as record:
            with counting("replaying", len(chosen)) as advance, _counted(moved, record.counts):
                await letters.replay(moved, rate=rate, advance=advance)
        return _done("replayed", moved, record.folder)

    _print_outcome(_with_letters(target, work), "replayed", as_json=as_json)


@app.command("purge")
def purge(
    numbers: list[int] = NumbersArgument,
    reason: str | None = ReasonOption,
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    dry_run: bool = DryRunOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Remove dead letters for good. What is in them is lost, unless it arrived otherwise.

    Example: ferry dlq purge 17 --yes
    """
    target = _target(data)

    async def work(letters: "DeadLetters") -> dict[str, Any]:
        chosen = [letter async for letter in _briefly(letters, numbers, reason)]
        if dry_run or not chosen:
            return _planned(chosen)
        confirm(f"Remove {len(chosen):,} dead letters of {target.destination} for good?", yes=yes)
        moved = _moving(chosen)
        what = {
            **_asked(target, numbers, reason),
            "message_ids": [letter.message_id for letter in chosen],
        }
        async with recorded(Archive.open(target.archive), "dlq purge", **what) as record:
            with counting("purging", len(chosen)) as advance, _counted(moved, record.counts):
                await letters.purge(moved, advance=advance)
        return _done("purged", moved, record.folder)

    _print_outcome(_with_letters(target, work), "purged", as_json=as_json)


@app.command("redrive")
def redrive(
    dry_run: bool = DryRunOption, data: Path | None = DataOption, as_json: bool = JsonOption
) -> None:
    """Do now what the timer does: send again what an outage left, if it was not tried too often.

    Exit code 3: some of them are dead letters still.

    Example: ferry dlq redrive --dry-run
    """
    from sessionferry.dead_letters import is_redriven
    from sessionferry.dead_letters import redrive as redrive_all

    target = _target(data)

    async def plan(letters: "DeadLetters") -> dict[str, Any]:
        return _planned([letter async for letter in letters.peek() if is_redriven(letter)])

    if dry_run:
        outcome = _with_letters(target, plan)
    else:
        moved = asyncio.run(redrive_all(target, Archive.open(target.archive)))
        outcome = _done("replayed", moved, "")
    _print_outcome(outcome, "replayed", as_json=as_json)


# ---------------------------------------------------------------- the queue


def _target(data: Path | None) -> Endpoints:
    chosen = settings(data)
    target = endpoints(chosen)
    check_running(target, chosen)
    return target


def _with_letters(target: Endpoints, work: Callable[["DeadLetters"], Awaitable[Result]]) -> Result:
    # Imported here: it takes the client of the queue, and help pages should not wait for that.
    from sessionferry.dead_letters import DeadLetters

    async def run() -> Result:
        async with DeadLetters(target) as letters:
            return await work(letters)

    return asyncio.run(run())


def _moving(chosen: list["DeadLetter"]) -> "Moved":
    from sessionferry.dead_letters import Moved

    return Moved(frozenset(letter.number for letter in chosen))


async def _chosen(
    letters: "DeadLetters", numbers: list[int] | None, reason: str | None
) -> AsyncIterator["DeadLetter"]:
    wanted = set(numbers or ())
    async for letter in letters.peek(min(wanted, default=1)):
        if (not wanted or letter.number in wanted) and reason in (None, letter.reason):
            yield letter


async def _briefly(
    letters: "DeadLetters", numbers: list[int] | None, reason: str | None
) -> AsyncIterator["DeadLetter"]:
    """Yield what is chosen without the bodies, of which a queue may hold gigabytes."""
    async for letter in _chosen(letters, numbers, reason):
        yield letter._replace(body=b"", properties={})


def _asked(target: Endpoints, numbers: list[int] | None, reason: str | None) -> dict[str, Any]:
    return {"queue": target.destination, "numbers": numbers or None, "reason": reason}


@contextmanager
def _counted(moved: "Moved", counts: dict[str, Any]) -> Iterator[None]:
    """Put into the record how far it came, whatever ends it."""
    try:
        yield
    finally:
        counts |= moved.counts


# ---------------------------------------------------------------- printing

_COLUMNS = ("number", "reason", "enqueued", "deliveries", "kind", "session", "lines", "size")


def _summary(letter: "DeadLetter") -> dict[str, Any]:
    contents = read_contents(letter.body, letter.content_encoding)
    header = contents.header
    return {
        "number": letter.number,
        "message_id": visible(letter.message_id),
        "reason": visible(letter.reason),
        "description": visible(letter.description),
        "enqueued_at": letter.enqueued_at,
        "delivery_count": letter.delivery_count,
        "replays": letter.replays,
        "size_bytes": len(letter.body),
        "kind": contents.kind,
        "session": contents.session,
        "stream": header.stream if header else None,
        "lines": header.line_count if header else 0,
        "error": contents.error.code if contents.error else None,
    }


def _row(summary: dict[str, Any]) -> tuple[object, ...]:
    return (
        summary["number"],
        summary["reason"] or "-",
        summary["enqueued_at"][:19].replace("T", " "),
        summary["delivery_count"],
        summary["kind"],
        summary["session"] or "-",
        summary["lines"],
        size(summary["size_bytes"]),
    )


def _print_letter(letter: "DeadLetter", contents: Contents) -> None:
    facts = {
        "number": letter.number,
        "message id": visible(letter.message_id),
        "reason": visible(letter.reason) or "-",
        "description": visible(letter.description) or "-",
        "enqueued": letter.enqueued_at,
        "deliveries": letter.delivery_count,
        "replayed": letter.replays,
        "size": size(len(letter.body)),
        **{visible(name): _plain(value) for name, value in letter.properties.items()},
    }
    for name, value in facts.items():
        typer.echo(f"{name:24}  {value}")
    print_contents(contents)


def print_contents(contents: Contents) -> None:
    """Print what a message holds, or why that cannot be told."""
    typer.echo("")
    if contents.header is None:
        typer.echo(f"This is no batch ({contents.to_document()['detail']}) It begins with:")
    else:
        for name, value in contents.header.model_dump(exclude_none=True).items():
            typer.echo(f"{visible(name):24}  {visible(str(value))}")
        typer.echo("")
    for line in contents.lines:
        typer.echo(f"  {line}")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else visible(value or "")


def _planned(chosen: list["DeadLetter"]) -> dict[str, Any]:
    reasons = Counter(visible(letter.reason) for letter in chosen)
    return {"would_be": len(chosen), "reasons": dict(reasons.most_common())}


def _done(verb: str, moved: "Moved", audit: str) -> dict[str, Any]:
    failed = [{"number": number, "detail": why} for number, why in moved.failed.items()]
    return {verb: len(moved.done), "left": moved.left, "failed": failed, "audit": audit}


def _print_outcome(outcome: dict[str, Any], verb: str, *, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    elif "would_be" in outcome:
        reasons = ", ".join(
            f"{count:,} {name or '-'}" for name, count in outcome["reasons"].items()
        )
        typer.echo(f"{outcome['would_be']:,} dead letters would be {verb}. {reasons}".rstrip())
    else:
        typer.echo(f"{outcome[verb]:,} dead letters were {verb}, {outcome['left']:,} are left.")
        for failure in outcome["failed"]:
            typer.echo(f"  {failure['number']}: {failure['detail']}", err=True)
        if outcome["audit"]:
            typer.echo(f"The record is {outcome['audit']} in the archive.")
    if outcome.get("left"):
        raise typer.Exit(NOT_ALL_WELL)
