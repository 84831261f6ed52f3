"""`ferry sessions`, `show`, `export`, `verify`: what is stored, and whether it is all there."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
import typer

from sessionferry import head_store, verification
from sessionferry.agent.collecting import planned_bytes
from sessionferry.agent.discover import FormatChoice
from sessionferry.archive import Archive
from sessionferry.cli.output import (
    NOT_ALL_WELL,
    DataOption,
    JsonOption,
    print_json,
    print_table,
    printable,
    progress,
    settings,
    size,
)
from sessionferry.cli.ship import gate_of, sources_of
from sessionferry.errors import UserError
from sessionferry.export import Exported, export_session
from sessionferry.formats.meaning import cost_text
from sessionferry.heads import Head, StreamHead, total_cost
from sessionferry.host import Identity
from sessionferry.identity import STREAMS, SessionKey, Stream
from sessionferry.lifecycle import status
from sessionferry.settings import Settings, endpoints
from sessionferry.store import ItemContainer, Store
from sessionferry.store.opening import open_store
from sessionferry.verification import Finding

Result = TypeVar("Result")


class Reader(NamedTuple):
    """What reading commands read from."""

    store: Store
    archive: Archive


def sessions(
    user: str | None = typer.Option(None, "--user", help="Only this user's."),
    project: str | None = typer.Option(None, "--project", help="Only this project's."),
    limit: int = typer.Option(100, min=1, help="At most so many, by last activity."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """List stored sessions, last activity first.

    Example: ferry sessions --project -srv-app-api --limit 20
    """

    wanted = partial(newest, "sessions", limit=limit, user=user, project=project)
    found = with_reader(settings(data), wanted)
    if as_json:
        print_json(found)
    elif not found:
        typer.echo("No sessions are stored yet. Send some with `ferry ship`.")
    else:
        print_table(_SESSION_COLUMNS, [_session_row(document) for document in found])


def show(
    session: str = typer.Argument(..., help="Session id."),
    user: str | None = typer.Option(None, "--user", help="Owner, if several have the id."),
    project: str | None = typer.Option(None, "--project", help="Project, if it is in several."),
    stream: Stream | None = typer.Option(None, help="Print this stream's lines."),
    after: int = typer.Option(-1, help="Lines after this sequence."),
    limit: int = typer.Option(20, min=1, help="At most so many lines."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Show what is stored of one session, or its lines.

    Examples: ferry show SESSION; ferry show SESSION --stream events --limit 5
    """

    async def read(reader: Reader) -> tuple[Head, list[dict[str, Any]]]:
        head = await find_head(reader.store, session, user, project)
        if stream is None:
            return head, []
        generation = head.stream(stream).generation
        lines = await reader.store.read_lines(
            head.key, stream, generation, after=after, limit=limit
        )
        return head, lines

    head, lines = with_reader(settings(data), read)
    if stream is not None:
        for line in lines:
            typer.echo(orjson.dumps(line).decode())
    elif as_json:
        print_json(head.to_document() | {"status": status(head, datetime.now(UTC))})
    else:
        _print_head(head)


def export(
    session: str = typer.Argument(..., help="Session id."),
    to: Path = typer.Option(..., "--to", help="Folder to write the session's folder into."),
    user: str | None = typer.Option(None, "--user", help="Owner, if several have the id."),
    project: str | None = typer.Option(None, "--project", help="Project, if it is in several."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Write a session's files back, byte for byte, out of the archive.

    Example: ferry export SESSION --to /tmp/back
    """

    async def write(reader: Reader) -> list[Exported]:
        head = await find_head(reader.store, session, user, project)
        if head.tombstone is not None:
            raise UserError(f"Session {session} was deleted.")
        return await export_session(reader.store, reader.archive, head, to / folder_name(session))

    written = with_reader(settings(data), write)
    if as_json:
        print_json([{**file._asdict(), "path": printable(file.path)} for file in written])
        return
    for file in written:
        typer.echo(f"{printable(file.path)}  {size(file.size)}  sha256 {file.sha256}")


def verify(
    paths: list[Path] = typer.Argument(
        None, help="Session folders or files (default: where the tools keep them)."
    ),
    file_format: FormatChoice | None = typer.Option(None, "--format", help="As for `ferry ship`."),
    whole_bytes: bool = typer.Option(False, "--bytes", help="Hash the archived bytes too."),
    data: Path | None = DataOption,
    as_json: bool = JsonOption,
) -> None:
    """Compare source files with what is stored: by count and digest, or byte by byte.

    Exit code 0: all is there. 3: something is missing, differs, or lies in the quarantine.

    Example: ferry verify ~/.amplifier --bytes
    """
    chosen = settings(data)
    identity = Identity.from_settings(chosen)
    gate = gate_of(chosen)
    sources = [
        source for source in sources_of(chosen, identity, paths, file_format) if gate.admits(source)
    ]

    async def compare(reader: Reader) -> list[Finding]:
        findings = []
        with progress("verifying", planned_bytes(sources)) as advance:
            for source in sources:
                findings.append(
                    await verification.verify(
                        reader.store, reader.archive, source, gate=gate, whole_bytes=whole_bytes
                    )
                )
                advance(findings[-1].bytes)
        return findings

    findings = with_reader(chosen, compare)
    if as_json:
        print_json([finding_document(finding) for finding in findings])
    else:
        _print_findings(findings)
    if any(f.verdict != "ok" or f.quarantined or f.conflicts for f in findings):
        raise typer.Exit(NOT_ALL_WELL)


# ---------------------------------------------------------------- finding


async def find_head(store: Store, session_id: str, user: str | None, project: str | None) -> Head:
    """Find the one session of this id; raises `UserError` when there is none, or several."""
    keys = [
        SessionKey(document["user_id"], entry["project_slug"], session_id)
        async for document in _all_sessions(store, user)
        if document["session_id"] == session_id
        for entry in document["projects"]
        if (project is None or entry["project_slug"] == project) and not entry["deleted"]
    ]
    if not keys:
        raise UserError(f"No session {session_id} is stored.")
    if len(keys) > 1:
        named = "; ".join(f"--user {key.user_id} --project {key.project_slug}" for key in keys)
        raise UserError(f"Several sessions have the id {session_id}. Say which: {named}")
    return (await head_store.read_head(store, keys[0])).head


async def _all_sessions(store: Store, user: str | None) -> AsyncIterator[dict[str, Any]]:
    token: str | None = None
    while True:
        page = await store.list_items("sessions", partition=user, limit=500, continuation=token)
        for document in page.documents:
            yield document
        token = page.continuation
        if token is None:
            return


def folder_name(session_id: str) -> str:
    """Make a session id safe as the name of a folder: it never leads elsewhere."""
    unsafe = r'[<>:"/\\|?*\x00-\x1f]|[ .]$' if sys.platform == "win32" else r"[/\\\x00]"
    return re.sub(unsafe, "_", session_id).lstrip(".") or "_"


@asynccontextmanager
async def open_reader(chosen: Settings) -> AsyncIterator[Reader]:
    """Open the store and the archive of these settings."""
    target = endpoints(chosen)
    store = await open_store(target.store.get_secret_value(), chosen)
    try:
        yield Reader(store, Archive.open(target.archive))
    finally:
        await store.close()


def with_reader(chosen: Settings, work: Callable[[Reader], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with open_reader(chosen) as reader:
            return await work(reader)

    return asyncio.run(run())


async def newest(
    container: ItemContainer,
    reader: Reader,
    *,
    limit: int,
    user: str | None = None,
    project: str | None = None,
) -> list[dict[str, Any]]:
    """Return the documents of a container that were last active, at most so many."""
    found: list[dict[str, Any]] = []
    token: str | None = None
    while len(found) < limit:
        page = await reader.store.list_items(
            container,
            partition=user,
            project_slug=project,
            limit=min(limit - len(found), 500),
            continuation=token,
        )
        found += page.documents
        token = page.continuation
        if token is None:
            break
    return found


# ---------------------------------------------------------------- printing

_SESSION_COLUMNS = ("session", "project", "user", "last activity", "events", "messages", "cost $")


def _session_row(document: dict[str, Any]) -> tuple[object, ...]:
    return (
        document["session_id"],
        document["project_slug"],
        document["user_id"],
        (document["last_time"] or "-")[:19].replace("T", " "),
        document["event_count"],
        document["message_count"],
        f"{Decimal(document['cost_usd']):.4f}",
    )


def _print_head(head: Head) -> None:
    typer.echo(f"session  {head.session_id}")
    typer.echo(f"project  {head.project_slug}")
    typer.echo(f"user     {head.user_id}")
    typer.echo(f"status   {status(head, datetime.now(UTC))}")
    typer.echo("")
    columns = ("stream", "stored", "quarantined", "missing", "truncated", "bytes", "last time")
    print_table(columns, [_stream_row(name, head.stream(name)) for name in STREAMS])
    used = head.stream("events").usage.plus(head.stream("transcript").usage)
    cost = sum(total_cost(head.stream(name).cost_usd) for name in STREAMS)
    usage = ", ".join(f"{name} {count:,}" for name, count in used._asdict().items())
    typer.echo(f"\ntokens   {usage}\ncost     ${cost_text(cost)}")


def _stream_row(name: str, state: StreamHead) -> tuple[object, ...]:
    gaps = len((state.stored | state.quarantined).gaps())
    return (
        name,
        len(state.stored),
        len(state.quarantined),
        gaps,
        state.truncated,
        state.line_bytes,
        (state.last_time or "-")[:19].replace("T", " "),
    )


def finding_document(finding: Finding) -> dict[str, Any]:
    """Render a finding as JSON."""
    return {
        "path": printable(finding.source.path),
        "session_id": finding.source.key.session_id,
        "verdict": finding.verdict,
        "lines": finding.lines,
        "bytes": finding.bytes,
        "filtered": finding.filtered,
        "redacted": finding.redacted,
        "stored": finding.stored,
        "quarantined": finding.quarantined,
        "conflicts": finding.conflicts,
        "missing": [list(one) for one in finding.missing.ranges],
        "detail": finding.detail,
    }


_KEPT_BACK = ("filtered", "redacted")


def _print_findings(findings: list[Finding]) -> None:
    wrong = [f for f in findings if f.verdict != "ok" or f.quarantined or f.conflicts]
    for finding in wrong:
        parts = [finding.detail] if finding.detail else []
        if finding.quarantined:
            parts.append(f"{finding.quarantined:,} lines are in the quarantine")
        if finding.conflicts:
            parts.append(f"{finding.conflicts:,} lines arrived in two versions")
        path = printable(finding.source.path)
        typer.echo(f"{finding.verdict:10}  {path}: {'; '.join(parts)}")
    good = sum(finding.verdict == "ok" for finding in findings)
    typer.echo(
        f"{good:,} of {len(findings):,} files are complete: "
        f"{sum(f.lines for f in findings):,} lines = "
        f"{sum(f.stored for f in findings):,} stored + "
        f"{sum(f.quarantined for f in findings):,} quarantined + "
        f"{sum(len(f.missing) for f in findings):,} missing."
    )
    filtered, redacted = (sum(getattr(f, name) for f in findings) for name in _KEPT_BACK)
    if filtered or redacted:
        typer.echo(
            f"Compared as this machine's rules let it leave: {filtered:,} lines filtered, "
            f"{redacted:,} secrets or payloads replaced."
        )
