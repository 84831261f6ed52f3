"""`ferry orphans`: archived objects that nothing refers to."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from sessionferry.audit import recorded
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    print_json,
    print_table,
    settings,
    size,
)
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.errors import PermanentError, UserError
from sessionferry.orphans import ORPHAN_DAYS, Orphan, find_orphans
from sessionferry.settings import Endpoints, check_running, endpoints


def orphans(
    send: bool = typer.Option(False, "--send", help="Send what was never counted to the queue."),
    delete: bool = typer.Option(False, "--delete", help="Delete what is spent."),
    days: float = typer.Option(ORPHAN_DAYS, min=0, help="Only what is older than so many days."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Find archived objects that nothing refers to: never counted, or spent.

    Exit code 3: there are bytes that were never counted, and they were not sent.

    Examples: ferry orphans; ferry orphans --send --delete
    """
    if delete and days < 1:
        raise UserError("--delete goes with --days 1 at least: what is younger may be on its way.")
    chosen = settings(data)
    target = endpoints(chosen)
    if send:
        check_running(target, chosen)

    async def work(reader: Reader) -> dict[str, Any]:
        now = datetime.now(UTC)
        found = [it async for it in find_orphans(reader.store, reader.archive, now, days)]
        uncounted = [orphan for orphan in found if orphan.kind == "uncounted"]
        spent = [orphan for orphan in found if orphan.kind == "spent"]
        counts: dict[str, Any] = {"sent": 0, "deleted": 0, "failed": []}
        if (send and uncounted) or (delete and spent):
            what = {"send": send, "delete": delete, "days": days}
            async with recorded(reader.archive, "orphans", **what) as record:
                record.counts = counts
                if send and uncounted:
                    await _send(target, reader, uncounted, counts)
                if delete and spent:
                    await reader.archive.delete([orphan.key for orphan in spent])
                    counts["deleted"] = len(spent)
        return {
            "uncounted": [_document(orphan) for orphan in uncounted],
            "spent": [_document(orphan) for orphan in spent],
            **counts,
        }

    found = with_reader(chosen, work)
    if as_json:
        print_json(found)
    else:
        _print(found)
    if len(found["uncounted"]) > found["sent"]:
        raise typer.Exit(NOT_ALL_WELL)


async def _send(
    target: Endpoints, reader: Reader, uncounted: list[Orphan], counts: dict[str, Any]
) -> None:
    # Imported here: it takes the client of the queue, which a report does not need.
    from sessionferry.publisher import Publisher
    from sessionferry.replaying import send_archived

    async with Publisher(target, resend=True) as publisher:
        for orphan in uncounted:
            try:
                await send_archived(orphan.key, reader.archive, publisher)
            except PermanentError as error:
                counts["failed"].append({"key": orphan.key, "detail": str(error)})
            else:
                counts["sent"] += 1


def _document(orphan: Orphan) -> dict[str, Any]:
    written = orphan.written_at.isoformat(timespec="seconds")
    return {"key": orphan.key, "size": orphan.size, "written_at": written}


def _print(found: dict[str, Any]) -> None:
    rows = [
        (it["key"], kind, size(it["size"]), it["written_at"][:19].replace("T", " "))
        for kind in ("uncounted", "spent")
        for it in found[kind]
    ]
    if not rows:
        typer.echo("There are no orphans in the archive.")
        return
    print_table(("object", "kind", "size", "written"), rows)
    for failure in found["failed"]:
        typer.echo(f"  not sent: {failure['key']}: {failure['detail']}", err=True)
    typer.echo(f"{found['sent']:,} were sent, {found['deleted']:,} were deleted.")
