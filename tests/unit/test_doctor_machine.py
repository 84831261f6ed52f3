"""`ferry doctor` on this machine: each check finds its trouble and says the fix."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sessionferry.agent.discover import Source
from sessionferry.agent.spool import FileId, Spool, SpoolLock
from sessionferry.config import digest
from sessionferry.doctor import Finding, examine, machine
from sessionferry.doctor.machine import Machine
from sessionferry.errors import UserError
from sessionferry.identity import SessionKey
from sessionferry.settings import Endpoints, Settings

KEY = SessionKey("u", "p", "s")
REMOTE = Endpoints(
    queue="q",
    connection=None,
    namespace="fleet.servicebus.windows.net",
    store_url=None,
    archive_url=None,
    inbox_url="file:///i",
    local=None,
)


class Doctor:
    """Runs single checks on a machine that lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data=folder / "data", identity=folder / "id")
        self.spool = folder / "data" / "spool.db"
        self.target: Callable[[], Endpoints] = lambda: REMOTE
        self.sources: list[Source] = []
        self.find: Callable[[], list[Source]] = lambda: self.sources

    def __call__(self, name: str) -> Finding:
        """Return what the check of this name says."""
        (found,) = self.findings(name)
        return found

    def verdict(self, name: str) -> str | None:
        """Return how something is, in a word; None if there is nothing to look at."""
        found = self.findings(name)
        return found[0].verdict.value if found else None

    def findings(self, name: str) -> list[Finding]:
        machine = Machine(
            self.settings,
            target=self.target,
            spool=lambda _target: self.spool,
            sources=self.find,
            queue_seconds=0.5,
        )
        named = {check.__name__: check for check in machine.checks()}

        async def run() -> list[Finding]:
            checks = (named["check_" + name.replace(" ", "_")],)
            return [finding async for finding in examine(self.settings, checks)]

        return asyncio.run(run())

    def configured(self, text: str) -> Path:
        path = self.settings.config_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def test_a_fresh_machine_is_well_but_nothing_runs_there(doctor: Doctor) -> None:
    assert [doctor.verdict(name) for name in ("configuration", "identity", "permissions")] == [
        *("ok", "ok", "ok")
    ]
    assert doctor("spool").said.startswith("empty")
    assert doctor.verdict("agent") is None


def test_a_wrong_configuration_is_named_with_its_line(doctor: Doctor) -> None:
    doctor.configured("[redact]\nenabled = 1.5\n")
    assert "agent.toml:2: redact.enabled" in doctor("configuration").said
    doctor.configured("[redact]\noff = ['nothing']\n")
    assert "no rule 'nothing'" in doctor("redaction").said


def test_a_key_that_others_may_read_is_wrong(doctor: Doctor) -> None:
    path = doctor.configured("[settings]\nconnection = 'x'\n")
    assert doctor.verdict("configuration") == "ok"
    path.chmod(0o644)
    found = doctor("configuration")
    assert (found.verdict.value, found.fix) == ("wrong", f"chmod 600 {path}")


def test_sending_secrets_away_is_worth_a_look(doctor: Doctor) -> None:
    assert doctor.verdict("redaction") == "warning"
    doctor.configured("")
    assert doctor.verdict("redaction") == "ok"


def test_folders_that_others_may_enter_are_named(doctor: Doctor) -> None:
    doctor.settings.data.mkdir(mode=0o755)
    found = doctor("permissions")
    assert (found.verdict.value, found.fix) == ("warning", f"chmod 700 {doctor.settings.data}")
    doctor.settings.data.chmod(0o700)
    assert doctor.verdict("permissions") == "ok"


def test_no_destination_is_said_once(doctor: Doctor) -> None:
    def nowhere() -> Endpoints:
        raise UserError("There is no queue.")

    doctor.target = nowhere
    assert doctor("queue").said == "There is no queue."
    assert [
        doctor.verdict(name) for name in ("redaction", "clock of the queue", "spool", "agent")
    ] == [*("ok", None, "ok", None)]


def test_a_queue_that_does_not_answer_is_wrong(doctor: Doctor) -> None:
    doctor.target = lambda: REMOTE.model_copy(update={"namespace": "127.0.0.1"})
    found = doctor("queue")
    assert found.verdict.value == "wrong"
    assert "5671" in found.fix


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "The setting FERRY_INBOX is missing"),
        ("https://nohost.invalid/inbox", "https://nohost.invalid… is no object store"),
        ("file:///dev/null/inbox", "The folder /dev/null/inbox cannot be made: Not a directory."),
    ],
)
def test_an_inbox_that_takes_nothing_is_wrong(doctor: Doctor, url: str | None, said: str) -> None:
    doctor.target = lambda: REMOTE.model_copy(update={"inbox_url": url})
    found = doctor("inbox")
    assert found.verdict.value == "wrong"
    assert found.said.startswith(said)
    assert "docs/guides/fleet.md" in found.fix


def test_an_inbox_is_tried_by_adding_to_it(doctor: Doctor, tmp_path: Path) -> None:
    url = (tmp_path / "inbox").as_uri()
    doctor.target = lambda: REMOTE.model_copy(update={"inbox_url": f"{url}?sv=1&sig=secret"})
    for count in (1, 2):
        assert doctor("inbox").said == f"{url} takes what is put there"
        assert len(list((tmp_path / "inbox" / "_doctor").iterdir())) == count


@pytest.mark.parametrize(
    ("free", "most", "state"), [(10**9, 1, "wrong"), (0, 10**9, "warning"), (0, 1, "ok")]
)
def test_a_full_disk_is_seen_before_it_stops_anything(
    doctor: Doctor, free: int, most: int, state: str
) -> None:
    changes = {"spool_free_mb": free, "spool_mb": most}
    doctor.settings = doctor.settings.model_copy(update=changes)
    assert doctor.verdict("disk") == state


def test_a_damaged_spool_is_found_and_a_sound_one_counted(doctor: Doctor) -> None:
    Spool(doctor.spool).close()
    assert doctor("spool").said == "sound; 0 lines (0 KB) wait to be sent"
    doctor.spool.write_bytes(b"SQLite format 3\x00" + b"\xff" * 9000)
    found = doctor("spool")
    assert found.verdict.value == "wrong"
    assert "reads the files again" in found.fix
    assert doctor("agent").said == "nothing follows the files"
    doctor.sources = [Source(doctor.spool, KEY, "transcript", "claude_code")]
    assert "what is not read yet is safe for 30 days" in doctor("retention").said


def test_files_that_are_not_read_on_and_a_queue_that_refuses_are_reported(doctor: Doctor) -> None:
    spool = Spool(doctor.spool)
    found = doctor("agent")
    assert (found.said, found.fix) == ("nothing follows the files", "`ferry agent install`")
    spool.fail(FileId(KEY, "events"), Path("/x/events.jsonl"), "Permission denied")
    spool.note("trouble", {"error": "no right to send", "since": "2026-01-01"})
    spool.close()
    assert "/x/events.jsonl" in doctor("spool").said
    assert doctor("agent").said == "sending fails since 2026-01-01: no right to send"


def test_the_running_agents_own_configuration_is_compared_with_the_file(doctor: Doctor) -> None:
    path = doctor.configured("[redact]\n")
    spool = Spool(doctor.spool)
    with SpoolLock(doctor.spool):
        spool.note("running", {"rules": "redaction:1-ab", "configuration": digest(path)})
        assert doctor("agent").said == "running (rules: redaction:1-ab)"
        path.write_text("[redact]\nenabled = false\n")
        found = doctor("agent")
        assert found.verdict.value == "warning"
        assert "by another configuration" in found.said
        spool.note("configuration", {"error": "agent.toml:2: no.", "since": "2026-01-01"})
        found = doctor("agent")
        assert found.verdict.value == "wrong"
        assert found.said == "it reads nothing since 2026-01-01: agent.toml:2: no."
    spool.close()


def test_unreadable_sources_are_named(doctor: Doctor, tmp_path: Path) -> None:
    doctor.sources = [Source(tmp_path / name, KEY, "events", "amplifier") for name in "abcd"]
    (tmp_path / "a").touch()
    found = doctor("sources")
    assert found.said.startswith("3 of 4 session files cannot be read")
    doctor.sources = doctor.sources[:1]
    assert doctor.verdict("sources") == "ok"


@pytest.mark.parametrize(
    ("age", "period", "state"),
    [
        (1, None, "ok"),
        (26, None, "warning"),
        (29, None, "wrong"),
        (29, 365, "ok"),
        (0, 0, "wrong"),
    ],
)
def test_what_a_tool_deletes_soon_is_seen_in_time(
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    age: int,
    period: int | None,
    state: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".claude" / "projects" / "-p" / "s.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    written = time.time() - age * 86_400
    os.utime(path, (written, written))
    if period is not None:
        settings = {"cleanupPeriodDays": period}
        (tmp_path / ".claude" / "settings.json").write_text(json.dumps(settings))
    doctor.sources = [Source(path, KEY, "transcript", "claude_code")]
    assert doctor.verdict("retention") == state
    Spool(doctor.spool).close()
    assert doctor.verdict("retention") == state


def test_the_settings_of_the_folder_that_a_tool_was_told_to_use_count(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "elsewhere"))
    path = tmp_path / "elsewhere" / "projects" / "-p" / "s.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    settings = tmp_path / "elsewhere" / "settings.json"
    settings.write_text('{"cleanupPeriodDays": 1}')
    doctor.sources = [Source(path, KEY, "transcript", "claude_code")]
    for _ in range(2):
        found = doctor("retention")
        assert found.said.startswith("Claude Code deletes sessions after 1 days")
        assert f"cleanupPeriodDays in {settings}," in found.fix
        Spool(doctor.spool).close()


def test_tools_that_delete_nothing_are_no_hurry(doctor: Doctor, tmp_path: Path) -> None:
    doctor.sources = [Source(tmp_path / "events.jsonl", KEY, "events", "amplifier")]
    assert doctor("retention").said == "no tool here deletes its sessions"


def test_a_clock_is_compared_with_what_a_server_says() -> None:
    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Late)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    ahead = machine._seconds_ahead(f"http://127.0.0.1:{server.server_port}/")
    thread.join()
    server.server_close()
    assert ahead > 86_400


def test_what_the_system_refuses_is_a_finding_too(doctor: Doctor) -> None:
    def refused() -> list[Source]:
        raise PermissionError(13, "Permission denied")

    doctor.find = refused
    assert doctor("sources").said == "Permission denied"
