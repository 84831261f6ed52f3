"""Judge what checkov says of infra/: read its JSON from standard input, as `make checkov` does.

checkov skips a file that it cannot parse and still ends with 0, so unparsed files are counted here.
A finding is accepted only with a reason; a reason whose finding is gone is a finding too.
"""

import json
import sys
from typing import Any

_NOT_OF_APPSETTINGS = "checked on every Microsoft.Web/sites/config, which here only holds settings"
EXPLAINED = {
    ("CKV_AZURE_99", "account"): "checkov cannot follow the parameter isPublic",
    ("CKV_AZURE_101", "account"): "checkov cannot follow the parameter isPublic",
    ("CKV_AZURE_35", "account"): "checkov cannot follow the parameter isPublic",
    ("CKV_AZURE_206", "account"): "replicated across zones (ZRS); checkov asks for regions",
    ("CKV_AZURE_225", "plan"): "a regional choice that Flex Consumption does not have everywhere",
    ("CKV_AZURE_222", "app"): "deployments come from outside; nothing is served without sign-in",
    ("CKV_AZURE_17", "app"): "callers show Entra tokens, not certificates",
    ("CKV_AZURE_212", "app"): "Flex Consumption scales to zero; a queue waits",
    ("CKV_AZURE_213", "app"): "Flex Consumption has no health check of this kind",
    ("CKV_AZURE_13", "settings"): "sign-in is set by the resource signIn",
    ("CKV_AZURE_13", "signIn"): "checkov looks for the first version of this resource",
    **{
        (f"CKV_AZURE_{number}", name): _NOT_OF_APPSETTINGS
        for number in (63, 65, 66, 80, 88, 222)
        for name in ("settings", "signIn")
    },
}


def findings(report: dict[str, Any]) -> list[str]:
    """Return what is not explained, in sentences."""
    if report["summary"]["parsing_errors"]:
        return [f"checkov cannot parse {name}" for name in report["results"]["parsing_errors"]]
    failed = {
        (check["check_id"], check["resource"].rpartition(".")[2]): check["check_name"]
        for check in report["results"]["failed_checks"]
    }
    new = [f"{name}: {check} {failed[check, name]}" for check, name in failed.keys() - EXPLAINED]
    stale = [f"{check} no longer fails on {name}" for check, name in EXPLAINED.keys() - failed]
    return sorted(new) + sorted(stale)


def main() -> int:
    """Print the findings; 1 if there are any."""
    report = json.load(sys.stdin)
    found = findings(report)
    for sentence in found:
        print(sentence)
    summary = report["summary"]
    print(f"{summary['passed']} checks passed, {len(EXPLAINED)} explained, {len(found)} findings.")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
