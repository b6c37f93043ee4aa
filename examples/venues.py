"""A treasury on three venues through the crash of 2021-05-19, hour by hour (see data/README.md).

An exchange, Aave and a perpetuals account, each with its own cash, joined by transfers. Two ways to run it meet the
same prices, fees and liquidations:

    robust   one program for all venues: near its targets, and no venue can be liquidated by a fall of 15 % within the
             hour (one and a half times the worst hour of the year before)
    bot      each venue on its own: below a trigger, sell to a target

`python examples/venues.py` prints both; `--grid` how often each is liquidated from many starts and triggers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import (
    AfterShock,
    CashFloor,
    HealthFactor,
    InitialMargin,
    LongOnly,
    ShortOnly,
    WeightBounds,
)
from equipoise.optimizer import CovarianceRisk, HoldingCost, ProportionalCost, Transfer
from equipoise.optimizer.formulas.lending import health_factor, repair
from equipoise.optimizer.formulas.leverage import lever_to
from equipoise.optimizer.formulas.liquidation import aave
from equipoise.optimizer.formulas.margin import forced_close

DATA = files("equipoise.data")
SHOCK = 0.15
LIQUIDATION_FEE = 0.0125  # of the notional that is closed; Binance USDⓈ-M futures, 2022-05-04

# %% The venues, their rules and what joins them


# Daily returns of the year up to 2021-05-17, times 365.
COVARIANCE = pd.DataFrame([[0.4655, 0.4279], [0.4279, 0.8429]], ["BTC", "ETH"], ["BTC", "ETH"])

robust = Rebalancer(
    cash={"exchange": "USDT", "aave": "USDC", "perps": "USDT"},
    risk=CovarianceRisk(COVARIANCE, riskless=["USD"]),
    costs=[ProportionalCost("fee"), HoldingCost(long="long_rate", short="short_rate")],
    constraints=[
        LongOnly(except_=["aave/USDC-debt"]),
        ShortOnly(["aave/USDC-debt"]),
        AfterShock(HealthFactor(at_least=1.0, threshold="liquidation_threshold", account="aave"), fall="shock"),
        AfterShock(InitialMargin("maintenance", account="perps"), fall="shock", rise="shock"),
        CashFloor(-10, account="perps"),
        WeightBounds(lower={"perps/ETH-PERP": 0.2}, assets=["perps/ETH-PERP"]),  # the desk stays on all venues
    ],
    aversion=2.0,
    horizon=0.1,
    transfers=[
        Transfer("exchange/USDT", "perps/USDT", two_way=True),
        Transfer("exchange/USDT", "aave/USDC", cost=0.0005, two_way=True),
        Transfer("exchange/BTC", "aave/WBTC", cost=0.0005, two_way=True),
        Transfer("exchange/ETH", "aave/WETH", cost=0.0005, two_way=True),
    ],
)


# %% One hour: what is liquidated, then what is done


@dataclass
class Diary:
    """What a way of running the treasury went through."""

    fees: float = 0.0
    penalties: float = 0.0
    liquidations: list[str] = field(default_factory=list)
    hours: list[dict[str, float]] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.hours).set_index("hour")


def health(table: pd.DataFrame) -> float:
    own = table[table["account"] == "aave"]
    own = own[own["asset"] != "USDC"]  # in the wallet, not supplied
    return float(health_factor(own["quantity"] * own["price"], own["liquidation_threshold"]))


def margin_ratio(table: pd.DataFrame) -> float:
    """Equity over notional of the perpetuals account; infinite without a position."""
    own = table[table["account"] == "perps"]
    value, size = (own["quantity"] * own["price"]).sum(), abs((own["quantity"] * own["price"]).iloc[-1])
    return float(value / size) if size else np.inf


def liquidated(table: pd.DataFrame, diary: Diary, hour: pd.Timestamp) -> pd.DataFrame:
    """What the venues do to accounts that are below their maintenance."""
    table = table.copy()
    rows = table.index[(table["account"] == "aave") & (table["asset"] != "USDC")]
    while health(table) < 1:
        own = table.loc[rows]
        value = (own["quantity"] * own["price"]).to_numpy()
        largest = int(np.argmax(value))
        done = aave(
            value, own["liquidation_threshold"], largest, len(own) - 1, bonus=own["liquidation_bonus"].iloc[largest]
        )
        table.loc[rows, "quantity"] = done.value / own["price"].to_numpy()
        diary.penalties += float(done.cost)
        diary.liquidations.append(f"{hour:%m-%d %H:%M} Aave: {done.repaid:,.0f} repaid, {done.cost:,.0f} lost")
    quote, coin = table.index[table["account"] == "perps"]
    if margin_ratio(table) < table.loc[coin, "maintenance"]:
        size, price = table.loc[coin, "quantity"], table.loc[coin, "price"]
        closed = forced_close(size, price, table.loc[quote, "quantity"] + size * price, price, fee=LIQUIDATION_FEE)
        table.loc[[quote, coin], "quantity"] = [float(closed.equity), 0.0]
        diary.penalties += float(closed.fee)
        what = f"{closed.equity:,.0f} left" if closed.equity > 0 else f"wiped out, {closed.shortfall:,.0f} short"
        diary.liquidations.append(f"{hour:%m-%d %H:%M} perps: {size:,.1f} ETH closed, {what}")
    return table


def by_program(table: pd.DataFrame, diary: Diary) -> pd.DataFrame:
    """The plan for all venues at once."""
    plan = robust.solve(table.assign(shock=np.where(table["underlying"] == "USD", 0.0, SHOCK)))
    if not plan.status.ok:
        raise RuntimeError(plan.message)
    diary.fees += plan.cost
    return table.assign(quantity=(table["account"] + "/" + table["asset"]).map(plan.quantities["after"]))


def by_bot(trigger: float, target: float, *, margin: tuple[float, float]) -> Callable[..., pd.DataFrame]:
    """Aave: below `trigger`, repay from the wallet and from sold collateral up to `target`. Perpetuals: below the one
    margin ratio, cut the position to the other."""

    def act(table: pd.DataFrame, diary: Diary) -> pd.DataFrame:
        table = table.copy()
        own = table[table["account"] == "aave"]
        if health(table) < trigger:
            cash, debt = own.index[own["asset"] == "USDC"][0], own.index[own["quantity"] < 0][0]
            rows = own.index[own["asset"] != "USDC"]
            fee = own.loc[rows, "fee"].to_numpy()
            value, threshold = own["quantity"] * own["price"], own["liquidation_threshold"]
            done = repair(value[rows], threshold[rows], target, wallet=max(value[cash], 0.0), sell=fee)
            sold = np.asarray(done.sold)
            table.loc[rows, "quantity"] -= sold / own.loc[rows, "price"]
            table.loc[debt, "quantity"] += float(done.repaid)
            table.loc[cash, "quantity"] -= float(done.repaid) - float(sold @ (1 - fee))
            diary.fees += float(sold @ fee)
        quote, coin = table.index[table["account"] == "perps"]
        if margin_ratio(table) < margin[0]:
            size, price, fee = table.loc[coin, ["quantity", "price", "fee"]].astype(float)
            equity = table.loc[quote, "quantity"] + size * price
            traded = float(lever_to(size * price, equity, 1 / margin[1], buy=fee, sell=fee))
            table.loc[coin, "quantity"] += traded / price
            table.loc[quote, "quantity"] -= traded + fee * abs(traded)
            diary.fees += fee * abs(traded)
        return table

    return act


# %% The whole crash


def replay(
    act: Callable[[pd.DataFrame, Diary], pd.DataFrame], *, debt: float | None = None, hours: slice = slice(None)
) -> Diary:
    """Every hour: new prices, liquidations, then what this way of running it does at these prices.

    `debt`: another loan to begin with (its money is at the exchange).
    """
    table = pd.read_csv(str(DATA / "venues.csv")).astype({"quantity": float})
    prices = pd.read_csv(str(DATA / "crash.csv"), index_col=0, parse_dates=True)[hours]
    if debt is not None:
        owed = table.index[table["asset"] == "USDC-debt"][0]
        table.loc[0, "quantity"] += debt + table.loc[owed, "quantity"]
        table.loc[owed, "quantity"] = -debt
    diary = Diary()
    for hour, price in prices.iterrows():
        table["price"] = table["underlying"].map(price).fillna(1.0)
        first, second = health(table), margin_ratio(table)
        table = act(liquidated(table, diary, hour), diary)
        value = table["quantity"] * table["price"]
        nav = float(value.sum())
        exposure = value.groupby(table["underlying"]).sum() / nav
        diary.hours.append(
            {
                "hour": hour,
                "health": first,
                "margin": second,
                "nav": nav,
                "BTC": float(exposure["BTC"]),
                "ETH": float(exposure["ETH"]),
            }
        )
    return diary


def shown(name: str, diary: Diary) -> str:
    found = diary.table
    lines = [
        f"{name:<24}{len(diary.liquidations):>4}{found['health'].min():>8.3f}{found['margin'].min():>8.3f}"
        f"{diary.fees:>8,.0f}{diary.penalties:>10,.0f}{found['nav'].iloc[-1]:>10,.0f}"
        f"{found['BTC'].iloc[-1]:>6.2f}{found['ETH'].iloc[-1]:>6.2f}"
    ]
    return "\n".join([*lines, *(f"    {what}" for what in diary.liquidations)])


def grid() -> None:
    """From 11 loans between 700,000 and 900,000: how many runs saw a liquidation."""
    for name, act in WAYS.items():
        runs = [replay(act, debt=float(debt)) for debt in range(700_000, 900_001, 20_000)]
        hit = sum(bool(run.liquidations) for run in runs)
        lost = np.mean([run.fees + run.penalties for run in runs])
        end = np.mean([run.table["nav"].iloc[-1] for run in runs])
        print(f"{name:<24} liquidated in {hit:>2} of {len(runs)} runs; means: costs {lost:,.0f}, final NAV {end:,.0f}")


#: Triggers and targets of the bot: health factor, and margin ratio.
BOTS = (((1.05, 1.20), (0.10, 0.20)), ((1.10, 1.20), (0.15, 0.25)), ((1.15, 1.30), (0.20, 0.30)))
WAYS: dict[str, Callable[..., pd.DataFrame]] = {"robust": by_program} | {
    f"bot {t:.2f}/{h:.2f} {100 * m:.0f}%/{100 * n:.0f}%": by_bot(t, h, margin=(m, n)) for (t, h), (m, n) in BOTS
}

if __name__ == "__main__":
    if "--grid" in sys.argv[1:]:
        grid()
    else:
        print(f"{'':<24}liq.  health  margin    fees penalties  NAV, end   BTC   ETH")
        for name, act in WAYS.items():
            print(shown(name, replay(act)))
