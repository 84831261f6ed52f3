"""`ferry rebuild`: sessions' documents, heads and projections, made anew."""

from pathlib import Path
from typing import Any

import typer

from sessionferry.cli.deleting import ProjectOption, named_head
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    print_json,
    settings,
)
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.errors import PermanentError, UserError
from sessionferry.identity import SessionKey
from sessionferry.rebuilding import Rebuilder, Rebuilt
from sessionferry.upgrading import outdated_sessions


def rebuild(
    session: str | None = typer.Argument(None, help="Session id."),
    outdated: bool = typer.Option(
        False, "--outdated", help="All sessions that an older version made differently."
    ),
    user: str | None = typer.Option(None, "--user", help="Owner, if several have the id."),
    project: str | None = ProjectOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Make a session's documents anew from the archive, and count them anew.

    Name --user and --project for a session of which only the archive is left.

    Examples: ferry rebuild SESSION; ferry rebuild --outdated
    """
    if outdated == (session is not None):
        raise UserError("Name a session, or say --outdated.")
    chosen = settings(data)
    if session is None:
        _print_outdated(with_reader(chosen, _rebuild_outdated), as_json=as_json)
        return
    named = session

    async def work(reader: Reader) -> Rebuilt:
        if user is not None and project is not None:
            key = SessionKey(user, project, named)
        else:
            key = (await named_head(reader, named, user, project)).key
        return await Rebuilder(reader.store, reader.archive).rebuild(key)

    done = with_reader(chosen, work)
    if as_json:
        print_json({"session_id": session, **done._asdict(), "head": done.head.to_document()})
    else:
        typer.echo(
            f"Session {session}: {done.created:,} documents were missing and made,"
            f" {done.renewed:,} made anew; {done.archived:,} lines counted."
        )


async def _rebuild_outdated(reader: Reader) -> dict[str, Any]:
    rebuilt, failed = 0, []
    async for key in outdated_sessions(reader.store):
        try:
            await Rebuilder(reader.store, reader.archive).rebuild(key)
        except (PermanentError, UserError) as error:
            failed.append({"partition_key": key.partition_key, "detail": str(error)})
        else:
            rebuilt += 1
    return {"rebuilt": rebuilt, "failed": failed}


def _print_outdated(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['rebuilt']:,} sessions were made anew.")
        for failure in found["failed"]:
            typer.echo(f"  {failure['partition_key']}: {failure['detail']}", err=True)
    if found["failed"]:
        raise typer.Exit(NOT_ALL_WELL)
