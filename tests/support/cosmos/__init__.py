"""A server that the unmodified azure-cosmos client, sync and async, takes for Cosmos DB.

It speaks the REST interface of the NoSQL API: accounts, databases and containers, items with ETags
and conditions, patches, transactional batches, parameterised queries with plans for several
physical partitions, continuation tokens, signatures and bearer tokens, the service's limits,
request units by a stated model (`cost`), and faults on demand (`faults`).

It is made to test clients against, and is not Cosmos DB:

- One process, one copy, one region: no replication, no consistency level but strong, no failover.
  Session tokens are sent but never looked at. Requests are done one after the other.
- Request units are a model; the service alone knows what it charges.
- Statuses and sub-statuses are meant to equal the service's, sentences to resemble them. What a
  refused write costs, and how a throttled operation inside a batch looks, is assumed.
- Queries go over the items; no index is built. The indexing policy decides what a query costs and
  which ORDER BY is allowed. There are no user defined functions and no full text, vector or spatial
  search; GROUP BY works within one partition key, as the Python client can merge no more.
- Missing: change feed, stored procedures, triggers, unique keys, conflict feeds, users and
  permissions, resource tokens, changing the throughput, partition keys of version 1. Requests for
  them are refused, never half done.
- Numbers are Python's: integers beyond 2⁵³ stay exact here and do not in the service.
"""

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
