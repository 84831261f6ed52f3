"""Collecting: what is new of a file goes into the spool, through the gate.

A file is read from where it was left, if what lies before that place is still the same; else it
was rewritten, and is read anew as the next generation.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from sessionferry import __version__, telemetry
from sessionferry.agent.content import (
    Unreadable,
    content_size,
    is_packed,
    unpacked,
    unpacked_size,
)
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked, Passed, Refusal
from sessionferry.agent.opening import open_shared, snapshot
from sessionferry.agent.reading import MAX_LINE_BYTES, Blocks, LineTooLong, prefix_digest
from sessionferry.agent.spool import FileId, Known, SpoolFull, Step
from sessionferry.batch import Header
from sessionferry.formats import FORMATS, Carry
from sessionferry.host import Identity
from sessionferry.packing import Packed, Packer, Place, count_lines, pack_whole, pieces

AGENT = f"sessionferry/{__version__}"
STANDARD_LIMIT = 250 * 1024
"""Most bytes of a message's body, until a queue has said what it takes. Service Bus Standard: 256
KB with properties."""
COMMIT_BYTES = 1024 * 1024
"""Compressed bytes that are spooled with one sync."""
COMMIT_SECONDS = 0.5
"""How long a batch may wait for that sync."""
SURE_BYTES = 4 * 1024 * 1024
"""A file is compared from its start whenever it changed, up to this size."""
SURE_SECONDS = 600.0
"""How often a larger one is."""
END_BYTES = 64 * 1024
"""How much of what was read last is compared in the others."""
MOST_SEEN = 10_000
"""Files that are remembered in memory, so that they need not be read from their start."""


class Memory(Protocol):
    """The part of `Spool` that collecting needs."""

    def known(self, file: FileId) -> Known | None:
        """Return how far a file was read."""
        ...

    def commit(self, step: Step) -> None:
        """Keep a step."""
        ...

    def fail(self, file: FileId, path: Path, error: str) -> None:
        """Note why a file is not read on."""
        ...

    def heal(self, file: FileId) -> None:
        """Forget that."""
        ...


class Stopped(Exception):
    """Collecting was told to end; everything up to here is spooled."""


@dataclass(slots=True)
class Report:
    """What was collected."""

    files: int = 0
    unchanged: int = 0
    lines: int = 0
    bytes: int = 0
    tails: int = 0
    rewritten: int = 0
    filtered: int = 0
    redacted: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    sent_bytes: int = 0
    failed: list[str] = field(default_factory=list)


class _Seen(NamedTuple):
    """What saves reading a file from its start again: it was read by this very process."""

    inode: tuple[int, int]
    offset: int
    end: bytes
    digest: "hashlib._Hash"
    compared_at: float
    is_trusted: bool
    """Whether its end alone was compared when it was read last."""


class Collector:
    """Collects sources one after another. Not for concurrent use."""

    def __init__(
        self,
        memory: Memory,
        gate: Checked,
        identity: Identity,
        *,
        limit: int,
        spool_was_lost: bool = False,
        resend: bool = False,
        supersede: bool = False,
        tail_seconds: float = 0.0,
        advance: Callable[[int], None] | None = None,
        committed: Callable[[], None] | None = None,
        make_room: Callable[[], None] | None = None,
    ) -> None:
        self.limit = limit
        self.report = Report()
        self._memory = memory
        self._gate = gate
        self._identity = identity
        self._spool_was_lost = spool_was_lost
        self._resend = resend
        self._supersede = supersede
        self._anew = resend or supersede
        self._tail_seconds = tail_seconds
        self._advance = advance or (lambda _bytes: None)
        self._committed = committed or (lambda: None)
        self._make_room = make_room
        self._step = Step()
        self._step_since = 0.0
        self._read_since = 0
        self._seen: OrderedDict[FileId, _Seen] = OrderedDict()
        self._stopped = False

    def collect(self, sources: list[Source]) -> Report:
        """Collect what is new; a file that cannot be read is reported and stops nothing."""
        for source in sources:
            self.collect_one(source)
        self.commit()
        return self.report

    def collect_one(self, source: Source, content: BinaryIO | None = None) -> bool:
        """Collect what is new of one file, and say whether that went well; `commit` afterwards.

        `content` is the file, where its name leads to another one by now.
        """
        file_id = FileId(source.key, source.role)
        self.report.files += 1
        try:
            if not self._gate.admits(source):
                self.report.unchanged += 1
                self._memory.heal(file_id)
                return True
            if content is not None:
                self._read(source, file_id, content)
            else:
                with open_shared(source.path) as own:
                    self._read(source, file_id, own)
        except (OSError, Unreadable, Refusal) as error:
            reason = _reason(error)
            self.report.failed.append(f"{source.path}: {reason}")
            self.commit()
            if not isinstance(error, FileNotFoundError):
                self._memory.fail(file_id, source.path, reason)
            return False
        return True

    def stop(self) -> None:
        """End as soon as possible, with `Stopped`; may be called from another thread."""
        self._stopped = True

    def commit(self) -> None:
        """Put on disk what was collected; waits while the spool is full."""
        while self._step.files:
            try:
                self._memory.commit(self._step)
            except SpoolFull:
                if self._make_room is None:
                    raise
                self._check()
                self._make_room()
            else:
                self._step = Step()
                self._committed()

    def _read(self, source: Source, file_id: FileId, content: BinaryIO) -> None:
        self._read_since = time.time_ns()
        packed = is_packed(source.path)
        state = _State.of(content)
        if packed:
            state = state._replace(size=unpacked_size(content))
        file = _File(source, file_id, content, state, self._known(file_id))
        content.seek(0)
        if source.stream is None:
            self._read_metadata(file)
        elif self._is_unchanged(file):
            self.report.unchanged += 1
            self._memory.heal(file.id)
            self._advance(state.size)
        elif packed:
            with unpacked(content) as inside:
                self._read_stream(file._replace(content=inside))
        elif source.is_rewritable:
            self._read_stream(file._replace(content=snapshot(content, state.size)))
        else:
            self._read_stream(file)

    # ------------------------------------------------------------ streams

    def _read_stream(self, file: "_File") -> None:
        start, digest = self._resume(file)
        self._advance(start.offset)
        template = self._template(file, generation=start.generation)
        stream = _Stream(start, digest, is_packed=self._gate.is_open)
        blocks = Blocks(file.content)
        first = template
        if FORMATS[file.source.format].remember:
            first = template.model_copy(update={"carry": start.carry})
        packer = Packer(first, self.limit, start.sent, stream.packed)
        self._read_lines(file, blocks, packer, stream)
        known = self._read_tail(file, blocks.rest, stream.at_place(packer.carry), start)
        if not known.sent.offset and not blocks.rest:
            # An empty file is a file: it replaces what stood there before, and is exported.
            self._keep(file, known, pack_whole(template, b""))
        else:
            self._keep(file, known)
        self._remember(file, stream)

    def _read_lines(self, file: "_File", blocks: Blocks, packer: Packer, stream: "_Stream") -> None:
        """Collect all terminated lines, also when a later one cannot be read."""
        failure: OSError | Unreadable | Refusal | None = None
        try:
            for block in blocks:
                for piece in pieces(block):
                    self._check()
                    self._read_piece(file, piece, packer, stream)
        except (OSError, Unreadable, Refusal) as error:
            failure = error
        for packed in packer.flush():
            self._keep(file, stream.at_place(packed.next_carry), packed)
        if failure is not None:
            raise failure

    def _read_piece(self, file: "_File", piece: bytes, packer: Packer, stream: "_Stream") -> None:
        passed = self._gate.lines(file.source, piece)
        before, after = stream.here, stream.beyond(piece, passed)
        if passed.payload:
            lines = after.sent.sequence - before.sent.sequence
            for packed in packer.add_piece(passed.payload, lines):
                # A batch ends before this piece, or behind it when the piece is one by itself.
                behind = packed.header.offset + packed.header.length > before.sent.offset
                if behind:
                    stream.pass_by(piece, after)
                self._keep(file, stream.at_place(packed.next_carry), packed)
        if stream.here is not after:
            stream.pass_by(piece, after)
        self._count(piece, passed, before, after)

    def _resume(self, file: "_File") -> "tuple[Known, hashlib._Hash]":
        """Decide where to go on: behind what was read, or at the start of a new generation."""
        known, rules = file.known, self._gate.rules
        fresh = max(file.state.file_time // 1_000_000, 1)
        if known is None:
            lost = self._spool_was_lost and self._may_be_rewritten(file)
            generation = fresh if lost or self._supersede else 0
            return self._begun(file, Known(generation, rules)), hashlib.sha256()
        if not self._supersede and known.rules == rules:
            digest = self._digest_of_the_same(file, known)
            if digest is not None and _keeps_tail(file, known):
                if not self._resend:
                    return known, digest
                file.content.seek(0)
                return Known(known.generation, rules), hashlib.sha256()
        file.content.seek(0)
        self.report.rewritten += 1
        anew = Known(max(known.generation + 1, fresh), rules)
        return self._begun(file, anew), hashlib.sha256()

    def _may_be_rewritten(self, file: "_File") -> bool:
        return file.source.is_rewritable or self._identity.was_rewritten(_name(file))

    def _begun(self, file: "_File", anew: Known) -> Known:
        """Note where a spool that is lost would be missed: before anything of it is spooled."""
        if anew.generation and not file.source.is_rewritable:
            self._identity.note_rewritten(_name(file))
        return anew

    def _digest_of_the_same(self, file: "_File", known: Known) -> "hashlib._Hash | None":
        """Hash what was read already; None if the file does not begin with it any more.

        What this process read itself, and what nobody put another file in the place of, need not be
        read again each time: of a large file its end is compared, and all of it now and then.
        """
        seen = self._seen.get(file.id)
        if seen is not None and seen.offset == known.offset and self._may_trust(file, seen):
            file.content.seek(max(0, known.offset - END_BYTES))
            end = file.content.read(min(END_BYTES, known.offset))
            if hashlib.sha256(end).digest() == seen.end:
                return seen.digest.copy()
        file.content.seek(0)
        digest = prefix_digest(file.content, known.offset)
        same = digest is not None and digest.hexdigest() == known.prefix_sha256
        self._seen.pop(file.id, None)
        return digest if same else None

    def _may_trust(self, file: "_File", seen: "_Seen") -> bool:
        if seen.inode != file.state.inode or file.state.size < seen.offset:
            return False
        if seen.offset <= SURE_BYTES or self._is_quiet(file.state):
            return False
        return time.monotonic() - seen.compared_at < SURE_SECONDS

    def _read_tail(self, file: "_File", rest: bytes, known: Known, start: Known) -> Known:
        """Collect an unterminated end, if the file has been quiet for long enough."""
        known = replace(known, size=known.offset + len(rest), modified_ns=file.state.modified_ns)
        if not rest or not self._is_quiet(file.state):
            return known
        known = replace(known, tail_sha256=hashlib.sha256(rest).hexdigest())
        if known.tail_sha256 == start.tail_sha256 and known.offset == start.offset:
            return known
        passed = self._gate.tail(file.source, rest)
        if passed.payload:
            place = {"offset": known.sent.offset, "start_sequence": known.sent.sequence}
            template = self._template(file, generation=known.generation)
            tail = template.model_copy(update={"kind": "tail", **place})
            self._keep(file, known, pack_whole(tail, passed.payload))
        self.report.tails += 1
        self.report.bytes += len(rest)
        self._note_redactions(passed)
        self._advance(len(rest))
        return known

    def _is_unchanged(self, file: "_File") -> bool:
        known, state = file.known, file.state
        if known is None or self._anew or known.rules != self._gate.rules:
            return False
        if (known.size, known.modified_ns) != (state.size, state.modified_ns):
            return False
        has_rest = known.size > known.offset and not known.tail_sha256
        seen = self._seen.get(file.id)
        is_unsure = seen is not None and seen.is_trusted
        return not ((has_rest or is_unsure) and self._is_quiet(state))

    def _is_quiet(self, state: "_State") -> bool:
        """Whether nobody has written for so long that an unterminated line is a torn one."""
        return time.time() - state.modified_ns / 1e9 >= self._tail_seconds or not self._tail_seconds

    # ------------------------------------------------------------ metadata

    def _read_metadata(self, file: "_File") -> None:
        payload = file.content.read(MAX_LINE_BYTES + 1)
        if len(payload) > MAX_LINE_BYTES:
            raise LineTooLong(f"The file has over {MAX_LINE_BYTES} bytes.")
        sha256 = hashlib.sha256(payload).hexdigest()
        known, rules = file.known, self._gate.rules
        self._advance(len(payload))
        same = known is not None and known.prefix_sha256 == sha256
        if same and known is not None and known.rules == rules and not self._anew:
            self.report.unchanged += 1
            self._memory.heal(file.id)
            return
        passed = self._gate.metadata(file.source, payload)
        # A file put back with its old time would lose against what is stored: now is later.
        again = self._supersede or (known is not None and known.rules != rules)
        revision = time.time_ns() if again else file.state.file_time
        template = self._template(file, revision=revision)
        self.report.bytes += len(payload)
        self._note_redactions(passed)
        read = Known(
            *(0, rules, len(payload), sha256, Place(len(passed.payload), 0)),
            redacted=sum(passed.redacted.values()),
            size=file.state.size,
            modified_ns=file.state.modified_ns,
        )
        self._keep(file, read, pack_whole(template, passed.payload))

    # ------------------------------------------------------------ bookkeeping

    def _template(self, file: "_File", *, generation: int = 0, revision: int = 0) -> Header:
        key = file.source.key
        return Header(
            kind="lines" if file.source.stream else "metadata",
            stream=file.source.stream,
            user_id=key.user_id,
            host_id=self._identity.host_id,
            project_slug=key.project_slug,
            session_id=key.session_id,
            generation=generation,
            revision=revision,
            format=file.source.format,
            file_name=file.source.file_name,
            agent=AGENT,
            rules=self._gate.rules or None,
            carry={"fields": dict(file.source.fields)} if file.source.fields else None,
        )

    def _keep(self, file: "_File", known: Known, packed: Packed | None = None) -> None:
        if not self._step.files:
            self._step_since = time.monotonic()
        if packed is not None:
            packed = self._traced(packed)
        self._step.add(file.id, file.source.path, known, packed)
        if packed is not None:
            self.report.batches += 1
            self.report.sent_bytes += len(packed.compressed)
        age = time.monotonic() - self._step_since
        if self._step.size >= COMMIT_BYTES or age >= COMMIT_SECONDS:
            self.commit()

    def _traced(self, packed: Packed) -> Packed:
        """Begin a batch's trace with its reading, since the batch before it."""
        header = packed.header
        began = telemetry.spanned(
            "read batch",
            self._read_since,
            session=header.key.partition_key,
            stream=header.stream or header.kind,
            first=header.start_sequence,
            lines=header.line_count,
        )
        self._read_since = time.time_ns()
        return packed._replace(header=header.model_copy(update={"traceparent": began}))

    def _known(self, file_id: FileId) -> Known | None:
        kept = self._step.files.get(file_id)
        return kept[1] if kept else self._memory.known(file_id)

    def _remember(self, file: "_File", stream: "_Stream") -> None:
        """Remember what spares reading the file from its start when it grows."""
        offset = stream.here.offset
        file.content.seek(max(0, offset - END_BYTES))
        end = hashlib.sha256(file.content.read(min(END_BYTES, offset))).digest()
        before = self._seen.get(file.id)
        at = before.compared_at if before else time.monotonic()
        inode, is_trusted = file.state.inode, before is not None
        self._seen[file.id] = _Seen(inode, offset, end, stream.digest, at, is_trusted)
        self._seen.move_to_end(file.id)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)

    def _count(self, piece: bytes, passed: Passed, before: Known, after: Known) -> None:
        self.report.lines += after.lines - before.lines
        self.report.bytes += len(piece)
        self.report.filtered += passed.filtered
        self._note_redactions(passed)
        self._advance(len(piece))

    def _note_redactions(self, passed: Passed) -> None:
        for rule, count in passed.redacted.items():
            self.report.redacted[rule] = self.report.redacted.get(rule, 0) + count

    def _check(self) -> None:
        if self._stopped:
            raise Stopped


class _State(NamedTuple):
    """What the file system says of a file; its size is that of its content, unpacked."""

    inode: tuple[int, int]
    size: int
    modified_ns: int
    """As far as SQLite can keep it: it ends in the year 2262."""

    @classmethod
    def of(cls, file: BinaryIO) -> "_State":
        state = os.fstat(file.fileno())
        modified_ns = min(max(state.st_mtime_ns, -(2**63)), 2**63 - 1)
        return cls((state.st_dev, state.st_ino), state.st_size, modified_ns)

    @property
    def file_time(self) -> int:
        """When the file was changed, in ns: a time before 1970 or to come would be refused."""
        return min(max(self.modified_ns, 0), time.time_ns())


class _File(NamedTuple):
    """A file that is being looked at."""

    source: Source
    id: FileId
    content: BinaryIO
    state: "_State"
    known: Known | None


class _Stream:
    """Where the reading of a stream stands.

    What passes the gate as it is needs one hash, which the packer updates (`is_packed`). Otherwise
    the packer hashes what passed, from here on, which tells batches apart as well.
    """

    def __init__(self, start: Known, digest: "hashlib._Hash", *, is_packed: bool) -> None:
        self._is_packed = is_packed
        seed = f"{start.rules} {start.prefix_sha256}".encode()
        self.packed = digest if is_packed else hashlib.sha256(seed)
        self.here = replace(start, size=-1, modified_ns=-1, tail_sha256="")
        self.digest = digest

    def beyond(self, piece: bytes, passed: Passed) -> Known:
        """Say where the reading stands behind a piece."""
        here = self.here
        lines = count_lines(passed.payload)
        return replace(
            here,
            offset=here.offset + len(piece),
            sent=Place(here.sent.offset + len(passed.payload), here.sent.sequence + lines),
            filtered=here.filtered + passed.filtered,
            redacted=here.redacted + sum(passed.redacted.values()),
        )

    def pass_by(self, piece: bytes, after: Known) -> None:
        """Go on behind a piece."""
        if not self._is_packed:
            self.digest.update(piece)
        self.here = after

    def at_place(self, carry: Carry | None) -> Known:
        """Say what is known at this place, where a batch ends."""
        return replace(self.here, prefix_sha256=self.digest.hexdigest(), carry=carry)


def _name(file: _File) -> str:
    return f"{file.id.key.partition_key}|{file.id.role}"


def _keeps_tail(file: _File, known: Known) -> bool:
    """Whether the file goes on with the unterminated line that was sent, finished by now or not."""
    if not known.tail_sha256:
        return True
    tail = file.content.read(known.size - known.offset)
    file.content.seek(known.offset)
    return hashlib.sha256(tail).hexdigest() == known.tail_sha256


def _reason(error: OSError | Unreadable | Refusal) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def planned_bytes(sources: list[Source]) -> int:
    """Sum up the sizes of the files; those that vanish meanwhile count nothing."""
    return sum(_sizes(source.path for source in sources))


def _sizes(paths: Iterator[Path]) -> Iterator[int]:
    for path in paths:
        try:
            yield content_size(path)
        except (OSError, Unreadable):
            continue
