"""Fees, counts and least positions: exact answers and bounds against brute force, and what a fee does to a plan."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
import test_lot_bound

from equipoise import Rebalancer, Status
from equipoise.constraints import (
    DriftBand,
    InputError,
    LongOnly,
    LotSize,
    MinimumPosition,
    NameLimit,
    OrderLimit,
    Rule,
    ShortOnly,
)
from equipoise.optimizer import Cost, CovarianceRisk, FixedFee, MinimumCommission, Plan, ProportionalCost, sequenced


def small_case(seed: int) -> dict:
    """A case of `test_lot_bound` with some of: a fee per order, a minimum commission, limits on counts and sizes."""
    rng = np.random.default_rng(10_000 + seed)
    case = test_lot_bound.small_case(seed)
    n = case["n"]
    if rng.random() < 0.5:
        case["fixed"] = float(rng.choice([0.05, 0.5, 3.0]))
    if rng.random() < 0.35:
        case["commission"] = (float(rng.choice([0.2, 1.0, 4.0])), float(rng.choice([0.0, 0.003, 0.02])))
    if rng.random() < 0.35:
        case["orders"] = int(rng.integers(0, n + 1))
    if rng.random() < 0.35:
        case["names"] = int(rng.integers(1, n + 1))
    if rng.random() < 0.35:
        case["least"] = (float(rng.choice([0.0, 0.05, 0.2])), float(rng.choice([0.0, 40.0, 150.0])))
        if not any(case["least"]):
            case["least"] = (0.1, 0.0)
    if rng.random() < 0.25:
        case["max_notional"] = float(rng.choice([90.0, 200.0, 400.0]))
    return case


def judged(seed: int) -> tuple[float, float]:
    """Exact mode and the bound of one case against brute force: (gap at default effort, plan above the optimum)."""
    case = small_case(seed)
    best = test_lot_bound.brute_force(case)
    rebalancer, table = test_lot_bound.problem_of(case)
    plan, exact = rebalancer.solve(table), rebalancer.solve(table, exact=True, time_limit=None)
    assert exact.status.ok == np.isfinite(best), (seed, exact.message)
    if not np.isfinite(best):
        assert not plan.status.ok
        return 0.0, 0.0
    assert exact.objective == pytest.approx(best, rel=1e-6, abs=1e-11), seed
    for one in (plan, exact):
        assert not one.status.ok or one.bound <= best + 1e-12 + 1e-9 * abs(best), seed
        assert not one.status.ok or one.objective >= best - 1e-12 - 1e-9 * abs(best), seed
    assert exact.gap <= 1e-6 * abs(best) + 1e-11, seed
    if not plan.status.ok:
        return np.nan, np.nan
    return plan.gap / max(abs(best), 1e-12), plan.objective / best - 1.0 if best else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_equal_to_brute_force(seed: int) -> None:
    judged(seed)


def account(**columns: list[float]) -> pd.DataFrame:
    """Two assets at 10 and 25, a debt, and the cash; worth 1000."""
    index = pd.Index(["A", "B", "LOAN", "USD"], name="asset")
    table = pd.DataFrame({"quantity": [50.0, 16.0, -100.0, 200.0], "price": [10.0, 25.0, 1.0, 1.0]}, index=index)
    return table.assign(target=[0.5, 0.4, -0.1, 0.2]).assign(**columns)


def solved(table: pd.DataFrame, *rules: Rule, costs: Sequence[Cost] = (), exact: bool = True, **options: Any) -> Plan:
    rebalancer = Rebalancer(constraints=[ShortOnly(["LOAN"]), *rules], costs=costs, cash="USD", **options)
    return rebalancer.solve(table, exact=exact)


@pytest.mark.parametrize(("fee", "trades"), [(0.12, True), (0.13, False)])
def test_a_fee_is_worth_its_trade(fee: float, trades: bool) -> None:
    """One asset δ = 5 % off, of curvature a = 10: trade all of it if and only if aδ²/2 > fee, that is 12.5 of 1000."""
    table = account(quantity=[45.0, 16.0, -100.0, 250.0])
    plan = solved(table, costs=[FixedFee(100.0 * fee)])
    assert plan.status is (Status.OPTIMAL if trades else Status.NO_TRADE)
    assert plan.objective == pytest.approx(min(0.0125, fee / 10.0), abs=1e-9)
    assert plan.bound == pytest.approx(plan.objective, abs=1e-9)
    assert plan.orders["quantity"].tolist() == ([pytest.approx(5.0)] if trades else [])


def test_a_rate_and_a_fee_are_worth_their_trade() -> None:
    """To the edge c/a of the no-trade band, if δ > c/a + √(2F/a): Dybvig and Pezzo (2019)."""
    for fee, trades in ((1.9, True), (2.1, False)):  # (0.05 − 0.03)² · 10/2 = 0.002
        table = account(quantity=[45.0, 16.0, -100.0, 250.0])
        plan = solved(table, costs=[ProportionalCost(0.3), FixedFee(fee)])
        assert plan.orders["quantity"].tolist() == ([pytest.approx(2.0, abs=1e-6)] if trades else [])


def test_fees_are_counted_exactly() -> None:
    """In the cash to the cent, in the plan's cost, in the orders, in the objective over the horizon."""
    table = account(quantity=[60.0, 10.0, -100.0, 250.0], target=[0.4, 0.5, -0.1, 0.2], fee=[0.1, 0.3, 9.0, 9.0])
    costs = [FixedFee("fee"), MinimumCommission({"A": 0.7, "B": 0.35, "LOAN": 5.0}, 0.002)]
    plan = solved(table, LotSize(1.0), costs=costs, horizon=0.5)
    assert plan.orders["quantity"].to_dict() == {"A": 20.0, "B": 10.0}
    paid = {"A": 0.1 + 0.7, "B": 0.3 + 0.5}  # 0.2 % of 200 is below the minimum of 0.7, of 250 above 0.35
    assert plan.orders["cost"].to_dict() == pytest.approx(paid, abs=1e-15)
    assert plan.verified is not None
    assert plan.verified.cash == 250 + 200 - 250 - Fraction("1.6")
    assert plan.cost == 1.6
    assert plan.objective == pytest.approx(1.6 / 1000 / 0.5, rel=1e-12)


def test_a_minimum_commission_is_never_less_than_its_rate() -> None:
    """Trades in which the minimum just covers the rate cost the same with and without it."""
    table = account(quantity=[60.0, 16.0, -100.0, 100.0])
    one = solved(table, LotSize(1.0), costs=[MinimumCommission(0.1, 0.001)])
    other = solved(table, LotSize(1.0), costs=[ProportionalCost(0.001)])
    assert one.orders.equals(other.orders)
    assert one.objective == pytest.approx(other.objective, rel=1e-12)


def of_supports(case: dict) -> float:
    """The least objective of all choices of what is traded and held, each a convex program stated here."""
    n, best = len(case["before"]), np.inf
    for kinds in itertools.product(("stay", "gone", "sell", "buy"), repeat=n):
        w = cp.Variable(n)
        rules, z = [w >= 0], w - case["before"]
        for i, kind in enumerate(kinds):
            rules.append({"stay": z[i] == 0, "gone": w[i] == 0, "sell": z[i] <= 0, "buy": z[i] >= 0}[kind])
            if kind != "gone":
                rules.append(w[i] >= case["least"])
        gone = sum(kind == "gone" for kind in kinds)
        traded = sum(kind != "stay" and not (kind == "gone" and case["before"][i] == 0) for i, kind in enumerate(kinds))
        if n - gone > case["names"] or traded > case["orders"]:
            continue
        paid = case["rate"] * cp.norm1(z) + traded * case["fee"]
        rules.append(1.0 - cp.sum(w) - paid >= 0)
        away = w - case["target"]
        program = cp.Problem(cp.Minimize(5.0 * cp.quad_form(away, cp.psd_wrap(case["cov"])) + paid), rules)
        if program.solve("CLARABEL") is not None and program.status == "optimal":
            best = min(best, float(program.value))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_any_quantity_against_all_supports(seed: int) -> None:
    """Without LotSize: fees and limits on quantities of any size."""
    rng = np.random.default_rng(seed)
    n, names = 3, ["A", "B", "C"]
    root = rng.normal(size=(n, n)) * 0.2
    target, before = rng.dirichlet(np.full(n + 1, 3.0))[:n], rng.dirichlet(np.full(n + 1, 3.0))[:n].round(6)
    before[seed % n] *= rng.random() < 0.5
    case = {"before": before, "target": target, "cov": root @ root.T + 0.02 * np.eye(n), "rate": 0.001}
    case |= {"fee": float(rng.choice([0.0005, 0.002])), "least": float(rng.choice([0.0, 0.1, 0.3]))}
    case |= {"names": int(rng.integers(1, n + 1)), "orders": int(rng.integers(2, n + 1))}
    table = pd.DataFrame(
        {
            "quantity": [*before, 1.0 - before.sum()],
            "price": 1.0,
            "target": [*target, 1.0 - target.sum()],
        },
        index=pd.Index([*names, "USD"], name="asset"),
    )
    rules = [LongOnly(), NameLimit(case["names"]), OrderLimit(case["orders"])]
    rules += [MinimumPosition(case["least"])] if case["least"] else []
    risk = CovarianceRisk(pd.DataFrame(case["cov"], index=names, columns=names))
    costs = [ProportionalCost(case["rate"]), FixedFee(case["fee"])]
    plan = Rebalancer(risk=risk, constraints=rules, costs=costs, cash="USD").solve(table, exact=True)
    best = of_supports(case)
    assert plan.status.ok == np.isfinite(best), plan.message
    if plan.status.ok:
        assert plan.objective == pytest.approx(best, rel=1e-5)
        assert plan.bound <= best * (1 + 1e-6)


def test_a_debt_is_nothing_or_at_least_its_minimum() -> None:
    """A target debt of 60 with a minimum of 100: repaid in full or taken up to 100, whichever is nearer."""
    for target, debt in ((-0.06, -100.0), (-0.04, 0.0)):
        table = account(quantity=[50.0, 16.0, -150.0, 250.0], target=[0.5, 0.4, target, 0.1 - target])
        plan = solved(table, MinimumPosition(notional={"LOAN": 100.0}))
        assert plan.weights.loc["LOAN", "after"] * 1000 == pytest.approx(debt)


def test_what_is_held_below_its_minimum_is_not_left_alone() -> None:
    """Dust is closed or raised, even at its target and though it costs."""
    table = account(quantity=[1.0, 16.0, -100.0, 690.0], target=[0.01, 0.4, -0.1, 0.69])
    plan = solved(table, MinimumPosition(0.05), costs=[FixedFee(1.0)])
    assert plan.orders[["side", "quantity"]].to_numpy().tolist() == [["sell", 1.0]]
    assert "MinimumPosition" in plan.orders.loc["A", "reason"]


def test_no_plan_is_explained_and_proven() -> None:
    """Both bands ask for a position, one name is allowed."""
    table = account(quantity=[0.0, 0.0, 0.0, 1000.0])
    plan = solved(table, DriftBand(relative=0.2, assets=["A", "B"]), NameLimit(1))
    assert plan.status is Status.NO_LOT_PLAN
    assert "NameLimit" in plan.message or "(proven)" in plan.message
    assert plan.orders.empty
    assert solved(table, DriftBand(relative=0.2, assets=["A", "B"]), NameLimit(2)).status.ok


def test_a_band_below_the_least_position_is_named() -> None:
    """B must lie within 32 % to 48 % of 1000, and be 0 or at least 500."""
    plan = solved(account(), DriftBand(relative=0.2, assets=["B"]), MinimumPosition(notional={"B": 500.0}))
    assert plan.status is Status.NO_LOT_PLAN
    assert all(word in plan.message for word in ("DriftBand", "MinimumPosition", "B"))


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6, 1e12])
def test_same_plan_for_any_size_of_account_and_any_order_of_rows(scale: float) -> None:
    """Prices, fees and minimums times a factor, and rows shuffled: the same orders."""
    table = account(quantity=[60.0, 10.0, -100.0, 250.0], target=[0.42, 0.47, -0.1, 0.21])

    def orders(factor: float, rows: list[str]) -> pd.DataFrame:
        scaled = table.assign(price=table["price"] * factor)
        scaled.loc["USD", ["quantity", "price"]] = [table.loc["USD", "quantity"] * factor, 1.0]
        costs = [FixedFee(0.5 * factor), MinimumCommission(0.4 * factor, 0.001)]
        rules = [LotSize({"A": 1.0, "B": 1.0, "LOAN": 1.0}), MinimumPosition(notional=90.0 * factor), OrderLimit(2)]
        return solved(scaled.loc[rows], *rules, costs=costs).orders

    base = orders(1.0, list(table.index))
    assert not base.empty
    found = orders(scale, ["USD", "B", "LOAN", "A"])
    assert found[["side", "quantity"]].equals(base[["side", "quantity"]])


def test_a_batch_has_the_plans_of_its_portfolios() -> None:
    rng = np.random.default_rng(0)
    accounts = {f"{i}": account(quantity=[*rng.uniform(20, 60, 2).round(), -100.0, 150.0]) for i in range(4)}
    rules, costs = [LongOnly(except_=["LOAN"]), NameLimit(2), LotSize(1.0)], [FixedFee(0.5)]
    rebalancer = Rebalancer(constraints=rules, costs=costs, cash="USD")
    plans = rebalancer.solve_batch(pd.concat(accounts, names=["portfolio_id"]).reset_index())
    for name, table in accounts.items():
        alone = rebalancer.solve(table)
        assert plans[name].status is alone.status
        assert plans[name].orders.equals(alone.orders)
        assert plans.results.loc[name, "cost"] == alone.cost


def test_a_sequence_pays_every_fee() -> None:
    table = account(quantity=[60.0, 10.0, -100.0, 250.0])
    plan = solved(table, LotSize(1.0), costs=[FixedFee(0.5), MinimumCommission(0.25, 0.001)])
    steps = sequenced(plan).steps
    assert len(steps) == len(plan.orders) == 2
    assert plan.verified is not None
    assert steps[-1].cash == plan.verified.cash == 250 + 100 - 150 - Fraction("1.5")


@pytest.mark.parametrize(
    ("costs", "match"),
    [
        ([FixedFee(-1.0)], "fee"),
        ([FixedFee({"A": float("nan"), "B": 1.0})], "fee"),
        ([MinimumCommission(-1.0)], "minimum"),
        ([MinimumCommission(1.0, 1.0)], "rate"),
        ([MinimumCommission(1.0), MinimumCommission({"A": 2.0})], "A"),
    ],
)
def test_bad_fees_are_named(costs: list[Cost], match: str) -> None:
    with pytest.raises(InputError, match=match):
        solved(account(), costs=costs)


def main() -> None:
    """All of a range of cases: python tests/test_lot_fees.py [first] [last]"""
    first, last = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1000)
    found, wrong = [], 0
    for seed in range(first, last):
        try:
            found.append(judged(seed))
        except AssertionError as error:
            wrong += 1
            print(seed, str(error).splitlines()[:2], flush=True)
    gaps, above = np.array(found).T
    print(
        f"{last - first} cases: {wrong} wrong; at default effort {np.isnan(gaps).sum()} without a plan, median gap "
        f"{np.nanmedian(gaps):.2%}, plan equal to the optimum in {np.nanmean(above < 1e-9):.1%}, "
        f"95th percentile {np.nanquantile(above, 0.95):.3%}, largest {np.nanmax(above):.2%} above it"
    )


if __name__ == "__main__":
    main()
