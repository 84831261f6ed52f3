"""`ferry delete`, `ferry undelete`: remove a session for good, and allow it to be sent again."""

from pathlib import Path
from typing import Any

import typer

from sessionferry import deletion, head_store
from sessionferry.audit import recorded
from sessionferry.cli.output import DataOption, JsonOption, confirm, print_json, settings
from sessionferry.cli.reading import Reader, find_head, with_reader
from sessionferry.errors import UserError
from sessionferry.heads import Head
from sessionferry.host import Identity
from sessionferry.identity import STREAMS, SessionKey, escape

SessionArgument = typer.Argument(..., help="Session id.")
ProjectOption = typer.Option(None, "--project", help="Project, if it is in several.")


def delete(
    session: str = SessionArgument,
    user: str | None = typer.Option(None, "--user", help="Owner, if several have the id."),
    project: str | None = ProjectOption,
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Delete a session: documents, quarantine, archived bytes. What comes late stays out.

    A deletion that was interrupted is finished when run again.

    Example: ferry delete SESSION --yes
    """

    async def work(reader: Reader) -> Head:
        head = await named_head(reader, session, user, project)
        if head.tombstone is not None and head.tombstone.finished:
            return head
        confirm(_question(head), yes=yes)
        what = _names(head)
        async with recorded(reader.archive, "delete", **what) as record:
            record.counts.update(_lines(head))
            return await deletion.delete_session(reader.store, reader.archive, head.key)

    head = with_reader(settings(data), work)
    if as_json:
        print_json(_document(head))
    elif head.tombstone is not None:
        typer.echo(f"Session {session} was deleted at {head.tombstone.deleted_at}.")


def undelete(
    session: str = SessionArgument,
    user: str | None = typer.Option(None, "--user", help="Owner (default: this machine's user)."),
    project: str | None = ProjectOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Allow a deleted session to be sent again. What was deleted stays deleted.

    Example: ferry undelete SESSION && ferry ship --resend
    """
    chosen = settings(data)
    owner = user or Identity.from_settings(chosen).user_id

    async def work(reader: Reader) -> Head:
        key = await _deleted_key(reader, session, owner, project)
        async with recorded(reader.archive, "undelete", **_names(Head.new(key))):
            return await deletion.undelete_session(reader.store, reader.archive, key)

    head = with_reader(chosen, work)
    if as_json:
        print_json(_document(head))
    else:
        typer.echo(f"Session {session} may be sent again; `ferry ship --resend` does so.")


async def named_head(reader: Reader, session: str, user: str | None, project: str | None) -> Head:
    """Find a session, also one whose documents are gone already; raises `UserError`."""
    if user is None or project is None:
        return await find_head(reader.store, session, user, project)
    head, etag = await head_store.read_head(reader.store, SessionKey(user, project, session))
    if etag is None:
        raise UserError(f"No session {session} of {user} is stored in {project}.")
    return head


async def _deleted_key(reader: Reader, session: str, user: str, project: str | None) -> SessionKey:
    if project is not None:
        return SessionKey(user, project, session)
    item = await reader.store.read_item("sessions", user, escape(session))
    entries = item.document["projects"] if item else []
    keys = [SessionKey(user, e["project_slug"], session) for e in entries if e["deleted"]]
    if not keys:
        raise UserError(f"No deleted session {session} of {user} is known; --user names its owner.")
    if len(keys) > 1:
        named = "; ".join(f"--project {key.project_slug}" for key in keys)
        raise UserError(f"Session {session} was deleted in several projects. Say which: {named}")
    return keys[0]


def _question(head: Head) -> str:
    lines = sum(_lines(head).values())
    return (
        f"Delete session {head.session_id} of {head.user_id} in {head.project_slug}, its"
        f" {lines:,} lines and their archived bytes, for good?"
    )


def _names(head: Head) -> dict[str, str]:
    names = {"user_id": head.user_id, "project_slug": head.project_slug}
    return names | {"session_id": head.session_id}


def _lines(head: Head) -> dict[str, int]:
    return {name: len(head.stream(name).stored) for name in STREAMS}


def _document(head: Head) -> dict[str, Any]:
    tombstone = head.tombstone.model_dump(mode="json") if head.tombstone else None
    return _names(head) | {"tombstone": tombstone, "deletions": head.deletions}
