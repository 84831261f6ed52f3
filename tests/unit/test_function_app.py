"""The Function App as the platform sees it, and its messages as ingest sees them."""

import ast
import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from azure.functions import ServiceBusMessage
from azure.functions.meta import Datum
from azure.functions.servicebus import ServiceBusMessageInConverter

from sessionferry.batch import encode
from sessionferry.consumer import LOCK_SECONDS, Consumer, message_from, open_ingest
from sessionferry.errors import UserError
from sessionferry.settings import Settings
from support.strategies import batch

ROOT = Path(__file__).parents[2]
BODY = b"\x28\xb5\x2f\xfd\x00\xff"
ENQUEUED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


@pytest.fixture(scope="module")
def app_module() -> Iterator[ModuleType]:
    """function_app.py, loaded from its file as the worker does."""
    before = sys.path[:]
    spec = importlib.util.spec_from_file_location("function_app", ROOT / "function_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.found = module.app.get_functions()  # can be asked once only
    yield module
    sys.path[:] = before


def test_there_is_one_function_bound_to_the_queue(app_module: ModuleType) -> None:
    (function,) = [f for f in app_module.found if f.get_function_name() == "ingest"]
    (binding,) = json.loads(function.get_function_json())["bindings"]
    wanted = {
        "type": "serviceBusTrigger",
        "direction": "IN",
        "name": "messages",
        "queueName": "%FERRY_QUEUE%",
        "connection": "ServiceBusConnection",
        "cardinality": "MANY",
        "dataType": "BINARY",
    }
    assert {name: str(binding[name]) for name in wanted} == wanted


def test_the_looks_at_queue_and_store_are_bound_to_timers(app_module: ModuleType) -> None:
    schedules = {}
    for function in app_module.found:
        binding = json.loads(function.get_function_json())["bindings"][0]
        if binding["type"] == "timerTrigger":
            schedules[function.get_function_name()] = binding["schedule"]
    assert schedules == {
        "watch_queue": "0 */5 * * * *",
        "watch_store": "0 0 * * * *",
        "redrive": "0 7,22,37,52 * * * *",
        "sweep": "0 17 3,9,15,21 * * *",
        "expire": "0 41 1 * * *",
        "replay": "0 27 * * * *",
        "rebuild": "0 47 * * * *",
    }


def test_health_is_for_anybody_at_the_usual_paths(app_module: ModuleType) -> None:
    routes = {}
    for function in app_module.found:
        binding = json.loads(function.get_function_json())["bindings"][0]
        if binding["type"] == "httpTrigger":
            assert str(binding["authLevel"]).upper() == "ANONYMOUS"
            assert [str(method) for method in binding["methods"]] == ["GET"]
            routes[function.get_function_name()] = binding["route"]
    assert routes == {"livez": "livez", "readyz": "readyz"}
    http = json.loads((ROOT / "host.json").read_text())["extensions"]["http"]
    assert http["routePrefix"] == ""


def test_readiness_follows_the_store_and_is_looked_at_seldom(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FERRY_STORE", "postgresql://127.0.0.1:1/x")
    monkeypatch.setenv("FERRY_ARCHIVE", (tmp_path / "archive").as_uri())
    monkeypatch.setenv("FERRY_INBOX", (tmp_path / "inbox").as_uri())

    async def run() -> None:
        consumer = Consumer()
        assert await consumer.readiness() == 503
        monkeypatch.setenv("FERRY_STORE", f"sqlite:///{tmp_path / 'store.db'}")
        assert await consumer.readiness() == 503
        consumer._readiness_until = 0.0
        assert await consumer.readiness() == 200
        assert consumer._ingest is not None
        await consumer._ingest.store.close()

    asyncio.run(run())


def test_invocations_are_small_and_complete_by_themselves() -> None:
    bus = json.loads((ROOT / "host.json").read_text())["extensions"]["serviceBus"]
    assert 1 <= bus["maxMessageBatchSize"] <= 16
    assert bus["autoCompleteMessages"] is True
    assert bus["prefetchCount"] == 0


def test_function_app_holds_triggers_only() -> None:
    """Bind, call, return: every function is decorated and no longer than two statements."""
    tree = ast.parse((ROOT / "function_app.py").read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert functions
    for function in functions:
        assert function.decorator_list
        assert ast.get_docstring(function)
        assert len(function.body) <= 2
    branching = ast.If | ast.For | ast.While | ast.Try | ast.ClassDef | ast.Lambda
    assert not [node for node in ast.walk(tree) if isinstance(node, branching)]


def test_the_trigger_hands_its_messages_over_and_returns_nothing(
    app_module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FERRY_STORE", f"sqlite:///{tmp_path / 'store.db'}")
    monkeypatch.setenv("FERRY_ARCHIVE", (tmp_path / "archive").as_uri())
    monkeypatch.setenv("FERRY_INBOX", (tmp_path / "inbox").as_uri())
    call = app_module.found[0].get_user_function()
    body = encode(batch(b'{"event":"a"}\n'))

    async def run() -> None:
        assert await call([received(body=body), received(body=b"junk")]) is None
        ingest = app_module.consumer._ingest
        page = await ingest.store.list_items("heads")
        assert page.documents[0]["streams"]["events"]["stored"] == [[0, 0]]
        assert len((await ingest.store.list_quarantined()).documents) == 1
        await ingest.store.close()

    asyncio.run(run())


# ------------------------------------------------------------ messages


def received(body: bytes = BODY, **changed: Datum | None) -> ServiceBusMessage:
    """A message as the worker's own converter makes it of what the host sends."""
    properties = {"content_encoding": "zstd"}
    sent: dict[str, Datum | None] = {
        "MessageId": Datum("m1", "string"),
        "DeliveryCount": Datum("3", "json"),
        "EnqueuedTimeUtc": Datum('"2026-01-02T03:04:05"', "json"),
        "ApplicationProperties": Datum(json.dumps(properties), "json"),
        "UserProperties": Datum("{}", "json"),
        **changed,
    }
    metadata = {name: datum for name, datum in sent.items() if datum is not None}
    message: Any = ServiceBusMessageInConverter.decode(
        Datum(body, "bytes"), trigger_metadata=metadata
    )
    assert isinstance(message, ServiceBusMessage)
    return message


def test_a_message_is_taken_over_as_it_is() -> None:
    message = message_from(received())
    assert message.body == BODY
    assert message.message_id == "m1"
    assert message.content_encoding == "zstd"
    assert message.delivery_count == 3


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+00:00"],
)
def test_times_without_a_zone_are_utc(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        message = message_from(received(EnqueuedTimeUtc=Datum(json.dumps(text), "json")))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert message.enqueued_at == ENQUEUED


def test_without_a_known_lock_the_queues_duration_counts_from_now() -> None:
    assert seconds_held() == pytest.approx(LOCK_SECONDS, abs=5)


def seconds_held(**metadata: Datum) -> float:
    locked_until = message_from(received(**metadata)).locked_until
    assert locked_until is not None
    return locked_until - time.monotonic()


@pytest.mark.parametrize(
    ("ahead", "held"), [(60, 60), (-60, 0), (86_400, LOCK_SECONDS), (-86_400, 0)]
)
def test_a_lock_never_holds_longer_than_the_queues_whatever_this_clock_says(
    ahead: float, held: float
) -> None:
    until = datetime.fromtimestamp(time.time() + ahead, UTC).replace(tzinfo=None).isoformat()
    assert seconds_held(LockedUntil=Datum(json.dumps(until), "json")) == pytest.approx(held, abs=5)


def test_a_known_lock_counts() -> None:
    until = Datum('"2026-01-02T03:04:05"', "json")
    assert seconds_held(LockedUntil=until) == pytest.approx(0, abs=5)


def test_a_message_without_anything_but_its_body_is_taken_over() -> None:
    names = ("MessageId", "DeliveryCount", "EnqueuedTimeUtc", "ApplicationProperties")
    message = message_from(received(**dict.fromkeys(names)))
    assert (message.body, message.message_id, message.delivery_count) == (BODY, "", 1)
    assert message.content_encoding is None
    assert message.enqueued_at is None


def test_a_property_of_another_type_becomes_text() -> None:
    odd = Datum(json.dumps({"content_encoding": 7}), "json")
    assert message_from(received(ApplicationProperties=odd)).content_encoding == "7"


# ------------------------------------------------------------ opening


@pytest.mark.parametrize("missing", ["FERRY_STORE", "FERRY_ARCHIVE", "FERRY_INBOX"])
async def test_a_missing_setting_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    monkeypatch.setenv("FERRY_STORE", "sqlite://")
    monkeypatch.setenv("FERRY_ARCHIVE", "memory://")
    monkeypatch.setenv("FERRY_INBOX", "memory://")
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match="FERRY_ARCHIVE, FERRY_INBOX, and FERRY_STORE"):
        await open_ingest(Settings.read())


async def test_concurrent_invocations_share_one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_STORE", "sqlite://")
    monkeypatch.setenv("FERRY_ARCHIVE", "memory://")
    monkeypatch.setenv("FERRY_INBOX", "memory://")
    consumer = Consumer()
    opened: Callable[[], Any] = consumer._open
    first, second = await asyncio.gather(opened(), opened())
    assert first is second
    await first.store.close()
