"""One running stack for the plain tests; each has users and sessions of its own.

With `FERRY_TEST_STORE=cosmos` its store is the Cosmos test server (a part of `make faults`).
"""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.support.cosmos import CosmosProcess

from support.commands import CommandServer
from support.stack import Ferry, RunningStack

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def cosmos() -> Iterator[str]:
    """The URL of a store on the Cosmos test server."""
    with CosmosProcess() as server:
        yield cosmos_store(server)


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    in_cosmos = os.environ.get("FERRY_TEST_STORE") == "cosmos"
    store = request.getfixturevalue("cosmos") if in_cosmos else None
    with RunningStack(tmp_path_factory.mktemp("stack"), store=store) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[CommandServer]:
    running = CommandServer()
    yield running
    running.close()


@pytest.fixture
def ferry(stack: RunningStack, server: CommandServer, tmp_path: Path) -> Ferry:
    """The command of a user whom no other test knows."""
    return stack.ferry(f"user-{next(_NUMBERS)}", tmp_path / "home", server)


def cosmos_store(server: CosmosProcess) -> str:
    """The URL of a store on a server; opening it creates the database."""
    return f"cosmos+http://{server.endpoint.split('//')[1]}ferry"
