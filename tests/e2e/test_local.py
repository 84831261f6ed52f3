"""`ferry local`: starts, stops, survives its parts, and leaves nothing behind."""

import os
import signal
import socket
import urllib.request
from pathlib import Path

import psutil
import pytest

from sessionferry.batch import decode
from support.collector import Collector
from support.stack import Ferry, RunningStack, ended, wait_for


def has_connected(pid: int, port: int) -> bool:
    found = psutil.Process(pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == port for connection in found)


def write(home: Path, lines: int) -> Path:
    folder = home / ".amplifier" / "projects" / "-p" / "sessions" / "s"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_bytes(b'{"event": "tool:pre"}\n' * lines)
    return folder


@pytest.fixture
def stack(tmp_path: Path) -> RunningStack:
    return RunningStack(tmp_path)


def test_it_stops_in_good_order_and_goes_on_where_it_ended(stack: RunningStack) -> None:
    ferry = stack.ferry("mara")
    write(ferry.home, 2)
    with stack:
        assert (stack.data.stat().st_mode & 0o777) == 0o700
        assert ((stack.data / "local.json").stat().st_mode & 0o777) == 0o600
        port = stack.described.port
        ran = stack.owner.run("local", code=2)
        assert ran.stderr == (
            f"ferry: Another `ferry local` is running with the data folder {stack.data}.\n"
        )
        ferry.run("ship")
        ferry.wait()
        code, said = stack.stop(signal.SIGINT)
        assert code == 0
        assert said.endswith("Stopped. Nothing is lost: `ferry local` goes on where this ended.\n")
        assert stack.orphans() == []
        assert (stack.owner.home / "local.log").read_text() == ""
    assert ferry.run("sessions", "--json").json[0]["session_id"] == "s"  # stopped, yet readable
    write(ferry.home, 3)
    said = ferry.run("ship", code=2).stderr
    assert said.startswith("ferry: No `ferry local` is running with the data folder")
    with stack:
        assert stack.described.port == port
        assert ferry.run("ship", "--json").json["lines"] == 1
        ferry.wait("--bytes")
        assert stack.stop(signal.SIGTERM)[0] == 0
    assert stack.orphans() == []


def test_a_remembered_port_that_is_taken_gives_way_to_a_free_one(stack: RunningStack) -> None:
    with stack:
        port = stack.described.port
    with socket.create_server(("127.0.0.1", port)), stack:
        assert stack.described.port != port


def test_nothing_outlives_a_supervisor_that_was_killed(stack: RunningStack) -> None:
    with stack:
        for name in ("broker", "host"):
            stack.child(name)
        assert len(stack.orphans()) == 2
        stack.stop(signal.SIGKILL)
        assert wait_for(lambda: stack.orphans() == [], 30)
    with stack:  # the lock and the port are free again
        assert stack.child("broker")


def test_shipping_outlives_a_broker_that_is_killed(stack: RunningStack) -> None:
    ferry = stack.ferry("mara")
    write(ferry.home, 5)
    with stack:
        port = stack.described.port
        broker, host = stack.child("broker"), stack.child("host")
        os.kill(broker, signal.SIGKILL)
        assert ferry.run("ship", "--json").json["lines"] == 5
        assert stack.child("broker", other_than=broker) != broker
        assert stack.child("host") == host
        ferry.wait("--bytes")
        assert stack.described.port == port
        os.kill(host, signal.SIGKILL)
        write(ferry.home, 7)
        assert ferry.run("ship", "--json").json["lines"] == 2
        ferry.wait("--bytes")


def test_ctrl_c_stops_a_command_quietly(stack: RunningStack, tmp_path: Path) -> None:
    with stack:
        ferry = stack.ferry("mara")
        broker = stack.child("broker")
        os.kill(broker, signal.SIGSTOP)  # the queue takes nothing now
        try:
            write(ferry.home, 5)
            log = tmp_path / "ship.log"
            with ended(ferry.start("ship", stderr=log)) as shipping:
                # Not before it waits for the queue: Python may lose a signal while it imports.
                assert wait_for(lambda: has_connected(shipping.pid, stack.described.port), 30)
                shipping.send_signal(signal.SIGINT)
                assert shipping.wait(timeout=20) == 130
            assert "Traceback" not in log.read_text()
        finally:
            os.kill(broker, signal.SIGCONT)


def test_one_trace_leads_from_the_reading_of_a_file_to_the_log_of_its_documents(
    stack: RunningStack,
) -> None:
    with Collector() as collector:
        asked = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        stack.owner.environment |= asked
        ferry = stack.ferry("mara")
        ferry.environment |= asked
        write(ferry.home, 2)
        read_and_take_in(stack, ferry)
    (read,) = [span for span in collector.spans if span.name == "read batch"]
    assert (read.service, read.attributes["lines"], read.parent_id) == ("sessionferry-agent", 2, "")
    below = [span for span in collector.spans if span.parent_id == read.span_id]
    assert {(span.service, span.name) for span in below} == {
        ("sessionferry-agent", "send batch"),
        ("sessionferry-ingest", "take in batch"),
    }
    assert {span.trace_id for span in below} == {read.trace_id}


def read_and_take_in(stack: RunningStack, ferry: Ferry) -> None:
    """Ship, and find the trace of the archived batch in the log."""
    with stack:
        ferry.run("ship")
        ferry.wait()
        (archived,) = (stack.data / "archive").rglob("events/*/lines/*")
        traceparent = decode(archived.read_bytes()).header.traceparent
        assert traceparent is not None
        _, trace, _, _ = traceparent.split("-")
        log = (stack.data / "logs" / "functions-host.log").read_text()
        (line,) = [line for line in log.splitlines() if "kind=lines" in line]
        assert "lines=2 stored=2" in line
        assert line.endswith(f"trace={trace}")
        health = f"http://127.0.0.1:{stack.described.http}"
        for path in ("livez", "readyz"):
            with urllib.request.urlopen(f"{health}/{path}", timeout=20) as answer:  # noqa: S310
                assert answer.status == 200
