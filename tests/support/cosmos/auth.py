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

import jwt
from tests.support.cosmos.errors import NOT_AUTHORIZED_BY_ROLE, ServiceError

# Published by Microsoft for every copy of its emulator; it protects nothing.
EMULATOR_KEY = (
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
)
MAX_CLOCK_DIFFERENCE = 15 * 60  # seconds
DATA_RESOURCES = {"docs", "partitionkey", "pkranges"}


def sign(key: str, verb: str, resource_type: str, resource: str, date: str) -> str:
    """The signature of a request, as the client and the service compute it."""
    text = f"{verb.lower()}\n{resource_type.lower()}\n{resource}\n{date.lower()}\n\n"
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
            ServiceError: 401.
        """
        try:
            claims = jwt.decode(token, self.secret, algorithms=["HS256"])
        except jwt.ExpiredSignatureError:
            raise _unauthorized("The AAD token has expired.") from None
        except jwt.InvalidTokenError:
            raise _unauthorized("The AAD token is not valid for this account.") from None
        return str(claims["roles"][0])


class Authority:
    """Checks the authorization of requests to one account."""

    def __init__(
        self, key: str = EMULATOR_KEY, *, issuer: TokenIssuer | None = None, local: bool = True
    ) -> None:
        self.key = key
        self.issuer = issuer
        self.local = local  # whether keys work at all; accounts may refuse them

    def check(
        self,
        verb: str,
        resource_type: str,
        resource: str,
        headers: Mapping[str, str],
        *,
        write: bool,
    ) -> None:
        """Let a request pass.

        Raises:
            ServiceError: 401 for a wrong or missing credential, 403 for a clock that is off and for
                what a role does not allow.
        """
        given = headers.get("authorization")
        if not given:
            raise _unauthorized("Required Header authorization is missing.")
        parts = dict(urllib.parse.parse_qsl(urllib.parse.unquote(given), keep_blank_values=True))
        if parts.get("type") == "aad":
            self._check_role(parts.get("sig", ""), verb, resource_type, write=write)
        elif parts.get("type") == "master":
            signature = urllib.parse.unquote(given).partition("sig=")[2]
            self._check_signature(signature, verb, resource_type, resource, headers)
        else:
            raise _unauthorized(
                "The authorization token is neither of type master nor of type aad."
            )

    def _check_signature(
        self, given: str, verb: str, resource_type: str, resource: str, headers: Mapping[str, str]
    ) -> None:
        if not self.local:
            raise _unauthorized(
                "Local Authorization is disabled. Use an AAD token to authorize all requests."
            )
        date = headers.get("x-ms-date", "")
        expected = sign(self.key, verb, resource_type, resource, date)
        try:
            matches = hmac.compare_digest(base64.b64decode(given), base64.b64decode(expected))
        except (ValueError, binascii.Error):
            matches = False
        if not matches:
            raise _unauthorized(
                "The input authorization token can't serve the request. The wrong key is being "
                "used or the expected payload is not built as per the protocol. For more info: "
                "https://aka.ms/cosmosdb-tsg-unauthorized. Server used the following payload to "
                f"sign: '{verb.lower()}\n{resource_type}\n{resource}\n{date.lower()}\n\n'"
            )
        _check_clock(date)

    def _check_role(self, token: str, verb: str, resource_type: str, *, write: bool) -> None:
        if self.issuer is None:
            raise _unauthorized("This account takes no AAD tokens.")
        role = self.issuer.role(token)
        reads_metadata = verb == "GET" and resource_type in {"", "colls"}
        allowed = resource_type in DATA_RESOURCES and (role == "contributor" or not write)
        if not (reads_metadata or allowed):
            raise ServiceError(
                403,
                "Request blocked by Auth: the principal does not have the required RBAC "
                f"permissions to perform {verb} on '{resource_type}'. "
                "Learn more: https://aka.ms/cosmos-native-rbac.",
                substatus=NOT_AUTHORIZED_BY_ROLE,
            )


def _check_clock(date: str) -> None:
    try:
        sent = parsedate_to_datetime(date)
    except ValueError:
        raise _unauthorized("The x-ms-date header is missing or no RFC 1123 date.") from None
    if abs((datetime.now(UTC) - sent).total_seconds()) > MAX_CLOCK_DIFFERENCE:
        raise ServiceError(
            403,
            "The authorization token is not valid at the current time. Please create another token "
            "and retry (token start time: "
            f"{date}, server time: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT).",
        )


def _unauthorized(message: str) -> ServiceError:
    return ServiceError(401, message)
