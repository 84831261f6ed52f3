"""What a deployment costs per month, from stated assumptions: the tables of docs/cost.md.

    .venv/bin/python tools/cost_model.py            print the tables
    .venv/bin/python tools/cost_model.py --write    put them into docs/cost.md

Prices and habits are inputs: change them here and write the page anew. A test keeps the page true.
Request units come from the same formula as those of the Cosmos DB stand-in that the tests use.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cost.md"
sys.path.insert(0, str(ROOT))

from tests.support.cosmos import cost as request_units  # noqa: E402

GB = 1_000_000_000
FLEETS = (10, 1_000, 10_000)


@dataclass(frozen=True)
class Prices:
    """US dollars. List prices of a common region as remembered in 2026, to be replaced by yours."""

    serverless_million_ru: float = 0.25
    autoscale_100_ru_hour: float = 0.012
    cosmos_gb_month: float = 0.25
    cosmos_backup_gb_month: float = 0.20
    bus_base_month: float = 9.81
    bus_million_operations: float = 0.80
    bus_free_operations: float = 13_000_000
    function_gb_second: float = 0.000026
    function_million_executions: float = 0.40
    function_free_gb_seconds: float = 100_000
    function_free_executions: float = 250_000
    blob_write_10000: float = 0.0625
    blob_cool_write_10000: float = 0.13
    blob_hot_gb_month: float = 0.023
    blob_cool_gb_month: float = 0.0125
    log_gb: float = 2.76
    log_free_gb: float = 5.0


@dataclass(frozen=True)
class Habits:
    """What one machine does, and how it is set up."""

    days: float = 22
    """Working days a month."""
    active_hours: float = 4
    """Hours a day in which an agent writes."""
    streams: float = 2
    """Files that grow at the same time: events and transcript of one session."""
    sessions: float = 10
    """A day."""
    lines: float = 2_000
    """A day; each becomes a document."""
    line_bytes: float = 10_000
    """Mean of a source line, raw requests included."""
    document_bytes: float = 2_500
    """Mean of a stored document: large lines are truncated, our own fields added."""
    indexed_values: float = 24
    """Values per document that are indexed, composite ones included."""
    compression: float = 8
    """Source bytes over archived bytes; 200 KB pieces reach 4 to 8."""
    live_seconds: float = 30
    """`FERRY_LIVE_SECONDS`: what was written leaves after so long."""
    batch_bytes: float = 200_000
    """`FERRY_LIVE_KB`: … or when so much waits, compressed."""
    running_hours: float = 10
    """Hours a day in which the daemon runs."""
    heartbeat_seconds: float = 300
    """`FERRY_HEARTBEAT_SECONDS`"""
    merged: float = 1.2
    """Batches of one session that one invocation takes in together, and so with one head write."""
    invocation_messages: float = 4
    """Messages per invocation; 16 under load."""
    invocation_seconds: float = 0.5
    memory_gb: float = 2
    log_bytes: float = 1_500
    """Per message: one line, as it is billed."""
    trace_ratio: float = 0.1
    """`FERRY_TRACE_RATIO`: share of the messages whose span is kept."""
    span_bytes: float = 1_500
    """Per span, as it is billed."""
    invocation_bytes: float = 1_000
    """Per invocation: what the Functions host says of it."""
    statements: float = 12
    """A day: heartbeats that say what the queue took, half-hourly while something is sent."""
    months: float = 12
    """Kept so long: what is stored grows with it."""
    hot_months: float = 12
    """Archive objects are hot for so long, cool afterwards."""
    backup_days: float = 30
    """The database can be restored to any moment of so many days; the first 7 are free."""


HEAD_BYTES = 4_000
SESSION_BYTES = 3_000
PEAK = 4.0
"""Busiest moment over the mean: what autoscale has to reach."""
BILLED = 2.0
"""Each hour's highest RU/s over the mean: what autoscale bills."""
HOURS = 730.0
"""A month's."""


@dataclass(frozen=True)
class Bill:
    """A month, in US dollars."""

    requests: float
    documents: float
    queue: float
    functions: float
    archive_writes: float
    archive_bytes: float
    logs: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Load:
    """What a fleet does in a month."""

    messages: float
    archived: float
    """Messages that are archived: all but heartbeats."""
    documents: float
    request_units: float
    archived_bytes: float


def load(machines: float, habits: Habits) -> Load:
    """Count a month of a fleet."""
    machine_days = machines * habits.days
    archived = habits.lines * habits.line_bytes / habits.compression
    by_time = habits.active_hours * 3600 / habits.live_seconds * habits.streams
    by_size = archived / habits.batch_bytes
    # A batch holds at least one line.
    batches = min(max(by_time, by_size), habits.lines) + habits.sessions
    heartbeats = habits.running_hours * 3600 / habits.heartbeat_seconds
    messages = batches + heartbeats
    head = request_units.read(HEAD_BYTES) + request_units.replace(HEAD_BYTES, 2)
    session = request_units.read(SESSION_BYTES) + request_units.replace(SESSION_BYTES, 18)
    document = request_units.create(int(habits.document_bytes), int(habits.indexed_values))
    heartbeat = request_units.read(2_000) + request_units.replace(2_000, 4)
    # Written, listed, compared with the heads of both streams' session, and deleted.
    statement = request_units.create(500, 2) + request_units.read(500) * 2
    statement += request_units.read(HEAD_BYTES) + request_units.replace(500, 2) / 2
    units = (
        habits.lines * document
        + batches / habits.merged * (head + session)
        + heartbeats * heartbeat
        + habits.statements * statement
    )
    return Load(
        messages=messages * machine_days,
        archived=batches * machine_days,
        documents=habits.lines * machine_days,
        request_units=units * machine_days,
        archived_bytes=archived * machine_days,
    )


def serverless(units: float, prices: Prices) -> float:
    """A month's request units, each paid for."""
    return units / 1e6 * prices.serverless_million_ru


def autoscale(units: float, prices: Prices) -> tuple[int, float]:
    """The maximum that is needed, and the month's price: each hour's peak, at least 10 %."""
    mean = units / (HOURS * 3600)
    most = max(1000, math.ceil(mean * PEAK / 1000) * 1000)
    paid = max(mean * BILLED, most / 10)
    return most, paid / 100 * prices.autoscale_100_ru_hour * HOURS


def bill(machines: float, habits: Habits, prices: Prices) -> Bill:
    """Return a month's bill, with Cosmos DB in its cheaper mode."""
    month = load(machines, habits)
    stored = month.documents * habits.document_bytes * habits.months / GB
    backup = prices.cosmos_backup_gb_month if habits.backup_days > 7 else 0
    requests = min(
        serverless(month.request_units, prices), autoscale(month.request_units, prices)[1]
    )
    # In and out of the queue: send, receive, complete.
    operations = max(0.0, month.messages * 3 - prices.bus_free_operations)
    invocations = month.messages / habits.invocation_messages
    seconds = invocations * habits.invocation_seconds * habits.memory_gb
    spans = habits.trace_ratio * habits.span_bytes
    logged = month.messages * (habits.log_bytes + spans) + invocations * habits.invocation_bytes
    archived = month.archived_bytes / GB
    hot = archived * min(habits.months, habits.hot_months)
    cool = archived * max(0.0, habits.months - habits.hot_months)
    writes = prices.blob_write_10000 + (prices.blob_cool_write_10000 if cool else 0)
    return Bill(
        requests=requests,
        documents=stored * (prices.cosmos_gb_month + backup),
        queue=prices.bus_base_month + operations / 1e6 * prices.bus_million_operations,
        functions=(
            max(0.0, seconds - prices.function_free_gb_seconds) * prices.function_gb_second
            + max(0.0, invocations - prices.function_free_executions)
            / 1e6
            * prices.function_million_executions
        ),
        archive_writes=month.archived / 10_000 * writes,
        archive_bytes=hot * prices.blob_hot_gb_month + cool * prices.blob_cool_gb_month,
        logs=max(0.0, logged / GB - prices.log_free_gb) * prices.log_gb,
    )


# ---------------------------------------------------------------- the page's tables

CHANGES: tuple[tuple[str, dict[str, float]], ...] = (
    ("as assumed", {}),
    ("sent after 2 minutes", {"live_seconds": 120}),
    ("sent after 10 minutes", {"live_seconds": 600}),
    ("heartbeats every hour", {"heartbeat_seconds": 3600}),
    ("a quarter of the indexed values", {"indexed_values": 6}),
    ("a span for every message", {"trace_ratio": 1}),
    ("512 MB instances", {"memory_gb": 0.5}),
    ("kept for 3 months", {"months": 3}),
    ("backup of 7 days", {"backup_days": 7}),
    ("archive cooled after a month", {"hot_months": 1}),
    (
        "sent after 10 minutes, kept for 3 months, backup of 7 days",
        {"live_seconds": 600, "months": 3, "backup_days": 7},
    ),
)


def cooling_pays_from(habits: Habits, prices: Prices) -> float:
    """Bytes that an archive object must have for the cool tier to save what moving it costs."""
    saved = (prices.blob_hot_gb_month - prices.blob_cool_gb_month) * (habits.months - 1) / GB
    return prices.blob_cool_write_10000 / 10_000 / saved


def tables() -> dict[str, str]:
    """Return the page's tables by name."""
    prices, habits = Prices(), Habits()
    return {
        "fleets": "\n".join(_fleets(habits, prices)),
        "changes": "\n".join(_changes(habits, prices)),
        "load": "\n".join(_load(habits, prices)),
        "cooling": "\n".join(_cooling(habits, prices)),
        "habits": "\n".join(_inputs(habits)),
        "prices": "\n".join(_inputs(prices)),
    }


def _fleets(habits: Habits, prices: Prices) -> Iterator[str]:
    yield _row("US dollars a month", *(f"{count:,} machines" for count in FLEETS))
    yield _rule(len(FLEETS))
    bills = [bill(count, habits, prices) for count in FLEETS]
    for field in fields(Bill):
        yield _row(_words(field.name), *(_money(getattr(one, field.name)) for one in bills))
    yield _row("**all**", *(f"**{_money(one.total)}**" for one in bills))
    each = [one.total / count for one, count in zip(bills, FLEETS, strict=True)]
    yield _row("per machine", *(f"{value:.2f}" for value in each))


def _changes(habits: Habits, prices: Prices) -> Iterator[str]:
    yield _row("US dollars a month", *(f"{count:,} machines" for count in FLEETS))
    yield _rule(len(FLEETS))
    for name, change in CHANGES:
        changed = replace(habits, **change)
        yield _row(name, *(_money(bill(count, changed, prices).total) for count in FLEETS))


def _load(habits: Habits, prices: Prices) -> Iterator[str]:
    yield _row("a month", *(f"{count:,} machines" for count in FLEETS))
    yield _rule(len(FLEETS))
    months = [load(count, habits) for count in FLEETS]
    yield _row("messages, million", *(f"{one.messages / 1e6:,.1f}" for one in months))
    yield _row("documents, million", *(f"{one.documents / 1e6:,.1f}" for one in months))
    yield _row("request units, million", *(f"{one.request_units / 1e6:,.0f}" for one in months))
    yield _row("archived, GB", *(f"{one.archived_bytes / GB:,.0f}" for one in months))
    units = [one.request_units for one in months]
    yield _row("serverless, $", *(_money(serverless(one, prices)) for one in units))
    yield _row("autoscale, $", *(_money(autoscale(one, prices)[1]) for one in units))
    yield _row("autoscale, highest RU/s", *(f"{autoscale(one, prices)[0]:,}" for one in units))


def _cooling(habits: Habits, prices: Prices) -> Iterator[str]:
    yield _row("sent after", "mean archive object", "cooling pays from")
    yield "|---|--:|--:|"
    least = cooling_pays_from(habits, prices) / 1000
    for seconds in (30, 120, 600):
        month = load(1, replace(habits, live_seconds=seconds))
        mean = month.archived_bytes / month.archived / 1000
        yield _row(f"{seconds} s", f"{mean:,.0f} KB", f"{least:,.0f} KB")


def _inputs(inputs: Prices | Habits) -> Iterator[str]:
    yield _row("input", "value")
    yield _rule(1)
    for field in fields(inputs):
        yield _row(f"`{field.name}`", f"{getattr(inputs, field.name):,g}")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return f"|---|{'--:|' * columns}"


def _money(value: float) -> str:
    return f"{value:,.0f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def written(page: str) -> str:
    """Return the page with its tables made anew, each between its two markers."""
    for name, table in tables().items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", page, count=1, flags=re.DOTALL)
        if not count:
            raise SystemExit(f"{PAGE} has no place for the table {name}.")
    return page


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description="What a deployment costs per month.")
    parser.add_argument("--write", action="store_true", help="write docs/cost.md anew")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
