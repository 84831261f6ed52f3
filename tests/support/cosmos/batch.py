"""Transactional batches: all operations of one partition key, or none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from tests.support.cosmos.containers import Container, LogicalPartition
from tests.support.cosmos.errors import ServiceError, bad_request
from tests.support.cosmos.items import Answer, check_item, check_preconditions, too_large

MAX_OPERATIONS = 100
MAX_BYTES = 2 * 1024 * 1024
FAILED_DEPENDENCY = 424

Patcher = Callable[[LogicalPartition, str, dict[str, Any], str | None], Answer]


class Outcome(NamedTuple):
    """A batch's response: status 200, or 207 if it was rolled back."""

    status: int
    results: list[dict[str, Any]]
    charge: float


def parse(data: bytes) -> list[dict[str, Any]]:
    """Read a batch's operations.

    Raises:
        ServiceError: 413 for more than 2 MB, 400 for more than 100 operations or none.
    """
    if len(data) > MAX_BYTES:
        raise too_large()
    try:
        operations = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise bad_request("The batch is not valid JSON.") from None
    if not isinstance(operations, list) or not all(isinstance(one, dict) for one in operations):
        raise bad_request("The batch is not a list of operations.")
    if not operations:
        raise bad_request("The batch request has no operations.")
    if len(operations) > MAX_OPERATIONS:
        raise bad_request("Batch request has more operations than what is supported.")
    return operations


class Batch:
    """Runs operations one after the other, and takes everything back if one fails."""

    def __init__(
        self,
        container: Container,
        partition: LogicalPartition,
        *,
        patch: Patcher,
        minimal: bool,
        fault: Callable[[], ServiceError | None],
    ) -> None:
        self.container = container
        self.partition = partition
        self.patch = patch
        self.minimal = minimal
        self.fault = fault

    def run(self, operations: list[dict[str, Any]]) -> Outcome:
        """The results in order; after a failure, 424 for all the others."""
        self.container.begin()
        results: list[dict[str, Any]] = []
        charge = 0.0
        for operation in operations:
            try:
                if (fault := self.fault()) is not None:
                    raise fault
                answer = self._one(operation)
            except ServiceError as refusal:
                self.container.rollback()
                return self._failed(operations, len(results), refusal)
            charge += answer.charge
            results.append(self._result(answer))
        self.container.commit()
        return Outcome(200, results, charge)

    def _one(self, operation: dict[str, Any]) -> Answer:
        kind = operation.get("operationType")
        if_match = operation.get("ifMatch")
        body: Any = operation.get("resourceBody")
        container, partition = self.container, self.partition
        if kind in {"Create", "Upsert", "Replace"}:
            container.check_key(partition, check_item(body))
        if kind == "Create":
            return container.create(partition, body)
        if kind == "Upsert":
            check_preconditions(
                partition.items.get(body["id"]), if_match, operation.get("ifNoneMatch")
            )
            return container.upsert(partition, body, if_match)
        item_id = operation.get("id")
        if not isinstance(item_id, str):
            raise bad_request(f"The batch operation {kind} needs an id.")
        if kind == "Replace":
            return container.replace(partition, item_id, body, if_match)
        if kind == "Patch" and isinstance(body, dict):
            return self.patch(partition, item_id, body, if_match)
        if kind == "Read":
            return self._read(item_id, operation.get("ifNoneMatch"))
        if kind == "Delete":
            return container.delete(partition, item_id, if_match)
        raise bad_request(f"The batch operation type {kind!r} is unknown.")

    def _read(self, item_id: str, if_none_match: str | None) -> Answer:
        answer = self.container.read(self.partition, item_id)
        if answer.item is not None and answer.item.etag == if_none_match:
            return Answer(304, None, answer.charge)
        return answer

    def _result(self, answer: Answer) -> dict[str, Any]:
        result: dict[str, Any] = {
            "statusCode": answer.status,
            "requestCharge": round(answer.charge, 2),
        }
        if answer.item is not None:
            result["eTag"] = answer.item.etag
            if not self.minimal:
                result["resourceBody"] = orjson.Fragment(answer.item.raw)
        return result

    def _failed(
        self, operations: list[dict[str, Any]], index: int, refusal: ServiceError
    ) -> Outcome:
        others = {"statusCode": FAILED_DEPENDENCY, "requestCharge": 0}
        results: list[dict[str, Any]] = [dict(others) for _ in operations]
        results[index] = {"statusCode": refusal.status, "requestCharge": round(refusal.charge, 2)}
        if refusal.substatus:
            results[index]["subStatusCode"] = refusal.substatus
        if "x-ms-retry-after-ms" in refusal.headers:
            results[index]["retryAfterMilliseconds"] = int(refusal.headers["x-ms-retry-after-ms"])
        return Outcome(207, results, refusal.charge + index * 0.5)
