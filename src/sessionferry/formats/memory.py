"""What a format must know of a file's earlier lines to read the next one rightly.

It travels in the header of each batch (`carry`), so that any cut of a file into batches, in any
order of delivery, gives the same sums. Who sends a file follows its lines with a memory; who stores
a batch begins with the batch's carry.
"""

from typing import Any, Protocol

from sessionferry.formats.meaning import Meaning

Carry = dict[str, Any]
"""A memory as JSON: small, and read back by the same format. It came over a wire: never trusted."""


class Memory(Protocol):
    """What was seen of one file up to a place."""

    def concerns(self, line: bytes) -> bool:
        """Whether a line may matter to the memory; cheap, and decided by its bytes alone."""
        ...

    def recall(self, fields: dict[str, Any], meaning: Meaning) -> None:
        """Complete the meaning of the next line that concerns it, and remember the line."""
        ...

    def carry(self) -> Carry | None:
        """Return what the next batch must carry; None when there is nothing to know."""
        ...
