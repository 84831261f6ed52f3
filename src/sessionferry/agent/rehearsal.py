"""What shipping would do: files are read and pass the gate, nothing is spooled, sent or written."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sessionferry.agent.collecting import Collector, Report
from sessionferry.agent.discover import Source
from sessionferry.agent.gate import Checked
from sessionferry.agent.spool import FileId, Known, SpoolDamaged, Step, read_places
from sessionferry.host import Identity

log = logging.getLogger(__name__)

MESSAGE_BYTES = 256 * 1024
"""Batches are packed as for Service Bus Standard; a link that takes more sends fewer."""


def rehearse(
    spool: Path | None,
    gate: Checked,
    identity: Identity,
    sources: list[Source],
    *,
    resend: bool = False,
    supersede: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Report:
    """Return what `ferry ship` would report, reckoned from what a spool says was read already.

    The identity is one that keeps nothing (`Identity.as_it_is`).
    """
    collector = Collector(
        _ReadOnly(_places(spool)),
        gate,
        identity,
        limit=MESSAGE_BYTES,
        resend=resend,
        supersede=supersede,
        advance=advance,
    )
    return collector.collect(sources)


def _places(spool: Path | None) -> Mapping[tuple[str, str], Known]:
    if spool is None or not spool.exists():
        return {}
    try:
        return read_places(spool)
    except SpoolDamaged as error:
        log.warning("the spool is damaged (%s): every file would be read again", error)
        return {}


class _ReadOnly:
    """A spool's memory, in which nothing is kept."""

    def __init__(self, places: Mapping[tuple[str, str], Known]) -> None:
        self._places = places

    def known(self, file: FileId) -> Known | None:
        return self._places.get((file.key.partition_key, file.role))

    def commit(self, step: Step) -> None:
        pass

    def fail(self, file: FileId, path: Path, error: str) -> None:
        pass

    def heal(self, file: FileId) -> None:
        pass
