"""The agent as a service: what is written is what systemd, launchd and Windows understand."""

import plistlib
import shutil
import subprocess
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree as ET

import pytest

from sessionferry.agent.service import plan, systemd_unit, windows_task

COMMAND = ("/opt/a b/python", "-m", "sessionferry.cli", "ship", "--watch", "--data", "/d/100%/$x")
ENVIRONMENT = {"FERRY_CONFIG": '/home/ada/my "agent".toml', "FERRY_DATA": "/d/100%"}
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "a b" / "python"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    unit = tmp_path / "sessionferry.service"
    unit.write_text(systemd_unit([str(program), "ship", "a%b", "$HOME", 'c "d"'], ENVIRONMENT))
    command = [analyze, "verify", "--user", "--man=no", str(unit)]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    told = [line for line in ran.stderr.splitlines() if "sessionferry" in line]
    assert (ran.returncode, told) == (0, []), ran.stderr


def test_a_unit_gives_each_word_and_variable_as_it_is() -> None:
    unit = systemd_unit(COMMAND, ENVIRONMENT).splitlines()
    assert (
        'ExecStart="/opt/a b/python" -m sessionferry.cli ship --watch --data /d/100%%/$$x' in unit
    )
    assert 'Environment="FERRY_CONFIG=/home/ada/my \\"agent\\".toml"' in unit
    assert "Environment=FERRY_DATA=/d/100%%" in unit


def test_launchd_gets_a_property_list() -> None:
    made = plan("darwin", PurePosixPath("/Users/ada"), COMMAND, ENVIRONMENT)
    found = plistlib.loads(made.content)
    assert found["ProgramArguments"] == list(COMMAND)
    assert found["EnvironmentVariables"] == ENVIRONMENT
    assert found["ProcessType"] == "Background"
    assert str(made.file) == "/Users/ada/Library/LaunchAgents/dev.sessionferry.agent.plist"


@pytest.mark.parametrize("environment", [{}, {"FERRY_DATA": "C:\\a & b"}])
def test_windows_gets_a_task(environment: dict[str, str]) -> None:
    command = ["C:\\Program Files\\py\\pythonw.exe", "-m", "sessionferry.cli", "ship", "--watch"]
    made = plan("win32", PureWindowsPath("C:\\Users\\ada"), command, environment)
    assert made.content.startswith(b"\xff\xfe")
    task = ET.fromstring(made.content)  # noqa: S314 - our own
    program, arguments = (
        task.findtext(f".//{TASK}{name}") or "" for name in ("Command", "Arguments")
    )
    if environment:
        inner = (
            'set "FERRY_DATA=C:\\a & b" && "C:\\Program Files\\py\\pythonw.exe"'
            " -m sessionferry.cli ship --watch"
        )
        assert (program, arguments) == ("cmd.exe", f'/d /s /c "{inner}"')
    else:
        assert (program, arguments) == (command[0], "-m sessionferry.cli ship --watch")
    assert task.findtext(f".//{TASK}ExecutionTimeLimit") == "PT0S"
    assert task.findtext(f".//{TASK}MultipleInstancesPolicy") == "IgnoreNew"


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_what_is_started_can_be_stopped(system: str) -> None:
    made = plan(system, PurePosixPath("/home/ada"), COMMAND, {})  # type: ignore[arg-type]
    assert made.start
    assert made.stop
    named = {word for command in (*made.start, *made.stop) for word in command}
    assert {"sessionferry", "sessionferry.service", str(made.file)} & named
    assert windows_task(COMMAND, {}) != windows_task(COMMAND, {"A": "b"})
