"""A message as bytes: its sections are found, annotated and exchanged, never decoded as a whole.

Bodies and properties pass through unchanged, byte by byte, whatever types a client put into them
(OASIS AMQP 1.0, part 3.2: message format).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from sessionferry.local.broker import amqp
from sessionferry.local.broker.errors import DecodeError

MAX_MESSAGE_BYTES: Final = 262_144  # Service Bus Standard: 256 KB, properties included
BATCH_FORMAT: Final = 0x80013700

HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS = 0x70, 0x71, 0x72
PROPERTIES, APPLICATION_PROPERTIES = 0x73, 0x74
DATA, SEQUENCE, VALUE, FOOTER = 0x75, 0x76, 0x77, 0x78

_MAPS: Final = {DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, APPLICATION_PROPERTIES, FOOTER}
_LISTS: Final = {HEADER, PROPERTIES, SEQUENCE}
_SCHEDULED: Final = b"x-opt-scheduled-enqueue-time"
_TTL, _DELIVERY_COUNT, _HEADER_FIELDS = 2, 4, 5
_YEAR_9999: Final = 253_402_300_799_000


class Section(NamedTuple):
    """Where one section lies; `value` is the position behind its descriptor."""

    code: int
    start: int
    value: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """What the broker has to know of a message to queue it."""

    raw: bytes
    time_to_live: int | None = None  # milliseconds
    message_id: str | None = None
    scheduled_at: int | None = None  # milliseconds since the epoch


def sections(raw: bytes) -> Iterator[Section]:
    """The sections as they come, up to the first malformed byte, which raises DecodeError."""
    pos = 0
    while pos < len(raw):
        section = _section_at(raw, pos)
        yield section
        pos = section.end


def _in_order(raw: bytes, found: list[Section]) -> bytes:
    """The message with its sections in the standard's order.

    azure-servicebus 7.15.0 writes delivery annotations last.
    """
    codes = [section.code for section in found]
    single = [code for code in codes if code not in (DATA, SEQUENCE)]
    if len(single) != len(set(single)):
        raise DecodeError("A section of the message occurs twice.")
    if codes == sorted(codes):
        return raw
    ordered = sorted(found, key=lambda section: section.code)
    return b"".join(raw[section.start : section.end] for section in ordered)


def _section_at(raw: bytes, pos: int) -> Section:
    if raw[pos : pos + 2] == b"\x00\x53" and len(raw) > pos + 2:
        code, value = raw[pos + 2], pos + 3
    elif raw[pos : pos + 1] == b"\x00":
        code, value = amqp.decode(raw, pos + 1)
    else:
        raise DecodeError("A message section has no descriptor.")
    if not isinstance(code, int) or not HEADER <= code <= FOOTER:
        raise DecodeError("A message section has an unknown descriptor.")
    return Section(code, pos, value, amqp.skip(raw, value))


def members(raw: bytes, section: Section) -> list[bytes]:
    """The encoded members of a section that is a list or a map."""
    code = raw[section.value]
    if code in (0x40, 0x45):
        return []
    if code not in (0xC0, 0xD0, 0xC1, 0xD1):
        raise DecodeError("A message section is neither a list nor a map.")
    start = section.value + (5 if code & 0x10 else 2)
    return [raw[at:after] for at, after in amqp.items(code, raw, start, section.end)]


def _pairs(raw: bytes, section: Section) -> list[tuple[bytes, bytes]]:
    parts = members(raw, section)
    if len(parts) % 2:
        raise DecodeError("An AMQP map has a key without a value.")
    return list(zip(parts[::2], parts[1::2], strict=True))


def _member(parts: list[bytes], index: int) -> Any:
    return amqp.decode(parts[index])[0] if index < len(parts) else None


def envelope(raw: bytes) -> Envelope:
    """Read what queueing needs; a malformed message raises DecodeError."""
    found: dict[str, Any] = {}
    parts = list(sections(raw))
    for section in parts:
        if section.code == HEADER:
            found["time_to_live"] = _milliseconds(_member(members(raw, section), _TTL))
        elif section.code == MESSAGE_ANNOTATIONS:
            found["scheduled_at"] = _scheduled(_pairs(raw, section))
        elif section.code == PROPERTIES:
            found["message_id"] = _identity(_member(members(raw, section), 0))
        elif section.code in _MAPS:
            _pairs(raw, section)
        elif section.code in _LISTS:
            members(raw, section)
    return Envelope(raw=_in_order(raw, parts), **found)


def _scheduled(pairs: list[tuple[bytes, bytes]]) -> int | None:
    for key, value in pairs:
        if key.endswith(_SCHEDULED):
            return _milliseconds(amqp.decode(value)[0])
    return None


def _milliseconds(value: Any) -> int | None:
    """A span or time that a client gave, if it gave a number; no number reaches beyond 9999."""
    return min(max(int(value), 0), _YEAR_9999) if isinstance(value, int) else None


def _identity(value: Any) -> str | None:
    """A message id for duplicate detection; a uuid is the same id as its text."""
    if value is None:
        return None
    return value.hex() if isinstance(value, bytes) else str(value)


def unbatch(raw: bytes) -> list[bytes]:
    """The messages inside a transfer of format 0x80013700."""
    inner = []
    for section in sections(raw):
        if section.code != DATA:
            continue
        value = amqp.decode(raw, section.value)[0]
        if not isinstance(value, bytes):
            raise DecodeError("A data section of a batch is not binary.")
        inner.append(value)
    return inner


def looks_like_batch(raw: bytes) -> bool:
    """Whether every body section is a data section that holds a whole message.

    A transfer's format is known by its delivery tag only, which two links may use at once.
    """
    try:
        bodies = [section for section in sections(raw) if section.code in (DATA, SEQUENCE, VALUE)]
        if not bodies or any(section.code != DATA for section in bodies):
            return False
        return all(_is_message(inner) for inner in unbatch(raw))
    except DecodeError:
        return False


def _is_message(raw: bytes) -> bool:
    if raw[:2] != b"\x00\x53":
        return False
    return any(section.code >= DATA for section in sections(raw))


def outgoing(
    raw: bytes,
    *,
    deliveries: int,
    annotations: Mapping[str, Any],
    lock_token: UUID | None = None,
) -> tuple[bytes, bytes]:
    """The message as a client receives it, in two parts: new head and untouched rest."""
    dropped = tuple(name.encode() for name in annotations)
    header: list[bytes] = []
    for_delivery: list[bytes] = []
    for_message: list[bytes] = []
    rest = len(raw)
    for section in sections(raw):
        if section.code == HEADER:
            header = members(raw, section)
        elif section.code == DELIVERY_ANNOTATIONS:
            for_delivery = members(raw, section)
        elif section.code == MESSAGE_ANNOTATIONS:
            for_message = _kept(_pairs(raw, section), dropped)
        else:
            rest = section.start
            break
    head = _header(header, deliveries)
    if lock_token is not None:
        for_delivery += [_LOCK_TOKEN, amqp.encode(lock_token)]
    if for_delivery:
        head += amqp.described(DELIVERY_ANNOTATIONS, amqp.compound(0xD1, for_delivery))
    for key, value in annotations.items():
        for_message += [amqp.encode(amqp.Symbol(key)), amqp.encode(value)]
    head += amqp.described(MESSAGE_ANNOTATIONS, amqp.compound(0xD1, for_message))
    return head, raw[rest:]


_LOCK_TOKEN: Final = amqp.encode(amqp.Symbol("x-opt-lock-token"))


def _kept(pairs: list[tuple[bytes, bytes]], dropped: tuple[bytes, ...]) -> list[bytes]:
    return [part for pair in pairs if not pair[0].endswith(dropped) for part in pair]


def _header(parts: list[bytes], deliveries: int) -> bytes:
    fields = (parts + [b"\x40"] * _HEADER_FIELDS)[:_HEADER_FIELDS]
    fields[_DELIVERY_COUNT] = amqp.encode(amqp.Uint(deliveries))
    return amqp.described(HEADER, amqp.compound(0xD0, fields))


def with_properties(raw: bytes, added: Mapping[str, str]) -> bytes:
    """The message with these application properties set, everything else as it was."""
    names = {name.encode() for name in added}
    kept: list[bytes] = []
    start = end = len(raw)
    for section in sections(raw):
        if section.code == APPLICATION_PROPERTIES:
            start, end = section.start, section.end
            pairs = _pairs(raw, section)
            kept = [part for pair in pairs if _text_of(pair[0]) not in names for part in pair]
        elif section.code > APPLICATION_PROPERTIES:
            start = min(start, section.start)
            end = start if end == len(raw) else end
            break
    for name, value in added.items():
        kept += [amqp.encode(name), amqp.encode(value)]
    new = amqp.described(APPLICATION_PROPERTIES, amqp.compound(0xD1, kept))
    return raw[:start] + new + raw[end:]


def _text_of(key: bytes) -> bytes:
    return str(amqp.decode(key)[0]).encode()
