"""2,000 random $50,000 accounts of 20 whole-share assets with 10 % relative bands: what rounding does to them.

    OMP_NUM_THREADS=1 python benchmarks/accounts.py [--accounts 2000] [--seed 1] [--exact 200] [--band 0.1]

Two ways from the same convex optimum to whole shares, side by side: each share count rounded to the nearest
(the common practice), and equipoise's plan. Counted: accounts whose cash after fees is below zero, and accounts
in which an asset ends outside its band although a plan in whole shares within all rules exists. Whether one
exists is what equipoise's plan shows; where it finds none, the integer program must prove that there is none,
or the account counts as broken. Both sides are judged here, in integers of a thousandth of a cent.

`--exact`: so many of the accounts are solved again in exact mode, to a gap of 1e-4 of the objective or 5 seconds: to
see whether a plan exists where there was none, and how far the plans are from the best ones. `--alone`: so many are
solved by themselves, to compare the time and the plans.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd

from equipoise import Plans, Rebalancer, Status
from equipoise.constraints import DriftBand, LongOnly, LotSize
from equipoise.optimizer import FactorRisk, ProportionalCost

ASSETS, VALUE, FEE, BAND = 20, 50_000.0, 0.0005, 0.10
CASH = "USD"


def accounts(count: int, seed: int) -> tuple[pd.DataFrame, FactorRisk]:
    """A long table: one price list, targets of 2-8 % that add up to 1, whole shares drifted by the market."""
    rng = np.random.default_rng(seed)
    names = [f"S{i:02d}" for i in range(ASSETS)]
    price = np.round(np.exp(rng.normal(np.log(60.0), 0.8, ASSETS)).clip(5.0, 250.0), 2)
    rows = []
    for account in range(count):
        target = rng.uniform(0.02, 0.08, ASSETS)
        target = np.round(target / target.sum(), 4)
        target[-1] += 1.0 - target.sum()
        drifted = target * np.exp(rng.normal(0.0, 0.15, ASSETS))
        shares = np.floor(drifted / drifted.sum() * VALUE / price)
        left = round(VALUE - float(shares @ price), 2)
        cheapest = int(np.argmin(price))
        more = left // price[cheapest]  # fully invested, as accounts are
        shares[cheapest] += more
        left = round(left - more * price[cheapest], 2)
        for name, q, p, b in zip(names, shares, price, target, strict=True):
            rows.append((f"{account:05d}", name, q, p, b))
        rows.append((f"{account:05d}", CASH, left, 1.0, 0.0))
    table = pd.DataFrame(rows, columns=["portfolio_id", "asset", "quantity", "price", "target"])
    loadings = rng.normal(0.0, 0.08, (3, ASSETS)) + np.array([[0.15], [0.0], [0.0]])
    risk = FactorRisk(pd.DataFrame(loadings, columns=names), pd.Series(rng.uniform(0.1, 0.3, ASSETS) ** 2, index=names))
    return table, risk


def judged(
    quantity: np.ndarray, traded: np.ndarray, price: np.ndarray, cash: float, target: np.ndarray, band: float
) -> tuple[bool, bool]:
    """(cash below zero, a band broken), in whole thousandths of a cent."""
    unit = 100_000
    cents = np.round(price * 100).astype(np.int64) * (unit // 100)
    fee = round(FEE * 10_000)
    money = traded.astype(np.int64) * cents
    left = round(cash * unit) * 10_000 - int(money.sum()) * 10_000 - int(np.abs(money).sum()) * fee
    value = (quantity + traded).astype(np.int64) * cents
    nav = int((quantity.astype(np.int64) * cents).sum()) + round(cash * unit)
    off = np.abs(value - target * nav) > band * target * nav + 1e-9 * nav
    return left < 0, bool(off.any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exact", type=int, default=0)
    parser.add_argument("--alone", type=int, default=50)
    parser.add_argument("--band", type=float, default=BAND)
    args = parser.parse_args()
    table, risk = accounts(args.accounts, args.seed)
    rebalancer = Rebalancer(
        risk=risk,
        costs=[ProportionalCost(FEE)],
        constraints=[LongOnly(), DriftBand(relative=args.band), LotSize(1.0)],
        cash=CASH,
    )
    began = time.process_time()
    plans = rebalancer.solve_batch(table)
    seconds = time.process_time() - began

    counts = {"nearest": [0, 0], "equipoise": [0, 0]}
    proven = unproven = 0
    for plan in plans:
        problem, solution = plan.problem, plan.solution
        assert problem is not None and solution is not None
        shares = np.arange(len(problem.assets)) != problem.cash
        account = problem.portfolio
        given = (
            account.quantity[shares],
            account.price[shares],
            account.quantity[problem.cash],
            account.target[shares],
        )
        if solution.weights is not None:
            wanted = (solution.weights - problem.before)[shares] * account.nav / given[1]
            overdrawn, broken = judged(given[0], np.round(wanted), given[1], given[2], given[3], args.band)
            counts["nearest"][0] += overdrawn
            counts["nearest"][1] += broken and plan.status.ok
        if plan.status.ok:
            traded = np.array([float(x) for x in plan.trades])[shares]
            overdrawn, broken = judged(given[0], traded, given[1], given[2], given[3], args.band)
            counts["equipoise"][0] += overdrawn
            counts["equipoise"][1] += broken
        elif plan.status is Status.NO_LOT_PLAN and (
            "(proven)" in plan.message or "no whole number of lots" in plan.message
        ):
            proven += 1
        elif plan.status is not Status.INFEASIBLE:
            unproven += 1
            counts["equipoise"][1] += 1
    print(f"{args.accounts} accounts, {seconds / args.accounts * 1e3:.2f} ms of processor time each")
    print(f"{'':24}{'nearest share':>16}{'equipoise':>12}")
    for row, what in enumerate(("cash below zero", "a band broken")):
        print(f"{what:24}{counts['nearest'][row]:>16}{counts['equipoise'][row]:>12}")
    print(f"no whole-share plan exists (proven): {proven}; none found, not proven: {unproven}")
    print(plans.results["status"].value_counts().to_string())
    gaps = (plans.results["gap"] / plans.results["objective"]).dropna()
    if len(gaps):
        print(f"certified gap of the objective: median {gaps.median():.3%}, 95th percentile {gaps.quantile(0.95):.3%}")
    print(plans.rounding.to_string(float_format=lambda x: f"{x:.4f}"))
    if args.alone:
        alone(rebalancer, table, plans, args.alone)
    if args.exact:
        proven_best(rebalancer, table, plans, args.exact)


def portfolios(table: pd.DataFrame, count: int) -> Iterator[tuple[str, pd.DataFrame]]:
    for name, rows in islice(table.groupby("portfolio_id"), count):
        yield name, rows.drop(columns="portfolio_id").set_index("asset")


def alone(rebalancer: Rebalancer, table: pd.DataFrame, plans: Plans, count: int) -> None:
    """By themselves: the time, and whether the plans are the same."""
    began = time.process_time()
    found = {name: rebalancer.solve(rows, name=name) for name, rows in portfolios(table, count)}
    seconds = time.process_time() - began
    same = sum(
        plan.objective == plans.results.loc[name, "objective"] or not plan.status.ok for name, plan in found.items()
    )
    print(f"alone: {seconds / len(found) * 1e3:.1f} ms each; {same} of {len(found)} plans the same as in the batch")


def proven_best(rebalancer: Rebalancer, table: pd.DataFrame, plans: Plans, count: int) -> None:
    """In exact mode: plans where there was none, and how far from the best plan those of the batch are."""
    excess, missed, open_ = [], 0, 0
    for name, rows in portfolios(table, count):
        best = rebalancer.solve(rows, name=name, exact=True, gap=1e-4, time_limit=5.0)
        found = plans.results.loc[name]
        missed += best.status.ok and not found["verified"]
        if best.status.ok and found["verified"]:
            excess.append(found["objective"] / best.objective - 1.0)
            open_ += best.gap > 1e-4 * best.objective
    print(f"exact mode on {count}: plans where there was none {missed}; not proven within 5 s {open_}")
    print(
        f"objective above the best plan's: median {np.median(excess):.4%}, 95th percentile "
        f"{np.quantile(excess, 0.95):.4%}, largest {max(excess):.4%}"
    )


if __name__ == "__main__":
    main()
