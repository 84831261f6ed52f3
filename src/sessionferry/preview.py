"""What a message holds, for people: its header and first lines, or why it is no batch.

Whatever was sent is hostile: nothing of it reaches a terminal but what can be printed.
"""

from typing import Any, NamedTuple

from sessionferry.batch import Header, decode, lines_of
from sessionferry.errors import FerryError, PermanentError

PREVIEW_BYTES = 256
"""Bytes that are shown of a line, or of a body that is no batch."""
PREVIEW_LINES = 5


class Contents(NamedTuple):
    """A message's body, decoded as far as it goes. Without a header there is an error."""

    header: Header | None
    error: FerryError | None
    lines: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The batch's kind, or that it is none."""
        return visible(self.header.kind) if self.header else "undecodable"

    @property
    def session(self) -> str:
        """The session's partition key, or the host's id for a heartbeat."""
        if self.header is None:
            return ""
        if self.header.session_id is None:
            return visible(self.header.host_id)
        return visible(self.header.key.partition_key)

    def to_document(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "kind": self.kind,
            "header": self.header.model_dump(exclude_none=True) if self.header else None,
            "error": self.error.code if self.error else None,
            "detail": visible(str(self.error)) if self.error else "",
            "preview": list(self.lines),
        }


def read_contents(body: bytes, encoding: str | None = None) -> Contents:
    """Decode a message's body; what cannot be decoded shows its first bytes."""
    try:
        batch = decode(body, encoding)
    except PermanentError as error:
        return Contents(None, error, (visible(body[:PREVIEW_BYTES]),) if body else ())
    return Contents(batch.header, None, first_lines(batch.payload))


def first_lines(payload: bytes) -> tuple[str, ...]:
    """Return the beginnings of the first lines."""
    shown = []
    for _, line in lines_of(payload):
        shown.append(visible(line[:PREVIEW_BYTES]) + ("..." if len(line) > PREVIEW_BYTES else ""))
        if len(shown) == PREVIEW_LINES:
            break
    return tuple(shown)


def visible(text: str | bytes) -> str:
    r"""Write text so that a terminal obeys none of it: `\x1b` for an escape character."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )
