"""Accounts of collateral and debt under six rules: a batch on the fast path beside cvxpy programs built anew.

    python benchmarks/collateral.py [--accounts 10000] [--rebuilt 30] [--seed 1]

Each account has 10 collaterals, 4 debts and a cash, a factor model of risk, and costs of 5 to 30 bp. `rows`: health
factor, borrow and liquidation factors, loan to value, a shock (a box), five scenarios, a collateral ratio. `envelopes`:
health factor, CVaR over twenty scenarios, three sigmas (a second-order cone), counted collateral with concentration
limits, tiers of margin on the collaterals, loan to value. `rebuilt` writes the same rules by hand in cvxpy, builds the
program for one account and solves it by Clarabel at its default accuracy, one after another. All in this process, one
thread. The largest difference of the two objectives is that at default accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import (
    AfterMove,
    AfterScenarios,
    AfterShock,
    BorrowLimit,
    CollateralRatio,
    CVaR,
    HealthFactor,
    LoanToValue,
    LongOnly,
    MaintenanceMargin,
    Rule,
    ShortOnly,
)
from equipoise.optimizer import FactorRisk, ProportionalCost

NC, ND = 10, 4
C = [f"C{i}" for i in range(NC)]
D = [f"D{i}" for i in range(ND)]
ASSETS = [*C, *D]
AVERSION, HORIZON = 5.0, 0.5
H, FLOOR, LTV, K = 1.1, 1.15, 0.72, 3.0 * (2 / 365) ** 0.5


class World:
    """What all accounts share."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.threshold = np.round(rng.uniform(0.7, 0.85, NC), 3)
        self.borrow = self.threshold - 0.04
        self.fee = np.round(rng.uniform(5e-4, 3e-3, NC + ND), 5)
        L = rng.normal(size=(3, NC + ND)) * 0.2 + np.array([[0.5], [0.0], [0.0]])
        L[:, NC:] *= 0.1
        self.loadings, self.specific = L, np.concatenate([rng.uniform(0.02, 0.1, NC), rng.uniform(1e-4, 1e-3, ND)])
        moves = rng.normal(size=(20, 3)) @ L * 0.1
        self.moves = np.round(np.clip(moves, -0.2, 0.1), 4)
        self.fall = np.round(rng.uniform(0.02, 0.06, NC), 3)

    def scenarios(self, count: int) -> dict[str, dict[str, float]]:
        return {f"s{i}": dict(zip(ASSETS, map(float, move), strict=True)) for i, move in enumerate(self.moves[:count])}

    def rules(self, kind: str) -> list[Rule]:
        factor = dict(zip(C, map(float, self.threshold), strict=True))
        health, value = HealthFactor(H, factor), LoanToValue(LTV, dict.fromkeys(C, 1.0))
        if kind == "rows":
            return [
                HealthFactor(FLOOR, factor),
                BorrowLimit(dict(zip(C, map(float, self.borrow), strict=True)), factor),
                value,
                AfterShock(health, fall=dict(zip(C, map(float, self.fall), strict=True))),
                AfterScenarios(health, self.scenarios(5)),
                CollateralRatio(1.38, dict.fromkeys(C, 1.0)),
            ]
        tiers = {a: [(0.0, 0.05), (300.0, 0.1), (800.0, 0.3)] for a in C}
        return [
            HealthFactor(FLOOR, factor),
            CVaR(health, self.scenarios(20), level=0.9),
            AfterMove(health, years=2 / 365, sigmas=3.0),
            CollateralRatio(1.1, factor, share=0.3),
            MaintenanceMargin(tiers, utilisation=0.5),
            value,
        ]


def account(rng: np.random.Generator) -> pd.DataFrame:
    """Holdings of 1,000 of NAV that are moderate, and a target with more debt."""

    def weights(debt: float) -> np.ndarray:
        held = rng.dirichlet(np.full(NC, 5.0)) * (1.0 + debt - 0.05)
        return np.concatenate([held, -rng.dirichlet(np.full(ND, 5.0)) * debt, [0.05]])

    before, target = weights(rng.uniform(0.8, 1.2)), weights(rng.uniform(2.0, 3.5))
    target[-1] = 1.0 - target[:-1].sum()
    return pd.DataFrame({"quantity": before * 1000.0, "price": 1.0, "target": target}, index=[*ASSETS, "USD"])


def rebuilt(world: World, table: pd.DataFrame, kind: str) -> float:
    """One account by a cvxpy program of its own, built and solved."""
    import cvxpy as cp

    n = NC + ND
    before, target = table.quantity.to_numpy() / 1000.0, table.target.to_numpy()
    w, buy, sell = cp.Variable(n), cp.Variable(n, nonneg=True), cp.Variable(n, nonneg=True)
    held, owed = w[:NC], -w[NC:]
    fee = world.fee @ (buy + sell)
    away = w - target[:n]
    risk = cp.sum_squares(world.loadings @ away) + cp.sum_squares(cp.multiply(np.sqrt(world.specific), away))
    rules = [w == before[:n] + buy - sell, held >= 0, owed >= 0, 1 - cp.sum(w) - fee >= 0]
    lt, debt = world.threshold, cp.sum(owed)
    losses = [H * ((1 + m[NC:]) @ owed) - (lt * (1 + m[:NC])) @ held for m in world.moves]
    rules += [lt @ held >= FLOOR * debt, debt <= LTV * cp.sum(held)]
    if kind == "rows":
        rules += [world.borrow @ held >= debt, lt @ held >= debt, (lt * (1 - world.fall)) @ held >= H * debt]
        rules += [loss <= 0 for loss in losses[:5]]
        rules.append(cp.sum(held) >= 1.38 * debt)
    else:
        alpha, u = cp.Variable(), cp.Variable(NC, nonneg=True)
        rules.append(alpha + cp.sum(cp.pos(cp.hstack(losses) - alpha)) / (0.1 * 20) <= 0)
        x = cp.hstack([cp.multiply(lt, held), -H * owed])
        sigma = cp.hstack([world.loadings @ x, cp.multiply(np.sqrt(world.specific), x)])
        rules.append(cp.sum(x) >= K * cp.norm(sigma))
        rules += [u <= cp.multiply(lt, held), u <= 0.3 * cp.sum(u), cp.sum(u) >= 1.1 * debt]
        margin = cp.sum(0.05 * held + 0.05 * cp.pos(held - 0.3) + 0.2 * cp.pos(held - 0.8))
        rules.append(margin <= 0.5 * (1 - fee))
    objective = 0.5 * AVERSION * risk + fee / HORIZON
    problem = cp.Problem(cp.Minimize(objective), rules)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--rebuilt", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    world = World(rng)
    tables = [account(rng) for _ in range(args.accounts)]
    ids = np.repeat([f"p{i:05d}" for i in range(args.accounts)], NC + ND + 1)
    batch = pd.concat(tables).rename_axis("asset").reset_index().assign(portfolio_id=ids)
    risk = FactorRisk(world.loadings, world.specific, assets=ASSETS)
    costs = [ProportionalCost(dict(zip([*ASSETS, "USD"], [*map(float, world.fee), 0.0], strict=True)))]
    print(f"{'rules':<10}{'batch, ms each':>15}{'rebuilt, ms each':>18}{'times':>7}{'fast':>8}{'off by':>10}")
    for kind in ("rows", "envelopes"):
        rules: list[Any] = [LongOnly(except_=D), ShortOnly(D), *world.rules(kind)]
        rebalancer = Rebalancer(
            cash="USD", risk=risk, costs=costs, constraints=rules, aversion=AVERSION, horizon=HORIZON
        )
        rebalancer.solve_batch(batch.iloc[: 20 * (NC + ND + 1)])
        begun = time.perf_counter()
        results = rebalancer.solve_batch(batch).results
        ours = 1e3 * (time.perf_counter() - begun) / args.accounts
        fast = float(results.solver.isin(["newton", "threshold", "holding"]).mean())
        rebuilt(world, tables[0], kind)
        times, off = [], 0.0
        for i in range(args.rebuilt):
            begun = time.perf_counter()
            value = rebuilt(world, tables[i], kind)
            times.append(1e3 * (time.perf_counter() - begun))
            off = max(off, abs(value - results.objective.iloc[i]))
        theirs = statistics.median(times)
        print(f"{kind:<10}{ours:>15.3f}{theirs:>18.1f}{theirs / ours:>7.0f}{fast:>8.1%}{off:>10.1e}", flush=True)
        assert results.verified.all(), results.status.value_counts()


if __name__ == "__main__":
    main()
