"""The lower bound on whole-lot plans: against brute force by formulas of this file, and proven optima."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from scorecard.kernels import SEED, mixed_group

from equipoise import Rebalancer
from equipoise.constraints import (
    DriftBand,
    Leverage,
    LotSize,
    MinimumPosition,
    NameLimit,
    OrderLimit,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, FixedFee, HoldingCost, ImpactCost, MinimumCommission, ProportionalCost
from equipoise.optimizer.lots.bounds.bound import lot_bound, relaxed
from equipoise.optimizer.lots.bounds.dual import LotDual, Planes, Prices
from equipoise.optimizer.lots.points import risk_split as lot_split
from equipoise.optimizer.lots.points.points import Lots
from equipoise.optimizer.risk.factored import FactoredRisk
from equipoise.optimizer.solvers.choose import solve

NAV = 1000.0


def small_case(seed: int) -> dict:
    """2 to 4 assets, long or short, with coarse lots, minimums, all costs and a choice of rules."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 5))
    shorts = rng.random() < 0.4
    target = rng.dirichlet(np.full(n + 1, 4.0))[:n]
    if shorts:
        target[0] *= -1.0
    price = np.round(np.exp(rng.normal(3.8, 0.6, n)), 2)
    lot = rng.choice([1.0, 2.0, 3.0], n)
    held = target * np.exp(rng.normal(0, 0.5, n)) * NAV / price
    quantity = np.where(rng.random(n) < 0.6, np.round(held / lot) * lot, np.round(held, 2))
    root = rng.normal(size=(n, n)) * 0.2
    return {
        "n": n,
        "quantity": quantity,
        "price": price,
        "target": target,
        "lot": lot,
        "cash": round(NAV - float(quantity @ price), 2),
        "min_notional": rng.choice([0.0, 0.0, 80.0, 150.0], n),
        "min_quantity": rng.choice([0.0, 0.0, 3.0], n),
        "cov": root @ root.T + np.diag(rng.uniform(0.005, 0.04, n)),
        "aversion": float(rng.choice([5.0, 40.0])),
        "horizon": float(rng.choice([0.25, 1.0])),
        "fee": rng.choice([0.0, 0.002, 0.01], n),
        "impact": float(rng.choice([0.0, 0.3])),
        "carry": (0.01, 0.03) if rng.random() < 0.4 else (0.0, 0.0),
        "bounds": (-0.6, 0.9) if shorts else (0.0, 1.0),
        "band": float(rng.uniform(0.1, 0.5)) if rng.random() < 0.5 else None,
        "turnover": float(rng.uniform(0.05, 0.4)) if rng.random() < 0.5 else None,
        "leverage": float(rng.uniform(0.9, 1.6)) if rng.random() < 0.4 else None,
        "tracking": float(rng.uniform(0.02, 0.08)) if rng.random() < 0.25 else None,
        "volume": rng.uniform(200.0, 4000.0, n),
    }


def problem_of(case: dict) -> tuple[Rebalancer, pd.DataFrame]:
    names = [f"A{i}" for i in range(case["n"])]
    index = pd.Index([*names, "USD"], name="asset")
    table = pd.DataFrame(
        {
            name: [*case[name], end]
            for name, end in (("quantity", case["cash"]), ("price", 1.0), ("target", 1.0 - case["target"].sum()))
        }
        | {name: [*case[name], 0.0] for name in ("lot", "min_notional", "min_quantity", "fee")},
        index=index,
    )
    table["volume"] = [*case["volume"], 1.0]
    low, high = case["bounds"]
    rules = [WeightBounds(low, high), LotSize("lot", "min_notional", "min_quantity", case.get("max_notional"))]
    rules += [OrderLimit(case["orders"])] if case.get("orders") is not None else []
    rules += [NameLimit(case["names"])] if case.get("names") is not None else []
    rules += [MinimumPosition(*case["least"])] if case.get("least") else []
    rules += [DriftBand(absolute=case["band"])] if case["band"] else []
    rules += [Turnover(case["turnover"])] if case["turnover"] else []
    rules += [Leverage(case["leverage"])] if case["leverage"] else []
    rules += [TrackingErrorLimit(case["tracking"])] if case["tracking"] else []
    costs = [ProportionalCost("fee")]
    if case["impact"]:
        costs.append(ImpactCost(volatility=0.02, volume="volume", coefficient=case["impact"]))
    if any(case["carry"]):
        costs.append(HoldingCost(long=case["carry"][0], short=case["carry"][1]))
    costs += [FixedFee(case["fixed"])] if case.get("fixed") else []
    costs += [MinimumCommission(*case["commission"])] if case.get("commission") else []
    cov = pd.DataFrame(case["cov"], index=names, columns=names)
    return Rebalancer(
        risk=CovarianceRisk(cov),
        costs=costs,
        constraints=rules,
        cash="USD",
        aversion=case["aversion"],
        horizon=case["horizon"],
    ), table


def brute_force(case: dict) -> float:
    """The least objective of all whole-lot plans that keep the rules, by its own formulas; infinite if none does."""
    q, p, b = case["quantity"], case["price"], case["target"]
    nav = float(q @ p) + case["cash"]
    low, high = case["bounds"]
    points = []
    for i in range(case["n"]):
        reach = int(2 * nav / (case["lot"][i] * p[i])) + 2
        trades = np.append(np.arange(-reach, reach + 1) * case["lot"][i], -q[i])
        held = q[i] + trades
        w = held * p[i] / nav
        fits = (w >= low - 1e-12) & (w <= high + 1e-12)
        if case["band"]:
            fits &= np.abs(w - b[i]) <= case["band"] + 1e-12
        large = (np.abs(trades) * p[i] >= case["min_notional"][i] - 1e-9) & (np.abs(trades) >= case["min_quantity"][i])
        fits &= (np.abs(trades) < 1e-12) | (np.abs(held) < 1e-12) | large
        if case.get("max_notional"):
            fits &= np.abs(trades) * p[i] <= case["max_notional"] + 1e-9
        if case.get("least"):
            weight, notional = case["least"]
            fits &= (np.abs(held) < 1e-12) | (np.abs(held) * p[i] >= max(weight * nav, notional) - 1e-9)
        points.append(trades[fits])
    if any(len(x) == 0 for x in points):
        return np.inf
    trades = np.array(list(itertools.product(*points)))
    z = trades * p / nav
    w = (q + trades) * p / nav
    scale = case["impact"] * 0.02 * np.sqrt(nav / case["volume"])
    each = case["fee"] * np.abs(z) + scale * np.abs(z) ** 1.5 + (np.abs(z) > 1e-12) * case.get("fixed", 0.0) / nav
    if case.get("commission"):
        minimum, rate = case["commission"]
        each = each + np.where(np.abs(z) > 1e-12, np.maximum(minimum / nav, rate * np.abs(z)), 0.0)
    paid = each.sum(axis=1)
    away = w - b
    variance = np.einsum("pi,ij,pj->p", away, case["cov"], away)
    keeps = case["cash"] / nav - z.sum(axis=1) - paid >= -1e-12
    if case.get("orders") is not None:
        keeps &= (np.abs(z) > 1e-12).sum(axis=1) <= case["orders"]
    if case.get("names") is not None:
        keeps &= (np.abs(w) > 1e-12).sum(axis=1) <= case["names"]
    if case["turnover"]:
        keeps &= 0.5 * np.abs(z).sum(axis=1) <= case["turnover"] + 1e-12
    if case["leverage"]:
        keeps &= np.abs(w).sum(axis=1) <= case["leverage"] + 1e-12
    if case["tracking"]:
        keeps &= np.sqrt(variance) <= case["tracking"] + 1e-12
    if not keeps.any():
        return np.inf
    long, short = case["carry"]
    held = (long * np.maximum(w, 0) + short * np.maximum(-w, 0)).sum(axis=1)
    return float(np.min((0.5 * case["aversion"] * variance + paid / case["horizon"] + held)[keeps]))


def bounds(case: dict) -> tuple[float, float]:
    """(the bound on whole-lot plans, the convex bound)."""
    rebalancer, table = problem_of(case)
    problem = relaxed(rebalancer.problem(table))
    solution = solve(problem)
    if solution.weights is None:
        return np.inf, np.inf
    return lot_bound(Lots.of(problem, problem.lower), solution).value, solution.bound


@pytest.mark.slow
def test_below_brute_force() -> None:
    """Never above the best plan, and in most cases it closes nearly all of what the convex bound leaves open."""
    left, convex = [], []
    for seed in range(150):
        case = small_case(seed)
        best = brute_force(case)
        if np.isinf(best):
            continue
        found, relaxation = bounds(case)
        assert found <= best + 1e-12 + 1e-9 * abs(best), seed
        assert found >= relaxation - 1e-7 * abs(relaxation) - 1e-11, seed
        left.append((best - found) / abs(best))
        convex.append((best - relaxation) / abs(best))
    assert len(left) > 100
    assert np.median(left) < 0.1 * np.median(convex)


@pytest.mark.parametrize("number", [4, 6])
def test_last_bits_of_the_risk_have_no_say(number: int) -> None:
    """Processors round sums differently; what is best of lots, debts and cash must not change for that."""
    group = mixed_group(np.random.default_rng([SEED, number]), number)
    table = group.table.drop(columns="portfolio_id").set_index("asset")
    problem = relaxed(group.rebalancer(compiled=False).problem(table))
    noise = 1e-15 * np.random.default_rng(0).standard_normal(problem.risk.factors.shape)
    other = replace(problem, risk=replace(problem.risk, factors=problem.risk.factors * (1.0 + noise)))
    here, there = (lot_bound(Lots.of(one, one.lower), solve(one)) for one in (problem, other))
    assert here.weights is not None and there.weights is not None
    np.testing.assert_allclose(there.weights, here.weights, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(there.value, here.value, rtol=1e-12)


def test_any_prices_bound() -> None:
    """The formula holds whatever the prices are: weak duality does not ask where they come from."""
    rng = np.random.default_rng(5)
    for seed in range(40):
        case = small_case(seed)
        best = brute_force(case)
        rebalancer, table = problem_of(case)
        problem = relaxed(rebalancer.problem(table))
        solution = solve(problem)
        if solution.weights is None or np.isinf(best):
            continue
        allowed = Lots.of(problem, problem.lower)
        for split in (lot_split.given(problem.risk), lot_split.favouring(problem.risk, rng.random(case["n"] + 1))):
            if split is None:
                continue
            dual = LotDual(allowed, split, Planes.of(allowed, solution))
            for size in (1e-3, 0.1, 10.0):
                factors = rng.normal(0.0, size, len(split.factors))
                prices = Prices(factors, rng.exponential(size, len(dual.limits)), float(rng.normal(0.0, size)))
                assert dual.at(prices).value <= best
                assert dual.at(dual.settled(prices)).value <= best


def test_split_is_the_semidefinite_program() -> None:
    """The rest is positive semidefinite, and the diagonal is within 1 % of the best by an interior-point solver."""
    rng = np.random.default_rng(2)
    for n in (3, 8, 20):
        root = rng.normal(size=(n, 2 * n)) * 0.1
        covariance = root @ root.T
        risk = FactoredRisk(np.linalg.cholesky(covariance).T, np.zeros(n))
        spread = rng.exponential(1e-4, n)
        split = lot_split.favouring(risk, spread)
        assert split is not None
        rest = covariance - np.diag(split.own) - split.factors.T @ split.factors
        assert np.linalg.eigvalsh(rest)[0] >= 0.0
        own = cp.Variable(n, nonneg=True)
        scale = spread / spread.max()
        best = cp.Problem(cp.Maximize(scale @ own), [cp.Constant(covariance) - cp.diag(own) >> 0]).solve("CLARABEL")
        assert scale @ split.own == pytest.approx(best, rel=0.01)


def test_no_split_of_a_singular_risk() -> None:
    """Fewer factors than assets and nothing specific: no diagonal can be taken out."""
    factors = np.random.default_rng(1).normal(size=(2, 5))
    assert lot_split.favouring(FactoredRisk(factors, np.zeros(5)), np.ones(5)) is None


def test_no_point_is_an_infinite_bound() -> None:
    """An asset without any lot point within its bounds: nothing is below infinity."""
    case = small_case(3)
    rebalancer, table = problem_of(case)
    problem = rebalancer.problem(table)
    allowed = Lots.of(problem, problem.lower)
    allowed.lowest[0], allowed.highest[0], allowed.closable[0] = 1, 0, False
    assert lot_bound(allowed, solve(problem)).value == np.inf


def main() -> None:
    """All of a range of cases: python tests/test_lot_bound.py [first] [last]"""
    first, last = (int(x) for x in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1000)
    left, wrong = [], 0
    for seed in range(first, last):
        case = small_case(seed)
        best = brute_force(case)
        if np.isfinite(best):
            found, _ = bounds(case)
            wrong += found > best + 1e-12 + 1e-9 * abs(best)
            left.append((best - found) / abs(best))
    print(f"{len(left)} cases with a plan: {wrong} bounds above it; median gap {np.median(left):.2%}")


if __name__ == "__main__":
    main()
