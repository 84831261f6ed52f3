"""Pages of items: queries and feeds over one partition key, one physical partition or all."""

import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from tests.support.cosmos import cost
from tests.support.cosmos.containers import Container, LogicalPartition, PhysicalPartition
from tests.support.cosmos.errors import ServiceError, bad_request
from tests.support.cosmos.indexing import IndexingPolicy, Path
from tests.support.cosmos.items import Item
from tests.support.cosmos.lookup import Bounds, Lookups, bounds_of
from tests.support.cosmos.partitions import effective_key, encode_part
from tests.support.cosmos.sql.evaluate import Evaluator, constant_path
from tests.support.cosmos.sql.nodes import (
    Between,
    Binary,
    Call,
    Expression,
    In,
    Literal,
    Parameter,
    Query,
)
from tests.support.cosmos.sql.select import Found, Selection
from tests.support.cosmos.sql.values import UNDEFINED, sort_key

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
REMEMBERED = 16  # results kept for the next page


class Page(NamedTuple):
    """One response's results, and where the next one begins."""

    documents: list[bytes]
    continuation: str | None
    charge: float


class Place(NamedTuple):
    """Where a page ended, for the next one.

    `version` is the container's, `at` the number of rows shown, `after` the last one's sort key.
    """

    version: int
    at: int
    after: list[Any] | None

    def encode(self) -> str:
        """As the client sends it back."""
        return base64.urlsafe_b64encode(orjson.dumps(list(self))).decode()

    @classmethod
    def decode(cls, token: str) -> "Place":
        """Read a token.

        Raises:
            ServiceError: 400 for one that is not ours.
        """
        try:
            version, at, after = orjson.loads(base64.urlsafe_b64decode(token))
        except (ValueError, TypeError):
            raise bad_request("The continuation token is malformed.") from None
        return cls(version, at, after)


@dataclass(slots=True)
class Matches:
    """What a query found, before its SELECT list: kept while the container stays as it is."""

    version: int
    found: list[Found]
    items_looked_at: int
    bytes_looked_at: int


class Scope(NamedTuple):
    """What a query or a feed goes over: one partition key, a part of the ring, or all.

    `name` tells scopes of one container apart.
    """

    name: bytes
    physical: list[PhysicalPartition]
    partitions: Callable[[], list[LogicalPartition]]

    @property
    def version(self) -> int:
        """Another number after each write to one of the physical partitions."""
        return sum(one.lsn for one in self.physical)


class Searcher:
    """Answers the queries of one container."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._lookups = Lookups()
        self._results: OrderedDict[bytes, Matches] = OrderedDict()

    # ------------------------------------------------------------ feeds

    def feed(self, scope: Scope, size: int, continuation: str | None) -> Page:
        """All items, in the order of their creation."""
        after = Place.decode(continuation).at if continuation else 0
        items = [item for item in self.container.items(scope.partitions()) if item.number > after]
        documents, used = _fill([item.raw for item in items[:size]])
        last = items[used - 1].number if used else after
        token = Place(0, last, None).encode() if used < len(items) else None
        return Page(documents, token, 1.0 + 0.1 * used)

    # ------------------------------------------------------------ queries

    def query(
        self,
        selection: Selection,
        scope: Scope,
        *,
        asked: bytes,
        size: int,
        continuation: str | None,
    ) -> Page:
        """A page of a query's results; `asked` is the query and its parameters as they came."""
        check_order(selection.query, self.container.policy)
        place = Place.decode(continuation) if continuation else None
        matches = self._matches(selection, scope, asked, continued=place is not None)
        total = max(1, len(matches.found))
        if selection.grouped or selection.query.distinct:
            values = list(selection.show([one.row for one in matches.found]))
            page = _slice(values, selection, size, place)
            share = 1.0 if place is None else 0.0
        else:
            page = _rows(matches, selection, size, place)
            partly = place or page.continuation or selection.window[1] is not None
            share = len(page.documents) / total if partly else 1.0
        charge = cost.query(
            round(matches.items_looked_at * share), round(matches.bytes_looked_at * share)
        )
        return page._replace(charge=charge)

    def _matches(
        self, selection: Selection, scope: Scope, asked: bytes, *, continued: bool
    ) -> Matches:
        version, name = scope.version, scope.name + asked
        known = self._results.get(name)
        if continued and known is not None and known.version == version:
            self._results.move_to_end(name)
            return known
        items = self._lookups.narrow(
            scope.name,
            version,
            _bounds(selection, self.container.policy),
            lambda: self.container.items(scope.partitions()),
        )
        matches = find(selection, items, self.container.policy)
        matches.version = version
        self._results[name] = matches
        if len(self._results) > REMEMBERED:
            self._results.popitem(last=False)
        return matches

    def matches_predicate(self, selection: Selection, item: Item) -> bool:
        """Whether a patch's condition holds for an item."""
        return any(True for _ in selection.find([{"": item.body}]))


def find(selection: Selection, items: list[Item], policy: IndexingPolicy) -> Matches:
    """Run FROM, WHERE and ORDER BY, and count what had to be looked at."""
    indexed, others = _split(selection, policy)
    rows = selection.rows_from({"": item.body, "\0item": item} for item in items)
    candidates = list(selection.filter(rows, indexed))
    found = selection.sort(selection.order(selection.filter(candidates, others)))
    looked_at = {row["\0item"].number: len(row["\0item"].raw) for row in candidates}
    return Matches(0, found, len(looked_at), sum(looked_at.values()))


# ---------------------------------------------------------------- pages


def _rows(matches: Matches, selection: Selection, size: int, place: Place | None) -> Page:
    first, count = selection.window
    last = len(matches.found) if count is None else min(len(matches.found), first + count)
    start = first
    if place is not None:
        start = place.at if place.version == matches.version else _resume(matches, selection, place)
        last = min(last, start + (first + count - place.at)) if count is not None else last
    rows = matches.found[start : min(last, start + size)]
    documents, used = _fill([_shown(selection, one) for one in rows])
    end = start + used
    token = None
    if end < last:
        after = _key(matches.found[end - 1]) if used else place and place.after
        token = Place(matches.version, end, after).encode()
    return Page([document for document in documents if document], token, 0.0)


def _shown(selection: Selection, found: Found) -> bytes:
    """A row's result as JSON; empty where it is undefined."""
    value = selection.project(found.row)
    item: Item = found.row["\0item"]
    if value is item.body:
        return item.raw
    return b"" if value is UNDEFINED else orjson.dumps(value)


def _key(found: Found) -> list[Any]:
    order = [None if value is UNDEFINED else value for value in found.order]
    return [order, [value is UNDEFINED for value in found.order], found.row["\0item"].number]


def _resume(matches: Matches, selection: Selection, place: Place) -> int:
    """The first row after the last one shown, in a container that has changed since."""
    if place.after is None:
        return place.at
    order, undefined, number = place.after
    values = [UNDEFINED if gone else value for value, gone in zip(order, undefined, strict=True)]
    for index, one in enumerate(matches.found):
        if _follows(one, values, number, selection.query):
            return index
    return len(matches.found)


def _follows(found: Found, values: list[Any], number: int, query: Query) -> bool:
    for mine, theirs, order in zip(found.order, values, query.order_by, strict=True):
        left, right = sort_key(mine), sort_key(theirs)
        if left != right:
            return (left < right) if order.descending else (left > right)
    return bool(found.row["\0item"].number > number)


def _slice(values: list[Any], selection: Selection, size: int, place: Place | None) -> Page:
    first, count = selection.window
    last = len(values) if count is None else min(len(values), first + count)
    start = place.at if place is not None else first
    wanted = values[start : min(last, start + size)]
    documents, used = _fill([orjson.dumps(value) for value in wanted])
    end = start + used
    return Page(documents, Place(0, end, None).encode() if end < last else None, 0.0)


def _fill(documents: list[bytes]) -> tuple[list[bytes], int]:
    """As many as a response of 4 MB holds, at least one; and how many that are."""
    room = MAX_RESPONSE_BYTES
    for index, document in enumerate(documents):
        room -= len(document)
        if room < 0 and index:
            return documents[:index], index
    return documents, len(documents)


# ---------------------------------------------------------------- indexes


def check_order(query: Query, policy: IndexingPolicy) -> None:
    """ORDER BY needs an index: of its path, or a composite one of all its paths in order.

    Raises:
        ServiceError: 400, with the service's words.
    """
    columns = tuple(
        (_item_path(query, order.expression), order.descending) for order in query.order_by
    )
    if not columns:
        return
    if any(path is None for path, _ in columns):
        raise bad_request(
            "ORDER BY item expression could not be mapped to a document path. (SC2104)"
        )
    if len(columns) == 1:
        path = columns[0][0]
        if path is not None and not policy.covers(path):
            raise bad_request(
                "The index path corresponding to the specified order-by item is excluded."
            )
    elif not policy.serves_order(tuple((path or (), down) for path, down in columns)):
        raise bad_request(
            "The order by query does not have a corresponding composite index that it can be "
            "served from."
        )


def _item_path(query: Query, expression: Expression) -> Path | None:
    path = constant_path(expression)
    if path is None or not query.sources or query.sources[0].path is not None:
        return None
    return path[1] if path[0] == query.sources[0].alias else None


def _split(selection: Selection, policy: IndexingPolicy) -> tuple[list[Evaluator], list[Evaluator]]:
    """The parts of WHERE that an index can answer, and the others."""
    parts: tuple[list[Evaluator], list[Evaluator]] = ([], [])
    for condition, test in selection.conditions:
        path = _looked_up(selection.query, condition)
        parts[path is None or not policy.covers(path)].append(test)
    return parts


def _bounds(selection: Selection, policy: IndexingPolicy) -> list[Bounds]:
    """What the conditions leave of paths that are indexed."""
    found = []
    for condition, _ in selection.conditions:
        compared = bounds_of(condition, selection.parameters)
        path = _item_path(selection.query, compared[0]) if compared is not None else None
        if compared is not None and path is not None and policy.covers(path):
            found.append(Bounds(path, *compared[1]))
    return found


def _looked_up(query: Query, condition: Expression) -> Path | None:
    match condition:
        case Binary("=" | "<" | "<=" | ">" | ">=", left, Literal() | Parameter()):
            return _item_path(query, left)
        case Binary("=" | "<" | "<=" | ">" | ">=", Literal() | Parameter(), right):
            return _item_path(query, right)
        case Between(operand, Literal() | Parameter(), Literal() | Parameter()):
            return _item_path(query, operand)
        case In(operand, choices) if all(isinstance(one, Literal | Parameter) for one in choices):
            return _item_path(query, operand)
        case Call("STARTSWITH", (operand, Literal() | Parameter())):
            return _item_path(query, operand)
        case _:
            return None


def keys_in(selection: Selection, container: Container) -> list[str] | None:
    """The effective partition keys that WHERE asks for, if it asks for some."""
    query = selection.query
    wanted: dict[Path, list[Any]] = {}
    for condition, _ in selection.conditions:
        if (path := _looked_up(query, condition)) is not None:
            values = _constants(condition, selection.parameters)
            if values is not None:
                wanted.setdefault(path, values)
    paths = [tuple(path) for path in container.key_paths]
    if not all(path in wanted for path in paths):
        return None
    if container.hierarchical:
        if any(len(wanted[path]) != 1 for path in paths):
            return None
        return [
            effective_key(tuple(encode_part(wanted[path][0]) for path in paths), hierarchical=True)
        ]
    return [effective_key((encode_part(value),)) for value in wanted[paths[0]]]


def _constants(condition: Expression, parameters: Mapping[str, Any]) -> list[Any] | None:
    match condition:
        case Binary("=", left, right):
            chosen = [one for one in (left, right) if isinstance(one, Literal | Parameter)]
        case In(_, choices):
            chosen = [one for one in choices if isinstance(one, Literal | Parameter)]
        case _:
            return None
    values = [one.value if isinstance(one, Literal) else parameters.get(one.name) for one in chosen]
    plain = all(value is None or isinstance(value, str | int | float) for value in values)
    return values if plain else None


def page_size(header: str | None) -> int:
    """What x-ms-max-item-count asks for; -1 lets the server choose.

    Raises:
        ServiceError: 400 for what is no such number.
    """
    if header is None:
        return DEFAULT_PAGE
    try:
        wanted = int(header)
    except ValueError:
        wanted = 0
    if wanted == -1:
        return MAX_PAGE
    if wanted < 1:
        raise ServiceError(400, "The page size must be -1 or a positive number.")
    return min(wanted, 2**31 - 1)
