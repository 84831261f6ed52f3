"""`ferry expire`, `ferry pin`, `ferry unpin`: retention, and what is kept from it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from sessionferry import expiring
from sessionferry.cli.deleting import ProjectOption, SessionArgument
from sessionferry.cli.output import (
    DataOption,
    JsonOption,
    confirm,
    print_json,
    print_table,
    settings,
)
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.errors import UserError
from sessionferry.expiring import Due
from sessionferry.expiry import Policy
from sessionferry.heads import Head
from sessionferry.host import Identity
from sessionferry.identity import SessionKey, escape

OwnerOption = typer.Option(None, "--user", help="Owner (default: this machine's user).")


def expire(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Prune, hide and delete what the retention settings say is old.

    Example: FERRY_RETENTION_HIDE_DAYS=180 ferry expire --dry-run
    """
    chosen = settings(data)
    policy = Policy.from_settings(chosen)
    due: list[Due] = []

    async def work(reader: Reader) -> dict[str, int]:
        place, now = (reader.store, reader.archive, policy), datetime.now(UTC)
        found = await expiring.expire(*place, now, dry_run=True, say=due.append)
        if dry_run or not due:
            return found._asdict()
        if not as_json:
            _print(due)
        confirm(_question(found._asdict()), yes=yes)
        return (await expiring.expire(*place, now))._asdict()

    counts = with_reader(chosen, work)
    if as_json:
        print_json({"off": policy.is_off, "due": [_document(one) for one in due], **counts})
        return
    if policy.is_off:
        typer.echo("Retention is off; docs/reference/settings.md names its settings.")
        return
    if dry_run:
        _print(due)
    did = "would be" if dry_run else "were"
    typer.echo(
        f"{counts['sessions']:,} sessions: {counts['pruned']:,} documents of noisy events {did} "
        f"pruned, {counts['unarchived']:,} kept because the archive lacks them; "
        f"{counts['hidden']:,} sessions {did} hidden and {counts['deleted']:,} deleted."
    )


def pin(
    session: str = SessionArgument,
    user: str | None = OwnerOption,
    project: str | None = ProjectOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Keep a session from retention; shows it if it was hidden.

    Example: ferry pin SESSION
    """
    head = _pin(session, user, project, data, pinned=True)
    _print_pinned(head, f"Session {session} is pinned: retention leaves it alone.", as_json)


def unpin(
    session: str = SessionArgument,
    user: str | None = OwnerOption,
    project: str | None = ProjectOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Let retention have a pinned session again.

    Example: ferry unpin SESSION
    """
    head = _pin(session, user, project, data, pinned=False)
    _print_pinned(head, f"Session {session} is not pinned.", as_json)


def _pin(
    session: str, user: str | None, project: str | None, data: Path | None, *, pinned: bool
) -> Head:
    chosen = settings(data)
    owner = user or Identity.from_settings(chosen).user_id

    async def work(reader: Reader) -> Head:
        key = await _key(reader, session, owner, project)
        return await expiring.pin_session(reader.store, reader.archive, key, pinned=pinned)

    return with_reader(chosen, work)


async def _key(reader: Reader, session: str, owner: str, project: str | None) -> SessionKey:
    """Find a session by its document, which is there also while it is hidden."""
    item = await reader.store.read_item("sessions", owner, escape(session))
    slugs = [
        entry["project_slug"]
        for entry in (item.document["projects"] if item else [])
        if not entry["deleted"] and project in (None, entry["project_slug"])
    ]
    if not slugs:
        raise UserError(f"No session {session} of {owner} is stored; --user names its owner.")
    if len(slugs) > 1:
        named = "; ".join(f"--project {slug}" for slug in slugs)
        raise UserError(f"Session {session} is in several projects. Say which: {named}")
    return SessionKey(owner, slugs[0], session)


def _question(counts: dict[str, int]) -> str:
    return (
        f"Prune {counts['pruned']:,} documents, hide {counts['hidden']:,} sessions and delete"
        f" {counts['deleted']:,} for good?"
    )


def _document(due: Due) -> dict[str, Any]:
    head = due.head
    return {
        "user_id": head.user_id,
        "project_slug": head.project_slug,
        "session_id": head.session_id,
        "steps": list(due.steps),
        "pruned": len(due.events),
        "unarchived": due.unarchived,
        "lines": due.lines,
    }


def _print(due: list[Due]) -> None:
    rows = [
        (it.head.session_id, it.head.project_slug, it.head.user_id, ", ".join(it.steps), n)
        for it in due
        for n in [it.lines or len(it.events)]
    ]
    if rows:
        print_table(("session", "project", "user", "what", "documents"), rows)


def _print_pinned(head: Head, said: str, as_json: bool) -> None:
    if as_json:
        names = {"user_id": head.user_id, "project_slug": head.project_slug}
        print_json({**names, "session_id": head.session_id, "pinned": head.pinned})
    else:
        typer.echo(said)
