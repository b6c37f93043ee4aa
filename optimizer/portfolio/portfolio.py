"""From a table of holdings to arrays with labels, checked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST, SMALLEST, Cells, blank, encodable, exact, floats, number
from equipoise.constraints.pieces import Array, Indices, Mask
from equipoise.constraints.rules.rule import Numbers
from equipoise.optimizer.portfolio.columns import WRONG
from equipoise.optimizer.portfolio.columns import label as label_of
from equipoise.optimizer.risk.labelled_arrays import is_frame

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd

    from equipoise.optimizer.risk.factored import FactoredRisk

#: Targets must add up to 1 within this.
TARGET_SUM_TOLERANCE = 1e-9
_PLAIN_NUMBER = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"


def read_table(path: str | PathLike[str]) -> pd.DataFrame:
    """A CSV file of holdings, with its labels read as the text that they are.

    pandas on its own reads the asset `NA` as missing, `TRUE` as a boolean and `001` as 1. Here the columns
    `asset` and `portfolio_id` are text, other columns are numbers only where every cell is a plain number
    (without leading zeros), and only an empty cell is missing. The index is `asset`, or for a
    batch (`portfolio_id`, `asset`) stay columns.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, header=None, keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:  # such as a row with too many cells
        raise InputError(f"{path} is not a table: {str(error).strip()}") from None
    header = _header(path, table.iloc[0])
    table = table.iloc[1:].reset_index(drop=True).set_axis(header, axis=1)
    for name in header:
        # A column of labels such as 001 stays text; one with a blank among whole numbers becomes fractions.
        cells = table[name].dropna()
        if name not in ("asset", "portfolio_id") and len(cells) and cells.str.fullmatch(_PLAIN_NUMBER).all():
            found = pd.to_numeric(table[name])
            # Not every version of pandas gives the nearest float.
            table[name] = found if found.dtype.kind in "iu" else [float(cell) for cell in table[name]]
    return table if "portfolio_id" in table.columns else table.set_index("asset")


def _header(path: str | PathLike[str], cells: Iterable[object]) -> list[str]:
    """The names of the columns, checked."""
    header = ["" if blank(cell) else str(cell) for cell in cells]
    for name in header:
        if header.count(name) > 1 or not name:
            what = f"the header names the column {name!r} twice" if name else "a column has no name"
            raise InputError(f"{path}: {what}; every column needs a name of its own", column=name or None)
    if "asset" not in header:
        raise InputError(f"{path} has no column 'asset'", column="asset")
    return header


@dataclass(frozen=True, eq=False)
class Portfolio:
    """Holdings, prices and targets of one portfolio, as arrays in the order of the sorted labels.

    The order is by label so that a table's own order cannot change a single bit of the answer; `order` maps
    back. `quantity` is in signed units (negative: borrowed or short), `price` in cash a unit, `target` in
    fractions of NAV. NAV = Σ quantity·price, cash included, before trading. This is the `Account` that
    rules see.
    """

    name: str | None
    assets: tuple[str, ...]
    cash: int
    quantity: Array
    price: Array
    target: Array
    nav: float
    order: Indices
    columns: Mapping[str, Cells] = field(repr=False)
    universe: frozenset[str] = field(repr=False, default=frozenset())
    risk: FactoredRisk | None = field(repr=False, default=None)
    #: With several accounts: the cash of each, the settlement cash first (see `accounts`).
    cashes: Mapping[str, int] = field(repr=False, default_factory=dict)

    @classmethod
    def from_table(
        cls, table: pd.DataFrame, cash: str, *, name: str | None = None, universe: Iterable[str] = ()
    ) -> Portfolio:
        """Parse and check a table with the columns quantity, price and target, indexed by asset (or with a
        column `asset`). `cash` names the settlement cash's row; its price is 1. `universe` holds further
        labels that rules may name without being in this table (a batch's other assets).

        Raises InputError for missing, doubled or non-text labels, cells that are not finite numbers,
        prices that are not positive, targets that do not add up to 1, and a NAV that is not positive.
        """
        try:
            return cls._parsed(table, cash, name, frozenset(universe))
        except InputError as error:
            raise error.within(name) from None

    @classmethod
    def _parsed(cls, table: pd.DataFrame, cash: str, name: str | None, universe: frozenset[str]) -> Portfolio:
        if not is_frame(table):
            raise InputError(
                "a portfolio is a DataFrame with the columns quantity, price and target", value=type(table)
            )
        doubled = [str(c) for c in table.columns[table.columns.duplicated()]]
        if doubled:
            raise InputError("the table has this column twice; rename or drop one", column=doubled[0])
        if "asset" in table.columns:
            table = table.set_index("asset")
        labels = _checked_labels(list(table.index), cash)
        order = np.array(sorted(range(len(labels)), key=labels.__getitem__), dtype=np.intp)
        assets = tuple(labels[i] for i in order)
        columns = {str(c): np.asarray(table[c], dtype=object)[order] for c in table.columns}
        quantity, price, target = (_column(columns, c, assets) for c in ("quantity", "price", "target"))
        at = assets.index(cash)
        _check_prices(price, assets, at)
        if abs(total := float(np.sum(target)) - 1.0) > TARGET_SUM_TOLERANCE:
            raise InputError(
                f"the targets add up to {total + 1.0:.10g}, not 1; correct them, or divide them by their sum",
                column="target",
            )
        nav = _net_asset_value(quantity, price, assets)
        return cls(name, assets, at, quantity, price, target, nav, order, columns, universe | frozenset(assets))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.assets),)

    @cached_property
    def before(self) -> Array:
        """Weights before trading: quantity·price / NAV."""
        return self.quantity * self.price / self.nav

    @cached_property
    def exact_quantity(self) -> tuple[Fraction, ...]:
        """The quantities as the decimal numbers that stand in the table."""
        return tuple(exact(x) for x in self.columns["quantity"])

    @cached_property
    def exact_price(self) -> tuple[Fraction, ...]:
        return tuple(exact(x) for x in self.columns["price"])

    @property
    def risk_factors(self) -> Array:
        return self._needed_risk().factors

    @property
    def risk_specific(self) -> Array:
        return self._needed_risk().specific

    def _needed_risk(self) -> FactoredRisk:
        if self.risk is None:
            raise InputError("this rule needs a risk model; give the Rebalancer one (risk=...)")
        return self.risk

    def numbers(
        self,
        given: Numbers,
        argument: str,
        *,
        cash: float | None = None,
        missing: float | None = None,
        blank: bool | Mask = False,
        where: Mask | None = None,
    ) -> Array:
        """One finite number an asset: see `Account.numbers`."""
        asked = np.full(self.shape, True) if where is None else where.copy()
        if cash is not None:
            asked[list(self._all_cash)] = False
        other = 0.0 if missing is None else missing
        if isinstance(given, str):
            if given not in self.columns:
                raise InputError(
                    f"{argument} names a column that the table does not have; it has {', '.join(self.columns)}",
                    column=given,
                )
            values = _column(self.columns, given, self.assets, asked=asked, empty=blank, other=other)
        elif isinstance(given, Mapping):
            values = self._mapped(given, argument, other, asked & (missing is None))
        else:
            values = np.full(len(self.assets), number(given, None, argument))
        if cash is not None:
            values[list(self._all_cash)] = cash
        return values

    def _mapped(self, given: Mapping[str, float], argument: str, other: float, needed: Mask) -> Array:
        """A mapping's numbers, `other` where it has none and none is needed."""
        known(given, argument, self.universe)
        values = np.full(self.shape, other)
        for i, asset in enumerate(self.assets):
            if asset in given:
                values[i] = number(given[asset], asset, argument)
            elif needed[i]:
                raise InputError(f"{argument} has no entry for this asset; add it", asset=asset, column=argument)
        return values

    @property
    def _all_cash(self) -> tuple[int, ...]:
        return tuple(self.cashes.values()) or (self.cash,)

    def cash_of(self, account: str | None) -> int:
        """The position of this account's cash (None: the settlement cash)."""
        if account is None:
            return self.cash
        if account not in self.cashes:
            has = f"there are {', '.join(self.cashes)}" if self.cashes else "the portfolio is not in accounts"
            raise InputError(f"names an account that has no cash of its own; {has}", column="account", value=account)
        return self.cashes[account]

    def labels(self, column: str) -> tuple[str | None, ...]:
        if column not in self.columns:
            raise InputError(f"the table has no such label column; it has {', '.join(self.columns)}", column=column)
        cells = self.columns[column]
        found = [label_of(cell, whole=True) for cell in cells]
        for asset, cell, label in zip(self.assets, cells, found, strict=True):
            # 1.0 may have been 001 or 1 once, True the text TRUE: what it was cannot be known.
            if label == WRONG:
                raise InputError(
                    "a label must be text; read the column as text, or use labels that are no numbers",
                    asset=asset,
                    column=column,
                    value=cell,
                )
        return tuple(label if isinstance(label, str) else None for label in found)

    def members(self, column: str) -> dict[str, Mask]:
        labels = self.labels(column)
        found = sorted({label for label in labels if label is not None})
        place = {label: k for k, label in enumerate(found)}
        each = np.array([-1 if label is None else place[label] for label in labels], dtype=np.intp)
        return {label: each == k for label, k in place.items()}

    def exposure(self, column: str) -> Array:
        """What a unit of value counts in sums by this label column: see `Account.exposure`."""
        given = column == "underlying" and "exposure" in self.columns
        return self.numbers("exposure", "exposure", missing=1.0, blank=True) if given else np.ones(self.shape)

    def positions(self, assets: Iterable[str] | None, argument: str) -> Mask:
        if assets is None:
            mask = np.full(self.shape, True)
            mask[list(self._all_cash)] = False
            return mask
        named = known(assets, argument, self.universe)
        return np.array([asset in named for asset in self.assets])

    def first(self, wrong: Mask) -> int:
        return int(np.argmax(wrong))


def known(named: object, argument: str, universe: frozenset[str]) -> set[str]:
    """The labels that a rule names. It may name assets of the universe that a portfolio does not hold, but not a
    slip of the pen."""
    if isinstance(named, str) or not isinstance(named, Iterable):
        raise InputError("must be a list of assets, not one text or number", column=argument, value=named)
    labels = set(named)
    for asset in sorted(labels - universe, key=str):
        raise InputError(
            "names an asset that neither the table nor the risk model has; correct or remove it",
            asset=asset,
            column=argument,
        )
    return labels


def _checked_labels(labels: list[Any], cash: str) -> list[str]:
    seen: dict[str, str] = {}
    for position, label in enumerate(labels):
        if blank(label):
            raise InputError(
                f"row {position + 1} has no asset label; name it (pandas reads the text NA as missing: "
                "equipoise.read_table does not)",
                column="asset",
            )
        if not isinstance(label, str):
            raise InputError(
                "an asset's label must be text; read labels as text (equipoise.read_table, or dtype=str), so "
                "that 001 and TRUE stay what they are",
                asset=label,
                column="asset",
            )
        if not encodable(label):
            raise InputError("the label has half of a surrogate pair, which no file holds", asset=label, column="asset")
        if label != label.strip():
            raise InputError("the label has white space around it; remove it", asset=label, column="asset")
        same = unicodedata.normalize("NFC", label)
        if same in seen:
            other = "twice" if seen[same] == label else f"as {seen[same]!r} too, in another Unicode form"
            raise InputError(
                f"the asset stands in the table {other}; add the rows up or rename one",
                asset=label,
                column="asset",
            )
        seen[same] = label
    if cash not in labels:
        raise InputError(
            "the settlement cash has no row; add one with price 1 (quantity 0 is fine)",
            asset=cash,
            column="asset",
        )
    return labels


def _check_prices(price: Array, assets: tuple[str, ...], cash: int) -> None:
    unpriced = ~(price > 0)
    if unpriced.any():
        i = int(np.argmax(unpriced))
        raise InputError(
            "a price must be above zero; correct it or leave the asset out",
            asset=assets[i],
            column="price",
            value=price[i],
        )
    if price[cash] != 1.0:
        raise InputError(
            "the settlement cash is the unit of account: its price must be 1 (quote all prices in it)",
            asset=assets[cash],
            column="price",
            value=price[cash],
        )


def _net_asset_value(quantity: Array, price: Array, assets: tuple[str, ...]) -> float:
    value = quantity * price
    nav = float(np.sum(value))
    if nav > LARGEST:
        i = int(np.argmax(np.abs(value)))
        raise InputError(
            f"quantity times price is too large to add up: the net asset value must be at most {LARGEST:g}; use "
            "another unit of account",
            asset=assets[i],
            column="quantity",
            value=quantity[i],
        )
    if 0 < nav < SMALLEST:
        raise InputError(
            f"the net asset value must be at least {SMALLEST:g}; use another unit of account", column="price"
        )
    if nav <= 0:
        raise InputError(
            f"the net asset value is {nav:g}: holdings less debts must be above zero to be rebalanced",
            column="quantity",
        )
    return nav


def _column(
    columns: Mapping[str, Cells],
    column: str,
    assets: tuple[str, ...],
    *,
    asked: Mask | bool = True,
    empty: Mask | bool = False,
    other: float = 0.0,
) -> Array:
    """A column as finite floats. Where it is not `asked` for, or blank and may be `empty`, it is `other`."""
    if column not in columns:
        raise InputError(f"the table has no such column; it has {', '.join(columns) or 'none at all'}", column=column)
    cells = columns[column]
    values, wrong = floats(cells)
    can_be_empty = np.broadcast_to(empty, cells.shape)
    for i in np.flatnonzero(wrong & asked):
        if not blank(cells[i]):
            values[i] = number(cells[i], assets[i], column)
        elif can_be_empty[i]:
            values[i] = other
        else:
            raise InputError(
                "the cell is blank; give every asset a number (0, or a limit too wide to matter, where that is meant)",
                asset=assets[i],
                column=column,
            )
    return np.where(asked, values, other)
