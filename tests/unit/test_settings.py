"""Settings: their names, who wins, where commands go, and that no secret is shown."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from sessionferry.errors import UserError
from sessionferry.settings import LOCAL_FILE, LocalStack, Settings, endpoints

KEY = "bm90LWEtc2VjcmV0"
CONNECTION = (
    f"Endpoint=sb://fleet.servicebus.windows.net/;SharedAccessKeyName=a;SharedAccessKey={KEY}"
)
STORE = f"postgresql://ferry:{KEY}@db/ferry"
LOCAL = LocalStack(
    port=5672,
    queue="sessions",
    connection=CONNECTION,
    store=STORE,
    archive="file:///a",
    inbox="file:///i",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but a data folder."""
    for name in os.environ:
        if name.startswith(("FERRY_", "ServiceBusConnection")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FERRY_DATA", str(tmp_path))


def message_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert KEY not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("FERRY_DATA", "data", Path("/d")),
        ("FERRY_IDENTITY", "identity", Path("/i")),
        ("FERRY_USER_ID", "user_id", "anna"),
        ("FERRY_HOST_ID", "host_id", "h1"),
        ("FERRY_QUEUE", "queue", "q"),
        ("FERRY_STORE", "store", SecretStr("sqlite://")),
        ("FERRY_ARCHIVE", "archive", "file:///a"),
        ("FERRY_INBOX", "inbox", "file:///i"),
        ("ServiceBusConnection", "connection", SecretStr(CONNECTION)),
        ("ServiceBusConnection__fullyQualifiedNamespace", "namespace", "x.servicebus.windows.net"),
    ],
)
def test_each_setting_has_a_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str, value: object
) -> None:
    shown = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    monkeypatch.setenv(name, shown)
    assert getattr(Settings.read(), field) == value


def test_names_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAMESPACE", "CONNECTION", "STORE", "QUEUE", "DATA"):
        monkeypatch.setenv(name, "foreign")
    assert "foreign" not in repr(Settings.read())


def test_what_is_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_QUEUE", "environment")
    assert Settings.read().queue == "environment"
    assert Settings.read(queue="given").queue == "given"
    monkeypatch.delenv("FERRY_QUEUE")
    assert Settings.read().queue == "sessions"


def test_a_wrong_value_is_named_without_showing_it() -> None:
    with pytest.raises(UserError) as error:
        Settings.read(connection=[KEY])
    assert "The setting " in message_of(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hours = '25:00'", ":4: The setting hours is wrong: "),
        ("retention_hide_days = -1", ":4: The setting retention_hide_days is wrong: "),
        ("cosmos_throughput_bucket = 9", ":4: The setting cosmos_throughput_bucket is wrong: "),
        ("cosmos_auth_method = 'no'", ":4: The setting FERRY_COSMOS_AUTH_METHOD is wrong: "),
        ("namspace = 'x'", ":4: The setting namspace is wrong: there is no such setting"),
    ],
)
def test_a_wrong_value_in_the_file_is_named_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"# ours\n[settings]\nqueue = 'q'\n{text}\n")
    with pytest.raises(UserError) as error:
        Settings.read(identity=tmp_path)
    assert str(error.value).startswith(f"{path}{said}")


def test_a_wrong_value_of_the_environment_is_not_looked_for_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.toml").write_text("[settings]\nhours = '22:00-06:00'\n")
    monkeypatch.setenv("FERRY_HOURS", "25:00")
    with pytest.raises(UserError, match=r"^The setting hours is wrong"):
        Settings.read(identity=tmp_path)


def test_a_key_in_a_file_that_others_may_read_is_said_whenever_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f"[settings]\nconnection = '{CONNECTION}'\n")
    path.chmod(0o600)
    Settings.read(identity=tmp_path)
    assert not caplog.text
    path.chmod(0o644)
    Settings.read(identity=tmp_path)
    assert f"{path} holds a key, and others may read it" in caplog.text
    assert KEY not in caplog.text


# ------------------------------------------------------------ endpoints


def test_a_data_folder_says_where_its_stack_is(tmp_path: Path) -> None:
    LOCAL.write(tmp_path)
    found = endpoints(Settings.read())
    assert found.connection == SecretStr(CONNECTION)
    assert found.store == SecretStr(STORE)
    assert (found.archive, found.inbox, found.queue) == ("file:///a", "file:///i", "sessions")
    assert found.local == LOCAL
    assert found.destination == "local"


def test_settings_win_over_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LOCAL.write(tmp_path)
    monkeypatch.setenv("FERRY_ARCHIVE", "file:///other")
    found = endpoints(Settings.read())
    assert (found.archive, found.inbox) == ("file:///other", "file:///i")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ServiceBusConnection", CONNECTION),
        ("ServiceBusConnection__fullyQualifiedNamespace", "fleet.servicebus.windows.net"),
    ],
)
def test_a_remote_queue_never_shares_a_local_stacks_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    LOCAL.write(tmp_path)
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("FERRY_QUEUE", "q")
    found = endpoints(Settings.read())
    assert found.local is None
    assert found.destination == "fleet.servicebus.windows.net/q"
    with pytest.raises(UserError, match="FERRY_INBOX is missing"):
        _ = found.inbox


def test_each_role_needs_its_own_endpoints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ServiceBusConnection", CONNECTION)
    monkeypatch.setenv("FERRY_INBOX", "az://inbox")
    sender = endpoints(Settings.read())
    assert sender.inbox == "az://inbox"
    for name in ("store", "archive"):
        with pytest.raises(UserError, match=f"FERRY_{name.upper()} is missing") as error:
            getattr(sender, name)
        message_of(error)
    monkeypatch.delenv("ServiceBusConnection")
    monkeypatch.delenv("FERRY_INBOX")
    monkeypatch.setenv("FERRY_STORE", STORE)
    monkeypatch.setenv("FERRY_ARCHIVE", "az://archive")
    reader = endpoints(Settings.read())
    assert (reader.store, reader.archive) == (SecretStr(STORE), "az://archive")


def test_nothing_at_all_is_a_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        endpoints(Settings.read())
    assert f"There is no `ferry local` in {tmp_path}" in message_of(error)
    assert "Start one with `ferry local`" in message_of(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", f'{{"connection":"{CONNECTION}","port":"{KEY}"}}'.encode(), KEY.encode()],
)
def test_a_damaged_stack_file_is_a_sentence_without_its_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOCAL_FILE).write_bytes(content)
    with pytest.raises(UserError) as error:
        endpoints(Settings.read())
    assert LOCAL_FILE in message_of(error)
    assert error.value.__suppress_context__


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    LOCAL.write(tmp_path)
    assert KEY not in repr(LOCAL) + str(LOCAL)
    found = endpoints(Settings.read())
    assert KEY not in repr(found) + str(found)
    monkeypatch.setenv("ServiceBusConnection", CONNECTION)
    monkeypatch.setenv("FERRY_STORE", STORE)
    chosen = Settings.read()
    assert KEY not in repr(chosen) + str(chosen) + repr(endpoints(chosen))
    assert KEY not in endpoints(chosen).destination


def test_the_stack_file_is_its_owners_alone_and_whole_at_any_time(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LOCAL.write(tmp_path)
        LOCAL.model_copy(update={"port": 1}).write(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / LOCAL_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [LOCAL_FILE]
    known = LocalStack.read(tmp_path)
    assert known is not None
    assert known.port == 1


def test_a_folder_without_a_stack_has_none(tmp_path: Path) -> None:
    assert LocalStack.read(tmp_path) is None
