"""The points that whole lots allow: no trade, whole lots at least as large as the minimum, or a close."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
#: How far weights may be from adding up to 1 before lots are left out for it.
_BUDGET = 1e-9
#: Assets without a lot trade in decimal steps worth at most this fraction of NAV.
QUANTUM = 1e-10
#: Lots finer than this part of it are taken by powers of ten together, so that their number is a float exactly.
_FINEST = Fraction(1, 100)


@dataclass(frozen=True, eq=False)
class Points:
    """Some points of every asset, (K, n): its lots or a close, the weight there, and whether there is such a point."""

    lots: Integers
    closed: Mask
    weights: Array
    valid: Mask

    def joined(self, *others: Points) -> Points:
        names = self.__dataclass_fields__
        return Points(*(np.concatenate([getattr(each, name) for each in (self, *others)]) for name in names))

    def pick(self, which: NDArray[np.intp]) -> Points:
        """Those at these positions (K′, n) of each asset."""
        return Points(*(np.take_along_axis(getattr(self, name), which, axis=0) for name in self.__dataclass_fields__))

    def distinct(self) -> Points:
        """Each asset's points once, in order; rows without a point left out."""
        sorted_ = self.pick(np.argsort(np.where(self.valid, self.weights, np.inf), axis=0, kind="stable"))
        valid = sorted_.valid.copy()
        valid[1:] &= ~sorted_.valid[:-1] | (sorted_.weights[1:] != sorted_.weights[:-1])
        first = np.argsort(~valid, axis=0, kind="stable")[: int(valid.sum(axis=0).max())]
        return replace(sorted_.pick(first), valid=np.take_along_axis(valid, first, axis=0))

    def beside(self, weights: Array) -> tuple[Array, Array]:
        """The nearest points at or below these weights and at or above them (n,); ±inf where there is none."""
        below = np.where(self.valid & (self.weights <= weights), self.weights, -np.inf)
        above = np.where(self.valid & (self.weights >= weights), self.weights, np.inf)
        return below.max(axis=0), above.min(axis=0)


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

    def within_budget(self) -> Lots:
        """The same plans: without lots that leave the others, at their least and their most, no way to add up to 1."""
        problem, before = self.problem, self.problem.before
        low, high = before + self.lowest * self.size, before + self.highest * self.size
        low, high = (np.where(self.lowest > self.highest, 0.0, edge) for edge in (low, high))
        low, high = np.where(self.closable, np.minimum(low, 0), low), np.where(self.closable, np.maximum(high, 0), high)
        low[problem.cash], high[problem.cash] = problem.lower[problem.cash], problem.upper[problem.cash]
        most, least = 1.0 - (low.sum() - low) + _BUDGET, 1.0 - (high.sum() - high) - _BUDGET
        with np.errstate(over="ignore"):
            highest = np.clip(np.floor((most - before) / self.size), -(2.0**62), 2.0**62).astype(np.int64)
            lowest = np.clip(np.ceil((least - before) / self.size), -(2.0**62), 2.0**62).astype(np.int64)
        lowest, highest = np.maximum(self.lowest, lowest), np.minimum(self.highest, highest)
        lowest[problem.cash] = highest[problem.cash] = 0
        return replace(self, lowest=lowest, highest=highest, closable=self.closable & (least <= 0) & (most >= 0))

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
            return np.where(empty, 0, lots), np.broadcast_to(empty & self.closable, lots.shape)
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

    def around(self, weights: Array) -> Points:
        """The lot points next to these weights: on each side, the least orders, no order, the close; (6, n)."""
        problem, cash = self.problem, self.problem.cash
        exactly = (weights - problem.before) / self.size
        down, up = np.floor(exactly), np.ceil(exactly)
        low, high, least = (edge.astype(float) for edge in (self.lowest, self.highest, self.least))
        bought, sold = (np.maximum(low, least), high), (low, np.minimum(high, -least))
        nothing = np.zeros_like(low)
        lots = np.stack([np.clip(k, *side) for side in (bought, sold) for k in (down, up)] + [nothing, nothing])
        holds = (low <= 0) & (high >= 0)
        some = [bought[0] <= bought[1], sold[0] <= sold[1]]
        valid = np.stack([some[0], some[0], some[1], some[1], holds, self.closable])
        lots = np.where(valid, lots, 0.0)
        closed = np.zeros(valid.shape, dtype=bool)
        closed[-1] = self.closable
        at = np.where(closed, 0.0, problem.before + lots * self.size)
        at[:, cash], valid[:, cash] = weights[cash], np.arange(len(valid)) == 0
        return Points(lots.astype(np.int64), closed, at, valid)

    def closest(self, weights: Array) -> tuple[Integers, Mask]:
        """The allowed point nearest to these weights: (lots, closed)."""
        points = self.around(weights)
        away = np.where(points.valid, np.abs(points.weights - weights), np.inf)
        chosen = points.pick(np.argmin(away, axis=0)[None])
        lots, closed = chosen.lots[0], chosen.closed[0]
        lots[self.problem.cash] = 0
        return lots, closed

    def trades(self, lots: Integers, closed: Mask) -> Array:
        """z of these numbers of lots, in fractions of NAV."""
        return np.where(closed, -self.problem.before, lots * self.size)

    def quantities(self, lots: Integers, closed: Mask) -> tuple[Fraction, ...]:
        """The traded quantities, exact."""
        held = self.problem.portfolio.exact_quantity
        return tuple(-q if c else int(k) * lot for k, lot, c, q in zip(lots, self.lot, closed, held, strict=True))


def _quantum(units: float) -> Fraction:
    """The power of ten just below `QUANTUM` of the NAV, in units of an asset of which NAV buys `units`."""
    return Fraction(10) ** int(np.floor(np.log10(QUANTUM * units)))


def _at_least(lot: Fraction, finest: Fraction) -> Fraction:
    """The least power of ten times this lot that is not below `finest`."""
    while lot < finest:
        lot *= 10
    return lot
