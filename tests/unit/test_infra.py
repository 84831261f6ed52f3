"""What infra/ deploys, found out without Azure: names, types, rights, settings, alerts.

The checks are in support/infra_policies.py; here they hold, and here each is shown to notice.
"""

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from sessionferry import consumer, telemetry, watching
from sessionferry.archive import Archive
from sessionferry.ingest import WRITE_MARGIN
from sessionferry.local.broker.definitions import parse_definitions
from sessionferry.local.functions_host.config import read_host_config
from sessionferry.local.stack import QUEUE_OPTIONS
from sessionferry.settings import DEFAULT_QUEUE, Settings
from sessionferry.store.cosmos.access import access
from support.azure_types import load_table, problems
from support.bicep import BicepError, Deployment, Resource, Sources, deploy
from support.infra_policies import PARAMETERS, POLICIES, QUEUES, ROOT, findings, shape
from support.scenarios import INFRA, MAIN, SCENARIOS, deployed

MODULES = INFRA / "modules"


@pytest.fixture(scope="module")
def everything() -> Mapping[str, Deployment]:
    """What every scenario deploys."""
    return {scenario: deployed(scenario) for scenario in SCENARIOS}


# ---------------------------------------------------------------- what must hold


def test_everything_declared_is_used_and_the_parameters_file_is_the_templates() -> None:
    assert list(shape(Sources())) == []


def test_every_choice_is_described_with_its_default() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `FERRY_")]
    described = {
        name: row[1].strip("`").replace("none", "")
        for row in rows
        for name in re.findall(r"`(FERRY_\w+)`", row[0])
    }
    given = json.loads(PARAMETERS.read_text(encoding="utf-8"))["parameters"].values()
    offered = dict(re.findall(r"\$\{(FERRY_\w+)=(.*?)\}", " ".join(one["value"] for one in given)))
    assert described == offered


def test_every_module_is_deployed_by_some_choice(everything: Mapping[str, Deployment]) -> None:
    used = {resource.file for one in everything.values() for resource in one.resources}
    assert {path.resolve() for path in used} == set(INFRA.rglob("*.bicep"))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_holds(everything: Mapping[str, Deployment], policy: str) -> None:
    check, sources = POLICIES[policy], Sources()
    found = {
        scenario: list(check(deployment, SCENARIOS[scenario], sources))
        for scenario, deployment in everything.items()
    }
    assert found == {scenario: [] for scenario in SCENARIOS}


def test_the_queue_of_the_local_stack_is_the_deployed_one_but_for_its_lock() -> None:
    document = json.loads(QUEUES.read_text(encoding="utf-8"))
    ((name, definition),) = parse_definitions(document).items()
    assert name == definition.name == DEFAULT_QUEUE
    assert document["queues"][0] == {"name": name, **QUEUE_OPTIONS, "lockDuration": "PT5M"}
    assert definition.lock_duration == consumer.LOCK_SECONDS * 1000


def test_an_invocation_ends_within_the_lock_of_its_messages() -> None:
    lock = timedelta(seconds=consumer.LOCK_SECONDS)
    host = read_host_config(ROOT / "host.json")
    wait = timedelta(seconds=host.service_bus.max_batch_wait_time)
    assert lock >= 2 * wait
    assert wait + timedelta(seconds=WRITE_MARGIN) < lock
    assert host.service_bus.auto_complete_messages
    assert host.service_bus.prefetch_count == 0
    # The length of the queue over this decides how many instances run.
    assert host.service_bus.max_message_batch_size <= 64


def test_the_urls_that_are_deployed_name_an_archive() -> None:
    for name in ("FERRY_ARCHIVE", "FERRY_INBOX"):
        url = str(deployed("by default").outputs[name])
        kind, container = re.fullmatch(
            r"<.*/storageAccounts/(\w+?)#properties\.primaryEndpoints\.blob>(\w+)", url
        ).groups()  # type: ignore[union-attr]
        Archive.open(f"https://{kind}.blob.core.windows.net/{container}")
        assert container == name.removeprefix("FERRY_").lower()


def test_the_deployed_store_is_the_database_and_needs_no_key() -> None:
    one = deployed("by default")
    found = access(str(one.outputs["FERRY_STORE"]), Settings.read())
    (database,) = one.of("Microsoft.DocumentDB/databaseAccounts/sqlDatabases")
    account = one.one("Microsoft.DocumentDB/databaseAccounts")
    assert found.endpoint == f"https://{account.name}.documents.azure.com/"
    assert (found.database, found.key, found.creates) == (database.name, None, False)


def test_azure_yaml_has_nothing_that_azd_does_not_know() -> None:
    project = yaml.safe_load((ROOT / "azure.yaml").read_text(encoding="utf-8"))
    assert set(project) == {"name", "metadata", "infra", "services"}
    assert set(project["services"]["ingest"]) == {"project", "language", "host"}


# ---------------------------------------------------------------- alerts and workbook


def queries(everything: Mapping[str, Deployment]) -> list[str]:
    """Return the queries of alerts and workbook."""
    one = everything["by default"]
    rules = one.of("Microsoft.Insights/scheduledQueryRules")
    found = [rule.properties["criteria"]["allOf"][0]["query"] for rule in rules]
    book = json.loads(one.one("Microsoft.Insights/workbooks").properties["serializedData"])
    return found + [
        item["content"]["query"] for item in book["items"] if "query" in item["content"]
    ]


def test_queries_read_lines_that_the_app_writes(everything: Mapping[str, Deployment]) -> None:
    sources = [
        path.read_text(encoding="utf-8") for path in (ROOT / "src" / "sessionferry").glob("*.py")
    ]
    asked = queries(everything)
    prefixes = {match for query in asked for match in re.findall(r'startswith "(.+?)"', query)}
    assert prefixes == {"message taken in: ", "queue watched: ", "store watched: "}
    for prefix in prefixes:
        assert any(f'"{prefix}' in source for source in sources), prefix
    fields = {match for query in asked for match in re.findall(r'extract\("(\w+)=', query)}
    for field in fields:
        assert any(f"{field}=%d" in source or f'"{field}"' in source for source in sources), field


def test_metrics_that_are_asked_for_are_measured(everything: Mapping[str, Deployment]) -> None:
    asked = set(re.findall(r'"(ferry_\w+)"', " ".join(queries(everything))))
    assert asked
    assert asked <= {metric.name for metric in telemetry.METRICS}


def test_the_workbook_shows_the_deployed_resources(everything: Mapping[str, Deployment]) -> None:
    one = everything["by default"]
    text = one.one("Microsoft.Insights/workbooks").properties["serializedData"]
    assert not re.search(r"INSIGHTS_ID|NAMESPACE_ID|COSMOS_ID", text)
    for type_ in ("Microsoft.ServiceBus/namespaces", "Microsoft.DocumentDB/databaseAccounts"):
        assert one.one(type_).id in text


def test_what_alerts_read_is_never_sampled_away(everything: Mapping[str, Deployment]) -> None:
    logging = json.loads((ROOT / "host.json").read_text())["logging"]
    excluded = logging["applicationInsights"]["samplingSettings"]["excludedTypes"].split(";")
    tables = {query.partition(" ")[0] for query in queries(everything)} - {"customMetrics"}
    assert {table.rstrip("s").title() for table in tables} <= set(excluded)
    assert logging["logLevel"]["default"] == "Information"


def test_an_alert_sees_at_least_one_look_in_its_window(
    everything: Mapping[str, Deployment],
) -> None:
    looks = {"queue watched": timedelta(minutes=5), "store watched": timedelta(hours=1)}
    for rule in everything["by default"].of("Microsoft.Insights/scheduledQueryRules"):
        (criterion,) = rule.properties["criteria"]["allOf"]
        for look, every in looks.items():
            if look in criterion["query"]:
                assert _span(rule.properties["windowSize"]) >= 2 * every


def test_the_timers_run_as_often_as_alerts_expect() -> None:
    source = (ROOT / "function_app.py").read_text(encoding="utf-8")
    schedules = dict(re.findall(r'function_name\("(\w+)"\)\n.+schedule="(.+?)"', source))
    assert schedules["watch_queue"] == "0 */5 * * * *"
    assert schedules["watch_store"] == "0 0 * * * *"


def _span(text: str) -> timedelta:
    number, unit = re.fullmatch(r"PT(\d+)([MH])", text).groups()  # type: ignore[union-attr]
    return timedelta(minutes=int(number)) if unit == "M" else timedelta(hours=int(number))


def test_silent_hosts_are_told_from_retired_ones() -> None:
    assert watching.SILENT_AFTER < watching.FORGOTTEN_AFTER


# ---------------------------------------------------------------- each mistake is noticed

MISTAKES = yaml.safe_load((ROOT / "tests" / "data" / "infra_mistakes.yaml").read_text())


@pytest.mark.parametrize(
    "mistake",
    MISTAKES,
    ids=[f"{one['file']}: {one['wrong'] or one['right']}"[:80] for one in MISTAKES],
)
def test_a_mistake_is_noticed(mistake: dict[str, str]) -> None:
    file = ROOT / mistake["file"]
    text = file.read_text(encoding="utf-8")
    assert mistake["right"] in text
    changed = Sources({file: text.replace(mistake["right"], mistake["wrong"])})
    assert any(policy == mistake["policy"] for policy, _ in findings(changed))


def test_an_inbox_that_forgets_before_the_queue_does_is_refused() -> None:
    with pytest.raises(BicepError, match="inboxDays breaks @minValue"):
        deploy(MAIN, {"environmentName": "prod", "location": "westeurope", "inboxDays": 14})


# ---------------------------------------------------------------- the evaluator itself


RESOURCE = "resource q 'A/b@1' = {\n name: 'q'\n}\n"


def evaluate(tmp_path: Path, text: str, **parameters: Any) -> Deployment:
    """Evaluate a template made up for a test."""
    (tmp_path / "t.bicep").write_text(text)
    return deploy(tmp_path / "t.bicep", parameters)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'a${1 + 1}-${true}'", "a2-true"),
        ("!empty('') || 2 > 1 && 'a' == 'b' ? 1 : 2", 2),
        ("union({ a: 1 }, { b: [2] }).b[0]", 2),
        ("[for (x, i) in ['a', 'b']: '${x}${i}']", ["a0", "b1"]),
        ("min(7, max(40, 4000 / 1000))", 7),
        ("concat(['a'], empty('x') ? [] : ['b'])", ["a", "b"]),
        ("replace(toLower('AB'), 'b', 'c')", "ac"),
    ],
)
def test_expressions_have_the_values_that_bicep_gives_them(
    tmp_path: Path, expression: str, value: object
) -> None:
    found = evaluate(tmp_path, f"var it = {expression}\noutput it object = it")
    assert found.outputs["it"] == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("var a = b", "b does not exist"),
        ("var a = nope(1)", "nope is not understood"),
        ("var a = { b: 1 }\nvar c = a.d", "there is no d"),
        ("var a = [1]\nvar c = a[1]", "there is no 1"),
        ("param a string", "needs the parameter a"),
        ("param a int = 'x'", "is no int"),
        ("@maxValue(3)\nparam a int = 4", "breaks @maxValue"),
        ("var a = 1\nvar a = 2", "declared twice"),
        ("var a = {\n", "cannot be parsed"),
        (f"{RESOURCE}resource r 'A/b@1' = {{\n name: q.properties.x\n}}", "must be known"),
        (f"{RESOURCE}var a = q.properties.x == 'y'", "must be known"),
        ("resource r 'A/b@1' = if (false) {\n name: 'r'\n}\nvar o = r.id", "not deployed"),
    ],
)
def test_what_bicep_would_refuse_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BicepError, match=re.escape(said)):
        evaluate(tmp_path, text)


def test_a_property_that_only_azure_may_set_is_reported() -> None:
    body = {"name": "q", "properties": {"messageCount": 3}}
    kind = "Microsoft.ServiceBus/namespaces/queues"
    resource = Resource("q", MAIN, kind, "2024-01-01", "/q", body)
    assert problems(Deployment([resource]), load_table()) == [
        "q: properties.messageCount is set by Azure"
    ]
