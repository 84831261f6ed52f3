"""Metrics: declared once, described, right at each scrape, on loopback only."""

import re
import socket
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from sessionferry.agent import metrics
from sessionferry.agent.metrics import METRICS, PREFIX, Snapshot
from sessionferry.agent.spool import Ledger

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
LEDGER = Ledger(files=3, bytes=900, read=10, filtered=1, redacted=4, spooled=2, sent=7, failing=1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix(PREFIX): float(value) for name, value in rows}


def test_a_scrape_shows_what_is_true_now() -> None:
    now = datetime.now(UTC).isoformat()
    states = [
        Snapshot(LEDGER, 2000, {"contact": {"at": now}, "full": {"since": now}}),
        Snapshot(Ledger(), 0, {"trouble": {"error": "x"}}),
    ]
    port = free_port()
    end = metrics.serve(port, lambda: states.pop(0))
    try:
        first, second = scraped(port), scraped(port)
    finally:
        end()
    assert {first[f'lines{{state="{name}"}}'] for name in ("read", "sent")} == {10, 7}
    assert (first["files"], first["files_failing"], first["replacements"]) == (3, 1, 4)
    assert (first["spool_bytes"], first["spool_full"], first["sending_failing"]) == (2000, 1, 0)
    assert first["contact_age_seconds"] < 60
    assert (second["spool_full"], second["sending_failing"]) == (0, 1)
    assert second["contact_age_seconds"] != second["contact_age_seconds"]


def test_the_books_balance_in_the_metrics_too() -> None:
    (lines,) = (gauge for gauge in METRICS if gauge.name == "lines")
    values = lines.read(Snapshot(LEDGER, 0))
    assert values["read"] == values["filtered"] + values["spooled"] + values["sent"]


def test_a_port_that_was_given_back_can_be_taken_again() -> None:
    port = free_port()
    for _ in range(2):
        metrics.serve(port, lambda: Snapshot(LEDGER, 0))()


def test_every_metric_is_described_and_no_other() -> None:
    row = r"^\| `(ferry_agent_\w+)(?:\{(\w+)\})?` \| (.+) \|$"
    rows = re.findall(row, PAGE.read_text(), re.MULTILINE)
    assert rows == [(PREFIX + gauge.name, gauge.label, gauge.help) for gauge in METRICS]
