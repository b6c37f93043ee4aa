"""Make the data of the examples and of the tests from the raw public sets: `python make_data.py SOURCE_DIR`.

The files in `examples/data` and `tests/data` are shipped; nobody needs this script to use them. It is here so
that every figure can be traced: what was taken from where, and by which rule. Where the raw sets come from,
and under which licence, is in `examples/data/README.md` and `tests/data/SOURCE.md`. No clock and no unseeded
chance: the same input gives the same files.

SOURCE_DIR holds (tables with the index in the first column; dates as 2021-05-19):

    crypto/daily_close_usd.csv.gz         date x coin, closing price in USD
    crypto/hourly_close_usdt.csv.gz       hour (UTC) x coin, closing price in USDT
    crypto/daily_volume_usd.csv.gz        date x coin, volume of the day in USD
    exchange_rules/binance_spot_2021-03-24.csv.gz
                                          exchangeInfo, one row a pair: symbol, step_size, min_notional, ...
    defi_rules/aave_v3_ethereum_2023-10-31_reserves.csv
                                          symbol, liq_threshold_bps, rate_base, rate_slope1, ...
    eq_spreads_ref/prices.csv.gz          date x stock, split-adjusted price
    eq_spreads_ref/spread_bps.csv.gz      date x stock, full relative bid-ask spread in basis points
    orlib/port1.txt.gz, portef1.txt.gz    the OR-Library's text files (and 3), compressed
    lot_miqp_exact/instances.json.gz      whole-lot rebalancing problems with proven optima
"""

import gzip
import json
import math
import random
import shutil
import sys
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "data"
TESTS = HERE.parent / "tests" / "data"

# The crypto treasury: target weight, group, and the reserve in Aave v3 that takes the coin as collateral.
CRASH = "2021-05-19"
AT_TARGET = "2021-05-04"
TREASURY_NAV = 2_500_000  # USD, on AT_TARGET
TREASURY = {
    "BTC": ("0.24", "major", "WBTC"),
    "ETH": ("0.17", "major", "WETH"),
    "BNB": ("0.11", "platform", None),
    "ADA": ("0.13", "platform", None),
    "DOT": ("0.10", "platform", None),
    "SOL": ("0.10", "platform", None),
    "LTC": ("0.08", "payment", None),
    "XLM": ("0.07", "payment", None),
    "LINK": ("0.07", "defi", "LINK"),
    "UNI": ("0.06", "defi", "UNI"),
    "AAVE": ("0.05", "defi", "AAVE"),
    "USDC": ("0.07", "stable", None),
    "USDC-debt": ("-0.25", "debt", None),
}
CASH, DEBT = "USDC", "USDC-debt"

# The treasury on three venues: account, asset, quantity, target, fee of a trade (spot taker, pool, perpetual taker).
FUNDING = 0.1095  # a year: the interest part of Binance's funding rate, 0.01 % every eight hours
FIRST_HOUR, LAST_HOUR = "2021-05-18 12:00", "2021-05-20 12:00"
VENUES = [
    ("exchange", "USDT", 250_000, "-0.65", 0),
    ("exchange", "BTC", 3, "0.55", 0.001),
    ("exchange", "ETH", 40, "1.1", 0.001),
    ("aave", "USDC", 20_000, "0", 0),
    ("aave", "WBTC", 12, "0", 0.003),
    ("aave", "WETH", 250, "0", 0.003),
    ("aave", "USDC-debt", -850_000, "0", 0),
    ("perps", "USDT", -240_000, "0", 0),
    ("perps", "ETH-PERP", 100, "0", 0.0004),
]
TAKER_FEE = "0.001"  # Binance spot, regular user, 2021
MICRO = Decimal("0.000001")  # USDC has six decimals on chain

# The equity account and the batch of accounts around its model portfolio.
VALUED = "2008-10-10"
BOUGHT = "2008-04-10"
MODEL = "2007-10-10"  # the model weights use returns up to here, before any account bought
EQUITY_NAV = 350_000  # USD, on BOUGHT
STOCKS = 28
ACCOUNTS = 1000

INSTANCES = ("eq01_n5", "eq03_n10", "cr1_n10", "cr2_n10")


def main(source: Path) -> None:
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    TESTS.mkdir(parents=True, exist_ok=True)
    make_treasury(source)
    make_crash(source)
    make_equity(source)
    make_test_data(source)


def make_treasury(source: Path) -> None:
    """An account at its targets on AT_TARGET and valued on CRASH; nothing was traded in between."""
    close = read(source / "crypto/daily_close_usd.csv.gz")
    volume = read(source / "crypto/daily_volume_usd.csv.gz")
    pairs = read_text(source / "exchange_rules/binance_spot_2021-03-24.csv.gz")
    reserves = read_text(source / "defi_rules/aave_v3_ethereum_2023-10-31_reserves.csv")
    coins = [asset for asset in TREASURY if asset not in (CASH, DEBT)]

    lot = {coin: Decimal(pairs.at[coin + "USDT", "step_size"]) for coin in coins} | {CASH: MICRO, DEBT: MICRO}
    quantity, cash = {}, Decimal(TREASURY_NAV)
    for coin in coins:
        price = decimal(close.at[AT_TARGET, coin])
        lots = Decimal(TREASURY[coin][0]) * TREASURY_NAV / price / lot[coin]
        quantity[coin] = lots.to_integral_value(ROUND_HALF_EVEN) * lot[coin]
        cash -= quantity[coin] * price
    quantity[DEBT] = Decimal(TREASURY[DEBT][0]) * TREASURY_NAV
    quantity[CASH] = (cash - quantity[DEBT]).quantize(MICRO, ROUND_DOWN)

    table = pd.DataFrame.from_dict(TREASURY, orient="index", columns=["target", "group", "reserve"])
    table["quantity"] = {asset: plain(units) for asset, units in quantity.items()}
    table["price"] = {coin: plain(decimal(close.at[CRASH, coin])) for coin in coins}
    table["lot"] = {asset: plain(step) for asset, step in lot.items()}
    table["min_notional"] = {coin: plain(Decimal(pairs.at[coin + "USDT", "min_notional"])) for coin in coins}
    table["fee"] = dict.fromkeys(coins, TAKER_FEE)
    threshold = reserves["liq_threshold_bps"].map(lambda bps: plain(Decimal(bps) / 10_000))
    table["liquidation_threshold"] = table["reserve"].map(threshold)
    rate = reserves.loc[CASH, ["rate_base", "rate_slope1"]].map(Decimal).sum()
    table["borrow_rate"] = {DEBT: plain(rate)}
    month = volume.loc[:CRASH, [*coins, CASH]].tail(30).mean()
    month[DEBT] = month[CASH]
    table["volume_usd"] = month.map(lambda usd: f"{usd / 1e4:.0f}0000")
    table = table.drop(columns="reserve").fillna({"price": "1"}).fillna("0")
    columns = "quantity price target lot min_notional fee liquidation_threshold borrow_rate group volume_usd"
    write(table[columns.split()], "treasury.csv")

    # All eleven coins have prices since 2020-10-05, when AAVE began.
    returns = close[coins].dropna().loc[:CRASH].pct_change().iloc[1:]
    write((365 * returns.cov()).map("{:.6g}".format), "treasury_covariance.csv")

    number = table.drop(columns="group").astype(float)
    value = number["quantity"] * number["price"]
    health = (number["liquidation_threshold"] * value).sum() / -value[DEBT]
    print(f"treasury: NAV {value.sum():.2f}, health factor {health:.4f}, {len(returns)} daily returns")


def make_crash(source: Path) -> None:
    """Hourly prices of two coins around the crash, and a treasury on three venues at the first of these hours."""
    hours = pd.read_csv(source / "crypto/hourly_close_usdt.csv.gz", index_col=0, parse_dates=True).loc[
        FIRST_HOUR:LAST_HOUR, ["BTC", "ETH"]
    ]
    hours.to_csv(EXAMPLES / "crash.csv", index_label="hour")
    rules = pd.read_csv(source / "defi_rules/aave_v3_ethereum_2023-10-31_reserves.csv", index_col="symbol")
    futures = pd.read_csv(source / "exchange_rules/binance_usdm_futures_2022-05-04.csv.gz", index_col="symbol")
    rows = []
    for account, asset, quantity, target, fee in VENUES:
        coin = asset.split("-")[0].lstrip("W")
        collateral = account == "aave" and quantity > 0 and asset in ("WBTC", "WETH")
        margin = account == "perps" and coin in hours
        rows.append(
            {
                "account": account,
                "asset": asset,
                "underlying": coin if coin in hours else "USD",
                "quantity": quantity,
                "price": hours[coin].iloc[0] if coin in hours else 1,
                "target": target,
                "fee": fee,
                "liquidation_threshold": rules.loc[asset, "liq_threshold_bps"] / 1e4 if collateral else 0,
                "liquidation_bonus": round(rules.loc[asset, "liq_bonus_bps"] / 1e4 - 1, 4) if collateral else 0,
                "maintenance": futures.loc[f"{coin}USDT", "maint_margin_pct"] / 100 if margin else 0,
                "long_rate": FUNDING if margin else 0,
                "short_rate": rules.loc["USDC", "rate_slope1"] if asset == "USDC-debt" else -FUNDING if margin else 0,
            }
        )
    pd.DataFrame(rows).to_csv(EXAMPLES / "venues.csv", index=False)


def make_equity(source: Path) -> None:
    prices = read(source / "eq_spreads_ref/prices.csv.gz")
    spreads = read(source / "eq_spreads_ref/spread_bps.csv.gz")
    closed = (prices == prices.shift()).all(axis=1)  # the raw file repeats the prices on market holidays
    stocks = list(prices.columns[:STOCKS])
    prices, spreads = (table.loc[~closed, stocks].loc[:VALUED] for table in (prices, spreads))
    returns = prices.pct_change()

    target = model_weights(returns.loc[:MODEL].tail(252).std())
    table = whole_shares(EQUITY_NAV, target, prices.loc[BOUGHT]).map(quantity_text).to_frame("quantity")
    table["price"] = prices.loc[VALUED].map("{:.5g}".format)
    table["target"] = target.map("{:.3f}".format)
    table["half_spread"] = (spreads.tail(21).median() / 2 / 1e4).map("{:.4g}".format)
    table["lot"] = dict.fromkeys(stocks, "1")
    table = table.fillna({"price": "1"}).fillna("0")
    write(table, "equity.csv")
    write(returns.tail(504).map("{:.6g}".format), "equity_returns.csv", index="date")

    accounts = make_accounts(prices, target).map(quantity_text)
    write(accounts.to_frame("quantity"), "accounts.csv", index=["portfolio_id", "asset"])
    value = table["quantity"].astype(float) * table["price"].astype(float)
    print(f"equity: NAV {value.sum():.2f}, cash {value['USD'] / value.sum():.4f}, {ACCOUNTS} accounts")


def model_weights(volatility: pd.Series, cash: int = 20) -> pd.Series:
    """Inverse volatility in whole thousandths that sum to one with the cash (largest remainders go up)."""
    exact = (1000 - cash) * (1 / volatility) / (1 / volatility).sum()
    weight = np.floor(exact).astype(int)
    up = (exact - weight).sort_values(ascending=False, kind="stable").index[: 1000 - cash - weight.sum()]
    weight[up] += 1
    weight["USD"] = cash
    return weight / 1000


def whole_shares(nav: float, target: pd.Series, price: pd.Series) -> pd.Series:
    """Buy the targets at these prices, rounded down to whole shares; the rest is cash, to the cent."""
    shares = np.floor(nav * target.drop("USD") / price)
    shares["USD"] = round(nav - float(shares @ price), 2)
    return shares


def make_accounts(prices: pd.DataFrame, target: pd.Series) -> pd.Series:
    """Accounts that bought the model portfolio on a random day of the last 252 and have not traded since.

    Their value at the end is lognormal (median 150,000, sigma 1), cut at 20,000 and 2 million. Of Python's
    generator only `random()` is used: its sequence is guaranteed not to change between versions.
    """
    draw = random.Random(20081010).random
    size = NormalDist(math.log(150_000), 1.0)
    low, high = size.cdf(math.log(20_000)), size.cdf(math.log(2_000_000))
    days = prices.tail(252)
    accounts = {}
    for number in range(1, ACCOUNTS + 1):
        nav = math.exp(size.inv_cdf(low + (high - low) * draw()))
        day = days.iloc[int(draw() * len(days))]
        growth = float((target.drop("USD") * days.iloc[-1] / day).sum() + target["USD"])
        accounts[f"{number:04d}"] = whole_shares(round(nav / growth, 2), target, day)
    return pd.concat(accounts)


def make_test_data(source: Path) -> None:
    for name in ("port1", "portef1", "port3", "portef3"):
        shutil.copyfile(source / f"orlib/{name}.txt.gz", TESTS / f"{name}.txt.gz")
    with gzip.open(source / "lot_miqp_exact/instances.json.gz", "rt") as file:
        raw = {one["id"].partition("_")[2]: one for one in json.load(file)["instances"]}
    text = ",\n".join(json.dumps(raw[name] | {"id": name}) for name in INSTANCES)
    (TESTS / "lots.json").write_text(f"[\n{text}\n]\n", encoding="utf-8", newline="\n")


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, index_col=0, parse_dates=True)


def read_text(path: Path) -> pd.DataFrame:
    """Every figure as it is written, by symbol."""
    return pd.read_csv(path, dtype=str).set_index("symbol")


def write(table: pd.DataFrame, name: str, index: str | list[str] = "asset") -> None:
    table.to_csv(EXAMPLES / name, index_label=index, lineterminator="\n")


def decimal(price: float) -> Decimal:
    """The price as it is written in the raw file, not as its binary expansion."""
    return Decimal(repr(float(price)))


def plain(number: Decimal) -> str:
    """No exponent and no trailing zeros: 0.000001 instead of 1E-6."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity_text(quantity: float) -> str:
    """Whole shares as whole numbers, cash to the cent."""
    return f"{quantity:.2f}".removesuffix(".00")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
