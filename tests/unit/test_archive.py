"""Objects are written once, found below their folder, and never outside the root."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from sessionferry.archive import (
    Archive,
    ArchivedObject,
    batch_key,
    hydrate,
    inbox_key,
    stream_folder,
    unattributed_key,
)
from sessionferry.documents import payload_ref
from sessionferry.errors import ArchiveMismatch, TransientError, UserError
from sessionferry.identity import SessionKey, session_folder
from support.strategies import batch, header, session_keys

KEY = "u/p/s.0123456789ab/events/0000000000000000/lines/000000000000000-1-ab=2F+c@d"


@pytest.fixture(params=["memory", "file"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    if request.param == "memory":
        return Archive.open("memory:///")
    return Archive.open(f"file://{tmp_path}/some%20where/deep")


async def listed(archive: Archive, folder: str) -> list[ArchivedObject]:
    return sorted([found async for found in archive.objects(folder)])


async def test_what_was_put_can_be_got_and_listed(archive: Archive) -> None:
    await archive.put(KEY, b"bytes")
    assert await archive.get(KEY) == b"bytes"
    (found,) = await listed(archive, "u/p/s.0123456789ab")
    assert found[:2] == (KEY, 5)
    assert abs(datetime.now(UTC) - found.written_at) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "url", ["https://nohost.invalid/inbox?sig=key", "http://user:key@127.0.0.1/x", "what://x"]
)
def test_a_url_of_no_object_store_is_a_sentence_without_its_key(url: str) -> None:
    with pytest.raises(UserError) as told:
        Archive.open(url)
    assert "key" not in str(told.value)


async def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        Archive.open("file:///dev/null/inbox")
    with pytest.raises(TransientError, match="cannot be made"):
        Archive.open("file:///proc/nope")


async def test_putting_again_changes_nothing(archive: Archive) -> None:
    await archive.put(KEY, b"first")
    await archive.put(KEY, b"first")
    await archive.put(KEY, b"second")
    assert await archive.get(KEY) == b"first"


async def test_an_empty_object_is_an_object(archive: Archive) -> None:
    await archive.put(KEY, b"")
    assert await archive.get(KEY) == b""


async def test_a_folder_holds_what_is_below_it_and_not_what_is_beside_it(archive: Archive) -> None:
    for key in ("a/b/1", "a/b/c/2", "a/bc/3", "a/b.x/4", "d/5"):
        await archive.put(key, b"x")
    assert [found.key for found in await listed(archive, "a/b")] == ["a/b/1", "a/b/c/2"]
    assert await listed(archive, "nothing/here") == []


async def test_more_objects_than_one_page_are_listed(archive: Archive) -> None:
    keys = [f"many/{number:03d}" for number in range(120)]
    for key in keys:
        await archive.put(key, b"x")
    assert [found.key for found in await listed(archive, "many")] == keys


async def test_deleting_is_harmless_where_there_is_nothing(archive: Archive) -> None:
    await archive.put("a/1", b"x")
    await archive.put("a/2", b"x")
    await archive.delete(["a/1", "a/1", "none", "none/none"])
    assert [found.key for found in await listed(archive, "a")] == ["a/2"]


async def test_deleting_a_folder_leaves_its_neighbours(archive: Archive) -> None:
    for key in ("a/b/1", "a/b/c/2", "a/bc/3"):
        await archive.put(key, b"x")
    await archive.delete_folder("a/b")
    await archive.delete_folder("a/b")
    assert [found.key for found in await listed(archive, "a")] == ["a/bc/3"]


async def test_an_object_that_was_deleted_can_be_put_again(archive: Archive) -> None:
    await archive.put(KEY, b"first")
    await archive.delete([KEY])
    await archive.put(KEY, b"second")
    assert await archive.get(KEY) == b"second"


async def test_a_missing_object_is_a_mismatch_that_names_it(archive: Archive) -> None:
    with pytest.raises(ArchiveMismatch, match="no archived object a/none"):
        await archive.get("a/none")


async def test_a_folder_that_refuses_is_a_passing_fault(tmp_path: Path) -> None:
    archive = Archive.open(f"file://{tmp_path}")
    await archive.put("a/file", b"x")
    with pytest.raises(TransientError, match="did not take"):
        await archive.put("a/file/below", b"x")


def test_an_archives_folder_is_the_users_alone(tmp_path: Path) -> None:
    Archive.open(f"file://{tmp_path}/new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("url", ["nonsense", "ftp://x/y", "", "http2:///"])
def test_an_unusable_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="not usable"):
        Archive.open(url)


# ---------------------------------------------------------------- keys


SESSION = SessionKey("user-123", "my-project", "sess-abc")
HASH = hashlib.sha256(b"x").hexdigest()
VARIANTS: list[dict[str, Any]] = [
    {},
    {"generation": 1},
    {"offset": 5},
    {"stream": "transcript"},
    {"kind": "tail"},
    {"kind": "tail", "offset": 5},
    {"kind": "metadata", "stream": None},
    {"kind": "metadata", "stream": None, "revision": 2**60},
    {"session_id": "sess-abd"},
    {"session_id": "SESS-ABC"},
]


def test_every_kind_and_place_has_its_own_key() -> None:
    keys = [batch_key(header(**changes), HASH) for changes in VARIANTS]
    keys += [inbox_key(header(**changes), HASH) for changes in ({}, {"kind": "tail"})]
    keys += [unattributed_key(HASH), f"{session_folder(SESSION)}/messages/{HASH}"]
    assert len({key.lower() for key in keys}) == len(keys)
    # On a disk a file is no folder: no key may lie below another.
    assert not any(one != other and other.startswith(f"{one}/") for one in keys for other in keys)


def test_batches_of_a_stream_are_listed_in_the_order_of_the_file() -> None:
    offsets = [0, 9, 10, 99_999, 10**14]
    keys = [batch_key(header(offset=offset), HASH) for offset in offsets]
    assert sorted(keys) == keys
    folder = stream_folder(SESSION, "events", 0)
    assert all(key.startswith(f"{folder}/") for key in keys)


def test_other_bytes_at_the_same_place_have_another_key() -> None:
    one, other = batch(b"{}\n"), batch(b"[]\n")
    assert batch_key(one.header, one.id) != batch_key(other.header, other.id)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("crafted", ["..", "../..", "/etc", "a/../../b", "..\\..", "~", "."])
@pytest.mark.parametrize(
    "place",
    [
        lambda key: batch_key(header(**key), HASH),
        lambda key: inbox_key(header(**key), HASH),
        lambda key: f"{session_folder(SessionKey(**key))}/messages/{HASH}",
    ],
)
async def test_crafted_ids_stay_below_the_root(
    tmp_path: Path, crafted: str, place: Callable[[dict[str, str]], str]
) -> None:
    root = tmp_path / "outer" / "root"
    archive = Archive.open(f"file://{root}")
    key = place(dict.fromkeys(("user_id", "project_slug", "session_id"), crafted))
    await archive.put(key, b"x")
    assert await archive.get(key) == b"x"
    assert files_below(tmp_path) == [root / key]


@given(session_keys)
def test_keys_of_any_session_are_accepted_by_every_object_store(key: SessionKey) -> None:
    changes = {"user_id": key.user_id, "project_slug": key.project_slug}
    found = batch_key(header(session_id=key.session_id, **changes), HASH)
    assert found.isascii()
    assert len(found) <= 1024
    assert not any(piece in {"", ".", ".."} for piece in found.split("/"))


async def test_hydrate_finds_what_a_user_named_like_the_unattributed_folder_sent() -> None:
    archive = Archive.open("memory:///")
    key = SessionKey("_unattributed", "p", "s")
    place = f"{session_folder(key)}/messages/{HASH}"
    await archive.put(place, b"x")
    reference = payload_ref(place, 0, 1, hashlib.sha256(b"x").digest()) | {"raw": True}
    own = {"user_id": "_unattributed", "project_slug": "p", "session_id": "s"}
    assert await hydrate(archive, own | {"payload_ref": reference}) == b"x"


@pytest.mark.parametrize("url", ["file://C:/ferry/archive", "file://server/share", "file://here"])
def test_a_file_url_with_a_host_is_refused_rather_than_misread(url: str) -> None:
    with pytest.raises(UserError, match="file:///C:/folder"):
        Archive.open(url)
