"""The life of a message, told to the queue with a clock of the test's own."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionferry.local.broker import amqp, message
from sessionferry.local.broker.definitions import QueueDefinition
from sessionferry.local.broker.errors import LockLostError, NotFoundError, ServiceError
from sessionferry.local.broker.message import Envelope
from sessionferry.local.broker.queues import Queue, Queues, Stored

LOCK = 1_000


def open_queues(directory: Path, **options: Any) -> Queues:
    definition = QueueDefinition(name="q", lock_duration=LOCK, **options)
    return Queues(directory / "messages", lambda name: definition if name == "q" else None)


class Bench:
    """A queue and its time."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.options = options
        self.queues = open_queues(directory, **options)
        self.now = 10_000

    @property
    def queue(self) -> Queue:
        return self.queues.find("q")

    def send(self, body: bytes = b"body", **facts: Any) -> int:
        raw = amqp.described(message.DATA, amqp.encode(body))
        return self.queue.send(Envelope(raw=raw, **facts), self.now)

    def take(self, count: int = 10, *, dead: bool = False, lock: bool = True) -> list[Stored]:
        entity = self.queue.dead if dead else self.queue.active
        return self.queue.take(entity, count, self.now, lock=lock)

    def take_one(self, *, dead: bool = False) -> tuple[Stored, bytes]:
        (item,) = self.take(1, dead=dead)
        assert item.token is not None
        return item, item.token

    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.queues.move_due(self.now)

    def restart(self) -> None:
        self.queues.close()
        self.queues = open_queues(self.directory, **self.options)
        self.queues.move_due(self.now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.queues.close()


def properties(item: Stored) -> dict[str, Any]:
    for section in message.sections(item.body):
        if section.code == message.APPLICATION_PROPERTIES:
            found: dict[str, Any] = amqp.decode(item.body, section.value)[0]
            return found
    return {}


def test_messages_are_taken_in_order_and_once(bench: Bench) -> None:
    numbers = [bench.send() for _ in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    assert [item.sequence for item in bench.take(3)] == [1, 2, 3]
    assert [item.sequence for item in bench.take(3)] == [4, 5]


def test_a_completed_message_is_gone(bench: Bench) -> None:
    bench.send()
    _, token = bench.take_one()
    bench.queue.complete(token, bench.now)
    bench.wait(LOCK)
    assert bench.take() == []
    with pytest.raises(LockLostError):
        bench.queue.complete(token, bench.now)


def test_an_abandoned_message_returns_to_its_place_with_one_delivery_more(bench: Bench) -> None:
    bench.send()
    bench.send()
    _, token = bench.take_one()
    bench.queue.abandon(token, bench.now)
    assert [(item.sequence, item.deliveries) for item in bench.take()] == [(1, 1), (2, 0)]


def test_a_released_message_keeps_its_delivery_count(bench: Bench) -> None:
    bench.send()
    _, token = bench.take_one()
    bench.queue.release(token, bench.now)
    assert bench.take_one()[0].deliveries == 0


def test_an_expired_lock_is_lost_and_counts_as_a_delivery(bench: Bench) -> None:
    bench.send()
    item, token = bench.take_one()
    assert item.locked_until == bench.now + LOCK
    bench.wait(LOCK - 1)
    assert bench.take() == []
    bench.wait(1)
    with pytest.raises(LockLostError):
        bench.queue.complete(token, bench.now)
    assert bench.take_one()[0].deliveries == 1


def test_a_renewed_lock_lasts_from_now_on(bench: Bench) -> None:
    bench.send()
    _, token = bench.take_one()
    bench.wait(LOCK - 1)
    assert bench.queue.renew([token], bench.now) == bench.now + LOCK
    bench.wait(LOCK - 1)
    bench.queue.complete(token, bench.now)


def test_renewing_is_all_or_nothing(bench: Bench) -> None:
    bench.send()
    _, token = bench.take_one()
    bench.now += 1
    with pytest.raises(LockLostError):
        bench.queue.renew([token, bytes(16)], bench.now)
    bench.wait(LOCK - 1)
    assert bench.take_one()[0].deliveries == 1


@pytest.mark.parametrize("token", [bytes(16), b"\xff" * 16])
def test_a_made_up_token_locks_nothing(bench: Bench, token: bytes) -> None:
    with pytest.raises(LockLostError):
        bench.queue.complete(token, bench.now)


def test_too_many_deliveries_end_in_the_dead_letter_queue(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_delivery_count=2)
    sequence = bench.send()
    for _ in range(2):
        bench.queue.abandon(bench.take_one()[1], bench.now)
    assert bench.take() == []
    (item,) = bench.take(dead=True)
    assert item.sequence == sequence
    assert properties(item) == {
        "DeadLetterReason": "MaxDeliveryCountExceeded",
        "DeadLetterErrorDescription": "Message could not be consumed after 2 delivery attempts.",
    }
    bench.queues.close()


def test_the_dead_letter_queue_has_no_end_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_delivery_count=1)
    bench.send(time_to_live=50)
    bench.queue.abandon(bench.take_one()[1], bench.now)
    for attempt in range(1, 4):
        item, token = bench.take_one(dead=True)
        assert item.deliveries == attempt
        bench.queue.abandon(token, bench.now)
        bench.wait(1_000)
    bench.queues.close()


def test_dead_lettering_names_its_reason(bench: Bench) -> None:
    bench.send()
    bench.queue.dead_letter(bench.take_one()[1], bench.now, "why", "because")
    (item,) = bench.take(dead=True)
    assert properties(item) == {"DeadLetterReason": "why", "DeadLetterErrorDescription": "because"}


def test_a_deferred_message_is_taken_by_number_only(bench: Bench) -> None:
    sequence = bench.send()
    bench.queue.defer(bench.take_one()[1], bench.now)
    assert bench.take() == []
    (item,) = bench.queue.take_deferred(bench.queue.active, [sequence], bench.now, lock=True)
    assert item.token is not None
    bench.queue.abandon(item.token, bench.now)
    assert bench.take() == []
    (again,) = bench.queue.take_deferred(bench.queue.active, [sequence], bench.now, lock=False)
    assert again.deliveries == 2


@pytest.mark.parametrize("sequence", [0, -1, 7, 2**40 + 1, 2**70])
def test_an_unknown_number_is_not_found(bench: Bench, sequence: int) -> None:
    with pytest.raises(ServiceError, match="sequence number") as caught:
        bench.queue.take_deferred(bench.queue.active, [sequence], bench.now, lock=True)
    assert caught.value.condition == "com.microsoft:message-not-found"


def test_a_scheduled_message_arrives_on_time(bench: Bench) -> None:
    bench.send(scheduled_at=bench.now + 500)
    bench.wait(499)
    assert bench.take() == []
    bench.wait(1)
    assert bench.take_one()[0].enqueued == bench.now


def test_a_cancelled_message_never_arrives(bench: Bench) -> None:
    sequence = bench.send(scheduled_at=bench.now + 500)
    bench.queue.cancel([sequence])
    bench.wait(500)
    assert bench.take() == []
    with pytest.raises(ServiceError):
        bench.queue.cancel([sequence])


@pytest.mark.parametrize(("dead_letters", "expected"), [(True, 1), (False, 0)])
def test_an_expired_message_is_not_delivered(
    tmp_path: Path, dead_letters: bool, expected: int
) -> None:
    bench = Bench(tmp_path, dead_lettering_on_message_expiration=dead_letters)
    bench.send(time_to_live=100)
    bench.now += 100
    assert bench.take() == []
    bench.wait(0)
    found = bench.take(dead=True)
    assert len(found) == expected
    for item in found:
        assert properties(item)["DeadLetterReason"] == "TTLExpiredException"
    bench.queues.close()


def test_the_queue_limits_the_time_to_live(tmp_path: Path) -> None:
    bench = Bench(tmp_path, default_message_time_to_live=100)
    bench.send(time_to_live=10_000)
    bench.send()
    bench.wait(100)
    assert bench.take() == []
    bench.queues.close()


def test_an_expired_message_can_be_settled_while_it_is_locked(bench: Bench) -> None:
    bench.send(time_to_live=100)
    _, token = bench.take_one()
    bench.wait(200)
    bench.queue.complete(token, bench.now)


def test_a_duplicate_is_accepted_and_dropped_within_the_window(tmp_path: Path) -> None:
    bench = Bench(tmp_path, requires_duplicate_detection=True, duplicate_detection_history=1_000)
    bench.send(message_id="a")
    bench.send(message_id="a")
    bench.send(message_id="b")
    bench.send()
    bench.wait(999)
    bench.send(message_id="a")
    assert len(bench.take(lock=False)) == 3
    bench.wait(1)
    bench.send(message_id="a")
    assert len(bench.take()) == 1
    bench.queues.close()


def test_peeking_shows_all_and_takes_nothing(bench: Bench) -> None:
    for _ in range(3):
        bench.send()
    bench.take(1)
    bench.send(scheduled_at=bench.now + 500)
    shown = bench.queue.peek(bench.queue.active, 2, 10, bench.now)
    assert [item.sequence for item in shown] == [2, 3, 4]
    assert [item.sequence for item in bench.queue.peek(bench.queue.active, -5, 1, bench.now)] == [1]
    assert bench.queue.peek(bench.queue.active, 2**80, 10, bench.now) == []


def test_a_peek_shows_no_more_than_a_reply_holds(bench: Bench) -> None:
    for _ in range(8):
        bench.send(bytes(250_000))
    shown = bench.queue.peek(bench.queue.active, 1, 8, bench.now)
    assert [item.sequence for item in shown] == [1, 2, 3, 4]


def test_a_message_beyond_the_limit_is_refused(bench: Bench) -> None:
    with pytest.raises(ServiceError, match="exceeds the limit"):
        bench.send(bytes(message.MAX_MESSAGE_BYTES))


def test_a_restart_keeps_messages_and_ends_locks(bench: Bench) -> None:
    bench.send()
    bench.send()
    bench.queue.complete(bench.take_one()[1], bench.now)
    _, token = bench.take_one()
    bench.restart()
    with pytest.raises(LockLostError):
        bench.queue.complete(token, bench.now)
    item, _ = bench.take_one()
    assert (item.sequence, item.deliveries) == (2, 1)
    assert bench.send() == 3


def test_what_was_not_committed_never_happened(bench: Bench) -> None:
    bench.send()
    bench.queues.commit()
    bench.take(1)
    assert bench.send() == 2
    bench.queues.rollback()
    assert [item.sequence for item in bench.take()] == [1]
    assert bench.send() == 2


def test_an_undefined_queue_does_not_exist(bench: Bench) -> None:
    with pytest.raises(NotFoundError):
        bench.queues.find("other")


_steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "take", "complete", "abandon", "defer", "renew", "restart"]),
        st.one_of(st.integers(-3 * LOCK, 3 * LOCK), st.integers(-(10**8), 10**8)),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_no_message_is_lost_or_settled_twice_however_the_clock_jumps(
    steps: list[tuple[str, int]],
) -> None:
    """What was sent and not completed can be taken in the end; only the waiting may differ."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), max_delivery_count=10_000)
        sent: set[int] = set()
        completed: set[int] = set()
        held: list[tuple[int, bytes]] = []
        bench.now = 10**9
        for step, jump in steps:
            bench.now = max(1, bench.now + jump)
            bench.queues.move_due(bench.now)
            if step == "send":
                sent.add(bench.send())
            elif step == "take":
                held += [(it.sequence, it.token) for it in bench.take(2) if it.token is not None]
            elif step == "restart":
                bench.restart()
            elif held:
                sequence, token = held.pop(0)
                try:
                    if step == "renew":
                        bench.queue.renew([token], bench.now)
                    else:
                        getattr(bench.queue, step)(token, bench.now)
                except LockLostError:
                    continue
                if step == "complete":
                    assert sequence not in completed
                    completed.add(sequence)
        bench.restart()
        bench.wait(10**12)
        left = {it.sequence for it in bench.queue.peek(bench.queue.active, 1, 1000, bench.now)}
        bench.queues.close()
    assert left == sent - completed
