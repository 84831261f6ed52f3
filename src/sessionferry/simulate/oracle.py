"""What a fleet on disk holds, counted without any of the code that is tested with it.

The generator states the facts of each line as it writes it; `recount` finds the same facts by
reading the files back and parsing every line. Two ways to one answer: a mistake in one shows.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from decimal import Context, Decimal
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import orjson

from sessionferry.simulate.usage import LEDGERS, PerLine, Usage, count

Stream: TypeAlias = Literal["events", "transcript", "metadata"]

EVENT_LIMIT: Final = 409_600  # bytes of compact JSON
DOCUMENT_LIMIT: Final = 1_900_000  # bytes of a finished document; only clear cases are generated
PARSE_LIMIT: Final = 16 * 1024 * 1024  # bytes of a line
DEPTH_LIMIT: Final = 100
BLANK: Final = b" \t\r\x0b\x0c"
BOM: Final = b"\xef\xbb\xbf"

STREAMS: Final[dict[str, Stream]] = {
    "events.jsonl": "events",
    "transcript.jsonl": "transcript",
    "metadata.json": "metadata",
}

_EXACT = Context(prec=200)
_COST = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?")
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


NO_USAGE: Final = Usage()
NO_COST: Final = Decimal(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What must become of one line."""

    stored: bool = True
    truncated: bool = False
    repaired: bool = False
    usage: Usage = NO_USAGE
    cost: Decimal = NO_COST


PLAIN: Final = Facts()
QUARANTINED: Final = Facts(stored=False)
UNPARSED: Final = Facts(truncated=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a session's files lie: whose machine, which project, which session."""

    host_id: str
    project_slug: str
    session_id: str

    def folder(self) -> str:
        """The session's folder, relative to the fleet's."""
        return f"{self.host_id}/.amplifier/projects/{self.project_slug}/sessions/{self.session_id}"


@dataclass(kw_only=True)
class _Counts:
    bytes: int = 0
    lines: int = 0
    stored: int = 0
    quarantined: int = 0
    truncated: int = 0
    repaired: int = 0
    usage: Usage = NO_USAGE
    cost_usd: Decimal = NO_COST

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the cost is a decimal string."""
        return {**asdict(self), "cost_usd": f"{self.cost_usd:f}"}


@dataclass(kw_only=True)
class FileOracle(_Counts):
    """One file. A metadata file is one document and has no lines: its counts are zero."""

    path: str
    host_id: str
    project_slug: str
    session_id: str
    stream: Stream
    format: str = "amplifier"
    sha256: str = ""
    tail_bytes: int = 0

    @classmethod
    def at(cls, place: Place, name: str) -> Self:
        """The entry of a file that nothing was written to yet."""
        path = f"{place.folder()}/{name}"
        return cls(path=path, stream=STREAMS[name], **asdict(place))

    def count(self, facts: Facts) -> None:
        """Add one line."""
        self.lines += 1
        self.stored += facts.stored
        self.quarantined += not facts.stored
        self.truncated += facts.truncated
        self.repaired += facts.repaired
        self.usage += facts.usage
        self.cost_usd = _EXACT.add(self.cost_usd, facts.cost)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        usage, cost = Usage(**fields["usage"]), Decimal(fields["cost_usd"])
        return cls(**{**fields, "usage": usage, "cost_usd": cost})


@dataclass(kw_only=True)
class Totals(_Counts):
    """Sums over files; `tails` counts the files that end in an unfinished line."""

    files: int = 0
    tails: int = 0

    def add(self, file: FileOracle) -> None:
        """Add one file."""
        self.files += 1
        self.tails += file.tail_bytes > 0
        for name in ("bytes", "lines", "stored", "quarantined", "truncated", "repaired"):
            setattr(self, name, getattr(self, name) + getattr(file, name))
        self.usage += file.usage
        self.cost_usd = _EXACT.add(self.cost_usd, file.cost_usd)


@dataclass(kw_only=True)
class Oracle:
    """All files of a fleet, ordered by path."""

    files: list[FileOracle] = field(default_factory=list)

    @property
    def totals(self) -> Totals:
        """The sums over all files."""
        return totals_of(self.files)

    def write(self, path: Path) -> None:
        """Write as JSON."""
        content = {
            "totals": self.totals.to_dict(),
            "files": [file.to_dict() for file in self.files],
        }
        options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        path.write_bytes(orjson.dumps(content, option=options))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        content = orjson.loads(path.read_bytes())
        return cls(files=[FileOracle.from_dict(entry) for entry in content["files"]])


def totals_of(files: Iterable[FileOracle]) -> Totals:
    """The sums over some files, for instance those of one machine."""
    totals = Totals()
    for file in files:
        totals.add(file)
    return totals


def recount(root: Path) -> Oracle:
    """Read every session file under a fleet's folder back, one line at a time."""
    paths = (path for path in root.glob("*/.*/**/*.json*") if path.is_file())
    files = [_recount_file(root, path) for path in paths]
    return Oracle(files=sorted(files, key=lambda file: file.path))


def _recount_file(root: Path, path: Path) -> FileOracle:
    entry = _entry(path.relative_to(root).as_posix(), path)
    digest, ledger = hashlib.sha256(), LEDGERS[entry.format]()
    with path.open("rb") as stream:
        for raw in stream:
            digest.update(raw)
            _recount_line(entry, raw, ledger)
    for usage in ledger.due:
        entry.usage += usage
    entry.sha256 = digest.hexdigest()
    return entry


def _entry(path: str, file: Path) -> FileOracle:
    """Read off a path whose file it is, and of which session."""
    match path.split("/"):
        case [host, ".amplifier", "projects", project, "sessions", session, name]:
            return FileOracle.at(
                Place(host_id=host, project_slug=project, session_id=session), name
            )
        case [host, ".claude", "projects", project, *folders, name]:
            stem, *endings = name.split(".")
            session = f"{folders[0]}_{stem}" if folders else stem
            stream: Stream = "metadata" if "meta" in endings else "transcript"
            tool = "claude_code"
        case [host, ".codex", *_, name]:
            session, stream, tool = name.removesuffix(".jsonl")[-36:], "transcript", "codex"
            with file.open("rb") as opened:
                directory = json.loads(opened.readline())["payload"]["cwd"]
            project = directory.replace("/", "-").replace("\\", "-").replace(":", "")
            project = project if project.startswith("-") else f"-{project}"
        case _:
            raise ValueError(f"{path} is no session file")
    place = Place(host_id=host, project_slug=project, session_id=session)
    return FileOracle(path=path, stream=stream, format=tool, **asdict(place))


def _recount_line(entry: FileOracle, raw: bytes, ledger: PerLine) -> None:
    content = raw.removeprefix(BOM) if entry.bytes == 0 else raw
    entry.bytes += len(raw)
    if entry.stream == "metadata" or not content.strip(BLANK + b"\n"):
        return
    if raw.endswith(b"\n"):
        facts = judge(content[:-1], entry.stream)
        entry.count(facts)
        if facts.stored and facts != UNPARSED:
            ledger.add(_parse(content[:-1])[0])
    else:
        entry.tail_bytes = len(raw)


def judge(line: bytes, stream: Stream) -> Facts:
    """What must become of a line that is not blank, by parsing it."""
    if len(line) > PARSE_LIMIT or _depth(line) > DEPTH_LIMIT:
        return UNPARSED if line.lstrip(BLANK).startswith(b"{") else QUARANTINED
    try:
        value, repaired = _parse(line)
    except ValueError:
        return QUARANTINED
    if not isinstance(value, dict):
        return QUARANTINED
    usage, cost = _usage(value) if stream == "events" else (NO_USAGE, NO_COST)
    limit = EVENT_LIMIT if stream == "events" else DOCUMENT_LIMIT
    truncated = _compact_size(value) > limit
    return Facts(truncated=truncated, repaired=repaired, usage=usage, cost=cost)


def _depth(line: bytes) -> int:
    level = deepest = 0
    for bracket in _BRACKET.findall(_JSON_STRING.sub(b"", line)):
        level += 1 if bracket in b"{[" else -1
        deepest = max(deepest, level)
    return deepest


def _parse(line: bytes) -> tuple[Any, bool]:
    text = line.decode("utf-8")
    try:
        return orjson.loads(line), False
    except orjson.JSONDecodeError:
        return _mend(json.loads(text)), True


def _mend(value: Any) -> Any:
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case float() if not math.isfinite(value):
            return None
        case list():
            return [_mend(item) for item in value]
        case dict():
            return {_mend(key): _mend(item) for key, item in value.items()}
    return value


def _compact_size(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # an integer of more than 64 bits in a repaired line
        return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _usage(event: dict[str, Any]) -> tuple[Usage, Decimal]:
    data = event.get("data")
    usage = data.get("usage") if isinstance(data, dict) else None
    if event.get("event") != "llm:response" or not isinstance(usage, dict):
        return NO_USAGE, NO_COST
    read = count(usage, "cache_read_tokens")
    counts = Usage(
        input=max(0, count(usage, "input_tokens", "input") - read),
        output=count(usage, "output_tokens", "output"),
        cache_read=read,
        cache_write=count(usage, "cache_write_tokens"),
    )
    return counts, _cost(usage.get("cost_usd"))


def _cost(value: object) -> Decimal:
    if isinstance(value, str) and _COST.fullmatch(value):
        return Decimal(value)
    return NO_COST
