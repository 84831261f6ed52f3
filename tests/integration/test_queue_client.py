"""Who we are to the queue, and the way to it: the embedded broker, and a proxy that listens."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from azure.servicebus import ServiceBusClient
from pydantic import SecretStr

from sessionferry.errors import TransientError, UserError
from sessionferry.packing import pack_whole
from sessionferry.publisher import Publisher
from sessionferry.settings import Endpoints, Settings, endpoints
from support.broker import KEY, KEY_NAME, RunningBroker, forget_leaked_sockets
from support.strategies import header

NAMESPACE = "fleet.servicebus.windows.net"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    directory = tmp_path_factory.mktemp("broker")
    with RunningBroker(directory, [{"name": "sessions"}]) as running:
        yield running


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    forget_leaked_sockets()


def target(folder: Path, **changes: Any) -> Endpoints:
    fields: dict[str, Any] = {
        **dict.fromkeys(("connection", "namespace", "store_url", "archive_url", "local")),
        "queue": "sessions",
        "inbox_url": (folder / "inbox").as_uri(),
    }
    return Endpoints(**(fields | changes))


def token(uri: str, key: str = KEY) -> str:
    """A SAS token, made as Azure's documentation says."""
    expiry = str(int(time.time()) + 600)
    signed = f"{quote_plus(uri)}\n{expiry}".encode()
    signature = base64.b64encode(hmac.new(key.encode(), signed, hashlib.sha256).digest())
    return (
        f"SharedAccessSignature sr={quote_plus(uri)}&sig={quote_plus(signature)}"
        f"&se={expiry}&skn={KEY_NAME}"
    )


def sas_connection(broker: RunningBroker, key: str = KEY) -> str:
    signed = token(f"sb://127.0.0.1:{broker.port}/sessions", key)
    return (
        f"Endpoint=sb://127.0.0.1:{broker.port};SharedAccessSignature={signed};"
        "UseDevelopmentEmulator=true;"
    )


async def test_a_sas_file_lets_us_send(broker: RunningBroker, tmp_path: Path) -> None:
    path = tmp_path / "sas"
    path.write_text(sas_connection(broker) + "\n")
    async with Publisher(target(tmp_path, sas_file=path), retry_seconds=10) as publisher:
        await publisher.send(pack_whole(header(kind="metadata", stream=None), b"{}"))
        assert len(await publisher.flush()) == 1
    with (
        ServiceBusClient.from_connection_string(broker.connection_string) as client,
        client.get_queue_receiver("sessions") as receiver,
    ):
        assert len(receiver.peek_messages()) == 1


async def test_a_refused_token_is_one_sentence(broker: RunningBroker, tmp_path: Path) -> None:
    path = tmp_path / "sas"
    path.write_text(sas_connection(broker, key="d3Jvbmc="))
    with pytest.raises(UserError, match="refused this sender") as caught:
        async with Publisher(target(tmp_path, sas_file=path), retry_seconds=10):
            pass
    assert "sig=" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "namespace", "sentence"),
    [
        (b"hello", NAMESPACE, "neither a SAS token nor a connection string"),
        (b"", NAMESPACE, "neither"),
        (b"\xff\xfe", NAMESPACE, "is not text"),
        (b"Endpoint=nothing", NAMESPACE, "FERRY_SAS_FILE is not a connection string"),
        (b"SharedAccessSignature sr=x&sig=s&se=1&skn=k", None, "needs the namespace"),
        (None, NAMESPACE, "cannot be read: No such file"),
    ],
)
async def test_a_wrong_sas_file_is_one_sentence_without_its_content(
    tmp_path: Path, content: bytes | None, namespace: str | None, sentence: str
) -> None:
    path = tmp_path / "sas"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        async with Publisher(target(tmp_path, sas_file=path, namespace=namespace)):
            pass
    assert "hello" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
async def test_through_a_proxy_the_queue_is_asked_for_on_port_443(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    connection = f"Endpoint=sb://{NAMESPACE};SharedAccessKeyName=k;SharedAccessKey={KEY}"
    where = target(
        tmp_path, connection=SecretStr(connection), proxy=f"http://ada:key@127.0.0.1:{port}"
    )
    with pytest.raises(TransientError, match="cannot be reached"):
        async with Publisher(where, retry_seconds=0):
            pass
    proxy.close()
    await proxy.wait_closed()
    assert asked[0].startswith(f"CONNECT {NAMESPACE}:443 ".encode())
    credentials = base64.b64encode(b"ada:key")
    assert b"Proxy-Authorization: Basic " + credentials in asked[0]


def test_the_way_to_the_queue_is_for_remote_queues_only(tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": tmp_path, "identity": tmp_path, "websocket": True}
    remote = endpoints(Settings.read(**common, namespace=NAMESPACE, proxy="http://p:8080"))
    assert (remote.websocket, remote.proxy) == (True, "http://p:8080")
    sas = endpoints(Settings.read(**common, sas_file=tmp_path / "sas"))
    assert sas.destination == f"sas:{tmp_path / 'sas'}/sessions"
    with pytest.raises(UserError, match="no `ferry local`"):
        endpoints(Settings.read(**common))


@pytest.mark.parametrize("proxy", ["p:8080", "http://p", "socks5://p:1", "http://p:1/path"])
def test_what_is_no_proxy_is_refused_without_being_shown(tmp_path: Path, proxy: str) -> None:
    with pytest.raises(UserError, match="proxy is written as"):
        Settings.read(data=tmp_path, identity=tmp_path, proxy=proxy)


@pytest.mark.parametrize("hours", ["22-6", "25:00-01:00", "always"])
def test_what_are_no_hours_is_refused(tmp_path: Path, hours: str) -> None:
    with pytest.raises(UserError, match="22:00-06:00"):
        Settings.read(data=tmp_path, identity=tmp_path, hours=hours)
