"""Comparing source files with what is stored, without reading the stored lines back.

A file's lines are counted and digested as ingest digests them; the head says the rest. With
`--bytes` the archived bytes themselves are hashed. What is compared is what may leave the machine:
the file behind the gate, filtered and redacted as this machine's rules say now.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from sessionferry import head_store
from sessionferry.agent.content import Unreadable, opened
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import OPEN, Checked, Refusal
from sessionferry.agent.reading import Blocks
from sessionferry.archive import Archive
from sessionferry.batch import lines_of
from sessionferry.coverage import Coverage
from sessionferry.errors import ArchiveMismatch
from sessionferry.export import file_bytes, read_batch
from sessionferry.heads import Head, StreamHead, add_digest, line_digest
from sessionferry.identity import Stream
from sessionferry.store import Store

Verdict = Literal["ok", "missing", "differs", "deleted", "not stored", "unreadable"]
_NO_DIGEST = "0" * 64
_NOTHING = "nothing of this file has arrived"


@dataclass(slots=True)
class Finding:
    """What became of one source file."""

    source: Source
    verdict: Verdict
    lines: int = 0
    bytes: int = 0
    filtered: int = 0
    redacted: int = 0
    stored: int = 0
    quarantined: int = 0
    truncated: int = 0
    conflicts: int = 0
    missing: Coverage = field(default_factory=Coverage)
    detail: str = ""


@dataclass(slots=True)
class Counted:
    """A source file's lines, counted and digested as far as the head says they are stored."""

    lines: int = 0
    filtered: int = 0
    redacted: int = 0
    digest: str = _NO_DIGEST
    size: int = 0
    sha256: str = ""
    rest: bytes = b""


async def verify(
    store: Store,
    archive: Archive,
    source: Source,
    *,
    gate: Checked = OPEN,
    whole_bytes: bool = False,
) -> Finding:
    """Say whether what may leave of a source file is stored completely and unchanged."""
    head = (await head_store.read_head(store, source.key)).head
    if head.tombstone is not None:
        return Finding(source, "deleted", detail="the session was deleted")
    try:
        with opened(source.path) as file:
            if source.stream is None:
                passed = gate.metadata(source, file.read()).payload
                return await _verify_metadata(
                    archive, source, passed, head, whole_bytes=whole_bytes
                )
            counted = count_file(file, source, head.stream(source.stream), gate)
        return await _verify_stream(store, archive, source, counted, head, whole_bytes=whole_bytes)
    except (OSError, Unreadable, Refusal) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Finding(source, "unreadable", detail=f"the file cannot be read: {reason}")


async def _verify_stream(
    store: Store,
    archive: Archive,
    source: Source,
    counted: Counted,
    head: Head,
    *,
    whole_bytes: bool,
) -> Finding:
    stream: Stream = source.stream or "events"
    state = head.stream(stream)
    covered = state.stored | state.quarantined
    own = Coverage.of((0, counted.lines - 1))
    finding = Finding(
        source,
        "ok",
        lines=counted.lines,
        bytes=counted.size,
        filtered=counted.filtered,
        redacted=counted.redacted,
        stored=len(state.stored),
        quarantined=len(state.quarantined),
        truncated=state.truncated,
        conflicts=len(state.conflicts),
        missing=own - covered,
    )
    if stream in head.streams:
        _judge(finding, counted, state, covered - own)
    else:
        finding.verdict, finding.detail = "not stored", _NOTHING
    if whole_bytes and finding.verdict == "ok":
        await _compare_bytes(file_bytes(store, archive, head, stream), counted.sha256, finding)
    return finding


def count_file(file: BinaryIO, source: Source, state: StreamHead, gate: Checked = OPEN) -> Counted:
    """Count what may leave of a file; digest lines whose sequence the head counts as stored."""
    counted = Counted()
    blocks = Blocks(file)
    digest = hashlib.sha256()
    total = 0
    for block in blocks:
        passed = gate.lines(source, block)
        digest.update(passed.payload)
        for _, line in lines_of(passed.payload):
            if counted.lines in state.stored:
                total += line_digest(counted.lines, hashlib.sha256(line).digest())
            counted.lines += 1
        counted.size += len(passed.payload)
        counted.filtered += passed.filtered
        counted.redacted += sum(passed.redacted.values())
    counted.rest = gate.tail(source, blocks.rest).payload if blocks.rest else b""
    counted.size += len(counted.rest)
    digest.update(counted.rest)
    counted.sha256 = digest.hexdigest()
    counted.digest = add_digest(_NO_DIGEST, total)
    return counted


def _judge(finding: Finding, counted: Counted, state: StreamHead, beyond: Coverage) -> None:
    if beyond:
        finding.verdict = "differs"
        finding.detail = f"{len(beyond)} more lines are stored than the file has"
    elif finding.missing:
        finding.verdict = "missing"
        finding.detail = f"lines {_shown(finding.missing)} have not arrived"
    elif counted.digest != state.digest:
        finding.verdict = "differs"
        finding.detail = "stored lines are not those of the file"
    elif _tail_differs(counted, state):
        finding.verdict = "missing"
        finding.detail = "the unterminated last line has not arrived"
    if finding.verdict == "differs":
        finding.detail += "; `ferry ship --supersede` sends the file as a new generation"


def _tail_differs(counted: Counted, state: StreamHead) -> bool:
    stored = state.tail.sha256 if state.tail else ""
    return stored != (hashlib.sha256(counted.rest).hexdigest() if counted.rest else "")


async def _compare_bytes(blocks: AsyncIterator[bytes], sha256: str, finding: Finding) -> None:
    digest = hashlib.sha256()
    try:
        async for block in blocks:
            digest.update(block)
    except ArchiveMismatch as error:
        finding.verdict, finding.detail = "missing", str(error)
        return
    if digest.hexdigest() != sha256:
        finding.verdict, finding.detail = "differs", "the archived bytes have another SHA-256"


async def _verify_metadata(
    archive: Archive, source: Source, payload: bytes, head: Head, *, whole_bytes: bool
) -> Finding:
    sha256 = hashlib.sha256(payload).hexdigest()
    finding = Finding(source, "ok", bytes=len(payload))
    if head.metadata is None:
        finding.verdict, finding.detail = "not stored", _NOTHING
    elif head.metadata.sha256 != sha256:
        finding.verdict, finding.detail = "differs", "another version of the file is stored"
    elif whole_bytes:
        try:
            archived = (await read_batch(archive, head.metadata.archive_key)).payload
        except ArchiveMismatch as error:
            finding.verdict, finding.detail = "missing", str(error)
        else:
            if archived != payload:
                finding.verdict, finding.detail = "differs", "the archived bytes are others"
    return finding


def _shown(missing: Coverage) -> str:
    ranges = [f"{a}" if a == b else f"{a} to {b}" for a, b in missing.ranges[:3]]
    more = len(missing.ranges) - 3
    return ", ".join(ranges) + (f" and {more} more ranges" if more > 0 else "")
