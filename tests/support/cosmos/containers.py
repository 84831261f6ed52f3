"""A container: its logical and physical partitions, and writes to its items."""

import base64
import heapq
import itertools
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from tests.support.cosmos import cost
from tests.support.cosmos.errors import PARTITION_KEY_MISMATCH, ServiceError, bad_request, not_found
from tests.support.cosmos.indexing import IndexingPolicy
from tests.support.cosmos.items import (
    Answer,
    Item,
    check_preconditions,
    encode,
)
from tests.support.cosmos.journal import Journal
from tests.support.cosmos.partitions import (
    MISSING,
    Key,
    Range,
    TokenBucket,
    effective_key,
    encode_part,
    split_evenly,
)

UNKNOWN = {
    "computedProperties",
    "vectorEmbeddingPolicy",
    "fullTextPolicy",
    "materializedViewDefinition",
}
_RUN = secrets.token_hex(6)
_VERSIONS = itertools.count(1)


def new_etag() -> str:
    """An ETag that no other version of any item has, nor had before a restart."""
    return f'"{next(_VERSIONS):08x}-0000-0000-0000-{_RUN}"'


def resource_id(*numbers: int) -> str:
    """The `_rid` of a database or a container: numbers in base64, with - where base64 has /."""
    packed = b"".join(number.to_bytes(4, "big") for number in numbers)
    return base64.b64encode(packed, b"+-").decode()


@dataclass(slots=True)
class PhysicalPartition:
    """A range of the ring, with its own count of writes and its own share of the throughput."""

    id: str
    range: Range
    parents: list[str] = field(default_factory=list)
    lsn: int = 1
    bucket: TokenBucket = field(default_factory=TokenBucket)

    @property
    def session_token(self) -> str:
        """What a client sends back to read its own writes."""
        return f"{self.id}:-1#{self.lsn}"


@dataclass(slots=True)
class LogicalPartition:
    """The items of one partition key, by id, in the order of their creation."""

    key: Key
    effective: str
    physical: PhysicalPartition
    items: dict[str, Item] = field(default_factory=dict)


class Container:
    """Items by partition key, and all that may be done with them.

    Not safe for threads: the server calls it from one event loop, each method at once.
    """

    def __init__(
        self,
        definition: dict[str, Any],
        *,
        database_name: str,
        database_number: int,
        number: int,
        physical_partitions: int,
        journal: Journal,
    ) -> None:
        self.name: str = definition["id"]
        self.path = f"{database_name}/{self.name}"
        self.number = number
        self.database_number = database_number
        self.rid = resource_id(database_number, number)
        self._rid_prefix = base64.b64decode(self.rid, b"+-")
        self.self_link = f"dbs/{resource_id(database_number)}/colls/{self.rid}/"
        self.journal = journal
        self.throughput: dict[str, Any] | None = None
        self.redefine(definition)
        self.physical = [
            PhysicalPartition(str(index), bounds)
            for index, bounds in enumerate(split_evenly(physical_partitions))
        ]
        self._physical_numbers = itertools.count(physical_partitions)
        self._partitions: dict[Key, LogicalPartition] = {}
        self._numbers = itertools.count(1)
        self._deadlines: list[tuple[int, Key, str, str]] = []
        self._undo: list[tuple[LogicalPartition, str, Item | None]] | None = None

    # ------------------------------------------------------------ definition

    def redefine(self, definition: dict[str, Any]) -> None:
        """Take a definition, checked and completed."""
        unknown = sorted(key for key in UNKNOWN if definition.get(key))
        if (definition.get("uniqueKeyPolicy") or {}).get("uniqueKeys"):
            unknown.append("uniqueKeyPolicy")
        if unknown:
            raise bad_request(f"This test server does not know {', '.join(unknown)}.")
        self.key_paths = _key_paths(definition)
        self.policy = IndexingPolicy.parse(definition.get("indexingPolicy"))
        self.definition = {
            **definition,
            "indexingPolicy": self.policy.definition,
        }
        self.etag = new_etag()
        self.changed = int(time.time())
        self.default_ttl: int | None = definition.get("defaultTtl")

    def describe(self) -> dict[str, Any]:
        """The container as a client reads it."""
        return {
            **self.definition,
            "_rid": self.rid,
            "_ts": self.changed,
            "_self": self.self_link,
            "_etag": self.etag,
            "_docs": "docs/",
            "_sprocs": "sprocs/",
            "_triggers": "triggers/",
            "_udfs": "udfs/",
            "_conflicts": "conflicts/",
        }

    @property
    def hierarchical(self) -> bool:
        """Whether the partition key has several levels."""
        return len(self.key_paths) > 1

    # ------------------------------------------------------------ partitions

    def key_of(self, body: dict[str, Any]) -> Key:
        """The partition key that an item's own properties say."""
        return tuple(_at(body, path) for path in self.key_paths)

    def partition(self, key: Key) -> LogicalPartition:
        """The partition of a key; it exists as soon as it is asked for."""
        found = self._partitions.get(key)
        if found is None:
            effective = effective_key(key, hierarchical=self.hierarchical)
            found = LogicalPartition(key, effective, self.physical_at(effective))
            self._partitions[key] = found
        return found

    def physical_at(self, effective: str) -> PhysicalPartition:
        """The physical partition of a point of the ring."""
        return next(one for one in self.physical if effective in one.range)

    def split(self, physical_id: str) -> None:
        """Divide a physical partition in two, as the service does when one grows too large.

        Raises:
            ServiceError: 404 for a partition that is not there (any more).
        """
        old = next((one for one in self.physical if one.id == physical_id), None)
        if old is None:
            raise not_found()
        parents = [*old.parents, old.id]
        new = [
            PhysicalPartition(str(next(self._physical_numbers)), bounds, parents, old.lsn)
            for bounds in old.range.halves()
        ]
        place = self.physical.index(old)
        self.physical[place : place + 1] = new
        for partition in self._partitions.values():
            if partition.physical is old:
                partition.physical = self.physical_at(partition.effective)

    def partitions(self, scope: Range) -> Iterator[LogicalPartition]:
        """The logical partitions of a part of the ring."""
        return (one for one in self._partitions.values() if one.items and one.effective in scope)

    def items(self, partitions: Iterable[LogicalPartition]) -> list[Item]:
        """The items of some partitions in the order of their creation."""
        found = [item for one in partitions for item in one.items.values()]
        found.sort(key=lambda item: item.number)
        return found

    def require_whole(self, key: Key) -> None:
        """A point operation needs every level of the key."""
        if len(key) != len(self.key_paths):
            raise bad_request(
                "Partition key provided either doesn't correspond to definition in the collection "
                "or doesn't match partition key field values specified in the document.",
                PARTITION_KEY_MISMATCH,
            )

    # ------------------------------------------------------------ items

    def read(self, partition: LogicalPartition, item_id: str) -> Answer:
        """A point read."""
        item = self._existing(partition, item_id)
        return Answer(200, item, cost.read(len(item.raw)))

    def create(self, partition: LogicalPartition, body: dict[str, Any]) -> Answer:
        """A new item.

        Raises:
            ServiceError: 409 if the partition has the id already.
        """
        if body["id"] in partition.items:
            raise ServiceError(
                409,
                "Entity with the specified id already exists in the system.",
                charge=cost.MISS,
            )
        item = self._store(partition, body, next(self._numbers))
        return Answer(201, item, cost.create(len(item.raw), item.indexed_values))

    def upsert(
        self, partition: LogicalPartition, body: dict[str, Any], if_match: str | None = None
    ) -> Answer:
        """A new item, or another body for the one there is."""
        if body["id"] not in partition.items:
            return self.create(partition, body)
        return self.replace(partition, body["id"], body, if_match)

    def replace(
        self,
        partition: LogicalPartition,
        item_id: str,
        body: dict[str, Any],
        if_match: str | None = None,
    ) -> Answer:
        """Another body for an item that exists."""
        current = self._existing(partition, item_id)
        check_preconditions(current, if_match)
        if body["id"] != item_id:
            if body["id"] in partition.items:
                raise ServiceError(
                    409, "Entity with the specified id already exists in the system."
                )
            self._forget(partition, item_id)
        item = self._store(partition, body, current.number)
        return Answer(200, item, cost.replace(len(item.raw), item.indexed_values))

    def delete(
        self, partition: LogicalPartition, item_id: str, if_match: str | None = None
    ) -> Answer:
        """No such item any more."""
        current = self._existing(partition, item_id)
        check_preconditions(current, if_match)
        self._forget(partition, item_id)
        return Answer(204, None, cost.create(len(current.raw), current.indexed_values))

    def delete_partition(self, partition: LogicalPartition) -> Answer:
        """All items of a partition key; the service does it in the background, we do it at once."""
        for item_id in list(partition.items):
            self._forget(partition, item_id)
        return Answer(200, None, cost.MISS)

    def check_key(self, partition: LogicalPartition, body: dict[str, Any]) -> None:
        """The item's own properties and the request's partition key must agree."""
        if self.key_of(body) != partition.key:
            raise bad_request(
                "PartitionKey extracted from document doesn't match the one specified in the "
                "header. Learn more: https://aka.ms/CosmosDB/sql/errors/wrong-pk-value",
                PARTITION_KEY_MISMATCH,
            )

    def restore(self, key: Key, number: int, raw: bytes) -> None:
        """Take back an item from the journal; later ones have higher numbers."""
        partition = self.partition(key)
        body = orjson.loads(raw)
        partition.physical.lsn += 1
        item = Item(
            body["id"],
            number,
            partition.physical.lsn,
            body["_etag"],
            body,
            raw,
            self.policy.count_values(body),
        )
        partition.items[item.id] = item
        self._note_deadline(key, item)
        self._numbers = itertools.count(number + 1)

    # ------------------------------------------------------------ expiry

    def remove_expired(self) -> None:
        """Remove the items whose time to live is over, as the service does in the background."""
        now = time.time()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, key, item_id, etag = heapq.heappop(self._deadlines)
            partition = self.partition(key)
            item = partition.items.get(item_id)
            if item is not None and item.etag == etag:
                self._forget(partition, item_id)

    def _note_deadline(self, key: Key, item: Item) -> None:
        """Without a TTL of the container, those of its items do not count."""
        seconds = item.body.get("ttl", self.default_ttl) if self.default_ttl is not None else None
        if seconds is not None and seconds != -1:
            deadline = item.body["_ts"] + seconds
            heapq.heappush(self._deadlines, (deadline, key, item.id, item.etag))

    # ------------------------------------------------------------ transactions

    def begin(self) -> None:
        """From here on, remember what to take back."""
        self._undo = []

    def commit(self) -> None:
        """What was done stands."""
        self._undo = None
        self.journal.commit()

    def rollback(self) -> None:
        """Take back everything since `begin`."""
        for partition, item_id, before in reversed(self._undo or []):
            if before is None:
                partition.items.pop(item_id, None)
            else:
                partition.items[item_id] = before
        self._undo = None
        self.journal.rollback()

    def _remember(self, partition: LogicalPartition, item_id: str) -> None:
        if self._undo is not None:
            self._undo.append((partition, item_id, partition.items.get(item_id)))

    def _existing(self, partition: LogicalPartition, item_id: str) -> Item:
        item = partition.items.get(item_id)
        if item is None:
            raise not_found(charge=cost.MISS)
        return item

    def _store(self, partition: LogicalPartition, body: dict[str, Any], number: int) -> Item:
        rid = self._item_rid(number)
        etag = new_etag()
        indexed_values = self.policy.count_values(body)
        body = {
            **body,
            "_rid": rid,
            "_self": f"{self.self_link}docs/{rid}/",
            "_etag": etag,
            "_attachments": "attachments/",
            "_ts": int(time.time()),
        }
        raw = encode(body)
        partition.physical.lsn += 1
        item = Item(body["id"], number, partition.physical.lsn, etag, body, raw, indexed_values)
        self._remember(partition, item.id)
        partition.items[item.id] = item
        self.journal.put(self.path, partition.key, item)
        self._note_deadline(partition.key, item)
        return item

    def _item_rid(self, number: int) -> str:
        packed = self._rid_prefix + number.to_bytes(8, "big")
        return base64.b64encode(packed, b"+-").decode()

    def _forget(self, partition: LogicalPartition, item_id: str) -> None:
        self._remember(partition, item_id)
        del partition.items[item_id]
        partition.physical.lsn += 1
        self.journal.remove(self.path, partition.key, item_id)


def _key_paths(definition: dict[str, Any]) -> list[list[str]]:
    given = definition.get("partitionKey")
    if not isinstance(given, dict) or not given.get("paths"):
        raise bad_request("The partition key definition is missing: a container needs one.")
    paths = given["paths"]
    if len(paths) > 3 or not all(isinstance(path, str) and path.startswith("/") for path in paths):
        raise bad_request("A partition key has one to three paths, each beginning with /.")
    if given.get("version", 1) != 2:
        raise bad_request("This test server knows partition keys of version 2 only.")
    return [[part.strip('"') for part in path[1:].split("/")] for path in paths]


def _at(body: dict[str, Any], path: list[str]) -> bytes:
    value: Any = body
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return MISSING
        value = value[name]
    if value == {}:
        raise bad_request("A partition key's value must not be an object.")
    return encode_part(value)
