"""What a function gets for a message: the real converter's reading of what the host sends.

The host hands the worker a body and "trigger metadata", both typed data; azure-functions makes a
`ServiceBusMessage` of them. This module does the host's half, with its quirks, because code that
works here has to work there:

- The delivery count starts at 1: the host's client adds one to the header's count.
- `EnqueuedTimeUtc` and `ExpiresAtUtc` have no zone, so the function sees naive UTC times.
- In a batch, absent and empty strings are dropped from their array, so that later ones move up.
- Unless the binding says `dataType: binary`, a body is text, and other bytes are replaced.

`LockedUntil`, `DeadLetterReason` and `DeadLetterErrorDescription` are given here although the
real host is not known to send them; the latter two are application properties there too.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final, cast
from uuid import UUID

from azure.functions import ServiceBusMessage
from azure.functions.meta import Datum
from azure.servicebus import ServiceBusReceivedMessage

from sessionferry.local.functions_host.app import converter_of

_NEVER: Final = "9999-12-31T23:59:59.9999999"
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def one_message(message: ServiceBusReceivedMessage, *, binary: bool) -> ServiceBusMessage:
    """Build the trigger's value for cardinality one."""
    data = body(message)
    datum = _datum(data, "bytes") if binary else _datum(_text_of(data), "string")
    metadata = {name: _single(value) for name, value in facts(message).items() if value is not None}
    return cast("ServiceBusMessage", _convert(datum, metadata))


def many_messages(
    messages: Sequence[ServiceBusReceivedMessage], *, binary: bool
) -> list[ServiceBusMessage]:
    """Build the trigger's value for cardinality many."""
    bodies = [body(message) for message in messages]
    if binary:
        datum = _datum(SimpleNamespace(bytes=bodies), "collection_bytes")
    else:
        texts = SimpleNamespace(string=[_text_of(data) for data in bodies])
        datum = _datum(texts, "collection_string")
    rows = [facts(message) for message in messages]
    metadata = {f"{name}Array": _array([row[name] for row in rows]) for name in rows[0]}
    return cast("list[ServiceBusMessage]", _convert(datum, metadata))


def body(message: ServiceBusReceivedMessage) -> bytes:
    """A message's bytes; empty for a body that is not data."""
    content = message.raw_amqp_message.body
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, dict | int | float | None):
        return b""
    return b"".join(part for part in content if isinstance(part, bytes))


def facts(message: ServiceBusReceivedMessage) -> dict[str, Any]:
    """What the host tells about a message, under the host's names."""
    properties = _properties(message.application_properties or {})
    enqueued, expires = message.enqueued_time_utc or _UNIX_EPOCH, message.expires_at_utc
    subject = _text(message.subject)
    return {
        "DeliveryCount": (message.delivery_count or 0) + 1,
        "DeadLetterSource": message.dead_letter_source,
        "LockToken": _text(message.lock_token),
        "ExpiresAtUtc": _Json(_naive(expires) if expires else _NEVER),
        "ExpiresAt": _Json((_naive(expires) if expires else _NEVER) + "+00:00"),
        "EnqueuedTimeUtc": _Json(_naive(enqueued)),
        "EnqueuedTime": _Json(_naive(enqueued) + "+00:00"),
        "MessageId": _text(message.message_id),
        "ContentType": _text(message.content_type),
        "ReplyTo": _text(message.reply_to),
        "SequenceNumber": _Long(message.sequence_number or 0),
        "To": _text(message.to),
        "Subject": subject,
        "Label": subject,
        "CorrelationId": _text(message.correlation_id),
        "ApplicationProperties": _Json(properties),
        "UserProperties": _Json(properties),
        "SessionId": _text(message.session_id),
        "ReplyToSessionId": _text(message.reply_to_session_id),
        "PartitionKey": _text(message.partition_key),
        "LockedUntil": _Json(_zoned(message.locked_until_utc)),
        "DeadLetterReason": message.dead_letter_reason,
        "DeadLetterErrorDescription": message.dead_letter_error_description,
    }


class _Json:
    """A value that travels as JSON, not as a string."""

    def __init__(self, value: object) -> None:
        self.value = value


class _Long(int):
    """A 64-bit number, which has a type of its own on the wire; smaller ones travel as JSON."""


def _single(value: Any) -> Any:
    if isinstance(value, str):
        return _datum(value, "string")
    if isinstance(value, _Long):
        return _datum(int(value), "int")
    return _datum(json.dumps(_plain(value)), "json")


def _array(values: list[Any]) -> Any:
    if all(value is None or isinstance(value, str) for value in values):
        return _datum(
            SimpleNamespace(string=[value for value in values if value]), "collection_string"
        )
    if all(isinstance(value, _Long) for value in values):
        return _datum(SimpleNamespace(sint64=[int(value) for value in values]), "collection_sint64")
    return _datum(json.dumps([_plain(value) for value in values]), "json")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Json) else value


def _datum(value: object, kind: str) -> Any:
    make = cast("Callable[[object, str], Any]", Datum)
    return make(value, kind)


def _convert(datum: Any, metadata: Mapping[str, Any]) -> Any:
    return converter_of("serviceBusTrigger").decode(datum, trigger_metadata=metadata)


def _properties(properties: Mapping[Any, Any]) -> dict[str, Any]:
    return {_text(key) or "": _property(value) for key, value in properties.items()}


def _property(value: Any) -> Any:
    """As the host's JSON writes it; the client gives strings and binary values both as bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return _zoned(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _text(value: str | bytes | UUID | None) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


def _text_of(data: bytes) -> str:
    return data.decode(errors="replace")


def _naive(moment: datetime) -> str:
    """ISO 8601 as .NET writes a time without a zone: no trailing zeros in the fraction."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return text.rstrip("0") if "." in text else text


def _zoned(moment: datetime | None) -> str | None:
    return None if moment is None else _naive(moment) + "Z"
