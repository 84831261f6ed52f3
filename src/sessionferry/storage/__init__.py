"""The API of amplifier-session-storage over sessionferry's stores: change one import.

    from sessionferry.storage import CosmosFileConfig, CosmosFileStorage

Methods, arguments and results are those that the library documents. Lines go through the same
documents, truncation and heads as those of a fleet; a line that is synced again replaces what is
stored. Counts, gaps and sync status are one point read.
docs/guides/amplifier-session-storage.md lists what differs.
"""

from sessionferry.host import IdentityContext
from sessionferry.storage.config import CosmosFileConfig
from sessionferry.storage.files import CosmosFileStorage, SyncGaps, SyncStats

__all__ = ["CosmosFileConfig", "CosmosFileStorage", "IdentityContext", "SyncGaps", "SyncStats"]
