"""Partial updates: `add`, `set`, `replace`, `remove`, `incr` and `move` on paths of an item."""

from typing import Any

import orjson
from tests.support.cosmos.errors import bad_request

MAX_OPERATIONS = 10


def apply(body: dict[str, Any], operations: Any) -> dict[str, Any]:
    """The item after all operations.

    Raises:
        ServiceError: 400 if one of them cannot be done; then none is.
    """
    if not isinstance(operations, list) or not operations:
        raise bad_request("The patch has no operations.")
    if len(operations) > MAX_OPERATIONS:
        raise bad_request(
            f"The number of patch operations can't exceed {MAX_OPERATIONS}: {len(operations)}."
        )
    changed: dict[str, Any] = orjson.loads(orjson.dumps(body))
    for operation in operations:
        _apply_one(changed, operation)
    return changed


def _apply_one(body: dict[str, Any], operation: Any) -> None:
    if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
        raise bad_request("A patch operation needs op and path.")
    kind, path = operation.get("op"), _parse(operation["path"])
    if path[0] in {"_rid", "_self", "_etag", "_ts", "_attachments"}:
        raise bad_request(f"Patch must not change the system property /{path[0]}.")
    if kind == "move":
        source = _parse(operation.get("from", ""))
        value = _take(body, source)
        _put(body, path, value, must_exist=False, insert=True)
    elif kind == "remove":
        _take(body, path)
    elif kind in {"add", "set", "replace"}:
        if "value" not in operation:
            raise bad_request(f"The patch operation {kind} needs a value.")
        _put(body, path, operation["value"], must_exist=kind == "replace", insert=kind == "add")
    elif kind == "incr":
        _increment(body, path, operation.get("value"))
    else:
        raise bad_request(f"The patch operation {kind!r} is unknown.")


def _parse(path: str) -> list[str]:
    if not path.startswith("/") or len(path) == 1:
        raise bad_request(f"The patch path {path!r} is invalid.")
    return [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]


def _parent(body: dict[str, Any], path: list[str]) -> Any:
    at: Any = body
    for part in path[:-1]:
        if isinstance(at, dict) and part in at:
            at = at[part]
        elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        else:
            raise bad_request(f"The patch path /{'/'.join(path)} leads nowhere: no {part}.")
    if not isinstance(at, dict | list):
        raise bad_request(f"The patch path /{'/'.join(path)} leads into a value.")
    return at


def _put(
    body: dict[str, Any], path: list[str], value: Any, *, must_exist: bool, insert: bool
) -> None:
    parent, name = _parent(body, path), path[-1]
    if isinstance(parent, dict):
        if must_exist and name not in parent:
            raise bad_request(f"The patch path /{'/'.join(path)} does not exist.")
        parent[name] = value
        return
    index = len(parent) if name == "-" else _index(name, len(parent), path)
    if index == len(parent) and not must_exist:
        parent.append(value)
    elif index >= len(parent):
        raise bad_request(f"The patch path /{'/'.join(path)} does not exist.")
    elif insert:
        parent.insert(index, value)
    else:
        parent[index] = value


def _take(body: dict[str, Any], path: list[str]) -> Any:
    parent, name = _parent(body, path), path[-1]
    if isinstance(parent, dict) and name in parent:
        return parent.pop(name)
    if isinstance(parent, list) and _index(name, len(parent), path) < len(parent):
        return parent.pop(int(name))
    raise bad_request(f"The patch path /{'/'.join(path)} does not exist.")


def _increment(body: dict[str, Any], path: list[str], by: Any) -> None:
    if isinstance(by, bool) or not isinstance(by, int | float):
        raise bad_request("The patch operation incr needs a number.")
    parent, name = _parent(body, path), path[-1]
    if isinstance(parent, list):
        raise bad_request("The patch operation incr does not work on array elements here.")
    current = parent.get(name, 0)
    if isinstance(current, bool) or not isinstance(current, int | float):
        raise bad_request(f"The patch path /{'/'.join(path)} is not a number.")
    parent[name] = current + by


def _index(name: str, length: int, path: list[str]) -> int:
    if not name.isdigit() or int(name) > length:
        raise bad_request(f"The patch path /{'/'.join(path)} is no element of the array.")
    return int(name)
