"""A container's indexing policy: which paths it covers, and which orders it can serve.

A path is a tuple of property names; `[]` stands for an array's elements. The most specific rule
that matches decides, as in the service.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tests.support.cosmos.errors import bad_request

DEFAULT: dict[str, Any] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/*"}],
    "excludedPaths": [{"path": '/"_etag"/?'}],
}
SYSTEM = {"_rid", "_self", "_etag", "_attachments"}

Path: TypeAlias = tuple[str, ...]


def parse_path(text: str) -> tuple[Path, str]:
    """`/a/"b c"/[]/?` as (("a", "b c", "[]"), "?"); the end is `?`, `*` or nothing."""
    if not text.startswith("/"):
        raise bad_request(
            f"The indexing path '{text}' could not be accepted: it must start with /."
        )
    parts = [part.strip('"') for part in text[1:].split("/")]
    end = parts.pop() if parts and parts[-1] in {"?", "*"} else ""
    if "*" in parts or "?" in parts:
        raise bad_request(f"The indexing path '{text}' could not be accepted: * and ? end a path.")
    return tuple(part for part in parts if part), end


@dataclass(frozen=True, slots=True)
class Rule:
    """One included or excluded path."""

    path: Path
    end: str
    include: bool

    def matches(self, path: Path) -> bool:
        """Whether the rule speaks of a value at this path."""
        if self.end == "*":
            return path[: len(self.path)] == self.path
        return path == self.path

    @property
    def precision(self) -> tuple[int, bool]:
        """Longer beats shorter, exact beats wildcard."""
        return len(self.path), self.end != "*"


@dataclass(slots=True)
class IndexingPolicy:
    """The policy of a container, ready to ask."""

    definition: dict[str, Any]
    rules: list[Rule] = field(default_factory=list)
    composites: list[tuple[tuple[Path, bool], ...]] = field(default_factory=list)
    _known: dict[Path, bool] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: dict[str, Any] | None) -> "IndexingPolicy":
        """Read a definition and fill in what the service fills in."""
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise bad_request("The indexing policy must be an object.")
        definition = {**DEFAULT, **given}
        mode = str(definition["indexingMode"]).lower()
        if mode not in {"consistent", "none", "lazy"}:
            raise bad_request(f"The indexing mode '{mode}' is unknown.")
        definition["indexingMode"] = mode
        policy = cls(definition)
        if mode == "none":
            return policy
        for key, include in (("includedPaths", True), ("excludedPaths", False)):
            for entry in definition[key]:
                path, end = parse_path(entry["path"])
                policy.rules.append(Rule(path, end, include))
        if not any(rule.path == () and rule.end == "*" for rule in policy.rules):
            raise bad_request(
                'The special mandatory indexing path "/" is not provided in any of the path type '
                "sets. Please provide this path in one of the sets."
            )
        for columns in definition.get("compositeIndexes") or []:
            policy.composites.append(_composite(columns))
        policy.rules.sort(key=lambda rule: rule.precision, reverse=True)
        return policy

    def covers(self, path: Path) -> bool:
        """Whether a value at this path is indexed."""
        known = self._known.get(path)
        if known is None:
            known = self._decide(path)
            if len(self._known) < 10_000:
                self._known[path] = known
        return known

    def _decide(self, path: Path) -> bool:
        if path in {("id",), ("_ts",)}:
            return self.definition["indexingMode"] != "none"
        return next((rule.include for rule in self.rules if rule.matches(path)), False)

    def serves_order(self, columns: tuple[tuple[Path, bool], ...]) -> bool:
        """Whether a composite index has these (path, descending) pairs, or all reversed."""
        mirrored = tuple((path, not descending) for path, descending in columns)
        return columns in self.composites or mirrored in self.composites

    def count_values(self, body: dict[str, Any]) -> int:
        """How many indexed values an item has."""
        if self.definition["indexingMode"] == "none":
            return 0
        if self._excludes_root():
            return sum(_count_below(body, rule.path, rule.end) for rule in self._included())
        return sum(1 for path in _leaves(body, ()) if path[0] not in SYSTEM and self.covers(path))

    def _included(self) -> list[Rule]:
        return [rule for rule in self.rules if rule.include]

    def _excludes_root(self) -> bool:
        return any(rule.path == () and not rule.include for rule in self.rules)


def _composite(columns: Any) -> tuple[tuple[Path, bool], ...]:
    if not isinstance(columns, list) or len(columns) < 2:
        raise bad_request("A composite index needs at least two paths.")
    found = []
    for column in columns:
        path, end = parse_path(column["path"])
        if end:
            raise bad_request(
                f"The composite path '{column['path']}' must not end with a wildcard."
            )
        found.append((path, str(column.get("order", "ascending")).lower() == "descending"))
    return tuple(found)


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield path


def _count_below(value: Any, path: Path, end: str) -> int:
    """How many scalars an included path reaches."""
    for depth, name in enumerate(path):
        if name == "[]":
            rest = path[depth + 1 :]
            elements = value if isinstance(value, list) else []
            return sum(_count_below(element, rest, end) for element in elements)
        if not isinstance(value, dict) or name not in value:
            return 0
        value = value[name]
    if end == "*":
        return _count_leaves(value)
    return 0 if isinstance(value, dict | list) else 1


def _count_leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_count_leaves, value.values()))
    return sum(map(_count_leaves, value)) if isinstance(value, list) else 1
