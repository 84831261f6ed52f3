"""`ferry quarantine`: what could not become a document, and its way through newer code."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import typer

from sessionferry.archive import Archive, hydrate
from sessionferry.audit import recorded
from sessionferry.cli.dlq import print_contents
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    counting,
    print_json,
    print_table,
    settings,
)
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.errors import ArchiveMismatch, UserError
from sessionferry.preview import Contents, first_lines, read_contents, visible
from sessionferry.settings import check_running, endpoints
from sessionferry.store import Store

app = typer.Typer(
    name="quarantine",
    no_args_is_help=True,
    help="Look at what could not become a document, and replay it.",
)

IdsArgument = typer.Argument(None, help="Ids that `ferry quarantine list` shows (default: all).")
ReasonOption = typer.Option(None, "--reason", help="Only those that have this reason.")
SessionOption = typer.Option(None, "--session", help="Only those of this session.")


@app.command("list")
def list_(
    reason: str | None = ReasonOption,
    session: str | None = SessionOption,
    limit: int = typer.Option(100, min=1, help="At most so many, newest first."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """List the quarantine: lines, and whole messages.

    Example: ferry quarantine list --reason unsupported_batch
    """

    async def read(reader: Reader) -> list[dict[str, Any]]:
        found = []
        async for entry in _chosen(reader.store, None, reason, session):
            found.append(entry)
            if len(found) == limit:
                break
        return found

    found = with_reader(settings(data), read)
    if as_json:
        print_json(found)
    elif not found:
        typer.echo("The quarantine is empty.")
    else:
        print_table(_COLUMNS, [_row(entry) for entry in found])


@app.command("show")
def show(
    entry_id: str = typer.Argument(
        ..., metavar="ID", help="Id that `ferry quarantine list` shows."
    ),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Show one entry, and the beginning of the bytes that it stands for.

    Example: ferry quarantine show ID
    """

    async def read(reader: Reader) -> tuple[dict[str, Any], Contents]:
        async for entry in _chosen(reader.store, [entry_id], None, None):
            return entry, await _contents(reader.archive, entry)
        raise UserError(f"There is no quarantine entry {entry_id}.")

    entry, contents = with_reader(settings(data), read)
    if as_json:
        print_json({"entry": entry, **contents.to_document()})
        return
    for name, value in entry.items():
        if name != "preview":
            typer.echo(f"{name:24}  {visible(str(value))}")
    if entry["_type"] == "quarantined_message":
        print_contents(contents)
    else:
        typer.echo(f"\n  {''.join(contents.lines)}")


@app.command("replay")
def replay(
    ids: list[str] = IdsArgument,
    reason: str | None = ReasonOption,
    session: str | None = SessionOption,
    rate: float = typer.Option(50.0, min=0.01, help="At most so many messages a second."),
    wait: float = typer.Option(60.0, min=0, help="Seconds to wait for the verdicts."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be done."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Send what is in the quarantine through the newest code; what is stored then leaves it.

    Exit code 3: something stays in the quarantine, or was not judged yet.

    Examples: ferry quarantine replay --dry-run; ferry quarantine replay --reason unsupported_batch
    """
    # Imported here: it takes the client of the queue, and help pages should not wait for that.
    from sessionferry import replaying
    from sessionferry.publisher import Publisher

    chosen = settings(data)
    target = endpoints(chosen)
    check_running(target, chosen)

    async def work(reader: Reader) -> dict[str, Any]:
        entries = [entry async for entry in _chosen(reader.store, ids, reason, session)]
        planned = replaying.plan(entries)
        if dry_run or not planned.units:
            reasons = Counter(entry["reason"] for entry in entries)
            return {
                "would_be": sum(len(unit.entries) for unit in planned.units),
                "messages": len(planned.units),
                "conflicts": len(planned.conflicts),
                "reasons": dict(reasons.most_common()),
            }
        what = {"ids": ids or None, "reason": reason, "session": session, "rate": rate}
        async with recorded(reader.archive, "quarantine replay", **what) as record:
            try:
                async with Publisher(target, resend=True) as publisher:
                    with counting("replaying", len(planned.units)) as advance:
                        await replaying.send(
                            planned, reader.archive, publisher, rate=rate, advance=advance
                        )
                await replaying.await_verdicts(planned, reader.store, wait)
            finally:
                record.counts |= planned.counts
        return {
            **planned.counts,
            "left": [_verdict(entry) for entry in planned.left.values()],
            "errors": [
                {"archive_key": unit.archive_key, "detail": why} for unit, why in planned.failed
            ],
            "audit": record.folder,
        }

    _print_outcome(with_reader(chosen, work), as_json=as_json)


# ---------------------------------------------------------------- entries


async def _chosen(
    store: Store, ids: list[str] | None, reason: str | None, session: str | None
) -> AsyncIterator[dict[str, Any]]:
    from sessionferry.replaying import entries_of

    async for entry in entries_of(store):
        if ids and entry["id"] not in ids:
            continue
        if reason in (None, entry["reason"]) and session in (None, entry.get("session_id")):
            yield entry


async def _contents(archive: Archive, entry: dict[str, Any]) -> Contents:
    try:
        body = await hydrate(archive, entry)
    except ArchiveMismatch as error:
        return Contents(None, error, ())
    if entry["_type"] == "quarantined_message":
        return await asyncio.to_thread(read_contents, body, entry.get("content_encoding"))
    return Contents(None, None, first_lines(body))


def _verdict(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("partition_key", "id", "reason", "detail")}


# ---------------------------------------------------------------- printing

_COLUMNS = ("id", "reason", "created", "session", "stream", "line", "what")


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    is_line = entry["_type"] == "quarantined_line"
    return (
        entry["id"],
        visible(entry["reason"]),
        entry["created_at"][:19].replace("T", " "),
        visible(entry["partition_key"]),
        entry.get("stream") or "-",
        entry["sequence"] if is_line else "-",
        visible(str(entry.get("preview") or entry.get("detail") or ""))[:60],
    )


def _print_outcome(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(outcome)
    elif "would_be" in outcome:
        typer.echo(
            f"{outcome['would_be']:,} entries would be replayed in {outcome['messages']:,} "
            f"messages; {outcome['conflicts']:,} conflicts would stay."
        )
    else:
        typer.echo(
            f"{outcome['entries']:,} entries were replayed in {outcome['messages']:,} messages: "
            f"{outcome['cleared']:,} left the quarantine, {outcome['stay']:,} stay, "
            f"{outcome['waiting']:,} were not judged yet."
        )
        if outcome["conflicts"]:
            typer.echo(f"{outcome['conflicts']:,} conflicts stay: another line is stored there.")
        for entry in outcome["left"]:
            typer.echo(f"  {entry['id']}: {visible(entry['reason'])}, {visible(entry['detail'])}")
        for failure in outcome["errors"]:
            typer.echo(f"  not sent: {failure['archive_key']}: {failure['detail']}", err=True)
        typer.echo(f"The record is {outcome['audit']} in the archive.")
    if "would_be" not in outcome and any(
        outcome[name] for name in ("stay", "waiting", "failed", "conflicts")
    ):
        raise typer.Exit(NOT_ALL_WELL)
