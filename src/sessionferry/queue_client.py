"""The azure-servicebus client of the queue that the endpoints name."""

from typing import TYPE_CHECKING

from azure.servicebus.aio import ServiceBusClient

from sessionferry.errors import UserError
from sessionferry.settings import Endpoints

if TYPE_CHECKING:
    from azure.identity.aio import DefaultAzureCredential


def open_client(
    endpoints: Endpoints,
) -> tuple[ServiceBusClient, "DefaultAzureCredential | None"]:
    """Return a client, and the credential that must be closed after it; nothing is connected yet.

    Raises `UserError` when no queue is named.
    """
    if endpoints.connection is not None:
        connection = endpoints.connection.get_secret_value()
        try:
            return ServiceBusClient.from_connection_string(connection, retry_total=1), None
        except ValueError:
            # The SDK's own sentence may quote the string, and with it the key.
            raise UserError("ServiceBusConnection is not a connection string.") from None
    if not endpoints.namespace:
        raise UserError("No queue is named: set ServiceBusConnection, or start `ferry local`.")
    from azure.identity.aio import DefaultAzureCredential

    credential = DefaultAzureCredential()
    return ServiceBusClient(endpoints.namespace, credential, retry_total=1), credential
