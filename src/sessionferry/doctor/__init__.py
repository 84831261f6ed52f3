"""Checks of what this machine is set up to use, and what to do where something is wrong.

A check is a small coroutine function that yields findings. Add one by writing it in a module of
its field and naming it in `cli/doctor.py`. A check that finds nothing to look at yields nothing.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from sessionferry.errors import FerryError
from sessionferry.settings import Settings


class Verdict(Enum):
    """How a check ends."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well, or not for long."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: of what, how it is, and what to do about it."""

    subject: str
    verdict: Verdict
    said: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """Render for programs."""
        return asdict(self) | {"verdict": self.verdict.value}


Check = Callable[[Settings], AsyncIterator[Finding]]


def ok(subject: str, said: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(subject, Verdict.OK, said)


def warning(subject: str, said: str, fix: str) -> Finding:
    """Say that something works, but not as it should."""
    return Finding(subject, Verdict.WARNING, said, fix)


def wrong(subject: str, said: str, fix: str) -> Finding:
    """Say that something does not work."""
    return Finding(subject, Verdict.WRONG, said, fix)


async def examine(settings: Settings, checks: tuple[Check, ...]) -> AsyncIterator[Finding]:
    """Run checks in order; one that fails by itself is a finding, and does not stop the others."""
    for check in checks:
        try:
            async for finding in check(settings):
                yield finding
        except FerryError as error:
            subject = check.__name__.removeprefix("check_").replace("_", " ")
            yield wrong(subject, str(error), "")
