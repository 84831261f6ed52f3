"""Where sessions are stored, and who this machine is, in the words of amplifier-session-storage."""

from dataclasses import dataclass, field
from typing import Self

from pydantic import SecretStr

from sessionferry.errors import UserError
from sessionferry.settings import Settings
from sessionferry.store import Store
from sessionferry.store.opening import open_store

_KEY = "key"
_DEFAULT_CREDENTIAL = "default_credential"


@dataclass
class CosmosFileConfig:
    """Where sessions are stored.

    `endpoint` is a Cosmos DB account's URL, or any other store's (`sqlite:///…`, `postgresql://…`).
    `archive` is where the bytes of what is synced are kept (`file://…`, `az://…`); without one, the
    payload of lines that are too large for a document is lost.
    """

    endpoint: str
    database_name: str = "amplifier-db"
    auth_method: str = _DEFAULT_CREDENTIAL
    key: str | None = field(default=None, repr=False)
    archive: str | None = None

    @classmethod
    def from_env(cls) -> Self:
        """Read `AMPLIFIER_COSMOS_*`, or whatever else names a store; and `FERRY_ARCHIVE`.

        Raises `UserError` when nothing names a store, or a key is announced and missing.
        """
        known = Settings.read()
        store = known.store_url.get_secret_value() if known.store_url else None
        endpoint = known.cosmos_endpoint or store
        if not endpoint:
            raise UserError("Set AMPLIFIER_COSMOS_ENDPOINT to the account's URL, or FERRY_STORE.")
        config = cls(
            endpoint=endpoint,
            database_name=known.cosmos_database,
            auth_method=known.cosmos_auth_method or _DEFAULT_CREDENTIAL,
            key=known.cosmos_key.get_secret_value() if known.cosmos_key else None,
            archive=known.archive,
        )
        config.check()
        return config

    async def open_store(self) -> Store:
        """Open the store that this names; raises `UserError` when that cannot be done."""
        self.check()
        if not self.endpoint.startswith(("https://", "http://")):
            return await open_store(self.endpoint)
        account = {
            "cosmos_endpoint": self.endpoint,
            "cosmos_database": self.database_name,
            "cosmos_auth_method": self.auth_method,
            "cosmos_key": SecretStr(self.key) if self.key else None,
            "cosmos_connection": None,
        }
        return await open_store("cosmos://", Settings.read().model_copy(update=account))

    def check(self) -> None:
        """Raise `UserError` when the parts do not fit together."""
        if self.auth_method not in {_KEY, _DEFAULT_CREDENTIAL}:
            raise UserError(
                f"auth_method is {self.auth_method!r}; it is {_KEY!r} or {_DEFAULT_CREDENTIAL!r}"
                " (AMPLIFIER_COSMOS_AUTH_METHOD)."
            )
        if self.auth_method == _KEY and not self.key:
            raise UserError("auth_method is 'key' and there is none; set AMPLIFIER_COSMOS_KEY.")
