"""Lines that break careless readers, each with what must become of it.

The verdicts are written down by hand, not computed. Every case stands between plain events, so
that a reader which loses a bad line's neighbours is found out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from sessionferry.simulate.oracle import PLAIN, QUARANTINED, UNPARSED, Facts, FileOracle, Place
from sessionferry.simulate.sink import CountedFile, Piece
from sessionferry.simulate.usage import Usage
from sessionferry.simulate.wire import dump

REPAIRED: Final = Facts(repaired=True)
TRUNCATED: Final = Facts(truncated=True)
_LIMIT: Final = 409_600
_CHUNK: Final = b"ballast " * 8_192  # 64 KiB
_TIME: Final = "2026-03-02T09:00:00.000000000+00:00"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A named line; `facts` is None for a line that counts as blank."""

    name: str
    pieces: tuple[Piece, ...]
    facts: Facts | None = PLAIN


def write_hostile(
    root: Path, place: Place, *, share: tuple[int, int], huge_line: bool = False
) -> list[FileOracle]:
    """Write a machine's hostile session.

    Every machine gets all small cases; of the large ones, which come to some megabytes, machine
    `share[0]` of `share[1]` gets its part.
    """
    me, machines = share
    session_id = place.session_id
    events = [*small_events(session_id), *list(large_events(session_id))[me::machines]]
    # The largest transcript line must not fall to the machine that has most events of size.
    script = [*small_transcript(), *list(large_transcript())[(me + 1) % machines :: machines]]
    if huge_line:
        events.append(huge_event(session_id))
    return [
        _write(root, place, "events.jsonl", events, dump(_event(session_id, "tool:pre"))),
        _write(root, place, "transcript.jsonl", script, dump(_message("carry on"))),
        _write_metadata(root, place),
    ]


def _write(
    root: Path, place: Place, name: str, cases: Iterable[Case], neighbour: bytes
) -> FileOracle:
    with CountedFile(root, FileOracle.at(place, name)) as file:
        for case in cases:
            file.line((neighbour,), PLAIN)
            _write_case(file, case)
        file.tail(b"  \t")  # blank: not an unfinished line
    return file.entry


def _write_case(file: CountedFile, case: Case) -> None:
    if case.facts is not None:
        file.line(case.pieces, case.facts)
        return
    for piece in (*case.pieces, b"\n"):
        file.put(piece)


def _write_metadata(root: Path, place: Place) -> FileOracle:
    value = {
        "session_id": place.session_id,
        "created": _TIME,
        "bundle": "bundle:workbench",
        "turn_count": 1,
        "id": "another id",
        "ttl": 1,
        "user_id": "somebody else",
    }
    with CountedFile(root, FileOracle.at(place, "metadata.json")) as file:
        file.put(json.dumps(value, indent=2).encode())
    return file.entry


def small_events(session_id: str) -> Iterator[Case]:
    """The cases of at most some kilobytes, but for the deeply nested ones."""
    yield from _refused(session_id)
    yield from _repaired(session_id)
    yield from _accepted(session_id)
    yield from _nested(session_id)
    yield from _accounted(session_id)
    yield from _blank()


def _refused(session_id: str) -> Iterator[Case]:
    good = dump(_event(session_id, "tool:post", {"text": "HERE"}))
    lines = {
        "list": b'[{"event": "tool:pre"}]',
        "number": b"42",
        "string": b'"tool:pre"',
        "null": b"null",
        "not-json": b"Traceback (most recent call last):",
        "python-repr": b"{'event': 'tool:pre', 'data': None}",
        "cut": good[: len(good) // 2],
        "two-objects": good + good,
        "two-objects-spaced": good + b" " + good,
        "invalid-utf8": good.replace(b"HERE", b"\xff\xfe\x80"),
        "encoded-surrogate": good.replace(b"HERE", b"\xed\xa0\x80"),
        "nul-byte": good.replace(b"HERE", b"a\x00b"),
        "nul-run": b"\x00" * 512,
        "control-character": good.replace(b"HERE", b"a\x01b"),
        "mark-inside": b"\xef\xbb\xbf" + good,
        "deep-array": b"[" * 10_000 + b"]" * 10_000,
    }
    for name, line in lines.items():
        yield Case(name=name, pieces=(line,), facts=QUARANTINED)


def _repaired(session_id: str) -> Iterator[Case]:
    good = dump(_event(session_id, "tool:post", {"value": "HERE"}))
    values = {
        "nan": b"NaN",
        "infinity": b"[Infinity, -Infinity]",
        "overflow": b"1e400",
        "lone-surrogate": b'"\\ud800"',
        "low-surrogate-first": b'"\\udc00\\ud800"',
        "lone-surrogate-key": b'{"\\ud800": 1}',
    }
    for name, value in values.items():
        line = good.replace(b'"HERE"', value)
        yield Case(name=name, pieces=(line,), facts=REPAIRED)


def _accepted(session_id: str) -> Iterator[Case]:
    good = dump(_event(session_id, "tool:post", {"value": "HERE"}))
    values = {
        "nul-escape": b'"a\\u0000b"',
        "duplicate-keys": b'1, "value": 2, "value": 3',
        "big-integer": str(2**64 + 1).encode(),
        "bigger-integer": str(10**40).encode(),
        "surrogate-pair": b'"\\ud83d\\ude80"',
        "line-separators": '"a\u2028b\u2029c\u0085d"'.encode(),
        "empty-key": b'{"": {"": 1}, "a.b": 2, "$c": 3, "/d": 4}',
    }
    for name, value in values.items():
        yield Case(name=name, pieces=(good.replace(b'"HERE"', value),))
    for name, fields in _odd_fields().items():
        yield Case(name=name, pieces=(dump(_event(session_id, "tool:post") | fields),))
    yield Case(name="empty-object", pieces=(b"{}",))
    yield Case(name="leading-spaces", pieces=(b" \t" + good + b" \r",))


def _odd_fields() -> dict[str, dict[str, Any]]:
    return {
        "ttl": {"ttl": 1},
        "reserved-keys": {
            "id": "/another\\id?#",
            "_etag": "0",
            "partition_key": "x|y|z",
            "sequence": -1,
            "summary": "a text",
        },
        "other-identity": {"session_id": "not/this", "user_id": "somebody else", "host_id": 7},
        "huge-event-name": {"event": "module:" + "n" * 5_000},
        "event-number": {"event": 7},
        "time-number": {"ts": 1_772_438_400},
        "time-text": {"ts": "[REDACTED:PII]T09:00:00Z"},
        "data-text": {"event": "llm:response", "data": "usage"},
    }


def _nested(session_id: str) -> Iterator[Case]:
    yield Case(name="deep-90", pieces=_deep(session_id, 90))
    yield Case(name="deep-150", pieces=_deep(session_id, 150), facts=UNPARSED)
    yield Case(name="deep-10000", pieces=_deep(session_id, 10_000), facts=UNPARSED)
    usage = dump({"input_tokens": 900, "output_tokens": 90, "cost_usd": "9"})
    nest = b'{"usage": ' + usage + b', "raw": ' + b'{"a": ' * 150 + b"1" + b"}" * 151
    line = dump(_event(session_id, "llm:response", {"value": "HERE"}))
    line = line.replace(b'{"value": "HERE"}', nest)
    yield Case(name="deep-usage", pieces=(line,), facts=UNPARSED)


def _deep(session_id: str, levels: int) -> tuple[bytes]:
    line = dump(_event(session_id, "tool:post", {"value": "HERE"}))
    return (line.replace(b'"HERE"', b'{"a":' * levels + b"1" + b"}" * levels),)


def _accounted(session_id: str) -> Iterator[Case]:
    for name, usage, facts in _usages():
        yield Case(name=name, pieces=(dump(_response(session_id, usage)),), facts=facts)
    good = dump(_response(session_id, {"input": 7, "output": 3}))
    nan = good.replace(b'"model": "m"', b'"temperature": NaN')
    usage = Usage(input=7, output=3)
    yield Case(name="usage-repaired", pieces=(nan,), facts=Facts(repaired=True, usage=usage))
    other = _response(session_id, {"input": 7, "output": 3}) | {"event": "content_block:end"}
    yield Case(name="usage-elsewhere", pieces=(dump(other),))


def _usages() -> Iterator[tuple[str, Any, Facts]]:
    cent = Decimal("0.01")
    yield "cost-exponent", {"output_tokens": 1, "cost_usd": "1e999999"}, _facts(output=1)
    yield "cost-negative", {"output_tokens": 1, "cost_usd": "-1.5"}, _facts(output=1)
    yield "cost-nan", {"output_tokens": 1, "cost_usd": "NaN"}, _facts(output=1)
    yield "cost-number", {"output_tokens": 1, "cost_usd": 0.25}, _facts(output=1)
    yield "cost-too-fine", {"cost_usd": "0." + "1" * 19}, PLAIN
    yield "cost-fine", {"cost_usd": "0." + "0" * 17 + "1"}, Facts(cost=Decimal("1e-18"))
    absurd = {
        "input_tokens": -5,
        "output_tokens": 10**30,
        "cache_read_tokens": True,
        "cache_write_tokens": 1.5,
        "cost_usd": "0.01",
    }
    yield "usage-absurd", absurd, Facts(cost=cent)
    yield "usage-too-large", {"input_tokens": 2**53, "output_tokens": "12"}, PLAIN
    beyond = {"input_tokens": 10, "cache_read_tokens": 25, "output_tokens": None}
    yield "usage-more-read-than-input", beyond, _facts(cache_read=25)
    yield "usage-list", [1, 2], PLAIN


def _facts(*, output: int = 0, cache_read: int = 0) -> Facts:
    return Facts(usage=Usage(output=output, cache_read=cache_read))


def _blank() -> Iterator[Case]:
    for name, line in {
        "blank": b"",
        "blank-spaces": b"  \t \t",
        "blank-return": b"\r",
        "blank-feeds": b" \x0b\x0c ",
    }.items():
        yield Case(name=name, pieces=(line,), facts=None)


def large_events(session_id: str) -> Iterator[Case]:
    """Events about the size at which they are truncated."""
    yield Case(name="exactly-409600", pieces=(_sized(session_id, _LIMIT),))
    yield Case(name="exactly-409601", pieces=(_sized(session_id, _LIMIT + 1),), facts=TRUNCATED)
    # More than the limit on disk and less as compact JSON: the measure is the latter.
    yield Case(name="spaced-409600", pieces=(_respaced(_sized(session_id, _LIMIT)),))
    escaped = _event(session_id, "tool:post", {"text": "é" * 90_000})
    yield Case(name="escaped", pieces=(json.dumps(escaped).encode(),))
    usage = Usage(input=70, output=30)
    response = _response(session_id, {"input_tokens": 70, "output_tokens": 30})
    response["data"]["raw"] = {"text": "ballast " * 60_000}
    facts = Facts(truncated=True, usage=usage)
    yield Case(name="usage-truncated", pieces=(dump(response),), facts=facts)


def _sized(session_id: str, size: int) -> bytes:
    line = _packed(_event(session_id, "tool:post", {"text": ""}))
    return line.replace(b'"text":""', b'"text":"' + b"x" * (size - len(line)) + b'"')


def _respaced(line: bytes) -> bytes:
    return dump(json.loads(line))


def huge_event(session_id: str) -> Case:
    """A line of over 16 MiB, which is not parsed; its chunks are one object in memory."""
    head, tail = dump(_event(session_id, "tool:post", {"text": "HERE"})).split(b"HERE")
    return Case(name="huge", pieces=(head, *[_CHUNK] * 272, tail), facts=UNPARSED)


def small_transcript() -> Iterator[Case]:
    """Transcript lines; the same rules hold as for events."""
    good = dump(_message("HERE"))
    for name, line, facts in (
        ("nan", good.replace(b'"HERE"', b"NaN"), REPAIRED),
        ("lone-surrogate", good.replace(b"HERE", b"\\ud800"), REPAIRED),
        ("invalid-utf8", good.replace(b"HERE", b"\xc3\x28"), QUARANTINED),
        ("list", b'["user", "hello"]', QUARANTINED),
        ("not-json", b"user: hello", QUARANTINED),
        ("two-objects", good + good, QUARANTINED),
        ("nul-escape", good.replace(b"HERE", b"a\\u0000b"), PLAIN),
        ("empty-object", b"{}", PLAIN),
        ("ttl", dump(_message("hello") | {"ttl": -1, "id": "x", "sequence": "y"}), PLAIN),
        ("role-number", dump(_message("hello") | {"role": 3}), PLAIN),
        ("deep-150", good.replace(b'"HERE"', b'{"a":' * 150 + b"1" + b"}" * 150), UNPARSED),
    ):
        yield Case(name=name, pieces=(line,), facts=facts)
    yield from _blank()


def large_transcript() -> Iterator[Case]:
    """A line over the limit of events, which does not hold here, and one over the own limit."""
    yield Case(name="over-400k", pieces=(dump(_message("ballast " * 62_500)),))
    over = dump(_message("ballast " * 312_500))
    yield Case(name="over-2m", pieces=(over,), facts=TRUNCATED)


def _event(session_id: str, name: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "ts": _TIME,
        "lvl": "INFO",
        "schema": {"name": "amplifier.log", "ver": "1.0.0"},
        "event": name,
        "session_id": session_id,
        "data": data or {"tool_call_id": "toolu_0", "tool_input": {}, "tool_name": "bash"},
    }


def _response(session_id: str, usage: Any) -> dict[str, Any]:
    return _event(session_id, "llm:response", {"model": "m", "usage": usage})


def _message(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content, "metadata": {"timestamp": _TIME}}


def _packed(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
