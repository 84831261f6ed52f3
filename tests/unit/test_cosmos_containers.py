"""The containers' definition, and the JSON that infrastructure creates them from."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest

from sessionferry.store import LINE_CONTAINER, PARTITION_FIELD, SEARCHED
from sessionferry.store.cosmos.containers import CONTAINERS, as_json, differences

RENDERED = Path(__file__).parents[2] / "infra" / "cosmos-containers.json"
EVENTS = CONTAINERS["events"]


def test_the_rendered_definition_is_the_definition() -> None:
    assert RENDERED.read_text() == as_json(), "run `make containers`"


def test_every_container_of_the_protocol_is_defined_with_its_partition() -> None:
    names = {*PARTITION_FIELD, *LINE_CONTAINER.values(), "quarantine"}
    assert set(CONTAINERS) == names
    for name, field in PARTITION_FIELD.items():
        assert CONTAINERS[name].partition_key == f"/{field}"


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_excludes_everything_and_includes_what_is_asked_for(name: str) -> None:
    policy = CONTAINERS[name].indexing_policy
    assert policy["excludedPaths"] == [{"path": "/*"}]
    assert {"path": "/*"} not in policy["includedPaths"]
    assert f"{CONTAINERS[name].partition_key}/?" in CONTAINERS[name].included


@pytest.mark.parametrize("path", [*SEARCHED.values(), ("user_id",), ("occurred_at",)])
def test_what_searches_compare_is_indexed(path: tuple[str, ...]) -> None:
    assert {f"/{'/'.join(path)}/?", f"/{path[0]}/*"} & set(EVENTS.included)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_a_composite_index_orders_by_is_indexed_by_itself_too(name: str) -> None:
    container = CONTAINERS[name]
    for composite in container.composites:
        for path, _ in composite:
            below = path.startswith("/summary/") and "/summary/*" in container.included
            assert below or f"{path}/?" in container.included


@pytest.mark.parametrize("name", CONTAINERS)
def test_items_may_expire_one_by_one(name: str) -> None:
    assert CONTAINERS[name].resource["defaultTtl"] != 0
    assert CONTAINERS[name].resource["defaultTtl"] is not None


def as_azure_shows_it() -> dict[str, Any]:
    """A container as reading it returns it: with the service's own fields and one path more."""
    found = copy.deepcopy(EVENTS.resource)
    found["indexingPolicy"]["excludedPaths"].append({"path": '/"_etag"/?'})
    return found | {"_rid": "x", "_etag": "y", "conflictResolutionPolicy": {}}


def test_a_container_made_from_the_definition_shows_no_difference() -> None:
    assert differences(EVENTS, as_azure_shows_it()) == []
    assert differences(EVENTS, orjson.loads(as_json())[2]) == []


def test_what_an_account_indexes_beyond_the_definition_is_no_difference() -> None:
    found = as_azure_shows_it()
    found["indexingPolicy"]["includedPaths"].append({"path": "/data/cost/?"})
    assert differences(EVENTS, found) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partitionKey": {"paths": ["/session_id"]}}, "partition key is /session_id, not"),
        ({"partitionKey": None}, "partition key is none"),
        ({"defaultTtl": None}, "does not let items expire"),
        (
            {"indexingPolicy": {"indexingMode": "none", "includedPaths": []}},
            "not indexed consistently",
        ),
    ],
)
def test_a_difference_is_said_in_words(change: dict[str, Any], said: str) -> None:
    found = as_azure_shows_it() | change
    assert any(said in sentence for sentence in differences(EVENTS, found))


def test_missing_paths_and_composites_are_named() -> None:
    found = as_azure_shows_it()
    policy = found["indexingPolicy"]
    policy["includedPaths"] = [it for it in policy["includedPaths"] if it["path"] != "/event/?"]
    del policy["compositeIndexes"][0]
    assert differences(EVENTS, found) == [
        "it does not index /event/?",
        "it has no composite index on /generation ascending, /sequence ascending",
    ]


def test_an_account_that_indexes_everything_is_told_what_that_costs() -> None:
    found = as_azure_shows_it()
    found["indexingPolicy"] |= {"includedPaths": [{"path": "/*"}], "excludedPaths": []}
    assert differences(EVENTS, found) == [
        "it indexes everything, which multiplies the cost of writes"
    ]


def test_a_policy_that_may_not_be_read_is_no_difference() -> None:
    found = as_azure_shows_it()
    del found["indexingPolicy"]
    assert differences(EVENTS, found) == []
