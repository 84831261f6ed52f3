"""What the agent as a service has to be told of the variables of the shell that installs it.

A service sees none of them, and its file may be read by others: no secret goes into it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from sessionferry.errors import UserError
from sessionferry.settings import Settings, config_path

TOOL_FOLDERS = ("CLAUDE_CONFIG_DIR", "CODEX_HOME")
"""Where tools are told to keep their sessions."""
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY")
_PASSED_ON = (
    *("ServiceBusConnection__fullyQualifiedNamespace", "AZURE_CLIENT_ID", "AZURE_TENANT_ID"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_USE_AZURE_CLI", "NO_PROXY"),
    *_PROXIES,
    *TOOL_FOLDERS,
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SERVICE_NAME"),
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
)
_SECRET = ("ServiceBusConnection", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_ACCOUNT_KEY")
# A login before the host, a query (a SAS token is one), or a key that is called one.
_KEY = re.compile(
    r"://[^/?#]*@|://[^#]*\?|\bsig=|SharedAccess(?:Key|Signature)|AccountKey=|passw", re.IGNORECASE
)


def for_service(chosen: Settings, shell: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a service needs to do what a command in this shell would do.

    Folders and files are named from the root, for it runs elsewhere. Raises `UserError` for a
    secret, naming its variable.
    """
    own = [_variable(name) for name, value in chosen if not isinstance(value, SecretStr)]
    passed = {name: shell[name] for name in (*own, *_PASSED_ON) if shell.get(name)}
    secret = next((name for name in (*_SECRET, *passed) if _is_secret(name, shell)), None)
    if secret:
        raise UserError(
            f"{secret} holds a secret in this shell, which the service does not see, and a "
            "service's file is no place for a secret. Write what it says into [settings] of "
            f"{config_path()}, or use an Entra identity, and unset {secret}."
        )
    folders = {name: Path(passed[name]) for name in TOOL_FOLDERS if name in passed}
    folders |= {"FERRY_DATA": chosen.data, "FERRY_IDENTITY": chosen.identity}
    named = {"FERRY_CONFIG": chosen.config, "FERRY_SAS_FILE": chosen.sas_file}
    for name, path in named.items():
        # What the configuration file names from the root is left to it.
        if path is not None and (name in passed or not path.is_absolute()):
            folders[name] = path
    return passed | {name: str(path.absolute()) for name, path in folders.items()}


def _variable(name: str) -> str:
    return f"FERRY_{name.upper()}"


def _is_secret(name: str, shell: Mapping[str, str]) -> bool:
    value = shell.get(name, "")
    if name in _SECRET:
        return bool(value)
    return bool(_KEY.search(value)) or (name in _PROXIES and "@" in value)
