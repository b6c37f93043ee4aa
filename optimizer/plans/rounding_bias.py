"""Who gains from rounding: what whole lots add to the orders that the convex program would send.

The residual of an asset is the size of its order less that of its convex order: in lots, and times the price in cash.
Rounding down has a mean of −½ lot, rounding to the nearest 0 ± 1/√(12·number) (a uniform residual has variance 1/12);
buys that are rounded down and sales that are rounded up lean to the cash by ½ on each side. An asset is on the side of
its convex order, or where there is none of its own order; assets without a lot are not counted.

The interval is mean ± 1.96·s (95 %, by the normal distribution). For one plan s is the standard deviation over √number,
as if residuals were independent. Those of a portfolio are not, they share its cash: for a batch s is that of clusters,

    s² = Σ over portfolios of (Σ of its residuals − mean)² / number²        (Liang and Zeger 1986)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.constraints.pieces import Array, Indices, Mask

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.verification.outcome import Outcome

_NORMAL = 1.96
COLUMNS = ("number", "lots", "lots_low", "lots_high", "money", "money_low", "money_high", "money_total")


@dataclass(frozen=True, eq=False)
class Residuals:
    """By how much orders are larger than convex ones (E,): in lots and in cash; the portfolio of each, and whether it
    is a buy."""

    portfolio: Indices
    buys: Mask
    lots: Array
    money: Array

    @classmethod
    def of(cls, portfolio: Indices, lot: Array, price: Array, convex: Array, traded: Array, cash: Any) -> Residuals:
        """Of portfolios (B,) with lots, prices, convex trades and trades in units (B, n)."""
        side = np.where(convex != 0, np.sign(convex), np.sign(traded))
        counted = (lot > 0) & (side != 0)
        counted[cash] = False
        item, asset = np.nonzero(counted)
        residual = ((traded - convex) * side)[item, asset]
        at = item, asset
        return cls(portfolio[item], side[at] > 0, residual / lot[at], residual * price[at])

    @classmethod
    def of_plan(cls, plan: Outcome, place: int = 0) -> Residuals:
        """Of one plan; none if it has no orders in lots."""
        problem, solution = plan.problem, plan.solution
        if not plan.status.ok or problem is None or problem.step is None or solution is None:
            return cls(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0))
        account, weights = problem.portfolio, solution.weights
        assert weights is not None
        convex = (weights - problem.before) * account.nav / account.price
        traded = np.array([float(quantity) for quantity in plan.trades])
        lot, price, convex, traded = (x[None] for x in (problem.step.lot, account.price, convex, traded))
        return cls.of(np.array([place], dtype=np.intp), lot, price, convex, traded, (0, problem.cash))


def residuals(plan: Outcome) -> list[tuple[str, float]]:
    """Each asset's traded quantity less that of the convex program, in units, for a plan in whole lots."""
    problem, solution = plan.problem, plan.solution
    if not plan.status.ok or problem is None or problem.step is None or solution is None or solution.weights is None:
        return []
    convex = (solution.weights - problem.before) * problem.portfolio.nav / problem.portfolio.price
    rows = zip(problem.assets, plan.trades, convex, strict=True)
    return [(asset, float(traded) - float(x)) for asset, traded, x in rows if asset != problem.assets[problem.cash]]


def summary(parts: Sequence[Residuals], *, clusters: bool) -> pd.DataFrame:
    """A row for buys and one for sales: their number, the mean residual in lots and in cash, each with its interval,
    and the total in cash."""
    import pandas as pd

    joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Residuals)}
    rows = []
    for side in (True, False):
        at = joined["buys"] == side
        group = joined["portfolio"][at] if clusters else np.arange(np.count_nonzero(at))
        row: list[float] = [int(np.count_nonzero(at))]
        for name in ("lots", "money"):
            row += _interval(joined[name][at], group)
        rows.append((*row, float(joined["money"][at].sum())))
    table = pd.DataFrame(rows, columns=list(COLUMNS), index=pd.Index(["buy", "sell"], name="side"))
    return table.astype({"number": "int64"})


def _interval(residuals: Array, group: Indices) -> list[float]:
    """The mean, and where it lies with 95 %; NaN where that is not known."""
    number = len(residuals)
    if not number:
        return [np.nan] * 3
    mean = float(residuals.mean())
    _, cluster = np.unique(group, return_inverse=True)
    sums = np.bincount(cluster, weights=residuals - mean)
    if len(sums) < 2:
        return [mean, np.nan, np.nan]
    wide = _NORMAL * float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum())) / number
    return [mean, mean - wide, mean + wide]
