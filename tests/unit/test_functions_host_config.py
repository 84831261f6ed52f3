"""host.json: the real host's defaults, and errors that name the key."""

from pathlib import Path

import pytest

from sessionferry.errors import UserError
from sessionferry.local.functions_host.config import parse_time_span, read_host_config


def _read(folder: Path, text: str):
    path = folder / "host.json"
    path.write_text(text)
    return read_host_config(path)


def test_defaults_are_those_of_the_real_host(tmp_path):
    """An empty host.json means what it means in Azure."""
    config = _read(tmp_path, '{"version": "2.0"}')
    options = config.service_bus
    assert config.function_timeout == 1800
    assert (options.max_message_batch_size, options.min_message_batch_size) == (1000, 1)
    assert (options.max_batch_wait_time, options.prefetch_count) == (30, 0)
    assert (options.max_concurrent_calls, options.auto_complete_messages) == (16, True)
    assert options.max_auto_lock_renewal_duration == 300


def test_known_keys_are_read_and_others_left_alone(tmp_path):
    """Sections for other extensions do not disturb."""
    config = _read(
        tmp_path,
        """{"version": "2.0", "functionTimeout": "00:10:00", "logging": {"logLevel": {}},
            "extensions": {"http": {"routePrefix": ""}, "serviceBus": {
                "maxMessageBatchSize": 16, "minMessageBatchSize": 8, "maxBatchWaitTime": "00:00:02",
                "autoCompleteMessages": false, "transportType": "amqpTcp",
                "clientRetryOptions": {"mode": "Fixed", "delay": "00:00:00.5", "maxRetries": 1}
            }}}""",
    )
    options = config.service_bus
    assert config.function_timeout == 600
    assert (options.max_message_batch_size, options.min_message_batch_size) == (16, 8)
    assert (options.max_batch_wait_time, options.auto_complete_messages) == (2, False)
    retry = options.client_retry_options
    assert (retry.mode, retry.delay, retry.max_retries, retry.max_delay) == ("fixed", 0.5, 1, 60)


def test_minus_one_means_no_timeout(tmp_path):
    """As in the real host."""
    assert _read(tmp_path, '{"functionTimeout": "-1"}').function_timeout is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ('{"functionTimeout": 5}', "functionTimeout: should be a time span"),
        ('{"extensions": {"serviceBus": []}}', "extensions.serviceBus"),
        (
            '{"extensions": {"serviceBus": {"maxMessageBatchSize": "16"}}}',
            "extensions.serviceBus.maxMessageBatchSize: Input should be a valid integer",
        ),
        (
            '{"extensions": {"serviceBus": {"maxMessageBatchSize": 0}}}',
            "extensions.serviceBus.maxMessageBatchSize: Input should be greater",
        ),
        (
            '{"extensions": {"serviceBus": {"autoCompleteMessages": "yes"}}}',
            "extensions.serviceBus.autoCompleteMessages: Input should be a valid boolean",
        ),
        (
            '{"extensions": {"serviceBus": {"maxMessageBatchSize": 2, "minMessageBatchSize": 3}}}',
            "minMessageBatchSize is above maxMessageBatchSize",
        ),
    ],
)
def test_a_wrong_value_is_a_clear_error(tmp_path, text, message):
    """The sentence says which key is wrong."""
    with pytest.raises(UserError, match="is not usable") as caught:
        _read(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_a_clear_error(tmp_path):
    """A function app needs a host.json."""
    with pytest.raises(UserError, match=r"host\.json is missing"):
        read_host_config(tmp_path / "host.json")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:02", 2),
        ("00:05", 300),
        ("1.02:00:00", 93_600),
        ("00:00:00.8", 0.8),
        ("23:59:59.9999999", 86_399.9999999),
    ],
)
def test_time_spans(text, seconds):
    """.NET's format, days included."""
    assert parse_time_span(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "24:00:00", "00:60:00", "00:00:60", "1:2:3:4", 5, None])
def test_what_is_no_time_span(text):
    """Anything else is refused."""
    with pytest.raises(ValueError, match="time span"):
        parse_time_span(text)
