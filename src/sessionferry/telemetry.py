"""What is measured and traced: declared once, recorded through OpenTelemetry's API.

Nothing goes anywhere until `start` has said where: to Azure Monitor, or to a page for Prometheus.
The names are the same in both; Prometheus adds `_total` and a unit, as is its custom. A trace
begins where the agent reads, travels in a batch's `traceparent`, and ends with its documents.
"""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sessionferry.errors import UserError

log = logging.getLogger(__name__)

NAME = "sessionferry"
AZURE_CONNECTION = "APPLICATIONINSIGHTS_CONNECTION_STRING"
_NOT_INSTRUMENTED = (
    *("azure_sdk", "django", "fastapi", "flask", "httpx", "psycopg2", "requests", "urllib"),
    "urllib3",
)


class Metric(NamedTuple):
    """One thing that is measured."""

    name: str
    kind: Literal["counter", "gauge", "histogram", "level"]
    unit: str
    description: str


METRICS = (
    Metric("ferry_messages_received", "counter", "1", "messages brought to their final state"),
    Metric("ferry_messages_failed", "counter", "1", "messages left to the queue by a fault"),
    Metric("ferry_messages_in_flight", "gauge", "1", "messages that are being handled"),
    Metric("ferry_messages_lag", "histogram", "s", "from enqueued until settled"),
    Metric("ferry_lines_received", "counter", "1", "lines in received batches"),
    Metric("ferry_lines_stored", "counter", "1", "lines that became documents"),
    Metric("ferry_lines_duplicate", "counter", "1", "lines that were stored before"),
    Metric("ferry_lines_quarantined", "counter", "1", "lines that could not become documents"),
    Metric("ferry_lines_conflicting", "counter", "1", "lines that differ from the stored ones"),
    Metric("ferry_lines_superseded", "counter", "1", "lines of an older generation"),
    Metric("ferry_lines_truncated", "counter", "1", "lines stored without their payload"),
    Metric("ferry_messages_quarantined", "counter", "1", "messages that could not be used at all"),
    Metric("ferry_archive_written", "counter", "By", "bytes put into the archive"),
    Metric("ferry_requests_throttled", "counter", "1", "requests that a service refused for now"),
    Metric("ferry_store_charged", "counter", "RU", "request units that Cosmos DB charged"),
    Metric("ferry_ledger_unbalanced", "level", "1", "sessions that lack lines, at the last look"),
    Metric("ferry_ledger_missing", "level", "1", "lines that hosts sent and the store lacks"),
)


def _instrument(metric: Metric) -> Any:
    meter = metrics.get_meter(NAME)
    make = {
        "counter": meter.create_counter,
        "gauge": meter.create_up_down_counter,
        "histogram": meter.create_histogram,
        "level": meter.create_gauge,
    }[metric.kind]
    return make(metric.name, unit=metric.unit, description=metric.description)


_instruments = {metric.name: _instrument(metric) for metric in METRICS}
_tracer = trace.get_tracer(NAME)
_contexts = TraceContextTextMapPropagator()


def add(name: str, amount: float = 1) -> None:
    """Add to a counter, or move a gauge up or down. `name` is one of `METRICS`."""
    _instruments[name].add(amount)


def level(name: str, value: float) -> None:
    """Say how high a level stands. `name` is one of `METRICS`."""
    _instruments[name].set(value)


def observe(name: str, value: float) -> None:
    """Note one value of a histogram. `name` is one of `METRICS`."""
    _instruments[name].record(value)


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str | int) -> Iterator[None]:
    """Trace what happens inside; `parent` is a W3C `traceparent`, ignored if it is none."""
    context = _contexts.extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(name, context=context, attributes=attributes):
        yield


def traceparent() -> str:
    """Return the current span as W3C trace context, or a new trace where none is recorded."""
    carrier: dict[str, str] = {}
    _contexts.inject(carrier)
    fresh = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    return carrier.get("traceparent", fresh)


def trace_id(parent: str | None) -> str | None:
    """Return the id of a `traceparent`'s trace, in 32 hex digits; None if it is none."""
    found = trace.get_current_span(_contexts.extract({"traceparent": parent or ""}))
    context = found.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


@cache
def start(metrics_port: int | None = None) -> None:
    """Send what is recorded to Azure Monitor where its connection is set, else offer it here.

    `metrics_port` is that of a page for Prometheus, on loopback. Raises `UserError` when it is
    taken. Done once: a start that went well is not repeated.
    """
    if os.environ.get(AZURE_CONNECTION):
        _to_azure()
    elif metrics_port is not None:
        _to_prometheus(metrics_port)


def _to_azure() -> None:
    from azure.identity import DefaultAzureCredential
    from azure.monitor.opentelemetry import configure_azure_monitor

    configure_azure_monitor(
        credential=DefaultAzureCredential(),
        # The platform takes the log from the process; twice would cost twice.
        disable_logging=True,
        enable_live_metrics=False,
        enable_performance_counters=False,
        instrumentation_options={name: {"enabled": False} for name in _NOT_INSTRUMENTED},
    )


def _to_prometheus(port: int) -> None:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import start_http_server

    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise UserError(
            f"Metrics cannot be offered on port {port}: {error.strerror}. Set another "
            "FERRY_METRICS_PORT."
        ) from None
    metrics.set_meter_provider(
        MeterProvider([PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False)])
    )
    log.info("metrics are on http://127.0.0.1:%d/metrics", port)
