"""Runs a query over rows: FROM and WHERE, groups and aggregates, order, and the SELECT list."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson
from tests.support.cosmos.errors import bad_request
from tests.support.cosmos.sql.evaluate import Compiler, Evaluator, Row, aliases, expand
from tests.support.cosmos.sql.functions import AGGREGATES, is_number
from tests.support.cosmos.sql.nodes import (
    ArrayOf,
    Between,
    Binary,
    Call,
    Column,
    Conditional,
    Expression,
    In,
    Like,
    Logical,
    Member,
    Name,
    ObjectOf,
    Query,
    Unary,
)
from tests.support.cosmos.sql.values import UNDEFINED, sort_key

GROUP = "\0rows"  # where a group's rows stand in its row


class Found(NamedTuple):
    """A row that WHERE let through, with what it is sorted by."""

    row: Row
    order: tuple[Any, ...]


class Selection:
    """A query, compiled for its parameters."""

    def __init__(
        self,
        query: Query,
        parameters: Mapping[str, Any],
        *,
        outer: frozenset[str] = frozenset(),
    ) -> None:
        self.query = query
        names = aliases(query) | outer
        compiler = Compiler(parameters, names)
        self.compiler = compiler
        self.parameters = parameters
        self._sources = query.sources
        self.conditions = [(one, compiler.compile(one)) for one in conjuncts(query.where)]
        self._order = [compiler.compile(order.expression) for order in query.order_by]
        self.aggregates = has_aggregates(query)
        self._group = [compiler.compile(one) for one in query.group_by]
        if self.grouped:
            _check_columns(query)
        chosen = GroupCompiler(parameters, names) if self.grouped else compiler
        self._columns = [
            (column.name, chosen.compile(column.expression)) for column in query.columns
        ]
        self.top = self._count(query.top)
        self.offset = self._count(query.offset) or 0
        self.limit = self._count(query.limit)
        if query.star and len(query.sources) != 1:
            raise bad_request("'SELECT *' is only valid with a single input set. (SC2040)")

    @property
    def grouped(self) -> bool:
        """Whether rows are put together before they are shown."""
        return self.aggregates or bool(self.query.group_by)

    @property
    def window(self) -> tuple[int, int | None]:
        """The first row to show, and how many: TOP, or OFFSET and LIMIT."""
        if self.top is not None:
            return 0, self.top
        return self.offset, self.limit

    def rows(self, base: Iterable[Row]) -> list[Any]:
        """All results; what is undefined is left out."""
        found = self.sort(self.find(base))
        values = list(self.show([one.row for one in found]))
        start, count = self.window
        return values[start : None if count is None else start + count]

    def find(self, base: Iterable[Row]) -> Iterator[Found]:
        """The rows that FROM makes and WHERE lets through."""
        return self.order(self.filter(self.rows_from(base), [test for _, test in self.conditions]))

    def rows_from(self, base: Iterable[Row]) -> Iterator[Row]:
        """The rows that FROM makes."""
        rows: Iterator[Row] = iter(base)
        for source in self._sources:
            rows = expand(source, self.compiler, rows)
        return rows

    def filter(self, rows: Iterable[Row], tests: list[Evaluator]) -> Iterator[Row]:
        """The rows for which all parts of a condition are true."""
        for test in tests:
            rows = [row for row in rows if test(row) is True]
        return iter(rows)

    def order(self, rows: Iterable[Row]) -> Iterator[Found]:
        """The rows with what they are sorted by."""
        for row in rows:
            yield Found(row, tuple([value(row) for value in self._order]))

    def sort(self, found: Iterable[Found]) -> list[Found]:
        """By ORDER BY, in the given order where that says nothing."""
        ordered = list(found)
        if not any(order.descending for order in self.query.order_by):
            ordered.sort(key=lambda one: [sort_key(value) for value in one.order])
            return ordered
        for index, order in reversed(list(enumerate(self.query.order_by))):
            ordered.sort(key=lambda one: sort_key(one.order[index]), reverse=order.descending)
        return ordered

    def show(self, rows: list[Row]) -> Iterator[Any]:
        """What SELECT makes of the rows."""
        if self.grouped:
            rows = list(self._groups(rows))
        values = (value for row in rows if (value := self.project(row)) is not UNDEFINED)
        return _distinct(values) if self.query.distinct else values

    def project(self, row: Row) -> Any:
        """One result."""
        if self.query.star:
            return row[self._sources[0].alias]
        if self.query.value:
            return self._columns[0][1](row)
        values = ((name, value(row)) for name, value in self._columns)
        return {name: value for name, value in values if value is not UNDEFINED}

    def _groups(self, rows: list[Row]) -> Iterator[Row]:
        if not self.query.group_by:
            blank = dict.fromkeys(aliases(self.query), UNDEFINED)
            yield {**(rows[0] if rows else blank), GROUP: rows}
            return
        groups: dict[bytes, list[Row]] = {}
        for row in rows:
            key = [_plain(value(row)) for value in self._group]
            groups.setdefault(orjson.dumps(key, option=orjson.OPT_SORT_KEYS), []).append(row)
        for members in groups.values():
            yield {**members[0], GROUP: members}

    def _count(self, expression: Expression | None) -> int | None:
        if expression is None:
            return None
        value = self.compiler.compile(expression)({})
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_request(
                "TOP, OFFSET and LIMIT need whole numbers that are not negative. (SC2062)"
            )
        return value


class GroupCompiler(Compiler):
    """Knows the aggregates: functions of all the rows of a group."""

    def _call(self, node: Call) -> Evaluator:
        if node.name not in AGGREGATES:
            return super()._call(node)
        if len(node.arguments) != 1:
            raise bad_request(f"The {node.name} function takes one argument. (SC2010)")
        value = Compiler(self.parameters, self.aliases).compile(node.arguments[0])
        aggregate = AGGREGATE_FUNCTIONS[node.name]
        return lambda row: aggregate([value(one) for one in row[GROUP]])


def _count(values: list[Any]) -> int:
    return sum(1 for value in values if value is not UNDEFINED)


def _count_if(values: list[Any]) -> int:
    return sum(1 for value in values if value is True)


def _sum(values: list[Any]) -> Any:
    defined = [value for value in values if value is not UNDEFINED]
    if not all(map(is_number, defined)):
        return UNDEFINED
    if all(isinstance(value, int) for value in defined):
        return sum(defined)
    return math.fsum(defined)


def _average(values: list[Any]) -> Any:
    total = _sum(values)
    counted = _count(values)
    return UNDEFINED if total is UNDEFINED or not counted else total / counted


def _extreme(values: list[Any], *, largest: bool) -> Any:
    defined = [value for value in values if value is not UNDEFINED]
    if not defined or any(isinstance(value, dict | list) for value in defined):
        return UNDEFINED
    return (max if largest else min)(defined, key=sort_key)


AGGREGATE_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "COUNT": _count,
    "COUNTIF": _count_if,
    "SUM": _sum,
    "AVG": _average,
    "MIN": lambda values: _extreme(values, largest=False),
    "MAX": lambda values: _extreme(values, largest=True),
}


def conjuncts(where: Expression | None) -> list[Expression]:
    """The parts that AND joins."""
    if isinstance(where, Logical) and where.operator == "AND":
        return [part for operand in where.operands for part in conjuncts(operand)]
    return [where] if where is not None else []


def children(node: Expression) -> Iterator[Expression]:
    """The expressions directly inside one; not those of subqueries."""
    match node:
        case Member(of, key):
            yield from (of, key)
        case Unary(_, operand):
            yield operand
        case Binary(_, left, right):
            yield from (left, right)
        case Logical(_, operands):
            yield from operands
        case Between(operand, low, high):
            yield from (operand, low, high)
        case In(operand, choices):
            yield from (operand, *choices)
        case Like(operand, pattern, escape):
            yield from (operand, pattern) if escape is None else (operand, pattern, escape)
        case Conditional(condition, one, other):
            yield from (condition, one, other)
        case Call(_, arguments):
            yield from arguments
        case ObjectOf(fields):
            yield from (value for _, value in fields)
        case ArrayOf(elements):
            yield from elements
        case _:
            return


def calls(node: Expression) -> Iterator[str]:
    """The names of the aggregates in an expression."""
    if isinstance(node, Call) and node.name in AGGREGATES:
        yield node.name
    for child in children(node):
        yield from calls(child)


def has_aggregates(query: Query) -> bool:
    """Whether the SELECT list has one."""
    return any(itertools.chain.from_iterable(calls(column.expression) for column in query.columns))


def _check_columns(query: Query) -> None:
    if query.star:
        raise bad_request("'SELECT *' cannot be used with GROUP BY. (SC2105)")
    if query.order_by:
        raise bad_request("ORDER BY is not supported with GROUP BY or aggregates. (SC2107)")
    for column in query.columns:
        _check_grouped(column, column.expression, query.group_by)


def _check_grouped(column: Column, node: Expression, group_by: list[Expression]) -> None:
    if node in group_by or (isinstance(node, Call) and node.name in AGGREGATES):
        return
    if isinstance(node, Name | Member):
        raise bad_request(
            f"Property reference '{column.text}' is invalid in the select list because it is not "
            "contained in either an aggregate function or the GROUP BY clause. (SC2102)"
        )
    for child in children(node):
        _check_grouped(column, child, group_by)


def _plain(value: Any) -> Any:
    """Undefined as something that JSON can tell from null."""
    return {"\0": 0} if value is UNDEFINED else value


def _distinct(values: Iterable[Any]) -> Iterator[Any]:
    seen: set[bytes] = set()
    for value in values:
        key = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        if key not in seen:
            seen.add(key)
            yield value
