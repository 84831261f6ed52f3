"""Reading a file in blocks of whole lines, in memory bounded by its longest line."""

import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 1024 * 1024
MAX_LINE_BYTES = 120 * 1024 * 1024
"""Longest line that is read; what an inbox object may unpack to is 128 MiB."""


class Blocks:
    """Iterates over blocks of terminated lines; afterwards `rest` holds the unterminated end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.rest = b""

    def __iter__(self) -> Iterator[bytes]:
        pending: list[bytes] = []
        size = 0
        while chunk := self._file.read(CHUNK_BYTES):
            end = chunk.rfind(b"\n") + 1
            if not end:
                pending.append(chunk)
                size += len(chunk)
                if size > MAX_LINE_BYTES:
                    raise LineTooLong(f"A line has over {MAX_LINE_BYTES} bytes.")
                continue
            block = b"".join((*pending, chunk[:end]))
            pending = [chunk[end:]] if end < len(chunk) else []
            size = len(chunk) - end
            yield block
        self.rest = b"".join(pending)


class LineTooLong(Exception):
    """A line passes what can be carried; the file cannot be shipped beyond it."""


def prefix_digest(file: BinaryIO, length: int) -> "hashlib._Hash | None":
    """Hash the first `length` bytes and stay there; None when the file is shorter."""
    if os.fstat(file.fileno()).st_size < length:
        return None
    digest = hashlib.sha256()
    left = length
    while left:
        chunk = file.read(min(CHUNK_BYTES, left))
        if not chunk:
            return None
        digest.update(chunk)
        left -= len(chunk)
    return digest
