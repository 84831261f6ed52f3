"""Reads a query's text by recursive descent."""

from functools import lru_cache

from tests.support.cosmos.errors import bad_request
from tests.support.cosmos.sql.lexer import Token, number_value, string_value, syntax_error, tokenize
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
    Literal,
    Logical,
    Member,
    Name,
    ObjectOf,
    Order,
    Parameter,
    Query,
    Source,
    Subquery,
    Unary,
)
from tests.support.cosmos.sql.values import UNDEFINED

MAX_QUERY_CHARACTERS = 512 * 1024
# From the loosest to the tightest; NOT, BETWEEN, IN and LIKE stand between AND and comparisons.
LEVELS = (
    ("|",),
    ("^",),
    ("&",),
    ("=", "!=", "<>", "<", "<=", ">", ">="),
    ("||",),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
CONSTANTS = {"NULL": None, "TRUE": True, "FALSE": False, "UNDEFINED": UNDEFINED}


@lru_cache(maxsize=512)
def parse(text: str) -> Query:
    """Read a query.

    Raises:
        ServiceError: 400 with the place that could not be read.
    """
    if len(text) > MAX_QUERY_CHARACTERS:
        raise bad_request("The SQL query text exceeded the maximum limit of 524288 characters.")
    parser = _Parser(text)
    try:
        query = parser.query()
    except RecursionError:
        raise bad_request("The query is nested too deeply.") from None
    parser.expect_end()
    return query


def parse_condition(text: str) -> Query:
    """Read a patch's filter predicate: `FROM c WHERE …`, as a query."""
    parser = _Parser(text)
    query = Query(star=True)
    parser.from_clause(query)
    parser.where_clause(query)
    parser.expect_end()
    return query


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokenize(text)
        self.at = 0

    # ------------------------------------------------------------ tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def error(self) -> Exception:
        return syntax_error(self.text, self.token.start)

    def expect_end(self) -> None:
        if self.token.kind != "end":
            raise self.error()

    def keyword(self, *words: str) -> str:
        """Take one of these keywords if it is next."""
        found = self.token.keyword
        if found in words:
            self.at += 1
            return found
        return ""

    def symbol(self, *symbols: str) -> str:
        """Take one of these symbols if it is next."""
        token = self.token
        if token.kind == "symbol" and token.text in symbols:
            self.at += 1
            return token.text
        return ""

    def need_keyword(self, word: str) -> None:
        if not self.keyword(word):
            raise self.error()

    def need_symbol(self, symbol: str) -> None:
        if not self.symbol(symbol):
            raise self.error()

    def identifier(self) -> str:
        token = self.token
        if token.kind != "word" or token.keyword:
            raise self.error()
        self.at += 1
        return token.text

    def text_since(self, start: int) -> str:
        """The text from a token's number up to here."""
        if start == self.at:
            return ""
        return self.text[self.tokens[start].start : self.tokens[self.at - 1].end]

    # ------------------------------------------------------------ clauses

    def query(self) -> Query:
        query = Query()
        self.need_keyword("SELECT")
        self.select_clause(query)
        start = self.at
        self.from_clause(query)
        self.where_clause(query)
        self.group_clause(query)
        self.order_clause(query)
        query.rest_text = self.text_since(start)
        self.offset_clause(query)
        return query

    def select_clause(self, query: Query) -> None:
        query.distinct = bool(self.keyword("DISTINCT"))
        if self.keyword("TOP"):
            query.top = self.count_expression()
        start = self.at
        if self.keyword("VALUE"):
            query.value = True
            query.columns.append(self.column(0))
        elif self.symbol("*"):
            query.star = True
        else:
            query.columns.append(self.column(0))
            while self.symbol(","):
                query.columns.append(self.column(len(query.columns)))
            names = [column.name for column in query.columns]
            if len(set(names)) != len(names):
                raise bad_request("The SELECT list has two columns of the same name. (SC2010)")
        query.select_text = self.text_since(start)

    def column(self, position: int) -> Column:
        start = self.at
        expression = self.expression()
        text = self.text_since(start)
        if self.keyword("AS"):
            return Column(expression, self.identifier(), text)
        if self.token.kind == "word" and not self.token.keyword:
            return Column(expression, self.identifier(), text)
        return Column(expression, _default_name(expression, position), text)

    def from_clause(self, query: Query) -> None:
        start = self.at
        if not self.keyword("FROM"):
            return
        query.sources.append(self.source(first=True, known=set()))
        while self.keyword("JOIN"):
            known = {source.alias for source in query.sources}
            query.sources.append(self.source(first=False, known=known))
        query.from_text = self.text_since(start)

    def source(self, *, first: bool, known: set[str]) -> Source:
        name = self.identifier()
        if self.keyword("IN"):
            return Source(name, self._rooted(self.path(), first=first, known=known), each=True)
        if not first:
            raise self.error()
        self.at -= 1
        path = self.path()
        alias = name if isinstance(path, Name) else _default_name(path, 0)
        if self.keyword("AS") or (self.token.kind == "word" and not self.token.keyword):
            alias = self.identifier()
        rooted = self._rooted(path, first=True, known=known)
        return Source(alias, None if isinstance(rooted, Name) else rooted, each=False)

    def path(self) -> Expression:
        found: Expression = Name(self.identifier())
        while (member := self.member(found)) is not None:
            found = member
        return found

    def _rooted(self, path: Expression, *, first: bool, known: set[str]) -> Expression:
        """The first source's path begins at the item, whatever its root is called."""
        if isinstance(path, Member):
            return Member(self._rooted(path.of, first=first, known=known), path.key)
        if isinstance(path, Name) and not first and path.name not in known:
            raise bad_request(f"Identifier '{path.name}' could not be resolved. (SC2001)")
        return Name("") if first else path

    def where_clause(self, query: Query) -> None:
        if self.keyword("WHERE"):
            start = self.at
            query.where = self.expression()
            query.where_text = self.text_since(start)

    def group_clause(self, query: Query) -> None:
        if self.keyword("GROUP"):
            self.need_keyword("BY")
            query.group_by.append(self.expression())
            while self.symbol(","):
                query.group_by.append(self.expression())

    def order_clause(self, query: Query) -> None:
        if self.keyword("ORDER"):
            self.need_keyword("BY")
            query.order_by.append(self.order())
            while self.symbol(","):
                query.order_by.append(self.order())

    def order(self) -> Order:
        start = self.at
        expression = self.expression()
        text = self.text_since(start)
        return Order(expression, self.keyword("ASC", "DESC") == "DESC", text)

    def offset_clause(self, query: Query) -> None:
        if self.keyword("OFFSET"):
            query.offset = self.count_expression()
            self.need_keyword("LIMIT")
            query.limit = self.count_expression()

    def count_expression(self) -> Expression:
        token = self.token
        self.at += 1
        if token.kind == "number" and token.text.isdigit():
            return Literal(int(token.text))
        if token.kind == "parameter":
            return Parameter(token.text)
        self.at -= 1
        raise self.error()

    # ------------------------------------------------------------ expressions

    def expression(self) -> Expression:
        found = self.coalesced()
        if self.symbol("?"):
            one = self.expression()
            self.need_symbol(":")
            found = Conditional(found, one, self.expression())
        return found

    def coalesced(self) -> Expression:
        found = self.disjunction()
        while self.symbol("??"):
            found = Binary("??", found, self.disjunction())
        return found

    def disjunction(self) -> Expression:
        found = [self.conjunction()]
        while self.keyword("OR"):
            found.append(self.conjunction())
        return found[0] if len(found) == 1 else Logical("OR", tuple(found))

    def conjunction(self) -> Expression:
        found = [self.negation()]
        while self.keyword("AND"):
            found.append(self.negation())
        return found[0] if len(found) == 1 else Logical("AND", tuple(found))

    def negation(self) -> Expression:
        if self.keyword("NOT"):
            return Unary("NOT", self.negation())
        return self.predicate()

    def predicate(self) -> Expression:
        found = self.binary(0)
        negated = False
        if self.token.keyword == "NOT" and self.tokens[self.at + 1].keyword in {
            "IN",
            "BETWEEN",
            "LIKE",
        }:
            negated = bool(self.keyword("NOT"))
        if self.keyword("IN"):
            found = In(found, tuple(self.listed("(", ")")))
        elif self.keyword("BETWEEN"):
            low = self.binary(0)
            self.need_keyword("AND")
            found = Between(found, low, self.binary(0))
        elif self.keyword("LIKE"):
            pattern = self.binary(0)
            escape = self.binary(0) if self.keyword("ESCAPE") else None
            found = Like(found, pattern, escape)
        return Unary("NOT", found) if negated else found

    def binary(self, level: int) -> Expression:
        if level == len(LEVELS):
            return self.unary()
        found = self.binary(level + 1)
        while operator := self.symbol(*LEVELS[level]):
            operator = "!=" if operator == "<>" else operator
            found = Binary(operator, found, self.binary(level + 1))
        return found

    def unary(self) -> Expression:
        if operator := self.symbol("-", "+", "~"):
            return Unary(operator, self.unary())
        found = self.primary()
        while (member := self.member(found)) is not None:
            found = member
        return found

    def member(self, of: Expression) -> Expression | None:
        if self.symbol("."):
            return Member(of, Literal(self.identifier()))
        if self.symbol("["):
            key = self.expression()
            self.need_symbol("]")
            return Member(of, key)
        return None

    def primary(self) -> Expression:
        token = self.token
        if token.kind == "number":
            self.at += 1
            return Literal(number_value(token.text))
        if token.kind == "string":
            self.at += 1
            return Literal(string_value(token.text))
        if token.kind == "parameter":
            self.at += 1
            return Parameter(token.text)
        if token.keyword in CONSTANTS:
            self.at += 1
            return Literal(CONSTANTS[token.keyword])
        if token.keyword in {"EXISTS", "ARRAY"}:
            return self.subquery_call()
        if token.kind == "word" and self.tokens[self.at + 1].text == "(":
            self.at += 1
            return Call(token.text.upper(), tuple(self.listed("(", ")")))
        if token.kind == "word":
            return Name(self.identifier())
        return self.bracketed()

    def subquery_call(self) -> Expression:
        kind = self.keyword("EXISTS", "ARRAY").lower()
        self.need_symbol("(")
        query = self.query()
        self.need_symbol(")")
        return Subquery(kind, query)

    def bracketed(self) -> Expression:
        if self.symbol("("):
            if self.token.keyword == "SELECT":
                found: Expression = Subquery("scalar", self.query())
            else:
                found = self.expression()
            self.need_symbol(")")
            return found
        if self.token.text == "[":
            return ArrayOf(tuple(self.listed("[", "]")))
        if self.symbol("{"):
            return self.object_literal()
        raise self.error()

    def object_literal(self) -> Expression:
        fields: list[tuple[str, Expression]] = []
        while not self.symbol("}"):
            if fields:
                self.need_symbol(",")
            token = self.token
            if token.kind not in {"string", "word"}:
                raise self.error()
            self.at += 1
            self.need_symbol(":")
            name = string_value(token.text) if token.kind == "string" else token.text
            fields.append((name, self.expression()))
        return ObjectOf(tuple(fields))

    def listed(self, opening: str, closing: str) -> list[Expression]:
        self.need_symbol(opening)
        found: list[Expression] = []
        if self.symbol(closing):
            return found
        found.append(self.expression())
        while self.symbol(","):
            found.append(self.expression())
        self.need_symbol(closing)
        return found


def _default_name(expression: Expression, position: int) -> str:
    if isinstance(expression, Name):
        return expression.name
    if isinstance(expression, Member) and isinstance(expression.key, Literal):
        key = expression.key.value
        return key if isinstance(key, str) else f"${position + 1}"
    return f"${position + 1}"
