"""Statements: how many lines of a stream a host says the queue took.

A statement never becomes untrue: what the queue took, it took. So it does not matter in which order
or how often statements arrive, and each one can be judged by itself.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from sessionferry.batch import MAX_SEQUENCE
from sessionferry.errors import BadBatch
from sessionferry.identity import (
    MAX_ESCAPED_BYTES,
    MAX_ESCAPED_CHARS,
    SEPARATOR,
    STREAMS,
    Stream,
    escape,
)

_HIGHEST_GENERATION = 2**53 - 1
_UNSAFE = re.compile(r"[/\\?#\x00-\x1f\x7f]")


class Statement(NamedTuple):
    """What a host says: of this stream, in this generation, the queue took the first `lines`."""

    partition_key: str
    stream: Stream
    generation: int
    lines: int

    @property
    def reach(self) -> tuple[int, int]:
        """What decides which of two statements about one stream says more."""
        return (self.generation, self.lines)


Sent = dict[str, dict[str, list[int]]]
"""Statements as JSON has them: `[generation, lines]` by session and stream."""


def render(statements: Iterable[Statement]) -> Sent:
    """Write statements as a document has them, by partition key."""
    sent: Sent = {}
    for statement in statements:
        of_session = sent.setdefault(statement.partition_key, {})
        of_session[statement.stream] = [statement.generation, statement.lines]
    return sent


def parse(sent: Sent) -> list[Statement]:
    """Read what `render` wrote."""
    return [
        Statement(partition, stream, *of_session[stream])
        for partition, of_session in sent.items()
        for stream in STREAMS
        if stream in of_session
    ]


def own_prefix(user_id: str) -> str:
    """Return what the partition keys of a user's sessions begin with; heartbeats leave it out."""
    return escape(user_id) + SEPARATOR


def from_heartbeat(user_id: str, sent: object) -> list[Statement]:
    """Read the statements of a heartbeat, of which only the user is known; raises `BadBatch`."""
    if not isinstance(sent, dict):
        raise BadBatch("What a heartbeat says was sent is a JSON object.")
    prefix = own_prefix(user_id)
    return [
        Statement(prefix + _checked_name(name), *_checked(stream, said))
        for name, of_session in sent.items()
        for stream, said in _items(of_session)
    ]


def _items(of_session: object) -> Iterable[tuple[str, object]]:
    if not isinstance(of_session, dict):
        raise BadBatch("What a heartbeat says of a session is a JSON object.")
    return of_session.items()


def _checked_name(name: str) -> str:
    """Check the rest of a partition key: project and session, as `identity.escape` leaves them."""
    parts = name.split(SEPARATOR)
    fits = all(
        0 < len(part) <= MAX_ESCAPED_CHARS and len(part.encode()) <= MAX_ESCAPED_BYTES
        for part in parts
    )
    if len(parts) != 2 or not fits or _UNSAFE.search(name):
        raise BadBatch("A heartbeat names a session as its partition key does.")
    return name


def _checked(stream: str, said: object) -> tuple[Stream, int, int]:
    bounds = (_HIGHEST_GENERATION, MAX_SEQUENCE)
    if stream not in STREAMS or not isinstance(said, list) or len(said) != len(bounds):
        raise BadBatch("A heartbeat says [generation, lines] of events and transcript.")
    for number, most in zip(said, bounds, strict=True):
        if type(number) is not int or not 0 <= number <= most:
            raise BadBatch("A heartbeat has a number that is out of bounds.")
    return stream, said[0], said[1]
