"""Time per portfolio of the closed form, the compiled program and a plain cvxpy script, on the same problems.

    python benchmarks/solvers.py [--sizes 10 50 500] [--repeats 20] [--batch 500] [--factors 0] [--seed 1]

The problem: drifted long-only holdings, diagonal risk (so that the closed form may take it; `--factors 15` gives
factor risk and leaves it out), 10 bp proportional costs paid from the cash, 5/25 bands. All in this process, one
thread; medians. `program, first` compiles the cvxpy program, `later` fills its parameters; `plain cvxpy` builds
the problem anew for every portfolio, as a script would, and solves it with Clarabel at its own tolerances. Ours
include the certificate and the check of every rule. The last column is the largest relative difference of the
three objectives.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd

from equipoise.constraints import DriftBand, LongOnly
from equipoise.optimizer import FactorRisk, Policy, Portfolio, Problem, ProportionalCost, program, threshold

FEE, AVERSION, HORIZON = 0.001, 10.0, 0.5


def problems(n: int, factors: int, count: int, seed: int) -> list[Problem]:
    rng = np.random.default_rng(seed)
    names = [f"A{i:04d}" for i in range(n)]
    loadings = pd.DataFrame(rng.normal(0.0, 0.1, (factors, n)), columns=names)
    specific = pd.Series(rng.uniform(0.1, 0.4, n) ** 2, index=names)
    policy = Policy(
        risk=FactorRisk(loadings, specific),
        costs=(ProportionalCost(FEE),),
        constraints=(LongOnly(), DriftBand(absolute=0.05, relative=0.25)),
        aversion=AVERSION,
        horizon=HORIZON,
    )
    made = []
    for _ in range(count):
        target = rng.dirichlet(np.full(n, 5.0)) * 0.98
        held = target * np.exp(rng.normal(0.0, 0.15, n))
        held *= 0.98 / held.sum()
        table = pd.DataFrame(
            {
                "quantity": [*held * 1e6 / 50.0, 2e4],
                "price": [50.0] * n + [1.0],
                "target": [*target, 1.0 - target.sum()],
            },
            index=[*names, "USD"],
        )
        made.append(policy.problem(Portfolio.from_table(table, "USD")))
    return made


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 500])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--factors", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    plain(problems(3, 0, 1, 0)[0])  # cvxpy is imported and warm
    columns = (
        "n",
        "threshold, batch",
        "threshold, alone",
        "program, first",
        "program, later",
        "plain cvxpy",
        "difference",
    )
    print("milliseconds a portfolio")
    print("".join(f"{c:>18}" for c in columns))
    for n in args.sizes:
        asked = problems(n, args.factors, args.repeats, args.seed)
        first, _ = timed(lambda one=asked[0]: program.solve(one))
        rows: dict[str, list[float]] = {"alone": [], "later": [], "plain": []}
        values: dict[str, list[float]] = {"alone": [], "later": [], "plain": []}
        closed = not args.factors
        for problem in asked:  # in turn, so that a change of the machine's speed meets all of them
            ways: dict[str, Callable[[], float]] = {
                "later": lambda p=problem: program.solve(p).objective,
                "plain": lambda p=problem: plain(p),
            }
            if closed:
                ways["alone"] = lambda p=problem: threshold.solve([p])[0].objective
            for name, way in ways.items():
                milliseconds, value = timed(way)
                rows[name].append(milliseconds)
                values[name].append(value)
        batch = float("nan")
        if closed:
            many = problems(n, 0, args.batch, args.seed + 1)
            batch = timed(lambda asked=many: threshold.solve(asked))[0] / len(many)
        alone = statistics.median(rows["alone"]) if closed else float("nan")
        reference = np.array(values["later"])
        others = [np.array(values[name]) for name in ("alone", "plain") if values[name]]
        difference = max(float(np.max(np.abs(other / reference - 1.0))) for other in others)
        figures = (batch, alone, first, statistics.median(rows["later"]), statistics.median(rows["plain"]))
        print(f"{n:>18}" + "".join(f"{figure:>18.3f}" for figure in figures) + f"{difference:>18.1e}")


if __name__ == "__main__":
    main()
