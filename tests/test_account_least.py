"""Least positions and debts over several accounts: against all choices, each a convex program of its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from accounts_cases import Case, random_case

from equipoise import Rebalancer, Status
from equipoise.constraints import MinimumPosition, Rule, WeightBounds

#: Owed and moved by transfers; held and moved; on both sides of 0, and traded only.
ROWS = ("lending/USDC owed", "wallet/ETH", "perps/BTC")


def under(case: Case, *rules: Rule, **options: Any) -> Rebalancer:
    """The case's policy with more rules."""
    given = case.rebalancer
    return Rebalancer(
        cash=given.accounts,
        risk=given.policy.risk,
        costs=given.policy.costs,
        constraints=[*given.policy.constraints, *rules],
        aversion=given.policy.aversion,
        horizon=given.policy.horizon,
        transfers=given.policy.transfers,
    )


def choices(row: str, least: float) -> list[Rule]:
    closed = WeightBounds(lower={row: 0.0}, upper={row: 0.0}, assets=[row])
    held = WeightBounds(lower={row: least}, assets=[row])
    owed = WeightBounds(upper={row: -least}, assets=[row])
    return {"lending/USDC owed": [closed, owed], "wallet/ETH": [closed, held]}.get(row, [closed, held, owed])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_best_of_all_choices(seed: int) -> None:
    case = random_case(np.random.default_rng([31, seed]), calm=True)
    free = case.rebalancer.solve(case.table)
    assert free.status.ok
    size = free.weights["after"].abs()
    least = {row: 1.4 * float(size[row]) if size[row] > 1e-6 else 0.02 for row in ROWS}
    plan = under(case, MinimumPosition(weight=least, assets=list(ROWS))).solve(case.table)
    found = [
        under(case, *rules).solve(case.table)
        for rules in itertools.product(*(choices(row, least[row]) for row in ROWS))
    ]
    best = min(one.objective for one in found if one.status.ok)
    assert plan.status.ok, plan.message
    assert plan.objective == pytest.approx(best, rel=1e-7, abs=1e-8)
    assert plan.bound <= plan.objective + 1e-12
    assert plan.gap <= 1e-6 * abs(plan.objective) + 1e-8
    after = plan.weights["after"]
    assert all(after[row] == 0 or abs(after[row]) >= least[row] for row in ROWS)
    assert plan.checks[plan.checks["rule"] == "MinimumPosition"]["passed"].all()


def test_a_debt_that_can_neither_be_repaid_nor_grow() -> None:
    case = random_case(np.random.default_rng([31, 0]), calm=True)
    debt = "lending/USDC owed"
    owed = abs(float(case.rebalancer.solve(case.table).weights["before"][debt]))
    fixed = WeightBounds(lower={debt: -1.01 * owed}, upper={debt: -0.99 * owed}, assets=[debt])
    plan = under(case, MinimumPosition(weight={debt: 2 * owed}, assets=[debt]), fixed).solve(case.table)
    assert plan.status is Status.NO_LOT_PLAN
    assert plan.orders.empty
    assert "least" in plan.message
