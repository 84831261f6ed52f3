"""The Cosmos test server, asked by the unmodified azure-cosmos clients."""

import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from azure.core import MatchConditions
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey, exceptions
from azure.cosmos.aio import ContainerProxy as AsyncContainerProxy
from azure.cosmos.aio import CosmosClient as AsyncCosmosClient
from tests.support.cosmos import Faults, RunningCosmos

KEY = PartitionKey("/pk")


@pytest.fixture(scope="module")
def cosmos() -> Iterator[RunningCosmos]:
    with RunningCosmos() as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(cosmos: RunningCosmos) -> Iterator[None]:
    yield
    cosmos.faults = Faults()


@pytest.fixture
def container(cosmos: RunningCosmos) -> Iterator[ContainerProxy]:
    with CosmosClient(cosmos.endpoint, cosmos.key) as client:
        database = client.create_database_if_not_exists("tests")
        yield database.create_container(uuid4().hex, KEY)


@pytest.fixture
async def aio_container(
    cosmos: RunningCosmos, container: ContainerProxy
) -> AsyncIterator[AsyncContainerProxy]:
    async with AsyncCosmosClient(cosmos.endpoint, cosmos.key) as client:
        yield client.get_database_client("tests").get_container_client(container.id)


def item(number: int, **fields: Any) -> dict[str, Any]:
    return {"id": f"i{number}", "pk": "p", "n": number, **fields}


def own(stored: dict[str, Any]) -> dict[str, Any]:
    """An item without what the service adds."""
    return {key: value for key, value in stored.items() if not key.startswith("_")}


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

    with pytest.raises(exceptions.CosmosResourceExistsError):
        container.create_item(item(1))


def test_a_write_with_an_old_etag_is_refused(container: ContainerProxy) -> None:
    old = container.create_item(item(1))
    new = container.replace_item("i1", item(1, v=2))

    with pytest.raises(exceptions.CosmosAccessConditionFailedError):
        container.replace_item(
            "i1", item(1, v=3), etag=old["_etag"], match_condition=MatchConditions.IfNotModified
        )
    container.replace_item(
        "i1", item(1, v=3), etag=new["_etag"], match_condition=MatchConditions.IfNotModified
    )

    assert container.read_item("i1", "p")["v"] == 3


# ---------------------------------------------------------------- batches


def test_a_batch_is_done_as_a_whole_or_not_at_all(container: ContainerProxy) -> None:
    container.create_item(item(1))

    with pytest.raises(exceptions.CosmosBatchOperationError) as failure:
        container.execute_item_batch(
            [("create", (item(2),)), ("create", (item(1),)), ("delete", ("i1",))], "p"
        )

    assert [one["statusCode"] for one in failure.value.operation_responses] == [424, 409, 424]
    assert failure.value.error_index == 1
    assert [one["id"] for one in container.read_all_items()] == ["i1"]


# ---------------------------------------------------------------- queries


async def test_the_async_client_merges_what_the_physical_partitions_answer(
    aio_container: AsyncContainerProxy,
) -> None:
    for number in range(40):
        await aio_container.create_item({"id": str(number), "pk": f"p{number % 9}", "n": number})

    query = "SELECT VALUE c.n FROM c WHERE c.n >= @low ORDER BY c.n DESC OFFSET 1 LIMIT 5"
    parameters: list[dict[str, object]] = [{"name": "@low", "value": 10}]
    found = [one async for one in aio_container.query_items(query, parameters=parameters)]

    assert found == [38, 37, 36, 35, 34]


# ---------------------------------------------------------------- faults


async def test_the_client_sends_a_write_again_whose_connection_was_cut_after_the_commit(
    cosmos: RunningCosmos, aio_container: AsyncContainerProxy
) -> None:
    cosmos.faults = Faults(target="writes", next=["reset_after"])

    with warnings.catch_warnings(), pytest.raises(exceptions.CosmosResourceExistsError):
        await aio_container.create_item(item(1))

    assert own(await aio_container.read_item("i1", "p")) == item(1)
