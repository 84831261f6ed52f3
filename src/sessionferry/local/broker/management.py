"""The request-response operations of `$cbs` and `<queue>/$management`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sessionferry.local.broker import amqp, cbs, message, queues
from sessionferry.local.broker.amqp import Array, Int, Symbol, Timestamp
from sessionferry.local.broker.errors import DecodeError, ServiceError
from sessionferry.local.broker.queues import Queue, Stored

PEEK_MESSAGES: Final = 1_000
_MESSAGE_STATES: Final = {queues.DEFERRED: 1, queues.DEFERRED_LOCKED: 1, queues.SCHEDULED: 2}
_DISPOSITIONS: Final = {"completed", "abandoned", "defered", "suspended"}  # the service's spelling


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A decoded request; `id` is the encoded message id, echoed as it came."""

    id: bytes
    reply_to: str | None
    properties: dict[str, Any]
    body: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a management link manages, and with which rights."""

    queue: Queue
    entity: int
    path: str
    claims: cbs.Claims


def parse(raw: bytes) -> Request:
    """Read a request message."""
    identity, reply_to = b"\x40", None
    properties: dict[str, Any] = {}
    body = None
    for section in message.sections(raw):
        if section.code == message.PROPERTIES:
            members = message.members(raw, section)
            identity = members[0] if members else identity
            reply_to = amqp.decode(members[4])[0] if len(members) > 4 else None
        elif section.code == message.APPLICATION_PROPERTIES:
            properties = amqp.decode(raw, section.value)[0] or {}
        elif section.code == message.VALUE:
            body = amqp.decode(raw, section.value)[0]
    if not isinstance(properties, dict):
        raise DecodeError("The application properties of a request are not a map.")
    return Request(id=identity, reply_to=reply_to, properties=properties, body=body)


def reply(request: Request, properties: dict[str, Any], body: Any = None) -> bytes:
    """A response message that the client correlates with its request."""
    correlation = [b"\x40"] * 5 + [request.id]
    return (
        amqp.described(message.PROPERTIES, amqp.compound(0xD0, correlation))
        + amqp.described(message.APPLICATION_PROPERTIES, amqp.encode(properties))
        + amqp.described(message.VALUE, amqp.encode(body))
    )


def put_token(
    request: Request,
    rules: dict[str, cbs.SasRule],
    check: Callable[[str], object],
    claims: cbs.Claims,
    now: float,
) -> bytes:
    """Verify a token and remember what it grants; `check` raises if there is no such entity."""
    try:
        audience, grant = _verified(request, rules, now)
        check(cbs.path_of(audience))
        claims.add(audience, grant)
        status, description = 202, "Accepted"
    except ServiceError as error:
        status, description = error.status, error.description
    return reply(request, {"status-code": Int(status), "status-description": description})


def _verified(request: Request, rules: dict[str, cbs.SasRule], now: float) -> tuple[str, cbs.Grant]:
    given = request.properties
    if given.get("operation") != "put-token":
        raise ServiceError(
            "amqp:not-implemented", f"There is no operation {given.get('operation')!r}.", 501
        )
    if given.get("type") not in cbs.TOKEN_TYPES:
        raise ServiceError("amqp:not-allowed", "Only shared access signatures are accepted.", 400)
    audience = given.get("name")
    if not isinstance(audience, str) or not isinstance(request.body, str):
        raise ServiceError("amqp:not-allowed", "A token needs a name and a text as value.", 400)
    return audience, cbs.verify(request.body, audience, rules, now)


def manage(request: Request, target: Target, now: int) -> bytes:
    """Carry out one operation on a queue; a refusal is a response as well."""
    operation = request.properties.get("operation")
    try:
        right, run = _operation(operation)
        target.claims.require(target.path, right, now / 1000)
        if not isinstance(request.body, dict):
            raise _argument_error("The body of the request is not a map.")
        body = run(request.body, target, now)
    except ServiceError as error:
        return _failure(request, error)
    if body is None:
        return reply(request, {"statusCode": Int(204), "statusDescription": "NoContent"})
    return reply(request, {"statusCode": Int(200), "statusDescription": "OK"}, body)


def _failure(request: Request, error: ServiceError) -> bytes:
    properties = {
        "statusCode": Int(error.status),
        "statusDescription": error.description,
        "errorCondition": Symbol(error.condition),
    }
    return reply(request, properties)


def _argument_error(description: str) -> ServiceError:
    return ServiceError("com.microsoft:argument-error", description, 400)


def _operation(name: Any) -> tuple[str, Callable[[dict[str, Any], Target, int], Any]]:
    short = name.removeprefix("com.microsoft:") if isinstance(name, str) else ""
    if "session" in short:
        raise ServiceError(
            "amqp:not-allowed", "The operation needs a queue that requires sessions.", 400
        )
    if short not in _OPERATIONS:
        raise ServiceError("amqp:not-implemented", f"There is no operation {name!r}.", 501)
    return _OPERATIONS[short]


def _given(body: dict[str, Any], name: str, kind: type) -> Any:
    value = body.get(name)
    if not isinstance(value, kind):
        raise _argument_error(f"The request lacks {name}, or it is of another type.")
    return value


def _given_list(body: dict[str, Any], name: str, kind: type) -> list[Any]:
    values: list[Any] = _given(body, name, list)
    if not all(isinstance(value, kind) for value in values):
        raise _argument_error(f"A member of {name} is of another type.")
    return values


def _tokens(body: dict[str, Any]) -> list[bytes]:
    return [token.bytes_le for token in _given_list(body, "lock-tokens", UUID)]


def _renew(body: dict[str, Any], target: Target, now: int) -> Any:
    tokens = _tokens(body)
    until = target.queue.renew(tokens, now)
    return {"expirations": Array([Timestamp(until)] * len(tokens))}


def _peek(body: dict[str, Any], target: Target, now: int) -> Any:
    first = _given(body, "from-sequence-number", int)
    count = min(_given(body, "message-count", int), PEEK_MESSAGES)
    found = target.queue.peek(target.entity, first, count, now)
    return {"messages": [{"message": shown(item)} for item in found]} if found else None


def _schedule(body: dict[str, Any], target: Target, now: int) -> Any:
    try:
        items = [
            message.envelope(_given(item, "message", bytes))
            for item in _given_list(body, "messages", dict)
        ]
    except DecodeError as error:
        raise _argument_error(str(error)) from error
    if target.entity != target.queue.active:
        raise ServiceError("amqp:not-allowed", "Nothing is sent to a dead-letter queue.", 400)
    return {"sequence-numbers": Array(target.queue.send(item, now) for item in items)}


def _cancel(body: dict[str, Any], target: Target, _now: int) -> Any:
    target.queue.cancel(_given_list(body, "sequence-numbers", int))
    return {}


def _receive_deferred(body: dict[str, Any], target: Target, now: int) -> Any:
    numbers = _given_list(body, "sequence-numbers", int)
    lock = _given(body, "receiver-settle-mode", int) == 1
    taken = target.queue.take_deferred(target.entity, numbers, now, lock=lock)
    return {"messages": [_deferred(item) for item in taken]}


def _deferred(item: Stored) -> dict[str, Any]:
    found: dict[str, Any] = {"message": shown(item)}
    if item.token is not None:
        found["lock-token"] = queues.uuid_of(item.token)
    return found


def _update_disposition(body: dict[str, Any], target: Target, now: int) -> Any:
    status = _given(body, "disposition-status", str)
    if status not in _DISPOSITIONS:
        raise _argument_error(f"There is no disposition {status!r}.")
    for token in _tokens(body):
        _dispose(status, token, body, target.queue, now)
    return {}


def _dispose(status: str, token: bytes, body: dict[str, Any], queue: Queue, now: int) -> None:
    if status == "completed":
        queue.complete(token, now)
    elif status == "abandoned":
        queue.abandon(token, now)
    elif status == "defered":
        queue.defer(token, now)
    else:
        causes = (body.get("deadletter-reason"), body.get("deadletter-description"))
        queue.dead_letter(token, now, *(str(cause) if cause else None for cause in causes))


_OPERATIONS: Final[dict[str, tuple[str, Callable[[dict[str, Any], Target, int], Any]]]] = {
    "renew-lock": ("listen", _renew),
    "peek-message": ("listen", _peek),
    "receive-by-sequence-number": ("listen", _receive_deferred),
    "update-disposition": ("listen", _update_disposition),
    "schedule-message": ("send", _schedule),
    "cancel-scheduled-message": ("send", _cancel),
}


def head_and_rest(item: Stored) -> tuple[bytes, bytes]:
    """A stored message with everything that a receiver is told about it."""
    annotations: dict[str, Any] = {
        "x-opt-enqueued-time": Timestamp(item.enqueued),
        "x-opt-sequence-number": item.sequence,
    }
    if item.token is not None:
        annotations["x-opt-locked-until"] = Timestamp(item.locked_until or 0)
    state = _MESSAGE_STATES.get(item.state)
    if state is not None:
        annotations["x-opt-message-state"] = Int(state)
    return message.outgoing(
        item.body,
        deliveries=item.deliveries,
        annotations=annotations,
        lock_token=queues.uuid_of(item.token) if item.token else None,
    )


def shown(item: Stored) -> bytes:
    """A stored message inside a management response."""
    return b"".join(head_and_rest(item))
