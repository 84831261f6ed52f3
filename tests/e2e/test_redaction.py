"""Redaction on the whole way: what is sent, stored, exported and compared is the redacted form."""

import json
from pathlib import Path

from e2e.test_ferry import Session, exported
from sessionferry.agent.policy import gate_of
from sessionferry.settings import Settings
from support.stack import Ferry

TOKEN = "ghp_" + "a1B2" * 9
CONFIG = "[filter]\ndrop = ['llm:stream_*']\nstrip_raw = true\n"


def event(name: str, **data: object) -> bytes:
    line = {"ts": "2026-03-02T09:00:00Z", "lvl": "INFO", "event": name, "data": data}
    return json.dumps(line).encode() + b"\n"


def test_secrets_stay_here_and_export_gives_the_redacted_bytes_back(
    ferry: Ferry, tmp_path: Path
) -> None:
    session = Session(ferry)
    config = ferry.home / "agent.toml"
    ferry.environment["FERRY_CONFIG"] = str(config)
    config.write_text("[redact]\nenabled = false\n")
    session.write("metadata.json", json.dumps({"config": {"api_key": TOKEN}}, indent=1).encode())
    session.write(
        "events.jsonl",
        event("session:start")
        + event("llm:stream_delta", text="x")
        + event("llm:request", raw={"messages": ["y" * 90_000, TOKEN], "n": 1}, model="m")
        + b"\n"
        + event("tool:post", result={"output": json.dumps({"token": TOKEN})})
        + b'{"event":"tool:pre","data":{"cmd":"export T='
        + TOKEN[:30].encode(),
    )
    first = ferry.run("ship", session.root, "--json").json
    assert (first["lines"], first["filtered"], first["redacted"]) == (4, 0, {})

    config.write_text(CONFIG)
    rehearsed = ferry.run("ship", session.root, "--dry-run", "--json").json
    shipped = ferry.run("ship", session.root, "--json").json
    assert {**rehearsed, "dry_run": False, "sent_bytes": 0} == {**shipped, "sent_bytes": 0}
    assert (shipped["rewritten"], shipped["lines"], shipped["filtered"]) == (1, 4, 1)
    assert shipped["redacted"] == {"github": 2, "raw-payload": 1}

    findings = ferry.verify(session.root, "--bytes")
    assert {found["verdict"] for found in findings} == {"ok"}
    assert sum(found["filtered"] for found in findings) == 1
    back = exported(ferry, session.id, tmp_path / "back")
    assert TOKEN[:30].encode() not in b"".join(back.values())
    lines = back["events.jsonl"].split(b"\n")
    assert json.loads(lines[1])["data"]["raw"]["stripped_bytes"] > 90_000
    assert json.loads(json.loads(lines[3])["data"]["result"]["output"])["token"].startswith("[RED")
    stored = ferry.run("show", session.id, "--stream", "events").stdout
    assert TOKEN[:30] not in stored
    assert ferry.run("ship", session.root, "--json").json["unchanged"] == 2


def test_an_excluded_project_is_not_read(ferry: Ferry) -> None:
    session = Session(ferry)
    session.write("events.jsonl", event("a"))
    config = ferry.home / "agent.toml"
    config.write_text("[filter]\nexclude_projects = ['/srv/code']\n")
    ferry.environment["FERRY_CONFIG"] = str(config)
    assert ferry.run("ship", session.root, "--json").json["lines"] == 0
    assert ferry.verify(session.root) == []
    assert gate_of(Settings.read(config=config, identity=ferry.home)).rules.startswith("redaction:")
