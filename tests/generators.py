"""Small portfolios given as weights, and random problems that share a few structures.

`strategies` makes problems of every kind, each with its own compiled program; here thousands of problems share a
dozen structures, so that the program can judge the closed form quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from equipoise.constraints import BuyOnly, CashBand, CashFloor, DriftBand, LongOnly, NoTrade, WeightBounds
from equipoise.optimizer.costs import HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.portfolio import Portfolio
from equipoise.optimizer.problem import Policy, Problem
from equipoise.optimizer.risk import CovarianceRisk

CASH = "USD"


def names(n: int) -> list[str]:
    """Labels of n assets that sort before the cash."""
    return [f"A{i:03d}" for i in range(n)]


def portfolio(before: Any, target: Any, *, nav: float = 1.0, **columns: Any) -> Portfolio:
    """A portfolio with these weights before trading and these targets, the cash last; prices are 1."""
    weights = np.asarray(before, dtype=float)
    labels = [*names(len(weights) - 1), CASH]
    table = {"quantity": weights * nav, "price": 1.0, "target": np.asarray(target, dtype=float), **columns}
    return Portfolio.from_table(pd.DataFrame(table, index=labels), CASH)


def problem(before: Any, target: Any, *rules: Any, nav: float = 1.0, columns: Any = None, **policy: Any) -> Problem:
    """The problem of this portfolio under these rules; `covariance` (of all but the cash) becomes the risk."""
    if (covariance := policy.pop("covariance", None)) is not None:
        policy["risk"] = CovarianceRisk(np.asarray(covariance, dtype=float), assets=names(len(before) - 1))
    account = portfolio(before, target, nav=nav, **(columns or {}))
    return Policy(constraints=rules, **policy).problem(account)


def separable_problems(rng: np.random.Generator, draws: int, *, nav: float = 1.0) -> Iterator[Problem]:
    """`draws` problems of one random structure that the closed form takes (some of them infeasible).

    Which assets have no risk, no cost, a holding cost or a fixed weight, and which rules there are, is the
    structure; holdings, targets, rates, bounds, aversion and horizon are drawn anew each time.
    """
    n = int(rng.integers(1, 8))
    risky, fee, sale, square, impact, held = (rng.random(n) < p for p in (0.8, 0.8, 0.8, 0.5, 0.5, 0.5))
    kinds = [name for name, p in (("fee", 0.8), ("square", 0.25), ("impact", 0.3), ("hold", 0.2)) if rng.random() < p]
    budget = rng.choice(["floor", "band", "tight band", "default"])
    bounds = [name for name, p in (("long", 0.6), ("drift", 0.3), ("box", 0.2), ("buy", 0.15)) if rng.random() < p]
    fixed = names(n)[:1] if n > 2 and rng.random() < 0.2 else []
    shorts = rng.random() < 0.2
    for _ in range(draws):
        w, b = rng.dirichlet(np.ones(n + 1)), rng.dirichlet(np.ones(n + 1))
        if shorts:  # targets and holdings with debts
            w, b = (x + np.append(d := rng.normal(0, 0.3, n), -d.sum()) for x in (w, b))
        columns = {
            "fee": np.append(fee * 10.0 ** rng.uniform(-4, -1, n), 0.0),
            "sale": np.append(sale * 10.0 ** rng.uniform(-4, -0.2, n), 0.0),
            "square": np.append(square * 10.0 ** rng.uniform(-3, 0.5, n), 0.0),
            "impact": np.append(impact * 10.0 ** rng.uniform(-3, 0.0, n), 0.0),
            "long": np.append(held * rng.uniform(-0.02, 0.05, n), 0.0),
            "short": np.append(held * rng.uniform(0.02, 0.1, n), 0.0),
        }
        every = {
            "fee": ProportionalCost("fee", "sale"),
            "square": QuadraticCost("square"),
            "impact": ImpactCost("impact", nav),
            "hold": HoldingCost("long", "short"),
        }
        cash = float(w[-1])
        low = float(max(0.0, cash + rng.normal(0, 0.1)))
        width = float(10.0 ** rng.uniform(-4, -1))
        rules = {
            "floor": [CashFloor(low)],
            "band": [CashBand(low, low + 0.3)],
            "tight band": [CashBand(low - width, low)],
            "default": [],
        }[str(budget)]
        box = np.sort(rng.normal(0.1, 0.4, (2, n)), axis=0)
        given = {
            "long": LongOnly(),
            "drift": DriftBand(absolute=float(rng.uniform(0.01, 0.2)), inside=float(rng.uniform(0.2, 1))),
            "box": WeightBounds(*(dict(zip(names(n), edge, strict=True)) for edge in box)),
            "buy": BuyOnly(),
        }
        yield problem(
            w,
            b,
            *rules,
            *(given[name] for name in bounds),
            *([NoTrade(fixed)] if fixed else []),
            nav=nav,
            columns={name: column for name, column in columns.items()},
            covariance=np.diag(risky * rng.uniform(0.05, 0.9, n) ** 2),
            costs=tuple(every[kind] for kind in kinds),
            aversion=float(10.0 ** rng.uniform(-1, 2)),
            horizon=float(10.0 ** rng.uniform(-2, 1)),
        )
