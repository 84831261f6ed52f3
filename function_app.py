"""The Function App: triggers that bind, call and return. Everything else is in src/sessionferry."""

import sys
from pathlib import Path
from typing import List  # noqa: UP035  azure-functions 1.x refuses list[...] here

import azure.functions as func

# The platform installs requirements.txt but not this project; its package lies beside this file.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from sessionferry.consumer import Consumer

app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)
consumer = Consumer()


@app.function_name("ingest")
@app.service_bus_queue_trigger(
    arg_name="messages",
    connection="ServiceBusConnection",
    queue_name="%FERRY_QUEUE%",
    cardinality=func.Cardinality.MANY,
    data_type=func.DataType.BINARY,
)
async def ingest(messages: List[func.ServiceBusMessage]) -> None:  # noqa: UP006
    """Take one invocation's batches in."""
    await consumer.take_in(messages)


@app.function_name("watch_queue")
@app.timer_trigger(arg_name="timer", schedule="0 */5 * * * *")
async def watch_queue(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Log how long the oldest message has waited."""
    await consumer.watch_queue()


@app.function_name("watch_store")
@app.timer_trigger(arg_name="timer", schedule="0 0 * * * *")
async def watch_store(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Log which hosts are silent and which sessions lack lines."""
    await consumer.watch_store()


@app.function_name("redrive")
@app.timer_trigger(arg_name="timer", schedule="0 7,22,37,52 * * * *")
async def redrive(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Send again what an outage left among the dead letters."""
    await consumer.redrive()


@app.function_name("sweep")
@app.timer_trigger(arg_name="timer", schedule="0 17 3,9,15,21 * * *")
async def sweep(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Finish what ended deliveries and deletions have left."""
    await consumer.sweep()


@app.function_name("expire")
@app.timer_trigger(arg_name="timer", schedule="0 41 1 * * *")
async def expire(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Prune, hide and delete what the settings say is old."""
    await consumer.expire()


@app.function_name("replay")
@app.timer_trigger(arg_name="timer", schedule="0 27 * * * *")
async def replay(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Judge anew, after an upgrade, what the version before quarantined."""
    await consumer.replay()


@app.function_name("rebuild")
@app.timer_trigger(arg_name="timer", schedule="0 47 * * * *")
async def rebuild(timer: func.TimerRequest) -> None:  # noqa: ARG001
    """Make anew, after an upgrade, what the version before derived."""
    await consumer.rebuild()


@app.function_name("livez")
@app.route(trigger_arg_name="request", route="livez", methods=[func.HttpMethod.GET])
async def livez(request: func.HttpRequest) -> func.HttpResponse:  # noqa: ARG001
    """Say that the process answers."""
    return func.HttpResponse()


@app.function_name("readyz")
@app.route(trigger_arg_name="request", route="readyz", methods=[func.HttpMethod.GET])
async def readyz(request: func.HttpRequest) -> func.HttpResponse:  # noqa: ARG001
    """Say whether store and archive answer, and nothing more: anybody may ask."""
    return func.HttpResponse(status_code=await consumer.readiness())
