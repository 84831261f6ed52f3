"""Codex threads as they come to lie on disk: one, a fork of it, and one that was archived.

Token counts are totals of the thread. They are stated again unchanged, begin anew at times, and a
fork begins with a copy of its parent's.
"""

import json
import uuid
from pathlib import Path
from random import Random
from typing import Any, Final

from sessionferry.simulate.claude import Desk
from sessionferry.simulate.oracle import NO_USAGE, PLAIN, QUARANTINED, UNPARSED, Facts, FileOracle
from sessionferry.simulate.sink import CountedFile
from sessionferry.simulate.usage import Usage
from sessionferry.simulate.wire import Clock, TimeStyle

FORMAT: Final = "codex"
_PAUSE: Final = (2_000, 40_000)  # milliseconds that a model takes, at least and at most
_DAY: Final = 86_400 * 10**9  # nanoseconds


def write_codex(root: Path, desk: Desk) -> list[FileOracle]:
    """Write a thread, a fork of it, and an archived thread that ends in a torn line."""
    thread = _Thread(desk, f"{desk.host_id}/.codex/sessions/2026/03/02")
    thread.write(root)
    fork = _Thread(desk, f"{desk.host_id}/.codex/sessions/2026/03/03", thread)
    fork.write(root)
    archived = _Thread(desk, f"{desk.host_id}/.codex/archived_sessions")
    archived.write(root, torn=True)
    return [thread.entry, fork.entry, archived.entry]


class _Thread:
    """One thread: its lines, its totals, and what each line used."""

    def __init__(self, desk: Desk, folder: str, parent: "_Thread | None" = None) -> None:
        self.id = str(uuid.UUID(int=desk.rng.getrandbits(128), version=4))
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.totals = NO_USAGE
        self._desk = desk
        self._rng: Random = desk.rng
        self._parent = parent
        start = desk.start + (_DAY if parent else 0)
        self._clock = Clock(desk.rng, start, TimeStyle.MILLIS)
        project = desk.directory.replace("/", "-").replace("\\", "-").replace(":", "")
        self.entry = FileOracle(
            path=f"{folder}/rollout-2026-03-02T09-00-00-{self.id}.jsonl",
            host_id=desk.host_id,
            project_slug=project if project.startswith("-") else f"-{project}",
            session_id=self.id,
            stream="transcript",
            format=FORMAT,
        )

    def write(self, root: Path, *, torn: bool = False) -> None:
        with CountedFile(root, self.entry) as self._file:
            self._open()
            for _ in range(self._desk.turns):
                self._turn()
            if self._desk.hostile and self._parent is None:
                self._hostile()
            if torn:
                self._file.tail(b'{"timestamp":"2026-03-02T09:59:59.000Z","type":"event_msg","pay')

    def _open(self) -> None:
        meta: dict[str, Any] = {
            "id": self.id,
            "cwd": self._desk.directory,
            "originator": "codex_cli_rs",
            "cli_version": "0.98.0",
            "source": "cli",
            "model_provider": "openai",
            "git": {"branch": "main"},
            "base_instructions": {"text": "x" * 9_000},
        }
        if self._parent:
            meta["forked_from_id"] = self._parent.id
        self._put("session_meta", meta)
        if self._parent:
            # Written in one go: all within some milliseconds.
            for kind, payload in self._parent.lines:
                self._clock.tick(0, 1)
                self._put(kind, payload)
            self.totals = self._parent.totals
            self._clock.tick(*_PAUSE)
        context = {"cwd": self._desk.directory, "model": "gpt-6-codex", "summary": "auto"}
        self._put("turn_context", context)

    def _turn(self) -> None:
        content = self._desk.content
        asked = content.prose.spoken(80, 900)
        self._put("event_msg", {"type": "task_started", "turn_id": "t"})
        self._put("event_msg", {"type": "user_message", "message": asked})
        call = content.call()
        arguments = {"name": call.tool, "arguments": json.dumps(call.arguments)}
        self._put("response_item", {"type": "function_call", "call_id": call.id, **arguments})
        output = {"call_id": call.id, "output": content.prose.about(self._rng.randint(200, 6_000))}
        self._put("response_item", {"type": "function_call_output", **output})
        self._call()
        if self._rng.random() < 0.4:
            self._state(NO_USAGE)  # the same totals once more
        if self._rng.random() < 0.2:
            self.totals = NO_USAGE  # the counter begins anew
            self._call()
        if self._rng.random() < 0.3:
            self._put("event_msg", {"type": "token_count", "info": None, "rate_limits": {}})
        reply = {"role": "assistant", "content": [{"type": "output_text", "text": asked}]}
        self._put("response_item", {"type": "message", **reply})
        self._put("event_msg", {"type": "task_complete", "turn_id": "t", "duration_ms": 1500})

    def _call(self) -> None:
        rng = self._rng
        used = Usage(
            input=rng.randint(100, 5_000),
            output=rng.randint(1, 900),
            cache_read=rng.randint(0, 90_000),
        )
        self.totals += used
        self._clock.tick(*_PAUSE)
        self._state(used)

    def _state(self, used: Usage, *, repaired: bool = False) -> None:
        info = {"total_token_usage": _stated(self.totals), "last_token_usage": _stated(used)}
        payload = {"type": "token_count", "info": info, "rate_limits": None}
        self._put("event_msg", payload, Facts(usage=used, repaired=repaired), odd=repaired)

    def _put(
        self, kind: str, payload: dict[str, Any], facts: Facts = PLAIN, *, odd: bool = False
    ) -> None:
        self.lines.append((kind, payload))
        value = {"timestamp": self._clock.stamp(), "type": kind, "payload": payload}
        line = _dump(value | {"odd": float("nan")} if odd else value)
        self._file.line((line,), facts)

    def _hostile(self) -> None:
        """Lines that break careless accounts; a good one follows each."""
        good = {"type": "token_count", "info": {"total_token_usage": _stated(self.totals)}}
        line = _dump({"type": "event_msg", "payload": good})
        deep = b'{"x":' + b"[" * 150 + b"]" * 150 + b"," + line[1:]
        for bad, facts in (
            (b"[" + line + b"]", QUARANTINED),
            (line[:-9], QUARANTINED),
            (line + line, QUARANTINED),
            (deep, UNPARSED),
            (_dump({"type": "event_msg", "payload": {"type": "token_count", "info": [1]}}), PLAIN),
            (_dump({"type": "of-tomorrow", "payload": good}), PLAIN),
            (_dump({"record_type": "state", "token_count": 9}), PLAIN),
        ):
            self._file.line((bad,), facts)
            self._call()
        self._clock.tick(*_PAUSE)
        used = Usage(output=9)
        self.totals += used
        self._state(used, repaired=True)


def _stated(usage: Usage) -> dict[str, int]:
    """Counts as Codex states them: cached tokens are part of the input."""
    return {
        "input_tokens": usage.input + usage.cache_read,
        "cached_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
        "reasoning_output_tokens": usage.output // 2,
        "total_tokens": usage.input + usage.cache_read + usage.output,
    }


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
