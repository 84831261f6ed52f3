"""What is said in a session: prompts and replies, tool calls, schemas, configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from sessionferry.simulate.text import Prose, hexes
from sessionferry.simulate.wire import Frame, dump

MODELS: Final = (("anthropic", "claude-opus-4-8"), ("openai", "gpt-6-codex"), ("ollama", "qwen4"))
TOOLS: Final = ("read_file", "bash", "edit_file", "grep", "web_fetch", "write_file", "todo")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call as the model asks for it."""

    id: str
    tool: str
    arguments: dict[str, Any]

    def data(self, group: str | None) -> dict[str, Any]:
        """The payload that all of its events have."""
        data = {"tool_call_id": self.id, "tool_input": self.arguments, "tool_name": self.tool}
        return {**data, "parallel_group_id": group} if group else data


class Content:
    """Invents the content of one session."""

    def __init__(self, prose: Prose, rng: Random, working_dir: str) -> None:
        self.prose = prose
        self.provider, self.model = rng.choice(MODELS)
        self._rng = rng
        self._working_dir = working_dir

    def path(self) -> str:
        """A source file in the working directory."""
        name = self.prose.name
        return f"{self._working_dir}/src/{name()}/{name()}_{name()}.py"

    def reminder(self) -> str:
        """What a host injects beside the user's words."""
        return f"<system-reminder>\n{self.prose.spoken(100, 900)}\n</system-reminder>"

    def context_file(self, size: int) -> str:
        """A file that a host injects into a request."""
        return f"<context_file path={self.path()!r}>\n{self.prose.about(size)}\n</context_file>"

    def call(self) -> Call:
        """A call of some tool."""
        tool = self._rng.choice(TOOLS)
        arguments: dict[str, Any] = {"file_path": self.path()}
        if tool == "bash":
            arguments = {"command": f"make {self.prose.name()} && git diff --stat", "timeout": 90}
        elif tool in ("edit_file", "write_file"):
            arguments["new_string"] = self.prose.about(self._rng.randint(100, 1_500))
        return Call(id=self._call_id(), tool=tool, arguments=arguments)

    def delegate(self, agent: str) -> Call:
        """A call that starts a sub-session."""
        arguments = {"agent": agent, "instruction": self.prose.spoken(200, 1_500)}
        return Call(id=self._call_id(), tool="delegate", arguments=arguments)

    def _call_id(self) -> str:
        return f"toolu_{hexes(self._rng, 24)}"

    def result(self, size: int) -> dict[str, Any]:
        """What a tool gives back."""
        text = self.prose.about(size)
        output = {"content": text, "file_path": self.path(), "line_count": text.count("\n")}
        return {"error": None, "output": output, "success": True}

    def blocks(self, calls: list[Call]) -> list[dict[str, Any]]:
        """The model's reply."""
        thinking = {
            "signature": hexes(self._rng, 160),
            "thinking": self.prose.spoken(120, 1_500),
            "type": "thinking",
        }
        text = {"text": self.prose.spoken(60, 1_200), "type": "text"}
        uses = [
            {"id": call.id, "input": call.arguments, "name": call.tool, "type": "tool_use"}
            for call in calls
        ]
        return [thinking, text, *uses] if self._rng.random() < 0.5 else [text, *uses]

    def request_frame(self, base: int) -> Frame:
        """A request of `base` bytes without its messages: system prompt and tool schemas."""
        tools = list(self._schemas(base // 3))
        system = self.prose.about(base - len(dump(tools)))
        value = {
            "max_tokens": 32_000,
            "messages": None,
            "model": self.model,
            "system": [{"text": system, "type": "text"}],
            "tools": tools,
        }
        return Frame(value, "messages")

    def _schemas(self, size: int) -> Iterator[dict[str, Any]]:
        for tool in TOOLS:
            properties = {self.prose.name(): {"type": "string"} for _ in range(4)}
            schema = {"properties": properties, "type": "object"}
            text = self.prose.about(size // len(TOOLS))
            yield {"description": text, "input_schema": schema, "name": tool}

    def mount_plan(self) -> dict[str, Any]:
        """A session's configuration."""
        hooks = [
            {"module": f"hooks-{self.prose.name()}", "config": {"note": self.prose.sentence()}}
            for _ in range(8)
        ]
        return {
            "hooks": hooks,
            "providers": [{"module": f"provider-{self.provider}", "model": self.model}],
            "session": {"orchestrator": "loop-streaming"},
            "tools": [{"module": f"tool-{tool}"} for tool in TOOLS],
        }
