"""What is in a session file, also when its tool has compressed it.

Codex may compress the threads that were idle for a week: `rollout-*.jsonl` becomes
`rollout-*.jsonl.zst`, and is unpacked again when the thread goes on. To the pipeline both are the
same file: what counts are the bytes inside.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from sessionferry.agent.opening import open_shared

PACKED = ".zst"
"""How the name of a compressed file ends."""
MAX_WINDOW_BYTES = 128 * 1024 * 1024
"""Memory that unpacking may take; `zstd` itself asks for a flag above it."""
MAX_UNPACKED_BYTES = 64 * 1024**3
"""Most that a compressed file may hold: a session has megabytes, what holds more is a trap."""
_INPUT_BYTES = 1024
"""Read at once of a compressed file. A block of 4 bytes may hold 128 KiB, so this is 32 MiB."""


class Unreadable(Exception):
    """A file is not what it must be, and will not be by itself; the text says why."""


def is_packed(path: Path) -> bool:
    """Whether this file's content is compressed."""
    return path.suffix == PACKED


def unpacked_size(file: BinaryIO) -> int:
    """Count the bytes inside a compressed file; raises `Unreadable`."""
    return sum(map(len, _unpack(file)))


def content_size(path: Path) -> int:
    """Return how many bytes are in a file; raises `OSError` or `Unreadable`."""
    if not is_packed(path):
        return path.stat().st_size
    with open_shared(path) as file:
        return unpacked_size(file)


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """Unpack a compressed file to the disk, for as long as it is needed.

    It goes to the folder for temporary files (`TMPDIR`), under no name. Raises `Unreadable`.
    """
    with tempfile.TemporaryFile() as content:
        for piece in _unpack(file):
            content.write(piece)
        content.seek(0)
        # On Windows it is a wrapper around one.
        yield cast("BinaryIO", content)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open what is in a file; raises `OSError` or `Unreadable`."""
    with open_shared(path) as file:
        if is_packed(path):
            with unpacked(file) as content:
                yield content
        else:
            yield file


def beginning(path: Path, most: int) -> bytes:
    """Read so many bytes at most from the start of what is in a file."""
    with open_shared(path) as file:
        if not is_packed(path):
            return file.read(most)
        start = b""
        for piece in _unpack(file):
            start += piece[:most]
            if len(start) >= most:
                break
        return start[:most]


def _unpack(file: BinaryIO) -> Iterator[bytes]:
    """Unpack frame by frame, in pieces of bounded size."""
    file.seek(0)
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame, total = unpacker.decompressobj(), 0
    try:
        while packed := file.read(_INPUT_BYTES):
            while packed:
                if frame.eof:
                    frame = unpacker.decompressobj()
                piece = frame.decompress(packed)
                packed = frame.unused_data if frame.eof else b""
                total += len(piece)
                if total > MAX_UNPACKED_BYTES:
                    raise Unreadable(f"It unpacks to over {MAX_UNPACKED_BYTES} bytes.")
                yield piece
    except zstandard.ZstdError as error:
        raise Unreadable(f"It is not valid zstd: {error}.") from None
    if not frame.eof:
        raise Unreadable("It is not valid zstd: it ends in the middle.")
