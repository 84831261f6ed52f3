"""What must hold for everything that infra/ deploys, in our own words.

Each policy takes one deployment and yields sentences about what breaks it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml

from support.azure_types import load_table, problems
from support.bicep import (
    SUBSCRIPTION,
    BicepError,
    Deployment,
    Resource,
    Sources,
    declared,
    parameter_defaults,
    unused,
)
from support.scenarios import INFRA, MAIN, SCENARIOS, deployed

ROOT = INFRA.parent
PARAMETERS = INFRA / "main.parameters.json"
QUEUES = ROOT / "src" / "sessionferry" / "queues.json"

BUILT_IN = {
    "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39": "Azure Service Bus Data Sender",
    "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0": "Azure Service Bus Data Receiver",
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": "Storage Blob Data Contributor",
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": "Storage Blob Data Reader",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
    "73c42c96-874c-492b-b04d-ab87d138a893": "Log Analytics Reader",
    "00000000-0000-0000-0000-000000000001": "Cosmos DB Built-in Data Reader",
    "00000000-0000-0000-0000-000000000002": "Cosmos DB Built-in Data Contributor",
}

# Who may do what where. The last part of a scope's id is enough to tell it.
FUNCTION = {
    ("Azure Service Bus Data Receiver", "queues/sessions"),
    ("Azure Service Bus Data Sender", "queues/sessions"),
    ("sessionferry queue length reader", "namespaces/sb"),
    ("Storage Blob Data Owner", "storageAccounts/sthost"),
    ("Storage Blob Data Contributor", "containers/archive"),
    ("Storage Blob Data Reader", "containers/inbox"),
    ("Monitoring Metrics Publisher", "components/appi"),
    ("Cosmos DB Built-in Data Contributor", "dbs/sessionferry"),
}
PUBLISHERS = {
    ("Azure Service Bus Data Sender", "queues/sessions"),
    ("sessionferry inbox publisher", "containers/inbox"),
}
READERS = {
    ("Storage Blob Data Reader", "containers/archive"),
    ("Cosmos DB Built-in Data Reader", "dbs/sessionferry"),
}
OPERATORS = {
    ("Azure Service Bus Data Receiver", "queues/sessions"),
    ("Azure Service Bus Data Sender", "queues/sessions"),
    ("Storage Blob Data Contributor", "containers/archive"),
    ("Storage Blob Data Contributor", "containers/inbox"),
    ("Log Analytics Reader", "workspaces/log"),
    ("Cosmos DB Built-in Data Contributor", "dbs/sessionferry"),
}

# Settings that nobody's code reads by name, and who does.
PLATFORM_SETTINGS = {
    "AzureWebJobsStorage__blobServiceUri": "Functions host",
    "AzureWebJobsStorage__credential": "Functions host",
    "AzureWebJobsStorage__clientId": "Functions host",
    "ServiceBusConnection__credential": "Functions host",
    "ServiceBusConnection__clientId": "Functions host",
    "APPLICATIONINSIGHTS_CONNECTION_STRING": "Functions host",
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "Functions host",
    "AZURE_CLIENT_ID": "azure-identity and obstore",
    "OTEL_TRACES_SAMPLER": "azure-monitor-opentelemetry",
    "OTEL_TRACES_SAMPLER_ARG": "azure-monitor-opentelemetry",
}
AZURE_SAMPLER = "trace_id_ratio"
"""OpenTelemetry's own name, `traceidratio`, is not known to azure-monitor-opentelemetry."""
LOCAL_SETTINGS = {"FERRY_METRICS_PORT"}
"""What is for a machine of one's own: in Azure, Application Insights takes the metrics."""
FORBIDDEN_ON_FLEX = re.compile(
    r"FUNCTIONS_WORKER_RUNTIME|FUNCTIONS_EXTENSION_VERSION|FUNCTIONS_WORKER_PROCESS_COUNT"
    r"|SCM_DO_BUILD_DURING_DEPLOYMENT|ENABLE_ORYX_BUILD|WEBSITE_RUN_FROM_PACKAGE"
    r"|WEBSITE_CONTENT.*|WEBSITE_VNET_ROUTE_ALL|linuxFxVersion"
)
NAMES = {
    "Microsoft.Storage/storageAccounts": r"[a-z0-9]{3,24}",
    "Microsoft.ServiceBus/namespaces": r"[a-z][a-z0-9-]{4,48}[a-z0-9]",
    "Microsoft.DocumentDB/databaseAccounts": r"[a-z0-9-]{3,44}",
    "Microsoft.Web/sites": r"[a-z0-9-]{2,60}",
}
UNTAGGED = re.compile(
    r"/(queues|sqlDatabases|containers|sqlRoleAssignments|blobServices|managementPolicies|config"
    r"|basicPublishingCredentialsPolicies|privateDnsZoneGroups|diagnosticSettings"
    r"|roleAssignments|roleDefinitions)$"
)


def types(deployment: Deployment) -> Iterator[str]:
    """Properties are spelt, filled in and valued as Azure's types want it."""
    yield from problems(deployment, load_table())


def no_keys(deployment: Deployment) -> Iterator[str]:
    """Whoever comes, comes with an Entra identity."""
    expected = {
        "Microsoft.ServiceBus/namespaces": {"disableLocalAuth": True},
        "Microsoft.DocumentDB/databaseAccounts": {
            "disableLocalAuth": True,
            "disableKeyBasedMetadataWriteAccess": True,
        },
        "Microsoft.Storage/storageAccounts": {
            "allowSharedKeyAccess": False,
            "allowBlobPublicAccess": False,
            "allowCrossTenantReplication": False,
        },
        "Microsoft.Storage/storageAccounts/blobServices/containers": {"publicAccess": "None"},
        "Microsoft.Insights/components": {"DisableLocalAuth": True},
        "Microsoft.Web/sites/basicPublishingCredentialsPolicies": {"allow": False},
    }
    yield from _expect(deployment, expected)
    (workspace,) = deployment.of("Microsoft.OperationalInsights/workspaces")
    if workspace.properties["features"].get("disableLocalAuth") is not True:
        yield "the workspace takes keys"
    names = {item.name for item in deployment.of(_PUBLISHING)}
    if names != {"ftp", "scm"}:
        yield "the app can be published to with a password"
    text = json.dumps([resource.body for resource in deployment.resources])
    for secret in ("AccountKey=", "SharedAccessKey", "sig=", "primaryMasterKey", "primaryKey"):
        if secret in text:
            yield f"a resource holds {secret}"


_PUBLISHING = "Microsoft.Web/sites/basicPublishingCredentialsPolicies"


def encrypted(deployment: Deployment) -> Iterator[str]:
    """Nothing speaks less than TLS 1.2."""
    yield from _expect(
        deployment,
        {
            "Microsoft.ServiceBus/namespaces": {"minimumTlsVersion": "1.2"},
            "Microsoft.DocumentDB/databaseAccounts": {"minimalTlsVersion": "Tls12"},
            "Microsoft.Storage/storageAccounts": {
                "minimumTlsVersion": "TLS1_2",
                "supportsHttpsTrafficOnly": True,
            },
            "Microsoft.Web/sites": {"httpsOnly": True},
        },
    )
    config = deployment.one("Microsoft.Web/sites").properties["siteConfig"]
    if (config["minTlsVersion"], config["scmMinTlsVersion"]) != ("1.2", "1.2"):
        yield "the app takes old TLS"
    if config["ftpsState"] != "Disabled":
        yield "the app takes FTP"


def _expect(deployment: Deployment, expected: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for type_, properties in expected.items():
        found = deployment.of(type_)
        if not found:
            yield f"there is no {type_}"
        for resource in found:
            for name, value in properties.items():
                if resource.properties.get(name) != value:
                    yield f"{resource.name}: {name} is not {value!r}"


def networks(deployment: Deployment, chosen: Mapping[str, Any]) -> Iterator[str]:
    """With private networking only what was asked for can be reached from outside."""
    private = bool(chosen.get("privateNetworking"))
    queue_private = private and chosen.get("serviceBusSku") == "Premium"
    opened = {
        "sb": not queue_private or chosen.get("publicQueue", True),
        "cosmos": not private or chosen.get("publicStore", False),
        "sthost": not private,
        "stinbox": not private or chosen.get("publicInbox", True),
        "starch": not private or chosen.get("publicStore", False),
    }
    for resource in deployment.resources:
        access = resource.properties.get("publicNetworkAccess")
        start = next((start for start in opened if resource.name.startswith(start)), None)
        if access is None or start is None:
            continue
        wanted = "Enabled" if opened[start] else "Disabled"
        if access != wanted:
            yield f"{resource.name} has public access {access}"
        rules = resource.properties.get("networkAcls", {})
        if rules and (rules["defaultAction"] == "Allow") != opened[start]:
            yield f"{resource.name} lets {rules['defaultAction']} by default"
    yield from _endpoints(deployment, private=private, queue_private=queue_private)


def _endpoints(deployment: Deployment, *, private: bool, queue_private: bool) -> Iterator[str]:
    groups = sorted(
        connection["properties"]["groupIds"][0]
        for endpoint in deployment.of("Microsoft.Network/privateEndpoints")
        for connection in endpoint.properties["privateLinkServiceConnections"]
    )
    expected = ["Sql", "blob", "blob", "blob"] if private else []
    if queue_private:
        expected = sorted([*expected, "namespace"])
    if groups != expected:
        yield f"the private endpoints are {groups}"
    for group in deployment.of("Microsoft.Network/privateEndpoints/privateDnsZoneGroups"):
        (config,) = group.properties["privateDnsZoneConfigs"]
        zone = config["properties"]["privateDnsZoneId"].rpartition("/")[2]
        word = {"pe-cosmos": "documents", "pe-blob": "blob", "pe-servicebus": "servicebus"}
        start = next(key for key in word if f"/{key}-" in group.id)
        if word[start] not in zone:
            yield f"{group.id} resolves in {zone}"
    is_joined = (
        deployment.one("Microsoft.Web/sites").properties["virtualNetworkSubnetId"] is not None
    )
    if is_joined != private:
        yield "the app is not in the network that the parameters ask for"
    for vnet in deployment.of("Microsoft.Network/virtualNetworks"):
        app = vnet.properties["subnets"][0]["properties"]
        if app["delegations"][0]["properties"]["serviceName"] != "Microsoft.App/environments":
            yield "the app's subnet is not delegated to Flex Consumption"


def roles(deployment: Deployment, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Each of the four has exactly what it needs, where it needs it."""
    granted: dict[str, set[tuple[str, str]]] = {}
    token = deployment.one("Microsoft.Web/sites").name.removeprefix("func-")
    custom = {
        resource.id: re.sub(r" sb-\w+$", "", resource.properties["roleName"])
        for resource in deployment.of("Microsoft.Authorization/roleDefinitions")
    }
    for principal, role, scope in _grants(deployment):
        name = custom.get(role) or BUILT_IN.get(role.rpartition("/")[2], role)
        short = "/".join(scope.replace(token, "").rstrip("-").rsplit("/", 2)[1:])
        granted.setdefault(_who(principal, chosen), set()).add((name, short))
    expected = {"function": FUNCTION}
    if "publishersGroupId" in chosen:
        expected |= {"publishers": PUBLISHERS, "readers": READERS, "operators": OPERATORS}
    if chosen.get("principalId"):
        expected["deployer"] = OPERATORS
    for who in expected.keys() | granted.keys():
        for name, place in granted.get(who, set()) - expected.get(who, set()):
            yield f"{who} must not be {name} at {place}"
        for name, place in expected.get(who, set()) - granted.get(who, set()):
            yield f"{who} must be {name} at {place}"
    yield from _custom_roles(deployment)
    yield from _principal_types(deployment, chosen)


def _grants(deployment: Deployment) -> Iterator[tuple[str, str, str]]:
    for resource in deployment.of("Microsoft.Authorization/roleAssignments"):
        scope = resource.id.partition("/providers/Microsoft.Authorization")[0]
        yield resource.properties["principalId"], resource.properties["roleDefinitionId"], scope
    for resource in deployment.of("Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments"):
        own = resource.properties
        yield own["principalId"], own["roleDefinitionId"], own["scope"]


def _who(principal: str, chosen: Mapping[str, Any]) -> str:
    names = {"publishersGroupId", "readersGroupId", "operatorsGroupId"}
    known = {chosen[name]: name.removesuffix("GroupId") for name in names if name in chosen}
    known[chosen.get("principalId", "nobody")] = "deployer"
    return known.get(principal, "function" if "principalId>" in principal else principal)


def _custom_roles(deployment: Deployment) -> Iterator[str]:
    allowed = {
        "inbox publisher": (
            set(),
            {"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action"},
        ),
        "queue length reader": ({"Microsoft.ServiceBus/namespaces/*/read"}, set()),
    }
    for resource in deployment.of("Microsoft.Authorization/roleDefinitions"):
        name = next(key for key in allowed if key in resource.properties["roleName"])
        (permission,) = resource.properties["permissions"]
        if (set(permission["actions"]), set(permission["dataActions"])) != allowed[name]:
            yield f"the role {name} allows something else"
        if resource.properties["assignableScopes"] != [f"{SUBSCRIPTION}/resourceGroups/rg-prod"]:
            yield f"the role {name} can be used outside the resource group"


def _principal_types(deployment: Deployment, chosen: Mapping[str, Any]) -> Iterator[str]:
    for resource in deployment.of("Microsoft.Authorization/roleAssignments"):
        who = _who(resource.properties["principalId"], chosen)
        expected = {"function": "ServicePrincipal", "deployer": chosen.get("principalType", "User")}
        if resource.properties.get("principalType") != expected.get(who, "Group"):
            yield f"{who} is a {resource.properties.get('principalType')}"


def names_and_tags(deployment: Deployment) -> Iterator[str]:
    """What azd finds by tag has it, and names keep to the services' rules."""
    for resource in deployment.resources:
        pattern = NAMES.get(resource.type)
        if pattern and not re.fullmatch(pattern, resource.name):
            yield f"{resource.name} is no name for {resource.type}"
        tags = resource.body.get("tags", {})
        if not UNTAGGED.search(resource.type) and tags.get("azd-env-name") != "prod":
            yield f"{resource.name} has no tag azd-env-name"
    ids = [resource.id for resource in deployment.resources]
    for twice in sorted({one for one in ids if ids.count(one) > 1}):
        yield f"{twice} is deployed twice"


def references(deployment: Deployment) -> Iterator[str]:
    """Whatever is referred to is deployed: scopes of rights, targets, parents."""
    ids = {resource.id for resource in deployment.resources}
    group = deployment.one("Microsoft.Resources/resourceGroups").id
    for resource in deployment.resources:
        named = set(
            re.findall(rf"{re.escape(group)}/providers/[\w./-]+", json.dumps(resource.body))
        )
        parent, _, _ = resource.id.rpartition("/providers/")
        if parent not in {group, SUBSCRIPTION, ""}:
            named.add(parent)
        for name in sorted(named):
            whole = re.sub(r"/(subnets|dbs|sqlRoleDefinitions)/[^/]+$", "", name)
            if whole not in ids:
                yield f"{resource.symbol} refers to {name}, which is not deployed"


def azd(deployment: Deployment, sources: Sources) -> Iterator[str]:
    """The contract with azd: services by tag, parameters by variable, outputs by name."""
    project = yaml.safe_load(sources.text(ROOT / "azure.yaml"))
    if project["infra"] != {"provider": "bicep", "path": "infra", "module": "main"}:
        yield "azure.yaml does not lead to infra/main.bicep"
    ((service, described),) = project["services"].items()
    if (described["host"], described["language"]) != ("function", "python"):
        yield "azure.yaml describes no Python Function App"
    app = deployment.one("Microsoft.Web/sites")
    if app.body["tags"].get("azd-service-name") != service:
        yield f"nothing is tagged azd-service-name {service}"
    if deployment.outputs.get(f"SERVICE_{service.upper()}_NAME") != app.name:
        yield "no output names the app"
    for name in ("AZURE_LOCATION", "AZURE_TENANT_ID", "AZURE_RESOURCE_GROUP"):
        if not deployment.outputs.get(name):
            yield f"there is no output {name}"
    for name, value in deployment.outputs.items():
        if re.search(r"key|secret|connectionstring", str(value), re.IGNORECASE):
            yield f"the output {name} may hold a secret"
    settings = _app_settings(deployment)
    for name in ("FERRY_QUEUE", "FERRY_STORE", "FERRY_ARCHIVE", "FERRY_INBOX", _NAMESPACE):
        if str(deployment.outputs.get(name)) != str(settings.get(name)):
            yield f"the output {name} is not what the app uses"


_NAMESPACE = "ServiceBusConnection__fullyQualifiedNamespace"


def _app_settings(deployment: Deployment) -> dict[str, Any]:
    for resource in deployment.of("Microsoft.Web/sites/config"):
        if resource.name == "appsettings":
            return resource.properties
    return {}


def settings(deployment: Deployment) -> Iterator[str]:
    """The app has every setting that its code reads, and no other."""
    given = _app_settings(deployment)
    read = settings_read_by_the_app()
    for name in sorted(read - set(given) - LOCAL_SETTINGS):
        yield f"the app reads {name}, which is not set"
    for name in sorted(set(given) - read - set(PLATFORM_SETTINGS)):
        yield f"nobody reads {name}"
    for name in sorted(set(PLATFORM_SETTINGS) - set(given)):
        yield f"the {PLATFORM_SETTINGS[name]} needs {name}"
    if given.get("OTEL_TRACES_SAMPLER") != AZURE_SAMPLER:
        yield "Application Insights would keep another share of the traces than was asked for"
    for name in given:
        if FORBIDDEN_ON_FLEX.fullmatch(name):
            yield f"Flex Consumption refuses {name}"
    for name, value in given.items():
        if name.endswith("__credential") and value != "managedidentity":
            yield f"{name} is no managed identity"


def settings_read_by_the_app() -> set[str]:
    """Return the settings that function_app.py and what it calls read."""
    from sessionferry.settings import Settings

    read = set(re.findall(r"%(\w+)%", (ROOT / "function_app.py").read_text(encoding="utf-8")))
    for module in ("consumer.py", "expiry.py", "watching.py"):
        source = (ROOT / "src" / "sessionferry" / module).read_text(encoding="utf-8")
        # `store_url` is FERRY_STORE, unless only Cosmos DB's own settings are there.
        found = {name.removesuffix("_url") for name in re.findall(r"settings\.(\w+)", source)}
        names = found & set(Settings.model_fields)
        read |= {_setting(name) for name in names}
    # The binding's connection: the host adds the suffix for an identity.
    return read - {"ServiceBusConnection"} | {_NAMESPACE}


def _setting(name: str) -> str:
    from sessionferry.settings import Settings

    alias = Settings.model_fields[name].validation_alias
    return str(alias.choices[0]) if alias else f"FERRY_{name.upper()}"  # type: ignore[union-attr]


def queue(deployment: Deployment, sources: Sources) -> Iterator[str]:
    """The queue is the one that the code and host.json expect."""
    (definition,) = json.loads(sources.text(QUEUES))["queues"]
    (found,) = deployment.of("Microsoft.ServiceBus/namespaces/queues")
    for option, value in definition.items():
        actual = found.name if option == "name" else found.properties.get(option)
        if actual != value:
            yield f"the queue's {option} is {actual!r}, not {value!r}"
    if found.properties.get("requiresSession") is not False:
        yield "the function does not read a queue with sessions"


def store(deployment: Deployment, sources: Sources, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Database and containers are the code's, in the mode that was asked for."""
    definitions = json.loads(sources.text(INFRA / "cosmos-containers.json"))
    found = deployment.of("Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers")
    if [item.properties["resource"] for item in found] != definitions:
        yield "the containers are not the code's"
    (account,) = deployment.of("Microsoft.DocumentDB/databaseAccounts")
    (database,) = deployment.of("Microsoft.DocumentDB/databaseAccounts/sqlDatabases")
    is_serverless = chosen.get("cosmosMode") != "autoscale"
    if ({"name": "EnableServerless"} in account.properties["capabilities"]) != is_serverless:
        yield "the account is not of the mode that was asked for"
    throughput = database.properties["options"].get("autoscaleSettings", {}).get("maxThroughput")
    if throughput != (None if is_serverless else chosen["cosmosMaxThroughput"]):
        yield f"the database has {throughput} RU/s"
    if throughput is not None and throughput % 1000:
        yield "autoscale goes in steps of 1000 RU/s"
    for item in found:
        if "options" in item.properties:
            yield f"{item.name} has throughput of its own"
    if account.properties["backupPolicy"]["type"] != "Continuous":
        yield "the database cannot be restored to a point in time"


def retention(deployment: Deployment) -> Iterator[str]:
    """What the inbox holds outlives the message that needs it; the archive keeps everything."""
    (found,) = deployment.of("Microsoft.ServiceBus/namespaces/queues")
    ttl = re.fullmatch(r"P(\d+)D", found.properties["defaultMessageTimeToLive"])
    rules = {
        _account(policy): rule["definition"]["actions"]["baseBlob"]
        for policy in deployment.of("Microsoft.Storage/storageAccounts/managementPolicies")
        for rule in policy.properties["policy"]["rules"]
    }
    days = rules.get("stinbox", {}).get("delete", {}).get("daysAfterCreationGreaterThan", 0)
    if ttl is None or days < int(ttl[1]) + 14:
        yield f"inbox objects live {days} days, which messages and dead letters outlive"
    if "delete" in rules.get("starch", {}):
        yield "the archive expires"
    for blobs in deployment.of("Microsoft.Storage/storageAccounts/blobServices"):
        kept = blobs.properties["deleteRetentionPolicy"]
        if _account(blobs) == "starch" and not (kept["enabled"] and kept["days"] >= 7):
            yield "a deleted archive cannot be brought back"


def _account(resource: Resource) -> str:
    match = re.search(r"storageAccounts/(sthost|stinbox|starch)", resource.id)
    return match[1] if match else ""


def scale(deployment: Deployment, chosen: Mapping[str, Any]) -> Iterator[str]:
    """No more instances than the store absorbs, within what Flex Consumption takes."""
    plan = deployment.one("Microsoft.Web/serverfarms")
    if plan.body["sku"] != {"name": "FC1", "tier": "FlexConsumption"}:
        yield "the plan is not Flex Consumption"
    if plan.properties["reserved"] is not True:
        yield "the plan does not run Linux"
    config = deployment.one("Microsoft.Web/sites").properties["functionAppConfig"]
    most = config["scaleAndConcurrency"]["maximumInstanceCount"]
    throughput = chosen.get("cosmosMaxThroughput", 0) if chosen.get("cosmosMode") else 0
    if not 40 <= most <= max(40, min(100, throughput // 100)):
        yield f"{most} instances are more than the store absorbs"
    if config["runtime"]["name"] != "python":
        yield "the app does not run Python"
    if config["deployment"]["storage"]["authentication"]["type"] != "UserAssignedIdentity":
        yield "the package is fetched with a key"


def alerts(deployment: Deployment) -> Iterator[str]:
    """Each alert acts, and its runbook exists."""
    (group,) = deployment.of("Microsoft.Insights/actionGroups")
    metric = deployment.of("Microsoft.Insights/metricAlerts")
    logs = deployment.of("Microsoft.Insights/scheduledQueryRules")
    linked = set()
    for alert in (*metric, *logs):
        page = re.search(r"docs/runbooks/([a-z-]+)\.md$", alert.properties["description"])
        if page is None or not (ROOT / "docs" / "runbooks" / f"{page[1]}.md").is_file():
            yield f"{alert.name} links to no runbook"
        else:
            linked.add(page[1])
        if group.id not in json.dumps(alert.properties["actions"]):
            yield f"{alert.name} tells nobody"
        if not alert.properties["enabled"]:
            yield f"{alert.name} is off"
    pages = {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    for name in sorted(pages - linked):
        yield f"no alert leads to the runbook {name}"


Policy = Callable[[Deployment, Mapping[str, Any], Sources], Iterable[str]]
POLICIES: Mapping[str, Policy] = {
    "types": lambda deployment, _chosen, _sources: types(deployment),
    "no keys": lambda deployment, _chosen, _sources: no_keys(deployment),
    "encrypted": lambda deployment, _chosen, _sources: encrypted(deployment),
    "networks": lambda deployment, chosen, _sources: networks(deployment, chosen),
    "roles": lambda deployment, chosen, _sources: roles(deployment, chosen),
    "names and tags": lambda deployment, _chosen, _sources: names_and_tags(deployment),
    "references": lambda deployment, _chosen, _sources: references(deployment),
    "azd": lambda deployment, _chosen, sources: azd(deployment, sources),
    "settings": lambda deployment, _chosen, _sources: settings(deployment),
    "queue": lambda deployment, _chosen, sources: queue(deployment, sources),
    "store": lambda deployment, chosen, sources: store(deployment, sources, chosen),
    "retention": lambda deployment, _chosen, _sources: retention(deployment),
    "scale": lambda deployment, chosen, _sources: scale(deployment, chosen),
    "alerts": lambda deployment, _chosen, _sources: alerts(deployment),
}


def shape(sources: Sources) -> Iterator[str]:
    """Everything declared is used, and azd's parameters file is the template's."""
    for path in sorted(INFRA.rglob("*.bicep")):
        for name in sorted(unused(path, sources)):
            yield f"{path.name}: nothing uses {name}"
    given = json.loads(sources.text(PARAMETERS))["parameters"]
    names = declared(MAIN, sources)["parameter"]
    for name in sorted(names ^ set(given)):
        yield f"the parameter {name} is not in both main.bicep and main.parameters.json"
    defaults = parameter_defaults(MAIN, sources)
    for name, default in defaults.items():
        text = str(default).lower() if isinstance(default, bool) else str(default)
        variable, has_default, said = given.get(name, {"value": ""})["value"][2:-1].partition("=")
        if name != "principalId" and (not has_default or said != text):
            yield f"${{{variable}}} is {said!r} by default, and the template's {name} is {text!r}"


def findings(sources: Sources) -> Iterator[tuple[str, str]]:
    """Yield everything that breaks a policy in any scenario: the policy's name and a sentence."""
    try:
        yield from (("shape", sentence) for sentence in shape(sources))
    except BicepError as error:
        yield "shape", str(error)
        return
    for scenario, chosen in SCENARIOS.items():
        try:
            deployment = deployed(scenario, sources)
        except BicepError as error:
            yield "shape", str(error)
            return
        for name, policy in POLICIES.items():
            for sentence in policy(deployment, chosen, sources):
                yield name, f"{scenario}: {sentence}"
