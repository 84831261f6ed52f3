"""Items: what the service checks before it takes one, and what it adds to it."""

import re
from typing import Any, NamedTuple

import orjson
from tests.support.cosmos.errors import ServiceError, bad_request

MAX_ITEM_BYTES = 2 * 1024 * 1024
MAX_ID_BYTES = 1023
MAX_DEPTH = 128
MAX_TTL = 2**31 - 1
FORBIDDEN_IN_ID = re.compile(r"[/\\?#]")
SYSTEM_FIELDS = ("_rid", "_self", "_etag", "_attachments", "_ts")


class Item(NamedTuple):
    """A stored item; a change makes a new one.

    `number` orders the items of a container by creation, `lsn` a physical partition's writes.
    """

    id: str
    number: int
    lsn: int
    etag: str
    body: dict[str, Any]
    raw: bytes
    indexed_values: int


class Answer(NamedTuple):
    """What an operation on an item came to."""

    status: int
    item: Item | None
    charge: float


def too_large(what: str = "Request size is too large") -> ServiceError:
    """Over a limit in bytes."""
    return ServiceError(413, what)


def parse_item(data: bytes | memoryview) -> dict[str, Any]:
    """Read a request's item.

    Raises:
        ServiceError: 400 for what is no JSON object, 413 for more than 2 MB.
    """
    if len(data) > MAX_ITEM_BYTES:
        raise too_large()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise bad_request("The input content is invalid because it is not valid JSON.") from None
    return check_item(body)


def check_item(body: Any) -> dict[str, Any]:
    """Check what the service checks of an item's form, and of its id."""
    if not isinstance(body, dict):
        raise bad_request("The input content is invalid because it is not a JSON object.")
    if "id" not in body:
        raise bad_request(
            "The input content is invalid because the required properties - 'id; ' - are missing"
        )
    check_id(body["id"])
    ttl = body.get("ttl")
    if ttl is not None and not (type(ttl) is int and (ttl == -1 or 0 < ttl <= MAX_TTL)):
        raise bad_request("The input ttl value is invalid: it must be -1 or a positive integer.")
    return body


def encode(body: dict[str, Any]) -> bytes:
    """An item as it is stored.

    Raises:
        ServiceError: 413 for more than 2 MB, 400 for nesting too deep.
    """
    raw = orjson.dumps(body)
    if len(raw) > MAX_ITEM_BYTES:
        raise too_large()
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _deep(body):
        raise bad_request(f"The item is nested deeper than {MAX_DEPTH} levels.")
    return raw


def check_id(given: Any) -> str:
    """An id is a string of 1 to 1,023 bytes without `/`, `\\`, `?` and `#`."""
    if not isinstance(given, str) or not given:
        raise bad_request("The input name '' is invalid. Ensure that it is a non-empty string.")
    if FORBIDDEN_IN_ID.search(given):
        raise bad_request(
            "The input name is invalid. Ensure to provide a unique non-empty string "
            "without the characters '/', '\\', '?' and '#'."
        )
    if len(given.encode()) > MAX_ID_BYTES:
        raise bad_request("The input name is invalid: it is longer than 1,023 bytes.")
    return given


def _deep(body: dict[str, Any]) -> bool:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def check_preconditions(
    current: Item | None, if_match: str | None, if_none_match: str | None = None
) -> None:
    """Compare an item's ETag with what a write demands.

    Raises:
        ServiceError: 412.
    """
    if if_match is not None and current is not None and if_match not in {"*", current.etag}:
        raise precondition_failed()
    if if_none_match is not None and current is not None and if_none_match in {"*", current.etag}:
        raise precondition_failed()


def precondition_failed() -> ServiceError:
    """The item is not as the request expects it."""
    return ServiceError(
        412,
        "One of the specified pre-condition is not met. "
        "Learn more: https://aka.ms/CosmosDB/sql/errors/precondition-failed",
        charge=1.24,
    )
