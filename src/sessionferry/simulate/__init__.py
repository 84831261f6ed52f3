"""A seeded fleet of machines with agent sessions on disk, and the exact counts of what was written.

Nothing here uses the code that carries sessions: the oracle is a second opinion on it.
"""

from sessionferry.simulate.fleet import FleetPlan, simulate
from sessionferry.simulate.oracle import FileOracle, Oracle, Totals, recount
from sessionferry.simulate.usage import Usage

__all__ = ["FileOracle", "FleetPlan", "Oracle", "Totals", "Usage", "recount", "simulate"]
