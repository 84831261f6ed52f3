"""Which account and database, and as whom: read off the store's URL and the settings."""

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from azure.core.credentials_async import AsyncTokenCredential
from pydantic import SecretStr

from sessionferry.errors import UserError
from sessionferry.settings import Settings

SCHEMES: Final = frozenset({"cosmos", "cosmos+http"})
_EMULATOR_KEY: Final = (
    # The same for every emulator, and documented; it opens nothing else.
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An account's database.

    Without a key a given `credential` is used, else the Entra identity of this process.
    `may_create` None leaves it to the endpoint whether containers are created from here.
    """

    endpoint: str
    database: str
    key: SecretStr | None = None
    credential: AsyncTokenCredential | None = field(default=None, repr=False)
    may_create: bool | None = None
    throughput_bucket: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine: an emulator, which creates what it needs."""
        return _is_loopback(urlsplit(self.endpoint).hostname or "")

    @property
    def creates(self) -> bool:
        """Whether databases and containers may be created from here."""
        return self.is_local if self.may_create is None else self.may_create

    @property
    def url(self) -> str:
        """The store's URL, for somebody who has the key otherwise."""
        parts = urlsplit(self.endpoint)
        scheme = "cosmos+http" if parts.scheme == "http" else "cosmos"
        return f"{scheme}://{parts.netloc}/{self.database}"

    @property
    def shown(self) -> str:
        """Name account and database without secrets."""
        return f"{urlsplit(self.endpoint).netloc}/{self.database}"


def access(url: str, settings: Settings) -> Access:
    """Read an access off `cosmos://account/database` and the settings; both parts may be absent.

    Raises `UserError` when no endpoint is named, or none that can be used.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise UserError("A key does not belong into FERRY_STORE; set FERRY_COSMOS_KEY.")
    connection = _connection(settings.cosmos_connection)
    if parts.netloc:
        scheme = "http" if parts.scheme == "cosmos+http" else "https"
        endpoint = f"{scheme}://{parts.netloc}"
    else:
        endpoint = settings.cosmos_endpoint or connection.get("AccountEndpoint", "")
    if not endpoint:
        raise UserError(
            "The Cosmos DB account is not named: set FERRY_COSMOS_ENDPOINT, or write "
            "FERRY_STORE as cosmos://account.documents.azure.com/database."
        )
    found = Access(
        endpoint=_checked(endpoint),
        database=parts.path.strip("/") or settings.cosmos_database,
        may_create=settings.cosmos_create,
        throughput_bucket=settings.cosmos_throughput_bucket,
    )
    return _with_key(found, settings, connection.get("AccountKey"))


def _with_key(found: Access, settings: Settings, connection_key: str | None) -> Access:
    if settings.cosmos_auth_method == "default_credential":
        return found
    key = settings.cosmos_key or (SecretStr(connection_key) if connection_key else None)
    if key is None and found.is_local:
        key = SecretStr(_EMULATOR_KEY)
    if key is None and settings.cosmos_auth_method == "key":
        raise UserError("FERRY_COSMOS_AUTH_METHOD is `key`, but FERRY_COSMOS_KEY is not set.")
    return replace(found, key=key)


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    try:
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"{endpoint!r} is no endpoint of Cosmos DB, such as https://name/.")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise UserError(
            f"{endpoint} would send documents unencrypted; only an emulator on this machine may "
            "be reached by http."
        )
    return f"{parts.scheme}://{parts.netloc}/"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _connection(text: SecretStr | None) -> dict[str, str]:
    if text is None:
        return {}
    parts = [part.partition("=") for part in text.get_secret_value().split(";") if part]
    found = {name.strip(): value for name, _, value in parts}
    if not {"AccountEndpoint", "AccountKey"} <= set(found):
        raise UserError(
            "FERRY_COSMOS_CONNECTION has the form AccountEndpoint=https://…;AccountKey=…;"
        )
    return found
