"""Redaction: no planted secret is left in any encoding, JSON stays JSON, twice is once."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator

import orjson
import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sessionferry.agent.redaction import Redactor
from sessionferry.agent.rules import (
    BY_BEGINNING,
    BY_CONTEXT,
    BY_SHAPE,
    RULE_NAMES,
    RULES_VERSION,
    entropy,
)
from sessionferry.errors import UserError

KEY = b"k" * 32
REDACTOR = Redactor(KEY)
PLACEHOLDER = re.compile(r"\[REDACTED:([a-z0-9-]+)#[0-9a-f]{8}\]")
ALNUM = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
HEX = "0123456789abcdef"
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

Make = Callable[[random.Random], str]


def signs(alphabet: str, count: int) -> Make:
    """Make so many signs, a letter and a digit among them."""

    def make(chance: random.Random) -> str:
        drawn = [chance.choice(alphabet) for _ in range(count - 2)]
        letters = [sign for sign in alphabet if sign.isalpha()]
        return "".join([chance.choice(letters), *drawn, chance.choice("234567")])

    return make


def pem(chance: random.Random) -> str:
    """Make something that has the form of a private key."""
    rows = [signs(ALNUM + "+/", 64)(chance) for _ in range(4)] + [signs(ALNUM, 22)(chance) + "=="]
    kind = chance.choice(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
    begin, end = (f"-----{word} {kind}PRIVATE KEY-----" for word in ("BEGIN", "END"))
    return "\n".join([begin, *rows, end, ""])


SECRETS: dict[str, list[tuple[str, Make]]] = {
    "private-key": [("", pem)],
    "putty-key": [
        ("PuTTY-User-Key-File-3: ssh-ed25519 Private-Lines: 1 ", signs(ALNUM + "+/", 64)),
    ],
    "age-key": [("AGE-SECRET-KEY-1", signs(UPPER, 58))],
    "anthropic": [("sk-ant-api03-", signs(ALNUM + "_-", 95))],
    "openrouter": [("sk-or-v1-", signs(HEX, 64))],
    "openai": [("sk-proj-", signs(ALNUM + "_-", 120)), ("sk-abcT3BlbkFJ", signs(ALNUM, 20))],
    "sk-key": [("sk-", signs(ALNUM, 48))],
    "groq": [("gsk_", signs(ALNUM, 52))],
    "xai": [("xai-", signs(ALNUM, 80))],
    "perplexity": [("pplx-", signs(ALNUM, 48))],
    "replicate": [("r8_", signs(ALNUM, 37))],
    "tavily": [("tvly-dev-", signs(ALNUM, 32))],
    "huggingface": [("hf_", signs(ALNUM, 34))],
    "github": [("ghp_", signs(ALNUM, 36)), ("github_pat_", signs(ALNUM + "_", 82))],
    "gitlab": [("glpat-", signs(ALNUM + "_-", 20)), ("GR1348941", signs(ALNUM, 20))],
    "aws-key-id": [("AKIA", signs(UPPER, 16)), ("ASIA", signs(UPPER, 16))],
    "google-key": [("AIza", signs(ALNUM + "_-", 35))],
    "google-token": [("ya29.", signs(ALNUM + "_-", 60)), ("GOCSPX-", signs(ALNUM + "_-", 28))],
    "slack": [("xoxb-123456789012-", signs(ALNUM, 24)), ("xapp-1-", signs(ALNUM, 64))],
    "stripe": [("sk_live_", signs(ALNUM, 24)), ("whsec_", signs(ALNUM, 32))],
    "square": [("sq0csp-", signs(ALNUM + "_-", 43))],
    "shopify": [("shpat_", signs(HEX, 32))],
    "twilio": [("SK", signs(HEX, 32))],
    "sendgrid": [("SG.abcdefghij1234567890_-.", signs(ALNUM + "_-", 43))],
    "npm": [("npm_", signs(ALNUM, 36)), ("//r.example/:_authToken=", signs(HEX, 36))],
    "pypi": [("pypi-AgEIcHlwaS5vcmc", signs(ALNUM + "_-", 150))],
    "artifactory": [("AKC", signs(ALNUM, 40))],
    "digitalocean": [("dop_v1_", signs(HEX, 64))],
    "databricks": [("dapi", signs(HEX, 32))],
    "vault": [("hvs.", signs(ALNUM + "_-", 90))],
    "doppler": [("dp.pt.", signs(ALNUM, 43))],
    "grafana": [("glsa_", signs(ALNUM, 41))],
    "atlassian": [("ATATT3", signs(ALNUM + "_=-", 186))],
    "linear": [("lin_api_", signs(ALNUM, 40))],
    "notion": [("ntn_", signs(ALNUM, 46))],
    "postman": [("PMAK-0123456789abcdef01234567-", signs(HEX, 34))],
    "supabase": [("sbp_", signs(HEX, 40))],
    "figma": [("figd_", signs(ALNUM + "_-", 40))],
    "sentry": [("sntrys_", signs(ALNUM + "_=", 100))],
    "fly": [("FlyV1 fm2_", signs(ALNUM + "+/", 100))],
    "jwt": [("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.", signs(ALNUM + "_-", 43))],
    "azure-key": [
        ("AccountKey=", signs(ALNUM + "+/", 86)),
        ("SharedAccessKey=", signs(ALNUM + "+/", 43)),
    ],
    "azure-sas": [("?sv=2024-01-01&sig=", signs(ALNUM + "%", 44))],
    "azure-client-secret": [("abc8Q~", signs(ALNUM + "_.~-", 34))],
    "slack-webhook": [("https://hooks.slack.com/services/", signs(ALNUM + "/", 44))],
    "discord-webhook": [
        ("https://discord.com/api/webhooks/123456789012345678/", signs(ALNUM + "_-", 68))
    ],
    "discord": [("MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcdE.", signs(ALNUM + "_-", 38))],
    "telegram": [("123456789:AA", signs(ALNUM + "_-", 33))],
    "mailchimp": [("", lambda chance: signs(HEX, 32)(chance) + "-us12")],
    "terraform": [("abcdefghij1234.atlasv1.", signs(ALNUM + "_-", 67))],
    "url-password": [("postgres://ada:", lambda chance: signs(ALNUM, 12)(chance) + "@db.example")],
    "authorization": [
        ("Authorization: Bearer ", signs(ALNUM + "_-", 30)),
        ("authorization: basic ", signs(ALNUM, 16)),
    ],
    "bearer": [("bearer ", signs(ALNUM + "_-", 30))],
    "registry-login": [('{"auth": "', lambda chance: signs(ALNUM, 24)(chance) + '="}')],
    "aws-secret": [("aws key '", lambda chance: signs(ALNUM, 40)(chance) + "'")],
    "assigned-secret": [
        ("AWS_SECRET_ACCESS_KEY=", signs(ALNUM + "+/", 40)),
        ("password: ", signs(ALNUM + "-!", 12)),
        ("my_api_key = ", signs(HEX, 32)),
        ("DB_PASSWORD=", signs(ALNUM, 10)),
        ("client-key-data: ", signs(ALNUM + "+/", 2400)),
    ],
}
"""For each rule: what stands before the part that must not be left, and how that part is made."""

planted = st.builds(
    lambda case, seed: (case[0], case[1][0], case[1][1](random.Random(seed))),
    st.sampled_from([(name, form) for name, forms in SECRETS.items() for form in forms]),
    st.integers(0, 2**32),
)


def core(secret: str) -> str:
    """Return what must not be left of a secret: its middle, which no rule treats as context."""
    rows = [row for row in secret.split("\n") if not row.startswith("-----")]
    text = max(rows, key=len).split("@")[0]
    return text[1:-1] if len(text) > 12 else text


# ---------------------------------------------------------------- the rules themselves


def test_every_rule_has_an_example() -> None:
    assert set(SECRETS) == set(RULE_NAMES)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_each_rule_finds_its_secrets_and_is_named(rule: str) -> None:
    for before, make in SECRETS[rule]:
        secret = make(random.Random(rule))
        flat = secret.replace("\n", "\\n")
        clean, counts = REDACTOR.redact(f"see {before}{flat} there".encode())
        assert core(secret) not in clean.decode()
        assert dict(counts) == {rule: 1}
        assert clean.startswith(b"see ")
        assert clean.rstrip().endswith(b"there")


def test_a_changed_rule_has_a_new_version() -> None:
    text = repr([(*rule[:4], rule.after) for rule in (*BY_BEGINNING, *BY_CONTEXT, *BY_SHAPE)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert (RULES_VERSION, digest) == (1, "6094a4ce906f0aef"), (
        "raise RULES_VERSION, then renew the digest"
    )


# Account numbers that are no secret by themselves; what takes a single sign for a secret.
UNEQUAL = ("AC[a-z0-9]{32}", "aws.{0,20}", ":_authToken=", "hooks")
# Marks without the key that they announce.
NEEDS_MORE = {"Private Key", "Basic Auth Credentials", "Artifactory Credentials", "JSON Web Token"}


def library_patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Return what detect-secrets knows by its form, but for what is said above."""
    found = []
    for name, plugin in get_mapping_from_secret_type_to_class().items():
        if issubclass(plugin, RegexBasedDetector) and name not in NEEDS_MORE | OTHERS:
            found += [
                (name, pattern)
                for pattern in plugin().denylist
                if not any(part in pattern.pattern for part in UNEQUAL)
            ]
    return found


# Known by a person's own names in source code, or by an address, which is no secret.
OTHERS = {
    *("Cloudant Credentials", "IBM Cloud IAM Key", "IBM COS HMAC Credentials"),
    *("SoftLayer Credentials", "Public IP (ipv4)"),
}


@pytest.mark.parametrize(("name", "pattern"), library_patterns(), ids=lambda value: str(value)[:40])
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_what_detect_secrets_knows_by_its_form_is_found(
    name: str, pattern: re.Pattern[str], data: st.DataObject
) -> None:
    drawn = data.draw(st.from_regex(re.compile(pattern.pattern, re.ASCII), fullmatch=True))
    # A key is drawn by chance: rows of one sign, and three signs, are examples of none.
    assume(len(set(drawn)) >= 16 and re.search(r"[0-9]", drawn) and re.search(r"[a-zA-Z]", drawn))
    clean, _ = REDACTOR.redact(f'the key is "{drawn}"'.encode())
    assert pattern.search(clean.decode()) is None, name


@pytest.mark.parametrize(
    "text",
    [
        '"input_tokens": 123456789, "max_tokens": "12345678"',
        "token_count = 12345678 + tokens_so_far2",
        "password: string, secret: required, token=None",
        'password = os.environ["DB_PASSWORD1"]',
        "api_key: ${OPENAI_API_KEY_1}",
        "API_KEY=$OPENAI_API_KEY",
        'api_key="<your-key-1234>"',
        "http://localhost:8080/a and user@example.com",
        "the task-1234567890abcdef1234567890abcdef was done at risk-free sk-learn",
        "-----BEGIN PRIVATE KEY----- is how it starts",
        "Basic authentication and Bearer authentication",
        "token = get_token(user_1)",
        '"password": "[REDACTED:SECRET]"',
        "83381b7c0d3f4f0a9a0e0e6c9a1f2b3c4d5e6f70 is a commit",
        "550e8400-e29b-41d4-a716-446655440000",
        "toolu_014SU1RiPAZVkguxHfJkMVRu call_evC15qkdn2qH4BJPTHxgenj6",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert REDACTOR.redact(text.encode()) == (text.encode(), {})


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize(
    "text",
    [
        '{"env": {"OPENAI_API_KEY": "@@"}, "n": 1}',
        '{"headers": {"x-api-key" : "@@", "Authorization": "Bearer @@"}}',
        'export AWS_SECRET_ACCESS_KEY="@@"',
        "os.environ['DB_PASSWORD'] = '@@'",
        "Server=tcp:db;User ID=sa;Password=@@;Encrypt=True",
        "client_id=abc&client_secret=@@&grant_type=client_credentials",
        "DATABASE_URL=postgres://ada:@@@db.example/x?sslmode=require",
        "clientSecret: @@",
        "git clone https://oauth2:@@@git.example/x.git",
    ],
)
def test_secrets_are_found_where_people_and_tools_write_them(text: str, depth: int) -> None:
    secret = "a1B2c3D4e5F6g7H8"
    line = text.replace("@@", secret)
    for _ in range(depth):
        line = json.dumps({"output": line})
    clean, _ = REDACTOR.redact(line.encode())
    assert secret.encode() not in clean
    assert not depth or shape(json.loads(clean)) == shape(json.loads(line))


# ---------------------------------------------------------------- encodings

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(
    # Signs of words beside a secret would make it a part of a word.
    lambda text: f"{text} "
)


def needless(text: str, chance: random.Random) -> str:
    """Write a text as a JSON string with escapes that nobody needs."""
    written = []
    for sign in json.dumps(text)[1:-1]:
        hide = chance.random() < 0.2 and sign.isalnum()
        written.append(sign)
        if (
            hide
            and not "".join(written[-6:-1]).endswith("\\")
            and "\\u" not in "".join(written[-6:-1])
        ):
            written[-1] = f"\\u{ord(sign):04x}"
        elif sign == "/" and chance.random() < 0.5:
            written[-1] = "\\/"
    return '"' + "".join(written) + '"'


def encoded(text: str, chance: random.Random, depth: int, seat: str) -> str:
    """Put a text into a JSON object, as key or value, at some depth of JSON in strings."""
    write = needless if chance.random() < 0.5 else lambda value, _chance: json.dumps(value)
    number = chance.choice(["1", "-1.50e3", "12345678901234567890", "true", "null", "[]"])
    string = write(text, chance)
    if seat == "key":
        line = f'{{"a": {number}, {string}: {number}}}'
    elif seat == "list":
        line = f"[{number}, {string},{number}]"
    else:
        line = f'{{"n":{number},"text": {string} , "b":{number}}}'
    return line if depth == 0 else encoded(line, chance, depth - 1, chance.choice(SEATS))


SEATS = ["key", "value", "list"]


def every_text(value: object) -> Iterator[str]:
    """Yield all texts of a value, keys too, and those of JSON inside of texts."""
    if isinstance(value, str):
        yield value
        if value[:1] in ("{", "[", '"'):
            try:
                inner = json.loads(value)
            except ValueError:
                return
            yield from every_text(inner)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from every_text(key)
            yield from every_text(one)
    elif isinstance(value, list):
        for one in value:
            yield from every_text(one)


def shape(value: object) -> object:
    """Return a value with its texts, and the keys of objects, made equal."""
    if isinstance(value, str):
        return ""
    if isinstance(value, dict):
        return ["{", *(shape(one) for one in value.values())]
    if isinstance(value, list):
        return ["[", *(shape(one) for one in value)]
    return value


@given(planted, texts, texts, st.integers(0, 3), st.sampled_from(SEATS), st.integers(0, 2**32))
def test_no_secret_is_left_in_any_encoding_and_json_keeps_its_shape(
    case: tuple[str, str, str], before: str, after: str, depth: int, seat: str, seed: int
) -> None:
    _rule, lead, secret = case
    line = encoded(f"{before}{lead}{secret} {after}", random.Random(seed), depth, seat).encode()
    clean, counts = REDACTOR.redact(line)
    assert counts.total() >= 1
    assert shape(json.loads(clean)) == shape(json.loads(line))
    hidden = core(secret)
    assert not any(hidden in text for text in every_text(json.loads(clean)))
    assert REDACTOR.redact(clean) == (clean, {})


@given(planted, st.binary(max_size=20), st.binary(max_size=20))
def test_no_secret_is_left_in_what_is_not_json(
    case: tuple[str, str, str], before: bytes, after: bytes
) -> None:
    _rule, lead, secret = case
    flat = f" {lead}{secret.replace(chr(10), ' ')} ".encode()
    clean, _ = REDACTOR.redact(before + flat + after)
    assert core(secret).encode() not in clean
    assert REDACTOR.redact(clean) == (clean, {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["password", "token", "api_key", "a\n", '"']) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
fragments = st.sampled_from(
    [
        *(
            '"',
            "\\",
            "\\n",
            "\\u0041",
            "\\\\",
            "/",
            "{",
            "}",
            ":",
            "=",
            " ",
            "\r",
            "\x00",
            "@",
            "-",
        ),
        *("password", "token", "sk-ant-", "AKIA", "://", "Bearer ", "[REDACTED:jwt#00000000]"),
        *("a1B2c3D4e5F6g7H8i9J0", "ABCDEFGH23456723", "-----BEGIN PRIVATE KEY-----", "eyJ", "\n"),
    ]
)


@given(json_values)
def test_json_keeps_its_shape_whatever_it_says(value: object) -> None:
    line = orjson.dumps(value) if _is_small(value) else json.dumps(value).encode()
    clean, _ = REDACTOR.redact(line)
    assert shape(json.loads(clean)) == shape(json.loads(line))


def _is_small(value: object) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@given(st.lists(fragments, max_size=30).map("".join), st.integers(0, 3))
def test_redacting_twice_is_redacting_once(text: str, depth: int) -> None:
    for _ in range(depth):
        text = json.dumps({"password": text})
    clean, _ = REDACTOR.redact(text.encode())
    assert REDACTOR.redact(clean) == (clean, {})
    if depth:
        assert shape(json.loads(clean)) == shape(json.loads(text))


@given(st.lists(st.lists(fragments, max_size=12).map("".join), max_size=6))
def test_it_does_not_matter_how_a_file_is_cut_into_blocks(rows: list[str]) -> None:
    lines = [f"{row}\n".encode() for row in rows]
    whole, counts = REDACTOR.redact(b"".join(lines))
    pieces = [REDACTOR.redact(line) for line in lines]
    assert b"".join(clean for clean, _ in pieces) == whole
    assert sum(found.total() for _, found in pieces) == counts.total()
    assert whole.count(b"\n") == b"".join(lines).count(b"\n")


# ---------------------------------------------------------------- particular cases


def test_a_key_of_many_rows_is_found_as_tools_show_it() -> None:
    rows = pem(random.Random(1)).rstrip("\n").split("\n")
    shown = {
        "numbered": "\n".join(f"{at:6}→{row}" for at, row in enumerate(rows)),
        "diff": "\n".join(f"+{row}" for row in rows),
        "indented": "\n".join(f"      {row}" for row in rows),
        "windows": "\r\n".join(rows),
        "cut": "\n".join(rows[:3]),
    }
    for name, text in shown.items():
        clean, counts = REDACTOR.redact(orjson.dumps({"out": text, "n": 1}))
        assert dict(counts) == {"private-key": 1}, name
        assert not any(row.encode() in clean for row in rows[1:-1]), name
    listed, _ = REDACTOR.redact(orjson.dumps({"out": rows, "n": 1}))
    assert not any(row.encode() in listed for row in rows[1:-2])
    assert len(orjson.loads(listed)["out"]) == len(rows)


def test_the_same_secret_has_the_same_mark_in_any_encoding_and_another_with_another_key() -> None:
    token = "ghp_" + "a1B2" * 9
    plain = REDACTOR.redact(json.dumps({"a": token}).encode())[0]
    hidden = REDACTOR.redact(b'{"a": "\\u0067hp_' + token[4:].encode() + b'"}')[0]
    assert plain == hidden
    assert Redactor(b"x" * 32).redact(token.encode())[0] != REDACTOR.redact(token.encode())[0]
    assert token.encode() not in plain


def test_what_is_not_a_secret_keeps_its_bytes() -> None:
    token = "ghp_" + "a1B2" * 9
    line = ('{ "b" :1.10,"a":"\\u00e9\\/ \\ud83d\\ude00 ' + token + ' \\n","a":NaN }').encode()
    clean, _ = REDACTOR.redact(line)
    mark = PLACEHOLDER.search(clean.decode())
    assert mark is not None
    assert clean.decode().replace(mark[0], token) == line.decode()


@pytest.mark.parametrize("cut", range(8, 40))
def test_a_secret_that_is_cut_off_at_the_end_is_redacted(cut: int) -> None:
    line = b'{"a":"ghp_' + b"a1B2" * 9
    clean, counts = REDACTOR.redact_torn(line[: 6 + cut])
    assert b"a1B2" not in clean
    assert counts["github"] == 1
    assert REDACTOR.redact_torn(b'{"a":"plain words and')[0] == b'{"a":"plain words and'
    assert REDACTOR.redact_torn(b"postgres://ada:a1B2c3")[1] == {"url-password": 1}


def test_rules_can_be_switched_off_and_added() -> None:
    token = b"ghp_" + b"a1B2" * 9
    assert Redactor(KEY, off=["github"]).redact(token) == (token, {})
    own = Redactor(KEY, own=[("acme", "acme-[0-9]{4}")])
    assert own.redact(b"acme-1234 acme-12")[1] == {"acme": 1}
    assert b"1234" not in own.redact(b"acme-1234")[0]
    versions = {REDACTOR.version, own.version, Redactor(KEY, off=["github"]).version}
    assert len(versions | {Redactor(b"x").version}) == 4
    assert Redactor(KEY).version == REDACTOR.version


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("acme", "(?i:acme)"),
        ("acme", "(?i:acme).*"),
        ("redacted", "(?i:redacted)"),
        ("hex", "[0-9a-f]{4}"),
        ("wide", "[a-z]+"),
        ("sign", "[]#:[]"),
    ],
)
def test_a_rule_that_knows_its_own_mark_ends_all_the_same(name: str, pattern: str) -> None:
    redactor = Redactor(KEY, own=[(name, pattern)])
    line = b'{"text":"the acme plan [of] redacted #1: deadbeef"}\n'
    clean, counts = redactor.redact(line)
    assert counts[name] > 0
    assert redactor.redact(clean) == (clean, {})
    (text,) = json.loads(clean).values()
    left = PLACEHOLDER.sub("", text)
    assert re.search(pattern, left) is None


def test_a_secret_in_what_only_looks_like_a_mark_is_found() -> None:
    token = b"ghp_" + b"a1B2" * 9
    assert token not in REDACTOR.redact(b"[REDACTED:" + token + b"#00000000]")[0]


@pytest.mark.parametrize("pattern", ["(", "a*", "(a)b", "é\u4e2d", "(?=a)"])
def test_a_pattern_that_cannot_be_used_is_explained(pattern: str) -> None:
    with pytest.raises(UserError, match="The pattern of the rule acme"):
        Redactor(KEY, own=[("acme", pattern)])


def test_hostile_lines_take_time_in_proportion_to_their_length() -> None:
    for piece in (
        b'\\"password\\":',
        b"eyJa.",
        b"-----BEGIN PRIVATE KEY-----",
        b"://a:",
        b"\\u0073",
    ):
        line = piece * (100_000 // len(piece))
        assert len(REDACTOR.redact(line)[0]) > 0


def test_entropy_is_shannons() -> None:
    assert entropy(b"aaaa") == 0
    assert entropy(b"abcd") == 2
