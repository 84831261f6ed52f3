"""`ferry status`: how far the agent is, file by file."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from sessionferry import head_store
from sessionferry.agent.discover import FormatChoice, default_paths, look
from sessionferry.agent.hours import Hours
from sessionferry.agent.spool import Spool, SpoolDamaged, SpoolLock
from sessionferry.agent.status import FileStatus, Status, take_status
from sessionferry.cli.output import (
    DataOption,
    JsonOption,
    number,
    print_json,
    print_table,
    printable,
    settings,
    size,
)
from sessionferry.cli.ship import configured_roots, spool_path
from sessionferry.errors import FerryError, UserError
from sessionferry.host import Identity
from sessionferry.identity import SessionKey
from sessionferry.settings import Endpoints, endpoints

MOST_SHOWN = 40
"""Files that a table shows; --json has them all."""
STORE_SECONDS = 20.0
"""How long the store is asked what it has."""
_AT_A_TIME = 8
_COLUMNS = ("session", "file", "read", "left out", "spooled", "sent", "stored", "behind", "problem")


def status(
    paths: list[Path] = typer.Argument(
        None, help="Session folders or files (default: what is followed, and all that was shipped)."
    ),
    file_format: FormatChoice | None = typer.Option(None, "--format", help="As for `ferry ship`."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Show what was read, spooled, sent and stored, and what is in the way.

    Examples: ferry status; ferry status --json
    """
    chosen = settings(data)
    identity = Identity.from_settings(chosen)
    target = endpoints(chosen)
    path = spool_path(chosen, target)
    if not path.exists():
        raise UserError("Nothing was shipped from here yet. Start with `ferry ship`.")
    try:
        spool = Spool(path, check=False)
        try:
            running = SpoolLock(path).is_held()
            roots = [Path(root) for root in (spool.notes().get("running") or {}).get("roots", [])]
            usual = configured_roots(chosen, file_format, default_paths(file_format))
            described = chosen.file().sources.jsonl
            sources = look(paths or roots or usual, identity.user_id, file_format, described)
            also = _below([one.resolve() for one in paths or []], file_format)
            found = take_status(spool, sources, is_running=running, also=also)
        finally:
            spool.close()
    except SpoolDamaged as error:
        raise UserError(
            f"The spool {path} is damaged ({error}). The next `ferry ship` sets it aside."
        ) from None
    unreachable = asyncio.run(_ask_store(target, found.files))
    if as_json:
        print_json(_document(found, unreachable))
    else:
        _print(found, unreachable)


def _below(paths: list[Path], file_format: FormatChoice | None) -> Callable[[Path], bool]:
    """Say which files that were shipped from elsewhere are asked for: all, or those below paths."""

    def asked(path: Path) -> bool:
        # The spool does not know formats.
        if file_format is not None:
            return False
        return not paths or any(path.is_relative_to(folder) for folder in paths)

    return asked


async def _ask_store(target: Endpoints, files: list[FileStatus]) -> str | None:
    """Add what is stored; return why that is not known, if so."""
    from sessionferry.store.opening import open_store

    by_key: dict[SessionKey, list[FileStatus]] = defaultdict(list)
    for file in files:
        by_key[file.source.key].append(file)
    if target.store_url is None:
        return "no store is named (FERRY_STORE)"
    try:
        async with asyncio.timeout(STORE_SECONDS):
            store = await open_store(target.store.get_secret_value())
            try:
                gate = asyncio.Semaphore(_AT_A_TIME)

                async def ask(key: SessionKey) -> None:
                    async with gate:
                        head = (await head_store.read_head(store, key)).head
                    for status in by_key[key]:
                        stream = status.source.stream
                        if stream is not None:
                            state = head.stream(stream)
                            sums = len(state.stored), len(state.quarantined)
                            status.note_stored(state.generation, *sums)

                await asyncio.gather(*(ask(key) for key in by_key))
            finally:
                await store.close()
    except TimeoutError:
        return "the store did not answer in time"
    except (FerryError, OSError) as error:
        return str(error)
    return None


def _document(found: Status, unreachable: str | None) -> dict[str, Any]:
    return {
        "ledger": asdict(found.ledger),
        "running": found.running,
        "wrong_configuration": found.wrong,
        "contact": found.contact,
        "trouble": found.trouble,
        "full_since": found.full_since,
        "spool_bytes": found.spool_bytes,
        "safe_days": found.safe_days,
        "store": unreachable or "reached",
        "files": [
            {
                "path": printable(status.source.path),
                "project_slug": status.source.key.project_slug,
                "session_id": status.source.key.session_id,
                "role": status.source.role,
                "format": status.source.format or None,
                "generation": status.generation,
                "read": status.read,
                "filtered": status.filtered,
                "spooled": status.spooled,
                "sent": status.sent,
                "stored": status.stored,
                "quarantined": status.quarantined,
                "lag_bytes": status.lag_bytes,
                "lag_seconds": round(status.lag_seconds, 1),
                "safe_days": status.safe_days,
                "error": status.error,
            }
            for status in found.files
        ],
    }


def _print(found: Status, unreachable: str | None) -> None:
    ledger = found.ledger
    typer.echo(_running(found))
    typer.echo(
        f"{number(ledger.read)} lines of {number(ledger.files)} files read = "
        f"{number(ledger.filtered)} left out + {number(ledger.spooled)} in the spool "
        f"({size(found.spool_bytes)}) + {number(ledger.sent)} sent."
    )
    for sentence in _troubles(found, unreachable):
        typer.echo(sentence)
    open_ones = [status for status in found.files if not status.is_settled]
    if not open_ones:
        typer.echo("Every file is up to date.")
        return
    print_table(_COLUMNS, [_row(status) for status in open_ones[:MOST_SHOWN]])
    if len(open_ones) > MOST_SHOWN:
        typer.echo(f"and {number(len(open_ones) - MOST_SHOWN)} more; --json has them all.")


def _running(found: Status) -> str:
    if found.wrong is not None:
        since, error = found.wrong["since"], found.wrong["error"]
        return f"The daemon reads nothing since {since}, until this is right: {error}"
    if found.running is None:
        return "No daemon is running; `ferry ship` ships once, `ferry ship --watch` all the time."
    contact = f", last contact with the queue {found.contact}" if found.contact else ""
    since, pid = found.running["since"], found.running["pid"]
    rules = found.running.get("rules") or "none"
    return f"The daemon runs since {since} (process {pid}){contact}. Rules: {rules}."


def _closed(found: Status) -> str | None:
    """Say that the daemon waits for the hours of sending, if it does."""
    hours = Hours.parse((found.running or {}).get("hours") or "")
    if hours is None or not hours.seconds_until(datetime.now().astimezone()):
        return None
    return f"Outside of FERRY_HOURS ({hours}) nothing is sent, no heartbeat either."


def _troubles(found: Status, unreachable: str | None) -> list[str]:
    sentences = []
    if closed := _closed(found):
        sentences.append(closed)
    if found.trouble is not None:
        sentences.append(f"Sending fails since {found.trouble['since']}: {found.trouble['error']}")
    if found.full_since is not None:
        sentences.append(f"Reading waits since {found.full_since}: the spool is full.")
    if found.safe_days is not None:
        sentences.append(
            f"What was not read is safe for {found.safe_days:.1f} days; then its tool deletes it."
        )
    if unreachable is not None:
        sentences.append(f"What is stored is not known: {unreachable}.")
    return sentences


def _row(status: FileStatus) -> tuple[object, ...]:
    stored: object = "?" if status.stored is None else status.stored
    behind = size(status.lag_bytes) if status.lag_bytes else ""
    if status.lag_seconds >= 1:
        behind = f"{behind} {_duration(status.lag_seconds)}".strip()
    return (
        *(status.source.key.session_id, status.source.role),
        *(status.read, status.filtered, status.spooled, status.sent, stored),
        *(behind, status.error or ""),
    )


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
