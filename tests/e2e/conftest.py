"""One running stack for the plain tests; each has users and sessions of its own."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from support.commands import CommandServer
from support.stack import Ferry, RunningStack

_NUMBERS = count(1)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with RunningStack(tmp_path_factory.mktemp("stack")) as running:
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
