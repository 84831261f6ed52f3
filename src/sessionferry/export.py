"""Giving a session back as the files it came from, byte for byte.

A stream is put together from its archived batches by offset. Where batches that claim the same
bytes disagree (a conflict), or lines came without their place in a file, the stored documents
decide, line by line.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from sessionferry.archive import Archive, stream_folder, unplaced_folder
from sessionferry.batch import Batch, Header, Limits, decode, lines_of
from sessionferry.errors import ArchiveMismatch, BadBatch
from sessionferry.heads import Head
from sessionferry.identity import STREAMS, Stream
from sessionferry.sharing import patiently
from sessionferry.store import Store
from sessionferry.store.pages import all_lines

# Nothing that leads elsewhere, hides, or is refused by some file system.
_NAME = re.compile(r"""(?![. ])[^/\\:*?"<>|\x00-\x1f\x7f]{1,200}(?<![. ])""")
FILE_NAMES: dict[Stream, str] = {"events": "events.jsonl", "transcript": "transcript.jsonl"}


class Piece(NamedTuple):
    """One archived batch: which bytes of the file it holds, and where."""

    offset: int
    length: int
    key: str

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


class Exported(NamedTuple):
    """A file that was written: its path, size and SHA-256."""

    path: Path
    size: int
    sha256: str


async def export_session(
    store: Store, archive: Archive, head: Head, folder: Path
) -> list[Exported]:
    """Write a session's files as they were, under their own names.

    A file whose sender did not name it is `metadata.json`, `transcript.jsonl` or `events.jsonl`.
    Raises `ArchiveMismatch` when the archive lacks bytes that the head counts.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    written = []
    taken: set[str] = set()
    if head.metadata is not None:
        batch = await read_batch(archive, head.metadata.archive_key)
        name = _own_name(batch.header, "metadata.json", taken)
        written.append(await _write(folder / name, _once(batch.payload)))
    for stream in STREAMS:
        if stream in head.streams:
            first = await _first_header(archive, head, stream)
            name = _own_name(first, FILE_NAMES[stream], taken)
            content = file_bytes(store, archive, head, stream)
            written.append(await _write(folder / name, content))
    return written


async def file_bytes(
    store: Store, archive: Archive, head: Head, stream: Stream
) -> AsyncIterator[bytes]:
    """Yield a stream's bytes in order, one batch in memory at a time."""
    state = head.stream(stream)
    if state.conflicts or state.unplaced:
        source = _by_documents(store, archive, head, stream)
    else:
        source = _by_offset(archive, head, stream)
    async for block in source:
        yield block
    if state.tail is not None:
        yield (await read_batch(archive, state.tail.archive_key)).payload


async def read_batch(archive: Archive, key: str) -> Batch:
    """Read and decode an archived batch; raises `ArchiveMismatch` when it is none."""
    try:
        return decode(await archive.get(key), limits=Limits(), claimed=True)
    except BadBatch as error:
        raise ArchiveMismatch(f"The archived object {key} is no batch: {error}") from None


async def archived_pieces(archive: Archive, head: Head, stream: Stream) -> list[Piece]:
    """List the batches of the newest generation, by offset, longest first."""
    folder = stream_folder(head.key, stream, head.stream(stream).generation)
    found = []
    async for item in archive.objects(folder):
        offset, length, _ = item.key.rpartition("/")[2].split("-", 2)
        found.append(Piece(int(offset), int(length), item.key))
    return sorted(found, key=lambda piece: (piece.offset, -piece.length, piece.key))


async def unplaced_keys(archive: Archive, head: Head, stream: Stream) -> list[str]:
    """List the batches that came without their place in a file, in order of their sequence."""
    folder = unplaced_folder(head.key, stream, head.stream(stream).generation)
    return sorted([item.key async for item in archive.objects(folder)])


async def _by_offset(archive: Archive, head: Head, stream: Stream) -> AsyncIterator[bytes]:
    position = 0
    for piece in await archived_pieces(archive, head, stream):
        if piece.end <= position:
            continue
        if piece.offset > position:
            raise _missing(stream, position, piece.offset)
        payload = (await read_batch(archive, piece.key)).payload
        yield payload[position - piece.offset :]
        position = piece.end
    expected = head.stream(stream).extent.last + 1
    if position < expected:
        raise _missing(stream, position, expected)


async def _by_documents(
    store: Store, archive: Archive, head: Head, stream: Stream
) -> AsyncIterator[bytes]:
    """Yield each sequence's stored line, from whichever batch holds it."""
    state = head.stream(stream)
    places = [piece.key for piece in await archived_pieces(archive, head, stream)]
    places += await unplaced_keys(archive, head, stream)
    stored = {
        document["sequence"]: document["line_sha256"]
        async for document in all_lines(store, head.key, stream, state.generation)
    }
    sequence, before = 0, -1
    expected = (state.stored | state.quarantined).last + 1
    # The disagreeing batches need not be in the order of their lines: pass until all are found.
    while before < sequence < expected:
        before = sequence
        for key in places:
            batch = await read_batch(archive, key)
            first = batch.header.start_sequence
            for number, (_, line) in enumerate(lines_of(batch.payload), first):
                if number != sequence:
                    continue
                if number in state.stored and stored.get(number) != _sha256(line):
                    continue
                yield line + b"\n"
                sequence += 1
    if sequence < expected:
        raise ArchiveMismatch(f"Line {sequence} of {stream} is in no archived batch.")


async def _first_header(archive: Archive, head: Head, stream: Stream) -> Header | None:
    pieces = await archived_pieces(archive, head, stream)
    tail = head.stream(stream).tail
    key = pieces[0].key if pieces else tail.archive_key if tail else None
    return (await read_batch(archive, key)).header if key else None


def _own_name(header: Header | None, usual: str, taken: set[str]) -> str:
    """Return the name of the file that was sent, if it is a harmless one and not used twice.

    It came over the wire and is not trusted.
    """
    given = header.file_name if header else None
    name = given if given and _NAME.fullmatch(given) and given not in taken else usual
    taken.add(name)
    return name


async def _write(path: Path, blocks: AsyncIterator[bytes]) -> Exported:
    digest = hashlib.sha256()
    size = 0
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            async for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
        patiently(lambda: unfinished.replace(path))
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(path, size, digest.hexdigest())


async def _once(payload: bytes) -> AsyncIterator[bytes]:
    yield payload


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _missing(stream: Stream, first: int, end: int) -> ArchiveMismatch:
    return ArchiveMismatch(f"Bytes {first} to {end - 1} of {stream} are not in the archive.")
