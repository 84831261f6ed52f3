"""Run the broker as a process of its own: `python -m sessionferry.local.broker`."""

import argparse
import asyncio
import json
import logging
import sqlite3
import sys
from pathlib import Path

from sessionferry.local.broker.cbs import SasRule
from sessionferry.local.broker.definitions import Definitions, load_definitions
from sessionferry.local.broker.errors import DefinitionError
from sessionferry.local.broker.server import Broker
from sessionferry.local.supervision import stop_with_supervisor
from sessionferry.stopping import on_stop


def load_rule(path: Path) -> SasRule:
    """Read the key file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return SasRule(content["SharedAccessKeyName"], content["SharedAccessKey"])
    except OSError as error:
        raise DefinitionError(f"The key file {path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise DefinitionError(
            f"The key file {path} must be a JSON object with SharedAccessKeyName and "
            "SharedAccessKey."
        ) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sessionferry.local.broker", description=__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="directory that keeps messages")
    parser.add_argument("--queues", type=Path, required=True, help="queue definitions, JSON")
    parser.add_argument("--key-file", type=Path, required=True, help="shared access key, JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose")
    return parser.parse_args()


async def serve(arguments: argparse.Namespace, definitions: Definitions, rule: SasRule) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    on_stop(stop.set)
    stop_with_supervisor(stop.set)
    broker = Broker(arguments.data, definitions, [rule])
    port = await broker.start(arguments.host, arguments.port)
    ready = {"event": "broker_ready", "host": arguments.host, "port": port}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await broker.close()


def main() -> int:
    """The exit code: 0 after a signal, 2 if the broker cannot be started as asked."""
    arguments = _arguments()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        rule, definitions = load_rule(arguments.key_file), load_definitions(arguments.queues)
        asyncio.run(serve(arguments, definitions, rule))
    except DefinitionError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (OSError, sqlite3.Error) as error:
        sys.stderr.write(f"The broker cannot start: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
