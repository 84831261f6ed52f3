"""A Claude Code session and its sub-agents as they come to lie on disk.

A reply stands on several lines that repeat its usage: the last of them states what was used.
"""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from sessionferry.simulate.content import Content
from sessionferry.simulate.oracle import PLAIN, QUARANTINED, UNPARSED, Facts, FileOracle
from sessionferry.simulate.sink import CountedFile
from sessionferry.simulate.text import hexes
from sessionferry.simulate.usage import Usage
from sessionferry.simulate.wire import Clock, TimeStyle

FORMAT: Final = "claude_code"
_MODEL: Final = "claude-opus-4-8"
_AGENTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Who works where: what all sessions of one directory share."""

    host_id: str
    directory: str
    content: Content
    rng: Random
    start: int  # nanoseconds since 1970
    turns: int
    hostile: bool


def write_claude(root: Path, desk: Desk) -> list[FileOracle]:
    """Write a session, one sub-agent beside it and one in a folder below it."""
    session_id = str(uuid.UUID(int=desk.rng.getrandbits(128), version=4))
    project = re.sub(r"[^A-Za-z0-9]", "-", desk.directory)
    folder = f"{desk.host_id}/.claude/projects/{project}"

    def entry(path: str, own_id: str, stream: Any = "transcript") -> FileOracle:
        return FileOracle(
            path=f"{folder}/{path}",
            host_id=desk.host_id,
            project_slug=project,
            session_id=own_id,
            stream=stream,
            format=FORMAT,
        )

    old, new = (f"agent-{hexes(desk.rng, 8)}" for _ in range(_AGENTS))
    below = f"{session_id}/subagents/{new}"
    files = [
        _write(root, desk, entry(f"{session_id}.jsonl", session_id), session_id),
        _write(root, desk, entry(f"{old}.jsonl", old), session_id, agent=old),
        _write(root, desk, entry(f"{below}.jsonl", f"{session_id}_{new}"), session_id, agent=new),
    ]
    metadata = entry(f"{below}.meta.json", f"{session_id}_{new}", "metadata")
    with CountedFile(root, metadata) as file:
        file.put(b'{"agentType":"general-purpose","spawnDepth":1}')
    return [*files, metadata]


def _write(
    root: Path, desk: Desk, entry: FileOracle, session_id: str, agent: str | None = None
) -> FileOracle:
    with CountedFile(root, entry) as file:
        talk = _Talk(desk, file, session_id, agent)
        talk.open()
        for _ in range(desk.turns if agent is None else 1):
            talk.turn()
        if agent is None:
            talk.aside()
        if desk.hostile and agent is None:
            for line, facts in _hostile():
                file.line((line,), facts)
                talk.turn()
        talk.close()
    return entry


class _Talk:
    """One file while it is written."""

    def __init__(self, desk: Desk, file: CountedFile, session_id: str, agent: str | None) -> None:
        self._desk = desk
        self._rng = desk.rng
        self._file = file
        self._clock = Clock(desk.rng, desk.start, TimeStyle.MILLIS)
        self._last: str | None = None
        self._head: dict[str, Any] = {
            "isSidechain": agent is not None,
            "userType": "external",
            "cwd": desk.directory,
            "sessionId": session_id,
            "version": "2.1.17",
            "gitBranch": "main",
        }
        if agent is not None:
            self._head["agentId"] = agent.removeprefix("agent-")

    def open(self) -> None:
        prose = self._desk.content.prose
        leaf = {"type": "summary", "summary": prose.sentence(), "leafUuid": self._uuid()}
        self._put(leaf)
        snapshot = {"messageId": self._uuid(), "trackedFileBackups": {}}
        self._put({"type": "file-history-snapshot", "snapshot": snapshot})

    def close(self) -> None:
        self._put({"type": "ai-title", "aiTitle": self._desk.content.prose.sentence()})
        self._line("system", {"subtype": "turn_duration", "durationMs": 1500, "isMeta": False})

    def turn(self) -> None:
        """A prompt, a reply that calls a tool, its result, a last reply."""
        content = self._desk.content
        self._line("user", {"message": {"role": "user", "content": content.prose.spoken(80, 900)}})
        call = content.call()
        use = {"type": "tool_use", "id": call.id, "name": call.tool, "input": call.arguments}
        self._interleaved([self._reply("tool_use", use)])
        text = content.prose.about(self._rng.randint(200, 4_000))
        result = {"type": "tool_result", "tool_use_id": call.id, "content": text}
        # The result of a sub-agent has usage too: that of lines in another file.
        outcome = {"stdout": text, "stderr": "", "usage": {"output_tokens": 77}}
        message = {"role": "user", "content": [result]}
        self._line("user", {"message": message, "toolUseResult": outcome})
        self._interleaved([self._reply("end_turn", None)])

    def aside(self) -> None:
        """Sub-agents that talk at the same time, as older versions wrote them into one file."""
        self._interleaved([self._reply("end_turn", None) for _ in range(3)])

    def _reply(self, stop: str, use: dict[str, Any] | None) -> list[tuple[dict[str, Any], Facts]]:
        """The lines of one reply; the facts of the last one are those of the whole."""
        used = Usage(
            input=self._rng.randint(1, 40),
            cache_read=self._rng.randint(0, 90_000),
            cache_write=self._rng.randint(0, 9_000),
        )
        prose, identity = self._desk.content.prose, f"msg_{hexes(self._rng, 24)}"
        blocks: list[dict[str, Any]] = [{"type": "thinking", "thinking": prose.spoken(60, 600)}]
        blocks += [{"type": "text", "text": prose.spoken(40, 900)}] * self._rng.randint(1, 3)
        blocks += [use] if use else []
        output, lines = 0, []
        for number, block in enumerate(blocks, 1):
            output += self._rng.choice((0, self._rng.randint(1, 400)))
            is_last = number == len(blocks)
            message = {
                "id": identity,
                "type": "message",
                "role": "assistant",
                "model": _MODEL,
                "content": [block],
                "stop_reason": stop if is_last else None,
                "usage": {
                    "input_tokens": used.input,
                    "cache_creation_input_tokens": used.cache_write,
                    "cache_read_input_tokens": used.cache_read,
                    "output_tokens": output,
                    "service_tier": "standard",
                },
            }
            facts = Facts(usage=used + Usage(output=output)) if is_last else PLAIN
            lines.append((message, facts))
        return lines

    def _interleaved(self, replies: list[list[tuple[dict[str, Any], Facts]]]) -> None:
        while replies := [reply for reply in replies if reply]:
            message, facts = self._rng.choice(replies).pop(0)
            self._line("assistant", {"message": message, "requestId": "req_1"}, facts)

    def _line(self, kind: str, more: dict[str, Any], facts: Facts = PLAIN) -> None:
        self._clock.tick(50, 5_000)
        before, self._last = self._last, self._uuid()
        own = {"type": kind, "uuid": self._last, "timestamp": self._clock.stamp()}
        self._put({"parentUuid": before, **self._head, **own, **more}, facts)

    def _put(self, value: dict[str, Any], facts: Facts = PLAIN) -> None:
        self._file.line((_dump(value),), facts)

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _hostile() -> Iterator[tuple[bytes, Facts]]:
    """Lines that break careless accounts, with what must become of them."""

    def line(identity: str, usage: Any, model: str = _MODEL) -> bytes:
        message = {"id": identity, "role": "assistant", "model": model, "usage": usage}
        return _dump({"type": "assistant", "message": message})

    nine = Facts(usage=Usage(output=9))
    good = line("msg_a", {"output_tokens": 9})
    yield b"Traceback (most recent call last):", QUARANTINED
    yield good[: len(good) // 2], QUARANTINED
    yield good.replace(b"msg_a", b"msg_\xff"), QUARANTINED
    yield good, nine
    yield line("msg_b", {"output_tokens": 50}), PLAIN
    yield line("msg_b", {"output_tokens": 9}), nine  # the last line counts, also if it is less
    yield line("msg_c", {"output_tokens": -9, "input_tokens": True}), PLAIN
    yield line("msg_d", {"output_tokens": 10**30, "input_tokens": "9"}), PLAIN
    yield line("msg_e", {"output_tokens": 9}, "<synthetic>"), PLAIN
    yield line("msg_f", [9]), PLAIN
    yield good.replace(b'"msg_a"', b'"msg_g","odd":NaN'), Facts(repaired=True, usage=nine.usage)
    yield good.replace(b'"msg_a"', b'"msg_h","x":' + b"[" * 150 + b"]" * 150), UNPARSED
    yield good.replace(b'"id":"msg_a",', b""), nine
    yield good.replace(b'"msg_a"', b'"msg_i"').replace(b'"usage"', b'"us\\u0061ge"'), nine
    yield _dump({"type": "of-tomorrow", "payload": {"usage": {"output_tokens": 9}}}), PLAIN
    yield b"[]", QUARANTINED
