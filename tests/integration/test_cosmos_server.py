"""The Cosmos test server, asked by the unmodified azure-cosmos clients."""

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import ServiceResponseError
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey, exceptions
from azure.cosmos.aio import ContainerProxy as AsyncContainerProxy
from azure.cosmos.aio import CosmosClient as AsyncCosmosClient
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cosmos import (
    EMULATOR_KEY,
    Authority,
    CosmosProcess,
    Faults,
    RunningCosmos,
    TokenIssuer,
)
from tests.support.cosmos.auth import sign
from tests.support.cosmos.partitions import effective_key, parse_key
from tests.support.cosmos.sql.parser import parse
from tests.support.cosmos.sql.select import Selection

# A connection that a fault cut is collected late, and then says that nobody closed it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KEY = PartitionKey("/pk")
OTHER_KEY = "YW4gb3RoZXIga2V5IHRoYXQgbm8gc2VydmVyIGhhcw=="
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "cosmos-test-server.md"
TWO_MEGABYTES = 2 * 1024 * 1024

CosmosError = exceptions.CosmosHttpResponseError
Make = Callable[..., ContainerProxy]


@pytest.fixture(scope="module")
def cosmos() -> Iterator[RunningCosmos]:
    with RunningCosmos() as server:
        yield server


@pytest.fixture(scope="module")
def client(cosmos: RunningCosmos) -> Iterator[CosmosClient]:
    with CosmosClient(cosmos.endpoint, cosmos.key) as client:
        client.create_database("tests")
        yield client


@pytest.fixture(autouse=True)
def no_faults(cosmos: RunningCosmos) -> Iterator[None]:
    yield
    cosmos.faults = Faults()


@pytest.fixture
def make(client: CosmosClient) -> Make:
    """Makes containers."""
    database = client.get_database_client("tests")

    def create(key: PartitionKey = KEY, **definition: Any) -> ContainerProxy:
        return database.create_container(uuid4().hex, key, **definition)

    return create


@pytest.fixture
def container(make: Make) -> ContainerProxy:
    return make()


@pytest.fixture
async def aio_container(
    cosmos: RunningCosmos, container: ContainerProxy
) -> AsyncIterator[AsyncContainerProxy]:
    async with AsyncCosmosClient(cosmos.endpoint, cosmos.key) as client:
        yield client.get_database_client("tests").get_container_client(container.id)


def item(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"i{number}", "pk": "p", "n": number, **fields}


def own(stored: Any) -> dict[str, Any]:
    """An item without what the service adds."""
    return {key: value for key, value in stored.items() if not key.startswith("_")}


def refused(status: int, call: Callable[..., Any], *given: Any, **named: Any) -> CosmosError:
    """Call, and expect a refusal."""
    with pytest.raises(CosmosError) as failure:
        call(*given, **named)
    assert failure.value.status_code == status
    return failure.value


def broken(call: Callable[..., Any], *given: Any) -> exceptions.CosmosBatchOperationError:
    """Run a batch, and expect it to fail."""
    with pytest.raises(exceptions.CosmosBatchOperationError) as failure:
        call(*given)
    return failure.value


def statuses(failure: exceptions.CosmosBatchOperationError) -> list[int]:
    """The status of each operation of a batch."""
    return [int(one["statusCode"]) for one in failure.operation_responses]


def count(cosmos: RunningCosmos, request: str) -> int:
    """How many requests of a kind were answered since the counts were cleared."""
    return int(cosmos.statistics()["requests"].get(request, 0))


# ---------------------------------------------------------------- databases and containers


def test_a_container_is_not_created_twice_whatever_its_partition_key(client: CosmosClient) -> None:
    database = client.get_database_client("tests")
    created = database.create_container("once", KEY)

    refused(409, database.create_container, "once", PartitionKey("/other"))

    again = database.create_container_if_not_exists("once", PartitionKey("/other"))
    assert again.read()["partitionKey"]["paths"] == ["/pk"]
    assert again.read()["_rid"] == created.read()["_rid"]


def test_what_is_not_there_is_not_found(client: CosmosClient) -> None:
    tests = client.get_database_client("tests")

    refused(404, client.get_database_client("none").read)
    refused(404, tests.get_container_client("none").read)
    refused(404, tests.get_container_client("none").read_item, "i", "p")
    refused(404, tests.delete_container, "none")


def test_a_client_finds_a_container_again_that_was_made_anew(client: CosmosClient) -> None:
    database = client.get_database_client("tests")
    container = database.create_container("anew", KEY)
    container.create_item(item(1))
    database.delete_container("anew")
    database.create_container("anew", KEY)

    container.create_item(item(2))

    assert [one["id"] for one in container.read_all_items()] == ["i2"]


def test_databases_and_containers_are_listed_and_deleted(client: CosmosClient) -> None:
    database = client.create_database("short-lived")
    database.create_container("a", KEY)
    database.create_container("b", KEY)

    assert [one["id"] for one in database.list_containers()] == ["a", "b"]
    database.delete_container("a")
    assert [one["id"] for one in database.list_containers()] == ["b"]
    client.delete_database("short-lived")

    assert [one["id"] for one in client.list_databases()] == ["tests"]


def test_the_physical_partitions_share_the_whole_ring(container: ContainerProxy) -> None:
    ranges = [one["Range"] for one in map(_decoded, container.read_feed_ranges())]

    assert [one["min"] for one in ranges] == ["", *(one["max"] for one in ranges[:-1])]
    assert ranges[-1]["max"] == "FF"
    assert len(ranges) == 4


def _decoded(feed_range: Any) -> Any:
    return feed_range if "Range" in feed_range else json.loads(json.dumps(feed_range))


def test_throughput_is_told_as_it_was_given(make: Make) -> None:
    assert make(offer_throughput=700).get_throughput().offer_throughput == 700


def test_a_definition_with_what_the_server_does_not_know_is_refused(make: Make) -> None:
    unique = {"uniqueKeys": [{"paths": ["/email"]}]}

    assert "does not know uniqueKeyPolicy" in str(refused(400, make, unique_key_policy=unique))


key_parts = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=60)
)


@given(st.lists(key_parts, min_size=1, max_size=3))
def test_a_partition_key_lies_where_the_client_computes_it_to_lie(parts: list[Any]) -> None:
    if len(parts) == 1:
        definition = PartitionKey("/a")
    else:
        definition = PartitionKey([f"/{name}" for name in "abc"[: len(parts)]])

    expected = definition._get_effective_partition_key_string(parts)

    key = parse_key(parts, paths=3)
    assert effective_key(key, hierarchical=len(parts) > 1) == expected


def test_an_item_without_the_key_has_a_place_of_its_own() -> None:
    expected = PartitionKey("/a")._get_effective_partition_key_string([{}])

    assert effective_key(parse_key([{}], paths=1)) == expected
    assert effective_key(parse_key([None], paths=1)) != expected


def test_true_and_one_are_different_keys(container: ContainerProxy) -> None:
    for key in (True, 1, "1", None):
        container.create_item({"id": "i", "pk": key})

    assert [container.read_item("i", key)["pk"] for key in (True, 1, "1", None)] == [
        *(True, 1, "1", None)
    ]
    assert container.read_item("i", 1.0)["pk"] == 1


# ---------------------------------------------------------------- items


def test_an_item_is_read_back_with_the_fields_that_the_service_adds(
    container: ContainerProxy,
) -> None:
    container.create_item(item(1, nested={"a": [1, None, "x"]}))

    stored = container.read_item("i1", "p")

    assert own(stored) == item(1, nested={"a": [1, None, "x"]})
    assert {"_rid", "_self", "_etag", "_ts", "_attachments"} <= stored.keys()


def test_a_second_item_of_the_same_id_is_refused_only_in_its_own_partition(
    container: ContainerProxy,
) -> None:
    container.create_item(item(1))
    container.create_item({"id": "i1", "pk": "other"})

    refused(409, container.create_item, item(1))


def test_an_upsert_creates_and_then_replaces(container: ContainerProxy) -> None:
    first = container.upsert_item(item(1))
    second = container.upsert_item(item(1, more=True))

    assert first["_etag"] != second["_etag"]
    assert first["_rid"] == second["_rid"]
    assert own(container.read_item("i1", "p")) == item(1, more=True)


def test_a_deleted_item_is_gone(container: ContainerProxy) -> None:
    container.create_item(item(1))

    container.delete_item("i1", "p")

    refused(404, container.read_item, "i1", "p")
    refused(404, container.delete_item, "i1", "p")
    refused(404, container.replace_item, "i1", item(1))


def test_a_write_with_an_old_etag_is_refused(container: ContainerProxy) -> None:
    old = container.create_item(item(1))["_etag"]
    new = container.replace_item("i1", item(1, v=2))["_etag"]
    expected = {"match_condition": MatchConditions.IfNotModified}

    refused(412, container.replace_item, "i1", item(1, v=3), etag=old, **expected)
    refused(412, container.upsert_item, item(1, v=3), etag=old, **expected)
    refused(412, container.delete_item, "i1", "p", etag=old, **expected)
    refused(412, container.patch_item, "i1", "p", [_set("v", 3)], etag=old, **expected)
    container.replace_item("i1", item(1, v=3), etag=new, **expected)

    assert container.read_item("i1", "p")["v"] == 3


def test_an_upsert_that_wants_no_item_there_is_refused_by_one(container: ContainerProxy) -> None:
    missing = {"match_condition": MatchConditions.IfMissing}
    container.upsert_item(item(1), **missing)

    refused(412, container.upsert_item, item(1, v=2), **missing)


def test_an_unchanged_item_is_not_sent_again(container: ContainerProxy) -> None:
    etag = container.create_item(item(1))["_etag"]
    headers: dict[str, str] = {}

    found = container.read_item(
        *("i1", "p"),
        etag=etag,
        match_condition=MatchConditions.IfModified,
        response_hook=lambda given, _: headers.update(given),
    )

    assert not found
    assert "x-ms-request-charge" in headers


def test_a_write_sends_nothing_back_if_the_client_wants_nothing(container: ContainerProxy) -> None:
    assert not container.create_item(item(1), no_response=True)
    assert container.upsert_item(item(1))["id"] == "i1"


@given(
    st.text(min_size=1, max_size=30)
    # The client takes no space at the end, and its HTTP library takes dots for folders.
    .filter(lambda text: not set(text) & set("/\\?#\t\r\n") and not text.endswith(" "))
    .filter(lambda text: text not in {".", ".."}),
    st.one_of(st.text(max_size=30), st.integers(-(2**53), 2**53), st.booleans(), st.none()),
)
@settings(max_examples=40)
def test_any_allowed_id_and_key_finds_its_item_again(
    shared: ContainerProxy, item_id: str, key: Any
) -> None:
    shared.upsert_item({"id": item_id, "pk": key, "v": item_id})

    assert shared.read_item(item_id, key)["v"] == item_id


@pytest.fixture(scope="module")
def shared(client: CosmosClient) -> ContainerProxy:
    return client.get_database_client("tests").create_container("shared", KEY)


@pytest.mark.parametrize("bad_id", ["a/b", "a\\b", "a?b", "a#b", "", "x" * 1024, 7, None])
def test_an_impossible_id_is_refused(container: ContainerProxy, bad_id: Any) -> None:
    failure = broken(container.execute_item_batch, [("create", ({"id": bad_id, "pk": "p"},))], "p")

    assert statuses(failure) == [400]


def test_an_id_of_1023_bytes_is_taken(container: ContainerProxy) -> None:
    container.create_item({"id": "x" * 1023, "pk": "p"})

    assert container.read_item("x" * 1023, "p")


def test_an_item_of_two_megabytes_is_refused_and_one_just_below_is_not(
    container: ContainerProxy,
) -> None:
    refused(413, container.create_item, item(1, text="x" * TWO_MEGABYTES))

    container.create_item(item(1, text="x" * (TWO_MEGABYTES - 1000)))


def test_an_item_nested_too_deeply_is_refused(container: ContainerProxy) -> None:
    deep: Any = 1
    for _ in range(128):
        deep = [deep]

    refused(400, container.create_item, item(1, deep=deep))
    container.create_item(item(1, deep=deep[0]))


def test_the_key_in_the_item_must_be_the_key_of_the_request(container: ContainerProxy) -> None:
    failure = broken(container.execute_item_batch, [("create", ({"id": "a", "pk": "q"},))], "p")

    assert statuses(failure) == [400]
    assert failure.operation_responses[0]["subStatusCode"] == 1001


def test_all_items_of_a_partition_key_are_deleted_at_once(container: ContainerProxy) -> None:
    for number in range(3):
        container.create_item(item(number))
    container.create_item({"id": "stays", "pk": "other"})

    container.delete_all_items_by_partition_key("p")

    assert [one["id"] for one in container.read_all_items()] == ["stays"]


def test_an_item_expires_after_its_own_time_or_the_containers(make: Make) -> None:
    container = make(default_ttl=3600)
    container.create_item(item(1, ttl=1))
    container.create_item(item(2))
    container.create_item(item(3, ttl=-1))
    never = make()
    never.create_item(item(1, ttl=1))

    time.sleep(2.1)

    assert [one["id"] for one in container.read_all_items()] == ["i2", "i3"]
    refused(404, container.read_item, "i1", "p")
    assert never.read_item("i1", "p")["ttl"] == 1


# ---------------------------------------------------------------- patches


def _set(path: str, value: Any) -> dict[str, Any]:
    return {"op": "set", "path": f"/{path}", "value": value}


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ([_set("v", 2)], {"v": 2, "list": [1, 2], "deep": {"x": 1}}),
        ([_set("deep/y", 2)], {"v": 1, "list": [1, 2], "deep": {"x": 1, "y": 2}}),
        ([{"op": "incr", "path": "/v", "value": 5}], {"v": 6, "list": [1, 2], "deep": {"x": 1}}),
        (
            [{"op": "add", "path": "/list/-", "value": 3}],
            {"v": 1, "list": [1, 2, 3], "deep": {"x": 1}},
        ),
        (
            [{"op": "add", "path": "/list/0", "value": 0}],
            {"v": 1, "list": [0, 1, 2], "deep": {"x": 1}},
        ),
        (
            [{"op": "replace", "path": "/list/0", "value": 9}],
            {"v": 1, "list": [9, 2], "deep": {"x": 1}},
        ),
        ([{"op": "remove", "path": "/deep/x"}], {"v": 1, "list": [1, 2], "deep": {}}),
        (
            [{"op": "move", "from": "/deep/x", "path": "/w"}],
            {"v": 1, "list": [1, 2], "deep": {}, "w": 1},
        ),
    ],
)
def test_a_patch_changes_what_it_names(
    container: ContainerProxy, operations: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    start = {"id": "i", "pk": "p"}
    container.create_item({**start, "v": 1, "list": [1, 2], "deep": {"x": 1}})

    patched = container.patch_item("i", "p", operations)

    assert own(patched) == {**start, **expected}


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "replace", "path": "/none", "value": 1}],
        [{"op": "remove", "path": "/none"}],
        [{"op": "incr", "path": "/pk", "value": 1}],
        [_set("none/deeper", 1)],
        [_set("_etag", "x")],
        [_set("id", "other")],
        [_set("pk", "other")],
        [_set(f"f{number}", 1) for number in range(11)],
    ],
)
def test_a_patch_that_cannot_be_done_changes_nothing(
    container: ContainerProxy, operations: list[dict[str, Any]]
) -> None:
    before = container.create_item(item(1))

    refused(400, container.patch_item, "i1", "p", [_set("v", 1), *operations][:11])

    assert container.read_item("i1", "p")["_etag"] == before["_etag"]


def test_a_patch_whose_condition_fails_changes_nothing(container: ContainerProxy) -> None:
    container.create_item(item(1, version=5))
    lower = "FROM c WHERE c.version < 5"

    refused(412, container.patch_item, "i1", "p", [_set("version", 4)], filter_predicate=lower)
    container.patch_item(
        "i1", "p", [_set("version", 6)], filter_predicate="FROM c WHERE c.version < 6"
    )

    assert container.read_item("i1", "p")["version"] == 6


# ---------------------------------------------------------------- batches


def test_a_batch_is_done_as_a_whole_or_not_at_all(container: ContainerProxy) -> None:
    before = container.create_item(item(1))

    failure = broken(
        container.execute_item_batch,
        [
            ("create", (item(2),)),
            ("upsert", (item(1, v=2),)),
            ("delete", ("i1",)),
            ("create", (item(2),)),
            ("create", (item(3),)),
        ],
        "p",
    )

    assert statuses(failure) == [424, 424, 424, 409, 424]
    assert failure.error_index == 3
    assert list(container.read_all_items()) == [before]


def test_a_batch_answers_each_operation(container: ContainerProxy) -> None:
    etag = container.create_item(item(1))["_etag"]

    results = container.execute_item_batch(
        [
            ("create", (item(2),)),
            ("upsert", (item(3),)),
            ("replace", ("i1", item(1, v=2)), {"if_match_etag": etag}),
            ("patch", ("i1", [_set("w", 3)]), {"filter_predicate": "FROM c WHERE c.v = 2"}),
            ("read", ("i1",)),
            ("delete", ("i3",)),
        ],
        "p",
    )

    assert [one["statusCode"] for one in results] == [201, 201, 200, 200, 200, 204]
    assert own(results[4]["resourceBody"]) == item(1, v=2, w=3)
    assert results[4]["eTag"] == results[4]["resourceBody"]["_etag"]
    assert {one["id"] for one in container.read_all_items()} == {"i1", "i2"}


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        (("create", (item(1),)), 409),
        (("read", ("none",)), 404),
        (("replace", ("none", item(9) | {"id": "none"})), 404),
        (("replace", ("i1", item(1)), {"if_match_etag": '"old"'}), 412),
        (("upsert", (item(1),), {"if_match_etag": '"old"'}), 412),
        (("delete", ("i1",), {"if_match_etag": '"old"'}), 412),
        (("patch", ("i1", [_set("v", 1)]), {"filter_predicate": "FROM c WHERE c.n = 7"}), 412),
        (("patch", ("i1", [{"op": "remove", "path": "/none"}])), 400),
    ],
)
def test_an_operation_that_fails_undoes_those_before_it(
    container: ContainerProxy, operation: Any, status: int
) -> None:
    container.create_item(item(1))

    failure = broken(container.execute_item_batch, [("create", (item(2),)), operation], "p")

    assert statuses(failure) == [424, status]
    assert failure.status_code == status
    refused(404, container.read_item, "i2", "p")


def test_a_batch_has_at_most_100_operations_and_two_megabytes(container: ContainerProxy) -> None:
    operations = [("create", (item(number),)) for number in range(101)]
    large = [("create", (item(number, text="x" * 500_000),)) for number in range(5)]

    refused(400, container.execute_item_batch, operations, "p")
    refused(413, container.execute_item_batch, large, "p")
    container.execute_item_batch(operations[:100], "p")

    assert len(list(container.read_all_items())) == 100


operations = st.lists(
    st.tuples(st.sampled_from(["create", "upsert", "replace", "delete"]), st.integers(0, 3)),
    min_size=1,
    max_size=6,
)


@given(st.lists(operations, max_size=5))
@settings(max_examples=25)
def test_any_batches_leave_what_a_dictionary_with_transactions_leaves(
    shared: ContainerProxy, batches: list[list[tuple[str, int]]]
) -> None:
    key = uuid4().hex
    model: dict[str, int] = {}
    version = 0
    for batch in batches:
        copy, failed, sent = dict(model), False, []
        for kind, number in batch:
            version += 1
            name = f"i{number}"
            exists = name in copy
            failed = failed or (exists == (kind == "create") and kind != "upsert")
            document = {"id": name, "pk": key, "version": version}
            sent.append(
                {"delete": ("delete", (name,)), "replace": ("replace", (name, document))}.get(
                    kind, (kind, (document,))
                )
            )
            copy[name] = version
            if kind == "delete":
                del copy[name]
            if failed:
                break
        if failed:
            broken(shared.execute_item_batch, sent, key)
        else:
            shared.execute_item_batch(sent, key)
            model = copy

    stored = shared.query_items("SELECT * FROM c", partition_key=key)
    assert {one["id"]: one["version"] for one in stored} == model


# ---------------------------------------------------------------- queries


@pytest.fixture(scope="module")
def sessions(client: CosmosClient) -> ContainerProxy:
    """Sixty items over fifteen partition keys, with an index for every order of the tests."""
    policy = {
        "indexingMode": "consistent",
        "includedPaths": [{"path": "/n/?"}, {"path": "/model/?"}, {"path": "/pk/?"}],
        "excludedPaths": [{"path": "/*"}],
        "compositeIndexes": [
            [{"path": "/model", "order": "ascending"}, {"path": "/n", "order": "descending"}]
        ],
    }
    container = client.get_database_client("tests").create_container(
        "sessions", KEY, indexing_policy=policy
    )
    for number in range(60):
        document = item(number, model="abc"[number % 3], payload="x" * 200)
        container.create_item({**document, "pk": f"p{number % 15}"})
    return container


CROSSING = [
    ("SELECT VALUE c.n FROM c ORDER BY c.n", list(range(60))),
    ("SELECT VALUE c.n FROM c ORDER BY c.n DESC", list(range(59, -1, -1))),
    ("SELECT TOP 3 VALUE c.n FROM c ORDER BY c.n DESC", [59, 58, 57]),
    ("SELECT VALUE c.n FROM c ORDER BY c.n OFFSET 7 LIMIT 3", [7, 8, 9]),
    ("SELECT VALUE c.n FROM c WHERE c.n >= 57 OR c.n = 3 ORDER BY c.n", [3, 57, 58, 59]),
    ("SELECT c.n, c.model AS m FROM c WHERE c.n = 4", [{"n": 4, "m": "b"}]),
    (
        "SELECT c.model, c.n FROM c WHERE c.n < 4 ORDER BY c.model, c.n DESC",
        [{"model": m, "n": n} for m, n in [("a", 3), ("a", 0), ("b", 1), ("c", 2)]],
    ),
    (
        "SELECT VALUE c.n FROM c WHERE c.n < 4 ORDER BY c.model DESC, c.n ASC",
        [2, 1, 0, 3],
    ),
    ("SELECT VALUE COUNT(1) FROM c", [60]),
    ("SELECT VALUE COUNT(1) FROM c WHERE c.model = 'a'", [20]),
    ("SELECT VALUE SUM(c.n) FROM c", [1770]),
    ("SELECT VALUE MIN(c.n) FROM c WHERE c.model = 'c'", [2]),
    ("SELECT VALUE MAX(c.n) FROM c", [59]),
    ("SELECT VALUE AVG(c.n) FROM c", [29.5]),
    ("SELECT DISTINCT VALUE c.model FROM c ORDER BY c.model", ["a", "b", "c"]),
    ("SELECT VALUE c.n FROM c WHERE c.pk IN ('p1', 'p2') AND c.n<30 ORDER BY c.n", [1, 2, 16, 17]),
    ("SELECT VALUE c.n FROM c WHERE c.pk = 'p14' ORDER BY c.n", [14, 29, 44, 59]),
    ("SELECT VALUE COUNT(1) FROM c WHERE c.n > 1000", [0]),
    ("SELECT VALUE c.n FROM c WHERE c.n > 1000 ORDER BY c.n", []),
]  # fmt: skip


@pytest.mark.parametrize(("query", "expected"), CROSSING)
def test_the_client_puts_together_what_the_physical_partitions_answer(
    sessions: ContainerProxy, query: str, expected: list[Any]
) -> None:
    assert list(sessions.query_items(query, enable_cross_partition_query=True)) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    # The async client compares coroutines where it merges MIN and MAX.
    [one for one in CROSSING if "MIN(" not in one[0] and "MAX(" not in one[0]],
)
async def test_the_async_client_does_the_same(
    cosmos: RunningCosmos, sessions: ContainerProxy, query: str, expected: list[Any]
) -> None:
    async with AsyncCosmosClient(cosmos.endpoint, cosmos.key) as client:
        container = client.get_database_client("tests").get_container_client(sessions.id)
        assert [one async for one in container.query_items(query)] == expected


@given(
    start=st.sampled_from(["", "DISTINCT ", "TOP 5 ", "TOP 0 ", "DISTINCT TOP 2 "]),
    columns=st.sampled_from(["*", "VALUE c.n", "VALUE c.model", "c.model, c.n AS number"]),
    where=st.sampled_from(["", "c.n > 20", "c.model = 'b' OR c.n < 9", "c.n > 99", "c.pk < 'p3'"]),
    order=st.sampled_from(["c.n", "c.n DESC", "c.model, c.n DESC"]),
    window=st.sampled_from(["", "OFFSET 3 LIMIT 4", "OFFSET 55 LIMIT 20", "OFFSET 0 LIMIT 0"]),
    size=st.sampled_from([1, 7, 1000]),
)
@settings(max_examples=20)
def test_what_is_put_together_is_what_one_partition_would_have_said(
    sessions: ContainerProxy,
    start: str,
    columns: str,
    where: str,
    order: str,
    window: str,
    size: int,
) -> None:
    window = "" if "TOP" in start else window
    condition = f"WHERE {where}" if where else ""
    query = f"SELECT {start}{columns} FROM c {condition} ORDER BY {order} {window}"  # noqa: S608
    everything = sorted(sessions.read_all_items(), key=lambda one: one["n"])

    found = sessions.query_items(query, enable_cross_partition_query=True, max_item_count=size)

    assert list(found) == Selection(parse(query), {}).rows({"": one} for one in everything)


@pytest.mark.parametrize(
    "query", ["SELECT VALUE c.n FROM c ORDER BY c.n", "SELECT VALUE c.n FROM c"]
)
def test_a_client_finds_everything_after_physical_partitions_were_split(
    cosmos: RunningCosmos, container: ContainerProxy, query: str
) -> None:
    for number in range(60):
        container.create_item({**item(number), "pk": f"p{number}"})
    crossing = {"enable_cross_partition_query": True, "max_item_count": 4}
    list(container.query_items(query, **crossing))

    cosmos.split("tests", container.id, "1")
    cosmos.split("tests", container.id, "3")
    cosmos.split("tests", container.id, "5")

    assert sorted(container.query_items(query, **crossing)) == list(range(60))
    assert len(list(container.read_feed_ranges(force_refresh=True))) == 7
    container.create_item(item(60))
    assert container.read_item("i60", "p")["n"] == 60


def test_results_without_an_order_come_from_all_physical_partitions(
    sessions: ContainerProxy,
) -> None:
    found = sessions.query_items(
        "SELECT VALUE c.n FROM c", enable_cross_partition_query=True, max_item_count=7
    )
    assert sorted(found) == list(range(60))
    assert sorted(one["n"] for one in sessions.read_all_items(max_item_count=7)) == list(range(60))
    distinct = "SELECT DISTINCT VALUE c.model FROM c"
    assert sorted(sessions.query_items(distinct, enable_cross_partition_query=True)) == [
        "a",
        "b",
        "c",
    ]


def test_a_query_of_one_partition_key_may_group(sessions: ContainerProxy) -> None:
    query = "SELECT c.model, COUNT(1) AS k, SUM(c.n) AS s FROM c GROUP BY c.model"

    found = list(sessions.query_items(query, partition_key="p3"))

    assert found == [{"model": "a", "k": 4, "s": 3 + 18 + 33 + 48}]


def test_a_group_over_partitions_is_refused_as_this_client_cannot_do_it(
    sessions: ContainerProxy,
) -> None:
    query = "SELECT c.model, COUNT(1) AS k FROM c GROUP BY c.model"

    failure = refused(400, list, sessions.query_items(query, enable_cross_partition_query=True))

    assert "GroupBy" in str(failure)


def test_a_query_over_partitions_must_say_that_it_means_to(sessions: ContainerProxy) -> None:
    failure = refused(400, list, sessions.query_items("SELECT * FROM c"))

    assert "Cross partition query is required but disabled" in str(failure)


def test_a_query_that_names_its_partition_keys_asks_only_where_they_are(
    cosmos: RunningCosmos, sessions: ContainerProxy
) -> None:
    crossing = {"enable_cross_partition_query": True}
    everywhere = "SELECT VALUE c.n FROM c ORDER BY c.n"
    somewhere = "SELECT VALUE c.n FROM c WHERE c.pk = @pk ORDER BY c.n"
    asked = []
    for query in (everywhere, somewhere):
        cosmos.clear_statistics()
        list(sessions.query_items(query, parameters=[{"name": "@pk", "value": "p1"}], **crossing))
        asked.append(count(cosmos, "item.query 200"))

    assert asked == [4, 1]


@pytest.mark.parametrize("query", ["SELECT * FROM c", "SELECT * FROM c ORDER BY c.n DESC"])
def test_a_page_ends_with_a_token_that_the_next_one_begins_with(
    sessions: ContainerProxy, query: str
) -> None:
    def pages(token: str | None) -> Any:
        found = sessions.query_items(query, partition_key="p5", max_item_count=3)
        return found.by_page(token)

    first = pages(None)
    beginning = [one["n"] for one in next(first)]
    rest = [one["n"] for one in next(pages(first.continuation_token))]

    assert len(beginning) == 3
    assert sorted(beginning + rest) == [5, 20, 35, 50]


def test_pages_go_on_where_they_were_in_a_container_that_changes_meanwhile(
    container: ContainerProxy,
) -> None:
    for number in range(0, 20, 2):
        container.create_item(item(number))
    query = "SELECT VALUE c.n FROM c ORDER BY c.n"
    pages = container.query_items(query, partition_key="p", max_item_count=4).by_page()
    seen = list(next(pages))

    container.create_item(item(1))
    container.create_item(item(7))
    container.delete_item("i10", "p")
    for page in pages:
        seen.extend(page)

    assert seen == [0, 2, 4, 6, 7, 8, 12, 14, 16, 18]


def test_a_response_holds_at_most_four_megabytes(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    for number in range(6):
        container.create_item(item(number, text="x" * 1_000_000))
    cosmos.clear_statistics()

    found = list(container.query_items("SELECT * FROM c", partition_key="p"))

    assert [one["n"] for one in found] == list(range(6))
    assert count(cosmos, "item.query 200") == 2


def test_a_query_nested_too_deeply_is_refused(sessions: ContainerProxy) -> None:
    query = "SELECT VALUE 1" + " + 1" * 5000 + " FROM c"

    failure = refused(400, list, sessions.query_items(query, partition_key="p5"))
    assert "nested too deeply" in str(failure)


def test_a_malformed_token_is_refused(sessions: ContainerProxy) -> None:
    found = sessions.query_items("SELECT * FROM c", partition_key="p5")

    refused(400, list, found.by_page("not ours"))


def test_many_items_are_read_by_id_in_few_requests(
    cosmos: RunningCosmos, sessions: ContainerProxy
) -> None:
    there = [(f"i{number}", f"p{number % 15}") for number in range(60)]
    wanted = there + [(f"none{number}", f"p{number % 15}") for number in range(1500)]
    cosmos.clear_statistics()

    found = sessions.read_items(wanted)

    assert {one["id"] for one in found} == {item_id for item_id, _ in there}
    assert count(cosmos, "item.query 200") <= 8


def test_a_hierarchical_key_is_asked_for_by_its_first_levels(make: Make) -> None:
    container = make(PartitionKey(["/tenant", "/user", "/session"]))
    for number in range(12):
        container.create_item(
            {
                "id": f"i{number}",
                "tenant": f"t{number % 2}",
                "user": f"u{number % 3}",
                "session": "s",
            }
        )

    assert container.read_item("i4", ["t0", "u1", "s"])["id"] == "i4"
    found = container.query_items("SELECT VALUE c.id FROM c", partition_key=["t0", "u1"])
    assert sorted(found) == ["i10", "i4"]
    found = container.query_items("SELECT VALUE c.id FROM c", partition_key=["t1"])
    assert sorted(found) == sorted(f"i{number}" for number in range(1, 12, 2))


# ---------------------------------------------------------------- indexes and costs


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("c.payload", "order-by item is excluded"),
        ("c.model, c.n", "composite index"),
        ("c.n DESC, c.model", "composite index"),
        ("c.model, c.n DESC, c.pk", "composite index"),
        ("LOWER(c.model)", "could not be mapped to a document path"),
    ],
)
def test_an_order_without_its_index_is_refused(
    sessions: ContainerProxy, order: str, sentence: str
) -> None:
    query = f"SELECT * FROM c ORDER BY {order}"  # noqa: S608

    assert sentence in str(refused(400, list, sessions.query_items(query, partition_key="p1")))


def test_a_policy_without_the_root_path_is_refused(make: Make) -> None:
    policy = {"includedPaths": [{"path": "/a/?"}], "excludedPaths": []}

    assert "mandatory indexing path" in str(refused(400, make, indexing_policy=policy))


def charge(call: Callable[..., Any], *given: Any, **named: Any) -> float:
    """The request units that a call's last response names."""
    charges: list[float] = []

    def note(headers: Any, *_: Any) -> None:
        charges.append(float(headers["x-ms-request-charge"]))

    found = call(*given, response_hook=note, **named)
    if not isinstance(found, dict):
        list(found or [])
    return charges[-1]


def test_a_point_read_costs_one_unit_for_a_kilobyte_and_ten_for_a_hundred(
    container: ContainerProxy,
) -> None:
    container.create_item(item(1))
    container.create_item(item(2, text="x" * 102_400))

    assert charge(container.read_item, "i1", "p") == 1.0
    assert charge(container.read_item, "i2", "p") == pytest.approx(10, abs=0.1)


def test_a_write_costs_by_size_and_by_indexed_values_and_twice_over_an_item(make: Make) -> None:
    indexed = make()
    lean = make(indexing_policy={"includedPaths": [], "excludedPaths": [{"path": "/*"}]})
    document = item(1, values=list(range(20)))

    assert charge(lean.create_item, document) == 5.5
    assert charge(lean.upsert_item, document) == 11.0
    assert charge(indexed.create_item, document) == pytest.approx(5.5 + 23 * 0.2)
    assert charge(lean.create_item, item(2, text="x" * 102_400)) == pytest.approx(50, abs=0.2)


def test_a_filter_on_an_excluded_path_costs_like_a_scan(sessions: ContainerProxy) -> None:
    def cost_of(condition: str) -> float:
        query = f"SELECT * FROM c WHERE {condition}"  # noqa: S608
        return charge(sessions.query_items, query, partition_key="p7")

    assert cost_of("c.n = 7") < cost_of("c.payload = 'y'")


def test_the_first_of_many_cost_less_than_all(sessions: ContainerProxy) -> None:
    def cost_of(start: str) -> float:
        query = f"SELECT {start} * FROM c ORDER BY c.n"  # noqa: S608
        return charge(sessions.query_items, query, partition_key="p7")

    assert cost_of("TOP 1") < cost_of("TOP 3") < cost_of("")


# ---------------------------------------------------------------- who may ask


def ask(endpoint: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Read the account by hand."""
    request = urllib.request.Request(endpoint, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.loads(refusal.read())


def signed(date: str) -> dict[str, str]:
    signature = sign(EMULATOR_KEY, f"get\n\n\n{date.lower()}\n\n")
    token = urllib.request.quote(f"type=master&ver=1.0&sig={signature}", safe="")
    return {"authorization": token, "x-ms-date": date, "x-ms-version": "2020-07-15"}


def test_a_wrong_key_is_refused(cosmos: RunningCosmos) -> None:
    with CosmosClient(cosmos.endpoint, cosmos.key) as right:
        failure = refused(401, CosmosClient, cosmos.endpoint, OTHER_KEY)
        assert "wrong key is being used" in str(failure)
        list(right.list_databases())


@pytest.mark.parametrize(
    ("minutes", "status"), [(0, 200), (-14, 200), (-16, 403), (4, 200), (7, 403)]
)
def test_a_clock_may_be_a_quarter_of_an_hour_behind_and_less_ahead(
    cosmos: RunningCosmos, minutes: int, status: int
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)

    assert ask(cosmos.endpoint, signed(date))[0] == status


def test_a_request_without_a_signature_is_refused(cosmos: RunningCosmos) -> None:
    status, body = ask(cosmos.endpoint, {})

    assert (status, body["code"]) == (401, "Unauthorized")


class Credential:
    """Hands out tokens of a test's issuer."""

    def __init__(self, issuer: TokenIssuer, **given: Any) -> None:
        self.issuer = issuer
        self.given = given

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(self.issuer.token(**self.given), int(time.time()) + 3600)

    async def close(self) -> None:
        """Nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""


async def test_a_role_allows_data_and_no_metadata() -> None:
    issuer = TokenIssuer()
    with RunningCosmos(authority=Authority(issuer=issuer), tls=True) as server:
        async with AsyncCosmosClient(server.endpoint, server.key) as owner:
            database = await owner.create_database("d")
            await database.create_container("c", KEY)
        async with AsyncCosmosClient(server.endpoint, Credential(issuer)) as client:
            container = client.get_database_client("d").get_container_client("c")
            await container.create_item(item(1))
            with pytest.raises(CosmosError) as failure:
                await client.get_database_client("d").create_container("other", KEY)
            assert (failure.value.status_code, failure.value.sub_status) == (403, 5300)
        async with AsyncCosmosClient(server.endpoint, Credential(issuer, role="reader")) as client:
            container = client.get_database_client("d").get_container_client("c")
            assert own(await container.read_item("i1", "p")) == item(1)
            with pytest.raises(CosmosError) as failure:
                await container.create_item(item(2))
            assert failure.value.status_code == 403


async def test_an_expired_token_and_a_strangers_token_are_refused() -> None:
    issuer = TokenIssuer()
    with RunningCosmos(authority=Authority(issuer=issuer, keys_allowed=False), tls=True) as server:
        for credential, status in (
            (Credential(issuer, lifetime=-10), 403),
            (Credential(TokenIssuer()), 401),
            (server.key, 401),
        ):
            client = AsyncCosmosClient(server.endpoint, credential)
            with pytest.raises(CosmosError) as failure:
                await client.__aenter__()
            await client.close()
            assert failure.value.status_code == status


def test_a_key_may_be_barred_from_changing_metadata() -> None:
    authority = Authority(key_may_change_metadata=False)
    with (
        RunningCosmos(authority=authority) as server,
        CosmosClient(server.endpoint, server.key) as client,
    ):
        refused(403, client.create_database, "d")


# ---------------------------------------------------------------- faults


def test_the_client_waits_and_tries_again_when_it_is_throttled(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    cosmos.clear_statistics()
    cosmos.faults = Faults(next=["429", "429", "pass"], retry_after_ms=20)

    began = time.monotonic()
    container.create_item(item(1))

    assert time.monotonic() - began >= 0.04
    assert count(cosmos, "item.create 429") == 2
    assert count(cosmos, "item.create 201") == 1


def test_an_operation_can_be_throttled_inside_a_batch(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    cosmos.faults = Faults(next_operations=["pass", "429"], retry_after_ms=30)

    failure = broken(
        container.execute_item_batch, [("create", (item(number),)) for number in range(3)], "p"
    )

    assert statuses(failure) == [424, 429, 424]
    assert failure.operation_responses[1]["retryAfterMilliseconds"] == 30
    assert list(container.read_all_items()) == []


@pytest.mark.parametrize("status", [401, 403, 408, 413, 449])
def test_a_status_can_be_asked_for(
    cosmos: RunningCosmos, container: ContainerProxy, status: int
) -> None:
    cosmos.faults = Faults(target="writes", error_rates={status: 1.0})

    refused(status, container.create_item, item(1))

    assert list(container.read_all_items()) == []


async def test_the_client_sends_a_write_again_whose_connection_was_cut_after_the_commit(
    cosmos: RunningCosmos, aio_container: AsyncContainerProxy
) -> None:
    cosmos.faults = Faults(target="writes", next=["reset_after"])

    with pytest.raises(exceptions.CosmosResourceExistsError):
        await aio_container.create_item(item(1))

    assert own(await aio_container.read_item("i1", "p")) == item(1)


def test_the_sync_client_does_not_send_such_a_write_again(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    cosmos.faults = Faults(target="writes", next=["reset_after"])

    with pytest.raises(ServiceResponseError):
        container.create_item(item(1))

    assert own(container.read_item("i1", "p")) == item(1)


async def test_a_write_whose_connection_was_cut_before_the_commit_was_not_done(
    cosmos: RunningCosmos, aio_container: AsyncContainerProxy
) -> None:
    cosmos.clear_statistics()
    cosmos.faults = Faults(target="writes", next=["reset_before"])

    await aio_container.create_item(item(1))

    assert count(cosmos, "item.create 0") == 1
    assert count(cosmos, "item.create 201") == 1


async def test_a_client_that_does_not_wait_long_enough_sends_its_write_again(
    cosmos: RunningCosmos, aio_container: AsyncContainerProxy
) -> None:
    await aio_container.read()
    cosmos.faults = Faults(target="writes", next=["hang_after"], hang_ms=1600)

    with pytest.raises(exceptions.CosmosResourceExistsError):
        await aio_container.create_item(item(1), read_timeout=0.8)

    assert own(await aio_container.read_item("i1", "p")) == item(1)


def test_a_status_of_an_uncertain_end_may_come_after_the_commit(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    cosmos.faults = Faults(target="writes", error_after_rates={408: 1.0})

    refused(408, container.upsert_item, item(1))

    assert own(container.read_item("i1", "p")) == item(1)


async def test_a_slow_server_answers_many_at_once(
    cosmos: RunningCosmos, aio_container: AsyncContainerProxy
) -> None:
    await aio_container.read()
    cosmos.faults = Faults(latency_ms=200)

    began = time.monotonic()
    await asyncio.gather(*(aio_container.create_item(item(number)) for number in range(20)))

    assert 0.2 <= time.monotonic() - began < 3.5


async def test_what_is_over_the_throughput_is_throttled_and_gets_through_later(
    cosmos: RunningCosmos, container: ContainerProxy
) -> None:
    patient = AsyncCosmosClient(cosmos.endpoint, cosmos.key, retry_total=200)
    async with patient as client:
        slow = client.get_database_client("tests").get_container_client(container.id)
        await slow.read()
        cosmos.clear_statistics()
        cosmos.faults = Faults(request_units_per_second=1200)  # 300 a physical partition

        began = time.monotonic()
        await asyncio.gather(*(slow.create_item(item(number)) for number in range(100)))
        seconds = time.monotonic() - began

    assert count(cosmos, "item.create 429") > 0
    assert count(cosmos, "item.create 201") == 100
    assert seconds > (100 * 5.5 - 300) / 300  # after the first second's worth


@pytest.mark.parametrize(
    "query",
    [
        "SELECT VALUE c.n FROM c",
        "SELECT VALUE c.n FROM c ORDER BY c.n DESC",
        "SELECT VALUE c.n FROM c ORDER BY c.n OFFSET 1 LIMIT 9",
        "SELECT DISTINCT VALUE c.model FROM c",
    ],
)
def test_pages_may_be_short_or_empty_and_all_results_still_come(
    cosmos: RunningCosmos, sessions: ContainerProxy, query: str
) -> None:
    def found() -> list[Any]:
        return list(sessions.query_items(query, enable_cross_partition_query=True))

    expected = found()
    cosmos.clear_statistics()
    cosmos.faults = Faults(seed=3, short_page_rate=0.7)

    assert found() == expected
    assert count(cosmos, "item.query 200") > 4


def test_the_same_seed_makes_the_same_faults() -> None:
    def drawn(seed: int) -> list[str]:
        faults = Faults(seed=seed, throttle_rate=0.3, reset_after_rate=0.1, error_rates={449: 0.1})
        return [faults.draw() for _ in range(200)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert {"", "429", "449", "reset_after"} == set(drawn(7))


def test_every_fault_is_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(), re.MULTILINE))

    assert described == {field.name for field in dataclasses.fields(Faults)}


def test_the_example_that_is_shown_ends_as_is_said() -> None:
    (example,) = re.findall(r"^```\n(from .*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)

    with pytest.raises(ServiceResponseError):
        exec(example, {})  # noqa: S102


# ---------------------------------------------------------------- a process of its own


def test_the_process_keeps_what_it_answered_for_through_a_kill(tmp_path: Path) -> None:
    with CosmosProcess("--data", str(tmp_path / "cosmos.db")) as server:
        with CosmosClient(server.endpoint, server.key) as client:
            container = client.create_database("d").create_container("c", KEY, default_ttl=-1)
            container.create_item(item(1))
            etag = container.upsert_item(item(1, v=2))["_etag"]
            container.execute_item_batch([("create", (item(2),)), ("create", (item(3),))], "p")
            container.delete_item("i3", "p")
            broken(
                container.execute_item_batch,
                [("create", (item(4),)), ("create", (item(1),))],
                "p",
            )
        server.kill()
        server.start()
        with CosmosClient(server.endpoint, server.key) as client:
            container = client.get_database_client("d").get_container_client("c")
            found = list(container.read_all_items())
            assert [own(one) for one in found] == [item(1, v=2), item(2)]
            assert found[0]["_etag"] == etag
            assert container.read()["defaultTtl"] == -1
            container.create_item(item(5))
            assert [one["id"] for one in container.read_all_items()] == ["i1", "i2", "i5"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "{port}"], "Cannot listen on 127.0.0.1, port {port}"),
        (["--key", "no base64!"], "--key must be base64"),
    ],
)
def test_the_process_says_why_it_does_not_start(
    cosmos: RunningCosmos, arguments: list[str], sentence: str
) -> None:
    port = cosmos.endpoint.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "tests.support.cosmos"]
    command += [argument.format(port=port) for argument in arguments]

    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=GUIDE.parents[2]
    )

    assert ended.returncode != 0
    assert sentence.format(port=port) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_faults_and_counts_of_the_process_go_over_http() -> None:
    with CosmosProcess() as server, CosmosClient(server.endpoint, server.key) as client:
        container = client.create_database("d").create_container("c", KEY)
        server.inject(target="writes", error_rates={"449": 1})

        refused(449, container.create_item, item(1))
        server.inject()
        server.clear_statistics()
        container.create_item(item(1))

        assert server.statistics()["requests"] == {"item.create 201": 1}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            server.inject(thottle_rate=1)
