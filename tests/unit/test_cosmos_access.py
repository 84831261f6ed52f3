"""Which account, database and identity a store's URL and the settings name."""

import pytest

from sessionferry.cli.local import migrate
from sessionferry.errors import UserError
from sessionferry.settings import Settings
from sessionferry.store.cosmos.access import Access, access

CONNECTION = "AccountEndpoint=https://acc.documents.azure.com:443/;AccountKey=a2V5PT0=;"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for product in ("FERRY", "AMPLIFIER"):
        for name in ("ENDPOINT", "DATABASE", "AUTH_METHOD", "KEY", "CONNECTION"):
            monkeypatch.delenv(f"{product}_COSMOS_{name}", raising=False)


def named(url: str, **settings: object) -> tuple[str, str, str | None]:
    found = access(url, Settings.read(**{f"cosmos_{name}": it for name, it in settings.items()}))
    return found.endpoint, found.database, found.key and found.key.get_secret_value()


def test_a_url_names_account_and_database_and_the_identity_is_entras() -> None:
    url = "cosmos://acc.documents.azure.com/ferry"
    assert named(url) == ("https://acc.documents.azure.com/", "ferry", None)


def test_the_settings_name_what_the_url_does_not() -> None:
    endpoint = "https://acc.documents.azure.com:443/"
    assert named("cosmos://", endpoint=endpoint) == (endpoint, "amplifier-db", None)
    assert named("cosmos://", endpoint=endpoint, database="d", key="k") == (endpoint, "d", "k")
    assert named("cosmos://other.example/x", endpoint=endpoint) == (
        *("https://other.example/", "x", None),
    )


def test_a_connection_string_names_account_and_key() -> None:
    expected = ("https://acc.documents.azure.com:443/", "amplifier-db", "a2V5PT0=")
    assert named("cosmos://", connection=CONNECTION) == expected


@pytest.mark.parametrize("method", ["default_credential", None])
def test_the_method_decides_whether_the_key_is_used(method: str | None) -> None:
    found = named("cosmos://acc.example/d", key="k", auth_method=method)
    assert found[2] == (None if method else "k")


def test_the_documented_variables_are_understood_and_ours_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMPLIFIER_COSMOS_ENDPOINT", "https://theirs.example/")
    monkeypatch.setenv("AMPLIFIER_COSMOS_DATABASE", "their-db")
    monkeypatch.setenv("AMPLIFIER_COSMOS_AUTH_METHOD", "key")
    monkeypatch.setenv("AMPLIFIER_COSMOS_KEY", "their-key")
    assert named("cosmos://") == ("https://theirs.example/", "their-db", "their-key")
    monkeypatch.setenv("FERRY_COSMOS_ENDPOINT", "https://ours.example/")
    assert named("cosmos://")[0] == "https://ours.example/"


@pytest.mark.parametrize(
    "url", ["cosmos+http://127.0.0.1:8081/d", "cosmos+http://localhost:1/d", "cosmos://[::1]:1/d"]
)
def test_an_emulator_on_this_machine_needs_no_key_and_creates_what_is_missing(url: str) -> None:
    found = access(url, Settings.read())
    assert found.is_local
    assert found.creates
    assert found.key is not None


def test_an_account_in_azure_creates_nothing_unless_told() -> None:
    url = "cosmos://acc.documents.azure.com/d"
    assert not access(url, Settings.read()).creates
    assert access(url, Settings.read(cosmos_create=True)).creates


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("cosmos://", {}, "FERRY_COSMOS_ENDPOINT"),
        ("cosmos://", {"endpoint": "acc.documents.azure.com"}, "no endpoint of Cosmos DB"),
        ("cosmos://", {"endpoint": "https://acc:notaport/"}, "no endpoint of Cosmos DB"),
        ("cosmos://", {"endpoint": "http://acc.documents.azure.com/"}, "unencrypted"),
        ("cosmos+http://10.0.0.4:8081/d", {}, "unencrypted"),
        ("cosmos://acc.example/d", {"auth_method": "key"}, "FERRY_COSMOS_KEY is not set"),
        ("cosmos://", {"connection": "AccountEndpoint=https://a/"}, "FERRY_COSMOS_CONNECTION has"),
        ("cosmos://:c2VjcmV0@acc.example/d", {}, "does not belong into FERRY_STORE"),
    ],
)
def test_what_cannot_be_used_is_said_without_secrets(
    url: str, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        named(url, **settings)
    assert "c2VjcmV0" not in str(raised.value)


def test_an_unknown_method_is_the_users_error() -> None:
    with pytest.raises(UserError, match="cosmos_auth_method"):
        Settings.read(cosmos_auth_method="password")


def test_a_key_is_never_shown() -> None:
    found = access("cosmos://acc.example/d", Settings.read(cosmos_key="hidden"))
    assert "hidden" not in repr(found)
    assert found.shown == "acc.example/d"
    assert isinstance(hash(found), int)
    assert found == Access(endpoint="https://acc.example/", database="d", key=found.key)


@pytest.mark.parametrize("url", ["cosmos://acc.example/d", "cosmos+http://127.0.0.1:8081/d"])
def test_an_access_is_written_out_as_the_url_that_names_it(url: str) -> None:
    endpoint = access(url, Settings.read())
    assert endpoint.url == url
    settings = Settings.read(cosmos_endpoint=endpoint.endpoint, cosmos_database="d")
    assert access("cosmos://", settings).url == url


def test_a_store_in_cosmos_db_has_nothing_to_migrate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_STORE", "cosmos://acc.example/d")
    with pytest.raises(UserError, match="no schema to migrate"):
        migrate(None)
