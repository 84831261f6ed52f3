"""The archive signs in with the app's identity, in the form that Functions documents for it.

The far sides are stand-ins: the platform's identity endpoint, and a blob service that takes a blob.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from sessionferry.archive import Archive

CLIENT = "11111111-2222-3333-4444-555555555555"


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


class _Azure(BaseHTTPRequestHandler):
    asked: list[Asked]

    def do_GET(self) -> None:
        token = {"access_token": "a-token", "expires_on": "4102444800", "token_type": "Bearer"}
        self._answer(200, json.dumps(token).encode())

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, b"", ETag='"1"', Last_Modified="Mon, 23 Nov 2026 01:00:00 GMT")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        url = urlsplit(self.path)
        given = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append(Asked(self.command, url.path, parse_qs(url.query), given))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Asked]]:
    handler = type("Azure", (_Azure,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    # What the platform sets, and the one setting of infra/ that matters here.
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{here}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "a-secret-of-the-platform")
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    # Only for the stand-in.
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", here)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    yield handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_batch_is_put_with_a_token_of_the_apps_identity(azure: list[Asked]) -> None:
    archive = Archive.open("https://starch.blob.core.windows.net/archive")
    await archive.put("u/p/s/batch", b"bytes")
    token, put = azure
    assert (token.method, token.path) == ("GET", "/msi/token")
    assert token.headers["x-identity-header"] == "a-secret-of-the-platform"
    assert token.query["client_id"] == [CLIENT]
    assert token.query["resource"] == ["https://storage.azure.com"]
    assert (put.method, put.path) == ("PUT", "/archive/u/p/s/batch")
    assert put.headers["authorization"] == "Bearer a-token"


async def test_a_put_can_only_create_and_never_overwrite(azure: list[Asked]) -> None:
    archive = Archive.open("https://stinbox.blob.core.windows.net/inbox")
    await archive.put("key", b"bytes")
    assert azure[-1].headers["if-none-match"] == "*"
    assert azure[-1].headers["x-ms-blob-type"] == "BlockBlob"
