"""One loan account, rebalanced again and again as prices drift a little: what rounding does to its health factor.

    OMP_NUM_THREADS=1 python benchmarks/loan.py [--times 10000] [--seed 1]

A debt in dollars against two coins, in lots of 0.001 coins and 1 dollar, 10 bp fees, a health factor of at least 1.5
and bands of 5 %. Each time prices move by 0.2 % (one standard deviation) and the plan is carried out; the cash is
rounded down to cents. The health factor is counted here, in fractions, from the quantities of each plan. Counted: how
often it is below the limit; how often the debt is above the convex plan's; and how far the health factor of the
whole-lot plan is from that of the convex plan.
"""

from __future__ import annotations

import argparse
import math
import time
from fractions import Fraction

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import DriftBand, HealthFactor, LongOnly, LotSize, ShortOnly
from equipoise.optimizer import FactorRisk, ProportionalCost
from equipoise.optimizer.plans.plan import Plan

LIMIT, THRESHOLD = Fraction(3, 2), {"BTC": Fraction(3, 4), "ETH": Fraction(4, 5)}
DEBT, CASH = "DAI-debt", "USDC"


def policy() -> Rebalancer:
    loadings = pd.DataFrame([[0.55, 0.65]], columns=["BTC", "ETH"])
    return Rebalancer(
        risk=FactorRisk(loadings, pd.Series([0.05, 0.09], index=["BTC", "ETH"]), riskless=[DEBT]),
        costs=[ProportionalCost("fee")],
        constraints=[
            LongOnly(except_=[DEBT]),
            ShortOnly([DEBT]),
            HealthFactor(at_least=float(LIMIT), threshold="threshold"),
            DriftBand(absolute=0.05),
            LotSize("lot"),
        ],
        cash=CASH,
    )


def account() -> pd.DataFrame:
    """Collateral of 2.1 times the equity, a debt of 1.15 times; the target has a health factor just above the limit."""
    return pd.DataFrame(
        {
            "quantity": [1.1, 22.0, -74_000.0, 3_000.0],
            "price": [60_000.0, 2_500.0, 1.0, 1.0],
            "target": [1.02, 0.99, -1.05, 0.04],
            "fee": [0.001, 0.001, 0.0, 0.0],
            "lot": [0.001, 0.001, 1.0, 0.0],
            "threshold": [0.75, 0.8, 0.0, 0.0],
        },
        index=pd.Index(["BTC", "ETH", DEBT, CASH], name="asset"),
    )


def health(quantity: dict[str, Fraction], price: dict[str, Fraction]) -> Fraction:
    return sum(part * quantity[coin] * price[coin] for coin, part in THRESHOLD.items()) / -quantity[DEBT]


def times(count: int, seed: int) -> pd.DataFrame:
    """A row for each time: status, the health factors of the plan and of the convex plan, debts, orders."""
    rng, table, rebalancer, rows = np.random.default_rng(seed), account(), policy(), []
    for _ in range(count):
        drift = np.exp(rng.normal(0.0, 0.002, 2))
        # Prices return to where they were, or the account would drift away.
        start = np.array([60_000.0, 2_500.0])
        pulled = table["price"].iloc[:2].to_numpy() ** 0.99 * start**0.01
        table.iloc[:2, 1] = np.round(pulled * drift, 2)
        plan: Plan = rebalancer.solve(table)
        price = {asset: Fraction(repr(float(p))) for asset, p in table["price"].items()}
        if not plan.status.ok:
            rows.append((plan.status.name, math.nan, math.nan, math.nan, math.nan, 0))
            continue
        assert plan.problem is not None and plan.verified is not None and plan.solution is not None
        quantity = dict(zip(plan.problem.assets, plan.verified.quantities, strict=True))
        weights = plan.solution.weights
        assert weights is not None
        units = weights * plan.problem.portfolio.nav / plan.problem.portfolio.price
        convex = {asset: Fraction(float(x)) for asset, x in zip(plan.problem.assets, units, strict=True)}
        rows.append(
            (
                plan.status.name,
                float(health(quantity, price)) if health(quantity, price) >= LIMIT else -1.0,
                float(health(convex, price)),
                float(-quantity[DEBT]),
                float(-convex[DEBT]),
                len(plan.orders),
            )
        )
        quantity[CASH] = Fraction(math.floor(quantity[CASH] * 100), 100)
        table["quantity"] = [float(quantity[asset]) for asset in table.index]
    return pd.DataFrame(rows, columns=["status", "health", "convex", "debt", "convex_debt", "orders"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.perf_counter()
    found = times(args.times, args.seed)
    took = (time.perf_counter() - began) / args.times
    planned = found[found["health"].notna()]
    away = planned["health"] - planned["convex"]
    print(f"{args.times} times, {1e3 * took:.1f} ms each; {found['status'].value_counts().to_dict()}")
    print(f"health factor below {float(LIMIT)}: {(planned['health'] < 0).sum()}; lowest {planned['health'].min():.6f}")
    print(f"debt above the convex plan's: {(planned['debt'] > planned['convex_debt'] * (1 + 1e-9)).sum()}")
    print("whole-lot less convex health factor:", end=" ")
    print(f"mean {away.mean():.2e}, lowest {away.min():.2e}, highest {away.max():.2e}")
    print(f"times with orders: {(planned['orders'] > 0).sum()}")


if __name__ == "__main__":
    main()
