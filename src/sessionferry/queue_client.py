"""The queue's client: who we are there, and the way to it.

A SAS file, a connection string, or an Entra identity; over AMQP, or over WebSocket on port 443 and
through a proxy where nothing else passes.
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureSasCredential
from azure.servicebus import TransportType
from azure.servicebus.aio import ServiceBusClient

from sessionferry.errors import UserError
from sessionferry.settings import Endpoints

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential

MAX_SAS_FILE_BYTES = 64 * 1024


def open_client(
    endpoints: Endpoints,
) -> "tuple[ServiceBusClient, DefaultAzureCredential | None]":
    """Open a client, and the Entra identity to be closed after it; raises `UserError`."""
    options = _options(endpoints)
    if endpoints.sas_file is not None:
        return _with_sas(endpoints, _read(endpoints), options), None
    if endpoints.connection is not None:
        connection = endpoints.connection.get_secret_value()
        return _connected(connection, "ServiceBusConnection", options), None
    if not endpoints.namespace:
        raise UserError("No queue is named: set ServiceBusConnection, or start `ferry local`.")
    from azure.identity.aio import DefaultAzureCredential

    credential = DefaultAzureCredential()
    return ServiceBusClient(endpoints.namespace, credential, **options), credential


def _with_sas(endpoints: Endpoints, text: str, options: dict[str, Any]) -> ServiceBusClient:
    if text.startswith("Endpoint="):
        return _connected(text, "FERRY_SAS_FILE", options)
    if not text.startswith("SharedAccessSignature "):
        raise UserError(f"{endpoints.sas_file} holds neither a SAS token nor a connection string.")
    if not endpoints.namespace:
        raise UserError(
            "A SAS token needs the namespace: set ServiceBusConnection__fullyQualifiedNamespace."
        )
    return ServiceBusClient(endpoints.namespace, AzureSasCredential(text), **options)


def _read(endpoints: Endpoints) -> str:
    """Read the file each time a link is opened: tokens expire, and are replaced in place."""
    path = endpoints.sas_file
    if path is None:
        raise UserError("No SAS file is named: set FERRY_SAS_FILE.")
    try:
        with path.open("rb") as file:
            return file.read(MAX_SAS_FILE_BYTES).decode().strip()
    except OSError as error:
        raise UserError(f"The SAS file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The SAS file {path} is not text.") from None


def _connected(connection: str, name: str, options: dict[str, Any]) -> ServiceBusClient:
    try:
        return ServiceBusClient.from_connection_string(connection, **options)
    except ValueError:
        # The SDK's own sentence may quote the string, and with it the key.
        raise UserError(f"{name} is not a connection string.") from None


def _options(endpoints: Endpoints) -> dict[str, Any]:
    options: dict[str, Any] = {"retry_total": 1}
    # A proxy carries WebSocket only.
    if endpoints.websocket or endpoints.proxy:
        options["transport_type"] = TransportType.AmqpOverWebsocket
    if endpoints.proxy:
        proxy = urlsplit(endpoints.proxy)
        options["http_proxy"] = {
            # The asynchronous client makes a URL of it, which needs its scheme.
            "proxy_hostname": f"{proxy.scheme}://{proxy.hostname}",
            "proxy_port": proxy.port,
            "username": proxy.username,
            "password": proxy.password,
        }
    return options
