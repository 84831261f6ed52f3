"""The whole way through the command line: ship, store, show, verify, export."""

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zstandard
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from sessionferry.simulate import FleetPlan, Oracle, simulate
from support.stack import Ferry, RunningStack, wait_for

PROJECT = "-srv-code-api"
NAMES = ("metadata.json", "transcript.jsonl", "events.jsonl")


class Session:
    """An Amplifier session's folder on a user's disk."""

    def __init__(self, ferry: Ferry, name: str = "") -> None:
        self.id = name or f"s-{uuid.uuid4()}"
        self.root = ferry.home / ".amplifier"
        self.folder = self.root / "projects" / PROJECT / "sessions" / self.id
        self.folder.mkdir(parents=True)

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def events(self, count: int, *, start: int = 0) -> bytes:
        lines = [{"ts": TIME, "event": "tool:pre", "number": start + n} for n in range(count)]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def messages(self, *texts: str) -> bytes:
        lines = [{"role": "user", "content": text} for text in texts]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


TIME = "2026-03-02T09:00:00.000000000+00:00"


@pytest.fixture
def session(ferry: Ferry) -> Session:
    return Session(ferry)


def exported(ferry: Ferry, session_id: str, to: Path) -> dict[str, bytes]:
    """A session's files as `ferry export` gives them back."""
    ferry.run("export", session_id, "--to", to)
    return {path.name: path.read_bytes() for path in (to / session_id).iterdir()}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in NAMES}


def head(ferry: Ferry, session_id: str) -> dict[str, Any]:
    return dict(ferry.run("show", session_id, "--json").json)


def counts(ferry: Ferry, *arguments: object) -> list[tuple[object, ...]]:
    names = ("path", "verdict", "lines", "bytes", "stored", "quarantined", "conflicts")
    return [tuple(found[name] for name in names) for found in ferry.verify(*arguments)]


# ---------------------------------------------------------------- a fleet


def test_a_hostile_fleet_goes_in_and_comes_back_byte_for_byte(ferry: Ferry, tmp_path: Path) -> None:
    fleet, back = tmp_path / "fleet", tmp_path / "back"
    oracle = simulate(fleet, FleetPlan(seed=5, target_bytes=6_000_000))
    report = ferry.run("ship", fleet, "--json").json
    assert (report["files"], report["lines"], report["bytes"], report["failed"]) == (
        *(oracle.totals.files, oracle.totals.lines, oracle.totals.bytes),
        [],
    )
    findings = ferry.wait(fleet, "--bytes")
    assert sum_of(findings, "stored") == oracle.totals.stored
    assert sum_of(findings, "quarantined") == oracle.totals.quarantined > 0
    said = ferry.run("verify", fleet, code=3).stdout
    assert "lines are in the quarantine" in said
    assert f"{oracle.totals.files} of {oracle.totals.files} files are complete" in said
    _check_sessions(ferry, oracle)
    for session_id in {file.session_id for file in oracle.files}:
        _check_session(ferry, oracle, fleet, session_id, back)


def sum_of(findings: list[dict[str, Any]], name: str) -> int:
    return sum(int(found[name]) for found in findings)


def _check_sessions(ferry: Ferry, oracle: Oracle) -> None:
    user = ferry.environment["FERRY_USER_ID"]
    listed = ferry.run("sessions", "--user", user, "--limit", 1000, "--json").json
    assert {found["session_id"] for found in listed} == {file.session_id for file in oracle.files}
    table = ferry.run("sessions", "--user", user).stdout
    assert all(file.session_id in table for file in oracle.files)
    slug = oracle.files[0].project_slug
    own = ferry.run("sessions", "--user", user, "--project", slug, "--json").json
    assert {found["project_slug"] for found in own} == {slug}


def _check_session(ferry: Ferry, oracle: Oracle, fleet: Path, session_id: str, back: Path) -> None:
    files = {file.stream: file for file in oracle.files if file.session_id == session_id}
    main = files.get("events") or files["transcript"]
    lines = ferry.run("show", session_id, "--stream", main.stream, "--limit", 100_000).stdout
    documents = [json.loads(line) for line in lines.split("\n")[:-1]]
    assert len(documents) == main.stored
    assert sum(document["data_truncated"] for document in documents) == main.truncated
    assert head(ferry, session_id)["streams"][main.stream]["usage"] == asdict(main.usage)
    sequences = [document["sequence"] for document in documents]
    assert sequences == sorted(set(sequences))
    own = {Path(file.path).name: (fleet / file.path).read_bytes() for file in files.values()}
    assert exported(ferry, session_id, back) == own


def test_the_homes_of_three_tools_go_in_by_themselves(ferry: Ferry, tmp_path: Path) -> None:
    plan = FleetPlan(seed=3, machines=1, sessions=1, turns=2, raw=False, hostile=False)
    oracle = simulate(tmp_path / "fleet", plan)
    for found in (tmp_path / "fleet" / "atlas-01").iterdir():
        shutil.move(found, ferry.home / found.name)
    report = ferry.run("ship", "--json").json
    assert (report["files"], report["lines"]) == (oracle.totals.files, oracle.totals.lines)
    ferry.wait("--bytes")
    assert "files are complete" in ferry.run("verify").stdout
    user = ferry.environment["FERRY_USER_ID"]
    listed = {
        found["session_id"]: found for found in ferry.run("sessions", "--user", user, "--json").json
    }
    for file in (file for file in oracle.files if file.format == "claude_code"):
        session = listed[file.session_id]
        assert (session["project_slug"], session["working_dir"]) == (file.project_slug, CLAUDE_DIR)
        is_agent = "agent-" in file.session_id
        assert ("parent_id" in session, session["parent_id"] if is_agent else None) == (
            *(is_agent, session["native_session_id"] if is_agent else None),
        )
    threads = {file.session_id for file in oracle.files if file.format == "codex"}
    forks = [listed[thread] for thread in threads if "parent_id" in listed[thread]]
    assert len(threads) == 3
    assert [fork["parent_id"] in threads for fork in forks] == [True]


CLAUDE_DIR = "/home/mara/ledger"


def test_a_clean_fleet_verifies_with_exit_code_0(ferry: Ferry, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    ferry.run("simulate", fleet, "--megabytes", 1, "--machines", 1, "--no-hostile", "--no-raw")
    ferry.run("ship", fleet)
    findings = ferry.wait(fleet)
    said = ferry.run("verify", fleet, "--bytes", code=0).stdout
    assert "0 quarantined + 0 missing" in said
    for thread in list(fleet.rglob("rollout-*.jsonl")):
        thread.with_name(f"{thread.name}.zst").write_bytes(zstandard.compress(thread.read_bytes()))
        thread.unlink()
    assert ferry.run("ship", fleet, "--json").json["lines"] == 0
    assert ferry.run("verify", fleet, "--bytes", code=0).stdout == said
    shown = ferry.run("show", session_id := findings[0]["session_id"]).stdout
    assert shown.startswith(f"session  {session_id}\n")


# ---------------------------------------------------------------- only what is new


def test_a_second_run_sends_nothing_and_appended_lines_only_themselves(
    ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    events = session.write("events.jsonl", session.events(100))
    session.write("transcript.jsonl", session.messages("hello"))
    session.write("metadata.json", b'{"session_id": "x"}')
    first = ferry.run("ship", "--json").json  # ~/.amplifier is the default
    assert (first["files"], first["lines"], first["unchanged"]) == (3, 101, 0)
    second = ferry.run("ship", "--json").json
    assert (second["unchanged"], second["lines"], second["bytes"]) == (3, 0, 0)
    with events.open("ab") as file:
        file.write(more := session.events(3, start=100))
    third = ferry.run("ship", "--json").json
    assert (third["unchanged"], third["lines"], third["bytes"]) == (2, 3, len(more))
    assert third["rewritten"] == 0
    ferry.wait("--bytes")
    assert exported(ferry, session.id, tmp_path) == on_disk(session.folder)


def test_a_tail_is_kept_and_replaced_when_its_line_is_finished(
    ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    events = session.write("events.jsonl", session.events(2) + b'{"event": "torn", "te')
    assert ferry.run("ship", "--json").json["tails"] == 1
    ferry.wait(session.root)
    assert exported(ferry, session.id, tmp_path / "a") == on_disk(session.folder)
    with events.open("ab") as file:
        file.write(b'xt": 1}\n')
    report = ferry.run("ship", "--json").json
    assert (report["tails"], report["lines"]) == (0, 1)
    ferry.wait(session.root)
    assert exported(ferry, session.id, tmp_path / "b") == on_disk(session.folder)
    assert head(ferry, session.id)["streams"]["events"].get("tail") is None


ODD_FILES = {
    "bom-crlf": b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n',
    "blank-lines": b'\n\n \t\n{"a": 1}\n\x0b\n\n{"a": 2}\n\n\n',
    "blank-tail": b'{"a": 1}\n{"a": 2}\r\n   ',
    "tail-only": b'{"a": 1}',
    "blank-only": b"\n",
    "empty": b"",
}


def test_odd_files_come_back_as_they_were(ferry: Ferry, tmp_path: Path) -> None:
    user = ferry.environment["FERRY_USER_ID"]
    sessions = {name: Session(ferry, f"{user}-{name}") for name in ODD_FILES}
    for name, content in ODD_FILES.items():
        sessions[name].write("events.jsonl", content)
        sessions[name].write("metadata.json", b" { }\r\n")
    ferry.run("ship")
    ferry.wait("--bytes")
    for session in sessions.values():
        assert exported(ferry, session.id, tmp_path / "back") == on_disk(session.folder)


def test_a_rewritten_transcript_becomes_a_new_generation(
    ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    path = session.write("transcript.jsonl", session.messages("one", "two", "three"))
    ferry.run("ship")
    ferry.wait(session.root)
    path.write_bytes(session.messages("one", "2"))
    found = ferry.verify(session.root, code=3)[0]
    assert found["verdict"] == "differs"
    assert ferry.run("ship", "--json").json["rewritten"] == 1
    ferry.wait("--bytes")
    state = head(ferry, session.id)["streams"]["transcript"]
    assert state["generation"] > 0
    lines = ferry.run("show", session.id, "--stream", "transcript").stdout.splitlines()
    assert [json.loads(line)["content"] for line in lines] == ["one", "2"]
    assert exported(ferry, session.id, tmp_path) == on_disk(session.folder)


def test_supersede_sends_a_file_as_a_new_generation(
    ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    session.write("events.jsonl", session.events(5))
    ferry.run("ship")
    ferry.wait(session.root)
    before = head(ferry, session.id)["streams"]["events"]["generation"]
    assert ferry.run("ship", "--supersede", "--json").json["lines"] == 5

    def raised() -> bool:
        return bool(head(ferry, session.id)["streams"]["events"]["generation"] > before)

    assert wait_for(raised, 60)
    assert ferry.wait("--bytes")[0]["stored"] == 5
    assert exported(ferry, session.id, tmp_path) == on_disk(session.folder)


def test_sending_again_changes_no_count(ferry: Ferry, session: Session) -> None:
    session.write("events.jsonl", session.events(50) + b"no json\n" + b'{"torn')
    session.write("transcript.jsonl", session.messages("a", "b"))
    session.write("metadata.json", b"{}")
    ferry.run("ship")
    ferry.wait()
    before = counts(ferry, "--bytes")
    report = ferry.run("ship", "--resend", "--json").json
    assert (report["lines"], report["tails"], report["unchanged"]) == (53, 1, 0)
    with (session.folder / "transcript.jsonl").open("ab") as file:
        file.write(session.messages("c"))
    ferry.run("ship")  # what is sent after the repetition is taken in after it
    ferry.wait()
    after = counts(ferry, "--bytes")
    assert after[:2] == before[:2]
    assert after[2][4] == 3


def test_sending_again_keeps_the_generation(ferry: Ferry, session: Session) -> None:
    path = session.write("transcript.jsonl", session.messages("one", "two"))
    ferry.run("ship")
    path.write_bytes(session.messages("uno"))
    assert ferry.run("ship", "--json").json["rewritten"] == 1
    ferry.wait(session.root)
    generation = head(ferry, session.id)["streams"]["transcript"]["generation"]
    before = ferry.run("ship", "--resend", "--json").json
    assert before["rewritten"] == 0
    with path.open("ab") as file:
        file.write(session.messages("due"))
    report = ferry.run("ship", "--json").json
    assert (report["lines"], report["rewritten"]) == (1, 0)
    ferry.wait(session.root)
    assert head(ferry, session.id)["streams"]["transcript"]["generation"] == generation


# ---------------------------------------------------------------- what is missing is named


def test_what_was_never_sent_is_named(ferry: Ferry, session: Session) -> None:
    path = session.write("events.jsonl", session.events(3))
    found = ferry.verify(session.root, code=3)[0]
    assert (found["verdict"], found["missing"]) == ("not stored", [[0, 2]])
    ferry.run("ship")
    ferry.wait(session.root)
    with path.open("ab") as file:
        file.write(session.events(4, start=3))
    found = ferry.verify(session.root, code=3)[0]
    assert (found["verdict"], found["missing"]) == ("missing", [[3, 6]])
    said = ferry.run("verify", code=3).stdout
    assert "lines 3 to 6 have not arrived" in said


def test_bytes_lost_from_the_archive_are_named(
    stack: RunningStack, ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    session.write("events.jsonl", session.events(3))
    ferry.run("ship")
    ferry.wait(session.root)
    for folder in (stack.data / "archive").rglob("lines"):
        if session.id in str(folder):
            shutil.rmtree(folder)
    ferry.run("verify", code=0)
    found = ferry.verify(session.root, "--bytes", code=3)[0]
    assert found["verdict"] == "missing"
    assert "are not in the archive" in found["detail"]
    ran = ferry.run("export", session.id, "--to", tmp_path / "back", code=1)
    assert "are not in the archive" in ran.stderr
    assert list((tmp_path / "back" / session.id).iterdir()) == []


# ---------------------------------------------------------------- other formats, other senders


def test_any_json_lines_file_can_be_shipped(ferry: Ferry, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / f"{ferry.environment['FERRY_USER_ID']}-a.jsonl").write_bytes(b'{"n": 1}\n{"n": 2}\n')
    (logs / "b.ndjson").write_bytes(b'{"n": 3}\n[1]\nno\n')
    (logs / "notes.txt").write_bytes(b"not shipped")
    report = ferry.run("ship", logs, "--format", "jsonl", "--json").json
    assert (report["files"], report["lines"]) == (2, 5)
    findings = ferry.wait(logs, "--format", "jsonl")
    assert (sum_of(findings, "stored"), sum_of(findings, "quarantined")) == (3, 2)
    name = f"{ferry.environment['FERRY_USER_ID']}-a"
    files = exported(ferry, name, tmp_path / "back")
    assert files == {f"{name}.jsonl": b'{"n": 1}\n{"n": 2}\n'}


def test_a_batch_made_with_a_shell_is_stored(stack: RunningStack, ferry: Ferry) -> None:
    user, name = ferry.environment["FERRY_USER_ID"], f"shell-{uuid.uuid4()}"
    lines = b'{"role": "user", "content": "from a shell"}\n'
    header = (
        f'{{"v":1,"kind":"lines","stream":"transcript","user_id":"{user}","host_id":"box",'
        f'"project_slug":"-shell","session_id":"{name}","line_count":1,"length":{len(lines)}}}'
    )
    script = 'printf \'%s\\n%s\' "$HEADER" "$LINES" | gzip'
    body = subprocess.run(
        ["sh", "-c", script],
        env={"PATH": os.environ["PATH"], "HEADER": header, "LINES": lines.decode()},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    described = stack.described
    with (
        ServiceBusClient.from_connection_string(described.connection) as client,
        client.get_queue_sender(described.queue) as sender,
    ):
        sender.send_messages(ServiceBusMessage(body))

    def arrived() -> bool:
        return ferry.run("show", name, "--json", code=None).code == 0

    assert wait_for(arrived, 60)
    document = json.loads(ferry.run("show", name, "--stream", "transcript").stdout)
    assert document["content"] == "from a shell"
    assert document["sequence"] == 0


def test_lines_too_large_for_a_message_go_through_the_inbox(
    stack: RunningStack, ferry: Ferry, session: Session, tmp_path: Path
) -> None:
    small = session.events(1)
    noise = os.urandom(15_000_000).hex().encode()  # 30 MB, of which half is news
    flat = b"ballast " * (17 * 2**17)  # 17 MiB
    large = (b'{"event": "%b", "data": "%b"}\n' % pair for pair in ((b"n", noise), (b"f", flat)))
    content = small + small.join(large) + small
    session.write("events.jsonl", content)
    report = ferry.run("ship", "--json").json
    assert report["lines"] == 5
    found = ferry.wait(session.root, "--bytes")[0]
    assert (found["stored"], found["quarantined"]) == (5, 0)
    inbox = [path for path in (stack.data / "inbox").rglob("*") if path.is_file()]
    assert any(session.id in str(path) and path.stat().st_size > 10_000_000 for path in inbox)
    lines = ferry.run("show", session.id, "--stream", "events").stdout.splitlines()
    assert [json.loads(line)["data_truncated"] for line in lines] == [0, 1, 0, 1, 0]
    ferry.run("export", session.id, "--to", tmp_path)
    back = (tmp_path / session.id / "events.jsonl").read_bytes()
    assert hashlib.sha256(back).digest() == hashlib.sha256(content).digest()


# ---------------------------------------------------------------- files that cannot be read


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    ferry: Ferry, session: Session
) -> None:
    session.write("transcript.jsonl", session.messages("hello"))
    (session.folder / "events.jsonl").symlink_to("events.jsonl")
    other = Session(ferry)
    other.write("events.jsonl", other.events(4))
    ran = ferry.run("ship", code=1)
    assert f"not shipped: {session.folder / 'events.jsonl'}: Too many levels" in ran.stderr
    assert "Shipped 5 lines" in ran.stdout
    ferry.wait(other.root / "projects" / PROJECT / "sessions" / other.id)
    findings = {Path(f["path"]).parent.name: f for f in ferry.verify(session.root, code=3)}
    assert findings[other.id]["verdict"] == "ok"
    said = ferry.run("verify", code=3).stdout
    assert f"{session.folder / 'events.jsonl'}: the file cannot be read: Too many levels" in said


def test_a_folder_named_like_a_stream_is_no_stream(ferry: Ferry, session: Session) -> None:
    (session.folder / "events.jsonl").mkdir()
    session.write("transcript.jsonl", session.messages("hello"))
    assert ferry.run("ship", "--json").json["files"] == 1


def test_a_pipe_named_like_a_stream_blocks_nothing(ferry: Ferry, session: Session) -> None:
    os.mkfifo(session.folder / "events.jsonl")
    session.write("transcript.jsonl", session.messages("hello"))
    assert ferry.run("ship", "--json", seconds=30).json["files"] == 1


def test_names_that_are_not_utf8_are_shipped(ferry: Ferry, session: Session) -> None:
    folder = os.fsencode(session.root / "projects" / PROJECT / "sessions") + b"/odd-\xff\xfe"
    os.mkdir(folder)  # noqa: PTH102 - the point is a name of bytes
    path = Path(os.fsdecode(folder + b"/events.jsonl"))
    path.write_bytes(session.events(2) + b"no json\n")
    strict = Ferry(
        ferry.home,
        data=ferry.data,
        user=ferry.environment["FERRY_USER_ID"],
        environment={"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert strict.run("ship", "--json").json["lines"] == 3
    strict.wait(session.root)
    assert "odd-" in strict.run("verify", code=3).stdout
