"""`python -m tests.support.cosmos`: run the test server and print where it listens."""

import argparse
import asyncio
import base64
import gc
import json
import signal
import sys
from pathlib import Path

from tests.support.cosmos.account import Account
from tests.support.cosmos.auth import EMULATOR_KEY, Authority
from tests.support.cosmos.journal import SqliteJournal
from tests.support.cosmos.server import CosmosServer


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.cosmos", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--key", default=EMULATOR_KEY, help="base64; default: the emulator's key")
    parser.add_argument("--data", type=Path, help="a SQLite file that keeps everything")
    parser.add_argument("--physical-partitions", type=int, default=4)
    given = parser.parse_args()
    try:
        base64.b64decode(given.key, validate=True)
    except ValueError:
        parser.error("--key must be base64.")
    return given


async def serve(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    # Items are many and have no cycles: looking for some would cost a third of the time.
    gc.set_threshold(200_000, 20, 100)
    account = Account(
        physical_partitions=options.physical_partitions,
        journal=SqliteJournal(options.data) if options.data is not None else None,
    )
    server = CosmosServer(account, authority=Authority(options.key))
    try:
        endpoint = await server.start(options.host, options.port)
    except OSError as error:
        sys.exit(f"Cannot listen on {options.host}, port {options.port}: {error.strerror}.")
    sys.stdout.write(json.dumps({"endpoint": endpoint}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(serve(arguments()))
