"""The sessions document: what dashboards read, derived from heads and metadata alone."""

import hashlib
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionferry.archive import Archive, batch_key, hydrate
from sessionferry.batch import encode
from sessionferry.coverage import Coverage
from sessionferry.documents import COSMOS_KEYS, Facts
from sessionferry.errors import ItemChanged
from sessionferry.formats.meaning import COST_SCALE, Usage
from sessionferry.heads import Delivery, Head, Metadata, Tail, delete, merge, prune
from sessionferry.identity import SessionKey
from sessionferry.projection import OUR_KEYS, parse_metadata, project
from support.strategies import batch, json_values


class Item(NamedTuple):
    document: dict[str, Any]
    etag: str


class Sessions:
    """The two calls that a projection makes of a store; another writer may come first."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.writes = 0
        self.rivals: list[tuple[Head, Archive]] = []

    async def read_item(self, container: str, partition: str, item_id: str) -> Item | None:
        assert container == "sessions"
        return self.items.get((partition, item_id))

    async def write_item(self, container: str, document: dict[str, Any], etag: str | None) -> str:
        if self.rivals:
            head, archive = self.rivals.pop()
            await project(self, archive, head, "rival")  # type: ignore[arg-type]
        place = (document["user_id"], document["id"])
        known = self.items.get(place)
        if (known.etag if known else None) != etag:
            raise ItemChanged
        self.writes += 1
        self.items[place] = Item(orjson.loads(orjson.dumps(document)), str(self.writes))
        return str(self.writes)

    @property
    def only(self) -> dict[str, Any]:
        (item,) = self.items.values()
        return item.document


@pytest.fixture
def archive() -> Archive:
    return Archive.open("memory:///")


async def projected(archive: Archive, *heads: Head, host_id: str = "host-9") -> dict[str, Any]:
    store = Sessions()
    for head in heads:
        await project(store, archive, head, host_id)  # type: ignore[arg-type]
    return store.only


def head_of(project_slug: str = "my-project", version: int = 1) -> Head:
    key = SessionKey("user-123", project_slug, "sess-abc")
    return Head.new(key).model_copy(update={"head_version": version})


async def with_metadata(
    archive: Archive, head: Head, payload: bytes, revision: int = 1, *, valid: bool = True
) -> Head:
    """Archive a metadata file, and merge it into a head."""
    place = {"project_slug": head.project_slug, "revision": revision, "line_count": 0}
    sent = batch(payload, kind="metadata", stream=None, **place)
    key = batch_key(sent.header, sent.id)
    await archive.put(key, encode(sent))
    found = Metadata(
        revision=revision,
        sha256=hashlib.sha256(payload).hexdigest(),
        length=len(payload),
        archive_key=key,
        host_id="host-1",
        valid=valid,
    )
    return merge(head, [], [found])


def facts(sequence: int, **more: Any) -> Facts:
    return Facts(sequence, bytes(32), 10, **more)


def times(first: str, last: str) -> list[Facts]:
    return [facts(0, occurred_at=first), facts(1, occurred_at=last)]


async def test_a_session_document_sums_both_streams(archive: Archive) -> None:
    usage = Usage(1, 2, 3, 4)
    events = [
        facts(0, usage=usage, cost=COST_SCALE // 10, occurred_at="2026-01-02"),
        facts(1, usage=usage, cost=COST_SCALE // 5, truncated=True, lifecycle="session:start"),
        facts(4, repaired=True),
    ]
    tail = Tail(offset=99, length=5, sequence=5, sha256="a", archive_key="k")
    head = merge(
        head_of(),
        [
            Delivery(
                *("events", 0, events, [2], [1]),
                tail=tail,
                format="amplifier",
            ),
            Delivery("transcript", 0, stored=times("2026-01-01", "2026-01-03")),
        ],
    )
    found = await projected(archive, head)
    assert (found["event_count"], found["message_count"]) == (3, 2)
    assert (found["first_time"], found["last_time"]) == ("2026-01-01", "2026-01-03")
    assert found["usage"] == {"input": 2, "output": 4, "cache_read": 6, "cache_write": 8}
    assert found["cost_usd"] == "0.3"
    (entry,) = found["projects"]
    assert entry["events"] == {
        "generation": 0,
        "format": "amplifier",
        "stored": 3,
        "quarantined": 1,
        "conflicts": 1,
        "truncated": 1,
        "repaired": 1,
        "superseded": 0,
        "missing": 1,
        "line_bytes": 30,
        "tail_bytes": 5,
        "first_time": "2026-01-02",
        "last_time": "2026-01-02",
        "usage": {"input": 2, "output": 4, "cache_read": 6, "cache_write": 8},
        "cost_usd": "0.3",
        "lifecycle": {"sequence": 1, "event": "session:start", "occurred_at": None},
    }


async def test_a_session_without_metadata_is_a_document_all_the_same(archive: Archive) -> None:
    found = await projected(archive, head_of())
    assert (found["id"], found["user_id"], found["session_id"]) == (
        "sess-abc",
        "user-123",
        "sess-abc",
    )
    assert (found["host_id"], found["metadata"], found["deleted"]) == ("host-9", None, False)
    assert found["event_count"] == 0


async def test_the_metadatas_fields_stand_at_top_level(archive: Archive) -> None:
    head = await with_metadata(archive, head_of(), b'{"model":"m","turn_count":7,"x":{"y":[1]}}')
    found = await projected(archive, head)
    assert (found["model"], found["turn_count"], found["x"]) == ("m", 7, {"y": [1]})
    assert found["host_id"] == "host-1"
    assert found["metadata"]["revision"] == 1
    assert "shadowed" not in found


@pytest.mark.parametrize("key", sorted(OUR_KEYS))
async def test_metadata_never_overrides_what_is_ours(archive: Archive, key: str) -> None:
    plain = await projected(archive, await with_metadata(archive, head_of(), b"{}"))
    payload = orjson.dumps({key: "mine"})
    found = await projected(archive, await with_metadata(archive, head_of(), payload))
    assert found["shadowed"] == {key: "mine"}
    varying = {"shadowed", "synced_at", "metadata", "projects"}
    assert {k: v for k, v in found.items() if k not in varying} == {
        k: v for k, v in plain.items() if k not in varying
    }
    assert not (COSMOS_KEYS & found.keys())


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.sampled_from([*sorted(OUR_KEYS), "a", "b"]),
        json_values.filter(lambda value: value is not None),
        max_size=5,
    )
)
async def test_a_later_projection_shows_the_same_metadata_without_reading_it_again(
    fields: dict[str, Any],
) -> None:
    archive = Archive.open("memory:///")
    head = await with_metadata(archive, head_of(), orjson.dumps(fields))
    once = await projected(archive, head)
    twice = await projected(archive, head, head.model_copy(update={"head_version": 2}))
    changing = {"synced_at", "projects"}
    assert {k: v for k, v in once.items() if k not in changing} == {
        k: v for k, v in twice.items() if k not in changing
    }
    aside = once.get("shadowed", {})
    assert all(aside.get(key, once.get(key)) == value for key, value in fields.items())


async def test_an_older_or_equal_head_version_changes_nothing(archive: Archive) -> None:
    store = Sessions()
    newer = merge(head_of(version=5), [Delivery("events", 0, stored=[facts(0)])])
    for head in (newer, head_of(version=4), newer):
        await project(store, archive, head, "h")  # type: ignore[arg-type]
    assert store.writes == 1
    assert store.only["event_count"] == 1


async def test_a_rival_that_wrote_a_newer_version_first_wins(archive: Archive) -> None:
    store = Sessions()
    newer = merge(head_of(version=5), [Delivery("events", 0, stored=[facts(0)])])
    store.rivals = [(newer, archive)]
    await project(store, archive, head_of(version=4), "h")  # type: ignore[arg-type]
    assert store.only["event_count"] == 1
    assert store.writes == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_session_in_two_projects_shows_the_newer_metadata_and_lists_both(
    archive: Archive, order: tuple[int, int]
) -> None:
    heads = [
        merge(head_of(name), [Delivery("events", 0, stored=[facts(0)])]) for name in ("a", "b")
    ]
    heads[0] = await with_metadata(archive, heads[0], b'{"name":"new"}', revision=2)
    heads[1] = await with_metadata(archive, heads[1], b'{"name":"old"}', revision=1)
    found = await projected(archive, *(heads[at] for at in order))
    assert (found["name"], found["project_slug"]) == ("new", "a")
    assert [entry["project_slug"] for entry in found["projects"]] == ["a", "b"]
    assert found["event_count"] == 2


async def test_a_deleted_session_shows_nothing_of_what_it_held(archive: Archive) -> None:
    head = merge(head_of(), [Delivery("events", 0, stored=[facts(0)])])
    head = await with_metadata(archive, head, b'{"name":"secret"}')
    gone = delete(head, "2026-07-01").model_copy(update={"head_version": 2})
    found = await projected(archive, head, gone)
    assert found["deleted"] is True
    assert (found["event_count"], found["metadata"]) == (0, None)
    assert "name" not in found


async def test_deleting_in_one_project_leaves_the_other(archive: Archive) -> None:
    kept = await with_metadata(archive, head_of("a"), b'{"name":"kept"}', revision=1)
    other = await with_metadata(archive, head_of("b"), b'{"name":"gone"}', revision=2)
    gone = delete(other, "2026-07-01").model_copy(update={"head_version": 2})
    found = await projected(archive, kept, other, gone)
    assert (found["deleted"], found["name"], found["project_slug"]) == (False, "kept", "a")


async def test_pruned_lines_stay_counted(archive: Archive) -> None:
    head = merge(head_of(), [Delivery("events", 0, stored=[facts(0), facts(1)])])
    found = await projected(archive, prune(head, "events", Coverage.of((0, 0))))
    assert found["event_count"] == 2


async def test_metadata_over_1_9_mb_is_cut_to_what_people_search_for(archive: Archive) -> None:
    fields = {"name": "n", "description": "d" * 9_000, "config": "x" * 2_000_000}
    found = await projected(archive, await with_metadata(archive, head_of(), orjson.dumps(fields)))
    assert found["data_truncated"] is True
    assert found["name"] == "n"
    assert not {"config", "description"} & found.keys()
    assert len(orjson.dumps(found)) < 10_000
    assert await hydrate(archive, found) == orjson.dumps(fields)


async def test_metadata_that_is_broken_or_gone_shows_no_fields(archive: Archive) -> None:
    broken = await with_metadata(archive, head_of(), b"{", valid=False)
    assert (await projected(archive, broken))["metadata"]["valid"] is False
    head = await with_metadata(archive, head_of(), b'{"name":"n"}')
    assert head.metadata is not None
    await archive.delete([head.metadata.archive_key])
    assert "name" not in await projected(archive, head)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{\r\n "a": 1\r\n}', {"a": 1}),
        (b"{}", {}),
        *[(bad, None) for bad in (b"", b"{", b"[]", b"null", b'{"a":NaN}', b'{"a":"\xff"}')],
        (b'{"a":' * 100 + b"1" + b"}" * 100, "anything"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, None),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, None),
    ],
)
def test_metadata_is_a_json_object_of_bounded_depth(payload: bytes, expected: object) -> None:
    found = parse_metadata(payload)
    assert (found is not None) if expected == "anything" else (found == expected)


@given(st.binary(max_size=60))
def test_reading_metadata_never_fails(payload: bytes) -> None:
    found = parse_metadata(payload)
    assert found is None or isinstance(found, dict)


# ---------------------------------------------------------------- what lines say


def saying(head: Head, sequence: int = 0, **about: str) -> Head:
    return merge(head, [Delivery("transcript", 0, stored=[facts(sequence, about=about)])])


def at(version: int, head: Head) -> Head:
    return head.model_copy(update={"head_version": version})


async def test_a_session_without_metadata_shows_what_its_lines_say(archive: Archive) -> None:
    head = saying(head_of(), working_dir="/srv/app", parent_id="p", unheard_of="x")
    found = await projected(archive, head)
    assert (found["working_dir"], found["parent_id"]) == ("/srv/app", "p")
    assert "unheard_of" not in found
    (entry,) = found["projects"]
    assert entry["about"] == {"working_dir": "/srv/app", "parent_id": "p"}


async def test_a_session_is_not_its_own_parent(archive: Archive) -> None:
    assert "parent_id" not in await projected(archive, saying(head_of(), parent_id="sess-abc"))


async def test_a_metadata_file_knows_better_than_lines(archive: Archive) -> None:
    store = Sessions()
    head = saying(head_of(), name="theirs", model="one")
    await project(store, archive, head, "h")  # type: ignore[arg-type]
    head = await with_metadata(archive, at(2, head), b'{"name":"Porting","x":1}')
    await project(store, archive, head, "h")  # type: ignore[arg-type]
    assert (store.only["name"], store.only["model"], store.only["x"]) == ("Porting", "one", 1)
    head = saying(at(3, head), 1, name="another", model="two")
    await project(store, archive, head, "h")  # type: ignore[arg-type]
    assert (store.only["name"], store.only["model"], store.only["x"]) == ("Porting", "two", 1)


async def test_of_two_projects_the_one_of_the_latest_line_is_shown(archive: Archive) -> None:
    late = merge(
        head_of("a"), [Delivery("transcript", 0, stored=times("2026-01-01", "2026-01-09"))]
    )
    early = merge(
        head_of("b"), [Delivery("transcript", 0, stored=times("2026-01-02", "2026-01-03"))]
    )
    heads = [saying(late, 5, working_dir="/late"), saying(early, 5, working_dir="/early")]
    for order in (heads, heads[::-1]):
        assert (await projected(archive, *order))["working_dir"] == "/late"
