"""What stays on the machine by its project, its path or its kind, and raw payloads."""

import json
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.agent.discover import Source, slug
from sessionferry.agent.filters import STRIPPED, Kinds, Places, _top, event_names, members
from sessionferry.agent.gate import Checked, Passed
from sessionferry.agent.policy import Policy
from sessionferry.agent.redaction import Redactor
from sessionferry.identity import SessionKey

HOME = Path.home()
TOKEN = "ghp_" + "a1B2" * 9


def source(project: str = "-srv-app", path: Path = Path("/x/events.jsonl")) -> Source:
    """Return a file of Amplifier's."""
    return Source(path, SessionKey("u", project, "s"), "events", "amplifier")


def event(name: str, **data: object) -> bytes:
    """Write an event as Amplifier does."""
    return json.dumps({"ts": "2026-01-01T00:00:00Z", "event": name, "data": data}).encode() + b"\n"


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("rules", "project", "admitted"),
    [
        ({}, "-srv-app", True),
        ({"include_projects": ["-srv-*"]}, "-srv-app", True),
        ({"include_projects": ["-srv-*"]}, "-home-app", False),
        ({"exclude_projects": ["*secret*"]}, "-srv-secret-app", False),
        ({"include_projects": ["*"], "exclude_projects": ["-srv-app"]}, "-srv-app", False),
        ({"exclude_projects": ["/srv/app"]}, "-srv-app", False),
        ({"exclude_projects": ["/srv/app"]}, "-srv-app-api", False),
        ({"exclude_projects": ["/srv/app"]}, "-srv-application", True),
        ({"exclude_projects": ["/srv/my.app_1"]}, "-srv-my-app-1", False),
        ({"exclude_projects": ["/srv/my.app_1"]}, "-srv-my-app-1-api", False),
        ({"exclude_projects": ["/srv/my.app_1"]}, "-srv-my-app_1", False),
        ({"exclude_projects": ["/srv/my.app_1"]}, "-srv-my.app_1", False),
        ({"exclude_projects": ["/srv/my.app_1"]}, "-srv-my-app-2", True),
        ({"exclude_projects": ["/srv/[app]"]}, "-srv-[app]", False),
        ({"exclude_projects": ["~/clients"]}, slug(HOME / "clients" / "acme"), False),
    ],
)
def test_projects_are_chosen_by_name_or_by_folder(
    rules: dict[str, list[str]], project: str, admitted: bool
) -> None:
    assert Places(**rules).admit(source(project)) is admitted


@pytest.mark.parametrize(
    ("rules", "path", "admitted"),
    [
        ({"exclude_paths": ["/data/old"]}, "/data/old/a/events.jsonl", False),
        ({"exclude_paths": ["/data/old"]}, "/data/older/events.jsonl", True),
        ({"include_paths": ["/data/*/events.jsonl"]}, "/data/a/events.jsonl", True),
        ({"include_paths": ["~/.amplifier"]}, "/data/a/events.jsonl", False),
        ({"include_paths": ["~/.amplifier"]}, str(HOME / ".amplifier" / "x.jsonl"), True),
    ],
)
def test_paths_are_chosen_by_pattern_or_by_folder(
    rules: dict[str, list[str]], path: str, admitted: bool
) -> None:
    assert Places(**rules).admit(source(path=Path(path))) is admitted


def test_a_place_is_meant_in_any_case_where_the_system_finds_it_so() -> None:
    is_one_place = sys.platform in {"darwin", "win32"}
    places = Places(exclude_paths=["/Data/*/old"], exclude_projects=["-SRV-*"])
    assert places.admit(source("-p", Path("/data/a/old/events.jsonl"))) is not is_one_place
    assert places.admit(source("-srv-app")) is not is_one_place


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has two forms of a path")
def test_a_path_of_any_length_is_meant() -> None:
    path = Path("\\\\?\\C:\\private\\" + "x" * 250 + "\\events.jsonl")
    assert not Places(exclude_paths=["C:\\private"]).admit(source(path=path))


def test_a_place_is_meant_however_it_is_reached_and_whatever_its_name(tmp_path: Path) -> None:
    real = tmp_path / "disk[1]" / "claude"
    real.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    session = real / "projects" / "-srv-app" / "a.jsonl"
    for excluded in (link, real, link / "projects", link / "*" / "-srv-app", real / "**.jsonl"):
        assert not Places(exclude_paths=[str(excluded)]).admit(source(path=session)), excluded
        assert Places(include_paths=[str(excluded)]).admit(source(path=session)), excluded
    assert Places(exclude_paths=[str(link / "other")]).admit(source(path=session))
    assert not Places(exclude_projects=[str(link)]).admit(source(slug(real)))


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("file_format", "line", "names"),
    [
        ("amplifier", {"ts": 1, "event": "llm:request"}, ("llm:request",)),
        ("claude_code", {"type": "user", "message": {}}, ("user",)),
        (
            "claude_code",
            {"type": "system", "subtype": "api_error"},
            ("system", "system:api_error"),
        ),
        (
            "codex",
            {"type": "event_msg", "payload": {"info": {"type": "x"}, "type": "token_count"}},
            ("event_msg", "event_msg:token_count"),
        ),
        ("jsonl", {"data": {"event": "inner"}, "type": "a\n"}, ("a\n",)),
        ("jsonl", {"role": "user"}, ("",)),
        ("jsonl", [1], ("",)),
    ],
)
def test_an_events_name_is_read_from_the_top_of_its_line(
    file_format: str, line: object, names: tuple[str, ...]
) -> None:
    raw = json.dumps(line).encode()
    assert event_names(file_format, _top(raw)) == names
    # The same where no parser helps.
    assert event_names(file_format, _top(raw.replace(b"{", b'{ "n": NaN ,', 1))) == names


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=5), st.sampled_from([None, 1]))
def test_members_are_those_that_a_parser_finds(
    value: dict[str, object], indent: int | None
) -> None:
    text = json.dumps(value, indent=indent).replace("\n", "\t").encode()
    found = {
        member.name: json.loads(text[member.start : member.end]) for member in members(text, 0)
    }
    assert found == value


@given(st.binary(max_size=60).map(lambda tail: b'{"event":"a","data":' + tail))
def test_members_of_what_is_not_json_end_without_an_error(line: bytes) -> None:
    assert [member.name for member in members(line, 0)][:1] == ["event"]


def test_lines_are_dropped_by_the_name_of_their_event() -> None:
    kinds = Kinds(drop=["llm:stream_*", "content_block:delta"])
    piece = event("llm:stream_delta") + event("llm:response") + b"\n" + event("content_block:delta")
    passed = Checked(Policy(Places(), kinds)).lines(source(), piece)
    assert passed == Passed(event("llm:response") + b"\n", filtered=2)


def test_a_sample_is_the_same_at_any_time_and_about_as_large_as_asked_for() -> None:
    policy = Policy(Places(), Kinds(sample={"tool:*": 0.25}))
    piece = b"".join(event("tool:progress", n=n) for n in range(2000)) + event("tool", n=1)
    passed = policy.lines(source(), piece)
    assert passed.payload.endswith(event("tool", n=1))
    assert 1350 < passed.filtered < 1650
    lines = piece.splitlines(keepends=True)
    assert b"".join(policy.lines(source(), line).payload for line in lines) == passed.payload


def test_raw_payloads_leave_a_note_of_their_size_and_nothing_else_changes() -> None:
    line = (
        b'{"event": "llm:request", "n": 1.10, "data": {"a": 1, "raw": {"messages": ["\\"}",'
        b' {"b": []}], "x": "yyyyyyyyyyyyyyyyyyyyy"} , "model": "m"}}\n'
    )
    policy = Policy(Places(), Kinds(strip_raw=True))
    passed = Checked(policy).lines(source(), line)
    size = len(b'{"messages": ["\\"}", {"b": []}], "x": "yyyyyyyyyyyyyyyyyyyyy"}')
    assert passed.payload == (
        b'{"event": "llm:request", "n": 1.10, "data": {"a": 1, "raw": {"stripped_bytes":%d}'
        b' , "model": "m"}}\n' % size
    )
    assert passed.redacted == {STRIPPED: 1}
    other = event("session:config", raw={"working_dir": "/srv/app" * 9})
    assert policy.lines(source(), other) == Passed(other)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{",
        b'{"event"',
        b'{"event":',
        b'{"event":"llm:request","data":{"raw":{"a":',
        b"x",
    ],
)
def test_what_is_not_an_object_is_kept_as_it_is(line: bytes) -> None:
    kinds = Kinds(drop=["llm:response"], strip_raw=True)
    assert kinds.keep("amplifier", line) == (line, False)


def test_a_torn_line_does_not_pass_where_kinds_are_filtered() -> None:
    policy = Policy(Places(), Kinds(drop=["a"], strip_raw=True))
    whole, torn = event("b").rstrip(b"\n"), event("b")[:-3]
    assert policy.tail(source(), whole) == Passed(whole)
    assert policy.tail(source(), torn) == Passed(b"")
    assert policy.tail(source(), event("a").rstrip(b"\n")) == Passed(b"")
    assert Policy(Places()).tail(source(), torn) == Passed(torn)


# ---------------------------------------------------------------- the policy as a gate


def test_without_rules_everything_passes_unseen() -> None:
    assert Policy(Places(), Kinds()).rules == ""


def test_other_rules_have_another_name() -> None:
    redactor = Redactor(b"k")
    names = {
        Policy(Places(), kinds, red).rules
        for kinds in (None, Kinds(drop=["a"]), Kinds(sample={"a": 0.5}), Kinds(strip_raw=True))
        for red in (None, redactor, Redactor(b"x"), Redactor(b"k", off=["jwt"]))
    }
    assert len(names) == 16
    assert max(map(len, names)) < 256


def test_lines_tails_and_metadata_go_through_the_same_redaction() -> None:
    gate = Checked(Policy(Places(), Kinds(), Redactor(b"k")))
    text = orjson.dumps({"config": {"providers": [{"api_key": TOKEN}]}}, option=orjson.OPT_INDENT_2)
    for passed in (
        gate.lines(source(), event("a", text=TOKEN)),
        gate.tail(source(), event("a", text=TOKEN)[:-8]),
        gate.metadata(source(), text),
    ):
        assert TOKEN.encode() not in passed.payload
        assert passed.redacted == {"github": 1}
    assert json.loads(gate.metadata(source(), text).payload)["config"]["providers"][0]["api_key"]
