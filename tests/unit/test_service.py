"""The agent as a service: what is written is what systemd, launchd and Windows understand."""

import plistlib
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree import ElementTree as ET

import pytest

from sessionferry.agent.service import System, plan, systemd_unit, windows_task

COMMAND = ("/opt/a b/python", "-m", "sessionferry.cli", "ship", "--watch", "--data", "/d/100%/$x")
ARGUMENTS = ("ship", "--watch", "--data", "/d/100%/$x")
PROGRAM = ("/opt/a b/python", *ARGUMENTS)
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
    made = plan("darwin", PurePosixPath("/Users/ada"), PROGRAM, ENVIRONMENT, "501")
    found = plistlib.loads(made.content)
    assert found["ProgramArguments"] == ["/opt/a b/python", "-m", "sessionferry.cli", *ARGUMENTS]
    assert found["EnvironmentVariables"] == ENVIRONMENT
    # The keys of launchd.plist(5), with the types that it wants.
    kinds = {key: type(value) for key, value in found.items()}
    assert kinds == {
        **dict.fromkeys(("Label", "ProcessType", "StandardOutPath", "StandardErrorPath"), str),
        **dict.fromkeys(("RunAtLoad", "KeepAlive", "LowPriorityIO"), bool),
        **dict.fromkeys(("Nice", "Umask", "ThrottleInterval"), int),
        "ProgramArguments": list,
        "EnvironmentVariables": dict,
    }
    assert found["KeepAlive"] is True
    assert found["ProcessType"] in {"Background", "Standard", "Adaptive", "Interactive"}
    file = "/Users/ada/Library/LaunchAgents/dev.sessionferry.agent.plist"
    assert str(made.file) == file
    assert made.end == (("launchctl", "bootout", "gui/501/dev.sessionferry.agent"),)
    assert made.start[-1] == ("launchctl", "bootstrap", "gui/501", file)


# The documented schema of tasks, version 1.2: which elements each has, and in which order where
# that counts (`xs:sequence`); where it does not (`xs:all`) they are a set.
TASK_ELEMENTS: dict[str, set[str] | list[str]] = {
    "Task": {"RegistrationInfo", "Triggers", "Principals", "Settings", "Actions", "Data"},
    "RegistrationInfo": {"Description", "Author", "URI", "Date", "Version"},
    "Triggers": {"LogonTrigger", "TimeTrigger"},
    "LogonTrigger": [
        *("Enabled", "StartBoundary", "EndBoundary", "Repetition", "ExecutionTimeLimit"),
        *("UserId", "Delay"),
    ],
    "TimeTrigger": [
        *("Enabled", "StartBoundary", "EndBoundary", "Repetition", "ExecutionTimeLimit"),
        "RandomDelay",
    ],
    "Repetition": {"Interval", "Duration", "StopAtDurationEnd"},
    "Principals": {"Principal"},
    "Principal": {"UserId", "LogonType", "RunLevel", "GroupId", "DisplayName"},
    "Settings": {
        *("AllowStartOnDemand", "RestartOnFailure", "MultipleInstancesPolicy", "Priority"),
        *("DisallowStartIfOnBatteries", "StopIfGoingOnBatteries", "AllowHardTerminate"),
        *("StartWhenAvailable", "NetworkProfileName", "RunOnlyIfNetworkAvailable", "WakeToRun"),
        *("Enabled", "Hidden", "DeleteExpiredTaskAfter", "IdleSettings", "NetworkSettings"),
        *("RunOnlyIfIdle", "ExecutionTimeLimit"),
    },
    "RestartOnFailure": {"Interval", "Count"},
    "Actions": {"Exec"},
    "Exec": {"Command", "Arguments", "WorkingDirectory"},
}
BOOLEAN, DURATION = "true|false", r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?"
TASK_VALUES = {
    **dict.fromkeys(("Enabled", "StartWhenAvailable", "StopIfGoingOnBatteries"), BOOLEAN),
    "DisallowStartIfOnBatteries": BOOLEAN,
    "Interval": DURATION,
    "ExecutionTimeLimit": DURATION,
    "StartBoundary": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
    "LogonType": "S4U|Password|InteractiveToken|InteractiveTokenOrPassword",
    "RunLevel": "LeastPrivilege|HighestAvailable",
    "MultipleInstancesPolicy": "Parallel|Queue|IgnoreNew|StopExisting",
    # Above 7 a process stands back; 10 is idle.
    "Priority": "[0-9]|10",
    # An unsigned byte, from 1.
    "Count": "[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]",
}


def check_element(element: ET.Element) -> None:
    """Hold an element, and all below it, to the schema of tasks."""
    name = element.tag.removeprefix(TASK)
    inner = [child.tag.removeprefix(TASK) for child in element]
    assert element.tag == TASK + name
    if name not in TASK_ELEMENTS:
        assert re.fullmatch(TASK_VALUES.get(name, ".+"), element.text or "", re.DOTALL), name
        assert inner == []
        return
    allowed = TASK_ELEMENTS[name]
    assert set(inner) <= set(allowed), name
    assert len(set(inner)) == len(inner)
    if isinstance(allowed, list):
        assert inner == sorted(inner, key=allowed.index), name
    for child in element:
        check_element(child)


SID = "S-1-5-21-1004336348-1177238915-682003330-512"


def made_task(environment: dict[str, str]) -> ET.Element:
    program = ["C:\\Program Files\\py\\pythonw.exe", "ship", "--watch"]
    made = plan("win32", PureWindowsPath("C:\\Users\\ada"), program, environment, SID)
    assert made.content.startswith(b"\xff\xfe")
    return ET.fromstring(made.content)  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, "-m sessionferry.cli.env ship --watch"),
        (
            {"FERRY_DATA": "C:\\a & b\\", "FERRY_HOURS": "<%PATH%>"},
            '-m sessionferry.cli.env "FERRY_DATA=C:\\a & b\\\\" FERRY_HOURS=<%PATH%> ship --watch',
        ),
    ],
)
def test_windows_gets_a_task_of_its_schema(environment: dict[str, str], arguments: str) -> None:
    task = made_task(environment)
    check_element(task)
    assert task.get("version") == "1.2"
    assert task.findtext(f".//{TASK}Command") == "C:\\Program Files\\py\\pythonw.exe"
    assert task.findtext(f".//{TASK}Arguments") == arguments
    principal = task.find(f".//{TASK}Principal")
    assert principal is not None
    assert principal.get("id") == task.find(f"{TASK}Actions").get("Context")  # type: ignore[union-attr]


def test_a_task_is_its_users_alone_is_started_again_and_has_no_time_limit() -> None:
    task = made_task({})
    assert [found.text for found in task.iter(f"{TASK}UserId")] == [SID, SID]
    assert task.findtext(f".//{TASK}ExecutionTimeLimit") == "PT0S"
    assert task.findtext(f".//{TASK}MultipleInstancesPolicy") == "IgnoreNew"
    assert task.findtext(f".//{TASK}TimeTrigger/{TASK}Repetition/{TASK}Interval") == "PT5M"


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_what_is_started_can_be_stopped(system: System) -> None:
    made = plan(system, PurePosixPath("/home/ada"), PROGRAM, {}, "501")
    assert made.start
    named = {word for command in made.start for word in command}
    ended = {word for command in (*made.end, *made.stop) for word in command}
    assert (
        {"sessionferry", "sessionferry.service", "gui/501/dev.sessionferry.agent"} & named & ended
    )
    assert windows_task(COMMAND, "a") != windows_task(COMMAND, "b")
