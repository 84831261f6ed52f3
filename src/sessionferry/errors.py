"""What can go wrong, and what each kind of failure asks for.

    FerryError
    ├── PermanentError            never works: quarantine the input, complete the message
    │   ├── BadBatch              a message that is no valid batch
    │   │   ├── BatchTooLarge     a batch that unpacks past a bound
    │   │   └── UnsupportedBatch  a kind, version or format that this consumer does not know (yet)
    │   ├── BadClaim              the inbox object is not what the message says
    │   ├── BadIdentity           an identity part that cannot be used
    │   ├── ArchiveMismatch       archived bytes are not those that were stored
    │   └── SessionDeleted        the session has a tombstone
    ├── ThrottledError            the server said when to come back
    ├── TransientError            may work later: retry, then leave it to the queue
    │   └── ItemChanged           somebody else wrote the item first
    └── UserError                 a person asked for something that cannot be done

Every error has a bounded `code`, used in quarantine entries, logs and metrics. `classify` is the
one place that decides what an exception of any library means.
"""

import asyncio
import errno
from enum import Enum
from typing import Any, ClassVar


class FerryError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or self.code).strip().split("\n", 1)[0])


class PermanentError(FerryError):
    """This input can never be processed."""

    code = "permanent"


class BadBatch(PermanentError):
    """The message is not a valid batch."""

    code = "bad_batch"


class BatchTooLarge(BadBatch):
    """The batch unpacks to more than is allowed."""

    code = "batch_too_large"


class UnsupportedBatch(BadBatch):
    """The batch is of a kind, version or format that this consumer does not know."""

    code = "unsupported_batch"


class BadClaim(PermanentError):
    """The inbox object is missing, or is not what the message announced."""

    code = "bad_claim"


class BadIdentity(PermanentError):
    """A part of an identity is empty, too long or not text."""

    code = "bad_identity"


class ArchiveMismatch(PermanentError):
    """The archived bytes are not those that were stored."""

    code = "archive_mismatch"


class SessionDeleted(PermanentError):
    """The session was deleted; `ferry undelete` lifts that."""

    code = "session_deleted"


class ThrottledError(FerryError):
    """The server asked to wait.

    `retry_after` is in seconds.
    """

    code = "throttled"

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TransientError(FerryError):
    """A passing fault."""

    code = "transient"


class ItemChanged(TransientError):
    """The item was written by somebody else in the meantime."""

    code = "item_changed"


class UserError(FerryError):
    """What was asked for cannot be done."""

    code = "user_error"


class Kind(Enum):
    """The three kinds of failure."""

    PERMANENT = "permanent"
    THROTTLED = "throttled"
    TRANSIENT = "transient"


_THROTTLING_STATUS = frozenset({429})
_TRANSIENT_STATUS = frozenset({401, 403, 408, 409, 412, 449, 500, 502, 503, 504})
_PERMANENT_ERRNO = frozenset({errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL})
_THROTTLING_NAMES = frozenset({"ServiceBusServerBusyError", "ServiceBusQuotaExceededError"})
_PERMANENT_NAMES = frozenset({"MessageSizeExceededError", "DataError", "NotSupportedError"})


def classify(error: BaseException) -> Kind:
    """Say what an exception asks for.

    What is not known to be permanent counts as transient: redelivery costs time, a wrong
    quarantine costs trust. Rights (401, 403) are transient because operators repair them while the
    messages wait; a full disk likewise.
    """
    if isinstance(error, PermanentError | UserError):
        return Kind.PERMANENT
    if isinstance(error, ThrottledError):
        return Kind.THROTTLED
    if isinstance(error, TransientError | TimeoutError | asyncio.CancelledError | MemoryError):
        return Kind.TRANSIENT
    if isinstance(error, OSError):
        return Kind.PERMANENT if error.errno in _PERMANENT_ERRNO else Kind.TRANSIENT
    return _classify_foreign(error)


def _classify_foreign(error: BaseException) -> Kind:
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _THROTTLING_NAMES:
        return Kind.THROTTLED
    if names & _PERMANENT_NAMES:
        return Kind.PERMANENT
    status: Any = getattr(error, "status_code", None)
    if status in _THROTTLING_STATUS:
        return Kind.THROTTLED
    if isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS:
        return Kind.PERMANENT
    return Kind.TRANSIENT


def refused(sentence: str, error: OSError) -> FerryError:
    """Return what to raise when the system refuses a file, with why: it may pass, or be a mistake.

    A full disk and missing rights pass, a file in the place of a folder does not.
    """
    whole = f"{sentence}: {error.strerror or error}."
    is_mistake = classify(error) is Kind.PERMANENT
    return UserError(whole) if is_mistake else TransientError(whole)


def retry_after(error: BaseException, default: float) -> float:
    """Return the wait in seconds that the server asked for, else `default`."""
    own = getattr(error, "retry_after", None)
    if isinstance(own, int | float):
        return float(own)
    headers = getattr(error, "headers", None) or {}
    milliseconds = headers.get("x-ms-retry-after-ms") if hasattr(headers, "get") else None
    try:
        return float(milliseconds) / 1000 if milliseconds is not None else default
    except ValueError:
        return default
