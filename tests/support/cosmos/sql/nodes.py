"""The parts of a parsed query."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: Any


@dataclass(frozen=True, slots=True)
class Parameter:
    """`@name`, a value that comes with the query."""

    name: str


@dataclass(frozen=True, slots=True)
class Name:
    """An alias: `c`."""

    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """`of.name` or `of["name"]`, `of[0]`, `of[@index]`."""

    of: "Expression"
    key: "Expression"


@dataclass(frozen=True, slots=True)
class Unary:
    """`NOT x`, `-x`, `+x`, `~x`."""

    operator: str
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands and what is between them."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Logical:
    """Two or more operands that AND or OR joins."""

    operator: str
    operands: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Between:
    """`x BETWEEN low AND high`, both included."""

    operand: "Expression"
    low: "Expression"
    high: "Expression"


@dataclass(frozen=True, slots=True)
class In:
    """`x IN (…)`."""

    operand: "Expression"
    choices: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Like:
    """`x LIKE pattern` with `%`, `_` and `[…]`."""

    operand: "Expression"
    pattern: "Expression"
    escape: "Expression | None"


@dataclass(frozen=True, slots=True)
class Conditional:
    """`condition ? one : other`."""

    condition: "Expression"
    one: "Expression"
    other: "Expression"


@dataclass(frozen=True, slots=True)
class Call:
    """A function or an aggregate; the name is in capitals."""

    name: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """`{"a": x}`."""

    fields: tuple[tuple[str, "Expression"], ...]


@dataclass(frozen=True, slots=True)
class ArrayOf:
    """`[x, y]`."""

    elements: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Subquery:
    """`EXISTS(…)`, `ARRAY(…)`, or `(SELECT …)` as a value (kind `scalar`)."""

    kind: str
    query: "Query"


Expression: TypeAlias = (
    Literal
    | Parameter
    | Name
    | Member
    | Unary
    | Binary
    | Logical
    | Between
    | In
    | Like
    | Conditional
    | Call
    | ObjectOf
    | ArrayOf
    | Subquery
)


@dataclass(frozen=True, slots=True)
class Column:
    """One expression of the SELECT list, with its name and its text."""

    expression: Expression
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """`FROM path AS alias` or `JOIN alias IN path`; `each` iterates over an array."""

    alias: str
    path: Expression | None  # None: the item itself
    each: bool


@dataclass(frozen=True, slots=True)
class Order:
    """One expression of ORDER BY, with its text."""

    expression: Expression
    descending: bool
    text: str


@dataclass(slots=True)
class Query:
    """A parsed query; `from_text` and `where_text` are kept to write it anew."""

    columns: list[Column] = field(default_factory=list)
    star: bool = False
    value: bool = False  # SELECT VALUE
    distinct: bool = False
    top: Expression | None = None
    sources: list[Source] = field(default_factory=list)
    where: Expression | None = None
    group_by: list[Expression] = field(default_factory=list)
    order_by: list[Order] = field(default_factory=list)
    offset: Expression | None = None
    limit: Expression | None = None
    from_text: str = ""
    where_text: str = ""
    select_text: str = ""
    rest_text: str = ""  # all after the SELECT list up to OFFSET
