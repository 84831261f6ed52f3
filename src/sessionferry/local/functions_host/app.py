"""Loading `function_app.py`, and what its bindings ask for.

Only what azure-functions publishes is read: the function list and each function's JSON.
"""

import importlib.util
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import azure.functions as func
from azure.servicebus import parse_connection_string

from sessionferry.errors import UserError
from sessionferry.local.functions_host.ncrontab import Schedule

_MODULE: Final = "function_app"
_DEFAULT_CONNECTION: Final = "ServiceBus"  # the real host puts AzureWebJobs before it
_PLACEHOLDER: Final = re.compile(r"%([^%]+)%")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where a Service Bus trigger connects to."""

    connection_string: str | None = None
    namespace: str | None = None
    client_id: str | None = None

    def __repr__(self) -> str:
        return f"Connection({self.namespace or 'connection string'})"


@dataclass(frozen=True, kw_only=True)
class ServiceBusTrigger:
    """A `serviceBusTrigger` on a queue."""

    queue: str
    connection: Connection
    many: bool
    binary: bool
    auto_complete: bool | None  # None: as host.json says


@dataclass(frozen=True, kw_only=True)
class TimerTrigger:
    """A `timerTrigger`."""

    schedule: Schedule
    run_on_startup: bool
    use_monitor: bool


@dataclass(frozen=True, kw_only=True)
class HttpTrigger:
    """An `httpTrigger`; without methods it takes any."""

    route: str
    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function of the app: what to call, with which parameter, and when."""

    name: str
    handler: Callable[..., Any]
    parameter: str
    wants_context: bool
    trigger: ServiceBusTrigger | TimerTrigger | HttpTrigger

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return inspect.iscoroutinefunction(self.handler)


class Settings:
    """The app settings."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def resolve(self, text: str) -> str:
        """Replace each `%NAME%` by the setting."""
        return _PLACEHOLDER.sub(lambda match: self._required(match[1]), text)

    def connection(self, name: str) -> Connection:
        """Find a connection as the real host does: `AzureWebJobsNAME` before `NAME`."""
        for prefix in (f"AzureWebJobs{name}", name):
            if value := self._values.get(prefix):
                return Connection(connection_string=_connection_string(prefix, value))
            if namespace := self._values.get(f"{prefix}__fullyQualifiedNamespace"):
                client_id = self._values.get(f"{prefix}__clientId")
                return Connection(namespace=namespace, client_id=client_id)
        raise UserError(
            f"The app setting {name} is missing: set it to a Service Bus connection string, "
            f"or set {name}__fullyQualifiedNamespace."
        )

    def _required(self, name: str) -> str:
        value = self._values.get(name)
        if not value:
            raise UserError(f"The app setting {name} is missing: a binding names it as %{name}%.")
        return value


def _connection_string(name: str, value: str) -> str:
    try:
        parse_connection_string(value)
    except ValueError:
        raise UserError(f"The app setting {name} is no Service Bus connection string.") from None
    return value


def load_app(folder: Path, settings: Settings) -> list[Function]:
    """Import the app and read its functions; raises `UserError` for what cannot be served."""
    return [
        read_function(
            definition.get_function_name() or "",
            definition.get_user_function(),
            json.loads(definition.get_function_json())["bindings"],
            settings,
        )
        for definition in _function_app(_import(folder)).get_functions()
    ]


def read_function(
    name: str, handler: Callable[..., Any], bindings: list[dict[str, Any]], settings: Settings
) -> Function:
    """Read one function's bindings, as its JSON has them."""
    # What an HTTP function returns is a binding, too.
    bindings = [binding for binding in bindings if binding["type"] != "http"]
    if len(bindings) != 1:
        types = ", ".join(binding["type"] for binding in bindings) or "none"
        raise UserError(
            f"Function {name}: this host serves a single trigger only (found: {types})."
        )
    binding = bindings[0]
    parameters = inspect.signature(handler).parameters
    _check_handler(name, handler, binding, parameters)
    return Function(
        name=name,
        handler=handler,
        parameter=binding["name"],
        wants_context="context" in parameters and binding["name"] != "context",
        trigger=_read_trigger(name, binding, settings),
    )


def _read_trigger(
    name: str, binding: dict[str, Any], settings: Settings
) -> ServiceBusTrigger | TimerTrigger | HttpTrigger:
    match binding["type"]:
        case "serviceBusTrigger":
            return _service_bus(name, binding, settings)
        case "timerTrigger":
            return _timer(name, binding, settings)
        case "httpTrigger":
            methods = tuple(str(method).upper() for method in binding.get("methods") or ())
            return HttpTrigger(route=binding.get("route") or name, methods=methods)
        case other:
            raise UserError(f"Function {name}: this host does not serve the trigger {other}.")


def _service_bus(name: str, binding: dict[str, Any], settings: Settings) -> ServiceBusTrigger:
    if "queueName" not in binding:
        raise UserError(f"Function {name}: this host serves queues, not topics.")
    if binding.get("isSessionsEnabled"):
        raise UserError(f"Function {name}: this host does not serve queues with sessions.")
    return ServiceBusTrigger(
        queue=settings.resolve(binding["queueName"]),
        connection=settings.connection(binding.get("connection") or _DEFAULT_CONNECTION),
        many=_is(binding, "cardinality", "many"),
        binary=_is(binding, "dataType", "binary"),
        auto_complete=binding.get("autoCompleteMessages"),
    )


def _timer(name: str, binding: dict[str, Any], settings: Settings) -> TimerTrigger:
    try:
        schedule = Schedule(settings.resolve(binding["schedule"]))
    except ValueError as error:
        raise UserError(f"Function {name}: {error}.") from None
    return TimerTrigger(
        schedule=schedule,
        run_on_startup=bool(binding.get("runOnStartup")),
        use_monitor=binding.get("useMonitor") is not False,
    )


def _is(binding: dict[str, Any], key: str, value: str) -> bool:
    """Compare an enumeration, which the JSON spells in upper case."""
    return str(binding.get(key, "")).lower() == value


def _check_handler(
    name: str,
    handler: Callable[..., Any],
    binding: dict[str, Any],
    parameters: Mapping[str, inspect.Parameter],
) -> None:
    """Refuse what the worker refuses: other parameters, or a parameter of another type."""
    parameter = binding["name"]
    if parameter not in parameters or set(parameters) - {parameter, "context"}:
        raise UserError(f"Function {name} must have the parameter {parameter}, and no others.")
    annotation = typing.get_type_hints(handler).get(parameter)
    converter = converter_of(binding["type"])
    if annotation is None or converter is None:
        return
    if not converter.check_input_type_annotation(annotation):
        raise UserError(
            f"Function {name}: azure-functions does not accept {annotation} for {parameter}. "
            "A batch is typing.List[func.ServiceBusMessage]: the worker does not know list[…]."
        )


def converter_of(binding_type: str) -> Any:
    """The converter that azure-functions registers for a binding, or `None`."""
    registry: Any = func.get_binding_registry()  # type: ignore[no-untyped-call]
    return registry.get(binding_type)


def _import(folder: Path) -> ModuleType:
    """Import `function_app.py` with its folder on the path, as the worker does."""
    path = folder / f"{_MODULE}.py"
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path} is missing: this is no function app of the v2 model.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _function_app(module: ModuleType) -> Any:
    found = {id(item): item for item in vars(module).values() if _is_app(item)}
    if len(found) != 1:
        raise UserError(f"{module.__file__} has {len(found)} function apps at top level, not one.")
    return next(iter(found.values()))


def _is_app(item: object) -> bool:
    return isinstance(item, func.FunctionRegister)
