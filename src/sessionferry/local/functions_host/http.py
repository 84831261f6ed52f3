"""HTTP triggers: one server on loopback for all functions that a request can call."""

import logging
import re
from functools import partial
from typing import Any, Final

import azure.functions as func
from aiohttp import web

from sessionferry.errors import UserError
from sessionferry.local.functions_host.app import Function, HttpTrigger
from sessionferry.local.functions_host.worker import Worker

log = logging.getLogger(__name__)

METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
MOST_BODY_BYTES: Final = 100 * 1024 * 1024
"""What the real host takes, too."""
_PARAMETER: Final = re.compile(r"\{(\*?)(\w+)(?::(int|alpha|guid))?\}")
_PATTERNS: Final = {
    "int": r"[-+]?\d+",
    "alpha": r"[A-Za-z]+",
    "guid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_HOP_BY_HOP: Final = frozenset({"connection", "content-length", "transfer-encoding"})


class HttpListener:
    """Serves routes until it is closed; `start` says on which port."""

    def __init__(self, functions: list[Function], prefix: str, worker: Worker) -> None:
        self._worker = worker
        self._runner: web.AppRunner | None = None
        self._app = web.Application(client_max_size=MOST_BODY_BYTES)
        for function in functions:
            self._add(function, prefix)

    async def start(self, port: int) -> int:
        """Listen on loopback; port 0 takes a free one. Raises `UserError` when it is taken."""
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False)
        await runner.setup()
        self._runner = runner
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError as error:
            await self.close()
            raise UserError(f"HTTP cannot be served on port {port}: {error.strerror}.") from None
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Take no more requests; those that run are answered."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _add(self, function: Function, prefix: str) -> None:
        trigger = function.trigger
        if not isinstance(trigger, HttpTrigger):
            raise TypeError("Not an HTTP function.")
        path = route_path(prefix, trigger.route)
        handler = partial(self._handle, function)
        for method in trigger.methods or METHODS:
            self._app.router.add_route(method, path, handler)

    async def _handle(self, function: Function, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = func.HttpRequest(
            method=request.method,
            url=str(request.url),
            headers=dict(request.headers),
            params=dict(request.query),
            route_params=dict(request.match_info),
            body=body,
        )
        try:
            result = await self._worker.respond(function, lambda: asked)
        except Exception:  # noqa: BLE001 - it is in the log; the caller learns no more
            return web.Response(status=500)
        return response_of(result)


def route_path(prefix: str, route: str) -> str:
    """Turn a route template into aiohttp's form; raises `UserError` for what is not served."""
    whole = "/" + "/".join(part for part in (prefix.strip("/"), route.strip("/")) if part)
    path = _PARAMETER.sub(_resource, whole)
    if "?}" in path or re.search(r"\{[^}]*[=(]", _PARAMETER.sub("", whole)):
        raise UserError(f"The route {route} is not served: optional parts and defaults are not.")
    return path


def response_of(result: Any) -> web.Response:
    """Answer with what a function returned: a response, a text, or nothing."""
    if result is None:
        return web.Response(status=204)
    if isinstance(result, str):
        return web.Response(text=result)
    if not isinstance(result, func.HttpResponse):
        log.error("an HTTP function returned a %s, not a response", type(result).__name__)
        return web.Response(status=500)
    answer = web.Response(status=result.status_code, body=result.get_body())
    for name, value in result.headers.items():
        if name.lower() not in _HOP_BY_HOP:
            answer.headers[name] = value
    if "content-type" not in {name.lower() for name, _ in result.headers.items()}:
        answer.headers["Content-Type"] = f"{result.mimetype}; charset={result.charset}"
    return answer


def _resource(match: re.Match[str]) -> str:
    everything, name, kind = match.groups()
    if everything:
        return f"{{{name}:.*}}"
    return f"{{{name}:{_PATTERNS[kind]}}}" if kind else f"{{{name}}}"
