"""The configuration file: its errors name the line, its example and schema do not rot."""

import json
import os
import re
import stat
import tomllib
from pathlib import Path

import pytest

from sessionferry.agent.gate import Passed
from sessionferry.agent.policy import Policy, gate_of
from sessionferry.agent.rules import RULE_NAMES
from sessionferry.config import Config, example, is_private
from sessionferry.errors import UserError
from sessionferry.host import redaction_key
from sessionferry.settings import Settings
from unit.test_filters import event, source

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (REFERENCE / "agent-config.md").read_text()
KEY = "sk-ant-" + "a1B2" * 9


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An identity folder, and no other settings."""
    for name in os.environ:
        if name.startswith(("FERRY_", "ServiceBusConnection")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FERRY_IDENTITY", str(tmp_path))
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- reading


def test_the_example_is_a_file_that_changes_nothing() -> None:
    assert Config.model_validate(tomllib.loads(example())) == Config()


def test_what_the_example_shows_as_comments_is_right_too(folder: Path) -> None:
    shown = re.sub(r"^# (\S+ = )", r"\1", example(), flags=re.MULTILINE)
    found = Config.read(written(folder, shown))
    assert found.filter.sample == {"tool:progress": 0.1}
    assert found.redact.rules[0].name == "acme-token"
    assert found.metrics.port == 9464
    assert found.sources.jsonl[0].places["input"] == "llm.tokens.in"
    Policy.of(found, lambda: b"k")


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((REFERENCE / "agent-config.schema.json").read_bytes())
    assert published == Config.model_json_schema()


def test_every_key_and_rule_is_described_and_no_other() -> None:
    described = set(re.findall(r"^\| `(\w+\.[\w*]+)` \|", PAGE, re.MULTILINE))
    real = {
        f"{name}.{key}"
        for name, field in Config.model_fields.items()
        for key in getattr(field.annotation, "model_fields", {"*": None})
    }
    assert described == real
    listed = PAGE.partition("## Rules")[2]
    assert set(RULE_NAMES) <= set(re.findall(r"`([a-z-]+)`", listed))


_LONG = "\N{SNOWMAN}" * 200
_TOO_MANY_PLACES = "[[sources.jsonl]]\npaths = ['/a']\n[sources.jsonl.fields]\n" + "".join(
    f"{name} = '{_LONG}'\n"
    for name in ("role", "model", "time", "input", "output", "event", "error")
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[filter]\n\ndrop = 'a'\n", "agent.toml:3: filter.drop: Input should be a valid list"),
        ("[filters]\n", "agent.toml:1: filters: there is no such key"),
        ("[redact]\nenabled = true\noff = [1]\n", "agent.toml:3: redact.off.0: Input should be"),
        ("[redact]\n[[redact.rules]]\nname = 'A b'\npattern = 'x'\n", "agent.toml:3: redact.rules"),
        ("[metrics]\n'port' = 0\n", "agent.toml:2: metrics.port: Input should be greater"),
        ("[filter.sample]\n'tool:*' = 2\n", "agent.toml:2: filter.sample.tool:.: Input should be"),
        ("[[sources.jsonl]]\npaths = []\n", "agent.toml:2: sources.jsonl.0.paths: .* at least 1"),
        ("[[sources.jsonl]]\npaths = ['/a']\nfields = {mode = 'x'}\n", "3: .*no such key"),
        (_TOO_MANY_PLACES, "places have 4200 bytes"),
        ("[filter\n", "is not valid TOML: .*line 1"),
        ("[log]\nlevel = 'all'\nmegabytes = 0\n", "agent.toml:3: log.megabytes"),
    ],
)
def test_an_error_names_the_key_and_the_line(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Config.read(written(folder, text))


def test_a_file_that_is_not_text_is_explained(folder: Path) -> None:
    (folder / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="it is not UTF-8"):
        Config.read(folder / "agent.toml")
    with pytest.raises(UserError, match="cannot be read"):
        Config.read(folder)


# ---------------------------------------------------------------- settings


def test_settings_come_from_the_file_where_the_environment_says_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder, "[settings]\nqueue = 'q'\nuser_id = 'ada'\nnamespace = 'n'\nspool_mb = 7\n")
    monkeypatch.setenv("FERRY_USER_ID", "bob")
    monkeypatch.setenv("ServiceBusConnection__fullyQualifiedNamespace", "other")
    found = Settings.read()
    assert (found.queue, found.user_id, found.namespace, found.spool_mb) == ("q", "bob", "other", 7)


def test_a_setting_that_does_not_exist_is_named(folder: Path) -> None:
    written(folder, "[settings]\nqueues = 'q'\n")
    with pytest.raises(UserError, match="queues"):
        Settings.read()


def test_a_file_that_is_named_has_to_be_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FERRY_CONFIG", str(folder / "other.toml"))
    with pytest.raises(UserError, match=r"There is no configuration .*other\.toml"):
        Settings.read()
    (folder / "other.toml").write_text("[settings]\nqueue = 'q'\n")
    assert Settings.read().queue == "q"


# ---------------------------------------------------------------- from file to gate


def test_without_a_file_everything_passes_and_with_an_empty_one_no_secret_does(
    folder: Path,
) -> None:
    line = event("a", text=KEY)
    assert gate_of(Settings.read()).is_open
    assert not (folder / "redaction.json").exists()
    written(folder, "")
    gate = gate_of(Settings.read())
    assert KEY.encode() not in gate.lines(source(), line).payload
    assert gate.rules == gate_of(Settings.read()).rules
    written(folder, "[redact]\nenabled = false\n")
    assert gate_of(Settings.read()).lines(source(), line) == Passed(line)


def test_rules_that_do_not_exist_or_cannot_be_used_stop_everything(folder: Path) -> None:
    written(folder, "[redact]\noff = ['githubb']\n")
    with pytest.raises(UserError, match="there is no rule 'githubb'"):
        gate_of(Settings.read())
    written(folder, "[[redact.rules]]\nname = 'x'\npattern = '('\n")
    with pytest.raises(UserError, match="The pattern of the rule x is not valid: missing"):
        gate_of(Settings.read())


def test_the_key_is_made_once_for_its_owner_alone(folder: Path) -> None:
    key = redaction_key(folder)
    assert len(key) == 32
    assert redaction_key(folder) == key
    path = folder / "redaction.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert is_private(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="sent anew"):
        redaction_key(folder)
