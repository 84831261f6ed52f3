"""What shipping would do: files are read and pass the gate, nothing is spooled or sent."""

from collections.abc import Callable
from pathlib import Path

from sessionferry.agent.collecting import Collector, Report
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked
from sessionferry.agent.spool import FileId, Known, Spool, Step
from sessionferry.host import Identity

MESSAGE_BYTES = 256 * 1024
"""Batches are packed as for Service Bus Standard; a link that takes more sends fewer."""


def rehearse(
    spool: Path | None,
    gate: Checked,
    identity: Identity,
    sources: list[Source],
    advance: Callable[[int], None],
) -> Report:
    """Return what `ferry ship` would report, reckoned from what a spool says was read already."""
    known = Spool(spool, check=False) if spool is not None and spool.exists() else None
    try:
        collector = Collector(
            _ReadOnly(known), gate, identity, limit=MESSAGE_BYTES, advance=advance
        )
        return collector.collect(sources)
    finally:
        if known is not None:
            known.close()


class _ReadOnly:
    """A spool's memory, in which nothing is kept."""

    def __init__(self, spool: Spool | None) -> None:
        self._spool = spool

    def known(self, file: FileId) -> Known | None:
        return self._spool.known(file) if self._spool else None

    def commit(self, step: Step) -> None:
        pass

    def fail(self, file: FileId, path: Path, error: str) -> None:
        pass

    def heal(self, file: FileId) -> None:
        pass
