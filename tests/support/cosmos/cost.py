"""What a request costs, in request units (RU).

The service does not publish its formula. These figures are interpolated between the ones it does
publish, and good for comparing ways to do the same work, not for forecasting a bill:

- A point read: 1 RU for 1 KB, 10 RU for 100 KB.
- A create without indexed properties: 5.5 RU for 1 KB, 50 RU for 100 KB, some 190 RU for 400 KB.
- A replace, or an upsert over an item: twice a create. A delete: as a create of that item.
- Assumed: 0.2 RU for each indexed value written; a write that is refused (409, 412) and a read
  that finds nothing cost 1.24 RU; a batch costs the sum of its operations.
- Assumed for queries: 2.3 RU to begin with, 0.1 RU and a tenth of a point read's size-dependent
  part per item that has to be looked at: those that an index leaves, or every one of a scan.
  A page, TOP and LIMIT pay their share of that.
"""

MISS = 1.24
QUERY_BASE = 2.3
PER_INDEXED_VALUE = 0.2
READ_PER_KB = 9 / 99
WRITE_PER_KB = 44.5 / 99


def _kilobytes(size: int) -> float:
    return max(1.0, size / 1024)


def read(size: int) -> float:
    """A point read of an item of so many bytes."""
    return 1.0 + READ_PER_KB * (_kilobytes(size) - 1)


def create(size: int, indexed_values: int) -> float:
    """A new item of so many bytes."""
    return 5.5 + WRITE_PER_KB * (_kilobytes(size) - 1) + PER_INDEXED_VALUE * indexed_values


def replace(size: int, indexed_values: int) -> float:
    """Another body for an item that exists."""
    return 2 * create(size, indexed_values)


def query(items_looked_at: int, bytes_looked_at: int) -> float:
    """One page of a query."""
    return QUERY_BASE + 0.1 * items_looked_at + 0.1 * READ_PER_KB * bytes_looked_at / 1024
