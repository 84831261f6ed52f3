"""sessionferry carries AI-agent sessions from a fleet into a store, and counts every line.

The public names live in their modules: `sessionferry.batch` (wire format), `sessionferry.publisher`
(the client library), `sessionferry.identity`, `sessionferry.ingest`, `sessionferry.store`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sessionferry")
except (
    PackageNotFoundError
):  # run from a source folder that was never installed, as in a Function App
    __version__ = "0.1.0"

__all__ = ["__version__"]
