"""Small portfolios given as weights, and random problems that share a few structures.

`strategies` makes problems of every kind, each with its own compiled program; here thousands share a few
structures, so that the program can judge the closed form quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from equipoise.constraints import (
    BuyOnly,
    CashBand,
    CashFloor,
    DriftBand,
    LongOnly,
    NoTrade,
    Rule,
    WeightBounds,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import Cost, HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.models import CovarianceRisk

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


def problem(before: Any, target: Any, *rules: Rule, **given: Any) -> Problem:
    """The problem of this portfolio under these rules.

    `covariance`, of all but the cash, becomes the risk; `nav` and `columns` go to the table.
    """
    if (covariance := given.pop("covariance", None)) is not None:
        given["risk"] = CovarianceRisk(np.asarray(covariance, dtype=float), assets=names(len(before) - 1))
    account = portfolio(before, target, nav=given.pop("nav", 1.0), **given.pop("columns", {}))
    return Policy(constraints=rules, **given).problem(account)


def separable_problems(rng: np.random.Generator, draws: int, *, nav: float = 1.0) -> Iterator[Problem]:
    """`draws` problems of one random structure that the closed form takes (a few of them infeasible).

    Which assets have no risk, no cost, a holding cost or a fixed weight, and which rules there are, is the
    structure; holdings, targets, rates, bounds, aversion and horizon are drawn anew each time.
    """
    n = int(rng.integers(1, 8))

    def some(**chances: float) -> list[str]:
        return [name for name, chance in chances.items() if rng.random() < chance]

    risky, fee, sale, square, impact, held = (rng.random(n) < p for p in (0.8, 0.8, 0.8, 0.5, 0.5, 0.5))
    costs = some(fee=0.8, square=0.25, impact=0.3, hold=0.2)
    bounds = some(long=0.6, drift=0.25, box=0.25, buy=0.1)
    budget = str(rng.choice(["floor", "band", "tight band", "default"]))
    fixed = names(n)[:1] if n > 2 and rng.random() < 0.2 else []
    shorts = rng.random() < 0.2
    for _ in range(draws):
        w, b = rng.dirichlet(np.ones(n + 1)), rng.dirichlet(np.ones(n + 1))
        if shorts:  # holdings and targets with debts
            w, b = (x + np.append(d := rng.normal(0, 0.3, n), -d.sum()) for x in (w, b))
        rates = {
            "fee": fee * 10.0 ** rng.uniform(-4, -1, n),
            "sale": sale * 10.0 ** rng.uniform(-4, -0.2, n),
            "square": square * 10.0 ** rng.uniform(-3, 0.5, n),
            "impact": impact * 10.0 ** rng.uniform(-3, 0.0, n),
            "long": held * rng.uniform(-0.02, 0.05, n),
            "short": held * rng.uniform(0.02, 0.1, n),
        }
        kinds: dict[str, Cost] = {
            "fee": ProportionalCost("fee", "sale"),
            "square": QuadraticCost("square"),
            "impact": ImpactCost("impact", nav),
            "hold": HoldingCost("long", "short"),
        }
        low = float(w[-1] + (-0.3 if "buy" in bounds else rng.normal(0, 0.1)))
        width = float(10.0 ** rng.uniform(-4, -1))
        room = rng.uniform(0, 0.4, (2, n)) * [[-1], [1]]
        around = [dict(zip(names(n), w[:n] + side, strict=True)) for side in room]
        limits: dict[str, list[Rule]] = {
            "floor": [CashFloor(low)],
            "band": [CashBand(low, low + 0.3)],
            "tight band": [CashBand(low - width, low)],
            "default": [],
            "long": [LongOnly()],
            "drift": [DriftBand(absolute=float(rng.uniform(0.1, 0.5)), inside=float(rng.uniform(0.3, 1)))],
            "box": [WeightBounds(*around)],
            "buy": [BuyOnly()],
        }
        yield problem(
            w,
            b,
            *(rule for name in (budget, *bounds) for rule in limits[name]),
            *([NoTrade(fixed)] if fixed else []),
            nav=nav,
            columns={name: np.append(rate, 0.0) for name, rate in rates.items()},
            covariance=np.diag(risky * rng.uniform(0.05, 0.9, n) ** 2),
            costs=tuple(kinds[name] for name in costs),
            aversion=float(10.0 ** rng.uniform(-1, 2)),
            horizon=float(10.0 ** rng.uniform(-2, 1)),
        )
