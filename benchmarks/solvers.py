"""Time per portfolio: Newton's method, whole batches, the compiled program and a plain cvxpy script, side by side.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py [--sizes 10 50 500] [--factors 0 5 15] [--repeats 10] [--compiled]

The problem: drifted long-only holdings, factor risk (with 0 factors: a variance for each asset), 10 bp proportional
costs paid from the cash, 5/25 bands. All in this process, one thread (start it with
OMP_NUM_THREADS=1). For each n and k of `--factors` below n:

    arrays   Newton's method on a stack of about `--numbers` / n portfolios, with certificate and check of the rules
    rows     the same under nine more rows: bands of three groups, a factor, leverage, turnover; `held` of them bind
    batch    `solve_batch`: from a table to verified orders and results
    alone    Newton's method on one portfolio, once its table is read
    first    the cvxpy program, compiled for the first portfolio;  later: its parameters filled anew
    plain    what a script does: the problem built anew in cvxpy for each portfolio and solved by Clarabel

in milliseconds a portfolio (medians, but for the stacks), `clip` the time of arrays in that of one np.clip of the same
stack, `gap` and `broken` the worst certified relative gap and violation of the stack (fractions of NAV), and
`difference` the largest relative difference between the objectives of arrays and of plain cvxpy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, FactorLimit, Leverage, LongOnly, Turnover
from equipoise.optimizer import FactorRisk, Problem, ProportionalCost
from equipoise.optimizer.portfolio.stack import Stack, stacks
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.program import program

FEE, AVERSION, HORIZON = 0.001, 10.0, 0.5
CASH = "USD"
GROUPS = 3
COLUMNS = (
    "n",
    "k",
    "arrays",
    "rows",
    "batch",
    "alone",
    "first",
    "later",
    "plain",
    "held",
    "clip",
    "gap",
    "broken",
    "difference",
)


def batch(n: int, factors: int, count: int, seed: int, compiled: bool) -> tuple[Rebalancer, pd.DataFrame]:
    """A policy, and a long table of so many drifted portfolios of the same n assets and cash."""
    rng = np.random.default_rng(seed)
    names = [f"A{i:04d}" for i in range(n)]
    loadings = pd.DataFrame(rng.normal(0.0, 0.1, (factors, n)), columns=names)
    rebalancer = Rebalancer(
        cash=CASH,
        risk=FactorRisk(loadings, pd.Series(rng.uniform(0.1, 0.4, n) ** 2, index=names)),
        costs=[ProportionalCost(FEE)],
        constraints=[LongOnly(), DriftBand(absolute=0.05, relative=0.25)],
        aversion=AVERSION,
        horizon=HORIZON,
        compiled=compiled,
    )
    target = rng.dirichlet(np.full(n, 5.0), count) * 0.98
    held = target * np.exp(rng.normal(0.0, 0.15, target.shape))
    held *= 0.98 / held.sum(axis=1, keepdims=True)
    groups = [f"group {g}" for g in rng.integers(0, GROUPS, n)]
    table = pd.DataFrame(
        {
            "portfolio_id": np.repeat([f"P{i:06d}" for i in range(count)], n + 1),
            "asset": np.tile([*names, CASH], count),
            "quantity": np.hstack([held * 1e6 / 50.0, np.full((count, 1), 2e4)]).ravel(),
            "price": np.tile([50.0] * n + [1.0], count),
            "target": np.hstack([target, 1.0 - target.sum(axis=1, keepdims=True)]).ravel(),
            "group": np.tile([*groups, None], count),
        }
    )
    return rebalancer, table


def with_rows(rebalancer: Rebalancer, stack: Stack) -> Rebalancer:
    """The policy with nine rows more, all around the target, so that they can be kept: 0.1 % around each group's
    target weight, a factor and the leverage near the target's, and turnover for the way there."""
    betas = {name: 0.5 + (i % 7) / 6 for i, name in enumerate(stack.assets[0, :-1])}
    rules = (
        *rebalancer.policy.constraints,
        DriftBand(absolute=0.001, by="group"),
        FactorLimit(betas, upper=0.002, relative=True),
        Leverage(gross=0.981),
        Turnover(0.5 * float(np.max(np.abs(stack.target - stack.before)[:, :-1].sum(axis=1)))),
    )
    return Rebalancer(
        cash=CASH,
        risk=rebalancer.policy.risk,
        costs=rebalancer.policy.costs,
        constraints=rules,
        aversion=AVERSION,
        horizon=HORIZON,
        compiled=rebalancer.policy.compiled,
    )


def stacked(rebalancer: Rebalancer, table: pd.DataFrame) -> Stack:
    (stack,), odd = stacks(table, CASH, label_columns=("group",))
    assert not odd
    return stack


def plain(problem: Problem) -> float:
    """What a person writes in cvxpy: the same problem, built anew; its objective."""
    shares = np.arange(len(problem.assets)) != problem.cash
    before, target = problem.before[shares], problem.target[shares]
    F, d = problem.risk.factors[:, shares], np.sqrt(problem.risk.specific[shares])
    width = np.minimum(0.05, 0.25 * target)
    w = cp.Variable(len(before))
    cost = FEE * cp.norm1(w - before)
    away = w - target
    risk = cp.sum_squares(cp.multiply(d, away)) + (cp.sum_squares(F @ away) if len(F) else 0.0)
    rules = [w >= 0, w >= target - width, w <= target + width, cp.sum(w) + cost <= 1]
    script = cp.Problem(cp.Minimize(0.5 * AVERSION * risk + cost / HORIZON), rules)
    script.solve(solver="CLARABEL")
    return float(script.value)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - began), result


def best(work: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """The least time of a few: what the machine does besides only adds to it."""
    tries = [timed(work) for _ in range(times)]
    return min(milliseconds for milliseconds, _ in tries), tries[-1][1]


def row(n: int, factors: int, args: argparse.Namespace) -> list[float]:
    count = max(args.repeats, args.numbers // n)
    rebalancer, table = batch(n, factors, count, args.seed, args.compiled)
    stack = stacked(rebalancer, table)
    problem = rebalancer.policy.stacked(stack)
    under_rows = with_rows(rebalancer, stack).policy.stacked(stack)
    newton.solve(rebalancer.policy.stacked(stack.take(slice(0, 2))))  # whatever is loaded or compiled when first used
    arrays, answers = best(lambda: newton.solve(replace(problem)))
    rows, tied = best(lambda: newton.solve(replace(under_rows)))
    if (answers.code != newton.SOLVED).any() or (tied.code != newton.SOLVED).any():
        print(
            f"not solved: {(answers.code != newton.SOLVED).sum()} and {(tied.code != newton.SOLVED).sum()} of {count}"
        )
    clip, _ = best(lambda: np.clip(problem.before, problem.lower, problem.upper), 20)
    whole, _ = best(lambda: _tables(rebalancer, table))
    times: dict[str, list[float]] = {"alone": [], "later": [], "plain": []}
    values: list[float] = []
    first = 0.0
    for i in range(args.repeats):  # in turn, so that a change of the machine's speed meets all of them
        one = rebalancer.policy.problem(stack.portfolio(i))
        if not i:
            first, _ = timed(lambda one=one: program.solve(one))
        times["alone"].append(timed(lambda one=one: newton.solution(one))[0])
        times["later"].append(timed(lambda one=one: program.solve(one))[0])
        milliseconds, value = timed(lambda one=one: plain(one))
        times["plain"].append(milliseconds)
        values.append(value)
    gap = np.max((answers.objective - answers.bound) / np.abs(answers.objective))
    difference = np.max(np.abs(np.array(values) / answers.objective[: len(values)] - 1.0))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return [
        n,
        factors,
        arrays / count,
        rows / count,
        whole / count,
        medians["alone"],
        first,
        medians["later"],
        medians["plain"],
        float(np.mean(np.sum(tied.rows > 1e-9, axis=1))),
        arrays / clip,
        gap,
        answers.violation.max(),
        difference,
    ]


def _tables(rebalancer: Rebalancer, table: pd.DataFrame) -> int:
    plans = rebalancer.solve_batch(table)
    return len(plans.orders) + len(plans.results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 500])
    parser.add_argument("--factors", type=int, nargs="+", default=[0, 5, 15])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--numbers", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="Newton's iteration as machine code (numba)")
    args = parser.parse_args()
    print("milliseconds a portfolio, clip: a ratio; gap, broken and difference: fractions")
    print("".join(f"{column:>11}" for column in COLUMNS))
    for n in args.sizes:
        for factors in args.factors:
            if factors < n:
                n_, k, *figures = row(n, factors, args)
                shown = [f"{figure:.1e}" if i > 8 else f"{figure:.3g}" for i, figure in enumerate(figures)]
                print(f"{n_:>11}{k:>11}" + "".join(f"{figure:>11}" for figure in shown), flush=True)


if __name__ == "__main__":
    main()
