"""Exact mode: equal to brute force and to proven optima, and honest about what it did not prove."""

from __future__ import annotations

import numpy as np
import pytest
import test_lot_bound
import test_lots

from equipoise import Rebalancer, Status
from equipoise.constraints import DriftBand, InputError, LotSize, Turnover


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_equal_to_brute_force(seed: int) -> None:
    """Long and short, with minimums, bands, turnover, leverage, impact, carry and a tracking error limit."""
    case = test_lot_bound.small_case(seed)
    best = test_lot_bound.brute_force(case)
    rebalancer, table = test_lot_bound.problem_of(case)
    plan = rebalancer.solve(table, exact=True)
    if np.isinf(best):
        assert not plan.status.ok
        return
    assert plan.status.ok, plan.message
    assert plan.objective == pytest.approx(best, rel=1e-6, abs=1e-11)
    assert plan.bound <= best + 1e-12 + 1e-9 * abs(best)
    assert plan.gap <= 1e-6 * abs(best) + 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_equal_to_brute_force_with_bands_and_turnover(seed: int) -> None:
    table, cov, limits = test_lots.small_case(seed)
    best = test_lots.brute_force(table, cov, limits, aversion=30.0)
    plan = test_lots.rebalancer(cov, limits, 30.0).solve(table, exact=True)
    assert plan.status.ok == np.isfinite(best)
    if plan.status.ok:
        assert plan.objective == pytest.approx(best, rel=1e-6, abs=1e-11)


@pytest.mark.parametrize("case", [c for c in test_lots.proven() if c["max_trades"] is None], ids=lambda c: str(c["id"]))
def test_proves_what_others_have_proven(case: dict) -> None:
    """The optimum of another solver's branch and bound, to its own tolerance."""
    rebalancer, table = test_lots.of_case(case)
    plan = rebalancer.solve(table, exact=True, gap=1e-4, time_limit=None)
    optimum = case["expected"]["objective"]
    assert plan.bound <= optimum * (1 + 1e-6)
    assert optimum * (1 - 1e-6) <= plan.objective <= optimum * (1 + 1.01e-4)
    assert plan.gap <= 1.01e-4 * plan.objective


def test_no_time_is_no_proof() -> None:
    """With the time over at once: the search's plan, with a valid bound and an open gap."""
    case = next(c for c in test_lots.proven() if c["min_trade_notional"] > 0)
    rebalancer, table = test_lots.of_case(case)
    plan = rebalancer.solve(table, exact=True, time_limit=0.0)
    assert plan.status is Status.FEASIBLE
    assert plan.bound <= case["expected"]["objective"] * (1 + 1e-6) <= plan.objective * (1 + 2e-6)
    assert plan.gap > 0
    assert plan.gap_money == pytest.approx(plan.gap * float((table["quantity"] * table["price"]).sum()))


def test_no_plan_is_proven_and_no_plan_in_no_time_is_not() -> None:
    """Both bands need a board lot, the turnover allows one of them: no zeros are sold as a plan."""
    table = test_lots.account(quantity=[30.0, 12.0, 400.0])
    rules = [DriftBand(relative=0.2), Turnover(0.095), LotSize({"A": 10.0, "B": 4.0})]
    for time_limit in (None, 0.0):
        plan = Rebalancer(constraints=rules, cash="USD").solve(table, exact=True, time_limit=time_limit)
        assert plan.status in (Status.NO_LOT_PLAN, Status.INFEASIBLE)
        assert plan.orders.empty
        if time_limit is None and plan.status is Status.NO_LOT_PLAN:
            assert "proven" in plan.message


@pytest.mark.parametrize(
    ("argument", "value"), [("gap", -1.0), ("gap", float("nan")), ("time_limit", -1.0), ("effort", -1)]
)
def test_bad_arguments_are_named(argument: str, value: float) -> None:
    table = test_lots.account(quantity=[40.0, 12.0, 300.0])
    with pytest.raises(InputError, match=argument):
        Rebalancer(constraints=[LotSize(1.0)], cash="USD").solve(table, exact=True, **{argument: value})


@pytest.mark.slow
def test_more_effort_is_never_worse() -> None:
    """A plan of more effort starts from that of less."""
    for seed in range(10):
        case = test_lot_bound.small_case(seed)
        rebalancer, table = test_lot_bound.problem_of(case)
        plans = [rebalancer.solve(table, effort=effort) for effort in (0, 1, 3)]
        if plans[0].status.ok:
            values = [plan.objective for plan in plans]
            assert values[2] <= values[1] * (1 + 1e-9) + 1e-15
            assert values[1] <= values[0] * (1 + 1e-9) + 1e-15
