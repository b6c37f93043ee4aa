"""Margin in closed form: published tables and prices, root finding, a linear program and the Rebalancer as judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from equipoise import Rebalancer
from equipoise.constraints import CashFloor, InitialMargin
from equipoise.constraints.errors import InputError
from equipoise.optimizer import ProportionalCost
from equipoise.optimizer.formulas.margin import (
    account_equity,
    bankruptcy_price,
    bracket_amounts,
    counted_collateral,
    forced_close,
    liquidation_price,
    maintenance_margin,
    open_interest_fraction,
    requirement,
    utilisation,
)

FEW = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)

#: BTCUSDT perpetual, Binance, 2024-10: floors, maintenance rates, and the published maintenance amounts.
FLOOR = np.array([0, 50e3, 600e3, 3e6, 12e6, 70e6, 100e6, 230e6, 480e6, 600e6, 800e6, 1.2e9])
RATE = np.array([0.004, 0.005, 0.0065, 0.01, 0.02, 0.025, 0.05, 0.1, 0.125, 0.15, 0.25, 0.5])
CUM = np.array([0, 50, 950, 11450, 131450, 481450, 2981450, 14481450, 26481450, 41481450, 121481450, 421481450.0])


# --- published figures -------------------------------------------------------------------------------------


def test_deductions_of_binance_tables() -> None:
    """BTCUSDT of 2024-10, and 1/2.5/5/10/12.5/50 % from 0/5k/25k/100k/250k/1M (leverage brackets, Binance Futures)."""
    assert bracket_amounts(FLOOR, RATE, CUM) == pytest.approx(CUM, rel=1e-12)
    small = bracket_amounts([0, 5e3, 25e3, 100e3, 250e3, 1e6], [0.01, 0.025, 0.05, 0.1, 0.125, 0.5])
    assert small == pytest.approx([0, 75, 700, 5_700, 11_950, 386_950])


@pytest.mark.parametrize(
    ("other", "profit", "cum", "size", "entry", "rate", "published"),
    [
        (71_200.81144, -56_354.57, 135_365, 3_683.979, 1_456.84, 0.10, 1_153.26),  # ETHUSDT
        (356_512.508, -448_192.89, 16_300, 109.488, 32_481.98, 0.025, 26_316.89),  # BTCUSDT
        (0.0, 0.0, 135_365, 3_683.979, 1_456.84, 0.10, 1_114.78),  # isolated
        (0.0, 0.0, 16_300, 109.488, 32_481.98, 0.025, 18_778.73),
    ],
)
def test_binance_liquidation_prices(
    other: float, profit: float, cum: float, size: float, entry: float, rate: float, published: float
) -> None:
    """A wallet of 1,535,443.01 USDT (Binance, how to calculate the liquidation price of USDⓈ-M contracts)."""
    found = liquidation_price(size, entry, 1_535_443.01 + profit, rate, cum, other=other)
    assert found == pytest.approx(published, abs=0.005)


def test_binance_maintenance_margins() -> None:
    """Of the same page: 4,918,775.081 at 10 % − 135,365 and 3,500,032.458 at 2.5 % − 16,300."""
    assert maintenance_margin(4_918_775.081, 0.1, 135_365) == pytest.approx(356_512.508, abs=5e-4)
    assert maintenance_margin(-3_500_032.458, 0.025, 16_300) == pytest.approx(71_200.81145, abs=1e-5)


def test_dydx_liquidation_prices() -> None:
    """1,000 USDC, 3 ETH short at 3,000, 5 %; and 1.5 ETH short beside 1,000 STRK at 1.75, 10 % (dYdX documentation)."""
    assert liquidation_price(-3, 3_000, 1_000, 0.05) == pytest.approx(3_174.60, abs=0.005)
    other = requirement(1_000, 1.75, 0.1)
    assert liquidation_price(-1.5, 3_000, 1_000, 0.05, other=other) == pytest.approx(3_380.95, abs=0.005)


@pytest.mark.parametrize(
    ("interest", "lower", "upper", "fraction"),
    [
        (0, 1e6, 2e6, 0.2),
        (1.5e6, 1e6, 2e6, 0.6),
        (1_234_567, 1e6, 2e6, 0.3876536),
        (1e6, 1e6, 2e6, 0.2),
        (2e6, 1e6, 2e6, 1.0),
        (2.5e6, 1e6, 2e6, 1.0),
        (1.5e6, 0, 0, 0.2),
        (28_123_456.789123, 25e6, 60e6, 0.271393),
        (2e6, 1e6, 1e6, 1.0),
    ],
)
def test_dydx_open_interest(interest: float, lower: float, upper: float, fraction: float) -> None:
    """dydxprotocol/v4-chain, x/perpetuals/types/liquidity_tier_test.go (the last line: caps that meet)."""
    assert open_interest_fraction(0.2, interest, lower, upper) == pytest.approx(fraction, abs=1e-6)


def test_dydx_loss_mechanism() -> None:
    """$100 each and 500 contracts at $1: the short is bankrupt at 1.2 and at −400 when the price is 2; the long,
    maintenance $15, has 0.50 at 0.801 and is closed at 0.77 (dYdX documentation, contract loss mechanisms)."""
    assert bankruptcy_price(-500, 1.0, 100) == pytest.approx(1.2, rel=1e-15)
    assert account_equity(-500, 2.0, 100 + 500) == -400
    assert requirement(500, 1.0, 0.03) == pytest.approx(15)
    equity = account_equity(500, 0.801, 100 - 500)
    assert equity == pytest.approx(0.5)
    assert utilisation(requirement(500, 0.801, 0.03), equity) > 1
    closed = forced_close(500, 0.801, equity, 0.77, fee=0.015, fund=10)
    assert closed.shortfall == pytest.approx(15)
    assert (closed.equity, closed.fee, closed.covered) == (0, 0, 10)
    assert closed.socialised == pytest.approx(5)
    assert closed.cost == pytest.approx(0.5)


def test_margin_account_of_regulation_t() -> None:
    """50 % initial, 25 % maintenance (FINRA 4210): 20,000 of stock with 10,000 borrowed is called at 13,333.33."""
    equity = account_equity(200, 100.0, -10_000)
    assert utilisation(requirement(200, 100.0, 0.5), equity) == 1.0
    assert liquidation_price(200, 100.0, equity, 0.25) * 200 == pytest.approx(10_000 / 0.75)


# --- brackets ----------------------------------------------------------------------------------------------


def test_maintenance_margin_is_the_integral_of_the_rates() -> None:
    """Each slice of the notional at the rate of its own bracket, as income tax is counted."""
    notional = np.array([0, 1e3, 50e3, 50_001, 2.5e6, 12e6, 99e6, 7e8, 1.5e9])
    ends = np.append(FLOOR[1:], np.inf)
    sliced = [(np.clip(x - FLOOR, 0, ends - FLOOR) * RATE).sum() for x in notional]
    assert maintenance_margin(notional, RATE, CUM) == pytest.approx(sliced, rel=1e-12)
    assert maintenance_margin(-notional, RATE, CUM) == pytest.approx(sliced, rel=1e-12)
    # The table's own rule: the rate and the amount of the bracket that the notional is in.
    j = np.searchsorted(FLOOR, notional, side="right") - 1
    assert maintenance_margin(notional, RATE, CUM) == pytest.approx(RATE[j] * notional - CUM[j], rel=1e-12)


@FEW
@given(seeds)
def test_liquidation_price_is_the_root(seed: int) -> None:
    """Equity − maintenance margins, by Brent's method: the same price, whatever bracket it lies in."""
    rng = np.random.default_rng(seed)
    price = float(10 ** rng.uniform(0, 5))
    quantity = rng.choice([-1, 1]) * 10 ** rng.uniform(3, 9) / price
    equity = abs(quantity) * price * rng.uniform(0.02, 1.3)
    other = equity * rng.uniform(0, 0.2)

    def spare(p: float) -> float:
        return equity + quantity * (p - price) - other - maintenance_margin(quantity * p, RATE, CUM)

    found = liquidation_price(quantity, price, equity, RATE, CUM, other=other)
    if np.isnan(found):
        assert quantity > 0
        assert spare(1e-9 * price) > 0
        return
    assert found == pytest.approx(brentq(spare, 1e-9 * price, 100 * price, rtol=1e-14), rel=1e-9)
    below = spare(found * (1 + (-1e-6 if quantity > 0 else 1e-6)))
    assert below < 0


def test_many_positions_at_once() -> None:
    found = liquidation_price([1.0, -1.0, 0.0], 50_000, 5_000, RATE, CUM)
    assert found[0] == pytest.approx(45_000 / 0.996)  # the first bracket
    assert found[1] == pytest.approx((55_000 + 50) / 1.005)  # the second
    assert np.isnan(found[2])
    assert maintenance_margin(np.full((2, 3), 1e6), RATE, CUM).shape == (2, 3)
    assert liquidation_price(2.0, 100.0, -10.0, 0.05) > 100  # it is liquidated now


# --- collateral and insolvency -----------------------------------------------------------------------------


@FEW
@given(seeds, st.integers(1, 8))
def test_counted_collateral_is_the_linear_programs_answer(seed: int, kinds: int) -> None:
    """max Σ u with u ≤ (1 − haircut)·value, u ≤ cap, u ≤ share·Σ u, by HiGHS."""
    rng = np.random.default_rng(seed)
    value, haircut = rng.uniform(0, 1_000, kinds), rng.uniform(0, 0.3, kinds)
    cap, share = rng.uniform(100, 2_000, kinds), float(rng.choice([0.15, 0.25, 0.4, 0.6, 1.0]))
    found = counted_collateral(value, haircut, cap=cap, share=share)
    each = np.minimum(value * (1 - haircut), cap)
    best = linprog(-np.ones(kinds), A_ub=np.eye(kinds) - share, b_ub=np.zeros(kinds), bounds=[(0, x) for x in each])
    assert found.sum() == pytest.approx(-best.fun, abs=1e-7)
    assert (found <= each + 1e-12).all()
    assert (found <= share * found.sum() + 1e-9).all()


def test_haircuts_and_concentration() -> None:
    """Cash 0, government bonds 2, equity 15 % (BCBS-IOSCO's schedule); no more than half in one kind."""
    value = np.array([100.0, 1_000.0, 1_000.0])
    assert counted_collateral(value, [0, 0.02, 0.15]) == pytest.approx([100, 980, 850])
    assert counted_collateral(value, [0, 0.02, 0.15], cap=[np.inf, 500, np.inf]) == pytest.approx([100, 500, 850])
    assert counted_collateral(value, [0, 0.02, 0.15], share=0.5) == pytest.approx([100, 950, 850])
    assert counted_collateral([100.0, -50.0, 1_000.0], share=0.5) == pytest.approx([100, 0, 100])
    assert counted_collateral([5.0, 5.0], share=0.4).tolist() == [0, 0]  # two kinds cannot each be 40 %
    assert counted_collateral(np.full(49, 2.0), share=1 / 49) == pytest.approx(2.0)


@FEW
@given(seeds)
def test_a_forced_close_loses_no_money(seed: int) -> None:
    """What the owner loses and the others pay is what the trade lost and the penalty took."""
    rng = np.random.default_rng(seed)
    quantity, price, equity = rng.normal(0, 10, 50), rng.uniform(1, 100, 50), rng.uniform(-50, 300, 50)
    fill = price * rng.uniform(0.7, 1.3, 50)
    closed = forced_close(quantity, price, equity, fill, fee=0.015, fund=40.0)
    lost = -quantity * (fill - price)
    assert closed.cost + closed.covered + closed.socialised == pytest.approx(lost + closed.fee)
    assert (closed.equity >= 0).all()
    assert (closed.fee <= 0.015 * np.abs(quantity) * fill + 1e-12).all()
    assert (closed.covered <= 40).all()
    at = bankruptcy_price(quantity, price, equity)
    past = np.where(quantity > 0, fill < at, fill > at)
    priced = np.isfinite(at)
    assert ((closed.shortfall > 0) == past)[priced].all()


# --- the program -------------------------------------------------------------------------------------------


@FEW
@given(seeds, st.floats(0.5, 1.0))
def test_initial_margin_equals_the_program(seed: int, most: float) -> None:
    """A stock, a short and a loan, with haircuts: the plan of InitialMargin sits on the closed form's utilisation."""
    rng = np.random.default_rng(seed)
    long, short = rng.uniform(1.5, 3.0), rng.uniform(0.1, 0.5)
    rate, haircut, cost = rng.uniform(0.2, 0.5, 2), rng.uniform(0, 0.1), rng.uniform(0, 0.01)
    value = np.array([long, -short, 1 - long + short])
    table = pd.DataFrame(
        {"quantity": value, "price": 1.0, "target": value, "rate": [*rate, 0.0], "haircut": [haircut, 0, 0]},
        index=["stock", "short", "USD"],
    )
    rules = [InitialMargin("rate", "haircut", utilisation=most), CashFloor(-50.0)]
    costs = [ProportionalCost({"stock": cost, "short": cost, "USD": 0.0})]
    plan = Rebalancer(cash="USD", costs=costs, constraints=rules).solve(table)

    def used(weights: np.ndarray) -> float:
        equity = counted_collateral(weights[:1], haircut).sum() + weights[1] + weights[2]
        return float(utilisation(requirement(weights[:2], 1.0, rate), equity))

    before = used(value)
    if not plan.status.ok:
        assert before > most
        return
    assert plan.weights is not None
    after = plan.weights["after"].loc[table.index].to_numpy()
    assert used(after) == pytest.approx(min(before, most), abs=1e-7)  # held, or repaired just as far as needed


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: bracket_amounts(FLOOR, RATE, CUM + (FLOOR == 12e6), asset="BTC", account="perps"),
            "asset 'BTC', column 'cum', value 131451.0: account 'perps': bracket 5: is not what floors and rates give",
        ),
        (lambda: bracket_amounts([0, 5, 5], [0.01, 0.02, 0.03], asset="X"), "asset 'X', column 'floor', value 5.0"),
        (lambda: bracket_amounts([1, 5], [0.01, 0.02]), "bracket 1: the first must be 0"),
        (lambda: bracket_amounts([0, 5], [0.02, 0.01]), "bracket 2: must not fall with the notional"),
        (lambda: bracket_amounts([0, 5], [0.5, 1.0]), "bracket 2: must lie between 0 and 1"),
        (lambda: bracket_amounts([0, 5], [0.01, 0.02], [0.0]), "one number a bracket"),
        (lambda: liquidation_price(1, 0.0, 1, 0.05), "column 'price', value 0.0: must be above 0"),
        (lambda: maintenance_margin(1, 1.2), "column 'rate', value 1.2: must be at least 0 and below 1"),
        (lambda: open_interest_fraction(0.2, 1, 5, 2), "must not be above the upper cap"),
        (lambda: counted_collateral([1.0], 1.5), "column 'haircut', value 1.5: must be at least 0 and at most 1"),
        (lambda: forced_close(1, 1, 1, 0.0), "column 'fill', value 0.0: must be above 0"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()
