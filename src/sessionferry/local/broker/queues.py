"""Queues: what happens to a message between its arrival and its end.

The rules are here, the rows in storage. Times are milliseconds since the epoch and always given by
the caller, so a test needs no clock.
"""

import json
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from sessionferry.local.broker import definitions, message, storage
from sessionferry.local.broker.definitions import Definitions, QueueDefinition
from sessionferry.local.broker.errors import LockLostError, NotFoundError, ServiceError
from sessionferry.local.broker.message import Envelope

READY, LOCKED, DEFERRED, DEFERRED_LOCKED, SCHEDULED = range(5)
_TOKEN: Final = struct.Struct(">QQ")
REPLY_BYTES: Final = 1 << 20  # bodies that one peek shows, or one message
DEFERRED_BYTES: Final = 16 << 20  # bodies that one request may take by number
_DUE_AT_ONCE: Final = 500  # rows that one turn moves on, so that a mass expiry starves nobody
_UNLOCKED: Final = {LOCKED: READY, DEFERRED_LOCKED: DEFERRED}
_SELECT: Final = (
    "SELECT m.id, m.state, m.deliveries, m.enqueued, m.expires, m.due, p.body"
    " FROM messages m JOIN payloads p ON p.id = m.id"
)


class Stored(NamedTuple):
    """A message as it lies in a queue; `token` is set when this take locked it."""

    sequence: int
    state: int
    deliveries: int
    enqueued: int
    locked_until: int | None
    body: bytes
    token: bytes | None = None


class Lock(NamedTuple):
    """A held lock and what its settlement needs."""

    id: int
    state: int
    deliveries: int
    expires: int | None


class Queues:
    """Every queue of one data directory."""

    def __init__(self, path: Path, lookup: Definitions) -> None:
        self._lookup = lookup
        self.storage = storage.Storage(path)
        self._by_name: dict[str, Queue] = {}
        self._by_number: dict[int, Queue] = {}
        self.awake: set[int] = set()  # entities that have something new to deliver
        for number, name, record, following in self.storage.rows("SELECT * FROM queues"):
            definition = lookup(name) or QueueDefinition(**json.loads(record))
            self._add(Queue(self, number, definition, following))
        self._end_locks()

    def _end_locks(self) -> None:
        """Locks do not survive a restart; their deliveries were attempts that failed."""
        self.storage.write(
            "UPDATE messages SET due = 0 WHERE state IN (?, ?)", LOCKED, DEFERRED_LOCKED
        )
        self.storage.commit()

    def _add(self, queue: "Queue") -> "Queue":
        self._by_number[queue.number] = queue
        return self._by_name.setdefault(queue.definition.name.lower(), queue)

    def find(self, name: str) -> "Queue":
        """The queue of that name, created on first use; NotFoundError if it is not defined."""
        definition = self._lookup(name)
        if definition is None:
            raise NotFoundError(name)
        queue = self._by_name.get(definition.name.lower())
        return queue or self._create(definition)

    def _create(self, definition: QueueDefinition) -> "Queue":
        name, record = definition.name.lower(), json.dumps(definitions.to_record(definition))
        number = self.storage.row("SELECT coalesce(max(number), 0) + 1 FROM queues")[0]
        self.storage.write("INSERT INTO queues VALUES (?, ?, ?, 1)", number, name, record)
        self.commit()
        return self._add(Queue(self, number, definition, 1))

    def owner(self, entity: int) -> "Queue":
        """The queue that an entity, be it its dead-letter queue, belongs to."""
        return self._by_number[entity // 2]

    def next_due(self) -> int | None:
        """When the next message changes by itself."""
        due: int | None = self.storage.row("SELECT min(due) FROM messages WHERE due IS NOT NULL")[0]
        return due

    def move_due(self, now: int) -> None:
        """End locks, expire messages and begin schedules whose time has come."""
        due = self.storage.rows(
            "SELECT id, state, deliveries, expires FROM messages WHERE due <= ?"
            " ORDER BY due LIMIT ?",
            now,
            _DUE_AT_ONCE,
        )
        for row in due:
            self.owner(storage.entity_of(row[0])).move_on(Lock(*row), now)

    def commit(self) -> None:
        """Make everything since the last commit durable."""
        for queue in self._by_number.values():
            queue.save_sequence()
        self.storage.commit()

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self.storage.rollback()
        for number, following in self.storage.rows("SELECT number, next_sequence FROM queues"):
            self._by_number[number].restore_sequence(following)

    def close(self) -> None:
        """Commit and close the file."""
        self.commit()
        self.storage.close()


class Queue:
    """One queue and its dead-letter queue."""

    def __init__(
        self, queues: Queues, number: int, definition: QueueDefinition, following: int
    ) -> None:
        self.number = number
        self.definition = definition
        self.active = number * 2
        self.dead = number * 2 + 1
        self._queues = queues
        self._storage = queues.storage
        self._next = self._saved = following

    def save_sequence(self) -> None:
        """Keep the sequence counter, so that a number is never given twice."""
        if self._next != self._saved:
            self._storage.write(
                "UPDATE queues SET next_sequence = ? WHERE number = ?", self._next, self.number
            )
            self._saved = self._next

    def restore_sequence(self, following: int) -> None:
        """Return to the counter that was saved last."""
        self._next = self._saved = following

    # Arrival

    def send(self, item: Envelope, now: int, *, at: int | None = None) -> int:
        """Store a message, to be delivered now or `at` a later time; its sequence number.

        A duplicate is accepted and dropped, as in the service.
        """
        if len(item.raw) > message.MAX_MESSAGE_BYTES:
            raise too_large(len(item.raw))
        at = at if at is not None else item.scheduled_at
        sequence, self._next = self._next, self._next + 1
        if not self._is_duplicate(item.message_id, now):
            self._insert(sequence, item, max(now, at or 0), now)
        return sequence

    def _insert(self, sequence: int, item: Envelope, enqueued: int, now: int) -> None:
        limits = (item.time_to_live, self.definition.default_message_time_to_live)
        lives = min((limit for limit in limits if limit is not None), default=None)
        expires = None if lives is None else enqueued + lives
        state, due = (SCHEDULED, enqueued) if enqueued > now else (READY, expires)
        row = storage.message_id(self.active, sequence)
        self._storage.write(
            "INSERT INTO messages VALUES (?, ?, 0, ?, ?, ?, NULL)",
            *(row, state, enqueued, expires, due),
        )
        self._storage.write("INSERT INTO payloads VALUES (?, ?)", row, item.raw)
        if state == READY:
            self._queues.awake.add(self.active)

    def _is_duplicate(self, identity: str | None, now: int) -> bool:
        if identity is None or not self.definition.requires_duplicate_detection:
            return False
        horizon = now - self.definition.duplicate_detection_history
        self._storage.write(
            "DELETE FROM message_ids WHERE queue = ? AND seen <= ?", self.number, horizon
        )
        return not self._storage.write(
            "INSERT OR IGNORE INTO message_ids VALUES (?, ?, ?)", self.number, identity, now
        )

    def cancel(self, sequences: Iterable[int]) -> None:
        """Remove scheduled messages; unless all exist, none is removed."""
        ids = [storage.message_id(self.active, sequence) for sequence in sequences]
        for row in ids:
            found = self._storage.row("SELECT state FROM messages WHERE id = ?", row)
            if found is None or found[0] != SCHEDULED:
                raise message_not_found(storage.sequence_of(row))
        for row in ids:
            self._remove(row)

    # Delivery

    def take(self, entity: int, count: int, now: int, *, lock: bool) -> list[Stored]:
        """The next messages in order: locked, or removed when `lock` is false."""
        rows = self._storage.rows(
            f"{_SELECT} WHERE m.state = 0 AND m.id >= ? AND m.id < ?"
            " AND (m.due IS NULL OR m.due > ?) ORDER BY m.id LIMIT ?",
            *storage.bounds(entity),
            now,
            count,
        )
        return [self._handed_out(row, now, lock=lock) for row in rows]

    def take_deferred(
        self, entity: int, sequences: Iterable[int], now: int, *, lock: bool
    ) -> list[Stored]:
        """Deferred messages by number; unless all exist, none is taken."""
        rows = []
        for sequence in sequences:
            row = self._storage.row(
                f"{_SELECT} WHERE m.id = ? AND m.state = ?",
                *(storage.message_id(entity, sequence), DEFERRED),
            )
            if row is None:
                raise message_not_found(sequence)
            rows.append(row)
            if sum(len(row[-1]) for row in rows) > DEFERRED_BYTES:
                raise ServiceError(
                    "com.microsoft:argument-out-of-range", "These are too many messages at once."
                )
        return [self._handed_out(row, now, lock=lock) for row in rows]

    def _handed_out(self, row: tuple[int, ...], now: int, *, lock: bool) -> Stored:
        taken = _stored(row)
        if not lock:
            self._remove(row[0])
            return taken._replace(locked_until=None)
        until, nonce = now + self.definition.lock_duration, secrets.randbits(63)
        self._storage.write(
            "UPDATE messages SET state = ?, due = ?, lock = ? WHERE id = ?",
            *(LOCKED if taken.state == READY else DEFERRED_LOCKED, until, nonce, row[0]),
        )
        return taken._replace(locked_until=until, token=_TOKEN.pack(row[0], nonce))

    def peek(self, entity: int, first: int, count: int, now: int) -> list[Stored]:
        """Messages from a sequence number on, without taking them; as many as one reply holds."""
        found: list[Stored] = []
        size = 0
        rows = self._storage.each(
            f"{_SELECT} WHERE m.id >= ? AND m.id < ?"
            " AND (m.state != 0 OR m.due IS NULL OR m.due > ?) ORDER BY m.id LIMIT ?",
            *storage.bounds(entity, first),
            now,
            count,
        )
        for item in map(_stored, rows):
            size += len(item.body)
            if found and size > REPLY_BYTES:
                break
            found.append(item)
        return found

    # Settlement

    def _held(self, token: bytes, now: int) -> Lock:
        row_id, nonce = _TOKEN.unpack(token)
        row = None
        if row_id < 1 << 63 and storage.entity_of(row_id) // 2 == self.number:
            row = self._storage.row(
                "SELECT state, deliveries, expires, due, lock FROM messages WHERE id = ?", row_id
            )
        if row is None or row[4] != nonce or row[3] <= now:
            raise LockLostError
        return Lock(row_id, *row[:3])

    def complete(self, token: bytes, now: int) -> None:
        """Remove a locked message."""
        self._remove(self._held(token, now).id)

    def release(self, token: bytes, now: int) -> None:
        """Return a message as if it had not been delivered."""
        self._unlock(self._held(token, now), failed=False)

    def abandon(self, token: bytes, now: int) -> None:
        """Return a message after a failed attempt."""
        self._unlock(self._held(token, now), failed=True)

    def defer(self, token: bytes, now: int) -> None:
        """Set a message aside, to be received by its number only."""
        held = self._held(token, now)
        self._storage.write(
            "UPDATE messages SET state = ?, deliveries = ?, due = NULL, lock = NULL WHERE id = ?",
            *(DEFERRED, held.deliveries + 1, held.id),
        )

    def dead_letter(self, token: bytes, now: int, reason: str | None, text: str | None) -> None:
        """Move a locked message to the dead-letter queue."""
        self._bury(self._held(token, now).id, reason, text)

    def renew(self, tokens: Iterable[bytes], now: int) -> int:
        """Prolong locks, all or none; the new end of them."""
        held = [self._held(token, now) for token in tokens]
        until = now + self.definition.lock_duration
        for lock in held:
            self._storage.write("UPDATE messages SET due = ? WHERE id = ?", until, lock.id)
        return until

    # What time does

    def move_on(self, item: Lock, now: int) -> None:
        """A lock, a time to live or a schedule of this message has reached its time."""
        if item.state in _UNLOCKED:
            self._unlock(item, failed=True)
        elif item.expires is not None and item.expires <= now:
            self._expire(item.id)
        else:
            self._make_ready(item.id, item.expires)

    def _unlock(self, item: Lock, *, failed: bool) -> None:
        deliveries = item.deliveries + failed
        self._storage.write(
            "UPDATE messages SET deliveries = ?, lock = NULL WHERE id = ?", deliveries, item.id
        )
        in_main = storage.entity_of(item.id) == self.active
        if failed and in_main and deliveries >= self.definition.max_delivery_count:
            self._bury(item.id, "MaxDeliveryCountExceeded", _attempts(deliveries))
        elif item.state == LOCKED:
            self._make_ready(item.id, item.expires)
        else:
            self._storage.write(
                "UPDATE messages SET state = ?, due = NULL WHERE id = ?", DEFERRED, item.id
            )

    def _make_ready(self, row: int, due: int | None) -> None:
        self._storage.write("UPDATE messages SET state = 0, due = ? WHERE id = ?", due, row)
        self._queues.awake.add(storage.entity_of(row))

    def _expire(self, row: int) -> None:
        if self.definition.dead_lettering_on_message_expiration:
            self._bury(row, "TTLExpiredException", "The message expired and was dead lettered.")
        else:
            self._remove(row)

    def _bury(self, row: int, reason: str | None, text: str | None) -> None:
        """Messages keep their sequence number; nothing expires in a dead-letter queue."""
        grave = storage.message_id(self.dead, storage.sequence_of(row))
        (body,) = self._storage.row("SELECT body FROM payloads WHERE id = ?", row)
        causes = {"DeadLetterReason": reason, "DeadLetterErrorDescription": text}
        given = {name: value for name, value in causes.items() if value is not None}
        self._storage.write(
            "UPDATE messages SET id = ?, state = 0, expires = NULL, due = NULL, lock = NULL"
            " WHERE id = ?",
            *(grave, row),
        )
        self._storage.write(
            "UPDATE payloads SET id = ?, body = ? WHERE id = ?",
            *(grave, message.with_properties(body, given) if given else body, row),
        )
        self._queues.awake.add(self.dead)

    def _remove(self, row: int) -> None:
        self._storage.write("DELETE FROM messages WHERE id = ?", row)
        self._storage.write("DELETE FROM payloads WHERE id = ?", row)


def _stored(row: tuple[int, ...]) -> Stored:
    row_id, state, deliveries, enqueued, _, due, body = row
    until = due if state in _UNLOCKED else None
    return Stored(storage.sequence_of(row_id), state, deliveries, enqueued, until, body)  # type: ignore[arg-type]


def _attempts(deliveries: int) -> str:
    return f"Message could not be consumed after {deliveries} delivery attempts."


def message_not_found(sequence: int) -> ServiceError:
    """The answer to a sequence number that names nothing."""
    return ServiceError(
        "com.microsoft:message-not-found",
        f"Failed to find the message with sequence number {sequence}.",
        404,
    )


def too_large(size: int) -> ServiceError:
    """The answer to a message beyond the limit."""
    return ServiceError(
        "amqp:link:message-size-exceeded",
        f"The received message (size:{size} bytes) exceeds the limit "
        f"({message.MAX_MESSAGE_BYTES} bytes) currently allowed on the link.",
        413,
    )


def uuid_of(token: bytes) -> UUID:
    """The lock token as clients know it: the delivery tag read little-endian."""
    return UUID(bytes_le=token)
