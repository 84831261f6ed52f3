"""What a queue is: its options, named as Bicep names them, and the file that lists the queues."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from sessionferry.local.broker.errors import DefinitionError

_DURATION: Final = re.compile(
    r"P(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_SECONDS: Final = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/~-]{0,258}[A-Za-z0-9])?")
MAX_LOCK_MILLISECONDS: Final = 300_000  # Service Bus: a lock lasts at most five minutes


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueDefinition:
    """One queue; durations are in milliseconds, a time to live of None is unlimited.

    The defaults are those of a Service Bus queue that is created without options.
    """

    name: str
    lock_duration: int = 60_000
    max_delivery_count: int = 10
    requires_duplicate_detection: bool = False
    duplicate_detection_history: int = 600_000
    dead_lettering_on_message_expiration: bool = False
    default_message_time_to_live: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DefinitionError(f"{self.name!r} is not a queue name.")
        if not 0 < self.lock_duration <= MAX_LOCK_MILLISECONDS:
            raise DefinitionError(f"lockDuration of queue {self.name!r} must be up to PT5M.")
        if self.max_delivery_count < 1:
            raise DefinitionError(f"maxDeliveryCount of queue {self.name!r} must be at least 1.")


Definitions = Callable[[str], QueueDefinition | None]


def parse_duration(text: Any) -> int:
    """An ISO 8601 duration such as PT5M or P14D, in milliseconds."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    given = {unit: amount for unit, amount in match.groupdict().items() if amount} if match else {}
    if not given:
        raise DefinitionError(f"{text!r} is not an ISO 8601 duration such as PT5M or P14D.")
    return round(sum(float(amount) * _SECONDS[unit] * 1000 for unit, amount in given.items()))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DefinitionError(f"{value!r} is not a whole number.")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise DefinitionError(f"{value!r} is neither true nor false.")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DefinitionError(f"{value!r} is not a text.")
    return value


_OPTIONS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "name": ("name", _text),
    "lockDuration": ("lock_duration", parse_duration),
    "maxDeliveryCount": ("max_delivery_count", _whole),
    "requiresDuplicateDetection": ("requires_duplicate_detection", _flag),
    "duplicateDetectionHistoryTimeWindow": ("duplicate_detection_history", parse_duration),
    "deadLetteringOnMessageExpiration": ("dead_lettering_on_message_expiration", _flag),
    "defaultMessageTimeToLive": ("default_message_time_to_live", parse_duration),
}


def parse_definition(options: Any) -> QueueDefinition:
    """A queue from its options as Bicep spells them."""
    if not isinstance(options, Mapping) or "name" not in options:
        raise DefinitionError("A queue is an object that has at least a name.")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise DefinitionError(
            f"Queue {options['name']!r} has unknown options: {', '.join(unknown)}. "
            f"Known are: {', '.join(_OPTIONS)}."
        )
    return QueueDefinition(**dict(_parsed(options["name"], *option) for option in options.items()))


def _parsed(queue: Any, option: str, value: Any) -> tuple[str, Any]:
    field, parse = _OPTIONS[option]
    try:
        return field, parse(value)
    except DefinitionError as error:
        raise DefinitionError(f"{option} of queue {queue!r}: {error}") from None


def parse_definitions(document: Any) -> dict[str, QueueDefinition]:
    """The queues of a whole document, by lower-case name, as queue names ignore case."""
    queues = document.get("queues") if isinstance(document, Mapping) else None
    if not isinstance(queues, list) or set(document) != {"queues"}:
        raise DefinitionError('Queue definitions are an object {"queues": [...]}.')
    found: dict[str, QueueDefinition] = {}
    for definition in map(parse_definition, queues):
        if definition.name.lower() in found:
            raise DefinitionError(f"Queue {definition.name!r} is defined twice.")
        found[definition.name.lower()] = definition
    return found


def load_definitions(path: Path) -> Definitions:
    """Read the queue file; the answer looks up a queue by name."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DefinitionError(f"The queue file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise DefinitionError(f"The queue file {path} is not JSON: {error}.") from None
    found = parse_definitions(document)
    return lambda name: found.get(name.lower())


def to_record(definition: QueueDefinition) -> dict[str, Any]:
    """The definition as plain values, to be kept beside its messages."""
    return {field.name: getattr(definition, field.name) for field in fields(definition)}
