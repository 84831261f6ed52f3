"""The query plan: how a client puts a query together from what the physical partitions answer.

A query that needs no putting together (no ORDER BY, TOP, OFFSET, DISTINCT or aggregate) can be
answered by the gateway itself. Any other is refused with a sub-status that makes the client ask for
the plan, and then it sends each physical partition the rewritten query and merges.
"""

from collections.abc import Mapping
from typing import Any

from tests.support.cosmos.errors import bad_request
from tests.support.cosmos.partitions import HIGHEST, LOWEST
from tests.support.cosmos.sql.nodes import Query
from tests.support.cosmos.sql.select import Selection, calls

AGGREGATE_NAMES = {
    "COUNT": "Count",
    "COUNTIF": "CountIf",
    "SUM": "Sum",
    "MIN": "Min",
    "MAX": "Max",
    "AVG": "Average",
}
FORMATTABLE = "({documentdb-formattableorderbyquery-filter})"


def needs_client(query: Query, selection: Selection) -> bool:
    """Whether the answers of several partitions cannot just be appended."""
    return bool(
        query.order_by
        or query.distinct
        or query.top is not None
        or query.offset is not None
        or selection.grouped
    )


def features(query: Query, selection: Selection) -> set[str]:
    """What a client must know to put this query together."""
    needed = set()
    if query.group_by:
        needed.add("GroupBy")
    if query.order_by:
        needed.add("OrderBy")
    if len(query.order_by) > 1:
        needed.add("MultipleOrderBy")
    if query.distinct:
        needed.add("Distinct")
    if query.top is not None:
        needed.add("Top")
    if query.offset is not None:
        needed.add("OffsetAndLimit")
    if selection.aggregates:
        needed.add("Aggregate")
    if len(aggregates(query)) > 1:
        needed.add("MultipleAggregates")
    return needed


def aggregates(query: Query) -> list[str]:
    """The aggregates of the SELECT list by the plan's names for them."""
    return [AGGREGATE_NAMES[name] for column in query.columns for name in calls(column.expression)]


def make_plan(
    query: Query,
    selection: Selection,
    *,
    supported: str,
    keys: list[str] | None,
) -> dict[str, Any]:
    """The plan as the client reads it; `keys` are the effective partition keys that WHERE asks for.

    Raises:
        ServiceError: 400 for a query that this client cannot put together.
    """
    known = {feature.strip() for feature in supported.split(",")}
    if missing := sorted(features(query, selection) - known):
        raise bad_request(
            "Query contains 1 or more unsupported features. Upgrade your SDK to a version that "
            f"does support the requested features: Query contained {', '.join(missing)}, which the "
            "calling client does not support."
        )
    if keys is None:
        ranges = [_range(LOWEST, HIGHEST, point=False)]
    else:
        ranges = [_range(key, key, point=True) for key in sorted(set(keys))]
    return {
        "partitionedQueryExecutionInfoVersion": 2,
        "queryInfo": _info(query, selection),
        "queryRanges": ranges,
    }


def _range(low: str, high: str, *, point: bool) -> dict[str, Any]:
    return {"min": low, "max": high, "isMinInclusive": True, "isMaxInclusive": point}


def _info(query: Query, selection: Selection) -> dict[str, Any]:
    return {
        "distinctType": _distinct_type(query),
        "top": selection.top,
        "offset": selection.offset if query.offset is not None else None,
        "limit": selection.limit,
        "orderBy": ["Descending" if order.descending else "Ascending" for order in query.order_by],
        "orderByExpressions": [order.text for order in query.order_by],
        "groupByExpressions": [],
        "groupByAliases": [],
        "aggregates": aggregates(query),
        "groupByAliasToAggregateType": {},
        "rewrittenQuery": rewritten(query, selection),
        "hasSelectValue": query.value,
        "hasNonStreamingOrderBy": False,
    }


def _distinct_type(query: Query) -> str:
    if not query.distinct:
        return "None"
    ordered = len(query.order_by) == len(query.columns) == 1 and query.value
    return "Ordered" if ordered and query.order_by[0].text == query.columns[0].text else "Unordered"


def rewritten(query: Query, selection: Selection) -> str:
    """The query that each physical partition is asked, or nothing if it is the query itself."""
    if selection.aggregates:
        return f"SELECT VALUE {_aggregate_parts(query)} {query.rest_text}"
    if query.order_by:
        return _rewritten_order(query) + _window(selection, query)
    if query.offset is not None:
        distinct = "DISTINCT " if query.distinct else ""
        return f"SELECT {distinct}{query.select_text} {query.rest_text}{_window(selection, query)}"
    return ""


def _aggregate_parts(query: Query) -> str:
    column = query.columns[0]
    inside = column.text
    if column.text.upper().startswith("AVG"):
        argument = column.text[3:]
        inside = f'{{"sum": SUM{argument}, "count": COUNT{argument}}}'
    return f'[{{"item": {inside}}}]'


def _rewritten_order(query: Query) -> str:
    alias = query.sources[0].alias
    items = ", ".join(f'{{"item": {order.text}}}' for order in query.order_by)
    where = f"({query.where_text}) AND {FORMATTABLE}" if query.where_text else FORMATTABLE
    order = ", ".join(
        f"{order.text} {'DESC' if order.descending else 'ASC'}" for order in query.order_by
    )
    return (
        f"SELECT {alias}._rid, [{items}] AS orderByItems, {_payload(query)} AS payload "
        f"{query.from_text} WHERE {where} ORDER BY {order}"
    )


def _payload(query: Query) -> str:
    if query.star:
        return query.sources[0].alias
    if query.value:
        return query.columns[0].text
    return "{" + ", ".join(f'"{column.name}": {column.text}' for column in query.columns) + "}"


def _window(selection: Selection, query: Query) -> str:
    """Every partition could hold all of the first rows; DISTINCT makes even more necessary."""
    start, count = selection.window
    if count is None or query.distinct:
        return ""
    return f" OFFSET 0 LIMIT {start + count}"


def parameters_of(given: Any) -> Mapping[str, Any]:
    """The parameters of a request's query.

    Raises:
        ServiceError: 400 for what is no list of names and values.
    """
    if not given:
        return {}
    try:
        return {one["name"]: one["value"] for one in given}
    except (TypeError, KeyError):
        raise bad_request("Each query parameter needs a name and a value.") from None
