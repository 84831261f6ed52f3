"""A line becomes a document, or is rejected with a reason.

A document is the line's own fields at top level, then ours. Where both have a key, or Cosmos DB
gives the key a meaning (`ttl`, `_etag`, ...), the line's value moves under `shadowed`: never lost,
never obeyed. What is built depends on the line and its place alone, except for `synced_at`,
`host_id` and `payload_ref`, so that any order and number of deliveries gives equal documents.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from sessionferry import truncation
from sessionferry.batch import Header
from sessionferry.errors import BadBatch
from sessionferry.formats import format_named
from sessionferry.formats.meaning import Usage, cost, increment, utc
from sessionferry.identity import Stream, line_id, line_id_prefix
from sessionferry.parsing import Parsed, Refused, follow, parse

DOCUMENT_TYPES: dict[str, str] = {"events": "event", "transcript": "transcript_message"}

_NO_HASH = bytes(32)
COSMOS_KEYS = frozenset({"ttl", "_rid", "_self", "_etag", "_attachments", "_ts", "_lsn", "_listed"})
PER_DELIVERY_KEYS = frozenset({"synced_at", "host_id", "payload_ref"})
OUR_KEYS = frozenset(
    {
        *("id", "partition_key", "user_id", "project_slug", "session_id", "generation"),
        *("sequence", "_type", "format", "line_sha256", "line_size_bytes", "data_truncated"),
        *("data_size_bytes", "occurred_at", "summary", "repaired", "shadowed"),
        *PER_DELIVERY_KEYS,
    }
)
DOCUMENTED_KEYS = frozenset(
    {
        *("id", "partition_key", "user_id", "host_id", "project_slug", "session_id"),
        *("sequence", "_type", "synced_at"),
    }
)
"""Those of our keys that every document of amplifier-session-storage has."""
RESERVED = OUR_KEYS | COSMOS_KEYS


class Facts(NamedTuple):
    """What the head sums about one stored line."""

    sequence: int
    sha256: bytes
    size: int
    truncated: bool = False
    repaired: bool = False
    occurred_at: str | None = None
    usage: Usage | None = None
    cost: int = 0
    lifecycle: str | None = None
    about: Mapping[str, str] | None = None
    """What the line says about its session; nothing, where the payload is left to the archive."""


class Document(NamedTuple):
    """A stored line: its facts, the document as JSON text, and what searches compare of it."""

    facts: Facts
    json: bytes
    event: object = None
    level: object = None
    summary: Mapping[str, object] = {}

    @property
    def fields(self) -> dict[str, Any]:
        """The document as a dictionary."""
        loaded: dict[str, Any] = orjson.loads(self.json)
        return loaded


class Rejected(NamedTuple):
    """A line that cannot be a document: its place in the payload, its hash and the reason."""

    sequence: int
    sha256: bytes
    position: int
    length: int
    reason: str
    detail: str
    preview: str


class Position(NamedTuple):
    """Where a line stands: its sequence, and its first byte's place in the batch's payload."""

    sequence: int
    offset: int


class DocumentBuilder:
    """Builds the documents of one batch; everything they share is rendered once."""

    def __init__(self, header: Header, archive_key: str, synced_at: str) -> None:
        if header.stream is None:
            raise BadBatch("Only batches with a stream hold lines.")
        self.header = header
        self.archive_key = archive_key
        self.stream: Stream = header.stream
        self._format = format_named(header.format)
        self._interpret = self._format.interpreter(header.carry)
        self._memory = self._format.remember(header.carry) if self._format.remember else None
        key = header.key
        self._common: dict[str, Any] = {
            "partition_key": key.partition_key,
            "user_id": key.user_id,
            "host_id": header.host_id,
            "project_slug": key.project_slug,
            "generation": header.generation,
            "_type": DOCUMENT_TYPES[self.stream],
            "format": header.format,
            "synced_at": synced_at,
        }
        self._session_id = key.session_id
        prefix = line_id_prefix(key.session_id, self.stream, header.generation)
        common = orjson.dumps(self._common)[:-1] + b',"id":' + orjson.dumps(prefix)[:-1]
        self._shared_with_session = b"," + common[1:]
        self._shared = b',"session_id":' + orjson.dumps(key.session_id) + self._shared_with_session

    def build(
        self, position: Position, line: bytes, sha256: bytes | None = None
    ) -> Document | Rejected:
        """Turn one line (without its newline) into a document, or say why that cannot be.

        `sha256` is the line's, if it is known already. Lines must come in the order of the file: a
        format may remember what it has seen.
        """
        sha256 = sha256 or hashlib.sha256(line).digest()
        found = parse(line, starts_file=self._starts_file(position))
        if isinstance(found, Parsed):
            return self._parsed(position, line, sha256, found)
        if isinstance(found, Refused):
            return self._reject(position, line, sha256, found)
        return self._unparsed(position, line, sha256)

    def skip(self, position: Position, line: bytes) -> None:
        """Pass over a line that needs no document, but may matter to those behind it."""
        if self._memory is not None:
            follow(self._memory, line, starts_file=self._starts_file(position))

    def _starts_file(self, position: Position) -> bool:
        return self.header.offset + position.offset == 0

    # ------------------------------------------------------------ the usual case

    def _parsed(self, position: Position, line: bytes, sha256: bytes, found: Parsed) -> Document:
        fields, repaired = found
        meaning = self._interpret(self.stream, fields)
        if self._memory is not None and self._memory.concerns(line):
            self._memory.recall(fields, meaning)
        data = orjson.dumps(fields)
        about = self._format.about(self.stream, fields, meaning.summary) or None
        what = (meaning.occurred_at, meaning.usage, meaning.cost, meaning.lifecycle, about)
        facts = Facts(position.sequence, sha256, len(line), False, repaired, *what)
        if truncation.must_truncate(self.stream, len(data), len(data)):
            return self._truncated(position, facts, fields, meaning.summary, len(data))
        if repaired:
            document = self._merged(position, facts, fields, meaning.summary, len(data))
        else:
            document = self._spliced(position, facts, fields, meaning.summary, data)
        if truncation.must_truncate(self.stream, len(data), len(document)):
            return self._truncated(position, facts, fields, meaning.summary, len(data))
        searched = (fields.get("event"), fields.get("lvl"), meaning.summary)
        return Document(facts, document, *searched)

    def _spliced(
        self,
        position: Position,
        facts: Facts,
        fields: dict[str, Any],
        summary: dict[str, Any],
        data: bytes,
    ) -> bytes:
        """Append our fields to the line's own JSON; no second serialisation of the payload."""
        clashes = RESERVED.intersection(fields)
        if not clashes:
            shared = self._shared
        elif len(clashes) == 1 and fields.get("session_id") == self._session_id:
            shared = self._shared_with_session
        else:
            return self._merged(position, facts, fields, summary, len(data))
        own = (
            f'{facts.sequence}","sequence":{facts.sequence},"line_sha256":"{facts.sha256.hex()}",'
            f'"line_size_bytes":{facts.size},"data_truncated":false,"data_size_bytes":{len(data)},'
            f'"occurred_at":{_quoted(facts.occurred_at)},"summary":'
        )
        shared = shared if len(data) > len(b"{}") else shared[1:]
        shown = orjson.dumps(summary) if summary else b"{}"
        return b"".join((data[:-1], shared, own.encode(), shown, b"}"))

    # ------------------------------------------------------------ unusual lines

    def _merged(
        self,
        position: Position,
        facts: Facts,
        fields: dict[str, Any],
        summary: dict[str, Any],
        size: int,
    ) -> bytes:
        return orjson.dumps(shadow(fields, self._our_fields(position, facts, summary, size)))

    def _truncated(
        self,
        position: Position,
        facts: Facts,
        fields: dict[str, Any],
        summary: dict[str, Any],
        size: int,
    ) -> Document:
        facts = facts._replace(truncated=True, about=None)
        ours = self._our_fields(position, facts, summary, size)
        kept = truncation.kept(fields)
        searched = (kept.get("event"), kept.get("lvl"), summary)
        return Document(facts, orjson.dumps(kept | ours), *searched)

    def _unparsed(self, position: Position, line: bytes, sha256: bytes) -> Document:
        fields, summary = truncation.scan(line)
        facts = Facts(
            position.sequence,
            sha256,
            len(line),
            occurred_at=utc(fields.get("ts")),
            lifecycle=self._format.lifecycle(self.stream, fields, summary),
        )
        return self._truncated(position, facts, fields, summary, len(line))

    def _reject(self, position: Position, line: bytes, sha256: bytes, refused: Refused) -> Rejected:
        preview = line[:256].decode(errors="replace")
        where = (position.sequence, sha256, position.offset, len(line))
        return Rejected(*where, refused.reason, refused.detail[:256], preview)

    def _our_fields(
        self, position: Position, facts: Facts, summary: dict[str, Any], size: int
    ) -> dict[str, Any]:
        version = (self.stream, self.header.generation, facts.sequence)
        ours = {
            "session_id": self._session_id,
            **self._common,
            "id": line_id(self._session_id, *version),
            "sequence": facts.sequence,
            "line_sha256": facts.sha256.hex(),
            "line_size_bytes": facts.size,
            "data_truncated": facts.truncated,
            "data_size_bytes": size,
            "occurred_at": facts.occurred_at,
            "summary": summary,
        }
        if facts.repaired:
            ours["repaired"] = True
        if (facts.repaired or facts.truncated) and self.archive_key:
            ours["payload_ref"] = payload_ref(
                self.archive_key, position.offset, facts.size, facts.sha256
            )
        return ours


def payload_ref(archive_key: str, offset: int, length: int, sha256: bytes) -> dict[str, Any]:
    """Say where a line's bytes lie: archive key, place in the batch's payload, hash."""
    return {
        "archive_key": archive_key,
        "offset": offset,
        "length": length,
        "sha256": sha256.hex(),
    }


def shadow(fields: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Lay our fields over the line's; what would be lost or obeyed moves under `shadowed`."""
    aside = {
        key: value
        for key, value in fields.items()
        if key in RESERVED and not _stays(key, value, ours)
    }
    merged = {key: value for key, value in fields.items() if key not in aside} | ours
    return merged | {"shadowed": aside} if aside else merged


def stored_facts(document: dict[str, Any]) -> Facts:
    """Read the facts back from a stored document: what a head counts is what is stored.

    A document that amplifier-session-storage wrote has no hash: it equals no line of ours.
    """
    if "line_sha256" not in document:
        return Facts(document["sequence"], _NO_HASH, 0)
    known, stream = format_named(document["format"]), _stream(document)
    summary = document.get("summary") or {}
    truncated = document["data_truncated"]
    shown = summary.get("usage")
    usage = None
    if shown is not None:
        usage = Usage(*(increment(shown.get(name)) for name in Usage._fields))
    return Facts(
        sequence=document["sequence"],
        sha256=bytes.fromhex(document["line_sha256"]),
        size=document["line_size_bytes"],
        truncated=truncated,
        repaired=document.get("repaired", False),
        occurred_at=document["occurred_at"],
        usage=usage,
        cost=cost(summary.get("cost_usd")),
        lifecycle=known.lifecycle(stream, document, summary),
        about=None if truncated else known.about(stream, _own_fields(document), summary) or None,
    )


def _own_fields(document: dict[str, Any]) -> dict[str, Any]:
    """Give the line's own values back to the keys that ours took."""
    shadowed: dict[str, Any] = document.get("shadowed") or {}
    return document | shadowed


def _stream(document: dict[str, Any]) -> Stream:
    return "events" if document["_type"] == DOCUMENT_TYPES["events"] else "transcript"


def _stays(key: str, value: object, ours: dict[str, Any]) -> bool:
    if key in PER_DELIVERY_KEYS or key not in DOCUMENTED_KEYS:
        return False
    return type(value) is type(ours[key]) and value == ours[key]


def _quoted(moment: str | None) -> str:
    """Render a time as JSON; one that we made ourselves needs no escaping."""
    return f'"{moment}"' if moment else "null"
