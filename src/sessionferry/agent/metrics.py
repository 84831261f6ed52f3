"""Metrics of the agent for Prometheus: one declared list, served on loopback when asked for.

They are read from the spool at each scrape, so they are right after a restart too.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessionferry import __version__
from sessionferry.agent.spool import Ledger

ADDRESS = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the metrics are made of."""

    ledger: Ledger
    spool_bytes: int
    notes: dict[str, Any] = field(default_factory=dict)


class Gauge(NamedTuple):
    """One metric: its name without the prefix, what it says, its values by label."""

    name: str
    help: str
    label: str
    read: Callable[[Snapshot], dict[str, float]]


def _one(read: Callable[[Snapshot], float]) -> Callable[[Snapshot], dict[str, float]]:
    return lambda snapshot: {"": read(snapshot)}


def _lines(snapshot: Snapshot) -> dict[str, float]:
    ledger = snapshot.ledger
    return {name: getattr(ledger, name) for name in ("read", "filtered", "spooled", "sent")}


def _seconds_since(moment: object) -> float:
    """Return how long ago an ISO time was; NaN when it was never."""
    try:
        return time.time() - datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return float("nan")


PREFIX = "ferry_agent_"
METRICS = (
    Gauge("info", "Always 1.", "version", lambda _: {__version__: 1}),
    Gauge("files", "Files that were read.", "", _one(lambda s: s.ledger.files)),
    Gauge(
        "files_failing",
        "Files that cannot be read, or that were refused.",
        "",
        _one(lambda s: s.ledger.failing),
    ),
    Gauge(
        "read_bytes", "Bytes read of the files as they are now.", "", _one(lambda s: s.ledger.bytes)
    ),
    Gauge(
        "lines",
        "Lines of the files as they are now: read = filtered + spooled + sent.",
        "state",
        _lines,
    ),
    Gauge(
        "replacements",
        "Secrets and payloads replaced in them.",
        "",
        _one(lambda s: s.ledger.redacted),
    ),
    Gauge("spool_bytes", "Bytes that wait to be sent.", "", _one(lambda s: s.spool_bytes)),
    Gauge(
        "spool_full",
        "1 while reading waits for room in the spool.",
        "",
        _one(lambda s: float("full" in s.notes)),
    ),
    Gauge(
        "sending_failing",
        "1 while the queue cannot be reached, or refuses.",
        "",
        _one(lambda s: float("trouble" in s.notes)),
    ),
    Gauge(
        "contact_age_seconds",
        "Time since the queue last took something.",
        "",
        _one(lambda s: _seconds_since((s.notes.get("contact") or {}).get("at"))),
    ),
)


class FromSnapshots(Collector):
    """Makes the metrics of a new snapshot at each scrape."""

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without taking a snapshot."""
        return (GaugeMetricFamily(PREFIX + gauge.name, gauge.help) for gauge in METRICS)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        snapshot = self._take()
        for gauge in METRICS:
            labels = [gauge.label] if gauge.label else []
            family = GaugeMetricFamily(PREFIX + gauge.name, gauge.help, labels=labels)
            for label, value in gauge.read(snapshot).items():
                family.add_metric([label] if gauge.label else [], value)
            yield family


def serve(port: int, take: Callable[[], Snapshot]) -> Callable[[], None]:
    """Serve the metrics on a loopback port, from threads of their own; return what ends it.

    Raises `OSError` when the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(FromSnapshots(take))
    server, thread = start_http_server(port, addr=ADDRESS, registry=registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
