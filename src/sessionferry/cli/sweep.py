"""`ferry sweep`: finish what ended deliveries and deletions have left."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from sessionferry.archive import Archive, is_folder
from sessionferry.cli.output import DataOption, JsonOption, print_json, settings
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.settings import endpoints
from sessionferry.sweeping import sweep_heads, sweep_inbox


def sweep(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be done."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Finish what ended deliveries and deletions have left, as the timer does four times a day.

    Example: ferry sweep --dry-run
    """
    chosen = settings(data)
    inbox = endpoints(chosen).inbox_url

    async def work(reader: Reader) -> dict[str, Any]:
        swept = await sweep_heads(reader.store, reader.archive, dry_run=dry_run)
        objects = 0
        if inbox is not None and is_folder(inbox):
            now = datetime.now(UTC)
            objects = await sweep_inbox(Archive.open(inbox), now, dry_run=dry_run)
        return {**swept._asdict(), "inbox_objects": objects}

    found = with_reader(chosen, work)
    if as_json:
        print_json(found)
        return
    did = "would be" if dry_run else "were"
    typer.echo(
        f"{found['heads']:,} heads: {found['garbage']:,} lists of superseded lines and "
        f"{found['deletions']:,} unfinished deletions {did} finished, "
        f"{found['marks']:,} times lines {did} counted for a writer that ended; "
        f"{found['late_lines']:,} "
        f"documents and {found['late_objects']:,} archived objects that came too late, and "
        f"{found['inbox_objects']:,} old inbox objects, {did} removed."
    )
