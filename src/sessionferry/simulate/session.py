"""One Amplifier session as it comes to lie on disk: events, transcript, metadata."""

import json
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, Final

from sessionferry.simulate.content import Call, Content
from sessionferry.simulate.oracle import NO_COST, PLAIN, Facts, FileOracle, Place
from sessionferry.simulate.sink import CountedFile, Dialect
from sessionferry.simulate.text import Prose, hexes
from sessionferry.simulate.usage import Usage
from sessionferry.simulate.wire import (
    Clock,
    Conversation,
    Frame,
    TimeStyle,
    compact_size,
    dump,
    event_facts,
)

_PRICES: Final = Usage(input=500, output=2500, cache_read=50, cache_write=625)  # 10^-8 USD a token
_MODULE_EVENTS: Final = (
    "budget:checkpoint",
    "linter:pass_finished",
    "session-naming:debug",
    "garden.watch:tree_changed",
)
_STEEPEST: Final = 110_000  # bytes by which one iteration lets a conversation grow
_PASTE: Final = (450_000, 700_000)  # characters of a huge tool result


class Oddity(Enum):
    """What is unusual about a session's files."""

    NONE = "nothing"
    TORN = "the events end in a cut line without a line end"
    KILLED = "the events end at tool:pre, there is no metadata"
    NO_METADATA = "no metadata file"
    CRLF = "lines end in CRLF"
    BOM = "a byte order mark, and blank lines"
    RESUMED = "several session:end"
    NO_TRANSCRIPT = "an empty transcript"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Where a sub-session comes from."""

    session_id: str
    agent: str
    trace_id: str


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """All that is decided about a session before it is written."""

    place: Place
    working_dir: str
    start: int  # nanoseconds since 1970
    turns: tuple[int, ...]  # model iterations of each turn
    base: int  # bytes of system prompt and tool schemas
    peak: int  # bytes of a request at which the agent compacts
    ramp: int  # iterations from base to peak
    raw: bool
    style: TimeStyle = TimeStyle.NANOS
    old_usage: bool = False
    oddity: Oddity = Oddity.NONE
    pastes: int = 0  # huge tool results near the end
    delegates: tuple[str, ...] = ()
    parent: Parent | None = None
    recipe: bool = False

    @property
    def dialect(self) -> Dialect:
        """How the files are laid out."""
        bom = self.oddity is Oddity.BOM
        return Dialect(bom=bom, crlf=self.oddity is Oddity.CRLF, blanks=bom)


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """A sub-session that was started, still to be written."""

    parent: Parent
    session_id: str
    start: int


def write_session(
    root: Path, plan: SessionPlan, prose: Prose, rng: Random
) -> tuple[list[FileOracle], list[Delegation]]:
    """Write a session's files; returns their counts and the sub-sessions it started."""
    place = plan.place
    with ExitStack() as stack:
        opened = (
            stack.enter_context(CountedFile(root, FileOracle.at(place, name), plan.dialect))
            for name in ("events.jsonl", "transcript.jsonl")
        )
        events, script = opened
        run = _Run(plan, prose, rng, events, script)
        run.write()
    files = [events.entry, script.entry]
    if plan.oddity not in (Oddity.KILLED, Oddity.NO_METADATA):
        files.append(_write_metadata(root, place, run.metadata()))
    return files, run.delegations


def _write_metadata(root: Path, place: Place, metadata: dict[str, Any]) -> FileOracle:
    with CountedFile(root, FileOracle.at(place, "metadata.json")) as file:
        file.put(json.dumps(metadata, indent=2, ensure_ascii=False).encode())
    return file.entry


class _Run:
    """A session while it is written."""

    def __init__(
        self,
        plan: SessionPlan,
        prose: Prose,
        rng: Random,
        events: CountedFile,
        transcript: CountedFile,
    ) -> None:
        self.delegations: list[Delegation] = []
        self._plan = plan
        self._prose = prose
        self._rng = rng
        self._events = events
        self._transcript = transcript
        self._clock = Clock(rng, plan.start, plan.style)
        self._content = Content(prose, rng, plan.working_dir)
        self._frame = self._content.request_frame(plan.base)
        self._conversation = Conversation(max((plan.peak - plan.base) * 6 // 5, 20_000))
        self._iteration = 0
        self._total = sum(plan.turns)
        self._seq = 0
        self._user_lines = 0
        self._cached = 0

    # The course of a session

    def write(self) -> None:
        """Write both files."""
        self._open()
        last = len(self._plan.turns) - 1
        for number, iterations in enumerate(self._plan.turns):
            if self._plan.oddity is Oddity.RESUMED and number == last // 2 + 1:
                self._resume()
            killed = self._plan.oddity is Oddity.KILLED and number == last
            self._turn(iterations, first=number == 0, killed=killed)
        if self._plan.oddity is Oddity.KILLED:
            return
        self._close()
        if self._plan.oddity is Oddity.TORN:
            self._tear()

    def _open(self) -> None:
        plan, parent = self._plan, self._plan.parent
        mounts = self._content.mount_plan()
        if parent:
            self._event("session:fork", {"parent": parent.session_id, "raw": mounts})
        self._event("session:start", {"parent_id": parent and parent.session_id, "raw": mounts})
        config = {
            "project_dir": plan.working_dir,
            "project_slug": plan.place.project_slug,
            "working_dir": plan.working_dir,
        }
        self._event("session:config", {"raw": config})
        if plan.recipe:
            self._event("recipe:start", {"name": self._prose.name(), "steps": len(plan.turns)})

    def _close(self) -> None:
        if self._plan.recipe:
            self._event("recipe:complete", {"steps": len(self._plan.turns)})
        self._event("cleanup:finally_begin")
        early = -3000 if self._rng.random() < 0.4 else 0
        self._event("session:end", shift=early, status="completed")
        self._event("cleanup:finally_end")

    def _resume(self) -> None:
        self._close()
        self._clock.tick(600_000, 9_000_000)
        parent = self._plan.parent
        self._event("session:resume", {"parent_id": parent and parent.session_id})

    def _tear(self) -> None:
        # Cut inside a character, as a full disk does.
        line = dump(self._envelope("llm:response", {"text": "ready \U0001f680 " * 9}))
        self._events.tail(line[: line.rindex("\U0001f680".encode()) + 2])

    def _turn(self, iterations: int, *, first: bool, killed: bool) -> None:
        prompt = self._prose.spoken(80, 2_500)
        self._prompt(prompt)
        if first:
            self._event("mentions:resolved", {"files": [self._content.path() for _ in range(3)]})
        for number in range(iterations):
            self._step(final=number == iterations - 1 and not killed)
        if killed:
            self._killed()
            return
        self._finish_turn(iterations)

    def _prompt(self, prompt: str) -> None:
        self._event("prompt:submit", {"prompt": prompt})
        self._event("execution:start", {"prompt": prompt})
        if self._rng.random() < 0.6:
            self._remind()
        self._say({"role": "user", "content": prompt})
        self._conversation.add({"role": "user", "content": [{"type": "text", "text": prompt}]})

    def _remind(self) -> None:
        placement = self._rng.choice(("pre_user", "tail"))
        marks = {"ephemeral": True, "persisted": True, "reminder_placement": placement}
        self._say({"role": "user", "content": self._content.reminder()}, marks)

    def _finish_turn(self, iterations: int) -> None:
        reply = self._prose.spoken(200, 2_000)
        self._event("execution:end", {"response": reply}, status="completed")
        summary = {"orchestrator": "loop-streaming", "turn_count": iterations}
        self._event("orchestrator:complete", summary, status="success")
        self._event("cleanup:render_begin")
        self._event("cleanup:render_end")
        self._event("prompt:complete", {"response": reply})
        self._event("cleanup:store_begin")
        self._event("cleanup:store_end")
        self._clock.tick(4_000, 400_000)

    def _killed(self) -> None:
        self._request()
        calls = self._calls(1)
        self._respond(calls)
        self._tool_pre(calls[0], group=None)

    # One model iteration

    def _step(self, *, final: bool) -> None:
        self._compact_if_full()
        self._request()
        calls = [] if final else self._calls(self._rng.choice((1, 1, 1, 2, 3)))
        self._respond(calls)
        self._iteration += 1
        if calls:
            self._use_tools(calls)
        self._grow()
        self._extras()

    def _compact_if_full(self) -> None:
        if not self._must_compact():
            return
        before = len(self._conversation.text) // 4
        summary = self._prose.about(4_000)
        content = [{"type": "text", "text": summary}]
        self._conversation.compacted({"role": "user", "content": content})
        after = len(self._conversation.text) // 4
        self._cached = 0
        self._event(
            "context:compaction",
            {"after_tokens": after, "before_tokens": before, "strategy_level": 2},
        )

    def _must_compact(self) -> bool:
        if self._left <= self._plan.pastes:
            return False  # the huge results at the end are to be seen in requests
        restart = self._plan.raw and self._iteration and self._iteration % self._plan.ramp == 0
        return bool(restart) or self._conversation.is_full()

    @property
    def _left(self) -> int:
        return self._total - self._iteration

    def _request(self) -> None:
        iteration = {"iteration": self._iteration + 1, "provider": self._content.provider}
        self._event("provider:request", iteration)
        data = {
            "has_system": True,
            "message_count": self._conversation.count,
            "model": self._content.model,
            "provider": self._content.provider,
            "raw": None,
            "thinking_budget": 32_000,
            "thinking_enabled": True,
        }
        if self._plan.raw:
            self._raw_request(data)
        else:
            del data["raw"]
            self._event("llm:request", data)

    def _raw_request(self, data: dict[str, Any]) -> None:
        self._clock.tick(5, 60)
        outer = Frame(self._envelope("llm:request"), "data")
        inner = Frame(data, "raw")
        frame, talk = self._frame, self._conversation
        pieces = (outer.head, inner.head, frame.head, talk.text, frame.tail, inner.tail, outer.tail)
        size = outer.size + inner.size + frame.size + talk.size
        self._events.line(pieces, event_facts(size))

    def _respond(self, calls: list[Call]) -> None:
        took = self._clock.tick(900, 30_000)
        blocks = self._content.blocks(calls)
        usage, facts = self._usage()
        data = {"model": self._content.model, "provider": self._content.provider, "usage": usage}
        if self._plan.raw:
            reason = "tool_use" if calls else "end_turn"
            data["raw"] = {"content": blocks, "stop_reason": reason}
        self._event("llm:response", data, facts=facts, duration_ms=took, status="ok")
        if self._plan.old_usage:
            self._event("provider:response", {"provider": self._content.provider, "usage": usage})
        self._content_events(blocks, usage)
        self._reply_line(blocks, calls)
        self._conversation.add({"role": "assistant", "content": blocks})

    def _content_events(self, blocks: list[dict[str, Any]], usage: dict[str, Any]) -> None:
        for index, block in enumerate(blocks):
            start = {"block_index": index, "block_type": block["type"], "total_blocks": len(blocks)}
            self._event("content_block:start", start)
            end: dict[str, Any] = {"block": block, "block_index": index}
            if index == len(blocks) - 1:
                # The same call's usage again, under one more name: not to be counted.
                written = usage.get("cache_write_tokens", 0)
                end["usage"] = {**usage, "cache_creation_input_tokens": written}
            self._event("content_block:end", end)

    def _reply_line(self, blocks: list[dict[str, Any]], calls: list[Call]) -> None:
        content = [
            {**block, "type": "tool_call"} if block["type"] == "tool_use" else block
            for block in blocks
        ]
        line: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            line["tool_calls"] = [
                {"id": call.id, "tool": call.tool, "arguments": call.arguments} for call in calls
            ]
        self._say(line)

    def _usage(self) -> tuple[dict[str, Any], Facts]:
        tokens = (self._plan.base + len(self._conversation.text)) // 4
        output = self._rng.randint(40, 2_400)
        if self._plan.old_usage:
            usage = Usage(input=tokens, output=output)
            return {"input": tokens, "output": output}, Facts(usage=usage)
        read, self._cached = self._cached, tokens
        written = max(0, tokens - read) * 9 // 10
        # `input_tokens` is fresh plus read; what is written to the cache comes on top.
        usage = Usage(
            input=tokens - read - written, output=output, cache_read=read, cache_write=written
        )
        cost = _cost(usage)
        free = self._content.provider == "ollama"
        fields = {
            "cache_read_tokens": read,
            "cache_write_tokens": written,
            "cost_usd": None if free else f"{cost:f}",
            "input_tokens": usage.input + read,
            "output_tokens": output,
        }
        return fields, Facts(usage=usage, cost=NO_COST if free else cost)

    # Tools

    def _calls(self, count: int) -> list[Call]:
        calls = [self._content.call() for _ in range(count)]
        waiting = len(self._plan.delegates) - len(self.delegations)
        if waiting > 0 and self._iteration * 3 >= self._total:
            calls[0] = self._content.delegate(self._plan.delegates[len(self.delegations)])
        return calls

    def _use_tools(self, calls: list[Call]) -> None:
        group = str(uuid.UUID(int=self._rng.getrandbits(128))) if len(calls) > 1 else None
        budget = self._result_size() // len(calls)
        for call in calls:
            self._tool_pre(call, group)
            if call.tool == "delegate":
                self._delegate(call)
            self._tool_post(call, group, int(budget * self._rng.uniform(0.5, 1.5)))

    def _tool_pre(self, call: Call, group: str | None) -> None:
        self._event("tool:pre", call.data(group))

    def _tool_post(self, call: Call, group: str | None, size: int) -> None:
        took = self._clock.tick(3, 4_000)
        if self._rng.random() < 0.03:
            error = {"message": self._prose.sentence(), "type": "FileNotFoundError"}
            self._event("tool:error", call.data(group), lvl="ERROR", error=error)
        result = self._content.result(size)
        self._event("tool:post", {**call.data(group), "result": result}, duration_ms=took)
        content = json.dumps(result, ensure_ascii=False)
        line = {"role": "tool", "name": call.tool, "tool_call_id": call.id, "content": content}
        self._say(line)
        block = {"content": content, "tool_use_id": call.id, "type": "tool_result"}
        self._conversation.add({"role": "user", "content": [block]})

    def _delegate(self, call: Call) -> None:
        agent = str(call.arguments["agent"])
        trace = hexes(self._rng, 32)
        session_id = f"{hexes(self._rng, 16)}-{hexes(self._rng, 16)}_{agent}"
        parent = Parent(session_id=self._plan.place.session_id, agent=agent, trace_id=trace)
        started = Delegation(parent=parent, session_id=session_id, start=self._clock.now)
        self.delegations.append(started)
        data = {
            "agent": agent,
            "parent_session_id": parent.session_id,
            "sub_session_id": session_id,
            "tool_call_id": call.id,
        }
        self._event("delegate:agent_spawned", data)
        self._clock.tick(30_000, 120_000)
        self._event("delegate:agent_completed", {**data, "success": True})

    def _result_size(self) -> int:
        if 0 < self._left <= self._plan.pastes:
            return self._rng.randint(*_PASTE)
        if self._plan.raw and self._rng.random() < 0.03:
            return self._rng.randint(40_000, 120_000)
        return self._rng.choice((200, 900, 2_000, 6_000))

    def _missing(self) -> int:
        """Bytes between the conversation and where its ramp from base to peak should be."""
        done = (self._iteration % self._plan.ramp + 1) / self._plan.ramp
        wanted = int((self._plan.peak - self._plan.base) * done)
        return min(_STEEPEST, wanted - len(self._conversation.text))

    def _grow(self) -> None:
        """Inject context files, so that the requests of a session cover all sizes evenly.

        They stand in requests only: no tool event and no transcript line has them.
        """
        missing = self._missing()
        if not self._plan.raw or missing < 1_000:
            return
        text = self._content.context_file(missing)
        self._conversation.add({"role": "user", "content": [{"type": "text", "text": text}]})

    # Surroundings

    def _extras(self) -> None:
        chance = self._rng.random()
        if chance < 0.08:
            data = {"detail": self._prose.about(300), "count": self._rng.randrange(10**6)}
            self._event(self._rng.choice(_MODULE_EVENTS), data)
        elif chance < 0.12:
            wait = {"attempt": 1, "delay_s": round(self._rng.uniform(0.5, 9), 3)}
            self._event("provider:retry", {"provider": self._content.provider, **wait})
        elif chance < 0.15:
            self._second_logger()
        elif chance < 0.16:
            self._log_record()

    def _second_logger(self) -> None:
        """An event in the envelope of another logger, with the session's id in `data`."""
        data = {"session_id": self._plan.place.session_id, "text": self._prose.sentence()}
        value = {
            "event": "user:notification",
            "timestamp": self._clock.stamp(),
            "workspace": self._plan.working_dir,
            "data": data,
        }
        self._other(value)

    def _log_record(self) -> None:
        """A record of a program's log, which has neither an event nor a session."""
        message = f"{{'detail': {self._prose.sentence()!r}}}"
        self._other({"ts": self._clock.stamp(), "event": None, "logger": "cli", "message": message})

    def _other(self, value: dict[str, Any]) -> None:
        self._events.line((dump(value),), event_facts(compact_size(value)))

    def _event(
        self,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        lvl: str = "INFO",
        shift: int = 0,
        facts: Facts = PLAIN,
        **promoted: Any,
    ) -> None:
        self._clock.tick(0, 40)
        value = self._envelope(name, data, lvl=lvl, shift=shift, **promoted)
        self._events.line((dump(value),), event_facts(compact_size(value), facts))

    def _envelope(
        self,
        name: str,
        data: dict[str, Any] | None = None,
        *,
        lvl: str = "INFO",
        shift: int = 0,
        **promoted: Any,
    ) -> dict[str, Any]:
        value: dict[str, Any] = {
            "ts": self._clock.stamp(shift),
            "lvl": lvl,
            "schema": {"name": "amplifier.log", "ver": "1.0.0"},
            "event": name,
        }
        if self._plan.style is not TimeStyle.MILLIS:
            value["redaction"] = {"applied": True, "rules": ["secrets", "pii-basic"]}
        value |= {"session_id": self._plan.place.session_id, **promoted}
        if data:
            sort = self._plan.style is not TimeStyle.MILLIS
            value["data"] = dict(sorted(data.items())) if sort else data
        return value

    def _say(self, line: dict[str, Any], marks: dict[str, Any] | None = None) -> None:
        if self._plan.oddity is Oddity.NO_TRANSCRIPT:
            return
        self._user_lines += line["role"] == "user"
        self._seq += 1
        metadata = {"timestamp": self._clock.short(), "_seq": self._seq, **(marks or {})}
        self._transcript.line((dump({**line, "metadata": metadata}),), PLAIN)

    def metadata(self) -> dict[str, Any]:
        """The session's metadata file; `created` is the time of a save, as in real ones."""
        plan = self._plan
        value: dict[str, Any] = {
            "session_id": plan.place.session_id,
            "created": self._clock.short(),
            "bundle": "bundle:workbench",
            "model": self._content.model,
            "turn_count": self._user_lines,
            "working_dir": plan.working_dir,
        }
        if plan.parent:
            return value | self._child_metadata(plan.parent)
        return value | {
            "name": self._prose.sentence(),
            "name_generated_at": self._clock.short(),
            "description": self._prose.paragraph(),
        }

    def _child_metadata(self, parent: Parent) -> dict[str, Any]:
        return {
            "parent_id": parent.session_id,
            "trace_id": parent.trace_id,
            "agent_name": parent.agent,
            "child_span": self._plan.place.session_id.split("_")[0].split("-")[1],
            "config": {**self._content.mount_plan(), "instruction": self._prose.about(6_000)},
            "agent_overlay": {"description": self._prose.sentence()},
            "self_delegation_depth": 1,
        }


def _cost(usage: Usage) -> Decimal:
    units = (
        usage.input * _PRICES.input
        + usage.output * _PRICES.output
        + usage.cache_read * _PRICES.cache_read
        + usage.cache_write * _PRICES.cache_write
    )
    return Decimal(units).scaleb(-8)
