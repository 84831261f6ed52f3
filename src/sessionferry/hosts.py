"""What is known of a host: its last heartbeat, its ledger, and whether its id is in use twice.

Each run of an agent sends heartbeats. Two runs under one `host_id` whose lives overlap and that
come from different machines are a cloned image; both machines are named.
"""

from typing import Any, NamedTuple

from sessionferry.batch import Header
from sessionferry.errors import BadBatch
from sessionferry.identity import escape
from sessionferry.statements import Statement, from_heartbeat
from sessionferry.truncation import too_deep

MAX_RUNS = 20
"""Runs that are remembered per host, newest first."""
MAX_HEARTBEAT_BYTES = 64 * 1024
"""Longest payload: a host's document holds `MAX_RUNS` + 1 ledgers, and must stay below 2 MB."""


class Heartbeat(NamedTuple):
    """One sign of life of one run of an agent."""

    run_id: str
    machine: str
    hostname: str
    started_at: str
    sent_at: str
    counter: int
    ledger: dict[str, Any]
    statements: tuple[Statement, ...] = ()


def parse_heartbeat(header: Header, body: object) -> Heartbeat:
    """Read a heartbeat's payload; raises `BadBatch`."""
    if not isinstance(body, dict) or not isinstance(body.get("ledger"), dict):
        raise BadBatch("A heartbeat is a JSON object with a ledger.")
    if header.length > MAX_HEARTBEAT_BYTES:
        raise BadBatch(f"A heartbeat has at most {MAX_HEARTBEAT_BYTES} bytes.")
    if too_deep(body):
        raise BadBatch("A heartbeat's ledger is nested too deeply.")
    named = [body.get(name) for name in ("run_id", "machine", "hostname", "started_at")]
    if not all(isinstance(value, str) and 0 < len(value) <= 256 for value in named):
        raise BadBatch("A heartbeat names its run_id, machine, hostname and started_at.")
    run_id, machine, hostname, started_at = (str(value) for value in named)
    return Heartbeat(
        *(run_id, machine, hostname, started_at, header.sent_at),
        counter=header.revision,
        ledger=body["ledger"],
        statements=tuple(from_heartbeat(header.user_id, body.get("sent", {}))),
    )


def merge_heartbeat(
    host: dict[str, Any] | None, header: Header, heartbeat: Heartbeat
) -> dict[str, Any]:
    """Return the host's document after a heartbeat, in any order and any number of times."""
    runs = dict((host or {}).get("runs", {}))
    known = runs.get(heartbeat.run_id)
    if known is None or heartbeat.counter > known["counter"]:
        runs[heartbeat.run_id] = {
            "machine": heartbeat.machine,
            "hostname": heartbeat.hostname,
            "started_at": heartbeat.started_at,
            "last_seen": heartbeat.sent_at,
            "counter": heartbeat.counter,
            "ledger": heartbeat.ledger,
            "agent": header.agent,
        }
    newest = sorted(runs.items(), key=lambda run: (run[1]["last_seen"], run[0]), reverse=True)
    kept = dict(newest[:MAX_RUNS])
    latest = newest[0][1]
    return {
        "id": escape(header.host_id),
        "_type": "host",
        "user_id": header.user_id,
        "host_id": header.host_id,
        "hostname": latest["hostname"],
        "last_time": latest["last_seen"],
        "ledger": latest["ledger"],
        "agent": latest["agent"],
        "missing": (host or {}).get("missing", 0),
        "runs": kept,
        "clones": clones(kept),
    }


def with_missing(host: dict[str, Any], lines: int) -> dict[str, Any]:
    """Return the host's document with the count of lines that it sent and the store lacks."""
    return host | {"missing": lines}


def clones(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Name the machines that were alive at the same time under one host id; usually none."""
    named: set[str] = set()
    listed = list(runs.values())
    for at, one in enumerate(listed):
        for other in listed[at + 1 :]:
            if one["machine"] != other["machine"] and _overlap(one, other):
                named |= {f"{run['hostname']} ({run['machine']})" for run in (one, other)}
    return sorted(named)


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["started_at"] < other["last_seen"] and other["started_at"] < one["last_seen"])
