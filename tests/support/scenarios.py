"""The choices an operator can make, as parameters of infra/main.bicep."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.bicep import Deployment, Sources, deploy

INFRA = Path(__file__).parents[2] / "infra"
MAIN = INFRA / "main.bicep"
_NEEDED = {"environmentName": "prod", "location": "westeurope"}

SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "by default": {},
    "groups": {
        "principalId": "11111111-1111-1111-1111-111111111111",
        "publishersGroupId": "22222222-2222-2222-2222-222222222222",
        "readersGroupId": "33333333-3333-3333-3333-333333333333",
        "operatorsGroupId": "44444444-4444-4444-4444-444444444444",
        "alertEmail": "operators@example.com",
    },
    "a pipeline deploys": {
        "principalId": "55555555-5555-5555-5555-555555555555",
        "principalType": "ServicePrincipal",
    },
    "autoscale": {"cosmosMode": "autoscale", "cosmosMaxThroughput": 10_000},
    "private, fleets outside": {"privateNetworking": True, "serviceBusSku": "Premium"},
    "private, nothing outside": {
        "privateNetworking": True,
        "serviceBusSku": "Premium",
        "publicQueue": False,
        "publicInbox": False,
    },
    "private, queue on Standard": {"privateNetworking": True, "publicQueue": False},
    "private, readers outside": {"privateNetworking": True, "publicStore": True},
    "sign-in": {"apiClientId": "66666666-6666-6666-6666-666666666666"},
    "warm": {"alwaysReadyInstances": 1, "instanceMemoryMB": 4096, "pythonVersion": "3.12"},
    "archive cools": {"archiveCoolAfterDays": 30},
}


def deployed(scenario: str, sources: Sources | None = None) -> Deployment:
    """Return what a scenario deploys."""
    return deploy(MAIN, {**_NEEDED, **SCENARIOS[scenario]}, sources)


def deployments(sources: Sources | None = None) -> Iterator[Deployment]:
    """Yield what every scenario deploys."""
    for scenario in SCENARIOS:
        yield deployed(scenario, sources)
