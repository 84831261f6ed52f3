"""A server that the unmodified azure-cosmos client takes for Cosmos DB, made for tests."""

from tests.support.cosmos.auth import EMULATOR_KEY, Authority, TokenIssuer
from tests.support.cosmos.errors import ServiceError
from tests.support.cosmos.faults import Faults
from tests.support.cosmos.running import CosmosProcess, RunningCosmos
from tests.support.cosmos.server import CosmosServer

__all__ = [
    "EMULATOR_KEY",
    "Authority",
    "CosmosProcess",
    "CosmosServer",
    "Faults",
    "RunningCosmos",
    "ServiceError",
    "TokenIssuer",
]
