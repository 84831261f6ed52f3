"""Operations into transactional batches, by count and by bytes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

Operation = TypeVar("Operation")

MAX_OPERATIONS: Final = 100
"""Operations in a transactional batch, at most (Cosmos DB)."""
MAX_BATCH_BYTES: Final = 1_800_000
"""Bytes of documents in a batch, about: Cosmos DB takes requests of 2 MB, and the client writes
some numbers at greater length than we do. A larger document goes alone."""
OPERATION_BYTES: Final = 64
"""What an operation adds to its document."""


def pack(
    operations: Iterable[Operation], size: Callable[[Operation], int]
) -> Iterator[list[Operation]]:
    """Fill batches in order; `size` is a document's length in bytes of UTF-8 JSON."""
    batch: list[Operation] = []
    total = 0
    for operation in operations:
        length = size(operation) + OPERATION_BYTES
        if batch and (len(batch) == MAX_OPERATIONS or total + length > MAX_BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(operation)
        total += length
    if batch:
        yield batch


def halves(batch: list[Operation]) -> tuple[list[Operation], list[Operation]]:
    """Split a batch that turned out to be too large."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]
