"""`python collect.py FOLDER`: collect FOLDER/home into a spool; print lines, failures, peak memory.

With everything imported that the daemon imports, so that the peak is the daemon's.
"""

import resource
import sys
from pathlib import Path

import orjson

import sessionferry.agent.daemon
import sessionferry.publisher
from sessionferry.agent.collecting import STANDARD_LIMIT, Collector
from sessionferry.agent.discover import look
from sessionferry.agent.gate import Checked, OpenGate
from sessionferry.agent.spool import Spool
from sessionferry.host import Identity

assert sessionferry.agent.daemon
assert sessionferry.publisher


def main(folder: Path) -> None:
    """Collect, and say what that took; memory in bytes."""
    spool = Spool(folder / "spool.db")
    identity = Identity(folder / "identity", host_id="h1", user_id="anna")
    collector = Collector(spool, Checked(OpenGate()), identity, limit=STANDARD_LIMIT)
    report = collector.collect(look([folder / "home"], "anna", None))
    spool.close()
    print(orjson.dumps([report.lines, report.failed, _peak()]).decode())


def _peak() -> int:
    """This program's own peak: what getrusage says on Linux begins with that of its parent."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
