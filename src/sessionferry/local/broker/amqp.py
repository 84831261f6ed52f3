"""AMQP 1.0 values to and from bytes (OASIS AMQP 1.0, part 1: types).

Only what a broker reads: message headers, annotations, management requests. Bodies pass untouched.
"""

import struct
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from sessionferry.local.broker.errors import DecodeError

MAX_DEPTH: Final = 32  # nesting that no client needs, against hostile recursion


class Symbol(str):
    """An AMQP symbol."""

    __slots__ = ()


class Timestamp(int):
    """Milliseconds since the epoch."""


class Uint(int):
    """A 32-bit unsigned integer."""


class Int(int):
    """A 32-bit signed integer; a plain int is written as a 64-bit long."""


class Array(list[Any]):
    """Values of one type, written as an AMQP array."""


class Described:
    """A value with a descriptor."""

    __slots__ = ("descriptor", "value")

    def __init__(self, descriptor: Any, value: Any) -> None:
        self.descriptor = descriptor
        self.value = value


def _unpack(fmt: str) -> Callable[[bytes], Any]:
    unpack = struct.Struct(fmt).unpack
    return lambda raw: unpack(raw)[0]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8")


_PRIMITIVES: Final[dict[int, Callable[[bytes], Any]]] = {
    0x40: lambda _: None,
    0x41: lambda _: True,
    0x42: lambda _: False,
    0x43: lambda _: 0,
    0x44: lambda _: 0,
    0x50: _unpack(">B"),
    0x51: _unpack(">b"),
    0x52: _unpack(">B"),
    0x53: _unpack(">B"),
    0x54: _unpack(">b"),
    0x55: _unpack(">b"),
    0x56: lambda raw: raw != b"\0",
    0x60: _unpack(">H"),
    0x61: _unpack(">h"),
    0x70: _unpack(">I"),
    0x71: _unpack(">i"),
    0x72: _unpack(">f"),
    0x73: bytes,  # a character and the decimals are never looked into
    0x74: bytes,
    0x80: _unpack(">Q"),
    0x81: _unpack(">q"),
    0x82: _unpack(">d"),
    0x83: lambda raw: Timestamp(int.from_bytes(raw, "big", signed=True)),
    0x84: bytes,
    0x94: bytes,
    0x98: lambda raw: UUID(bytes=bytes(raw)),
    0xA0: bytes,
    0xA1: _text,
    0xA3: lambda raw: Symbol(raw.decode("ascii")),
    0xB0: bytes,
    0xB1: _text,
    0xB3: lambda raw: Symbol(raw.decode("ascii")),
}
_WIDTHS: Final = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}


def _extent(code: int, data: bytes, pos: int) -> tuple[int, int]:
    """Where the value of constructor `code` starts and ends; `pos` is just behind the code."""
    width = _WIDTHS.get(code >> 4)
    if width is not None:
        start, end = pos, pos + width
    elif code >= 0xA0:
        size_bytes = 4 if code & 0x10 else 1
        start = pos + size_bytes
        end = start + int.from_bytes(data[pos:start], "big")
    else:
        raise DecodeError(f"There is no AMQP type 0x{code:02x}.")
    if start > len(data) or end > len(data):
        raise DecodeError("An AMQP value ends too early.")
    return start, end


def _code_at(data: bytes, pos: int) -> int:
    if pos >= len(data):
        raise DecodeError("An AMQP value ends too early.")
    return data[pos]


def skip(data: bytes, pos: int, depth: int = 0) -> int:
    """The position behind the value at `pos`, which is not decoded."""
    code = _code_at(data, pos)
    if code == 0:
        if depth > MAX_DEPTH:
            raise DecodeError("AMQP values are nested too deeply.")
        return skip(data, skip(data, pos + 1, depth + 1), depth + 1)
    return _extent(code, data, pos + 1)[1]


def decode(data: bytes, pos: int = 0, depth: int = 0) -> tuple[Any, int]:
    """The value at `pos` and the position behind it."""
    if depth > MAX_DEPTH:
        raise DecodeError("AMQP values are nested too deeply.")
    code = _code_at(data, pos)
    if code == 0:
        descriptor, pos = decode(data, pos + 1, depth + 1)
        value, pos = decode(data, pos, depth + 1)
        return Described(descriptor, value), pos
    start, end = _extent(code, data, pos + 1)
    return _decode_body(code, data, start, end, depth), end


def _decode_body(code: int, data: bytes, start: int, end: int, depth: int) -> Any:
    if code == 0x45:
        return []
    if code in (0xC0, 0xD0):
        return [decode(data, at, depth + 1)[0] for at, _ in items(code, data, start, end)]
    if code in (0xC1, 0xD1):
        return _decode_map(code, data, start, end, depth)
    if code in (0xE0, 0xF0):
        return _decode_array(code, data, start, end, depth)
    primitive = _PRIMITIVES.get(code)
    if primitive is None:
        raise DecodeError(f"There is no AMQP type 0x{code:02x}.")
    try:
        return primitive(data[start:end])
    except (UnicodeDecodeError, struct.error) as error:
        raise DecodeError(f"A value of AMQP type 0x{code:02x} is malformed.") from error


def items(code: int, data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """The extents of the members of a list or map whose content is data[start:end]."""
    count_bytes = 4 if code & 0x10 else 1
    count = int.from_bytes(data[start : start + count_bytes], "big")
    pos = start + count_bytes
    found = []
    for _ in range(count):
        after = skip(data, pos)
        if after > end:
            raise DecodeError("A member of an AMQP list or map reaches beyond its end.")
        found.append((pos, after))
        pos = after
    return found


def _decode_map(code: int, data: bytes, start: int, end: int, depth: int) -> dict[Any, Any]:
    members = [decode(data, at, depth + 1)[0] for at, _ in items(code, data, start, end)]
    if len(members) % 2:
        raise DecodeError("An AMQP map has a key without a value.")
    try:
        return dict(zip(members[::2], members[1::2], strict=True))
    except TypeError:
        raise DecodeError("An AMQP map has a compound key.") from None


def _decode_array(code: int, data: bytes, start: int, end: int, depth: int) -> list[Any]:
    count_bytes = 4 if code & 0x10 else 1
    count = int.from_bytes(data[start : start + count_bytes], "big")
    if count > end - start:  # members without a width would let five bytes fill the memory
        raise DecodeError("An AMQP array announces more members than it has bytes.")
    member = _code_at(data, start + count_bytes)
    pos = start + count_bytes + 1
    found = []
    for _ in range(count):
        at, after = _extent(member, data, pos)
        if after > end:
            raise DecodeError("A member of an AMQP array reaches beyond its end.")
        found.append(_decode_body(member, data, at, after, depth + 1))
        pos = after
    return found


def _sized(short: int, raw: bytes) -> bytes:
    if len(raw) < 256:
        return bytes((short, len(raw))) + raw
    return bytes((short + 0x10,)) + len(raw).to_bytes(4, "big") + raw


def compound(code: int, members: list[bytes]) -> bytes:
    """A list (0xD0) or map (0xD1) of encoded members."""
    body = b"".join(members)
    if len(body) < 255 and len(members) < 256:
        return bytes((code - 0x10, len(body) + 1, len(members))) + body
    return bytes((code,)) + struct.pack(">II", len(body) + 4, len(members)) + body


def _encode_array(values: Array) -> bytes:
    members = [encode(value) for value in values]
    code = members[0][:1] if members else b"\x40"
    body = code + b"".join(member[1:] for member in members)
    return b"\xf0" + struct.pack(">II", len(body) + 4, len(members)) + body


def _encode_dict(values: dict[Any, Any]) -> bytes:
    return compound(0xD1, [encode(part) for pair in values.items() for part in pair])


def _encode_bool(value: bool) -> bytes:
    return b"\x41" if value else b"\x42"


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: b"\x40",
    bool: _encode_bool,
    Symbol: lambda value: _sized(0xA3, value.encode("ascii")),
    str: lambda value: _sized(0xA1, value.encode("utf-8")),
    bytes: lambda value: _sized(0xA0, value),
    Timestamp: lambda value: struct.pack(">Bq", 0x83, value),
    Uint: lambda value: struct.pack(">BI", 0x70, value),
    Int: lambda value: struct.pack(">Bi", 0x71, value),
    int: lambda value: struct.pack(">Bq", 0x81, value),
    UUID: lambda value: b"\x98" + value.bytes,
    Array: _encode_array,
    list: lambda value: compound(0xD0, [encode(member) for member in value]),
    dict: _encode_dict,
}


def encode(value: Any) -> bytes:
    """`value` as AMQP bytes."""
    return _ENCODERS[type(value)](value)


def described(code: int, raw: bytes) -> bytes:
    """`raw` under the small numeric descriptor `code`, as a message section is."""
    return bytes((0x00, 0x53, code)) + raw
