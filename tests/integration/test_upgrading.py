"""After an upgrade: refused messages and old documents are done anew, once, some at a time."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from sessionferry import head_store, replaying
from sessionferry.archive import Archive
from sessionferry.batch import Batch, Limits, encode
from sessionferry.coverage import Coverage
from sessionferry.delivery import Message, Outcome
from sessionferry.heads import DERIVATION, Head, prune
from sessionferry.ingest import FATAL_ATTEMPTS, Ingest
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from sessionferry.upgrading import (
    MOST_TRIES,
    ROLLED_OUT_AFTER,
    Judged,
    Renewed,
    judge_anew,
    outdated_sessions,
    rebuild_outdated,
)
from support.strategies import batch

OLD = Limits(lines=2)
"""What an older version took; everything longer was too large for it."""
SEEN = datetime.now(UTC)
LATER = SEEN + ROLLED_OUT_AFTER
LINE = b'{"event":"e","ts":"2026-07-01T12:00:00Z"}\n'


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with await open_store("sqlite://") as opened:
        yield opened


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, Archive.open("memory://"), Archive.open("memory://"))


async def quarantine(ingest: Ingest, *batches: Batch) -> None:
    """Be the older version."""
    older = Ingest(ingest.store, ingest.archive, ingest.inbox, limits=OLD)
    await older.take_in([Message(body=encode(one), message_id=one.id) for one in batches])


async def run(ingest: Ingest, now: datetime = LATER, *, most: int = 500) -> Judged:
    return await judge_anew(ingest, now, most=most, seconds=60, version="next")


async def entries(store: Store) -> list[str]:
    return [str(entry["reason"]) async for entry in replaying.entries_of(store)]


async def test_what_a_newer_version_takes_leaves_the_quarantine(ingest: Ingest) -> None:
    long, bad = batch(LINE * 3, session_id="long"), batch(LINE * 2 + b"no json\n", session_id="bad")
    await quarantine(ingest, long, bad, batch(b"neither\n"))
    assert sorted(await entries(ingest.store)) == ["batch_too_large", "batch_too_large", "not_json"]
    assert await run(ingest, SEEN) == Judged()
    assert await run(ingest) == Judged(messages=3, entries=3, refused=2)
    assert await entries(ingest.store) == ["not_json", "not_json"]
    head = (await head_store.read_head(ingest.store, long.header.key)).head
    assert head.stream("events").stored == Coverage.of((0, 2))


async def test_an_older_version_may_judge_for_an_hour_beside_the_newer_one(ingest: Ingest) -> None:
    await quarantine(ingest, batch(LINE * 3))
    assert await run(ingest, SEEN) == Judged()
    assert await run(ingest, LATER - timedelta(seconds=1)) == Judged()
    assert (await run(ingest, LATER)).messages == 1


async def test_what_is_refused_again_waits_for_the_version_after(ingest: Ingest) -> None:
    await quarantine(ingest, batch(LINE * 3, v=99))
    await run(ingest, SEEN)
    assert await run(ingest) == Judged(messages=1, entries=1, refused=1)
    assert await run(ingest, LATER + timedelta(days=9)) == Judged()
    again = {"most": 9, "seconds": 60, "version": "after"}
    await judge_anew(ingest, LATER, **again)  # type: ignore[arg-type]
    assert (await judge_anew(ingest, LATER + ROLLED_OUT_AFTER, **again)).refused == 1  # type: ignore[arg-type]


async def test_what_this_version_judged_is_not_judged_again(ingest: Ingest) -> None:
    await quarantine(ingest, batch(LINE * 3))
    for now in (SEEN, LATER):
        assert await judge_anew(ingest, now, most=9, seconds=60) == Judged()


async def test_a_run_does_so_many_and_the_next_goes_on(ingest: Ingest) -> None:
    await quarantine(ingest, *(batch(LINE * 3, session_id=f"s{n}") for n in range(130)))
    await run(ingest, SEEN)
    assert (await run(ingest, most=1)).messages == 100
    assert (await run(ingest, most=1)).messages == 30
    assert await run(ingest, most=1) == Judged()
    assert await entries(ingest.store) == []


async def test_a_batch_that_came_through_the_inbox_may_be_larger_than_a_message(
    ingest: Ingest,
) -> None:
    large = batch(LINE * 9 + b"no json\n")
    await ingest.take_in([Message(body=encode(large), message_id=large.id)])
    small = Ingest(ingest.store, ingest.archive, ingest.inbox, limits=Limits(inline_bytes=100))
    await run(small, SEEN)
    assert await run(small) == Judged(messages=1, entries=1, refused=1)
    assert await entries(ingest.store) == ["not_json"]


async def test_conflicts_and_messages_that_ended_their_worker_stay(ingest: Ingest) -> None:
    other = LINE.replace(b'"e"', b'"f"')
    await quarantine(ingest, batch(LINE), batch(other))
    deadly = batch(LINE, session_id="deadly")
    marker = hashlib.sha256(deadly.id.encode()).hexdigest()
    tried = {"id": marker, "partition_key": "attempts", "count": FATAL_ATTEMPTS}
    await ingest.store.write_item("attempts", tried, None)
    await ingest.take_in([Message(body=encode(deadly), message_id=deadly.id, delivery_count=9)])
    assert sorted(await entries(ingest.store)) == ["conflict", "permanent"]
    await run(ingest, SEEN)
    assert await run(ingest) == Judged()
    assert len(await entries(ingest.store)) == 2


class _Ended(Ingest):
    """A process that ends while it handles a message."""

    def __init__(self, own: Ingest) -> None:
        super().__init__(own.store, own.archive, own.inbox)

    async def take_in(self, messages: object) -> list[Outcome]:
        raise RuntimeError("the process ended")


async def test_what_ends_its_worker_is_left_out_after_some_tries(ingest: Ingest) -> None:
    await quarantine(ingest, batch(LINE * 3))
    await run(ingest, SEEN)
    for _ in range(MOST_TRIES):
        with pytest.raises(RuntimeError):
            await run(_Ended(ingest))
    assert await run(_Ended(ingest)) == Judged(messages=1, entries=1, failed=1)
    assert await run(_Ended(ingest)) == Judged()
    assert await entries(ingest.store) == ["batch_too_large"]


async def test_bytes_that_are_gone_stop_nothing(ingest: Ingest) -> None:
    await quarantine(ingest, batch(LINE * 3, session_id="gone"), batch(LINE * 3))
    (first, *_) = [found.key async for found in ingest.archive.objects("")]
    await ingest.archive.delete([first])
    await run(ingest, SEEN)
    assert await run(ingest) == Judged(messages=2, entries=2, failed=1)


# ------------------------------------------------------------ documents


async def age(store: Store, one: Batch, **changes: object) -> None:
    """Let an older version have made a session."""
    changed = {"derived": DERIVATION - 1, **changes}
    await head_store.change_head(
        store, one.header.key, lambda head: head.model_copy(update=changed)
    )


async def renew(ingest: Ingest, now: datetime = LATER, *, most: int = 9) -> Renewed:
    return await rebuild_outdated(ingest.store, ingest.archive, now, most=most, seconds=60)


async def test_sessions_that_an_older_version_made_are_made_anew_once(ingest: Ingest) -> None:
    sent = [batch(LINE * 3, session_id=f"s{n}") for n in range(3)]
    await ingest.take_in([Message(body=encode(one), message_id=one.id) for one in sent])
    for one in sent[:2]:
        await age(ingest.store, one)
    lost = sent[0].header
    await ingest.store.delete_lines(lost.key, "events", 0, Coverage.of((1, 1)))
    assert len([key async for key in outdated_sessions(ingest.store)]) == 2
    assert await renew(ingest, SEEN) == Renewed()
    assert (await renew(ingest, most=1)).rebuilt == 1
    assert await renew(ingest, most=1) == Renewed(heads=3, rebuilt=1)
    assert await renew(ingest) == Renewed()
    assert len(await ingest.store.read_lines(lost.key, "events", 0)) == 3
    for one in sent:
        head = (await head_store.read_head(ingest.store, one.header.key)).head
        assert (head.derived, len(head.stream("events").stored)) == (DERIVATION, 3)


async def test_sessions_with_pruned_lines_and_lost_bytes_stay_as_they_are(ingest: Ingest) -> None:
    pruned, lost = (batch(LINE * 3, session_id=name) for name in ("pruned", "lost"))
    await ingest.take_in([Message(body=encode(one), message_id=one.id) for one in (pruned, lost)])
    await head_store.change_head(
        ingest.store, pruned.header.key, lambda head: prune(head, "events", Coverage.of((0, 0)))
    )
    for one in (pruned, lost):
        await age(ingest.store, one)
    (broken,) = [it.key async for it in ingest.archive.objects("") if "/lost." in it.key]
    await ingest.archive.delete([broken])
    await ingest.archive.put(broken, b"broken")
    await renew(ingest, SEEN)
    done = await renew(ingest)
    assert (done.rebuilt, done.pruned, done.failed) == (0, 1, 1)
    assert [key async for key in outdated_sessions(ingest.store)] == [lost.header.key]


def test_a_head_without_the_mark_is_of_the_first_way() -> None:
    one = batch(LINE)
    document = Head.new(one.header.key).to_document()
    del document["derived"]
    assert Head.from_document(document).derived == 1
