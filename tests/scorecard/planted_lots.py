"""Row 4, whole lots: accounts around a plan in whole lots that is known to keep every rule, by a margin above 0.

The plan is made first, in fractions; then each rule's limit is set where that plan leaves it just the margin. So there
is always a plan, and "proven" is always wrong. Nothing here asks the library what a plan is worth.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from equipoise import Rebalancer, Status
from equipoise.constraints import (
    CashBand,
    CashFloor,
    DriftBand,
    GroupLimit,
    HealthFactor,
    Leverage,
    LongOnly,
    LotSize,
    MinimumPosition,
    NameLimit,
    OrderLimit,
    Rule,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, FactorRisk, FixedFee, ProportionalCost, Risk
from scorecard.figure import Result, Row

MARGINS = (1e-3, 1e-4, 1e-5, 1e-6)
NAV, AVERSION = 1_000_000, 10.0


@dataclass(frozen=True, eq=False)
class Planted:
    """An account, its policy, and traded quantities (signed, by asset) that keep all rules."""

    seed: int
    margin: float
    table: pd.DataFrame
    rebalancer: Rebalancer
    trades: dict[str, Fraction]

    @property
    def named(self) -> str:
        rules = ", ".join(type(rule).__name__ for rule in self.rebalancer.policy.constraints)
        return f"seed {self.seed}: n = {len(self.table) - 1}, margin {self.margin:g}, {rules}"


def planted(seed: int, most: int = 60) -> Planted:
    """An account of 2 to `most` assets, with a margin of 1e-3 to 1e-6 of NAV."""
    rng = np.random.default_rng(seed)
    n = round(float(np.exp(rng.uniform(np.log(2), np.log(most)))))
    margin = Fraction(MARGINS[seed % len(MARGINS)])
    names = [f"A{i:02d}" for i in range(n)]
    debt = bool(rng.random() < 0.25) and n > 2
    target = 0.96 * rng.dirichlet(np.full(n, 4.0))
    large = rng.random(n) < rng.choice([0.0, 0.5, 1.0])
    coarse = np.where(large, rng.uniform(2e-3, 3e-2, n), rng.uniform(2e-5, 2e-3, n))
    coarse *= min(1.0, 8.0 / n)
    lot = rng.choice([1.0, 10.0, 100.0, 0.5], n)
    price = [_decimal(p) for p in np.maximum(coarse * NAV / lot, 0.01)]
    if debt:
        target[-1] = -rng.uniform(0.1, 0.4)
        target[:-1] *= (0.96 - target[-1]) / target[:-1].sum()
    unit = [Fraction(str(size)) * p for size, p in zip(lot, price, strict=True)]
    drift = np.exp(rng.normal(0.0, rng.choice([0.05, 0.3]), n))
    held = [Fraction(str(lot[i])) * round(float(drift[i] * target[i] * NAV / float(unit[i]))) for i in range(n)]
    held = [q if rng.random() < 0.85 else q + Fraction(int(rng.integers(1, 50)), 100) for q in held]
    # The plan: to the lots next to the target, some elsewhere, some not at all.
    to = [round(float((target[i] * NAV - float(held[i] * price[i])) / float(unit[i]))) for i in range(n)]
    noise = rng.integers(-2, 3, n) * (rng.random(n) < 0.4)
    trades = [Fraction(str(lot[i])) * int(to[i] + noise[i]) * int(rng.random() < 0.8) for i in range(n)]
    for i in range(n):  # no position changes its side
        sign = -1 if target[i] < 0 else 1
        if sign * (held[i] + trades[i]) < 0:
            trades[i] = Fraction(0) if sign * held[i] >= 0 else -held[i]
    return _tight(seed, rng, margin, names, held, price, lot, target, trades, debt)


def _decimal(x: float) -> Fraction:
    return Fraction(f"{x:.2f}")


def _tight(
    seed: int,
    rng: np.random.Generator,
    margin: Fraction,
    names: list[str],
    held: list[Fraction],
    price: list[Fraction],
    lot: Any,
    target: Any,
    trades: list[Fraction],
    debt: bool,
) -> Planted:
    """The account with rules at which this plan leaves the margin."""
    n = len(names)
    rate, fee = (Fraction(x) for x in (str(rng.choice([0.0, 0.0005, 0.002])), str(rng.choice([0, 0, 0, 5, 200]))))
    money = [abs(x) * p for x, p in zip(trades, price, strict=True)]
    invested = sum((q * p for q, p in zip(held, price, strict=True)), Fraction(0))
    spent = sum((x * p for x, p in zip(trades, price, strict=True)), Fraction(0))
    paid = rate * sum(money) + fee * sum(x != 0 for x in trades)
    cash = max(_decimal(float(NAV - invested)), _decimal(float(spent + paid)) + 1)
    nav = invested + cash
    after = [(q + x) * p / nav for q, x, p in zip(held, trades, price, strict=True)]
    left = (cash - spent - paid) / nav
    turnover = sum(money) / nav / 2
    group = rng.integers(0, 3, n)
    unit = [p * Fraction(str(size)) / nav for p, size in zip(price, lot, strict=True)]
    low, high = ([w + s * _room(rng, margin, u) for w, u in zip(after, unit, strict=True)] for s in (-1, 1))
    table = pd.DataFrame(
        {
            "quantity": [*map(float, held), float(cash)],
            "price": [*map(float, price), 1.0],
            "target": [*target, 1.0 - target.sum()],
            "lot": [*lot, 0.0],
            "group": [*(f"g{g}" for g in group), ""],
            "low": [*map(float, low), 0.0],
            "high": [*map(float, high), 1.0],
            "least": [_least(rng, x) for x in money] + [0.0],
            "threshold": [*np.round(rng.uniform(0.6, 0.9, n), 2), 0.0],
        },
        index=pd.Index([*names, "USD"], name="asset"),
    )

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    short = [names[-1]] if debt else []
    rules: list[Rule] = [LongOnly(except_=short)] if short else [LongOnly()]
    rules += [WeightBounds(upper=0.0, assets=short)] if short else []
    rules.append(LotSize("lot", min_notional="least" if chance(0.5) else 0.0))
    if chance(0.5):
        rules.append(CashFloor(float(left - margin)))
    elif chance(0.4):
        rules.append(CashBand(float(left - margin), float((cash - spent) / nav + margin)))
    if chance(0.6):
        rules.append(Turnover(float(turnover + margin)))
    if chance(0.4):
        rules.append(WeightBounds("low", "high"))
    elif chance(0.3):
        away = max(abs(w - Fraction(float(b))) for w, b in zip(after, target, strict=True))
        rules.append(DriftBand(absolute=float(away + margin)))
    sums = {f"g{g}": sum((w for w, h in zip(after, group, strict=True) if h == g), Fraction(0)) for g in set(group)}
    if chance(0.5):
        most = {g: float(w + margin) for g, w in sums.items() if chance(0.7)}
        least = {g: float(w - margin) for g, w in sums.items() if chance(0.3)}
        if most or least:
            rules.append(GroupLimit("group", upper=most or None, lower=least or None))
    if chance(0.2):
        rules.append(Leverage(gross=float(sum(map(abs, after)) + margin)))
    if debt and after[-1] < 0:
        threshold = [Fraction(str(x)) for x in table["threshold"]]
        cover = sum(t * w for t, w in zip(threshold, after, strict=False) if w > 0)
        rules.append(HealthFactor(float((cover - margin) / -after[-1]), "threshold"))
    if chance(0.25):
        rules.append(OrderLimit(sum(x != 0 for x in trades) + int(rng.integers(0, 2))))
    if chance(0.15):
        rules.append(NameLimit(sum(w != 0 for w in after) + int(rng.integers(0, 2))))
    sizes = [abs(w) for w in after if w != 0]
    if chance(0.15) and sizes:
        rules.append(MinimumPosition(float(max(min(sizes) - margin, Fraction(0)) or Fraction(1, 10**6))))
    costs = [ProportionalCost(float(rate))] + ([FixedFee(float(fee))] if fee else [])
    rebalancer = Rebalancer(cash="USD", risk=_risk(rng, names), costs=costs, constraints=rules, aversion=AVERSION)
    return Planted(seed, float(margin), table, rebalancer, dict(zip(names, trades, strict=True)))


def _room(rng: np.random.Generator, margin: Fraction, unit: Fraction) -> Fraction:
    """The margin alone, or some lots more."""
    return margin + unit * int(rng.choice([0, 0, 1, 2, 5, 50]))


def _least(rng: np.random.Generator, money: Fraction) -> float:
    """A smallest order that the plan's order keeps: at most its own size."""
    if not money:
        return float(rng.choice([0, 0, 500, 20_000]))
    return max(0.0, round(float(rng.choice([0.0, 0.5, 1.0])) * float(money), 2) - 0.01)


def _risk(rng: np.random.Generator, names: list[str]) -> Risk | None:
    n, kind = len(names), rng.random()
    if kind < 0.2:
        return None
    volatility = rng.uniform(0.1, 0.5, n)
    loadings = rng.normal(0.6, 0.3, (n, 3)) * volatility[:, None]
    if kind < 0.6:
        factors = ["market", "size", "rates"]
        specific = dict(zip(names, 0.25 * volatility**2, strict=True))
        return FactorRisk(pd.DataFrame(loadings.T, index=factors, columns=names), specific)
    covariance = loadings @ loadings.T + np.diag(0.25 * volatility**2)
    return CovarianceRisk(pd.DataFrame(covariance, index=names, columns=names))


def missed_plans(count: int) -> Result:
    """How often no plan is found; more than 1 in 1,000, or one that is said to be proven, is a miss."""
    missed, proven = [], 0
    for seed in range(count):
        case = planted(seed)
        plan = case.rebalancer.solve(case.table)
        if not plan.status.ok:
            missed.append(f"{case.named}: {plan.status.name}, {plan.message}")
            proven += "proven" in plan.message or plan.status is Status.INFEASIBLE
    said = f"{len(missed)} of {count}, {proven} of them said to be proven"
    return Result(said, len(missed) <= count // 1000 and not proven, tuple(missed))


def overruns(count: int) -> Result:
    """Runs in exact mode that take more than their limit, 5 % and 0.2 s."""
    missed, most = [], 0.0
    for seed in range(count):
        case, limit = planted(seed), (0.2, 1.0, 3.0)[seed % 3]
        began = time.monotonic()
        case.rebalancer.solve(case.table, exact=True, effort=1 + seed % 2, time_limit=limit)
        seconds = time.monotonic() - began
        most = max(most, seconds - limit)
        if seconds > 1.05 * limit + 0.2:
            missed.append(f"{case.named}: {seconds:.2f} s of {limit:g}")
    return Result(f"{len(missed)} of {count}, at most {most:.2f} s over", not missed, tuple(missed))


ROWS = [
    Row(4, "whole lots, a plan planted: not found", "1 in 1,000, none proven", missed_plans, 10, 10_000),
    Row(4, "whole lots: runs over their time limit", "0", overruns, 10, 1_000, in_suite=False),
]
