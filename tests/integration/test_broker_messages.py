"""The unmodified azure-servicebus client, synchronous, against the embedded broker."""

import datetime as dt
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
from azure.servicebus import (
    AutoLockRenewer,
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusReceiver,
    ServiceBusSubQueue,
)
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    ServiceBusError,
)

from support.broker import RunningBroker, forget_leaked_sockets

QUEUES = [
    *({"name": f"plain-{number}", "lockDuration": "PT30S"} for number in range(30)),
    *({"name": f"brief-{number}", "lockDuration": "PT1S"} for number in range(4)),
    {"name": "thrice", "maxDeliveryCount": 3},
    {"name": "once-each", "requiresDuplicateDetection": True},
    {"name": "mortal", "deadLetteringOnMessageExpiration": True},
    {"name": "fleeting", "defaultMessageTimeToLive": "PT1S"},
]
plain = (f"plain-{number}" for number in itertools.count())
brief = (f"brief-{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def leaks() -> Iterator[None]:
    yield
    forget_leaked_sockets()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with RunningBroker(tmp_path_factory.mktemp("broker"), QUEUES) as running:
        yield running


@pytest.fixture(scope="module")
def client(broker: RunningBroker) -> Iterator[ServiceBusClient]:
    with ServiceBusClient.from_connection_string(broker.connection_string, retry_total=0) as found:
        yield found


def send(client: ServiceBusClient, queue: str, *messages: Any) -> None:
    with client.get_queue_sender(queue, keep_alive=0) as sender:
        for message in messages:
            sender.send_messages(message)


def receive(receiver: ServiceBusReceiver, count: int = 1) -> list[ServiceBusReceivedMessage]:
    found: list[ServiceBusReceivedMessage] = []
    while len(found) < count:
        more = receiver.receive_messages(count - len(found), max_wait_time=5)
        assert more, f"{len(found)} of {count} messages came"
        found += more
    return found


def receive_one(receiver: ServiceBusReceiver) -> ServiceBusReceivedMessage:
    return receive(receiver)[0]


def is_empty(receiver: ServiceBusReceiver) -> bool:
    return receiver.receive_messages(1, max_wait_time=0.6) == []


# Without prefetch, or without keep_alive=0, a thread starts whose end takes a second each time.
def dead_letters(client: ServiceBusClient, queue: str) -> ServiceBusReceiver:
    return client.get_queue_receiver(
        queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER, keep_alive=0, prefetch_count=1
    )


def test_a_message_arrives_as_it_was_sent(client: ServiceBusClient) -> None:
    queue = next(plain)
    sent = ServiceBusMessage(
        b"\x00body\xff",
        message_id="id",
        subject="subject",
        content_type="application/gzip",
        correlation_id="correlation",
        partition_key="key",
        application_properties={"text": "t", "number": -5, "flag": True, "real": 0.5},
    )
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    send(client, queue, sent)
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        found = receive_one(receiver)
        assert before < found.enqueued_time_utc < found.locked_until_utc
        receiver.complete_message(found)
    assert b"".join(found.body) == b"\x00body\xff"
    assert (found.message_id, found.subject, found.correlation_id) == (
        "id",
        "subject",
        "correlation",
    )
    assert (found.content_type, found.partition_key) == ("application/gzip", "key")
    assert found.application_properties == {
        b"text": b"t",
        b"number": -5,
        b"flag": True,
        b"real": 0.5,
    }
    assert (found.sequence_number, found.delivery_count) == (1, 0)


def test_binary_keys_in_maps_do_no_harm(client: ServiceBusClient) -> None:
    queue = next(plain)
    message = ServiceBusMessage(b"body")
    message.raw_amqp_message.annotations = {b"annotation": b"1"}
    message.raw_amqp_message.delivery_annotations = {b"delivery": b"2"}
    message.raw_amqp_message.footer = {b"footer": b"3"}
    message.raw_amqp_message.application_properties = {b"property": "4"}
    send(client, queue, message)
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        found = receive_one(receiver).raw_amqp_message
    assert found.annotations[b"annotation"] == b"1"
    assert found.delivery_annotations[b"delivery"] == b"2"
    assert found.footer[b"footer"] == b"3"
    assert found.application_properties[b"property"] == b"4"


def test_a_batch_is_stored_as_its_messages(client: ServiceBusClient) -> None:
    queue = next(plain)
    with client.get_queue_sender(queue, keep_alive=0) as sender:
        batch = sender.create_message_batch()
        assert batch.max_size_in_bytes == 262_144
        for number in range(40):
            batch.add_message(ServiceBusMessage(str(number)))
        sender.send_messages(batch)
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        found = receive(receiver, 40)
        assert [str(message) for message in found] == [str(number) for number in range(40)]
        receiver.complete_message(found[0])
        receiver.abandon_message(found[1])
        assert str(receive_one(receiver)) == "1"


def test_a_data_body_that_contains_a_message_stays_one_message(client: ServiceBusClient) -> None:
    queue = next(plain)
    inner = b"\x00Su\xa0\x05inner"
    send(client, queue, ServiceBusMessage(inner))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        assert b"".join(receive_one(receiver).body) == inner


def test_a_message_of_240_kilobytes_passes_and_one_of_256_is_refused(
    client: ServiceBusClient,
) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage(bytes(240 * 1024)))
    with client.get_queue_sender(queue, keep_alive=0) as sender:
        with pytest.raises(MessageSizeExceededError):
            sender.send_messages(ServiceBusMessage(bytes(256 * 1024)))
        sender.send_messages(ServiceBusMessage("after"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        first, second = receive(receiver, 2)
        assert len(b"".join(first.body)) == 240 * 1024
        assert str(second) == "after"


def test_an_abandoned_message_returns_at_once_with_its_count(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage("again"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        for count in range(3):
            message = receive_one(receiver)
            assert message.delivery_count == count
            receiver.abandon_message(message)


def test_the_last_attempt_ends_in_the_dead_letter_queue(client: ServiceBusClient) -> None:
    send(client, "thrice", ServiceBusMessage("poison"))
    with client.get_queue_receiver("thrice", keep_alive=0, prefetch_count=1) as receiver:
        for _ in range(3):
            receiver.abandon_message(receive_one(receiver))
        assert is_empty(receiver)
    with dead_letters(client, "thrice") as receiver:
        message = receive_one(receiver)
        assert message.dead_letter_reason == "MaxDeliveryCountExceeded"
        assert message.dead_letter_error_description == (
            "Message could not be consumed after 3 delivery attempts."
        )
        receiver.complete_message(message)


def test_dead_lettering_by_hand_keeps_reason_and_description(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage("odd", application_properties={"kept": 1}))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        receiver.dead_letter_message(receive_one(receiver), reason="odd", error_description="seen")
    with dead_letters(client, queue) as receiver:
        message = receive_one(receiver)
        assert (message.dead_letter_reason, message.dead_letter_error_description) == (
            "odd",
            "seen",
        )
        assert message.application_properties[b"kept"] == 1


@pytest.mark.parametrize("path", ["$DeadLetterQueue", "$deadletterqueue"])
def test_the_dead_letter_path_ignores_case(client: ServiceBusClient, path: str) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage("odd"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        receiver.dead_letter_message(receive_one(receiver))
    with client.get_queue_receiver(f"{queue}/{path}", keep_alive=0, prefetch_count=1) as receiver:
        receiver.complete_message(receive_one(receiver))


def test_a_lock_that_is_over_is_lost_and_the_message_returns(client: ServiceBusClient) -> None:
    queue = next(brief)
    send(client, queue, ServiceBusMessage("slow"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        message = receive_one(receiver)
        again = receive_one(receiver)
        assert (again.sequence_number, again.delivery_count) == (message.sequence_number, 1)
        with pytest.raises(MessageLockLostError):
            receiver.complete_message(message)
        receiver.complete_message(again)


def test_a_renewed_lock_holds(client: ServiceBusClient) -> None:
    queue = next(brief)
    send(client, queue, ServiceBusMessage("long"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        message = receive_one(receiver)
        for _ in range(3):
            time.sleep(0.5)
            assert receiver.renew_message_lock(message) > dt.datetime.now(dt.UTC)
        receiver.complete_message(message)
        assert is_empty(receiver)


def test_the_clients_lock_renewer_keeps_a_message(client: ServiceBusClient) -> None:
    queue = next(brief)
    send(client, queue, ServiceBusMessage("long"))
    with (
        client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver,
        AutoLockRenewer() as renewer,
    ):
        message = receive_one(receiver)
        renewer.register(receiver, message, max_lock_renewal_duration=10)
        time.sleep(2.2)
        receiver.complete_message(message)
        assert is_empty(receiver)


def test_a_deferred_message_is_received_by_number(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage("later"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        message = receive_one(receiver)
        receiver.defer_message(message)
        assert is_empty(receiver)
        (found,) = receiver.receive_deferred_messages([message.sequence_number])
        assert found.state == ServiceBusMessageState.DEFERRED
        receiver.complete_message(found)
        with pytest.raises(MessageNotFoundError):
            receiver.receive_deferred_messages([message.sequence_number])


def test_a_scheduled_message_waits_for_its_time_and_can_be_cancelled(
    client: ServiceBusClient,
) -> None:
    queue = next(plain)
    with (
        client.get_queue_sender(queue, keep_alive=0) as sender,
        client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver,
    ):
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)
        kept, cancelled = sender.schedule_messages(
            [ServiceBusMessage("kept"), ServiceBusMessage("cancelled")], at
        )
        sender.cancel_scheduled_messages(cancelled)
        with pytest.raises(MessageNotFoundError):
            sender.cancel_scheduled_messages(cancelled)
        (peeked,) = receiver.peek_messages(5)
        assert (peeked.sequence_number, peeked.state) == (kept, ServiceBusMessageState.SCHEDULED)
        assert is_empty(receiver)
        message = receive_one(receiver)
        assert str(message) == "kept"
        assert message.enqueued_time_utc >= at - dt.timedelta(milliseconds=1)


def test_peeking_sees_locked_messages_and_takes_none(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, *(ServiceBusMessage(str(number)) for number in range(5)))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        receive_one(receiver)
        assert [str(message) for message in receiver.peek_messages(10, sequence_number=1)] == list(
            "01234"
        )
        assert [message.sequence_number for message in receive(receiver, 4)] == [2, 3, 4, 5]
        assert receiver.peek_messages(10, sequence_number=6) == []


def test_a_duplicate_is_accepted_and_stored_once(client: ServiceBusClient) -> None:
    message = ServiceBusMessage("one", message_id="same")
    send(client, "once-each", message, message, ServiceBusMessage("two", message_id="other"))
    with client.get_queue_receiver("once-each", keep_alive=0, prefetch_count=1) as receiver:
        found = receive(receiver, 2)
        assert [str(message) for message in found] == ["one", "two"]
        assert is_empty(receiver)


def test_an_expired_message_is_dead_lettered(client: ServiceBusClient) -> None:
    lives = dt.timedelta(seconds=0.5)
    send(client, "mortal", ServiceBusMessage("late", time_to_live=lives))
    with dead_letters(client, "mortal") as receiver:
        message = receive_one(receiver)
        assert message.dead_letter_reason == "TTLExpiredException"
        receiver.complete_message(message)


def test_the_queue_gives_messages_their_time_to_live(client: ServiceBusClient) -> None:
    send(client, "fleeting", ServiceBusMessage("gone"))
    time.sleep(1.1)
    with client.get_queue_receiver("fleeting", keep_alive=0, prefetch_count=1) as receiver:
        assert is_empty(receiver)
        assert receiver.peek_messages(1, sequence_number=1) == []


def test_receive_and_delete_leaves_nothing_behind(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, *(ServiceBusMessage(str(number)) for number in range(3)))
    mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
    with client.get_queue_receiver(
        queue, receive_mode=mode, keep_alive=0, prefetch_count=1
    ) as receiver:
        assert len(receive(receiver, 3)) == 3
        assert receiver.peek_messages(3, sequence_number=1) == []


def test_what_a_closing_receiver_had_prefetched_is_free_at_once(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, *(ServiceBusMessage(str(number)) for number in range(10)))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=10) as receiver:
        receiver.complete_message(receive_one(receiver))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as receiver:
        found = receive(receiver, 9)
    assert [(message.sequence_number, message.delivery_count) for message in found] == [
        (number, 0) for number in range(2, 11)
    ]


def test_a_message_is_settled_through_another_receiver(client: ServiceBusClient) -> None:
    queue = next(plain)
    send(client, queue, ServiceBusMessage("handed over"))
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as first:
        message = receive_one(first)
    with client.get_queue_receiver(queue, keep_alive=0, prefetch_count=1) as second:
        message._receiver = second
        second.complete_message(message)
        assert second.peek_messages(1, sequence_number=1) == []


def test_a_session_receiver_is_refused(client: ServiceBusClient) -> None:
    with pytest.raises(ServiceBusError, match="sessions"):
        client.get_queue_receiver("plain-0", session_id="s").__enter__()


@pytest.mark.parametrize(
    ("operation", "condition"),
    [
        (b"com.microsoft:enumerate-rules", "amqp:not-implemented"),
        (b"com.microsoft:get-session-state", "amqp:not-allowed"),
        (b"com.microsoft:renew-lock", "com.microsoft:argument-error"),
    ],
)
def test_a_management_request_that_cannot_be_met_is_answered(
    client: ServiceBusClient, operation: bytes, condition: str
) -> None:
    def callback(status: int, message: Any, *_: Any, **__: Any) -> tuple[int, bytes]:
        return status, message.application_properties[b"errorCondition"]

    with client.get_queue_receiver("plain-0", keep_alive=0, prefetch_count=1) as receiver:
        status, found = receiver._mgmt_request_response(
            operation, {"lock-tokens": "none"}, callback, timeout=5
        )
    assert status >= 400
    assert found == condition.encode()
