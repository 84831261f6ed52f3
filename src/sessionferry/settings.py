"""Configuration, read once at the edge: from the environment, then from the configuration file.

`FERRY_*` are ours; `ServiceBusConnection` and `ServiceBusConnection__fullyQualifiedNamespace` are
the names that Azure Functions uses for the same queue.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import orjson
from platformdirs import user_config_path, user_data_path
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sessionferry.config import FILE_NAME, Config, is_private, place_of
from sessionferry.errors import UserError, refused
from sessionferry.sharing import patiently

log = logging.getLogger(__name__)

DEFAULT_QUEUE = "sessions"
LOCAL_FILE = "local.json"
LOCK_FILE = "lock"
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_PROXY = re.compile(r"https?://(?:[^:@/]+(?::[^@/]*)?@)?[^:@/]+:\d{1,5}/?")


def identity_folder() -> Path:
    """Return where a user's configuration lies on this system; it does not roam to others."""
    return user_config_path("sessionferry", appauthor=False)


def data_folder() -> Path:
    """Return where a user's data lies on this system, apart from the identity, which outlives it.

    macOS and Windows have one place for both.
    """
    folder = user_data_path("sessionferry", appauthor=False)
    return folder / "data" if folder == identity_folder() else folder


class Settings(BaseSettings):
    """All settings. None of them is needed where a `ferry local` runs."""

    model_config = SettingsConfigDict(env_prefix="FERRY_", frozen=True, populate_by_name=True)

    data: Path = Field(
        default_factory=data_folder,
        description="Data folder of `ferry local`, and of the agent's progress.",
    )
    identity: Path = Field(
        default_factory=identity_folder,
        description="Folder that keeps this host's identity; outlives data and upgrades.",
    )
    config: Path | None = Field(
        None, description="Configuration file; default: agent.toml in the identity folder."
    )
    user_id: str | None = Field(None, description="Owner of what is sent from here.")
    host_id: str | None = Field(None, description="Name of this machine.")
    queue: str = Field(DEFAULT_QUEUE, description="Service Bus queue.")
    store: SecretStr | None = Field(
        None, description="Store URL: sqlite:///…, postgresql://…, cosmos://…."
    )
    metrics_port: int | None = Field(
        None, gt=0, lt=65536, description="Loopback port on which metrics are offered."
    )
    cosmos_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("FERRY_COSMOS_ENDPOINT", "AMPLIFIER_COSMOS_ENDPOINT"),
        description="Cosmos DB account, e.g. https://name.documents.azure.com:443/.",
    )
    cosmos_database: str = Field(
        "amplifier-db",
        validation_alias=AliasChoices("FERRY_COSMOS_DATABASE", "AMPLIFIER_COSMOS_DATABASE"),
        description="Cosmos DB database.",
    )
    cosmos_auth_method: Literal["default_credential", "key"] | None = Field(
        None,
        validation_alias=AliasChoices("FERRY_COSMOS_AUTH_METHOD", "AMPLIFIER_COSMOS_AUTH_METHOD"),
        description="`default_credential` or `key`.",
    )
    cosmos_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("FERRY_COSMOS_KEY", "AMPLIFIER_COSMOS_KEY"),
        description="Cosmos DB key.",
    )
    cosmos_connection: SecretStr | None = Field(
        None, description="Cosmos DB connection string: endpoint and key in one."
    )
    cosmos_create: bool | None = Field(
        None, description="Whether a missing database or container is created from here."
    )
    cosmos_throughput_bucket: int | None = Field(
        None, ge=1, le=5, description="Throughput bucket of the Cosmos DB account to draw on."
    )
    archive: str | None = Field(None, description="Archive URL: file://…, az://…, s3://…, gs://….")
    inbox: str | None = Field(None, description="Inbox URL; same forms as the archive's.")
    connection: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("ServiceBusConnection"),
        description="Service Bus connection string.",
    )
    namespace: str | None = Field(
        None,
        validation_alias=AliasChoices("ServiceBusConnection__fullyQualifiedNamespace"),
        description="Service Bus namespace, reached with an Entra identity.",
    )
    sas_file: Path | None = Field(
        None, description="File with a SAS token, or with a connection string that has one."
    )
    retention_prune_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which noisy events lose their documents; 0: never.",
    )
    retention_prune_events: str | None = Field(
        None, description="Which events are noisy, separated by commas."
    )
    retention_hide_days: int = Field(
        0, ge=0, le=36_500, description="Days after which a session is hidden; 0: never."
    )
    retention_delete_days: int = Field(
        0, ge=0, le=36_500, description="Days after which a hidden session is deleted; 0: never."
    )
    rebuild_sessions: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Most outdated sessions that are made anew in an hour; 0: none.",
    )
    websocket: bool = Field(False, description="Reach the queue over WebSocket, on port 443.")
    proxy: str | None = Field(None, description="HTTP proxy on the way: http://host:port.")
    spool_mb: int = Field(1000, ge=1, description="Most megabytes that wait to be sent.")
    spool_free_mb: int = Field(500, ge=0, description="Megabytes of the disk that stay free.")
    live_seconds: float = Field(30, ge=0, description="Seconds until what was written is sent.")
    live_kb: int = Field(200, ge=1, description="Compressed kilobytes that are sent earlier.")
    tail_seconds: float = Field(300, ge=1, description="Quiet seconds before a torn line is sent.")
    scan_seconds: float = Field(30, ge=1, description="Seconds between looks at all files.")
    heartbeat_seconds: float = Field(300, ge=1, description="Seconds between heartbeats.")
    idle_seconds: float = Field(60, ge=0, description="Idle seconds before the link is closed.")
    rate_kb: int = Field(0, ge=0, description="Most kilobytes sent per second; 0: no limit.")
    hours: str | None = Field(None, description="Hours of the day for sending: 22:00-06:00.")
    newest_first: bool = Field(False, description="Catch up with the newest days first.")

    @field_validator("hours")
    @classmethod
    def _hours_are_hours(cls, hours: str | None) -> str | None:
        if hours and not _HOURS.fullmatch(hours):
            raise ValueError("hours are written as 22:00-06:00")
        if hours and hours[:5] == hours[6:]:
            raise ValueError("hours end at another time than they begin; leave them out for always")
        return hours

    @field_validator("proxy")
    @classmethod
    def _proxy_is_an_address(cls, proxy: str | None) -> str | None:
        if proxy and not _PROXY.fullmatch(proxy):
            raise ValueError("a proxy is written as http://host:port or http://user:key@host:port")
        return proxy

    @property
    def store_url(self) -> SecretStr | None:
        """The store's URL: FERRY_STORE, else the Cosmos DB account that the settings name."""
        if self.store is None and (self.cosmos_endpoint or self.cosmos_connection):
            return SecretStr("cosmos://")
        return self.store

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ask the environment first, then the configuration file."""
        return init_settings, env_settings, _FromFile(settings_cls)

    @property
    def config_path(self) -> Path:
        """Where the configuration file lies, or would lie."""
        return self.config or self.identity / FILE_NAME

    def file(self) -> Config:
        """Read the configuration file; raises `UserError` for a wrong one, or a named one gone."""
        return _read_file(self.config, self.identity)

    @classmethod
    def read(cls, **given: object) -> "Settings":
        """Read the environment; explicit values win. Raises `UserError` in a sentence."""
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = str(first["loc"][0])
            is_unknown = first["type"] == "extra_forbidden"
            said = "there is no such setting" if is_unknown else first["msg"]
            place = _place_in_file(name, given)
            raise UserError(f"{place}The setting {name} is wrong: {said}") from None


class _FromFile(PydanticBaseSettingsSource):
    """The `[settings]` of the configuration file, for what the environment does not say."""

    def get_field_value(self, field: object, field_name: str) -> tuple[object, str, bool]:  # noqa: ARG002
        return None, field_name, False

    def __call__(self) -> dict[str, object]:
        named = self.current_state.get("config")
        identity = self.current_state.get("identity") or identity_folder()
        path = Path(named) if named else Path(identity) / FILE_NAME
        found = _read_file(Path(named) if named else None, Path(identity)).settings
        if holds_key(found) and not is_private(path):
            log.warning("%s holds a key, and others may read it", path)
        # Under the environment's names, so that what it says takes their place.
        return {_variable(name): value for name, value in found.items()}


def _place_in_file(name: str, given: Mapping[str, object]) -> str:
    """Say where the configuration file has a setting; nothing when it comes from elsewhere."""
    if name in given or name in os.environ or f"FERRY_{name.upper()}" in os.environ:
        return ""
    named, identity = given.get("config"), given.get("identity")
    path = Path(str(named or (identity and Path(str(identity)) / FILE_NAME) or config_path()))
    keys = [key for key in Config.read(path).settings if name in {key, _variable(key)}]
    return f"{place_of(path, keys[0])}: " if keys else ""


def holds_key(found: Mapping[str, object]) -> bool:
    """Whether a configuration's settings have a secret among them."""
    fields = (Settings.model_fields.get(name) for name in found)
    return any(field is not None and "SecretStr" in str(field.annotation) for field in fields)


def _variable(name: str) -> str:
    field = Settings.model_fields.get(name)
    alias = field.validation_alias if field else None
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else name


def config_path() -> Path:
    """Where the environment says that the configuration file lies, or has to be put."""
    identity = os.environ.get("FERRY_IDENTITY") or identity_folder()
    return Path(os.environ.get("FERRY_CONFIG") or Path(identity) / FILE_NAME)


def _read_file(named: Path | None, identity: Path) -> Config:
    if named is not None and not named.exists():
        raise UserError(f"There is no configuration {named}; FERRY_CONFIG names it.")
    return Config.read(named or identity / FILE_NAME)


class LocalStack(BaseModel):
    """What a running `ferry local` writes into its data folder (0600: it holds the queue's key)."""

    model_config = ConfigDict(frozen=True)

    port: int
    queue: str
    connection: str = Field(repr=False)
    store: str = Field(repr=False)
    archive: str
    inbox: str
    http: int | None = None
    """Port of the function app's HTTP functions, `livez` and `readyz`."""

    @classmethod
    def read(cls, data: Path) -> "LocalStack | None":
        """Read the data folder's file; None if no stack ever ran there."""
        try:
            return cls.model_validate_json(patiently((data / LOCAL_FILE).read_bytes))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(f"{data / LOCAL_FILE} cannot be read", error) from None
        except ValidationError as error:
            # Without the input, which holds the key.
            first = error.errors(include_url=False, include_input=False)[0]
            raise UserError(f"{data / LOCAL_FILE} is damaged: {first['type']}.") from None

    def write(self, data: Path) -> None:
        """Write atomically, readable by the owner alone."""
        path = data / LOCAL_FILE
        fresh = path.with_suffix(".new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(self.model_dump(), option=orjson.OPT_INDENT_2))
        patiently(lambda: fresh.replace(path))

    @staticmethod
    def is_running(data: Path) -> bool:
        """Whether a stack runs on this data folder: it holds a lock for as long as it lives."""
        from sessionferry.locking import is_held

        return is_held(data / LOCK_FILE)


class Endpoints(BaseModel):
    """Where this command reads and writes: Azure's services, or a local stack's."""

    model_config = ConfigDict(frozen=True)

    queue: str
    connection: SecretStr | None
    namespace: str | None
    store_url: SecretStr | None
    archive_url: str | None
    inbox_url: str | None
    local: LocalStack | None
    sas_file: Path | None = None
    websocket: bool = False
    proxy: str | None = Field(None, repr=False)

    @property
    def store(self) -> SecretStr:
        """The store's URL; a machine that only sends needs none."""
        return SecretStr(_needed("FERRY_STORE", _text(self.store_url)))

    @property
    def archive(self) -> str:
        """The archive's URL; a machine that only sends needs none."""
        return _needed("FERRY_ARCHIVE", self.archive_url)

    @property
    def inbox(self) -> str:
        """The inbox's URL; who only reads needs none."""
        return _needed("FERRY_INBOX", self.inbox_url)

    @property
    def destination(self) -> str:
        """Name the queue without secrets; what was shipped is remembered per destination."""
        if self.local is not None:
            return "local"
        host = self.namespace or _endpoint(self.connection)
        if self.sas_file is not None and host == "?":
            host = f"sas:{self.sas_file}"
        return f"{host}/{self.queue}"


def endpoints(settings: Settings) -> Endpoints:
    """Find the endpoints: from settings where they are set, else from the data folder.

    Raises `UserError` when neither says where to go.
    """
    named = (settings.connection, settings.namespace, settings.sas_file)
    is_remote = any(name is not None for name in named)
    # What goes to a remote queue must never look for its bytes in a local stack.
    local = None if is_remote else LocalStack.read(settings.data)
    store = settings.store or (SecretStr(local.store) if local else settings.store_url)
    if not is_remote and store is None:
        raise UserError(
            f"There is no `ferry local` in {settings.data} and no Azure settings. "
            "Start one with `ferry local`, or set ServiceBusConnection or FERRY_STORE."
        )
    return Endpoints(
        queue=settings.queue,
        connection=settings.connection or (SecretStr(local.connection) if local else None),
        namespace=settings.namespace,
        store_url=store,
        archive_url=settings.archive or (local.archive if local else None),
        inbox_url=settings.inbox or (local.inbox if local else None),
        local=local,
        sas_file=settings.sas_file if is_remote else None,
        websocket=settings.websocket and is_remote,
        proxy=settings.proxy if is_remote else None,
    )


def check_running(target: Endpoints, settings: Settings) -> None:
    """Refuse to wait for a local queue that is not there; raises `UserError`."""
    if target.local is not None and not target.local.is_running(settings.data):
        raise UserError(
            f"No `ferry local` is running with the data folder {settings.data}. Start it first."
        )


def _needed(name: str, value: str | None) -> str:
    if not value:
        raise UserError(f"The setting {name} is missing; docs/reference/settings.md explains it.")
    return value


def _text(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _endpoint(connection: SecretStr | None) -> str:
    text = _text(connection) or ""
    parts = dict(part.partition("=")[::2] for part in text.split(";"))
    return parts.get("Endpoint", "?").removeprefix("sb://").rstrip("/")
