"""Sends batches as the JSON that they are already.

The client takes documents as dictionaries: parsed by us, only to be rendered again by the standard
library's encoder. That is half of the processor time that writing takes. So a batch is handed to
the client as a list of stand-ins, and here, where the request leaves, its body takes their place.
A request is signed over method, path and time, not over its body.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos.aio import ContainerProxy

from sessionferry.errors import TransientError

_IS_BATCH = "x-ms-cosmos-is-batch-request"


@dataclass(slots=True)
class _Prepared:
    """A batch's body, and whether it took the place of the stand-ins."""

    body: bytes
    was_sent: bool = False


_prepared: ContextVar[_Prepared | None] = ContextVar("prepared", default=None)
"""The batch that the running task sends."""


class BatchTransport(AioHttpTransport):  # type: ignore[misc]
    """The client's transport, with prepared bodies for batches."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request; a batch with the body that was prepared for it."""
        prepared = _prepared.get()
        if prepared is not None and request.headers.get(_IS_BATCH):
            request.data = prepared.body
            request.headers["Content-Length"] = str(len(prepared.body))
            prepared.was_sent = True
        return await super().send(request, **options)


async def write_batch(
    items: ContainerProxy, partition: str, kind: str, documents: Sequence[bytes]
) -> None:
    """Send documents, each the JSON of one, as a transactional batch: `create` or `upsert`."""
    start = f'{{"operationType":"{kind.capitalize()}","resourceBody":'.encode()
    body = b"[" + b",".join([start + document + b"}" for document in documents]) + b"]"
    prepared = _Prepared(body)
    token = _prepared.set(prepared)
    try:
        stand_ins: list[Any] = [(kind, ({},))] * len(documents)
        await items.execute_item_batch(stand_ins, partition, no_response=True)
    except HttpResponseError as error:
        if error.status_code == 400 and not prepared.was_sent:
            # Never a reason to put documents into the quarantine.
            raise TransientError("This azure-cosmos does not mark batches as expected.") from error
        raise
    finally:
        _prepared.reset(token)
