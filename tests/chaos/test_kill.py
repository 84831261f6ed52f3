"""Broker, function app and publisher are killed at random while a growing fleet is shipped.

FERRY_CHAOS_SEED=… repeats a run's decisions; FERRY_CHAOS_KILLS=… sets the length of the long form.
"""

import os
import random
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusSubQueue

from sessionferry.simulate import FleetPlan, simulate
from support.commands import CommandServer
from support.exports import check_export
from support.growing import grow
from support.stack import RunningStack, wait_for

SHORT_KILLS = 6
LONG_KILLS = 100
VICTIMS = ("broker", "host", "ship")
LOCK = "PT40S"
"""How long the messages of a killed host wait; ingest writes in all but the last 30 s of it."""
PAUSE = (0.1, 2.0)
"""Seconds between kills."""
NOISE = "chaos-noise"


@pytest.mark.timeout(280)
def test_kills_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    _Chaos(tmp_path, kills=SHORT_KILLS, megabytes=16, exports=4).run()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills(tmp_path: Path) -> None:
    kills = int(os.environ.get("FERRY_CHAOS_KILLS", str(LONG_KILLS)))
    _Chaos(tmp_path, kills=kills, megabytes=25, exports=1000).run()


class _Chaos:
    """One run: a fleet on disk that grows between kills, and the stack that takes it in."""

    def __init__(self, folder: Path, *, kills: int, megabytes: int, exports: int) -> None:
        self.seed = int(os.environ.get("FERRY_CHAOS_SEED") or time.time_ns() % 10**9)
        self.rng = random.Random(self.seed)
        self.kills = kills
        self.exports = exports
        self.folder = folder
        self.whole, self.live = folder / "whole", folder / "live"
        self.oracle = simulate(self.whole, FleetPlan(seed=7, target_bytes=megabytes * 1_000_000))
        self.noise = self._write_noise()
        self.killed: Counter[str] = Counter()
        self.shipping: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        print(f"FERRY_CHAOS_SEED={self.seed} with {self.kills} kills")
        began = time.monotonic()
        with RunningStack(self.folder / "stack", lock=LOCK) as stack:
            self.stack = stack
            server = CommandServer()
            self.ferry = stack.ferry("chaos", server=server)
            try:
                self._kill_and_grow()
                self._end_shipping()
                print(f"killed {dict(self.killed)} in {time.monotonic() - began:.0f} s")
                self._settle()
                print(f"settled after {time.monotonic() - began:.0f} s")
                self._check_counts()
                self._check_exports()
            finally:
                self._end_shipping()
                server.close()

    # ------------------------------------------------------------ while it goes on

    def _kill_and_grow(self) -> None:
        victims = [VICTIMS[number % len(VICTIMS)] for number in range(self.kills)]
        self.rng.shuffle(victims)
        for number, victim in enumerate(victims, 1):
            grow(self.whole, self.live, number / (self.kills + 1))
            self._keep_shipping(resend=self.rng.random() < 0.15)
            time.sleep(self.rng.uniform(*PAUSE))
            self._kill(victim)
        grow(self.whole, self.live, 1)

    def _kill(self, victim: str) -> None:
        if victim != "ship":
            self.stack.kill(victim)
        elif self.shipping is None or self.shipping.poll() is not None:
            return  # it had nothing left to do
        else:
            self.shipping.kill()
        self.killed[victim] += 1

    def _keep_shipping(self, *, resend: bool) -> None:
        if self.shipping is not None and self.shipping.poll() is None:
            return
        self._end_shipping()
        self.shipping = self.ferry.start("ship", self.live, *(["--resend"] if resend else []))

    def _end_shipping(self) -> None:
        process, self.shipping = self.shipping, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    # ------------------------------------------------------------ afterwards

    def _settle(self) -> None:
        assert self.ferry.run("ship", self.live, "--json").json["failed"] == []
        self.ferry.wait(self.live, seconds=120)
        # What is under way twice must not be counted twice: wait until nothing is under way.
        assert wait_for(lambda: not self._waiting(), 120), "messages are left in the queue"
        assert not self._waiting(dead=True)

    def _waiting(self, *, dead: bool = False) -> int:
        described = self.stack.described
        sub_queue = ServiceBusSubQueue.DEAD_LETTER if dead else None
        with (
            ServiceBusClient.from_connection_string(described.connection) as client,
            client.get_queue_receiver(described.queue, sub_queue=sub_queue) as receiver,
        ):
            return len(receiver.peek_messages(max_message_count=50))

    def _check_counts(self) -> None:
        findings = self.ferry.verify(self.live, "--bytes", code=3)
        totals = self.oracle.totals
        assert {found["verdict"] for found in findings} == {"ok"}
        assert len(findings) == totals.files + 1
        assert _sum(findings, "lines") == totals.lines + self.noise
        assert _sum(findings, "stored") == totals.stored + self.noise
        assert _sum(findings, "quarantined") == totals.quarantined
        assert _sum(findings, "conflicts") == 0
        rows = self._rows()
        assert rows["events"] + rows["transcripts"] == totals.stored + self.noise
        assert rows["quarantine"] == totals.quarantined
        heads = [self._head(session_id) for session_id in sorted(self._sessions())]
        assert sum(_truncated(head) for head in heads) == totals.truncated + self.noise

    def _rows(self) -> dict[str, int]:
        """Count what lies in the store, beside all of our own code."""
        database = sqlite3.connect(f"file:{self.stack.data / 'store.db'}?mode=ro", uri=True)
        try:
            return {
                table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for table in ("events", "transcripts", "quarantine")
            }
        finally:
            database.close()

    def _head(self, session_id: str) -> dict[str, Any]:
        return dict(self.ferry.run("show", session_id, "--json").json)

    def _sessions(self) -> set[str]:
        return {NOISE, *(file.session_id for file in self.oracle.files)}

    def _check_exports(self) -> None:
        names = sorted(self._sessions() - {NOISE})
        back = self.folder / "back"
        self.ferry.run("export", NOISE, "--to", back)
        (noise,) = self.whole.rglob(f"sessions/{NOISE}/events.jsonl")
        assert (back / NOISE / "events.jsonl").read_bytes() == noise.read_bytes()
        for session_id in self.rng.sample(names, min(self.exports, len(names))):
            check_export(self.ferry, self.whole, self.oracle, session_id, back)

    def _write_noise(self) -> int:
        """Add a session whose lines are too large for a message and go through the inbox."""
        folder = self.whole / "noise" / "projects" / "-noise" / "sessions" / NOISE
        folder.mkdir(parents=True)
        lines = [b'{"noise": "%b"}\n' % self.rng.randbytes(600_000).hex().encode() for _ in "123"]
        (folder / "events.jsonl").write_bytes(b"".join(lines))
        return len(lines)


def _sum(findings: list[dict[str, Any]], name: str) -> int:
    return sum(int(found[name]) for found in findings)


def _truncated(head: dict[str, Any]) -> int:
    return sum(int(stream.get("truncated", 0)) for stream in head["streams"].values())
