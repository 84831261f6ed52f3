"""The agent as a service of the user: for systemd, launchd and Windows' task scheduler.

What is to be written and run is a value (`Plan`), made by a pure function; `ferry agent install`
carries it out. No secret goes into these files: they name the configuration file, which holds them.
"""

import plistlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal
from xml.sax.saxutils import escape

System = Literal["linux", "darwin", "win32"]

NAME = "sessionferry"
LABEL = "dev.sessionferry.agent"
RESTART_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to write, then commands to run; and the same backwards for the removal."""

    file: PurePath
    content: bytes
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    hint: str


def plan(
    system: System, home: PurePath, command: Sequence[str], environment: Mapping[str, str]
) -> Plan:
    """Say how the agent is installed for the user with this home.

    `command` starts the agent; `environment` is what it needs to know.
    """
    if system == "darwin":
        return _launchd(home, command, environment)
    if system == "win32":
        return _task(home, command, environment)
    return _systemd(home, command, environment)


# ---------------------------------------------------------------- systemd


def _systemd(home: PurePath, command: Sequence[str], environment: Mapping[str, str]) -> Plan:
    unit = f"{NAME}.service"
    user = ("systemctl", "--user")
    return Plan(
        file=home / ".config" / "systemd" / "user" / unit,
        content=systemd_unit(command, environment).encode(),
        start=((*user, "daemon-reload"), (*user, "enable", "--now", unit)),
        stop=((*user, "disable", "--now", unit),),
        hint="It runs while you are logged in; `loginctl enable-linger` lets it run always.",
    )


def systemd_unit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Write a unit that stands back from all other work and restarts after a failure."""
    variables = [f"Environment={_quoted(f'{key}={value}')}" for key, value in environment.items()]
    return "\n".join(
        [
            "[Unit]",
            "Description=sessionferry agent: carries session files to their queue",
            "Documentation=man:systemd.service(5)",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            "Type=exec",
            f"ExecStart={' '.join(_quoted(word, command=True) for word in command)}",
            *variables,
            "Restart=always",
            f"RestartSec={RESTART_SECONDS}",
            # A wrong configuration does not become right by trying again.
            "RestartPreventExitStatus=2",
            "KillSignal=SIGTERM",
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


def _launchd(home: PurePath, command: Sequence[str], environment: Mapping[str, str]) -> Plan:
    file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    return Plan(
        file=file,
        content=launchd_plist(command, environment),
        start=(("launchctl", "load", "-w", str(file)),),
        stop=(("launchctl", "unload", "-w", str(file)),),
        hint="It runs while you are logged in.",
    )


def launchd_plist(command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Write a property list for a background process that is kept alive."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
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


def _task(home: PurePath, command: Sequence[str], environment: Mapping[str, str]) -> Plan:
    file = home / "AppData" / "Local" / NAME / f"{NAME}-task.xml"
    return Plan(
        file=file,
        content=windows_task(command, environment),
        start=(
            ("schtasks", "/Create", "/F", "/TN", NAME, "/XML", str(file)),
            ("schtasks", "/Run", "/TN", NAME),
        ),
        stop=(
            ("schtasks", "/End", "/TN", NAME),
            ("schtasks", "/Delete", "/F", "/TN", NAME),
        ),
        hint="It starts when you log in.",
    )


def windows_task(command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Write a scheduled task that starts at logon, hidden, once, without a time limit.

    A task has no environment of its own: where one is needed, `cmd` sets it.
    """
    program, arguments = command[0], " ".join(_windows_quoted(word) for word in command[1:])
    if environment:
        sets = [f'set "{key}={value}"' for key, value in environment.items()]
        line = " && ".join([*sets, f"{_windows_quoted(program)} {arguments}"])
        program, arguments = "cmd.exe", f'/d /s /c "{line}"'
    text = f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>sessionferry agent: carries session files to their queue</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger><Enabled>true</Enabled></LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <Hidden>true</Hidden>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>8</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>999</Count>
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


def _windows_quoted(word: str) -> str:
    return f'"{word}"' if re.search(r"[\s&|<>^()]", word) else word


__all__ = ["Plan", "launchd_plist", "plan", "systemd_unit", "windows_task"]
