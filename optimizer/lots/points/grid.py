"""The points that whole lots allow, of stacks of portfolios: what `points.points` is for one, as arrays (B, n).

Numbers of lots are whole floats. Quantities are exact: an asset's holding and its lot are whole numbers of 10⁻ᵈ units,
with d the decimals that the two are written with. Decimals of up to 15 digits and floats belong to each other one
by one, so that a float x is the decimal N·10⁻ᵈ exactly if N/10ᵈ, rounded, is x. Where a number has more digits, the
portfolio is not `sound`, and is left to `points.points`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Index, Mask
from equipoise.optimizer.lots.points.points import QUANTUM, SLACK, Integers, to_lots
from equipoise.optimizer.problem.problem import Problem

_DIGITS = 1e15
_DECIMALS = 22  # powers of ten up to this one are floats exactly
_LEAST = -323
#: The floats nearest to the powers of ten from 10^_LEAST on: `10.0**array` is off by a bit on some processors.
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(_LEAST, 309)])
_DOUBTFUL = 1e-12  # a minimum so near to a whole number of lots is counted in fractions
_MOST = 2.0**53


@dataclass(frozen=True, eq=False)
class Grid:
    """Of each asset but the cash (B, n): the weight held and that of a lot, the least order and the range in lots, and
    whether a close is a point of its own; the lot and the holding in units of 10⁻ᵈ, and d.

    `sound` (B,): whether these units are exact. A grid of one portfolio has arrays (n,).
    """

    before: Array
    size: Array
    least: Array
    lowest: Array
    highest: Array
    closable: Mask
    lot: Integers
    held: Integers
    decimals: Integers
    sound: Mask

    def take(self, at: int | Index) -> Grid:
        return Grid(*(getattr(self, f.name)[at] for f in fields(self)))

    @property
    def plain(self) -> Mask:
        """Which portfolios (B,) have points at whole lots only: no minimum above one lot, no close off the grid."""
        return np.asarray(~((self.least > 1) | self.closable).any(axis=-1))

    def trades(self, lots: Array, closed: Mask) -> Array:
        """z of these numbers of lots, in fractions of NAV."""
        return np.where(closed, -self.before, lots * self.size)

    def whole(self, lots: Array, closed: Mask) -> tuple[Integers, Integers]:
        """The traded quantities as whole numbers of 10⁻ᵈ units, and d."""
        return np.where(closed, -self.held, lots.astype(np.int64) * self.lot), self.decimals

    def units(self, lots: Array, closed: Mask) -> Array:
        """The traded quantities as the floats that stand for them."""
        whole, decimals = self.whole(lots, closed)
        return np.asarray(whole / ten_to(decimals))

    def counted(self, lots: Array) -> Mask:
        """Which portfolios' quantities (B,) are small enough to be exact."""
        return np.asarray((np.abs(lots) * self.lot < _DIGITS).all(axis=-1))

    def quantities(self, lots: Array, closed: Mask) -> tuple[Fraction, ...]:
        """The traded quantities of one portfolio, exact."""
        pairs = zip(*(each.tolist() for each in self.whole(lots, closed)), strict=True)
        return tuple(Fraction(number, 10**decimals) for number, decimals in pairs)

    def nearest(self, exactly: Array, upwards: Mask | bool) -> tuple[Array, Mask]:
        """The allowed points (…, B, n) next to these numbers of lots on one side, or failing that on the other."""
        rounded = to_lots(exactly, upwards)
        return self.allowed(np.minimum(np.maximum(rounded, self.lowest), self.highest), upwards)

    def allowed(self, lots: Array, upwards: Mask | bool) -> tuple[Array, Mask]:
        """These numbers of lots within the range, moved out of the gap below the minimum; or a close."""
        low, high, least = self.lowest, self.highest, self.least
        if not (least > 1).any():
            empty = low > high
            return np.where(empty, 0.0, lots), np.broadcast_to(empty & self.closable, lots.shape)
        gap = (lots != 0) & (np.abs(lots) < least)
        options = np.where(lots > 0, least, 0.0), np.where(lots > 0, 0.0, -least)
        first, second = np.where(upwards, *options), np.where(upwards, *options[::-1])

        def inside(k: Array | float) -> Mask:
            return (k >= low) & (k <= high)

        moved = np.where(gap, np.where(inside(first), first, second), lots)
        outside = ~inside(moved) | ((moved != 0) & (np.abs(moved) < least))
        other = np.where(inside(0.0), 0.0, np.where(low > 0, np.maximum(low, least), np.minimum(high, -least)))
        moved = np.where(outside, other, moved)
        bad = ~inside(moved)
        return np.where(bad, 0.0, moved), bad & self.closable

    def within(self, lots: Array, closed: Mask, other: Array, shut: Mask) -> tuple[Array, Mask]:
        """These points, and the other ones where they are outside this grid."""
        inside = np.where(closed, self.closable, (lots >= self.lowest) & (lots <= self.highest))
        return np.where(inside, lots, other), np.where(inside, closed, shut)

    def empty(self) -> Mask:
        """Which portfolios (B,) have an asset without any point within its bounds."""
        holds = (self.lowest <= 0) & (self.highest >= 0)
        bought = np.maximum(self.lowest, self.least) <= self.highest
        sold = self.lowest <= np.minimum(self.highest, -self.least)
        return np.asarray(~(holds | bought | sold | self.closable).all(axis=-1))


def grid(problem: Problem, lower: Array, quantity: Array, price: Array, nav: Array) -> Grid:
    """The points of a stack of problems; `lower` (B, n) may be above their own bounds (debts that must not grow).

    quantity, price: (B, n); nav: (B, 1).
    """
    step, shape, cash = problem.step, problem.shape, problem.cash
    assert step is not None
    given = np.broadcast_to(np.asarray(step.lot, dtype=float), shape)
    quantum = exponents(QUANTUM * (nav / price))
    with np.errstate(all="ignore"):
        lot = np.where(given > 0, given, ten_to(quantum))
        of_lot, of_held = decimals(lot), decimals(np.abs(quantity))
        # Finer lots are taken by powers of ten together.
        joined = np.where(of_lot >= 0, np.maximum(quantum - exponents(lot), 0), 0)
        whole, of_lot = np.round(lot * ten_to(of_lot)), of_lot - joined
        lot = np.where(joined > 0, whole * ten_to(np.maximum(-of_lot, 0)) / ten_to(np.maximum(of_lot, 0)), lot)
        of_lot = np.where(joined > 0, np.maximum(of_lot, 0), of_lot)
        digits = np.maximum(of_lot, of_held)
        scale = ten_to(digits)
        fits = (of_lot >= 0) & (of_held >= 0) & (np.abs(quantity) * scale < _DIGITS) & (lot * scale < _DIGITS)
        fits &= np.abs(quantum) <= _DECIMALS
        lots, held = (np.where(fits, np.round(x * scale), 1.0).astype(np.int64) for x in (lot, quantity))
        size = lot * price / nav
        least = _least(problem, lot, price, fits)
        before = problem.before
        low = np.ceil((lower - SLACK - before) / size)
        high = np.floor((problem.upper + SLACK - before) / size)
    # A bound of 0 is exact: not one unit more than is held can be sold, nor more repaid than is owed.
    low = np.where(lower == 0, np.maximum(low, -(held // lots)), low)
    high = np.where(problem.upper == 0, np.minimum(high, (-held) // lots), high)
    low, high = np.clip(low, -_MOST, _MOST), np.clip(high, -_MOST, _MOST)
    closable = (lower <= SLACK) & (problem.upper >= -SLACK) & (before != 0)
    closable &= (held % lots != 0) | (np.abs(held) // lots < least)
    low[cash] = high[cash] = 0.0
    before = before.copy()
    before[cash] = 0.0  # it is the residual, and no asset of the search
    closable[cash], fits[cash], digits[cash], lots[cash] = False, True, 0, 1
    return Grid(
        before, size, least, low, high, closable, lots, held, np.maximum(digits, 0), np.asarray(fits.all(axis=-1))
    )


def ten_to(powers: Integers) -> Array:
    """10^powers."""
    return np.asarray(_POWERS[powers - _LEAST])


def exponents(values: Array) -> Integers:
    """Of the largest powers of ten that are not above these values > 0."""
    return np.asarray(np.searchsorted(_POWERS, values, side="right") - 1 + _LEAST)


def decimals(values: Array) -> Integers:
    """With how many decimals these numbers ≥ 0 are written; −1 for those of more digits than a float tells apart."""
    found = np.full(values.shape, -1, dtype=np.int64)
    for d in range(_DECIMALS + 1):
        left = found < 0
        if not left.any():
            break
        whole = np.round(values * 10.0**d)
        found[left & (whole < _DIGITS) & (whole / 10.0**d == values)] = d
    return found


def _least(problem: Problem, lot: Array, price: Array, fits: Mask) -> Array:
    """The least order in lots; minimums are inclusive, and compared as the decimals that the user wrote."""
    step = problem.step
    assert step is not None
    quantity, notional = (
        np.broadcast_to(np.asarray(x, dtype=float), lot.shape) for x in (step.min_quantity, step.min_notional)
    )
    if not (quantity.any() or notional.any()):
        return np.ones(lot.shape)
    need = np.maximum(quantity, notional / price) / lot
    least = np.clip(np.ceil(need), 1.0, _MOST)
    doubtful = fits & (need > 0) & (np.abs(need - np.round(need)) <= _DOUBTFUL * np.maximum(need, 1.0))
    for at in zip(*np.nonzero(doubtful), strict=True):
        exactly = max(exact(quantity[at]), exact(notional[at]) / exact(price[at])) / exact(lot[at])
        least[at] = min(max(1, -(-exactly.numerator // exactly.denominator)), _MOST)
    return np.asarray(least)
