"""What `host.json` says, with the defaults of the real host."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from sessionferry.errors import UserError

_TIME_SPAN: Final = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{1,2})(?::(\d{1,2}(?:\.\d{1,7})?))?")
_INFINITE: Final = ("-1", "-00:00:00.0010000", "-00:00:00.001")


def parse_time_span(value: Any) -> float:
    """Read `[d.]hh:mm[:ss[.fffffff]]` as seconds."""
    match = _TIME_SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("should be a time span such as 00:05:00")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    if hours > 23 or minutes > 59 or seconds >= 60:
        raise ValueError("should be a time span such as 00:05:00")
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _parse_timeout(value: Any) -> float | None:
    return None if value in _INFINITE else parse_time_span(value)


TimeSpan = Annotated[float, BeforeValidator(parse_time_span)]
Timeout = Annotated[float | None, BeforeValidator(_parse_timeout)]


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, strict=True)


class RetryOptions(_Section):
    """How the Service Bus client retries by itself."""

    mode: Literal["exponential", "fixed"] = "exponential"
    max_retries: int = Field(default=3, ge=0, le=100)
    delay: TimeSpan = 0.8
    max_delay: TimeSpan = 60.0
    try_timeout: TimeSpan = 60.0

    @model_validator(mode="before")
    @classmethod
    def _any_case(cls, data: Any) -> Any:
        """The mode is an enumeration, whose names .NET reads in any case."""
        if isinstance(data, dict) and isinstance(data.get("mode"), str):
            return {**data, "mode": data["mode"].lower()}
        return data


class ServiceBusOptions(_Section):
    """The section `extensions.serviceBus`."""

    auto_complete_messages: bool = True
    max_message_batch_size: int = Field(default=1000, ge=1)
    min_message_batch_size: int = Field(default=1, ge=1)
    max_batch_wait_time: TimeSpan = 30.0
    prefetch_count: int = Field(default=0, ge=0)
    max_concurrent_calls: int = Field(default=16, ge=1)
    max_auto_lock_renewal_duration: TimeSpan = 300.0
    client_retry_options: RetryOptions = RetryOptions()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_message_batch_size > self.max_message_batch_size:
            raise ValueError("minMessageBatchSize is above maxMessageBatchSize")
        return self


class HttpOptions(_Section):
    """The section `extensions.http`."""

    route_prefix: str = "api"


class _Extensions(_Section):
    service_bus: ServiceBusOptions = ServiceBusOptions()
    http: HttpOptions = HttpOptions()


class HostConfig(_Section):
    """`host.json`; keys that this host does not know are left alone."""

    function_timeout: Timeout = 1800.0  # 30 min, the default of the Flex Consumption plan
    extensions: _Extensions = _Extensions()

    @property
    def service_bus(self) -> ServiceBusOptions:
        """The section `extensions.serviceBus`."""
        return self.extensions.service_bus

    @property
    def route_prefix(self) -> str:
        """What stands before every route."""
        return self.extensions.http.route_prefix


def read_host_config(path: Path) -> HostConfig:
    """Read `host.json`; raises `UserError` that names the key that is wrong."""
    try:
        return HostConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a function app needs a host.json.") from None
    except ValidationError as error:
        raise UserError(f"{path} is not usable: {_first(error)}.") from None


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    what = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
