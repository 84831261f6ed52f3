"""SAS tokens: only a fresh signature of a known key over the right resource opens a queue."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionferry.local.broker import cbs
from sessionferry.local.broker.errors import ServiceError, UnauthorizedError

NOW = 1_800_000_000.0
RULE = cbs.SasRule("root", "a-key", frozenset({"listen"}))
RULES = {RULE.name: RULE}


def token(
    resource: str = "sb://localhost:5672/queue",
    *,
    key: str = "a-key",
    name: str = "root",
    expires: int = int(NOW) + 60,
) -> str:
    quoted = quote(resource, safe="")
    signature = quote(cbs.sign(quoted, str(expires), key), safe="")
    return f"SharedAccessSignature sr={quoted}&sig={signature}&se={expires}&skn={name}"


def test_a_right_token_grants_what_its_rule_grants() -> None:
    grant = cbs.verify(token(), "sb://localhost:5672/queue", RULES, NOW)
    assert grant == cbs.Grant(frozenset({"listen"}), int(NOW) + 60)


@pytest.mark.parametrize(
    ("wrong", "audience", "said"),
    [
        (token(key="another"), "queue", "InvalidSignature"),
        (token(name="another"), "queue", "InvalidSignature"),
        (token(expires=int(NOW)), "queue", "ExpiredToken"),
        (token(), "queue2", "InvalidAudience"),
        (token(), "", "InvalidAudience"),
        (token().replace("sr=", "xx="), "queue", "MalformedToken"),
        (token().replace("SharedAccessSignature ", ""), "queue", "MalformedToken"),
        ("", "queue", "MalformedToken"),
        (token().replace("se=1", "se=9"), "queue", "InvalidSignature"),
    ],
)
def test_a_wrong_token_is_refused(wrong: str, audience: str, said: str) -> None:
    with pytest.raises(ServiceError, match=said) as caught:
        cbs.verify(wrong, audience, RULES, NOW)
    assert caught.value.status == 401


@given(st.text(max_size=200))
def test_no_text_opens_a_queue(text: str) -> None:
    for guess in (text, "SharedAccessSignature " + text):
        with pytest.raises(ServiceError):
            cbs.verify(guess, "queue", RULES, NOW)


@pytest.mark.parametrize(
    ("granted", "asked", "allowed"),
    [
        ("sb://host/queue", "queue", True),
        ("sb://host/queue", "queue/$deadletterqueue", True),
        ("sb://host/QUEUE/", "queue", True),
        ("sb://host/queue", "queue2", False),
        ("sb://host/", "queue", True),
        ("sb://host/queue/$deadletterqueue", "queue", False),
    ],
)
def test_a_grant_holds_for_its_path_and_below(granted: str, asked: str, allowed: bool) -> None:
    claims = cbs.Claims()
    claims.add(granted, cbs.Grant(frozenset({"send"}), int(NOW) + 1))
    assert allowed == claims.allow(asked, "send", NOW)


def test_a_grant_ends_with_its_token_and_is_no_other_right() -> None:
    claims = cbs.Claims()
    claims.add("queue", cbs.Grant(frozenset({"send"}), int(NOW) + 1))
    claims.require("queue", "send", NOW)
    for right, now in (("listen", NOW), ("send", NOW + 1)):
        with pytest.raises(UnauthorizedError):
            claims.require("queue", right, now)


def test_a_rule_does_not_show_its_key() -> None:
    assert "a-key" not in repr(RULE)


def test_manage_includes_the_other_rights() -> None:
    assert cbs.SasRule("r", "k", frozenset({"manage"})).granted == cbs.RIGHTS
