"""What stays on the machine by its project, its path or its kind, and raw payloads.

What is kept of a line stays as it was, byte for byte: a payload is cut out of the raw bytes, where
the places of an object's members are found. These are also used to name what no parser takes.
"""

import fnmatch
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from sessionferry.agent import linear
from sessionferry.agent.discover import Source, slug
from sessionferry.agent.opening import unextended

PARSED_BYTES = 1024 * 1024
"""Longest line that is parsed for its name: objects can take 24 times the memory of their text."""
STRIPPED = "raw-payload"
"""Under this name stripped payloads are counted."""

_NESTED = linear.compiled(r'[^"{}\[\]]*(?:"(?:[^"\\]|\\.)*"[^"{}\[\]]*)*')
_STRING = linear.compiled(r'"(?:[^"\\]|\\.)*"')
_SCALAR = linear.compiled(r"[^\s,:{}\[\]\"]+")
_SPACE = b" \t\r\n"
_GLOB = re.compile(r"[*?\[]")
# There a file is found by its name in any case.
_PLACES = re.IGNORECASE if sys.platform in {"darwin", "win32"} else re.NOFLAG
# Events whose `data.raw` is what went to a provider or came from it, or a whole configuration.
_RAW_EVENTS = re.compile(
    r"llm:(?:request|response)(?::\w+)?|session:(?:start|resume|fork)(?::\w+)?"
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object: its name, and where its value stands."""

    name: str
    start: int
    end: int


class Places:
    """Which files may be read at all, by project and by path."""

    def __init__(
        self,
        *,
        include_projects: Iterable[str] = (),
        exclude_projects: Iterable[str] = (),
        include_paths: Iterable[str] = (),
        exclude_paths: Iterable[str] = (),
    ) -> None:
        """Take shell patterns; a project may also be named by its folder, then with all below."""
        self._projects = _wanted(include_projects, exclude_projects, _project_pattern)
        self._paths = _wanted(include_paths, exclude_paths, _path_pattern)

    def admit(self, source: Source) -> bool:
        """Whether this file may be read; an exclusion is stronger than an inclusion.

        A file that its tool has compressed, or put aside, also goes by its name from before.
        """
        path = Path(unextended(str(source.path)))
        names = path.as_posix(), (path.parent / source.file_name).as_posix()
        return self._projects(source.key.project_slug) and self._paths(*names)


class Kinds:
    """Which lines may leave, by the name of their event, and without which payloads."""

    def __init__(
        self,
        *,
        drop: Iterable[str] = (),
        sample: Mapping[str, float] | None = None,
        strip_raw: bool = False,
    ) -> None:
        """Take shell patterns of names; `sample` has the share that is kept, 0 to 1."""
        shares = [(pattern, 0.0) for pattern in drop] + list((sample or {}).items())
        self._shares = [(_pattern(fnmatch.translate(glob)), share) for glob, share in shares]
        self._strip_raw = strip_raw
        self.version = _digest([shares, strip_raw]) if shares or strip_raw else ""

    def keep(self, file_format: str, line: bytes) -> tuple[bytes, bool] | None:
        """Return what is kept of a line, and whether a payload was stripped; None to drop it.

        The same line has the same fate at any time: a sample is drawn by its hash.
        """
        names = event_names(file_format, _top(line))
        shares = [share for matches, share in self._shares if any(map(matches, names))]
        if shares and _lot(line) >= min(shares):
            return None
        if self._strip_raw and file_format == "amplifier" and _RAW_EVENTS.fullmatch(names[0]):
            return _without_raw(line)
        return line, False

    def keep_torn(self, file_format: str, rest: bytes) -> bytes | None:
        """Return what is kept of an unterminated line: nothing, unless it is a whole object.

        What a torn line is, and where its payload ends, cannot be told.
        """
        start = _first(rest)
        if not rest.startswith(b"{", start) or _value_end(rest, start) != len(rest.rstrip(_SPACE)):
            return None
        kept = self.keep(file_format, rest)
        return kept[0] if kept else None


def event_names(file_format: str, line: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a line's event is called: `llm:request`; `system`, `system:api_error`; …"""
    name = _text(line.get("event")) or _text(line.get("type")) or ""
    inner = None
    if file_format == "claude_code":
        inner = _text(line.get("subtype"))
    elif file_format == "codex":
        payload = line.get("payload")
        inner = _text(payload.get("type")) if isinstance(payload, dict) else None
    return (name, f"{name}:{inner}") if inner else (name,)


def _top(line: bytes) -> Mapping[str, object]:
    """Parse a line; of what is no JSON, or too large, find the texts that name it."""
    if len(line) <= PARSED_BYTES:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            pass
        else:
            return value if isinstance(value, dict) else {}
    return {one.name: _lexed(line, one) for one in members(line, _first(line))}


def _lexed(line: bytes, member: Member) -> object:
    if line.startswith(b'"', member.start):
        return _decoded(line[member.start : member.end])
    if member.name == "payload":
        return {one.name: _lexed(line, one) for one in members(line, member.start)}
    return None


def members(line: bytes, start: int) -> Iterator[Member]:
    """Yield the members of the object at a place, as far as it is one; a list has none."""
    if not line.startswith(b"{", start):
        return
    at = _skip(line, start + 1)
    while name := _STRING.match(line, at):
        at = _skip(line, name.end())
        if line[at : at + 1] != b":":
            return
        begin = _skip(line, at + 1)
        end = _value_end(line, begin)
        if end is None:
            return
        yield Member(_decoded(name.group()) or "", begin, end)
        at = _skip(line, end)
        if line[at : at + 1] != b",":
            return
        at = _skip(line, at + 1)


def _value_end(line: bytes, start: int) -> int | None:
    sign = line[start : start + 1]
    if sign not in (b"{", b"["):
        match = (_STRING if sign == b'"' else _SCALAR).match(line, start)
        return match.end() if match else None
    depth = 0
    at = start
    while at < len(line):
        depth += 1 if line[at] in b"{[" else -1
        at += 1
        if not depth:
            return at
        at = _NESTED.match(line, at).end()
        if line[at : at + 1] == b'"':
            return None
    return None


def _without_raw(line: bytes) -> tuple[bytes, bool]:
    """Put a note of its size in the place of `data.raw`."""
    data = [one for one in members(line, _first(line)) if one.name == "data"]
    inner = members(line, data[-1].start) if data else iter(())
    found = [one for one in inner if one.name == "raw" and line[one.start : one.start + 1] in b"{["]
    for raw in reversed(found):
        note = b'{"stripped_bytes":%d}' % (raw.end - raw.start)
        if raw.end - raw.start > len(note):
            line = line[: raw.start] + note + line[raw.end :]
    return line, bool(found)


def _first(line: bytes) -> int:
    return _skip(line, 3 if line.startswith(b"\xef\xbb\xbf") else 0)


def _skip(line: bytes, at: int) -> int:
    while at < len(line) and line[at] in _SPACE:
        at += 1
    return at


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _decoded(string: bytes) -> str | None:
    if b"\\" not in string:
        return string[1:-1].decode(errors="replace")
    try:
        return _text(orjson.loads(string))
    except orjson.JSONDecodeError:
        return None


def _lot(line: bytes) -> float:
    """Draw a number from 0 up to 1 for a line, always the same."""
    return int.from_bytes(hashlib.sha256(line).digest()[:7], "big") / 2**56


def _wanted(
    include: Iterable[str], exclude: Iterable[str], pattern: Callable[[str], str]
) -> Callable[..., bool]:
    inside = [_pattern(pattern(text), _PLACES) for text in include]
    outside = [_pattern(pattern(text), _PLACES) for text in exclude]

    def wanted(*names: str) -> bool:
        if any(matches(name) for matches in outside for name in names):
            return False
        return not inside or any(matches(name) for matches in inside for name in names)

    return wanted


def _project_pattern(text: str) -> str:
    """Match a slug; a folder's own slugs, and those of folders below it."""
    if not (text.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", text)):
        return fnmatch.translate(text)
    slugs = {name for folder in _spellings(Path(text)) for name in _slugs(folder)}
    return _any_of(f"{_literal(name)}{more}" for name in slugs for more in ("", "-*"))


def _slugs(folder: Path) -> set[str]:
    """Name a folder's project as each tool does: Claude Code keeps letters and digits only."""
    own = str(folder)
    return {slug(folder), re.sub(r"[^A-Za-z0-9]", "-", own), re.sub(r"[^A-Za-z0-9_]", "-", own)}


def _path_pattern(text: str) -> str:
    """Match a file, or a folder and all below it.

    What exists under this very name is meant, whatever signs are in it; so are folders above.
    """
    pattern = Path(text).expanduser()
    names = {pattern.as_posix()}
    if not _GLOB.search(text) or os.path.lexists(pattern):
        names |= {_literal(place.as_posix()) for place in _spellings(pattern)}
    else:
        above = (place for place in pattern.parents if os.path.lexists(place))
        fixed = next(above, Path(pattern.anchor))
        rest = pattern.relative_to(fixed).as_posix()
        names |= {f"{_literal(place.as_posix().rstrip('/'))}/{rest}" for place in _spellings(fixed)}
    return _any_of(f"{name}{more}" for name in names for more in ("", "/*"))


def _spellings(path: Path) -> set[Path]:
    """Return a path as it is written, and as it is without links: files are found by the latter."""
    written = path.expanduser()
    return {written, Path(os.path.realpath(written))}


def _literal(name: str) -> str:
    return _GLOB.sub(r"[\g<0>]", name)


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(map(fnmatch.translate, sorted(patterns)))


def _pattern(text: str, flags: re.RegexFlag = re.NOFLAG) -> Callable[[str], bool]:
    compiled = re.compile(text, flags)
    return lambda name: compiled.match(name) is not None


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:16]
