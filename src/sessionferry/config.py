"""The configuration file: what this machine sends, what of it, and how the agent runs.

TOML, checked as a whole: a wrong key or value is an error that names the line. The same models make
the commented example and the JSON schema.
"""

import hashlib
import re
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sessionferry.errors import UserError, refused

FILE_NAME = "agent.toml"

_Globs = tuple[str, ...]
# As `formats.jsonl.MAX_PATH`; the formats take long to import.
_Place = Annotated[str | None, Field(min_length=1, max_length=200)]
_MOST_PLACES_BYTES = 4096
_Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fields(_Section):
    """Where facts stand in a tool's lines: keys, or positions in lists, with dots between."""

    time: _Place = None
    role: _Place = None
    event: _Place = None
    model: _Place = None
    provider: _Place = None
    status: _Place = None
    error: _Place = None
    tool_name: _Place = None
    tool_call_id: _Place = None
    message_id: _Place = None
    parent_id: _Place = None
    stop_reason: _Place = None
    working_dir: _Place = None
    duration_ms: _Place = None
    cost_usd: _Place = None
    input: _Place = None
    output: _Place = None
    cache_read: _Place = None
    cache_write: _Place = None
    cached_input: _Place = None


class JsonLines(_Section):
    """JSON Lines files of a tool that is not known here."""

    paths: tuple[Path, ...] = Field(min_length=1, description="Folders or files; ~ is your home.")
    project: str | None = Field(
        None, min_length=1, max_length=200, description="Their project; else named by the folder."
    )
    fields: Fields = Fields()

    @model_validator(mode="after")
    def _places_fit_a_header(self) -> Self:
        size = sum(len(place.encode()) for place in self.places.values())
        if size > _MOST_PLACES_BYTES:
            raise ValueError(f"places have {size} bytes; at most {_MOST_PLACES_BYTES} are sent")
        return self

    @property
    def places(self) -> dict[str, str]:
        """Where the facts stand that have a place."""
        return self.fields.model_dump(exclude_none=True)


class Sources(_Section):
    """Where session files are looked for."""

    paths: tuple[Path, ...] = Field(
        (),
        description="Folders or files; ~ is your home. None: where each tool keeps its sessions.",
        examples=[["~/.amplifier", "/srv/agents/.claude"]],
    )
    jsonl: tuple[JsonLines, ...] = Field(
        (),
        description="JSON Lines files of other tools, and where facts stand in their lines.",
        examples=[
            [
                {
                    "paths": ["~/.mytool/logs"],
                    "project": "mytool",
                    "fields": {"time": "at", "model": "llm.name", "input": "llm.tokens.in"},
                }
            ]
        ],
    )


class Filter(_Section):
    """What stays on this machine. An exclusion is stronger than an inclusion."""

    include_projects: _Globs = Field(
        (),
        description="Only these projects: names as in `ferry sessions`, with * and ?, or folders.",
        examples=[["-srv-*", "~/work"]],
    )
    exclude_projects: _Globs = Field(
        (),
        description="Not these projects; a folder stands for all that is below it, too.",
        examples=[["~/clients/acme"]],
    )
    include_paths: _Globs = Field(
        (), description="Only these session files.", examples=[["~/.claude/*"]]
    )
    exclude_paths: _Globs = Field(
        (), description="Not these session files, or folders of them.", examples=[["~/scratch"]]
    )
    drop: _Globs = Field(
        (),
        description="Lines whose event has one of these names are left out.",
        examples=[["llm:stream_*", "event_msg:token_count"]],
    )
    sample: dict[str, _Share] = Field(
        {},
        description="Of events with these names only this share is sent, 0 to 1.",
        examples=[{"tool:progress": 0.1}],
    )
    strip_raw: bool = Field(
        False, description="Leave out the raw requests and responses in Amplifier's events."
    )


class OwnRule(_Section):
    """A pattern of your own."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$", description="Lower case, digits, hyphens.")
    pattern: str = Field(min_length=1, description="An RE2 expression; all of it is the secret.")


class Redact(_Section):
    """Secrets are replaced by marks before anything is spooled."""

    enabled: bool = Field(True, description="Whether secrets are replaced.")
    off: _Globs = Field(
        (), description="Rules that are not applied, by name.", examples=[["jwt", "bearer"]]
    )
    rules: tuple[OwnRule, ...] = Field(
        (),
        description="Patterns of your own, each with a name.",
        examples=[[{"name": "acme-token", "pattern": "acme_[0-9a-f]{32}"}]],
    )


class Log(_Section):
    """The log of the agent that runs in the background: JSON lines, without any content."""

    level: str = Field(
        "info", pattern=r"^(debug|info|warning|error)$", description="debug, info, warning, error."
    )
    megabytes: int = Field(10, ge=1, le=1000, description="A file of this size is put aside.")
    files: int = Field(5, ge=1, le=100, description="So many files are kept besides.")


class Metrics(_Section):
    """Metrics for Prometheus, when asked for."""

    port: int | None = Field(
        None, ge=1, le=65535, description="On this port of 127.0.0.1.", examples=[9464]
    )


class Config(_Section):
    """The whole file."""

    model_config = ConfigDict(title="sessionferry agent.toml")

    settings: dict[str, str | bool | int | float] = Field(
        {},
        description="Any FERRY_* setting without FERRY_, in lower case; the environment wins.",
        examples=[{"namespace": "name.servicebus.windows.net", "inbox": "az://inbox"}],
    )
    sources: Sources = Sources()
    filter: Filter = Filter()
    redact: Redact = Redact()
    log: Log = Log()
    metrics: Metrics = Metrics()

    @classmethod
    def absent(cls) -> "Config":
        """Return what holds without a file: nothing is filtered, nothing redacted."""
        return cls(redact=Redact(enabled=False))

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Read a file; without one, `absent`. Raises `UserError` naming the line,
        and `TransientError` where the disk is in the way.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls.absent()
        except OSError as error:
            raise refused(f"The configuration {path} cannot be read", error) from None
        except UnicodeDecodeError:
            raise UserError(f"The configuration {path} cannot be read: it is not UTF-8.") from None
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not valid TOML: {error}.") from None
        except ValidationError as error:
            raise UserError(_sentences(path, text, error)) from None


def seen(path: Path) -> tuple[int, ...] | None:
    """Return what the file system says of a file: another version has another; None without one."""
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def digest(path: Path) -> str:
    """Return the beginning of a file's SHA-256; empty when there is none that can be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def is_private(path: Path) -> bool:
    """Whether nobody but the owner may read a file, or look into a folder.

    Windows has no such modes: what lies in a user's profile is closed to other users by the
    profile's own rights, which every file in it inherits.
    """
    if sys.platform == "win32":
        return path.resolve().is_relative_to(Path.home().resolve())
    else:  # noqa: RET505 - mypy reads only its own platform's branch
        return not stat.S_IMODE(path.stat().st_mode) & 0o077


def example() -> str:
    """Return a commented file in which every key has its default."""
    head = (
        "# Configuration of the sessionferry agent. Lines that begin with # are comments; a key\n"
        "# that is commented out has the value that is shown, or shows an example.\n"
        "# `ferry agent config` says whether the file is right.\n"
    )
    return "\n".join([head, *_tables()])


def _tables() -> Iterator[str]:
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            rows = [f"# {_first_line(section)}", f"[{name}]"]
            for key, inner in section.model_fields.items():
                rows += ["", f"# {inner.description}", _row(key, inner)]
        else:
            rows = [f"# {field.description}", f"[{name}]"]
            rows += [
                f"# {key} = {_toml(value)}" for key, value in (field.examples or [{}])[0].items()
            ]
        yield "\n".join(rows) + "\n"


def _row(key: str, field: Any) -> str:
    """Write a key: with its default where it has one to speak of, else as an example."""
    if field.default not in ((), {}, None):
        return f"{key} = {_toml(field.default)}"
    return f"# {key} = {_toml((field.examples or [field.default])[0])}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(name)} = {_toml(one)}" for name, one in value.items()) + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return orjson.dumps(value).decode()


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else orjson.dumps(name).decode()


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").split("\n", 1)[0]


def _sentences(path: Path, text: str, error: ValidationError) -> str:
    """Say what is wrong with each key, and in which line it stands."""
    found = []
    for fault in error.errors(include_url=False, include_input=False)[:5]:
        place = [str(part) for part in fault["loc"]]
        line = _line_of(text, place)
        where = f"{path}:{line}" if line else str(path)
        wrong = (
            "there is no such key"
            if fault["type"] == "extra_forbidden"
            else fault["msg"].replace("tuple", "list")
        )
        found.append(f"{where}: {'.'.join(place)}: {wrong}.")
    return "\n       ".join(found)


def place_of(path: Path, setting: str) -> str:
    """Say where a file names a setting: its path, and the line if that is found."""
    line = _line_of(path.read_text(encoding="utf-8"), ["settings", setting])
    return f"{path}:{line}" if line else str(path)


def _line_of(text: str, place: list[str]) -> int | None:
    """Find the line of a key: in its table, or the table itself."""
    table: list[str] = []
    best = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}", line):
            table = [part.strip(" \"'") for part in header[1].split(".")]
            if table == place[: len(table)] and best is None:
                best = number
        elif (key := re.match(r"""\s*([\w-]+|"[^"]+"|'[^']+')\s*=""", line)) and table == place[
            : len(table)
        ]:
            names = [part for part in place[len(table) :] if not part.isdigit()]
            if names and key[1].strip("\"'") == names[0]:
                return number
    return best


__all__ = [
    "Config",
    "Fields",
    "Filter",
    "JsonLines",
    "Log",
    "Metrics",
    "OwnRule",
    "Redact",
    "Sources",
    "example",
]
