"""What an expression is worth: each one becomes a Python function of a row, compiled once a query.

A row maps the aliases of FROM to values. `and`, `or` and `not` know three values: a missing
property makes a comparison undefined, and only true lets an item through.
"""

import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.support.cosmos.errors import bad_request
from tests.support.cosmos.sql.functions import AGGREGATES, FUNCTIONS, is_number
from tests.support.cosmos.sql.nodes import (
    ArrayOf,
    Between,
    Binary,
    Call,
    Conditional,
    Expression,
    In,
    Like,
    Literal,
    Logical,
    Member,
    Name,
    ObjectOf,
    Parameter,
    Query,
    Source,
    Subquery,
    Unary,
)
from tests.support.cosmos.sql.values import UNDEFINED, equal, is_ordered, same_type

Row = dict[str, Any]
Evaluator = Callable[[Row], Any]
SCALARS = {int, float, str, bool}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": lambda left, right: left - right * int(left / right),
}
BITS: dict[str, Callable[[int, int], int]] = {
    "|": operator.or_,
    "&": operator.and_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
}


def compare(operation: Callable[[Any, Any], bool], left: Any, right: Any) -> Any:
    """Less or more: undefined unless both are of one ordered type."""
    if type(left) is type(right) and type(left) in SCALARS:
        return operation(left, right)
    if not same_type(left, right) or not is_ordered(left):
        return UNDEFINED
    if left is None:
        return operation(0, 0)
    return operation(left, right)


def equality(left: Any, right: Any) -> Any:
    """Equal; undefined unless both are of one type."""
    if type(left) is type(right) and type(left) in SCALARS:
        return left == right
    if left is UNDEFINED or not same_type(left, right):
        return UNDEFINED
    return equal(left, right)


def inequality(left: Any, right: Any) -> Any:
    """Not equal; undefined for arrays and objects too."""
    return UNDEFINED if isinstance(left, dict | list) else negation(equality(left, right))


def negation(value: Any) -> Any:
    """NOT of three values."""
    return not value if isinstance(value, bool) else UNDEFINED


def member(of: Any, key: Any) -> Any:
    """A property or an element, or undefined."""
    if isinstance(of, dict) and isinstance(key, str):
        return of.get(key, UNDEFINED)
    if isinstance(of, list) and isinstance(key, int) and 0 <= key < len(of):
        return of[key]
    return UNDEFINED


class Compiler:
    """Turns expressions into functions, with the values of the query's parameters in them."""

    def __init__(self, parameters: Mapping[str, Any], aliases: frozenset[str]) -> None:
        self.parameters = parameters
        self.aliases = aliases

    def compile(self, expression: Expression) -> Evaluator:
        """The function of one expression.

        Raises:
            ServiceError: 400 for a name, a parameter or a function that does not exist.
        """
        method = getattr(self, f"_{type(expression).__name__.lower()}")
        evaluator: Evaluator = method(expression)
        return evaluator

    def _literal(self, node: Literal) -> Evaluator:
        value = node.value
        return lambda _row: value

    def _parameter(self, node: Parameter) -> Evaluator:
        if node.name not in self.parameters:
            raise bad_request(f"The parameter '{node.name}' has no value. (SC2061)")
        value = self.parameters[node.name]
        return lambda _row: value

    def _name(self, node: Name) -> Evaluator:
        name = node.name
        if name not in self.aliases:
            raise bad_request(f"Identifier '{name}' could not be resolved. (SC2001)")
        return lambda row: row[name]

    def _member(self, node: Member) -> Evaluator:
        if path := constant_path(node):
            return self._path(*path)
        of, key = self.compile(node.of), self.compile(node.key)
        return lambda row: member(of(row), key(row))

    def _path(self, alias: str, keys: tuple[str, ...]) -> Evaluator:
        self._name(Name(alias))
        if len(keys) == 1:
            only = keys[0]

            def direct(row: Row) -> Any:
                value = row[alias]
                return value.get(only, UNDEFINED) if isinstance(value, dict) else UNDEFINED

            return direct

        def walk(row: Row) -> Any:
            value = row[alias]
            for key in keys:
                if not isinstance(value, dict):
                    return UNDEFINED
                value = value.get(key, UNDEFINED)
            return value

        return walk

    def _unary(self, node: Unary) -> Evaluator:
        operand = self.compile(node.operand)
        if node.operator == "NOT":
            return lambda row: negation(operand(row))
        if node.operator == "~":
            return lambda row: ~value if isinstance(value := operand(row), int) else UNDEFINED
        sign = -1 if node.operator == "-" else 1
        return lambda row: sign * value if is_number(value := operand(row)) else UNDEFINED

    def _binary(self, node: Binary) -> Evaluator:
        left, right, symbol = self.compile(node.left), self.compile(node.right), node.operator
        if symbol == "=":
            return lambda row: equality(left(row), right(row))
        if symbol == "!=":
            return lambda row: inequality(left(row), right(row))
        if symbol in COMPARISONS:
            comparison = COMPARISONS[symbol]
            return lambda row: compare(comparison, left(row), right(row))
        if symbol == "??":
            return lambda row: one if (one := left(row)) is not UNDEFINED else right(row)
        if symbol == "||":
            return lambda row: FUNCTIONS["CONCAT"](left(row), right(row))
        return _calculation(symbol, left, right)

    def _logical(self, node: Logical) -> Evaluator:
        operands = [self.compile(operand) for operand in node.operands]
        decisive = node.operator == "OR"

        def joined(row: Row) -> Any:
            found: Any = not decisive
            for operand in operands:
                value = operand(row)
                if value is decisive:
                    return decisive
                if not isinstance(value, bool):
                    found = UNDEFINED
            return found

        return joined

    def _between(self, node: Between) -> Evaluator:
        operand, low, high = map(self.compile, (node.operand, node.low, node.high))

        def between(row: Row) -> Any:
            value = operand(row)
            above = compare(operator.ge, value, low(row))
            below = compare(operator.le, value, high(row))
            if above is True:
                return below
            return False if below is False else above

        return between

    def _in(self, node: In) -> Evaluator:
        operand = self.compile(node.operand)
        choices = [self.compile(choice) for choice in node.choices]

        def contained(row: Row) -> Any:
            value = operand(row)
            found = [equality(value, choice(row)) for choice in choices]
            if True in found:
                return True
            return UNDEFINED if UNDEFINED in found else False

        return contained

    def _like(self, node: Like) -> Evaluator:
        operand, pattern = self.compile(node.operand), self.compile(node.pattern)
        escape = self.compile(node.escape) if node.escape is not None else None

        def like(row: Row) -> Any:
            value, wanted = operand(row), pattern(row)
            if not isinstance(value, str) or not isinstance(wanted, str):
                return UNDEFINED
            mark = escape(row) if escape is not None else None
            return like_pattern(wanted, mark).fullmatch(value) is not None

        return like

    def _conditional(self, node: Conditional) -> Evaluator:
        condition, one, other = map(self.compile, (node.condition, node.one, node.other))
        return lambda row: one(row) if condition(row) is True else other(row)

    def _call(self, node: Call) -> Evaluator:
        if node.name in AGGREGATES:
            raise bad_request(f"The aggregate {node.name} cannot be used here. (SC2103)")
        function = FUNCTIONS.get(node.name)
        if function is None:
            raise bad_request(f"'{node.name}' is not a recognized built-in function name. (SC2005)")
        arguments = [self.compile(argument) for argument in node.arguments]
        called = function
        try:
            called(*(UNDEFINED for _ in arguments))
        except TypeError:
            raise bad_request(
                f"The {node.name} function does not take {len(arguments)} arguments. (SC2010)"
            ) from None
        return lambda row: called(*[argument(row) for argument in arguments])

    def _objectof(self, node: ObjectOf) -> Evaluator:
        fields = [(name, self.compile(value)) for name, value in node.fields]

        def build(row: Row) -> dict[str, Any]:
            values = ((name, value(row)) for name, value in fields)
            return {name: value for name, value in values if value is not UNDEFINED}

        return build

    def _arrayof(self, node: ArrayOf) -> Evaluator:
        elements = [self.compile(element) for element in node.elements]
        return lambda row: [
            value for element in elements if (value := element(row)) is not UNDEFINED
        ]

    def _subquery(self, node: Subquery) -> Evaluator:
        from tests.support.cosmos.sql.select import Selection

        selection = Selection(node.query, self.parameters, outer=self.aliases)
        if node.kind == "exists":
            return lambda row: bool(selection.rows([row]))
        if node.kind == "array":
            return lambda row: selection.rows([row])
        return lambda row: next(iter(selection.rows([row])), UNDEFINED)


def _calculation(symbol: str, left: Evaluator, right: Evaluator) -> Evaluator:
    if symbol in BITS:
        bits = BITS[symbol]

        def combine(row: Row) -> Any:
            one, other = left(row), right(row)
            whole = isinstance(one, int) and isinstance(other, int)
            return bits(one, other) if whole else UNDEFINED

        return combine
    arithmetic = ARITHMETIC[symbol]

    def calculate(row: Row) -> Any:
        one, other = left(row), right(row)
        if not is_number(one) or not is_number(other):
            return UNDEFINED
        try:
            return arithmetic(one, other)
        except (ZeroDivisionError, OverflowError):
            return UNDEFINED

    return calculate


def like_pattern(pattern: str, escape: str | None) -> re.Pattern[str]:
    """A LIKE pattern as a regular expression."""
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            parts.append(re.escape(next(characters, "")))
        elif character == "%":
            parts.append(".*")
        elif character == "_":
            parts.append(".")
        elif character == "[":
            inside = "".join(itertools.takewhile(lambda one: one != "]", characters))
            parts.append(
                f"[{re.escape(inside).replace(chr(92) + '-', '-').replace(chr(92) + '^', '^')}]"
            )
        else:
            parts.append(re.escape(character))
    return re.compile("".join(parts), re.DOTALL)


def constant_path(node: Expression) -> tuple[str, tuple[str, ...]] | None:
    """`c.a["b"]` as ("c", ("a", "b")); nothing for what is no such path."""
    keys: list[str] = []
    while isinstance(node, Member):
        if not isinstance(node.key, Literal) or not isinstance(node.key.value, str):
            return None
        keys.append(node.key.value)
        node = node.of
    if not isinstance(node, Name) or not keys:
        return None
    return node.name, tuple(reversed(keys))


def expand(source: Source, compiler: Compiler, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows with one more alias; several for each element of an array."""
    path = compiler.compile(source.path) if source.path is not None else None
    for row in rows:
        value = path(row) if path is not None else row[""]
        if not source.each:
            if value is not UNDEFINED:
                yield {**row, source.alias: value}
        elif isinstance(value, list):
            for element in value:
                yield {**row, source.alias: element}


def aliases(query: Query) -> frozenset[str]:
    """The names that a query's expressions may use."""
    return frozenset(source.alias for source in query.sources) | {""}
