"""Splits a query's text into tokens."""

import re
from typing import NamedTuple

from tests.support.cosmos.errors import bad_request

KEYWORDS = frozenset(
    [
        "SELECT",
        "DISTINCT",
        "TOP",
        "VALUE",
        "AS",
        "FROM",
        "IN",
        "JOIN",
        "WHERE",
        "AND",
        "OR",
        "NOT",
        "BETWEEN",
        "LIKE",
        "ESCAPE",
        "GROUP",
        "ORDER",
        "BY",
        "ASC",
        "DESC",
        "OFFSET",
        "LIMIT",
        "EXISTS",
        "ARRAY",
        "NULL",
        "TRUE",
        "FALSE",
        "UNDEFINED",
    ]
)
TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<parameter>@[A-Za-z_][A-Za-z0-9_]*)
  | (?P<word>[^\W\d]\w*)
  | (?P<symbol>\?\?|\|\||<=|>=|<>|!=|<<|>>|[-+*/%=<>()\[\]{},.:?~&|^])
    """,
    re.VERBOSE | re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)


class Token(NamedTuple):
    """One word; `start` and `end` are its place in the text."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def keyword(self) -> str:
        """The word in capitals if it may be a keyword, else nothing."""
        upper = self.text.upper()
        return upper if self.kind == "word" and upper in KEYWORDS else ""


def syntax_error(text: str, position: int) -> Exception:
    """The refusal of a text that is no query."""
    near = text[position : position + 20]
    return bad_request(
        f"Syntax error, incorrect syntax near '{near}' at position {position}. (SC1001)"
    )


def tokenize(text: str) -> list[Token]:
    """The tokens, with an `end` token at the end.

    Raises:
        ServiceError: 400 where no token begins.
    """
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise syntax_error(text, at)
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(Token(kind, match[0], at, match.end()))
        at = match.end()
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


def string_value(text: str) -> str:
    """What a quoted string stands for."""

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        return ESCAPES.get(code, code)

    return ESCAPE.sub(one, text[1:-1])


def number_value(text: str) -> int | float:
    """What a number stands for."""
    if text[:2].lower() == "0x":
        return int(text, 16)
    return int(text) if text.isdigit() else float(text)
