"""sessionferry carries AI-agent sessions from a fleet into a store, and counts every line.

The public names live in their modules: `sessionferry.batch` (wire format), `sessionferry.publisher`
(the client library), `sessionferry.identity`, `sessionferry.ingest`, `sessionferry.store`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
