"""Where a partition key's items live: the hash of the key, and the ranges that share the hashes.

The hash is Cosmos's version 2: MurmurHash3 (x64, 128 bits) over the key's parts, the two highest
bits cleared, as 32 hexadecimal digits. The client computes the same value, so it must be exact.
"""

import itertools
import struct
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from tests.support.cosmos.errors import ServiceError, throttled

LOWEST = ""
HIGHEST = "FF"
MAX_KEY_BYTES = 2048

KeyPart: TypeAlias = str | float | bool | None
MASK = 0xFFFFFFFFFFFFFFFF
C1 = 0x87C37B91114253D5
C2 = 0x4CF5AD432745937F


class Missing(Enum):
    """The key of an item that lacks the property; `{}` on the wire."""

    PROPERTY = "missing"


MISSING = Missing.PROPERTY


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & MASK


def _mix(value: int) -> int:
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return value ^ (value >> 33)


def _scramble_low(value: int) -> int:
    return (_rotate((value * C1) & MASK, 31) * C2) & MASK


def _scramble_high(value: int) -> int:
    return (_rotate((value * C2) & MASK, 33) * C1) & MASK


def murmur3_128(data: bytes) -> tuple[int, int]:
    """MurmurHash3 x64 with seed 0: the low and the high 64 bits."""
    low = high = 0
    whole = len(data) // 16 * 16
    for first, second in struct.iter_unpack("<QQ", data[:whole]):
        low = ((_rotate(low ^ _scramble_low(first), 27) + high) * 5 + 0x52DCE729) & MASK
        high = ((_rotate(high ^ _scramble_high(second), 31) + low) * 5 + 0x38495AB5) & MASK
    tail = data[whole:]
    high ^= _scramble_high(int.from_bytes(tail[8:], "little"))
    low ^= _scramble_low(int.from_bytes(tail[:8], "little"))
    low ^= len(data)
    high ^= len(data)
    low = (low + high) & MASK
    high = (high + low) & MASK
    low, high = _mix(low), _mix(high)
    low = (low + high) & MASK
    return low, (high + low) & MASK


def _encoded(part: KeyPart | Missing) -> bytes:
    if isinstance(part, Missing):
        return b"\x00"
    if part is None:
        return b"\x01"
    if part is False:
        return b"\x02"
    if part is True:
        return b"\x03"
    if isinstance(part, str):
        return b"\x08" + part.encode() + b"\xff"
    return b"\x05" + struct.pack("<d", float(part))


def _hash(data: bytes) -> str:
    low, high = murmur3_128(data)
    digits = bytearray(high.to_bytes(8, "big") + low.to_bytes(8, "big"))
    digits[0] &= 0x3F
    return digits.hex().upper()


@lru_cache(maxsize=65536)
def effective_key(parts: tuple[KeyPart | Missing, ...], *, hierarchical: bool = False) -> str:
    """The point on the ring where a partition key lies."""
    if hierarchical:
        return "".join(_hash(_encoded(part)) for part in parts)
    return _hash(b"".join(map(_encoded, parts)))


class TokenBucket:
    """A physical partition's request units: one second's worth, refilled all the time.

    As the service does it, a request runs while the balance is positive and may overdraw it;
    what follows then waits until the debt is paid.
    """

    def __init__(self) -> None:
        self._balance = 0.0
        self._at = 0.0

    def check(self, per_second: float) -> None:
        """Refuse a request while the bucket is overdrawn."""
        now = time.monotonic()
        if self._at == 0.0:
            self._balance, self._at = per_second, now
        self._balance = min(per_second, self._balance + (now - self._at) * per_second)
        self._at = now
        if self._balance <= 0:
            raise throttled((1 - self._balance) * 1000 / per_second)

    def charge(self, units: float) -> None:
        """Take what a request cost."""
        self._balance -= units


class Range(NamedTuple):
    """A half-open interval of effective keys."""

    low: str
    high: str

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.low <= key < self.high

    def overlaps(self, other: "Range") -> bool:
        """Whether both have a key in common."""
        return self.low < other.high and other.low < self.high


EVERYTHING = Range(LOWEST, HIGHEST)


def split_evenly(count: int) -> Iterator[Range]:
    """The ring in equal parts; keys lie below 3FFF… since two bits are cleared."""
    bounds = [LOWEST, *(f"{0x40000000 * i // count:08X}" for i in range(1, count)), HIGHEST]
    yield from (Range(low, high) for low, high in itertools.pairwise(bounds))


def parse_key(values: Sequence[object], paths: int) -> tuple[KeyPart | Missing, ...]:
    """Check the parts of a partition key header."""
    if len(values) > paths:
        raise ServiceError(
            400, "Partition key provided has more parts than the container's definition."
        )
    parts: list[KeyPart | Missing] = []
    for value in values:
        if value == {}:
            parts.append(MISSING)
        elif value is None or isinstance(value, str | int | float | bool):
            parts.append(value)
        else:
            raise ServiceError(400, "Partition key value is not a string, number, boolean or null.")
    return tuple(parts)
