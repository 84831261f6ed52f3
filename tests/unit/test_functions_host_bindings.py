"""From an app's public JSON to what the host serves."""

import sys
from pathlib import Path
from typing import List  # noqa: UP035 - what the worker accepts

import azure.functions as func
import pytest

from sessionferry.errors import UserError
from sessionferry.local.functions_host.app import (
    HttpTrigger,
    ServiceBusTrigger,
    Settings,
    TimerTrigger,
    load_app,
    read_function,
)

CONNECTION = "Endpoint=sb://127.0.0.1:5/;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0"
SETTINGS = {"Bus": CONNECTION, "QUEUE": "sessions", "TICK": "*/5 * * * * *"}
QUEUE = {"type": "serviceBusTrigger", "name": "messages", "queueName": "%QUEUE%"}
TIMER = {"type": "timerTrigger", "name": "timer", "schedule": "%TICK%"}

APP = """
import typing
import azure.functions as func
import helper

app = func.FunctionApp()
again = app

@app.service_bus_queue_trigger(
    arg_name="messages", queue_name="%QUEUE%", connection="Bus", cardinality="many",
    data_type=func.DataType.BINARY, auto_complete_messages=False)
async def ingest(messages: typing.List[func.ServiceBusMessage], context: func.Context): ...

@app.service_bus_queue_trigger(arg_name="message", queue_name="plain", connection="Bus")
def one(message: func.ServiceBusMessage): ...

@app.function_name("sweep")
@app.timer_trigger(arg_name="timer", schedule="%TICK%", run_on_startup=True, use_monitor=False)
def whatever(timer: func.TimerRequest): ...

@app.route(route="x", auth_level=func.AuthLevel.ANONYMOUS)
def http(req: func.HttpRequest) -> str: ...
"""


def _app(folder: Path, source: str, settings=SETTINGS):
    (folder / "function_app.py").write_text(source)
    (folder / "helper.py").touch()
    return load_app(folder, Settings(settings))


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "function_app", raising=False)
    monkeypatch.delitem(sys.modules, "helper", raising=False)


def test_an_app_is_read_through_its_json(tmp_path):
    """Names, triggers, options and settings come out as the decorators put them in."""
    app = _app(tmp_path, APP)
    ingest, one, sweep, http = app
    assert [function.name for function in app] == ["ingest", "one", "sweep", "http"]
    assert http.trigger == HttpTrigger(route="x", methods=())
    assert isinstance(ingest.trigger, ServiceBusTrigger)
    assert (ingest.trigger.queue, ingest.trigger.many, ingest.trigger.binary) == (
        "sessions",
        True,
        True,
    )
    assert ingest.trigger.auto_complete is False
    assert (ingest.is_async, ingest.wants_context, ingest.parameter) == (True, True, "messages")
    assert isinstance(one.trigger, ServiceBusTrigger)
    assert (one.trigger.queue, one.trigger.many, one.trigger.binary) == ("plain", False, False)
    assert one.trigger.auto_complete is None
    assert (one.is_async, one.wants_context) == (False, False)
    assert isinstance(sweep.trigger, TimerTrigger)
    assert sweep.trigger.schedule.expression == "*/5 * * * * *"
    assert (sweep.trigger.run_on_startup, sweep.trigger.use_monitor) == (True, False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "0 function apps"),
        (
            "import azure.functions as f\na = f.FunctionApp()\nb = f.FunctionApp()",
            "2 function apps",
        ),
    ],
)
def test_there_is_one_app(tmp_path, source, message):
    """As the worker demands."""
    with pytest.raises(UserError, match=message):
        _app(tmp_path, source)


def test_a_folder_without_an_app(tmp_path):
    """The sentence names the file."""
    with pytest.raises(UserError, match=r"function_app\.py is missing"):
        load_app(tmp_path, Settings({}))


def _handler(messages): ...


def _timer(timer): ...


@pytest.mark.parametrize(
    ("binding", "settings", "message"),
    [
        (QUEUE | {"connection": "Bus"}, {"Bus": CONNECTION}, "app setting QUEUE is missing"),
        (QUEUE | {"connection": "Bus"}, {"QUEUE": "q"}, "app setting Bus is missing"),
        (
            QUEUE | {"connection": "Bus"},
            {"QUEUE": "q", "Bus": "secret nonsense"},
            "Bus is no Service Bus connection string",
        ),
        (QUEUE | {"isSessionsEnabled": True}, SETTINGS, "queues with sessions"),
        (
            {"type": "serviceBusTrigger", "name": "messages", "topicName": "t"},
            SETTINGS,
            "not topics",
        ),
        ({"type": "blobTrigger", "name": "messages"}, SETTINGS, "trigger blobTrigger"),
        (QUEUE | {"name": "other"}, SETTINGS, "must have the parameter other"),
    ],
)
def test_what_cannot_be_served(binding, settings, message):
    """One clear sentence each, without secrets."""
    with pytest.raises(UserError, match=message) as caught:
        read_function("f", _handler, [binding], Settings(settings))
    assert "nonsense" not in str(caught.value)


def test_a_bad_schedule():
    """The sentence names the function."""
    with pytest.raises(UserError, match=r"Function f: .* six fields"):
        read_function("f", _timer, [TIMER | {"schedule": "1 2"}], Settings(SETTINGS))


def test_other_bindings_are_refused():
    """An output binding would need what this host does not do."""
    with pytest.raises(UserError, match="single trigger"):
        read_function("f", _timer, [TIMER, {"type": "queue", "name": "out"}], Settings(SETTINGS))


def test_the_annotation_is_what_the_worker_accepts():
    """`list[...]` is refused by azure-functions itself, so it has to fail here as well."""
    settings = Settings(SETTINGS)

    def accepted(messages: List[func.ServiceBusMessage]): ...  # noqa: UP006

    def refused(messages: list[func.ServiceBusMessage]): ...

    binding = QUEUE | {"connection": "Bus"}
    read_function("f", accepted, [binding], settings)
    with pytest.raises(UserError, match="does not accept"):
        read_function("f", refused, [binding], settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"Bus": CONNECTION}, (CONNECTION, None, None)),
        ({"AzureWebJobsBus": CONNECTION, "Bus": "x"}, (CONNECTION, None, None)),
        (
            {"Bus__fullyQualifiedNamespace": "n.servicebus.windows.net", "Bus__clientId": "c"},
            (None, "n.servicebus.windows.net", "c"),
        ),
    ],
)
def test_connections(settings, expected):
    """A connection string, or a namespace reached by identity."""
    connection = Settings(settings).connection("Bus")
    assert (connection.connection_string, connection.namespace, connection.client_id) == expected
    assert "c2VjcmV0" not in repr(connection)


def test_the_default_connection():
    """A binding without one uses the host's default name."""
    settings = Settings({"AzureWebJobsServiceBus": CONNECTION, "QUEUE": "q"})
    trigger = read_function("f", _handler, [QUEUE], settings).trigger
    assert isinstance(trigger, ServiceBusTrigger)
    assert trigger.connection.connection_string == CONNECTION
