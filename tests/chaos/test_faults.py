"""Everything fails at once: processes, network, disk, database, and other people's messages.

A broker behind a network that misbehaves, two Functions hosts, a publisher that starts again and
again, and a fleet that grows meanwhile. Afterwards every file must be stored and exported as it is,
and counted once. FERRY_CHAOS_SEED=… repeats a run's decisions; FERRY_CHAOS_FAULTS=… sets the length
of the long form.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
import sqlalchemy as sa
from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.exceptions import ServiceBusError

from fuzz import wire
from fuzz.mutation import spoil
from sessionferry.local.stack import app_folder
from sessionferry.simulate import FleetPlan, simulate
from sessionferry.store import engines
from support.broker import RunningBroker, connection_string
from support.commands import CommandServer
from support.exports import check_export
from support.growing import grow
from support.postgres import Server
from support.proxy import Proxy
from support.stack import Ferry, wait_for

SHORT_FAULTS = 10
LONG_FAULTS = 250
"""Per store; there are two."""
QUEUE = "sessions"
LOCK = "PT40S"
"""Ingest writes in all but the last 30 s of it, so a host that is frozen for longer is a zombie."""
ZOMBIE_SECONDS = 45.0
PAUSE = (0.1, 1.5)
FULL = 4096
"""Bytes beyond which no file may grow while the disk is full."""
POISON_USER = "mara|p|s"
"""The partition of what `fuzz.wire` makes, where it makes a valid batch."""


@pytest.mark.timeout(290)
def test_faults_of_every_kind_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    with Chaos(tmp_path, faults=SHORT_FAULTS, megabytes=6) as chaos:
        chaos.run()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_many_faults(tmp_path: Path, request: pytest.FixtureRequest, database: str) -> None:
    faults = int(os.environ.get("FERRY_CHAOS_FAULTS", str(LONG_FAULTS)))
    server = request.getfixturevalue("killable_postgres") if database == "postgresql" else None
    with Chaos(tmp_path, faults=faults, megabytes=25, server=server, zombies=True) as chaos:
        chaos.run()


class Chaos:
    """One run; `with Chaos(folder, ...) as chaos: chaos.run()`."""

    def __init__(
        self,
        folder: Path,
        *,
        faults: int,
        megabytes: int,
        server: Server | None = None,
        zombies: bool = False,
    ) -> None:
        self.seed = int(os.environ.get("FERRY_CHAOS_SEED") or time.time_ns() % 10**9)
        self.rng = random.Random(self.seed)
        self.faults = faults
        self.folder = folder
        self.server = server
        self.whole, self.live = folder / "whole", folder / "live"
        self.oracle = simulate(self.whole, FleetPlan(seed=7, target_bytes=megabytes * 1_000_000))
        self.done: Counter[str] = Counter()
        self.hosts: list[subprocess.Popen[bytes]] = []
        self.shipping: subprocess.Popen[bytes] | None = None
        self.kinds: dict[str, Callable[[], None]] = {
            "kill broker": self._kill_broker,
            "kill host": self._kill_host,
            "kill publisher": self._kill_publisher,
            "cut connections": self._cut,
            "half-open connections": self._stall,
            "slow network": self._slow,
            "deliver twice and in disorder": self._copy_messages,
            "poison": self._send_poison,
            "full disk of a host": lambda: self._fill_disk(self.rng.choice(self.hosts).pid),
            "full disk of the broker": lambda: self._fill_disk(self.broker.pid),
            "freeze a host": lambda: self._freeze(self.rng.uniform(0.5, 3)),
        }
        if server is not None:
            self.kinds["kill database"] = self._kill_database
        if zombies:
            self.kinds["zombie"] = lambda: self._freeze(ZOMBIE_SECONDS)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        queue = {"name": QUEUE, "lockDuration": LOCK, "maxDeliveryCount": 1000}
        self.broker = self._stack.enter_context(RunningBroker(self.folder / "broker", [queue]))
        self.proxy = self._stack.enter_context(Proxy(self.broker.port))
        commands = CommandServer()
        self._stack.callback(commands.close)
        store = self.server.url("chaos") if self.server else f"sqlite:///{self.folder}/store.db"
        self.store = store
        self.settings = {
            "ServiceBusConnection": connection_string(self.proxy.port),
            "FERRY_QUEUE": QUEUE,
            "FERRY_STORE": store,
            "FERRY_ARCHIVE": f"file://{self.folder}/archive",
            "FERRY_INBOX": f"file://{self.folder}/inbox",
        }
        self.ferry = Ferry(self.folder / "home", environment=self.settings, server=commands)
        self.ferry.run("migrate")
        self._stack.callback(self._end)
        self.hosts = [self._start_host(), self._start_host()]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Break things, heal them, and compare the end with the oracle."""
        print(f"FERRY_CHAOS_SEED={self.seed} with {self.faults} faults")
        began = time.monotonic()
        for number, kind in enumerate(self._plan(), 1):
            grow(self.whole, self.live, number / (self.faults + 1))
            self._keep_going()
            time.sleep(self.rng.uniform(*PAUSE))
            self.kinds[kind]()
            self.done[kind] += 1
        print(f"{dict(self.done)} in {time.monotonic() - began:.0f} s")
        grow(self.whole, self.live, 1)
        self._settle()
        print(f"settled after {time.monotonic() - began:.0f} s")
        self._check()

    def _plan(self) -> list[str]:
        names = sorted(self.kinds)
        usual = [name for name in names if name != "zombie"]
        plan = [usual[number % len(usual)] for number in range(self.faults)]
        if "zombie" in self.kinds:
            plan[:: max(1, self.faults // 5)] = ["zombie"] * len(plan[:: max(1, self.faults // 5)])
        self.rng.shuffle(plan)
        return plan

    # ------------------------------------------------------------ faults

    def _kill_broker(self) -> None:
        self.broker.kill()
        time.sleep(self.rng.uniform(0, 1))
        self.broker.start()

    def _kill_host(self) -> None:
        self.rng.choice(self.hosts).kill()

    def _kill_publisher(self) -> None:
        if self.shipping is not None:
            self.shipping.kill()

    def _kill_database(self) -> None:
        assert self.server is not None
        self.server.kill()
        time.sleep(self.rng.uniform(0, 1))
        self.server.launch()

    def _cut(self) -> None:
        self.proxy.cut()

    def _stall(self) -> None:
        self.proxy.stall()
        time.sleep(self.rng.uniform(1, 6))
        self.proxy.cut()
        self.proxy.flow()

    def _slow(self) -> None:
        self.proxy.delay = 0.2
        time.sleep(self.rng.uniform(1, 3))
        self.proxy.delay = 0.0

    def _freeze(self, seconds: float) -> None:
        host = self.rng.choice(self.hosts)
        if host.poll() is None:
            host.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            host.send_signal(signal.SIGCONT)

    def _fill_disk(self, pid: int) -> None:
        """Let no file of a process grow: what it writes fails as on a full disk."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            _, most = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (FULL, most))
            time.sleep(self.rng.uniform(0.5, 3))
            process.rlimit(psutil.RLIMIT_FSIZE, (most, most))

    def _copy_messages(self) -> None:
        """Send what waits in the queue once more, in another order, some of it later."""
        with suppress(ServiceBusError), self._client() as client:
            with client.get_queue_receiver(QUEUE) as receiver:
                waiting = receiver.peek_messages(max_message_count=20)
            self.rng.shuffle(waiting)
            copies = [
                ServiceBusMessage(
                    b"".join(message.body), application_properties={"content_encoding": "zstd"}
                )
                for message in waiting
            ]
            with client.get_queue_sender(QUEUE) as sender:
                for copy in copies:
                    sender.send_messages(copy)

    def _send_poison(self) -> None:
        bodies = [spoil(self.rng, self.rng.choice(wire.BODIES), wire.BODIES) for _ in range(5)]
        with (
            suppress(ServiceBusError),
            self._client() as client,
            client.get_queue_sender(QUEUE) as sender,
        ):
            for body in bodies:
                sender.send_messages(ServiceBusMessage(body[:200_000]))

    # ------------------------------------------------------------ processes

    def _client(self) -> ServiceBusClient:
        """A client that does not pass the proxy, and so is not disturbed."""
        connection = connection_string(self.broker.port)
        return ServiceBusClient.from_connection_string(connection, retry_total=1)

    def _start_host(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "sessionferry.local.functions_host"]
        command += ["--app", str(app_folder())]
        with (self.folder / "host.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **self.settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _keep_going(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for number, host in enumerate(self.hosts):
            if host.poll() is not None:
                self.hosts[number] = self._start_host()
        if self.shipping is None or self.shipping.poll() is not None:
            self._end_shipping()
            again = ["--resend"] if self.rng.random() < 0.15 else []
            self.shipping = self.ferry.start("ship", self.live, *again)

    def _end_shipping(self) -> None:
        process, self.shipping = self.shipping, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _end(self) -> None:
        self._end_shipping()
        for host in self.hosts:
            with suppress(ProcessLookupError):
                host.kill()
            host.wait()

    # ------------------------------------------------------------ afterwards

    def _settle(self) -> None:
        self._end_shipping()
        self._keep_going()
        self._end_shipping()
        assert self.ferry.run("ship", self.live, "--json").json["failed"] == []
        self.ferry.wait(self.live, seconds=150)
        # What is under way twice must not be counted twice: wait until nothing is under way.
        assert wait_for(lambda: not self._waiting(), 150), "messages are left in the queue"
        assert not self._waiting(dead=True), "messages were dead-lettered"

    def _waiting(self, *, dead: bool = False) -> int:
        sub_queue = ServiceBusSubQueue.DEAD_LETTER if dead else None
        with (
            self._client() as client,
            client.get_queue_receiver(QUEUE, sub_queue=sub_queue) as receiver,
        ):
            return len(receiver.peek_messages(max_message_count=50))

    def _check(self) -> None:
        findings = self.ferry.verify(self.live, "--bytes", code=3)
        totals = self.oracle.totals
        assert {found["verdict"] for found in findings} == {"ok"}
        assert len(findings) == totals.files
        assert _sum(findings, "lines") == totals.lines
        assert _sum(findings, "stored") == totals.stored
        assert _sum(findings, "quarantined") == totals.quarantined
        assert _sum(findings, "conflicts") == 0
        rows = self._rows()
        assert rows["events"] + rows["transcripts"] == totals.stored
        assert rows["quarantine"] == totals.quarantined
        for session_id in sorted({file.session_id for file in self.oracle.files}):
            check_export(self.ferry, self.whole, self.oracle, session_id, self.folder / "back")

    def _rows(self) -> dict[str, int]:
        """Count what lies in the store of the fleet's sessions, beside all of our own code."""
        engine = engines.create(engines.parse(self.store))
        try:
            with engine.connect() as connection:
                return {
                    table: connection.execute(
                        sa.text(
                            f"SELECT count(*) FROM {table} WHERE partition_key"  # noqa: S608
                            " NOT IN ('_unattributed', :poison)"
                        ),
                        {"poison": POISON_USER},
                    ).scalar_one()
                    for table in ("events", "transcripts", "quarantine")
                }
        finally:
            engine.dispose()


def _sum(findings: list[dict[str, Any]], name: str) -> int:
    return sum(int(found[name]) for found in findings)
