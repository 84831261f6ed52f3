"""Redaction: whatever a line is, JSON keeps its shape, and what was redacted has nothing left."""

import json
import random

from fuzz.lines import LINES
from fuzz.mutation import spoil
from sessionferry.agent.redaction import Redactor

_REDACTOR = Redactor(b"k" * 32)
_SECRETS = (
    *("ghp_" + "a1B2" * 9, "sk-ant-api03-" + "x9Y8" * 20, "AKIA" + "ABCD2345" * 2),
    *("postgres://ada:s3cr3tpass@db/x", "password = 'hunter2hunter2'", "Bearer " + "aB3" * 12),
    "-----BEGIN PRIVATE KEY-----\n" + ("aB3+" * 16 + "\n") * 3 + "-----END PRIVATE KEY-----\n",
)
_RAW = tuple(
    json.dumps({**line, "text": secret, secret: [json.dumps({"token": secret})]}).encode()
    for line in LINES
    for secret in _SECRETS
)


def feed(rng: random.Random) -> str:
    """Redact one spoiled line, twice, and as a torn one."""
    line = rng.choice(_RAW)
    if rng.random() < 0.8:
        line = spoil(rng, line, _RAW)
    clean, counts = _REDACTOR.redact(line)
    assert _REDACTOR.redact(clean) == (clean, {})
    assert clean.count(b"\n") == line.count(b"\n")
    _REDACTOR.redact_torn(line.replace(b"\n", b" "))
    before = _shape(line)
    assert before is None or before == _shape(clean)
    kind = "text" if before is None else "JSON"
    return f"{kind}, {'redacted' if counts else 'left alone'}"


def _shape(line: bytes) -> object:
    try:
        return _without_texts(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _without_texts(value: object) -> object:
    if isinstance(value, dict):
        # A key with a secret is another key afterwards; two of them may have been one.
        return ["{"]
    if isinstance(value, list):
        return ["[", *map(_without_texts, value)]
    return "" if isinstance(value, str) else repr(value)
