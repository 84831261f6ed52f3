"""Queue definitions: Bicep's option names, and errors that name what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from sessionferry.local.broker.definitions import (
    QueueDefinition,
    load_definitions,
    parse_definition,
    parse_definitions,
    parse_duration,
)
from sessionferry.local.broker.errors import DefinitionError


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("PT5M", 300_000),
        ("PT0.5S", 500),
        ("P14D", 1_209_600_000),
        ("P1DT2H3M4S", 93_784_000),
        ("PT10M", 600_000),
    ],
)
def test_durations_are_iso_8601(text: str, milliseconds: int) -> None:
    assert milliseconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "P", "PT", "5M", "PT5", "five minutes", 300, None, "P1Y"])
def test_other_durations_are_refused(text: Any) -> None:
    with pytest.raises(DefinitionError, match="ISO 8601"):
        parse_duration(text)


def test_every_option_has_its_place() -> None:
    options = {
        "name": "sessions",
        "lockDuration": "PT5M",
        "maxDeliveryCount": 100,
        "requiresDuplicateDetection": True,
        "duplicateDetectionHistoryTimeWindow": "PT1H",
        "deadLetteringOnMessageExpiration": True,
        "defaultMessageTimeToLive": "P14D",
    }
    expected = QueueDefinition(
        name="sessions",
        lock_duration=300_000,
        max_delivery_count=100,
        requires_duplicate_detection=True,
        duplicate_detection_history=3_600_000,
        dead_lettering_on_message_expiration=True,
        default_message_time_to_live=1_209_600_000,
    )
    assert expected == parse_definition(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "q", "lockduration": "PT5M"}, "unknown options: lockduration"),
        ({"name": "q", "requiresSession": True}, "unknown options: requiresSession"),
        ({"name": "q", "lockDuration": "PT6M"}, "lockDuration of queue 'q' must be up to PT5M"),
        ({"name": "q", "lockDuration": 300}, "lockDuration of queue 'q': 300 is not"),
        ({"name": "q", "maxDeliveryCount": 0}, "at least 1"),
        ({"name": "q", "maxDeliveryCount": "10"}, "not a whole number"),
        ({"name": "q", "requiresDuplicateDetection": "yes"}, "neither true nor false"),
        ({"name": "a queue"}, "not a queue name"),
        ({"lockDuration": "PT5M"}, "at least a name"),
        ("q", "at least a name"),
    ],
)
def test_a_wrong_option_is_named(options: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        parse_definition(options)


@pytest.mark.parametrize("document", [[], {}, {"queues": {}}, {"queues": [], "topics": []}])
def test_the_document_is_a_list_of_queues(document: Any) -> None:
    with pytest.raises(DefinitionError):
        parse_definitions(document)


def test_a_queue_is_defined_once_whatever_its_case() -> None:
    with pytest.raises(DefinitionError, match="defined twice"):
        parse_definitions({"queues": [{"name": "q"}, {"name": "Q"}]})


def test_a_file_answers_by_name_and_ignores_case(tmp_path: Path) -> None:
    path = tmp_path / "queues.json"
    path.write_text(json.dumps({"queues": [{"name": "Sessions"}]}))
    lookup = load_definitions(path)
    assert lookup("SESSIONS") == QueueDefinition(name="Sessions")
    assert lookup("other") is None


@pytest.mark.parametrize("content", [None, "{", '{"queues": 1}'])
def test_an_unusable_file_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "queues.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DefinitionError):
        load_definitions(path)
