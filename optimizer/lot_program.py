"""Is there a whole-lot plan at all? A small integer program, asked only where the search found none.

Every rule is linear in buys, sales, long and short parts, so that feasibility in whole lots is a mixed-integer
linear program (HiGHS, through scipy; one thread, a limit on nodes instead of time, so that the answer does
not depend on the machine). It looks for the point nearest to the convex optimum in Σ|w − w*|. Costs that bend
are replaced by their largest slope (safe); cones are left to the check of what comes back.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.constraints.base import Array, Parts

if TYPE_CHECKING:
    from equipoise.optimizer.lot_points import Integers, Mask
    from equipoise.optimizer.lot_search import Search

_NODES = 2_000
_FINE = 1e5  # assets with more lots than this are treated as continuous; the search rounds them afterwards


def feasible_point(search: Search, optimum: Array) -> tuple[tuple[Integers, Mask] | None, bool]:
    """(a point that keeps all linear rules in whole lots, or None; whether "None" is proven)."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    # scipy's types do not follow sparse blocks.
    sparse: Any = importlib.import_module("scipy.sparse")
    csr_array, hstack = sparse.csr_array, sparse.hstack

    allowed, problem = search.allowed, search.problem
    n, m, cash = len(problem.assets), len(search.upper), problem.cash
    size, least = allowed.size, allowed.least
    most_bought = np.maximum(allowed.highest, 0).astype(float)
    most_sold = np.maximum(-allowed.lowest, 0).astype(float)
    # Variables, n of each: lots bought, lots sold, long part, short part, distance from the optimum, and
    # three choices of 0 or 1: buys, sells, closes.
    bought, sold, long, short, distance, buys, sells, closes = np.split(np.arange(8 * n), 8)

    cost, largest = problem.cost, np.maximum(most_bought, most_sold) * size
    bend = cost.quadratic * largest + cost.impact * np.sqrt(largest)
    buy_rate, sell_rate = cost.buy + bend, cost.sell + bend
    closing = np.abs(problem.before) * np.where(problem.before > 0, cost.sell + bend, cost.buy + bend)

    z = np.zeros((n, 8 * n))
    z[np.arange(n), bought], z[np.arange(n), sold], z[np.arange(n), closes] = size, -size, -problem.before
    z[cash] = 0.0
    z[cash] = -z.sum(axis=0)
    price = np.zeros(8 * n)
    price[bought], price[sold], price[closes] = buy_rate * size, sell_rate * size, closing

    weight, on_long, on_short, on_buy, on_sell = (search.parts.get(name, np.zeros((m, n))) for name in Parts.NAMES)
    rows = weight @ z
    rows[:, long] += on_long
    rows[:, short] += on_short
    rows[:, bought] += on_buy * size
    rows[:, sold] += on_sell * size
    rows[:, closes] += np.abs(problem.before) * np.where(problem.before > 0, on_sell, on_buy)
    rows += search.cost_weight[:, None] * price
    limit = search.upper - weight @ problem.before
    finite = np.isfinite(limit)

    one = sparse.eye_array(n, format="csr")
    none = csr_array((n, n))

    def block(**at: Any) -> Any:
        return hstack([at.get(name, none) for name in _NAMES], format="csr")

    def diagonal(values: Array) -> Any:
        return one.multiply(values[None, :]).tocsr()

    constraints = [
        LinearConstraint(csr_array(rows[finite]), -np.inf, limit[finite]),
        # w = long − short
        LinearConstraint(csr_array(z) - block(long=one) + block(short=one), -problem.before, -problem.before),
        # |w − w*| ≤ distance
        LinearConstraint(csr_array(z) - block(distance=one), -np.inf, optimum - problem.before),
        LinearConstraint(csr_array(z) + block(distance=one), optimum - problem.before, np.inf),
        # either nothing or at least the minimum, on one side, or the close
        LinearConstraint(block(bought=one) - block(buys=diagonal(most_bought)), -np.inf, 0.0),
        LinearConstraint(block(sold=one) - block(sells=diagonal(most_sold)), -np.inf, 0.0),
        LinearConstraint(block(bought=one) - block(buys=diagonal(np.minimum(least, 2**40).astype(float))), 0.0, np.inf),
        LinearConstraint(block(sold=one) - block(sells=diagonal(np.minimum(least, 2**40).astype(float))), 0.0, np.inf),
        LinearConstraint(block(buys=one, sells=one, closes=one), -np.inf, 1.0),
    ]
    # An asset that must trade (its range excludes zero) says so.
    forced_up, forced_down = np.maximum(allowed.lowest, 0), np.maximum(-allowed.highest, 0)
    total = block(bought=one) - block(sold=one)
    must = (forced_up > 0) | (forced_down > 0)
    if must.any():
        # A close counts as being anywhere in the range.
        free = block(closes=diagonal((forced_up + forced_down).astype(float)))
        up, down = forced_up > 0, forced_down > 0
        if up.any():
            constraints.append(LinearConstraint((total + free)[up], forced_up[up].astype(float), np.inf))
        if down.any():
            constraints.append(LinearConstraint((total - free)[down], -np.inf, -forced_down[down].astype(float)))

    upper = np.concatenate(
        [most_bought, most_sold, *(np.full(n, np.inf),) * 3, np.ones(n), np.ones(n), allowed.closable]
    )
    upper[[bought[cash], sold[cash], buys[cash], sells[cash]]] = 0.0
    whole = np.concatenate([most_bought < _FINE, most_sold < _FINE, np.zeros(3 * n), np.ones(3 * n)]).astype(int)
    goal = np.zeros(8 * n)
    goal[distance] = 1.0
    goal[np.concatenate([long, short])] = 1e-6  # so that long and short parts do not overlap
    found = milp(
        goal,
        constraints=[LinearConstraint(csr_array(c.A), c.lb, c.ub) for c in constraints],
        bounds=Bounds(np.zeros(8 * n), upper),
        integrality=whole,
        options={"node_limit": _NODES, "mip_rel_gap": 0.05},
    )
    if found.x is None:
        # scipy: status 2 is infeasible, also without the cones; all else only means that it was cut short.
        return None, found.status == 2 and not np.any(bend)
    closed = found.x[closes] > 0.5
    lots = np.round(found.x[bought] - found.x[sold]).astype(np.int64)
    return (np.where(closed, 0, lots), closed), False


_NAMES = ("bought", "sold", "long", "short", "distance", "buys", "sells", "closes")
