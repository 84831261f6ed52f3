"""What the service does with a request, but for the network: the paths of its REST interface."""

import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from tests.support.cosmos import batch, patch
from tests.support.cosmos.account import Account
from tests.support.cosmos.auth import Asked, Authority
from tests.support.cosmos.containers import Container, LogicalPartition, PhysicalPartition
from tests.support.cosmos.errors import (
    CONTAINER_RID_MISMATCH,
    CROSS_PARTITION_QUERY_NOT_SERVABLE,
    PARTITION_KEY_RANGE_GONE,
    ServiceError,
    bad_request,
)
from tests.support.cosmos.faults import Faults
from tests.support.cosmos.items import (
    MAX_ITEM_BYTES,
    Answer,
    check_item,
    check_preconditions,
    parse_item,
    precondition_failed,
    too_large,
)
from tests.support.cosmos.partitions import EVERYTHING, Range, parse_key
from tests.support.cosmos.queries import Page, Scope, keys_in, page_size
from tests.support.cosmos.sql import parser
from tests.support.cosmos.sql.plan import make_plan, needs_client, parameters_of
from tests.support.cosmos.sql.select import Selection

# Headers of requests that are sent by POST, and read all the same.
QUERIES = ("x-ms-documentdb-isquery", "x-ms-cosmos-is-query-plan-request")


@dataclass(slots=True)
class Request:
    """A request, taken apart."""

    method: str
    parts: list[str]
    headers: Any
    body: bytes

    def flag(self, header: str) -> bool:
        """A header that says true or false."""
        return str(self.headers.get(header, "")).lower() == "true"

    @property
    def asked(self) -> Asked:
        """What the request wants, for its authorization."""
        parts = self.parts
        if self.deletes_partition:
            kind, link = "colls", "/".join(parts[:-2])
        elif len(parts) % 2:
            kind, link = parts[-1], "/".join(parts[:-1])
        else:
            kind, link = (parts[-2] if parts else ""), "/".join(parts)
        if kind == "offers":
            link = parts[1].lower() if len(parts) == 2 else ""
        data = self.deletes_partition or "docs" in parts[4:5]
        reads = self.method == "GET" or any(map(self.flag, QUERIES))
        return Asked(self.method, kind, link, data, write=not reads)

    @property
    def deletes_partition(self) -> bool:
        """Whether it asks for all items of a partition key to be deleted."""
        return self.parts[-2:] == ["operations", "partitionkeydelete"]

    @property
    def minimal(self) -> bool:
        """Whether the client wants no body back from a write."""
        return bool(self.headers.get("Prefer", "") == "return=minimal")

    def json(self) -> dict[str, Any]:
        """The body of a request that is not for an item."""
        try:
            body = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            raise bad_request("The request body is not valid JSON.") from None
        if not isinstance(body, dict):
            raise bad_request("The request body is not a JSON object.")
        return body


@dataclass(slots=True)
class Reply:
    """A response before it is sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    charge: float = 1.0


Handler = Callable[[Request], Reply]


class Service:
    """Answers requests to one account: `route` one, then `handle` it.

    `faults` may be replaced at any time, from any thread.
    """

    def __init__(
        self,
        account: Account | None = None,
        *,
        authority: Authority | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.account = account or Account()
        self.authority = authority or Authority()
        self.faults = faults or Faults()
        self.endpoint = ""  # what it tells clients of itself
        self._handlers = self._by_path()

    def handle(self, request: Request, handler: Handler) -> Reply:
        """Check who asks, and answer."""
        try:
            self.authority.check(request.asked, request.headers)
            return handler(request)
        except ServiceError as refusal:
            return self.refused(refusal)
        except RecursionError:
            return self.refused(bad_request("The query is nested too deeply."))

    def refused(self, refusal: ServiceError) -> Reply:
        """A refusal as it is sent."""
        headers = dict(refusal.headers)
        if refusal.substatus:
            headers["x-ms-substatus"] = str(refusal.substatus)
        return Reply(refusal.status, refusal.body(str(uuid.uuid4())), headers, refusal.charge)

    # ------------------------------------------------------------ routes

    def route(self, request: Request) -> tuple[str, Handler]:
        """The name of what is asked, and who answers it."""
        kinds = tuple(request.parts[::2])
        if request.deletes_partition:
            return "item.delete_partition", self._delete_partition
        at = (kinds, len(request.parts) % 2 == 1, request.method)
        if at == (("dbs", "colls", "docs"), True, "POST"):
            return self._route_post_items(request)
        return self._handlers.get(at, ("unknown", _no_such_method))

    def _by_path(self) -> dict[tuple[tuple[str, ...], bool, str], tuple[str, Handler]]:
        item, container, database = ("dbs", "colls", "docs"), ("dbs", "colls"), ("dbs",)
        return {
            (item, True, "GET"): ("item.feed", self._feed),
            (item, False, "GET"): ("item.read", self._read_item),
            (item, False, "PUT"): ("item.replace", self._replace_item),
            (item, False, "PATCH"): ("item.patch", self._patch_item),
            (item, False, "DELETE"): ("item.delete", self._delete_item),
            ((), False, "GET"): ("account.read", self._read_account),
            (database, True, "GET"): ("database.list", self._list_databases),
            (database, True, "POST"): ("database.create", self._create_database),
            (database, False, "GET"): ("database.read", self._read_database),
            (database, False, "DELETE"): ("database.delete", self._delete_database),
            (container, True, "GET"): ("container.list", self._list_containers),
            (container, True, "POST"): ("container.create", self._create_container),
            (container, False, "GET"): ("container.read", self._read_container),
            (container, False, "PUT"): ("container.replace", self._replace_container),
            (container, False, "DELETE"): ("container.delete", self._delete_container),
            ((*container, "pkranges"), True, "GET"): ("container.ranges", self._ranges),
            (("offers",), True, "POST"): ("offer.query", self._query_offers),
        }

    def _route_post_items(self, request: Request) -> tuple[str, Handler]:
        if request.flag("x-ms-cosmos-is-batch-request"):
            return "item.batch", self._batch
        if request.flag("x-ms-cosmos-is-query-plan-request"):
            return "container.query_plan", self._query_plan
        if request.flag("x-ms-documentdb-isquery"):
            return "item.query", self._query
        if request.flag("x-ms-documentdb-is-upsert"):
            return "item.upsert", self._upsert_item
        return "item.create", self._create_item

    # ------------------------------------------------------------ account

    def _read_account(self, request: Request) -> Reply:
        place = {"name": "Local", "databaseAccountEndpoint": self.endpoint}
        return _json(
            {
                "_self": "",
                "id": "local",
                "_rid": "local",
                "media": "//media/",
                "addresses": "//addresses/",
                "_dbs": "//dbs/",
                "writableLocations": [place],
                "readableLocations": [place],
                "enableMultipleWriteLocations": False,
                "enablePerPartitionFailoverBehavior": False,
                "userReplicationPolicy": {
                    "asyncReplication": False,
                    "minReplicaSetSize": 3,
                    "maxReplicasetSize": 4,
                },
                "userConsistencyPolicy": {"defaultConsistencyLevel": "Session"},
                "systemReplicationPolicy": {"minReplicaSetSize": 3, "maxReplicasetSize": 4},
                "readPolicy": {"primaryReadCoefficient": 1, "secondaryReadCoefficient": 1},
                "queryEngineConfiguration": "{}",
            }
        )

    def _list_databases(self, request: Request) -> Reply:
        found = [one.describe() for one in self.account.databases.values()]
        return _json({"_rid": "", "Databases": found, "_count": len(found)})

    def _create_database(self, request: Request) -> Reply:
        if request.flag("x-ms-documentdb-isquery"):
            return self._list_databases(request)
        database = self.account.create_database(request.json())
        return _json(database.describe(), 201, etag=database.etag)

    def _read_database(self, request: Request) -> Reply:
        database = self.account.database(request.parts[1])
        return _json(database.describe(), etag=database.etag)

    def _delete_database(self, request: Request) -> Reply:
        self.account.delete_database(request.parts[1])
        return Reply(204)

    # ------------------------------------------------------------ containers

    def _list_containers(self, request: Request) -> Reply:
        database = self.account.database(request.parts[1])
        found = [one.describe() for one in database.containers.values()]
        return _json({"_rid": database.rid, "DocumentCollections": found, "_count": len(found)})

    def _create_container(self, request: Request) -> Reply:
        if request.flag("x-ms-documentdb-isquery"):
            return self._list_containers(request)
        database = self.account.database(request.parts[1])
        container = self.account.create_container(database, request.json(), _throughput(request))
        return _json(container.describe(), 201, etag=container.etag)

    def _read_container(self, request: Request) -> Reply:
        container = self._container(request)
        return _json(container.describe(), etag=container.etag)

    def _replace_container(self, request: Request) -> Reply:
        container = self._container(request)
        self.account.replace_container(container, request.json())
        return _json(container.describe(), etag=container.etag)

    def _delete_container(self, request: Request) -> Reply:
        database = self.account.database(request.parts[1])
        self.account.delete_container(database, request.parts[3])
        return Reply(204)

    def _ranges(self, request: Request) -> Reply:
        container = self._container(request)
        etag = f'"{max(int(one.id) for one in container.physical)}"'
        if request.headers.get("If-None-Match") == etag:
            return Reply(304, headers={"etag": etag})
        found = [_describe_range(container, one) for one in container.physical]
        return _json(
            {"_rid": container.rid, "PartitionKeyRanges": found, "_count": len(found)}, etag=etag
        )

    def _query_offers(self, request: Request) -> Reply:
        """The throughput of containers, by their `_self`."""
        wanted = set(parameters_of(request.json().get("parameters")).values())
        found = [
            _describe_offer(one)
            for one in self.account.all_containers()
            if one.throughput is not None and (not wanted or one.self_link in wanted)
        ]
        return _json({"_rid": "", "Offers": found, "_count": len(found)})

    # ------------------------------------------------------------ items

    def _read_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        answer = container.read(partition, request.parts[5])
        assert answer.item is not None
        if request.headers.get("If-None-Match") == answer.item.etag:
            return self._item(request, container, partition, Answer(304, None, answer.charge))
        return self._item(request, container, partition, answer)

    def _create_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        body = parse_item(request.body)
        container.check_key(partition, body)
        answer = container.create(partition, body)
        return self._written(request, container, partition, answer)

    def _upsert_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        body = parse_item(request.body)
        container.check_key(partition, body)
        headers = request.headers
        current = partition.items.get(body["id"])
        check_preconditions(current, headers.get("If-Match"), headers.get("If-None-Match"))
        answer = container.upsert(partition, body)
        return self._written(request, container, partition, answer)

    def _replace_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        body = parse_item(request.body)
        container.check_key(partition, body)
        answer = container.replace(
            partition, request.parts[5], body, request.headers.get("If-Match")
        )
        return self._written(request, container, partition, answer)

    def _patch_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        if len(request.body) > MAX_ITEM_BYTES:
            raise too_large()
        answer = self._patch(
            container, partition, request.parts[5], request.json(), request.headers.get("If-Match")
        )
        return self._written(request, container, partition, answer)

    def _patch(
        self,
        container: Container,
        partition: LogicalPartition,
        item_id: str,
        document: dict[str, Any],
        if_match: str | None,
    ) -> Answer:
        current = container.read(partition, item_id).item
        assert current is not None
        check_preconditions(current, if_match)
        if condition := document.get("condition"):
            selection = Selection(parser.parse_condition(condition), {})
            searcher = self.account.searchers[container.rid]
            if not searcher.matches_predicate(selection, current):
                raise precondition_failed()
        body = patch.apply(current.body, document.get("operations"))
        if body.get("id") != item_id:
            raise bad_request("Patch must not change the id.")
        container.check_key(partition, check_item(body))
        return container.replace(partition, item_id, body, if_match)

    def _delete_item(self, request: Request) -> Reply:
        container, partition = self._place(request)
        answer = container.delete(partition, request.parts[5], request.headers.get("If-Match"))
        return self._written(request, container, partition, answer)

    def _delete_partition(self, request: Request) -> Reply:
        request.parts = [*request.parts[:4], "docs"]
        container, partition = self._place(request)
        answer = container.delete_partition(partition)
        return self._written(request, container, partition, answer)

    def _batch(self, request: Request) -> Reply:
        container, partition = self._place(request)
        operations = batch.parse(request.body)
        outcome = batch.Batch(
            container,
            partition,
            patch=lambda *given: self._patch(container, *given),
            minimal=request.minimal,
            fault=self.faults.draw_operation,
        ).run(operations)
        partition.physical.bucket.charge(outcome.charge)
        headers = self._headers(container, partition.physical)
        headers["x-ms-item-count"] = str(len(outcome.results))
        return Reply(outcome.status, orjson.dumps(outcome.results), headers, outcome.charge)

    def _written(
        self, request: Request, container: Container, partition: LogicalPartition, answer: Answer
    ) -> Reply:
        container.journal.commit()
        return self._item(request, container, partition, answer)

    def _item(
        self, request: Request, container: Container, partition: LogicalPartition, answer: Answer
    ) -> Reply:
        partition.physical.bucket.charge(answer.charge)
        headers = self._headers(container, partition.physical)
        body = b""
        if answer.item is not None:
            headers["etag"] = answer.item.etag
            write = request.method != "GET"
            body = b"" if write and request.minimal else answer.item.raw
        return Reply(answer.status, body, headers, answer.charge)

    def _headers(self, container: Container, physical: PhysicalPartition) -> dict[str, str]:
        database, name = urllib.parse.quote(container.path).split("/")
        return {
            "x-ms-session-token": physical.session_token,
            "x-ms-documentdb-partitionkeyrangeid": physical.id,
            "x-ms-alt-content-path": f"dbs/{database}/colls/{name}",
            "x-ms-content-path": container.rid,
            "lsn": str(physical.lsn),
        }

    # ------------------------------------------------------------ finding

    def _container(self, request: Request) -> Container:
        container = self.account.container(request.parts[1], request.parts[3])
        intended = request.headers.get("x-ms-cosmos-intended-collection-rid")
        if intended and intended != container.rid:
            raise bad_request(
                "The container was deleted and created again since the client read it.",
                CONTAINER_RID_MISMATCH,
            )
        container.remove_expired()
        return container

    def _place(self, request: Request) -> tuple[Container, LogicalPartition]:
        """The container and the partition that a request for one partition key is about."""
        container = self._container(request)
        header = request.headers.get("x-ms-documentdb-partitionkey")
        if header is None:
            raise bad_request("PartitionKey value must be supplied for this operation.")
        key = parse_key(_key_parts(header), len(container.key_paths))
        container.require_whole(key)
        partition = container.partition(key)
        self._check_budget(container, [partition.physical])
        return container, partition

    def _check_budget(self, container: Container, physical: list[PhysicalPartition]) -> None:
        if per_second := self.faults.request_units_per_second:
            for one in physical:
                one.bucket.check(per_second / len(container.physical))

    # ------------------------------------------------------------ queries

    def _feed(self, request: Request) -> Reply:
        if "A-IM" in request.headers:
            raise ServiceError(405, "This test server has no change feed.")
        container = self._container(request)
        scope = self._scope(request, container, None)
        self._check_budget(container, scope.physical)
        page = self.account.searchers[container.rid].feed(
            scope, self._page_size(request), request.headers.get("x-ms-continuation")
        )
        return self._page(container, scope.physical, page)

    def _query(self, request: Request) -> Reply:
        container = self._container(request)
        document = request.json()
        text = document.get("query")
        if not isinstance(text, str):
            raise bad_request("The query is missing.")
        selection = Selection(parser.parse(text), parameters_of(document.get("parameters")))
        scope = self._scope(request, container, selection)
        self._check_budget(container, scope.physical)
        page = self.account.searchers[container.rid].query(
            selection,
            scope,
            asked=request.body,
            size=self._page_size(request),
            continuation=request.headers.get("x-ms-continuation"),
        )
        return self._page(container, scope.physical, page)

    def _page_size(self, request: Request) -> int:
        return self.faults.page(page_size(request.headers.get("x-ms-max-item-count")))

    def _query_plan(self, request: Request) -> Reply:
        container = self._container(request)
        document = request.json()
        query = parser.parse(str(document.get("query")))
        selection = Selection(query, parameters_of(document.get("parameters")))
        return _json(
            make_plan(
                query,
                selection,
                supported=request.headers.get("x-ms-cosmos-supported-query-features", ""),
                keys=keys_in(selection, container),
            )
        )

    def _scope(self, request: Request, container: Container, selection: Selection | None) -> Scope:
        headers = request.headers
        header = headers.get("x-ms-documentdb-partitionkey")
        if header is not None:
            key = parse_key(_key_parts(header), len(container.key_paths))
            container.require_whole(key)
            partition = container.partition(key)
            return Scope(header.encode(), [partition.physical], lambda: [partition])
        if range_id := headers.get("x-ms-documentdb-partitionkeyrangeid"):
            return self._scope_of_range(request, container, range_id.rpartition(",")[2])
        if selection is not None:
            self._check_crossing(request, container, selection)
        return Scope(b"", container.physical, lambda: list(container.partitions(EVERYTHING)))

    def _scope_of_range(self, request: Request, container: Container, range_id: str) -> Scope:
        physical = next((one for one in container.physical if one.id == range_id), None)
        if physical is None:
            raise ServiceError(
                410, "The partition key range is gone.", substatus=PARTITION_KEY_RANGE_GONE
            )
        low = request.headers.get("x-ms-start-epk") or physical.range.low
        high = request.headers.get("x-ms-end-epk") or physical.range.high
        bounds = Range(max(low, physical.range.low), min(high, physical.range.high))
        name = f"{range_id} {bounds}".encode()
        return Scope(name, [physical], lambda: list(container.partitions(bounds)))

    def _check_crossing(self, request: Request, container: Container, selection: Selection) -> None:
        """A query without a partition key may go over all of them if the client says so."""
        keys = keys_in(selection, container)
        crosses = keys is None or len({container.physical_at(key).id for key in keys}) > 1
        if keys is None and not request.flag("x-ms-documentdb-query-enablecrosspartition"):
            raise bad_request(
                "Cross partition query is required but disabled. Please set "
                "x-ms-documentdb-query-enablecrosspartition to true, specify "
                "x-ms-documentdb-partitionkey, or revise your query to avoid this exception."
            )
        if crosses and len(container.physical) > 1 and needs_client(selection.query, selection):
            raise bad_request(
                "The provided cross partition query can not be directly served by the gateway. "
                "This is a first chance (internal) exception that all newer clients will know how "
                "to handle gracefully.",
                CROSS_PARTITION_QUERY_NOT_SERVABLE,
            )

    def _page(self, container: Container, physical: list[PhysicalPartition], page: Page) -> Reply:
        for one in physical:
            one.bucket.charge(page.charge / len(physical))
        headers = self._headers(container, physical[0])
        headers["x-ms-item-count"] = str(len(page.documents))
        if page.continuation is not None:
            headers["x-ms-continuation"] = page.continuation
        body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
            container.rid.encode(),
            b",".join(page.documents),
            len(page.documents),
        )
        return Reply(200, body, headers, page.charge)


def _json(document: dict[str, Any], status: int = 200, *, etag: str | None = None) -> Reply:
    headers = {} if etag is None else {"etag": etag}
    return Reply(status, orjson.dumps(document), headers)


def _no_such_method(request: Request) -> Reply:
    raise ServiceError(
        405, f"This test server does not know {request.method} /{'/'.join(request.parts)}."
    )


def _key_parts(header: str) -> list[Any]:
    try:
        parts = orjson.loads(header)
    except orjson.JSONDecodeError:
        parts = None
    if not isinstance(parts, list):
        raise bad_request("Partition key header is invalid: it must be a JSON array.")
    return parts


def _throughput(request: Request) -> dict[str, Any] | None:
    if manual := request.headers.get("x-ms-offer-throughput"):
        return {"offerThroughput": int(manual)}
    if autoscale := request.headers.get("x-ms-cosmos-offer-autopilot-settings"):
        return {"offerAutopilotSettings": orjson.loads(autoscale)}
    return None


def _describe_range(container: Container, physical: PhysicalPartition) -> dict[str, Any]:
    return {
        "_rid": f"{container.rid}{physical.id}",
        "id": physical.id,
        "_etag": container.etag,
        "minInclusive": physical.range.low,
        "maxExclusive": physical.range.high,
        "ridPrefix": int(physical.id),
        "_self": f"{container.self_link}pkranges/{physical.id}/",
        "throughputFraction": 1 / len(container.physical),
        "status": "online",
        "parents": physical.parents,
        "_ts": container.changed,
        "_lsn": physical.lsn,
    }


def _describe_offer(container: Container) -> dict[str, Any]:
    return {
        "resource": container.self_link,
        "offerType": "Invalid",
        "offerResourceId": container.rid,
        "offerVersion": "V2",
        "content": {
            "offerThroughput": 400,
            **(container.throughput or {}),
        },
        "id": container.rid,
        "_rid": container.rid,
        "_self": f"offers/{container.rid}/",
        "_etag": container.etag,
        "_ts": container.changed,
    }
