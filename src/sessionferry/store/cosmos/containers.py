"""The containers: their partition keys and what they index. This is the one definition.

Infrastructure creates them from the JSON that `python -m sessionferry.store.cosmos.containers`
prints, `make containers` keeps as infra/cosmos-containers.json, and a test holds in step. Local
endpoints get them from here, and `ferry doctor` compares an account with it.

Every container excludes everything from its index and includes what is asked for: an index entry
costs request units on every write, and payloads are never queried.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any, Final, Literal

Order = Literal["ascending", "descending"]
Composite = tuple[tuple[str, Order], ...]

LISTING_KEY: Final = "_listed"
"""Set by the store on what is listed: `last_time` or `created_at`, id and partition in one text
that sorts as the listing does, so that a page is one range of one index. Absent on what listings
leave out."""

NO_EXPIRY: Final = -1
"""Nothing expires but items with a `ttl` of their own."""
ATTEMPT_SECONDS: Final = 14 * 24 * 3600
"""Attempts are forgotten with the message that they count, which lives 14 days at most."""

_SESSION_FIELDS = ("/user_id/?", "/project_slug/?", "/session_id/?", "/host_id/?")
_LINE_FIELDS = (
    "/partition_key/?",
    *_SESSION_FIELDS,
    *("/generation/?", "/sequence/?", "/line_sha256/?", "/_type/?", "/format/?"),
    *("/event/?", "/role/?", "/lvl/?", "/turn/?"),
    *("/ts/?", "/occurred_at/?", "/synced_at/?"),
    *("/data_truncated/?", "/repaired/?"),
    "/summary/*",
)
_IN_ORDER: Composite = (("/generation", "ascending"), ("/sequence", "ascending"))


_NEWEST_FIRST: Composite = (
    *(("/user_id", "descending"), ("/occurred_at", "descending")),
    *(("/sequence", "descending"), ("/partition_key", "descending")),
)
"""As searches are ordered; the user leads because every search names one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container. Paths are Cosmos DB's: `/field/?` a value, `/field/*` all below."""

    name: str
    partition_key: str
    included: tuple[str, ...]
    composites: tuple[Composite, ...] = ()
    default_ttl: int = NO_EXPIRY

    @property
    def indexing_policy(self) -> dict[str, Any]:
        """The policy in the words of Cosmos DB's API and of Azure Resource Manager."""
        return {
            "indexingMode": "consistent",
            "automatic": True,
            "includedPaths": [{"path": path} for path in self.included],
            "excludedPaths": [{"path": "/*"}],
            "compositeIndexes": [
                [{"path": path, "order": order} for path, order in composite]
                for composite in self.composites
            ],
        }

    @property
    def resource(self) -> dict[str, Any]:
        """The container as `properties.resource` of an ARM template has it."""
        return {
            "id": self.name,
            "partitionKey": {"paths": [self.partition_key], "kind": "Hash", "version": 2},
            "defaultTtl": self.default_ttl,
            "indexingPolicy": self.indexing_policy,
        }


CONTAINERS: Final = {
    container.name: container
    for container in (
        Container(
            name="sessions",
            partition_key="/user_id",
            included=(
                *_SESSION_FIELDS,
                *("/_type/?", "/created/?", "/synced_at/?", "/first_time/?", "/last_time/?"),
                *("/deleted/?", "/parent_id/?", "/bundle/?", "/model/?", "/name/?"),
                f"/{LISTING_KEY}/?",
            ),
            composites=((("/project_slug", "descending"), (f"/{LISTING_KEY}", "descending")),),
        ),
        Container(
            name="transcripts",
            partition_key="/partition_key",
            included=_LINE_FIELDS,
            composites=(_IN_ORDER,),
        ),
        Container(
            name="events",
            partition_key="/partition_key",
            included=_LINE_FIELDS,
            composites=(_IN_ORDER, _NEWEST_FIRST),
        ),
        Container(
            name="heads",
            partition_key="/partition_key",
            included=("/partition_key/?", f"/{LISTING_KEY}/?"),
        ),
        Container(
            name="quarantine",
            partition_key="/partition_key",
            included=(
                "/partition_key/?",
                *_SESSION_FIELDS,
                *("/stream/?", "/generation/?", "/sequence/?", "/reason/?", "/created_at/?"),
                *("/_type/?", f"/{LISTING_KEY}/?"),
            ),
        ),
        Container(
            name="hosts",
            partition_key="/user_id",
            included=("/user_id/?", "/host_id/?", "/last_time/?", f"/{LISTING_KEY}/?"),
        ),
        Container(
            name="attempts",
            partition_key="/partition_key",
            included=("/partition_key/?", f"/{LISTING_KEY}/?"),
            default_ttl=ATTEMPT_SECONDS,
        ),
    )
}


def as_json() -> str:
    """Render all containers for infrastructure: a list of ARM resources."""
    return json.dumps([container.resource for container in CONTAINERS.values()], indent=2) + "\n"


def differences(container: Container, found: dict[str, Any]) -> list[str]:
    """Say in sentences how an account's container differs from its definition.

    `found` is what reading the container returns. What an account indexes beyond the definition is
    its owners' business: only what is missing counts.
    """
    paths = (found.get("partitionKey") or {}).get("paths")
    if paths != [container.partition_key]:
        return [f"its partition key is {_named(paths)}, not {container.partition_key}"]
    if "indexingPolicy" not in found:
        return []
    policy = found["indexingPolicy"]
    wanted = container.indexing_policy
    wrong = []
    if policy.get("indexingMode", "consistent").lower() != "consistent":
        wrong.append("it is not indexed consistently")
    missing = [path for path in container.included if not _is_indexed(path, policy)]
    if missing:
        wrong.append(f"it does not index {_named(missing)}")
    if "/*" in _paths(policy, "includedPaths"):
        wrong.append("it indexes everything, which multiplies the cost of writes")
    known = [_composite(it) for it in policy.get("compositeIndexes") or []]
    lacking = [it for it in wanted["compositeIndexes"] if _composite(it) not in known]
    for composite in lacking:
        fields = _named([f"{it['path']} {it['order']}" for it in composite])
        wrong.append(f"it has no composite index on {fields}")
    if found.get("defaultTtl") is None:
        wrong.append("it does not let items expire")
    return wrong


def _is_indexed(path: str, policy: dict[str, Any]) -> bool:
    included = _paths(policy, "includedPaths")
    return path in included or ("/*" in included and path not in _paths(policy, "excludedPaths"))


def _paths(policy: dict[str, Any], name: str) -> set[str]:
    return {entry.get("path", "") for entry in policy.get(name) or []}


def _composite(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["path"], entry.get("order", "ascending").lower()) for entry in found]


def _named(names: list[str] | None) -> str:
    return ", ".join(names) if names else "none"


if __name__ == "__main__":
    sys.stdout.write(as_json())
