"""`ferry rebuild`: a session's documents, head and projection, made anew."""

from pathlib import Path

import typer

from sessionferry.cli.deleting import ProjectOption, SessionArgument, named_head
from sessionferry.cli.output import DataOption, JsonOption, print_json, settings
from sessionferry.cli.reading import Reader, with_reader
from sessionferry.identity import SessionKey
from sessionferry.rebuilding import Rebuilder, Rebuilt


def rebuild(
    session: str = SessionArgument,
    user: str | None = typer.Option(None, "--user", help="Owner, if several have the id."),
    project: str | None = ProjectOption,
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Make a session's documents anew from the archive, and count them anew.

    Name --user and --project for a session of which only the archive is left.

    Example: ferry rebuild SESSION
    """

    async def work(reader: Reader) -> Rebuilt:
        if user is not None and project is not None:
            key = SessionKey(user, project, session)
        else:
            key = (await named_head(reader, session, user, project)).key
        return await Rebuilder(reader.store, reader.archive).rebuild(key)

    done = with_reader(settings(data), work)
    if as_json:
        print_json({"session_id": session, **done._asdict(), "head": done.head.to_document()})
    else:
        typer.echo(
            f"Session {session}: {done.created:,} documents were missing and made,"
            f" {done.renewed:,} made anew; {done.archived:,} lines counted."
        )
