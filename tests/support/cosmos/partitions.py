"""Where a partition key's items live: the hash of the key, and the ranges that share the hashes.

The hash is Cosmos's version 2: MurmurHash3 (x64, 128 bits) over the key's parts, the two highest
bits cleared, as 32 hexadecimal digits. The client computes the same value, so it must be exact.
"""

import itertools
import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from tests.support.cosmos.errors import bad_request, throttled

LOWEST = ""
HIGHEST = "FF"
MAX_KEY_BYTES = 2048

MASK = 0xFFFFFFFFFFFFFFFF
C1 = 0x87C37B91114253D5
C2 = 0x4CF5AD432745937F


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


MISSING = b"\x00"
Key: TypeAlias = tuple[bytes, ...]  # each part as it is hashed, so that 1, 1.0 and true stay apart


def encode_part(value: Any) -> bytes:
    """A part of a partition key as it is hashed; `{}` stands for a missing property.

    Raises:
        ServiceError: 400 for an array, an object, or a string over 2,048 bytes.
    """
    if value is None:
        return b"\x01"
    if isinstance(value, bool):
        return b"\x03" if value else b"\x02"
    if isinstance(value, int | float):
        return b"\x05" + struct.pack("<d", value)
    if isinstance(value, str):
        encoded = value.encode()
        if len(encoded) > MAX_KEY_BYTES:
            raise bad_request("The partition key's value is longer than 2,048 bytes.")
        return b"\x08" + encoded + b"\xff"
    if value == {}:
        return MISSING
    raise bad_request("A partition key's value must be a string, a number, a boolean or null.")


def _hash(data: bytes) -> str:
    low, high = murmur3_128(data)
    digits = bytearray(high.to_bytes(8, "big") + low.to_bytes(8, "big"))
    digits[0] &= 0x3F
    return digits.hex().upper()


@lru_cache(maxsize=65536)
def effective_key(parts: Key, *, hierarchical: bool = False) -> str:
    """The point on the ring where a partition key lies."""
    if hierarchical:
        return "".join(map(_hash, parts))
    return _hash(b"".join(parts))


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

    def halves(self) -> tuple["Range", "Range"]:
        """Both parts of equal size."""
        low, high = (int((bound or "0").ljust(8, "0")[:8], 16) for bound in self)
        middle = f"{(low + min(high, 0x40000000)) // 2:08X}"
        return Range(self.low, middle), Range(middle, self.high)


EVERYTHING = Range(LOWEST, HIGHEST)


def split_evenly(count: int) -> Iterator[Range]:
    """The ring in equal parts; keys lie below 3FFF… since two bits are cleared."""
    bounds = [LOWEST, *(f"{0x40000000 * i // count:08X}" for i in range(1, count)), HIGHEST]
    yield from (Range(low, high) for low, high in itertools.pairwise(bounds))


def parse_key(values: Sequence[Any], paths: int) -> Key:
    """Read the parts of a partition key header."""
    if len(values) > paths:
        raise bad_request(
            "Partition key provided has more parts than the container's definition has paths."
        )
    return tuple(map(encode_part, values))
