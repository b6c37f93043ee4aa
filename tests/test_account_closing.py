"""Debts and holdings that must end at exactly 0, in one account and in several: judged by books in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from closing_cases import misses, random_closing
from generators import names, portfolio

from equipoise import Rebalancer, Status
from equipoise.constraints import CashFloor, LongOnly, ShortOnly, TrackingErrorLimit, WeightBounds
from equipoise.optimizer import CovarianceRisk, ProportionalCost, Transfer


@pytest.mark.parametrize("seed", [2, 6, 8, 17, 20, 36, 48, 60, 66, 70, 97, 103])
def test_what_must_be_empty_is_empty_and_every_cash_keeps_its_floor(seed: int) -> None:
    case = random_closing(np.random.default_rng([91, seed]))
    plan = case.rebalancer.solve(case.table)
    assert plan.status is not Status.UNSOLVED, plan.message
    assert not plan.status.ok or not misses(case, plan)


def test_nothing_is_free_to_repay_the_last_unit() -> None:
    """A transfer that is at its limit cannot repay what the limit leaves: infeasible, not nearly repaid."""
    case = random_closing(np.random.default_rng([91, 2]))
    debt = "lend-b/USDC owed"
    table = case.table.set_index(case.table["account"] + "/" + case.table["asset"])
    owed = -float(table.loc[debt, "quantity"])
    for limit, status in ((owed, Status.OPTIMAL), (owed * (1 - 1e-6), Status.INFEASIBLE)):
        rebalancer = Rebalancer(
            cash={"exchange": "USDT", "wallet": "USDC"},
            constraints=[
                LongOnly(except_=["lend-a/USDC owed", "lend-a/ETH owed", debt]),
                ShortOnly(["lend-a/USDC owed", "lend-a/ETH owed", debt]),
                WeightBounds(lower={debt: 0.0}, upper={debt: 0.0}, assets=[debt]),
            ],
            transfers=[Transfer("exchange/USDT", "wallet/USDC"), Transfer("wallet/USDC", debt, limit=limit)],
        )
        plan = rebalancer.solve(case.table)
        assert plan.status is status, plan.message
        if plan.status.ok:
            assert plan.weights.loc[debt, "after"] == 0


@pytest.mark.parametrize("solver", ["threshold", "newton", "CLARABEL"])
@pytest.mark.parametrize("seed", range(4))
def test_one_account_empties_what_is_pinned_at_0(seed: int, solver: str) -> None:
    rng = np.random.default_rng([92, seed])
    n = 6
    held = np.round(rng.dirichlet(np.ones(n)), 6) * np.where(np.arange(n) < 2, -0.3, 1.0)
    before = np.append(held, 1 - held.sum())
    target = np.append(np.zeros(n), 1.0)
    root = rng.normal(size=(n, n)) * 0.2
    covariance = np.diag(np.diag(root @ root.T)) if solver == "threshold" else root @ root.T
    pinned = [names(n)[i] for i in (0, 3)]
    rules = [
        LongOnly(except_=names(n)[:2]),
        ShortOnly(names(n)[:2]),
        CashFloor(0.0),
        WeightBounds(lower=dict.fromkeys(pinned, 0.0), upper=dict.fromkeys(pinned, 0.0), assets=pinned),
        *([TrackingErrorLimit(9.0)] if solver == "CLARABEL" else []),
    ]
    given = portfolio(before, target, nav=123_456.789)
    rows = pd.DataFrame(dict(given.columns), index=list(given.assets))
    risk = CovarianceRisk(covariance, assets=names(n))
    plan = Rebalancer(cash="USD", risk=risk, costs=[ProportionalCost(0.001)], constraints=rules).solve(rows)
    assert plan.status.ok and plan.verified is not None, plan.message
    assert plan.solver == solver
    after = dict(zip(given.assets, plan.verified.quantities, strict=True))
    assert [after[name] for name in pinned] == [Fraction(0), Fraction(0)]
