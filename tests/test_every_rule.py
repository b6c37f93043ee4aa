"""Every rule in equipoise.constraints, found by itself: its data, its answers, its pickles, its refusals.

All cases are about one small account, in fractions of its NAV of 1000 (see `TABLE`):

             BOND   COIN   LOAN  STOCK    USD
    before   0.40   0.40  -0.20   0.30   0.10
    target   0.30   0.35  -0.10   0.35   0.10

`formula` states the rule by hand: it takes weights and trades by asset and returns the excess of every
inequality over its limit, so that a rule holds where none is positive.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from strategies import RULES, many

import equipoise.constraints as constraints
from equipoise.constraints import (
    AfterMove,
    AfterScenarios,
    AfterShock,
    BorrowLimit,
    Bound,
    BuyOnly,
    CashBand,
    CashFloor,
    CollateralRatio,
    Cone,
    Custom,
    CVaR,
    DriftBand,
    Envelope,
    FactorLimit,
    GreekLimit,
    GroupLimit,
    HealthFactor,
    InitialMargin,
    InputError,
    Leverage,
    LoanToValue,
    LongOnly,
    LotSize,
    MaintenanceMargin,
    MinimumPosition,
    NameLimit,
    NoTrade,
    Opaque,
    OrderLimit,
    PoolCaps,
    Reserve,
    Row,
    Rule,
    SellOnly,
    SettledCash,
    ShortOnly,
    TrackingErrorLimit,
    Trade,
    TradeLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import ImpactCost, ProportionalCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Status
from equipoise.optimizer.risk.models import CovarianceRisk
from equipoise.optimizer.solvers.program.cache import compiled
from equipoise.optimizer.solvers.program.program import solve
from equipoise.optimizer.verification.exact import verify

NAN = float("nan")
RISKY = ("BOND", "COIN", "LOAN", "STOCK")
ASSETS = (*RISKY, "USD")
HOLD = (0.40, 0.40, -0.20, 0.30, 0.10)
TARGET = (0.30, 0.35, -0.10, 0.35, 0.10)
TABLE = pd.DataFrame(
    {
        "quantity": [40.0, 10.0, -20.0, 10.0, 100.0],
        "price": [10.0, 40.0, 10.0, 30.0, 1.0],
        "target": TARGET,
        "threshold": [0.9, 0.7, 0.0, 0.5, 0.0],
        "margin": [0.1, 0.3, 0.15, 0.25, 0.0],
        "haircut": [0.02, 0.4, 0.0, 0.15, 0.0],
        "beta": [0.1, 1.5, 0.0, 1.0, 0.0],
        "volume": [500.0, 1000.0, 2000.0, 400.0, 1.0],
        "lot": [1.0, 0.001, 0.0, 1.0, 5.0],
        "group": ["safe", "risky", "debt", "risky", None],
        "account": ["lend", "lend", "lend", "broker", None],
        "delta": [1.0, 60.0, 0.0, 30.0, 0.0],
    },
    index=list(ASSETS),
)
COVARIANCE = np.array(
    [[0.01, 0.002, 0.0, 0.003], [0.002, 0.36, 0.0, 0.05], [0.0, 0.0, 0.0025, 0.0], [0.003, 0.05, 0.0, 0.04]]
)
RISK = CovarianceRisk(COVARIANCE, assets=RISKY)

Weights = dict[str, float]
Point = tuple[float, ...]


def gross(w: Weights) -> float:
    return sum(abs(w[a]) for a in RISKY)


def long(w: Weights, a: str) -> float:
    return max(w[a], 0.0)


def debt(w: Weights) -> float:
    return sum(max(-w[a], 0.0) for a in ASSETS)


def beta(w: Weights) -> float:
    return 0.1 * w["BOND"] + 1.5 * w["COIN"] + w["STOCK"]


def kept(each: dict[str, float], share: float) -> float:
    """The most that counts if no kind may be more than `share` of it: over all sets of kinds at their limit."""
    return min(
        sum(x for a, x in each.items() if a not in full) / (1 - share * m)
        for m in range(len(each) + 1)
        if share * m < 1
        for full in combinations(each, m)
    )


def tiered(w: float, *pairs: tuple[float, float]) -> float:
    """Each slice of the notional at the rate of its bracket; floors in cash, the NAV is 1000."""
    ends = [floor for floor, _ in pairs[1:]] + [1e9]
    return sum(
        rate * min(max(abs(w) - a / 1e3, 0), b / 1e3 - a / 1e3) for (a, rate), b in zip(pairs, ends, strict=True)
    )


def health(w: Weights, h: float, lt: Weights, price: Weights | None = None) -> float:
    """h·debt − Σ threshold·collateral, after prices are this many times what they were."""
    p = {a: (price or {}).get(a, 1.0) for a in ASSETS}
    return sum(h * p[a] * max(-w[a], 0.0) - lt.get(a, 0.0) * p[a] * long(w, a) for a in ASSETS)


LT = {"BOND": 0.9, "COIN": 0.7, "STOCK": 0.5}
COIN_TIERS = ((0.0, 0.1), (200.0, 0.3))
STOCK_TIERS = ((0.0, 0.05), (100.0, 0.2), (300.0, 0.5))
MOVES = {
    "up": {"COIN": 0.2, "LOAN": 0.1},
    "down": {"COIN": -0.5, "STOCK": -0.2},
    "worse": {"COIN": -0.7, "STOCK": -0.5, "BOND": 0.05},
    "debt": {"LOAN": 0.4},
}
PRICES = {name: {a: 1.0 + r for a, r in moves.items()} for name, moves in MOVES.items()}


def worst_half(w: Weights) -> float:
    return sum(sorted(health(w, 5.0, LT, price) for price in PRICES.values())[2:]) / 2


def sigmas(w: Weights) -> float:
    """√ of the variance of Σ thresholds·collateral − 5·debt, for positions on the sides where they are held."""
    x = np.array([0.9 * w["BOND"], 0.7 * w["COIN"], 5.0 * w["LOAN"], 0.5 * w["STOCK"]])
    return float(np.sqrt(x @ COVARIANCE @ x))


def shocked_margin(w: Weights) -> float:
    """Of each asset the worse of its prices at 0.8 and 1.1 times: its margin less a twentieth of its value."""
    tiers = {"COIN": COIN_TIERS}
    total = 0.0
    for a in ASSETS:
        ends = (0.8, 1.1) if a != "USD" else (1.0,)
        total += max(tiered(p * w[a], *tiers.get(a, ((0.0, 0.0),))) - 0.05 * p * w[a] for p in ends)
    return total


def small_trades(t: Trade) -> Any:
    """‖z‖₂ ≤ 0.1 over the assets without the cash, and a cap on the sum of two weights."""
    import cvxpy as cp

    return [cp.norm(t.trades[:4], 2) <= 0.1, t.weight("COIN") + t.weight("STOCK") <= 0.69]


@dataclass(frozen=True, eq=False)
class Case:
    """A rule, its formula, and points (weights after trading, in the order of ASSETS) that keep or break it.

    `at` is where an account without the rule would go: to the target, or to where it is because trading is
    dear. It breaks the rule, so that the rule must bind.
    """

    rule: Rule
    formula: Callable[[Weights, Weights], list[float]]
    keeps: tuple[Point, ...]
    breaks: tuple[Point, ...]
    at: Point = TARGET

    def excess(self, point: Iterable[float]) -> list[float]:
        weights = dict(zip(ASSETS, point, strict=True))
        return self.formula(weights, {a: weights[a] - b for a, b in zip(ASSETS, HOLD, strict=True)})


B = dict(zip(ASSETS, TARGET, strict=True))
W0 = dict(zip(ASSETS, HOLD, strict=True))

CASES: dict[type[Rule], list[Case]] = {
    DriftBand: [
        Case(  # the lesser of 5 points and a quarter: 0.05, 0.05, 0.025, 0.05
            DriftBand(absolute=0.05, relative=0.25),
            lambda w, z: [s * (w[a] - B[a]) - min(0.05, 0.25 * abs(B[a])) for a in RISKY for s in (1, -1)],
            keeps=(TARGET, (0.35, 0.40, -0.125, 0.35, 0.025), (0.25, 0.30, -0.075, 0.40, 0.125)),
            breaks=(HOLD, (0.36, 0.35, -0.10, 0.35, 0.04), (0.30, 0.35, -0.13, 0.35, 0.13)),
            at=HOLD,
        ),
        Case(  # the greater, not symmetric; half-way in for all but COIN, which is inside: 0.01 below BOND's target
            DriftBand(absolute=(0.02, 0.06), relative=(0.1, 0.1), combine="greater", inside=0.5),
            lambda w, z: [
                *(w[a] - B[a] - (1 if a == "COIN" else 0.5) * max(0.06, 0.1 * abs(B[a])) for a in RISKY),
                *(B[a] - w[a] - (1 if a == "COIN" else 0.5) * max(0.02, 0.1 * abs(B[a])) for a in RISKY),
            ],
            keeps=(TARGET, (0.33, 0.35, -0.10, 0.35, 0.07), (0.285, 0.3325, -0.11, 0.38, 0.1125)),
            breaks=(HOLD, (0.331, 0.35, -0.10, 0.35, 0.069), (0.284, 0.35, -0.10, 0.35, 0.116)),
            at=HOLD,
        ),
        Case(
            DriftBand(absolute={"BOND": 0.02, "STOCK": 0.01}, assets=["BOND", "STOCK"]),
            lambda w, z: [s * (w[a] - B[a]) - b for a, b in (("BOND", 0.02), ("STOCK", 0.01)) for s in (1, -1)],
            keeps=((0.32, 0.5, -0.27, 0.34, 0.11),),
            breaks=((0.32, 0.35, -0.1, 0.33, 0.1), HOLD),
            at=HOLD,
        ),
        Case(  # by label: safe 0.30, risky 0.70 (inside), debt -0.10; BOND may end at 0.30 + 0.8·0.05
            DriftBand(absolute={"safe": 0.05, "risky": 0.2, "debt": 0.5}, relative=0.5, by="group", inside=0.8),
            lambda w, z: [
                s * (sum(w[a] for a in of) - sum(B[a] for a in of)) - part * min(width, 0.5 * size)
                for of, width, size, part in (
                    (("BOND",), 0.05, 0.3, 0.8),
                    (("COIN", "STOCK"), 0.2, 0.7, 1.0),
                    (("LOAN",), 0.5, 0.1, 0.8),
                )
                for s in (1, -1)
            ],
            keeps=(TARGET, (0.34, 0.70, -0.14, 0.10, 0.0), (0.26, 0.30, -0.06, 0.24, 0.26)),
            breaks=(HOLD, (0.35, 0.30, -0.10, 0.35, 0.10), (0.30, 0.30, -0.10, 0.19, 0.31)),
            at=HOLD,
        ),
        Case(  # the cash has a band only if it is asked for
            DriftBand(absolute={"USD": 0.01, "BOND": 0.02, "COIN": 1, "LOAN": 1, "STOCK": 1}, cash=True),
            lambda w, z: [s * (w[a] - B[a]) - {"USD": 0.01, "BOND": 0.02}.get(a, 1.0) for a in ASSETS for s in (1, -1)],
            keeps=((0.32, 0.40, -0.20, 0.37, 0.11),),
            breaks=(HOLD, (0.32, 0.40, -0.20, 0.36, 0.12)),
            at=HOLD,
        ),
    ],
    LongOnly: [
        Case(
            LongOnly(),
            lambda w, z: [-w[a] for a in RISKY],
            keeps=((0.3, 0.3, 0.0, 0.3, 0.1),),
            breaks=(TARGET, (0.5, 0.5, 0.1, -0.1, 0.0)),
        ),
        Case(
            LongOnly(except_=["LOAN", "COIN"]),
            lambda w, z: [-w["BOND"], -w["STOCK"]],
            keeps=((0.3, -0.3, -0.3, 0.3, 1.0),),
            breaks=((-0.1, 0.35, -0.10, 0.35, 0.5), (0.8, 0.2, -0.3, -0.01, 0.31)),
            at=(-0.1, 0.35, -0.10, 0.35, 0.5),
        ),
    ],
    ShortOnly: [
        Case(
            ShortOnly(["LOAN"]),
            lambda w, z: [w["LOAN"]],
            keeps=(TARGET, (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=((0.3, 0.3, 0.1, 0.2, 0.1),),
            at=(0.3, 0.3, 0.1, 0.2, 0.1),
        )
    ],
    WeightBounds: [
        Case(
            WeightBounds(upper=0.32, assets=["BOND", "STOCK"]),
            lambda w, z: [w["BOND"] - 0.32, w["STOCK"] - 0.32],
            keeps=((0.32, 0.5, -0.2, 0.32, 0.06),),
            breaks=(TARGET, (0.33, 0.35, -0.1, 0.3, 0.12)),
        ),
        Case(
            WeightBounds(lower={"COIN": 0.4}, upper={"STOCK": 0.3, "LOAN": 0.0}),
            lambda w, z: [0.4 - w["COIN"], w["STOCK"] - 0.3, w["LOAN"]],
            keeps=(HOLD, (0.3, 0.4, 0.0, 0.3, 0.0)),
            breaks=(TARGET, (0.3, 0.4, 0.1, 0.2, 0.0), (0.3, 0.39, -0.1, 0.3, 0.11)),
        ),
        Case(
            WeightBounds(lower=-0.05, upper=0.36),
            lambda w, z: [-0.05 - w[a] for a in RISKY] + [w[a] - 0.36 for a in RISKY],
            keeps=((0.36, 0.36, -0.05, 0.33, 0.0),),
            breaks=(TARGET, (0.36, 0.37, -0.05, 0.32, 0.0)),
        ),
        Case(  # the cash, if it is named
            WeightBounds(lower=0.15, upper=0.2, assets=["USD"]),
            lambda w, z: [0.15 - w["USD"], w["USD"] - 0.2],
            keeps=((0.3, 0.3, -0.1, 0.35, 0.15), (0.3, 0.3, -0.1, 0.3, 0.2)),
            breaks=(TARGET, (0.3, 0.25, -0.1, 0.3, 0.25)),
        ),
    ],
    NoTrade: [
        Case(
            NoTrade(["COIN", "LOAN"]),
            lambda w, z: [s * z[a] for a in ("COIN", "LOAN") for s in (1, -1)],
            keeps=(HOLD, (0.3, 0.4, -0.2, 0.4, 0.1)),
            breaks=(TARGET, (0.4, 0.4, -0.19, 0.3, 0.09)),
        ),
        Case(
            NoTrade(),
            lambda w, z: [s * z[a] for a in RISKY for s in (1, -1)],
            keeps=(HOLD,),
            breaks=(TARGET, (0.41, 0.4, -0.2, 0.3, 0.09)),
        ),
    ],
    BuyOnly: [
        Case(
            BuyOnly(),
            lambda w, z: [-z[a] for a in RISKY],
            keeps=(HOLD, (0.41, 0.42, -0.17, 0.34, 0.0)),
            breaks=(TARGET, (0.39, 0.4, -0.2, 0.3, 0.11)),
        ),
        Case(
            BuyOnly(["BOND"]),
            lambda w, z: [-z["BOND"]],
            keeps=((0.4, 0.1, -0.3, 0.3, 0.5),),
            breaks=(TARGET,),
        ),
    ],
    SellOnly: [
        Case(
            SellOnly(),
            lambda w, z: [z[a] for a in RISKY],
            keeps=(HOLD, (0.3, 0.3, -0.3, 0.2, 0.5)),
            breaks=(TARGET, (0.41, 0.4, -0.2, 0.3, 0.09)),
        ),
        Case(
            SellOnly(["STOCK"]),
            lambda w, z: [z["STOCK"]],
            keeps=((0.5, 0.3, -0.1, 0.3, 0.0),),
            breaks=(TARGET,),
        ),
    ],
    TradeLimit: [
        Case(  # in cash: 25, 50, 100 and 20
            TradeLimit(0.05, "volume"),
            lambda w, z: [
                s * z[a] - limit / 1000 for a, limit in zip(RISKY, (25, 50, 100, 20), strict=True) for s in (1, -1)
            ],
            keeps=(HOLD, (0.375, 0.35, -0.10, 0.32, 0.055)),
            breaks=(TARGET, (0.4, 0.4, -0.2, 0.321, 0.079)),
        ),
        Case(
            TradeLimit(0.5, 100.0, assets=["LOAN"]),
            lambda w, z: [z["LOAN"] - 0.05, -z["LOAN"] - 0.05],
            keeps=((0.1, 0.1, -0.15, 0.9, 0.05),),
            breaks=(TARGET, (0.4, 0.4, -0.26, 0.3, 0.16)),
        ),
    ],
    CashFloor: [
        Case(
            CashFloor(0.2),
            lambda w, z: [0.2 - w["USD"]],
            keeps=((0.3, 0.3, -0.1, 0.3, 0.2),),
            breaks=(TARGET, (0.3, 0.3, -0.1, 0.31, 0.19)),
        ),
        Case(
            CashFloor(weight=0.1, money=250.0),
            lambda w, z: [0.25 - w["USD"]],
            keeps=((0.3, 0.3, -0.1, 0.25, 0.25),),
            breaks=(TARGET, (0.3, 0.3, -0.1, 0.26, 0.24)),
        ),
        Case(
            CashFloor(weight=0.2, money=50.0),
            lambda w, z: [0.2 - w["USD"]],
            keeps=((0.3, 0.3, -0.1, 0.3, 0.2),),
            breaks=(TARGET,),
        ),
        Case(
            CashFloor(-0.3),
            lambda w, z: [-0.3 - w["USD"]],
            keeps=((0.6, 0.5, -0.1, 0.3, -0.3),),
            breaks=((0.6, 0.5, -0.1, 0.4, -0.4),),
            at=(0.6, 0.5, -0.1, 0.4, -0.4),
        ),
    ],
    CashBand: [
        Case(
            CashBand(0.15, 0.25),
            lambda w, z: [0.15 - w["USD"], w["USD"] - 0.25],
            keeps=((0.3, 0.3, -0.1, 0.35, 0.15), (0.2, 0.3, -0.1, 0.35, 0.25)),
            breaks=(TARGET, (0.1, 0.3, -0.1, 0.35, 0.35)),
        ),
        Case(
            CashBand(upper=0.05),
            lambda w, z: [-w["USD"], w["USD"] - 0.05],
            keeps=((0.35, 0.35, -0.1, 0.35, 0.05),),
            breaks=(TARGET, (0.45, 0.35, -0.1, 0.35, -0.05)),
        ),
    ],
    HealthFactor: [
        Case(  # 0.69 / 0.10 = 6.9 at the target
            HealthFactor(8.0, "threshold"),
            lambda w, z: [8 * debt(w) - 0.9 * long(w, "BOND") - 0.7 * long(w, "COIN") - 0.5 * long(w, "STOCK")],
            keeps=((0.5, 0.35, -0.1, 0.21, 0.04), (0.4, 0.4, 0.0, 0.1, 0.1)),
            breaks=(TARGET, HOLD, (0.5, 0.35, -0.11, 0.21, 0.05), (0.5, 0.35, 0.2, -0.1, 0.05)),
        ),
        Case(
            HealthFactor(5.0, {"BOND": 1.0}),
            lambda w, z: [5 * debt(w) - long(w, "BOND")],
            keeps=((0.5, 0.3, -0.1, 0.2, 0.1),),
            breaks=(TARGET, (0.4, 0.35, -0.1, 0.35, 0.0)),
        ),
        Case(  # one account, in an e-mode that holds the bonds
            HealthFactor(6.0, "threshold", emode="safe", emodes={"safe": {"BOND": 0.95}}, account="lend"),
            lambda w, z: [
                6 * sum(max(-w[a], 0.0) for a in ("BOND", "COIN", "LOAN"))
                - 0.95 * long(w, "BOND")
                - 0.7 * long(w, "COIN")
            ],
            keeps=((0.3, 0.5, -0.1, 0.2, 0.1), (0.3, 0.5, -0.1, -0.2, 0.5)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            HealthFactor(5.0, "threshold", assets=["COIN", "LOAN"]),
            lambda w, z: [5 * (max(-w["LOAN"], 0.0) + max(-w["COIN"], 0.0)) - 0.7 * long(w, "COIN")],
            keeps=((0.3, 0.35, -0.049, 0.349, 0.05),),
            breaks=(TARGET, HOLD),
        ),
    ],
    CollateralRatio: [
        Case(  # 1.10 / 0.10 = 11 at the target, the cash included
            CollateralRatio(12.0),
            lambda w, z: [12 * debt(w) - sum(long(w, a) for a in ASSETS)],
            keeps=((0.3, 0.35, -0.09, 0.35, 0.09), (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            CollateralRatio(4.0, factor={"BOND": 0.8, "USD": 1.0}),
            lambda w, z: [4 * debt(w) - 0.8 * long(w, "BOND") - long(w, "USD")],
            keeps=((0.375, 0.35, -0.1, 0.275, 0.1),),
            breaks=(TARGET, (0.3, 0.35, 0.35, -0.1, 0.1)),
        ),
        Case(  # of coins at most 100, of no kind more than 40 %: 0.458 counts at the target
            CollateralRatio(6.0, "threshold", cap={"COIN": 100.0}, share=0.4),
            lambda w, z: [
                6 * debt(w)
                - kept(
                    {
                        "BOND": 0.9 * long(w, "BOND"),
                        "COIN": min(0.7 * long(w, "COIN"), 0.1),
                        "STOCK": 0.5 * long(w, "STOCK"),
                    },
                    0.4,
                ),
                *(-w[a] for a in ("BOND", "COIN", "STOCK")),
            ],
            keeps=((0.25, 0.35, -0.05, 0.35, 0.1), (0.25, 0.25, 0.0, 0.4, 0.1)),
            breaks=(TARGET, HOLD, (0.6, 0.3, 0.0, -0.1, 0.2)),
        ),
    ],
    LoanToValue: [
        Case(  # 0.10 of 1.10 at the target, the cash included
            LoanToValue(0.08),
            lambda w, z: [debt(w) - 0.08 * sum(long(w, a) for a in ASSETS)],
            keeps=((0.3, 0.35, -0.08, 0.35, 0.08), (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=(TARGET, HOLD),
        ),
        Case(  # of one account, where bonds count alone
            LoanToValue(0.2, {"BOND": 1.0}, account="lend"),
            lambda w, z: [sum(max(-w[a], 0.0) for a in ("BOND", "COIN", "LOAN")) - 0.2 * long(w, "BOND")],
            keeps=((0.5, 0.35, -0.1, 0.15, 0.1), (0.5, 0.35, -0.1, -0.2, 0.45)),
            breaks=(TARGET, HOLD),
        ),
    ],
    BorrowLimit: [
        Case(  # beyond its borrow limit by 0.2 − 0.08 − 0.02 already: not further, and no more debt of anything
            BorrowLimit({"BOND": 0.2, "COIN": 0.05}, {"BOND": 0.6, "COIN": 0.2}, at_least=3.0),
            lambda w, z: [
                debt(w) - 0.2 * long(w, "BOND") - 0.05 * long(w, "COIN") - 0.1,
                3 * debt(w) - 0.6 * long(w, "BOND") - 0.2 * long(w, "COIN"),
                -0.2 - w["LOAN"],
                *(-w[a] for a in ASSETS if a != "LOAN"),
            ],
            keeps=((0.5, 0.2, -0.1, 0.3, 0.1), (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=(TARGET, HOLD, (0.9, 0.4, -0.21, -0.09, 0.0)),
        ),
        Case(
            BorrowLimit({"COIN": 0.1}, {"COIN": 0.9, "BOND": 0.8}),
            lambda w, z: [
                debt(w) - 0.1 * long(w, "COIN") - 0.16,
                debt(w) - 0.9 * long(w, "COIN") - 0.8 * long(w, "BOND"),
                -0.2 - w["LOAN"],
                *(-w[a] for a in ASSETS if a != "LOAN"),
            ],
            keeps=(HOLD, TARGET),
            breaks=((0.5, 0.5, -0.25, 0.2, 0.05), (0.3, 0.35, -0.2, 0.35, 0.2)),
            at=(0.5, 0.5, -0.25, 0.2, 0.05),
        ),
    ],
    MaintenanceMargin: [
        Case(  # 20 + 45 of COIN and 5 + 40 + 25 of STOCK: 0.135 of an equity of 1 at the target
            MaintenanceMargin({"COIN": COIN_TIERS, "STOCK": STOCK_TIERS}, utilisation=0.1),
            lambda w, z: [
                tiered(w["COIN"], *COIN_TIERS) + tiered(w["STOCK"], *STOCK_TIERS) - 0.1 * sum(w[a] for a in ASSETS)
            ],
            keeps=((0.5, 0.2, -0.1, 0.2, 0.2), (1.0, -0.2, -0.1, -0.1, 0.4)),
            breaks=(TARGET, HOLD, (0.5, -0.4, -0.1, 0.2, 0.8)),
        ),
        Case(  # of collateral without margin at most 200 in bonds, and half in one kind
            MaintenanceMargin({"COIN": COIN_TIERS}, "haircut", 0.08, cap={"BOND": 200.0}, share=0.5),
            lambda w, z: [
                tiered(w["COIN"], *COIN_TIERS)
                - 0.08
                * (
                    kept(
                        {
                            "BOND": min(0.98 * long(w, "BOND"), 0.2),
                            "STOCK": 0.85 * long(w, "STOCK"),
                            "USD": long(w, "USD"),
                        },
                        0.5,
                    )
                    + 0.6 * long(w, "COIN")
                    - debt(w)
                ),
                -w["BOND"],
                w["LOAN"],
                -w["STOCK"],
                -w["USD"],
            ],
            keeps=((0.3, 0.2, -0.1, 0.35, 0.25), (0.2, 0.1, -0.1, 0.6, 0.2)),
            breaks=(TARGET, HOLD, (0.9, 0.1, -0.7, 0.0, 0.7)),
        ),
    ],
    AfterShock: [
        Case(
            AfterShock(HealthFactor(5.0, "threshold"), {"BOND": 0.05, "COIN": 0.5, "STOCK": 0.3}, {"LOAN": 0.1}),
            lambda w, z: [
                5 * sum((1.1 if a == "LOAN" else 1.0) * max(-w[a], 0.0) for a in ASSETS)
                - 0.855 * long(w, "BOND")
                - 0.35 * long(w, "COIN")
                - 0.35 * long(w, "STOCK")
            ],
            keeps=((0.5, 0.3, -0.1, 0.2, 0.1), (0.3, 0.35, -0.05, 0.35, 0.05)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            AfterShock(MaintenanceMargin({"COIN": COIN_TIERS}, utilisation=0.05), 0.2, 0.1),
            lambda w, z: [shocked_margin(w)],
            keeps=((0.5, 0.2, -0.1, 0.3, 0.1), (0.5, -0.1, -0.1, 0.3, 0.4)),
            breaks=(TARGET, HOLD),
        ),
    ],
    AfterScenarios: [
        Case(
            AfterScenarios(
                HealthFactor(6.0, "threshold", emode="a", emodes={"a": {"BOND": 0.95}}),
                {"crash": {"COIN": -0.6, "STOCK": -0.4, "BOND": 0.02}, "debt up": {"LOAN": 0.3}},
                {"debt up": {"emode": ""}, "tuned": {"at_least": 5.0, "threshold": {"BOND": 0.7, "COIN": 0.5}}},
            ),
            lambda w, z: [
                health(w, 6.0, LT | {"BOND": 0.95}, {"COIN": 0.4, "STOCK": 0.6, "BOND": 1.02}),
                health(w, 6.0, LT, {"LOAN": 1.3}),
                health(w, 5.0, {"BOND": 0.95, "COIN": 0.5}),
            ],
            keeps=((0.6, 0.4, -0.1, 0.0, 0.1), (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            AfterScenarios(LoanToValue(0.2), {"all": -0.5}),
            lambda w, z: [
                debt(w) * 0.5
                + 0.5 * max(-w["USD"], 0.0)
                - 0.2 * (0.5 * sum(long(w, a) for a in RISKY) + long(w, "USD"))
            ],
            keeps=(TARGET,),
            breaks=((0.6, 0.6, -0.7, 0.4, 0.1),),
            at=(0.6, 0.6, -0.7, 0.4, 0.1),
        ),
    ],
    CVaR: [
        Case(
            CVaR(HealthFactor(5.0, "threshold"), MOVES, level=0.5),
            lambda w, z: [worst_half(w)],
            keeps=((0.6, 0.2, -0.1, 0.2, 0.1), (0.3, 0.3, 0.0, 0.3, 0.1)),
            breaks=(TARGET, HOLD),
        )
    ],
    AfterMove: [
        Case(
            AfterMove(HealthFactor(5.0, "threshold"), years=0.02, sigmas=10.0),
            lambda w, z: [
                health(w, 5.0, LT) + 10 * 0.02**0.5 * sigmas(w),
                *(-w[a] for a in ("BOND", "COIN", "STOCK")),
                w["LOAN"],
            ],
            keeps=((0.5, 0.15, -0.05, 0.35, 0.05), (0.5, 0.2, 0.0, 0.2, 0.1)),
            breaks=(TARGET, HOLD, (0.5, 0.2, 0.1, 0.2, 0.0)),
        ),
        Case(  # Cantelli: √(0.95/0.05) = 4.3589
            AfterMove(HealthFactor(5.0, "threshold"), years=0.08, probability=0.05, distribution="cantelli"),
            lambda w, z: [
                health(w, 5.0, LT) + 19**0.5 * 0.08**0.5 * sigmas(w),
                *(-w[a] for a in ("BOND", "COIN", "STOCK")),
                w["LOAN"],
            ],
            keeps=((0.5, 0.15, -0.05, 0.35, 0.05),),
            breaks=(TARGET, HOLD),
        ),
    ],
    GreekLimit: [
        Case(  # deltas of 1, 60 and 30 a unit: 0.905 of NAV at the target
            GreekLimit("delta", upper=0.8, lower=0.5),
            lambda w, z: [beta(w) - 0.8, 0.5 - beta(w)],
            keeps=((0.5, 0.3, -0.1, 0.25, 0.05), (0.5, 0.2, -0.1, 0.2, 0.2)),
            breaks=(TARGET, (0.5, 0.2, -0.1, 0.1, 0.3)),
        ),
        Case(
            GreekLimit("delta", upper=0.3, account="broker"),
            lambda w, z: [w["STOCK"] - 0.3],
            keeps=(HOLD,),
            breaks=(TARGET,),
        ),
    ],
    PoolCaps: [
        Case(  # half a STOCK, one COIN and two units of the LOAN are left
            PoolCaps({"STOCK": 0.5, "COIN": 1.0}, {"LOAN": 2.0}),
            lambda w, z: [w["STOCK"] - 0.315, w["COIN"] - 0.44, -0.22 - w["LOAN"]],
            keeps=(HOLD, (0.3, 0.44, -0.22, 0.315, 0.165)),
            breaks=(TARGET, (0.4, 0.45, -0.2, 0.3, 0.05), (0.4, 0.4, -0.23, 0.3, 0.13)),
        )
    ],
    Reserve: [
        Case(  # of the cash there is less than the reserve: what there is stays
            Reserve({"COIN": 9.5, "USD": 150.0}),
            lambda w, z: [0.38 - w["COIN"], 0.1 - w["USD"]],
            keeps=(HOLD, (0.3, 0.38, -0.1, 0.32, 0.1)),
            breaks=(TARGET, (0.4, 0.4, -0.2, 0.31, 0.09)),
        )
    ],
    SettledCash: [
        Case(  # 50 are still to come; bonds pay later, coins half of it
            SettledCash(50.0, {"BOND": 1.0, "COIN": 0.5}),
            lambda w, z: [0.05 - w["USD"] + max(-z["BOND"], 0.0) + 0.5 * max(-z["COIN"], 0.0)],
            keeps=(HOLD, (0.4, 0.45, -0.2, 0.3, 0.05), (0.3, 0.4, -0.2, 0.3, 0.2)),
            breaks=(TARGET, (0.4, 0.45, -0.2, 0.31, 0.04), (0.3, 0.4, -0.1, 0.3, 0.1)),
        ),
        Case(  # what the sales of an account leave over waits
            SettledCash(0.0, {"COIN": 0.5}, by="account"),
            lambda w, z: [
                -w["USD"]
                + 0.5 * max(-z["COIN"], 0.0)
                + max(
                    0.0,
                    max(-z["BOND"], 0.0)
                    + 0.5 * max(-z["COIN"], 0.0)
                    + max(-z["LOAN"], 0.0)
                    - sum(max(z[a], 0.0) for a in ("BOND", "COIN", "LOAN")),
                )
                + max(0.0, -z["STOCK"])
            ],
            keeps=(HOLD, (0.3, 0.5, -0.2, 0.3, 0.1), (0.3, 0.4, -0.2, 0.4, 0.1)),
            breaks=((0.2, 0.4, -0.2, 0.55, 0.05), (0.55, 0.4, -0.2, 0.2, 0.05)),
            at=(0.2, 0.4, -0.2, 0.55, 0.05),
        ),
    ],
    InitialMargin: [
        Case(  # 0.03 + 0.105 + 0.015 + 0.0875 = 0.2375 of an equity of 1 at the target
            InitialMargin("margin", utilisation=0.2),
            lambda w, z: [
                sum(m * abs(w[a]) for a, m in zip(RISKY, (0.1, 0.3, 0.15, 0.25), strict=True))
                - 0.2 * sum(w[a] for a in ASSETS)
            ],
            keeps=((0.5, 0.2, -0.1, 0.2, 0.2), (0.7, 0.2, -0.2, 0.16, 0.14)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            InitialMargin(0.5, haircut="haircut"),
            lambda w, z: [
                0.5 * gross(w)
                + debt(w)
                - sum((1 - h) * long(w, a) for a, h in zip(ASSETS, (0.02, 0.4, 0, 0.15, 0), strict=True))
            ],
            keeps=(TARGET, (0.3, 0.35, -0.35, 0.35, 0.35)),
            breaks=((0.3, 1.0, -0.7, 0.3, 0.1), (0.6, 0.9, -0.6, 0.0, 0.1)),
            at=(0.6, 0.9, -0.6, 0.0, 0.1),
        ),
        Case(  # bonds, stocks and cash are collateral, of which no kind is more than half
            InitialMargin({"COIN": 0.3}, utilisation=0.1, share=0.5),
            lambda w, z: [
                0.3 * abs(w["COIN"])
                - 0.1 * (kept({a: long(w, a) for a in ("BOND", "STOCK", "USD")}, 0.5) + long(w, "COIN") - debt(w)),
                *(-w[a] for a in ("BOND", "STOCK", "USD")),
                w["LOAN"],
            ],
            keeps=((0.3, 0.3, -0.1, 0.35, 0.15),),
            breaks=(TARGET, HOLD),
        ),
    ],
    Leverage: [
        Case(
            Leverage(gross=1.0),
            lambda w, z: [gross(w) - 1.0],
            keeps=((0.3, 0.35, 0.0, 0.35, 0.0), (0.35, 0.35, -0.1, 0.2, 0.2)),
            breaks=(TARGET, HOLD),
        ),
        Case(
            Leverage(gross=3.0, net=0.8),
            lambda w, z: [gross(w) - 3.0, sum(w[a] for a in RISKY) - 0.8],
            keeps=((1.0, 0.6, -1.1, 0.3, 0.2),),
            breaks=(TARGET, (1.0, 0.8, -1.1, 0.2, 0.1), (1.0, 0.6, -1.2, 0.3, 0.3)),
        ),
        Case(
            Leverage(gross=0.6, except_=["LOAN", "BOND"]),
            lambda w, z: [abs(w["COIN"]) + abs(w["STOCK"]) - 0.6],
            keeps=((0.9, 0.3, -0.6, 0.3, 0.1),),
            breaks=(TARGET, (0.7, 0.3, -0.0, -0.31, 0.31)),
        ),
    ],
    GroupLimit: [
        Case(
            GroupLimit("group", upper={"risky": 0.6}, lower={"safe": 0.35}),
            lambda w, z: [w["COIN"] + w["STOCK"] - 0.6, 0.35 - w["BOND"]],
            keeps=((0.4, 0.1, -0.1, 0.5, 0.1),),
            breaks=(TARGET, (0.34, 0.3, -0.1, 0.3, 0.16), (0.4, 0.3, -0.1, 0.31, 0.09)),
        ),
        Case(
            GroupLimit("group", upper=0.65, lower=-0.15),
            lambda w, z: [e for x in (w["BOND"], w["COIN"] + w["STOCK"], w["LOAN"]) for e in (x - 0.65, -0.15 - x)],
            keeps=((0.5, 0.65, -0.15, 0.0, 0.0),),
            breaks=(TARGET, HOLD, (0.6, 0.3, -0.16, 0.2, 0.06)),
        ),
    ],
    FactorLimit: [
        Case(  # 0.03 + 0.525 + 0.35 = 0.905 at the target
            FactorLimit("beta", upper=0.8, lower=0.5),
            lambda w, z: [beta(w) - 0.8, 0.5 - beta(w)],
            keeps=((0.5, 0.3, -0.1, 0.25, 0.05), (0.5, 0.2, -0.1, 0.2, 0.2)),
            breaks=(TARGET, (0.5, 0.2, -0.1, 0.1, 0.3)),
        ),
        Case(
            FactorLimit({"duration": {"BOND": 7.0, "USD": 1.0}, "beta": "beta"}, upper={"duration": 2.0, "beta": 0.85}),
            lambda w, z: [7 * w["BOND"] + w["USD"] - 2.0, beta(w) - 0.85],
            keeps=((0.25, 0.3, -0.1, 0.35, 0.2),),
            breaks=(TARGET, (0.25, 0.35, -0.1, 0.35, 0.15), (0.28, 0.2, -0.1, 0.5, 0.12)),
        ),
        Case(  # relative to the target's exposure of 0.905
            FactorLimit("beta", upper=0.01, lower=-0.02, relative=True),
            lambda w, z: [beta(w) - 0.905 - 0.01, 0.905 - 0.02 - beta(w)],
            keeps=(TARGET, (0.4, 0.35, -0.2, 0.35, 0.1), (0.3, 0.35, -0.1, 0.33, 0.12)),
            breaks=(HOLD, (0.3, 0.35, -0.1, 0.329, 0.121), (0.41, 0.35, -0.2, 0.35, 0.09)),
            at=HOLD,
        ),
    ],
    TrackingErrorLimit: [
        Case(
            TrackingErrorLimit(0.02),
            lambda w, z: [
                sum(
                    (w[a] - B[a]) * COVARIANCE[i, j] * (w[b] - B[b])
                    for i, a in enumerate(RISKY)
                    for j, b in enumerate(RISKY)
                )
                ** 0.5
                - 0.02
            ],
            keeps=(TARGET, (0.4, 0.35, -0.1, 0.35, 0.0), (0.1, 0.35, -0.1, 0.35, 0.3)),
            breaks=(HOLD, (0.3, 0.39, -0.1, 0.35, 0.06)),
            at=HOLD,
        )
    ],
    Turnover: [
        Case(
            Turnover(0.1),
            lambda w, z: [0.5 * gross(z) - 0.1],
            keeps=(HOLD, (0.35, 0.35, -0.15, 0.35, 0.1), (0.4, 0.2, -0.2, 0.3, 0.3)),
            breaks=(TARGET, (0.4, 0.19, -0.2, 0.3, 0.31)),
        ),
        Case(
            Turnover(0.2, kind="two_way"),
            lambda w, z: [gross(z) - 0.2],
            keeps=((0.35, 0.35, -0.15, 0.35, 0.1),),
            breaks=(TARGET, (0.35, 0.34, -0.15, 0.35, 0.11)),
        ),
        Case(
            Turnover(0.1, kind="buy"),
            lambda w, z: [sum(max(z[a], 0.0) for a in RISKY) - 0.1],
            keeps=((0.1, 0.1, -0.15, 0.35, 0.6), HOLD),
            breaks=(TARGET, (0.4, 0.3, -0.1, 0.31, 0.09)),
        ),
        Case(
            Turnover(0.1, kind="sell"),
            lambda w, z: [sum(max(-z[a], 0.0) for a in RISKY) - 0.1],
            keeps=((0.3, 0.4, -0.1, 0.3, 0.1), HOLD),
            breaks=(TARGET, (0.3, 0.4, -0.21, 0.4, 0.11)),
        ),
    ],
    Custom: [
        Case(
            Custom(small_trades, name="small trades"),
            lambda w, z: [sum(z[a] ** 2 for a in RISKY) ** 0.5 - 0.1, w["COIN"] + w["STOCK"] - 0.69],
            keeps=((0.35, 0.35, -0.15, 0.30, 0.15),),
            breaks=(TARGET, HOLD, (0.29, 0.39, -0.2, 0.3, 0.22)),
        )
    ],
}


#: What each class must refuse, when it is made or applied, and the column (or argument) that the error names.
BAD: list[tuple[type[Rule], Callable[[], Rule], str]] = [
    (DriftBand, lambda: DriftBand(), "DriftBand"),
    (DriftBand, lambda: DriftBand(absolute=-0.1), "absolute"),
    (DriftBand, lambda: DriftBand(relative=NAN), "relative"),
    (DriftBand, lambda: DriftBand(absolute=(0.1, -0.1)), "absolute"),
    (DriftBand, lambda: DriftBand(absolute=(0.1, 0.2, 0.3)), "absolute"),  # type: ignore[arg-type]
    (DriftBand, lambda: DriftBand(absolute={"BOND": NAN}), "absolute"),
    (DriftBand, lambda: DriftBand(absolute={"BUND": 0.1}), "absolute"),
    (DriftBand, lambda: DriftBand(absolute="width"), "width"),
    (DriftBand, lambda: DriftBand(absolute=0.1, inside=1.01), "inside"),
    (DriftBand, lambda: DriftBand(absolute=0.1, inside=-0.01), "inside"),
    (DriftBand, lambda: DriftBand(absolute=0.1, combine="least"), "combine"),  # type: ignore[arg-type]
    (DriftBand, lambda: DriftBand(absolute=0.1, by="group", assets=["BOND"]), "by"),
    (DriftBand, lambda: DriftBand(absolute=0.1, by="sector"), "sector"),
    (DriftBand, lambda: DriftBand(absolute="beta", by="group"), "absolute"),
    (DriftBand, lambda: DriftBand(absolute={"safe": 0.1}, by="group"), "absolute"),
    (DriftBand, lambda: DriftBand(absolute=0.1, assets=["BUND"]), "assets"),
    (LongOnly, lambda: LongOnly(except_="BOND"), "except_"),
    (LongOnly, lambda: LongOnly(except_=["BUND"]), "except_"),
    (LongOnly, lambda: LongOnly(except_=None), "except_"),  # type: ignore[arg-type]
    (ShortOnly, lambda: ShortOnly(["BUND"]), "assets"),
    (WeightBounds, lambda: WeightBounds(lower=0.5, upper=0.4), "WeightBounds"),
    (WeightBounds, lambda: WeightBounds(upper={"BOND": "much"}), "upper"),  # type: ignore[dict-item]
    (WeightBounds, lambda: WeightBounds(lower="least"), "least"),
    (WeightBounds, lambda: WeightBounds(upper=0.1, assets="BOND"), "assets"),
    (NoTrade, lambda: NoTrade("BOND"), "assets"),
    (NoTrade, lambda: NoTrade(["BUND"]), "assets"),
    (BuyOnly, lambda: BuyOnly(["BUND"]), "assets"),
    (SellOnly, lambda: SellOnly(["BUND"]), "assets"),
    (TradeLimit, lambda: TradeLimit(-0.1, "volume"), "participation"),
    (TradeLimit, lambda: TradeLimit(0.1, "turnover"), "turnover"),
    (TradeLimit, lambda: TradeLimit(0.1, -1.0), "volume"),
    (TradeLimit, lambda: TradeLimit(0.0, float("inf")), "volume"),
    (TradeLimit, lambda: TradeLimit(0.1, {"BOND": 1.0}), "volume"),
    (CashFloor, lambda: CashFloor(NAN), "weight"),
    (CashFloor, lambda: CashFloor(money=float("inf")), "money"),
    (CashBand, lambda: CashBand(float("-inf"), 0.1), "lower"),
    (CashBand, lambda: CashBand(0.2, 0.1), "upper"),
    (CashBand, lambda: CashBand(0.2, NAN), "upper"),
    (HealthFactor, lambda: HealthFactor(0.0, "threshold"), "at_least"),
    (HealthFactor, lambda: HealthFactor(NAN, "threshold"), "at_least"),
    (HealthFactor, lambda: HealthFactor(1.5, {"BOND": 1.01}), "threshold"),
    (HealthFactor, lambda: HealthFactor(1.5, -0.1), "threshold"),
    (HealthFactor, lambda: HealthFactor(0.8, "threshold"), "threshold"),  # 0.9 above it: long + short < 0
    (CollateralRatio, lambda: CollateralRatio(-1.5), "at_least"),
    (CollateralRatio, lambda: CollateralRatio(1.5, 1.01), "factor"),
    (HealthFactor, lambda: HealthFactor(1.5, "threshold", emode="b"), "emode"),
    (HealthFactor, lambda: HealthFactor(1.5, "threshold", emode="b", emodes={"a": {"BOND": 0.9}}), "emode"),
    (HealthFactor, lambda: HealthFactor(1.5, "threshold", emode="a", emodes={"a": {"BOND": 1.9}}), "emodes"),
    (HealthFactor, lambda: HealthFactor(1.5, "threshold", account="perps"), "account"),
    (HealthFactor, lambda: HealthFactor(1.5, "threshold", assets=["BUND"]), "assets"),
    (LoanToValue, lambda: LoanToValue(1.1), "at_most"),
    (LoanToValue, lambda: LoanToValue(0.0), "at_most"),
    (LoanToValue, lambda: LoanToValue(0.5, counts=1.1), "counts"),
    (BorrowLimit, lambda: BorrowLimit(0.8, {"BOND": 0.9, "COIN": 0.7}), "liquidation"),
    (BorrowLimit, lambda: BorrowLimit(1.1, 1.1), "borrow"),
    (BorrowLimit, lambda: BorrowLimit(0.5, 0.6, at_least=0.9), "at_least"),
    (CollateralRatio, lambda: CollateralRatio(1.5, cap=-1.0), "cap"),
    (CollateralRatio, lambda: CollateralRatio(1.5, share=0.0), "share"),
    (CollateralRatio, lambda: CollateralRatio(1.5, share=1.5), "share"),
    (MaintenanceMargin, lambda: MaintenanceMargin({}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BUND": [(0.0, 0.1)]}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": [(1.0, 0.1)]}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": [(0.0, 0.1), (5.0, 0.05)]}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": [(0.0, 0.1), (0.0, 0.2)]}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": [(0.0, 1.0)]}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": []}), "brackets"),
    (MaintenanceMargin, lambda: MaintenanceMargin({"BOND": [0.1]}), "brackets"),  # type: ignore[list-item]
    (AfterShock, lambda: AfterShock(HealthFactor(1.5, "threshold"), fall=1.1), "fall"),
    (AfterShock, lambda: AfterShock(HealthFactor(1.5, "threshold"), rise=-0.1), "rise"),
    (AfterShock, lambda: AfterShock(Turnover(0.1), fall=0.1), "rule"),
    (AfterShock, lambda: AfterShock(CashFloor(0.1), fall=0.1), "rule"),
    (AfterShock, lambda: AfterShock(TrackingErrorLimit(0.1), fall=0.1), "rule"),
    (AfterShock, lambda: AfterShock(CVaR(HealthFactor(1.5, "threshold"), MOVES), fall=0.1), "rule"),
    (AfterScenarios, lambda: AfterScenarios(HealthFactor(1.5, "threshold")), "AfterScenarios"),
    (AfterScenarios, lambda: AfterScenarios(HealthFactor(1.5, "threshold"), {"a": {"BUND": 0.1}}), "moves"),
    (AfterScenarios, lambda: AfterScenarios(HealthFactor(1.5, "threshold"), {"a": -1.1}), "moves"),
    (AfterScenarios, lambda: AfterScenarios(HealthFactor(1.5, 0.5), changes={"a": {"treshold": 0.1}}), "changes"),
    (CVaR, lambda: CVaR(HealthFactor(1.5, "threshold"), {}), "moves"),
    (CVaR, lambda: CVaR(HealthFactor(1.5, "threshold"), MOVES, level=1.0), "level"),
    (CVaR, lambda: CVaR(MaintenanceMargin({"COIN": COIN_TIERS}), MOVES), "rule"),
    (AfterMove, lambda: AfterMove(HealthFactor(1.5, "threshold"), years=0.1), "probability"),
    (AfterMove, lambda: AfterMove(HealthFactor(1.5, "threshold"), years=0.0, sigmas=1.0), "years"),
    (AfterMove, lambda: AfterMove(HealthFactor(1.5, "threshold"), years=0.1, probability=0.6), "probability"),
    (GreekLimit, lambda: GreekLimit("delta"), "GreekLimit"),
    (GreekLimit, lambda: GreekLimit("delta", upper=0.1, lower=0.2), "lower"),
    (GreekLimit, lambda: GreekLimit("theta", upper=0.1), "theta"),
    (PoolCaps, lambda: PoolCaps(), "PoolCaps"),
    (PoolCaps, lambda: PoolCaps(supply=-1.0), "supply"),
    (PoolCaps, lambda: PoolCaps(borrow={"BUND": 1.0}), "borrow"),
    (Reserve, lambda: Reserve({"BOND": -1.0}), "units"),
    (SettledCash, lambda: SettledCash(-1.0), "unsettled"),
    (SettledCash, lambda: SettledCash(late=1.5), "late"),
    (SettledCash, lambda: SettledCash(by="venue"), "venue"),
    (InitialMargin, lambda: InitialMargin("margin", utilisation=0.0), "utilisation"),
    (InitialMargin, lambda: InitialMargin(-0.1), "rate"),
    (InitialMargin, lambda: InitialMargin(float("inf")), "rate"),
    (InitialMargin, lambda: InitialMargin(0.1, haircut=1.01), "haircut"),
    (Leverage, lambda: Leverage(), "Leverage"),
    (Leverage, lambda: Leverage(gross=-1.0), "gross"),
    (Leverage, lambda: Leverage(net=NAN), "net"),
    (Leverage, lambda: Leverage(net=1.0, except_=["BUND"]), "except_"),
    (Leverage, lambda: Leverage(net=1.0, except_=None), "except_"),  # type: ignore[arg-type]
    (GroupLimit, lambda: GroupLimit("sector", upper=0.1), "sector"),
    (GroupLimit, lambda: GroupLimit("group", upper={"risky": NAN}), "upper"),
    (GroupLimit, lambda: GroupLimit("group"), "GroupLimit"),  # no limit at all
    (GroupLimit, lambda: GroupLimit("group", lower={"hedge": 0.1}), "lower"),  # of no asset: cannot be kept
    (FactorLimit, lambda: FactorLimit("gamma", upper=0.1), "gamma"),
    (FactorLimit, lambda: FactorLimit({"BUND": 1.0}, upper=0.1), "loadings"),
    (FactorLimit, lambda: FactorLimit({"BOND": float("inf")}, upper=0.1), "loadings"),
    (FactorLimit, lambda: FactorLimit("beta", lower=NAN), "lower"),
    (FactorLimit, lambda: FactorLimit("beta"), "FactorLimit"),  # no limit at all
    (FactorLimit, lambda: FactorLimit({}, upper=0.1), "loadings"),  # of no factor
    (FactorLimit, lambda: FactorLimit("beta", upper={"betta": 0.1}), "upper"),  # limits nothing
    (TrackingErrorLimit, lambda: TrackingErrorLimit(-0.1), "limit"),
    (Turnover, lambda: Turnover(-0.1), "limit"),
    (Turnover, lambda: Turnover(True), "limit"),
    (Turnover, lambda: Turnover(0.1, kind="net"), "kind"),  # type: ignore[arg-type]
    (LotSize, lambda: LotSize(-1.0), "lot"),
    (LotSize, lambda: LotSize(float("inf")), "lot"),
    (LotSize, lambda: LotSize("lots"), "lots"),
    (LotSize, lambda: LotSize("lot", min_notional=-1.0), "min_notional"),
    (LotSize, lambda: LotSize("lot", min_quantity={"BOND": NAN}), "min_quantity"),
    (LotSize, lambda: LotSize("lot", max_quantity=0.0), "max_quantity"),
    (LotSize, lambda: LotSize("lot", max_notional={"BOND": -1.0}), "max_notional"),
    (MinimumPosition, lambda: MinimumPosition(), "MinimumPosition"),  # no minimum at all
    (MinimumPosition, lambda: MinimumPosition(weight=-0.1), "weight"),
    (MinimumPosition, lambda: MinimumPosition(notional="least"), "least"),
    (MinimumPosition, lambda: MinimumPosition(0.1, assets=["BUND"]), "assets"),
    (NameLimit, lambda: NameLimit(-1), "limit"),
    (NameLimit, lambda: NameLimit(2.5), "limit"),  # type: ignore[arg-type]
    (NameLimit, lambda: NameLimit(True), "limit"),
    (OrderLimit, lambda: OrderLimit(NAN), "limit"),  # type: ignore[arg-type]
    (OrderLimit, lambda: OrderLimit(3, assets=["BUND"]), "assets"),
    (Custom, lambda: Custom(0.1, name="build"), "build"),  # type: ignore[arg-type]
    (Custom, lambda: Custom(lambda t: True, name="no constraint"), "no constraint"),
    (Custom, lambda: Custom(lambda t: t.weights @ t.weights >= 1, name="not convex"), "not convex"),
    (Custom, lambda: Custom(lambda t: t.weight("BUND") <= 1), "BUND"),
]


#: Rules that convex programs do not see: their points are judged by the exact check, below.
DISCRETE: dict[type[Rule], Rule] = {
    LotSize: LotSize("lot", min_notional=10.0),
    MinimumPosition: MinimumPosition(0.1, 50.0, assets=["BOND", "COIN", "LOAN"]),
    NameLimit: NameLimit(3),
    OrderLimit: OrderLimit(2, assets=["BOND", "COIN", "LOAN"]),
}


def rule_classes() -> Iterator[type[Rule]]:
    """Every rule that is defined in a module of equipoise.constraints."""
    for info in pkgutil.walk_packages(constraints.__path__, "equipoise.constraints."):
        module = importlib.import_module(info.name)
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, Rule) and found.__module__ == info.name and not inspect.isabstract(found):
                yield found


def without_cases(classes: Iterable[type[Rule]]) -> list[str]:
    """What has to be added for these classes."""
    todo = []
    for name, found in ((found.__name__, found) for found in classes):
        if not CASES.get(found) and found not in DISCRETE:
            todo.append(f"add CASES[{name}] = [Case({name}(...), formula, keeps=..., breaks=...)] here")
        if not any(bad is found for bad, _, _ in BAD):
            todo.append(f"add ({name}, lambda: {name}(...), argument) with a wrong argument to BAD here")
        if not any(type(rule) is found for rule in GENERATED) and found not in DISCRETE:
            todo.append(f"add a maker of {name} to RULES in tests/strategies.py")
        if name not in constraints.__all__:
            todo.append(f"export {name} in constraints/__init__.py")
    return todo


GENERATED = [
    rule for one in RULES for x in many(1, rules=[one], risk="dense", assets=3) for rule in x.policy.constraints
]
ALL = [pytest.param(case, id=f"{cls.__name__}-{i}") for cls in CASES for i, case in enumerate(CASES[cls])]
EVERY = {cls: CASES[cls][0].rule for cls in CASES} | DISCRETE


def account(target: Point = TARGET, **changed: Any) -> Portfolio:
    return Portfolio.from_table(TABLE.assign(target=list(target), **changed), "USD")


def problem_of(case: Case, *, rule: bool = True, costs: bool = True, **changed: Any) -> Problem:
    """The case's rule in a problem whose optimum without it is `case.at`."""
    policy = Policy(RISK, constraints=(case.rule if rule else CashFloor(-9.0),))
    if costs and case.at is HOLD:  # trading costs 1e-6, but more than any deviation does in this short time
        policy = replace(policy, costs=(ProportionalCost(1e-6),), horizon=1e-8)
    return policy.problem(account(TARGET if case.at is HOLD else case.at, **changed))


def test_every_class_has_its_cases() -> None:
    """A new rule cannot be forgotten here, nor left out of the package's names."""
    todo = without_cases(rule_classes())
    assert not todo, "; ".join(todo)
    assert len(list(rule_classes())) >= 19


def test_the_guard_itself() -> None:
    """The test above says for a class without an entry what to add."""

    class Invented(Turnover):
        pass

    assert [message.split()[0] for message in without_cases([Invented])] == ["add", "add", "add", "export"]
    assert "CASES[Invented]" in without_cases([Invented])[0]
    assert without_cases([Turnover]) == []


@pytest.mark.parametrize("case", ALL)
def test_known_points(case: Case) -> None:
    """Points keep or break the rule as a person says, and as its formula says."""
    problem = problem_of(case, costs=False)
    assert case.keeps
    assert case.breaks
    for point in (*case.keeps, *case.breaks):
        assert sum(point) == pytest.approx(1.0, abs=1e-12)
    for point in case.keeps:
        assert max(case.excess(point)) <= 1e-12
        assert problem.violation(np.array(point)) <= 1e-12
    for point in case.breaks:
        assert max(case.excess(point)) > 1e-4
        assert problem.violation(np.array(point)) == pytest.approx(max(case.excess(point)), rel=1e-9)


def stated(problem: Problem, rule: Rule, weights: np.ndarray) -> list[float]:
    """The excess of every inequality that the rule's own data states."""
    found: list[float] = []
    for title, piece in problem.pieces:
        if title != rule.title:
            continue
        if isinstance(piece, Row):
            found.append(piece.of(weights, weights - problem.before) - piece.upper)
        elif isinstance(piece, Bound):
            both = np.concatenate([piece.lower - weights, weights - piece.upper])
            found += both[np.isfinite(both)].tolist()
        elif isinstance(piece, Envelope):
            found.append(piece.excess(weights, weights - problem.before))
        elif isinstance(piece, Cone):
            found.append(piece.of(weights) - piece.upper)
        elif isinstance(piece, Opaque):
            found.append(piece.violation(weights, weights - problem.before))
    return found


@pytest.mark.parametrize("case", ALL)
def test_data_is_the_formula(case: Case) -> None:
    """At random points each inequality in the rule's data has the value that its formula gives."""
    problem, rng = problem_of(case), np.random.default_rng(0)
    opaque = isinstance(case.rule, Custom)
    for _ in range(3 if opaque else 30):
        point = rng.normal(0.2, 0.4, len(ASSETS))
        wanted = [max(0.0, *case.excess(point))] if opaque else case.excess(point)
        np.testing.assert_allclose(sorted(stated(problem, case.rule, point)), sorted(wanted), atol=1e-12)


@pytest.mark.parametrize("case", ALL)
def test_answer_of_the_compiled_program(case: Case) -> None:
    """Without the rule the account goes where the rule is broken; with it, exactly to its limit.

    The program is compiled for another account first, so that no number can be a part of it.
    """
    free = solve(problem_of(case, rule=False))
    np.testing.assert_allclose(free.weights, case.at, atol=2e-6)
    assert max(case.excess(case.at)) > 1e-3

    figures = {name: 0.93 * TABLE[name] for name in ("threshold", "margin", "haircut", "beta", "volume")}
    other, problem = problem_of(case, quantity=[44.0, 9.0, -22.0, 11.0, 130.0], **figures), problem_of(case)
    assert problem.opaque or problem.envelopes or compiled(other) is compiled(problem)
    solve(other)
    answer = solve(problem)
    assert answer.status is Status.OPTIMAL
    assert answer.weights is not None
    assert max(case.excess(answer.weights)) == pytest.approx(0.0, abs=1e-7)
    assert max(case.excess(problem.after_costs(answer.weights))) <= 2e-9


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL)
def test_answer_holds_after_costs(case: Case) -> None:
    """With noticeable costs the rule holds for the cash that is left when they are paid."""
    costs = (ProportionalCost(0.004), ImpactCost(0.02, 2000.0))
    answer = solve(Policy(RISK, costs, (case.rule,), horizon=5.0).problem(account()))
    assert answer.status is Status.OPTIMAL
    assert answer.weights is not None
    trades = answer.weights - HOLD
    size = np.abs(trades[:4])
    paid = 0.004 * size.sum() + 0.02 * np.sqrt(1000.0 / 2000.0) * (size**1.5).sum()
    assert paid > 1e-6 or case.rule == NoTrade()
    assert max(case.excess([*answer.weights[:4], 1.0 - answer.weights[:4].sum() - paid])) <= 2e-9


def checked(problem: Problem, rule: Rule, point: Iterable[float]) -> tuple[bool, float]:
    """Whether the rule passes the exact check of orders that lead to this point, and its least slack."""
    weights = [Fraction(str(w)) for w in point]
    moved = [(w - Fraction(str(b))) * 1000 for w, b in zip(weights, HOLD, strict=True)]
    trades = [x / Fraction(str(p)) for x, p in zip(moved, TABLE.price, strict=True)]
    found = verify(problem, [*trades[:-1], Fraction(0)], whole_lots=True)
    assert [w == pytest.approx(float(x)) for w, x in zip(found.weights, weights, strict=True)]
    checks = [check for check in found.checks if check.rule == rule.title]
    return all(check.passed for check in checks), min(check.slack for check in checks)


@pytest.mark.parametrize("case", ALL)
def test_known_points_in_the_exact_check(case: Case) -> None:
    """The check of final orders judges the known points as a person does, limits reached exactly included."""
    problem = problem_of(case, costs=False)
    for point in case.keeps:
        passed, _ = checked(problem, case.rule, point)
        assert passed
    for point in case.breaks:
        passed, slack = checked(problem, case.rule, point)
        assert not passed
        assert slack == pytest.approx(-max(case.excess(point)), rel=1e-9)


def test_lot_sizes() -> None:
    """Lots are data in units and cash; the convex program is their relaxation and does not see them."""
    rule = LotSize("lot", min_notional=10.0, min_quantity={"COIN": 0.25})
    problem = Policy(RISK, constraints=(rule,)).problem(account())
    assert problem.step is not None
    assert problem.step.lot.tolist() == [
        1.0,
        0.001,
        0.0,
        1.0,
        0.0,
    ]  # the cash has no lot, whatever its cell says
    assert problem.step.min_notional.tolist() == [10.0, 10.0, 10.0, 10.0, 0.0]
    assert problem.step.min_quantity.tolist() == [0.0, 0.25, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(solve(problem).weights, TARGET, atol=1e-6)
    with pytest.raises(InputError, match="two rules give lot sizes"):
        Policy(constraints=(rule, LotSize(1.0))).problem(account())


@pytest.mark.parametrize(
    ("asset", "quantity", "kept"),
    [
        ("BOND", "0", True),
        ("BOND", "1", True),  # one lot of 10, the minimum reached exactly
        ("BOND", "-3", True),
        ("BOND", "1.5", False),
        ("BOND", "0.5", False),
        ("COIN", "0.25", True),
        ("COIN", "0.249", False),  # 9.96 of cash, and below 0.25 units
        ("COIN", "0.2501", False),  # not in thousandths
        ("COIN", "-10", True),
        ("LOAN", "0.9", False),  # no lot, but 9 of cash
        ("LOAN", "1.000001", True),
        ("LOAN", "20", True),  # repaid in full
        ("STOCK", "1", True),
        ("STOCK", "-0.001", False),
    ],
)
def test_lots_in_the_exact_check(asset: str, quantity: str, kept: bool) -> None:
    """Whole multiples, zero or at least the larger minimum (inclusive)."""
    rule = LotSize("lot", min_notional=10.0, min_quantity={"COIN": 0.25})
    trades = [Fraction(quantity) if a == asset else Fraction(0) for a in ASSETS]
    checks = verify(Policy(constraints=(rule,)).problem(account()), trades, whole_lots=True).checks
    assert all(check.passed for check in checks if check.rule == rule.title) is kept


def test_closing_a_position_is_exempt_from_lots_and_minimums() -> None:
    dust = account(quantity=[40.0, 0.2003, -0.5, 10.0, 497.0])
    problem = Policy(constraints=(LotSize("lot", min_notional=10.0),)).problem(dust)
    for asset, quantity, kept in (
        ("COIN", "-0.2003", True),
        ("COIN", "-0.2", False),  # a whole lot, but 8 of cash, and it closes nothing
        ("LOAN", "0.5", True),
        ("LOAN", "0.4", False),
    ):
        trades = [Fraction(quantity) if a == asset else Fraction(0) for a in ASSETS]
        checks = verify(problem, trades, whole_lots=True).checks
        assert all(check.passed for check in checks if check.rule == "LotSize") is kept


@pytest.mark.parametrize(
    ("rule", "trades", "kept"),
    [
        # Held in cash: BOND 400, COIN 400, LOAN −200, STOCK 300; a quantity of BOND and LOAN is 10, of COIN 40.
        (MinimumPosition(0.1), {}, True),
        (MinimumPosition(0.1), {"BOND": "-30"}, True),  # exactly a tenth is left
        (MinimumPosition(0.1), {"BOND": "-30.0000001"}, False),
        (MinimumPosition(0.1), {"BOND": "-40"}, True),  # nothing is left
        (MinimumPosition(0.1), {"LOAN": "10"}, True),  # a debt of exactly a tenth
        (MinimumPosition(0.1), {"LOAN": "10.001"}, False),  # dust
        (MinimumPosition(0.1), {"LOAN": "20"}, True),
        (MinimumPosition(0.1), {"LOAN": "20.5"}, False),  # a long position of 5, for all signs
        (MinimumPosition(0.1, 150.0), {"COIN": "-6.2"}, True),  # 152 left
        (MinimumPosition(0.1, 150.0), {"COIN": "-6.3"}, False),  # 148: the larger minimum counts
        (MinimumPosition(notional={"COIN": 401.0}), {}, False),  # what is not traded must keep it, too
        (MinimumPosition(0.4, assets=["BOND"]), {"COIN": "-9"}, True),
        (NameLimit(4), {}, True),
        (NameLimit(3), {}, False),
        (NameLimit(3), {"LOAN": "20"}, True),  # a debt is a name
        (NameLimit(3), {"LOAN": "19.999"}, False),
        (NameLimit(0, assets=["STOCK"]), {"STOCK": "-10"}, True),
        (OrderLimit(0), {}, True),
        (OrderLimit(1), {"BOND": "0.001"}, True),
        (OrderLimit(1), {"BOND": "-40", "COIN": "1"}, False),  # a close is an order
        (OrderLimit(1, assets=["BOND"]), {"BOND": "1", "COIN": "1", "STOCK": "1"}, True),
        (LotSize(0.0, max_notional=100.0), {"BOND": "-10"}, True),
        (LotSize(0.0, max_notional=100.0), {"BOND": "-10.001"}, False),
        (LotSize(0.0, max_notional=100.0), {"BOND": "-40"}, False),  # a close neither
        (LotSize(0.0, max_quantity={"COIN": 2.0}), {"COIN": "2", "STOCK": "9"}, True),
        (LotSize(0.0, max_quantity={"COIN": 2.0}), {"COIN": "-2.5"}, False),
    ],
)
def test_rules_on_orders_in_the_exact_check(rule: Rule, trades: dict[str, str], kept: bool) -> None:
    """Inclusive, exact, and the convex program does not see them."""
    problem = Policy(RISK, constraints=(rule,)).problem(account())
    assert problem.discrete
    np.testing.assert_allclose(solve(problem).weights, TARGET, atol=1e-6)
    moved = [Fraction(trades.get(asset, 0)) for asset in ASSETS]
    checks = [check for check in verify(problem, moved, whole_lots=True).checks if check.rule == rule.title]
    assert all(check.passed for check in checks) is kept
    assert all((check.slack >= 0) is check.passed for check in checks)


@pytest.mark.parametrize("rule", [*EVERY.values(), *GENERATED], ids=lambda rule: type(rule).__name__)
def test_pickles(rule: Rule) -> None:
    """A rule survives the way to another process, with all its arguments."""
    copy = pickle.loads(pickle.dumps(rule))
    assert type(copy) is type(rule)
    assert copy.title == rule.title
    if type(rule) is not Custom or not hasattr(rule.build, "func"):
        assert copy == rule


@pytest.mark.parametrize(
    ("make", "column"), [pytest.param(m, c, id=f"{k.__name__}-{c}-{i}") for i, (k, m, c) in enumerate(BAD)]
)
def test_bad_arguments(make: Callable[[], Rule], column: str) -> None:
    """A wrong argument is an InputError that names it, when the rule is made or when it is applied."""
    with pytest.raises(InputError) as caught:
        compiled(Policy(RISK, constraints=(make(),)).problem(account()))
    named = str(caught.value.column if caught.value.column is not None else caught.value.asset)
    assert column in (named, caught.value.asset) or named.startswith(f"{column} of ")


ARGUMENTS = [
    pytest.param(rule, argument.name, garbage, id=f"{cls.__name__}-{argument.name}-{type(garbage).__name__}")
    for cls, rule in EVERY.items()
    for argument in fields(rule)
    if argument.name != "name" and argument.type != "bool"
    for garbage in (NAN, object())
]


@pytest.mark.parametrize(("rule", "argument", "garbage"), ARGUMENTS)
def test_garbage_arguments(rule: Rule, argument: str, garbage: Any) -> None:
    """Whatever stands there instead of the argument: never another exception, never silence."""
    if isinstance(rule, DriftBand) and argument == "assets":
        rule = replace(rule, by=None)
    with pytest.raises(InputError) as caught:
        compiled(Policy(RISK, constraints=(replace(rule, **{argument: garbage}),)).problem(account()))
    assert argument in str(caught.value) or repr(garbage) in str(caught.value)


def test_a_rule_that_needs_risk() -> None:
    with pytest.raises(InputError, match="needs a risk model"):
        Policy(constraints=(TrackingErrorLimit(0.1),)).problem(account())


def test_a_rule_that_is_not_convex_is_refused() -> None:
    """long + short < 0 or buy + sell < 0 for one asset would be a rule that a cvxpy program cannot state."""
    one, two = np.array([1.0, 0.0]), np.array([-1.0 - 1e-12, 0.0])
    for pair in ("long", "short"), ("buy", "sell"):
        with pytest.raises(InputError, match="not a convex rule"):
            Row(label="row", upper=0.0, **dict(zip(pair, (one, two), strict=True)))
        Row(label="row", upper=0.0, **dict(zip(pair, (one, -one), strict=True)))
        with pytest.raises(InputError, match="not a convex rule"):
            Row(label="row", upper=0.0, **{pair[0]: -one})


@pytest.mark.slow
def test_generated_problems_have_their_planted_point() -> None:
    """What strategies.py promises: the planted point keeps every rule and costs what it says."""
    for x in many(150, seed=1, among=[name for name in RULES if name != "custom"]):
        problem, planted = x.problem(), x.planted_weights()
        assert problem.violation(planted) <= 1e-12
        assert problem.trading_cost(planted) == pytest.approx(x.planted_cost, rel=1e-9, abs=1e-15)
