"""What every store must do, held by one suite against each implementation."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessionferry.batch import Header
from sessionferry.coverage import Coverage
from sessionferry.documents import Document, DocumentBuilder, Facts, Position
from sessionferry.errors import ItemChanged, PermanentError, UserError
from sessionferry.identity import SessionKey, Stream, escape
from sessionferry.store import PARTITION_FIELD, EventFilter, ItemContainer, Page, Store
from sessionferry.store.cosmos.store import CosmosStore
from sessionferry.store.sql import SqlStore
from support import cosmos_stores

KEY = SessionKey("ada", "analytical-engine", "s1")
OTHER = SessionKey("ada", "analytical-engine", "s2")
CONTAINERS: tuple[ItemContainer, ...] = ("heads", "sessions", "hosts", "attempts")
HARD_KEYS = [
    "o'brien",
    '"double"',
    "100%s %(x)s :y",
    "naïve 日本 🚢",
    "a|b\\c",
    " spaced ",
    "NULL",
    "-- x",
]


async def _sqlite_file(request: pytest.FixtureRequest) -> Store:
    folder = request.getfixturevalue("tmp_path")
    return SqlStore.open(f"sqlite:///{folder / 'store.db'}")


async def _sqlite_memory(request: pytest.FixtureRequest) -> Store:
    return SqlStore.open("sqlite://")


async def _postgres(request: pytest.FixtureRequest) -> Store:
    return SqlStore.open(request.getfixturevalue("postgres_url"))


async def _cosmos(request: pytest.FixtureRequest) -> Store:
    return await CosmosStore.open(request.getfixturevalue("cosmos_access"))


async def _named_cosmos(request: pytest.FixtureRequest) -> Store:
    return await CosmosStore.open(request.getfixturevalue("named_cosmos_access"))


# A new implementation is held to this contract by one more line here.
OPENERS: Mapping[str, Callable[[pytest.FixtureRequest], Awaitable[Store]]] = {
    "sqlite-file": _sqlite_file,
    "sqlite-memory": _sqlite_memory,
    "postgresql": _postgres,
    "cosmos": _cosmos,
    **({"named-cosmos": _named_cosmos} if cosmos_stores.ENDPOINT else {}),
}
FIXTURES = {
    "postgresql": "postgres_url",
    "cosmos": "cosmos_access",
    "named-cosmos": "named_cosmos_access",
}


@pytest.fixture(params=OPENERS)
def implementation(request: pytest.FixtureRequest) -> str:
    """The name of the store that is tested; what it needs is set up outside of the test's loop."""
    name = str(request.param)
    if name in FIXTURES:
        request.getfixturevalue(FIXTURES[name])
    return name


@pytest.fixture
async def store(implementation: str, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with await OPENERS[implementation](request) as opened:
        yield opened


def document(
    sequence: int,
    line: Mapping[str, Any] | None = None,
    *,
    key: SessionKey = KEY,
    stream: Stream = "transcript",
    generation: int = 0,
    format_: str = "jsonl",
) -> Document:
    header = Header(
        kind="lines",
        stream=stream,
        user_id=key.user_id,
        host_id="host",
        project_slug=key.project_slug,
        session_id=key.session_id,
        generation=generation,
        format=format_,
    )
    builder = DocumentBuilder(header, "archive/key", "2026-01-01T00:00:00.000000Z")
    built = builder.build(Position(sequence, 0), orjson.dumps(line or {"n": sequence}))
    assert isinstance(built, Document)
    return built


def documents(sequences: Iterable[int], **place: Any) -> list[Document]:
    return [document(sequence, **place) for sequence in sequences]


def item(
    container: ItemContainer, item_id: str, partition: str = "p", **more: Any
) -> dict[str, Any]:
    return {"id": item_id, PARTITION_FIELD[container]: partition, **more}


def entry(entry_id: str, partition: str = "p", **more: Any) -> dict[str, Any]:
    return {"id": entry_id, "partition_key": partition, "reason": "not_json", **more}


async def sequences(store: Store, key: SessionKey = KEY, generation: int = 0) -> list[int]:
    found = await store.read_lines(key, "transcript", generation, limit=100_000)
    return [line["sequence"] for line in found]


def flat(pages: list[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(pages))


async def all_ids(fetch: Callable[[str | None], Any]) -> list[list[str]]:
    """The ids of every page."""
    pages: list[list[str]] = []
    continuation = None
    while True:
        page: Page = await fetch(continuation)
        pages.append([document["id"] for document in page.documents])
        continuation = page.continuation
        if continuation is None:
            return pages


# ---------------------------------------------------------------- items


@pytest.mark.parametrize("container", CONTAINERS)
async def test_an_item_is_read_as_it_was_written(store: Store, container: ItemContainer) -> None:
    written = item(container, "i", nested={"list": [1, 2.5, None, True]}, text="é \u0000 🚢")
    etag = await store.write_item(container, written, None)
    assert await store.read_item(container, "p", "i") == (written, etag)


async def test_an_absent_item_is_none(store: Store) -> None:
    assert await store.read_item("heads", "p", "absent") is None


async def test_creating_an_item_that_exists_is_refused(store: Store) -> None:
    await store.write_item("heads", item("heads", "head", n=1), None)
    with pytest.raises(ItemChanged):
        await store.write_item("heads", item("heads", "head", n=2), None)
    stored = await store.read_item("heads", "p", "head")
    assert stored is not None
    assert stored.document["n"] == 1


async def test_replacing_takes_the_etag_of_the_last_write(store: Store) -> None:
    first = await store.write_item("heads", item("heads", "head", n=1), None)
    second = await store.write_item("heads", item("heads", "head", n=2), first)
    assert second != first
    with pytest.raises(ItemChanged):
        await store.write_item("heads", item("heads", "head", n=3), first)
    assert await store.read_item("heads", "p", "head") == (item("heads", "head", n=2), second)


async def test_writing_the_same_document_again_still_changes_the_etag(store: Store) -> None:
    first = await store.write_item("heads", item("heads", "head"), None)
    assert await store.write_item("heads", item("heads", "head"), first) != first


@pytest.mark.parametrize("etag", ["1", "", "not an etag", '"0000-11"', "9" * 40, "-1"])
async def test_replacing_with_a_foreign_etag_is_refused(store: Store, etag: str) -> None:
    with pytest.raises(ItemChanged):
        await store.write_item("heads", item("heads", "head"), etag)
    await store.write_item("heads", item("heads", "head"), None)
    with pytest.raises(ItemChanged):
        await store.write_item("heads", item("heads", "head"), etag)


async def test_the_etag_of_a_deleted_item_does_not_fit_its_successor(store: Store) -> None:
    etag = await store.write_item("heads", item("heads", "head", life=1), None)
    await store.delete_item("heads", "p", "head")
    await store.write_item("heads", item("heads", "head", life=2), None)
    with pytest.raises(ItemChanged):
        await store.write_item("heads", item("heads", "head", life=1), etag)


async def test_deleting_an_item_twice_succeeds_and_spares_others(store: Store) -> None:
    await store.write_item("sessions", item("sessions", "i"), None)
    await store.write_item("sessions", item("sessions", "i", "other"), None)
    for _ in range(2):
        await store.delete_item("sessions", "p", "i")
    assert await store.read_item("sessions", "p", "i") is None
    assert await store.read_item("sessions", "other", "i") is not None


async def test_containers_are_apart(store: Store) -> None:
    for container in CONTAINERS:
        await store.write_item(container, item(container, "i", of=container), None)
    await store.delete_item("heads", "p", "i")
    found = [await store.read_item(container, "p", "i") for container in CONTAINERS]
    assert [it and it.document["of"] for it in found] == [None, *CONTAINERS[1:]]


@pytest.mark.parametrize("name", HARD_KEYS)
async def test_any_text_is_a_key(store: Store, name: str) -> None:
    written = item("sessions", escape(name), name, project_slug=name)
    etag = await store.write_item("sessions", written, None)
    await store.write_item("sessions", written | {"n": 2}, etag)
    await store.write_item("sessions", item("sessions", "x", "x", project_slug="x"), None)
    page = await store.list_items("sessions", partition=name, project_slug=name)
    assert [it["n"] for it in page.documents] == [2]
    key = SessionKey(name, name, name)
    assert (
        await store.create_lines(key, "events", 0, documents([0], key=key, stream="events")) == {}
    )
    assert await store.read_line(key, "events", 0, 0) is not None
    await store.create_quarantined([entry(escape(name), name)])
    assert (await store.list_quarantined(name)).documents == [entry(escape(name), name)]
    await store.delete_quarantined(name, [escape(name)])
    assert (await store.list_quarantined()).documents == []


async def test_concurrent_read_modify_write_loses_nothing(store: Store) -> None:
    await store.write_item("heads", item("heads", "head", count=0), None)

    async def increment() -> None:
        while True:
            stored = await store.read_item("heads", "p", "head")
            assert stored is not None
            changed = stored.document | {"count": stored.document["count"] + 1}
            try:
                await store.write_item("heads", changed, stored.etag)
            except ItemChanged:
                continue
            return

    await asyncio.gather(*(increment() for _ in range(20)))
    stored = await store.read_item("heads", "p", "head")
    assert stored is not None
    assert stored.document["count"] == 20


async def test_of_concurrent_creators_of_an_item_one_wins(store: Store) -> None:
    writes = [store.write_item("heads", item("heads", "head", n=n), None) for n in range(20)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, ItemChanged) for result in results) == 19


async def test_an_item_that_json_cannot_carry_is_a_permanent_error(store: Store) -> None:
    with pytest.raises(PermanentError):
        await store.write_item("heads", item("heads", "head", number=2**80), None)


# ---------------------------------------------------------------- listing


async def test_items_are_listed_newest_first_then_by_id(store: Store) -> None:
    for item_id, last_time in [("a", "2026-01"), ("b", "2026-02"), ("c", "2026-01"), ("d", None)]:
        await store.write_item("hosts", item("hosts", item_id, last_time=last_time), None)
    assert await all_ids(lambda c: store.list_items("hosts", continuation=c)) == [
        ["b", "c", "a", "d"]
    ]


@pytest.mark.parametrize("partition", [None, "p"])
async def test_pages_show_every_item_once_even_at_equal_times(
    store: Store, partition: str | None
) -> None:
    expected = []
    for number in range(300):
        last_time = f"2026-01-{number % 7:02}" if number % 7 else None
        written = item("sessions", f"s{number}", "p", last_time=last_time)
        await store.write_item("sessions", written, None)
        expected.append((last_time or "", written["id"]))
    pages = await all_ids(
        lambda c: store.list_items("sessions", partition=partition, limit=37, continuation=c)
    )
    assert [len(page) for page in pages] == [37] * 8 + [4]
    assert flat(pages) == [item_id for _, item_id in sorted(expected, reverse=True)]


async def test_pages_keep_items_of_equal_id_in_different_partitions_apart(store: Store) -> None:
    for number in range(25):
        await store.write_item("heads", item("heads", "head", f"p{number}"), None)
    pages = await all_ids(lambda c: store.list_items("heads", limit=4, continuation=c))
    assert [len(page) for page in pages] == [4, 4, 4, 4, 4, 4, 1]


async def test_a_last_page_that_is_full_has_no_continuation(store: Store) -> None:
    for number in range(4):
        await store.write_item("hosts", item("hosts", f"h{number}"), None)
    pages = await all_ids(lambda c: store.list_items("hosts", limit=2, continuation=c))
    assert pages == [["h3", "h2"], ["h1", "h0"]]


async def test_items_written_between_pages_neither_repeat_nor_hide_others(store: Store) -> None:
    for number in range(10):
        written = item("sessions", f"s{number}", last_time=f"2026-01-1{number}")
        await store.write_item("sessions", written, None)
    first = await store.list_items("sessions", limit=5)
    await store.write_item("sessions", item("sessions", "new", last_time="2026-02"), None)
    await store.delete_item("sessions", "p", "s5")
    second = await store.list_items("sessions", limit=5, continuation=first.continuation)
    assert [it["id"] for it in second.documents] == ["s4", "s3", "s2", "s1", "s0"]


async def test_an_item_moves_up_when_its_last_time_changes(store: Store) -> None:
    etag = await store.write_item("hosts", item("hosts", "a", last_time="2026-01"), None)
    await store.write_item("hosts", item("hosts", "b", last_time="2026-02"), None)
    await store.write_item("hosts", item("hosts", "a", last_time="2026-03"), etag)
    assert await all_ids(lambda c: store.list_items("hosts", continuation=c)) == [["a", "b"]]


async def test_sessions_are_listed_by_partition_and_project_without_deleted_ones(
    store: Store,
) -> None:
    for item_id, partition, project, deleted in [
        ("a", "ada", "x", False),
        ("b", "ada", "y", False),
        ("c", "bob", "x", False),
        ("d", "ada", "x", True),
    ]:
        written = item("sessions", item_id, partition, project_slug=project, deleted=deleted)
        await store.write_item("sessions", written, None)

    async def listed(**filters: str) -> list[str]:
        page = await store.list_items("sessions", **filters)
        return sorted(it["id"] for it in page.documents)

    assert await listed() == ["a", "b", "c"]
    assert await listed(partition="ada") == ["a", "b"]
    assert await listed(project_slug="x") == ["a", "c"]
    assert await listed(partition="ada", project_slug="x") == ["a"]
    assert await listed(partition="nobody") == []


async def test_a_session_that_becomes_deleted_leaves_the_list(store: Store) -> None:
    etag = await store.write_item("sessions", item("sessions", "s"), None)
    await store.write_item("sessions", item("sessions", "s", deleted=True), etag)
    assert await store.list_items("sessions") == ([], None)
    assert await store.read_item("sessions", "p", "s") is not None


@pytest.mark.parametrize("token", ["", "?", "bm90IGpzb24=", "WzEsMiwzXQ==", "é", "eyJhIjoxfQ=="])
async def test_a_token_that_is_not_ours_is_the_users_error(store: Store, token: str) -> None:
    with pytest.raises(UserError):
        await store.list_items("sessions", continuation=token)
    with pytest.raises(UserError):
        await store.list_quarantined(continuation=token)


async def test_a_token_of_another_listing_is_the_users_error(store: Store) -> None:
    for number in range(2):
        await store.write_item("hosts", item("hosts", f"h{number}"), None)
    page = await store.list_items("hosts", limit=1)
    with pytest.raises(UserError):
        await store.list_items("sessions", continuation=page.continuation)


# ---------------------------------------------------------------- lines


async def test_lines_are_read_as_they_were_created_in_order(store: Store) -> None:
    created = documents([3, 1, 2, 10])
    assert await store.create_lines(KEY, "transcript", 0, created) == {}
    found = await store.read_lines(KEY, "transcript", 0)
    assert found == [it.fields for it in sorted(created, key=lambda it: it.facts.sequence)]


async def test_creating_no_lines_is_nothing(store: Store) -> None:
    assert await store.create_lines(KEY, "events", 0, []) == {}
    assert await store.read_lines(KEY, "events", 0) == []


async def test_a_line_is_never_overwritten_and_the_stored_facts_come_back(store: Store) -> None:
    usage = {"input_tokens": 12, "output_tokens": 3}
    first = document(
        5, {"ts": "2026-01-01T00:00:00Z", "event": "llm:response", "data": {"usage": usage}}
    )
    await store.create_lines(KEY, "transcript", 0, [first, document(6)])
    known = await store.create_lines(
        KEY, "transcript", 0, [document(4), document(5, {"other": True}), document(7)]
    )
    assert known == {5: first.facts}
    assert await sequences(store) == [4, 5, 6, 7]
    assert await store.read_line(KEY, "transcript", 0, 5) == first.fields


async def test_creating_the_same_lines_again_returns_the_facts_of_all(store: Store) -> None:
    created = documents(range(1500))
    await store.create_lines(KEY, "transcript", 0, created)
    known = await store.create_lines(KEY, "transcript", 0, created)
    assert known == {it.facts.sequence: it.facts for it in created}


async def test_lines_with_many_gaps_between_existing_ones_are_created(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents(range(0, 600, 2)))
    known = await store.create_lines(KEY, "transcript", 0, documents(range(0, 600, 3)))
    assert sorted(known) == list(range(0, 600, 6))
    assert await sequences(store) == sorted({*range(0, 600, 2), *range(0, 600, 3)})


async def test_of_concurrent_creators_each_line_has_one(store: Store) -> None:
    writers = [
        [document(sequence, {"writer": writer}) for sequence in range(writer * 5, writer * 5 + 60)]
        for writer in range(8)
    ]
    known = await asyncio.gather(
        *(store.create_lines(KEY, "transcript", 0, lines) for lines in writers)
    )
    created = [
        (line.facts.sequence, writer)
        for writer, lines in enumerate(writers)
        for line in lines
        if line.facts.sequence not in known[writer]
    ]
    found = await store.read_lines(KEY, "transcript", 0)
    assert sorted(created) == [(line["sequence"], line["writer"]) for line in found]
    by_sequence = {line["sequence"]: line["line_sha256"] for line in found}
    for facts in itertools.chain.from_iterable(it.values() for it in known):
        assert facts.sha256.hex() == by_sequence[facts.sequence]


async def test_sessions_streams_and_generations_are_apart(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents([1]))
    await store.create_lines(OTHER, "transcript", 0, documents([2], key=OTHER))
    await store.create_lines(KEY, "transcript", 7, documents([3], generation=7))
    await store.create_lines(KEY, "events", 0, documents([4], stream="events"))
    await store.delete_lines(KEY, "events", 0, Coverage.of((0, 100)))
    assert await sequences(store) == [1]
    assert await sequences(store, OTHER) == [2]
    assert await sequences(store, generation=7) == [3]
    assert await store.read_lines(KEY, "events", 0) == []
    assert await store.read_line(KEY, "transcript", 7, 1) is None


async def test_lines_are_deleted_by_ranges_whether_present_or_not(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents(range(20)))
    gone = Coverage.of((0, 3), (7, 7), (15, 500))
    for _ in range(2):
        await store.delete_lines(KEY, "transcript", 0, gone)
    await store.delete_lines(KEY, "transcript", 0, Coverage())
    assert await sequences(store) == [4, 5, 6, *range(8, 15)]


async def test_many_single_lines_are_deleted(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents(range(1000)))
    await store.delete_lines(KEY, "transcript", 0, Coverage.from_numbers(range(0, 1000, 2)))
    assert await sequences(store) == list(range(1, 1000, 2))


async def test_a_deleted_line_can_be_created_again(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents([1]))
    await store.delete_lines(KEY, "transcript", 0, Coverage.of((1, 1)))
    again = document(1, {"second": True})
    assert await store.create_lines(KEY, "transcript", 0, [again]) == {}
    assert await store.read_line(KEY, "transcript", 0, 1) == again.fields


async def test_lines_are_read_in_portions(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents([0, 1, 5, 6, 9]))
    portion = await store.read_lines(KEY, "transcript", 0, after=0, limit=3)
    assert [line["sequence"] for line in portion] == [1, 5, 6]
    assert await store.read_lines(KEY, "transcript", 0, after=9) == []


async def test_an_absent_line_is_none(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents([2]))
    assert await store.read_line(KEY, "transcript", 0, 1) is None
    assert await store.read_line(KEY, "transcript", 0, 3) is None


@pytest.mark.parametrize(
    "line",
    [
        {"text": "nul \u0000 in the middle", "nul \u0000 key": 1},
        {"text": "naïve 日本語 🚢 \u202e \ufeff \x7f"},
        {"quotes": "'\"`$$ %s %(x)s :x ? \\u0000 \\"},
        {"numbers": [0, -(2**63), 2**64 - 1, 1e308, 0.1]},
        {"id": "theirs", "ttl": 5, "_etag": "x", "partition_key": 3},
        {},
    ],
)
async def test_any_line_comes_back_exactly(store: Store, line: dict[str, Any]) -> None:
    made = document(0, line)
    await store.create_lines(KEY, "transcript", 0, [made])
    assert as_numbers_are(store, await store.read_line(KEY, "transcript", 0, 0)) == (
        as_numbers_are(store, made.fields)
    )
    assert await store.create_lines(KEY, "transcript", 0, [made]) == {0: made.facts}


def as_numbers_are(store: Store, value: Any) -> Any:
    """A document as the store's numbers allow it: those of Cosmos DB are doubles."""
    if not isinstance(store, CosmosStore):
        return value
    if isinstance(value, dict):
        return {name: as_numbers_are(store, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_numbers_are(store, inner) for inner in value]
    return float(value) if isinstance(value, int) and abs(value) > 2**53 else value


async def test_documents_of_the_greatest_size_come_back(store: Store) -> None:
    large = [document(n, {"text": "é" * 940_000, "n": n}) for n in range(6)]
    assert len(large[0].json) > 1_880_000
    assert not large[0].facts.truncated
    await store.create_lines(KEY, "transcript", 0, large)
    assert await store.read_line(KEY, "transcript", 0, 5) == large[5].fields
    assert sorted(await store.create_lines(KEY, "transcript", 0, large)) == [0, 1, 2, 3, 4, 5]


async def test_the_greatest_generation_and_sequence_are_stored(store: Store) -> None:
    generation, sequence = 4_102_444_800_000, 10**9 - 1
    made = document(sequence, generation=generation)
    await store.create_lines(KEY, "transcript", generation, [made])
    assert await store.read_line(KEY, "transcript", generation, sequence) == made.fields


steps = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([0, 3]),
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8)), max_size=3),
    ),
    max_size=8,
)
_fresh = itertools.count()


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps)
async def test_creating_and_deleting_in_any_order_agrees_with_a_dictionary(
    store: Store, steps: list[tuple[bool, int, list[tuple[int, int]]]]
) -> None:
    key = SessionKey("ada", "model", f"s{next(_fresh)}")
    model: dict[int, dict[int, Facts]] = {0: {}, 3: {}}
    for number, (creates, generation, pairs) in enumerate(steps):
        lines, stored = Coverage.of(*((at, at + more) for at, more in pairs)), model[generation]
        if creates:
            made = [document(at, {"step": number}, key=key, generation=generation) for at in lines]
            known = await store.create_lines(key, "transcript", generation, made)
            assert known == {at: facts for at, facts in stored.items() if at in lines}
            model[generation] = {it.facts.sequence: it.facts for it in made} | stored
        else:
            await store.delete_lines(key, "transcript", generation, lines)
            model[generation] = {at: it for at, it in stored.items() if at not in lines}
    for generation, stored in model.items():
        found = await store.read_lines(key, "transcript", generation)
        assert {it["sequence"]: it["line_sha256"] for it in found} == {
            at: facts.sha256.hex() for at, facts in stored.items()
        }


# ---------------------------------------------------------------- replacing


async def test_replaced_lines_take_the_place_of_what_stood_there(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents([1, 2, 3]))
    await store.create_lines(OTHER, "transcript", 0, documents([2], key=OTHER))
    second = [document(number, {"version": 2, "n": number}) for number in (4, 2)]
    await store.replace_lines(KEY, "transcript", 0, second)
    await store.replace_lines(KEY, "transcript", 0, [])
    assert await sequences(store) == [1, 2, 3, 4]
    assert await store.read_line(KEY, "transcript", 0, 2) == second[1].fields
    assert await store.create_lines(KEY, "transcript", 0, [document(2)]) == {2: second[1].facts}
    other = await store.read_line(OTHER, "transcript", 0, 2)
    assert other == document(2, key=OTHER).fields


async def test_replacing_only_changes_its_own_generation_and_stream(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 3, documents([1], generation=3))
    changed = document(1, {"changed": True})
    await store.replace_lines(KEY, "transcript", 0, [changed])
    kept = await store.read_line(KEY, "transcript", 3, 1)
    assert kept == document(1, generation=3).fields
    assert await store.read_line(KEY, "events", 0, 1) is None


async def test_many_large_lines_are_replaced(store: Store) -> None:
    await store.create_lines(KEY, "transcript", 0, documents(range(1200)))
    again = [document(n, {"text": "é" * 10_000, "n": n}) for n in range(1200)]
    await store.replace_lines(KEY, "transcript", 0, again)
    found = await store.read_lines(KEY, "transcript", 0, limit=2000)
    assert [line["n"] for line in found] == list(range(1200))
    assert all(len(line["text"]) == 10_000 for line in found)


# ---------------------------------------------------------------- searching


def event(sequence: int, second: int | None = 0, *, key: SessionKey = KEY, **line: Any) -> Document:
    time = {} if second is None else {"ts": f"2026-01-01T00:00:{second:02}Z"}
    return document(sequence, time | line, key=key, stream="events", format_="amplifier")


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}.000000000Z"


async def found_by(store: Store, key: SessionKey = KEY, **texts: Any) -> list[int]:
    page = await store.search_events(EventFilter(user_id=key.user_id, **texts))
    assert page.continuation is None
    return [line["sequence"] for line in page.documents]


CALL = {"event": "llm:response", "lvl": "INFO", "data": {"model": "m-1", "provider": "p-1"}}
TOOL = {"event": "tool:post", "lvl": "DEBUG", "status": "error", "data": {"tool_name": "grep"}}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, [3, 2, 1, 0]),
        ({"event": "tool:post"}, [3, 1]),
        ({"event": "Tool:post"}, []),
        ({"event": "tool:%"}, []),
        ({"level": "INFO"}, [2]),
        ({"tool_name": "grep"}, [3, 1]),
        ({"model": "m-1"}, [2]),
        ({"provider": "p-1"}, [2]),
        ({"status": "error"}, [3, 1]),
        ({"event": "tool:post", "status": "ok"}, []),
        ({"event": "tool:post", "tool_name": "grep", "level": "DEBUG"}, [3, 1]),
        ({"since": at(2)}, [3, 2]),
        ({"until": at(2)}, [1]),
        ({"since": at(1), "until": at(3)}, [2, 1]),
        ({"event": "nul \u0000"}, []),
        ({"event": ""}, []),
    ],
)
async def test_events_are_found_by_what_they_say(
    store: Store, texts: dict[str, str], expected: list[int]
) -> None:
    written = [
        event(0, None, event=5, lvl=["INFO"], data={"tool_name": {"grep": 1}}),
        event(1, 1, **TOOL),
        event(2, 2, **CALL),
        event(3, 3, **TOOL),
    ]
    await store.create_lines(KEY, "events", 0, written)
    assert await found_by(store, **texts) == expected


async def test_a_search_stays_with_its_user_and_its_project_and_session(store: Store) -> None:
    keys = [
        KEY,
        OTHER,
        SessionKey("ada", "Analytical-engine", "s3"),
        SessionKey("ada", "analytical-engine|s1", "s4"),
        SessionKey("ada2", "analytical-engine", "s5"),
        SessionKey("a_a", "analytical-engine", "s6"),
    ]
    for number, key in enumerate(keys):
        await store.create_lines(key, "events", 0, [event(number, number, key=key)])
    assert await found_by(store) == [3, 2, 1, 0]
    assert await found_by(store, project_slug="analytical-engine") == [1, 0]
    assert await found_by(store, session=OTHER) == [1]
    assert await found_by(store, keys[4], session=OTHER) == []
    assert await found_by(store, keys[5]) == [5]
    assert await found_by(store, SessionKey("nobody", "p", "s")) == []


async def test_pages_of_a_search_show_every_event_once_newest_first(store: Store) -> None:
    written = [event(n, n % 5 if n % 7 else None, event="e" if n % 2 else "f") for n in range(120)]
    await store.create_lines(KEY, "events", 0, written)
    others = [event(n, n % 5, key=OTHER, event="e") for n in range(20)]
    await store.create_lines(OTHER, "events", 0, others)
    wanted = EventFilter(user_id="ada", event="e")
    pages = await all_ids(lambda c: store.search_events(wanted, limit=13, continuation=c))
    expected = sorted(
        (
            (line["occurred_at"] or "", line["sequence"], line["partition_key"], line["id"])
            for line in (it.fields for it in (*written, *others))
            if line["event"] == "e"
        ),
        reverse=True,
    )
    assert [len(page) for page in pages] == [13] * 6 + [2]
    assert flat(pages) == [item_id for *_, item_id in expected]


async def test_a_search_sees_what_was_replaced_and_not_what_was_deleted(store: Store) -> None:
    await store.create_lines(KEY, "events", 0, [event(n, n, event="old") for n in range(3)])
    await store.replace_lines(KEY, "events", 0, [event(1, 9, event="new")])
    await store.delete_lines(KEY, "events", 0, Coverage.of((0, 0)))
    assert await found_by(store, event="old") == [2]
    assert await found_by(store, event="new", since=at(9)) == [1]


async def test_a_truncated_event_is_found_by_its_summary(store: Store) -> None:
    long = event(0, 1, **(TOOL | {"data": {"tool_name": "grep", "text": "x" * 500_000}}))
    assert long.facts.truncated
    await store.create_lines(KEY, "events", 0, [long])
    assert await found_by(store, event="tool:post", tool_name="grep", status="error") == [0]


async def test_an_event_of_very_long_texts_is_stored(store: Store) -> None:
    long = event(0, 1, event="é" * 100_000, lvl="x" * 100_000, data={"model": "y" * 100_000})
    await store.create_lines(KEY, "events", 0, [long])
    assert await store.read_line(KEY, "events", 0, 0) == long.fields


async def test_a_token_of_a_listing_is_none_of_a_search(store: Store) -> None:
    with pytest.raises(UserError):
        await store.search_events(EventFilter(user_id="ada"), continuation="WzEsMiwzXQ==")


# ---------------------------------------------------------------- quarantine


async def test_a_quarantine_entry_is_created_once_and_never_overwritten(store: Store) -> None:
    first = entry("e", preview="\u0000 é 🚢", stream=None, generation=None)
    await store.create_quarantined([first])
    await store.create_quarantined([entry("e", reason="other"), entry("f")])
    page = await store.list_quarantined("p")
    assert page.documents == [entry("f"), first]


async def test_an_entry_can_be_replaced_and_is_listed_anew(store: Store) -> None:
    await store.create_quarantined([entry("e", created_at="2026-01-01"), entry("f")])
    newer = entry("e", reason="other", created_at="2026-02-01")
    await store.replace_quarantined([newer, entry("g")])
    await store.replace_quarantined([])
    page = await store.list_quarantined("p")
    assert page.documents[0] == newer
    assert sorted(it["id"] for it in page.documents) == ["e", "f", "g"]


async def test_entries_of_any_generation_are_taken(store: Store) -> None:
    entries = [
        entry(f"e{n}", stream="events", generation=g) for n, g in enumerate([0, 10**15, 2**64 - 1])
    ]
    await store.create_quarantined(iter(entries))
    found = (await store.list_quarantined("p")).documents
    assert as_numbers_are(store, found) == as_numbers_are(store, entries[::-1])


async def test_entries_are_listed_newest_first_in_pages(store: Store) -> None:
    entries = [entry(f"e{n}", f"p{n % 3}", created_at=f"2026-01-{n % 5 + 10}") for n in range(120)]
    await store.create_quarantined(entries)
    expected = sorted(((it["created_at"], it["id"]) for it in entries), reverse=True)
    pages = await all_ids(lambda c: store.list_quarantined(limit=50, continuation=c))
    assert [len(page) for page in pages] == [50, 50, 20]
    assert flat(pages) == [entry_id for _, entry_id in expected]
    only = await all_ids(lambda c: store.list_quarantined("p1", limit=15, continuation=c))
    assert flat(only) == [i for _, i in expected if int(i[1:]) % 3 == 1]


async def test_entries_are_deleted_by_id_whether_present_or_not(store: Store) -> None:
    await store.create_quarantined([entry("a"), entry("b"), entry("a", "other")])
    for _ in range(2):
        await store.delete_quarantined("p", ["a", "absent"])
    await store.delete_quarantined("p", [])
    left = (await store.list_quarantined()).documents
    assert [(it["partition_key"], it["id"]) for it in left] == [("p", "b"), ("other", "a")]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((), ["other"]),
        (("events",), ["t1", "other", "none"]),
        (("events", 2), ["e2", "t1", "other", "none"]),
        (("events", 0), ["e1", "e2", "t1", "other", "none"]),
        (("transcript", 9), ["e1", "e2", "other", "none"]),
    ],
)
async def test_a_partitions_entries_are_cleared(
    store: Store, arguments: tuple[Any, ...], left: list[str]
) -> None:
    await store.create_quarantined(
        [
            entry("e1", stream="events", generation=1),
            entry("e2", stream="events", generation=2),
            entry("t1", stream="transcript", generation=1),
            entry("none", stream=None, generation=None),
            entry("other", "other", stream="events", generation=1),
        ]
    )
    for _ in range(2):
        await store.clear_quarantine("p", *arguments)
    found = (await store.list_quarantined()).documents
    assert sorted(it["id"] for it in found) == sorted(left)


async def test_concurrent_creators_of_the_same_entries_all_succeed(store: Store) -> None:
    entries = [entry(f"e{n}") for n in range(100)]
    batches = [entries, entries[::-1], entries[50:], entries[:60]] * 2
    await asyncio.gather(*(store.create_quarantined(batch) for batch in batches))
    assert len((await store.list_quarantined(limit=1000)).documents) == 100


# ---------------------------------------------------------------- life


async def test_a_healthy_store_passes_its_check(store: Store) -> None:
    await store.check()
