"""What a failure of the Cosmos DB client means."""

from typing import Any

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.cosmos.exceptions import (
    CosmosBatchOperationError,
    CosmosClientTimeoutError,
    CosmosHttpResponseError,
    CosmosResourceNotFoundError,
)

from sessionferry.errors import Kind, ThrottledError, TransientError, classify, retry_after
from sessionferry.store.cosmos.faults import Refusal, first_line, translated


class Response:
    """The part of an HTTP response that the client's errors read."""

    reason = "reason"

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.status_code = status
        self.headers = headers or {}

    def text(self) -> str:
        return ""


def single(status: int, **headers: str) -> AzureError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CosmosHttpResponseError(status, "said\nmore", response=Response(status, named))


def batch(*statuses: int, wait: object = None, headers: dict[str, Any] | None = None) -> AzureError:
    failed = next(at for at, status in enumerate(statuses) if status != 424)
    answers = [{"statusCode": status, "retryAfterMilliseconds": wait} for status in statuses]
    return CosmosBatchOperationError(
        error_index=failed,
        headers=headers or {},
        status_code=statuses[failed],
        message="There was an error in the transactional batch",
        operation_responses=answers,
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((single(status), Kind.TRANSIENT) for status in (408, 410, 449, 500, 502, 503, 504)),
        *((single(status), Kind.PERMANENT) for status in (400, 401, 403, 404, 409, 412, 413)),
        (single(429), Kind.THROTTLED),
        (batch(424, 429, 424), Kind.THROTTLED),
        (batch(449, 424), Kind.TRANSIENT),
        (batch(424, 409), Kind.PERMANENT),
        (ServiceRequestError("no route"), Kind.TRANSIENT),
        (ServiceResponseError("cut"), Kind.TRANSIENT),
        (CosmosClientTimeoutError(), Kind.TRANSIENT),
        (ClientAuthenticationError("no credential"), Kind.PERMANENT),
        (AzureError("something"), Kind.TRANSIENT),
    ],
)
def test_a_failure_is_of_one_kind(error: AzureError, kind: Kind) -> None:
    assert classify(translated(error)) is kind


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 413])
@pytest.mark.parametrize("make", [single, batch])
def test_an_answer_that_is_no_keeps_its_status(make: Any, status: int) -> None:
    refusal = translated(make(status))
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (single(429, x_ms_retry_after_ms="250"), 0.25),
        (single(429, x_ms_retry_after_ms="-5"), 0.0),
        (single(429, x_ms_retry_after_ms="soon"), 0.1),
        (single(429), 0.1),
        (batch(429, 424, wait=40), 0.04),
        (batch(424, 429, wait="40"), 0.04),
        (batch(429, headers={"x-ms-retry-after-ms": "300"}), 0.3),
        (batch(429, wait={}), 0.1),
    ],
)
def test_a_throttled_request_waits_as_long_as_it_was_told(
    error: AzureError, seconds: float
) -> None:
    throttled = translated(error)
    assert isinstance(throttled, ThrottledError)
    assert retry_after(throttled, 9.0) == seconds


def test_a_message_is_one_short_line() -> None:
    not_found = CosmosResourceNotFoundError(message="Owner resource\nActivityId: 1", response=None)
    assert first_line(not_found) == "Owner resource"
    assert len(first_line(AzureError("x" * 5000))) == 300
    assert first_line(AzureError("")) == "AzureError"
    assert isinstance(translated(AzureError("")), TransientError)
