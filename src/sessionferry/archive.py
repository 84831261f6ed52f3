"""The archive of batches' bytes, and the inbox of bytes too large for a message.

Both are object stores by URL (`file:///…`, `memory://`, `az://…`, `s3://…`, `gs://…`), reached
through obstore. Keys are computed from a session, a stream and a position, never read from a
message. An archived object is a whole encoded batch, header included: it describes itself.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import HTTPStore, LocalStore, MemoryStore, ObjectStore, from_url

from sessionferry import truncation
from sessionferry.batch import Header, Limits, decode
from sessionferry.errors import (
    ArchiveMismatch,
    BadBatch,
    PermanentError,
    TransientError,
    UserError,
    refused,
)
from sessionferry.identity import UNATTRIBUTED, SessionKey, Stream, session_folder

_REMEMBERED_FOLDERS = 10_000
_PROBE = "_ready"


class ArchivedObject(NamedTuple):
    """One object: its key, its size in bytes, and when it was written."""

    key: str
    size: int
    written_at: datetime


class Archive:
    """Objects by key. An object is written once; writing it again changes nothing."""

    def __init__(self, store: ObjectStore, root: Path | None = None) -> None:
        self._store = store
        self._root = root
        self._durable: set[Path] = set()

    @classmethod
    def open(cls, url: str) -> "Archive":
        """Open by URL; a folder named by `file://` is made when it is absent.

        Raises `UserError` for a URL that names no object store, `TransientError` for a folder that
        cannot be made now.
        """
        parts = urlsplit(url)
        if parts.scheme == "memory":
            return cls(MemoryStore())
        if parts.scheme == "file":
            if parts.netloc:
                raise UserError(f"{url} names no folder; write file:///folder, file:///C:/folder.")
            root = Path(url2pathname(parts.path))
            try:
                root.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise refused(f"The folder {root} cannot be made", error) from None
            return cls(LocalStore(root), root)
        try:
            store = from_url(url)
        except (BaseError, ValueError) as error:
            raise UserError(f"The URL {parts.scheme}://… is not usable: {error}") from None
        if isinstance(store, HTTPStore):
            raise UserError(
                f"{parts.scheme}://{parts.hostname}… is no object store that is known here; write "
                "https://account.blob.core.windows.net/container, az://…, s3://…, gs://… or file://…."
            )
        return cls(store)

    async def put(self, key: str, data: bytes) -> None:
        """Write an object unless it exists; on disk when this returns."""
        try:
            await obstore.put_async(self._store, key, data, mode="create")
        except AlreadyExistsError:
            # Whoever wrote it may have ended before it was on disk.
            pass
        except (BaseError, OSError) as error:
            raise _not_taken(key, error) from error
        if self._root is not None:
            try:
                await asyncio.to_thread(self._sync_to_disk, self._root, key)
            except OSError as error:
                raise _not_taken(key, error) from error

    async def get(self, key: str) -> bytes:
        """Read an object; raises `ArchiveMismatch` when there is none."""
        try:
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())
        except FileNotFoundError:
            raise ArchiveMismatch(f"There is no archived object {key}.") from None
        except (BaseError, OSError) as error:
            raise TransientError(f"The archive did not give {key}: {_brief(error)}") from error

    async def check(self) -> None:
        """Prove that the object store answers; raises `TransientError` if not."""
        try:
            await obstore.head_async(self._store, _PROBE)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise TransientError(f"The archive does not answer: {_brief(error)}") from error

    async def objects(self, folder: str) -> AsyncIterator[ArchivedObject]:
        """Yield the objects below a folder (all of them below ""), in no particular order."""
        try:
            async for chunk in self._store.list(f"{folder}/" if folder else None):
                for found in chunk:
                    yield ArchivedObject(found["path"], found["size"], found["last_modified"])
        except (BaseError, OSError) as error:
            raise TransientError(f"The archive did not list {folder}: {_brief(error)}") from error

    async def delete(self, keys: list[str]) -> None:
        """Delete objects; succeeds where they are absent."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise TransientError(f"The archive kept {key}: {_brief(error)}") from error

    async def delete_folder(self, folder: str) -> None:
        """Delete everything below a folder."""
        await self.delete([found.key async for found in self.objects(folder)])

    def _sync_to_disk(self, root: Path, key: str) -> None:
        """Sync an object, its folder, and every folder above that may be new."""
        path = root / key
        _sync(path)
        _sync(path.parent)
        if path.parent in self._durable:
            return
        for folder in path.parent.parents:
            _sync(folder)
            if folder == root:
                break
        if len(self._durable) >= _REMEMBERED_FOLDERS:
            self._durable.clear()
        self._durable.add(path.parent)


class NoArchive(Archive):
    """Stands for no archive: what is put is gone, and nothing is ever there."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())

    async def put(self, key: str, data: bytes) -> None:
        """Keep nothing."""


def is_folder(url: str) -> bool:
    """Whether a URL names a folder, which no lifecycle rule of a cloud clears."""
    return urlsplit(url).scheme == "file"


def batch_key(header: Header, batch_id: str) -> str:
    """Return where a decoded batch is archived."""
    folder = session_folder(header.key)
    name = f"{header.offset:015d}-{header.length}-{batch_id[:32]}"
    if header.kind == "metadata":
        return f"{folder}/metadata/{header.revision:020d}-{batch_id[:32]}"
    if header.kind == "tail":
        return f"{folder}/{header.stream}/{header.generation:016d}/tails/{name}"
    return f"{stream_folder(header.key, header.stream, header.generation)}/{name}"


def stream_folder(key: SessionKey, stream: Stream | None, generation: int) -> str:
    """Return the folder of one stream's batches of one generation."""
    return f"{session_folder(key)}/{stream}/{generation:016d}/lines"


def unplaced_folder(key: SessionKey, stream: Stream, generation: int) -> str:
    """Return the folder of one stream's lines that came without their place in a file."""
    return f"{session_folder(key)}/{stream}/{generation:016d}/unplaced"


def unplaced_key(header: Header, stream: Stream, batch_id: str) -> str:
    """Return where such lines are archived: in order of their sequence, then their revision."""
    folder = unplaced_folder(header.key, stream, header.generation)
    return f"{folder}/{header.start_sequence:010d}-{header.revision:020d}-{batch_id[:32]}"


def inbox_key(header: Header, claim_sha256: str) -> str:
    """Return where a publisher puts a batch that is too large for a message."""
    return f"{session_folder(header.key)}/{header.kind}/{claim_sha256}"


def unattributed_key(sha256: str) -> str:
    """Return where the bytes of an undecodable message are kept."""
    return f"{UNATTRIBUTED}/{sha256}"


async def hydrate(archive: Archive, document: dict[str, object]) -> bytes:
    """Return the original bytes of a stored or quarantined line, and verify their hash.

    Raises `ArchiveMismatch` when the archive does not hold what the document says. Whole lines
    that carry no reference raise `PermanentError`: their own fields are complete.
    """
    reference = document.get("payload_ref")
    if not isinstance(reference, dict) and document.get("data_truncated"):
        raise ArchiveMismatch("There was no archive when this was stored; its payload is gone.")
    if not isinstance(reference, dict):
        raise PermanentError("The document is complete; it refers to no archived bytes.")
    key = str(reference["archive_key"])
    _check_own(document, key)
    body = await archive.get(key)
    raw = body if reference.get("raw") else _decoded(body)
    start = int(reference["offset"])
    piece = raw[start : start + int(reference["length"])]
    return truncation.check_hash(piece, str(reference["sha256"]))


def _decoded(body: bytes) -> bytes:
    limits = Limits(inline_bytes=Limits().claimed_bytes)
    try:
        return decode(body, limits=limits).payload
    except BadBatch as error:
        raise ArchiveMismatch(f"The archived object is no batch: {error}") from None


def _check_own(document: dict[str, object], key: str) -> None:
    """Refuse a reference that leads out of the document's own session."""
    if ".." in key.split("/"):
        raise ArchiveMismatch("The reference is not a key of this archive.")
    if key.startswith(f"{UNATTRIBUTED}/"):
        return
    parts = (str(document.get(name)) for name in ("user_id", "project_slug", "session_id"))
    if not key.startswith(session_folder(SessionKey(*parts)) + "/"):
        raise ArchiveMismatch("The reference leads out of the document's session.")


def _not_taken(key: str, error: Exception) -> TransientError:
    return TransientError(f"The object store did not take {key}: {_brief(error)}")


def _sync(path: Path) -> None:
    is_windows = sys.platform == "win32"
    if is_windows and path.is_dir():
        # It opens no folders; that a file is in one is in the file system's journal.
        return
    # Windows writes out what may be written to.
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _brief(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:300]
