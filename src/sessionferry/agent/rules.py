"""What a secret looks like: the rules of redaction, with their version.

Patterns are RE2's, over bytes: linear in time whatever a file holds. They run on a file's raw
lines, where a newline is `\\n` and a quote may have any number of backslashes before it. Formats
are those that the issuers document; a test holds the rules against those of detect-secrets.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

RULES_VERSION = 1
"""Goes up with every change below: what is redacted differently is sent anew (a test checks)."""

MAX_ASSIGNED_BYTES = 512
MIN_ENTROPY_BITS = 2.5
"""Per byte. Values below are words, or rows of the same sign."""

_Check = Callable[[bytes, bytes], bool]


class Rule(NamedTuple):
    """One kind of secret: what stands before it, how it begins and goes on, what follows it.

    A text is searched for `lead` and `begin` first; only there the rest is tried. `check(whole
    match, secret)` may say that it is none after all.
    """

    name: str
    lead: str
    begin: str
    rest: str
    check: _Check | None = None
    after: str = ""

    @property
    def opening(self) -> str:
        """The pattern that is searched for."""
        return self.lead + self.begin

    @property
    def pattern(self) -> str:
        """The whole pattern; its one group is the secret."""
        return f"{self.lead}({self.begin}{self.rest}){self.after}"


# A secret does not begin inside a word. Raw lines hold escapes: the letter of `\\n` is no word.
_START = r"(?m:^|[^0-9A-Za-z_]|\\[bfnrt]|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2}|\[[0-9;]*m)"
# What may stand between the rows of a key: escapes, line numbers, diff marks, quotes of a list.
_BETWEEN = r"""(?:\\+[nrtu"']|[ \t\r0-9\x80-\xff"',:;>|.+\[\]-])*"""
_ROW = r"[A-Za-z0-9+/=]"
_PEM_HEADER = r"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): [^\\\"\n]{0,120}"
_PRIVATE = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PEM_ROWS = (
    rf"(?:{_BETWEEN}{_PEM_HEADER})*(?:{_BETWEEN}{_ROW}{{24,}})+"
    rf"(?:(?:{_BETWEEN}{_ROW}{{1,23}})?{_BETWEEN}-----END {_PRIVATE})?"
)

_QUOTE = r"""\\*["'`]"""
_NAMES = (
    r"(?i:passw(?:or)?d|passphrase|secret|token|credential|api[_-]?key"
    r"|(?:access|account|auth|client|encryption|master|primary|private|secondary|signing|storage"
    r"|subscription)[_-]?key|connection[_-]?string)"
)
_ASSIGN = rf"{_NAMES}[0-9A-Za-z_.-]{{0,24}}(?:{_QUOTE}\]?)?[ \t]*(?::=|=>|==|[:=])[ \t]*"
_BARE = r"""[^\s"'`\\,;(){}<>\[\]]"""
_SIGN = r"[0-9A-Za-z+/=_.~-]"


_DIGIT, _LETTER = re.compile(rb"[0-9]"), re.compile(rb"[A-Za-z]")


def _mixes_signs(_whole: bytes, secret: bytes) -> bool:
    """Words of prose and code are no secrets: a key has letters and digits."""
    return _DIGIT.search(secret) is not None and _LETTER.search(secret) is not None


def _is_random(_whole: bytes, secret: bytes) -> bool:
    return _mixes_signs(b"", secret) and entropy(secret) >= MIN_ENTROPY_BITS


# References to a secret, made-up ones, and what others have redacted already.
_REFERENCE = re.compile(
    rb"\$[{(]|\$[A-Z_]+\Z|<[^>]*>|\{\{|%[(s{]|\*{3}|\.\.\.|x{4}|https?:"
    rb"|(?:env|os|process|config|settings|self|this|var|secrets?|args)\.|[A-Za-z_]+\("
    rb"|/?(?:home|usr|tmp|var|etc|projects|Users)/",
    re.IGNORECASE,
)
_COUNTS = re.compile(rb"tokens|token_(?:count|usage|type|limit|budget|id)\b", re.IGNORECASE)


def _is_assigned(whole: bytes, secret: bytes) -> bool:
    if len(secret) > MAX_ASSIGNED_BYTES or _REFERENCE.match(secret):
        return False
    return not _COUNTS.search(whole[: -len(secret)]) and _is_random(whole, secret)


def _is_assigned_key(whole: bytes, secret: bytes) -> bool:
    return not _COUNTS.search(whole[: -len(secret)]) and _mixes_signs(whole, secret)


def _is_password(_whole: bytes, secret: bytes) -> bool:
    return not _REFERENCE.match(secret) and secret.lower() not in {b"password", b"pass", b"pwd"}


def entropy(secret: bytes) -> float:
    """Return Shannon's entropy in bits per byte."""
    counts = Counter(secret).values()
    return -sum(n / len(secret) * math.log2(n / len(secret)) for n in counts)


def _issued(name: str, begin: str, rest: str, check: _Check | None = None) -> Rule:
    return Rule(name, _START, begin, rest, check)


BY_BEGINNING = (
    Rule(
        "private-key", "", "-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY", f"(?: BLOCK)?-----{_PEM_ROWS}"
    ),
    Rule(
        "putty-key",
        r"PuTTY-User-Key-File-[23]:.*?Private-Lines: [0-9]+",
        "",
        rf"(?:{_BETWEEN}{_ROW}{{24,}})+",
    ),
    _issued("age-key", "AGE-SECRET-KEY-1", r"[0-9A-Z]{58}"),
    Rule("anthropic", "", "sk-ant-", r"[0-9A-Za-z_-]{20,}"),
    _issued("openrouter", "sk-or-", r"[0-9A-Za-z_-]{20,}"),
    _issued("openai", "sk-(?:proj|svcacct|admin|None)-", r"[0-9A-Za-z_-]{20,}"),
    _issued("openai", "sk-", r"[0-9A-Za-z_-]*T3BlbkFJ[0-9A-Za-z_-]{20,}"),
    _issued("sk-key", "sk-", r"[0-9A-Za-z]{32,}", _mixes_signs),
    _issued("groq", "gsk_", r"[0-9A-Za-z]{40,}"),
    _issued("xai", "xai-", r"[0-9A-Za-z]{60,}"),
    _issued("perplexity", "pplx-", r"[0-9A-Za-z]{40,}"),
    _issued("replicate", "r8_", r"[0-9A-Za-z]{37,}"),
    _issued("tavily", "tvly-", r"[0-9A-Za-z-]{20,}"),
    _issued("huggingface", "(?:hf_|api_org_)", r"[0-9A-Za-z]{30,}"),
    _issued("github", "gh[opsur]_", r"[0-9A-Za-z_]{36,}"),
    _issued("github", "github_pat_", r"[0-9A-Za-z_]{22,}"),
    _issued("gitlab", "gl(?:pat|ptt|dt|rt|soat|ft|imt|oas|agent|cbt|wt|ffct)-", _SIGN + "{20,}"),
    _issued("gitlab", "GR1348941", r"[0-9A-Za-z_-]{20,}"),
    _issued("aws-key-id", "(?:AKIA|ASIA|ABIA|ACCA|A3T[0-9A-Z])", r"[0-9A-Z]{16}"),
    _issued("google-key", "AIza", r"[0-9A-Za-z_-]{35}"),
    _issued("google-token", r"ya29\.", r"[0-9A-Za-z_.-]{20,}"),
    _issued("google-token", "GOCSPX-", r"[0-9A-Za-z_-]{20,}"),
    _issued("slack", "xox[a-zA-Z]-", r"[0-9A-Za-z-]{10,}"),
    _issued("slack", "xapp-", r"[0-9]-[0-9A-Za-z-]{20,}"),
    _issued("stripe", "[rs]k_(?:live|test)_", r"[0-9A-Za-z]{16,}"),
    _issued("stripe", "whsec_", r"[0-9A-Za-z+/=]{24,}"),
    _issued("square", "sq0(?:atp|csp|idp)-", r"[0-9A-Za-z_\\-]{22,}"),
    _issued("shopify", "shp(?:at|ca|pa|ss)_", r"[0-9a-fA-F]{32}"),
    _issued("twilio", "SK[0-9a-z]{4}", r"[0-9a-z]{28}"),
    _issued("sendgrid", r"SG\.", r"[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{16,}"),
    _issued("npm", "npm_", r"[0-9A-Za-z]{36,}"),
    _issued("pypi", "pypi-Ag", r"[0-9A-Za-z_-]{50,}"),
    _issued("artifactory", "AKC", r"[0-9A-Za-z]{10,}", _is_random),
    _issued("digitalocean", "do[oprt]_v1_", r"[0-9a-f]{64}"),
    _issued("databricks", "dapi[0-9a-f]", r"[0-9a-f]{31}"),
    _issued("vault", r"hv[sbr]\.", r"[0-9A-Za-z_-]{24,}"),
    _issued("doppler", r"dp\.(?:pt|st|sa|ct|scim|audit)\.", r"[0-9A-Za-z]{40,}"),
    _issued("grafana", "gl(?:sa|c)_", r"[0-9A-Za-z_+/=]{32,}"),
    _issued("atlassian", "AT(?:ATT|CTT|BB)", r"[0-9A-Za-z_=-]{20,}", _mixes_signs),
    _issued("linear", "lin_(?:api|oauth)_", r"[0-9A-Za-z]{32,}"),
    _issued("notion", "(?:ntn|secret)_", r"[0-9A-Za-z]{40,}"),
    _issued("postman", "PMAK-", r"[0-9a-f]{24}-[0-9a-f]{34}"),
    _issued("supabase", "sb[ps]_", r"[0-9A-Za-z_]{36,}"),
    _issued("figma", "figd_", r"[0-9A-Za-z_-]{36,}"),
    _issued("sentry", "sntry[su]_", r"[0-9A-Za-z_=+/-]{40,}"),
    _issued("fly", "FlyV1 fm[0-9]_", r"[0-9A-Za-z+/=,_-]{40,}"),
    _issued("jwt", "eyJ", r"[0-9A-Za-z_=-]{10,}\.[0-9A-Za-z_=-]{10,}\.[0-9A-Za-z_.+/=-]{10,}"),
)
"""Secrets that have a beginning of their own."""

BY_CONTEXT = (
    Rule(
        "azure-key", r"(?i:AccountKey|SharedAccessKey|SharedSecret)=", "", r"[0-9A-Za-z+/=%]{40,}"
    ),
    Rule("azure-sas", r"(?i:[?&;\s\"]sig)=", "", r"[0-9A-Za-z%+/=]{40,}"),
    Rule(
        "slack-webhook",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/",
        "",
        r"[0-9A-Za-z_/+-]{8,}",
    ),
    Rule(
        "discord-webhook",
        r"discord(?:app)?\.com/api/webhooks/",
        "",
        r"[0-9]{17,20}/[0-9A-Za-z_-]{60,}",
    ),
    Rule("npm", r":_auth(?:Token)?=[ \t]*", "", r"[0-9A-Za-z_+/=-]{16,}"),
    Rule(
        "url-password",
        r"""://[^\s/:@"'\\]*:""",
        r"""[^\s/"'\\]{3}""",
        r"""[^\s/"'\\]*""",
        _is_password,
        after=r"@[0-9A-Za-z\[]",
    ),
    Rule(
        "authorization",
        rf"(?i:authorization)(?:{_QUOTE})?[ \t]*[:=][ \t]*(?:{_QUOTE})?"
        r"(?i:bearer|basic|token|negotiate|apikey|key)[ \t]+",
        "",
        r"[0-9A-Za-z+/=_.~:-]{8,}",
        _is_password,
    ),
    Rule(
        "aws-secret",
        rf"(?i:aws.{{0,20}}?(?:key|pw|pass|token).{{0,20}}?){_QUOTE}",
        r"[0-9A-Za-z/+]{8}",
        r"[0-9A-Za-z/+]{32}",
        _is_random,
        after=_QUOTE,
    ),
    Rule("bearer", r"(?i:bearer)[ \t]+", "", _SIGN + "{20,}", _is_random),
    Rule(
        "registry-login",
        r"""\\*"auth\\*"[ \t]*:[ \t]*\\*\"""",
        r"[0-9A-Za-z+/]{12}",
        r"[0-9A-Za-z+/]+=*",
        _is_random,
    ),
    # A key in one long row of base64, as in the files of kubectl.
    Rule(
        "assigned-secret",
        rf"{_ASSIGN}(?:{_QUOTE})?",
        r"[0-9A-Za-z+/_-]{8}",
        rf"[0-9A-Za-z+/_-]{{{MAX_ASSIGNED_BYTES},}}=*",
        _is_assigned_key,
    ),
    Rule(
        "assigned-secret",
        rf"{_ASSIGN}[brfu]?{_QUOTE}",
        r"""[^\s"'`\\]{8}""",
        r"""[^\s"'`\\]{0,505}""",
        _is_assigned,
    ),
    Rule("assigned-secret", _ASSIGN, _BARE + "{8}", _BARE + "{0,505}", _is_assigned),
)
"""Secrets that are known by what stands before them."""

BY_SHAPE = (
    _issued("telegram", r"[0-9]{8,10}:", r"[0-9A-Za-z_-]{35}", _mixes_signs),
    _issued("mailchimp", r"[0-9a-z]{32}-us[0-9]", r"[0-9]?", _mixes_signs),
    _issued("terraform", r"[0-9A-Za-z]{14}\.atlasv1\.", r"[0-9A-Za-z_-]{60,}"),
    _issued("azure-client-secret", r"[0-9A-Za-z_~.-]{3}[0-9]Q~", r"[0-9A-Za-z_~.-]{31,34}"),
    _issued("discord", r"[MNO][0-9A-Za-z_-]{23,25}\.[0-9A-Za-z_-]{6}\.", r"[0-9A-Za-z_-]{27,}"),
)
"""Secrets that only their whole form tells apart."""

RULE_NAMES = tuple(dict.fromkeys(r.name for r in (*BY_BEGINNING, *BY_CONTEXT, *BY_SHAPE)))
