"""The spool: how far each file was read, and the batches that the queue has not taken yet.

One SQLite file per destination. A file's place and the batches that it gave are committed in one
transaction, and nothing is sent before its commit: what is remembered is in the queue or in here,
whatever ends the process. A batch is removed once the queue has taken it.
"""

import logging
import os
import shutil
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from sessionferry.batch import Header
from sessionferry.errors import TransientError, UserError, refused
from sessionferry.identity import STREAMS, SessionKey
from sessionferry.locking import Lock, is_held
from sessionferry.packing import START, Packed, Place
from sessionferry.sharing import patiently
from sessionferry.statements import Statement

log = logging.getLogger(__name__)

STATEMENT_BYTES = 64
"""Bytes of a statement beside its key, about."""
FREE_PAGES = 256
"""Unused pages (4 KiB each) above which the file is made smaller."""
PIECE_BYTES = 1024 * 1024
"""A larger batch is written in pieces of this size."""
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    partition_key TEXT NOT NULL,
    role TEXT NOT NULL,
    path TEXT NOT NULL,
    generation INTEGER NOT NULL,
    rules TEXT NOT NULL,
    offset INTEGER NOT NULL,
    prefix_sha256 TEXT NOT NULL,
    sent_offset INTEGER NOT NULL,
    sent_sequence INTEGER NOT NULL,
    filtered INTEGER NOT NULL,
    redacted INTEGER NOT NULL,
    carry TEXT NOT NULL,
    tail_sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    PRIMARY KEY (partition_key, role)
);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    partition_key TEXT NOT NULL,
    role TEXT NOT NULL,
    generation INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    size INTEGER NOT NULL,
    spooled_at REAL NOT NULL,
    header BLOB NOT NULL,
    sha256 TEXT NOT NULL,
    crc INTEGER NOT NULL,
    compressed BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of_files
    ON batches (partition_key, role, generation, lines, size, spooled_at);
CREATE TABLE IF NOT EXISTS errors (
    partition_key TEXT NOT NULL,
    role TEXT NOT NULL,
    path TEXT NOT NULL,
    error TEXT NOT NULL,
    since TEXT NOT NULL,
    PRIMARY KEY (partition_key, role)
);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stated (
    partition_key TEXT NOT NULL,
    stream TEXT NOT NULL,
    generation INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    PRIMARY KEY (partition_key, stream)
);
"""


class SpoolDamaged(Exception):
    """The file is not, or no longer, a sound database: it has to be set aside."""


class SpoolFull(Exception):
    """There is no room for more; reading has to wait until batches were sent."""


@dataclass(frozen=True, slots=True)
class Known:
    """How far one file was read, and what became of it.

    `offset` and `prefix_sha256` speak of the file's own bytes, `sent` of what passed the gate. For
    metadata, `prefix_sha256` is the whole file's. An unknown size means that there is more to read.
    """

    generation: int = 0
    rules: str = ""
    offset: int = 0
    prefix_sha256: str = ""
    sent: Place = START
    filtered: int = 0
    redacted: int = 0
    carry: dict[str, Any] | None = None
    tail_sha256: str = ""
    size: int = -1
    modified_ns: int = -1

    @property
    def lines(self) -> int:
        """Lines that were read in this generation."""
        return self.sent.sequence + self.filtered


class FileId(NamedTuple):
    """What a file is to the spool: one stream, or the metadata, of a session."""

    key: SessionKey
    role: str


@dataclass(slots=True)
class Step:
    """What is committed together: batches, and how far their files are read with them."""

    batches: list[tuple[FileId, Packed]] = field(default_factory=list)
    files: dict[FileId, tuple[Path, Known]] = field(default_factory=dict)
    size: int = 0

    def add(self, file: FileId, path: Path, known: Known, packed: Packed | None = None) -> None:
        """Note how far a file is read, and the batch that ends there."""
        if packed is not None:
            self.batches.append((file, packed))
            self.size += len(packed.compressed)
        self.files[file] = (path, known)


class Waiting(NamedTuple):
    """A batch that the queue has not taken yet."""

    number: int
    packed: Packed


class Sent(NamedTuple):
    """A batch that was handed over: its number, and its size in compressed bytes."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """The agent's side of the books: what it read, and where that is. Lines, unless said."""

    files: int = 0
    bytes: int = 0
    read: int = 0
    filtered: int = 0
    redacted: int = 0
    """Replacements, not lines."""
    spooled: int = 0
    sent: int = 0
    failing: int = 0
    """Files that cannot be read, or that the gate refused."""


class FileState(NamedTuple):
    """One file, as the spool knows it."""

    partition_key: str
    role: str
    path: str
    known: Known
    spooled: int
    """Lines of this generation that wait."""
    spooled_bytes: int
    oldest: float | None
    """When the first batch that waits was spooled, in seconds since 1970."""


class Spool:
    """The memory of one destination. Safe to use from several threads of one process."""

    def __init__(
        self, path: Path, *, most_bytes: int = 2**30, free_bytes: int = 0, check: bool = True
    ) -> None:
        """Open a spool; `check` reads all of it to find damage, and raises `SpoolDamaged`.

        What the disk or another process is in the way of raises `TransientError`, here and later.
        """
        self.path = path
        self._check = check
        self._most_bytes = most_bytes
        self._free_bytes = free_bytes
        self._lock = threading.RLock()
        self.used_bytes = 0
        self._taken: list[int] = []
        self._taken_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = _connect(path)
        except OSError as error:
            raise refused(f"The spool {path} cannot be used", error) from None
        try:
            with self._guarded():
                self.id = self._prepare()
                self.used_bytes = self._count_bytes()
            self._inode = _inode(path)
        except SpoolFull:
            self._db.close()
            raise TransientError(f"The disk of the spool {path} is full.") from None
        except BaseException:
            self._db.close()
            raise

    def is_in_place(self) -> bool:
        """Whether its file is still the one at its path: one that was removed can be written to."""
        return _inode(self.path) == self._inode

    # ------------------------------------------------------------ reading files

    def known(self, file: FileId) -> Known | None:
        """Return how far a file was read; None if never."""
        with self._guarded():
            row = self._db.execute(
                f"SELECT {_KNOWN} FROM files WHERE partition_key = ? AND role = ?",  # noqa: S608
                (file.key.partition_key, file.role),
            ).fetchone()
        return _known(row) if row else None

    def commit(self, step: Step) -> None:
        """Keep a step: on disk when this returns. Raises `SpoolFull`, and then nothing is kept."""
        self._make_room(step.size)
        now = datetime.now(UTC).timestamp()
        with self._transaction():
            self._remove_taken()
            for file, packed in step.batches:
                self._insert(file, packed, now)
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (_file_row(file, path, known) for file, (path, known) in step.files.items()),
            )
            self._db.executemany(
                "DELETE FROM errors WHERE partition_key = ? AND role = ?",
                ((file.key.partition_key, file.role) for file in step.files),
            )
            self.used_bytes += step.size

    def has_room(self, size: int = 0) -> bool:
        """Whether a step of this size fits: into the bound, and onto the disk."""
        if self.used_bytes + size > self._most_bytes and self.used_bytes:
            return False
        try:
            return shutil.disk_usage(self.path.parent).free - size >= self._free_bytes
        except OSError:
            return True

    def fail(self, file: FileId, path: Path, error: str) -> None:
        """Note why a file is not read on; forgotten with its next commit."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(SpoolFull), self._transaction():
            self._db.execute(
                "INSERT INTO errors VALUES (?, ?, ?, ?, ?) ON CONFLICT (partition_key, role)"
                " DO UPDATE SET error = excluded.error, path = excluded.path",
                (file.key.partition_key, file.role, _text(path), error, now),
            )

    def heal(self, file: FileId) -> None:
        """Forget why a file was not read on."""
        with suppress(SpoolFull), self._guarded():
            named = (file.key.partition_key, file.role)
            self._db.execute("DELETE FROM errors WHERE partition_key = ? AND role = ?", named)

    def heal_gone(self) -> None:
        """Forget why files were not read on that are not there any more."""
        with suppress(SpoolFull), self._guarded():
            rows = self._db.execute("SELECT partition_key, role, path FROM errors").fetchall()
            gone = [(key, role) for key, role, path in rows if not os.path.lexists(path)]
            self._db.executemany("DELETE FROM errors WHERE partition_key = ? AND role = ?", gone)

    # ------------------------------------------------------------ sending

    def waiting(self, after: int, most_bytes: int, most: int = 500) -> list[Waiting]:
        """Return batches in the order of their reading; raises `SpoolDamaged` for a broken one."""
        found: list[Waiting] = []
        size = 0
        with self._guarded():
            rows = self._db.execute(
                "SELECT number, header, sha256, crc,"
                " CASE WHEN length(compressed) <= ? THEN compressed END FROM batches"
                " WHERE number > ? ORDER BY number LIMIT ?",
                (PIECE_BYTES, after, most),
            )
            for number, header, sha256, crc, small in rows:
                compressed = small if small is not None else self._content(number)
                if zlib.crc32(compressed) != crc:
                    raise SpoolDamaged(f"batch {number} is not what was written")
                packed = Packed(Header.model_validate_json(header), compressed, sha256)
                found.append(Waiting(number, packed))
                size += len(compressed)
                if size >= most_bytes:
                    break
            rows.close()
        return found

    def has_batches(self) -> bool:
        """Whether a batch waits that the queue has not taken."""
        with self._guarded():
            waiting = self._number("SELECT COUNT(*) FROM (SELECT 1 FROM batches LIMIT 1)")
        return bool(waiting)

    def taken(self, batches: Iterable[Sent]) -> None:
        """Remove batches that the queue has taken, with the next commit or `settle`."""
        with self._lock:
            for number, size in batches:
                self._taken.append(number)
                self._taken_bytes += size

    def settle(self) -> None:
        """Remove now what was taken, and give back what room that makes."""
        with self._lock:
            if not self._taken:
                return
            # On a full disk even a removal has no room; it is made up for with the next one.
            with suppress(SpoolFull), self._transaction():
                self._remove_taken()
            with self._guarded():
                if self._number("PRAGMA freelist_count") > FREE_PAGES:
                    # `execute` would take a single step, which frees a single page.
                    self._db.executescript("PRAGMA incremental_vacuum")

    # ------------------------------------------------------------ the books

    def ledger(self) -> Ledger:
        """Sum up all files of this destination."""
        self.settle()
        with self._guarded():
            files = self._db.execute(
                "SELECT COUNT(*), COALESCE(SUM(offset), 0), COALESCE(SUM(sent_sequence), 0),"
                " COALESCE(SUM(filtered), 0), COALESCE(SUM(redacted), 0) FROM files"
            ).fetchone()
            spooled = self._number(
                "SELECT COALESCE(SUM(lines), 0) FROM batches JOIN files"
                " USING (partition_key, role, generation)"
            )
            failing = self._number("SELECT COUNT(*) FROM errors")
        count, size, passed, filtered, redacted = files
        return Ledger(
            files=count,
            bytes=size,
            read=passed + filtered,
            filtered=filtered,
            redacted=redacted,
            spooled=spooled,
            sent=passed - spooled,
            failing=failing,
        )

    def files(self) -> list[FileState]:
        """Return every file, with what waits of it."""
        self.settle()
        with self._guarded():
            rows = self._db.execute(
                f"SELECT partition_key, role, path, waits, waiting_bytes, oldest, {_KNOWN}"  # noqa: S608
                " FROM files LEFT JOIN (SELECT partition_key, role, generation, SUM(lines) waits,"
                " SUM(size) waiting_bytes, MIN(spooled_at) oldest FROM batches GROUP BY 1, 2, 3)"
                " USING (partition_key, role, generation) ORDER BY partition_key, role"
            ).fetchall()
        return [
            FileState(key, role, path, _known(known), waits or 0, size or 0, oldest)
            for key, role, path, waits, size, oldest, *known in rows
        ]

    def unstated(self, prefix: str, most_bytes: int) -> list[Statement]:
        """Return what the queue took and the consumer was not told of, as far as that fits.

        Only streams whose partition key begins with `prefix`. A file that is sent once more counts
        from its start, and says nothing new before it is as far as it was.
        """
        self.settle()
        found: list[Statement] = []
        size = 0
        with self._guarded():
            rows = self._db.execute(
                "SELECT f.partition_key, role, f.generation,"
                " sent_sequence - COALESCE(waits, 0) took"
                " FROM files f LEFT JOIN (SELECT partition_key, role, generation, SUM(lines) waits"
                " FROM batches GROUP BY 1, 2, 3) USING (partition_key, role, generation)"
                " LEFT JOIN stated s ON (s.partition_key, s.stream) = (f.partition_key, f.role)"
                " WHERE role IN (?, ?) AND took > 0 AND substr(f.partition_key, 1, ?) = ?"
                " AND (s.generation IS NULL OR s.generation < f.generation OR s.lines < took)",
                (*STREAMS, len(prefix), prefix),
            )
            for key, stream, generation, lines in rows:
                found.append(Statement(key, stream, generation, lines))
                size += len(orjson.dumps(key)) + STATEMENT_BYTES
                if size >= most_bytes:
                    break
            rows.close()
        return found

    def state(self, statements: Iterable[Statement]) -> None:
        """Note that the consumer was told; where that has no room it is told once more."""
        with suppress(SpoolFull), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO stated VALUES (?, ?, ?, ?)", statements)

    def state_anew(self, files: Iterable[FileId] | None = None) -> None:
        """Forget what the consumer was told of these files, or of all: it is told again."""
        with suppress(SpoolFull), self._transaction():
            if files is None:
                self._db.execute("DELETE FROM stated")
            else:
                self._db.executemany(
                    "DELETE FROM stated WHERE partition_key = ? AND stream = ?",
                    ((file.key.partition_key, file.role) for file in files),
                )

    def errors(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """Return (path, error, since) of the files that are not read on, by key and role."""
        with self._guarded():
            rows = self._db.execute("SELECT * FROM errors ORDER BY path").fetchall()
        return {(key, role): (path, error, since) for key, role, path, error, since in rows}

    def note(self, name: str, value: Any) -> None:
        """Keep a small value for `ferry status`, if the disk has room; None removes it."""
        with suppress(SpoolFull), self._guarded():
            if value is None:
                self._db.execute("DELETE FROM notes WHERE name = ?", (name,))
            else:
                text = orjson.dumps(value).decode()
                self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, text))

    def notes(self) -> dict[str, Any]:
        """Return all such values."""
        with self._guarded():
            rows = self._db.execute("SELECT name, value FROM notes").fetchall()
        return {name: orjson.loads(value) for name, value in rows}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            try:
                self.settle()
            except SpoolDamaged:
                log.debug("a damaged spool was closed")
            self._db.close()

    # ------------------------------------------------------------ the database

    def _prepare(self) -> str:
        version = self._number("PRAGMA user_version")
        if version > _VERSION:
            raise UserError(f"The spool {self.path} was written by a newer version of this agent.")
        fault = self._db.execute("PRAGMA quick_check(1)").fetchone()[0] if self._check else "ok"
        if fault != "ok":
            raise SpoolDamaged(str(fault))
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            row = self._db.execute("SELECT id FROM spool").fetchone()
            fresh = uuid.uuid4().hex
            if row is None:
                self._db.execute("INSERT INTO spool VALUES (?)", (fresh,))
        self._db.execute(f"PRAGMA user_version = {_VERSION}")
        return str(row[0]) if row else fresh

    def _insert(self, file: FileId, packed: Packed, now: float) -> None:
        """Keep a batch; one that is large piece by piece, since SQLite would copy it twice."""
        compressed = packed.compressed
        is_large = len(compressed) > PIECE_BYTES
        content = "zeroblob(?)" if is_large else "?"
        added = self._db.execute(
            "INSERT INTO batches (partition_key, role, generation, lines, size, spooled_at,"  # noqa: S608
            f" header, sha256, crc, compressed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, {content})",
            (*_batch_row(file, packed, now), len(compressed) if is_large else compressed),
        )
        if is_large and added.lastrowid is not None:
            with self._db.blobopen("batches", "compressed", added.lastrowid) as blob:
                view = memoryview(compressed)
                for start in range(0, len(view), PIECE_BYTES):
                    blob.write(view[start : start + PIECE_BYTES])

    def _content(self, number: int) -> bytes:
        with self._db.blobopen("batches", "compressed", number, readonly=True) as blob:
            return blob.read()

    def _count_bytes(self) -> int:
        return self._number("SELECT COALESCE(SUM(size), 0) FROM batches")

    def _make_room(self, size: int) -> None:
        if not self.has_room(size):
            self.settle()
            if not self.has_room(size):
                raise SpoolFull

    def _remove_taken(self) -> None:
        self._db.executemany("DELETE FROM batches WHERE number = ?", ((n,) for n in self._taken))
        self.used_bytes -= self._taken_bytes
        self._taken, self._taken_bytes = [], 0

    def _number(self, statement: str) -> int:
        return int(self._db.execute(statement).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit everything inside at once."""
        with self._guarded():
            taken, size, used = self._taken, self._taken_bytes, self.used_bytes
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._taken, self._taken_bytes, self.used_bytes = taken, size, used
                raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Hold the lock, and say what a failure of the database means."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise SpoolFull from None
                raise TransientError(f"The spool {self.path} cannot be used: {error}.") from None
            except sqlite3.DatabaseError as error:
                raise SpoolDamaged(str(error)) from None


_KNOWN = (
    "generation, rules, offset, prefix_sha256, sent_offset, sent_sequence, filtered, redacted,"
    " carry, tail_sha256, size, modified_ns"
)


def open_spool(
    path: Path, *, most_bytes: int, free_bytes: int, damage: SpoolDamaged | None = None
) -> Spool:
    """Open a spool; a damaged one is set aside, and what can be read of its batches is kept.

    `damage` is what was found while it was used.
    """
    try:
        if damage is not None:
            raise damage
        return Spool(path, most_bytes=most_bytes, free_bytes=free_bytes)
    except SpoolDamaged as error:
        aside = set_aside(path)
        log.warning(
            "the spool is damaged (%s); it was moved to %s and the files are read again",
            *(error, aside),
        )
    spool = Spool(path, most_bytes=most_bytes, free_bytes=free_bytes)
    saved = salvage(aside, spool)
    log.warning("%d batches of the damaged spool could be saved", saved)
    return spool


def read_places(path: Path) -> dict[tuple[str, str], Known]:
    """Read how far each file was read, by partition key and role, and change nothing.

    Raises `SpoolDamaged` as a spool does.
    """
    # Without a log beside it nobody is writing, and none has to be made for the reading.
    is_settled = not path.with_name(f"{path.name}-wal").exists()
    place = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_settled else ''}"
    try:
        with closing(sqlite3.connect(place, uri=True, timeout=30)) as db:
            rows = db.execute(f"SELECT partition_key, role, {_KNOWN} FROM files").fetchall()  # noqa: S608
    except sqlite3.OperationalError as error:
        raise TransientError(f"The spool {path} cannot be used: {error}.") from None
    except sqlite3.DatabaseError as error:
        raise SpoolDamaged(str(error)) from None
    return {(key, role): _known(known) for key, role, *known in rows}


def set_aside(path: Path) -> Path:
    """Move a spool out of the way, with what belongs to it; return its new place."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside = path.with_name(f"{path.name}.damaged-{moment}")
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            # Windows renames no file that somebody has open, as `ferry status` may have this one.
            patiently(partial(part.rename, aside.with_name(aside.name + ending)))
    return aside


def salvage(damaged: Path, spool: Spool) -> int:
    """Copy the sound batches of a damaged spool; return how many there were.

    Their files may be gone. Sending them beside what is read again is harmless.
    """
    saved = 0
    try:
        db = sqlite3.connect(damaged, isolation_level=None)
    except sqlite3.Error:
        return 0
    try:
        for header, sha256, crc, compressed in db.execute(
            "SELECT header, sha256, crc, compressed FROM batches ORDER BY number"
        ):
            if zlib.crc32(compressed) == crc:
                own = Header.model_validate_json(header)
                file = FileId(own.key, own.stream or "metadata")
                spool.commit(Step([(file, Packed(own, compressed, sha256))], {}, len(compressed)))
                saved += 1
    except (sqlite3.Error, ValueError, TypeError, SpoolFull) as error:
        log.info("no more of the damaged spool could be read: %s", error)
    finally:
        db.close()
    return saved


class SpoolLock:
    """Held by the one process that reads into a spool and sends out of it."""

    def __init__(self, spool: Path) -> None:
        self._path = spool.with_name(spool.name + ".lock")
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        lock = Lock(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            is_ours = lock.acquire()
        except OSError as error:
            raise refused(f"The spool's lock {self._path} cannot be used", error) from None
        if not is_ours:
            raise TransientError(
                "Another `ferry ship` is at work for this destination; `ferry status` shows how "
                "far it is. Stop it first, or let it do its work."
            )
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def is_held(self) -> bool:
        """Whether some process holds it."""
        return is_held(self._path)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as error:
        raise TransientError(f"The spool {path} cannot be used: {error}.") from None
    try:
        path.chmod(0o600)
        for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.OperationalError as error:
        db.close()
        raise TransientError(f"The spool {path} cannot be used: {error}.") from None
    except sqlite3.DatabaseError as error:
        db.close()
        raise SpoolDamaged(str(error)) from None
    return db


def _batch_row(file: FileId, packed: Packed, now: float) -> tuple[object, ...]:
    header, compressed = packed.header, packed.compressed
    return (
        *(file.key.partition_key, file.role, header.generation, header.line_count),
        *(len(compressed), now, header.to_json(), packed.sha256, zlib.crc32(compressed)),
    )


def _file_row(file: FileId, path: Path, known: Known) -> tuple[object, ...]:
    return (
        *(file.key.partition_key, file.role, _text(path), known.generation, known.rules),
        *(known.offset, known.prefix_sha256, *known.sent, known.filtered, known.redacted),
        orjson.dumps(known.carry).decode(),
        *(known.tail_sha256, known.size, known.modified_ns),
    )


def _known(row: Sequence[Any]) -> Known:
    generation, rules, offset, sha256, sent_offset, sent_sequence, filtered, redacted = row[:8]
    carry, tail_sha256, size, modified_ns = row[8:]
    return Known(
        *(generation, rules, offset, sha256, Place(sent_offset, sent_sequence)),
        *(filtered, redacted, orjson.loads(carry), tail_sha256, size, modified_ns),
    )


def _text(path: Path) -> str:
    return str(path).encode("utf-8", "replace").decode()
