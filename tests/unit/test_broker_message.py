"""Messages are annotated byte by byte: what the sender wrote stays as it was."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.local.broker import amqp, message
from sessionferry.local.broker.errors import DecodeError

TOKEN = UUID("00112233-4455-6677-8899-aabbccddeeff")
names = st.text(alphabet="abcdefghij-", min_size=1, max_size=10)
maps = st.dictionaries(names, st.integers(0, 99) | st.text(max_size=5), max_size=4)


def section(code: int, value: Any) -> bytes:
    return amqp.described(code, amqp.encode(value))


def annotations(values: dict[str, Any]) -> dict[Any, Any]:
    return {amqp.Symbol(key): value for key, value in values.items()}


@st.composite
def messages(draw: st.DrawFn) -> dict[int, bytes]:
    """Sections by code; each but the body may be absent."""
    possible = {
        message.HEADER: st.lists(st.none() | st.integers(0, 9).map(amqp.Uint), max_size=5),
        message.DELIVERY_ANNOTATIONS: maps.map(annotations),
        message.MESSAGE_ANNOTATIONS: maps.map(annotations),
        message.PROPERTIES: st.lists(st.none() | st.text(max_size=9), max_size=13),
        message.APPLICATION_PROPERTIES: maps,
        message.DATA: st.binary(max_size=400),
        message.FOOTER: maps.map(annotations),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(possible)))) | {message.DATA}
    return {code: section(code, draw(possible[code])) for code in sorted(chosen)}


def parts(raw: bytes) -> dict[int, Any]:
    return {found.code: amqp.decode(raw, found.value)[0] for found in message.sections(raw)}


@given(messages())
def test_everything_behind_the_annotations_passes_unchanged(given_parts: dict[int, bytes]) -> None:
    raw = b"".join(given_parts.values())
    head, rest = message.outgoing(raw, deliveries=3, annotations={"x-opt-n": 7}, lock_token=TOKEN)
    untouched = [value for code, value in given_parts.items() if code >= message.PROPERTIES]
    assert b"".join(untouched) == bytes(rest)
    sent, received = parts(raw), parts(head + rest)
    kept = sent.get(message.MESSAGE_ANNOTATIONS, {}) | {"x-opt-n": 7}
    assert kept == received[message.MESSAGE_ANNOTATIONS]
    for_delivery = sent.get(message.DELIVERY_ANNOTATIONS, {}) | {"x-opt-lock-token": TOKEN}
    assert for_delivery == received[message.DELIVERY_ANNOTATIONS]
    fields = (sent.get(message.HEADER, []) + [None] * 5)[:4]
    assert [*fields, 3] == received[message.HEADER]


@given(messages(), st.permutations(range(7)))
def test_sections_in_any_order_are_put_in_order(
    given_parts: dict[int, bytes], order: list[int]
) -> None:
    in_order = list(given_parts.values())
    shuffled = [in_order[index] for index in order if index < len(in_order)]
    try:
        assert b"".join(in_order) == message.envelope(b"".join(shuffled)).raw
    except DecodeError:  # the application properties of random keys may be no valid header
        pytest.fail("a well-formed message was refused")


@given(messages(), maps.map(lambda values: {key: str(value) for key, value in values.items()}))
def test_dead_letter_properties_replace_only_themselves(
    given_parts: dict[int, bytes], added: dict[str, str]
) -> None:
    raw = b"".join(given_parts.values())
    sent, received = parts(raw), parts(message.with_properties(raw, added))
    expected = sent.pop(message.APPLICATION_PROPERTIES, {}) | added
    assert expected == received.pop(message.APPLICATION_PROPERTIES)
    assert sent == received


@given(st.binary(max_size=300))
def test_random_bytes_are_a_message_or_an_error(raw: bytes) -> None:
    try:
        message.envelope(raw)
    except DecodeError:
        assert not message.looks_like_batch(raw)


@given(st.lists(messages(), min_size=1, max_size=4))
def test_a_batch_is_split_into_its_messages(batch: list[dict[int, bytes]]) -> None:
    inner = [b"".join(item.values()) for item in batch]
    raw = b"".join(section(message.DATA, item) for item in inner)
    assert message.looks_like_batch(raw)
    assert inner == message.unbatch(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(section(message.DATA, b"plain"), False, id="a plain body"),
        pytest.param(section(message.DATA, b""), False, id="an empty body"),
        pytest.param(section(message.VALUE, "text"), False, id="a value body"),
        pytest.param(section(message.DATA, section(message.DATA, b"x")), True, id="one message"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_a_batch_is_known_by_its_structure(raw: bytes, expected: bool) -> None:
    assert expected == message.looks_like_batch(raw)


def test_the_broker_reads_time_to_live_message_id_and_schedule() -> None:
    raw = (
        section(message.HEADER, [None, None, amqp.Uint(5_000)])
        + section(
            message.MESSAGE_ANNOTATIONS,
            annotations({"x-opt-scheduled-enqueue-time": amqp.Timestamp(1_000)}),
        )
        + section(message.PROPERTIES, [TOKEN])
        + section(message.DATA, b"body")
    )
    found = message.envelope(raw)
    assert (found.time_to_live, found.message_id, found.scheduled_at) == (5_000, str(TOKEN), 1_000)


@pytest.mark.parametrize("value", ["soon", -1, 2**64 - 1])
def test_a_senseless_time_to_live_does_no_harm(value: Any) -> None:
    encoded = b"\x80" + value.to_bytes(8, "big") if value == 2**64 - 1 else amqp.encode(value)
    header = amqp.described(message.HEADER, amqp.compound(0xD0, [b"\x40", b"\x40", encoded]))
    lives = message.envelope(header + section(message.DATA, b"body")).time_to_live
    assert lives is None or 0 <= lives < 2**53
