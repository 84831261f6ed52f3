"""The Functions host with the real client and the embedded broker: small apps, real processes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.message import Message
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from tests.support.broker import RunningBroker

from sessionferry.errors import UserError
from sessionferry.local.functions_host import FunctionsHost
from sessionferry.local.functions_host.http import HttpListener, route_path

QUEUES = 16
PRELUDE = """
import asyncio, json, os, time, typing
import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
Batch = typing.List[func.ServiceBusMessage]
BATCH = dict(arg_name="messages", queue_name="%QUEUE%", connection="Bus", cardinality="many",
             data_type=func.DataType.BINARY)
ONE = dict(arg_name="message", queue_name="%QUEUE%", connection="Bus",
           data_type=func.DataType.BINARY)

def note(**facts):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(facts | {"at": time.time()}) + "\\n")

def bodies(messages):
    return [message.get_body().decode() for message in messages]

def counts(messages):
    return [message.delivery_count for message in messages]
"""


class Queue:
    """One queue of the broker, seen from outside. Open from start to end: that is what costs."""

    def __init__(self, broker: RunningBroker, name: str) -> None:
        self.broker = broker
        self.name = name
        self._client = ServiceBusClient.from_connection_string(broker.connection_string)
        self._sender = self._client.get_queue_sender(name)
        self._receiver = self._client.get_queue_receiver(name)

    def open(self) -> None:
        self._sender.__enter__()
        self._receiver.peek_messages()

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()
        self._client.close()

    def send(self, *bodies: str) -> None:
        self._sender.send_messages([ServiceBusMessage(body, message_id=body) for body in bodies])

    def peek(self) -> list[Any]:
        return self._receiver.peek_messages(max_message_count=100, sequence_number=1)

    def receive(self, count: int) -> list[tuple[str, int | None]]:
        """Take messages that are free right now: their bodies, and the header's delivery count."""
        got = self._receiver.receive_messages(max_message_count=count, max_wait_time=2)
        for message in got:
            self._receiver.complete_message(message)
        return [(str(message), message.delivery_count) for message in got]


class RunningHost:
    """The host as a process, with an app written for the test."""

    def __init__(self, folder: Path, source: str, config: dict[str, Any], **settings: str) -> None:
        self.folder = folder
        self.notes_file = folder / "notes"
        self.log_file = folder / "log"
        self.environment = os.environ | {"NOTES": str(self.notes_file)} | settings
        (folder / "function_app.py").write_text(PRELUDE + source)
        (folder / "host.json").write_text(json.dumps({"version": "2.0"} | config))
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sessionferry.local.functions_host"),
                    *("--app", str(self.folder), "--state", str(self.folder / "state")),
                ],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.__exit__()
            raise AssertionError(f"exit code {self.process.returncode}: {self.log}")
        self.ready = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        if self.ready and self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def notes(self) -> list[dict[str, Any]]:
        if not self.notes_file.exists():
            return []
        return [json.loads(line) for line in self.notes_file.read_text().splitlines()]

    def until_noted(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        eventually(lambda: len(self.notes()) >= count, seconds, lambda: self.log)
        return self.notes()

    def until_logged(self, text: str, times: int = 1, seconds: float = 20) -> None:
        eventually(lambda: self.log.count(text) >= times, seconds, lambda: self.log)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def eventually(
    condition: Callable[[], bool], seconds: float, why: Callable[[], str] = lambda: ""
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.05)


def service_bus(**options: Any) -> dict[str, Any]:
    return {"extensions": {"serviceBus": options}}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    queues = [
        {"name": f"q{number}", "lockDuration": "PT5S", "maxDeliveryCount": 10}
        for number in range(QUEUES)
    ]
    with RunningBroker(tmp_path_factory.mktemp("broker"), queues) as running:
        yield running


@pytest.fixture(scope="module")
def queues(broker: RunningBroker) -> Iterator[Iterator[Queue]]:
    """Queues to take one's own from."""
    opened = [Queue(broker, f"q{number}") for number in range(QUEUES)]
    with ThreadPoolExecutor(QUEUES) as threads:
        list(threads.map(Queue.open, opened))
        yield iter(opened)
        list(threads.map(Queue.close, opened))


@pytest.fixture
def queue(queues: Iterator[Queue]) -> Queue:
    """A queue that no other test uses."""
    return next(queues)


@pytest.fixture
def host(tmp_path: Path, queue: Queue) -> Callable[..., RunningHost]:
    def make(source: str, config: dict[str, Any] | None = None, **settings: str) -> RunningHost:
        names = {"QUEUE": queue.name, "Bus": queue.broker.connection_string}
        return RunningHost(tmp_path, source, config or {}, **names, **settings)

    return make


INGEST = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch, context: func.Context):
    note(bodies=bodies(messages), counts=counts(messages), id=context.invocation_id,
         function=context.function_name)
"""


def test_batches_are_bounded_and_completed(queue, host):
    """No batch is above maxMessageBatchSize, and what a function returned from is gone."""
    queue.send(*(f"m{number}" for number in range(10)))
    with host(INGEST, service_bus(maxMessageBatchSize=4)) as running:
        assert running.ready == {
            "event": "functions_host_ready",
            "functions": ["ingest"],
            "http": None,
        }
        eventually(lambda: not queue.peek(), 20, lambda: running.log)
        notes = running.notes()
        assert running.terminate() == 0
    assert max(len(each["bodies"]) for each in notes) == 4
    assert sorted(body for each in notes for body in each["bodies"]) == [f"m{n}" for n in range(10)]
    assert {count for each in notes for count in each["counts"]} == {1}
    assert {each["function"] for each in notes} == {"ingest"}
    assert len({each["id"] for each in notes}) == len(notes)
    assert running.log.count("function=ingest messages=4") == 2
    assert "outcome=succeeded" in running.log
    assert "SharedAccessKey" not in running.log


def test_small_batches_wait_for_more(queue, host):
    """Below minMessageBatchSize the host waits for maxBatchWaitTime, and no longer."""
    config = service_bus(minMessageBatchSize=3, maxBatchWaitTime="00:00:02")
    with host(INGEST, config) as running:
        queue.send("a", "b")
        sent = time.time()
        (first,) = running.until_noted(1)
        assert first["bodies"] == ["a", "b"]
        assert first["at"] - sent > 1.5
        queue.send("c", "d", "e")
        sent = time.time()
        second = running.until_noted(2)[1]
        assert sorted(second["bodies"]) == ["c", "d", "e"]
        assert second["at"] - sent < 1.5


def test_an_exception_abandons_the_whole_batch(queue, host):
    """All messages come again with a higher count, and the exception is logged once each time."""
    source = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch):
    note(bodies=bodies(messages), counts=counts(messages))
    if max(counts(messages)) < 3:
        raise LookupError("no such thing")
"""
    queue.send("bad", "good")
    with host(source) as running:
        eventually(lambda: not queue.peek(), 20, lambda: running.log)
        notes = running.notes()
    seen = sorted(
        (body, count) for n in notes for body, count in zip(n["bodies"], n["counts"], strict=True)
    )
    assert seen == [(body, count) for body in ("bad", "good") for count in (1, 2, 3)]
    assert running.log.count("LookupError: no such thing") == running.log.count("outcome=failed")


def test_sync_functions_run_in_threads_up_to_the_limit(queue, host):
    """Single messages are handled side by side, at most maxConcurrentCalls of them."""
    source = """
import threading
running, lock = 0, threading.Lock()

@app.service_bus_queue_trigger(**ONE)
def one(message: func.ServiceBusMessage):
    global running
    with lock:
        running += 1
        note(body=message.get_body().decode(), running=running)
    time.sleep(0.4)
    with lock:
        running -= 1
"""
    queue.send(*(f"m{number}" for number in range(6)))
    with host(source, service_bus(maxConcurrentCalls=2)) as running:
        eventually(lambda: not queue.peek(), 20, lambda: running.log)
        notes = running.notes()
        assert running.terminate() == 0
    assert sorted(note["body"] for note in notes) == [f"m{number}" for number in range(6)]
    assert max(note["running"] for note in notes) == 2


def test_locks_are_renewed_for_single_messages_only(queue, queues, host):
    """A slow single message is delivered once; a slow batch loses its locks and comes again."""
    source = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch):
    note(function="ingest", counts=counts(messages))
    await asyncio.sleep(5.5 if counts(messages) == [1] else 0)

@app.service_bus_queue_trigger(**(ONE | {"queue_name": "%OTHER%"}))
async def one(message: func.ServiceBusMessage):
    note(function="one", counts=counts([message]))
    await asyncio.sleep(5.5)
"""
    other = next(queues)
    queue.send("slow")
    other.send("slow")
    with host(source, OTHER=other.name) as running:
        eventually(lambda: not queue.peek() and not other.peek(), 20, lambda: running.log)
        notes = sorted((note["function"], note["counts"]) for note in running.notes())
        assert running.terminate() == 0
    assert notes == [("ingest", [1]), ("ingest", [2]), ("one", [1])]
    assert running.log.count("could not complete a message: its lock was lost") == 1


def test_without_auto_complete_nothing_is_settled(queue, host):
    """The message stays, under its lock."""
    source = INGEST.replace("**BATCH", "**BATCH, auto_complete_messages=False")
    queue.send("kept")
    with host(source) as running:
        running.until_logged("outcome=succeeded")
        assert running.terminate() == 0
    assert [str(message) for message in queue.peek()] == ["kept"]


def test_timers_fire_and_do_not_overlap(host):
    """Each run ends before the next starts."""
    source = """
@app.timer_trigger(arg_name="timer", schedule="%SCHEDULE%", run_on_startup=True)
async def tick(timer: func.TimerRequest):
    start = time.time()
    await asyncio.sleep(1.2)
    note(function="tick", start=start, past_due=timer.past_due)

@app.timer_trigger(arg_name="timer", schedule="0 0 0 * * *")
def nightly(timer: func.TimerRequest):
    note(function="nightly", start=time.time(), past_due=timer.past_due)
"""
    running = host(source, SCHEDULE="* * * * * *")
    record = running.folder / "state" / "nightly.json"
    record.parent.mkdir()
    long_ago = datetime.now(UTC) - timedelta(days=2)
    record.write_text(json.dumps({"Last": long_ago.isoformat()}))
    with running:
        assert running.ready["functions"] == ["tick", "nightly"]
        notes = running.until_noted(4)
        assert running.terminate() == 0
    ticks = [note for note in notes if note["function"] == "tick"]
    for earlier, later in pairwise(ticks):
        assert later["start"] >= earlier["at"] - 0.05
    assert not any(note["past_due"] for note in ticks)
    assert [n["past_due"] for n in notes if n["function"] == "nightly"] == [True]
    assert datetime.fromisoformat(json.loads(record.read_text())["Last"]) > long_ago


def test_a_broker_that_went_away_comes_back(tmp_path):
    """Neither a killed broker nor one that starts late needs a restart of the host."""
    with RunningBroker(tmp_path / "broker", [{"name": "q", "lockDuration": "PT5S"}]) as broker:

        def send(body: str) -> None:
            bus = broker.connection_string
            with (
                ServiceBusClient.from_connection_string(bus) as client,
                client.get_queue_sender("q") as sender,
            ):
                sender.send_messages(ServiceBusMessage(body))

        broker.kill()
        folder = tmp_path / "app"
        folder.mkdir()
        retries = service_bus(clientRetryOptions={"maxRetries": 0})
        bus = broker.connection_string
        with RunningHost(folder, INGEST, retries, QUEUE="q", Bus=bus) as running:
            running.until_logged("disconnected, connecting again")
            broker.start()
            send("first")
            running.until_noted(1)
            broker.kill()
            running.until_logged("disconnected, connecting again", times=2)
            broker.start()
            send("second")
            eventually(lambda: "second" in str(running.notes()), 20, lambda: running.log)
            assert running.terminate() == 0
    assert running.notes()[0]["bodies"] == ["first"]
    assert running.log.count("disconnected") == 2


def test_sigterm_drains(queue, host):
    """What runs finishes and is completed; what waits is untouched and free at once."""
    source = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch):
    note(bodies=bodies(messages))
    await asyncio.sleep(1.5)
    note(done=bodies(messages))
"""
    queue.send("running", "waiting", "patient")
    with host(source, service_bus(maxMessageBatchSize=1)) as running:
        running.until_noted(1)
        assert running.terminate() == 0
        assert running.notes()[1]["done"] == ["running"]
        assert len(running.notes()) == 2
    assert queue.receive(3) == [("waiting", 0), ("patient", 0)]


def test_an_idle_host_stops_at_once(queue, host):
    """A receive under way is ended, not waited for."""
    with host(INGEST) as running:
        running.until_logged("connected")
        started = time.monotonic()
        assert running.terminate() == 0
        assert time.monotonic() - started < 10
    queue.send("later")
    assert queue.receive(1) == [("later", 0)]


@pytest.mark.parametrize("body", ["await asyncio.sleep(60)", "def blocks: time.sleep(60)"])
def test_a_timeout_ends_the_process(queue, host, body):
    """The batch is abandoned, and the exit code asks a supervisor for a new host."""
    source = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch):
    await asyncio.sleep(60)
"""
    if body.startswith("def"):
        source = source.replace("async def", "def").replace("await asyncio", "time")
    queue.send("stuck")
    with host(source, {"functionTimeout": "00:00:01"}) as running:
        assert running.process.wait(timeout=15) == 1
    assert "outcome=timed_out" in running.log
    assert queue.receive(1) == [("stuck", 1)]


def test_a_blocked_event_loop_ends_the_process(queue, host):
    """A coroutine that never yields cannot outlive the timeout either."""
    source = """
@app.service_bus_queue_trigger(**BATCH)
async def ingest(messages: Batch):
    time.sleep(60)
"""
    queue.send("stuck")
    with host(source, {"functionTimeout": "00:00:01"}) as running:
        assert running.process.wait(timeout=15) == 1
    assert "blocks the event loop" in running.log


def test_a_missing_setting_is_one_sentence(tmp_path):
    """Exit code 2, and no stack trace."""
    with pytest.raises(AssertionError) as caught, RunningHost(tmp_path, INGEST, {}, Bus="x"):
        pass
    assert "exit code 2" in str(caught.value)
    assert "The app setting QUEUE is missing" in str(caught.value)
    assert "Traceback" not in str(caught.value)


async def test_embedded_in_a_process(queue, tmp_path, monkeypatch):
    """The host is a context manager, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    (tmp_path / "function_app.py").write_text(PRELUDE + INGEST)
    (tmp_path / "host.json").write_text("{}")
    queue.send("hello")
    settings = {"QUEUE": queue.name, "Bus": queue.broker.connection_string}
    host = FunctionsHost(tmp_path, settings)
    assert host.functions == ["ingest"]
    async with host:
        while not (tmp_path / "notes").exists():  # noqa: ASYNC110 - another party writes it
            await asyncio.sleep(0.05)
    assert queue.peek() == []


async def test_a_drain_has_an_end(tmp_path, monkeypatch):
    """What still runs then is given up, and the caller learns it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = """
@app.timer_trigger(arg_name="timer", schedule="0 0 0 * * *", run_on_startup=True)
async def slow(timer: func.TimerRequest):
    await asyncio.sleep(60)
"""
    (tmp_path / "function_app.py").write_text(PRELUDE + source)
    (tmp_path / "host.json").write_text("{}")
    host = FunctionsHost(tmp_path, {}, drain_timeout=0.2)
    await host.start()
    await asyncio.sleep(0.1)
    host.stop()
    with pytest.raises(TimeoutError, match="still running"):
        await host.wait()


HTTP_APP = """
@app.route(route="items/{name}/{number:int}", methods=["GET", "POST"])
async def item(req: func.HttpRequest) -> func.HttpResponse:
    seen = [req.method, dict(req.route_params), dict(req.params), req.get_body().decode()]
    return func.HttpResponse(json.dumps(seen), status_code=201, headers={"X-Seen": "yes"},
                             mimetype="application/json")

@app.route(route="broken")
def broken(req: func.HttpRequest) -> str:
    raise ValueError("the secret is hunter2")

@app.route()
def plain(req: func.HttpRequest) -> str:
    return "text"
"""


def _asked(port: int, path: str, **options: Any) -> tuple[int, str, Message]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", **options)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode(), refusal.headers


def test_http_functions_are_called_by_their_routes(host):
    """Method, route, query and body come in; status, headers and body go out."""
    with host(HTTP_APP) as running:
        port = running.ready["http"]
        status, text, headers = _asked(port, "/api/items/pen/7?a=b", data=b"body", method="POST")
        assert (status, headers["X-Seen"], headers["Content-Type"]) == (
            201,
            "yes",
            "application/json; charset=utf-8",
        )
        assert json.loads(text) == ["POST", {"name": "pen", "number": "7"}, {"a": "b"}, "body"]
        assert _asked(port, "/api/plain")[:2] == (200, "text")
        assert _asked(port, "/api/items/pen/seven")[0] == 404
        assert _asked(port, "/api/items/pen/7", method="DELETE")[0] == 405
        status, text, _ = _asked(port, "/api/broken")
        assert status == 500
        assert "hunter2" not in text
        assert running.terminate() == 0


def test_an_asgi_app_is_served_at_any_route(host):
    """As AsgiFunctionApp mounts it: it gets every path and method."""
    source = """
async def echo(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    await send({"type": "http.response.start", "status": 202, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})

app = func.AsgiFunctionApp(app=echo, http_auth_level=func.AuthLevel.ANONYMOUS)
"""
    with host(source) as running:
        assert _asked(running.ready["http"], "/api/deep/in/it", method="PUT")[:2] == (
            202,
            "/api/deep/in/it",
        )
        assert running.terminate() == 0


def test_a_port_for_http_that_is_taken_is_one_clear_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = HttpListener([], "api", worker=None)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="cannot be served on port"):
            asyncio.run(listener.start(taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("prefix", "route", "path"),
    [
        ("api", "x", "/api/x"),
        ("", "/x/", "/x"),
        ("", "{*rest}", "/{rest:.*}"),
        ("v1", "a/{b}/{c:int}", "/v1/a/{b}/{c:[-+]?\\d+}"),
    ],
)
def test_a_route_template_becomes_a_path(prefix, route, path):
    assert route_path(prefix, route) == path


def test_a_route_with_optional_parts_is_refused():
    with pytest.raises(UserError, match="optional parts"):
        route_path("api", "a/{b?}")
