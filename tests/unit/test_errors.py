"""The error tree, and what each exception of any library asks for."""

import asyncio
import errno
import os
import re
from typing import Any

import azure.core.exceptions as azure
import azure.servicebus.exceptions as bus
import pytest

from sessionferry import errors
from sessionferry.errors import (
    BadBatch,
    BadClaim,
    BadIdentity,
    BatchTooLarge,
    FerryError,
    ItemChanged,
    Kind,
    PermanentError,
    SessionDeleted,
    ThrottledError,
    TransientError,
    UnsupportedBatch,
    UserError,
    classify,
    refused,
    retry_after,
)


def descendants(cls: type[FerryError]) -> list[type[FerryError]]:
    """Return a class and all below it, in this module's order."""
    below = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [cls, *(found for sub in below for found in descendants(sub))]


ALL = descendants(FerryError)


class Status(Exception):
    """Like the errors of HTTP clients."""

    def __init__(self, status_code: object, headers: object = None) -> None:
        super().__init__("from a server")
        self.status_code = status_code
        self.headers = headers


def named(name: str) -> Exception:
    """Return an exception of a library that is not installed here, known by its name alone."""
    made: type[Exception] = type(name, (Exception,), {})
    return made("from a library")


# ---------------------------------------------------------------- the tree


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = [
        (len(match[1]) // 4, match[2])
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"^    ([\u2502\u251c\u2514\u2500 ]*)(\w+)(  |$)", line))
    ]
    real = [(len(cls.__mro__) - len(FerryError.__mro__), cls.__name__) for cls in ALL]
    assert drawn == real


@pytest.mark.parametrize("cls", ALL)
def test_every_error_says_what_it_is(cls: type[FerryError]) -> None:
    assert cls.__dict__.get("__doc__")
    assert re.fullmatch(r"[a-z_]{1,32}", cls.__dict__["code"])
    shown = str(cls())
    assert shown.endswith(".")
    assert "\n" not in shown


def test_codes_are_unique() -> None:
    assert len({cls.code for cls in ALL}) == len(ALL)


def test_an_error_carries_its_own_sentence() -> None:
    assert str(BadBatch("The header is late.")) == "The header is late."
    assert ThrottledError("Busy.", retry_after=3).retry_after == 3


# ---------------------------------------------------------------- classification


@pytest.mark.parametrize("cls", ALL)
def test_our_own_errors_are_of_the_kind_they_stand_under(cls: type[FerryError]) -> None:
    expected = Kind.TRANSIENT
    if issubclass(cls, PermanentError | UserError):
        expected = Kind.PERMANENT
    elif issubclass(cls, ThrottledError):
        expected = Kind.THROTTLED
    assert classify(cls()) is expected


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), Kind.TRANSIENT),  # since 3.11 also asyncio's
        (asyncio.CancelledError(), Kind.TRANSIENT),
        (MemoryError(), Kind.TRANSIENT),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Kind.TRANSIENT),
        (ConnectionRefusedError(), Kind.TRANSIENT),
        (BrokenPipeError(), Kind.TRANSIENT),
        (OSError(errno.ENOSPC, "disk full"), Kind.TRANSIENT),
        (OSError(errno.EIO, "disk fault"), Kind.TRANSIENT),
        (PermissionError(errno.EACCES, "no"), Kind.TRANSIENT),
        (OSError("no number"), Kind.TRANSIENT),
        (OSError(errno.ENAMETOOLONG, "name"), Kind.PERMANENT),
        (IsADirectoryError(errno.EISDIR, "dir"), Kind.PERMANENT),
        (NotADirectoryError(errno.ENOTDIR, "dir"), Kind.PERMANENT),
        (RuntimeError("who knows"), Kind.TRANSIENT),
        (ValueError("who knows"), Kind.TRANSIENT),
        (bus.ServiceBusServerBusyError(message="busy"), Kind.THROTTLED),
        (bus.ServiceBusQuotaExceededError(message="full"), Kind.THROTTLED),
        (bus.MessageSizeExceededError(message="large"), Kind.PERMANENT),
        (bus.ServiceBusConnectionError(message="gone"), Kind.TRANSIENT),
        (bus.ServiceBusAuthorizationError(message="no"), Kind.TRANSIENT),
        (bus.MessageLockLostError(message="late"), Kind.TRANSIENT),
        (azure.ServiceRequestError("no route"), Kind.TRANSIENT),
        (azure.HttpResponseError("no status"), Kind.TRANSIENT),
        (named("DataError"), Kind.PERMANENT),
        (named("NotSupportedError"), Kind.PERMANENT),
        (named("OperationalError"), Kind.TRANSIENT),
    ],
)
def test_foreign_errors_are_classified(error: BaseException, kind: Kind) -> None:
    assert classify(error) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, Kind.THROTTLED) for status in (429,)],
        *[(status, Kind.TRANSIENT) for status in (401, 403, 408, 409, 412, 449)],
        *[(status, Kind.TRANSIENT) for status in (500, 502, 503, 504, 507, 599)],
        *[(status, Kind.PERMANENT) for status in (400, 404, 405, 410, 413, 422)],
        *[(status, Kind.TRANSIENT) for status in (None, "404", 200, 0)],
    ],
)
def test_a_status_code_says_what_to_do(status: object, kind: Kind) -> None:
    assert classify(Status(status)) is kind


def test_a_subclass_counts_as_what_it_is_derived_from() -> None:
    class Busier(bus.ServiceBusServerBusyError):
        pass

    assert classify(Busier(message="busy")) is Kind.THROTTLED


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BatchTooLarge, BadBatch),
        (UnsupportedBatch, BadBatch),
        (BadClaim, PermanentError),
        (BadIdentity, PermanentError),
        (SessionDeleted, PermanentError),
        (ItemChanged, TransientError),
    ],
)
def test_callers_can_catch_the_more_general(one: type[Any], other: type[Any]) -> None:
    assert issubclass(one, other)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, TransientError),
        (errno.EACCES, TransientError),
        (errno.EIO, TransientError),
        (errno.EROFS, TransientError),
        (errno.ENOTDIR, UserError),
        (errno.EISDIR, UserError),
    ],
)
def test_what_the_system_refuses_may_pass_or_is_a_mistake(
    number: int, kind: type[FerryError]
) -> None:
    raised = refused("The file x cannot be written", OSError(number, os.strerror(number)))
    assert type(raised) is kind
    assert str(raised) == f"The file x cannot be written: {os.strerror(number)}."


# ---------------------------------------------------------------- how long to wait


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ThrottledError(retry_after=2.5), 2.5),
        (Status(429, {"x-ms-retry-after-ms": "1500"}), 1.5),
        (Status(429, {"x-ms-retry-after-ms": 250}), 0.25),
        (Status(429, {"x-ms-retry-after-ms": "soon"}), 9.0),
        (Status(429, {}), 9.0),
        (Status(429), 9.0),
        (Status(429, "no mapping"), 9.0),
        (RuntimeError(), 9.0),
    ],
)
def test_the_wait_is_what_the_server_asked_for(error: BaseException, seconds: float) -> None:
    assert retry_after(error, 9.0) == seconds
