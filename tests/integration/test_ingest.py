"""Ingest over a SQL store and an archive in memory: what each message costs, and what is left."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import orjson
import pytest

from sessionferry import export as exporting
from sessionferry import head_store, heads, ingest
from sessionferry.agent.discover import Role, Source
from sessionferry.archive import Archive, hydrate, inbox_key
from sessionferry.batch import Batch, Claim, Limits, encode, encode_parts
from sessionferry.coverage import Coverage
from sessionferry.deletion import delete_session, undelete_session
from sessionferry.delivery import CHUNK_LINES, Message
from sessionferry.errors import (
    ArchiveMismatch,
    FerryError,
    PermanentError,
    ThrottledError,
    TransientError,
    UserError,
)
from sessionferry.export import export_session
from sessionferry.heads import Head
from sessionferry.identity import STREAMS, SessionKey, session_folder
from sessionferry.ingest import ALONE_FROM_DELIVERY, FATAL_ATTEMPTS, Ingest
from sessionferry.store import Store
from sessionferry.store.opening import open_store
from sessionferry.verification import Finding, verify
from support.strategies import batch, header

KEY = header().key
NOW = 1_780_000_000.0


class Worker:
    """An Ingest with its store, archive and inbox, and a clock that stands still."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.archive = Archive.open("memory://")
        self.inbox = Archive.open("memory://")
        self.now = NOW
        self.ingest = self.over(store)

    def over(self, store: Store, seconds: float = 5.0) -> Ingest:
        return Ingest(
            *(store, self.archive, self.inbox),
            clock=lambda: self.now,
            steady=lambda: self.now,
            retry_seconds=seconds,
        )

    async def take(self, *bodies: bytes | Batch, **fields: Any) -> list[ingest.Outcome]:
        return await self.ingest.take_in([message(body, **fields) for body in bodies])

    async def head(self, key: SessionKey = KEY) -> Head:
        return (await head_store.read_head(self.store, key)).head

    async def lines(self, key: SessionKey = KEY, generation: int = 0) -> list[dict[str, Any]]:
        found = []
        for stream in STREAMS:
            found += await self.store.read_lines(key, stream, generation)
        return found

    async def quarantined(self) -> list[dict[str, Any]]:
        return (await self.store.list_quarantined()).documents

    async def kept(self, key: SessionKey = KEY) -> list[str]:
        return [found.key async for found in self.archive.objects(session_folder(key))]


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with await open_store("sqlite://") as store:
        yield Worker(store)


def message(body: bytes | Batch, **fields: Any) -> Message:
    encoded = encode(body) if isinstance(body, Batch) else body
    defaults = {"message_id": hashlib.sha256(encoded).hexdigest(), "enqueued_at": NOW}
    return Message(body=encoded, **(defaults | fields))


def line(number: int, text: str = "x") -> bytes:
    return (
        orjson.dumps({"ts": "2026-07-01T00:00:00Z", "event": "e", "n": number, "t": text}) + b"\n"
    )


def part(first: int, count: int, text: str = "x", **changes: object) -> Batch:
    """Lines `first` to `first + count - 1` of a stream of lines of one length."""
    payload = b"".join(line(number % 10, text) for number in range(first, first + count))
    place = {"start_sequence": first, "offset": first * len(line(0, text))}
    return batch(payload, **(place | changes))


# ------------------------------------------------------------ hostile lines


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"not json", "not_json"),
        (b"[1]", "not_an_object"),
        (b"\xff\xfe", "not_utf8"),
        (b'{"a":', "not_json"),
        (b"\x00", "not_json"),
    ],
)
async def test_one_hostile_line_costs_one_line(worker: Worker, bad: bytes, reason: str) -> None:
    payload = line(0) + bad + b"\n" + line(2)
    (outcome,) = await worker.take(batch(payload))
    assert (outcome.stored, outcome.quarantined, outcome.error) == (2, 1, None)
    assert [document["sequence"] for document in await worker.lines()] == [0, 2]
    (entry,) = await worker.quarantined()
    assert (entry["sequence"], entry["reason"]) == (1, reason)
    assert await hydrate(worker.archive, entry) == bad
    state = (await worker.head()).stream("events")
    assert (state.stored, state.quarantined) == (Coverage.of((0, 0), (2, 2)), Coverage.of((1, 1)))


async def test_delivering_again_changes_nothing(worker: Worker) -> None:
    one = batch(line(0) + b"junk\n" + line(2))
    await worker.take(one)
    documents, entries = await worker.lines(), await worker.quarantined()
    (outcome,) = await worker.take(one, delivery_count=2)
    assert (outcome.stored, outcome.duplicate) == (0, 2)
    assert (await worker.lines(), await worker.quarantined()) == (documents, entries)


async def test_another_line_at_the_same_place_is_a_conflict(worker: Worker) -> None:
    await worker.take(batch(line(0, "one")))
    (outcome,) = await worker.take(batch(line(0, "two")))
    assert (outcome.stored, outcome.conflicts) == (0, 1)
    (entry,) = await worker.quarantined()
    assert entry["reason"] == "conflict"
    assert await hydrate(worker.archive, entry) == line(0, "two")[:-1]
    (document,) = await worker.lines()
    assert document["t"] == "one"


# ------------------------------------------------------------ messages that are no batches


def with_header(**changes: object) -> bytes:
    fields = header(length=len(line(0)), line_count=1).model_dump(exclude_none=True) | changes
    return orjson.dumps(fields) + b"\n" + line(0)


@pytest.mark.parametrize(
    ("body", "reason", "is_known"),
    [
        (b"", "bad_batch", False),
        (b"junk", "bad_batch", False),
        (b"\x28\xb5\x2f\xfdbroken", "bad_batch", False),
        (b"{}\n", "bad_batch", False),
        (with_header(v=99), "unsupported_batch", True),
        (with_header(kind="thought"), "unsupported_batch", True),
        (with_header(format="unheard-of"), "unsupported_batch", True),
        (with_header(length=7), "bad_batch", True),
        (with_header(line_count=2), "bad_batch", True),
        (with_header(generation=2**50), "bad_batch", True),
        (with_header(user_id=""), "bad_batch", False),
        (with_header(user_id="\u00e9" * 1000), "bad_identity", False),
        (encode(batch(line(0)))[:-3], "bad_batch", True),
    ],
)
async def test_an_unusable_message_is_kept_whole(
    worker: Worker, body: bytes, reason: str, is_known: bool
) -> None:
    outcome, other = await worker.take(body, batch(line(5)))
    assert (outcome.kind, outcome.error) == ("quarantined", reason)
    assert other.stored == 1
    (entry,) = await worker.quarantined()
    assert entry["reason"] == reason
    assert entry["detail"]
    assert (entry["partition_key"] == KEY.partition_key) == is_known
    assert await hydrate(worker.archive, entry) == body


async def test_an_unknown_encoding_is_kept_whole(worker: Worker) -> None:
    (outcome,) = await worker.take(batch(line(0)), content_encoding="brotli")
    assert outcome.error == "unsupported_batch"


async def test_a_batch_that_unpacks_to_too_much_is_kept_packed(worker: Worker) -> None:
    bomb = encode(batch(b'{"a":"' + b"x" * (Limits().inline_bytes + 70_000) + b'"}\n'))
    (outcome,) = await worker.take(bomb)
    assert outcome.error == "batch_too_large"
    (entry,) = await worker.quarantined()
    assert await hydrate(worker.archive, entry) == bomb


# ------------------------------------------------------------ claims


def claiming(of: Batch, body: bytes, **changes: object) -> bytes:
    fields = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()} | changes
    announced = of.header.model_copy(update={"claim": Claim.model_validate(fields)})
    return encode_parts(announced, b"")


async def test_a_claimed_batch_is_taken_from_the_inbox_and_archived(worker: Worker) -> None:
    large = batch(line(0, "y" * 400_000))
    body = encode(large)
    await worker.inbox.put(inbox_key(large.header, hashlib.sha256(body).hexdigest()), body)
    (outcome,) = await worker.take(claiming(large, body))
    assert (outcome.stored, outcome.error) == (1, None)
    (key,) = await worker.kept()
    assert await worker.archive.get(key) == body


@pytest.mark.parametrize("fault", ["missing", "hash", "size", "identity", "place", "junk"])
async def test_a_claim_that_does_not_hold_is_kept_as_it_came(worker: Worker, fault: str) -> None:
    own = batch(line(0))
    there = {
        "identity": batch(line(0), user_id="somebody else"),
        "place": batch(line(0), start_sequence=1),
    }.get(fault, own)
    body = b"junk" if fault == "junk" else encode(there)
    sha256 = hashlib.sha256(body).hexdigest()
    if fault != "missing":
        kept = body + b"!" if fault == "hash" else body
        await worker.inbox.put(inbox_key(own.header, sha256), kept)
    changes = {"size": len(body) + 1} if fault == "size" else {}
    announced = claiming(own, body, **changes)
    (outcome,) = await worker.take(announced)
    assert outcome.error == ("bad_batch" if fault == "junk" else "bad_claim")
    assert await worker.lines() == []
    (entry,) = await worker.quarantined()
    assert await hydrate(worker.archive, entry) == announced


# ------------------------------------------------------------ heartbeats, metadata, tails


def beat(machine: str, revision: int, run: str = "r1") -> Batch:
    minute = f"2026-07-01T00:{revision:02d}:00.000Z"
    body = {"run_id": run, "machine": machine, "hostname": machine, "ledger": {"lines": revision}}
    fields: dict[str, object] = {"kind": "heartbeat", "stream": None, "project_slug": None}
    fields |= {"session_id": None, "revision": revision, "sent_at": minute, "line_count": 0}
    started = "2026-07-01T00:00:00.000Z"
    return batch(orjson.dumps(body | {"started_at": started}), **fields)


async def test_heartbeats_are_kept_per_host_and_cloned_hosts_are_named(worker: Worker) -> None:
    await worker.take(beat("m1", 5), beat("m1", 3))
    (host,) = (await worker.store.list_items("hosts")).documents
    assert (host["ledger"], host["clones"]) == ({"lines": 5}, [])
    await worker.take(beat("m2", 6, "r2"))
    (host,) = (await worker.store.list_items("hosts")).documents
    assert host["clones"] == ["m1 (m1)", "m2 (m2)"]


async def test_a_heartbeat_that_is_none_is_kept(worker: Worker) -> None:
    fields = beat("m1", 1).header.model_dump(exclude={"length"})
    await worker.take(batch(b"[]", **fields), batch(b"{", **fields))
    assert [entry["reason"] for entry in await worker.quarantined()] == ["bad_batch"] * 2


def metadata(payload: bytes, revision: int) -> Batch:
    fields: dict[str, object] = {"kind": "metadata", "stream": None, "line_count": 0}
    return batch(payload, **(fields | {"revision": revision}))


async def test_the_newest_metadata_is_shown_in_any_order(worker: Worker) -> None:
    await worker.take(metadata(b'{"name":"new"}', 2), metadata(b'{"name":"old"}', 1))
    (session,) = (await worker.store.list_items("sessions")).documents
    assert session["name"] == "new"


async def test_metadata_that_is_not_json_is_kept_and_said(worker: Worker) -> None:
    (outcome,) = await worker.take(metadata(b"not json", 1))
    assert outcome.error == "metadata_not_json"
    head = await worker.head()
    assert head.metadata is not None
    assert not head.metadata.valid
    assert (await exporting.read_batch(worker.archive, head.metadata.archive_key)).payload == (
        b"not json"
    )


# ------------------------------------------------------------ locks and repeated deliveries


@pytest.mark.parametrize("body", [batch(line(0)), b"junk"], ids=["batch", "junk"])
async def test_nothing_is_written_when_the_lock_runs_out(
    worker: Worker, body: bytes | Batch
) -> None:
    with pytest.raises(TransientError, match="lock"):
        await worker.take(body, locked_until=NOW + ingest.WRITE_MARGIN - 1)
    assert (await worker.lines(), await worker.quarantined()) == ([], [])
    assert [found async for found in worker.archive.objects("")] == []
    await worker.take(body, locked_until=NOW + ingest.WRITE_MARGIN + 1)
    assert await worker.lines() or await worker.quarantined()


async def test_a_message_that_failed_often_harms_no_other_one(worker: Worker) -> None:
    failing = message(part(0, 1), delivery_count=ALONE_FROM_DELIVERY, locked_until=NOW)
    calm = message(part(1, 1))
    with pytest.raises(TransientError):
        await worker.ingest.take_in([failing, calm])
    assert [document["sequence"] for document in await worker.lines()] == [1]
    assert (await worker.head()).stream("events").stored == Coverage.of((1, 1))


class Killed(BaseException):
    """The worker's process ends."""


async def test_a_message_that_ends_its_worker_is_quarantined_undecoded(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def die(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise Killed

    monkeypatch.setattr(ingest, "decode", die)
    deadly = message(part(0, 1), delivery_count=ALONE_FROM_DELIVERY)
    for _ in range(FATAL_ATTEMPTS):
        with pytest.raises(Killed):
            await worker.ingest.take_in([deadly])
    (outcome,) = await worker.ingest.take_in([deadly])
    assert calls == FATAL_ATTEMPTS
    assert (outcome.kind, outcome.error) == ("quarantined", "permanent")
    (entry,) = await worker.quarantined()
    assert await hydrate(worker.archive, entry) == deadly.body
    assert (await worker.store.list_items("attempts")).documents == []


async def test_faults_that_can_be_raised_do_not_count_as_deaths(worker: Worker) -> None:
    late = message(part(0, 1), delivery_count=ALONE_FROM_DELIVERY, locked_until=NOW)
    for _ in range(FATAL_ATTEMPTS + 2):
        with pytest.raises(TransientError):
            await worker.ingest.take_in([late])
    in_time = message(part(0, 1), delivery_count=ALONE_FROM_DELIVERY + 9)
    (outcome,) = await worker.ingest.take_in([in_time])
    assert outcome.stored == 1


# ------------------------------------------------------------ faults of the store


class FaultyStore:
    """A store of which one method fails some times, before or after it did its work."""

    def __init__(self, store: Store, method: str, error: FerryError, times: int, when: str) -> None:
        self._store = store
        self._method = method
        self._error = error
        self._after = when == "after"
        self.left = times

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._store.close()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name != self._method:
            return real

        async def faulty(*arguments: Any, **named: Any) -> Any:
            if self.left <= 0:
                return await real(*arguments, **named)
            self.left -= 1
            if self._after:
                await real(*arguments, **named)
            raise self._error

        return faulty


METHODS = ["read_item", "write_item", "create_lines", "create_quarantined"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [TransientError(), ThrottledError(retry_after=0.01)], ids=str)
async def test_passing_faults_of_the_store_are_waited_out(
    worker: Worker, method: str, error: FerryError, when: str
) -> None:
    store = FaultyStore(worker.store, method, error, 3, when)
    faulty = worker.over(cast("Store", store))
    await faulty.take_in([message(batch(line(0) + b"junk\n"))])
    assert store.left == 0
    state = (await worker.head()).stream("events")
    assert (state.stored, state.quarantined) == (Coverage.of((0, 0)), Coverage.of((1, 1)))
    assert len(await worker.lines()) == len(await worker.quarantined()) == 1


@pytest.mark.parametrize("method", METHODS)
async def test_a_store_that_stays_away_raises_and_a_later_delivery_succeeds(
    worker: Worker, method: str
) -> None:
    error = TransientError("down")
    faulty = worker.over(cast("Store", FaultyStore(worker.store, method, error, 10**9, "")), 0.1)
    one = message(batch(line(0) + b"junk\n"))
    with pytest.raises(type(error), match=str(error)):
        await faulty.take_in([one])
    await worker.ingest.take_in([one])
    assert len(await worker.lines()) == len(await worker.quarantined()) == 1


async def test_what_the_store_refuses_for_good_is_quarantined_whole(worker: Worker) -> None:
    refusing = FaultyStore(worker.store, "create_lines", PermanentError("too odd"), 10**9, "")
    one = message(batch(line(0)))
    (outcome,) = await worker.over(cast("Store", refusing), 0.1).take_in([one])
    assert outcome.error == "permanent"
    (entry,) = await worker.quarantined()
    assert await hydrate(worker.archive, entry) == one.body


# ------------------------------------------------------------ fragmented coverage


async def test_a_session_in_too_many_pieces_takes_no_further_gap(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MAX_RANGES", 6)
    for first in (0, 10, 20):
        await worker.take(part(first, 1))
    (refused,) = await worker.take(part(30, 1))
    assert refused.error == "bad_batch"
    (entry,) = await worker.quarantined()
    assert "fragmented" in entry["detail"]
    assert await hydrate(worker.archive, entry) == encode(part(30, 1))
    (accepted,) = await worker.take(part(21, 1))
    assert (accepted.error, accepted.stored) == (None, 1)
    assert len(await worker.lines()) == 4


# ------------------------------------------------------------ deletion


def everything() -> list[Batch | bytes]:
    """One message of each kind for one session."""
    tail = batch(b'{"a', kind="tail", line_count=0, offset=100, start_sequence=3)
    return [batch(line(0) + b"junk\n"), tail, metadata(b"{}", 1), with_header(v=99)]


async def test_a_deletion_leaves_nothing_and_late_messages_neither(worker: Worker) -> None:
    await worker.take(*everything())
    await delete_session(worker.store, worker.archive, KEY)
    for _ in range(2):
        assert (await worker.lines(), await worker.quarantined()) == ([], [])
        assert await worker.kept() == []
        assert (await worker.store.list_items("sessions")).documents == []
        await worker.take(*everything())


async def test_after_an_undelete_a_session_can_be_sent_again(worker: Worker) -> None:
    await worker.take(*everything())
    await delete_session(worker.store, worker.archive, KEY)
    await undelete_session(worker.store, worker.archive, KEY)
    await worker.take(*everything())
    assert (len(await worker.lines()), len(await worker.quarantined())) == (1, 2)
    assert len((await worker.store.list_items("sessions")).documents) == 1
    with pytest.raises(UserError, match="is not deleted"):
        await undelete_session(worker.store, worker.archive, KEY)


# ------------------------------------------------------------ export


async def test_an_export_gives_the_files_back(worker: Worker, tmp_path: Path) -> None:
    whole = b"\xef\xbb\xbf" + line(0) + b"\r\n" + line(1) + b"junk\n \n" + line(2)
    first, second = whole[: whole.find(b"junk")], whole[whole.find(b"junk") :]
    place = {"offset": len(first), "start_sequence": 2}
    tail = batch(b'{"a', kind="tail", line_count=0, offset=len(whole), start_sequence=4)
    await worker.take(tail, batch(second, **place), batch(first), metadata(b'{ "a":1 }', 1))
    await worker.take(batch(whole))  # overlapping
    written = await export_session(worker.store, worker.archive, await worker.head(), tmp_path)
    assert (tmp_path / "events.jsonl").read_bytes() == whole + b'{"a'
    assert (tmp_path / "metadata.json").read_bytes() == b'{ "a":1 }'
    assert [each.path.name for each in written] == ["metadata.json", "events.jsonl"]
    assert written[1].sha256 == hashlib.sha256(whole + b'{"a').hexdigest()


async def test_stored_lines_decide_where_batches_disagree(worker: Worker, tmp_path: Path) -> None:
    """Also where the batch with the later lines stands before the one with the earlier."""
    await worker.take(part(0, 4, "a"))
    await worker.take(part(0, 7, "b" * 90))  # stores 4 to 6
    await worker.take(part(4, 6, "a"))  # stores 7 to 9
    await export_session(worker.store, worker.archive, await worker.head(), tmp_path)
    texts = [orjson.loads(x)["t"][0] for x in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert "".join(texts) == "aaaabbbaaa"


async def test_a_gap_in_the_archive_is_a_sentence(worker: Worker, tmp_path: Path) -> None:
    size = len(line(0))
    await worker.take(part(0, 2), part(4, 2))
    with pytest.raises(ArchiveMismatch, match=f"Bytes {2 * size} to {4 * size - 1} of events"):
        await export_session(worker.store, worker.archive, await worker.head(), tmp_path)
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240
    await worker.take(part(2, 2))
    last = max(await worker.kept())
    await worker.archive.delete([last])
    with pytest.raises(ArchiveMismatch, match=f"Bytes {4 * size} to {6 * size - 1} of events"):
        await export_session(worker.store, worker.archive, await worker.head(), tmp_path)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *[(name, name) for name in ("a b.jsonl", "rollout-1.jsonl", "x", "caf\u00e9.jsonl")],
        *[(name, "events.jsonl") for name in ("../../x", "a/b", "a\\b", "..", ".bashrc", "a.", "")],
        *[(name, "events.jsonl") for name in ("nul:", "a\nb", "x" * 201, None)],
    ],
)
async def test_a_file_gets_its_own_name_back_unless_that_does_harm(
    worker: Worker, tmp_path: Path, given: str | None, name: str
) -> None:
    sent = part(0, 2)
    await worker.take(Batch(sent.header.model_copy(update={"file_name": given}), sent.payload))
    written = await export_session(worker.store, worker.archive, await worker.head(), tmp_path)
    assert [file.path for file in written] == [tmp_path / name]
    assert (tmp_path / name).read_bytes() == sent.payload


async def test_two_files_never_take_one_name(worker: Worker, tmp_path: Path) -> None:
    events = batch(line(0), file_name="one.jsonl")
    await worker.take(events, batch(line(1), stream="transcript", file_name="one.jsonl"))
    written = await export_session(worker.store, worker.archive, await worker.head(), tmp_path)
    assert [file.path.name for file in written] == ["one.jsonl", "transcript.jsonl"]


# ------------------------------------------------------------ verification


async def verdict(
    worker: Worker, path: Path, content: bytes, role: Role = "events", *, whole: bool = False
) -> Finding:
    path = path / "file"
    path.write_bytes(content)
    source = Source(path, KEY, role, "amplifier")
    return await verify(worker.store, worker.archive, source, whole_bytes=whole)


async def test_a_file_that_was_stored_is_ok(worker: Worker, tmp_path: Path) -> None:
    content = line(0) + b"\n junk\r\n" + line(1)
    tail = batch(b'{"a', kind="tail", line_count=0, offset=len(content), start_sequence=3)
    await worker.take(batch(content), tail)
    finding = await verdict(worker, tmp_path, content + b'{"a', whole=True)
    assert (finding.verdict, finding.detail) == ("ok", "")
    assert (finding.lines, finding.stored, finding.quarantined) == (3, 2, 1)


async def test_missing_lines_are_named(worker: Worker, tmp_path: Path) -> None:
    await worker.take(part(0, 2), part(4, 1), part(6, 1))
    finding = await verdict(worker, tmp_path, part(0, 9).payload)
    assert finding.verdict == "missing"
    assert finding.missing == Coverage.of((2, 3), (5, 5), (7, 8))
    assert finding.detail == "lines 2 to 3, 5, 7 to 8 have not arrived"
    finding = await verdict(worker, tmp_path, part(0, 2).payload + part(4, 1).payload + b'{"a')
    assert finding.verdict == "differs"


async def test_a_missing_tail_is_named(worker: Worker, tmp_path: Path) -> None:
    await worker.take(part(0, 2))
    finding = await verdict(worker, tmp_path, part(0, 2).payload + b'{"a')
    assert finding.verdict == "missing"
    assert "unterminated last line" in finding.detail


@pytest.mark.parametrize(
    "content",
    [part(0, 2).payload + line(7), part(0, 2).payload, b"", line(5) + part(1, 2).payload],
)
async def test_a_file_that_changed_differs(worker: Worker, tmp_path: Path, content: bytes) -> None:
    await worker.take(part(0, 3))
    finding = await verdict(worker, tmp_path, content)
    assert finding.verdict == "differs"
    assert "ferry ship --supersede" in finding.detail


async def test_lost_or_damaged_archive_objects_are_found_by_comparing_bytes(
    worker: Worker, tmp_path: Path
) -> None:
    await worker.take(part(0, 3))
    (key,) = await worker.kept()
    await worker.archive.delete([key])
    assert (await verdict(worker, tmp_path, part(0, 3).payload)).verdict == "ok"
    finding = await verdict(worker, tmp_path, part(0, 3).payload, whole=True)
    assert finding.verdict == "missing"
    await worker.archive.put(key, encode(part(0, 3, "y")))
    finding = await verdict(worker, tmp_path, part(0, 3).payload, whole=True)
    assert (finding.verdict, finding.detail) == (
        "differs",
        "the archived bytes have another SHA-256",
    )
    await worker.archive.delete([key])
    await worker.archive.put(key, b"junk")
    finding = await verdict(worker, tmp_path, part(0, 3).payload, whole=True)
    assert finding.verdict == "missing"


async def test_metadata_is_verified_by_its_hash(worker: Worker, tmp_path: Path) -> None:
    assert (await verdict(worker, tmp_path, b"{}", "metadata")).verdict == "not stored"
    await worker.take(metadata(b"{}", 1))
    assert (await verdict(worker, tmp_path, b"{}", "metadata", whole=True)).verdict == "ok"
    assert (await verdict(worker, tmp_path, b"{ }", "metadata")).verdict == "differs"


async def test_what_never_arrived_and_what_was_deleted_is_said(
    worker: Worker, tmp_path: Path
) -> None:
    assert (await verdict(worker, tmp_path, part(0, 1).payload)).verdict == "not stored"
    await worker.take(part(0, 1))
    await delete_session(worker.store, worker.archive, KEY)
    assert (await verdict(worker, tmp_path, part(0, 1).payload)).verdict == "deleted"


async def test_a_clock_that_is_set_back_does_not_make_a_lock_look_longer(worker: Worker) -> None:
    """R6 goes by the steady clock: the lock is over, although the day began anew."""
    days = iter([NOW, *(NOW - 86_400 for _ in range(1000))])
    taker = Ingest(
        *(worker.store, Archive.open("memory://"), Archive.open("memory://")),
        clock=lambda: next(days),
        steady=lambda: 1000.0,
    )
    with pytest.raises(TransientError, match="lock runs out"):
        await taker.take_in([message(part(0, 1), locked_until=1000.0 + ingest.WRITE_MARGIN - 1)])


# ------------------------------------------------------------ long batches


class FailsOnce:
    """A store whose second write of lines fails, and that knows what is under way."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.writes = 0
        self.running = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def create_lines(self, *lines: Any) -> Any:
        self.writes += 1
        self.running += 1
        try:
            if self.writes == 2:
                raise PermanentError("no")
            return await self.inner.create_lines(*lines)
        finally:
            self.running -= 1


async def test_a_batch_of_several_chunks_is_stored_and_counted_exactly(worker: Worker) -> None:
    long = part(0, 3 * CHUNK_LINES + 7)
    (outcome,) = await worker.take(long)
    assert outcome.stored == 3 * CHUNK_LINES + 7
    (again,) = await worker.take(long, delivery_count=2)
    assert (again.stored, again.duplicate) == (0, outcome.stored)
    state = (await worker.head()).stream("events")
    assert state.stored == Coverage.of((0, 3 * CHUNK_LINES + 6))
    assert len(await worker.store.read_lines(KEY, "events", 0, limit=10_000)) == outcome.stored


async def test_nothing_is_written_any_more_when_a_chunk_has_failed(worker: Worker) -> None:
    store = FailsOnce(worker.store)
    taker = worker.over(cast("Store", store))
    long = message(part(0, 4 * CHUNK_LINES))
    (outcome,) = await taker.take_in([long])
    assert outcome.kind == "quarantined"
    assert store.running == 0
    assert store.writes == 2
