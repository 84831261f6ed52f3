"""Messages, against what the real converter makes of the data the real host sends."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID

import pytest
from azure.functions import ServiceBusMessage
from azure.functions.meta import Datum
from azure.functions.servicebus import ServiceBusMessageInConverter
from azure.servicebus import ServiceBusReceivedMessage
from azure.servicebus._pyamqp.message import Header, Message, Properties

from sessionferry.local.functions_host.messages import many_messages, one_message

ENQUEUED = datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC)
TOKEN = UUID("00112233-4455-6677-8899-aabbccddeeff")
FIELDS = [
    name
    for name, member in vars(ServiceBusMessage).items()
    if isinstance(member, property) and name not in ("metadata", "force_persistence")
]
assert "delivery_count" in FIELDS


def received(body: bytes = b"\x28\xb5\x2f\xfd", **given) -> ServiceBusReceivedMessage:
    """A message as the client gets it from the broker."""
    moment = int(ENQUEUED.timestamp() * 1000)
    properties = {"message_id": b"m1", "content_type": b"application/zstd"} | given
    header = properties.pop("header", Header(delivery_count=0))
    message = Message(
        data=[body],
        header=header,
        properties=Properties(**properties),
        application_properties={b"content_encoding": b"zstd", b"n": 5, b"raw": b"\xff"},
        message_annotations={
            b"x-opt-enqueued-time": moment,
            b"x-opt-sequence-number": 7,
            b"x-opt-locked-until": moment + 5000,
        },
        delivery_annotations={b"x-opt-lock-token": TOKEN},
    )
    frame = [None, 0, TOKEN.bytes_le, None, None, None]
    return ServiceBusReceivedMessage(message, frame=frame, receiver=None)


APPLICATION_PROPERTIES = {"content_encoding": "zstd", "n": 5, "raw": "/w=="}
# What the real host sends for such a message, as read in its sources.
SENT_BY_HOST = {
    "DeliveryCount": ("1", "json"),
    "LockToken": (str(TOKEN), "string"),
    "ExpiresAtUtc": ('"9999-12-31T23:59:59.9999999"', "json"),
    "EnqueuedTimeUtc": ('"2026-01-02T03:04:05.12"', "json"),
    "MessageId": ("m1", "string"),
    "ContentType": ("application/zstd", "string"),
    "SequenceNumber": (7, "int"),
    "ApplicationProperties": (json.dumps(APPLICATION_PROPERTIES), "json"),
    "UserProperties": (json.dumps(APPLICATION_PROPERTIES), "json"),
}
ONLY_HERE = {"locked_until": datetime(2026, 1, 2, 3, 4, 10, 120_000, tzinfo=UTC)}


def same(ours: ServiceBusMessage, theirs: ServiceBusMessage) -> None:
    """Each public field is equal, but for what is given here only."""
    for name in FIELDS:
        assert getattr(ours, name) == ONLY_HERE.get(name, getattr(theirs, name)), name
    assert ours.get_body() == theirs.get_body()
    assert type(ours) is type(theirs)


def test_one_message_is_what_the_worker_builds():
    """Field by field, for cardinality one."""
    metadata = {name: Datum(*datum) for name, datum in SENT_BY_HOST.items()}
    theirs = ServiceBusMessageInConverter.decode(
        Datum(b"\x28\xb5\x2f\xfd", "bytes"), trigger_metadata=metadata
    )
    ours = one_message(received(), binary=True)
    same(ours, theirs)
    assert ours.metadata is not None
    assert {name: ours.metadata[name] for name in SENT_BY_HOST} == theirs.metadata


def test_many_messages_are_what_the_worker_builds():
    """Field by field, for cardinality many."""
    props = json.dumps([APPLICATION_PROPERTIES] * 2)
    metadata = {
        "DeliveryCountArray": Datum("[1, 3]", "json"),
        "LockTokenArray": Datum(SimpleNamespace(string=[str(TOKEN)] * 2), "collection_string"),
        "ExpiresAtUtcArray": Datum(
            '["9999-12-31T23:59:59.9999999", "2026-01-02T03:04:15.12"]', "json"
        ),
        "EnqueuedTimeUtcArray": Datum(
            '["2026-01-02T03:04:05.12", "2026-01-02T03:04:05.12"]', "json"
        ),
        "MessageIdArray": Datum(SimpleNamespace(string=["m1", "m2"]), "collection_string"),
        "ContentTypeArray": Datum(
            SimpleNamespace(string=["application/zstd"] * 2), "collection_string"
        ),
        "SequenceNumberArray": Datum(SimpleNamespace(sint64=[7, 7]), "collection_sint64"),
        "ApplicationPropertiesArray": Datum(props, "json"),
        "UserPropertiesArray": Datum(props, "json"),
        "CorrelationIdArray": Datum(SimpleNamespace(string=["c1", "c2"]), "collection_string"),
        "SubjectArray": Datum(SimpleNamespace(string=["s", "s"]), "collection_string"),
        "LabelArray": Datum(SimpleNamespace(string=["s", "s"]), "collection_string"),
        "ReplyToArray": Datum(SimpleNamespace(string=["r", "r"]), "collection_string"),
        "SessionIdArray": Datum(SimpleNamespace(string=["x", "x"]), "collection_string"),
    }
    bodies = SimpleNamespace(bytes=[b"\xff", b""])
    theirs = ServiceBusMessageInConverter.decode(
        Datum(bodies, "collection_bytes"), trigger_metadata=metadata
    )
    common = {"subject": b"s", "reply_to": b"r", "group_id": b"x"}
    batch = [
        received(b"\xff", correlation_id=b"c1", **common),
        received(
            b"",
            message_id=b"m2",
            correlation_id=b"c2",
            header=Header(delivery_count=2, ttl=10_000),
            **common,
        ),
    ]
    ours = many_messages(batch, binary=True)
    for mine, real in zip(ours, theirs, strict=True):
        same(mine, real)
    assert ours[0].metadata == ours[1].metadata
    assert set(metadata) <= set(ours[0].metadata or {})


def test_times_have_no_zone_as_in_azure():
    """Code that compares them with aware times fails here as it would there."""
    message = one_message(received(), binary=True)
    assert message.enqueued_time_utc == ENQUEUED.replace(tzinfo=None)


def test_absent_strings_move_later_ones_up():
    """The real host drops them, so that only ids that all messages have can be relied on."""
    ours = many_messages([received(), received(correlation_id=b"second")], binary=True)
    assert [message.correlation_id for message in ours] == ["second", None]
    assert [message.message_id for message in ours] == ["m1", "m1"]


@pytest.mark.parametrize(
    "build", [lambda m: one_message(m, binary=False), lambda m: many_messages([m], binary=False)[0]]
)
def test_without_binary_a_body_is_text(build):
    """Bytes that are no UTF-8 are replaced, as in Azure."""
    assert build(received("é".encode())).get_body() == "é".encode()
    assert build(received(b"\xff")).get_body() == "\ufffd".encode()


def test_dead_letter_fields():
    """Given as fields, and as application properties."""
    message = received()
    message.raw_amqp_message.application_properties[b"DeadLetterReason"] = b"why"
    message.raw_amqp_message.application_properties[b"DeadLetterErrorDescription"] = b"how"
    ours = one_message(message, binary=True)
    assert (ours.dead_letter_reason, ours.dead_letter_error_description) == ("why", "how")
    assert ours.application_properties["DeadLetterReason"] == "why"
