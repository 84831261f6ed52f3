"""Claims-based security: SAS tokens are verified for real and remembered per connection."""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from sessionferry.local.broker.errors import ServiceError, UnauthorizedError

RIGHTS: Final = frozenset({"send", "listen", "manage"})
# The Python SDK announces its SAS tokens as "jwt", and the service takes them as what they are.
TOKEN_TYPES: Final = frozenset({"servicebus.windows.net:sastoken", "jwt"})
_SCHEME: Final = "SharedAccessSignature "


@dataclass(frozen=True, slots=True)
class SasRule:
    """A key that grants rights; `manage` includes the others, as in the service."""

    name: str
    key: str
    rights: frozenset[str] = RIGHTS

    def __post_init__(self) -> None:
        if not self.name or not self.key:
            raise ValueError("A SAS rule needs a key name and a key.")
        if self.rights - RIGHTS:
            raise ValueError(f"Rights are among {sorted(RIGHTS)}.")

    def __repr__(self) -> str:
        return f"SasRule(name={self.name!r}, rights={sorted(self.rights)})"

    @property
    def granted(self) -> frozenset[str]:
        """The rights, with those that `manage` implies."""
        return RIGHTS if "manage" in self.rights else self.rights


@dataclass(frozen=True, slots=True)
class Grant:
    """What one accepted token allows below a path, until it expires."""

    rights: frozenset[str]
    expires: int  # seconds since the epoch


def path_of(address: str) -> str:
    """The lower-case entity path of an address, with or without scheme and host."""
    path = urlsplit(address).path if "://" in address else address
    return unquote_plus(path).strip("/").lower()


def covers(outer: str, inner: str) -> bool:
    """Whether a grant on `outer` holds for `inner`; the empty path is the whole namespace."""
    return not outer or inner == outer or inner.startswith(outer + "/")


def sign(resource: str, expiry: str, key: str) -> str:
    """The signature of a token over its still quoted resource and its expiry."""
    digest = hmac.new(key.encode(), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _refuse(description: str) -> ServiceError:
    return ServiceError("amqp:unauthorized-access", description, 401)


def _raw_fields(token: str) -> dict[str, str]:
    if not token.startswith(_SCHEME):
        raise _refuse("MalformedToken: The token is not a shared access signature.")
    parts = (part.partition("=") for part in token[len(_SCHEME) :].split("&"))
    return {name: value for name, _, value in parts}


def verify(token: str, audience: str, rules: dict[str, SasRule], now: float) -> Grant:
    """Check signature, key name, expiry and audience; a refusal is a ServiceError."""
    raw = _raw_fields(token)
    fields = dict(parse_qsl("&".join(f"{name}={value}" for name, value in raw.items())))
    if not all(fields.get(name) for name in ("sr", "sig", "se", "skn")):
        raise _refuse("MalformedToken: The token lacks one of sr, sig, se and skn.")
    rule = rules.get(fields["skn"])
    signature = fields["sig"].replace(" ", "+").encode()
    if rule is None or not hmac.compare_digest(
        sign(raw["sr"], fields["se"], rule.key).encode(), signature
    ):
        raise _refuse("InvalidSignature: The token has an invalid signature.")
    if not fields["se"].isdecimal() or int(fields["se"]) <= now:
        raise _refuse("ExpiredToken: The token is expired.")
    if not covers(path_of(unquote_plus(raw["sr"])), path_of(audience)):
        raise _refuse("InvalidAudience: The token was issued for another resource.")
    return Grant(rule.granted, int(fields["se"]))


class Claims:
    """The grants of one connection."""

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}

    def add(self, audience: str, grant: Grant) -> None:
        """Remember an accepted token; a newer one for the same path replaces it."""
        self._grants[path_of(audience)] = grant

    def allow(self, path: str, right: str, now: float) -> bool:
        """Whether an unexpired grant gives `right` on `path`; the empty right is any of them."""
        return any(
            (not right or right in grant.rights)
            and grant.expires > now
            and covers(outer, path.lower())
            for outer, grant in self._grants.items()
        )

    def require(self, path: str, right: str, now: float) -> None:
        """Raise unless `right` is granted on `path`."""
        if not self.allow(path, right, now):
            raise UnauthorizedError(right, path)

    def next_expiry(self, now: float) -> int | None:
        """When the next token runs out."""
        later = (grant.expires for grant in self._grants.values() if grant.expires > now)
        return min(later, default=None)
