"""Rows: the convex rules that every solver takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces.parts import Array, Fields, Figure, Parts, part
from equipoise.constraints.pieces.piece import Piece, Rounding, Wider, Words
from equipoise.constraints.pieces.states import Check, Settlement, StackState


@dataclass(frozen=True, eq=False, kw_only=True)
class Row(Parts, Words, Piece):
    """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ ≤ upper, stated in these `Words`.

    Convex exactly when long + short ≥ 0 and buy + sell ≥ 0 for every asset, which is checked here.
    For a stack, a coefficient is (n,) or (B, n), and `upper` and `limit` are floats or (B,).
    """

    def __post_init__(self) -> None:
        for one, other in (("long", "short"), ("buy", "sell")):
            pair = [c for c in (getattr(self, one), getattr(self, other)) if c is not None]
            if pair and np.any(sum(pair) < 0):
                raise InputError(
                    f"{self.label}: the coefficients of {one} and {other} add up to less than zero for some "
                    "asset, which is not a convex rule; check the sign of the numbers given"
                )

    @property
    def words(self) -> Words:
        return self

    @property
    def shortfall(self) -> Array | None:
        relaxed = np.asarray(self.relaxed)
        return relaxed[..., None] if np.any(relaxed) else None

    @property
    def of_trades(self) -> bool:
        return self.buy is not None or self.sell is not None

    def excess(self, weights: Array, trades: Array) -> Figure:
        return self.of(weights, trades) - self.upper

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        on_cash = any(c is not None and c[settled.cashes].any() for c in (self.weight, self.long, self.short))
        states = (settled.value, settled.earlier) if on_cash else (settled.value,)
        yield min((self.check(title, settled, value) for value in states), key=lambda check: check.slack)

    def check(self, title: str, settled: Settlement, value: Sequence[int], more: Fraction = Fraction(0)) -> Check:
        """The exact check of this state, with so much money more on the left side."""
        excess = self.exactly(value, settled.traded) - Fraction(self.upper) * settled.nav + more
        per = Fraction(settled.nav) if self.per is None else self.per.exactly(value, settled.traded)
        shown = self.shown(excess / settled.unit, per / settled.unit)
        what = title, self.label, None, shown, self.stated, self.at_least
        return settled.judged(what, -excess.numerator, excess.denominator)

    def slack(self, state: StackState) -> tuple[Array, Figure]:
        given, cash = self.given, state.cash
        excess = sum((np.vecdot(c, state.part(name)) for name, c in given.items()), -np.asarray(self.upper))
        steepness = sum(np.sqrt(np.vecdot(c, c)) for c in given.values())
        change = sum(
            (c[..., cash[1]] if c.ndim == 1 else c[cash])
            * (part(name, state.earlier_cash, state.earlier_cash) - state.part(name)[cash])
            for name, c in given.items()
            if name in ("weight", "long", "short")
        )
        # The larger of the two states, with the cash after costs and before them.
        return -(excess + np.maximum(change, 0.0)), steepness

    def on_the_way(self, named: bool, cashes: Sequence[int]) -> bool:
        return named or any(c is not None and bool(np.any(c)) for c in (self.long, self.short))

    def restated(self, limit: float, at: Sequence[int] = (), side: str = "lower") -> Row:
        change = (limit - self.stated) if self.at_least else (self.stated - limit)
        if self.per is None:
            return replace(self, upper=self.upper - change, limit=limit)
        parts: Fields = {name: change * c + self.given.get(name, 0.0) for name, c in self.per.given.items()}
        return replace(self, **parts, limit=limit)

    def unlimited(self, none: float) -> Self:
        return replace(self, upper=none)

    def tightened(self, rounding: Rounding) -> Row:
        slope = np.zeros(len(rounding.size))
        for names in (("weight",), ("long", "short"), ("buy", "sell")):
            parts = [np.abs(c) for name in names if (c := getattr(self, name)) is not None]
            slope += np.max([np.zeros(len(slope)), *parts], axis=0)
        return replace(self, upper=self.upper - float(slope @ rounding.size + slope[rounding.cash] * rounding.of_cash))

    def paying(self, fees: float, cash: int, rises: Iterator[float]) -> Row:
        return replace(self, upper=self.upper - float(next(rises)) * fees)

    def joined(self, by: Wider) -> Row:
        return replace(self, per=self.per and Parts(**by.parts(self.per)), **by.parts(self))

    def shocked(self, low: Array, high: Array, when: str) -> Row:
        """At most this for any prices between low and high times what they are."""
        long, short = self.bent
        per = self.per
        if per is not None:
            # Shown over what the collateral is worth at its lowest, and the debts at their highest.
            ends = {"weight": low, "long": low, "short": high}
            per = Parts(**{name: c * ends[name] for name, c in per.given.items() if name in ends})
        worst = replace(self, weight=None, long=_worse(long, low, high), short=_worse(short, low, high), per=per)
        return replace(worst, label=f"{self.label} {when}", limit=self.stated, liquidation=None)

    @property
    def bent(self) -> tuple[Array, Array]:
        """(long, short) of a row of holdings as long·w⁺ + short·w⁻ alone."""
        weight, long, short = (np.asarray(0.0 if c is None else c) for c in (self.weight, self.long, self.short))
        return long + weight, short - weight


def _worse(slope: Array, low: Array, high: Array) -> Array:
    return np.where(slope > 0, slope * high, slope * low)
