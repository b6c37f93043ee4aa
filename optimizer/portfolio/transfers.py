"""Transfers between accounts, and the table of a portfolio that lies in several.

A row of such a table is (account, asset); its label is "account/asset". `underlying` says of what a row is an
exposure (the asset unless given: of a debt of USDC it is USDC, of a perpetual the coin). What is on its way between
accounts is a row of the account "in transit", which is counted once and can be used by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import blank, check_number, encodable, floats
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.risk.labelled_arrays import is_frame

if TYPE_CHECKING:
    import pandas as pd

#: The account of what is on its way.
IN_TRANSIT = "in transit"


@dataclass(frozen=True)
class Transfer:
    """Units of one asset may be moved from the row `source` to the row `destination`, labels "account/asset".

    Withdrawals, deposits and bridges move a holding; supplying moves it into a lending account, and withdrawing out
    of it; a debt's row is where borrowing comes from and where repaying goes to. One unit that leaves is one unit
    that arrives, so that both rows have the same price.

    cost: the part of the moved value that it costs (0.001 is 10 basis points), paid out of the cash of the account
    `paid_by`: unless given that which it leaves, else that which it reaches, else the settlement cash. limit: the
    most that may be moved, in units. two_way: also back, at the same cost and limit (unless `paid_by` is given, paid by
    the account that the way back leaves). delay: the hours until it
    arrives, if that is after the plan's end: what was sent is then a row "in transit" of its own, counted in the
    NAV and in every exposure, but not at its destination. With 0 it arrives before it is used there.
    """

    source: str
    destination: str
    cost: float = 0.0
    limit: float = math.inf
    two_way: bool = False
    delay: float = 0.0
    paid_by: str | None = None

    def __post_init__(self) -> None:
        for end, argument in ((self.source, "source"), (self.destination, "destination")):
            if not isinstance(end, str) or "/" not in end:
                raise InputError("must be the label of a row, 'account/asset'", column=argument, value=end)
        check_number(self.cost, "cost", at_least=0.0)
        check_number(self.delay, "delay", at_least=0.0)
        if not (isinstance(self.limit, float) and self.limit == math.inf):
            check_number(self.limit, "limit", at_least=0.0)
        if self.cost >= 1:
            raise InputError("is a part of what is moved, below 1", column="cost", value=self.cost)
        if self.source == self.destination:
            raise InputError("must lead to another row than its source", column="destination", value=self.destination)
        if self.two_way and self.delay:
            raise InputError(
                "a transfer with a delay goes one way: give one for each direction", column="two_way", value=True
            )

    @property
    def label(self) -> str:
        return f"{self.source} -> {self.destination}"

    @property
    def ways(self) -> tuple[Transfer, ...]:
        """The transfers that go one way: of one that goes two, the way back is paid where that leaves."""
        there = replace(self, two_way=False)
        return (there, replace(there, source=self.destination, destination=self.source)) if self.two_way else (there,)

    @property
    def arrival(self) -> str:
        """The row that it reaches by the plan's end."""
        return f"{IN_TRANSIT}/{self.destination.split('/', 1)[1]}" if self.delay else self.destination


def route(transfer: Transfer, account: Portfolio) -> tuple[int, int]:
    """The positions of the rows that a transfer leaves and reaches. Raises InputError where it does not fit."""
    accounts = sorted({str(label) for label in account.labels("account")})
    for end, argument in ((transfer.source, "source"), (transfer.destination, "destination")):
        if (name := end.split("/", 1)[0]) not in accounts:
            raise InputError(
                f"a transfer names an unknown account {name!r}; there are {', '.join(accounts)}",
                column=argument,
                value=end,
            )
        if end not in account.assets:
            raise InputError(
                "a transfer names a row that the table does not have; add one with quantity 0",
                asset=end,
                column=argument,
            )
    source, destination = (account.assets.index(end) for end in (transfer.source, transfer.arrival))
    underlying = account.labels("underlying")
    if underlying[source] != underlying[destination]:
        raise InputError(
            f"a transfer moves one asset, but leaves {underlying[source]} and reaches {underlying[destination]}; an "
            "exchange is a trade (or give both rows the same underlying)",
            asset=transfer.source,
            column="destination",
            value=transfer.destination,
        )
    if account.exact_price[source] != account.exact_price[destination]:
        raise InputError(
            f"the price is another one in {transfer.arrival}, {account.price[destination]:.10g}: one asset that can be "
            "moved has one price",
            asset=transfer.source,
            column="price",
            value=account.price[source],
        )
    return source, destination


def portfolio(
    table: pd.DataFrame,
    cash: Mapping[str, str],
    transfers: Sequence[Transfer],
    *,
    asset_columns: Collection[str] = ("exposure",),
    name: str | None = None,
    universe: Iterable[str] = (),
) -> Portfolio:
    """The Portfolio of a table with the columns `account` and `asset` (or that as its index), with "account/asset" as
    labels. `cash`: the asset that is the cash of each account, the settlement cash first. `asset_columns`: those that a
    row in transit has from the row that was left.

    Raises InputError for rows without an account, and whatever `Portfolio.from_table` refuses.
    """
    try:
        rows = _labelled(table)
        labels = {account: f"{account}/{asset}" for account, asset in cash.items()}
        accounts = set(rows["account"])
        for account, label in labels.items():
            if account not in accounts:
                raise InputError(
                    f"names an account that the table does not have; it has {', '.join(sorted(accounts))}",
                    column="cash",
                    value=account,
                )
            if label not in rows.index:
                raise InputError(
                    "the account's cash has no row; add one (quantity 0 is fine)", asset=label, column="asset"
                )
        rows = _with_transit(rows, transfers, asset_columns)
        found = Portfolio.from_table(rows, next(iter(labels.values())), universe=universe)
        return replace(found, name=name, cashes={account: found.assets.index(x) for account, x in labels.items()})
    except InputError as error:
        raise error.within(name) from None


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    if not is_frame(table):
        raise InputError("a portfolio is a DataFrame with the columns account, asset, quantity, price and target")
    levels = [level for level in table.index.names if level in ("account", "asset")]
    rows = table.reset_index(level=levels) if levels else table.copy()
    missing = sorted({"account", "asset"}.difference(rows.columns))
    if missing:
        raise InputError("a table of several accounts has a column (or index level) of this name", column=missing[0])
    own = list(rows["asset"])
    for position, (account, asset) in enumerate(zip(rows["account"], own, strict=True)):
        _check_labels(account, asset, position)
    given = rows["underlying"] if "underlying" in rows.columns else own
    rows["underlying"] = [asset if blank(x) else x for asset, x in zip(own, given, strict=True)]
    rows["asset"] = [f"{account}/{asset}" for account, asset in zip(rows["account"], own, strict=True)]
    return rows.set_index("asset")


def _check_labels(account: object, asset: object, position: int) -> None:
    if not _is_name(account) or "/" in account or account != account.strip():
        raise InputError(
            "the row's account must be a name (text, without '/'); say where it is held or owed",
            asset=f"row {position + 1}" if blank(asset) else asset,
            column="account",
            value=account,
        )
    if not _is_name(asset):
        raise InputError("the row has no asset label; name it", column="asset", value=asset)
    if asset != asset.strip():
        raise InputError("the label has white space around it; remove it", asset=asset, column="asset")
    for column, label in (("account", account), ("asset", asset)):
        if not encodable(label):
            raise InputError("has half of a surrogate pair, which no file holds", asset=asset, column=column)


def _is_name(label: object) -> TypeGuard[str]:
    return isinstance(label, str) and not blank(label)


def _with_transit(rows: pd.DataFrame, transfers: Sequence[Transfer], asset_columns: Collection[str]) -> pd.DataFrame:
    """The table with a row for what transfers with a delay put on its way, unless the table has that row itself.

    Nothing is there yet. It is the asset that left, with its price and `asset_columns`; in all other numbers it has 0,
    for on its way it is no collateral, earns nothing and has no room.
    """
    import pandas as pd

    new: dict[str, dict[str, object]] = {}
    for transfer in transfers:
        if not transfer.delay or transfer.arrival in rows.index or transfer.source not in rows.index:
            continue
        cells = {column: _moving(rows, transfer.source, column, asset_columns) for column in rows.columns}
        cells |= {"account": IN_TRANSIT, "quantity": 0, "target": 0}
        _check_same(new.setdefault(transfer.arrival, cells), cells, transfer.arrival)
    if not new:
        return rows
    more = pd.DataFrame.from_dict(new, orient="index", columns=list(rows.columns)).astype(object)
    joined = pd.concat([rows.astype(object), more])
    joined.index.name = rows.index.name
    return joined


def _check_same(known: Mapping[str, object], cells: Mapping[str, object], arrival: str) -> None:
    """That two transfers put the same on its way."""
    for column, cell in cells.items():
        if cell != known[column] and not (blank(cell) and blank(known[column])):
            raise InputError(
                "rows that reach it differ in this column; add a row of this account and asset to the table",
                asset=arrival,
                column=column,
                value=cell,
            )


def _moving(rows: pd.DataFrame, source: str, column: str, asset_columns: Collection[str]) -> object:
    """What the row in transit has in this column."""
    if column in ("price", "underlying") or column in asset_columns:
        return rows.at[source, column]
    cells = rows[column].to_numpy(object)
    _, wrong = floats(cells)
    return None if any(not blank(cell) for cell in cells[wrong]) else 0
