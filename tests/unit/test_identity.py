"""Keys and ids: the documented format where it is safe, and never shared by two sessions."""

import re
import unicodedata
from hashlib import sha256

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sessionferry.errors import BadIdentity
from sessionferry.identity import (
    STREAMS,
    UNATTRIBUTED,
    SessionKey,
    Stream,
    escape,
    line_id,
    line_id_prefix,
    session_folder,
)
from support.strategies import NASTY, parts, session_keys

FORBIDDEN_IN_IDS = re.compile(r"[/\\?#\x00-\x1f\x7f]")
streams = st.sampled_from(STREAMS)
generations = st.sampled_from([0, 1, 3, 10, 2**53 - 1])
sequences = st.integers(0, 10**9 - 1)


def test_a_partition_key_is_the_documented_one() -> None:
    key = SessionKey("user-123", "my-project", "sess-abc")
    assert key.partition_key == "user-123|my-project|sess-abc"


@given(session_keys)
def test_whose_a_partition_key_is_can_be_read_off_it(key: SessionKey) -> None:
    # A doubled sign stands where a part was too long.
    is_whole = "%%" not in key.partition_key
    assert SessionKey.of(key.partition_key) == (key if is_whole else None)


@pytest.mark.parametrize(
    ("stream", "generation", "sequence", "expected"),
    [
        ("events", 0, 0, "sess-abc_evt_0"),
        ("transcript", 0, 0, "sess-abc_msg_0"),
        ("events", 3, 7, "sess-abc~3_evt_7"),
        ("transcript", 1, 12, "sess-abc~1_msg_12"),
    ],
)
def test_a_line_id_is_the_documented_one(
    stream: Stream, generation: int, sequence: int, expected: str
) -> None:
    assert line_id("sess-abc", stream, generation, sequence) == expected


@pytest.mark.parametrize(
    "part",
    [
        "1d2dea08-9a63-4ecf-bc4b-ee25a852a4d8",
        "0000000000000000-fedcba0987654321_analyzer",
        "0000000000000000-fedcba0987654321_foundation:zen-architect",
        "-srv-app-api",
        "me@laptop.local",
        "Jos\u00e9 Mu\u00f1oz",
    ],
)
def test_ordinary_parts_stay_as_they_are(part: str) -> None:
    assert escape(part) == part


@settings(max_examples=150)
@given(session_keys, session_keys)
@example(SessionKey("a|b", "c", "d"), SessionKey("a", "b|c", "d"))
@example(SessionKey("a", "b", "%7C"), SessionKey("a", "b", "|"))
@example(SessionKey("a", "b", "=2E"), SessionKey("a", "b", "."))
@example(SessionKey("a", "b", "caf\u00e9"), SessionKey("a", "b", "cafe\u0301"))
def test_two_sessions_never_share_a_key_or_a_folder(one: SessionKey, other: SessionKey) -> None:
    assume(one != other)
    assert one.partition_key != other.partition_key
    assert session_folder(one) != session_folder(other)


@pytest.mark.parametrize(
    ("part", "escaped"),
    [(".", "%2E"), ("..", "%2E."), ("...", "..."), (".a", ".a"), ("a..", "a..")],
)
def test_a_part_is_never_a_folder_to_those_who_make_a_path_of_it(part: str, escaped: str) -> None:
    assert escape(part) == escaped


def test_no_two_nasty_parts_escape_to_the_same_text() -> None:
    assert len({escape(part) for part in NASTY}) == len(set(NASTY))
    folders = {session_folder(SessionKey(part, "p", "s")).split("/")[0] for part in NASTY}
    assert len(folders) == len(set(NASTY))


@given(parts, parts)
def test_a_part_never_escapes_to_what_another_part_is(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) is (one == other)


def test_a_short_part_cannot_be_made_to_look_like_a_shortened_one() -> None:
    numbered = (f"{'x' * 250}{number}" for number in range(10_000))
    long = next(part for part in numbered if sha256(part.encode()).hexdigest().startswith("23"))
    digest = sha256(long.encode()).hexdigest()[:32]
    start = escape(long).partition("%")[0]
    assert escape("#") == "%23"
    assert escape(f"{start}#{digest[2:]}") != escape(long)


@given(session_keys)
@example(SessionKey("\U0001f600" * 200, "\U0001f600" * 200, "\U0001f600" * 200))
@example(SessionKey("\u4e2d" * 200, "\u4e2d" * 200, "\u4e2d" * 200))
@example(SessionKey("|" * 1024, "|" * 1024, "\U0001f600" * 256))
def test_keys_and_ids_stay_within_what_cosmos_takes(key: SessionKey) -> None:
    longest = line_id(key.session_id, "transcript", 2**53 - 1, 10**9 - 1)
    for name in (longest, escape(key.session_id)):
        assert not FORBIDDEN_IN_IDS.search(name)
        assert len(name.encode()) <= 1023
        assert name.strip(" ") == name
    assert len(key.partition_key.encode()) <= 2048
    assert key.partition_key.count("|") == 2


@given(parts, streams, generations, sequences, sequences)
def test_a_line_id_is_its_prefix_and_its_sequence(
    session_id: str, stream: Stream, generation: int, one: int, other: int
) -> None:
    prefix = line_id_prefix(session_id, stream, generation)
    assert line_id(session_id, stream, generation, one) == f"{prefix}{one}"
    assert (line_id(session_id, stream, generation, other) == f"{prefix}{one}") is (one == other)


@given(
    parts,
    st.tuples(streams, generations, sequences),
    st.tuples(streams, generations, sequences),
)
def test_within_a_session_different_lines_have_different_ids(
    session_id: str, one: tuple[Stream, int, int], other: tuple[Stream, int, int]
) -> None:
    assert (line_id(session_id, *one) == line_id(session_id, *other)) is (one == other)


@settings(max_examples=100)
@given(session_keys)
def test_folders_are_plain_file_names_of_every_platform(key: SessionKey) -> None:
    folder = session_folder(key)
    pieces = folder.split("/")
    assert folder.isascii()
    assert len(pieces) == 3
    for piece in pieces:
        assert re.fullmatch(r"[A-Za-z0-9_.@+=-]+", piece)
        assert piece not in {".", ".."}
        assert not piece.startswith(".")
        assert len(piece) < 255


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms_stay_apart_and_folders_do_not_depend_on_them(form: str) -> None:
    part = unicodedata.normalize("NFC", "\u00c5ngstr\u00f6m \ufb01")
    other = unicodedata.normalize(form, part)
    one, two = (SessionKey("u", "p", text) for text in (part, other))
    assert (one.partition_key == two.partition_key) is (part == other)
    assert (session_folder(one) == session_folder(two)) is (part == other)


def test_folders_stay_apart_where_case_is_ignored() -> None:
    upper, lower = (session_folder(SessionKey("U", "P", text)) for text in ("ABC", "abc"))
    assert upper.lower() != lower.lower()


def test_no_user_shares_the_folder_of_what_cannot_be_attributed() -> None:
    assert session_folder(SessionKey(UNATTRIBUTED, "p", "s")).startswith("=5Funattributed/")


PARTS_BY_NAME = ("user_id", "project_slug", "session_id")


@pytest.mark.parametrize("name", PARTS_BY_NAME)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is empty."),
        ("x" * 1025, "has 1025 bytes; at most 1024 are allowed."),
        ("\u4e2d" * 342, "has 1026 bytes; at most 1024 are allowed."),
        ("a\ud800b", "is not valid text (it holds a lone surrogate)."),
        ("a\x00b", "holds a NUL character, which not every store takes."),
    ],
)
def test_parts_that_cannot_be_used_are_refused_by_name(name: str, value: str, why: str) -> None:
    with pytest.raises(BadIdentity, match=rf"^{name} {re.escape(why)}$"):
        SessionKey(**dict.fromkeys(PARTS_BY_NAME, "x") | {name: value})


@given(parts)
def test_every_nasty_part_is_accepted(part: str) -> None:
    assert SessionKey(part, part, part).partition_key
