"""Which files belong to which session.

Amplifier keeps a session in a folder of its own; any other JSON Lines file is, on request, one
session with one transcript.
"""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sessionferry.errors import UserError
from sessionferry.identity import MAX_PART_BYTES, SessionKey, Stream

log = logging.getLogger(__name__)

Role = Literal["events", "transcript", "metadata"]
FormatChoice = Literal["amplifier", "jsonl"]

_AMPLIFIER_FILES: dict[str, Role] = {
    "metadata.json": "metadata",
    "transcript.jsonl": "transcript",
    "events.jsonl": "events",
}
# A folder of another tool's files with the same names, in another schema.
_NOT_SESSIONS = frozenset({"context-intelligence"})
_JSONL_ENDINGS = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Source:
    """One file to be shipped, and what it is."""

    path: Path
    key: SessionKey
    role: Role
    format: str

    @property
    def stream(self) -> Stream | None:
        """The stream this file is; None for metadata."""
        return None if self.role == "metadata" else self.role

    @property
    def is_rewritable(self) -> bool:
        """Whether the writing tool rewrites the file as a whole; events are only appended to."""
        return self.role == "transcript"


def discover(paths: list[Path], user_id: str, file_format: FormatChoice | None) -> list[Source]:
    """Find the files below the given paths, metadata first within a session, parents first.

    Raises `UserError` when a path does not exist or nothing is found, and when two files would be
    the same stream.
    """
    found: dict[Path, Source] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"There is no file or folder {path}.")
        # One file has one name, however it was reached: its key is made of it.
        for source in _below(path.resolve(), user_id, file_format):
            found.setdefault(source.path, source)
    if not found:
        raise UserError(_nothing_found(paths, file_format))
    _refuse_clashes(found.values())
    return sorted(found.values(), key=_order)


def default_paths() -> list[Path]:
    """Return where Amplifier keeps its sessions, if that exists."""
    home = Path.home() / ".amplifier"
    return [home] if home.is_dir() else []


def _below(path: Path, user_id: str, file_format: FormatChoice | None) -> Iterator[Source]:
    if file_format == "jsonl":
        yield from _jsonl_files(path, user_id)
    elif path.is_dir():
        for folder, names in _folders(path):
            yield from _session_files(folder, names, user_id)
    elif path.name in _AMPLIFIER_FILES:
        yield from _session_files(path.parent, [path.name], user_id)


def _folders(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Walk down without following links, so that a loop of links cannot trap us."""
    for folder, inner, names in os.walk(path, followlinks=False, onerror=_report):
        inner[:] = sorted(name for name in inner if name not in _NOT_SESSIONS)
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


def _session_files(folder: Path, names: list[str], user_id: str) -> Iterator[Source]:
    own = sorted(name for name in names if name in _AMPLIFIER_FILES)
    if not own or folder.name in _NOT_SESSIONS:
        return
    key = SessionKey(user_id, _project_of(folder), _text(folder.name))
    for name in own:
        yield Source(folder / name, key, _AMPLIFIER_FILES[name], "amplifier")


def _project_of(folder: Path) -> str:
    """Name the project: `<slug>/sessions/<id>`, else the slug of the folder around the session."""
    if folder.parent.name == "sessions":
        return _text(folder.parent.parent.name) or "-"
    return slug(folder.parent)


def _jsonl_files(path: Path, user_id: str) -> Iterator[Source]:
    for file in _files(path):
        key = SessionKey(user_id, slug(file.parent), _session_name(file))
        yield Source(file, key, "transcript", "jsonl")


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, names in _folders(path):
        for name in sorted(names):
            if name.endswith(_JSONL_ENDINGS):
                yield folder / name


def _session_name(file: Path) -> str:
    return _text(file.stem if file.suffix == ".jsonl" else file.name)


def slug(folder: Path) -> str:
    """Name a folder as Amplifier does: `/srv/app/api` gives `-srv-app-api`."""
    name = re.sub(r"[/\\]", "-", _text(str(folder))).replace(":", "")
    name = name if name.startswith("-") else f"-{name}"
    if len(name.encode()) <= MAX_PART_BYTES:
        return name
    # Names of this length are rare; their end tells them apart best, and the digest for certain.
    return f"-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{name[-200:]}"


def _text(name: str) -> str:
    """Make a file name text: bytes that are not UTF-8 become `%XX`."""
    return "".join(
        f"%{ord(sign) - 0xDC00:02X}" if "\udc80" <= sign <= "\udcff" else sign for sign in name
    )


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
    is_child = "_" in key.session_id
    return (key.project_slug, is_child, key.session_id, source.stream is not None, source.role)


def _nothing_found(paths: list[Path], file_format: FormatChoice | None) -> str:
    named = ", ".join(str(path) for path in paths)
    if file_format == "jsonl":
        return f"There are no .jsonl files below {named}."
    return (
        f"There are no Amplifier sessions below {named}. "
        "For other JSON Lines files use --format jsonl."
    )
