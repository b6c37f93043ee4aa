"""Whole lots: how near to the optimum, how near the proof, and how long it takes.

    OMP_NUM_THREADS=1 python benchmarks/lots.py [--instances tests/data/lots.json] [--seconds 20] [--sizes 30 100]
                                                [--repeats 10]

Two tables. The first is of instances with optima that another solver has proven (a list in JSON, gzip or not: see
tests/data/SOURCE.md), some with a fee for each order or a limit on the number of orders:

    excess     objective of the plan above the proven optimum, at default effort
    convex     the optimum above the convex bound; `left`: the plan above its own bound, at default effort
    ms         from the table to verified orders
    exact      the plan of `solve(exact=True)` above the proven optimum, `open` its gap, `s` its seconds
    scip       the gap and the seconds of SCIP on the same program, one thread, where pyscipopt is installed

The second is of random accounts, `--repeats` of each kind: lots of 0.1-1.2 % of NAV (coarse) or 0.001-0.05 % (fine),
covariances of many assets' returns or a factor model, with a minimum order of 0.5 % of NAV or none. `gap` is the median
certified gap of the objective, `bp` the same in basis points of NAV a year, `ms` a plan alone, `batch` one of a batch
of `--repeats` with one risk model, both in milliseconds of processor time.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import statistics
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, LongOnly, LotSize, OrderLimit
from equipoise.optimizer import CovarianceRisk, FactorRisk, FixedFee, ProportionalCost

INSTANCES = Path(__file__).resolve().parents[1] / "tests" / "data" / "lots.json"
CASH, NAV, FEE, AVERSION = "CASH", 1e6, 0.001, 10.0


def instances(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = json.loads(text)
    return found["instances"] if isinstance(found, dict) else found


def stated(case: dict[str, Any]) -> tuple[Rebalancer, pd.DataFrame]:
    """An instance in our words; its objective has no ½."""
    names, lots = case["assets"], case["lot"]
    held = [float(Fraction(str(lot)) * k) for lot, k in zip(lots, case["q0_lots"], strict=True)]
    table = pd.DataFrame(
        {
            "quantity": [*held, case["cash0"]],
            "price": [*case["prices"], 1.0],
            "target": [*case["target"], 1.0 - sum(case["target"])],
            "lot": [*lots, 0.0],
        },
        index=pd.Index([*names, CASH], name="asset"),
    )
    rules = [LongOnly(), LotSize("lot", min_notional=case["min_trade_notional"])]
    if case["band"] is not None:
        rules.append(DriftBand(absolute=dict(zip(names, case["band"], strict=True))))
    if case["max_trades"] is not None:
        rules.append(OrderLimit(case["max_trades"]))
    return Rebalancer(
        risk=CovarianceRisk(pd.DataFrame(case["cov"], index=names, columns=names)),
        costs=[ProportionalCost(dict(zip(names, case["cost_rate"], strict=True))), FixedFee(case["fixed_fee"])],
        constraints=rules,
        cash=CASH,
        aversion=2.0 * case["gamma"],
    ), table


def by_scip(case: dict[str, Any], seconds: float) -> tuple[float, float]:
    """(the gap, the seconds) of SCIP, one thread."""
    from pyscipopt import Model, quicksum

    model, n = Model(), len(case["assets"])
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", 1e-6)
    unit = [lot * price / case["value"] for lot, price in zip(case["lot"], case["prices"], strict=True)]
    least = case["min_trade_notional"] / case["value"]
    lots, traded, ordered = [], [], []
    for i in range(n):
        band = case["band"][i] if case["band"] is not None else 1.0
        low, high = max(case["target"][i] - band, 0.0) / unit[i], min(case["target"][i] + band, 1.0) / unit[i]
        held = case["q0_lots"][i]
        k = model.addVar(vtype="I", lb=float(np.ceil(low - 1e-9)), ub=float(np.floor(high + 1e-9)))
        buys, sells = (model.addVar(vtype="I", lb=0.0, ub=high + held) for _ in range(2))
        model.addCons(k - held == buys - sells)
        if least or case["fixed_fee"] or case["max_trades"] is not None:
            for side, most in ((buys, max(high - held, 0.0)), (sells, held)):
                on = model.addVar(vtype="B")
                model.addCons(side <= most * on)
                # A close is exempt from the minimum.
                if least:
                    model.addCons(side * unit[i] >= min(least, held * unit[i] if side is sells else least) * on)
                ordered.append(on)
        lots.append(k)
        traded.append((buys + sells) * unit[i])
    paid = quicksum(rate * z for rate, z in zip(case["cost_rate"], traded, strict=True))
    paid = paid + case["fixed_fee"] / case["value"] * quicksum(ordered)
    if case["max_trades"] is not None:
        model.addCons(quicksum(ordered) <= case["max_trades"])
    model.addCons(quicksum(k * u for k, u in zip(lots, unit, strict=True)) + paid <= 1.0)
    # The risk as a sum of squares of factors, in units in which the optimum is 1.
    scale = case["expected"]["objective"]
    root = np.linalg.cholesky(np.array(case["cov"])).T * np.sqrt(case["gamma"] / scale)
    factors = []
    for row in root:
        factor = model.addVar(lb=None)
        model.addCons(
            factor == quicksum(c * (k * u - b) for c, k, u, b in zip(row, lots, unit, case["target"], strict=True))
        )
        factors.append(factor)
    risk = model.addVar(lb=0.0)
    model.addCons(quicksum(f * f for f in factors) <= risk)
    model.setObjective(risk + paid / scale)
    began = time.perf_counter()
    model.optimize()
    return float(model.getGap()), time.perf_counter() - began


def account(n: int, seed: int, *, coarse: bool, dense: bool, minimum: float) -> tuple[Rebalancer, pd.DataFrame]:
    """A drifted account of n assets in lots of 100, from a seed."""
    rng = np.random.default_rng(seed)
    names = [f"S{i:03d}" for i in range(n)]
    target = 0.98 * rng.dirichlet(np.full(n, 5.0))
    share = rng.uniform(1e-3, 1.2e-2, n) if coarse else rng.uniform(1e-5, 5e-4, n)
    price = np.round(share * NAV / 100, 2)
    drifted = target * np.exp(rng.normal(0.0, 0.2, n))
    quantity = 100 * np.floor(0.98 * drifted / drifted.sum() * NAV / price / 100)
    table = pd.DataFrame(
        {
            "quantity": [*quantity, round(NAV - float(quantity @ price), 2)],
            "price": [*price, 1.0],
            "target": [*target, 1.0 - target.sum()],
            "lot": [100.0] * n + [0.0],
        },
        index=pd.Index([*names, CASH], name="asset"),
    )
    volatility = rng.uniform(0.15, 0.4, n)
    risk: CovarianceRisk | FactorRisk
    if dense:
        returns = rng.normal(size=(n, 4 * n)) + 2.0 * rng.normal(0.3, 0.15, (n, 5)) @ rng.normal(size=(5, 4 * n))
        covariance = np.corrcoef(returns) * volatility[:, None] * volatility
        risk = CovarianceRisk(pd.DataFrame(covariance, index=names, columns=names))
    else:
        loadings = rng.normal(0.0, 0.08, (5, n)) + np.array([[0.15], [0.0], [0.0], [0.0], [0.0]])
        risk = FactorRisk(pd.DataFrame(loadings, columns=names), pd.Series((0.7 * volatility) ** 2, index=names))
    return Rebalancer(
        risk=risk,
        costs=[ProportionalCost(FEE)],
        constraints=[LongOnly(), LotSize("lot", min_notional=minimum * NAV)],
        cash=CASH,
        aversion=AVERSION,
    ), table


def of_instances(path: Path, seconds: float) -> None:
    scip = importlib.util.find_spec("pyscipopt") is not None
    print(
        f"{'instance':18}{'n':>4}{'excess':>9}{'convex':>9}{'left':>9}{'ms':>7}{'exact':>10}{'open':>10}{'s':>7}",
        end="",
    )
    print(f"{'scip':>10}{'s':>7}" if scip else "")
    excesses = []
    for case in instances(path):
        rebalancer, table = stated(case)
        optimum = case["expected"]["objective"]
        rebalancer.solve(table)
        began = time.perf_counter()
        plan = rebalancer.solve(table)
        took = 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()
        exact = rebalancer.solve(table, exact=True, time_limit=seconds)
        proving = time.perf_counter() - began
        assert plan.solution is not None
        excesses.append(plan.objective / optimum - 1.0)
        print(
            f"{case['id']:18}{len(case['assets']):>4}{excesses[-1]:>9.3%}{1 - plan.solution.bound / optimum:>9.2%}"
            f"{plan.gap / plan.objective:>9.2%}{took:>7.0f}{exact.objective / optimum - 1:>10.4%}"
            f"{exact.gap / exact.objective:>10.4%}{proving:>7.1f}",
            end="",
        )
        print("{:>10.4%}{:>7.1f}".format(*by_scip(case, seconds)) if scip else "", flush=True)
    print(
        f"excess: median {statistics.median(excesses):.3%}, 95th percentile {np.quantile(excesses, 0.95):.3%}, "
        f"largest {max(excesses):.3%}"
    )


def of_accounts(sizes: list[int], repeats: int) -> None:
    print(f"\n{'n':>4}  {'lots':7}{'risk':10}{'minimum':>8}{'gap':>9}{'bp':>10}{'ms':>7}{'batch':>7}")
    for n in sizes:
        for coarse, dense, minimum in [(c, d, m) for c in (True, False) for d in (True, False) for m in (0.0, 0.005)]:
            gaps, money, times, tables, shared = [], [], [], [], None
            for seed in range(repeats):
                rebalancer, table = account(n, seed, coarse=coarse, dense=dense, minimum=minimum)
                began = time.process_time()
                plan = rebalancer.solve(table)
                times.append(1e3 * (time.process_time() - began))
                gaps.append(plan.gap / plan.objective)
                money.append(1e4 * plan.gap)
                tables.append(table.reset_index().assign(portfolio_id=f"{seed:03d}"))
                shared = shared or rebalancer
            batch = pd.concat(tables, ignore_index=True)
            assert shared is not None
            began = time.process_time()
            shared.solve_batch(batch)
            together = 1e3 * (time.process_time() - began) / repeats
            print(
                f"{n:>4}  {'coarse' if coarse else 'fine':7}{'dense' if dense else 'factors':10}{minimum:>8.1%}"
                f"{statistics.median(gaps):>9.3%}{statistics.median(money):>10.5f}{statistics.median(times):>7.0f}"
                f"{together:>7.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, default=INSTANCES)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--sizes", type=int, nargs="*", default=[30, 100])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    of_instances(args.instances, args.seconds)
    of_accounts(args.sizes, args.repeats)


if __name__ == "__main__":
    main()
