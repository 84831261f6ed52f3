"""`ferry agent` and `ferry doctor` as a person runs them."""

import json
import socket
import stat
import subprocess
import sys
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from support.stack import Ferry, wait_for

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/systemctl.log"
case " $FAILING " in *" $2 "*) echo "Failed to connect to bus" >&2; exit 1;; esac
"""


@pytest.fixture
def systemctl(ferry: Ferry) -> Path:
    """A `systemctl` that writes down what it is told: no test may start a service here."""
    if sys.platform != "linux":
        pytest.skip("services are installed with systemctl on Linux only")
    program = ferry.home / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)
    ferry.environment["PATH"] = f"{program.parent}:{ferry.environment['PATH']}"
    return ferry.home / "systemctl.log"


def test_a_configuration_is_begun_checked_and_never_overwritten(ferry: Ferry) -> None:
    assert "every file is sent as it is" in ferry.run("agent", "config").stdout
    began = ferry.run("agent", "config", "--init").stdout
    path = ferry.home / "identity" / "agent.toml"
    assert f"{path} is right.\nredaction  on\nrules      redaction:1-" in began
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("[redact]\nenabled = 1.5\n")
    ran = ferry.run("agent", "config", code=2)
    assert f"{path}:2: redact.enabled: " in ran.stderr
    assert "it stays as it is" in ferry.run("agent", "config", "--init", code=2).stderr
    assert f"{path}:2" in ferry.run("ship", code=2).stderr


def test_the_files_of_any_tool_are_shipped_once_the_configuration_describes_them(
    ferry: Ferry,
) -> None:
    logs = ferry.home / "mytool"
    logs.mkdir()
    line = {"at": "2026-03-02T09:00:00Z", "who": "assistant", "llm": {"in": 7, "price": 0.25}}
    (logs / "run-1.jsonl").write_text(f"{json.dumps(line)}\n" * 3)
    configured = ferry.home / "identity" / "agent.toml"
    configured.parent.mkdir(exist_ok=True)
    configured.write_text(
        f"[[sources.jsonl]]\npaths = [{str(logs)!r}]\nproject = 'mytool'\n"
        "[sources.jsonl.fields]\n"
        "time = 'at'\nrole = 'who'\ninput = 'llm.in'\ncost_usd = 'llm.price'\n"
    )
    assert ferry.run("ship", "--json").json["lines"] == 3
    (finding,) = ferry.wait()
    assert finding["session_id"] == "run-1"
    (session,) = (
        found for found in ferry.run("sessions", "--json").json if found["project_slug"] == "mytool"
    )
    assert (session["usage"]["input"], session["cost_usd"]) == (21, "0.75")
    assert session["first_time"] == "2026-03-02T09:00:00.000000000Z"


def test_the_service_is_installed_and_removed(ferry: Ferry, systemctl: Path) -> None:
    unit = ferry.home / ".config" / "systemd" / "user" / "sessionferry.service"
    shown = ferry.run("agent", "install", "--dry-run").stdout
    assert not unit.exists()
    assert f"# {unit}\n[Unit]" in shown
    assert "$ systemctl --user enable sessionferry.service" in shown

    ferry.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
    ferry.environment["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=secret"
    ferry.run("agent", "install")
    text = unit.read_text()
    assert "Environment=OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318\n" in text
    assert "authorization" not in text
    assert f"ExecStart={sys.executable} -m sessionferry.cli ship --watch\n" in text
    assert f"Environment=FERRY_DATA={ferry.data}\n" in text
    assert stat.S_IMODE(unit.stat().st_mode) == 0o600
    assert "FERRY_USER_ID=user-" in text
    ferry.run("agent", "uninstall")
    assert not unit.exists()
    assert systemctl.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable sessionferry.service",
        "--user restart sessionferry.service",
        "--user disable --now sessionferry.service",
        "--user daemon-reload",
        "--user reset-failed sessionferry.service",
    ]
    assert "not installed" in ferry.run("agent", "uninstall", code=2).stderr


def test_a_secret_of_the_shell_is_not_written_into_the_service(
    ferry: Ferry, systemctl: Path
) -> None:
    ferry.environment |= {"ServiceBusConnection": "Endpoint=sb://x/;SharedAccessKey=abc"}
    ran = ferry.run("agent", "install", code=2)
    assert "is no place for a secret" in ran.stderr
    assert "abc" not in ran.output
    assert not systemctl.exists()


def test_what_systemd_says_is_passed_on(ferry: Ferry, systemctl: Path) -> None:
    ferry.environment["FAILING"] = "restart"
    ran = ferry.run("agent", "install", code=1)
    assert ran.stderr.startswith("ferry: `systemctl --user restart sessionferry.service`")
    assert "Failed to connect to bus" in ran.stderr
    unit = ferry.home / ".config" / "systemd" / "user" / "sessionferry.service"
    assert not unit.exists()


def test_without_systemd_an_installation_can_be_removed_and_an_older_one_stays(
    ferry: Ferry, systemctl: Path
) -> None:
    ferry.run("agent", "install")
    unit = ferry.home / ".config" / "systemd" / "user" / "sessionferry.service"
    before = unit.read_text()
    ferry.environment |= {"FAILING": "enable disable", "FERRY_RATE_KB": "7"}
    ferry.run("agent", "install", code=1)
    assert unit.read_text() == before
    ran = ferry.run("agent", "uninstall", code=1)
    assert "Failed to connect to bus" in ran.stderr
    assert not unit.exists()
    assert "disable --now" in systemctl.read_text()


def test_the_log_is_shown_and_followed(ferry: Ferry, tmp_path: Path) -> None:
    ferry.environment["FERRY_DATA"] = str(tmp_path / "data")
    assert "has not run in the background" in ferry.run("agent", "logs", code=2).stderr
    log = tmp_path / "data" / "agent" / "log" / "agent.jsonl"
    log.parent.mkdir(parents=True)
    line = {"at": "2026-01-02T03:04:05.000+00:00", "level": "info", "message": "first"}
    log.write_text(json.dumps(line) + "\n" + json.dumps(line | {"message": "second"}) + "\n")
    assert ferry.run("agent", "logs", "--lines", 1).stdout == (
        "2026-01-02 03:04:05  info     second\n"
    )
    process = ferry.start("agent", "logs", "--follow", "--json")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["message"] == "first"
        process.stdout.readline()
        with log.open("a") as file:
            file.write(json.dumps(line | {"message": "third"}) + "\n")
        assert json.loads(process.stdout.readline())["message"] == "third"
    finally:
        process.terminate()
        process.wait(timeout=10)
        if process.stdout:
            process.stdout.close()


def test_the_doctor_finds_a_local_stack_well_and_says_what_is_not(ferry: Ferry) -> None:
    session = ferry.home / ".amplifier" / "projects" / "-p" / "sessions" / "s-1" / "events.jsonl"
    session.parent.mkdir(parents=True)
    session.write_text('{"event":"a"}\n')
    later = datetime.now().astimezone() + timedelta(hours=12)
    ferry.environment["FERRY_HOURS"] = f"{later:%H}:00-{later:%H}:59"
    assert f"outside of FERRY_HOURS ({later:%H}:00-{later:%H}:59)" in ferry.run("ship").stderr
    found = {it["subject"]: it for it in ferry.run("doctor", "--json").json}
    assert {it["verdict"] for it in found.values()} <= {"ok", "warning"}
    assert found["queue"]["said"].startswith("local takes messages of")
    assert found["spool"]["said"].startswith("sound; 0 lines")
    path = ferry.home / "identity" / "agent.toml"
    path.write_text("[redact]\noff = ['nothing']\n")
    ran = ferry.run("doctor", code=1)
    assert "WRONG    redaction: redact.off: there is no rule 'nothing'." in ran.stdout


def test_the_agent_in_the_background_logs_and_measures_what_it_does(ferry: Ferry) -> None:
    token = "ghp_" + "a1B2" * 9
    port = free_port()
    config = ferry.home / "identity" / "agent.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(f"[settings]\nlive_seconds = 0.5\n[metrics]\nport = {port}\n")
    session = ferry.home / ".amplifier" / "projects" / "-p" / "sessions" / "s-2" / "events.jsonl"
    session.parent.mkdir(parents=True)
    session.write_text(json.dumps({"event": "a", "text": token}) + "\n")
    process = ferry.start("ship", "--watch")
    try:
        # Other tests have shipped through the same spool, without redaction.
        assert wait_for(lambda: scraped(port).get("replacements") == 1, seconds=60)
        assert wait_for(lambda: scraped(port)['lines{state="spooled"}'] == 0, seconds=60)
        refused = ferry.run("ship", code=1)
        assert "Another `ferry ship` is at work" in refused.stderr
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout:
            process.stdout.close()
    lines = [json.loads(line) for line in ferry.run("agent", "logs", "--json").stdout.splitlines()]
    events = [line["event"] for line in lines if "event" in line]
    assert (events[0], events[-1]) == ("started", "stopped")
    assert {"read", "sent"} <= set(events)
    log = ferry.data / "agent" / "log" / "agent.jsonl"
    assert token not in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    (found,) = ferry.verify(session)
    assert (found["verdict"], found["stored"], found["redacted"]) == ("ok", 1, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> dict[str, float]:
    """The metrics that are served on a port now; none if nobody serves there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            rows = answer.read().decode().splitlines()
    except OSError:
        return {}
    named = (row.rsplit(" ", 1) for row in rows if not row.startswith("#"))
    return {name.removeprefix("ferry_agent_"): float(value) for name, value in named}


def test_help_starts_without_the_rules(ferry: Ferry) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sessionferry.cli", "--help"]
    ran = subprocess.run(command, env=ferry.environment, capture_output=True, text=True, check=True)
    assert " re2" not in ran.stderr
    assert "prometheus_client" not in ran.stderr
