"""The query language of the Cosmos test server."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cosmos.errors import ServiceError
from tests.support.cosmos.sql.parser import parse, parse_condition
from tests.support.cosmos.sql.select import Selection
from tests.support.cosmos.sql.values import sort_key

ITEMS: list[dict[str, Any]] = [
    {
        "id": "a",
        "n": 1,
        "kind": "tool",
        "summary": {"model": "Opus", "usage": {"input": 10}},
        "tags": ["x", "y"],
        "ok": True,
    },
    {
        "id": "b",
        "n": 2,
        "kind": "llm",
        "summary": {"model": "haiku", "usage": {"input": 5}},
        "tags": [],
        "gone": None,
    },
    {
        "id": "c",
        "n": 3,
        "kind": "tool",
        "summary": {"model": None},
        "tags": ["y", {"k": 1, "v": 2}],
        "ok": False,
    },
    {"id": "d", "n": 3.5, "kind": "end", "odd name": 1, "order": "first"},
]


def run(query: str, items: list[dict[str, Any]] | None = None, **parameters: Any) -> list[Any]:
    """What a query finds."""
    named = {f"@{name}": value for name, value in parameters.items()}
    rows = ({"": item} for item in (ITEMS if items is None else items))
    return Selection(parse(query), named).rows(rows)


def ids(condition: str, **parameters: Any) -> str:
    """The ids of the items that a condition lets through, as one word."""
    return "".join(run("SELECT VALUE c.id FROM c WHERE " + condition, **parameters))  # noqa: S608


def refusal(text: str) -> str:
    """The sentence with which a query is refused."""
    with pytest.raises(ServiceError) as failure:
        run(text)
    assert failure.value.status == 400
    return failure.value.message


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("c.n = 1", "a"),
        ("c.n != 1", "bcd"),
        ("c.n <> 1", "bcd"),
        ("c.n > 1 AND c.n <= 3", "bc"),
        ("c.n BETWEEN 2 AND 3", "bc"),
        ("c.n NOT BETWEEN 2 AND 3", "ad"),
        ("c.kind IN ('tool', 'end')", "acd"),
        ("c.kind NOT IN ('tool', 'end')", "b"),
        ("c.kind = 'tool' OR c.n = 2", "abc"),
        ("NOT c.kind = 'tool'", "bd"),
        ("NOT (c.kind = 'tool' OR c.n = 2)", "d"),
        ("c.summary.model = 'Opus'", "a"),
        ('c["summary"]["usage"]["input"] >= 5', "ab"),
        ('c["odd name"] = 1', "d"),
        ('c["order"] = "first"', "d"),
        ("c.tags[0] = 'x'", "a"),
        ("c.summary.model = null", "c"),
        ("NOT IS_NULL(c.summary.model)", "abd"),
        ("c.ok", "a"),
        ("c.ok = false", "c"),
        ("NOT c.ok", "c"),
        ("c.n % 2 = 0", "b"),
        ("c.n + 1 = 2", "a"),
        ("c.n * 2 - 1 > 4", "cd"),
        ("-c.n < -3", "d"),
        ("c.kind LIKE 't%l'", "ac"),
        ("c.kind LIKE '_nd'", "d"),
        ("c.kind || '!' = 'llm!'", "b"),
        ("(c.missing ?? c.n) = 2", "b"),
        ("(c.n > 2 ? 'big' : 'small') = 'big'", "cd"),
        ("true", "abcd"),
        ("1 = 1 AND false", ""),
        ("c = c", "abcd"),
        ("c.tags = ['x', 'y']", "a"),
        ('c.summary = {"model": null}', "c"),
    ],
)
def test_a_condition_lets_the_right_items_through(condition: str, expected: str) -> None:
    assert ids(condition) == expected


@pytest.mark.parametrize(
    "condition",
    [
        "c.missing = 1",
        "c.missing != 1",
        "NOT (c.missing = 1)",
        "c.missing > 0 OR c.missing <= 0",
        "c.kind > 1",
        "c.kind = 1",
        "c.kind != 1",
        "c.kind != null",
        "NOT (c.kind = null)",
        "c.kind NOT IN (1, 2)",
        "c.tags != []",
        "c.missing IN (1, 2)",
        "c.missing LIKE '%'",
        "c.n.deeper = 1",
        "c.kind",
    ],
)
def test_what_is_undefined_lets_nothing_through(condition: str) -> None:
    assert ids(condition) == ""


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("IS_DEFINED(c.gone)", "b"),
        ("NOT IS_DEFINED(c.gone)", "acd"),
        ("IS_NULL(c.gone)", "b"),
        ("IS_STRING(c.summary.model)", "ab"),
        ("IS_NUMBER(c.n)", "abcd"),
        ("IS_INTEGER(c.n)", "abc"),
        ("IS_BOOL(c.ok)", "ac"),
        ("IS_ARRAY(c.tags)", "abc"),
        ("IS_OBJECT(c.summary)", "abc"),
        ("IS_PRIMITIVE(c.gone)", "b"),
        ("STARTSWITH(c.kind, 'to')", "ac"),
        ("STARTSWITH(c.kind, 'TO')", ""),
        ("STARTSWITH(c.kind, 'TO', true)", "ac"),
        ("ENDSWITH(c.kind, 'd')", "d"),
        ("CONTAINS(c.kind, 'l')", "abc"),
        ("CONTAINS(c.summary.model, 'OP', true)", "a"),
        ("STRINGEQUALS(c.summary.model, 'OPUS', true)", "a"),
        ("LOWER(c.summary.model) = 'opus'", "a"),
        ("UPPER(c.summary.model) = 'HAIKU'", "b"),
        ("LENGTH(c.kind) = 4", "ac"),
        ("SUBSTRING(c.kind, 1, 2) = 'nd'", "d"),
        ("LEFT(c.kind, 1) = 'l'", "b"),
        ("RIGHT(c.kind, 1) = 'l'", "ac"),
        ("INDEX_OF(c.kind, 'o') = 1", "ac"),
        ("CONCAT(c.kind, '-', c.id) = 'llm-b'", "b"),
        ("REPLACE(c.kind, 'l', 'r') = 'rrm'", "b"),
        ("TRIM(' x ') = 'x' AND c.n = 1", "a"),
        ("ToString(c.n) = '2'", "b"),
        ("RegexMatch(c.kind, '^T', 'i')", "ac"),
        ("ARRAY_CONTAINS(c.tags, 'y')", "ac"),
        ("ARRAY_CONTAINS(c.tags, {k: 1}, true)", "c"),
        ("ARRAY_CONTAINS(c.tags, {k: 1})", ""),
        ("ARRAY_CONTAINS(@wanted, c.id)", "bd"),
        ("ARRAY_LENGTH(c.tags) = 0", "b"),
        ("EXISTS(SELECT VALUE t FROM t IN c.tags WHERE t = 'x')", "a"),
        ("FLOOR(c.n) = 3", "cd"),
        ("CEILING(c.n) = 4", "d"),
        ("ABS(-c.n) = 1", "a"),
        ("IIF(c.ok, 1, 2) = 1", "a"),
    ],
)
def test_a_function_says_what_the_service_says(condition: str, expected: str) -> None:
    assert ids(condition, wanted=["b", "d"]) == expected


def test_true_is_not_one_and_a_number_is_not_its_text() -> None:
    items = [{"v": True}, {"v": 1}, {"v": "1"}, {"v": 1.0}]

    assert run("SELECT VALUE c.v FROM c WHERE c.v = 1", items) == [1, 1.0]
    assert run("SELECT VALUE c.v FROM c WHERE c.v = true", items) == [True]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT c.id, c.n AS number FROM c WHERE c.n = 1", [{"id": "a", "number": 1}]),
        ("SELECT c.summary.model m FROM c WHERE c.n = 1", [{"m": "Opus"}]),
        ("SELECT c.missing, c.id FROM c WHERE c.n = 1", [{"id": "a"}]),
        ("SELECT c.n + 1, c.n * 2 FROM c WHERE c.n = 2", [{"$1": 3, "$2": 4}]),
        ("SELECT c.tags[1] FROM c WHERE c.n = 1", [{"$1": "y"}]),
        ("SELECT VALUE c.missing FROM c", []),
        ("SELECT VALUE {\"i\": c.id, \"t\": [c.n, c.missing]} FROM c WHERE c.n=2",
         [{"i": "b", "t": [2]}]),
        ("select value c.id from c where c.n = 1", ["a"]),
        ("SELECT VALUE r.id FROM root r WHERE r.n = 1", ["a"]),
        ("SELECT VALUE s.model FROM c.summary s", ["Opus", "haiku", None]),
        ("SELECT VALUE t FROM t IN c.tags WHERE IS_STRING(t)", ["x", "y", "y"]),
        ("SELECT c.id, t FROM c JOIN t IN c.tags WHERE c.n = 1",
         [{"id": "a", "t": "x"}, {"id": "a", "t": "y"}]),
        ("SELECT VALUE ARRAY(SELECT VALUE t FROM t IN c.tags WHERE t = 'y') FROM c WHERE c.n < 3",
         [["y"], []]),
        ("SELECT VALUE (SELECT VALUE COUNT(1) FROM t IN c.tags) FROM c WHERE c.n <= 2", [2, 0]),
        ("SELECT TOP 2 VALUE c.id FROM c", ["a", "b"]),
        ("SELECT TOP @n VALUE c.id FROM c", ["a"]),
        ("SELECT VALUE c.id FROM c OFFSET 1 LIMIT 2", ["b", "c"]),
        ("SELECT VALUE c.id FROM c ORDER BY c.n DESC OFFSET 1 LIMIT 2", ["c", "b"]),
        ("SELECT DISTINCT VALUE c.kind FROM c", ["tool", "llm", "end"]),
        ("SELECT DISTINCT c.kind FROM c WHERE c.n < 3", [{"kind": "tool"}, {"kind": "llm"}]),
        ("SELECT VALUE 1", [1, 1, 1, 1]),
        ("SELECT VALUE c.id FROM c -- a remark\nWHERE c.n = 1", ["a"]),
    ],
)  # fmt: skip
def test_a_query_has_the_result_that_the_service_gives(query: str, expected: list[Any]) -> None:
    assert run(query, n=1) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT VALUE COUNT(1) FROM c", [4]),
        ("SELECT VALUE COUNT(c.ok) FROM c", [2]),
        ("SELECT VALUE SUM(c.n) FROM c", [9.5]),
        ("SELECT VALUE AVG(c.n) FROM c WHERE c.n < 3", [1.5]),
        ("SELECT VALUE MIN(c.kind) FROM c", ["end"]),
        ("SELECT VALUE MAX(c.n) FROM c", [3.5]),
        ("SELECT VALUE COUNTIF(c.kind = 'tool') FROM c", [2]),
        ("SELECT VALUE SUM(c.summary.usage.input) FROM c", [15]),
        ("SELECT VALUE SUM(c.kind) FROM c", []),
        ("SELECT VALUE COUNT(1) FROM c WHERE c.n > 99", [0]),
        ("SELECT VALUE MAX(c.n) FROM c WHERE c.n > 99", []),
        ("SELECT COUNT(1) AS k, MAX(c.n) AS most FROM c", [{"k": 4, "most": 3.5}]),
        ("SELECT VALUE SUM(c.n) / COUNT(1) FROM c", [2.375]),
        ("SELECT c.kind, COUNT(1) AS k FROM c GROUP BY c.kind",
         [{"kind": "tool", "k": 2}, {"kind": "llm", "k": 1}, {"kind": "end", "k": 1}]),
        ("SELECT LOWER(c.summary.model) AS m, SUM(c.n) AS s FROM c GROUP BY LOWER(c.summary.model)",
         [{"m": "opus", "s": 1}, {"m": "haiku", "s": 2}, {"s": 6.5}]),
        ("SELECT VALUE c.kind FROM c GROUP BY c.kind", ["tool", "llm", "end"]),
    ],
)  # fmt: skip
def test_aggregates_and_groups_count_what_is_defined(query: str, expected: list[Any]) -> None:
    assert run(query) == expected


def test_order_goes_by_type_first_and_keeps_what_lacks_the_property() -> None:
    values = ["b", 2, None, True, "a", 1.5, False, [1], {"x": 1}]
    items: list[dict[str, Any]] = [{"v": value} for value in values] + [{"none": 1}]

    up = run("SELECT c.v FROM c ORDER BY c.v", items)

    assert [row.get("v", "undefined") for row in up] == [
        *("undefined", None, False, True, 1.5, 2, "a", "b", [1], {"x": 1})
    ]


def test_a_later_column_of_order_decides_among_equals() -> None:
    items = [{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}, {"a": 2, "b": 1}]

    found = run("SELECT * FROM c ORDER BY c.a DESC, c.b ASC", items)

    assert [(row["a"], row["b"]) for row in found] == [(2, 1), (2, 2), (1, 1), (1, 2)]


def test_a_patch_condition_has_from_and_where_only() -> None:
    selection = Selection(parse_condition("FROM c WHERE c.n > 2 AND c.kind = 'tool'"), {})

    assert [bool(list(selection.find([{"": item}]))) for item in ITEMS] == [
        *(False, False, True, False)
    ]
    with pytest.raises(ServiceError):
        parse_condition("SELECT * FROM c")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("SELEC * FROM c", "Syntax error"),
        ("SELECT * FROM c WHERE", "Syntax error"),
        ("SELECT * FROM c WHERE c.a = 'unclosed", "Syntax error"),
        ("SELECT c.order FROM c", "Syntax error"),
        ("SELECT c.value FROM c", "Syntax error"),
        ("SELECT * FROM c LIMIT 3", "Syntax error"),
        ("SELECT * FROM c OFFSET 3", "Syntax error"),
        ("SELECT * FROM c WHERE c.a == 1", "Syntax error"),
        ("SELECT * FROM c; DROP", "Syntax error"),
        ("SELECT x.a FROM c", "Identifier 'x' could not be resolved"),
        ("SELECT * FROM c JOIN t IN d.tags", "Identifier 'd' could not be resolved"),
        ("SELECT * FROM c JOIN t IN c.tags", "single input set"),
        ("SELECT * FROM c WHERE c.a = @a", "The parameter '@a' has no value"),
        ("SELECT * FROM c WHERE NOW() > 1", "'NOW' is not a recognized"),
        ("SELECT * FROM c WHERE LENGTH(c.a, 1, 2) > 1", "does not take 3 arguments"),
        ("SELECT * FROM c WHERE COUNT(1) > 1", "cannot be used here"),
        ("SELECT c.id, COUNT(1) FROM c", "not contained in either"),
        ("SELECT c.id FROM c GROUP BY c.kind", "not contained in either"),
        ("SELECT c.kind, COUNT(1) AS k FROM c GROUP BY c.kind ORDER BY c.kind", "not supported"),
        ("SELECT c.a, c.b AS a FROM c", "two columns of the same name"),
        ("SELECT TOP -1 * FROM c", "Syntax error"),
    ],
)
def test_a_wrong_query_is_refused_with_the_reason(query: str, sentence: str) -> None:
    assert sentence in refusal(query)


def test_a_long_query_is_read_and_a_deep_one_is_refused() -> None:
    many = " OR ".join(f"c.n = {number}" for number in range(2, 3000))

    assert ids(many) == "bc"
    assert "nested too deeply" in refusal("SELECT " + "(" * 5000 + "1" + ")" * 5000)
    assert "nested too deeply" in refusal("SELECT " + "NOT " * 50_000 + "true")


@given(
    st.text(
        alphabet=st.sampled_from("SELECT FROM WHERE c.x=1'\"()[]{},@?:<>!*/%|&~^\\\n\0é"),
        max_size=60,
    )
)
def test_any_text_is_a_query_or_is_refused(text: str) -> None:
    with suppress(ServiceError):
        assert parse("SELECT " + text).select_text in text


# ---------------------------------------------------------------- against Python

values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.sampled_from(["", "a", "ab", "b"])
)
items = st.lists(st.dictionaries(st.sampled_from("ab"), values, max_size=2), max_size=8)


@given(items, st.booleans())
def test_order_is_pythons_stable_sort_by_type_and_value(
    found: list[dict[str, Any]], descending: bool
) -> None:
    numbered = [{**one, "number": number} for number, one in enumerate(found) if "a" in one]

    order = " DESC" if descending else ""

    assert run("SELECT * FROM c ORDER BY c.a" + order, numbered) == sorted(  # noqa: S608
        numbered, key=lambda one: sort_key(one["a"]), reverse=descending
    )


@given(items, st.integers(-5, 5), st.sampled_from(["", "a", "b"]))
def test_conditions_agree_with_python_where_everything_is_defined(
    found: list[dict[str, Any]], number: int, text: str
) -> None:
    whole = [one for one in found if type(one.get("a")) is int and isinstance(one.get("b"), str)]

    query = (
        "SELECT * FROM c WHERE (c.a < @number OR STARTSWITH(c.b, @text)) AND NOT (c.a = 0) "
        "AND c.a NOT IN (3, 4)"
    )

    assert run(query, whole, number=number, text=text) == [
        one
        for one in whole
        if (one["a"] < number or one["b"].startswith(text)) and one["a"] not in {0, 3, 4}
    ]


@given(items)
def test_distinct_leaves_each_value_once_in_its_first_place(found: list[dict[str, Any]]) -> None:
    expected: list[Any] = []
    for one in found:
        if "a" in one and not any(
            type(one["a"]) is type(seen) and one["a"] == seen for seen in expected
        ):
            expected.append(one["a"])

    assert run("SELECT DISTINCT VALUE c.a FROM c", found) == expected
