"""A process that goes on for ever ends when it is asked to."""

import os
import signal
import subprocess
import sys

import pytest

WAITING = """
import asyncio, sys
from sessionferry.stopping import on_stop

async def wait():
    stop = asyncio.Event()
    on_stop(stop.set)
    print("ready", flush=True)
    await asyncio.wait_for(stop.wait(), 20)

asyncio.run(wait())
print("stopped", flush=True)
"""
SUPERVISED = WAITING.replace("stopping import on_stop", "local.supervision import *").replace(
    "on_stop(", "stop_with_supervisor("
)
if sys.platform == "win32":
    SIGNALS = [signal.CTRL_BREAK_EVENT]
    OWN_GROUP = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    SIGNALS = [signal.SIGTERM, signal.SIGINT]
    OWN_GROUP = 0


def started(program: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        creationflags=OWN_GROUP,
        env=os.environ | {"FERRY_SUPERVISED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"ready"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    with started(WAITING) as process:
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=30)
    assert (stdout.strip(), process.returncode) == (b"stopped", 0)


def test_the_end_of_the_supervisors_pipe_is_one_too() -> None:
    with started(SUPERVISED) as process:
        stdout, _ = process.communicate(timeout=30)
    assert (stdout.strip(), process.returncode) == (b"stopped", 0)
