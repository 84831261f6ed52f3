"""Run a function app: `python -m sessionferry.local.functions_host --app DIR`.

Exit codes: 0 after SIGTERM or SIGINT, 1 when a function or the drain timed out or the app cannot
be imported, 2 when the app cannot be served as it is configured.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from sessionferry.errors import UserError
from sessionferry.local.functions_host.host import FunctionsHost
from sessionferry.local.functions_host.worker import FunctionTimedOut
from sessionferry.local.supervision import stop_with_supervisor
from sessionferry.stopping import on_stop

log = logging.getLogger("sessionferry.local.functions_host")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sessionferry.local.functions_host",
        description="Run a function app of the v2 programming model on this machine.",
    )
    parser.add_argument(
        "--app", type=Path, required=True, help="folder of function_app.py and host.json"
    )
    parser.add_argument("--state", type=Path, help="folder where timers remember their last run")
    parser.add_argument("--http", type=int, default=0, metavar="PORT", help="0: a free one")
    return parser.parse_args()


async def serve(host: FunctionsHost) -> None:
    """Serve until a signal, after saying that the host is ready."""
    on_stop(host.stop)
    stop_with_supervisor(host.stop)
    await host.start()
    ready = {
        "event": "functions_host_ready",
        "functions": host.functions,
        "http": host.http_port,
    }
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await host.wait()


def main() -> int:
    """Run, and return the exit code."""
    arguments = _arguments()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("azure").setLevel(logging.WARNING)
    try:
        host = FunctionsHost(
            arguments.app, state_dir=arguments.state, on_hang=_die, http_port=arguments.http
        )
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except Exception:
        log.exception("function_app.py could not be imported")
        return 1
    try:
        asyncio.run(serve(host))
    except (FunctionTimedOut, TimeoutError) as error:
        log.critical("the host ends: %s", error)
        _die()
    return 0


def _die() -> None:
    """End now: a thread that still runs a function would keep the interpreter alive."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
