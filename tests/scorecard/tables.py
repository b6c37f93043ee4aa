"""Row 7: a cell of a batch's table is spoilt; its portfolio says which, and the others do not change by a byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from equipoise import Rebalancer
from equipoise.constraints import (
    CashFloor,
    DriftBand,
    GroupLimit,
    HealthFactor,
    InitialMargin,
    InputError,
    LotSize,
    MinimumPosition,
    PoolCaps,
    Reserve,
    TradeLimit,
    WeightBounds,
)
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.problem.costs import FixedFee, HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from scorecard.figure import Result, Row, counted

BLANKS = (None, float("nan"), pd.NA, pd.NaT, "", Decimal("NaN"))
NO_NUMBERS: tuple[Any, ...] = (
    *("abc", "1_000", "1,000", "7_500_000e18", "0x10", "１２", "٣", "1 0", "--1", "nan", "inf", b"1", True, np.False_),
    *(float("inf"), float("-inf"), 1e308, -1e308, 1e101, 10**400, "1e400", "1e-999999999", 1e-320, -5e-324, 1e-101),
    *("9" * 5000, 1j, np.timedelta64(5, "D"), pd.Timestamp(0), [1.0], {}, object()),
)
NO_LABELS: tuple[Any, ...] = (None, float("nan"), pd.NA, "", 1, 1.5, True, b"BTC", " BTC", "BTC\t", "B\ud800", ("BTC",))


@dataclass(frozen=True)
class House:
    """A policy, a sound account's rows, its cash, and which of its columns may be blank."""

    rebalancer: Rebalancer
    account: Callable[[int], pd.DataFrame]
    numbers: tuple[str, ...]
    may_be_blank: frozenset[str]
    texts: tuple[str, ...]
    cash: str


def _rich(i: int) -> pd.DataFrame:
    drift = 1 + 0.1 * np.sin(i + np.arange(5))
    columns = {
        "quantity": np.array([40.0, 10.0, -20.0, 10.0, 100.0]) * drift.round(2),
        "price": [10.0, 40.0, 10.0, 30.0, 1.0],
        "target": [0.30, 0.35, -0.10, 0.35, 0.10],
        "threshold": [0.9, 0.7, 0.0, 0.5, 0.0],
        "rate": [0.1, 0.3, 0.15, 0.25, 0.0],
        "haircut": [0.02, 0.4, 0.0, 0.15, 0.0],
        "width": [0.3, 0.4, 0.3, 0.4, 0.5],
        "least": [-1.0, -1.0, -1.0, -1.0, -1.0],
        "volume": [5e3, 1e4, 2e4, 4e3, 1.0],
        "fee": [0.001, 0.002, 0.0, 0.001, 0.0],
        "volatility": [0.01, 0.03, 0.0, 0.02, 0.0],
        "carry": [0.0, 0.01, 0.0, 0.0, 0.0],
        "room": [1e3, 1e3, 1e3, 1e3, 1e3],
        "buffer": [1.0, 0.0, 0.0, 0.0, 0.0],
        "group": ["safe", "risky", "debt", "risky", "cash"],
    }
    return pd.DataFrame({"asset": ["BOND", "COIN", "LOAN", "STOCK", "USD"], **columns})


RICH = House(
    Rebalancer(
        cash="USD",
        costs=[ProportionalCost("fee"), ImpactCost("volatility", "volume"), HoldingCost(long="carry"),
               QuadraticCost(1e-3, "volume")],
        constraints=[HealthFactor(1.05, "threshold"), InitialMargin("rate", "haircut"), DriftBand(absolute="width"),
                     WeightBounds(lower="least"), TradeLimit(0.5, "volume"), PoolCaps(supply="room"),
                     Reserve("buffer"), GroupLimit("group", upper=5.0), CashFloor(-1.0)],
    ),
    _rich,
    ("quantity", "price", "target", "threshold", "rate", "haircut", "width", "least", "volume", "fee", "volatility",
     "carry", "room", "buffer"),
    frozenset({"threshold", "rate", "carry", "room", "buffer"}),
    ("group",),
    "USD",
)  # fmt: skip


def _lots(i: int) -> pd.DataFrame:
    columns = {
        "quantity": [10.0 + i, 20.0, 500.0],
        "price": [30.0, 20.0, 1.0],
        "target": [0.4, 0.4, 0.2],
        "lot": [1.0, 5.0, 0.0],
        "smallest": [10.0, 20.0, 0.0],
        "largest": [1e4, 1e4, 1e4],
        "ticket": [0.01, 0.02, 0.0],
        "position": [1.0, 1.0, 0.0],
    }
    return pd.DataFrame({"asset": ["A", "B", "USD"], **columns})


LOTS = House(
    Rebalancer(
        cash="USD",
        costs=[FixedFee("ticket")],
        constraints=[LotSize("lot", min_notional="smallest", max_notional="largest"),
                     MinimumPosition(notional="position")],
    ),
    _lots,
    ("quantity", "price", "target", "lot", "smallest", "largest", "ticket", "position"),
    frozenset({"largest", "ticket", "position"}),
    (),
    "USD",
)  # fmt: skip


def _accounts(i: int) -> pd.DataFrame:
    columns = {
        "account": ["x", "x", "y", "y"],
        "quantity": [1.0, 4000.0 + 10 * i, 0.5, 1000.0],
        "price": [3000.0, 1.0, 3000.0, 1.0],
        "target": [0.3, 0.3, 0.2, 0.2],
        "exposure": [1.0, 1.0, 1.0, 1.0],
        "fee": [0.001, 0.0, 0.002, 0.0],
    }
    return pd.DataFrame({"asset": ["ETH", "USD", "ETH", "USD"], **columns})


ACCOUNTS = House(
    Rebalancer(
        cash={"x": "USD", "y": "USD"},
        costs=[ProportionalCost("fee")],
        transfers=[Transfer("x/USD", "y/USD", cost=0.001)],
    ),
    _accounts,
    ("quantity", "price", "target", "exposure", "fee"),
    frozenset({"exposure"}),
    ("account",),
    "USD",
)
HOUSES = (RICH, RICH, RICH, LOTS, ACCOUNTS)
#: Columns of which the cash's own cell is not read.
NOT_OF_CASH = {"rate", "width", "least", "volume", "fee", "volatility", "room", "lot", "smallest", "largest", "ticket",
               "position"}  # fmt: skip


@dataclass(frozen=True)
class Spoilt:
    """An account with a wrong cell: what its message must say, in full; None: the blank has a meaning."""

    table: pd.DataFrame
    says: tuple[str, ...] | None


def _named(house: House, table: pd.DataFrame, row: int) -> str:
    asset = table["asset"].iloc[row]
    return repr(f"{table['account'].iloc[row]}/{asset}" if "account" in table else asset)


def _cell(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """A number's cell that is none."""
    column = rng.choice(house.numbers)
    rows = [i for i in range(len(table)) if column not in NOT_OF_CASH or table["asset"].iloc[i] != house.cash]
    row, blank = rng.choice(rows), rng.random() < 0.3
    cells = table[column].astype(object)
    cells[row] = rng.choice(BLANKS if blank else NO_NUMBERS)
    spoilt = table.assign(**{column: cells})
    # Where nothing but the cash may be blank, or all, it has a meaning.
    if blank and column in house.may_be_blank:
        return Spoilt(spoilt, None)
    return Spoilt(spoilt, (f"asset {_named(house, table, row)}", f"column {column!r}"))


def _hostile(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """A number that is one, but not for this column."""
    column, value = rng.choice([("price", 0.0), ("price", -3.0), ("quantity", 1e99), ("target", 7.0), ("fee", -0.1),
                                ("lot", -1.0), ("threshold", 1.5), ("volume", -1.0), ("largest", 0.0)])  # fmt: skip
    if column not in house.numbers:
        return _cell(house, table, rng)
    cells = table[column].astype(float)
    cells[0] = value
    if column == "quantity":
        cells *= 1e2
    says = (f"column {column!r}",) if column == "target" else (f"asset {_named(house, table, 0)}", f"column {column!r}")
    return Spoilt(table.assign(**{column: cells}), says)


def _label(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """An asset's label, or an account's, that is none, or another's."""
    row = rng.randrange(len(table))
    column = "account" if "account" in house.texts and rng.random() < 0.5 else "asset"
    cells = table[column].astype(object)
    cells[row] = rng.choice(NO_LABELS)
    return Spoilt(table.assign(**{column: cells}), (f"column {column!r}",))


def _doubled(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """A row that stands there twice."""
    row = rng.randrange(len(table))
    said = (f"asset {_named(house, table, row)}", "column 'asset'", "twice")
    return Spoilt(pd.concat([table, table.iloc[[row]]], ignore_index=True), said)


def _missing(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """The cash's row is not there."""
    rows = table[table["asset"] != house.cash] if "account" not in table else table[table.index != 1]
    return Spoilt(rows.reset_index(drop=True), ("cash", "has no row"))


def _swapped(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """Two columns whose contents changed places."""
    one, other = rng.choice([("price", "quantity"), ("target", "price"), ("asset", "price")])
    return Spoilt(table.assign(**{one: table[other].astype(object), other: table[one].astype(object)}), ("column",))


def _group(house: House, table: pd.DataFrame, rng: random.Random) -> Spoilt:
    """A label of a group that is no text."""
    if "group" not in house.texts:
        return _cell(house, table, rng)
    row, value = rng.randrange(len(table)), rng.choice([1.5, True, b"x", ("a",)])
    cells = table["group"].astype(object)
    cells[row] = value
    return Spoilt(table.assign(group=cells), (f"asset {_named(house, table, row)}", "column 'group'"))


WAYS = (*(_cell,) * 8, _hostile, _label, _doubled, _missing, _swapped, _group)


def _bytes(plans: Any, names: list[str]) -> bytes:
    results, orders = plans.results.loc[names], plans.orders.reset_index()
    return (results.to_csv() + orders[orders["portfolio_id"].isin(names)].to_csv(index=False)).encode()


def _batch(house: House, seed: int, spoilt: dict[str, Spoilt]) -> list[str]:
    """Spoilt accounts among sound ones: what is wrong with the answer."""
    rng = random.Random(seed)
    sound = {f"S{i}": house.account(i) for i in range(2)}
    every = [*sound.items(), *((name, one.table) for name, one in spoilt.items())]
    rng.shuffle(every)
    order = [name for name, _ in every if name in sound]

    def solved(accounts: list[tuple[str, pd.DataFrame]]) -> Any:
        tables = [table.astype(object).assign(portfolio_id=name) for name, table in accounts]
        table = pd.concat(tables, ignore_index=True)
        for column in house.numbers:  # floats where all are, as a file would give them
            found = table[column].infer_objects()
            table[column] = found if found.dtype.kind in "if" else table[column]
        return house.rebalancer.solve_batch(table)

    plans = solved(every)
    wrong = []
    if _bytes(plans, order) != _bytes(solved([(name, sound[name]) for name in order]), order):
        wrong.append(f"{list(spoilt)}: the neighbours changed")
    for name, one in spoilt.items():
        status, message = plans.results.loc[name, ["status", "message"]]
        if one.says is None:
            if status == "INVALID_INPUT":
                wrong.append(f"{name}: a blank with a meaning was refused: {message}")
        elif status != "INVALID_INPUT" or not all(part in message for part in (f"portfolio {name!r}", *one.says)):
            wrong.append(f"{name}: {status}, asked for {one.says}: {message[:160]}")
    return wrong


def _columns(house: House) -> list[str]:
    """A column that the table does not have, or has twice, is named for every portfolio, or refused at once."""
    table, wrong = house.account(0).assign(portfolio_id="P"), []
    for column in (*house.numbers, *house.texts):
        if column == "exposure":
            continue
        try:
            plans = house.rebalancer.solve_batch(table.drop(columns=column))
            told = plans.results["message"].item()
        except InputError as error:
            told = str(error)
        if f"column {column!r}" not in told and "column" not in told:
            wrong.append(f"without {column}: {told[:100]!r}")
    return wrong


def mutated_tables(count: int) -> Result:
    rng, missed, done = random.Random(7), [], 0
    for house in (RICH, LOTS, ACCOUNTS):
        missed += _columns(house)
    while done < count:
        house = rng.choice(HOUSES)
        spoilt = {}
        for _ in range(min(rng.randint(1, 12), count - done)):
            spoilt[f"M{done}"] = rng.choice(WAYS)(house, house.account(done % 5), rng)
            done += 1
        missed += _batch(house, done, spoilt)
    return counted(missed, count)


ROWS = [
    Row(
        7, "mutations of tables: not named, accepted in silence, or felt by neighbours", "0", mutated_tables, 100, 5000
    ),
]
