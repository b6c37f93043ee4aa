"""Many portfolios of the same number of assets, as arrays (B, n): the account that rules see when a batch is made.

What `Portfolio` is for one, `Stack` is for B of them. Rules, costs and risk models are written for the last axis,
so that the same lines serve both, and give the same bits.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.numbers import LARGEST, SMALLEST, Cells, blank, encodable, number
from equipoise.constraints.pieces import Array, Fields, Index, Indices, Mask, Place
from equipoise.constraints.rules.rule import Numbers
from equipoise.optimizer.portfolio.columns import BLANK, WRONG, Coded, Column, coded, floats
from equipoise.optimizer.portfolio.portfolio import TARGET_SUM_TOLERANCE, Portfolio
from equipoise.optimizer.portfolio.portfolio import known as checked_names
from equipoise.optimizer.risk.factored import FactoredRisk, same

if TYPE_CHECKING:
    import pandas as pd
    from pandas.api.extensions import ExtensionArray


class Odd(NamedTuple):
    """A portfolio that no stack takes: its place in the input's order, its id, and its rows of the table."""

    place: int
    name: object
    rows: Indices


@dataclass(frozen=True, eq=False)
class Source:
    """The long table that stacks were made of, all labels in sorted order, and those of them that rules may name.

    Columns become numbers when they are first asked for.
    """

    table: pd.DataFrame
    universe: tuple[str, ...]
    known: frozenset[str]
    _numbers: dict[str, tuple[Array, Mask]] = field(default_factory=dict)

    @cached_property
    def codes(self) -> dict[str, int]:
        return {label: code for code, label in enumerate(self.universe)}

    def floats(self, column: str) -> tuple[Array, Mask]:
        """See `cells.floats`. Raises NotStackable for a column that the table does not have."""
        if column not in self._numbers:
            if column not in self.columns:
                raise NotStackable
            self._numbers[column] = floats(self.table[self.columns[column]])
        return self._numbers[column]

    @cached_property
    def columns(self) -> dict[str, Hashable]:
        """The columns of a portfolio by their names as text."""
        return {str(name): name for name in self.table.columns if name not in ("portfolio_id", "asset")}

    def cells(self, rows: Indices) -> dict[str, Cells]:
        """All columns at these rows, as they stand in the table."""
        return {name: np.asarray(cells.take(rows), dtype=object) for name, cells in self._cells.items()}

    @cached_property
    def _cells(self) -> dict[str, ExtensionArray]:
        return {text: self.table[name].array for text, name in self.columns.items()}


@dataclass(frozen=True, eq=False)
class Stack:
    """B portfolios of n assets each; in every array (B, n) a row is a portfolio, in the order of its sorted labels.

    `names` are the portfolios' ids (B,), `places` where they come in the input's order, and `rows` positions in the
    table. Asset j of portfolio i has the label `universe[codes[i, j]]`. Quantities, prices and targets are as in
    `Portfolio`; `nav` is (B, 1). `cash` is an index: `array[stack.cash]` are the B entries of the settlement cash.
    Where one portfolio would raise an InputError, a stack raises NotStackable with the portfolios that do.
    """

    names: tuple[str, ...]
    places: Indices
    codes: Indices
    cash: tuple[Indices, Indices]
    quantity: Array
    price: Array
    target: Array
    nav: Array
    rows: Indices
    source: Source = field(repr=False)
    labelled: Mapping[str, Coded] = field(repr=False)
    risk: FactoredRisk | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def universe(self) -> tuple[str, ...]:
        return self.source.universe

    @cached_property
    def assets(self) -> Cells:
        """The labels (B, n)."""
        return np.array(self.universe, dtype=object)[self.codes]

    @cached_property
    def before(self) -> Array:
        """Weights before trading: quantity·price / NAV."""
        return self.quantity * self.price / self.nav

    @property
    def risk_factors(self) -> Array:
        return self._needed_risk().factors

    @property
    def risk_specific(self) -> Array:
        return self._needed_risk().specific

    def _needed_risk(self) -> FactoredRisk:
        if self.risk is None:
            raise NotStackable
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
            asked[self.cash] = False
        other = 0.0 if missing is None else missing
        if isinstance(given, str):
            column, strange = self.source.floats(given)
            values, wrong = np.take(column, self.rows), np.take(strange, self.rows)
            empty = np.isnan(values) & ~wrong & blank
            wrong = (wrong | np.isnan(values)) & asked & ~empty
            values[empty | ~asked] = other
        elif isinstance(given, Mapping):
            values, wrong = self._mapped(given, argument, missing is None, other, asked)
        else:
            values, wrong = np.full(self.shape, number(given, None, argument)), None
        if wrong is not None and wrong.any():
            raise NotStackable(wrong.any(axis=1))
        if cash is not None:
            values[self.cash] = cash
        return values

    def _mapped(
        self, given: Mapping[str, float], argument: str, all_named: bool, other: float, asked: Mask
    ) -> tuple[Array, Mask]:
        """A mapping's numbers, `other` where it has none, and the mask of assets whose number is wrong or absent."""
        size = len(self.universe)
        values, absent = np.full(size, other), np.full(size, all_named)
        wrong = np.zeros(size, dtype=bool)
        for asset in checked_names(given, argument, self.source.known):
            code = self.source.codes[asset]
            absent[code] = False
            try:
                values[code] = number(given[asset], asset, argument)
            except InputError:  # if anybody holds it
                wrong[code] = True
        return values[self.codes], (absent[self.codes] & asked) | wrong[self.codes]

    def labels(self, column: str) -> Cells:
        """The labels of one of the columns that the stack was made for (B, n), None where there is none."""
        found = self._labelled(column)
        return np.array([*found.names, None], dtype=object)[found.codes]

    def members(self, column: str) -> dict[str, Mask]:
        found = self._labelled(column)
        # The portfolios have the same labels: those of the first are those of all.
        return {found.names[code]: found.codes == code for code in np.unique(found.codes[:1]) if code >= 0}

    def _labelled(self, column: str) -> Coded:
        if column not in self.labelled:
            raise NotStackable
        return self.labelled[column]

    def exposure(self, column: str) -> Array:
        """What a unit of value counts in sums by this label column: see `Account.exposure`."""
        given = column == "underlying" and "exposure" in self.source.columns
        return self.numbers("exposure", "exposure", missing=1.0, blank=True) if given else np.ones(self.shape)

    def positions(self, assets: Iterable[str] | None, argument: str) -> Mask:
        if assets is None:
            mask = np.full(self.shape, True)
            mask[self.cash] = False
            return mask
        named = np.zeros(len(self.universe), dtype=bool)
        named[[self.source.codes[asset] for asset in checked_names(assets, argument, self.source.known)]] = True
        return named[self.codes]

    def first(self, wrong: Mask) -> int:
        raise NotStackable(wrong.any(axis=1))

    def cash_of(self, account: str | None) -> Place:
        if account is not None:
            raise NotStackable  # portfolios in several accounts are no stacks
        return self.cash

    def take(self, portfolios: Index) -> Stack:
        """The stack of these portfolios: a slice, positions, or a mask."""
        which = np.arange(len(self))[portfolios]
        chosen: Fields = {
            name: np.ascontiguousarray(getattr(self, name)[portfolios])
            for name in ("places", "codes", "quantity", "price", "target", "nav", "rows")
        }
        return replace(
            self,
            names=tuple(self.names[i] for i in which),
            cash=(np.arange(len(which)), self.cash[1][portfolios]),
            labelled={name: Coded(c.names, c.codes[portfolios]) for name, c in self.labelled.items()},
            risk=self.risk and self.risk.take(portfolios),
            **chosen,
        )

    def portfolio(self, i: int) -> Portfolio:
        """Portfolio i on its own, as `Portfolio.from_table` would read its rows."""
        rows = self.rows[i]
        return Portfolio(
            name=self.names[i],
            assets=tuple(self.universe[code] for code in self.codes[i]),
            cash=int(self.cash[1][i]),
            quantity=self.quantity[i],
            price=self.price[i],
            target=self.target[i],
            nav=float(self.nav[i, 0]),
            order=np.searchsorted(np.sort(rows), rows),
            columns=self.source.cells(rows),
            universe=self.source.known | {self.universe[code] for code in self.codes[i]},
            risk=self.risk and self.risk.take(i),
        )


def stacks(
    table: pd.DataFrame,
    cash: str,
    *,
    universe: Iterable[str] = (),
    label_columns: Iterable[str] = (),
    same_assets: bool = False,
    known: frozenset[str] | None = None,
) -> tuple[list[Stack], list[Odd]]:
    """The portfolios of a long table, stacked, and those that must be read one by one.

    `table` has the columns portfolio_id, asset, quantity, price and target; the rows of a portfolio may stand
    anywhere. `universe` holds labels that rules may name besides the table's own; with `known`, only those of that set
    may be named in a stack. Portfolios share a stack if they
    have as many assets, the same labels in `label_columns` (those of the cash apart), and with `same_assets` the
    same assets. What is in a stack is what `Portfolio.from_table` accepts, with the same bits; everything that is
    not plainly so is odd, and `Portfolio.from_table` then says what is wrong with it, if anything is.
    """
    names, of_row, odd = _portfolios(table["portfolio_id"])
    counts, first = np.bincount(of_row, minlength=len(names)), np.full(len(names), len(table))
    first[of_row[::-1]] = np.arange(len(table))[::-1]  # what is written last is the first row
    places = np.argsort(np.argsort(first))

    labels = coded(table["asset"])
    every = {*universe, *labels.names, *(known or ())}
    source = Source(table.copy(deep=False), tuple(sorted(every, key=str)), frozenset(every if known is None else known))
    codes = np.array([*(source.codes[name] for name in labels.names), 0, 0])[labels.codes]
    doubtful = np.array([*_doubtful(labels.names), True, True])[labels.codes]  # the last two: BLANK and WRONG
    doubtful |= _no_numbers(source)
    groups = _groups(source, label_columns)
    for group in groups.values():
        doubtful |= group.codes == WRONG

    key = of_row * len(source.universe) + codes
    order = np.argsort(key, kind="stable")
    doubled = np.flatnonzero(np.diff(key[order]) == 0)
    odd[of_row[doubtful]] = odd[of_row[order[doubled]]] = True
    start, found = np.cumsum(counts) - counts, []
    for n in np.unique(counts[~odd & (counts > 0)]):
        these = np.flatnonzero(~odd & (counts == n))
        these = these[np.argsort(places[these])]
        rows = order[start[these][:, None] + np.arange(n)]
        one, sound = _stack([names[i] for i in these], places[these], rows, codes[rows], cash, source, groups)
        odd[these[~sound]] = True
        if sound.any():
            one = one if sound.all() else one.take(sound)
            found += _split(one, same_assets)
    alone = np.flatnonzero(odd & (counts > 0))
    alone = alone[np.argsort(places[alone])]
    return found, [Odd(int(places[i]), names[i], np.sort(order[start[i] : start[i] + counts[i]])) for i in alone]


def _no_numbers(source: Source) -> Mask:
    """The rows without a quantity, target or price that is a plain number; all where there is no such column."""
    if not (source.table.columns.is_unique and {"quantity", "price", "target"} <= source.columns.keys()):
        return np.full(len(source.table), True)
    found = source.floats("price")[0] <= 0
    for column in ("quantity", "target", "price"):
        values, strange = source.floats(column)
        found |= strange | ~np.isfinite(values)
    return found


def _groups(source: Source, label_columns: Iterable[str]) -> dict[str, Coded]:
    """Those of the label columns that the table has, each once, with their names in sorted order."""
    if not source.table.columns.is_unique:
        return {}
    found = sorted(set(label_columns) & source.columns.keys())
    return {column: coded(source.table[source.columns[column]], whole=True).ordered() for column in found}


def _portfolios(column: Column) -> tuple[list[Any], Indices, Mask]:
    """The ids, each row's portfolio, and which ids are odd. All blank ids are one portfolio without a name."""
    ids = coded(column)
    names: list[object] = list(ids.names)
    of_row = np.array(ids.codes)
    others: dict[tuple[str, str], int] = {}
    for row in np.flatnonzero(of_row < 0):
        name = column.iloc[row]
        key = ("", "") if blank(name) else (type(name).__name__, repr(name))  # ids need not be hashable
        if key not in others:
            others[key] = len(names)
            names.append(None if blank(name) else name)
        of_row[row] = others[key]
    return names, of_row, np.array([not isinstance(name, str) or name != name.strip() for name in names], dtype=bool)


def _doubtful(labels: Sequence[str]) -> list[bool]:
    """Labels that are no plain text, and those that are the same as another in Unicode's normal form."""
    normal = [label if label.isascii() else unicodedata.normalize("NFC", label) for label in labels]
    times = Counter(normal)
    return [
        label != label.strip() or times[form] > 1 or not encodable(label)
        for label, form in zip(labels, normal, strict=True)
    ]


def _stack(
    names: Sequence[str],
    places: Indices,
    rows: Indices,
    codes: Indices,
    cash: str,
    source: Source,
    groups: Mapping[str, Coded],
) -> tuple[Stack, Mask]:
    """The stack of portfolios with these rows (B, n), sorted by label, and which of them are sound."""
    quantity, price, target = (np.take(source.floats(c)[0], rows) for c in ("quantity", "price", "target"))
    is_cash = codes == source.codes.get(cash, -1)
    at = np.arange(len(rows)), np.argmax(is_cash, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # of portfolios that are odd already
        nav = np.sum(quantity * price, axis=-1, keepdims=True)
        off = np.abs(np.sum(target, axis=-1) - 1.0)
    sound = is_cash.any(axis=1) & (price[at] == 1.0) & (off <= TARGET_SUM_TOLERANCE)
    sound &= ((nav >= SMALLEST) & (nav <= LARGEST))[:, 0]
    labelled = {name: Coded(group.names, group.codes[rows]) for name, group in groups.items()}
    return Stack(tuple(names), places, codes, at, quantity, price, target, nav, rows, source, labelled), sound


def _split(stack: Stack, same_assets: bool) -> list[Stack]:
    """The stack, split by the portfolios' labels, and with `same_assets` by their assets."""
    keys = [_label_set(found.codes, stack.cash) for found in stack.labelled.values()]
    key = np.hstack([np.empty((len(stack), 0), dtype=np.intp), *keys, *([stack.codes] if same_assets else [])])
    if not key.shape[1] or same(key):
        return [stack]
    _, group = np.unique(key.view(np.dtype((np.void, key.itemsize * key.shape[1])))[:, 0], return_inverse=True)
    order = np.argsort(group, kind="stable")
    return [stack.take(part) for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1)]


def _label_set(codes: Indices, cash: tuple[Indices, Indices]) -> Indices:
    """Each row's distinct labels in one order; that of the cash is another than the same label elsewhere."""
    is_cash = np.zeros_like(codes)
    is_cash[cash] = 1
    found = np.where(codes < 0, BLANK, 2 * codes + is_cash)
    found.sort(axis=1)
    found[:, 1:][np.diff(found, axis=1) == 0] = BLANK
    found.sort(axis=1)
    return found
