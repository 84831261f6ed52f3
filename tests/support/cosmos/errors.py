"""The service's refusals: a status, often a sub-status, a code word and a sentence."""

from http import HTTPStatus
from typing import Any

import orjson

CODES = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    409: "Conflict",
    410: "Gone",
    412: "PreconditionFailed",
    413: "RequestEntityTooLarge",
    429: "429",
    449: "449",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}

PARTITION_KEY_MISMATCH = 1001
CROSS_PARTITION_QUERY_NOT_SERVABLE = 1004
CONTAINER_RID_MISMATCH = 1024
PARTITION_KEY_RANGE_GONE = 1002
OWNER_NOT_FOUND = 1003
REQUEST_RATE_TOO_LARGE = 3200
NOT_AUTHORIZED_BY_ROLE = 5300


class ServiceError(Exception):
    """A request, or one operation of a batch, that the service refuses.

    `charge` is in request units; `headers` go out with the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        substatus: int = 0,
        charge: float = 1.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.substatus = substatus
        self.charge = charge
        self.headers = headers or {}

    def body(self, activity_id: str) -> bytes:
        """The JSON that the service sends with such a refusal."""
        message = orjson.dumps({"Errors": [self.message]}).decode()
        document: dict[str, Any] = {
            "code": CODES.get(self.status) or HTTPStatus(self.status).phrase,
            "message": f"Message: {message}\r\nActivityId: {activity_id}",
        }
        return orjson.dumps(document)


def throttled(retry_after_ms: float) -> ServiceError:
    """Too many request units in this second."""
    milliseconds = max(1, round(retry_after_ms))
    return ServiceError(
        429,
        "Request rate is large. More Request Units may be needed, so no changes were made. "
        "Please retry this request later. Learn more: http://aka.ms/cosmosdb-error-429",
        substatus=REQUEST_RATE_TOO_LARGE,
        charge=0.38,
        headers={"x-ms-retry-after-ms": str(milliseconds)},
    )


def bad_request(message: str, substatus: int = 0) -> ServiceError:
    """A request that can never work."""
    return ServiceError(400, message, substatus=substatus)


def not_found(substatus: int = 0, charge: float = 1.0) -> ServiceError:
    """Nothing of that name here."""
    return ServiceError(
        404,
        "Resource Not Found. Learn more: https://aka.ms/cosmosdb-tsg-not-found",
        substatus=substatus,
        charge=charge,
    )
