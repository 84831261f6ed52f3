r"""Opening a session file so that the tool that owns it can delete, rename and go on writing it.

Elsewhere every file is opened so. On Windows Python's own `open` forbids deleting and renaming
until the file is closed again, and the tool would fail. One thing stays forbidden there while a
file is open at all: to put another file in its place with `MoveFileExW`, as Python's `os.replace`
does. Files that are replaced are therefore only open while they are read.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

SNAPSHOT_BYTES = 16 * 1024 * 1024
"""A file up to this size, which its tool may replace, is closed on Windows before work on it."""
MAX_WINDOWS_CHARS = 259
"""Longest path that Windows takes as it is, unless it was told to take longer ones."""

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import os
    from ctypes import wintypes

    _GENERIC_READ = 0x8000_0000
    _SHARE_READ_WRITE_DELETE = 0x1 | 0x2 | 0x4
    _OPEN_EXISTING = 3
    _FILE_ATTRIBUTE_NORMAL = 0x80
    _INVALID_HANDLE = ctypes.c_void_p(-1).value

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _create_file = _kernel32.CreateFileW
    _create_file.restype = wintypes.HANDLE
    _create_file.argtypes = (
        *(wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, wintypes.LPVOID),
        *(wintypes.DWORD, wintypes.DWORD, wintypes.HANDLE),
    )
    _close_handle = _kernel32.CloseHandle
    _close_handle.argtypes = (wintypes.HANDLE,)

    def open_shared(path: Path) -> BinaryIO:
        """Open a file for reading, in nobody's way; raises `OSError` as `open` does."""
        handle = _create_file(
            extended(os.path.abspath(path)),  # noqa: PTH100 - `Path.absolute` keeps `..`
            *(_GENERIC_READ, _SHARE_READ_WRITE_DELETE, None),
            *(_OPEN_EXISTING, _FILE_ATTRIBUTE_NORMAL, None),
        )
        if handle == _INVALID_HANDLE:
            code = ctypes.get_last_error()
            raise OSError(None, ctypes.FormatError(code).strip(), str(path), code)
        try:
            descriptor = msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_NOINHERIT)
        except OSError:
            _close_handle(handle)
            raise
        return os.fdopen(descriptor, "rb")

else:

    def open_shared(path: Path) -> BinaryIO:
        """Open a file for reading, in nobody's way; raises `OSError` as `open` does."""
        return path.open("rb")


def snapshot(file: BinaryIO, size: int) -> BinaryIO:
    """Be out of the way of the tool that replaces this file: have its content, from its start."""
    if sys.platform == "win32" and size <= SNAPSHOT_BYTES:
        with file:
            file.seek(0)
            return io.BytesIO(file.read())
    else:
        return file


def extended(path: str) -> str:
    r"""Write an absolute Windows path in the form that may be longer than 260 characters.

    `C:\a` gives `\\?\C:\a`, and `\\server\share` gives `\\?\UNC\server\share`.
    """
    if path.startswith("\\\\?\\"):
        return path
    if path.startswith("\\\\"):
        return "\\\\?\\UNC" + path[1:]
    return "\\\\?\\" + path


def unextended(path: str) -> str:
    """Write a path as people do; what is not `extended` stays as it is."""
    if path.startswith("\\\\?\\UNC\\"):
        return "\\" + path.removeprefix("\\\\?\\UNC")
    return path.removeprefix("\\\\?\\")


def at_any_depth(folder: Path) -> str:
    """Write an absolute folder so that all below it can be walked, however deep it lies."""
    return extended(str(folder)) if sys.platform == "win32" else str(folder)


def usual_folder(walked: str, names: Sequence[str]) -> Path:
    """Name a folder that was walked as people do, unless files in it can be named only at length.

    Windows alone knows `extended` paths; of others nothing is taken away.
    """
    plain = unextended(walked)
    longest = max(map(len, names), default=0)
    return Path(plain if len(plain) + 1 + longest <= MAX_WINDOWS_CHARS else walked)
