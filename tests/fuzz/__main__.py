"""`python -m fuzz [--seed N] [--wire N] [--lines N] [--redaction N] [--amqp N]`.

Feeds mutated input to the wire decoder, to the reading of lines of every format, to redaction and
to the broker's socket. Exits 1 with the seed of the first input that crashed, hung or made memory
grow.
"""

import argparse
import sys
import time

from fuzz import amqp, lines, redaction, wire
from fuzz.watching import Broken, watch


def main() -> int:
    """Run the parts one after another and print what became of their inputs."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--wire", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--lines", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--redaction", type=int, default=30_000, metavar="N")
    parser.add_argument("--amqp", type=int, default=20_000, metavar="N")
    plan = parser.parse_args()
    print(f"--seed {plan.seed}", flush=True)
    try:
        print(watch("wire decoder", wire.feed, plan.seed, plan.wire), flush=True)
        print(watch("lines", lines.feed, plan.seed, plan.lines), flush=True)
        print(watch("redaction", redaction.feed, plan.seed, plan.redaction), flush=True)
        with amqp.Target() as target:
            print(watch("AMQP entry", target.feed, plan.seed, plan.amqp), flush=True)
            print(f"the broker's memory grew by {target.growth() / 2**20:.0f} MiB")
    except Broken as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
