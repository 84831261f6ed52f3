"""What is measured and traced."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sessionferry import telemetry
from sessionferry.agent.discover import discover
from sessionferry.agent.gate import Checked, OpenGate
from sessionferry.agent.shipping import Shipper
from sessionferry.agent.spool import Spool
from sessionferry.archive import Archive
from sessionferry.batch import encode
from sessionferry.delivery import Message
from sessionferry.host import Identity
from sessionferry.ingest import Ingest
from sessionferry.store.sql import SqlStore
from support.collector import Collector
from support.infra_policies import AZURE_SAMPLER
from support.links import MemorySender
from support.strategies import batch

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    """What a metrics SDK reads; it can be set up once in a process."""
    found = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([found]))
    return found


@pytest.fixture(scope="module")
def all_spans() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(all_spans: InMemorySpanExporter) -> InMemorySpanExporter:
    all_spans.clear()
    return all_spans


def totals(reader: InMemoryMetricReader) -> dict[str, float]:
    """Sums of counters and gauges, numbers of values of histograms."""
    data = reader.get_metrics_data()
    found: dict[str, float] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                (point,) = metric.data.data_points
                found[metric.name] = getattr(point, "value", None) or getattr(point, "count", 0)
    return found


async def taken_in(*messages: Message) -> None:
    async with SqlStore.open("sqlite://") as store:
        await Ingest(store, Archive.open("memory://"), Archive.open("memory://")).take_in(messages)


def test_each_metric_has_one_plain_name_and_says_what_it_is() -> None:
    names = [metric.name for metric in telemetry.METRICS]
    assert len(set(names)) == len(names)
    for metric in telemetry.METRICS:
        assert re.fullmatch(r"ferry(_[a-z]+)+", metric.name)
        assert metric.description
        assert metric.unit


async def test_taking_messages_in_counts_lines_and_messages(reader: InMemoryMetricReader) -> None:
    before = totals(reader)
    body = encode(batch(b'{"event":"a"}\nnot json\n', session_id="counted"))
    await taken_in(
        Message(body=body, enqueued_at=0.0),
        Message(body=body, enqueued_at=0.0),
        Message(body=b"junk"),
    )
    after = totals(reader)
    more = {name: after[name] - before.get(name, 0) for name in after}
    wanted = {
        "ferry_messages_received": 3,
        "ferry_messages_quarantined": 1,
        "ferry_messages_in_flight": 0,
        "ferry_messages_lag": 2,
        "ferry_lines_received": 4,
        "ferry_lines_stored": 1,
        "ferry_lines_duplicate": 1,
        "ferry_lines_quarantined": 2,
        "ferry_archive_written": 2 * len(body) + len(b"junk"),
    }
    assert {name: more[name] for name in wanted} == wanted


async def test_a_trace_goes_on_from_the_batch(spans: InMemorySpanExporter) -> None:
    await taken_in(Message(body=encode(batch(b"{}\n", traceparent=TRACE))))
    (span,) = [found for found in spans.get_finished_spans() if found.name == "take in batch"]
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in TRACE
    assert f"{span.context.trace_id:032x}" in TRACE


@pytest.mark.parametrize(
    "hostile", ["", "00", "x" * 256, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"]
)
async def test_a_traceparent_that_is_none_begins_a_new_trace(
    spans: InMemorySpanExporter, hostile: str
) -> None:
    await taken_in(Message(body=encode(batch(b"{}\n", traceparent=hostile))))
    (span,) = [found for found in spans.get_finished_spans() if found.name == "take in batch"]
    assert span.parent is None


async def test_one_trace_leads_from_the_reading_over_the_sending_to_the_documents(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    folder = tmp_path / "projects" / "-p" / "sessions" / "s1"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(b'{"event":"a"}\n' * 2)
    identity = Identity(tmp_path / "identity", host_id="h1", user_id="anna")
    link = MemorySender()
    spool = Spool(tmp_path / "spool.db")
    before = time.time_ns()
    shipper = Shipper(spool, Checked(OpenGate()), identity, limit=link.limit)
    await shipper.ship(discover([tmp_path], "anna", None), link)
    spool.close()
    await taken_in(*(Message(body=encode(one)) for one in link.accepted))
    found = {span.name: span for span in spans.get_finished_spans() if not is_heartbeat(span)}
    read, send, take = (found[name] for name in ("read batch", "send batch", "take in batch"))
    assert read.parent is None
    assert send.parent is not None
    assert take.parent is not None
    assert send.parent.span_id == take.parent.span_id == read.context.span_id
    assert read.context.trace_id == send.context.trace_id == take.context.trace_id
    assert before <= (read.start_time or 0) <= (send.start_time or 0) <= (take.start_time or 0)
    about = {"session": "anna|-p|s1", "stream": "events", "first": 0, "lines": 2}
    assert dict(read.attributes or {}) == about


def is_heartbeat(span: ReadableSpan) -> bool:
    return (span.attributes or {}).get("kind") == "heartbeat"


_CONTEXTS = """
from sessionferry import telemetry
parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
for given in (None, None, parent):
    print(telemetry.spanned("read batch", 1, given))
import sys
print("opentelemetry.sdk" in sys.modules)
"""


def test_without_a_collector_a_trace_has_an_id_and_nothing_is_loaded(tmp_path: Path) -> None:
    one, other, child, is_loaded = run(_CONTEXTS, tmp_path).split()
    assert one != other
    for fresh in (one, other, child):
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", fresh)
    assert child.startswith(f"00-{'a' * 32}-")
    assert is_loaded == "False"


_COLLECTED = """
from sessionferry import telemetry
with telemetry.tracing(telemetry.AGENT):
    telemetry.spanned("read batch", 1, lines=2)
"""
_REFUSED = """
from sessionferry import errors, telemetry
try:
    telemetry.start()
except errors.UserError as error:
    print(error)
"""


def test_a_collector_gets_the_spans_of_the_agent(tmp_path: Path) -> None:
    with Collector() as collector:
        run(_COLLECTED, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    (found,) = collector.spans
    assert (found.service, found.name, found.attributes) == (
        *("sessionferry-agent", "read batch"),
        {"lines": 2},
    )


def test_a_protocol_that_is_not_spoken_is_one_clear_sentence(tmp_path: Path) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert "Traces are sent as http/protobuf" in run(_REFUSED, tmp_path, **asked)
    assert run(_REFUSED, tmp_path, **asked, OTEL_TRACES_EXPORTER="none") == ""


_PAGE = """
import socket, urllib.request
from sessionferry import telemetry
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
for _ in range(2):  # as when the store was away at the first try
    telemetry.start(port)
telemetry.add("ferry_lines_stored", 3)
print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
"""
_TAKEN = """
import socket
from sessionferry import errors, telemetry
taken = socket.create_server(("127.0.0.1", 0))
try:
    telemetry.start(taken.getsockname()[1])
except errors.UserError as error:
    print(error)
"""
_SAMPLED = """
from opentelemetry import trace
from sessionferry import telemetry
telemetry.start(None)
print(trace.get_tracer_provider().sampler.get_description())
"""
_AZURE = """
from opentelemetry import metrics, trace
from sessionferry import telemetry
telemetry.start(None)
print(type(metrics.get_meter_provider()).__module__, type(trace.get_tracer_provider()).__module__)
"""
KEY = (
    "InstrumentationKey=00000000-0000-0000-0000-000000000000;IngestionEndpoint=http://127.0.0.1:9/"
)


def run(code: str, tmp_path: Path, **environment: str) -> str:
    """Run in a process of its own: what is set up stays set up."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_prometheus_finds_the_metrics_under_their_names(tmp_path: Path) -> None:
    assert re.search(r"^ferry_lines_stored_total\S* 3\.0$", run(_PAGE, tmp_path), re.MULTILINE)


def test_a_port_that_is_taken_is_one_clear_sentence(tmp_path: Path) -> None:
    assert "Set another FERRY_METRICS_PORT." in run(_TAKEN, tmp_path)


def test_azure_keeps_the_share_of_traces_that_the_deployment_asks_for(tmp_path: Path) -> None:
    asked = {"OTEL_TRACES_SAMPLER": AZURE_SAMPLER, "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    said = run(_SAMPLED, tmp_path, APPLICATIONINSIGHTS_CONNECTION_STRING=KEY, **asked)
    assert said.strip() == "TraceIdRatioBased{0.25}"


def test_azure_gets_metrics_and_traces_where_its_connection_is_set(tmp_path: Path) -> None:
    said = run(_AZURE, tmp_path, APPLICATIONINSIGHTS_CONNECTION_STRING=KEY)
    assert said.split() == ["opentelemetry.sdk.metrics._internal", "opentelemetry.sdk.trace"]
