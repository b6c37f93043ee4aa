"""Bounds on single assets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from equipoise.constraints.pieces.parts import Array, Mask
from equipoise.constraints.pieces.piece import Piece, Rounding, Wider
from equipoise.constraints.pieces.states import Check, Settlement


@dataclass(frozen=True, eq=False, kw_only=True)
class Bound(Piece):
    """lower ≤ w ≤ upper, one number an asset, (n,) or (B, n); ±inf where there is none."""

    lower: Array
    upper: Array
    #: Whether it limits the trade, and not what is held at the end: with transfers between accounts they differ.
    of_trade: bool = False
    #: By how much `lower` is below what the rule asks for, as in `Row`.
    relaxed: Array | None = None

    @property
    def shortfall(self) -> Array | None:
        return self.relaxed

    @property
    def bounded(self) -> Mask:
        """The mask of the assets that it limits."""
        return np.asarray(np.isfinite(self.lower) | np.isfinite(self.upper))

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        value, earlier = settled.without_transfers if self.of_trade else (settled.value, settled.earlier)
        each = zip(settled.assets, self.lower.tolist(), self.upper.tolist(), strict=True)
        for i, (asset, low, high) in enumerate(each):
            sides = []  # slack, and per how much of it
            if math.isfinite(low):
                least, of = low.as_integer_ratio()
                sides.append((value[i] * of - least * settled.nav, of, low, True))
            if math.isfinite(high):
                most, of = high.as_integer_ratio()
                sides.append((most * settled.nav - earlier[i] * of, of, high, False))
            if not sides:
                continue
            slack, per, limit, at_least = sides[-1]
            if sides[0][0] * per <= slack * sides[0][1]:
                slack, per, limit, at_least = sides[0]
            sharp = limit == 0 and (i not in settled.cashes or settled.whole_lots)
            stated = limit + float(self.relaxed[i]) if at_least and self.relaxed is not None else limit
            what = title, self.label, asset, value[i] / settled.nav, stated, at_least
            yield settled.judged(what, slack, per, exact_limit=sharp)

    def on_the_way(self, named: bool, cashes: Sequence[int]) -> bool:
        """A floor under a cash; of bounds on other assets only where they are named."""
        at = list(cashes)
        alone = not np.any(np.delete(self.bounded, at))
        return (alone or named) and bool(np.any(np.isfinite(self.lower[at])))

    def restated(self, limit: float, at: Sequence[int] = (), side: str = "lower") -> Bound:
        edge, where = np.array(getattr(self, side)), list(at)
        edge[where] = np.where(np.isfinite(edge[where]), limit, edge[where])
        return replace(self, lower=edge) if side == "lower" else replace(self, upper=edge)

    def unlimited(self, none: float) -> Self:
        # Finite where it was: a floor of the cash stays a row.
        low = np.where(np.isfinite(self.lower), -none, -np.inf)
        return replace(self, lower=low, upper=np.full_like(self.upper, np.inf))

    def tightened(self, rounding: Rounding) -> Bound:
        by = np.where(np.arange(len(rounding.size)) == rounding.cash, rounding.of_cash, 0.0)
        return replace(self, lower=self.lower + by, upper=self.upper - by)

    def paying(self, fees: float, cash: int, rises: Iterator[float]) -> Bound:
        return replace(self, lower=self.lower + np.where(np.arange(len(self.lower)) == cash, fees, 0.0))

    def joined(self, by: Wider) -> Bound:
        open_ = by.touched & (not self.of_trade)
        low, high = np.where(open_, -np.inf, self.lower), np.where(open_, np.inf, self.upper)
        return replace(self, lower=by.wide(low, -np.inf), upper=by.wide(high, np.inf))
