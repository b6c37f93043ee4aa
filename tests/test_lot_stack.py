"""Whole lots in stacks: exact units, bounds against brute force, and plans that depend on their own portfolio only."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lot_bound import brute_force, problem_of, small_case

from equipoise import InputError, Rebalancer
from equipoise.constraints import (
    DriftBand,
    GroupLimit,
    HealthFactor,
    LongOnly,
    LotSize,
    ShortOnly,
    TrackingErrorLimit,
    Turnover,
)
from equipoise.optimizer import CovarianceRisk, FactorRisk, ImpactCost, ProportionalCost
from equipoise.optimizer.lots.bounds.stacked import maximised, priced
from equipoise.optimizer.lots.points.grid import decimals, grid
from equipoise.optimizer.lots.points.points import Lots
from equipoise.optimizer.lots.stacked import Convex, alone, planned
from equipoise.optimizer.portfolio.stack import stacks
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.newton import dual as duals
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.verification.exact import verify
from equipoise.optimizer.verification.stacked import verified

CASH = "USD"
COLUMNS = ("side", "quantity", "lots")
SHARES = [f"S{i:02d}" for i in range(15)]


def accounts(count: int, seed: int, *, held: int = 9, coarse: bool = False) -> pd.DataFrame:
    """Accounts of shares and coins in lots of 100, 1, 0.001 and 0 units, of a NAV from 10⁴ to 10⁶."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(count):
        shares = sorted(rng.choice(SHARES, held, replace=False))
        goal = np.round(rng.dirichlet(np.full(held, 4.0)) * 0.97, 6)
        now = goal * np.exp(0.2 * rng.normal(size=held))
        now *= rng.uniform(0.93, 0.99) / now.sum()
        nav = 10.0 ** rng.uniform(4, 6)
        price = np.round(nav * 10.0 ** rng.uniform(-2.5, -1.5 if coarse else -2.0, held), 2)
        lot = rng.choice([1.0, 1.0, 0.5, 0.001, 0.0], held)
        lot[0] = 1.0
        quantity = np.round(now * nav / price, 3)
        parts.append(
            pd.DataFrame(
                {
                    "portfolio_id": f"P{i:03d}",
                    "asset": [*shares, CASH],
                    "quantity": [*quantity, np.round((1 - now.sum()) * nav, 2)],
                    "price": [*price, 1.0],
                    "target": [*goal, 1 - goal.sum()],
                    "lot": [*lot, 0.0],
                    "least": [*(rng.choice([0.0, 0.0, 0.01], held) * nav), 0.0],
                    "side": [*("ab"[int(share[1:]) % 2] for share in shares), None],
                    "volume": [*(nav * 10.0 ** rng.uniform(0, 2, held)), 1.0],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def factors() -> FactorRisk:
    rng = np.random.default_rng(99)
    loadings = pd.DataFrame(rng.normal(0, 0.15, (3, len(SHARES))), columns=SHARES)
    return FactorRisk(loadings, pd.Series(rng.uniform(0.1, 0.3, len(SHARES)) ** 2, SHARES))


def covariance() -> CovarianceRisk:
    rng = np.random.default_rng(98)
    returns = rng.normal(size=(60, len(SHARES))) + rng.normal(size=(60, 2)) @ rng.normal(size=(2, len(SHARES)))
    return CovarianceRisk(pd.DataFrame(0.01 * np.cov(returns.T), index=SHARES, columns=SHARES))


def rebalancer(*rules: Any, risk: Any = None, costs: Any = ()) -> Rebalancer:
    given = [LongOnly(), *rules]
    return Rebalancer(cash=CASH, risk=risk, costs=[ProportionalCost(0.001), *costs], constraints=given)


POLICIES = {
    "factors": rebalancer(LotSize("lot"), DriftBand(relative=0.4), risk=factors()),
    "minimums": rebalancer(LotSize("lot", min_notional="least"), DriftBand(relative=0.5), risk=factors()),
    "rows": rebalancer(
        LotSize("lot"),
        Turnover(0.08),
        GroupLimit("side", upper=0.6),
        risk=factors(),
        costs=[ImpactCost(0.02, "volume")],
    ),
    "dense": rebalancer(LotSize("lot"), risk=covariance()),
    "no risk": rebalancer(LotSize("lot"), DriftBand(relative=0.3)),
}


def stacked(one: Rebalancer, table: pd.DataFrame) -> tuple[Problem, Convex]:
    (stack,), odd = stacks(table, CASH, label_columns=one.policy.label_columns)
    assert odd == []
    problem = one.policy.stacked(stack)
    found = newton.solve(problem)
    given = (stack.quantity, stack.price, stack.nav, found.weights, found.rows, found.objective, found.bound)
    return problem, Convex(*given)


# --- units ----------------------------------------------------------------------------------------------------


@given(st.decimals(min_value=0, max_value=10**9, places=6, allow_nan=False), st.integers(0, 9))
@settings(deadline=None)
def test_decimals_are_those_that_are_written(number: Any, digits: int) -> None:
    value = round(float(number), digits)
    exactly = Fraction(repr(value))
    found = int(decimals(np.array([value]))[0])
    if len(repr(value).replace(".", "").lstrip("0")) > 15:
        return
    assert (exactly * 10**found).denominator == 1
    assert found == 0 or (exactly * 10 ** (found - 1)).denominator != 1


@pytest.mark.slow
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", ["factors", "minimums"])
def test_the_grid_is_that_of_exact_arithmetic(name: str, coarse: bool) -> None:
    table, one = accounts(30, 5, coarse=coarse), POLICIES[name]
    rng = np.random.default_rng(1)
    table.loc[rng.random(len(table)) < 0.2, "quantity"] *= 0.0
    table.loc[rng.random(len(table)) < 0.1, "quantity"] += 0.1234
    table["quantity"] = table["quantity"].round(4)
    problem, convex = stacked(one, table)
    found = grid(problem, problem.lower, convex.quantity, convex.price, convex.nav)
    assert found.sound.all()
    for i in range(len(problem.before)):
        alone_ = one.policy.problem(problem.portfolio.portfolio(i))
        exactly = Lots.of(alone_, alone_.lower)
        assets = np.arange(len(alone_.assets)) != alone_.cash
        for field in ("least", "lowest", "highest", "closable"):
            assert getattr(found, field)[i][assets].tolist() == getattr(exactly, field)[assets].tolist(), field
        lots = rng.integers(-50, 50, len(assets)) * assets
        closed = exactly.closable & (rng.random(len(assets)) < 0.5)
        assert found.take(i).quantities(np.where(closed, 0, lots).astype(float), closed) == exactly.quantities(
            np.where(closed, 0, lots), closed
        )


def test_more_digits_than_a_float_tells_apart_go_the_exact_way() -> None:
    table = accounts(4, 3)
    table.loc[1, "quantity"] = 1 / 3
    problem, convex = stacked(POLICIES["factors"], table)
    plans = planned(problem, convex, Effort())
    assert plans.grid.sound.tolist() == [False, True, True, True]
    assert not plans.accepted[0] and plans.accepted[1:].all()
    assert POLICIES["factors"].solve_batch(table).results["verified"].all()


# --- proofs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bounds_and_plans_against_brute_force() -> None:
    """Small problems of all rules, costs and minimums, long and short: no bound is above the optimum."""
    counted = found = 0
    for seed in range(60):
        case = small_case(seed)
        one, table = problem_of(case)
        problem = one.problem(table)
        tried = alone(problem, solve(problem), Effort())
        if tried.plan is None:
            continue
        counted += 1
        optimum = brute_force(case)
        tolerance = 1e-9 * abs(optimum) + 1e-15
        assert tried.plan.bound <= optimum + tolerance
        assert problem.objective(tried.plan.weights) >= optimum - tolerance
        found += problem.objective(tried.plan.weights) <= optimum + 1e-6 * abs(optimum)
        assert verify(problem, tried.plan.quantities, whole_lots=True).passed
    assert counted >= 15 and found >= 0.8 * counted


@pytest.mark.slow
def test_any_prices_give_a_bound() -> None:
    """At random prices, and at those that are looked for."""
    rng = np.random.default_rng(4)
    seen = 0
    for seed in range(40):
        case = small_case(seed) | {"tracking": None, "carry": (0.0, 0.0), "leverage": None}
        one, table = problem_of(case)
        problem = one.problem(table)
        optimum = brute_force(case)
        if not np.isfinite(optimum) or problem.lower[problem.cash] < 0:
            continue
        stack, account = problem.as_stack(), problem.portfolio
        points = grid(stack, stack.lower, account.quantity[None], account.price[None], np.array([[account.nav]]))
        dual = duals.of(stack, np.array([0]), out=True, capped=False)
        plain = bool(points.plain[0])
        for scale in (0.0, 1e-3, 1e-2, 1e-1):
            prices = scale * rng.normal(size=dual.limits.shape)
            prices[:, dual.rows] = np.abs(prices[:, dual.rows])
            first = priced(dual, points, prices, plain=plain).value[0]
            best = maximised(dual, points, prices, np.array([optimum]), plain=plain).value[0]
            assert first <= best <= optimum + 1e-12 * abs(optimum) + 1e-18
            seen += 1
    assert seen > 60


# --- plans ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(POLICIES))
def test_a_plan_depends_on_its_own_portfolio_bit_by_bit(name: str) -> None:
    """Alone, in a batch, in chunks of any size, among others, in any order of rows."""
    one, table = POLICIES[name], accounts(24, 7)
    plans = one.solve_batch(table)
    results, orders = plans.results, plans.orders
    assert results["verified"].mean() > 0.7
    shuffled = table.sample(frac=1.0, random_state=1)
    for other in (
        one.solve_batch(table, chunk=35),
        one.solve_batch(table[table["portfolio_id"] > "P010"]),
        one.solve_batch(shuffled),
    ):
        names = other.results.index
        pd.testing.assert_frame_equal(other.results, results.loc[names], check_dtype=False, check_index_type=False)
        for portfolio in set(names) & set(orders.index.get_level_values(0)):
            assert other.orders.loc[portfolio].to_dict() == orders.loc[portfolio].to_dict()
    for portfolio, rows in list(table.groupby("portfolio_id"))[:8]:
        alone_ = one.solve(rows.drop(columns="portfolio_id"), name=portfolio)
        found = results.loc[portfolio]
        assert alone_.status.name == found["status"]
        if alone_.status.ok:
            # By itself, a part of a dense covariance is factored by itself, to the last bits; a bound is as exact as
            # rows are kept: to 1e-13 of NAV, times their prices.
            dense = name == "dense"
            assert alone_.objective == pytest.approx(found["objective"], rel=1e-12 * dense, abs=0.0)
            assert alone_.bound == pytest.approx(found["bound"], rel=1e-12 * dense, abs=1e-14 * dense)
            assert len(alone_.orders) == found["orders"]
            for asset, row in alone_.orders.iterrows():
                assert row[list(COLUMNS)].to_dict() == orders.loc[(portfolio, asset), list(COLUMNS)].to_dict()


@pytest.mark.parametrize("name", list(POLICIES))
def test_orders_keep_every_rule_in_exact_arithmetic(name: str) -> None:
    one, table = POLICIES[name], accounts(24, 8, coarse=True)
    plans = one.solve_batch(table)
    for plan in plans:
        if not plan.status.ok:
            continue
        assert plan.problem is not None
        orders = plans.orders.loc[plan.name] if len(plan.orders) else plan.orders
        sign = orders["side"].map({"buy": 1.0, "sell": -1.0})
        signed = (orders["quantity"] * sign).to_dict()
        trades = tuple(Fraction(repr(float(signed.get(asset, 0.0)))) for asset in plan.problem.assets)
        assert trades == plan.trades
        assert verify(plan.problem, trades, whole_lots=True).passed
        for asset, count in orders["lots"].items():
            lot = float(plan.problem.step.lot[plan.problem.assets.index(asset)])
            if lot and not pd.isna(count):
                assert Fraction(repr(lot)) * int(count) == Fraction(repr(float(orders.loc[asset, "quantity"])))


def test_what_passes_in_floats_passes_exactly() -> None:
    """Random whole-lot trades, most of which break a rule: never one that passes in floats only."""
    one, table = POLICIES["rows"], accounts(40, 9)
    problem, convex = stacked(one, table)
    points = grid(problem, problem.lower, convex.quantity, convex.price, convex.nav)
    best = np.where(np.isnan(convex.weights), problem.before, convex.weights)
    rng, passed = np.random.default_rng(0), 0
    for far in (0.0, 0.5, 2.0):
        exactly = (best - problem.before) / points.size + far * rng.normal(size=points.size.shape)
        exactly[problem.cash] = 0.0
        lots, closed = points.nearest(exactly, rng.random(points.size.shape) < 0.4)
        weights = problem.settled(problem.before + points.trades(lots, closed))
        found = verified(problem, weights, points.units(lots, closed))
        for i in range(len(weights)):
            alone_ = one.policy.problem(problem.portfolio.portfolio(i))
            exact = verify(alone_, points.take(i).quantities(lots[i], closed[i]), whole_lots=True)
            assert exact.passed or not found.passed[i]
            passed += found.passed[i]
            if found.certain[i] > 0:
                assert exact.passed == found.passed[i]
    assert 10 < passed < 100


def test_cash_is_kept_to_the_last_cent() -> None:
    """Without costs, all the money can be spent: a floor of 0 is exact, and 0.01 less is too little."""
    rows = [("A", 0.0, 25.0, 0.5), ("B", 0.0, 50.0, 0.5), (CASH, 100.0, 1.0, 0.0)]
    table = pd.DataFrame(rows, columns=["asset", "quantity", "price", "target"]).set_index("asset")
    one = Rebalancer(cash=CASH, constraints=[LongOnly(), LotSize(1.0)])
    assert one.solve(table).orders["quantity"].to_dict() == {"A": 2.0, "B": 1.0}
    poorer = table.copy()
    poorer.loc[CASH, "quantity"] = 99.99
    plan = one.solve(poorer)
    assert plan.status.ok and plan.orders["notional"].sum() == 75.0
    both = pd.concat({"a": table, "b": poorer}, names=["portfolio_id"]).reset_index()
    assert one.solve_batch(both).orders["notional"].groupby("portfolio_id").sum().tolist() == [100.0, 75.0]


def test_debts_are_not_above_the_optimum() -> None:
    rng, parts = np.random.default_rng(2), []
    for i in range(12):
        coin = round(float(rng.uniform(1500, 3000)), 2)
        rows = [
            ("ETH", round(float(rng.uniform(4, 6)), 2), coin, 1.5),
            ("DEBT", -round(float(rng.uniform(0.55, 0.7) * 5 * coin), 0), 1.0, -0.6),
            (CASH, 500.0, 1.0, 0.1),
        ]
        parts.append(
            pd.DataFrame(rows, columns=["asset", "quantity", "price", "target"]).assign(
                portfolio_id=f"L{i}", lot=[0.001, 1.0, 0.0], part=[0.8, 0.0, 0.0]
            )
        )
    table = pd.concat(parts, ignore_index=True)
    rules = [LongOnly(except_=["DEBT"]), ShortOnly(["DEBT"]), HealthFactor(1.5, threshold="part"), LotSize("lot")]
    one = Rebalancer(cash=CASH, costs=[ProportionalCost(0.001)], constraints=rules)
    plans = one.solve_batch(table)
    assert plans.results["verified"].all()
    safe = 0
    for plan in plans:
        assert plan.problem is not None and plan.verified is not None and plan.solution is not None
        debt = plan.problem.assets.index("DEBT")
        assert plan.solution.weights is not None and plan.planned is not None
        # Unless that costs more than a hundredth of the objective.
        dear = plan.objective > 1.01 * plan.solution.objective + 1e-7
        assert plan.planned[debt] >= plan.solution.weights[debt] - 1e-9 or dear
        safe += plan.planned[debt] >= plan.solution.weights[debt]
        health = next(c for c in plan.verified.checks if c.rule.startswith("HealthFactor"))
        assert health.passed and health.value >= 1.5 - 1e-9
    assert safe >= 6


def test_a_loan_rebalanced_again_and_again_keeps_its_health() -> None:
    """Counted in fractions, from the quantities: never below the limit, never more debt than the convex plan's.

    `benchmarks/loan.py` does it 10,000 times."""
    rules = [
        *(LongOnly(except_=["DEBT"]), ShortOnly(["DEBT"]), HealthFactor(1.5, threshold="part")),
        *(DriftBand(absolute=0.05), LotSize("lot")),
    ]
    risk = FactorRisk(pd.DataFrame([[0.6]], columns=["ETH"]), pd.Series({"ETH": 0.05}), riskless=["DEBT"])
    one = Rebalancer(cash=CASH, risk=risk, costs=[ProportionalCost("fee")], constraints=rules)
    table = pd.DataFrame(
        {
            "quantity": [42.0, -55_800.0, 1_800.0],
            "price": [2_500.0, 1.0, 1.0],
            "target": [2.05, -1.09, 0.04],
            "fee": [0.001, 0.0, 0.0],
            "lot": [0.001, 1.0, 0.0],
            "part": [0.8, 0.0, 0.0],
        },
        index=pd.Index(["ETH", "DEBT", CASH], name="asset"),
    )
    rng, traded = np.random.default_rng(5), 0
    for _ in range(40):
        table.loc["ETH", "price"] = round(float(table.loc["ETH", "price"]) * np.exp(rng.normal(0.0, 0.003)), 2)
        plan = one.solve(table)
        assert plan.status.ok and plan.problem is not None and plan.verified is not None
        held = dict(zip(plan.problem.assets, plan.verified.quantities, strict=True))
        price = Fraction(repr(float(table.loc["ETH", "price"])))
        assert Fraction(4, 5) * held["ETH"] * price >= Fraction(3, 2) * -held["DEBT"] * (1 - Fraction(1, 10**12))
        assert plan.solution is not None and plan.solution.weights is not None
        wanted = plan.solution.weights[plan.problem.assets.index("DEBT")] * plan.problem.portfolio.nav
        assert float(held["DEBT"]) >= wanted - 1e-6 * abs(wanted)
        traded += len(plan.orders) > 0
        held[CASH] = Fraction(int(held[CASH] * 100), 100)
        table["quantity"] = [float(held[asset]) for asset in table.index]
    assert traded >= 20


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_effort_and_exact_mode_of_batches() -> None:
    one, table = POLICIES["factors"], accounts(6, 11, held=6, coarse=True)
    none, some, much = (one.solve_batch(table, effort=effort).results for effort in (0, 1, 4))
    exact = one.solve_batch(table, exact=True, gap=1e-4, time_limit=20.0).results
    for less, more in ((none, some), (some, much), (much, exact)):
        assert (more["objective"] <= less["objective"] * (1 + 1e-7)).all()
    assert (some["gap"] <= none["gap"] + 1e-12).all()
    assert (exact["gap"] <= 1e-4 * exact["objective"]).all()
    for results in (none, some, much):
        assert (results["bound"] <= exact["objective"] * (1 + 1e-9)).all()
    streamed = one.solve_batch(table, exact=True, gap=1e-4, time_limit=20.0, chunk=14).results
    assert streamed["objective"].tolist() == exact["objective"].tolist()
    with pytest.raises(InputError, match="effort"):
        one.solve_batch(table, effort=-1)
    with pytest.raises(InputError, match="whole number"):
        one.solve_batch(table, effort=0.5)


def test_what_stacks_do_not_take_goes_alone() -> None:
    one = rebalancer(LotSize("lot"), TrackingErrorLimit(0.05), risk=factors())
    plans = one.solve_batch(accounts(3, 12))
    assert plans.results["verified"].all()
    problem = next(iter(plans)).problem
    assert problem is not None
    assert alone(problem, solve(problem), Effort()).plan is None
