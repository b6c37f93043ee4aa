"""Time to put a plan's orders in a safe sequence, beside checking every prefix with the library's own exact check.

    python benchmarks/sequence.py [--orders 10 50 200] [--accounts 20] [--seed 1]

Random lending accounts: four of five assets are collateral, the others debts, all of them traded in whole lots for
10 bp, with a health factor, gross leverage, initial margin and a cash floor asked after every step. `roomy` accounts
start with cash; `tight` ones with little, so that sales and repayments must alternate; `sliced` ones can only
be done if some orders are cut. All in this process, one thread; medians of milliseconds an account. `every prefix`
is one call of `verify` for each step of the sequence that was found. Accounts for which there is none are counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from fractions import Fraction

import numpy as np
import pandas as pd

from equipoise import Plan, Rebalancer, Status
from equipoise.constraints import CashFloor, HealthFactor, InitialMargin, Leverage, LotSize
from equipoise.optimizer import ProportionalCost
from equipoise.optimizer.sequence.steps import sequenced
from equipoise.optimizer.verification.exact import verify

#: Cash at the start, the health factor at the start over its limit, and the part of the collaterals that is sold.
KINDS = {"roomy": (0.2, 1.3, 0.6), "tight": (0.03, 1.05, 0.9), "sliced": (0.001, 1.003, 1.0)}


def account(rng: np.random.Generator, orders: int, kind: str) -> Plan | None:
    """A verified plan of this many orders, or None if the draw is insolvent or breaks a rule at its end."""
    cash, ratio, sold = KINDS[kind]
    debts = max(1, orders // 5)
    names = [*(f"C{i:03d}" for i in range(orders - debts)), *(f"D{i:03d}" for i in range(debts)), "USD"]
    price = np.round(np.exp(rng.normal(3.0, 1.0, orders)), 2)
    sign = np.where(np.arange(orders) < orders - debts, 1.0, -1.0)
    size = np.where(sign > 0, 1.0 / (orders - debts), 0.45 / debts)
    held = sign * np.round(rng.uniform(0.5, 1.5, orders) * size * 1e6 / price)
    share = rng.uniform(0.05, 0.3, orders)
    sells = (sign > 0) & (rng.random(orders) < sold)
    trade = np.where(sells, -1, 1) * np.maximum(1.0, np.floor(np.abs(held) * share))
    trade[sign < 0] = np.minimum(trade[sign < 0], -held[sign < 0])
    spent = float(np.sum(trade * price) + 0.001 * np.sum(np.abs(trade) * price))
    table = pd.DataFrame(
        {
            "quantity": [*held, round(cash * 1e6 + max(spent, 0.0), 2)],
            "price": [*price, 1.0],
            "target": 0.0,
            "threshold": [*np.where(sign > 0, rng.choice([0.7, 0.75, 0.8, 0.85], orders), 0.0), 0.0],
            "lot": 1.0,
        },
        index=pd.Index(names, name="asset"),
    )
    table["target"] = table["quantity"] * table["price"] / float((table["quantity"] * table["price"]).sum())
    worth = table["quantity"] * table["price"]
    health = float((worth.clip(lower=0) * table["threshold"]).sum() / -worth.clip(upper=0).sum())
    if health < ratio:
        return None
    problem = Rebalancer(
        cash="USD",
        costs=[ProportionalCost(0.001)],
        constraints=[
            HealthFactor(health / ratio, "threshold"),
            Leverage(gross=4.0),
            InitialMargin(0.1),
            CashFloor(0.0),
            LotSize("lot"),
        ],
    ).problem(table)
    trades = tuple(Fraction(int(x)) for x in [*trade, 0])
    checked = verify(problem, trades, whole_lots=True)
    return Plan(Status.FEASIBLE, None, "", problem, None, checked, trades, checked.weights) if checked.passed else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--accounts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{'accounts':>8}{'orders':>8}{'steps':>8}{'sequence':>12}{'worst':>12}{'every prefix':>14}{'none':>6}")
    for kind in KINDS:
        for orders in args.orders:
            rng = np.random.default_rng(args.seed)
            ours, prefixes, steps, none, made = [], [], [], 0, 0
            while made < args.accounts:
                plan = account(rng, orders, kind)
                if plan is None:
                    continue
                made += 1
                assert plan.problem is not None
                began = time.perf_counter()
                found = sequenced(plan)
                ours.append(1e3 * (time.perf_counter() - began))
                if not found.safe:
                    none += 1
                    continue
                steps.append(len(found.steps))
                done = [Fraction(0)] * len(plan.trades)
                began = time.perf_counter()
                for step in found.steps:
                    i = plan.problem.assets.index(step.asset)
                    done[i] += step.quantity if step.side == "buy" else -step.quantity
                    verify(plan.problem, done, whole_lots=True)
                prefixes.append(1e3 * (time.perf_counter() - began))
            figures = (statistics.median(ours), max(ours), statistics.median(prefixes or [float("nan")]))
            print(f"{kind:>8}{orders:>8}{statistics.median(steps or [0]):>8.0f}", end="")
            print(f"{figures[0]:>12.1f}{figures[1]:>12.1f}{figures[2]:>14.1f}{none:>6}")


if __name__ == "__main__":
    main()
