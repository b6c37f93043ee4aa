"""Envelopes (tiered margin, k sigmas, shocks) of portfolios in several accounts: both solvers agree."""

from __future__ import annotations

import numpy as np
import pytest
from accounts_cases import CASHES, random_case

from equipoise import Rebalancer
from equipoise.constraints import AfterMove, AfterShock, HealthFactor, MaintenanceMargin
from equipoise.optimizer import sequenced
from equipoise.optimizer.solvers.program import program

HEALTH = HealthFactor(1.0, "threshold", account="lending")
RULES = [
    AfterShock(HEALTH, fall=0.2),
    AfterMove(HEALTH, years=5 / 365, sigmas=2.5),
    MaintenanceMargin(
        {"perps/BTC": [(0, 0.05), (5e4, 0.1), (1e5, 0.25)], "perps/ETH": [(0, 0.05), (5e4, 0.2)]},
        account="perps",
        utilisation=0.5,
    ),
]


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6])
def test_envelopes_of_an_account(seed: int) -> None:
    case = random_case(np.random.default_rng([3, seed]))
    policy = case.rebalancer.policy
    made = Rebalancer(
        cash=CASHES,
        risk=policy.risk,
        costs=policy.costs,
        constraints=[*policy.constraints, *RULES],
        aversion=policy.aversion,
        horizon=policy.horizon,
        transfers=policy.transfers,
    )
    plan = made.solve(case.table)
    assert plan.status.ok, plan.message
    assert program.solve(made.problem(case.table)).objective == pytest.approx(plan.objective, abs=1e-8)
    assert "MaintenanceMargin" in sequenced(plan).rules
