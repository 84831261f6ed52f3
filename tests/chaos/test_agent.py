"""The watching agent is killed at random while its files grow, are rewritten and replaced.

FERRY_CHAOS_SEED=… repeats a run's decisions; FERRY_CHAOS_KILLS=… sets the length of the long form,
and FERRY_CHAOS_MEGABYTES=… the size of its fleet.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import orjson
import pytest

from sessionferry.simulate import FleetPlan, simulate
from support.commands import CommandServer
from support.growing import grow
from support.stack import Ferry, RunningStack, wait_for

SHORT_KILLS = 6
LONG_KILLS = 200
LONG_MEGABYTES = 40
HASTE = {
    "FERRY_LIVE_SECONDS": "0.1",
    "FERRY_LIVE_KB": "20",
    "FERRY_TAIL_SECONDS": "1",
    "FERRY_SCAN_SECONDS": "1",
    "FERRY_HEARTBEAT_SECONDS": "2",
    "FERRY_IDLE_SECONDS": "1",
}
LIFE = 1.2
"""Seconds at most between the agent's first word and its end; more where there is more to read."""
MEGABYTES_A_SECOND = 150


@pytest.mark.timeout(280)
def test_kills_of_the_agent_lose_nothing(tmp_path: Path) -> None:
    _Run(tmp_path, kills=SHORT_KILLS, megabytes=4).run()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_kills_of_the_agent(tmp_path: Path) -> None:
    kills = int(os.environ.get("FERRY_CHAOS_KILLS", str(LONG_KILLS)))
    megabytes = int(os.environ.get("FERRY_CHAOS_MEGABYTES", str(LONG_MEGABYTES)))
    _Run(tmp_path, kills=kills, megabytes=megabytes).run()


class _Run:
    """A fleet that grows, beside transcripts that their tool rewrites as a whole."""

    def __init__(self, folder: Path, *, kills: int, megabytes: int) -> None:
        self.seed = int(os.environ.get("FERRY_CHAOS_SEED") or time.time_ns() % 10**9)
        self.rng = random.Random(self.seed)
        self.kills = kills
        self.life = LIFE + megabytes / MEGABYTES_A_SECOND
        self.folder = folder
        self.whole, self.live = folder / "whole", folder / "live"
        simulate(self.whole, FleetPlan(seed=self.seed, target_bytes=megabytes * 1_000_000))
        self.rewritten = [self._session(f"rewritten-{n}") for n in range(3)]

    def run(self) -> None:
        print(f"FERRY_CHAOS_SEED={self.seed} with {self.kills} kills")
        began = time.monotonic()
        with RunningStack(self.folder / "stack") as stack:
            commands = CommandServer()
            try:
                ferry = stack.ferry("agent", server=commands)
                ferry.environment |= HASTE
                self.live.mkdir()
                for number in range(1, self.kills + 1):
                    self._live_and_die(ferry, number / self.kills)
                print(f"killed after {time.monotonic() - began:.0f} s")
                self._settle(ferry)
                print(f"settled after {time.monotonic() - began:.0f} s")
                self._check_exports(ferry)
            finally:
                commands.close()

    def _live_and_die(self, ferry: Ferry, share: float) -> None:
        agent = ferry.start("ship", self.live, "--watch")
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline().startswith(b"Following")
            end = time.monotonic() + self.rng.uniform(0, self.life)
            grow(self.whole, self.live, share)
            while time.monotonic() < end:
                self._rewrite(self.rng.choice(self.rewritten))
                time.sleep(0.1)
        finally:
            agent.kill()
            agent.wait()
            if agent.stdout is not None:
                agent.stdout.close()

    def _session(self, name: str) -> Path:
        return self.live / "projects" / "-rewritten" / "sessions" / name / "transcript.jsonl"

    def _rewrite(self, path: Path) -> None:
        """Save a transcript as Amplifier does, or in place; with a change anywhere in it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        lines += [self._line() for _ in range(self.rng.randint(1, 5))]
        if self.rng.random() < 0.4:
            lines[self.rng.randrange(len(lines))] = self._line()
        if self.rng.random() < 0.1:
            del lines[self.rng.randrange(len(lines)) :]
        if self.rng.random() < 0.7:
            fresh = path.with_suffix(".tmp")
            fresh.write_bytes(b"".join(lines))
            fresh.replace(path)
        else:
            path.write_bytes(b"".join(lines))

    def _line(self) -> bytes:
        said = self.rng.randbytes(self.rng.randint(1, 400)).hex()
        return orjson.dumps({"role": "user", "content": said}) + b"\n"

    def _settle(self, ferry: Ferry) -> None:
        agent: subprocess.Popen[bytes] = ferry.start("ship", self.live, "--watch")
        try:
            found = ferry.wait(self.live, "--bytes", seconds=900)
            assert sum(int(finding["conflicts"]) for finding in found) == 0
            ledger = ferry.run("status", self.live, "--json").json["ledger"]
            assert ledger["read"] == ledger["sent"] == sum(int(one["lines"]) for one in found)
            agent.terminate()
            assert wait_for(lambda: agent.poll() is not None, 30)
            assert agent.returncode == 0
        finally:
            agent.kill()
            agent.wait()
            if agent.stdout is not None:
                agent.stdout.close()

    def _check_exports(self, ferry: Ferry) -> None:
        """Some of Amplifier's folders come back as they are; `verify --bytes` read them all."""
        folders = sorted({path.parent for path in self.live.rglob("sessions/*/*.jsonl")})
        for folder in self.rng.sample(folders, min(4, len(folders))):
            back = self.folder / "back"
            ferry.run("export", folder.name, "--to", back)
            given = {path.name: path.read_bytes() for path in folder.iterdir()}
            found = {path.name: path.read_bytes() for path in (back / folder.name).iterdir()}
            assert found == given
