"""What a failure of the Cosmos DB client means, in our words.

A failed transactional batch is no `CosmosHttpResponseError`: its real status stands in one of its
operations, the others say 424.
"""

from collections.abc import Mapping
from typing import Any, Final

from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.cosmos.exceptions import CosmosBatchOperationError

from sessionferry.errors import FerryError, PermanentError, ThrottledError, TransientError

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
PRECONDITION_FAILED: Final = 412
TOO_LARGE: Final = 413
_THROTTLED: Final = 429
_PASSING: Final = frozenset({408, 410, 424, 449})
_DEFAULT_WAIT: Final = 0.1  # seconds, where the service does not say
_SHOWN: Final = 300


class Refusal(PermanentError):
    """The service refused the request, and would refuse it again; `status` says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def translated(error: AzureError) -> FerryError:
    """Return what a client's failure asks for: waiting, trying again, or an answer to it."""
    status = getattr(error, "status_code", None)
    if isinstance(error, ClientAuthenticationError) and status != UNAUTHORIZED:
        return Refusal(UNAUTHORIZED, f"No credential for Cosmos DB: {first_line(error)}")
    if not isinstance(status, int) or not status:
        return TransientError(f"Cosmos DB did not answer: {first_line(error)}")
    if status == _THROTTLED:
        return ThrottledError("Cosmos DB throttles (429).", retry_after=_wait(error))
    if status >= 500 or status in _PASSING:
        return TransientError(f"Cosmos DB cannot do it now ({status}): {first_line(error)}")
    return Refusal(status, f"Cosmos DB refused ({status}): {first_line(error)}")


def first_line(error: BaseException) -> str:
    """Shorten a client's message, which goes over several lines."""
    text = str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Status code:")]
    return (said or lines)[0][:_SHOWN]


def _wait(error: AzureError) -> float:
    """Return the seconds that the service asked for: in a header, or in a batch's operation."""
    headers = getattr(error, "headers", None) or {}
    asked = [headers.get("x-ms-retry-after-ms")]
    if isinstance(error, CosmosBatchOperationError):
        asked += [_operation_wait(answer) for answer in error.operation_responses or []]
    waits = [wait for wait in map(_milliseconds, asked) if wait is not None]
    return max(waits, default=_DEFAULT_WAIT)


def _operation_wait(answer: Mapping[str, Any]) -> Any:
    return answer.get("retryAfterMilliseconds")


def _milliseconds(value: Any) -> float | None:
    try:
        return max(0.0, float(value) / 1000)
    except (TypeError, ValueError):
        return None
