"""Usage is exact: however a file is cut, ordered and repeated, sums are those of a brute force.

The brute force shares no code with what it judges. It knows which lines count because it is told
when they are made.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessionferry.batch import MAX_CARRY_BYTES, Batch, Header, decode, encode_parts, lines_of
from sessionferry.documents import Document, DocumentBuilder, Facts, Position, stored_facts
from sessionferry.formats import FORMATS, format_named
from sessionferry.formats.claude_code import MAX_MESSAGES
from sessionferry.formats.meaning import MAX_COUNT, Meaning, Usage
from sessionferry.heads import Delivery, Head, merge
from sessionferry.packing import Packed, Packer, Place, pack
from support.strategies import header, json_values

BOM = b"\xef\xbb\xbf"
KINDS = ("input", "output", "cache_read", "cache_write")
Counts = dict[str, int]


class Line(NamedTuple):
    """A line of a file, and what the brute force is told about it."""

    raw: bytes
    told: Any = None


# ---------------------------------------------------------------- cutting and merging


def packed(name: str, file: bytes, seed: int, **changes: Any) -> list[Packed]:
    """Pack a file with random blocks and limits; now and then go on with a packer made anew."""
    rng = Random(seed)
    template = header(**{"format": name, "stream": "transcript", **changes})
    batches: list[Packed] = []
    place, limit = Place(), rng.randint(1_500, 9_000)
    packer = Packer(template, limit, place)
    for block in blocks(file, rng):
        batches += packer.add(block)
        if rng.random() < 0.3:
            batches += packer.flush()
            carry = as_json(packer.carry)
            assert batches[-1].next_carry == packer.carry
            template = template.model_copy(update={"carry": carry})
            packer = Packer(template, rng.randint(1_500, 9_000), packer.place)
    return batches + list(packer.flush())


def as_json(carry: dict[str, Any] | None) -> dict[str, Any] | None:
    """Write and read a carry, as a spool does."""
    found: dict[str, Any] | None = orjson.loads(orjson.dumps(carry))
    return found


def blocks(file: bytes, rng: Random) -> Iterator[bytes]:
    start = 0
    while start < len(file):
        cut = min(start + rng.randint(1, 900), len(file) - 1)
        end = file.find(b"\n", cut) + 1 or len(file)
        yield file[start:end]
        start = end


def received(packed: Packed) -> Batch:
    """Send a batch over the wire."""
    return decode(encode_parts(packed.header, packed.compressed), claimed=True)


def facts_of(batch: Batch, skipped: frozenset[int] = frozenset()) -> list[Facts]:
    """Build a batch's documents and return what a head counts of them."""
    builder = DocumentBuilder(batch.header, "somewhere", "2026-07-01T00:00:00.000Z")
    found = []
    for number, (offset, line) in enumerate(lines_of(batch.payload), batch.header.start_sequence):
        if number in skipped:
            builder.skip(Position(number, offset), line)
            continue
        made = builder.build(Position(number, offset), line)
        if isinstance(made, Document):
            assert stored_facts(made.fields) == made.facts
            found.append(made.facts)
    return found


def summed(batches: list[Packed], rng: Random) -> Counts:
    """Merge the batches in any order, some of them several times; return the head's sums."""
    order = [*batches, *rng.choices(batches, k=3)] if batches else []
    rng.shuffle(order)
    head = Head.new(header().key)
    for each in order:
        batch = received(each)
        head = merge(head, [Delivery("transcript", 0, stored=facts_of(batch))])
    return dict(zip(KINDS, head.stream("transcript").usage, strict=True))


def check(name: str, file: bytes, expected: Counts, seed: int) -> None:
    rng = Random(seed)
    batches = packed(name, file, seed)
    assert b"".join(received(each).payload for each in batches) == file
    assert all(len(orjson.dumps(each.header.carry)) <= MAX_CARRY_BYTES for each in batches)
    assert summed(batches, rng) == expected
    again = packed(name, file, seed + 1)
    assert lines(batches) == lines(again)


def lines(batches: list[Packed]) -> list[Facts]:
    return [facts for each in batches for facts in facts_of(received(each))]


def joined(made: list[Line], rng: Random) -> bytes:
    ends = (b"\n", b"\n", b"\r\n", b"\n\n", b"\n \t\n")
    return b"".join(line.raw + rng.choice(ends) for line in made)


def dumped(value: Any, style: int) -> bytes:
    if style == 0:
        return json.dumps(value, separators=(",", ":")).encode()
    return json.dumps(value, ensure_ascii=style == 1).encode()


counts = st.one_of(
    st.integers(0, 5_000),
    st.sampled_from([0, MAX_COUNT, MAX_COUNT + 1, -1, 2**60, True, None, 1.5, "12", [], 10**30]),
)
noise = st.one_of(
    st.binary(min_size=1, max_size=30).map(lambda raw: b"]" + raw.replace(b"\n", b"")),
    st.sampled_from(
        [
            b'{"type":"assistant","message":{"id":"m1","usage":{"output_tokens":9',
            b'["usage","token_count"]',
            b'{"type":"brand-new","usage":{"output_tokens":9},"payload":{"token_count":1}}',
            b'{"a":' * 200 + b'"usage","token_count"' + b"}" * 200,
            b'{"note":"an \\"usage\\" and a \\"token_count\\" in a text"}',
            b'{"type":"assistant","message":{"id":"m1","usage":{"output_tokens":9}},"a":"\xff"}',
            b'{"type":"event_msg","payload":{"type":"token_count","info":null}}',
            b'{"type":"event_msg","payload":{"type":"token_count"}}',
            b'{"type":"assistant","message":"usage"}',
        ]
    ),
).map(Line)


def counted(value: object) -> int:
    """A count as the sums have it, in the brute force's own words."""
    return value if type(value) is int and 0 <= value <= 10**9 else 0


# ---------------------------------------------------------------- Claude Code


def claude_line(identity: object, usage: Any, model: str, style: int, more: Any) -> Line:
    message: dict[str, Any] = {"model": model, "content": more, "usage": usage}
    if identity is not None:
        message["id"] = identity
    value = {"type": "assistant", "sessionId": "s", "message": message}
    raw = dumped(value, style)
    if style == 2:
        raw = raw.replace(b'"assistant"', b'"assistant", "odd": NaN', 1)
    billed = isinstance(usage, dict) and model != "<synthetic>"
    return Line(raw, (identity, usage) if billed else None)


claude_usage = st.dictionaries(
    st.sampled_from(
        [
            *("input_tokens", "output_tokens", "cache_read_input_tokens"),
            *("cache_creation_input_tokens", "service_tier"),
        ]
    ),
    counts,
)
claude_lines = st.builds(
    claude_line,
    st.sampled_from(["m1", "m2", "m3", "m4", "", None]),
    claude_usage | st.just(None),
    st.sampled_from(["claude-opus-4-8", "claude-opus-4-8", "<synthetic>"]),
    st.integers(0, 2),
    json_values,
)


def claude_sums(made: list[Line]) -> Counts:
    """Add up the last usage of each message."""
    last: dict[object, dict[str, Any]] = {}
    for number, line in enumerate(made):
        if line.told is not None:
            identity, usage = line.told
            last[number if identity is None else identity] = usage
    names = (
        *("input_tokens", "output_tokens", "cache_read_input_tokens"),
        "cache_creation_input_tokens",
    )
    return {
        kind: sum(counted(usage.get(name)) for usage in last.values())
        for kind, name in zip(KINDS, names, strict=True)
    }


def claude_replies(rng: Random) -> list[Line]:
    """Replies of one to five lines each; sub-agents may talk at the same time."""
    talks = [(f"m{number}", rng.randint(1, 5)) for number in range(rng.randint(3, 12))]
    order = [identity for identity, times in talks for _ in range(times)]
    if rng.random() < 0.5:
        rng.shuffle(order)
    used = ("input_tokens", "output_tokens", "cache_read_input_tokens")
    return [
        claude_line(identity, {name: rng.randrange(900) for name in used}, "m", rng.randrange(2), 0)
        for identity in order
    ]


@given(st.lists(claude_lines | noise, max_size=30), st.integers(0, 10**6))
def test_claude_counts_the_last_line_of_each_message(strange: list[Line], seed: int) -> None:
    rng = Random(seed)
    made = claude_replies(rng)
    for line in strange:
        made.insert(rng.randint(0, len(made)), line)
    check("claude_code", joined(made, rng), claude_sums(made), seed)


def test_a_count_that_falls_is_corrected() -> None:
    memory = format_named("claude_code").remember
    assert memory is not None
    follow, due = memory(None), []
    for output in (5, 9, 2, 2):
        fields = {"message": {"id": "m", "usage": {"output_tokens": output, "input_tokens": 3}}}
        meaning = Meaning()
        follow.recall(fields, meaning)
        due.append(meaning.usage)
    assert due == [Usage(3, 5), Usage(0, 4), Usage(0, -7), Usage()]


def test_many_messages_may_interleave_before_one_is_forgotten() -> None:
    ids = [f"m{number}" for number in range(MAX_MESSAGES)]
    made = [claude_line(each, {"output_tokens": 7}, "m", 0, None) for each in ids * 3]
    check("claude_code", joined(made, Random(1)), claude_sums(made), 1)


def test_a_file_that_begins_with_a_byte_order_mark_is_counted() -> None:
    made = [claude_line("m1", {"output_tokens": number}, "m", 0, None) for number in (3, 8)]
    check("claude_code", BOM + joined(made, Random(3)), claude_sums(made), 3)


# ---------------------------------------------------------------- Codex


class CodexFile:
    """Writes a thread's lines and knows, call by call, what each of them used."""

    def __init__(self, rng: Random, *, forked: bool) -> None:
        self.rng = rng
        self.lines: list[Line] = []
        self.used = dict.fromkeys(KINDS, 0)
        self.totals = dict.fromkeys(KINDS, 0)
        self.now = 1_000_000
        self.forked = forked
        meta = {"id": "t", "model_provider": "openai"}
        self.put("session_meta", meta | ({"forked_from_id": "parent"} if forked else {}))
        if forked:
            self.copied()

    def put(self, kind: str, payload: Any) -> None:
        seconds, milli = divmod(self.now, 1000)
        stamp = f"2026-01-{1 + seconds // 86400:02}T{seconds // 3600 % 24:02}:"
        stamp += f"{seconds // 60 % 60:02}:{seconds % 60:02}.{milli:03}Z"
        value = {"timestamp": stamp, "type": kind, "payload": payload}
        self.lines.append(Line(dumped(value, self.rng.randrange(2))))

    def copied(self) -> None:
        """The parent's lines, written in one go."""
        if self.rng.random() < 0.5:
            self.put("session_meta", {"id": "parent", "forked_from_id": "grandparent"})
        for _ in range(self.rng.randrange(5)):
            self.now += self.rng.randrange(40)
            self.call(own=False)
        self.now += 1_500

    def call(self, *, own: bool = True) -> None:
        due = {kind: self.rng.randrange(1_000) for kind in KINDS}
        for kind, count in due.items():
            self.totals[kind] += count
            self.used[kind] += count if own else 0
        self.state(due)

    def state(self, last: Counts | None) -> None:
        info = {"total_token_usage": stated(self.totals), "model_context_window": 200_000}
        if last is not None:
            info["last_token_usage"] = stated(last)
        self.put("event_msg", {"type": "token_count", "info": info, "rate_limits": None})

    def step(self) -> None:
        self.now += self.rng.randrange(1, 60_000)
        match self.rng.randrange(9):
            case 0:
                self.state(dict.fromkeys(KINDS, 9))  # the same totals once more
            case 1:
                self.totals = dict.fromkeys(KINDS, 0)  # the counter begins anew
                self.call()
            case 2:
                self.put("event_msg", {"type": "token_count", "info": None})
            case 3:
                self.put("turn_context", {"model": "gpt-6-codex", "cwd": "/srv"})
            case 4:
                self.put("session_meta", {"id": "other", "forked_from_id": "x"})
            case 5:
                text = 'a "token_count" in a text'
                self.put("response_item", {"type": "message", "role": "user", "content": text})
            case _:
                self.call()


def stated(counts: Counts) -> dict[str, int]:
    """Counts as Codex states them: cached and written tokens are part of the input."""
    cached, written = counts["cache_read"], counts["cache_write"]
    whole = counts["input"] + cached + written
    return {
        "input_tokens": whole,
        "cached_input_tokens": cached,
        "cache_write_input_tokens": written,
        "output_tokens": counts["output"],
        "reasoning_output_tokens": counts["output"] // 2,
        "total_tokens": whole + counts["output"],
    }


@given(st.integers(0, 10**6), st.integers(0, 40), st.booleans(), st.lists(noise, max_size=8))
def test_codex_counts_what_totals_gain(
    seed: int, steps: int, forked: bool, strange: list[Line]
) -> None:
    rng = Random(seed)
    file = CodexFile(rng, forked=forked)
    for _ in range(steps):
        file.step()
    for line in strange:
        file.lines.insert(rng.randint(1, len(file.lines)), line)
    check("codex", joined(file.lines, rng), file.used, seed)


def codex(*lines: dict[str, Any]) -> list[Meaning]:
    """Read lines one after another, with what the ones before say."""
    known = format_named("codex")
    assert known.remember is not None
    memory = known.remember(None)
    meanings = []
    for line in lines:
        meaning = known.interpret("transcript", line)
        memory.recall(line, meaning)
        meanings.append(meaning)
    return meanings


def token_count(
    total: int | None, last: int | None = None, at: str = "2026-01-01T00:00:09Z"
) -> dict[str, Any]:
    info = {
        name: {"output_tokens": value}
        for name, value in (("total_token_usage", total), ("last_token_usage", last))
        if value is not None
    }
    return {"timestamp": at, "type": "event_msg", "payload": {"type": "token_count", "info": info}}


@pytest.mark.parametrize(
    ("lines", "due"),
    [
        ([token_count(5), token_count(12)], [5, 7]),
        ([token_count(5), token_count(5, 3)], [5, 0]),
        ([token_count(50), token_count(8, 3)], [50, 3]),
        ([token_count(50), token_count(8)], [50, 8]),
        ([token_count(5), token_count(9, 9)], [5, 9]),
        ([token_count(None, 4), token_count(None, 4), token_count(9)], [4, 4, 1]),
        ([token_count(10**9), token_count(2 * 10**9)], [10**9, 10**9]),
        ([token_count(10**9 + 1), token_count(10**9 + 2)], [0, 1]),
        ([token_count(2**53), token_count(3)], [0, 3]),
    ],
)
def test_a_total_counts_what_it_gained(lines: list[dict[str, Any]], due: list[int]) -> None:
    assert [meaning.usage.output for meaning in codex(*lines) if meaning.usage] == due


def test_a_token_count_names_the_model_and_provider_in_use() -> None:
    meta = {"type": "session_meta", "payload": {"id": "t", "model_provider": "openai"}}
    turns = [{"type": "turn_context", "payload": {"model": name}} for name in ("one", "two")]
    *_, first, _, second = codex(meta, turns[0], token_count(1), turns[1], token_count(2))
    assert (first.summary["model"], first.summary["provider"]) == ("one", "openai")
    assert second.summary["model"] == "two"


def test_copies_end_with_the_first_pause() -> None:
    at = "2026-01-01T00:00:0"
    meta = {"type": "session_meta", "timestamp": f"{at}0Z", "payload": {"forked_from_id": "p"}}
    copies = [token_count(5, at=f"{at}0.9Z"), token_count(9, at=f"{at}1.9Z")]
    own = [token_count(12, at=f"{at}2.901Z"), token_count(20, at=f"{at}2.950Z")]
    assert [meaning.usage for meaning in codex(meta, *copies, *own)] == [
        *(None, None, None),
        *(Usage(0, 3), Usage(0, 8)),
    ]


# ---------------------------------------------------------------- lines that stand by themselves

dollars = st.decimals(min_value=0, max_value=99, places=12)


class Spent(NamedTuple):
    """What the brute force is told about a line: tokens by kind, and dollars."""

    tokens: tuple[int, int, int, int]
    cost: Decimal = Decimal(0)


def check_alone(name: str, made: list[Line], seed: int, **changes: Any) -> None:
    """Whatever is cut, ordered and repeated, all that was spent is counted once."""
    rng = Random(seed)
    spent = [line.told for line in made if line.told is not None]
    batches = packed(name, joined(made, rng), seed, **changes)
    order = [*batches, *rng.choices(batches, k=3)] if batches else []
    rng.shuffle(order)
    head = Head.new(header().key)
    stream = changes.get("stream", "transcript")
    for each in order:
        head = merge(head, [Delivery(stream, 0, stored=facts_of(received(each)))])
    found = head.stream(stream)
    assert found.usage == tuple(sum(each.tokens[kind] for each in spent) for kind in range(4))
    assert Decimal(found.cost_usd) == sum((each.cost for each in spent), Decimal(0))


def amplifier_line(usage: dict[str, Any], dollar: Decimal, event: str) -> Line:
    stated = {"usage": usage | {"cost_usd": f"{dollar:f}"}}
    raw = dumped({"event": event, "ts": "2026-01-01T00:00:00Z", "data": stated}, 0)
    read = counted(usage.get("cache_read_tokens"))
    kinds = (
        max(0, counted(usage.get("input_tokens")) - read),
        counted(usage.get("output_tokens")),
        *(read, counted(usage.get("cache_write_tokens"))),
    )
    return Line(raw, Spent(kinds, dollar) if event == "llm:response" else None)


amplifier_lines = st.builds(
    amplifier_line,
    st.dictionaries(
        st.sampled_from(
            ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"]
        ),
        counts,
    ),
    dollars,
    st.sampled_from(["llm:response", "llm:response", "llm:request", "orchestrator:complete"]),
)


@given(st.lists(amplifier_lines, max_size=30), st.integers(0, 10**6))
def test_amplifier_counts_each_response_once(made: list[Line], seed: int) -> None:
    check_alone("amplifier", made, seed, stream="events")


def openai_line(prompt: Any, cached: Any, reply: Any, dollar: Decimal) -> Line:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": reply,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    raw = dumped({"response": {"usage": usage, "cost_usd": f"{dollar:f}"}}, 1)
    read = counted(cached)
    return Line(raw, Spent((max(0, counted(prompt) - read), counted(reply), read, 0), dollar))


@given(
    st.lists(st.builds(openai_line, counts, counts, counts, dollars), max_size=30),
    st.integers(0, 10**6),
)
def test_plain_json_lines_count_each_line_once(made: list[Line], seed: int) -> None:
    check_alone("jsonl", made, seed)


OWN_PLACES = {
    "input": "llm.spent.0",
    "output": "llm.spent.1",
    "cached_input": "llm.cached",
    "cache_write": "llm.written",
    "cost_usd": "llm.dollars",
    "time": "at",
}


def own_line(spent: list[Any], cached: Any, written: Any, cents: int) -> Line:
    llm = {"spent": spent, "cached": cached, "written": written, "dollars": cents / 100}
    raw = dumped({"at": "2026-01-01T00:00:00Z", "llm": llm, "usage": {"input_tokens": 7}}, 0)
    read = counted(cached)
    given, reply = (*map(counted, spent), 0, 0)[:2]
    kinds = (max(0, given - read), reply, read, counted(written))
    return Line(raw, Spent(kinds, Decimal(cents) / 100))


@given(
    st.lists(
        st.builds(own_line, st.lists(counts, max_size=3), counts, counts, st.integers(0, 10**6)),
        max_size=30,
    ),
    st.integers(0, 10**6),
)
def test_lines_of_an_unknown_tool_count_what_the_configuration_says(
    made: list[Line], seed: int
) -> None:
    check_alone("jsonl", made, seed, carry={"fields": OWN_PLACES})


# ---------------------------------------------------------------- carries


def remembering() -> list[str]:
    return [name for name, known in FORMATS.items() if known.remember is not None]


@pytest.mark.parametrize("name", remembering())
def test_a_hostile_carry_is_read_as_far_as_it_makes_sense(name: str) -> None:
    keys = st.sampled_from(["messages", "totals", "model", "provider", "begun", "copied_at"])
    entries = st.lists(st.lists(json_values, min_size=4, max_size=6), max_size=4)

    @given(st.dictionaries(keys, json_values | entries))
    @example({"messages": [["k", 1, 2, 3, 4], ["k", None, -1, 10**30, "x"], [[], 1, 2, 3, 4], 7]})
    @example({"totals": [1, 2, 3, 2**60], "copied_at": "soon", "begun": 1})
    def check(carry: dict[str, Any]) -> None:
        remember = FORMATS[name].remember
        assert remember is not None
        memory = remember(carry)
        for line in (token_count(5), {"message": {"id": "m", "usage": {"output_tokens": 1}}}):
            memory.recall(line, Meaning())
        assert len(orjson.dumps(memory.carry())) <= MAX_CARRY_BYTES
        assert as_json(memory.carry()) == memory.carry()

    check()


def test_the_largest_carry_fits_the_header() -> None:
    huge = dict.fromkeys(("input_tokens", "output_tokens"), MAX_COUNT)
    cached = {f"cache_{name}_input_tokens": MAX_COUNT for name in ("read", "creation")}
    made = [claude_line("m" * number, huge | cached, "m", 0, None) for number in range(1, 200)]
    batches = packed("claude_code", joined(made, Random(5)), 5)
    largest = max(len(orjson.dumps(each.next_carry)) for each in batches)
    assert MAX_CARRY_BYTES / 3 < largest <= MAX_CARRY_BYTES


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_file_in_which_nothing_is_to_be_known_carries_nothing(name: str) -> None:
    batches = packed(name, b'{"a":1}\n' * 50, 7)
    assert {each.header.carry for each in batches} == {None}


def test_lines_that_are_passed_over_still_count_for_those_behind() -> None:
    made = [claude_line("m1", {"output_tokens": number}, "m", 0, None) for number in (3, 8, 9)]
    template = header(format="claude_code", stream="transcript")
    (whole,) = pack(template, [joined(made, Random(0))], 9_000)
    facts = facts_of(received(whole), skipped=frozenset({0, 1}))
    assert [each.usage for each in facts] == [Usage(0, 1)]


def test_an_unknown_format_is_packed_all_the_same() -> None:
    template: Header = header(format="of-tomorrow", carry={"x": 1})
    packer = Packer(template, 9_000)
    batches = [*packer.add(b'{"usage":1}\n'), *packer.flush()]
    assert [each.header.carry for each in batches] == [{"x": 1}]
