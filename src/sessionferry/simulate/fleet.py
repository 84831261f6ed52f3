"""A fleet of machines: which sessions there are, and how long and how odd each is."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from sessionferry.simulate.claude import Desk, write_claude
from sessionferry.simulate.codex import write_codex
from sessionferry.simulate.content import Content
from sessionferry.simulate.hostile import write_hostile
from sessionferry.simulate.oracle import FileOracle, Oracle, Place
from sessionferry.simulate.session import Delegation, Oddity, SessionPlan, write_session
from sessionferry.simulate.text import Prose, Vocabulary, hexes, seeded
from sessionferry.simulate.wire import Clock, TimeStyle

_NAMES: Final = ("atlas", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")
# The first two collide in one slug, as real ones do.
_DIRECTORIES: Final = (
    "/srv/code/harbor-api",
    "/srv/code/harbor/api",
    "/home/mara/ledger",
    "/home/mara/Büro notes",
    "C:\\projects\\web-app",
)
_AGENTS: Final = ("foundation:zen-architect", "explorer", "bug-hunter", "test-writer")
_EPOCH: Final = 1_772_438_400 * 10**9  # 2026-03-02, in nanoseconds since 1970
_HOUR: Final = 3_600 * 10**9
# Each kind comes early, so that small fleets have most of them; every second session is plain.
_ODDITIES: Final = tuple(
    kind for odd in Oddity for kind in (Oddity.NONE, odd) if odd is not Oddity.NONE
)
_STYLES: Final = (TimeStyle.NANOS, TimeStyle.NANOS, TimeStyle.MILLIS, TimeStyle.OFFSET)
_PASTES: Final = (0, 0, 1, 0, 0, 2)
_RAW_STEP: Final = 460_000  # bytes that one model iteration writes, about
_PLAIN_STEP: Final = 12_000
_RAMP: Final = 130  # iterations after which real agents fill their context window
_SHORTEST: Final = 3  # iterations


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """What to simulate; equal plans give equal bytes."""

    seed: int = 1
    machines: int = 3
    sessions: int = 4  # root sessions of each machine; sub-sessions come on top
    turns: int = 8  # mean of a root session
    target_bytes: int | None = None  # when set, sessions are added until about this many bytes
    raw: bool = True  # requests repeat the whole conversation, lines reach megabytes
    hostile: bool = True  # one session per machine full of lines that break readers
    other_tools: bool = True  # each machine has homes of Claude Code and Codex too
    huge_line: bool = False  # one hostile line of over 16 MiB; needs `hostile`

    def __post_init__(self) -> None:
        for name in ("machines", "sessions", "turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.target_bytes is not None and self.target_bytes < 1:
            raise ValueError("target_bytes must be at least 1")


def simulate(out: Path, plan: FleetPlan, progress: Callable[[int], None] | None = None) -> Oracle:
    """Write a fleet and its `oracle.json` into an empty or new folder.

    `progress` is called after each session with the bytes written so far.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; a fleet needs a folder of its own")
    out.mkdir(parents=True, exist_ok=True)
    fleet = _Fleet(out, plan, progress or (lambda _written: None))
    fleet.write()
    oracle = Oracle(files=sorted(fleet.files, key=lambda file: file.path))
    oracle.write(out / "oracle.json")
    return oracle


class _Fleet:
    def __init__(self, out: Path, plan: FleetPlan, progress: Callable[[int], None]) -> None:
        self.files: list[FileOracle] = []
        self._written = 0
        self._out = out
        self._plan = plan
        self._progress = progress
        self._vocabulary = Vocabulary(plan.seed)

    def write(self) -> None:
        if self._plan.hostile:
            for machine in range(self._plan.machines):
                self._hostile(machine)
        if self._plan.other_tools:
            for machine in range(self._plan.machines):
                self._other_tools(machine)
        for order in self._orders():
            self._root(order)

    def _orders(self) -> Iterator[int]:
        """The numbers of the root sessions; machines take turns."""
        target, order = self._plan.target_bytes, 0
        if target is None:
            yield from range(self._plan.machines * self._plan.sessions)
            return
        enough = target - min(target // 50, 2 * _RAW_STEP)
        while self._written < enough:
            yield order
            order += 1

    def _hostile(self, machine: int) -> None:
        rng = seeded(self._plan.seed, machine, "hostile")
        place = self._place(machine, _DIRECTORIES[0], _root_id(rng))
        files = write_hostile(
            self._out,
            place,
            share=(machine, self._plan.machines),
            huge_line=self._plan.huge_line and machine == 0,
        )
        self._keep(files)

    def _other_tools(self, machine: int) -> None:
        rng = seeded(self._plan.seed, machine, "other tools")
        directory = _DIRECTORIES[(machine + 2) % len(_DIRECTORIES)]
        desk = Desk(
            host_id=_host(machine),
            directory=directory,
            content=Content(Prose(self._vocabulary, rng), rng, directory),
            rng=rng,
            start=_EPOCH + rng.randrange(_HOUR),
            turns=self._plan.turns,
            hostile=self._plan.hostile,
        )
        self._keep([*write_claude(self._out, desk), *write_codex(self._out, desk)])

    def _root(self, order: int) -> None:
        machine, number = order % self._plan.machines, order // self._plan.machines
        rng = seeded(self._plan.seed, machine, number)
        directory = _DIRECTORIES[(machine + number) % len(_DIRECTORIES)]
        start = _EPOCH + number * 7 * _HOUR + rng.randrange(_HOUR)
        turns = self._turns(rng)
        recipe = order % 7 == 4
        session_id = _recipe_id(rng, start) if recipe else _root_id(rng)
        iterations = sum(turns)
        delegates = rng.choices(_AGENTS, k=1 + (iterations > 24)) if iterations > 14 else []
        plan = SessionPlan(
            place=self._place(machine, directory, session_id),
            working_dir=directory,
            start=start,
            turns=turns,
            base=rng.randint(60_000, 90_000),
            peak=rng.randint(760_000, 940_000),
            ramp=-(-iterations // -(-iterations // _RAMP)),
            raw=self._plan.raw,
            style=_STYLES[order % len(_STYLES)],
            old_usage=order % 5 == 3,
            oddity=_ODDITIES[(order + self._plan.seed) % len(_ODDITIES)],
            pastes=_PASTES[order % len(_PASTES)] if iterations > 20 else 0,
            delegates=tuple(delegates),
            recipe=recipe,
        )
        for delegation in self._session(plan, rng):
            self._child(plan, delegation)

    def _child(self, root: SessionPlan, delegation: Delegation) -> None:
        rng = seeded(self._plan.seed, delegation.session_id)
        place = root.place
        iterations = rng.randint(3, 5)
        self._session(
            SessionPlan(
                place=Place(
                    host_id=place.host_id,
                    project_slug=place.project_slug,
                    session_id=delegation.session_id,
                ),
                working_dir=root.working_dir,
                start=delegation.start,
                turns=(iterations,),
                base=rng.randint(25_000, 45_000),
                peak=rng.randint(90_000, 180_000),
                ramp=iterations,
                raw=root.raw,
                style=root.style,
                old_usage=root.old_usage,
                oddity=Oddity.TORN if rng.random() < 0.06 else Oddity.NONE,
                parent=delegation.parent,
            ),
            rng,
        )

    def _session(self, plan: SessionPlan, rng: Random) -> list[Delegation]:
        prose = Prose(self._vocabulary, rng)
        files, delegations = write_session(self._out, plan, prose, rng)
        self._keep(files)
        return delegations

    def _keep(self, files: list[FileOracle]) -> None:
        self.files += files
        self._written += sum(file.bytes for file in files)
        self._progress(self._written)

    def _place(self, machine: int, directory: str, session_id: str) -> Place:
        return Place(host_id=_host(machine), project_slug=_slug(directory), session_id=session_id)

    def _turns(self, rng: Random) -> tuple[int, ...]:
        """Model iterations of each turn, fewer where a target leaves less room."""
        mean = self._plan.turns
        turns = [rng.randint(2, 6) for _ in range(max(1, round(rng.gauss(mean, mean / 5))))]
        room = self._room()
        while len(turns) > 1 and sum(turns) > room:
            turns.pop()
        turns[-1] = max(2, min(turns[-1], room))
        return tuple(turns)

    def _room(self) -> int:
        """How many iterations the next root session may have."""
        target = self._plan.target_bytes
        if target is None:
            return 10**9
        step = _RAW_STEP if self._plan.raw else _PLAIN_STEP
        share = max(target // (2 * self._plan.machines), 18 * step)
        return max(_SHORTEST, min(share, target - self._written) // step)


def _host(machine: int) -> str:
    return f"{_NAMES[machine % len(_NAMES)]}-{machine + 1:02}"


def _slug(directory: str) -> str:
    slug = directory.replace("/", "-").replace("\\", "-").replace(":", "")
    return slug if slug.startswith("-") else f"-{slug}"


def _root_id(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _recipe_id(rng: Random, start: int) -> str:
    return f"{hexes(rng, 16)}-{Clock(rng, start, TimeStyle.NANOS).compact()}_recipe"
