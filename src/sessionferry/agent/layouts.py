"""How each tool lays its session files out on a disk.

A layout looks at one folder's file names and says which of them are sessions. A session is named by
its path alone, never by what is inside: a file's first line may not be written yet.

    ~/.amplifier/projects/PROJECT/sessions/SESSION/{metadata.json,transcript.jsonl,events.jsonl}
    ~/.claude/projects/PROJECT/SESSION.jsonl
    ~/.claude/projects/PROJECT/agent-ID.jsonl                          sub-agents, older versions
    ~/.claude/projects/PROJECT/SESSION/subagents/**/agent-ID.jsonl     sub-agents, with .meta.json
    ~/.codex/sessions/YYYY/MM/DD/rollout-TIME-SESSION.jsonl
    ~/.codex/archived_sessions/rollout-TIME-SESSION.jsonl

Codex's files may be compressed: `rollout-TIME-SESSION.jsonl.zst`.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from sessionferry.agent.content import PACKED, Unreadable, beginning
from sessionferry.agent.opening import unextended
from sessionferry.identity import MAX_PART_BYTES

Role = Literal["events", "transcript", "metadata"]
FormatChoice = Literal["amplifier", "claude_code", "codex", "jsonl"]

_AMPLIFIER_FILES: dict[str, Role] = {
    "metadata.json": "metadata",
    "transcript.jsonl": "transcript",
    "events.jsonl": "events",
}
_BACKUP = ".backup"
# A folder of another tool's files with the same names, in another schema.
NOT_SESSIONS = frozenset({"context-intelligence"})
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_CLAUDE_NAME = re.compile(rf"({_UUID}|agent-[^.]+)\.jsonl", re.IGNORECASE)
_CLAUDE_METADATA = re.compile(r"(agent-[^.]+)\.meta\.json")
_PROJECTS = "projects"
_SUB_AGENTS = "subagents"
_CODEX_NAME = re.compile(r"rollout-.*\.jsonl")
_CODEX_ID = re.compile(rf".*({_UUID})", re.IGNORECASE)
_CODEX_DAY = re.compile(r"sessions/\d{4}/\d\d/\d\d")
_CODEX_CWD = re.compile(rb'"cwd"\s*:\s*("(?:[^"\\]|\\.)*")')
_FIRST_BYTES = 64 * 1024
_TORN_SECONDS = 300.0
_JSONL_ENDINGS = (".jsonl", ".ndjson")
_NO_PROJECT = "-"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that belongs to a session. `is_child` when another session has to be there first."""

    path: Path
    project: str
    session: str
    role: Role = "transcript"
    is_child: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """One tool's files: where they are by themselves, and which of a folder's they are.

    `find` takes a folder and its file names; `asked` is true when the user named this format, so
    that files are taken that are not in their usual place.
    """

    homes: Callable[[], list[Path]]
    find: Callable[[Path, list[str], bool], Iterator[Found]]


def _amplifier_homes() -> list[Path]:
    return [Path.home() / ".amplifier"]


def _amplifier(folder: Path, names: list[str], _asked: bool) -> Iterator[Found]:
    if folder.name in NOT_SESSIONS:
        return
    session = text(folder.name)
    for name, role in sorted(_AMPLIFIER_FILES.items()):
        # A backup is all there is when its writer died between two renames.
        for there in (name, name + _BACKUP):
            if there in names:
                yield Found(folder / there, _project_of(folder), session, role, "_" in session)
                break


def _project_of(folder: Path) -> str:
    """Name the project: `<slug>/sessions/<id>`, else the slug of the folder around the session."""
    if folder.parent.name == "sessions":
        return text(folder.parent.parent.name) or _NO_PROJECT
    return slug(folder.parent)


def _claude_homes() -> list[Path]:
    home = os.environ.get("CLAUDE_CONFIG_DIR")
    return [(Path(home) if home else Path.home() / ".claude") / "projects"]


def _claude_code(folder: Path, names: list[str], asked: bool) -> Iterator[Found]:
    if _SUB_AGENTS in folder.parts:
        yield from _sub_agents(folder, names, asked)
    elif asked or folder.parent.name == _PROJECTS:
        project = text(folder.name) or _NO_PROJECT
        for name in sorted(names):
            if _CLAUDE_NAME.fullmatch(name) or (asked and name.endswith(".jsonl")):
                stem = text(Path(name).stem)
                yield Found(folder / name, project, stem, is_child=stem.startswith("agent-"))


def _sub_agents(folder: Path, names: list[str], asked: bool) -> Iterator[Found]:
    """Read `PROJECT/SESSION/subagents/`, at any depth below it."""
    at = len(folder.parts) - 1 - folder.parts[::-1].index(_SUB_AGENTS)
    if at < 3 or not (asked or folder.parts[at - 3] == _PROJECTS):
        return
    project, parent = text(folder.parts[at - 2]), text(folder.parts[at - 1])
    for name in sorted(names):
        if match := _CLAUDE_METADATA.fullmatch(name):
            session = fitting(f"{parent}_{text(match[1])}")
            yield Found(folder / name, project, session, "metadata", is_child=True)
        elif name.endswith(".jsonl"):
            # An agent's name is its own; a workflow's journal is named by its folder.
            stem = text(Path(name).stem)
            own = [stem] if stem.startswith("agent-") else [*folder.parts[at + 1 :], stem]
            session = fitting("_".join([parent, *map(text, own)]))
            yield Found(folder / name, project, session, is_child=True)


def _codex_homes() -> list[Path]:
    home = os.environ.get("CODEX_HOME")
    place = Path(home) if home else Path.home() / ".codex"
    return [place / "sessions", place / "archived_sessions"]


def _codex(folder: Path, names: list[str], asked: bool) -> Iterator[Found]:
    usual = folder.name == "archived_sessions" or _CODEX_DAY.search(folder.as_posix())
    for name in sorted(names):
        plain_name = name.removesuffix(PACKED)
        is_named = _CODEX_NAME.fullmatch(plain_name) or (
            (asked or usual) and plain_name.endswith(".jsonl")
        )
        if is_named and not _is_doubled(name, names):
            stem = text(Path(plain_name).stem)
            match = _CODEX_ID.fullmatch(stem)
            project = _codex_project(folder / name)
            if project is not None:
                yield Found(folder / name, project, match[1] if match else stem)


def _is_doubled(name: str, names: list[str]) -> bool:
    """Whether this is the compressed one of two: what is added goes to the plain one."""
    return name.endswith(PACKED) and name.removesuffix(PACKED) in names


def _codex_project(path: Path) -> str | None:
    """Name the project by the directory in the file's first line, which is never written again.

    None for a file whose first line is still being written: its project is not known yet.
    """
    try:
        start = beginning(path, _FIRST_BYTES)
    except (OSError, Unreadable):
        return _NO_PROJECT
    first_line, newline, _ = start.partition(b"\n")
    match = _CODEX_CWD.search(first_line)
    if match is None:
        is_whole = newline or len(start) == _FIRST_BYTES or (start and _is_old(path))
        return _NO_PROJECT if is_whole else None
    try:
        return slug(orjson.loads(match[1]))
    except orjson.JSONDecodeError:
        return _NO_PROJECT


def _is_old(path: Path) -> bool:
    """Whether nobody has written for so long that the file is as it will be."""
    try:
        return time.time() - path.stat().st_mtime > _TORN_SECONDS
    except OSError:
        return False


def _jsonl(folder: Path, names: list[str], asked: bool) -> Iterator[Found]:
    for name in sorted(names) if asked else ():
        if name.removesuffix(PACKED).endswith(_JSONL_ENDINGS) and not _is_doubled(name, names):
            yield plain(folder / name)


def plain(path: Path) -> Found:
    """Take a file for a plain transcript, whatever its name."""
    session = text(path.name.removesuffix(PACKED).removesuffix(".jsonl"))
    return Found(path, slug(path.parent), session)


LAYOUTS: Mapping[FormatChoice, Layout] = {
    "amplifier": Layout(_amplifier_homes, _amplifier),
    "claude_code": Layout(_claude_homes, _claude_code),
    "codex": Layout(_codex_homes, _codex),
    "jsonl": Layout(list, _jsonl),
}


def slug(folder: Path | str) -> str:
    r"""Name a folder as Amplifier does: `/srv/app/api` gives `-srv-app-api`.

    `C:\app` and `\\?\C:\app`, as some programs write it, both give `-C-app`.
    """
    name = re.sub(r"[/\\]", "-", text(unextended(str(folder)))).replace(":", "")
    name = name if name.startswith("-") else f"-{name}"
    short = fitting(name)
    return name if short == name else f"-{short}"


def fitting(name: str) -> str:
    """Shorten a name that is too long for a key: rare, so that a digest and its end will do."""
    if len(name.encode()) <= MAX_PART_BYTES:
        return name
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{name[-200:]}"


def text(name: str) -> str:
    """Make a file name text: bytes that are not UTF-8 become `%XX`."""
    return "".join(
        f"%{ord(sign) - 0xDC00:02X}" if "\udc80" <= sign <= "\udcff" else sign for sign in name
    )
