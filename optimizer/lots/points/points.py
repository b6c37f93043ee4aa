"""The points that whole lots allow: no trade, whole lots at least as large as the minimum, or a close.

Where positions have a least size, or names are counted, a position of zero is a point of its own, and the lots beside
it fall apart into those that leave a position long enough and those that leave it short enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Figure, Indices, Mask, Step
from equipoise.optimizer.problem.counts import Counts, least_positions, order_sizes
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE

Integers: TypeAlias = NDArray[np.int64]

#: The search keeps rules to within half of what the exact check allows.
SLACK = 0.5 * ROUNDING_TOLERANCE
#: Of the objective: what is nearer to each other is the same, and the first of them counts, so that the rounding of
#: sums, which differs between processors, has no say.
TIE = 1e-12
#: How far weights may be from adding up to 1 before lots are left out for it.
_BUDGET = 1e-9
#: Assets without a lot trade in decimal steps worth at most this fraction of NAV: finer steps gain nothing, and below
#: 1e-10 of NAV it is the rounding of sums that decides on them, which differs between processors.
QUANTUM = 1e-7
#: More lots than there are.
_MANY = 2**62


def first(values: Array, tie: Array | float) -> Figure:
    """The first of the smallest along the last axis, but for a difference of `tie` (…)."""
    least = values.min(axis=-1)
    return np.argmax(values <= (least + tie)[..., None], axis=-1)


def ranked(gain: Array, violation: Array, tie: float) -> Indices:
    """The order (m,) of moves by the violation (m,) that they leave, then by the objective, then as they stand."""
    # In steps far below SLACK, and in ties: digits that differ between processors do not rank.
    return np.lexsort((np.round(gain / tie), np.ceil(1e3 * np.maximum(violation / SLACK, 1.0))))


def to_lots(exactly: Array, upwards: Mask | bool) -> Array:
    """Rounded to one side, unless next to a whole number: the optimum is known no better."""
    whole = np.round(exactly)
    near = np.abs(exactly - whole) < 1e-6
    return np.where(near, whole, np.where(upwards, np.ceil(exactly), np.floor(exactly)))


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

    def pick(self, which: Indices) -> Points:
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
    #: Whether the position may be closed, where that is a point of its own: off the grid, below the minimum, apart.
    closable: Mask
    #: Whether no trade is a point, as far as the position's least size goes.
    holds: Mask
    #: For assets whose zero stands apart: the lots from which on they are long enough, and up to which short enough.
    apart: Mask
    long_from: Integers
    short_to: Integers

    @classmethod
    def of(cls, problem: Problem, lower: Array) -> Lots:
        """`lower` may be above the problem's own bounds (debts that must not grow)."""
        portfolio, none = problem.portfolio, np.zeros(len(problem.assets))
        step = problem.step or Step(label="any quantity", lot=none, min_quantity=none, min_notional=none)
        lots, least = _grid(problem, step)
        size = np.array([float(lot) for lot in lots]) * portfolio.price / portfolio.nav
        most = _largest(problem, step, lots)
        low, high = _range(problem, lower, lots, size)
        whole_most = np.array([min(k // 1, _MANY) for k in most], dtype=np.int64)
        low, high = np.maximum(low, -whole_most), np.minimum(high, whole_most)
        low[problem.cash] = high[problem.cash] = 0
        holds, apart, long_from, short_to = _zero(problem, lots)
        # A close is a point of its own off the grid, below the minimum, or apart; it may be as large as an order.
        closes = [
            (held % lot != 0 or abs(held) < fewest * lot or zero_apart) and abs(held) <= largest * lot
            for held, lot, fewest, largest, zero_apart in zip(
                portfolio.exact_quantity, lots, least, most, apart, strict=True
            )
        ]
        closable = (lower <= SLACK) & (problem.upper >= -SLACK) & (problem.before != 0) & np.array(closes, dtype=bool)
        closable[problem.cash] = False
        least_lots = np.array(least, dtype=np.int64)
        return cls(problem, tuple(lots), size, least_lots, low, high, closable, holds, apart, long_from, short_to)

    @cached_property
    def plain(self) -> bool:
        """Whether every number of lots within the range is a point."""
        return not self.minimums and not self.apart.any() and bool(self.holds.all())

    @cached_property
    def stays(self) -> Mask:
        """Whether no trade is a point."""
        return np.asarray(self.holds & (self.lowest <= 0) & (self.highest >= 0))

    def several(self) -> Mask:
        """The assets with more than one point."""
        low, high = self.intervals
        lots = np.maximum(high.astype(float) - low.astype(float) + 1.0, 0.0).sum(axis=0)
        return np.asarray((lots + self.stays + self.closable > 1) & (np.arange(len(lots)) != self.problem.cash))

    @cached_property
    def intervals(self) -> tuple[Integers, Integers]:
        """The lots (J, n) from and to which orders go, J = 2 or 4: bought and sold, each ending long or short."""
        low, high, least = self.lowest, self.highest, self.least
        bought, sold = (np.maximum(low, least), high), (low, np.minimum(high, -least))
        if not self.apart.any():
            return np.stack([bought[0], sold[0]]), np.stack([bought[1], sold[1]])
        longs = [np.where(self.apart, np.maximum(side[0], self.long_from), side[0]) for side in (bought, sold)]
        shorts = [np.where(self.apart, np.minimum(side[1], self.short_to), -_MANY) for side in (bought, sold)]
        ends = [bought[1], sold[1], *shorts]
        starts = [*longs, np.where(self.apart, bought[0], 0), np.where(self.apart, sold[0], 0)]
        return np.stack(starts), np.stack(ends)

    def inside(self, lots: Integers) -> Mask:
        """Whether these numbers of lots (…, n) are points; a close is not asked about."""
        if self.plain:
            return (lots >= self.lowest) & (lots <= self.highest)
        low, high = self.intervals
        found = (lots == 0) & self.stays
        for start, end in zip(low, high, strict=True):
            found |= (lots >= start) & (lots <= end)
        return np.asarray(found)

    @cached_property
    def minimums(self) -> bool:
        """Whether some asset's orders have a minimum above one lot."""
        return bool(np.any(self.least > 1))

    @cached_property
    def jumping(self) -> Mask:
        """The assets of which an order or a position costs, or counts, for being one: mixtures jump over their lots."""
        jumping = self.apart | (self.least > 1)
        if self.problem.fees is not None:
            jumping |= self.problem.fees.most > 0
        counts = Counts.of(self.problem)
        jumping |= (counts.orders + counts.names).any(axis=0)
        jumping[self.problem.cash] = False
        return jumping

    @cached_property
    def jumps(self) -> bool:
        """Whether any asset does."""
        return bool(self.jumping.any())

    def empty(self) -> Indices:
        """The assets for which no point at all lies within their bounds."""
        low, high = self.intervals
        return np.flatnonzero(~(self.stays | np.any(low <= high, axis=0) | self.closable))

    def within_budget(self) -> Lots:
        """The same plans: without lots that leave the others, at their least and their most, no way to add up to 1."""
        problem, before = self.problem, self.problem.before
        low, high = before + self.lowest * self.size, before + self.highest * self.size
        low, high = (np.where(self.lowest > self.highest, 0.0, edge) for edge in (low, high))
        low, high = np.where(self.closable, np.minimum(low, 0), low), np.where(self.closable, np.maximum(high, 0), high)
        low[problem.cash], high[problem.cash] = problem.lower[problem.cash], problem.upper[problem.cash]
        most, least = 1.0 - (low.sum() - low) + _BUDGET, 1.0 - (high.sum() - high) - _BUDGET
        with np.errstate(over="ignore"):
            highest = _whole(np.floor((most - before) / self.size))
            lowest = _whole(np.ceil((least - before) / self.size))
        lowest, highest = np.maximum(self.lowest, lowest), np.minimum(self.highest, highest)
        lowest[problem.cash] = highest[problem.cash] = 0
        return replace(self, lowest=lowest, highest=highest, closable=self.closable & (least <= 0) & (most >= 0))

    def nearest(self, trades: Array, upwards: Mask | bool) -> tuple[Integers, Mask]:
        """The allowed point next to these trades on one side, or failing that on the other: (lots, closed)."""
        wanted = np.clip(to_lots(trades / self.size, upwards), self.lowest, self.highest).astype(np.int64)
        return self._allowed(wanted, np.broadcast_to(upwards, wanted.shape))

    def _allowed(self, lots: Integers, upwards: Mask) -> tuple[Integers, Mask]:
        """These numbers of lots, moved out of gaps and into the range: on this side if that goes, or on the other."""
        if self.plain:
            empty = self.lowest > self.highest
            return np.where(empty, 0, lots), np.broadcast_to(empty & self.closable, lots.shape)
        low, high = (edge.reshape(len(edge), *(1,) * (lots.ndim - 1), -1) for edge in self.intervals)
        zero = np.zeros_like(lots)
        inside = np.clip(lots, np.minimum(low, high), high)
        options = np.concatenate([inside, zero[None]])
        valid = np.concatenate(
            [np.broadcast_to(low <= high, inside.shape), np.broadcast_to(self.stays, inside.shape[1:])[None]]
        )
        away = (options - lots).astype(np.float64)
        wrong_side = (away != 0) & ((away > 0) != upwards)
        cost = np.where(valid, np.abs(away) + np.where(wrong_side, 2.0**70, 0.0), np.inf)
        best = np.argmin(cost, axis=0)[None]
        none = ~valid.any(axis=0)
        moved = np.take_along_axis(options, best, axis=0)[0]
        return np.where(none, 0, moved), none & self.closable

    def around(self, weights: Array) -> Points:
        """The lot points next to these weights in each interval of lots, no order, the close; (6 or 10, n)."""
        problem, cash = self.problem, self.problem.cash
        exactly = (weights - problem.before) / self.size
        down, up = np.floor(exactly), np.ceil(exactly)
        low, high = (edges.astype(float) for edges in self.intervals)
        nothing = np.zeros_like(exactly)
        nearest = [np.minimum(np.maximum(k, a), b) for a, b in zip(low, high, strict=True) for k in (down, up)]
        lots = np.stack([*nearest, nothing, nothing])
        valid = np.concatenate([np.repeat(low <= high, 2, axis=0), self.stays[None], self.closable[None]])
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

    def snapped(self, lots: Integers, closed: Mask) -> tuple[Integers, Mask]:
        """These numbers of lots and closes where they are points here, and the nearest points where they are not."""
        kept = np.where(closed, self.closable, self.inside(lots))
        if kept.all():
            return lots, closed
        near, ends = self.closest(self.problem.before + self.trades(lots, closed))
        return np.where(kept, lots, near), np.where(kept, closed, ends)

    def indicators(self, lots: Integers, closed: Mask) -> tuple[Mask, Mask]:
        """Which of these points (…, n) have an order, and which a position."""
        ordered = closed | (lots != 0)
        return ordered, ~closed & (ordered | (self.problem.before != 0))

    def trades(self, lots: Integers, closed: Mask) -> Array:
        """z of these numbers of lots, in fractions of NAV."""
        return np.where(closed, -self.problem.before, lots * self.size)

    def traded(self, quantities: tuple[Fraction, ...]) -> tuple[Integers, Mask]:
        """The whole lots, and closes, next to these quantities: what `quantities` is made of."""
        closed = self.closable & np.array([q % lot != 0 for q, lot in zip(quantities, self.lot, strict=True)])
        lots = np.array([q // lot for q, lot in zip(quantities, self.lot, strict=True)], dtype=np.int64)
        return np.where(closed, 0, lots), closed

    def quantities(self, lots: Integers, closed: Mask) -> tuple[Fraction, ...]:
        """The traded quantities, exact."""
        held = self.problem.portfolio.exact_quantity
        return tuple(-q if c else int(k) * lot for k, lot, c, q in zip(lots, self.lot, closed, held, strict=True))


def _grid(problem: Problem, step: Step) -> tuple[list[Fraction], list[int]]:
    """Each asset's lot, and the least number of lots of an order."""
    portfolio = problem.portfolio
    lots, least = [], []
    for i, price in enumerate(portfolio.exact_price):
        lot, need = order_sizes(step, i, price)
        finest = _quantum(portfolio.nav / float(portfolio.price[i]))
        lots.append(_at_least(lot, finest) if lot > 0 else finest)
        least.append(min(max(1, -((-need) // lots[-1])), _MANY))  # minimums are inclusive
    return lots, least


def _range(problem: Problem, lower: Array, lots: list[Fraction], size: Array) -> tuple[Integers, Integers]:
    """The lots from and to which trades stay within the bounds."""
    with np.errstate(over="ignore"):
        lowest = np.ceil((lower - SLACK - problem.before) / size)
        highest = np.floor((problem.upper + SLACK - problem.before) / size)
    for i, (held, lot) in enumerate(zip(problem.portfolio.exact_quantity, lots, strict=True)):
        # A bound of 0 is exact: not one unit more than is held can be sold, nor more repaid than is owed.
        if lower[i] == 0:
            lowest[i] = max(float(-(held // lot)), lowest[i])
        if problem.upper[i] == 0:
            highest[i] = min(float((-held) // lot), highest[i])
    return _whole(lowest), _whole(highest)


def _whole(lots: Array) -> Integers:
    return np.clip(lots, -(2.0**62), 2.0**62).astype(np.int64)


def _largest(problem: Problem, step: Step, lots: list[Fraction]) -> list[Fraction]:
    """How many lots an order may have at most, not rounded."""
    most = [Fraction(_MANY)] * len(lots)
    for i, price in enumerate(problem.portfolio.exact_price):
        for limit, unit in ((step.max_quantity, lots[i]), (step.max_notional, lots[i] * price)):
            if limit is not None and np.isfinite(limit[i]):
                most[i] = min(most[i], exact(float(limit[i])) / unit)
    return most


def _zero(problem: Problem, lots: list[Fraction]) -> tuple[Mask, Mask, Integers, Integers]:
    """(holds, apart, long_from, short_to) of `Lots`."""
    account, n = problem.portfolio, len(lots)
    holds, apart = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    long_from, short_to = np.full(n, -_MANY), np.full(n, _MANY)
    named = np.any(Counts.of(problem).names, axis=0)
    for i, least in enumerate(least_positions(problem)):
        if i == problem.cash or not (least or named[i]):
            continue
        held, unit = account.exact_quantity[i], lots[i] * account.exact_price[i]
        apart[i] = True
        holds[i] = held == 0 or abs(held) * account.exact_price[i] >= least
        # From what is held to a position of the least size, or to one of a lot's part where only names count.
        up, down = (least - held * account.exact_price[i]) / unit, (-least - held * account.exact_price[i]) / unit
        long_from[i] = min(max(-(-up // 1) if least else up // 1 + 1, -_MANY), _MANY)
        short_to[i] = min(max(down // 1 if least else -(-down // 1) - 1, -_MANY), _MANY)
    return holds, apart, long_from, short_to


def _quantum(units: float) -> Fraction:
    """The power of ten just below `QUANTUM` of the NAV, in units of an asset of which NAV buys `units`."""
    # Of the decimals that stand for the float: the last bit of a logarithm differs between processors.
    return Fraction(10) ** Decimal(repr(QUANTUM * float(units))).adjusted()


def _at_least(lot: Fraction, finest: Fraction) -> Fraction:
    """The least power of ten times this lot that is not below `finest`."""
    while lot < finest:
        lot *= 10
    return lot
