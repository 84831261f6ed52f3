"""The agent as a service of the user: for systemd, launchd and Windows' task scheduler.

What is to be written and run is a value (`Plan`), made by a pure function; `ferry agent install`
carries it out. No secret goes into these files: they name the configuration file, which holds them.
"""

import plistlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal
from xml.sax.saxutils import escape

System = Literal["linux", "darwin", "win32"]
Command = tuple[str, ...]

NAME = "sessionferry"
LABEL = "dev.sessionferry.agent"
RESTART_SECONDS = 60
TASK_MINUTES = 5
"""How often Windows looks whether the agent runs. It takes an exit code for no failure."""
_MODULE = ("-m", "sessionferry.cli")
_MODULE_WITH_VARIABLES = ("-m", "sessionferry.cli.env")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write and run, in this order: `end`, the file, `start`; `end`, `stop`, `forget`.

    `end` and `forget` may fail: there may be no agent that runs, and nothing left to forget.
    """

    file: PurePath
    content: bytes
    end: tuple[Command, ...]
    start: tuple[Command, ...]
    stop: tuple[Command, ...]
    forget: tuple[Command, ...]
    hint: str


def plan(
    system: System,
    home: PurePath,
    program: Sequence[str],
    environment: Mapping[str, str],
    user: str,
) -> Plan:
    """Say how the agent is installed for the user with this home.

    `program` is the Python interpreter and the arguments of `ferry`; `environment` is what they
    need to know; `user` is the number of the user on macOS, and the security id on Windows.
    """
    python, *arguments = program
    command = (python, *_MODULE, *arguments)
    if system == "darwin":
        return _launchd(home, command, environment, user)
    if system == "win32":
        # A task has no environment of its own.
        variables = [f"{name}={value}" for name, value in environment.items()]
        return _task(home, (python, *_MODULE_WITH_VARIABLES, *variables, *arguments), user)
    return _systemd(home, command, environment)


# ---------------------------------------------------------------- systemd


def _systemd(home: PurePath, command: Sequence[str], environment: Mapping[str, str]) -> Plan:
    unit = f"{NAME}.service"
    user = ("systemctl", "--user")
    return Plan(
        file=home / ".config" / "systemd" / "user" / unit,
        content=systemd_unit(command, environment).encode(),
        end=(),
        # A unit that runs already has to learn of the new file.
        start=((*user, "daemon-reload"), (*user, "enable", unit), (*user, "restart", unit)),
        stop=((*user, "disable", "--now", unit),),
        forget=((*user, "daemon-reload"), (*user, "reset-failed", unit)),
        hint="It runs while you are logged in; `loginctl enable-linger` lets it run always.",
    )


def systemd_unit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Write a unit that stands back from all other work, and is started again whatever ended it."""
    variables = [f"Environment={_quoted(f'{key}={value}')}" for key, value in environment.items()]
    return "\n".join(
        [
            "[Unit]",
            "Description=sessionferry agent: carries session files to their queue",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(_quoted(word, command=True) for word in command)}",
            *variables,
            "Restart=always",
            f"RestartSec={RESTART_SECONDS}",
            "TimeoutStopSec=30",
            "Nice=10",
            "IOSchedulingClass=idle",
            "CPUWeight=20",
            "MemoryHigh=400M",
            "NoNewPrivileges=yes",
            "UMask=0077",
            "StandardOutput=null",
            "StandardError=journal",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _quoted(word: str, *, command: bool = False) -> str:
    """Quote for systemd: `%` begins a specifier, and in commands `$` a variable."""
    word = word.replace("%", "%%").replace("$", "$$" if command else "$")
    if re.fullmatch(r"[A-Za-z0-9_./:=@,+%$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# ---------------------------------------------------------------- launchd


def _launchd(
    home: PurePath, command: Sequence[str], environment: Mapping[str, str], user: str
) -> Plan:
    file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    domain = f"gui/{user}"
    return Plan(
        file=file,
        content=launchd_plist(command, environment),
        end=(("launchctl", "bootout", f"{domain}/{LABEL}"),),
        start=(
            ("launchctl", "enable", f"{domain}/{LABEL}"),
            ("launchctl", "bootstrap", domain, str(file)),
        ),
        stop=(),
        forget=(),
        hint="It runs while you are logged in.",
    )


def launchd_plist(command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Write a property list for a background process that is kept alive, whatever ended it."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environment),
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": RESTART_SECONDS,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            "StandardOutPath": "/dev/null",
            "StandardErrorPath": "/dev/null",
        },
        sort_keys=False,
    )


# ---------------------------------------------------------------- Windows


def _task(home: PurePath, command: Sequence[str], user: str) -> Plan:
    file = home / "AppData" / "Local" / NAME / f"{NAME}-task.xml"
    return Plan(
        file=file,
        content=windows_task(command, user),
        # What is ended so is gone at once, as by a crash.
        end=(("schtasks", "/End", "/TN", NAME),),
        start=(
            ("schtasks", "/Create", "/F", "/TN", NAME, "/XML", str(file)),
            ("schtasks", "/Run", "/TN", NAME),
        ),
        stop=(("schtasks", "/Delete", "/F", "/TN", NAME),),
        forget=(),
        hint="It runs while you are logged in.",
    )


def windows_task(command: Sequence[str], user: str) -> bytes:
    """Write a scheduled task that starts when this user logs in, once, without a time limit.

    A task at anybody's login is for administrators to register, so the trigger names the user. The
    second trigger does nothing while the agent runs.
    """
    program, arguments = command[0], subprocess.list2cmdline(command[1:])
    text = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>sessionferry agent: carries session files to their queue</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
      <UserId>{escape(user)}</UserId>
    </LogonTrigger>
    <TimeTrigger>
      <Enabled>true</Enabled>
      <StartBoundary>2020-01-01T00:00:00</StartBoundary>
      <Repetition><Interval>PT{TASK_MINUTES}M</Interval></Repetition>
    </TimeTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(user)}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>8</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>255</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(program)}</Command>
      <Arguments>{escape(arguments)}</Arguments>
    </Exec>
  </Actions>
</Task>
"""
    return text.replace("\n", "\r\n").encode("utf-16")


__all__ = ["Plan", "launchd_plist", "plan", "systemd_unit", "windows_task"]
