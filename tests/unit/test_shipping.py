"""Shipping: what is remembered as read is in the queue or in the spool, whatever fails.

The sender is a small one in memory: it packs nothing itself, holds batches back as the real one
does, and can refuse at any point. The real one is tested in tests/integration/test_publisher.py.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionferry import packing
from sessionferry.agent import reading
from sessionferry.agent.collecting import Report, planned_bytes
from sessionferry.agent.discover import Source, discover, look
from sessionferry.agent.gate import Checked, Gate, OpenGate, Passed
from sessionferry.agent.shipping import Shipper
from sessionferry.agent.spool import FileId, Known, Spool
from sessionferry.batch import Batch, Header, check_time
from sessionferry.config import Fields, JsonLines
from sessionferry.errors import TransientError
from sessionferry.host import Identity
from sessionferry.hosts import MAX_HEARTBEAT_BYTES, parse_heartbeat
from sessionferry.identity import SessionKey
from sessionferry.packing import Packed
from sessionferry.statements import Statement
from support.links import LIMIT, MemorySender, decoded, generations, of

MTIME = 1_750_000_000_000  # ms


class Agent:
    """A machine with session files, its memory, and everything that its queue ever took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = folder / "home" / "projects" / "-p" / "sessions" / "s1"
        self.session.mkdir(parents=True)
        self.identity = Identity(folder / "identity", host_id="h1", user_id="anna")
        self.queue: list[Batch] = []
        self.gate: Gate = OpenGate()

    def write(self, name: str, content: bytes, *, mtime_ms: int = MTIME) -> Path:
        path = self.session / name
        path.write_bytes(content)
        os.utime(path, ns=(mtime_ms * 10**6, mtime_ms * 10**6))
        return path

    def sources(self) -> list[Source]:
        return discover([self.folder / "home"], "anna", None)

    async def ship(
        self,
        sender: MemorySender | None = None,
        *,
        sources: list[Source] | None = None,
        lost: bool = False,
        resend: bool = False,
        supersede: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> Report:
        own = sender or MemorySender()
        spool = Spool(self.folder / "spool.db")
        shipper = Shipper(
            spool,
            Checked(self.gate),
            self.identity,
            limit=own.limit,
            spool_was_lost=lost,
            resend=resend,
            supersede=supersede,
            advance=advance,
        )
        try:
            return await shipper.ship(self.sources() if sources is None else sources, own)
        finally:
            spool.close()
            self.queue += own.accepted

    def remembered(self, role: str) -> Known | None:
        spool = Spool(self.folder / "spool.db")
        try:
            return spool.known(FileId(self.sources()[0].key, role))
        finally:
            spool.close()

    def spooled(self) -> list[Batch]:
        spool = Spool(self.folder / "spool.db")
        try:
            return [decoded(waiting.packed) for waiting in spool.waiting(0, 10**9)]
        finally:
            spool.close()

    def sent(self, kind: str, stream: str | None = None) -> list[Batch]:
        return of(self.queue, kind, stream)

    def statements(self) -> list[Statement]:
        """All that heartbeats said the queue took."""
        beats = [parse_heartbeat(b.header, orjson.loads(b.payload)) for b in self.sent("heartbeat")]
        return [statement for beat in beats for statement in beat.statements]

    def generations(self, stream: str, batches: list[Batch] | None = None) -> dict[int, bytes]:
        """Put together what arrived, per generation, by offset; gaps and contradictions fail."""
        return generations(of(self.queue if batches is None else batches, "lines", stream))


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Small messages need small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_BYTES", 600)
        yield


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def lines(seed: int, count: int = 60) -> bytes:
    """Lines that need several messages of `LIMIT` bytes."""
    rng = random.Random(seed)
    return b"".join(
        orjson.dumps({"n": n, "text": rng.randbytes(rng.randint(1, 120)).hex()}) + b"\n"
        for n in range(count)
    )


# ------------------------------------------------------------ whatever fails


@settings(max_examples=25)
@given(
    calls=st.lists(st.integers(0, 40), max_size=4),
    hold=st.integers(1, 5),
    changes=st.lists(st.sampled_from(["none", "append", "finish", "rewrite"]), min_size=5),
    seed=st.integers(0, 5),
)
async def test_what_is_remembered_is_in_the_queue_or_in_the_spool_and_in_the_end_all_has_arrived(
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[int],
    hold: int,
    changes: list[str],
    seed: int,
) -> None:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    content = lines(seed) + b'{"unfinished":'
    agent.write("events.jsonl", content)
    agent.write("metadata.json", b'{"name":"x"}')
    moment = MTIME
    for number, most in enumerate(calls):
        with suppress(TransientError):
            await agent.ship(MemorySender(hold=hold, calls=most))
        check_memory(agent)
        moment += 1000
        content = changed(content, changes[number], number)
        agent.write("events.jsonl", content, mtime_ms=moment)
    await agent.ship(MemorySender(hold=hold))
    check_all_there(agent, content)
    again = await agent.ship()
    assert (again.lines, again.tails, again.unchanged) == (0, 0, 2)


def changed(content: bytes, change: str, number: int) -> bytes:
    match change:
        case "append":
            return content + b'"more"}\n' + lines(number + 10, 20)
        case "finish":
            return content + b"0}\n"
        case "rewrite":
            return lines(number + 100, 30)
        case _:
            return content


def check_memory(agent: Agent) -> None:
    """What is remembered of a file has arrived or waits in the spool, from its beginning."""
    known = agent.remembered("events")
    safe = agent.queue + agent.spooled()
    if known is not None and known.offset:
        there = agent.generations("events", safe)[known.generation]
        assert len(there) == known.offset
        assert known.lines == there.count(b"\n")
    if agent.remembered("metadata") is not None:
        assert of(safe, "metadata", None)
    for statement in agent.statements():
        there = agent.generations("events", agent.queue)[statement.generation]
        assert there.count(b"\n") >= statement.lines


def check_all_there(agent: Agent, content: bytes) -> None:
    end = content.rfind(b"\n") + 1
    newest = agent.generations("events")
    assert newest[max(newest)] == content[:end]
    if content[end:]:
        tails = agent.sent("tail", "events")
        assert tails[-1].payload == content[end:]
        assert tails[-1].header.offset == end
    assert agent.sent("metadata")[-1].payload == b'{"name":"x"}'
    said = agent.statements()[-1]
    assert (said.stream, said.generation) == ("events", max(newest))
    assert said.lines == content[:end].count(b"\n")


@pytest.mark.parametrize("calls", range(12))
async def test_what_was_read_before_the_link_failed_is_sent_though_its_file_is_gone(
    agent: Agent, calls: int
) -> None:
    agent.write("events.jsonl", lines(1, 5))
    agent.write("transcript.jsonl", lines(2, 200))
    with suppress(TransientError):
        await agent.ship(MemorySender(hold=1, calls=calls))
    read = {name: agent.remembered(name) for name in ("events", "transcript")}
    sources = agent.sources()
    for source in sources:
        source.path.rename(source.path.with_name("moved"))
    await agent.ship(sources=[])
    for name, content in (("events", lines(1, 5)), ("transcript", lines(2, 200))):
        known = read[name]
        arrived = agent.generations(name).get(0, b"")
        assert arrived == content[: known.offset if known else 0]
    assert agent.spooled() == []


async def test_a_batch_that_was_taken_before_the_end_is_not_sent_over_a_rewritten_file(
    agent: Agent,
) -> None:
    """The queue has taken it, the agent dies before it notes that, and the file is rewritten."""
    agent.write("events.jsonl", lines(1, 300))
    sender = MemorySender(hold=1)
    with pytest.raises(TransientError):
        await agent.ship(Forgetful(sender))
    assert sender.accepted
    agent.queue += sender.accepted
    agent.write("events.jsonl", lines(2), mtime_ms=MTIME + 1)
    await agent.ship()
    assert agent.generations("events")[MTIME + 1] == lines(2)
    assert agent.generations("events")[0] == lines(1, 300)


class Forgetful(MemorySender):
    """Takes batches, and fails before it can say so."""

    def __init__(self, taker: MemorySender) -> None:
        super().__init__()
        self._taker = taker

    async def send(self, packed: Packed) -> list[Header]:
        await self._taker.send(packed)
        await self._taker.flush()
        raise TransientError("The link is gone.")


# ------------------------------------------------------------ streams


async def test_a_first_run_sends_all_and_a_second_nothing(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    agent.write("transcript.jsonl", lines(2))
    seen: list[int] = []
    report = await agent.ship(advance=seen.append)
    assert agent.generations("events") == {0: lines(1)}
    assert agent.generations("transcript") == {0: lines(2)}
    assert len(agent.sent("lines", "events")) > 2
    assert (report.files, report.lines, report.failed) == (2, 120, [])
    assert report.bytes == sum(seen) == planned_bytes(agent.sources())
    again = await agent.ship()
    assert (again.unchanged, again.lines, again.bytes) == (2, 0, 0)


async def test_headers_say_what_a_batch_is(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    await agent.ship()
    for header in [batch.header for batch in agent.sent("lines", "events")]:
        place = (header.user_id, header.host_id, header.project_slug, header.session_id)
        assert place == ("anna", "h1", "-p", "s1")
        assert header.format == "amplifier"
        assert header.agent.startswith("sessionferry/")
        assert header.sent_at.endswith("Z")


async def test_appended_files_go_on_where_they_were(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    await agent.ship()
    sent = len(agent.sent("lines", "events"))
    agent.write("events.jsonl", lines(1) + lines(2, 3), mtime_ms=MTIME + 1)
    report = await agent.ship()
    (batch,) = agent.sent("lines", "events")[sent:]
    assert (batch.header.offset, batch.header.start_sequence) == (len(lines(1)), 60)
    assert batch.payload == lines(2, 3)
    assert (report.lines, report.rewritten) == (3, 0)


@pytest.mark.parametrize("content", [lines(9), lines(1)[:-1] + b" \n", lines(1, 7), b"", b"{}"])
@pytest.mark.parametrize("name", ["events", "transcript"])
async def test_rewritten_and_shortened_files_start_a_new_generation(
    agent: Agent, content: bytes, name: str
) -> None:
    agent.write(f"{name}.jsonl", lines(1))
    await agent.ship()
    agent.write(f"{name}.jsonl", content, mtime_ms=MTIME + 5)
    report = await agent.ship()
    assert report.rewritten == 1
    remembered = agent.remembered(name)
    assert remembered is not None
    assert remembered.generation == MTIME + 5
    whole = content[: content.rfind(b"\n") + 1]
    assert agent.generations(name).get(MTIME + 5, b"") == whole
    assert {b.header.generation for b in agent.sent("tail", name)} <= {MTIME + 5}


async def test_a_generation_is_above_the_last_one_even_if_the_file_looks_older(
    agent: Agent,
) -> None:
    agent.write("transcript.jsonl", lines(1))
    await agent.ship()
    for number, mtime in enumerate((MTIME, MTIME - 9000, MTIME - 9000, MTIME + 7)):
        agent.write("transcript.jsonl", lines(10 + number), mtime_ms=mtime)
        await agent.ship()
    expected = {0: 1, MTIME: 10, MTIME + 1: 11, MTIME + 2: 12, MTIME + 7: 13}
    assert agent.generations("transcript") == {g: lines(s) for g, s in expected.items()}


@pytest.mark.parametrize("mtime_ms", [-86_400_000, 0, 32_503_680_000_000])
async def test_file_times_that_cannot_be_do_no_harm(agent: Agent, mtime_ms: int) -> None:
    agent.write("transcript.jsonl", lines(1), mtime_ms=mtime_ms)
    agent.write("metadata.json", b"{}", mtime_ms=mtime_ms)
    await agent.ship()
    agent.write("transcript.jsonl", lines(2), mtime_ms=mtime_ms)
    report = await agent.ship(supersede=True)
    assert report.failed == []
    now = int(time.time() * 1000)
    for batch in agent.queue:
        check_time(batch.header, now)
    generations = agent.generations("transcript")
    assert generations[max(generations)] == lines(2)
    assert max(generations) > 0


async def test_a_lost_spool_starts_rewritable_streams_at_the_file_time(agent: Agent) -> None:
    agent.write("transcript.jsonl", lines(1))
    agent.write("events.jsonl", lines(2))
    await agent.ship()
    (agent.folder / "spool.db").unlink()
    await agent.ship(lost=True)
    assert agent.generations("transcript") == {0: lines(1), MTIME: lines(1)}
    assert agent.generations("events") == {0: lines(2)}


async def test_resending_repeats_the_generation_that_was_sent(agent: Agent) -> None:
    agent.write("transcript.jsonl", lines(1))
    agent.write("metadata.json", b"{}")
    await agent.ship()
    agent.write("transcript.jsonl", lines(2), mtime_ms=MTIME + 5)
    await agent.ship()
    before = len(agent.queue)
    await agent.ship(resend=True)
    again = [b.header for b in agent.queue[before:] if b.header.kind == "lines"]
    assert {header.generation for header in again} == {MTIME + 5}
    assert sum(header.length for header in again) == len(lines(2))
    assert len(agent.sent("metadata")) == 2
    agent.write("transcript.jsonl", lines(2) + lines(3), mtime_ms=MTIME + 9)
    await agent.ship()
    assert agent.generations("transcript") == {0: lines(1), MTIME + 5: lines(2) + lines(3)}


async def test_resending_a_file_that_was_rewritten_is_a_new_generation(agent: Agent) -> None:
    agent.write("transcript.jsonl", lines(1))
    await agent.ship()
    agent.write("transcript.jsonl", lines(2), mtime_ms=MTIME + 5)
    await agent.ship(resend=True)
    assert agent.generations("transcript") == {0: lines(1), MTIME + 5: lines(2)}


async def test_superseding_sends_an_unchanged_file_as_a_new_generation(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    await agent.ship()
    await agent.ship(supersede=True)
    await agent.ship(supersede=True)
    whole = lines(1)
    assert agent.generations("events") == {0: whole, MTIME: whole, MTIME + 1: whole}


# ------------------------------------------------------------ tails


async def test_a_tail_is_sent_once_and_again_when_it_grew(agent: Agent) -> None:
    for mtime, tail in enumerate((b'{"a', b'{"a', b'{"a":1')):
        agent.write("events.jsonl", b"{}\n" + tail, mtime_ms=MTIME + mtime)
        await agent.ship()
    assert [b.payload for b in agent.sent("tail", "events")] == [b'{"a', b'{"a":1']
    header = agent.sent("tail", "events")[0].header
    assert (header.offset, header.start_sequence, header.line_count) == (3, 1, 0)
    assert agent.generations("events") == {0: b"{}\n"}


async def test_a_finished_tail_becomes_a_line(agent: Agent) -> None:
    agent.write("events.jsonl", b'{}\n{"a')
    await agent.ship()
    agent.write("events.jsonl", b'{}\n{"a":1}\n', mtime_ms=MTIME + 1)
    report = await agent.ship()
    assert agent.generations("events") == {0: b'{}\n{"a":1}\n'}
    assert (report.lines, report.tails, report.rewritten) == (1, 0, 0)


@pytest.mark.parametrize("after", [b"", b"x", b'{"b":1}\n', b'{"b'])
async def test_a_tail_that_was_taken_back_is_a_rewrite(agent: Agent, after: bytes) -> None:
    agent.write("events.jsonl", b'{}\n{"a')
    await agent.ship()
    agent.write("events.jsonl", b"{}\n" + after, mtime_ms=MTIME + 1)
    report = await agent.ship()
    assert report.rewritten == 1
    whole = (b"{}\n" + after)[: (b"{}\n" + after).rfind(b"\n") + 1]
    assert agent.generations("events")[MTIME + 1] == whole


async def test_where_facts_stand_travels_with_the_lines_and_may_change(agent: Agent) -> None:
    def sources(place: str | None) -> list[Source]:
        entry = JsonLines(paths=(agent.folder / "tool",), fields=Fields(model=place))
        return look([agent.folder / "tool"], "anna", None, [entry])

    path = agent.folder / "tool" / "a.jsonl"
    path.parent.mkdir()
    carried = []
    for place in ("llm.name", "llm.id", None):
        with path.open("ab") as file:
            file.write(lines(1))
        sender = MemorySender()
        await agent.ship(sender, sources=sources(place))
        carried.append(
            {str(batch.header.carry) for batch in of(sender.accepted, "lines", "transcript")}
        )
    assert carried == [
        {"{'fields': {'model': 'llm.name'}}"},
        {"{'fields': {'model': 'llm.id'}}"},
        {"None"},
    ]
    assert agent.generations("transcript") == {0: lines(1) * 3}


# ------------------------------------------------------------ compressed files


def thread(agent: Agent, content: bytes, *, packed: bool) -> list[Source]:
    """Have one Codex thread, plain or compressed, with the same file time."""
    folder = agent.folder / "codex" / "sessions" / "2026" / "03" / "02"
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "rollout-2026-03-02T09-00-00-t1.jsonl"
    path = plain.with_name(f"{plain.name}.zst") if packed else plain
    for old in folder.iterdir():
        old.unlink()
    path.write_bytes(zstandard.compress(content) if packed else content)
    os.utime(path, ns=(MTIME * 10**6, MTIME * 10**6))
    return discover([agent.folder / "codex"], "anna", None)


async def test_a_compressed_thread_is_sent_as_if_it_were_plain(agent: Agent) -> None:
    content = b'{"cwd":"/srv/app"}\n' + lines(1) + b'{"torn":'
    report = await agent.ship(sources=thread(agent, content, packed=True))
    assert (report.lines, report.bytes, report.tails) == (61, len(content), 1)
    (header,) = {batch.header.file_name for batch in agent.sent("lines", "transcript")}
    assert header == "rollout-2026-03-02T09-00-00-t1.jsonl"
    assert agent.generations("transcript") == {0: content.removesuffix(b'{"torn":')}


async def test_a_thread_that_is_compressed_and_goes_on_is_one_generation(agent: Agent) -> None:
    first = b'{"cwd":"/srv/app"}\n' + lines(1)
    await agent.ship(sources=thread(agent, first, packed=False))
    report = await agent.ship(sources=thread(agent, first, packed=True))
    assert (report.unchanged, report.lines) == (1, 0)
    # Lines that were added just before, and whose file time was kept.
    report = await agent.ship(sources=thread(agent, first + lines(2), packed=True))
    assert (report.rewritten, report.lines) == (0, 60)
    report = await agent.ship(sources=thread(agent, first + lines(2) + lines(3), packed=False))
    assert (report.rewritten, report.lines) == (0, 60)
    assert agent.generations("transcript") == {0: first + lines(2) + lines(3)}


async def test_a_damaged_compressed_thread_is_named_and_stops_nothing(agent: Agent) -> None:
    (source,) = thread(agent, b'{"cwd":"/srv/app"}\n' + lines(1), packed=True)
    source.path.write_bytes(source.path.read_bytes()[:-9])
    agent.write("events.jsonl", lines(5))
    report = await agent.ship(sources=[source, *agent.sources()])
    (failed,) = report.failed
    assert failed.startswith(str(source.path))
    assert "ends in the middle" in failed
    assert agent.generations("events") == {0: lines(5)}


# ------------------------------------------------------------ metadata


async def test_metadata_is_sent_whole_whenever_its_content_changed(agent: Agent) -> None:
    contents = [b'{"name":"a"}', b'{"name":"a"}', b'{"name":"b"}', b"not json", b""]
    for mtime, content in enumerate(contents):
        agent.write("metadata.json", content, mtime_ms=MTIME + mtime)
        await agent.ship()
    sent = agent.sent("metadata")
    assert [b.payload for b in sent] == [contents[0], *contents[2:]]
    assert [b.header.revision for b in sent] == [(MTIME + n) * 10**6 for n in (0, 2, 3, 4)]


async def test_metadata_with_an_older_time_wins_when_it_supersedes(agent: Agent) -> None:
    agent.write("metadata.json", b'{"name":"new"}', mtime_ms=MTIME + 1)
    await agent.ship()
    agent.write("metadata.json", b'{"name":"old"}', mtime_ms=MTIME)
    await agent.ship(supersede=True)
    first, second = (batch.header.revision for batch in agent.sent("metadata"))
    assert second > first


# ------------------------------------------------------------ files that cannot be read


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 500)
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 3000)
    return


@pytest.mark.usefixtures("short_lines")
async def test_what_stands_before_an_over_long_line_is_shipped_once(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1) + b"x" * 9000 + b"\n" + lines(2))
    agent.write("transcript.jsonl", lines(3))
    report = await agent.ship()
    (failure,) = report.failed
    assert "events.jsonl: A line has over 3000 bytes." in failure
    assert agent.generations("events") == {0: lines(1)}
    assert agent.generations("transcript") == {0: lines(3)}
    again = await agent.ship()
    assert (len(again.failed), again.lines) == (1, 0)
    agent.write("events.jsonl", lines(1) + b"{}\n", mtime_ms=MTIME + 1)
    assert (await agent.ship()).failed == []
    assert agent.generations("events") == {0: lines(1) + b"{}\n"}


async def test_unreadable_and_vanished_files_are_named_and_stop_nothing(agent: Agent) -> None:
    gone = agent.write("events.jsonl", lines(1))
    agent.write("transcript.jsonl", lines(3))
    strange = agent.write("metadata.json", b"{}")
    sources = agent.sources()
    gone.unlink()
    strange.unlink()
    strange.mkdir()
    report = await agent.ship(sources=sources)
    assert [failure.rpartition("/")[2] for failure in report.failed] == [
        "metadata.json: Is a directory",
        "events.jsonl: No such file or directory",
    ]
    assert agent.generations("transcript") == {0: lines(3)}
    assert planned_bytes(sources) == len(lines(3)) + strange.stat().st_size


async def test_a_file_that_grows_while_it_is_read_is_looked_at_again(agent: Agent) -> None:
    path = agent.write("events.jsonl", lines(1))
    grown = False

    def grow(_done: int) -> None:
        nonlocal grown
        if not grown:
            grown = True
            with path.open("ab") as file:
                file.write(lines(2))

    await agent.ship(advance=grow)
    await agent.ship()
    assert agent.generations("events") == {0: lines(1) + lines(2)}


async def test_shipping_once_keeps_to_the_rate(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1, 400))
    spool = Spool(agent.folder / "spool.db")
    shipper = Shipper(
        *(spool, Checked(OpenGate()), agent.identity), limit=LIMIT, bytes_per_second=20_000
    )
    began = time.monotonic()
    report = await shipper.ship(agent.sources(), MemorySender())
    # What a second lets pass is free, and so is the last one.
    assert report.sent_bytes > 26_000
    assert time.monotonic() - began > 0.3
    spool.close()


async def test_a_disk_that_is_too_full_is_a_sentence_and_no_waiting(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    spool = Spool(agent.folder / "spool.db", free_bytes=2**62)
    shipper = Shipper(spool, Checked(OpenGate()), agent.identity, limit=LIMIT)
    with pytest.raises(TransientError, match="too full"):
        await shipper.ship(agent.sources(), MemorySender())
    assert spool.known(FileId(agent.sources()[0].key, "events")) is None
    spool.close()


async def test_a_spool_smaller_than_the_files_is_emptied_on_the_way(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1, 400))
    spool = Spool(agent.folder / "spool.db", most_bytes=5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sessionferry.agent.collecting.COMMIT_BYTES", 3000)
        patch.setattr("sessionferry.agent.shipping.ROOM_SECONDS", 0.01)
        sender = MemorySender(hold=1)
        shipper = Shipper(spool, Checked(OpenGate()), agent.identity, limit=LIMIT)
        await shipper.ship(agent.sources(), sender)
    spool.close()
    agent.queue = sender.accepted
    assert agent.generations("events") == {0: lines(1, 400)}


# ------------------------------------------------------------ heartbeats


async def test_each_run_ends_with_a_heartbeat_of_what_was_sent(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    await agent.ship()
    await agent.ship()
    first, second = agent.sent("heartbeat")
    beats = [parse_heartbeat(b.header, orjson.loads(b.payload)) for b in (first, second)]
    assert second.header.revision > first.header.revision
    assert beats[0].run_id != beats[1].run_id
    assert beats[0].machine == beats[1].machine
    size = len(lines(1))
    key = agent.sources()[0].key.partition_key
    assert beats[0].statements == (Statement(key, "events", 0, 60),)
    assert beats[1].statements == ()
    nothing = {"filtered": 0, "redacted": 0, "spooled": 0, "failing": 0}
    assert beats[1].ledger == {"files": 1, "bytes": size, "read": 60, "sent": 60, **nothing}


async def test_many_files_are_told_of_in_several_heartbeats(agent: Agent) -> None:
    names = [f"{number:04}" + "x" * 150 for number in range(400)]
    for name in names:
        folder = agent.session.with_name(name)
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(b"{}\n")
    await agent.ship(MemorySender(limit=10**6))
    beats = agent.sent("heartbeat")
    assert len(beats) > 1
    assert all(len(beat.payload) <= MAX_HEARTBEAT_BYTES for beat in beats)
    told = [it.partition_key.rpartition("|")[2] for it in agent.statements()]
    assert sorted(told) == names


async def test_what_is_sent_once_more_is_told_once_more(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    await agent.ship()
    await agent.ship(resend=True)
    first, second = agent.statements()
    assert first == second


# ------------------------------------------------------------ the gate


class Strict:
    """Leaves out every line with a 7 at its number's end, and makes the others longer."""

    rules = "strict-1"

    def admits(self, source: Source) -> bool:
        return source.role != "metadata"

    def lines(self, source: Source, piece: bytes) -> Passed:
        kept = [line for line in piece.splitlines(keepends=True) if b'7,"' not in line]
        grown = b"".join(kept).replace(b"a", b"[REDACTED]")
        filtered = piece.count(b"\n") - len(kept)
        return Passed(grown, filtered, {"letter": b"".join(kept).count(b"a")})

    def tail(self, source: Source, rest: bytes) -> Passed:
        return Passed(rest.replace(b"a", b"[REDACTED]"))

    def metadata(self, source: Source, payload: bytes) -> Passed:
        raise AssertionError("metadata is not admitted")


class Broken(Strict):
    """Fails at one line."""

    rules = "broken-1"

    def lines(self, source: Source, piece: bytes) -> Passed:
        if b'"n":40,' in piece:
            raise ValueError(piece)
        return super().lines(source, piece)


def gated(content: bytes) -> bytes:
    source = Source(Path("x"), SessionKey("u", "p", "s"), "events", "jsonl")
    return Strict().lines(source, content).payload


@settings(max_examples=20)
@given(
    calls=st.lists(st.integers(0, 30), max_size=4),
    hold=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 120), min_size=4, max_size=4),
)
async def test_what_passes_the_gate_arrives_whole_however_it_is_interrupted(
    tmp_path_factory: pytest.TempPathFactory, calls: list[int], hold: int, cuts: list[int]
) -> None:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    agent.gate = Strict()
    agent.write("metadata.json", b"{}")
    whole = lines(1, 120)
    each = whole.splitlines(keepends=True)
    for number, (most, cut) in enumerate(zip(calls, sorted(cuts), strict=False)):
        agent.write("events.jsonl", b"".join(each[:cut]), mtime_ms=MTIME + number)
        with suppress(TransientError):
            await agent.ship(MemorySender(hold=hold, calls=most))
    agent.write("events.jsonl", whole, mtime_ms=MTIME + 99)
    await agent.ship(MemorySender(hold=hold))
    assert agent.generations("events") == {0: gated(whole)}
    assert agent.sent("metadata") == []
    known = agent.remembered("events")
    assert known is not None
    assert (known.lines, known.filtered) == (120, 12)
    assert (known.offset, known.sent.offset) == (len(whole), len(gated(whole)))
    ledger = orjson.loads(agent.sent("heartbeat")[-1].payload)["ledger"]
    assert (ledger["read"], ledger["filtered"], ledger["sent"]) == (120, 12, 108)
    assert ledger["redacted"] == gated(whole).count(b"[REDACTED]")


async def test_other_rules_are_another_version_of_the_file(agent: Agent) -> None:
    agent.write("events.jsonl", lines(1))
    agent.write("metadata.json", b"{}")
    await agent.ship()
    agent.gate = Strict()
    report = await agent.ship()
    assert report.rewritten == 1
    assert agent.generations("events") == {0: lines(1), MTIME: gated(lines(1))}
    assert (await agent.ship()).lines == 0


async def test_what_the_gate_refuses_stays_here_with_all_that_follows(agent: Agent) -> None:
    agent.gate = Broken()
    agent.write("events.jsonl", lines(1, 100))
    agent.write("transcript.jsonl", lines(2, 30))
    report = await agent.ship()
    (failure,) = report.failed
    assert failure.endswith("events.jsonl: The gate failed: ValueError.")
    arrived = agent.generations("events").get(0, b"")
    assert gated(lines(1, 100)).startswith(arrived)
    assert b'"n":40,' not in arrived
    assert agent.generations("transcript") == {0: gated(lines(2, 30))}


async def test_what_a_format_carries_goes_on_in_the_next_run(agent: Agent) -> None:
    """Usage that Claude Code repeats is exact only if the second run knows of the first."""
    path = agent.folder / "home" / "claude" / "0c473079-aaaa-bbbb-cccc-000000000000.jsonl"
    path.parent.mkdir()
    usage = {"input_tokens": 5, "output_tokens": 7}
    line = orjson.dumps({"type": "assistant", "message": {"id": "m1", "usage": usage}}) + b"\n"
    source = Source(path, SessionKey("anna", "p", "claude"), "transcript", "claude_code")
    path.write_bytes(line)
    await agent.ship(sources=[source])
    with path.open("ab") as file:
        file.write(line)
    await agent.ship(sources=[source])
    first, second = (batch.header for batch in agent.sent("lines", "transcript"))
    assert first.carry is None
    packer = packing.Packer(first, LIMIT)
    list(packer.add(line))
    assert second.carry == packer.carry
    assert second.carry
