"""Fixtures: an empty Cosmos DB store on the test server, or on an endpoint that was named.

`FERRY_TEST_COSMOS_ENDPOINT` names another endpoint to hold to the same tests: the official emulator
or an account. `FERRY_TEST_COSMOS_DATABASE` (default `ferry-tests`) is emptied before every test; in
an account it and its containers must exist. `FERRY_TEST_COSMOS_KEY` is its key; without one an
emulator's well-known key, or the identity of this process is used.
"""

import asyncio
import itertools
import os
from collections.abc import Iterator

import pytest
from azure.cosmos.aio import CosmosClient
from tests.support.cosmos import RunningCosmos

from sessionferry.settings import Settings
from sessionferry.store.cosmos.access import Access, access
from sessionferry.store.cosmos.account import Account
from sessionferry.store.cosmos.containers import CONTAINERS

ENDPOINT = os.environ.get("FERRY_TEST_COSMOS_ENDPOINT")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def cosmos_server() -> Iterator[RunningCosmos]:
    """The test server, in a thread of this process."""
    with RunningCosmos() as server:
        yield server


@pytest.fixture
def cosmos_url(cosmos_server: RunningCosmos) -> Iterator[str]:
    """The URL of a database that is not there yet: opening the store creates it."""
    database = f"db{next(_numbers)}"
    yield f"cosmos+http://{cosmos_server.endpoint.split('//')[1]}{database}"
    asyncio.run(_drop(cosmos_server, database))


async def _drop(server: RunningCosmos, database: str) -> None:
    async with CosmosClient(server.endpoint, server.key) as client:
        found = [it["id"] async for it in client.list_databases()]
        if database in found:
            await client.delete_database(database)


@pytest.fixture
def cosmos_access(cosmos_url: str) -> Access:
    """Access to a database of the test server that is not there yet."""
    return access(cosmos_url, Settings.read())


@pytest.fixture
def named_cosmos_access() -> Access:
    """Access to the emptied database of the endpoint that was named."""
    found = access(
        "cosmos://",
        Settings.read(
            cosmos_endpoint=ENDPOINT,
            cosmos_database=os.environ.get("FERRY_TEST_COSMOS_DATABASE", "ferry-tests"),
            cosmos_key=os.environ.get("FERRY_TEST_COSMOS_KEY"),
            cosmos_auth_method=None,
        ),
    )
    asyncio.run(_empty(found))
    return found


async def _empty(wanted: Access) -> None:
    account = await Account.open(wanted)
    try:
        for container in CONTAINERS.values():
            items = account.container(container.name)
            field = container.partition_key.removeprefix("/")
            rows = items.query_items(f"SELECT c.id, c.{field} FROM c")  # noqa: S608
            for row in [row async for row in rows]:
                await items.delete_item(row["id"], row[field])
    finally:
        await account.close()
