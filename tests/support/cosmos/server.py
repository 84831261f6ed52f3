"""The HTTP side of the service: connections, faults, and the control paths of tests."""

import asyncio
import socket
import urllib.parse
from collections import Counter, defaultdict
from typing import Any

import orjson
from aiohttp import web
from tests.support.cosmos.account import Account
from tests.support.cosmos.auth import Authority
from tests.support.cosmos.faults import Faults
from tests.support.cosmos.items import too_large
from tests.support.cosmos.service import Handler, Reply, Request, Service
from tests.support.cosmos.tls import server_context

VERSION = "version=2.18.0.0"
MAX_READ_BYTES = 16 * 1024 * 1024  # a request over this is not even read
WRITES = frozenset(
    f"item.{name}"
    for name in ("batch", "create", "upsert", "replace", "patch", "delete", "delete_partition")
)


class CosmosServer(Service):
    """The service in an event loop: `start` and `stop` it there.

    `counts` tells what was answered: `(operation, status)` to number, where status 0 is a
    connection that was cut; `charges` the request units by operation.
    """

    def __init__(
        self,
        account: Account | None = None,
        *,
        authority: Authority | None = None,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(account, authority=authority, faults=faults)
        self.counts: Counter[tuple[str, int]] = Counter()
        self.charges: defaultdict[str, float] = defaultdict(float)
        self._runner: web.ServerRunner | None = None

    # ------------------------------------------------------------ life

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, tls: bool = False) -> str:
        """Listen; the endpoint to connect to."""
        server = web.Server(self._serve, access_log=None, read_bufsize=2**20)
        self._runner = web.ServerRunner(server)
        await self._runner.setup()
        listener = socket.create_server((host, port), backlog=512)
        context = server_context() if tls else None
        await web.SockSite(self._runner, listener, ssl_context=context).start()
        self.endpoint = f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}/"
        return self.endpoint

    async def stop(self) -> None:
        """Stop listening and end the connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ------------------------------------------------------------ requests

    async def _serve(self, http: web.BaseRequest) -> web.StreamResponse:
        raw_path = http.rel_url.raw_path
        if raw_path.startswith("/_control/"):
            return await self._control(http, raw_path.removeprefix("/_control/"))
        if (http.content_length or 0) > MAX_READ_BYTES:
            return self._respond(http, "oversized", self.refused(too_large()))
        body = await http.content.read() if http.content_length else b""
        parts = [urllib.parse.unquote(part) for part in raw_path.strip("/").split("/") if part]
        request = Request(http.method, parts, http.headers, body)
        operation, handler = self.route(request)
        if not operation.startswith("item."):
            return self._respond(http, operation, self.handle(request, handler))
        return await self._faulty(http, request, operation, handler)

    async def _faulty(
        self, http: web.BaseRequest, request: Request, operation: str, handler: Handler
    ) -> web.StreamResponse:
        """Answer a request for items as the faults allow."""
        faults = self.faults
        if delay := faults.delay():
            await asyncio.sleep(delay)
        write = operation in WRITES
        fault = ""
        if faults.hits(write=write, batch=operation == "item.batch"):
            fault = faults.draw()
        if fault == "reset_before":
            return self._cut(http, operation)
        if fault.isdigit():
            return self._respond(http, operation, self.refused(faults.error(int(fault))))
        reply = self.handle(request, handler)
        if fault == "reset_after":
            return self._cut(http, operation)
        if fault.endswith("_after") and fault[0].isdigit():
            error = faults.error(int(fault.removesuffix("_after")))
            return self._respond(http, operation, self.refused(error))
        if fault == "hang_after":
            await asyncio.sleep(faults.hang_ms / 1000)
            if http.transport is None or http.transport.is_closing():
                return self._cut(http, operation)
        return self._respond(http, operation, reply)

    def _cut(self, http: web.BaseRequest, operation: str) -> web.StreamResponse:
        """End the connection without a word, as a network does."""
        self.counts[operation, 0] += 1
        if http.transport is not None:
            http.transport.abort()
        return web.Response(status=500)

    def _respond(self, http: web.BaseRequest, operation: str, reply: Reply) -> web.Response:
        self.counts[operation, reply.status] += 1
        self.charges[operation] += reply.charge
        headers = {
            "x-ms-request-charge": f"{reply.charge:.2f}",
            "x-ms-activity-id": http.headers.get("x-ms-activity-id", ""),
            "x-ms-serviceversion": VERSION,
            **reply.headers,
        }
        return web.Response(
            status=reply.status, body=reply.body, headers=headers, content_type="application/json"
        )

    # ------------------------------------------------------------ control

    async def _control(self, http: web.BaseRequest, what: str) -> web.Response:
        """For tests in other processes: set faults, read or clear the counts."""
        if http.method == "PUT" and what == "faults":
            try:
                self.faults = Faults.parse(orjson.loads(await http.content.read()))
            except (ValueError, TypeError) as error:
                return web.json_response({"error": str(error)}, status=400)
            return web.json_response({})
        if http.method == "POST" and what == "split":
            given = orjson.loads(await http.content.read())
            self.split(given["database"], given["container"], given["range"])
            return web.json_response({})
        if http.method == "GET" and what == "statistics":
            return web.json_response(self.statistics())
        if http.method == "DELETE" and what == "statistics":
            self.counts.clear()
            self.charges.clear()
            return web.json_response({})
        return web.json_response({"error": f"no such control: {http.method} {what}"}, status=404)

    def split(self, database: str, container: str, range_id: str) -> None:
        """Divide a physical partition of a container in two."""
        self.account.container(database, container).split(range_id)

    def statistics(self) -> dict[str, Any]:
        """Requests by operation and status (0: the connection was cut), and their request units."""
        return {
            "requests": {
                f"{operation} {status}": count
                for (operation, status), count in sorted(dict(self.counts).items())
            },
            "request_units": {name: round(units, 2) for name, units in dict(self.charges).items()},
        }
