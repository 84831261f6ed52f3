"""function_app.py in Microsoft's own Python worker library; `make functions-runtime` sets it up."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sessionferry.batch import encode
from sessionferry.local.functions_host.app import (
    HttpTrigger,
    ServiceBusTrigger,
    Settings,
    TimerTrigger,
    load_app,
)
from sessionferry.store.opening import open_store
from support.broker import connection_string
from support.strategies import batch

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("FERRY_RUNTIME_PYTHON", "")

pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="Microsoft's worker library needs Python 3.13: run `make functions-runtime`",
)


def invoke(folder: Path, bodies: list[bytes], **changes: str) -> dict[str, Any]:
    """What the library reports of the app and of one invocation with these messages."""
    urls = {name: f"file://{folder}/{name}" for name in ("archive", "inbox")}
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "tests"),
        "FERRY_STORE": f"sqlite:///{folder}/store.db",
        "FERRY_ARCHIVE": urls["archive"],
        "FERRY_INBOX": urls["inbox"],
        "FERRY_QUEUE": "sessions",
        **changes,
    }
    done = subprocess.run(
        [PYTHON, "-m", "support.functions_runtime", ROOT],
        input="\n".join(body.hex() for body in bodies),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["started"] == "success", done.stderr[-3000:]
    return report


async def test_the_real_worker_takes_messages_in(tmp_path: Path) -> None:
    first = batch(b'{"event":"session:start"}\n', session_id="one")
    second = batch(b'{"event":"a"}\n{"event":"b"}\n', session_id="two")
    report = invoke(tmp_path, [encode(first), encode(second)])
    assert report["invoked"] == "success"
    async with await open_store(f"sqlite:///{tmp_path}/store.db") as store:
        stored = [await store.read_lines(each.header.key, "events", 0) for each in (first, second)]
    assert [[line["event"] for line in lines] for lines in stored] == [
        ["session:start"],
        ["a", "b"],
    ]


def test_the_real_worker_indexes_what_the_local_host_does(tmp_path: Path) -> None:
    report = invoke(tmp_path, [encode(batch(b"{}\n"))])
    settings = {"FERRY_QUEUE": "sessions", "ServiceBusConnection": connection_string(5672)}
    ours = load_app(ROOT, Settings(settings))
    triggers = {
        ServiceBusTrigger: "serviceBusTrigger",
        TimerTrigger: "timerTrigger",
        HttpTrigger: "httpTrigger",
    }
    served = {function.name: triggers[type(function.trigger)] for function in ours}
    theirs = {function["name"]: function["bindings"][0]["type"] for function in report["functions"]}
    assert theirs == served


def test_a_fault_of_the_infrastructure_fails_the_invocation_of_the_real_worker(
    tmp_path: Path,
) -> None:
    report = invoke(tmp_path, [encode(batch(b"{}\n"))], FERRY_STORE="postgresql://127.0.0.1:1/x")
    assert report["invoked"].startswith("failure")
