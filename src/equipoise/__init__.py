"""equipoise: verified orders that bring a portfolio back to its targets.

Rebalancing as a convex program: tracking error plus trading costs, within drift bands, lots, collateral and
whatever else must stay true. `Rebalancer` is the front door; `equipoise.constraints` holds the rules,
`equipoise.optimizer` the models and solvers.
"""

from importlib import metadata as _metadata

from equipoise.constraints.errors import InputError
from equipoise.optimizer.batches.solve import Plans
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.portfolio.portfolio import Portfolio, read_table
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.solvers.choose import choose
from equipoise.optimizer.triggers import Calendar, Drift

try:
    __version__ = _metadata.version("equipoise")
except _metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Calendar",
    "Drift",
    "InputError",
    "Plan",
    "Plans",
    "Portfolio",
    "Rebalancer",
    "Status",
    "choose",
    "read_table",
]
