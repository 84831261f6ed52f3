"""Runs function_app.py in Microsoft's own Python worker library, as the platform does.

`python -m support.functions_runtime APP_FOLDER` in an environment with azure-functions-runtime
(Python 3.13 or newer) and the app's requirements. The library is handed what the host sends:
requests and typed data of protobuf's shape. Prints as JSON which functions it indexed and what
became of an invocation with two messages and of one that must fail.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import azure_functions_runtime as runtime


class Message:
    """A protobuf message's shape: fields by name, nested values by attribute."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class TypedData(Message):
    """A `oneof`: exactly one kind of value."""

    def WhichOneof(self, _group: str) -> str | None:  # noqa: N802  protobuf's name
        return next(iter(self.__dict__), None)


class ParameterBinding(Message):
    """A trigger's value under its name."""

    def WhichOneof(self, _group: str) -> str:  # noqa: N802  protobuf's name
        return "data"


class StatusResult(Message):
    """Whether a request worked."""

    Failure, Success, Cancelled = range(3)


class BindingInfo(Message):
    """A binding's direction and type of data, as numbers."""

    out, inout = 1, 2
    undefined, string, binary, stream = range(4)


class Protos:
    """Whatever message the library makes."""

    StatusResult = StatusResult
    TypedData = TypedData
    BindingInfo = BindingInfo

    def __getattr__(self, name: str) -> type[Message]:
        return type(name, (Message,), {})


def requested(**fields: Any) -> SimpleNamespace:
    """What the worker's dispatcher hands to the library."""
    return SimpleNamespace(
        request=SimpleNamespace(**fields),
        properties={"host": "127.0.0.1", "protos": Protos()},
    )


async def run(app: Path, bodies: list[bytes]) -> dict[str, Any]:
    """Index the app, load its functions and invoke the queue's trigger."""
    started = await runtime.worker_init_request(
        requested(worker_init_request=Message(capabilities={}, function_app_directory=str(app)))
    )
    if started.result.status != StatusResult.Success:
        return {"started": _status(started.result)}
    answer = await runtime.functions_metadata_request(requested())
    found = answer.function_metadata_results or []
    report: dict[str, Any] = {
        "started": _status(started.result),
        "functions": [_described(function) for function in found],
    }
    ingest = next(function for function in found if function.name == "ingest")
    await runtime.function_load_request(
        requested(function_load_request=Message(function_id=ingest.function_id))
    )
    report["invoked"] = await _invoke(ingest.function_id, bodies)
    return report


async def _invoke(function_id: str, bodies: list[bytes]) -> str:
    answer = await runtime.invocation_request(
        requested(
            invocation_request=Message(
                invocation_id="one",
                function_id=function_id,
                input_data=[
                    ParameterBinding(
                        name="messages",
                        data=TypedData(collection_bytes=SimpleNamespace(bytes=bodies)),
                    )
                ],
                trigger_metadata=_metadata(len(bodies)),
                trace_context=Message(trace_parent="", trace_state="", attributes={}),
                retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
            )
        )
    )
    return _status(answer.result)


def _metadata(count: int) -> dict[str, TypedData]:
    """The arrays that the host adds for a batch of messages."""
    properties = json.dumps([{"content_encoding": "zstd"}] * count)
    return {
        "MessageIdArray": TypedData(
            collection_string=SimpleNamespace(string=[f"m{n}" for n in range(count)])
        ),
        "SequenceNumberArray": TypedData(
            collection_sint64=SimpleNamespace(sint64=list(range(1, count + 1)))
        ),
        "DeliveryCountArray": TypedData(json=json.dumps([1] * count)),
        "EnqueuedTimeUtcArray": TypedData(json=json.dumps(["2026-01-01T00:00:00"] * count)),
        "ApplicationPropertiesArray": TypedData(json=properties),
        "UserPropertiesArray": TypedData(json=properties),
    }


def _described(function: Any) -> dict[str, Any]:
    return {
        "name": function.name,
        "bindings": [json.loads(binding) for binding in function.raw_bindings],
    }


def _status(result: Any) -> str:
    if result.status == StatusResult.Success:
        return "success"
    return f"failure: {getattr(result.exception, 'message', result.exception)}"


def main() -> None:
    """Read message bodies, as hexadecimal lines, from standard input."""
    bodies = [bytes.fromhex(line) for line in sys.stdin]
    sys.stdout.write(json.dumps(asyncio.run(run(Path(sys.argv[1]), bodies))) + "\n")


if __name__ == "__main__":
    main()
