"""`ferry hosts`, `ferry reconcile`: machines, and what they sent against what is stored."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sessionferry.audit import recorded
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    confirm,
    print_json,
    print_table,
    settings,
)
from sessionferry.cli.reading import Reader, newest, with_reader
from sessionferry.preview import visible
from sessionferry.reconciling import SETTLED_AFTER, Reconciled, Shortfall, reconcile, write_off
from sessionferry.statements import Statement

_HOST_COLUMNS = (
    *("host", "user", "last heard of", "agent", "files", "read", "left out", "spooled", "sent"),
    *("failing", "missing"),
)
_COUNTS = ("files", "read", "filtered", "spooled", "sent", "failing")


def hosts(
    user: str | None = typer.Option(None, "--user", help="Only this user's."),
    limit: int = typer.Option(100, min=1, help="At most so many, by their last heartbeat."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """List the machines that send, and each one's books, last heard of first.

    Example: ferry hosts --limit 20
    """

    found = with_reader(settings(data), partial(newest, "hosts", limit=limit, user=user))
    if as_json:
        print_json(found)
        return
    if not found:
        typer.echo("No machine has reported yet.")
        return
    print_table(_HOST_COLUMNS, [_host_row(host) for host in found])
    for host in found:
        if host["clones"]:
            machines = visible(", ".join(host["clones"]))
            named = visible(host["host_id"])
            typer.echo(f"{named} is the id of several machines at once: {machines}")


def reconcile_books(
    host: str | None = typer.Option(None, "--host", help="Only what this host sent."),
    session: str | None = typer.Option(None, "--session", help="Only of this session."),
    unsettled: bool = typer.Option(
        False, "--unsettled", help="Also what was said within the last hour: it may be on its way."
    ),
    forget: bool = typer.Option(
        False, "--write-off", help="Accept what is missing: it is not looked for any more."
    ),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Compare what hosts say they sent with what is stored, as the timer does every hour.

    Exit code 3: lines are missing, and were not written off.

    Examples: ferry reconcile; ferry reconcile --host HOST --write-off
    """
    chosen = settings(data)
    wait = timedelta(0) if unsettled else SETTLED_AFTER

    def is_meant(host_id: str, partition_key: str) -> bool:
        named = partition_key.rpartition("|")[2]
        return host in (None, host_id) and session in (None, named, partition_key)

    async def work(reader: Reader) -> tuple[Reconciled, list[Statement]]:
        found = await reconcile(reader.store, datetime.now(UTC), settled_after=wait)
        short = [it for it in found.shortfalls if is_meant(it.host_id, it.statement.partition_key)]
        found = found._replace(shortfalls=short)
        if not forget or not short:
            return found, []
        if not as_json:
            _print_shortfalls(short)
        confirm(f"Write off {found.missing_lines:,} lines of {len(short):,} streams?", yes=yes)
        shown = {(*it.host, *it.statement[:2]): it.statement.reach for it in short}

        def is_shown(user_id: str, host_id: str, it: Statement) -> bool:
            reach = shown.get((user_id, host_id, *it[:2]))
            return reach is not None and it.reach <= reach

        async with recorded(reader.archive, "write off", lines=[str(it) for it in short]) as record:
            gone = await write_off(reader.store, is_shown)
            record.counts = {"streams": len(short), "lines": found.missing_lines}
        return found, gone

    found, gone = with_reader(chosen, work)
    if as_json:
        print_json(_document(found) | {"written_off": len(gone)})
    elif gone:
        typer.echo(f"{found.missing_lines:,} lines were written off.")
    else:
        _print(found)
    if found.shortfalls and not gone:
        raise typer.Exit(NOT_ALL_WELL)


def _host_row(host: dict[str, Any]) -> tuple[object, ...]:
    counts = (host["ledger"].get(name, "-") for name in _COUNTS)
    seen = host["last_time"][:19].replace("T", " ")
    named = (host["host_id"], host["user_id"], seen, host["agent"] or "-")
    return (*map(visible, named), *counts, host.get("missing", 0))


def _document(found: Reconciled) -> dict[str, Any]:
    return {
        "statements": found.statements,
        "unsettled": found.unsettled,
        "missing_lines": found.missing_lines,
        "shortfalls": [
            {
                "user_id": short.user_id,
                "host_id": short.host_id,
                **short.statement._asdict(),
                "stored": short.stored,
                "quarantined": short.quarantined,
                "missing": [list(one) for one in short.missing.ranges],
                "quarantined_messages": short.set_aside,
            }
            for short in found.shortfalls
        ],
    }


def _print(found: Reconciled) -> None:
    _print_shortfalls(found.shortfalls)
    waiting = f"; {found.unsettled:,} are younger than an hour" if found.unsettled else ""
    if not found.shortfalls:
        typer.echo(f"All that was sent is accounted for: {found.statements:,} streams{waiting}.")
        return
    typer.echo(
        f"{found.missing_lines:,} lines of {len(found.shortfalls):,} streams are missing,"
        f" from {len(found.by_host()):,} hosts{waiting}."
    )


def _print_shortfalls(shortfalls: list[Shortfall]) -> None:
    for short in shortfalls:
        typer.echo(str(short))
