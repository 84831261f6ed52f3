"""The cost page is what the model computes, and the model behaves as costs do."""

import importlib.util
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest

from sessionferry.settings import Settings

ROOT = Path(__file__).parents[2]


def load_model() -> ModuleType:
    """Import the script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("cost_model", ROOT / "tools" / "cost_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_model"] = module
    spec.loader.exec_module(module)
    return module


model = load_model()
HABITS, PRICES = model.Habits(), model.Prices()


def test_the_page_is_what_the_model_computes() -> None:
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.written(page) == page


def test_the_settings_that_the_page_names_exist() -> None:
    parameters = (ROOT / "infra" / "main.parameters.json").read_text(encoding="utf-8")
    page = model.PAGE.read_text(encoding="utf-8")
    for name in (
        "COSMOS_BACKUP",
        "COSMOS_MODE",
        "INSTANCE_MEMORY",
        "ARCHIVE_COOL_DAYS",
        "TRACE_RATIO",
    ):
        assert f"FERRY_{name}" in page
        assert f"${{FERRY_{name}=" in parameters


def test_a_machine_is_set_up_as_it_is_by_default() -> None:
    fields = Settings.model_fields
    assert fields["live_seconds"].default == HABITS.live_seconds
    assert fields["live_kb"].default * 1000 == HABITS.batch_bytes
    assert fields["heartbeat_seconds"].default == HABITS.heartbeat_seconds


def test_a_months_load_is_counted_as_stated() -> None:
    habits = replace(
        HABITS, days=1, active_hours=1, streams=1, sessions=0, running_hours=0, live_seconds=60
    )
    month = model.load(2, habits)
    assert month.messages == 2 * 60
    assert month.documents == 2 * habits.lines
    assert month.archived_bytes == 2 * habits.lines * habits.line_bytes / habits.compression


def test_no_batch_is_without_lines_and_none_is_larger_than_allowed() -> None:
    eager = model.load(1, replace(HABITS, days=1, live_seconds=0.001, sessions=0, running_hours=0))
    assert eager.messages == HABITS.lines
    lazy = model.load(1, replace(HABITS, days=1, live_seconds=1e9, sessions=0, running_hours=0))
    assert lazy.messages == pytest.approx(lazy.archived_bytes / HABITS.batch_bytes)


def test_autoscale_bills_what_is_used_and_at_least_a_tenth() -> None:
    assert model.autoscale(0, PRICES) == (1000, 100 / 100 * 0.012 * model.HOURS)
    mean = 10_000.0
    most, price = model.autoscale(mean * model.HOURS * 3600, PRICES)
    assert most == mean * model.PEAK
    assert price == pytest.approx(mean * model.BILLED / 100 * 0.012 * model.HOURS)


def test_free_amounts_are_free() -> None:
    bill = model.bill(0, HABITS, PRICES)
    assert bill.total == pytest.approx(PRICES.bus_base_month + bill.requests)
    assert bill.requests == 0


@pytest.mark.parametrize("field", [field.name for field in fields(model.Bill)])
def test_more_machines_never_cost_less(field: str) -> None:
    bills = [getattr(model.bill(count, HABITS, PRICES), field) for count in (0, 1, 10, 1e3, 1e5)]
    assert bills == sorted(bills)


def test_the_archive_is_not_cooled_by_default_because_its_objects_are_small() -> None:
    month = model.load(1, HABITS)
    mean = month.archived_bytes / month.archived
    assert mean < model.cooling_pays_from(HABITS, PRICES)
    hot, cool = (model.bill(1000, replace(HABITS, hot_months=m), PRICES).total for m in (12, 1))
    assert hot < cool
    assert "param archiveCoolAfterDays int = 0\n" in (ROOT / "infra" / "main.bicep").read_text()
