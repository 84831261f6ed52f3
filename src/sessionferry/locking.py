"""A lock on a file that one process holds for as long as it lives, on every system.

The system keeps it, so a process that was killed holds nothing. To ask whether it is held means to
take it for an instant; whoever wants to have it waits longer than that.
"""

from pathlib import Path

from filelock import FileLock, Timeout

_PATIENCE_SECONDS = 0.5
"""How long a lock is tried to be had: somebody may just be asking."""
_ASKING_SECONDS = 0.05
"""How long is waited for another one that is asking too."""
_POLL_SECONDS = 0.01


class Lock:
    """The lock of one file, which is made, kept, and never written to."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(
            path,
            mode=0o600,
            thread_local=False,
            poll_interval=_POLL_SECONDS,
            # A file that only stands for a lock would outlive a process that was killed.
            fallback_to_soft=False,
            # Whoever removes it takes it from under another one's feet.
            preserve_lock_file=True,
        )

    def acquire(self, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Take it; False when another one has it. Raises `OSError` when there can be no lock."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of this file, which may not be there."""
    if not path.exists():
        return False
    lock = Lock(path)
    if not lock.acquire(_ASKING_SECONDS):
        return True
    lock.release()
    return False
