"""Random requests that empty debts and holdings in several accounts, and the books of their plans in fractions.

`random_closing` draws an exchange, a wallet, two lending accounts with three debts and the transfers between them
(fees, limits, delays), floors under each cash, and rows that must end at exactly 0 or at their least size. `books`
follows a plan's trades and transfers from the table's decimals, with nothing of the library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from equipoise import Plan, Rebalancer
from equipoise.constraints import (
    CashFloor,
    HealthFactor,
    LongOnly,
    MinimumPosition,
    NoTrade,
    Rule,
    ShortOnly,
    TradeLimit,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, HoldingCost, ImpactCost, ProportionalCost, QuadraticCost, Transfer

CASHES = {"exchange": "USDT", "wallet": "USDC"}
DEBTS = ["lend-a/USDC owed", "lend-a/ETH owed", "lend-b/USDC owed"]
PRICE = {"BTC": 43_127.31, "ETH": 2_519.07, "USD": 1.0}
COVARIANCE = pd.DataFrame([[0.36, 0.3], [0.3, 0.49]], ["BTC", "ETH"], ["BTC", "ETH"])


@dataclass(frozen=True, eq=False)
class Closing:
    """A request; `closed` are the rows that must end at 0, `least` the least sizes of others in money."""

    table: pd.DataFrame
    rebalancer: Rebalancer
    floors: dict[str, float]
    closed: tuple[str, ...]
    least: dict[str, float]


def random_closing(rng: np.random.Generator) -> Closing:
    def some(low: float, high: float) -> float:
        return float(np.round(rng.uniform(low, high), 6))

    value = {
        ("exchange", "USDT"): some(1e5, 3e5),
        ("exchange", "BTC"): some(1e5, 3e5),
        ("exchange", "ETH"): some(1e5, 3e5),
        ("wallet", "USDC"): some(0, 1e5),
        ("wallet", "BTC"): some(0, 1e5) * (rng.random() < 0.5),
        ("wallet", "ETH"): some(0, 1e5) * (rng.random() < 0.5),
        ("lend-a", "BTC"): some(1e5, 3e5),
        ("lend-a", "ETH"): some(0, 2e5),
        ("lend-a", "USDC owed"): -some(1e4, 1e5),
        ("lend-a", "ETH owed"): -some(0, 5e4) * (rng.random() < 0.7),
        ("lend-b", "ETH"): some(5e4, 2e5),
        ("lend-b", "USDC owed"): -some(1e4, 1e5),
    }
    table = pd.DataFrame([(*key, x) for key, x in value.items()], columns=["account", "asset", "value"])
    names = table["account"] + "/" + table["asset"]
    table["underlying"] = ["BTC" if "BTC" in x else "ETH" if "ETH" in x else "USD" for x in table["asset"]]
    table["price"] = table["underlying"].map(PRICE)
    table["quantity"] = np.round(table["value"] / table["price"], int(rng.choice([2, 6, 12])))
    nav = float(table["quantity"] @ table["price"])
    table["target"] = 0.0
    for coin, high in (("BTC", 0.6), ("ETH", 0.5)):
        table.loc[table.index[table["asset"] == coin][0], "target"] = round(rng.uniform(0.1, high), 4)
    table.loc[0, "target"] = 1.0 - table["target"].sum()
    traded = table["account"].isin(CASHES) & ~table["asset"].str.contains("USD")
    table["fee"] = np.where(traded, np.round(rng.uniform(0, 3e-3, len(table)), 5), 0.0)
    table["slope"] = np.where(traded, np.round(rng.uniform(0, 0.02, len(table)), 4), 0.0) * (rng.random() < 0.5)
    table["impact"] = np.where(traded, 0.02, 0.0) * (rng.random() < 0.3)
    table["rate"] = np.where(table["asset"].str.contains("owed"), 0.05, 0.0)
    table["threshold"] = np.where(table["account"].str.startswith("lend") & (table["rate"] == 0), 0.8, 0.0)
    table = table.drop(columns="value").iloc[rng.permutation(len(table))].reset_index(drop=True)

    def cost() -> float:
        return float(np.round(rng.uniform(0, 3e-3), 5)) if rng.random() < 0.7 else 0.0

    def most(price: float) -> float:
        return float(np.round(rng.uniform(5e4, 4e5) / price, 4)) if rng.random() < 0.3 else math.inf

    transfers = [Transfer("exchange/USDT", "wallet/USDC", cost(), most(1.0), two_way=bool(rng.random() < 0.6))]
    transfers += [
        Transfer(f"exchange/{c}", f"wallet/{c}", cost(), most(PRICE[c]), two_way=True) for c in ("BTC", "ETH")
    ]
    transfers += [Transfer("wallet/USDC", f"lend-{x}/USDC owed", cost(), most(1.0)) for x in "ab"]
    transfers += [Transfer(f"lend-{x}/USDC owed", "wallet/USDC", cost(), most(1.0)) for x in "ab"]
    transfers += [Transfer("wallet/ETH", "lend-a/ETH owed", cost())]
    for row, coin in (("lend-a/BTC", "BTC"), ("lend-a/ETH", "ETH"), ("lend-b/ETH", "ETH")):
        transfers += [Transfer(f"wallet/{coin}", row, cost(), delay=float(rng.choice([0, 0, 2])))]
        transfers += [Transfer(row, f"wallet/{coin}", cost(), most(PRICE[coin]), paid_by="exchange")]
    transfers = [t for t in transfers if rng.random() < 0.93]

    rules: list[Rule] = [LongOnly(except_=DEBTS), ShortOnly(DEBTS)]
    rules += [HealthFactor(some(1.05, 1.5), "threshold", account=f"lend-{x}") for x in "ab" if rng.random() < 0.5]
    floors = {name: float(rng.choice([0.0, 0.0, 0.01, 0.03])) for name in CASHES}
    rules += [CashFloor(weight, account=name) for name, weight in floors.items()]
    free = list(rng.permutation([*DEBTS, "lend-b/ETH", "wallet/BTC", "lend-a/BTC"]))[: rng.integers(1, 4)]
    closed = tuple(row for row in free if rng.random() < 0.6)
    least = {row: float(np.round(0.15 * nav, 2)) for row in free if row not in closed}
    if closed:
        rules.append(WeightBounds(lower=dict.fromkeys(closed, 0.0), upper=dict.fromkeys(closed, 0.0), assets=closed))
    if least:
        rules.append(MinimumPosition(notional=least, assets=list(least)))
    if rng.random() < 0.2:
        rules.append(NoTrade([str(rng.choice(["exchange/BTC", "wallet/ETH"]))]))
    if rng.random() < 0.2:
        rules.append(TradeLimit(0.1, nav, ["exchange/ETH"]))
    rebalancer = Rebalancer(
        cash=CASHES,
        risk=CovarianceRisk(COVARIANCE, riskless=["USD"]),
        costs=[ProportionalCost("fee"), QuadraticCost("slope"), ImpactCost("impact", nav), HoldingCost(short="rate")],
        constraints=rules,
        aversion=float(rng.uniform(1, 10)),
        horizon=float(rng.uniform(0.1, 1)),
        transfers=transfers,
    )
    assert names.is_unique
    return Closing(table, rebalancer, floors, closed, least)


def books(case: Closing, plan: Plan) -> tuple[dict[str, Fraction], Fraction]:
    """What is in each row after all trades, transfers and their costs, in money; and the NAV before."""
    assert plan.problem is not None and plan.problem.accounts is not None

    def exact(x: object) -> Fraction:
        return Fraction(repr(float(x)))  # type: ignore[arg-type]

    table = case.table.set_index(case.table["account"] + "/" + case.table["asset"])
    price = {row: exact(x) for row, x in table["price"].items()}
    held = {str(row): exact(x) * price[row] for row, x in table["quantity"].items()}
    nav = sum(held.values(), Fraction(0))
    for name, units in zip(plan.problem.assets, plan.trades, strict=True):
        if name not in table.index or not units:
            continue
        cash = f"{table.loc[name, 'account']}/{CASHES[table.loc[name, 'account']]}"
        money = units * price[name]
        z = abs(money) / nav
        root = Fraction(math.isqrt(math.ceil(z * 4**80)) + 1, 2**80)
        rate = exact(table.loc[name, "fee"]) + exact(table.loc[name, "slope"]) * z
        rate += exact(table.loc[name, "impact"]) * root
        held[name] += money
        held[cash] -= money + rate * abs(money)
    sent = list(zip(plan.problem.accounts.transfers, plan.trades[len(plan.asked.assets) :], strict=True))
    for transfer, units in sent:
        money = units * price[transfer.source]
        held[transfer.source] -= money
        held[transfer.arrival] = held.get(transfer.arrival, Fraction(0)) + money
        ends = (transfer.source.split("/")[0], transfer.destination.split("/")[0])
        payer = transfer.paid_by or next((x for x in ends if x in CASHES), "exchange")
        held[f"{payer}/{CASHES[payer]}"] -= exact(transfer.cost) * abs(money)
        assert units >= 0 or transfer.two_way, transfer
        assert abs(units) <= (exact(transfer.limit) if math.isfinite(transfer.limit) else abs(units)), transfer
    return held, nav


def misses(case: Closing, plan: Plan) -> list[str]:
    """What the books say that the plan breaks, by however little (floors: by what their own floating point may be)."""
    held, nav = books(case, plan)
    found = [f"{row} is not empty: {float(held[row])}" for row in case.closed if held[row]]
    for row, least in case.least.items():
        if held[row] and abs(held[row]) < Fraction(repr(least)):
            found.append(f"{row} is below its least size: {float(held[row])}")
    for name, weight in case.floors.items():
        row = f"{name}/{CASHES[name]}"
        if held[row] < (Fraction(repr(weight)) - Fraction(1, 10**15)) * nav:
            found.append(f"{row} is below its floor by {float(Fraction(repr(weight)) * nav - held[row]):.3g}")
    floored = {f"{name}/{CASHES[name]}" for name in case.floors}  # judged above
    for row, x in held.items():
        if row not in floored and ((x > 0) if row in DEBTS else (x < 0)):
            found.append(f"{row} is on the wrong side: {float(x):.3g}")
    return found
