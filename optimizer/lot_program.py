"""Is there a whole-lot plan at all? A small integer program, asked only where the search found none.

Every rule is linear in buys, sales, long and short parts, so that feasibility in whole lots is a mixed-integer
linear program (HiGHS, through scipy; one thread, a limit on nodes instead of time, so that the answer does
not depend on the machine). It looks for the point nearest to the convex optimum in Σ|w − w*|. Costs that bend
are replaced by their largest slope (safe), a minimum commission by its minimum on top of its rate (safe, too); cones
are left to the check of what comes back.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.constraints.base import Array, Parts
from equipoise.optimizer.discrete import least_positions

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
    # Lots that are many are counted in NAVs, as continuous: so that no choice of 0 or 1 stands before a large number.
    fine = np.maximum(allowed.highest, -allowed.lowest) >= _FINE
    unit = np.where(fine, 1.0 / allowed.size, 1.0)
    size, least = allowed.size * unit, np.minimum(allowed.least, 2**40) / unit
    most_bought, most_sold = np.maximum(allowed.highest, 0) / unit, np.maximum(-allowed.lowest, 0) / unit
    # Variables, n of each: lots bought, lots sold, long part, short part, distance from the optimum, and
    # choices of 0 or 1: buys, sells, closes, and where zero stands apart whether it ends long, or short.
    bought, sold, long, short, distance, buys, sells, closes, _, _ = np.split(np.arange(10 * n), 10)

    cost, largest = problem.cost, np.maximum(most_bought, most_sold) * size
    bend = cost.quadratic * largest + cost.impact * np.sqrt(largest)
    buy_rate, sell_rate = cost.buy + bend, cost.sell + bend
    closing = np.abs(problem.before) * np.where(problem.before > 0, cost.sell + bend, cost.buy + bend)

    z = np.zeros((n, 10 * n))
    z[np.arange(n), bought], z[np.arange(n), sold], z[np.arange(n), closes] = size, -size, -problem.before
    z[cash] = 0.0
    z[cash] = -z.sum(axis=0)
    price = np.zeros(10 * n)
    price[bought], price[sold], price[closes] = buy_rate * size, sell_rate * size, closing
    if (fees := problem.fees) is not None:
        price[buys], price[sells], price[closes] = fees.most, fees.most, closing + fees.most

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
        LinearConstraint(block(bought=one) - block(buys=diagonal(least)), 0.0, np.inf),
        LinearConstraint(block(sold=one) - block(sells=diagonal(least)), 0.0, np.inf),
        LinearConstraint(block(buys=one, sells=one, closes=one), -np.inf, 1.0),
    ]
    counts = search.counts
    if len(counts.upper):
        counted = [counts.orders if at in (5, 6, 7) else counts.names * (at in (8, 9)) for at in range(10)]
        constraints.append(LinearConstraint(csr_array(np.hstack(counted)), -np.inf, counts.upper))
    if (apart := allowed.apart).any():
        smallest = np.array([float(x) for x in least_positions(problem)]) / problem.portfolio.nav
        largest = np.abs(problem.before) + np.maximum(most_bought, most_sold) * size
        for side, part in (("longs", "long"), ("shorts", "short")):
            up, down = (block(**{part: one, side: -diagonal(edge)})[apart] for edge in (largest, smallest))
            constraints += [LinearConstraint(up, -np.inf, 0.0), LinearConstraint(down, 0.0, np.inf)]
        constraints.append(LinearConstraint(block(longs=one, shorts=one), -np.inf, 1.0))
    # An asset that must trade (its range excludes zero) says so.
    forced_up, forced_down = np.maximum(allowed.lowest, 0) / unit, np.maximum(-allowed.highest, 0) / unit
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
        [most_bought, most_sold, *(np.full(n, np.inf),) * 3, np.ones(n), np.ones(n), allowed.closable, apart, apart]
    )
    upper[[bought[cash], sold[cash], buys[cash], sells[cash]]] = 0.0
    whole = np.concatenate([~fine, ~fine, np.zeros(3 * n), np.ones(5 * n)]).astype(int)
    goal = np.zeros(10 * n)
    goal[distance] = 1.0
    goal[np.concatenate([long, short])] = 1e-6  # so that long and short parts do not overlap
    found = milp(
        goal,
        constraints=[LinearConstraint(csr_array(c.A), c.lb, c.ub) for c in constraints],
        bounds=Bounds(np.zeros(10 * n), upper),
        integrality=whole,
        options={"node_limit": _NODES, "mip_rel_gap": 0.05},
    )
    if found.x is None:
        # scipy: status 2 is infeasible, also without the cones; all else only means that it was cut short.
        straight = not np.any(bend) and (fees is None or not np.any(fees.kinks))
        return None, found.status == 2 and straight
    closed = found.x[closes] > 0.5
    lots = np.where(closed, 0, np.round((found.x[bought] - found.x[sold]) * unit).astype(np.int64))
    # A continuous number between two points, or one that ends at a zero that stands apart.
    return allowed.snapped(lots, closed), False


_NAMES = ("bought", "sold", "long", "short", "distance", "buys", "sells", "closes", "longs", "shorts")
