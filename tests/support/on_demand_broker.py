"""A broker whose queues exist on first use, with the options that their names state.

It is the harness for the azure-servicebus SDK's own test suite, whose queues are named
`servicebustest-<10 hex>--lock<seconds>[--dedup][--dlqexpiry]...`. Prints the connection string.
"""

import argparse
import asyncio
import logging
import re
import signal
import sys
from pathlib import Path

from sessionferry.local.broker import Broker, QueueDefinition, SasRule
from sessionferry.local.broker.cbs import RIGHTS

KEY_NAME = "RootManageSharedAccessKey"
KEY = "bm90LWEtc2VjcmV0LW9ubHktZm9yLXRlc3RzLTEyMzQ="
NAME = re.compile(
    r"servicebustest[-_].*?--lock(?P<lock>\d+)"
    r"(?P<flags>(?:--(?:dedup|dlqexpiry|session|partitioned))*)"
)


def define(name: str) -> QueueDefinition | None:
    """The queue that a name asks for."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    flags = set(match["flags"].split("--"))
    if "session" in flags:
        return None
    return QueueDefinition(
        name=name,
        lock_duration=int(match["lock"]) * 1000,
        requires_duplicate_detection="dedup" in flags,
        dead_lettering_on_message_expiration="dlqexpiry" in flags,
    )


class OnDemandRules(dict[str, SasRule]):
    """Rules named `<anything>--<rights>` exist."""

    def get(self, name: str, default: SasRule | None = None) -> SasRule | None:  # type: ignore[override]
        base, _, rights = name.rpartition("--")
        if base and set(rights.split("-")) <= RIGHTS:
            return SasRule(name, KEY, frozenset(rights.split("-")))
        return super().get(name, default)


async def serve(data: Path, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    broker = Broker(data, define, [SasRule(KEY_NAME, KEY)])
    broker.rules = OnDemandRules(broker.rules)
    bound = await broker.start(port=port)
    sys.stdout.write(
        f"Endpoint=sb://127.0.0.1:{bound};SharedAccessKeyName={KEY_NAME};"
        f"SharedAccessKey={KEY};UseDevelopmentEmulator=true;\n"
    )
    sys.stdout.flush()
    await stop.wait()
    await broker.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(serve(arguments.data, arguments.port))
