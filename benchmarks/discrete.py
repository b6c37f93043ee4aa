"""From cash to whole shares, against PyPortfolioOpt's DiscreteAllocation (greedy, and its integer program).

    pip install PyPortfolioOpt==1.6.0        # for this comparison only
    OMP_NUM_THREADS=1 python benchmarks/discrete.py [--sizes 20 100 500] [--repeats 10] [--batch 100]
                                                    [--money 50000]

Its problem: weights w that add up to 1, prices p, V in cash; whole shares x and cash r ≥ 0 with Σ x·p + r = V, and as
little as possible of

    the L1 error  Σ |w·V − x·p| + r        (what its integer program minimises, solved by HiGHS here)

equipoise has no L1 objective. It minimises 5·Σ (x·p/V − w)² + 0.003·r/V with the same cash, which is its objective
without a risk model and with a charge on cash that is left; its plans are near the optimum of that, and it is their L1
error that is compared. Figures are medians over the repeats, errors in basis points of V; `worse` is the largest excess
over the integer program. Times are milliseconds from a table or series to shares; `batch`: each of `--batch` accounts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import LongOnly, LotSize
from equipoise.optimizer import HoldingCost

CASH, CHARGE = "USD", 0.003


def instance(n: int, seed: int, money: float) -> tuple[pd.Series, pd.Series]:
    """Weights and prices: prices as of shares, weights of a spread portfolio, down to what a share or two cost."""
    rng = np.random.default_rng(seed)
    names = [f"S{i:03d}" for i in range(n)]
    price = np.round(np.exp(rng.normal(np.log(60.0), 0.8, n)).clip(5.0, 250.0), 2)
    weights = rng.dirichlet(np.full(n, 3.0))
    return pd.Series(weights, index=names), pd.Series(price, index=names)


def l1_error(shares: dict[str, float], weights: pd.Series, price: pd.Series, money: float) -> float:
    """Σ |w·V − x·p| + r, over V; infinite where more is spent than there is."""
    bought = pd.Series(shares, dtype=float).reindex(weights.index).fillna(0.0) * price
    left = money - float(bought.sum())
    return float((weights * money - bought).abs().sum() + left) / money if left >= -1e-9 * money else float("inf")


def table_of(weights: pd.Series, price: pd.Series, money: float) -> pd.DataFrame:
    table = pd.DataFrame({"quantity": 0.0, "price": price, "target": weights})
    table.loc[CASH] = [money, 1.0, 1.0 - float(weights.sum())]
    table["charge"] = np.where(table.index == CASH, CHARGE, 0.0)
    return table.rename_axis("asset")


def policy() -> Rebalancer:
    return Rebalancer(cash=CASH, costs=[HoldingCost(long="charge")], constraints=[LongOnly(), LotSize(1.0)])


def ours(table: pd.DataFrame) -> dict[str, float]:
    plan = policy().solve(table)
    assert plan.status.ok, plan.message
    return dict(zip(plan.problem.assets, map(float, plan.trades), strict=True)) if plan.problem else {}


def timed(work: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    began = time.perf_counter()
    found = work()
    return found, 1e3 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 50, 100, 200, 500])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--money", type=float, default=50_000.0)
    args = parser.parse_args()
    try:
        from pypfopt import DiscreteAllocation
    except ImportError:
        DiscreteAllocation = None
        print("without PyPortfolioOpt (pip install PyPortfolioOpt==1.6.0): equipoise alone")
    warnings.simplefilter("ignore")
    print(f"{'':6}{'L1 error, bp':>36}{'worse, bp':>12}{'ms':>36}{'':>10}")
    ways_ = f"{'equipoise':>12}{'greedy':>12}{'integer':>12}"
    print(f"{'n':>6}{ways_}{'':>12}{ways_}{'batch':>10}")
    for n in args.sizes:
        errors, times = [], []
        for seed in range(args.repeats):
            weights, price = instance(n, seed, args.money)
            table = table_of(weights, price, args.money)
            found = [timed(partial(ours, table))]
            if DiscreteAllocation is not None:
                made = partial(DiscreteAllocation, dict(weights), price, total_portfolio_value=args.money)
                found.append(timed(lambda made=made: made().greedy_portfolio()[0]))
                found.append(timed(lambda made=made: made().lp_portfolio(solver="HIGHS")[0]))
            errors.append([1e4 * l1_error(shares, weights, price, args.money) for shares, _ in found])
            times.append([took for _, took in found])
        batch = pd.concat(
            [
                table_of(*instance(n, seed, args.money), args.money).reset_index().assign(portfolio_id=f"{seed:05d}")
                for seed in range(args.batch)
            ],
            ignore_index=True,
        )
        began = time.perf_counter()
        policy().solve_batch(batch)
        together = 1e3 * (time.perf_counter() - began) / args.batch
        error, took = np.array(errors), np.median(times, axis=0)
        median = np.median(error, axis=0)
        pad = [float("nan")] * (3 - len(median))
        worse = float((error[:, 0] - error[:, 2]).max()) if len(median) == 3 else float("nan")
        figures = "".join(f"{x:>12.2f}" for x in [*median, *pad, worse, *took, *pad])
        print(f"{n:>6}{figures}{together:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
