"""Who sent what: the key of a session, and the ids and keys that follow from it.

Ids and partition keys are those of amplifier-session-storage's documented format
(`user|project|session`, `{session_id}_evt_{n}`, `{session_id}_msg_{n}`) wherever that format is
safe. Characters that Cosmos DB forbids in ids, our separator, and parts too long for a key are
escaped so that two different sessions never share a key.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from sessionferry.errors import BadIdentity

Stream = Literal["events", "transcript"]
STREAMS: tuple[Stream, ...] = ("events", "transcript")

MAX_PART_BYTES = 1024
"""Longest identity part that is accepted, in UTF-8 bytes (ours; Cosmos DB takes a 2 KB key)."""

MAX_ESCAPED_CHARS = 200
"""Longest escaped part inside a key or path."""

MAX_ESCAPED_BYTES = 600
"""The same in UTF-8 bytes: an id stays below the 1,023 bytes that Cosmos DB takes, and a key of
three parts below its 2 KB, also where a character takes four."""

SEPARATOR = "|"
UNATTRIBUTED = "_unattributed"
AUDIT = "_audit"
_RESERVED = frozenset({UNATTRIBUTED, AUDIT})
"""Folders beside those of users; no user's folder has such a name."""

# Forbidden in Cosmos DB ids (/ \ ? #), our separator and escape sign, controls, outer spaces, and
# the names that clients take for folders.
_UNSAFE_IN_KEY = re.compile(r"[/\\?#|%\x00-\x1f\x7f]|^ | $|\A\.(?=\.?\Z)")
# Blob names and file names of every platform: ASCII only, so that normal forms stay apart.
_UNSAFE_IN_PATH = re.compile(r"[^A-Za-z0-9_.@+-]")
_SUFFIX: dict[str, str] = {"events": "evt", "transcript": "msg"}


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session in one project of one user.

    Raises `BadIdentity` when a part is empty, over 1,024 UTF-8 bytes or not valid text.
    """

    user_id: str
    project_slug: str
    session_id: str

    def __post_init__(self) -> None:
        check_part("user_id", self.user_id)
        check_part("project_slug", self.project_slug)
        check_part("session_id", self.session_id)

    @property
    def partition_key(self) -> str:
        """The key of all documents of this session, e.g. `user-123|my-project|sess-abc`."""
        return partition_key(self.user_id, self.project_slug, self.session_id)

    @classmethod
    def of(cls, partition_key: str) -> "SessionKey | None":
        """Return whose partition key this is; None where a part was too long to be kept in it."""
        key = cls(*(unquote(part) for part in partition_key.split(SEPARATOR)))
        return key if key.partition_key == partition_key else None


def check_part(name: str, value: str) -> str:
    """Return `value`, or raise `BadIdentity` with a sentence that names the part."""
    if not value:
        raise BadIdentity(f"{name} is empty.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadIdentity(f"{name} is not valid text (it holds a lone surrogate).") from None
    if size > MAX_PART_BYTES:
        raise BadIdentity(f"{name} has {size} bytes; at most {MAX_PART_BYTES} are allowed.")
    if "\0" in value:
        raise BadIdentity(f"{name} holds a NUL character, which not every store takes.")
    return value


def partition_key(user_id: str, project_slug: str, session_id: str) -> str:
    """Join the three parts, escaped: different triples give different keys."""
    return SEPARATOR.join(escape(part) for part in (user_id, project_slug, session_id))


def escape(part: str) -> str:
    """Make one part safe inside an id or key; what is safe already stays as it is."""
    escaped = _UNSAFE_IN_KEY.sub(lambda m: _encode(m.group(), "%"), part)
    return _shorten(escaped, part, "%")


def line_id(session_id: str, stream: Stream, generation: int, sequence: int) -> str:
    """Return a document's id, e.g. `sess-abc_evt_7`, or `sess-abc~3_evt_7` in generation 3."""
    return f"{line_id_prefix(session_id, stream, generation)}{sequence}"


def line_id_prefix(session_id: str, stream: Stream, generation: int) -> str:
    """Return what all ids of one stream and generation begin with."""
    version = f"~{generation}" if generation else ""
    return f"{escape(session_id)}{version}_{_SUFFIX[stream]}_"


def session_folder(key: SessionKey) -> str:
    """Return where a session's objects lie below an archive's or inbox's root.

    The digest keeps sessions apart where file systems ignore case or shorten names.
    """
    digest = hashlib.sha256(key.partition_key.encode()).hexdigest()[:12]
    parts = (_path_part(key.user_id), _path_part(key.project_slug), _path_part(key.session_id))
    return "/".join(parts) + f".{digest}"


def _path_part(part: str) -> str:
    escaped = _UNSAFE_IN_PATH.sub(lambda m: _encode(m.group(), "="), part)
    if escaped.startswith(".") or escaped in _RESERVED:
        escaped = _encode(escaped[0], "=") + escaped[1:]
    return _shorten(escaped, part, "=")


def _encode(text: str, sign: str) -> str:
    return "".join(f"{sign}{byte:02X}" for byte in text.encode())


def _shorten(escaped: str, original: str, sign: str) -> str:
    encoded = escaped.encode()
    if len(escaped) <= MAX_ESCAPED_CHARS and len(encoded) <= MAX_ESCAPED_BYTES:
        return escaped
    digest = hashlib.sha256(original.encode()).hexdigest()[:32]
    start = encoded[: MAX_ESCAPED_BYTES - 34].decode(errors="ignore")[: MAX_ESCAPED_CHARS - 34]
    # A doubled sign cannot come out of escaping: a shortened part never equals one that was short.
    return f"{start}{sign}{sign}{digest}"
