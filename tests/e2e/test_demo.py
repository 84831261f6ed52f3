"""`ferry demo`, the first command that people try."""

from pathlib import Path

import pytest

from support.stack import Ferry


@pytest.fixture
def alone(tmp_path: Path) -> Ferry:
    return Ferry(tmp_path / "home", environment={"TMPDIR": str(tmp_path)})


def test_the_demo_balances(alone: Ferry, tmp_path: Path) -> None:
    result = alone.run("demo", "--megabytes", 4, "--json").json
    assert result["balanced"] is True
    assert result["wrong"] == []
    machines = result["machines"]
    assert len(machines) == 3
    for machine in machines:
        left = machine["read"] - machine["stored"] - machine["quarantined"]
        assert machine["in_flight"] == left == 0
        assert 0 < machine["sent_bytes"] < machine["read_bytes"]
        assert 0 < machine["truncated"] <= machine["stored"]
    assert 3_000_000 < sum(machine["read_bytes"] for machine in machines) < 8_000_000
    assert 0 < result["archived_bytes"] < sum(machine["read_bytes"] for machine in machines)
    assert result["hydrated"] > 0
    assert float(result["cost_usd"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # nothing is left behind
    assert not alone.data.exists()


def test_the_demo_shows_the_ledger_and_what_to_do_next(alone: Ferry, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    said = alone.run("demo", "--megabytes", 1, "--keep", kept).stdout
    assert "The books balance" in said
    header = next(line for line in said.splitlines() if line.startswith("machine"))
    assert "=  stored" in header
    assert "+  quarantined" in header
    assert "+  in flight" in header
    assert sum(line.startswith("all ") for line in said.splitlines()) == 1
    steps = [line.split() for line in said.splitlines() if line.startswith("  ferry ")]
    assert [step[1] for step in steps] == ["sessions", "show", "export"]
    for _, *arguments in steps:  # they work although the stack has stopped
        given = [part if part[-5:] != "/back" else str(tmp_path / "back") for part in arguments]
        assert alone.run(*given).stdout


def test_the_demo_balances_in_cosmos_db(cosmos: str, tmp_path: Path) -> None:
    alone = Ferry(tmp_path / "home", environment={"TMPDIR": str(tmp_path), "FERRY_STORE": cosmos})
    result = alone.run("demo", "--megabytes", 4, "--json").json
    assert result["balanced"] is True
    assert result["wrong"] == []
