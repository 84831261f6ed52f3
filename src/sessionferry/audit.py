"""Records of what a person, or a timer, did to messages that the pipeline had set aside.

A record is two objects in the archive, below `_audit/`: `begun.json` before anything happens, and
`ended.json` with the counts. One without an end was interrupted. Objects of the archive are
written once, so that a record is never changed; it outlives the machine it was made on.
"""

import getpass
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson

from sessionferry.archive import Archive
from sessionferry.batch import utc_now
from sessionferry.errors import FerryError
from sessionferry.identity import AUDIT


class Record:
    """One action's record; `counts` is what its end says."""

    def __init__(self, action: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.folder = f"{AUDIT}/{stamp}-{action.replace(' ', '-')}-{secrets.token_hex(4)}"
        self.counts: dict[str, Any] = {}


@asynccontextmanager
async def recorded(archive: Archive, action: str, **what: Any) -> AsyncIterator[Record]:
    """Record an action around its work; `what` says on what it acts, in JSON's values.

    Raises what the archive raises before the work begins: nothing is done without a record.
    """
    record = Record(action)
    begun = {"action": action, "who": who(), "begun_at": utc_now(), "what": what}
    await archive.put(f"{record.folder}/begun.json", _json(begun))
    outcome = "done"
    try:
        yield record
    except BaseException as error:
        outcome = error.code if isinstance(error, FerryError) else type(error).__name__
        raise
    finally:
        ended = {**begun, "ended_at": utc_now(), "outcome": outcome, "counts": record.counts}
        await archive.put(f"{record.folder}/ended.json", _json(ended))


def who() -> str:
    """Name the login and the machine of this process."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        login = "unknown"
    return f"{login}@{socket.gethostname()}"


def _json(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)
