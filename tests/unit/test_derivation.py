"""Whoever changes what is made of lines says so, and stored sessions are made anew."""

import hashlib

import orjson

from sessionferry.batch import lines_of
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.heads import DERIVATION, Delivery, Head, merge
from sessionferry.identity import Stream
from support.strategies import header

LINES = {
    "amplifier": (
        b'{"ts":"2026-07-01T12:00:00.5+02:00","lvl":"INFO","event":"llm:response","data":'
        b'{"model":"m","provider":"p","usage":{"input":7,"output":2,"cache_read":3},'
        b'"cost_usd":"0.25","duration_ms":12}}\n'
        b'{"ts":"2026-07-01T12:00:01Z","event":"tool:post","ttl":5,"data":{"tool_name":"bash",'
        b'"tool_call_id":"c1","result":{"success":false,"error":{"message":"no"}}}}\n'
        b'{"ts":"2026-07-01T12:00:02Z","event":"session:end","data":{"x":NaN}}\n'
        b"not json\n"
    ),
    "claude_code": (
        b'{"type":"user","sessionId":"s","cwd":"/w","gitBranch":"main","message":{"role":"user",'
        b'"content":"Hello"},"timestamp":"2026-07-01T12:00:00.000Z"}\n'
        b'{"type":"assistant","message":{"id":"m1","model":"m","role":"assistant","usage":'
        b'{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":5},"content":[{"type":'
        b'"tool_use","id":"t1","name":"Bash","input":{}}]},"timestamp":"2026-07-01T12:00:01Z"}\n'
    ),
    "codex": (
        b'{"timestamp":"2026-07-01T12:00:00Z","type":"session_meta","payload":{"id":"s",'
        b'"cwd":"/w","cli_version":"1"}}\n'
        b'{"timestamp":"2026-07-01T12:00:01Z","type":"event_msg","payload":{"type":"token_count",'
        b'"info":{"total_token_usage":{"input_tokens":9,"cached_input_tokens":4,'
        b'"output_tokens":2}}}}\n'
    ),
    "jsonl": b'{"role":"user","content":"hi","usage":{"prompt_tokens":3,"completion_tokens":1}}\n',
}
MADE = {1: "36a9b9d72065b71190ec8d4b9450c3a3cc6ec17c0b889d21b7fc7f584233e974"}
"""What is made of these lines, by the way in which it is made."""


def test_documents_and_sums_are_those_of_their_derivation() -> None:
    made = hashlib.sha256()
    for name, content in LINES.items():
        made.update(orjson.dumps(derive(name, content), option=orjson.OPT_SORT_KEYS))
    assert MADE[DERIVATION] == made.hexdigest(), (
        "The same lines give other documents or sums than before: raise heads.DERIVATION, and add"
        " this digest to MADE. Deployments then make their sessions anew (ferry rebuild)."
    )


def derive(name: str, content: bytes) -> object:
    """Make documents, rejections and the head of some lines."""
    stream: Stream = "events" if name == "amplifier" else "transcript"
    own = header(format=name, stream=stream, length=len(content))
    builder = DocumentBuilder(own, "k", "2026-07-01T00:00:00Z")
    documents: list[object] = []
    facts: list[Facts] = []
    for sequence, (offset, line) in enumerate(lines_of(content)):
        built = builder.build(Position(sequence, offset), line, hashlib.sha256(line).digest())
        if isinstance(built, Document):
            documents.append(orjson.loads(built.json))
            facts.append(built.facts)
        else:
            documents.append([built.reason, built.sequence])
    head = merge(Head.new(own.key), [Delivery(stream, 0, stored=facts, format=name)])
    return [documents, head.stream(stream).model_dump(mode="json")]
