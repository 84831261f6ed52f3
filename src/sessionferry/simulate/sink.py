"""A session file that is counted while it is written."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from sessionferry.simulate.oracle import BLANK, BOM, Facts, FileOracle

Piece: TypeAlias = bytes | bytearray

_BUFFER: Final = 1 << 18  # bytes
_BLANK_LINES: Final = (b"\n", b"  \t\n", b"\r\n")
_BLANK_EVERY: Final = 9  # lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a file is laid out around its lines."""

    bom: bool = False
    crlf: bool = False
    blanks: bool = False


UNIX: Final = Dialect()


class CountedFile:
    """Writes lines piece by piece and keeps their counts; used as a context manager."""

    def __init__(self, root: Path, entry: FileOracle, dialect: Dialect = UNIX) -> None:
        self.entry = entry
        self._digest = hashlib.sha256()
        self._ending = b"\r\n" if dialect.crlf else b"\n"
        self._blanks = cycle(_BLANK_LINES) if dialect.blanks else None
        path = root / self.entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb", buffering=_BUFFER)
        if dialect.bom:
            self.put(BOM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self.entry.sha256 = self._digest.hexdigest()

    def put(self, piece: Piece) -> None:
        """Write bytes that are no line: a blank line, a byte order mark, a whole document."""
        self._file.write(piece)
        self._digest.update(piece)
        self.entry.bytes += len(piece)

    def line(self, pieces: Iterable[Piece], facts: Facts) -> None:
        """Write one line; the pieces stand before the line end."""
        for piece in pieces:
            self.put(piece)
        self.put(self._ending)
        self.entry.count(facts)
        if self._blanks and self.entry.lines % _BLANK_EVERY == 0:
            self.put(next(self._blanks))

    def tail(self, piece: bytes) -> None:
        """Write the last bytes of the file, without a line end."""
        self.put(piece)
        self.entry.tail_bytes = len(piece) if piece.strip(BLANK) else 0
