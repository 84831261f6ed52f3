"""Hosts: the newest sign of life wins, and a cloned machine is named."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.errors import BadBatch
from sessionferry.hosts import (
    MAX_HEARTBEAT_BYTES,
    MAX_RUNS,
    Heartbeat,
    clones,
    merge_heartbeat,
    parse_heartbeat,
)
from sessionferry.identity import escape
from support.strategies import header

HEADER = header(kind="heartbeat", stream=None, project_slug=None, session_id=None, agent="ferry 1")


def minute(number: int) -> str:
    return f"2026-07-01T{number // 60:02d}:{number % 60:02d}:00.000Z"


def beat(run: str, machine: str, started: int, seen: int, **ledger: int) -> Heartbeat:
    """Return one sign of life; times in minutes, and the counter goes with the time."""
    sent = minute(seen)
    return Heartbeat(run, machine, f"{machine}.local", minute(started), sent, seen, {**ledger})


def merged(*heartbeats: Heartbeat) -> dict[str, Any]:
    host: dict[str, Any] | None = None
    for heartbeat in heartbeats:
        host = merge_heartbeat(host, HEADER, heartbeat)
    assert host is not None
    return host


def test_a_host_shows_its_newest_sign_of_life() -> None:
    host = merged(beat("r1", "m1", 0, 5, read=7), beat("r1", "m1", 0, 3, read=2))
    assert host["id"] == escape("host-1")
    assert (host["user_id"], host["host_id"], host["_type"]) == ("user-123", "host-1", "host")
    assert (host["last_time"], host["ledger"]) == (minute(5), {"read": 7})
    assert (host["hostname"], host["agent"]) == ("m1.local", "ferry 1")
    assert host["clones"] == []


ONE = [beat("r1", "m1", 0, 1), beat("r1", "m1", 0, 10)]


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([beat("r2", "m2", 5, 15)], ["m1.local (m1)", "m2.local (m2)"]),
        ([beat("r2", "m2", 2, 3)], ["m1.local (m1)", "m2.local (m2)"]),
        (
            [beat("r2", "m2", 5, 15), beat("r3", "m3", 12, 20)],
            ["m1.local (m1)", "m2.local (m2)", "m3.local (m3)"],
        ),
        ([beat("r2", "m1", 5, 15)], []),
        ([beat("r2", "m1", 11, 20), beat("r3", "m1", 21, 30)], []),
        ([beat("r2", "m2", 10, 20)], []),
        ([beat("r2", "m2", 11, 20), beat("r3", "m1", 21, 30)], []),
    ],
)
def test_only_overlapping_runs_of_two_machines_are_clones(
    others: list[Heartbeat], named: list[str]
) -> None:
    for order in permutations([*ONE, *others]):
        assert merged(*order)["clones"] == named


def test_no_runs_are_no_clones() -> None:
    assert clones({}) == []


@st.composite
def signs_of_life(draw: st.DrawFn) -> list[Heartbeat]:
    """Return heartbeats of a few runs; each run stays on its machine and counts upwards."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        machine = draw(st.sampled_from(["m1", "m2"]))
        started = draw(st.integers(0, 50))
        seen = draw(st.sets(st.integers(0, 30), min_size=1, max_size=3))
        made += [beat(f"r{number}", machine, started, started + more) for more in sorted(seen)]
    return made


@given(signs_of_life(), st.data())
def test_heartbeats_merge_in_any_order_and_any_number_of_times(
    heartbeats: list[Heartbeat], data: st.DataObject
) -> None:
    other = data.draw(st.permutations(heartbeats))
    assert merged(*heartbeats) == merged(*other, *other)


def test_only_the_newest_runs_are_remembered_in_any_order() -> None:
    beats = [beat(f"r{n:02d}", "m1", n, n + 1) for n in range(MAX_RUNS + 10)]
    host = merged(*beats)
    assert merged(*reversed(beats)) == host
    assert set(host["runs"]) == {f"r{n:02d}" for n in range(10, MAX_RUNS + 10)}


BODY = {"run_id": "r", "machine": "m", "hostname": "h", "started_at": minute(0), "ledger": {}}


def test_a_heartbeat_is_read_from_its_payload_and_header() -> None:
    found = parse_heartbeat(header(kind="heartbeat", revision=9, sent_at=minute(3)), BODY)
    assert found == Heartbeat("r", "m", "h", minute(0), minute(3), 9, {})


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "x", 1, {}, BODY | {"ledger": []}, BODY | {"ledger": None}),
        *[BODY | {name: bad} for name in ("run_id", "machine") for bad in ("", None, 7, "x" * 257)],
        *[BODY | {name: bad} for name in ("hostname", "started_at") for bad in ("", [], {})],
    ],
)
def test_what_is_no_heartbeat_is_a_bad_batch(body: object) -> None:
    with pytest.raises(BadBatch, match="heartbeat"):
        parse_heartbeat(HEADER, body)


def test_a_ledger_that_no_store_can_write_is_a_bad_batch() -> None:
    ledger: dict[str, Any] = {}
    for _ in range(300):
        ledger = {"a": ledger}
    with pytest.raises(BadBatch, match="nested too deeply"):
        parse_heartbeat(HEADER, BODY | {"ledger": ledger})


def test_a_heartbeat_too_large_to_be_remembered_is_a_bad_batch() -> None:
    large = header(kind="heartbeat", length=MAX_HEARTBEAT_BYTES + 1)
    with pytest.raises(BadBatch, match="at most"):
        parse_heartbeat(large, BODY)
