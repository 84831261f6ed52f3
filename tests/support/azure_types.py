"""What Azure Resource Manager's types say of a resource: names, kinds, required and allowed values.

`tests/data/azure_types.json` holds, for every resource type that `infra/` uses, as much of its type
as `infra/` fills in; `tools/distil_azure_types.py` makes it. Its notation:

`"name"` a property, `"name!"` a required one, `"name-"` one that Azure sets;
`"string"`, `"int"`, `"int 0..10"`, `"bool"`, `"any"`, `"object"` (not looked into), `"=a|b"` one of
these values; `{…}` an object, `[…]` an array of this, `{"*": …}` any names;
`{"<name": {"a": …, "b": …}}` an object whose shape its property `name` decides.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from support.bicep import Deployment

TABLE = Path(__file__).parents[1] / "data" / "azure_types.json"
_KINDS = {"string": str, "bool": bool, "object": dict}
_MARKS = "!-"


def load_table() -> dict[str, Any]:
    """Return the types by `type@version`."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))["resources"]
    return table


def problems(deployment: Deployment, table: dict[str, Any]) -> list[str]:
    """Return what the types do not allow, in sentences."""
    found = []
    for resource in deployment.resources:
        kind = f"{resource.type}@{resource.api_version}"
        if kind not in table:
            found.append(f"{resource.symbol}: {kind} is not in the table")
            continue
        found += [f"{resource.symbol}: {said}" for said in _check(resource.body, table[kind], "")]
    for kind, path in deployment.read:
        if kind not in table or not _exists(table[kind], path):
            found.append(f"{kind} has no property {'.'.join(path)} to read")
    return found


def _check(value: Any, kind: Any, where: str) -> Iterator[str]:
    if value is None or kind == "any":
        return
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where} is no array: {value!r}"
            return
        for item in value:
            yield from _check(item, kind[0], f"{where}[]")
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{where} is no object: {value!r}"
            return
        yield from _check_object(value, kind, where)
    else:
        yield from _check_scalar(value, kind, where)


def _check_object(value: dict[str, Any], kind: dict[str, Any], where: str) -> Iterator[str]:
    shape = dict(kind)
    for key, shapes in kind.items():
        if key.startswith("<"):
            chosen = value.get(key[1:])
            if chosen not in shapes:
                yield f"{where}.{key[1:]} is none of {sorted(shapes)}: {chosen!r}"
                return
            del shape[key]
            shape |= shapes[chosen]
    others = shape.pop("*", None)
    named = {key.rstrip(_MARKS): (key, item) for key, item in shape.items()}
    for name, item in value.items():
        path = f"{where}.{name}".lstrip(".")
        if name in named:
            key, expected = named[name]
            if key.endswith("-"):
                yield f"{path} is set by Azure"
            yield from _check(item, expected, path)
        elif others is not None:
            yield from _check(item, others, path)
        else:
            yield f"{path} is no property; there are {', '.join(sorted(named))}"
    for key in shape:
        if key.endswith("!") and value.get(key.rstrip(_MARKS)) is None:
            yield f"{where}.{key.rstrip(_MARKS)} is required".lstrip(".")


def _check_scalar(value: Any, kind: str, where: str) -> Iterator[str]:
    if kind.startswith("="):
        if value not in kind[1:].split("|"):
            yield f"{where} is none of {kind[1:]}: {value!r}"
    elif kind.startswith("int"):
        low, _, high = kind.removeprefix("int").strip().partition("..")
        if isinstance(value, bool) or not isinstance(value, int):
            yield f"{where} is no int: {value!r}"
        elif (low and value < int(low)) or (high and value > int(high)):
            yield f"{where} is not in {kind[4:]}: {value!r}"
    elif not isinstance(value, _KINDS[kind]):
        yield f"{where} is no {kind}: {value!r}"


def _exists(kind: Any, path: Iterable[str]) -> bool:
    for name in path:
        if not isinstance(kind, dict):
            return bool(kind in {"any", "object"})
        named = {key.rstrip(_MARKS): item for key, item in kind.items()}
        if name not in named:
            return False
        kind = named[name]
    return True
