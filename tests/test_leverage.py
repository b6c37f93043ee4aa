"""Leverage in closed form: published figures, the trade applied, and the Rebalancer as judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Rebalancer
from equipoise.constraints import CashFloor, InitialMargin
from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import SMALLEST
from equipoise.optimizer import CovarianceRisk, ProportionalCost
from equipoise.optimizer.formulas.lending import loan_to_value, to_sell
from equipoise.optimizer.formulas.leverage import (
    carry_size,
    daily_rebalance,
    hedge_trade,
    improves,
    largest_slice,
    lever_to,
    leverage_ratio,
    recentred,
)

FEW = settings(max_examples=20)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    # What is no number to the library (see `constraints.numbers`) is 0 here.
    return st.floats(low, high, allow_nan=False).map(lambda x: x if abs(x) >= SMALLEST else 0.0)


# --- published figures -------------------------------------------------------------------------------------


def test_recentring() -> None:
    """Target 2, from 1.7 to 2.3, speed 5 %: from 2.2 to 2.19 (Index Coop, FlexibleLeverageStrategyExtension spec)."""
    options: dict[str, float] = {"speed": 0.05, "lowest": 1.7, "highest": 2.3}
    assert recentred(2.2, 2.0, **options) == pytest.approx(2.19, rel=1e-15)
    assert recentred([1.0, 1.8, 2.0, 2.6], 2.0, **options) == pytest.approx([1.7, 1.81, 2.0, 2.3])
    collateral, debt = 2_200.0, 1_200.0
    trade = lever_to(collateral, collateral - debt, 2.19)
    assert trade == pytest.approx(collateral * (2.19 - 2.2) / 2.2)


def test_slices_of_a_recentring() -> None:
    """calculateMaxBorrowForDelever: q·(limit − D)/limit; up: limit − D; never more than the largest trade."""
    limit = 1_000 * 0.8 * 0.99
    assert largest_slice(-900, 1_000, 500, 0.8, unused=0.01) == pytest.approx(-1_000 * (limit - 500) / limit)
    assert largest_slice(900, 1_000, 500, 0.8, unused=0.01) == pytest.approx(limit - 500)
    assert largest_slice([900, -900, 20], 1_000, 500, 0.8, at_most=50) == pytest.approx([50, -50, 20])
    assert largest_slice(-900, 1_000, 900, 0.8) == 0.0
    # A collateral that is withdrawn that far leaves a health factor of 1 before the debt is repaid.
    left = 1_000 + largest_slice(-900, 1_000, 500, 0.8)
    assert left * 0.8 == pytest.approx(500)


def test_loop_with_slippage() -> None:
    """b = (L·E − C)/((1 − s) + L·s): borrowed, of which (1 − s) becomes collateral."""
    C, D, L, s = 10_000.0, 4_000.0, 3.0, 0.003
    borrowed = (L * (C - D) - C) / ((1 - s) + L * s)
    bought = lever_to(C, C - D, L, buy=s / (1 - s))
    assert bought == pytest.approx((1 - s) * borrowed, rel=1e-14)
    assert bought * (1 + s / (1 - s)) == pytest.approx(borrowed, rel=1e-14)
    assert leverage_ratio([C + bought, -D - borrowed]) == pytest.approx(L, rel=1e-14)


def test_deleveraging_is_the_sale_to_a_loan_to_value() -> None:
    """L = 1/(1 − LTV): the sale of C = 10,000, D = 7,000 to LTV 0.5 at 0.3 % is 4,024.144869."""
    assert lever_to(10_000, 3_000, 2.0, sell=0.003) == pytest.approx(-4024.144869, abs=5e-7)
    assert -lever_to(10_000, 3_000, 2.0, sell=0.003) == pytest.approx(
        to_sell([10_000, -7_000], 1.0, 2.0, sell=0.003)[0], rel=1e-14
    )
    assert leverage_ratio([10_000, -7_000]) == pytest.approx(1 / (1 - loan_to_value([10_000, -7_000])))
    assert leverage_ratio([[1.0, -1.0], [1.0, 0.0]]).tolist() == [np.inf, 1.0]


# --- the trade applied -------------------------------------------------------------------------------------


@FEW
@given(numbers(-5, 5), numbers(0.1, 3), numbers(-4, 6), numbers(0, 0.05), numbers(0, 0.05))
def test_leverage_after_the_trade(exposure: float, equity: float, target: float, buy: float, sell: float) -> None:
    trade = lever_to(exposure, equity, target, buy=buy, sell=sell)
    if np.isnan(trade):  # closing the position would cost all of the equity
        assert equity <= max(buy, sell) * abs(exposure) * 1.3
        return
    left = equity - (buy if trade > 0 else sell) * abs(trade)
    assert left > 0
    assert exposure + trade == pytest.approx(target * left, abs=1e-12)
    before = exposure / equity
    assert improves(before, (exposure + trade) / left, target, tolerance=1e-9) or abs(before - target) < 1e-9


def test_no_trade_levers_to_the_target() -> None:
    assert np.isnan(lever_to(100.0, 0.0, 2.0))
    assert np.isnan(lever_to(100.0, -5.0, 2.0))
    assert np.isnan(lever_to(1_000.0, 1.0, 2.0, sell=0.01))  # 998 sold would cost 9.98
    assert np.isnan(lever_to(1_000.0, 20.0, 40.0, sell=0.05))  # each unit sold costs 0.05·40 of exposure
    assert lever_to([100.0, 200.0], 100.0, 2.0).tolist() == [100.0, 0.0]


@FEW
@given(numbers(1, 1e9), numbers(-3, 4), numbers(-0.2, 0.2))
def test_daily_rebalance_is_levering_to_the_same_leverage(nav: float, L: float, r: float) -> None:
    after = lever_to(L * nav * (1 + r), nav * (1 + L * r), L)
    assert daily_rebalance(nav, L, r) == pytest.approx(after, abs=1e-9 * nav)


def test_leveraged_and_inverse_funds_trade_with_the_move() -> None:
    """Cheng and Madhavan (2009): 2x trades 2·r, 3x and −2x 6·r, −1x 2·r of the NAV, all in the move's direction."""
    assert daily_rebalance(100.0, [1, 2, 3, -1, -2], 0.01) == pytest.approx([0, 2, 6, 2, 6])


@pytest.mark.parametrize(
    ("before", "after", "target", "good"),
    [
        (2.5, 2.2, 2.0, True),
        (2.5, 2.0, 2.0, True),
        (2.5, 1.9, 2.0, False),  # crossed
        (2.5, 2.5, 2.0, False),  # nothing happened
        (2.5, 2.6, 2.0, False),
        (1.5, 1.8, 2.0, True),
        (1.5, 2.1, 2.0, False),
        (2.0, 2.0, 2.0, True),
        (2.0, 2.1, 2.0, False),
    ],
)
def test_a_rebalance_improves_and_does_not_cross(before: float, after: float, target: float, good: bool) -> None:
    assert improves(before, after, target) == good


def test_improvement_with_a_tolerance() -> None:
    assert improves([2.5, 2.5, 2.0], [1.99, 1.9, 2.01], 2.0, tolerance=0.02).tolist() == [True, False, True]


# --- the program -------------------------------------------------------------------------------------------


@pytest.mark.slow
@FEW
@given(numbers(0.5, 6), numbers(1.2, 5), numbers(0, 0.01), numbers(0, 0.01))
def test_leverage_equals_the_program(leverage: float, limit: float, buy: float, sell: float) -> None:
    """A target far above (below) and a margin rate of 1/limit: the program goes to the limit, as lever_to does."""
    above = leverage > limit
    target = leverage if above else 20.0
    table = pd.DataFrame(
        {"quantity": [leverage, 1 - leverage], "price": 1.0, "target": [target, 1 - target], "rate": [1 / limit, 0.0]},
        index=["coin", "USD"],
    )
    rules = [InitialMargin("rate"), CashFloor(-50.0)]
    costs = [ProportionalCost({"coin": buy, "USD": 0.0}, {"coin": sell, "USD": 0.0})]
    plan = Rebalancer(cash="USD", costs=costs, constraints=rules, aversion=100.0).solve(table)
    assert plan.status.ok
    assert plan.weights is not None
    found = lever_to(leverage, 1.0, limit, buy=buy, sell=sell)
    assert (plan.weights["after"] - plan.weights["before"])["coin"] == pytest.approx(found, abs=1e-7)


@pytest.mark.slow
@FEW
@given(numbers(-0.5, 0.9), numbers(-0.5, 0.9), numbers(0, 0.01), numbers(0.05, 0.9), numbers(1, 20), numbers(0.1, 2))
def test_hedge_equals_the_program(
    held: float, exposure: float, cost: float, volatility: float, aversion: float, horizon: float
) -> None:
    """One asset with this risk and target: the hedge of −target, at its cost."""
    table = pd.DataFrame(
        {"quantity": [held, 1 - held], "price": 1.0, "target": [-exposure, 1 + exposure]}, index=["perp", "USD"]
    )
    risk = CovarianceRisk(pd.DataFrame([[volatility**2]], ["perp"], ["perp"]))
    plan = Rebalancer(
        cash="USD",
        risk=risk,
        costs=[ProportionalCost({"perp": cost, "USD": 0.0})],
        constraints=[CashFloor(-10.0)],
        aversion=aversion,
        horizon=horizon,
    ).solve(table)
    assert plan.weights is not None
    found = hedge_trade(exposure, held, cost=cost, variance=volatility**2, aversion=aversion, horizon=horizon)
    assert (plan.weights["after"] - plan.weights["before"])["perp"] == pytest.approx(found, abs=1e-7)


@FEW
@given(numbers(-1, 1), numbers(-1, 1), st.sampled_from([-0.6, 0.5, 1.0, 1.7]), numbers(0, 0.02))
def test_hedge_minimises_its_objective(exposure: float, hedge: float, beta: float, cost: float) -> None:
    """On a fine grid around the answer, nothing is better."""

    def objective(trade: Any) -> Any:
        net = exposure + beta * (hedge + trade)
        return 0.5 * 10 * 0.3 * net**2 + cost * np.abs(trade) / 0.5

    found = hedge_trade(exposure, hedge, beta=beta, cost=cost, variance=0.3, aversion=10, horizon=0.5)
    assert objective(found) <= objective(found + np.linspace(-3, 3, 6001)).min() + 1e-15
    if cost == 0:
        assert exposure + beta * (hedge + found) == pytest.approx(0, abs=1e-15)


def test_size_of_a_carry_trade() -> None:
    """Spot, the short's margin and both costs take exactly the capital, and the deltas cancel."""
    size = carry_size(10_000, 0.25, spot_cost=0.001, hedge_cost=0.0005)
    assert size + 0.25 * size + 0.001 * size + 0.0005 * size == pytest.approx(10_000, rel=1e-15)
    assert hedge_trade(size) == -size


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: lever_to(1.0, 1.0, np.inf), "column 'target', value inf: must be a finite number"),
        (lambda: lever_to(1.0, 1.0, 2.0, sell=-0.1), "column 'sell', value -0.1: must be at least 0"),
        (lambda: recentred(2.0, 2.0, speed=1.5, lowest=1, highest=3), "column 'speed', value 1.5"),
        (lambda: recentred(2.0, 2.0, speed=0.5, lowest=4, highest=3), "must not be above `highest`"),
        (lambda: hedge_trade(1.0, beta=0.0), "a hedge that does not move hedges nothing"),
        (lambda: carry_size(1.0, -0.5), "column 'margin', value -0.5: must be at least 0"),
        (lambda: leverage_ratio([]), "must be a number or an array of numbers"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
