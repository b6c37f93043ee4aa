"""Time of Newton's method in numpy and compiled by numba, side by side on the same portfolios.

    python benchmarks/compiled.py [--sizes 10:3 50:5 ...] [--numbers 80000] [--repeats 5] [--seed 0]

Sizes are assets:factors. The portfolios: drifted long-only holdings, factor risk, bands of a quarter of each target,
proportional costs of 10 bp (of 10 bp·50/n beyond 50 assets, so that trading still pays), cash of 2 % that must not
fall below 0. `rows` adds eight rows: turnover, gross leverage, four groups, a collateral ratio and the cash floor.
Process time in this process, one thread, certificates included; the least of the repeats, which alternate. `iteration`
is what of the compiled time is the iteration itself: the rest, in numpy, is the same either way. The first two lines
are the seconds until a fresh process has solved one portfolio: compiling, and with what numba kept on disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TypeAlias
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array, Bound, Row
from equipoise.optimizer.problem.costs import CostTerms
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.factored import FactoredRisk
from equipoise.optimizer.solvers.newton import iteration, newton
from equipoise.optimizer.solvers.newton.dual import Dual

Iterated: TypeAlias = Callable[[Dual], iteration.Ends]

SIZES = ("10:3", "30:3", "50:5", "100:5", "200:15", "500:15", "1000:25", "5000:50")
CASH = 0.02


@dataclass(frozen=True, eq=False)
class Accounts:
    """What a problem asks of its portfolios."""

    before: Array
    target: Array
    cash: tuple[NDArray[np.intp], NDArray[np.intp]]


def problem(count: int, n: int, k: int, rows: bool, seed: int) -> Problem:
    """`count` portfolios of n shares and the cash, as one stack."""
    rng = np.random.default_rng(seed)
    share = np.append(np.ones(n), 0.0)
    loadings = rng.normal(0.0, 0.15 / np.sqrt(k), (k, n + 1)) * share
    loadings[0] = rng.uniform(0.1, 0.25, n + 1) * share
    target = rng.dirichlet(np.full(n, 3.0), count)
    held = target * np.exp(rng.normal(0.0, 0.15, (count, n)))
    held /= held.sum(axis=1, keepdims=True)
    cash = np.full((count, 1), CASH)
    goal, before = (np.append((1.0 - CASH) * w, cash, axis=1) for w in (target, held))
    band = Bound(
        label="band", lower=np.where(share > 0, 0.75 * goal, -np.inf), upper=np.where(share > 0, 1.25 * goal, np.inf)
    )
    floor = Bound(label="floor", lower=np.where(share > 0, -np.inf, 0.0), upper=np.full(n + 1, np.inf))
    pieces: list[tuple[str, Bound | Row]] = [("DriftBand", band), ("CashFloor", floor)]
    if rows:
        turnover = 0.275 * np.abs(before - goal).sum(axis=1)
        pieces.append(("Turnover", Row(label="turnover", buy=0.5 * share, sell=0.5 * share, upper=turnover)))
        pieces.append(("Leverage", Row(label="gross", long=share, short=share, upper=1.005 - CASH)))
        group = rng.integers(0, 4, n + 1)
        for g in range(4):
            members = share * (group == g)
            pieces.append(("GroupLimit", Row(label=f"group {g}", weight=members, upper=goal @ members + 0.002)))
        worth = np.append(rng.uniform(0.4, 0.9, n), 1.0)
        row = Row(label="collateral", long=-worth, short=np.full(n + 1, 1.2), upper=-1.002 * (goal @ worth))
        pieces.append(("CollateralRatio", row))
    fee = np.broadcast_to(0.001 * min(1.0, 50.0 / n) * share, before.shape)
    return Problem(
        portfolio=Accounts(before, goal, (np.arange(count), np.full(count, n))),
        risk=FactoredRisk(loadings, (rng.uniform(0.1, 0.4, n + 1) * share) ** 2),
        cost=CostTerms.of(before.shape, buy=fee, sell=fee),
        aversion=10.0,
        horizon=1.0,
        pieces=tuple(pieces),
    )


def first() -> float:
    """Seconds until numba is loaded and has solved a first portfolio."""
    start = time.process_time()
    seconds(problem(1, 10, 3, True, 0), compiled())
    return time.process_time() - start


def compiled() -> Iterated:
    from equipoise.optimizer.solvers.newton.numba_newton import iterated

    return iterated


def seconds(given: Problem, path: Iterated) -> tuple[float, float, newton.Answers]:
    """The time of all, that of the iteration, and the answers."""
    spent = 0.0

    def timed(dual: Dual) -> iteration.Ends:
        nonlocal spent
        start = time.process_time()
        ends = path(dual)
        spent += time.process_time() - start
        return ends

    with patch.object(newton, "_iterated", lambda problem: timed):
        start = time.process_time()
        answers = newton.solve(given)
        return time.process_time() - start, spent, answers


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="assets:factors")
    parser.add_argument("--numbers", type=int, default=80_000, help="portfolios times assets")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", action="store_true", help="print the seconds until a first portfolio is solved")
    given = parser.parse_args()
    if given.first:
        print(first())
        return
    with TemporaryDirectory() as place:
        for name in ("compiling", "loading"):
            command = [sys.executable, __file__, "--first"]
            run = subprocess.run(
                command, env=os.environ | {"NUMBA_CACHE_DIR": place}, capture_output=True, text=True, check=True
            )
            print(f"{name}: {float(run.stdout):.1f} s")
    print("| n | k | rows | numpy, ms | compiled, ms | of which iteration | ratio | steps | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    seconds(problem(1, 10, 3, True, 0), compiled())
    for rows in (False, True):
        for size in given.sizes:
            n, k = (int(number) for number in size.split(":"))
            count = max(4, given.numbers // n)
            stack = problem(count, n, k, rows, given.seed)
            for cached in ("rows", "lower", "upper"):
                getattr(stack, cached)
            runs = [(seconds(stack, iteration.iterated), seconds(stack, compiled())) for _ in range(given.repeats)]
            plain, fast = (min(run[side][0] for run in runs) * 1e3 / count for side in (0, 1))
            inner = min(run[1][1] for run in runs) * 1e3 / count
            one, other = runs[0][0][2], runs[0][1][2]
            assert np.array_equal(one.code, other.code)
            apart = np.nanmax(np.abs(one.weights - other.weights))
            times = f"{plain:.3g} | {fast:.3g} | {inner:.3g} | {plain / fast:.1f}"
            steps = f"{one.steps.mean():.1f}, {other.steps.mean():.1f}"
            print(f"| {n} | {k} | {8 if rows else 1} | {times} | {steps} | {apart:.0e} |")


if __name__ == "__main__":
    main()
