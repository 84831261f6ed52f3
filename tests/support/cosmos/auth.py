"""Who may ask: signatures with the account's key, or bearer tokens of an issuer made for a test."""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple

import jwt
from tests.support.cosmos.errors import NOT_AUTHORIZED_BY_ROLE, ServiceError

# Published by Microsoft for every copy of its emulator; it protects nothing.
EMULATOR_KEY = (
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
)
# In seconds. The service names a token's start and its expiry 15 minutes later, and was seen to
# refuse clocks that were 7 minutes ahead; that it takes 5 is assumed.
MAX_BEHIND = 15 * 60
MAX_AHEAD = 5 * 60
METADATA = {"", "dbs", "colls", "pkranges"}  # what every role may read


class Asked(NamedTuple):
    """What a request wants: its resource as signatures name it, and whether it is about items."""

    verb: str
    resource_type: str
    resource: str
    data: bool
    write: bool

    def text(self, date: str) -> str:
        """What is signed."""
        return f"{self.verb.lower()}\n{self.resource_type}\n{self.resource}\n{date.lower()}\n\n"


def sign(key: str, text: str) -> str:
    """A signature, as the client and the service compute it."""
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


class TokenIssuer:
    """Makes bearer tokens that a server with this issuer takes: a stand-in for Entra ID."""

    def __init__(self, secret: str | None = None) -> None:
        self.secret = secret or secrets.token_hex(32)

    def token(self, *, lifetime: float = 3600.0, role: str = "contributor") -> str:
        """A token for a `contributor` or a `reader` of data; seconds may be negative."""
        claims = {"exp": int(time.time() + lifetime), "roles": [role]}
        return jwt.encode(claims, self.secret, algorithm="HS256")

    def role(self, token: str) -> str:
        """What a token allows.

        Raises:
            ServiceError: 403 for an expired one (reported so; the client renews its token after 401
                only), 401 for a stranger's.
        """
        try:
            claims = jwt.decode(token, self.secret, algorithms=["HS256"])
        except jwt.ExpiredSignatureError:
            raise ServiceError(
                403,
                "Request blocked by Auth: Provided AAD token has been expired. "
                "Please refresh the AAD token.",
                substatus=NOT_AUTHORIZED_BY_ROLE,
            ) from None
        except jwt.InvalidTokenError:
            raise _unauthorized("The AAD token is not valid for this account.") from None
        return str(claims["roles"][0])


class Authority:
    """Checks the authorization of requests to one account."""

    def __init__(
        self,
        key: str = EMULATOR_KEY,
        *,
        issuer: TokenIssuer | None = None,
        keys_allowed: bool = True,
        key_may_change_metadata: bool = True,
    ) -> None:
        self.key = key
        self.issuer = issuer
        self.keys_allowed = keys_allowed
        self.key_may_change_metadata = key_may_change_metadata

    def check(self, asked: Asked, headers: Mapping[str, str]) -> None:
        """Let a request pass.

        Raises:
            ServiceError: 401 for a wrong or missing credential, 403 for a clock that is off and for
                what a role does not allow.
        """
        given = headers.get("authorization")
        if not given:
            raise _unauthorized("Required Header authorization is missing.")
        kind, _, signature = urllib.parse.unquote(given).partition("&ver=1.0&sig=")
        if kind == "type=aad":
            self._check_role(signature, asked)
        elif kind == "type=master":
            self._check_signature(signature, asked, headers)
            if asked.write and not asked.data and not self.key_may_change_metadata:
                raise ServiceError(
                    403,
                    f"Operation '{asked.verb}' on resource '{asked.resource_type}' is not allowed "
                    "through Azure Cosmos DB endpoint. Please switch on such operations for your "
                    "account, or perform this operation through Azure Resource Manager.",
                )
        else:
            raise _unauthorized("The authorization token is neither master nor aad.")

    def _check_signature(self, given: str, asked: Asked, headers: Mapping[str, str]) -> None:
        if not self.keys_allowed:
            raise _unauthorized(
                "Local Authorization is disabled. Use an AAD token to authorize all requests."
            )
        date = headers.get("x-ms-date", "")
        text = asked.text(date)
        expected = sign(self.key, text)
        try:
            matches = hmac.compare_digest(base64.b64decode(given), base64.b64decode(expected))
        except (ValueError, binascii.Error):
            matches = False
        if not matches:
            raise _unauthorized(
                "The input authorization token can't serve the request. The wrong key is being "
                "used or the expected payload is not built as per the protocol. For more info: "
                "https://aka.ms/cosmosdb-tsg-unauthorized. Server used the following payload to "
                f"sign: '{text}'"
            )
        _check_clock(date)

    def _check_role(self, token: str, asked: Asked) -> None:
        if self.issuer is None:
            raise _unauthorized("This account takes no AAD tokens.")
        role = self.issuer.role(token)
        reads_metadata = asked.verb == "GET" and asked.resource_type in METADATA
        if not (reads_metadata or (asked.data and (role == "contributor" or not asked.write))):
            raise ServiceError(
                403,
                "Request blocked by Auth: the principal does not have the required RBAC "
                f"permissions to perform {asked.verb} on '{asked.resource_type}'. "
                "Learn more: https://aka.ms/cosmos-native-rbac.",
                substatus=NOT_AUTHORIZED_BY_ROLE,
            )


def _check_clock(date: str) -> None:
    try:
        sent = _seconds(date)
    except ValueError:
        raise _unauthorized("The x-ms-date header is missing or no RFC 1123 date.") from None
    if not -MAX_AHEAD <= time.time() - sent <= MAX_BEHIND:
        raise ServiceError(
            403,
            "The authorization token is not valid at the current time. Please create another token "
            "and retry (token start time: "
            f"{date}, server time: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT).",
        )


@lru_cache(maxsize=16)
def _seconds(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


def _unauthorized(message: str) -> ServiceError:
    return ServiceError(401, message)
