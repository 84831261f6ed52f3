"""Which files belong to which session, in the places where tools keep them or on given paths."""

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sessionferry.agent.content import PACKED, is_packed
from sessionferry.agent.layouts import (
    LAYOUTS,
    NOT_SESSIONS,
    FormatChoice,
    Found,
    Role,
    plain,
    slug,
    text,
)
from sessionferry.config import JsonLines
from sessionferry.errors import UserError
from sessionferry.identity import SessionKey, Stream

log = logging.getLogger(__name__)

NO_HOMES = (
    "No tool has sessions in its usual place (~/.amplifier, ~/.claude/projects, ~/.codex); "
    "name the folders or files."
)
_TOOLS = {"amplifier": "Amplifier", "claude_code": "Claude Code", "codex": "Codex"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file to be shipped, and what it is."""

    path: Path
    key: SessionKey
    role: Role
    format: str
    is_child: bool = False
    """Whether its session was started by another one."""
    fields: tuple[tuple[str, str], ...] = ()
    """Where facts stand in its lines, if the configuration says so: names and places."""

    @property
    def stream(self) -> Stream | None:
        """The stream this file is; None for metadata."""
        return None if self.role == "metadata" else self.role

    @property
    def is_rewritable(self) -> bool:
        """Whether the writing tool rewrites the file as a whole; events are only appended to."""
        return self.role == "transcript"

    @property
    def file_name(self) -> str:
        """The file's own name, as an export gives it back."""
        return text(self.path.name.removesuffix(".backup").removesuffix(PACKED))


def discover(
    paths: list[Path],
    user_id: str,
    file_format: FormatChoice | None,
    described: Sequence[JsonLines] = (),
) -> list[Source]:
    """Find the files below the given paths, metadata first within a session, parents first.

    With a format, only its files, also out of their usual places. What is `described` are the files
    of a tool that is not known here: below its paths, every JSON Lines file. Raises `UserError`
    when a path does not exist or nothing is found, and when two files would be the same stream.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"There is no file or folder {path}.")
    sources = _found(paths, user_id, file_format, described)
    if not sources:
        raise UserError(_nothing_found(paths, file_format))
    _refuse_clashes(sources)
    return sources


def look(
    paths: list[Path],
    user_id: str,
    file_format: FormatChoice | None,
    described: Sequence[JsonLines] = (),
) -> list[Source]:
    """Find the files while tools are at work: paths may come later, and nothing may be there yet.

    Of two files that would be the same stream the first counts, and the other is named in the log.
    """
    first: dict[tuple[SessionKey, Role], Source] = {}
    there = [path for path in paths if path.exists()]
    for source in _found(there, user_id, file_format, described):
        other = first.setdefault((source.key, source.role), source)
        if other is not source:
            log.warning("%s is left out: %s is the same stream", source.path, other.path)
    return list(first.values())


def _found(
    paths: list[Path],
    user_id: str,
    file_format: FormatChoice | None,
    described: Sequence[JsonLines],
) -> list[Source]:
    found: dict[Path, Source] = {}
    tools = [_Described(entry) for entry in described] if file_format in (None, "jsonl") else []
    for path in paths:
        # One file has one name, however it was reached: its key is made of it.
        for source in _below(path.resolve(), user_id, file_format, tools):
            found.setdefault(source.path, source)
    return sorted(_without_copies(found.values()), key=_order)


def default_paths(file_format: FormatChoice | None = None) -> list[Path]:
    """Return where the tools keep their sessions, as far as that exists."""
    return [home for home in homes(file_format) if home.is_dir()]


def homes(file_format: FormatChoice | None = None) -> list[Path]:
    """Return where the tools would keep their sessions."""
    asked = [LAYOUTS[file_format]] if file_format else LAYOUTS.values()
    return [home for layout in asked for home in layout.homes()]


def _below(
    path: Path, user_id: str, file_format: FormatChoice | None, tools: "list[_Described]"
) -> Iterator[Source]:
    asked = file_format is not None
    if not path.is_dir() and (file_format == "jsonl" or any(tool.has(path) for tool in tools)):
        yield _described(_source(plain(path), user_id, "jsonl"), tools)
        return
    folders = _folders(path) if path.is_dir() else [(path.parent, [path.name])]
    formats: Iterable[FormatChoice] = [file_format] if file_format else LAYOUTS
    for folder, names in folders:
        theirs = [name for name in names if any(tool.has(folder / name) for tool in tools)]
        for found in LAYOUTS["jsonl"].find(folder, theirs, True):
            yield _described(_source(found, user_id, "jsonl"), tools)
        others = [name for name in names if name not in theirs] if theirs else names
        for one in formats:
            for found in LAYOUTS[one].find(folder, others, asked):
                yield _source(found, user_id, one)


class _Described:
    """A tool's JSON Lines files, as the configuration describes them."""

    def __init__(self, entry: JsonLines) -> None:
        self.project = entry.project
        self.fields = tuple(entry.places.items())
        self._roots = [path.expanduser().resolve() for path in entry.paths]

    def has(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._roots)

    def session(self, source: Source) -> str:
        """Name a session by its folders, too: all of them are one project."""
        root = next(root for root in self._roots if source.path.is_relative_to(root))
        folders = source.path.relative_to(root).parts[:-1]
        return "_".join((*map(text, folders), source.key.session_id))


def _described(source: Source, tools: list[_Described]) -> Source:
    """Say of a file what the first description that holds for it says."""
    tool = next((tool for tool in tools if tool.has(source.path)), None)
    if tool is None:
        return source
    key = source.key
    if tool.project:
        key = replace(key, project_slug=tool.project, session_id=tool.session(source))
    return replace(source, key=key, fields=tool.fields)


def _source(found: Found, user_id: str, file_format: str) -> Source:
    key = SessionKey(user_id, found.project, found.session)
    return Source(found.path, key, found.role, file_format, found.is_child)


def _folders(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk down without following links, so that a loop of links cannot trap us."""
    for folder, inner, names in os.walk(path, followlinks=False, onerror=_report):
        inner[:] = sorted(name for name in inner if name not in NOT_SESSIONS)
        yield Path(folder), [name for name in names if _may_be_file(Path(folder, name))]


def _report(error: OSError) -> None:
    log.warning("a folder cannot be read: %s", error)


def _may_be_file(path: Path) -> bool:
    """Leave out pipes and the like, which block who opens them; keep what cannot be told."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _without_copies(sources: Iterable[Source]) -> list[Source]:
    """Leave out what is seen twice because Codex moves or packs a file while folders are read."""
    kept: dict[tuple[SessionKey, Role, str], Source] = {}
    for source in sorted(sources, key=lambda source: is_packed(source.path)):
        name = source.file_name if source.format == "codex" else str(source.path)
        kept.setdefault((source.key, source.role, name), source)
    return list(kept.values())


def _refuse_clashes(sources: Iterable[Source]) -> None:
    seen: dict[tuple[SessionKey, Role], Path] = {}
    for source in sources:
        other = seen.setdefault((source.key, source.role), source.path)
        if other != source.path:
            raise UserError(
                f"{other} and {source.path} would be the same stream of session "
                f"{source.key.session_id} in project {source.key.project_slug}. Ship one of them."
            )


def _order(source: Source) -> tuple[str, bool, str, bool, str]:
    key = source.key
    streams_last = source.stream is not None
    return (key.project_slug, source.is_child, key.session_id, streams_last, source.role)


def _nothing_found(paths: list[Path], file_format: FormatChoice | None) -> str:
    named = ", ".join(str(path) for path in paths)
    if file_format == "jsonl":
        return f"There are no .jsonl files below {named}."
    tools = _TOOLS[file_format] if file_format else "Amplifier, Claude Code or Codex"
    return (
        f"There are no sessions of {tools} below {named}. "
        "For other JSON Lines files use --format jsonl."
    )


__all__ = [
    "NO_HOMES",
    "FormatChoice",
    "Role",
    "Source",
    "default_paths",
    "discover",
    "homes",
    "look",
    "slug",
]
