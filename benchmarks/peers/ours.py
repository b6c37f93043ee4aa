"""equipoise: one portfolio from its rules to certified weights, and batches.

A family without cash of its own (the walk) gets an account for the costs that starts at 0 and may fall below it: the
assets are fully invested, and the costs are in the objective only, as in the other peers' problem.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import CashFloor
from equipoise.constraints.pieces import Bound, Piece, Row
from equipoise.constraints.rules.rule import Account, Rule
from equipoise.optimizer import FactorRisk, HoldingCost, Portfolio, ProportionalCost, QuadraticCost
from equipoise.optimizer.portfolio.stack import Stack, stacks
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.newton import newton

from .instances import HORIZON, Array, Family, Instance, Rows
from .peer import Many, One

CASH = "USD"  # sorts after the assets' names: the library orders its assets by name
_NAV = 1e6


@dataclass(frozen=True)
class Given(Rule, stacks=True):
    """The bounds and rows of an instance, their numbers from the table's columns lower, upper and limits."""

    rows: Rows | None = None
    invested: bool = False

    def pieces(self, account: Account) -> Sequence[Piece]:
        lower, upper = account.numbers("lower", "lower"), account.numbers("upper", "upper")
        pieces: list[Piece] = [Bound(label="given", lower=lower, upper=upper)]
        if self.invested:
            assets = np.ones_like(lower)
            assets[account.cash] = 0.0
            pieces.append(Row(label="fully invested", weight=assets, upper=1.0))
        if (r := self.rows) is not None:
            limits = account.numbers("limits", "limits")
            coefficients = zip(r.names, r.weight, r.long, r.short, r.buy, r.sell, strict=True)
            for j, (label, *parts) in enumerate(coefficients):
                names = ("weight", "long", "short", "buy", "sell")
                given = {name: part for name, part in zip(names, parts, strict=True) if part.any()}
                upper = limits[..., j]  # (B,) for a stack
                pieces.append(Row(label=label, upper=upper if upper.ndim else float(upper), **given))
        return pieces


def _names(p: Instance) -> list[str]:
    return [*(f"A{i:05d}" for i in range(p.n - p.cash)), CASH]


def _table(p: Instance) -> pd.DataFrame:
    def column(values: Array, cash: float = 0.0) -> Array:
        return values if p.cash else np.append(values, cash)

    limits = np.zeros(p.n)
    if p.rows is not None:
        limits[: len(p.rows.upper)] = p.rows.upper
    gain = p.gain if p.gain is not None else np.zeros(p.n)
    columns = {
        "quantity": column(p.before * _NAV),
        "price": 1.0,
        "target": column(p.target, 1.0),
        "lower": column(p.lower, -1.0),
        "upper": column(p.upper, 0.0),
        "limits": column(limits),
        "rate": column(p.cost * HORIZON),
        "yield": column(-gain),
        "gain": column(gain),
    }
    return pd.DataFrame(columns, index=_names(p))


def _long_table(instances: Sequence[Instance]) -> pd.DataFrame:
    tables = {f"{i:06d}": _table(p) for i, p in enumerate(instances)}
    return pd.concat(tables, names=["portfolio_id", "asset"]).reset_index()


def _rebalancer(family: Family, compiled: bool = False) -> Rebalancer:
    p = family.instances[0]
    risky, names = p.n - p.cash, _names(p)[:-1]
    loadings = pd.DataFrame(p.factors[:, :risky], columns=names)
    costs = [ProportionalCost("rate")]
    if p.penalty:
        costs.append(QuadraticCost(0.5 * p.penalty * HORIZON))
    if p.gain is not None:
        costs.append(HoldingCost(long="yield", short="gain"))
    return Rebalancer(
        cash=CASH,
        risk=FactorRisk(loadings, pd.Series(p.specific[:risky], index=names)),
        costs=costs,
        constraints=[Given(rows=p.rows, invested=not p.cash), CashFloor(float(p.lower[-1]) if p.cash else -1.0)],
        aversion=p.aversion,
        horizon=HORIZON,
        compiled=compiled,
    )


def _own(p: Instance, weights: Array | None) -> Array | None:
    """The instance's own entries: without the account that `_table` added."""
    return weights if p.cash or weights is None else weights[:-1]


def alone(family: Family) -> One:
    """One parsed portfolio: its rules, the solve, the certificate."""
    policy = _rebalancer(family).policy
    parsed = {id(p): Portfolio.from_table(_table(p), CASH) for p in family.instances[: family.judged]}

    def one(instance: Instance, account: int) -> Array | None:
        return _own(instance, solve(policy.problem(parsed[id(instance)])).weights)

    return one


def compiled(family: Family) -> Many:
    return arrays(family, compiled=True)


def arrays(family: Family, compiled: bool = False) -> Many:
    """Stacked arrays, date by date: the rules, the solve, the certificates."""
    policy = _rebalancer(family, compiled).policy
    known: dict[tuple[int, int], Stack] = {}

    def stacked(date: list[Instance]) -> Stack:
        key = id(date[0]), len(date)
        if key not in known:
            (known[key],), _ = stacks(_long_table(date), CASH)
        return known[key]

    def many(dates: list[list[Instance]]) -> tuple[Sequence[Array | None], float]:
        asked = [stacked(date) for date in dates]
        began = time.process_time()
        answers = [newton.solve(policy.stacked(stack)) for stack in asked]
        seconds = time.process_time() - began
        found: list[Array | None] = []
        for date, answer in zip(dates, answers, strict=True):
            codes = zip(answer.code, answer.weights, strict=True)
            each = [weights if code == newton.SOLVED else None for code, weights in codes]
            found += [_own(p, weights) for p, weights in zip(date, each, strict=True)]
        return found, seconds

    return many


def batch(family: Family) -> Many:
    """From one table a date to verified orders."""
    rebalancer = _rebalancer(family)
    tables = [_long_table(date) for date in family.by_date]

    def many(dates: list[list[Instance]]) -> tuple[Sequence[Array | None], float]:
        pairs = zip(tables, dates, strict=True)
        asked = [table.iloc[: len(date) * len(_names(date[0]))] for table, date in pairs]
        began = time.process_time()
        batches = [rebalancer.solve_batch(table) for table in asked]
        rows = sum(len(solved.results) + len(solved.orders) for solved in batches)
        seconds = time.process_time() - began
        assert rows >= len(asked)
        plans = [plan for solved in batches for plan in solved]
        instances = [p for date in dates for p in date]
        solved = [plan.solution.weights if plan.solution is not None else None for plan in plans]
        return [_own(p, weights) for p, weights in zip(instances, solved, strict=True)], seconds

    return many
