"""What a service is told of the shell that installs it."""

from pathlib import Path

import pytest

from sessionferry.agent.environment import for_service
from sessionferry.errors import UserError
from sessionferry.settings import Settings

KEY = "c2VjcmV0"


def told(folder: Path, **shell: str) -> dict[str, str]:
    """What a service is told when this is set in the shell; the settings are read from it, too."""
    named = {name.removeprefix("FERRY_").lower(): value for name, value in shell.items()}
    known = {name: value for name, value in named.items() if name in Settings.model_fields}
    own = {"data": folder / "data", "identity": folder / "identity"}
    return for_service(Settings.read(**own | known), shell)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FERRY_INBOX", f"https://name.blob.core.windows.net/inbox?sv=1&sig={KEY}"),
        ("FERRY_INBOX", f"https://ada:{KEY}@store.example/inbox"),
        ("FERRY_ARCHIVE", f"az://archive?SharedAccessSignature={KEY}"),
        ("FERRY_PROXY", f"http://ada:{KEY}@proxy:3128"),
        ("HTTPS_PROXY", f"ada:{KEY}@proxy:3128"),
        ("ServiceBusConnection", f"Endpoint=sb://x/;SharedAccessKey={KEY}"),
        ("FERRY_QUEUE", f"sessions;AccountKey={KEY}"),
    ],
)
def test_a_secret_is_refused_by_its_name_alone(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UserError, match="is no place for a secret") as told_so:
        told(tmp_path, **{name: value})
    assert str(told_so.value).startswith(f"{name} holds a secret")
    assert KEY not in str(told_so.value)


def test_what_is_no_secret_is_passed_on_as_it_is(tmp_path: Path) -> None:
    plain = {
        "FERRY_INBOX": "https://name.blob.core.windows.net/inbox",
        "FERRY_USER_ID": "ada@atlas",
        "FERRY_PROXY": "http://proxy:3128",
        "NO_PROXY": "localhost,.example",
    }
    passed = told(tmp_path, **plain, OTHER="x")
    own = {"FERRY_DATA": str(tmp_path / "data"), "FERRY_IDENTITY": str(tmp_path / "identity")}
    assert passed == plain | own


def test_the_folders_of_tools_go_along(tmp_path: Path) -> None:
    passed = told(tmp_path, CLAUDE_CONFIG_DIR="/srv/claude", CODEX_HOME="codex")
    assert passed["CLAUDE_CONFIG_DIR"] == "/srv/claude"
    assert passed["CODEX_HOME"] == str(Path.cwd() / "codex")


def test_files_are_named_from_the_root(tmp_path: Path) -> None:
    passed = told(tmp_path, FERRY_SAS_FILE="./sas.txt")
    assert passed["FERRY_SAS_FILE"] == str(Path.cwd() / "sas.txt")
    known = {"data": tmp_path, "identity": tmp_path}
    assert "FERRY_SAS_FILE" not in for_service(Settings.read(**known, sas_file="/s"), {})
    # A relative one in the configuration file, too.
    assert for_service(Settings.read(**known, sas_file="s"), {})["FERRY_SAS_FILE"] == str(
        Path.cwd() / "s"
    )
