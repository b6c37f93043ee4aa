"""The points that whole lots allow: no trade, whole lots at least as large as the minimum, or a close."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.optimizer.portfolio import exact
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import ROUNDING_TOLERANCE

Integers: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]

#: The search keeps rules to within half of what the exact check allows.
SLACK = 0.5 * ROUNDING_TOLERANCE
#: Assets without a lot trade in decimal steps worth at most this fraction of NAV.
_QUANTUM = 1e-10
#: Lots finer than this part of it are taken by powers of ten together, so that their number is a float exactly.
_FINEST = Fraction(1, 100)


@dataclass(frozen=True, eq=False)
class Lots:
    """What may be traded: per asset the lot (exact, and as a weight), the least number of lots, the range."""

    problem: Problem
    lot: tuple[Fraction, ...]
    size: Array
    least: Integers
    lowest: Integers
    highest: Integers
    #: Whether the position may be closed, where that is a point of its own: off the grid, or below the minimum.
    closable: Mask

    @classmethod
    def of(cls, problem: Problem, lower: Array) -> Lots:
        """`lower` may be above the problem's own bounds (debts that must not grow)."""
        step, portfolio = problem.step, problem.portfolio
        assert step is not None
        lots, least = [], []
        for i, given in enumerate(step.lot):
            price = float(portfolio.price[i])
            finest = _quantum(portfolio.nav / price)
            lots.append(_at_least(exact(given), finest * _FINEST) if given > 0 else finest)
            # Minimums are inclusive; they are compared as the decimals that the user wrote.
            need = max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / portfolio.exact_price[i])
            least.append(min(max(1, -((-need) // lots[-1])), 2**62))
        size = np.array([float(lot) for lot in lots]) * portfolio.price / portfolio.nav
        with np.errstate(over="ignore"):
            lowest = np.ceil((lower - SLACK - problem.before) / size)
            highest = np.floor((problem.upper + SLACK - problem.before) / size)
        for i, (held, lot) in enumerate(zip(portfolio.exact_quantity, lots, strict=True)):
            # A bound of 0 is exact: not one unit more than is held can be sold, nor more repaid than is owed.
            if lower[i] == 0:
                lowest[i] = max(float(-(held // lot)), lowest[i])
            if problem.upper[i] == 0:
                highest[i] = min(float((-held) // lot), highest[i])
        whole = [quantity % lot == 0 for quantity, lot in zip(portfolio.exact_quantity, lots, strict=True)]
        closable = (lower <= SLACK) & (problem.upper >= -SLACK) & (problem.before != 0)
        beyond = np.array([abs(q) < n * lot for q, n, lot in zip(portfolio.exact_quantity, least, lots, strict=True)])
        closable &= ~np.array(whole) | beyond
        low, high = (np.clip(edge, -(2.0**62), 2.0**62).astype(np.int64) for edge in (lowest, highest))
        allowed = cls(problem, tuple(lots), size, np.array(least, dtype=np.int64), low, high, closable)
        for edge in (allowed.lowest, allowed.highest):
            edge[problem.cash] = 0
        allowed.closable[problem.cash] = False
        return allowed

    @cached_property
    def minimums(self) -> bool:
        """Whether some asset's orders have a minimum above one lot."""
        return bool(np.any(self.least > 1))

    def empty(self) -> NDArray[np.intp]:
        """The assets for which no point at all lies within their bounds."""
        holds = (self.lowest <= 0) & (self.highest >= 0)
        trades = (np.maximum(self.lowest, self.least) <= self.highest) | (
            self.lowest <= np.minimum(self.highest, -self.least)
        )
        return np.flatnonzero(~(holds | trades | self.closable))

    def nearest(self, trades: Array, upwards: Mask | bool) -> tuple[Integers, Mask]:
        """The allowed point next to these trades on one side, or failing that on the other: (lots, closed)."""
        exactly = trades / self.size
        whole = np.round(exactly)
        near = np.abs(exactly - whole) < 1e-6  # the optimum is known no better than this
        rounded = np.where(near, whole, np.where(upwards, np.ceil(exactly), np.floor(exactly)))
        wanted = np.clip(rounded, self.lowest, self.highest).astype(np.int64)
        return self._allowed(wanted, np.broadcast_to(upwards, wanted.shape))

    def _allowed(self, lots: Integers, upwards: Mask) -> tuple[Integers, Mask]:
        """These numbers of lots, moved out of the gap below the minimum and into the range."""
        low, high, least = self.lowest, self.highest, self.least
        if not self.minimums:
            empty = low > high
            return np.where(empty, 0, lots), empty & self.closable
        gap = (lots != 0) & (np.abs(lots) < least)
        options = [np.where(lots > 0, least, 0), np.where(lots > 0, 0, -least)]
        first = np.where(upwards, options[0], options[1])
        second = np.where(upwards, options[1], options[0])

        def inside(k: Integers) -> Mask:
            return (k >= low) & (k <= high)

        moved = np.where(gap, np.where(inside(first), first, second), lots)
        zero = inside(np.zeros_like(lots))
        # Nothing allowed where we are: no trade if that is inside, else the minimum on the side that is.
        outside = ~inside(moved) | ((moved != 0) & (np.abs(moved) < least))
        other = np.where(zero, 0, np.where(low > 0, np.maximum(low, least), np.minimum(high, -least)))
        moved = np.where(outside, other, moved)
        bad = ~inside(moved)
        return np.where(bad, 0, moved), bad & self.closable

    def trades(self, lots: Integers, closed: Mask) -> Array:
        """z of these numbers of lots, in fractions of NAV."""
        return np.where(closed, -self.problem.before, lots * self.size)

    def quantities(self, lots: Integers, closed: Mask) -> tuple[Fraction, ...]:
        """The traded quantities, exact."""
        held = self.problem.portfolio.exact_quantity
        return tuple(-q if c else int(k) * lot for k, lot, c, q in zip(lots, self.lot, closed, held, strict=True))


def _quantum(units: float) -> Fraction:
    """The power of ten just below `_QUANTUM` of the NAV, in units of an asset of which NAV buys `units`."""
    return Fraction(10) ** int(np.floor(np.log10(_QUANTUM * units)))


def _at_least(lot: Fraction, finest: Fraction) -> Fraction:
    """The least power of ten times this lot that is not below `finest`."""
    while lot < finest:
        lot *= 10
    return lot
