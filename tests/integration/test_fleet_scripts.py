"""The scripts for operators, run with stand-ins for az and azd that note what they were asked."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPTS = Path(__file__).parents[2] / "infra" / "scripts"
MACHINE = "11111111-2222-3333-4444-555555555555"
OUTPUTS = {
    "FERRY_QUEUE_ID": "/subscriptions/s/queues/sessions",
    "FERRY_INBOX_ID": "/subscriptions/s/containers/inbox",
    "FERRY_PUBLISHER_ROLE": "/subscriptions/s/roleDefinitions/add-only",
    "FERRY_PUBLISHERS_GROUP": "99999999-2222-3333-4444-555555555555",
    "AZURE_ENV_NAME": "prod",
}


class Ran(NamedTuple):
    """What a script said, and what it asked az and azd to do."""

    code: int
    said: str
    asked: list[str]


class Operator:
    """A shell in which az and azd are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.outputs = dict(OUTPUTS)
        self.bin = folder / "bin"
        self.bin.mkdir()

    def run(self, script: str, *arguments: str) -> Ran:
        cases = "".join(f"{name}) echo {value} ;;\n" for name, value in self.outputs.items())
        get = f'if [ "$2" = get-value ]; then case $3 in\n{cases}*) exit 1 ;;\nesac; exit; fi\n'
        self._stand_in("azd", get)
        self._stand_in("az", 'case "$*" in *"app create"*) echo new-app ;; esac\n')
        self.notes.write_text("")
        done = subprocess.run(
            [SCRIPTS / script, *arguments],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "NOTES": str(self.notes)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        asked = self.notes.read_text().splitlines()
        return Ran(done.returncode, done.stdout + done.stderr, asked)

    def _stand_in(self, name: str, body: str) -> None:
        path = self.bin / name
        note = f'echo "{name} $*" >> "$NOTES"\n'
        path.write_text(f"#!/bin/sh\n{body}{note}" if name == "azd" else f"#!/bin/sh\n{note}{body}")
        path.chmod(0o755)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_a_machine_is_enrolled_for_queue_and_inbox_and_nothing_else(operator: Operator) -> None:
    ran = operator.run("fleet.sh", "enrol", MACHINE)
    assert ran.code == 0
    who = f"--assignee-object-id {MACHINE} --assignee-principal-type ServicePrincipal"
    create = f"az role assignment create {who}"
    queue, inbox = OUTPUTS["FERRY_QUEUE_ID"], OUTPUTS["FERRY_INBOX_ID"]
    assert ran.asked == [
        f"{create} --role Azure Service Bus Data Sender --scope {queue} --output none",
        f"{create} --role add-only --scope {inbox} --output none",
    ]


def test_revoking_takes_away_what_enrolling_gave(operator: Operator) -> None:
    given = operator.run("fleet.sh", "enrol", MACHINE, "User").asked
    taken = operator.run("fleet.sh", "revoke", MACHINE).asked
    assert [_right(line) for line in taken] == [_right(line) for line in given]
    assert all("assignment delete" in line for line in taken)


def _right(line: str) -> str:
    return line.partition(" --role ")[2].removesuffix(" --output none")


@pytest.mark.parametrize(("verb", "change"), [("join", "add"), ("leave", "remove")])
def test_a_machine_joins_and_leaves_the_group(operator: Operator, verb: str, change: str) -> None:
    ran = operator.run("fleet.sh", verb, MACHINE)
    group = OUTPUTS["FERRY_PUBLISHERS_GROUP"]
    assert ran.asked == [f"az ad group member {change} --group {group} --member-id {MACHINE}"]


def test_who_may_send_is_listed(operator: Operator) -> None:
    (asked,) = operator.run("fleet.sh", "list").asked
    assert f"--scope {OUTPUTS['FERRY_QUEUE_ID']} --role Azure Service Bus Data Sender" in asked


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("enroll", MACHINE),
        ("enrol",),
        ("enrol", "laptop-7"),
        ("enrol", MACHINE, "Machine"),
        ("revoke", MACHINE, "User"),
        ("revoke", "$(reboot)"),
    ],
)
def test_wrong_usage_changes_nothing(operator: Operator, arguments: tuple[str, ...]) -> None:
    ran = operator.run("fleet.sh", *arguments)
    assert (ran.code, ran.asked) == (2, [])
    assert "usage:" in ran.said or "is no object id" in ran.said


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("FERRY_QUEUE_ID", ("enrol", MACHINE)), ("FERRY_PUBLISHERS_GROUP", ("join", MACHINE))],
)
def test_what_the_deployment_lacks_is_named(
    operator: Operator, missing: str, arguments: tuple[str, ...]
) -> None:
    del operator.outputs[missing]
    ran = operator.run("fleet.sh", *arguments)
    assert (ran.code, ran.asked) == (1, [])
    assert f"has no {missing}" in ran.said


def test_the_sign_in_app_is_registered_once_and_handed_to_azd(operator: Operator) -> None:
    ran = operator.run("sign-in.sh")
    assert ran.code == 0
    (created,) = [line for line in ran.asked if "ad app create" in line]
    assert "--display-name sessionferry-prod --sign-in-audience AzureADMyOrg" in created
    assert ran.asked[-1] == "azd env set FERRY_API_CLIENT_ID new-app"
