"""The deployed package holds what the app needs and nothing else; the app starts from it alone."""

import ast
import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from sessionferry.batch import encode
from sessionferry.store.opening import open_store
from support import package
from support.broker import RunningBroker
from support.hosting import RunningHost
from support.strategies import batch

SOURCE = package.ROOT / "src"
NEEDED = {"function_app.py", "host.json", "requirements.txt"}
START_SECONDS = 60.0


def test_the_package_holds_the_app_and_nothing_else() -> None:
    files = package.files()
    assert {path.as_posix() for path in files if path.parts[0] != "src"} == NEEDED
    suffixes = {path.suffix for path in files if path.parts[0] == "src"}
    assert suffixes <= {".py", ".json", ".mako", ".typed"}
    assert sum((package.ROOT / path).stat().st_size for path in files) < 1_000_000


def test_whatever_the_app_imports_is_in_the_package() -> None:
    packed = {SOURCE.parent / path for path in package.files()}
    reached: set[Path] = set()
    pending = [package.ROOT / "function_app.py"]
    while pending:
        path = pending.pop()
        if path not in reached:
            reached.add(path)
            pending += imported(path)
    assert sorted(str(path) for path in reached - packed) == []
    assert len(reached) > 20


def imported(path: Path) -> Iterator[Path]:
    """Yield the files of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = SOURCE.joinpath(*name.split("."))
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    yield file


@pytest.mark.parametrize(
    "install",
    [package.link, pytest.param(package.install, marks=pytest.mark.slow)],
    ids=["as installed here", "as the platform installs"],
)
async def test_the_app_starts_from_the_package_alone_and_takes_messages_in(
    tmp_path: Path, install: Callable[[Path], None]
) -> None:
    app = tmp_path / "app"
    package.pack(app)
    install(app)
    store = f"sqlite:///{tmp_path / 'store.db'}"
    with RunningBroker(tmp_path / "broker", [{"name": "sessions"}]) as broker:
        settings = {
            "ServiceBusConnection": broker.connection_string,
            "FERRY_QUEUE": "sessions",
            "FERRY_STORE": store,
            "FERRY_ARCHIVE": (tmp_path / "archive").as_uri(),
            "FERRY_INBOX": (tmp_path / "inbox").as_uri(),
        }
        command = package.command(app, tmp_path / "state")
        with RunningHost(command, tmp_path, settings) as ready:
            source = (package.ROOT / "function_app.py").read_text(encoding="utf-8")
            named = re.findall(r'function_name\("(\w+)"\)', source)
            assert sorted(ready["functions"]) == sorted(named)
            client = ServiceBusClient.from_connection_string(broker.connection_string)
            with client, client.get_queue_sender("sessions") as sender:
                sender.send_messages(ServiceBusMessage(encode(batch(b'{"event":"e"}\n'))))
            await stored(store)


async def stored(url: str) -> None:
    """Wait until the session is in the store."""
    until = time.monotonic() + START_SECONDS
    async with await open_store(url) as store:
        while not (await store.list_items("sessions")).documents:
            assert time.monotonic() < until
            await asyncio.sleep(0.2)
