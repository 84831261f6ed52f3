"""What is measured and traced: declared once, recorded through OpenTelemetry's API.

Nothing goes anywhere until `start` has said where: to Azure Monitor, or to a page for Prometheus
and, for traces, to an OpenTelemetry collector. Names are the same in all; Prometheus adds `_total`
and a unit, as is its custom. A trace begins where the agent reads, travels in a batch's
`traceparent`, and ends with its documents.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sessionferry.errors import UserError

log = logging.getLogger(__name__)

NAME = "sessionferry"
INGEST, AGENT = "sessionferry-ingest", "sessionferry-agent"
"""What services are called in traces, unless OTEL_SERVICE_NAME says otherwise."""
AZURE_CONNECTION = "APPLICATIONINSIGHTS_CONNECTION_STRING"
_COLLECTOR = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
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


def spanned(name: str, since_ns: int, parent: str | None = None, **attributes: str | int) -> str:
    """Record a span that ends now, and return it as W3C trace context.

    It began at `since_ns`, in nanoseconds since 1970. `parent` is a `traceparent`; without one a
    trace begins here. Where nothing is recorded, the context is that of a new trace.
    """
    context = _contexts.extract({"traceparent": parent or ""}, Context())
    span = _tracer.start_span(name, context, start_time=since_ns, attributes=attributes)
    span.end()
    carrier: dict[str, str] = {}
    _contexts.inject(carrier, trace.set_span_in_context(span, Context()))
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
    taken, and what `tracing` raises. Done once: a start that went well is not repeated.
    """
    if os.environ.get(AZURE_CONNECTION):
        _to_azure()
        return
    if metrics_port is not None:
        _to_prometheus(metrics_port)
    _to_collector(INGEST)


@contextmanager
def tracing(service: str) -> Iterator[None]:
    """Send spans to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, while the block runs.

    Without it nothing is imported and nothing recorded. Raises `UserError` where the exporter is
    not installed, or cannot speak what is asked for.
    """
    end = _to_collector(service)
    try:
        yield
    finally:
        end()


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


def _to_collector(service: str) -> Callable[[], None]:
    """Set up traces where the environment names a collector; return what sends the last ones."""
    if not any(map(os.environ.get, _COLLECTOR)) or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return lambda: None
    protocol = next(filter(None, map(os.environ.get, _PROTOCOL)), "http/protobuf")
    if protocol != "http/protobuf":
        raise UserError(f"Traces are sent as http/protobuf; {_PROTOCOL[1]} says {protocol}.")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise UserError(
            f"{_COLLECTOR[1]} asks for traces, and their exporter is not installed: "
            "pip install 'sessionferry[traces]', or unset it."
        ) from None
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


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
