"""What is not convex: lots, least positions, and limits on how many there are of something."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces.parts import Array, Fields, Mask
from equipoise.constraints.pieces.piece import Piece, Wider
from equipoise.constraints.pieces.states import Check, Settlement


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(Piece):
    """Traded quantities are whole multiples of `lot` (0: any quantity), and zero or at least the larger
    of `min_quantity` (units) and `min_notional` (cash); closing a position is exempt. They are at most
    `max_quantity` and `max_notional` (None: no limit). Units, not weights; arrays (n,) or (B, n)."""

    lot: Array
    min_quantity: Array
    min_notional: Array
    max_quantity: Array | None = None
    max_notional: Array | None = None

    discrete: ClassVar[bool] = True

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        for i, (asset, traded) in enumerate(zip(settled.assets, settled.trades, strict=True)):
            if i == settled.cashes[0] or not traded:
                continue
            yield from self._sizes(title, settled, i, least=False)
            if settled.after[i] == 0:  # closing a position is exempt from lots and minimums
                continue
            if self.lot[i] > 0:
                lots = abs(traded) / exact(self.lot[i])
                whole = lots.denominator == 1
                yield Check(title, "whole lots", asset, float(lots), round(float(lots)), False, 0.0, whole)
            yield from self._sizes(title, settled, i, least=True)

    def _sizes(self, title: str, settled: Settlement, i: int, *, least: bool) -> Iterator[Check]:
        size, price = abs(settled.trades[i]), settled.price[i]
        side, word = ("min", "least") if least else ("max", "largest")
        for unit, amount, worth in (("quantity", size, price), ("notional", size * price, Fraction(1))):
            limits = getattr(self, f"{side}_{unit}")
            if limits is not None and (limits[i] > 0 if least else np.isfinite(limits[i])):
                slack = (exact(limits[i]) - amount) * (-1 if least else 1)
                figures = float(amount), float(limits[i]), least, float(slack * worth) / settled.cash_nav
                yield Check(title, f"{word} {unit}", settled.assets[i], *figures, slack >= 0)

    def joined(self, by: Wider) -> Step:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "label"}
        wide: Fields = {name: c if c is None else by.wide(c) for name, c in given.items()}
        return replace(self, **wide)


@dataclass(frozen=True, eq=False, kw_only=True)
class Semicontinuous(Piece):
    """A position, long or short, is zero or at least the larger of `weight` (of NAV) and `notional` (cash) in size;
    arrays (n,), 0 where nothing is asked."""

    weight: Array
    notional: Array

    discrete: ClassVar[bool] = True

    @property
    def asked(self) -> Mask:
        """The mask of the assets of which it asks something."""
        return np.asarray((self.weight > 0) | (self.notional > 0))

    def least(self, nav: Fraction) -> dict[int, Fraction]:
        """The least size in cash of each asset's position, by its place."""
        at = np.flatnonzero(self.asked).tolist()
        return {i: max(exact(float(self.weight[i])) * nav, exact(float(self.notional[i]))) for i in at}

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        nav = Fraction(settled.nav, settled.unit)
        for i, least in self.least(nav).items():
            size = Fraction(abs(settled.value[i]), settled.unit)
            if i != settled.cashes[0] and size:
                figures = float(size / nav), float(least / nav), True, float((size - least) / nav)
                yield Check(title, self.label, settled.assets[i], *figures, size >= least)

    def joined(self, by: Wider) -> Semicontinuous:
        return replace(self, weight=by.wide(self.weight), notional=by.wide(self.notional))


@dataclass(frozen=True, eq=False, kw_only=True)
class Count(Piece):
    """At most `limit` of the assets in the mask `counted` (n,) have an order, or a position after trading."""

    of: Literal["orders", "names"]
    counted: Mask
    limit: int

    discrete: ClassVar[bool] = True

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        each = settled.trades if self.of == "orders" else settled.after
        count = sum(bool(x) for x, counted in zip(each, self.counted, strict=True) if counted)
        left = float(self.limit - count)
        yield Check(
            title, self.label, None, float(count), float(self.limit), False, min(0.0, left), count <= self.limit
        )
