"""The simulated fleet: repeatable, of realistic shape, and counted right."""

import json
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from sessionferry.simulate import FleetPlan, Oracle, Usage, recount, simulate
from sessionferry.simulate.hostile import (
    Case,
    huge_event,
    large_events,
    large_transcript,
    small_events,
    small_transcript,
)
from sessionferry.simulate.oracle import BLANK, Facts, judge

MB = 1_000_000

Fleet = tuple[Path, Oracle]


@pytest.fixture(scope="module")
def hostile_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    out = tmp_path_factory.mktemp("hostile") / "fleet"
    return out, simulate(out, FleetPlan(machines=2, sessions=1, turns=1, huge_line=True))


@pytest.fixture(scope="module")
def raw_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    out = tmp_path_factory.mktemp("raw") / "fleet"
    return out, simulate(out, FleetPlan(machines=2, target_bytes=24 * MB, hostile=False))


@pytest.fixture(scope="module")
def plain_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Without raw requests many sessions fit into few bytes, so that every oddity occurs."""
    out = tmp_path_factory.mktemp("plain") / "fleet"
    plan = FleetPlan(machines=3, sessions=6, turns=3, raw=False, hostile=False)
    return out, simulate(out, plan)


def lines_of(out: Path, name: str) -> Iterator[bytes]:
    for path in sorted(out.glob(f"*/.amplifier/projects/*/sessions/*/{name}")):
        with path.open("rb") as file:
            yield from (line.rstrip(b"\n") for line in file)


def event_name(line: bytes) -> str | None:
    try:
        name: str | None = orjson.loads(line).get("event")
    except ValueError:
        return None
    return name


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


SMALL = {"machines": 2, "sessions": 2, "turns": 2, "raw": False}


def test_equal_plans_write_equal_bytes(tmp_path: Path) -> None:
    plan = FleetPlan(seed=7, **SMALL)
    simulate(tmp_path / "a", plan)
    simulate(tmp_path / "b", plan)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_another_seed_writes_other_sessions(tmp_path: Path) -> None:
    first = simulate(tmp_path / "a", FleetPlan(seed=7, **SMALL))
    second = simulate(tmp_path / "b", FleetPlan(seed=8, **SMALL))
    ids = [{file.session_id for file in oracle.files} for oracle in (first, second)]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("fleet", ["hostile_fleet", "raw_fleet", "plain_fleet"])
def test_the_oracle_is_what_reading_back_finds(fleet: str, request: pytest.FixtureRequest) -> None:
    out, oracle = request.getfixturevalue(fleet)
    found = recount(out)
    for expected, actual in zip(oracle.files, found.files, strict=True):
        assert expected == actual
    assert oracle.totals == found.totals


def test_the_oracle_survives_its_file(hostile_fleet: Fleet) -> None:
    out, oracle = hostile_fleet
    assert Oracle.read(out / "oracle.json") == oracle
    written = json.loads((out / "oracle.json").read_text("utf-8"))
    assert written["totals"]["cost_usd"] == f"{oracle.totals.cost_usd:f}"


def test_totals_add_up(hostile_fleet: Fleet) -> None:
    out, oracle = hostile_fleet
    totals = oracle.totals
    assert totals.lines == totals.stored + totals.quarantined
    assert totals.files == len(oracle.files)
    assert totals.bytes == sum(len(content) for content in tree(out).values()) - len(
        (out / "oracle.json").read_bytes()
    )


def test_requests_have_realistic_sizes(raw_fleet: Fleet) -> None:
    out, oracle = raw_fleet
    sizes = [
        len(line)
        for line in lines_of(out, "events.jsonl")
        if b'"event": "llm:request"' in line[:200]
    ]
    assert sum(sizes) > 0.8 * oracle.totals.bytes
    assert 320_000 < sum(sizes) / len(sizes) < 520_000
    assert 0.38 < sum(size > 409_600 for size in sizes) / len(sizes) < 0.62


def test_a_target_is_about_met(raw_fleet: Fleet) -> None:
    _, oracle = raw_fleet
    assert 0.9 * 24 * MB < oracle.totals.bytes < 1.2 * 24 * MB


def test_each_request_repeats_the_messages_of_the_one_before(raw_fleet: Fleet) -> None:
    out, _ = raw_fleet
    path = next(path for path in sorted(out.rglob("events.jsonl")) if path.stat().st_size > 4 * MB)
    messages: list[object] = []
    for line in path.read_bytes().splitlines(keepends=False)[:60]:
        if event_name(line) == "llm:request":
            later = orjson.loads(line)["data"]["raw"]["messages"]
            assert later[: len(messages)] == messages
            messages = later
    assert len(messages) > 5


def test_each_machine_has_the_hostile_lines(hostile_fleet: Fleet) -> None:
    out, oracle = hostile_fleet
    events = [file for file in oracle.files if file.stream == "events" and file.quarantined]
    assert {file.host_id for file in events} == {"atlas-01", "birch-02"}
    written = set(lines_of(out, "events.jsonl"))
    for file in events:
        assert {line_of(case) for case in small_events(file.session_id)} <= written
    large = {
        case.name
        for file in events
        for case in large_events(file.session_id)
        if line_of(case) in written
    }
    assert large == {case.name for case in large_events("any")}
    assert line_of(huge_event(events[0].session_id)) in written
    transcript = set(lines_of(out, "transcript.jsonl"))
    assert {line_of(case) for case in (*small_transcript(), *large_transcript())} <= transcript


def line_of(case: Case) -> bytes:
    return b"".join(case.pieces)


@pytest.mark.parametrize(
    "wanted",
    [
        b"NaN",
        b"-Infinity",
        b"1e400",
        b'"\\ud800"',
        b'"value": 2, "value": 3',
        b"\xff\xfe",
        b"a\x00b",
        b"a\\u0000b",
        b'"ttl": 1',
        b'"_etag"',
        b'"partition_key"',
        b'{"a":' * 10_000,
        b"18446744073709551617",
        b"1e999999",
        b"\n{}\n",
        b"\n  \t \t\n",
        b"n" * 5_000,
        b"}{",
        b"\n42\n",
        b'\n[{"event"',
        b"\nnull\n",
    ],
)
def test_named_hostile_bytes_are_there(hostile_fleet: Fleet, wanted: bytes) -> None:
    out, oracle = hostile_fleet
    path = next(file.path for file in oracle.files if file.stream == "events" and file.quarantined)
    assert wanted in (out / path).read_bytes()


def test_hostile_sizes_are_exact(hostile_fleet: Fleet) -> None:
    out, _ = hostile_fleet
    sizes = {len(line) for line in lines_of(out, "events.jsonl")}
    assert {409_600, 409_601} <= sizes
    assert max(sizes) > 17 * MB
    assert max(len(line) for line in lines_of(out, "transcript.jsonl")) > 2 * MB


def hostile_cases() -> list[tuple[str, Case]]:
    events = (*small_events("s"), *large_events("s"), huge_event("s"))
    transcript = (*small_transcript(), *large_transcript())
    return [("events", case) for case in events] + [("transcript", case) for case in transcript]


@pytest.mark.parametrize(
    ("stream", "case"),
    [pytest.param(*entry, id=f"{entry[0]}-{entry[1].name}") for entry in hostile_cases()],
)
def test_a_case_is_judged_as_it_is_declared(stream: str, case: Case) -> None:
    line = line_of(case)
    if case.facts is None:
        assert not line.strip(BLANK)
    else:
        assert judge(line, stream) == case.facts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usage", "facts"),
    [
        (
            {
                "input_tokens": 100,
                "output_tokens": 7,
                "cache_read_tokens": 60,
                "cache_write_tokens": 5,
                "cost_usd": "0.25",
            },
            Facts(
                usage=Usage(input=100 - 60, output=7, cache_read=60, cache_write=5),
                cost=Decimal("0.25"),
            ),
        ),
        ({"input": 9, "output": 4}, Facts(usage=Usage(input=9, output=4))),
        ({"input_tokens": 2**53 - 1}, Facts(usage=Usage(input=2**53 - 1))),
        ({"cost_usd": "1234567890123"}, Facts()),
        ({"cost_usd": "1\n"}, Facts()),
        ({"cost_usd": None}, Facts()),
        (None, Facts()),
    ],
)
def test_usage_is_four_disjoint_counts(usage: object, facts: Facts) -> None:
    event = {"event": "llm:response", "data": {"usage": usage}}
    assert judge(json.dumps(event).encode(), "events") == facts
    assert judge(json.dumps(event).encode(), "transcript") == Facts()


def test_the_oddities_of_real_files_occur(plain_fleet: Fleet) -> None:
    out, oracle = plain_fleet
    streams: dict[str, set[str]] = {}
    for file in oracle.files:
        streams.setdefault(file.session_id, set()).add(file.stream)
    events = {
        file.session_id: (out / file.path).read_bytes()
        for file in oracle.files
        if file.stream == "events"
    }
    assert oracle.totals.tails >= 1
    assert any("metadata" not in kinds for kinds in streams.values())
    assert any(file.bytes == 0 for file in oracle.files if file.stream == "transcript")
    assert any(event_name(content.splitlines()[-1]) == "tool:pre" for content in events.values())
    assert any(content.startswith(b"\xef\xbb\xbf") for content in events.values())
    assert any(b"}\r\n" in content for content in events.values())
    assert any(b"\n\n" in content for content in events.values())
    assert any(content.count(b'"event": "session:end"') > 1 for content in events.values())
    assert any(session_id.endswith("_recipe") for session_id in streams)
    assert any("_foundation:zen-architect" in session_id for session_id in streams)
    everything = b"".join(events.values())
    for part in ("\u2028", "\U0001f680", "Größe", '"input": ', '"cost_usd": "0.', "+02:00", "Z"):
        assert part.encode() in everything


def test_metadata_is_one_document(plain_fleet: Fleet) -> None:
    out, oracle = plain_fleet
    for file in oracle.files:
        if file.stream == "metadata" and file.format == "amplifier":
            content = (out / file.path).read_bytes()
            assert content.startswith(b'{\n  "session_id"')
            assert content.endswith(b"}")
            value = orjson.loads(content)
            assert value["session_id"] == file.session_id
            assert ("parent_id" in value) == (
                "-" in file.session_id
                and "_" in file.session_id
                and not file.session_id.endswith("_recipe")
            )


def test_memory_stays_flat(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        oracle = simulate(tmp_path / "fleet", FleetPlan(turns=16, target_bytes=60 * MB))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert oracle.totals.bytes > 55 * MB
    assert peak < 24 * MB


def test_progress_hears_the_bytes_written(tmp_path: Path) -> None:
    heard: list[int] = []
    oracle = simulate(tmp_path / "fleet", FleetPlan(**SMALL), heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == oracle.totals.bytes


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        simulate(tmp_path, FleetPlan())


@pytest.mark.parametrize(
    "options", [{"machines": 0}, {"sessions": 0}, {"turns": 0}, {"target_bytes": 0}]
)
def test_an_impossible_plan_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FleetPlan(**options)  # type: ignore[arg-type]
