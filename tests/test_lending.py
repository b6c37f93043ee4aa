"""Lending accounts and their repair: published figures, the trade applied, a linear program, the Rebalancer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from equipoise import Rebalancer
from equipoise.constraints import CollateralRatio, HealthFactor, LongOnly, Rule, ShortOnly, Turnover
from equipoise.constraints.errors import InputError
from equipoise.optimizer import Plan, ProportionalCost, Status
from equipoise.optimizer.formulas.lending import (
    borrow_capacity,
    collateral_ratio,
    health_factor,
    liquidation_drop,
    liquidation_price,
    loan_to_value,
    repair,
    threshold_slope,
    to_add,
    to_repay,
    to_sell,
)

#: 10,000 of collateral that counts 80 %, 7,000 of debt: the example of all closed forms of deleveraging.
VALUE, THRESHOLD = np.array([10_000.0, -7_000.0]), np.array([0.8, 0.0])
FEW = settings(max_examples=20)
seeds = st.integers(0, 2**32 - 1)


# --- published figures -------------------------------------------------------------------------------------


def test_aave_health_factor() -> None:
    """$10,000 in ETH at a threshold of 80 %, $6,000 borrowed: 1.333 (aave.com/docs, liquidations)."""
    assert health_factor([10_000, -6_000], [0.8, 0.0]) == pytest.approx(4 / 3, rel=1e-15)


@pytest.mark.parametrize(
    ("collateral", "factor", "liquidatable"),
    [(100_000, 1.0, False), (95_000, 1.0, True), (100_000, 0.8, True), (50_000, 1.0, True)],
)
def test_comet_is_liquidatable(collateral: float, factor: float, liquidatable: bool) -> None:
    """$100,000 owed (compound-finance/comet, test/is-liquidatable-test.ts)."""
    assert (health_factor([-100_000, collateral], [0, factor]) < 1) == liquidatable


def test_comet_counts_only_listed_collateral() -> None:
    """Five assets at 200, liquidate factor 0.8, 400 owed; three factors go to zero: 320 < 400 (same file)."""
    value = [200.0] * 5 + [-400.0]
    assert health_factor(value, 0.8) == pytest.approx(2.0)
    assert health_factor(value, [0.8, 0, 0.8, 0, 0, 0]) == pytest.approx(0.8)


def test_maker_ratio_and_liquidation_price() -> None:
    """ETH-A at 150 %: safe while ink·spot ≥ art·rate with spot = price/1.5 (makerdao/dss, Vat.frob, Spotter.poke)."""
    value = [30 * 2_000.0, -32_000.0]
    assert collateral_ratio(value) == pytest.approx(1.875)
    found = liquidation_price(value, [2_000.0, 1.0], 1.0, at=1.5)[0]
    assert found == pytest.approx(32_000 * 1.5 / 30, rel=1e-14)
    assert 30 * (found / 1.5) == pytest.approx(32_000, rel=1e-14)


@pytest.mark.parametrize(
    ("found", "published"),
    [
        (to_sell(VALUE, THRESHOLD, 1.5, sell=0.003)[0], 3594.536305),
        (to_repay(VALUE, THRESHOLD, 1.5), 1666.666667),
        (to_add(VALUE, THRESHOLD, 1.5)[0], 3125.0),
        (to_sell(VALUE, 1.0, 1 / 0.5, sell=0.003)[0], 4024.144869),
    ],
)
def test_deleveraging_table(found: float, published: float) -> None:
    """C = 10,000, LT = 0.8, D = 7,000 to HF 1.5, and to LTV 0.5, with 0.3 % of costs."""
    assert found == pytest.approx(published, abs=5e-7)


def test_conversions() -> None:
    """ratio = 1/LTV and HF = threshold/LTV for one collateral."""
    assert loan_to_value(VALUE) == pytest.approx(0.7)
    assert collateral_ratio(VALUE) == pytest.approx(1 / 0.7)
    assert health_factor(VALUE, THRESHOLD) == pytest.approx(0.8 / 0.7)
    assert borrow_capacity(VALUE, [0.75, 0]) == pytest.approx(500)


# --- prices ------------------------------------------------------------------------------------------------


def test_liquidation_prices_of_several_rows() -> None:
    """At each price found, and the others as they are, the health factor is the one asked for."""
    quantity, price = np.array([3.0, 0.2, 500.0, -6_000.0, -1.0]), np.array([2_000.0, 40_000.0, 1.0, 1.0, 1_500.0])
    threshold = np.array([0.825, 0.7, 0.0, 0.0, 0.0])
    for at in (1.0, 1.2):
        found = liquidation_price(quantity * price, price, threshold, at=at)
        for row in (0, 1, 3, 4):
            moved = np.where(np.arange(5) == row, found, price)
            assert health_factor(quantity * moved, threshold) == pytest.approx(at, rel=1e-12)
        assert np.isnan(found[2])  # it does not count
    one = liquidation_price(VALUE, [2_500.0, 1.0], THRESHOLD)
    assert one[0] == pytest.approx(2_500 / health_factor(VALUE, THRESHOLD))


def test_no_liquidation_price() -> None:
    """Where the other collaterals are enough, and where they are not."""
    safe = liquidation_price([10_000, 10_000, -5_000], [1, 1, 1], [0.8, 0.8, 0])
    assert np.isnan(safe[:2]).all()
    assert safe[2] == pytest.approx(16_000 / 5_000)
    sunk = liquidation_price([1_000, -5_000, -1.0], [1, 1, 1], [0.8, 0, 0])
    assert np.isnan(sunk[2])
    assert np.isnan(liquidation_price([1_000.0, 0.0], [1, 1], 0.8)).all()


def test_common_fall() -> None:
    health = health_factor(VALUE, THRESHOLD)
    assert liquidation_drop(VALUE, THRESHOLD) == pytest.approx(1 - 1 / health)
    assert liquidation_drop(VALUE, THRESHOLD, at=health) == pytest.approx(0.0, abs=1e-15)
    assert liquidation_drop([1_000, -1_000], [0.8, 0]) < 0  # it is there now
    assert liquidation_drop([1_000, 0], [0.8, 0]) == np.inf  # nothing owed
    # Collateral and debt of the same coin, plus dollars: only the difference moves.
    value, threshold = np.array([10_000.0, -7_000.0, -500.0]), np.array([0.8, 0.0, 0.0])
    fall = liquidation_drop(value, threshold, falls=[1, 1, 0])
    assert health_factor(value * (1 - fall * np.array([1, 1, 0])), threshold) == pytest.approx(1.0)
    rise = liquidation_drop(value, threshold, falls=[0, -1, 0])  # a debt that rises
    assert health_factor(value * [1, 1 + rise, 1], threshold) == pytest.approx(1.0)
    assert liquidation_drop([10_000, 9_000, -7_000], [0.8, 0.8, 0], falls=[1, 0, 0]) == np.inf
    assert liquidation_drop([10_000, -9_000], [0.8, 0], falls=[-1, 0]) == -np.inf


def test_slope_of_the_threshold() -> None:
    value, threshold = np.array([6_000.0, 4_000.0, -7_000.0]), np.array([0.8, 0.7, 0.0])
    more = health_factor(value, threshold + np.array([0.01, 0, 0])) - health_factor(value, threshold)
    assert threshold_slope(value)[0] == pytest.approx(more / 0.01, rel=1e-9)
    assert threshold_slope([1.0, 2.0]).tolist() == [0.0, 0.0]


# --- amounts -----------------------------------------------------------------------------------------------


def account(seed: int, collaterals: int) -> dict[str, Any]:
    """Random collaterals and one debt, below a ratio that selling and the wallet may or may not restore."""
    rng = np.random.default_rng(seed)
    held, part = rng.uniform(1_000, 9_000, collaterals), rng.uniform(0.5, 0.9, collaterals)
    floor = rng.uniform(1.05, 2.0)
    debt = (held @ part) / floor * rng.uniform(1.01, 1.3)
    return {
        "value": np.array([*held, -min(debt, 0.97 * held.sum())]),
        "threshold": np.array([*part, 0.0]),
        "at_least": floor,
        "rng": rng,
    }


@FEW
@given(seeds)
def test_amounts_restore_the_ratio_exactly(seed: int) -> None:
    a = account(seed, 3)
    value, threshold, h, rng = a["value"], a["threshold"], a["at_least"], a["rng"]
    sell, buy = rng.uniform(0, 0.02, 2)
    cash = to_repay(value, threshold, h, buy=buy)
    assert health_factor(value + np.array([0, 0, 0, cash / (1 + buy)]), threshold) >= h * (1 - 1e-12)
    if health_factor(value, threshold) < h:
        assert health_factor(value + np.array([0, 0, 0, cash / (1 + buy)]), threshold) == pytest.approx(h)
    for row, amount in enumerate(to_add(value, threshold, h, buy=buy)[:3]):
        added = np.where(np.arange(4) == row, amount / (1 + buy), 0.0)
        assert health_factor(value + added, threshold) >= h * (1 - 1e-12)
        assert amount >= cash
    for row, amount in enumerate(to_sell(value, threshold, h, sell=sell, buy=buy)[:3]):
        if np.isfinite(amount):
            traded = np.where(np.arange(4) == row, -amount, 0.0)
            traded[3] = amount * (1 - sell) / (1 + buy)
            assert health_factor(value + traded, threshold) == pytest.approx(max(h, health_factor(value, threshold)))
            assert value[3] + traded[3] <= 0


@FEW
@given(seeds, st.integers(1, 6))
def test_repair_is_the_linear_programs_answer(seed: int, collaterals: int) -> None:
    """min Σ y + Σ k·y + r with h·(r + Σ k·y) − Σ LT·y ≥ h·D − W, by HiGHS, with a cost of its own for each row."""
    a = account(seed, collaterals)
    value, threshold, h, rng = a["value"], a["threshold"], a["at_least"], a["rng"]
    sell, buy, wallet = np.append(rng.uniform(0, 0.3, collaterals), 0.0), rng.uniform(0, 0.02), rng.uniform(0, 500)
    found = repair(value, threshold, h, wallet=wallet, sell=sell, buy=buy)

    held, debt = value[:-1], -value[-1]
    k = (1 - sell[:-1]) / (1 + buy)
    gap = h * debt - held @ threshold[:-1]
    row = -np.append(h * k - threshold[:-1], h)
    bounds = [*((0, x) for x in held), (0, wallet / (1 + buy))]
    best = linprog(np.append(1 + k, 1.0), A_ub=row[None], b_ub=[-max(gap, 0.0)], bounds=bounds)
    if best.status == 2:
        assert found.missing > 0
        left = debt - found.repaid - found.missing / (1 + buy)
        assert h * left == pytest.approx((held - found.sold[:-1]) @ threshold[:-1], abs=1e-6)
        return
    assert found.missing == 0
    assert found.sold.sum() + found.repaid == pytest.approx(best.fun, rel=1e-9, abs=1e-6)
    after = value + np.append(-found.sold[:-1], found.repaid)
    assert health_factor(after, threshold) >= h * (1 - 1e-12)
    assert after[-1] <= 1e-9
    # What it spends is what it has: the wallet, the sales, the costs.
    assert found.wallet + found.sold.sum() == pytest.approx(found.repaid + found.cost, rel=1e-12)
    assert found.wallet <= wallet * (1 + 1e-15)


def test_repair_of_many_accounts_at_once() -> None:
    values = np.array([VALUE, [10_000.0, -1_000.0], [1_000.0, -7_000.0], [1_000.0, 0.0]])
    found = repair(values, THRESHOLD, 1.5, wallet=[0, 0, 100, 5], sell=0.003)
    for i, value in enumerate(values):
        alone = repair(value, THRESHOLD, 1.5, wallet=[0, 0, 100, 5][i], sell=0.003)
        for many, one in zip(found, alone, strict=True):
            assert many[i] == pytest.approx(one)
    assert found.sold[0, 0] == pytest.approx(3594.536305, abs=5e-7)
    assert found.repaid[1] == found.repaid[3] == 0
    assert found.missing[2] > 0
    assert health_factor(values, THRESHOLD)[:3] == pytest.approx([8 / 7, 8.0, 0.8 / 7])


def test_no_sale_reaches_the_ratio() -> None:
    """A sale that repays less than it takes from the covered value makes things worse."""
    assert to_sell([10_000, -9_000], [0.9, 0], 1.05, sell=0.2)[0] == np.inf
    assert repair([10_000, -9_000], [0.9, 0], 1.05, sell=0.2).sold[0] == 0.0
    assert to_sell([1_000, -1_100], [0.5, 0], 1.5)[0] == np.inf  # more than there is
    assert to_add([1_000, -900], [0.5, 0], 1.5) == pytest.approx([1_700, np.inf])


# --- the program -------------------------------------------------------------------------------------------


def solved(value: np.ndarray, threshold: np.ndarray, rule: Rule, cost: ProportionalCost, *more: Rule) -> Plan:
    """The plan that trades least: collaterals, one debt, and cash; all targets where they are."""
    assets = [*(f"C{i}" for i in range(len(value) - 2)), "debt", "USD"]
    target = value / value.sum()
    target[-1] = 1.0 - target[:-1].sum()
    table = pd.DataFrame({"quantity": value, "price": 1.0, "target": target, "part": threshold}, index=assets)
    table["sell"], table["buy"] = 0.004, 0.001
    rules = [LongOnly(except_=["debt"]), ShortOnly(["debt"]), rule, *more]
    return Rebalancer(cash="USD", costs=[cost], constraints=rules, aversion=1e-6, horizon=1e-2).solve(table)


@pytest.mark.slow
@FEW
@given(seeds, st.sampled_from([HealthFactor, CollateralRatio]))
def test_one_sale_equals_the_program(seed: int, kind: Any) -> None:
    """One collateral, different costs of both sides: minimal turnover is the closed form, less is infeasible."""
    a = account(seed, 1)
    value, threshold, h = np.append(a["value"], 0.0), np.append(a["threshold"], 0.0), a["at_least"]
    sale = to_sell(value, threshold, h, sell=[0.004, 0, 0], buy=0.001)[0]
    cost = ProportionalCost("buy", "sell")
    plan = solved(value, threshold, kind(h, "part"), cost)
    if not np.isfinite(sale):
        assert plan.status is Status.INFEASIBLE
        return
    nav = value.sum()
    assert plan.status.ok
    assert plan.weights is not None
    assert (plan.weights["before"] - plan.weights["after"])["C0"] == pytest.approx(sale / nav, abs=1e-7)
    turnover = 0.5 * (sale + sale * 0.996 / 1.001) / nav
    if turnover > 1e-3:
        assert solved(value, threshold, kind(h, "part"), cost, Turnover(turnover * (1 + 1e-6))).status.ok
        less = solved(value, threshold, kind(h, "part"), cost, Turnover(turnover * (1 - 1e-4)))
        assert less.status is Status.INFEASIBLE


@pytest.mark.slow
@FEW
@given(seeds, st.booleans())
def test_repair_equals_the_program(seed: int, purse: bool) -> None:
    """Two collaterals, a wallet, the same cost rate of all: least traded is cheapest."""
    a = account(seed, 2)
    wallet = float(a["rng"].uniform(0, 300)) if purse else 0.0
    value, threshold = np.append(a["value"], wallet), np.append(a["threshold"], 0.0)
    found = repair(a["value"], a["threshold"], a["at_least"], wallet=wallet, sell=0.002, buy=0.002)
    plan = solved(value, threshold, HealthFactor(a["at_least"], "part"), ProportionalCost(0.002))
    if found.missing > 0:
        assert plan.status is Status.INFEASIBLE
        return
    assert plan.status.ok
    assert plan.weights is not None
    moved = (plan.weights["after"] - plan.weights["before"]).to_numpy()[:3] * value.sum()
    assert moved == pytest.approx([*-found.sold[:2], found.repaid], abs=1e-7 * value.sum())


# --- bad input, and the page -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: health_factor([1.0, np.nan], 0.8), "column 'value', value nan: must be a finite number"),
        (lambda: health_factor(["a"], 0.8), "column 'value', value 'a': must be a finite number"),
        (lambda: health_factor([1.0, -1.0], [1.2, 0.0]), "column 'threshold', value 1.2: must be at least 0"),
        (lambda: health_factor([1.0, -1.0, 0.0], [0.8, 0.0]), r"these shapes do not fit together: value \(3,\)"),
        (lambda: to_repay(VALUE, 0.8, 0.0), "column 'at_least', value 0.0: must be above 0"),
        (lambda: to_sell(VALUE, 0.8, 1.0, sell=1.0), "column 'sell', value 1.0: must be at least 0 and below 1"),
        (lambda: liquidation_price(VALUE, [0.0, 1.0], 0.8), "column 'price', value 0.0: must be above 0"),
        (lambda: repair(VALUE, 0.8, 1.5, wallet=-1.0), "column 'wallet', value -1.0: must be at least 0"),
    ],
)
def test_bad_input(call: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call()


def test_figures_of_the_page() -> None:
    """Every line `expression  # figures` of docs/collateral.md gives these figures, as far as they are written out."""
    text = (Path(__file__).parents[1] / "docs" / "collateral.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    compared = 0
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
        for expression, figures in re.findall(r"^(\w.*?)  # ([-\d].*)$", block, re.MULTILINE):
            shown = [figure.replace(",", "") for figure in re.findall(r"-?[\d,]*\.?\d+", figures)]
            value = eval(expression.split(" = ", 1)[-1], names)
            for number, figure in zip(np.ravel(value), shown, strict=True):
                digits = len(figure.partition(".")[2])
                assert float(number) == pytest.approx(float(figure), abs=0.5000001 * 10.0**-digits), expression
                compared += 1
    assert compared >= 20
