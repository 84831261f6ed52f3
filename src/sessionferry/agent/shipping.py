"""Shipping: what is new of each file goes to the queue, and is remembered once it is there."""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

import orjson

from sessionferry import __version__
from sessionferry.agent.discover import Source
from sessionferry.agent.progress import Progress, Shipped
from sessionferry.agent.reading import Blocks, LineTooLong, prefix_digest
from sessionferry.batch import Header, utc_now
from sessionferry.host import Identity, machine_fingerprint
from sessionferry.packing import Packed, Packer, Place, pack_whole

AGENT = f"sessionferry/{__version__}"


class Sender(Protocol):
    """The part of `Publisher` that shipping needs."""

    @property
    def limit(self) -> int:
        """Most bytes of one message's body."""
        ...

    async def send(self, packed: Packed) -> list[Header]:
        """Take a batch; return what is safely in the queue now."""
        ...

    async def flush(self) -> list[Header]:
        """Send what is held; return what is safely in the queue now."""
        ...


@dataclass(slots=True)
class Report:
    """What one shipping run did."""

    files: int = 0
    unchanged: int = 0
    lines: int = 0
    bytes: int = 0
    tails: int = 0
    rewritten: int = 0
    sent_bytes: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    """What will be remembered of a file when all batches before this point are in the queue."""

    source: Source
    shipped: Shipped
    batches: int


class Shipper:
    """Ships sources one after another through one sender."""

    def __init__(
        self,
        sender: Sender,
        progress: Progress,
        identity: Identity,
        *,
        spool_was_lost: bool = False,
        resend: bool = False,
        supersede: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self._sender = sender
        self._progress = progress
        self._identity = identity
        self._spool_was_lost = spool_was_lost
        self._resend = resend
        self._supersede = supersede
        self._anew = resend or supersede
        self._advance = advance or (lambda _bytes: None)
        self._pending: list[_Pending] = []
        self._accepted = 0
        self._handed_over = 0
        self.report = Report()
        self._heart = Heart(identity)

    async def ship(self, sources: list[Source]) -> Report:
        """Send what is new; a file that cannot be read is reported and does not stop the rest."""
        for source in sources:
            try:
                await self._ship_one(source)
            except (OSError, LineTooLong) as error:
                self.report.failed.append(f"{source.path}: {_reason(error)}")
        await self._send(self._heart.beat(self._progress))
        self._note(await self._sender.flush())
        return self.report

    async def _ship_one(self, source: Source) -> None:
        with source.path.open("rb") as file:
            self.report.files += 1
            if source.role == "metadata":
                await self._ship_metadata(source, file)
            else:
                await self._ship_stream(source, file)

    # ------------------------------------------------------------ streams

    async def _ship_stream(self, source: Source, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        known = self._progress.get(source.key, source.role)
        if known is not None and not self._anew and _is_unchanged(known, state):
            self.report.unchanged += 1
            self._advance(state.st_size)
            return
        start, digest = self._resume(source, file, known, state)
        self._advance(start.offset)
        blocks = Blocks(file)
        template = self._template(source, generation=start.generation)
        first = template.model_copy(update={"carry": start.carry})
        packer = Packer(first, self._sender.limit, Place(start.offset, start.sequence), digest)
        await self._ship_lines(source, blocks, packer)
        tail_sha256 = await self._ship_tail(template, packer.place, blocks.rest, start)
        place = packer.place
        if place.offset == 0 and not blocks.rest:
            # An empty file is a file: it replaces what stood there before, and is exported.
            await self._send(pack_whole(template, b""))
        self._remember(
            source,
            Shipped(
                *(start.generation, place.offset, place.sequence, packer.digest.hexdigest()),
                tail_sha256=tail_sha256,
                size=place.offset + len(blocks.rest),
                modified_ns=_mark(state),
                carry=packer.carry,
            ),
        )

    async def _ship_lines(self, source: Source, blocks: Blocks, packer: Packer) -> None:
        """Send all terminated lines, also when a later one cannot be read."""
        failure: OSError | LineTooLong | None = None
        try:
            for block in blocks:
                at = packer.place
                for packed in packer.add(block):
                    await self._send(packed)
                    self._remember_part(source, packed)
                self._count(at, packer.place)
        except (OSError, LineTooLong) as error:
            failure = error
        for packed in packer.flush():
            await self._send(packed)
            self._remember_part(source, packed)
        if failure is not None:
            raise failure

    def _remember_part(self, source: Source, packed: Packed) -> None:
        """Remember a file up to the end of a batch; its unknown size says that there is more."""
        end = _end(packed)
        place = (packed.header.generation, end.offset, end.sequence)
        part = Shipped(*place, packed.sha256, carry=packed.next_carry)
        self._remember(source, part)

    def _resume(
        self,
        source: Source,
        file: BinaryIO,
        known: Shipped | None,
        state: os.stat_result,
    ) -> "tuple[Shipped, hashlib._Hash | None]":
        """Decide where to go on: behind what was shipped, or at the start of a new generation."""
        fresh = max(_file_time(state) // 1_000_000, 1)
        if known is None:
            lost = (self._spool_was_lost and source.is_rewritable) or self._supersede
            return Shipped(fresh if lost else 0, 0, 0, ""), None
        if not self._supersede:
            digest = prefix_digest(file, known.offset)
            same = digest is not None and digest.hexdigest() == known.prefix_sha256
            if same and _keeps_tail(file, known):
                if not self._resend:
                    return known, digest
                file.seek(0)
                return Shipped(known.generation, 0, 0, ""), None
        file.seek(0)
        self.report.rewritten += 1
        return Shipped(max(known.generation + 1, fresh), 0, 0, ""), None

    async def _ship_tail(self, template: Header, place: Place, rest: bytes, start: Shipped) -> str:
        if not rest:
            return ""
        sha256 = hashlib.sha256(rest).hexdigest()
        if sha256 == start.tail_sha256 and place.offset == start.offset:
            return sha256
        tail = template.model_copy(
            update={"kind": "tail", "offset": place.offset, "start_sequence": place.sequence}
        )
        await self._send(pack_whole(tail, rest))
        self.report.tails += 1
        self.report.bytes += len(rest)
        self._advance(len(rest))
        return sha256

    # ------------------------------------------------------------ metadata

    async def _ship_metadata(self, source: Source, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        payload = file.read()
        sha256 = hashlib.sha256(payload).hexdigest()
        known = None if self._anew else self._progress.get(source.key, source.role)
        self._advance(len(payload))
        if known is not None and known.prefix_sha256 == sha256:
            self.report.unchanged += 1
            return
        # A file put back with its old time would lose against what is stored: now is later.
        revision = time.time_ns() if self._supersede else _file_time(state)
        template = self._template(source, revision=revision)
        await self._send(pack_whole(template, payload))
        self.report.bytes += len(payload)
        self._remember(source, Shipped(0, len(payload), 0, sha256, "", state.st_size, _mark(state)))

    # ------------------------------------------------------------ bookkeeping

    def _template(self, source: Source, *, generation: int = 0, revision: int = 0) -> Header:
        return Header(
            kind="lines" if source.stream else "metadata",
            stream=source.stream,
            user_id=source.key.user_id,
            host_id=self._identity.host_id,
            project_slug=source.key.project_slug,
            session_id=source.key.session_id,
            generation=generation,
            revision=revision,
            format=source.format,
            agent=AGENT,
        )

    async def _send(self, packed: Packed) -> None:
        self._handed_over += 1
        self._note(await self._sender.send(packed))

    def _remember(self, source: Source, shipped: Shipped) -> None:
        self._pending.append(_Pending(source, shipped, self._handed_over))
        self._note([])

    def _note(self, accepted: list[Header]) -> None:
        """Write down the files of which every batch is in the queue."""
        self._accepted += len(accepted)
        done = [pending for pending in self._pending if pending.batches <= self._accepted]
        if not done:
            return
        self._pending = [pending for pending in self._pending if pending.batches > self._accepted]
        with self._progress.together():
            for pending in done:
                source = pending.source
                self._progress.put(source.key, source.role, source.path, pending.shipped)

    def _count(self, before: Place, after: Place) -> None:
        self.report.lines += after.sequence - before.sequence
        self.report.bytes += after.offset - before.offset
        self._advance(after.offset - before.offset)


class Heart:
    """Makes this run's heartbeats: who is alive here, and its side of the ledger."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._run_id = uuid4().hex
        self._started_at = utc_now()

    def beat(self, progress: Progress) -> Packed:
        """Return the next heartbeat."""
        totals = progress.totals()
        body = {
            "run_id": self._run_id,
            "machine": machine_fingerprint(),
            "hostname": socket.gethostname(),
            "started_at": self._started_at,
            "ledger": {"files": totals.files, "lines": totals.lines, "bytes": totals.bytes},
        }
        header = Header(
            kind="heartbeat",
            user_id=self._identity.user_id,
            host_id=self._identity.host_id,
            revision=time.time_ns(),
            agent=AGENT,
        )
        return pack_whole(header, orjson.dumps(body))


def _end(packed: Packed) -> Place:
    header = packed.header
    return Place(header.offset + header.length, header.start_sequence + header.line_count)


def _is_unchanged(known: Shipped, state: os.stat_result) -> bool:
    return (known.size, known.modified_ns) == (state.st_size, _mark(state))


def _mark(state: os.stat_result) -> int:
    """Return a file's time as far as SQLite can keep it: it ends in the year 2262."""
    return min(max(state.st_mtime_ns, -(2**63)), 2**63 - 1)


def _file_time(state: os.stat_result) -> int:
    """Return when a file was changed, in ns: a time before 1970 or to come would be refused."""
    return min(max(state.st_mtime_ns, 0), time.time_ns())


def _keeps_tail(file: BinaryIO, known: Shipped) -> bool:
    """Whether the file goes on with the unterminated line that was sent, finished by now or not."""
    if not known.tail_sha256:
        return True
    tail = file.read(known.size - known.offset)
    file.seek(known.offset)
    return hashlib.sha256(tail).hexdigest() == known.tail_sha256


def _reason(error: OSError | LineTooLong) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def planned_bytes(sources: list[Source]) -> int:
    """Sum up the sizes of the files; those that vanish meanwhile count nothing."""
    return sum(_sizes(source.path for source in sources))


def _sizes(paths: Iterator[Path]) -> Iterator[int]:
    for path in paths:
        try:
            yield path.stat().st_size
        except OSError:
            continue
