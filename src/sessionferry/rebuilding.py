"""Making a session anew: documents from the archive, head and projection from the documents.

What is stored stays the authority where the archive holds two versions of a line. A document that
is absent is made from the archive: from the newest version that the storage API was given, else
from the first batch that has the line. Writing goes the way of `replacing`: under a mark.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from sessionferry import counting, heads, projection
from sessionferry.batch import Batch, utc_now
from sessionferry.coverage import Coverage
from sessionferry.delivery import Chunk, chunks, sequences
from sessionferry.documents import DocumentBuilder
from sessionferry.errors import UserError
from sessionferry.export import read_batch
from sessionferry.heads import Delivery, Head, Metadata
from sessionferry.identity import STREAMS, SessionKey, Stream, session_folder
from sessionferry.replacing import Replacer, Task


class Rebuilt(NamedTuple):
    """What a rebuild did, in numbers of lines."""

    head: Head
    created: int
    renewed: int
    archived: int


class _Pieces(NamedTuple):
    """A session's archived batches of one stream and generation: those to be asked first, first."""

    stream: Stream
    generation: int
    keys: list[str]


@dataclass(slots=True)
class _Work:
    """What was done for one stream so far."""

    created: int = 0
    renewed: int = 0
    entries: list[tuple[int, str]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)


class Rebuilder(Replacer):
    """Rebuilds any session. Errors are those of `Replacer`."""

    async def rebuild(self, key: SessionKey) -> Rebuilt:
        """Make documents, head and projection of a session anew; nothing else of it is needed.

        Raises `UserError` for a session that is deleted, unknown, or has pruned lines.
        """
        head = await self.recover(await self._read(key))
        if head.tombstone is not None:
            raise UserError(f"Session {key.session_id} is deleted.")
        kept = [found.key async for found in self.archive.objects(session_folder(key))]
        streams = [_pieces(key, head, name, kept) for name in STREAMS]
        if not head.streams and not any(pieces.keys for pieces in streams):
            raise UserError(f"Nothing of session {key.session_id} is stored or archived.")
        counts = [0, 0, 0]
        for pieces in streams:
            if pieces.keys or pieces.stream in head.streams:
                done = await self._rebuild_stream(key, pieces)
                counts = [mine + its for mine, its in zip(counts, done, strict=True)]
        await self._rebuild_metadata(key, kept)
        made = {"derived": heads.DERIVATION}
        head = await self._change(key, lambda head: head.model_copy(update=made))
        await self._retry(lambda: projection.project(self.store, self.archive, head, ""))
        return Rebuilt(head, *counts)

    async def _rebuild_stream(self, key: SessionKey, pieces: _Pieces) -> tuple[int, int, int]:
        stream, generation = pieces.stream, pieces.generation
        covered = Coverage()
        async for _, batch in self._batches(pieces.keys):
            covered |= Coverage.of(sequences(batch.header) or (0, -1))
        known = (await self._read(key)).stream(stream)
        covered |= known.stored | known.quarantined
        if known.pruned:
            raise UserError(f"Lines of {stream} were pruned; what they added cannot be rebuilt.")
        if not covered:
            return 0, 0, 0
        task = await self._begin(key, stream, "", covered.ranges[-1])
        mark = task.mark.model_copy(update={"generation": generation, "lines": covered})
        raised = [Delivery(stream, generation)]
        await self._change(key, lambda head: heads.mark(heads.merge(head, raised), mark))
        task.mark = mark
        await self._announce_replacing(task)
        work = _Work()
        async for archive_key, batch in self._batches(pieces.keys):
            await self._renew_if_due(task)
            await self._write_batch(task, archive_key, batch, work)
        try:
            head = await self._retry(
                lambda: counting.count_anew(
                    *(self.store, key, stream, generation),
                    marks=[task.mark.id],
                    more=work.deliveries,
                )
            )
        except counting.RuledOut:
            await self._take_back(task)
            return 0, 0, 0
        # Lines that one batch has in a form that is no document, and another one in a good form.
        stored = head.stream(stream).stored
        stale = [entry_id for sequence, entry_id in work.entries if sequence in stored]
        await self._retry(lambda: self.store.delete_quarantined(key.partition_key, stale))
        return work.created, work.renewed, len(covered)

    async def _write_batch(self, task: Task, archive_key: str, batch: Batch, work: "_Work") -> None:
        header = batch.header
        builder = DocumentBuilder(header, archive_key, utc_now())
        refused: list[int] = []
        for chunk in chunks(batch, builder, Head.new(task.key)):
            await self._write_chunk(task, chunk, work)
            entries = [(int(str(one["sequence"])), str(one["id"])) for one in chunk.entries]
            refused += [sequence for sequence, _ in entries]
            work.entries += entries
        is_placed = "/unplaced/" not in archive_key
        extent = (header.offset, header.offset + header.length - 1)
        delivery = Delivery(
            task.mark.stream,
            header.generation,
            quarantined=refused,
            extent=extent if is_placed and header.length else None,
            format=header.format,
            unplaced=not is_placed,
        )
        work.deliveries.append(delivery)

    async def _write_chunk(self, task: Task, chunk: Chunk, work: "_Work") -> None:
        version = (task.key, task.mark.stream, task.mark.generation)
        documents = chunk.documents
        existing = await self._guarded(task, lambda: self.store.create_lines(*version, documents))
        same = [
            document
            for document in documents
            if document.facts.sequence in existing
            and existing[document.facts.sequence].sha256 == document.facts.sha256
        ]
        await self._guarded(task, lambda: self.store.replace_lines(*version, same))
        await self._guarded(task, lambda: self.store.create_quarantined(chunk.entries))
        work.created += len(documents) - len(existing)
        work.renewed += len(same)

    async def _rebuild_metadata(self, key: SessionKey, kept: Iterable[str]) -> None:
        """Find the newest metadata file, unless the head knows one."""
        folder = f"{session_folder(key)}/metadata/"
        head = await self._read(key)
        newest = max((name for name in kept if name.startswith(folder)), default=None)
        if head.metadata is not None or newest is None:
            return
        batch = await self._retry(lambda: read_batch(self.archive, newest))
        metadata = Metadata(
            revision=batch.header.revision,
            sha256=hashlib.sha256(batch.payload).hexdigest(),
            length=batch.header.length,
            archive_key=newest,
            host_id=batch.header.host_id,
            valid=projection.parse_metadata(batch.payload) is not None,
        )
        await self._change(key, lambda head: heads.merge(head, [], [metadata]))

    async def _batches(self, keys: Iterable[str]) -> AsyncIterator[tuple[str, Batch]]:
        for key in keys:
            yield key, await self._retry(lambda key=key: read_batch(self.archive, key))  # type: ignore[misc]


def _pieces(key: SessionKey, head: Head, stream: Stream, kept: Iterable[str]) -> _Pieces:
    """Choose the newest generation's batches; the storage API's newest versions come first."""
    folder = f"{session_folder(key)}/{stream}/"
    names = [name.removeprefix(folder).split("/") for name in kept if name.startswith(folder)]
    known = [int(parts[0]) for parts in names if parts[1] in {"lines", "unplaced"}]
    newest = max(known, default=0)
    generation = head.stream(stream).generation if stream in head.streams else newest
    mine = [parts for parts in names if int(parts[0]) == generation]
    placed = sorted("/".join(parts) for parts in mine if parts[1] == "lines")
    given = ["/".join(parts) for parts in mine if parts[1] == "unplaced"]
    given.sort(key=lambda name: name.rpartition("/")[2].split("-")[1], reverse=True)
    return _Pieces(stream, generation, [folder + name for name in (*given, *placed)])
