"""Reading a file in blocks of whole lines, in memory bounded by its longest line."""

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from sessionferry.agent.content import Unreadable

CHUNK_BYTES = 1024 * 1024
MAX_LINE_BYTES = 120 * 1024 * 1024
"""Longest line that is read; what an inbox object may unpack to is 128 MiB."""


class Blocks:
    """Iterates over blocks of terminated lines; afterwards `rest` holds the unterminated end.

    A line of several chunks is a block by itself, and is never in memory twice.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.rest = b""

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        while chunk := self._file.read(CHUNK_BYTES):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield pending + chunk[:end]
                pending = chunk[end:]
                continue
            line = self._long_line(len(pending) + len(chunk))
            if not line.endswith(b"\n"):
                self.rest = line
                return
            yield line
            pending, line = b"", b""
        self.rest = pending

    def _long_line(self, begun: int) -> bytes:
        """Read a line of which so many bytes were read: find its end first, then read it whole."""
        file = self._file
        start, size = file.tell() - begun, begun
        while chunk := file.read(CHUNK_BYTES):
            end = chunk.find(b"\n") + 1
            size += end or len(chunk)
            if size > MAX_LINE_BYTES:
                raise LineTooLong(f"A line has over {MAX_LINE_BYTES} bytes.")
            if end:
                break
        file.seek(start)
        return file.read(size)


class LineTooLong(Unreadable):
    """A line passes what can be carried; the file cannot be shipped beyond it."""


def prefix_digest(file: BinaryIO, length: int) -> "hashlib._Hash | None":
    """Hash the first `length` bytes and stay there; None when the file is shorter."""
    start = file.tell()
    if file.seek(0, os.SEEK_END) < length:
        return None
    file.seek(start)
    digest = hashlib.sha256()
    left = length
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            return None
        digest.update(chunk)
        left -= len(chunk)
    return digest
