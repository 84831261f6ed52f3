"""Make tests/data/azure_types.json out of the type files of github.com/Azure/bicep-types-az.

    git clone --depth 1 https://github.com/Azure/bicep-types-az
    .venv/bin/python tools/distil_azure_types.py bicep-types-az/generated

Only facts are taken over (names, kinds, which are required, which values are allowed), and only of
what `infra/` fills in or reads; the notation is explained in tests/support/azure_types.py. To be
run after `infra/` uses a resource type or an object that it did not use before.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.azure_types import TABLE  # noqa: E402
from support.scenarios import deployments  # noqa: E402

SOURCE = "github.com/Azure/bicep-types-az at 1f896de (MIT): names, kinds and values of types"
REQUIRED, READ_ONLY = 1, 2
_SCALARS = {"StringType": "string", "BooleanType": "bool", "AnyType": "any"}
Uses = dict[str, Any]


def main(folder: Path) -> None:
    """Read all type files below a folder, and write the table."""
    uses = _uses()
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        types = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(types, list):
            continue
        for item in types:
            if item["$type"] == "ResourceType" and item["name"] in uses:
                found[item["name"]] = _distil(types, item["body"], uses[item["name"]])
    missing = sorted(set(uses) - set(found))
    if missing:
        raise SystemExit(f"No type file has {', '.join(missing)}.")
    text = json.dumps({"source": SOURCE, "resources": found}, indent=1, sort_keys=True)
    TABLE.write_text(text + "\n", encoding="utf-8")


def _uses() -> dict[str, Uses]:
    """Return, by `type@version`, a tree of the property names that are filled in or read."""
    uses: dict[str, Uses] = {}
    for deployment in deployments():
        for resource in deployment.resources:
            _note(resource.body, uses.setdefault(f"{resource.type}@{resource.api_version}", {}))
        for kind, path in deployment.read:
            tree = uses.setdefault(kind, {})
            for name in path:
                tree = tree.setdefault(name, {})
    return uses


def _note(value: Any, tree: Uses) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _note(item, tree.setdefault(name, {}))
    elif isinstance(value, list):
        for item in value:
            _note(item, tree)


def _distil(types: list[Any], reference: dict[str, str], uses: Uses) -> Any:
    item = types[int(reference["$ref"].removeprefix("#/"))]
    match item["$type"]:
        case "ArrayType":
            return [_distil(types, item["itemType"], uses)]
        case "DiscriminatedObjectType" if uses:
            return _discriminated(types, item, uses)
        case "ObjectType" if uses:
            return _object(types, item, uses)
        case "DiscriminatedObjectType" | "ObjectType":
            return "object"
        case _:
            return _scalar(types, item)


def _scalar(types: list[Any], item: dict[str, Any]) -> str:
    match item["$type"]:
        case "IntegerType":
            bounds = (str(item.get(name, "")) for name in ("minValue", "maxValue"))
            return f"int {'..'.join(bounds)}".removesuffix(" ..")
        case "StringLiteralType":
            return f"={item['value']}"
        case "UnionType":
            return _union(types, item)
        case kind:
            return _SCALARS[kind]


def _union(types: list[Any], item: dict[str, Any]) -> str:
    options = [types[int(option["$ref"].removeprefix("#/"))] for option in item["elements"]]
    values = sorted(option["value"] for option in options if "value" in option)
    return f"={'|'.join(values)}" if values else "any"


def _object(types: list[Any], item: dict[str, Any], uses: Uses) -> dict[str, Any]:
    found = _properties(types, item["properties"], uses)
    if "additionalProperties" in item:
        below = {name: tree for used in uses.values() for name, tree in used.items()}
        found["*"] = _distil(types, item["additionalProperties"], below)
    return found


def _properties(types: list[Any], properties: dict[str, Any], uses: Uses) -> dict[str, Any]:
    found = {}
    for name, described in properties.items():
        if name in {"id", "type", "apiVersion"} and described["flags"] & READ_ONLY:
            continue
        mark = "-" if described["flags"] & READ_ONLY else "!" * (described["flags"] & REQUIRED)
        found[name + mark] = _distil(types, described["type"], uses.get(name, {}))
    return found


def _discriminated(types: list[Any], item: dict[str, Any], uses: Uses) -> dict[str, Any]:
    found = _properties(types, item["baseProperties"], uses)
    found[f"<{item['discriminator']}"] = {
        value: _distil(types, reference, uses) for value, reference in item["elements"].items()
    }
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
