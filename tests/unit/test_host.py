"""Who this machine is."""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessionferry.errors import TransientError, UserError
from sessionferry.host import IDENTITY_FILE, Identity, IdentityContext, machine_fingerprint
from sessionferry.settings import Settings


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No identity from the environment, and none kept from another test."""
    for name in [name for name in os.environ if name.startswith("FERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(IdentityContext, "_identity", None)
    yield
    IdentityContext._identity = None


def test_an_identity_is_made_once_and_stays(tmp_path: Path) -> None:
    first = Identity(tmp_path)
    again = Identity(tmp_path)
    assert (first.host_id, first.user_id) == (again.host_id, again.user_id)
    assert first.user_id == f"{getpass.getuser()}@{first.host_id}"
    assert Identity(tmp_path / "elsewhere").host_id != first.host_id


def test_it_survives_a_new_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Identity(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    assert Identity(tmp_path).host_id == first.host_id


def test_a_host_name_of_odd_characters_makes_a_usable_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "anna's laptop/\u00e9|" + "x" * 90)
    host_id = Identity(tmp_path).host_id
    assert host_id.startswith("anna-s-laptop---x")
    assert len(host_id) <= 49


def test_many_processes_at_once_make_one_identity(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sessionferry.host import Identity;"
        "sys.stdin.readline(); print(Identity(Path(sys.argv[1])).host_id)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "new")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ids = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0] * 6
    assert len(ids) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == [IDENTITY_FILE]


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        identity = Identity(tmp_path / "own")
        identity.knew_spool("queue", "spool-1")
    finally:
        os.umask(before)
    assert identity.path.stat().st_mode & 0o777 == 0o600
    assert identity.path.parent.stat().st_mode & 0o777 == 0o700


def test_given_ids_win_over_the_files_and_leave_it_as_it_is(tmp_path: Path) -> None:
    own = Identity(tmp_path)
    given = Identity(tmp_path, host_id="build-7", user_id="anna")
    assert (given.host_id, given.user_id) == ("build-7", "anna")
    assert Identity(tmp_path, host_id="build-7").user_id == f"{getpass.getuser()}@build-7"
    assert Identity(tmp_path).host_id == own.host_id


def test_the_enrolments_user_wins_over_the_login_and_the_environments_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / IDENTITY_FILE).write_text(json.dumps({"host_id": "h1", "user_id": "enrolled"}))
    monkeypatch.setenv("FERRY_IDENTITY", str(tmp_path))
    assert Identity.from_settings(Settings.read()).user_id == "enrolled"
    monkeypatch.setenv("FERRY_USER_ID", "anna")
    monkeypatch.setenv("FERRY_HOST_ID", "h2")
    identity = Identity.from_settings(Settings.read())
    assert (identity.user_id, identity.host_id) == ("anna", "h2")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"host_id":7}'])
def test_a_damaged_file_is_a_clear_error_and_is_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / IDENTITY_FILE
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"identity file .*identity.json"):
        Identity(tmp_path)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match="identity file"):
            Identity(folder)


def test_a_disk_that_takes_no_more_is_a_fault_that_may_pass(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    identity = Identity(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(TransientError, match=r"identity\.json cannot be written"):
            identity.note_rewritten("stream")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY_FILE]
    identity.note_rewritten("stream")
    assert Identity(tmp_path).was_rewritten("stream")


def test_ids_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="host_id has 1025 bytes"):
        Identity(tmp_path, host_id="x" * 1025)
    with pytest.raises(UserError, match="user_id is not valid text"):
        Identity(tmp_path, user_id="\udcff")


def test_a_machine_has_one_fingerprint() -> None:
    assert machine_fingerprint() == machine_fingerprint()
    assert len(machine_fingerprint()) == 16
    int(machine_fingerprint(), 16)


# ------------------------------------------------------------ lost spools


def test_a_spool_of_its_own_is_not_lost(tmp_path: Path) -> None:
    assert not Identity(tmp_path).knew_spool("queue", "spool-1")
    assert not Identity(tmp_path).knew_spool("queue", "spool-1")
    assert not Identity(tmp_path).knew_spool("another queue", "spool-2")


def test_a_lost_spool_is_known_for_as_long_as_its_successor_lives(tmp_path: Path) -> None:
    Identity(tmp_path).knew_spool("queue", "spool-1")
    # The run that first noticed may have ended before it shipped anything.
    assert Identity(tmp_path).knew_spool("queue", "spool-2")
    assert Identity(tmp_path).knew_spool("queue", "spool-2")
    assert not Identity(tmp_path).knew_spool("another queue", "spool-2")


def test_remembering_a_spool_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text(json.dumps({"host_id": "h1", "enrolled": {"by": "x"}}))
    one, two = Identity(tmp_path), Identity(tmp_path)
    one.knew_spool("a", "1")
    two.knew_spool("b", "2")
    assert json.loads((tmp_path / IDENTITY_FILE).read_text()) == {
        "host_id": "h1",
        "enrolled": {"by": "x"},
        "spools": {"a": "1", "b": "2"},
    }


# ------------------------------------------------------------ amplifier-session-storage's names


def test_the_identity_context_is_that_of_amplifier_session_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_IDENTITY", str(tmp_path))
    IdentityContext.initialize()
    user_id, host_id = IdentityContext.get_user_id(), IdentityContext.get_host_id()
    assert user_id == f"{getpass.getuser()}@{host_id}"
    assert Identity(tmp_path).host_id == host_id


def test_the_identity_context_initializes_itself_and_then_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_IDENTITY", str(tmp_path))
    monkeypatch.setenv("FERRY_USER_ID", "anna")
    assert IdentityContext.get_user_id() == "anna"
    monkeypatch.setenv("FERRY_USER_ID", "bert")
    assert IdentityContext.get_user_id() == "anna"
    IdentityContext.initialize()
    assert IdentityContext.get_user_id() == "bert"


def test_rewritten_streams_are_remembered_and_beyond_a_bound_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity(tmp_path)
    assert not identity.was_rewritten("a|events")
    identity.note_rewritten("a|events")
    identity.note_rewritten("a|events")
    again = Identity(tmp_path)
    assert (again.was_rewritten("a|events"), again.was_rewritten("b|events")) == (True, False)
    assert again.host_id == identity.host_id
    monkeypatch.setattr("sessionferry.host.MAX_REWRITTEN", 2)
    for name in ("b", "c"):
        again.note_rewritten(name)
    assert Identity(tmp_path).was_rewritten("anything")
