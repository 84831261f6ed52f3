"""Which files belong to which session, in the places where tools keep them or on given paths."""

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sessionferry.agent.content import PACKED, is_packed
from sessionferry.agent.layouts import (
    LAYOUTS,
    NOT_SESSIONS,
    FormatChoice,
    Found,
    Role,
    fitting,
    plain,
    slug,
    text,
)
from sessionferry.agent.opening import at_any_depth, usual_folder
from sessionferry.config import JsonLines
from sessionferry.errors import BadIdentity, UserError
from sessionferry.identity import SessionKey, Stream

log = logging.getLogger(__name__)

Problem = Callable[[str], None]
"""Takes a sentence about a file or folder that is left out; it begins with the path."""

NO_HOMES = (
    "No tool has sessions in its usual place (~/.amplifier, ~/.claude/projects, ~/.codex); "
    "name the folders or files."
)
_TOOLS = {"amplifier": "Amplifier", "claude_code": "Claude Code", "codex": "Codex"}


def warn(sentence: str) -> None:
    """Note in the log what is left out."""
    log.warning("left out: %s", sentence)


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
    def is_log(self) -> bool:
        """Whether another file in its place goes on where this one ended, as after a rotation."""
        return self.role == "events" or self.format == "jsonl"

    @property
    def file_name(self) -> str:
        """The file's own name, as an export gives it back."""
        return text(self.path.name.removesuffix(".backup").removesuffix(PACKED))


def discover(
    paths: list[Path],
    user_id: str,
    file_format: FormatChoice | None,
    described: Sequence[JsonLines] = (),
    problem: Problem = warn,
) -> list[Source]:
    """Find the files below the given paths, metadata first within a session, parents first.

    With a format, only its files, also out of their usual places. What is `described` are the files
    of a tool that is not known here: below its paths, every JSON Lines file. `problem` is told of
    what cannot be read, and of files that would be the same stream as another one; the others are
    found all the same. Raises `UserError` when a path does not exist or nothing is found.
    """
    for path in paths:
        if not _exists(path):
            raise UserError(f"There is no file or folder {path}.")
    problems: list[str] = []
    sources = _Search(user_id, file_format, described, problems.append).found(paths)
    if not sources:
        raise UserError("\n       ".join([_nothing_found(paths, file_format), *problems]))
    for sentence in problems:
        problem(sentence)
    return sources


def look(
    paths: list[Path],
    user_id: str,
    file_format: FormatChoice | None,
    described: Sequence[JsonLines] = (),
    problem: Problem = warn,
) -> list[Source]:
    """Find the files while tools are at work: paths may come later, nothing may be there yet."""
    there = [path for path in paths if _exists(path)]
    return _Search(user_id, file_format, described, problem).found(there)


def default_paths(file_format: FormatChoice | None = None) -> list[Path]:
    """Return where the tools keep their sessions, as far as that exists."""
    return [home for home in homes(file_format) if home.is_dir()]


def homes(file_format: FormatChoice | None = None) -> list[Path]:
    """Return where the tools would keep their sessions."""
    asked = [LAYOUTS[file_format]] if file_format else LAYOUTS.values()
    return [home for layout in asked for home in layout.homes()]


class _Search:
    """One look for files; what is in the way of some does not hide the others."""

    def __init__(
        self,
        user_id: str,
        file_format: FormatChoice | None,
        described: Sequence[JsonLines],
        problem: Problem,
    ) -> None:
        self._user_id = user_id
        self._format = file_format
        self._tools = [_Described(entry) for entry in described] if _takes_any(file_format) else []
        self._problem = problem

    def found(self, paths: list[Path]) -> list[Source]:
        found: dict[Path, Source] = {}
        for path in paths:
            try:
                # One file has one name, however it was reached: its key is made of it.
                for source in self._below(path.resolve()):
                    found.setdefault(source.path, source)
            except OSError as error:
                self._problem(f"{path}: {error.strerror}")
        return sorted(self._without_clashes(_without_copies(found.values())), key=_order)

    def _below(self, path: Path) -> Iterator[Source]:
        asked = self._format is not None
        if not path.is_dir() and (self._format == "jsonl" or self._tool_of(path)):
            yield from self._described(plain(path))
            return
        folders = self._folders(path) if path.is_dir() else [(path.parent, [path.name])]
        formats: Iterable[FormatChoice] = [self._format] if self._format else LAYOUTS
        for folder, names in folders:
            theirs = [name for name in names if self._tool_of(folder / name)]
            for found in LAYOUTS["jsonl"].find(folder, theirs, True):
                yield from self._described(found)
            others = [name for name in names if name not in theirs] if theirs else names
            for one in formats:
                for found in LAYOUTS[one].find(folder, others, asked):
                    yield from self._source(found, one)

    def _folders(self, path: Path) -> Iterator[tuple[Path, list[str]]]:
        """Walk down without following links, so that a loop of links cannot trap us."""
        root = at_any_depth(path)
        for walked, inner, names in os.walk(root, followlinks=False, onerror=self._unreadable):
            inner[:] = sorted(name for name in inner if name not in NOT_SESSIONS)
            files = [name for name in names if _may_be_file(Path(walked, name))]
            yield usual_folder(walked, files), files

    def _unreadable(self, error: OSError) -> None:
        self._problem(f"{error.filename}: {error.strerror}")

    def _source(
        self, found: Found, file_format: str, tool: "_Described | None" = None
    ) -> Iterator[Source]:
        try:
            key = SessionKey(self._user_id, found.project, found.session)
        except BadIdentity as error:
            self._problem(f"{found.path}: {error}")
            return
        fields = tool.fields if tool else ()
        yield Source(found.path, key, found.role, file_format, found.is_child, fields)

    def _described(self, found: Found) -> Iterator[Source]:
        """Say of a file what the first description that holds for it says."""
        tool = self._tool_of(found.path)
        if tool is not None and tool.project:
            found = replace(found, project=tool.project, session=tool.session(found))
        yield from self._source(found, "jsonl", tool)

    def _tool_of(self, path: Path) -> "_Described | None":
        return next((tool for tool in self._tools if tool.has(path)), None)

    def _without_clashes(self, sources: list[Source]) -> Iterator[Source]:
        """Leave out a file that would be the same stream as one before it."""
        seen: dict[tuple[SessionKey, Role], Path] = {}
        for source in sources:
            other = seen.setdefault((source.key, source.role), source.path)
            if other == source.path:
                yield source
            else:
                self._problem(f"{source.path}: it is the same stream as {other}")


class _Described:
    """A tool's JSON Lines files, as the configuration describes them."""

    def __init__(self, entry: JsonLines) -> None:
        self.project = entry.project
        self.fields = tuple(entry.places.items())
        self._roots = [path.expanduser().resolve() for path in entry.paths]

    def has(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self._roots)

    def session(self, found: Found) -> str:
        """Name a session by its folders, too: all of them are one project."""
        root = next(root for root in self._roots if found.path.is_relative_to(root))
        folders = found.path.relative_to(root).parts[:-1]
        return fitting("_".join((*map(text, folders), found.session)))


def _may_be_file(path: Path) -> bool:
    """Leave out pipes and the like, which block who opens them; keep what cannot be told."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _takes_any(file_format: FormatChoice | None) -> bool:
    return file_format in (None, "jsonl")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # What may not be looked at is a problem of its own, which the search names.
        return True


def _without_copies(sources: Iterable[Source]) -> list[Source]:
    """Leave out what is seen twice because Codex moves or packs a file while folders are read.

    Should both stay, the plain one counts, and of two such the one that was written last.
    """
    kept: dict[tuple[SessionKey, Role, str], Source] = {}
    for source in sources:
        name = source.file_name if source.format == "codex" else str(source.path)
        there = kept.setdefault((source.key, source.role, name), source)
        if there is not source and _freshness(source) > _freshness(there):
            kept[source.key, source.role, name] = source
    return list(kept.values())


def _freshness(source: Source) -> tuple[bool, int]:
    try:
        return not is_packed(source.path), source.path.stat().st_mtime_ns
    except OSError:
        return False, 0


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
    "Problem",
    "Role",
    "Source",
    "default_paths",
    "discover",
    "homes",
    "look",
    "slug",
    "warn",
]
