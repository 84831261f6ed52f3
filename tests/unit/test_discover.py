"""Which files are sessions, and whose."""

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import zstandard

from sessionferry.agent.discover import (
    FormatChoice,
    Source,
    default_paths,
    discover,
    look,
    slug,
)
from sessionferry.config import Fields, JsonLines
from sessionferry.errors import UserError

USER = "user-123"
ALL = ("metadata.json", "transcript.jsonl", "events.jsonl")


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}\n")
    return folder


def found(*paths: Path, file_format: FormatChoice | None = None) -> list[Source]:
    return discover(list(paths), USER, file_format)


def names(sources: list[Source]) -> list[tuple[str, str, str]]:
    return [(s.key.project_slug, s.key.session_id, s.role) for s in sources]


def test_an_amplifier_home_gives_its_projects_sessions_and_files(tmp_path: Path) -> None:
    home = tmp_path / ".amplifier"
    write(home / "projects" / "-srv-app" / "sessions" / "s1", *ALL, "notes.txt", "other.jsonl")
    write(home / "projects" / "-srv-web" / "sessions" / "s2", "events.jsonl")
    write(home / "cache", "settings.json")
    sources = found(home)
    assert names(sources) == [
        ("-srv-app", "s1", "metadata"),
        ("-srv-app", "s1", "events"),
        ("-srv-app", "s1", "transcript"),
        ("-srv-web", "s2", "events"),
    ]
    assert {source.key.user_id for source in sources} == {USER}
    assert {source.format for source in sources} == {"amplifier"}
    assert [source.stream for source in sources] == [None, "events", "transcript", "events"]
    assert [source.is_rewritable for source in sources] == [False, False, True, False]


@pytest.mark.parametrize(
    "inner",
    [
        *("", "projects", "projects/-p", "projects/-p/sessions", "projects/-p/sessions/s1"),
        "projects/-p/sessions/s1/events.jsonl",
    ],
)
def test_any_folder_on_the_way_down_gives_the_same_session(tmp_path: Path, inner: str) -> None:
    write(tmp_path / "projects" / "-p" / "sessions" / "s1", "events.jsonl")
    assert names(found(tmp_path / inner)) == [("-p", "s1", "events")]


def test_overlapping_paths_and_other_spellings_give_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = write(tmp_path / "projects" / "-p" / "sessions" / "s1", "events.jsonl")
    monkeypatch.chdir(session)
    (tmp_path / "link").symlink_to(session)
    spelled = [Path(), Path("../s1"), session, session / "events.jsonl", tmp_path]
    assert names(found(*spelled, tmp_path / "link")) == [("-p", "s1", "events")]


def test_parents_come_before_children_and_metadata_before_streams(tmp_path: Path) -> None:
    sessions = tmp_path / "p" / "sessions"
    for name in ("b-child_agent", "b", "a_agent", "c"):
        write(sessions / name, *ALL)
    order = [name for _, name, _ in names(found(tmp_path))]
    assert order[::3] == ["b", "c", "a_agent", "b-child_agent"]
    assert {role for _, _, role in names(found(tmp_path))[::3]} == {"metadata"}


def test_another_tools_files_of_the_same_names_are_left_alone(tmp_path: Path) -> None:
    session = write(tmp_path / "p" / "sessions" / "s1", "events.jsonl")
    write(session / "context-intelligence", *ALL)
    write(tmp_path / "context-intelligence" / "sessions" / "s9", *ALL)
    assert names(found(tmp_path)) == [("p", "s1", "events")]
    with pytest.raises(UserError, match="no sessions of Amplifier, Claude Code or Codex"):
        found(session / "context-intelligence")
    with pytest.raises(UserError, match="no sessions of Amplifier, Claude Code or Codex"):
        found(session / "context-intelligence" / "events.jsonl")


def test_loops_of_links_end(tmp_path: Path) -> None:
    session = write(tmp_path / "p" / "sessions" / "s1", "events.jsonl")
    (session / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(found(tmp_path)) == [("p", "s1", "events")]
    with pytest.raises(UserError, match="There is no file or folder"):
        found(tmp_path / "self")


def test_a_session_outside_of_a_sessions_folder_has_the_project_of_its_place(
    tmp_path: Path,
) -> None:
    write(tmp_path / "some" / "s1", "transcript.jsonl")
    assert names(found(tmp_path)) == [(slug(tmp_path / "some"), "s1", "transcript")]


def test_names_that_are_not_text_are_spelled_out(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pr\xff/sessions/s\xfe1"))
    write(folder, "events.jsonl")
    sources = found(tmp_path)
    assert names(sources) == [("pr%FF", "s%FE1", "events")]
    assert sources[0].path.read_text() == "{}\n"


def test_names_that_differ_only_in_bytes_that_are_not_text_stay_apart(tmp_path: Path) -> None:
    for raw in (b"\xfe", b"\xff"):
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/p/sessions/s" + raw)), "events.jsonl")
    assert [name for _, name, _ in names(found(tmp_path))] == ["s%FE", "s%FF"]


def test_pipes_and_dead_links_are_no_files(tmp_path: Path) -> None:
    session = write(tmp_path / "p" / "sessions" / "s1", "events.jsonl")
    os.mkfifo(session / "transcript.jsonl")
    (session / "metadata.json").symlink_to(tmp_path / "gone")
    assert names(found(tmp_path)) == [("p", "s1", "events")]
    assert [source.path.name for source in found(tmp_path, file_format="jsonl")] == ["events.jsonl"]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "p" / "sessions" / "s1", "events.jsonl")
    shut = write(tmp_path / "p" / "sessions" / "s2", "events.jsonl")
    real = os.scandir

    def scandir(path: str) -> object:  # root can read everything
        if str(path) == str(shut):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        assert names(found(tmp_path)) == [("p", "s1", "events")]
    assert str(shut) in caplog.text


def test_a_backup_stands_for_a_file_that_is_missing(tmp_path: Path) -> None:
    session = write(tmp_path / "p" / "sessions" / "s1", "metadata.json", "metadata.json.backup")
    write(session, "transcript.jsonl.backup")
    sources = found(tmp_path)
    assert [source.path.name for source in sources] == ["metadata.json", "transcript.jsonl.backup"]
    assert [source.file_name for source in sources] == ["metadata.json", "transcript.jsonl"]


# ------------------------------------------------------------ Claude Code

ONE = "0d3a8e6f-290f-4105-a327-a2496e5e2a83"
TWO = "12a546d1-83a7-49a6-abba-5400db340b43"


def test_claude_sessions_are_named_by_their_files_and_come_before_their_agents(
    tmp_path: Path,
) -> None:
    project = write(tmp_path / "projects" / "-srv-app", f"{ONE}.jsonl", "agent-7.jsonl")
    write(project, f"{TWO}.jsonl", "notes.jsonl", "other.json")
    inner = write(project / TWO / "subagents", "agent-9.jsonl", "agent-9.meta.json")
    write(inner / "workflows" / "wf_1", "agent-8.jsonl", "journal.jsonl")
    write(project / TWO / "tool-results", "output.jsonl")
    sources = found(tmp_path)
    assert names(sources) == [
        ("-srv-app", ONE, "transcript"),
        ("-srv-app", TWO, "transcript"),
        ("-srv-app", f"{TWO}_agent-8", "transcript"),
        ("-srv-app", f"{TWO}_agent-9", "metadata"),
        ("-srv-app", f"{TWO}_agent-9", "transcript"),
        ("-srv-app", f"{TWO}_workflows_wf_1_journal", "transcript"),
        ("-srv-app", "agent-7", "transcript"),
    ]
    assert {source.format for source in sources} == {"claude_code"}


def test_on_request_any_json_lines_file_is_claudes(tmp_path: Path) -> None:
    write(tmp_path / "copy", f"{ONE}.jsonl", "mine.jsonl")
    with pytest.raises(UserError, match="no sessions"):
        found(tmp_path)
    assert names(found(tmp_path, file_format="claude_code")) == [
        ("copy", ONE, "transcript"),
        ("copy", "mine", "transcript"),
    ]


# ------------------------------------------------------------ Codex


def rollout(
    folder: Path, first_line: str, name: str = f"rollout-2026-07-11T12-00-00-{ONE}"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text(first_line)
    return path


def test_a_rollout_is_named_by_its_id_and_has_the_project_of_its_directory(tmp_path: Path) -> None:
    day = tmp_path / "sessions" / "2026" / "07" / "11"
    rollout(day, '{"type":"session_meta","payload":{"id":"x","cwd":"/srv/caf\\u00e9"}}\n')
    rollout(tmp_path / "archived_sessions", '{"cwd" : "C:\\\\web"}\n', name="older")
    torn = rollout(tmp_path / "elsewhere", "torn", name=f"rollout-x-{TWO}")
    assert len(found(tmp_path)) == 2
    os.utime(torn, (0, 0))
    sources = found(tmp_path)
    assert names(sources) == [
        ("-", TWO, "transcript"),
        ("-C-web", "older", "transcript"),
        ("-srv-caf\u00e9", ONE, "transcript"),
    ]
    assert {source.format for source in sources} == {"codex"}


def test_a_rollout_keeps_its_project_while_it_grows(tmp_path: Path) -> None:
    path = rollout(tmp_path, "")
    with pytest.raises(UserError, match="no sessions"):
        found(path)
    path.write_text('{"type":"session_meta","payload":{"cw')
    with pytest.raises(UserError, match="no sessions"):
        found(path)
    path.write_text("")
    first = '{"type":"session_meta","payload":{"cwd":"/srv/app","base_instructions":"'
    for more in (first, "x" * 70_000, '"}}\n', '{"payload":{"cwd":"/other"}}\n'):
        with path.open("a") as file:
            file.write(more)
        assert names(found(path)) == [("-srv-app", ONE, "transcript")]


def test_a_rollout_that_is_being_archived_is_seen_once(tmp_path: Path) -> None:
    for folder in ("archived_sessions", "sessions/2026/07/11"):
        newest = rollout(tmp_path / folder, '{"cwd":"/srv/app"}\n')
        os.utime(newest)
        (source,) = found(tmp_path)
        assert source.path == newest


def test_a_rollout_that_was_compressed_is_the_same_session(tmp_path: Path) -> None:
    path = rollout(tmp_path / "sessions/2026/07/11", '{"cwd":"/srv/app"}\n')
    (plain,) = found(tmp_path)
    packed = path.with_name(f"{path.name}.zst")
    packed.write_bytes(zstandard.compress(path.read_bytes()))
    assert found(tmp_path) == [plain]
    path.unlink()
    (source,) = found(tmp_path)
    assert source == dataclasses.replace(plain, path=packed)
    assert source.file_name == path.name


def test_a_rollout_that_is_archived_and_compressed_at_once_is_its_plain_file(
    tmp_path: Path,
) -> None:
    path = rollout(tmp_path / "sessions/2026/07/11", '{"cwd":"/srv/app"}\n')
    archived = tmp_path / "archived_sessions" / f"{path.name}.zst"
    archived.parent.mkdir()
    archived.write_bytes(zstandard.compress(path.read_bytes()))
    assert [source.path for source in found(tmp_path)] == [path]


def test_a_damaged_compressed_rollout_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / f"rollout-x-{TWO}.jsonl.zst"
    path.write_bytes(b"damaged")
    assert names(found(tmp_path)) == [("-", TWO, "transcript")]


# ------------------------------------------------------------ JSON Lines


def test_on_request_any_json_lines_file_is_a_transcript(tmp_path: Path) -> None:
    write(tmp_path / "logs", "a.jsonl", "a.jsonl.zst", "b.ndjson", "c.txt")
    write(tmp_path / "logs" / "deep", "a.jsonl", "events.jsonl")
    outer, inner = slug(tmp_path / "logs"), slug(tmp_path / "logs" / "deep")
    sources = found(tmp_path, file_format="jsonl")
    assert names(sources) == [
        (outer, "a", "transcript"),
        (outer, "b.ndjson", "transcript"),
        (inner, "a", "transcript"),
        (inner, "events", "transcript"),
    ]
    assert {source.format for source in sources} == {"jsonl"}


def test_files_of_an_unknown_tool_are_what_the_configuration_says(tmp_path: Path) -> None:
    home = write(tmp_path / "tool", "a.jsonl", "notes.txt")
    write(home / "deep", "a.jsonl", "transcript.jsonl")
    write(tmp_path / "loose", "other.jsonl", "b.log")
    described = [
        JsonLines(paths=(home,), project="tool", fields=Fields(time="at")),
        JsonLines(paths=(tmp_path / "loose" / "b.log", tmp_path), fields=Fields(time="t")),
    ]
    sources = discover([tmp_path], USER, None, described[:1])
    assert names(sources) == [
        ("tool", "a", "transcript"),
        ("tool", "deep_a", "transcript"),
        ("tool", "deep_transcript", "transcript"),
    ]
    assert {source.fields for source in sources} == {(("time", "at"),)}
    (named,) = discover([tmp_path / "loose" / "b.log"], USER, None, described)
    assert (named.key.session_id, named.fields) == ("b.log", (("time", "t"),))
    (asked,) = discover([home / "a.jsonl"], USER, "jsonl", described)
    assert asked.key.project_slug == "tool"
    assert len(discover([tmp_path], USER, "jsonl", described)) == 4
    others = discover([home / "a.jsonl"], USER, "claude_code", described)
    assert [(source.format, source.fields) for source in others] == [("claude_code", ())]


def test_a_file_that_is_named_may_end_in_anything(tmp_path: Path) -> None:
    write(tmp_path, "dump.log")
    (source,) = found(tmp_path / "dump.log", file_format="jsonl")
    assert source.key.session_id == "dump.log"


def test_one_file_has_one_key_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "logs", "a.jsonl")
    write(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    keys = {
        discover([path], USER, "jsonl")[0].key
        for path in (tmp_path, Path("../logs"), Path("../logs/a.jsonl"), Path("../work/../logs"))
    }
    assert len(keys) == 1


# ------------------------------------------------------------ refusals


def test_of_two_files_of_one_stream_one_is_found_and_the_other_named(tmp_path: Path) -> None:
    for home in ("one", "two"):
        write(tmp_path / home / "projects" / "-p" / "sessions" / "s1", "events.jsonl")
    problems: list[str] = []
    (source,) = discover([tmp_path], USER, None, problem=problems.append)
    (said,) = problems
    assert source.path.is_relative_to(tmp_path / "one")
    assert said.startswith(f"{tmp_path / 'two'}/")
    assert said.endswith(f"it is the same stream as {source.path}")


def test_what_cannot_be_looked_into_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = write(tmp_path / "home" / "p" / "sessions" / "s1", "events.jsonl")
    shut = tmp_path / "shut" / "home"
    real = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:  # root can look into everything
        if path == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    for find in (discover, look):
        problems: list[str] = []
        (source,) = find([shut, tmp_path / "home"], USER, None, problem=problems.append)
        assert source.path == session / "events.jsonl"
        assert problems == [f"{shut}: Permission denied"]
    with pytest.raises(UserError, match="Permission denied"):
        discover([shut], USER, None)


def test_sub_agents_in_very_deep_folders_keep_names_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "projects" / "-srv-app" / ONE / "subagents"
    for name in ("a" * 240, "b" * 240, "c" * 240, "d" * 240, "e" * 240):
        folder /= name
    write(folder, "journal.jsonl", "other.jsonl", "agent-1.meta.json")
    sources = found(tmp_path)
    assert len({source.key for source in sources}) == 3
    assert all(len(source.key.session_id) <= 1024 for source in sources)


def test_a_key_that_cannot_be_is_named_and_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path / "p" / "sessions" / "s1", "events.jsonl")
    bad = write(tmp_path / "bad", "a.jsonl") / "a.jsonl"
    described = [JsonLines(paths=(bad,), project="nul\0")]
    problems: list[str] = []
    (source,) = discover([tmp_path], USER, None, described, problems.append)
    assert source.key.session_id == "s1"
    assert problems == [f"{bad}: project_slug holds a NUL character, which not every store takes."]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file or folder .*gone"):
        found(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no sessions of .* below .*--format jsonl"):
        found(tmp_path)
    with pytest.raises(UserError, match=r"no \.jsonl files below"):
        found(tmp_path, file_format="jsonl")


def test_the_tools_own_folders_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    monkeypatch.delenv("CODEX_HOME", raising=False)
    assert default_paths() == []
    homes = (".amplifier", ".claude/projects", ".codex/sessions", ".codex/archived_sessions")
    for home in homes:
        (tmp_path / home).mkdir(parents=True)
    assert default_paths() == [tmp_path / home for home in homes]
    assert default_paths("codex") == [tmp_path / home for home in homes[2:]]


def test_tools_that_were_moved_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "c"))
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "x"))
    for home in ("c/projects", "x/sessions"):
        (tmp_path / home).mkdir(parents=True)
    assert default_paths() == [tmp_path / "c" / "projects", tmp_path / "x" / "sessions"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/srv/app/api", "-srv-app-api"), ("/", "-"), ("C:\\work", "-C-work"), ("/a:b", "-ab")],
)
def test_slugs_are_those_of_amplifier(folder: str, name: str) -> None:
    assert slug(Path(folder)) == name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("C:\\projects\\web-app", "-C-projects-web-app"),
        ("\\\\?\\C:\\projects\\web-app", "-C-projects-web-app"),
        ("\\\\server\\share\\app", "--server-share-app"),
    ],
)
def test_a_windows_folder_is_named_so_too(folder: str, name: str) -> None:
    assert slug(folder) == name


def test_folders_too_deep_for_a_key_keep_names_of_their_own(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["some-long-folder-name"] * 60)
    one, other = slug(deep / "a" / ("x" * 200)), slug(deep / "b" / ("x" * 200))
    assert one != other
    assert max(len(one), len(other)) < 300
