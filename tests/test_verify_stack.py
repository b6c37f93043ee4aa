"""The check in floats against the check in fractions: what passes here passes there, by a bound that holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOUNDS, CASH, CONES, ROWS, instance

from equipoise.constraints import (
    BuyOnly,
    CashBand,
    CashFloor,
    Custom,
    FactorLimit,
    HealthFactor,
    Leverage,
    LongOnly,
    LotSize,
    NoTrade,
    Rule,
    SellOnly,
    ShortOnly,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.constraints.errors import NotStackable
from equipoise.optimizer.plans.make import _continuous
from equipoise.optimizer.portfolio.stack import stacks
from equipoise.optimizer.problem.costs import ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE
from equipoise.optimizer.risk.models import CovarianceRisk
from equipoise.optimizer.verification.exact import Verified, verify
from equipoise.optimizer.verification.stacked import StackVerified, verified

COSTS = (ProportionalCost("fee", 0.0013), QuadraticCost(0.1, "volume"), ImpactCost(0.02, "volume"))
TINY = (0.0, 1e-16, 3e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)
#: Distances around 0, and around what the tolerance allows.
AROUND = tuple(centre + sign * size for centre in (0.0, -FEASIBILITY_TOLERANCE) for sign in (1, -1) for size in TINY)


def random_table(rng: np.random.Generator, count: int, n: int, *, gross: float = 1.0, spread: float = 0.0) -> Any:
    """Accounts of n assets, with shorts if `gross` > 1; NAVs from 1 to 10^spread and to 10^−spread."""
    size = rng.dirichlet(np.full(n, 2.0), count)
    sign = np.where(rng.random((count, n)) < 0.4, -1.0, 1.0) if gross > 1 else np.ones((count, n))
    sign[:, 0] = 1.0
    held = gross * size * sign
    price = np.round(10.0 ** rng.uniform(-4, 5, (count, n)), 4) + 1e-4
    price[:, -1] = 1.0
    nav = 10.0 ** rng.uniform(-spread, spread, (count, 1))
    quantity = held * nav / price
    digits = rng.integers(2, 17, quantity.size)
    cells = [float(f"{q:.{d}g}") for q, d in zip(quantity.ravel(), digits, strict=True)]
    quantity = np.array(cells).reshape(count, n)
    quantity[:, -1] += nav[:, 0] - (quantity * price).sum(axis=1)  # the cash
    return pd.DataFrame(
        {
            "portfolio_id": np.repeat([f"P{i:04d}" for i in range(count)], n),
            "asset": np.tile([*(f"A{i:02d}" for i in range(n - 1)), CASH], count),
            "quantity": quantity.ravel(),
            "price": price.ravel(),
            "target": rng.dirichlet(np.full(n, 2.0), count).ravel(),
            "fee": np.round(rng.uniform(0, 0.01, count * n), 5),
            "volume": (nav * 10.0 ** rng.uniform(-1, 2, (count, n))).ravel(),
            "beta": rng.normal(1.0, 1.0, count * n),
            "threshold": rng.uniform(0.0, 0.9, count * n),
        }
    )


def stacked(policy: Policy, table: pd.DataFrame) -> Problem:
    (stack,), odd = stacks(table, CASH, label_columns=policy.label_columns)
    assert odd == []
    return policy.stacked(stack)


def compared(policy: Policy, table: pd.DataFrame, weights: np.ndarray) -> tuple[StackVerified, list[Verified]]:
    """Both checks of the trades to these weights, held against each other portfolio by portfolio."""
    problem = stacked(policy, table)
    found = verified(problem, weights)
    judged = []
    for i, trades, exact in one_by_one(policy, problem, weights):
        judged.append(exact)
        nav, price = exact.nav, problem.portfolio.portfolio(i).exact_price
        assert [float(x) for x in trades] == found.trades[i].tolist()
        rounding = Fraction(found.rounding[i])
        for held, p, weight in zip(exact.quantities, price, found.weights[i], strict=True):
            assert abs(held * p / nav - Fraction(weight)) <= rounding
        for costs, total in ((exact.costs, exact.cost), (found.costs[i], exact.cost)):
            assert abs(sum(map(Fraction, costs)) - total) <= rounding * nav
        least = min(check.slack for check in exact.checks if check.rule != "Cash")
        assert found.certain[i] <= np.nextafter(least, np.inf)
        assert exact.passed or not found.passed[i]
        small = (found.weights[i] != 0) & (np.abs(found.weights[i]) < FEASIBILITY_TOLERANCE)
        clear = least > -0.9 * FEASIBILITY_TOLERANCE and found.slack[i] - found.certain[i] < 1e-10
        assert found.passed[i] or not (exact.passed and clear) or small.any()
    return found, judged


def one_by_one(policy: Policy, problem: Problem, weights: np.ndarray) -> Iterator[tuple[int, Any, Verified]]:
    """The exact trades and their exact check, of each portfolio on its own."""
    for i, wanted in enumerate(weights):
        alone = policy.problem(problem.portfolio.portfolio(i))
        trades = _continuous(alone, wanted)
        yield i, trades, verify(alone, trades, whole_lots=False)


def wanted(rng: np.random.Generator, problem: Problem, far: float = 0.5) -> np.ndarray:
    """Weights part of the way to the target, some exactly as they are, some exactly 0; the cash is what is left."""
    before = problem.before
    weights = before + far * rng.random(before.shape) * (problem.target - before)
    weights = np.where(rng.random(before.shape) < 0.2, before, weights)
    return problem.settled(np.where(rng.random(before.shape) < 0.05, 0.0, weights))


def limits_at(exact: Verified, price: tuple[Fraction, ...], distance: float) -> list[float]:
    """Each weight after the trades, moved by this distance."""
    return [float(q * p / exact.nav + Fraction(distance)) for q, p in zip(exact.quantities, price, strict=True)]


# --- what passes here passes there ------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), gross=st.sampled_from([1.0, 3.0, 1e3, 1e6, 1e9]))
@settings(deadline=None, max_examples=25)
def test_random_accounts(seed: int, n: int, gross: float) -> None:
    """NAVs from 1e-30 to 1e30; long and short, up to a NAV that is all but rounding error of its positions."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, 10, n, gross=gross, spread=30.0)
    rules: list[Rule] = [CashFloor(-2.0 * gross), Leverage(gross=2.0 * gross, net=3.0), Turnover(0.8 * gross)]
    rules += [FactorLimit("beta", upper=1.5 * gross), HealthFactor(1.01, "threshold")][: rng.integers(0, 3)]
    policy = Policy(costs=COSTS, constraints=tuple(rules))
    problem = stacked(policy, table)
    compared(policy, table, wanted(rng, problem))


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_every_rule(seed: int) -> None:
    """The shared generator's instances, several books of each, at the planted point and around it."""
    rng = np.random.default_rng(seed)
    one = instance(rng, among=BOUNDS + ROWS + CONES)
    table = pd.concat(
        [one.table.rename_axis("asset").reset_index().assign(portfolio_id=f"P{i}") for i in range(len(AROUND))],
        ignore_index=True,
    )
    noise = np.array(AROUND)[:, None] * rng.choice([-1.0, 0.0, 1.0], (len(AROUND), len(one.table)))
    weights = one.planted_weights() + noise
    found, _ = compared(one.policy, table, stacked(one.policy, table).settled(weights))
    assert found.passed[0]  # the planted point itself


@given(seed=st.integers(0, 2**32 - 1), gross=st.sampled_from([1.0, 30.0, 1e4, 1e6]))
@settings(deadline=None, max_examples=12)
def test_bounds_at_the_very_weight(seed: int, gross: float) -> None:
    """Every limit on an asset is where the trades lead, or off by as little as floats can be; or by the tolerance."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, len(AROUND), 8, gross=gross, spread=6.0)
    free = Policy(costs=COSTS, constraints=(CashFloor(-2 * gross),))
    problem = stacked(free, table)
    weights = wanted(rng, problem)
    side = rng.integers(0, 2)
    limits = np.concatenate(
        [
            limits_at(exact, problem.portfolio.portfolio(i).exact_price, (-1) ** side * -AROUND[i])
            for i, _, exact in one_by_one(free, problem, weights)
        ]
    )
    limits[problem.portfolio.rows[problem.cash]] = (np.inf, -np.inf)[side]
    rule = WeightBounds(**{("upper", "lower")[side]: "limit"})
    policy = replace(free, constraints=(rule, CashFloor(-2 * gross)))
    compared(policy, table.assign(limit=limits), weights)


ROW_RULES = {
    "two-way turnover": lambda v: Turnover(max(v["turnover"], 0.0), "two_way"),
    "gross leverage": lambda v: Leverage(gross=max(v["gross"], 0.0)),
    "net leverage": lambda v: Leverage(net=v["net"]),
    "exposure": lambda v: FactorLimit("beta", upper=v["beta"]),
    "cash floor": lambda v: CashFloor(-v["cash"]),
    "cash cap": lambda v: CashBand(v["earlier"] - 1.0, v["earlier"]),
    "health factor": lambda v: HealthFactor(v["health"], "threshold"),
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROW_RULES)
@pytest.mark.parametrize("gross", [1.5, 1e4])
def test_rows_at_the_very_value(rule: str, gross: float) -> None:
    """The same with rules on several assets, and on the cash before and after costs; figures by hand, in fractions."""
    rng = np.random.default_rng([len(rule), int(gross)])
    table = random_table(rng, 4, 6, gross=gross, spread=3.0)
    free = Policy(costs=COSTS, constraints=(CashFloor(-2 * gross),))
    problem = stacked(free, table)
    weights = wanted(rng, problem)
    for i, trades, exact in one_by_one(free, problem, weights):
        mine = table[table.portfolio_id == f"P{i:04d}"]
        account = problem.portfolio.portfolio(i)
        value = [q * p / exact.nav for q, p in zip(exact.quantities, account.exact_price, strict=True)]
        others = [v for j, v in enumerate(value) if j != account.cash]
        columns = {name: [Fraction(x) for x in account.numbers(name, name)] for name in ("beta", "threshold")}
        collateral = sum(t * max(v, 0) for t, v in zip(columns["threshold"], value, strict=True))
        debt = sum(max(-v, 0) for v in value)
        values = {
            "turnover": sum(abs(x * p) for x, p in zip(trades, account.exact_price, strict=True)) / exact.nav,
            "gross": sum(map(abs, others)),
            "net": sum(others),
            "beta": sum(b * v for b, v in zip(columns["beta"], value, strict=True))
            + max(columns["beta"][account.cash] * exact.cost / exact.nav, 0),  # the worse state of the cash
            "cash": -value[account.cash],
            "earlier": value[account.cash] + exact.cost / exact.nav,
            "health": max(collateral / debt, Fraction(0.9)) if debt else Fraction(1),
        }
        outcomes = set()
        for distance in AROUND:
            made = ROW_RULES[rule]({k: float(v + Fraction(distance)) for k, v in values.items()})
            rules = (made, CashFloor(-2 * gross)) if "cash" not in rule else (made,)
            found, judged = compared(replace(free, constraints=rules), mine, weights[i : i + 1])
            outcomes.add((bool(found.passed[0]), judged[0].passed))
        if gross < 2 and rule != "health factor":  # whose limit is at least the largest threshold
            assert {(True, True), (False, False)} <= outcomes


def test_zero_is_exact() -> None:
    """No tolerance at a bound of 0: the least number of a short position fails, a holding closed in full passes."""
    rng = np.random.default_rng(7)
    table = random_table(rng, len(TINY), 5, spread=3.0)
    policy = Policy(constraints=(LongOnly(), CashFloor(-1.0)))
    problem = stacked(policy, table)
    weights = problem.before - problem.before * (1.0 + np.array([0.0, *TINY[1:]]))[:, None]
    found, judged = compared(policy, table, problem.settled(weights))
    assert found.passed.all()  # each was closed exactly
    off_cash = found.quantities.copy()
    off_cash[problem.cash] = 0.0
    assert not off_cash.any()
    assert all(exact.passed for exact in judged)

    short = table.assign(quantity=np.where(table.asset == "A01", -1e-100, table.quantity))
    found, judged = compared(policy, short, stacked(policy, short).before)
    assert not found.passed.any()
    assert not any(exact.passed for exact in judged)


@pytest.mark.parametrize(
    "rules",
    [
        (LongOnly(except_=["A01", "A02"]), ShortOnly(["A01", "A02"])),
        (BuyOnly(["A00"]), SellOnly(["A01"]), NoTrade(["A02"])),
        (WeightBounds(0.0, 0.0),),
        (WeightBounds(-0.0, 1e-100), LongOnly()),
    ],
    ids=["signs", "one way", "nothing", "next to nothing"],
)
def test_around_zero(rules: tuple[Rule, ...]) -> None:
    """Debts, shorts and holdings next to 0, on both sides, with weights of 0, of the least float, and beyond."""
    rng = np.random.default_rng(11)
    table = random_table(rng, 60, 5, gross=1.5, spread=2.0)
    near = rng.choice([0.0, 1e-100, 1e-99, 1e-30, 1e-17], len(table)) * rng.choice([-1.0, 1.0], len(table))
    near = np.where((table.asset == CASH) | (rng.random(len(table)) < 0.3), table.quantity, near)
    table = table.assign(quantity=near + 0.0)
    table.loc[table.asset == CASH, "quantity"] = 100.0
    policy = Policy(costs=COSTS, constraints=(*rules, CashFloor(-3.0)))
    problem = stacked(policy, table)
    weights = problem.before * rng.choice([1.0, 0.0, 1.0 + 2**-52, 1.0 - 2**-53, -1.0, 0.5], problem.shape)
    weights = np.where(
        rng.random(problem.shape) < 0.3, rng.choice([0.0, 5e-324, -5e-324, 1e-18], problem.shape), weights
    )
    found, _ = compared(policy, table, problem.settled(weights))
    assert 0 < found.passed.sum() < len(found.passed)


def test_cone_at_the_very_value() -> None:
    """A tracking error limit where the trades lead, and around."""
    rng = np.random.default_rng(3)
    table = random_table(rng, 5, 6, gross=2.0)
    assets = sorted(set(table.asset) - {CASH})
    root = rng.normal(size=(5, 5))
    covariance = pd.DataFrame(root @ root.T + 0.1 * np.eye(5), assets, assets)
    free = Policy(CovarianceRisk(covariance), COSTS, (CashFloor(-3.0),))
    problem = stacked(free, table)
    weights = wanted(rng, problem)
    error = problem.tracking_error(verified(problem, weights).weights)
    for i, distance in ((i, distance) for i in range(5) for distance in AROUND):
        rules = (TrackingErrorLimit(float(error[i]) + distance), CashFloor(-3.0))
        mine = table[table.portfolio_id == f"P{i:04d}"]
        compared(replace(free, constraints=rules), mine, weights[i : i + 1])


# --- the bound is rigorous, and says so where it cannot be -------------------------------------------------------


def test_a_net_worth_of_rounding_errors_is_left_to_the_exact_check() -> None:
    """1e14 long and 1e14 − 16 short: the errors are more than small, so that nothing passes, whatever the slack."""
    table = pd.DataFrame(
        {
            "portfolio_id": "a",
            "asset": ["A", "B", CASH],
            "quantity": [1e14, -(1e14 - 16.0), 0.0],
            "price": 1.0,
            "target": [0.5, 0.5, 0.0],
        }
    )
    policy = Policy(constraints=(Leverage(gross=1e20), CashFloor(-1e20)))
    problem = stacked(policy, table)
    found, (exact,) = compared(policy, table, problem.before)
    assert exact.passed
    assert not found.passed[0]


def test_what_is_no_number_does_not_pass() -> None:
    """An unsolved portfolio's weights are NaN; its neighbours are not touched."""
    rng = np.random.default_rng(5)
    table = random_table(rng, 3, 4)
    problem = stacked(Policy(constraints=(LongOnly(),)), table)
    weights = problem.before.copy()
    alone = verified(problem, weights)
    weights[1] = np.nan
    found = verified(problem, weights)
    assert alone.passed.all()
    assert found.passed.tolist() == [True, False, True]
    for name in ("trades", "money", "costs", "quantities", "weights", "slack", "certain", "rounding"):
        assert getattr(found, name)[[0, 2]].tobytes() == getattr(alone, name)[[0, 2]].tobytes()


def test_lots_and_custom_rules_are_taken_one_by_one() -> None:
    table = random_table(np.random.default_rng(1), 2, 4)
    plain = Policy(constraints=(LongOnly(),))
    problem = stacked(plain, table)
    lots = stacked(replace(plain, constraints=(LotSize(1.0),)), table)
    (piece,) = Custom(lambda trade: trade.trades <= 1).pieces(problem.portfolio.portfolio(0))
    custom = replace(problem, pieces=(*problem.pieces, ("Custom", piece)))
    for refused in (lots, custom):
        with pytest.raises(NotStackable):
            verified(refused, refused.before)


def test_figures_of_two_accounts_by_hand() -> None:
    """Half of the coins sold at 0.2 %: 30 traded, 0.06 of fees, cash 40 + 30 − 0.06."""
    table = pd.DataFrame(
        {
            "portfolio_id": ["a", "a", "b", "b"],
            "asset": ["BTC", CASH, "BTC", CASH],
            "quantity": [2.0, 40.0, 0.0, 60.0],
            "price": [30.0, 1.0, 30.0, 1.0],
            "target": 0.5,
        }
    )
    problem = stacked(Policy(costs=(ProportionalCost(0.001, 0.002),), constraints=(LongOnly(),)), table)
    found = verified(problem, np.array([[0.3, 0.7], [0.5, 0.5]]))
    assert found.trades.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert found.money.tolist() == [[-30.0, 0.0], [30.0, 0.0]]
    assert found.costs == pytest.approx(np.array([[0.06, 0.0], [0.03, 0.0]]), rel=1e-15)
    assert found.quantities == pytest.approx(np.array([[1.0, 69.94], [1.0, 29.97]]), rel=1e-15)
    assert found.weights == pytest.approx(np.array([[0.3, 0.6994], [0.5, 0.4995]]), rel=1e-15)
    assert found.slack == pytest.approx([0.3, 0.4995], rel=1e-12)
    assert found.passed.all()


def test_an_overdraft_is_repaid() -> None:
    """What counts at the cash is what is there after the trades."""
    table = pd.DataFrame(
        {"portfolio_id": "a", "asset": ["BTC", CASH], "quantity": [2.0, -40.0], "price": [70.0, 1.0], "target": 0.5}
    )
    policy = Policy(constraints=(LongOnly(),))
    for sold, passes in ((0.5, True), (0.4, True), (0.4 - 2e-9, False)):
        found, _ = compared(policy, table, np.array([[1.4 - sold, sold - 0.4]]))
        assert found.passed.tolist() == [passes]
