"""An embedded queue broker that unmodified azure-servicebus clients talk to.

Queues only: no topics, no sessions, no transactions, no TLS. Messages are kept in one SQLite file.
"""

from sessionferry.local.broker.cbs import SasRule
from sessionferry.local.broker.definitions import QueueDefinition, load_definitions
from sessionferry.local.broker.server import Broker

__all__ = ["Broker", "QueueDefinition", "SasRule", "load_definitions"]
