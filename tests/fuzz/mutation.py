"""How input is spoiled: blindly, as bytes, and knowingly, as JSON."""

import random
from collections.abc import Sequence
from typing import Any

TOKENS = (
    *(b"\x00", b"\xff" * 8, b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xed\xa0\x80"),
    *(b"{", b"}", b"[" * 200, b'"', b"\\", b"\\ud800", b"NaN", b"-0", b"1e999", b"9" * 400),
    *(
        b"null",
        b"true",
        b'{"a":' * 120,
        b"\x28\xb5\x2f\xfd",
        b"\x1f\x8b\x08",
        b"AMQP\x00\x01\x00\x00",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 0.5, 1e308),
    *("", " ", "x", "\x00", "a|b", "a/b", "..", "\u2028", "\U0001f600" * 300, "x" * 70_000),
    *(
        [],
        {},
        [[]],
        {"a": {"b": {}}},
        ["x"] * 50,
        "lines",
        "tail",
        "metadata",
        "heartbeat",
        "events",
    ),
)


def spoil(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change some bytes: flip, overwrite, insert, delete, repeat, cut, or cross two inputs."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.choice((1, 1, 2, 4, 16, 200)))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at:end] = rng.randbytes(end - at)
            case 2:
                out[at:at] = rng.choice(TOKENS)
            case 3:
                del out[at:end]
            case 4:
                out[at:at] = out[at:end] * rng.choice((1, 2, 50))
            case 5:
                del out[at:]
            case 6:
                other = rng.choice(others)
                out[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                out[at:end] = rng.choice(TOKENS)
    return bytes(out)


def distort(rng: random.Random, value: Any) -> Any:
    """Change one place of a JSON value: another type, an extreme, a missing or an unknown key."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        changed = dict(value)
        key = rng.choice(list(changed))
        match rng.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(("ttl", "id", "_etag", "x" * 300, "", "summary"))] = changed[key]
            case _:
                changed[key] = distort(rng, changed[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return [*value[:at], distort(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)
