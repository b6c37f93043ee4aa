"""The dual function of a whole-lot problem: given the prices, every asset is a small integer problem on its own.

With the risk split as Σ = diag(d) + GᵀG (`points.risk_split`), any prices λ of the factors G(w − b), μ ≥ 0 of the rows
and ν of the budget give for every plan w in whole lots that keeps the rules

    objective(w) ≥ −|λ|²/(2·aversion) − λᵀGb − μᵀupper − ν + Σᵢ min over i's lot points of  fᵢ(wᵢ) + (Gᵀλ + ν)ᵢ·wᵢ

with fᵢ(w) = (aversion/2)·dᵢ(w − bᵢ)² + costs, carry and priced rows of asset i. fᵢ is convex, so that its minimum over
the whole lots between two limits is next to its minimum over the reals, which is a closed form (`separable`). Fees are
constant on either side of no trade, or kinked once (a minimum commission); limits on counts are rows over 0 and 1. The
settlement cash is the residual and continuous. The formula holds whatever found the prices.

Geoffrion (1974): Lagrangian relaxation for integer programming.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from equipoise.constraints.pieces import Array, Parts, part
from equipoise.optimizer.lots.points.points import Lots, Points
from equipoise.optimizer.lots.points.risk_split import Split
from equipoise.optimizer.problem.counts import Counts
from equipoise.optimizer.problem.effort import ENDLESS, Clock
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE, Solution
from equipoise.optimizer.problem.threshold import Separable

_ROUNDING = 4 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Prices:
    """λ of the factors (k,), μ ≥ 0 of rows, planes and counts, ν of the budget; in NAV per year and unit."""

    factors: Array
    rows: Array
    budget: float


@dataclass(frozen=True, eq=False)
class Planes:
    """Linear rows that cones and custom rules imply: normals (q, n), normals·w ≤ limits (q,)."""

    normals: Array
    limits: Array

    @classmethod
    def of(cls, allowed: Lots, solution: Solution) -> Planes:
        """The supporting planes at the convex optimum."""
        problem, weights, prices = allowed.problem, solution.weights, solution.prices
        normals, limits = [np.zeros((0, len(problem.assets)))], [np.zeros(0)]
        for _, cone in problem.cones:
            if weights is not None and (length := cone.of(weights)) > 0:
                away = weights - cone.centre
                normal = (cone.matrix.T @ (cone.matrix @ away) + cone.diagonal**2 * away) / length
                # |normal·x| ≤ ‖(Mx, δ∘x)‖ by Cauchy-Schwarz.
                normals.append(normal[None])
                limits.append(np.array([cone.upper + normal @ cone.centre]))
        if prices is not None and prices.slopes is not None:
            normals.append(prices.slopes[None])
            limits.append(np.array([-prices.offset]))
        return cls(np.concatenate(normals), np.concatenate(limits))


@dataclass(frozen=True, eq=False)
class Minimum:
    """The dual at some prices: its value, and the points that it takes."""

    value: float
    points: Points


@dataclass(frozen=True, eq=False)
class LotDual:
    """The dual function of the plans within `allowed` (a whole problem's lots, or a part of them)."""

    allowed: Lots
    split: Split
    planes: Planes
    clock: Clock = ENDLESS  # of those who maximise it

    @cached_property
    def counts(self) -> Counts:
        return Counts.of(self.allowed.problem)

    @cached_property
    def limits(self) -> Array:
        return np.concatenate([self.allowed.problem.rows.upper, self.planes.limits, self.counts.upper])

    @cached_property
    def ranges(self) -> tuple[Array, Array]:
        """The bounds (n,) within which points lie; those of the cash are what the others leave it."""
        allowed, problem = self.allowed, self.allowed.problem
        before, cash = problem.before, problem.cash
        low, high = before + allowed.lowest * allowed.size, before + allowed.highest * allowed.size
        # Empty ranges are those of assets that can only be closed.
        only = allowed.lowest > allowed.highest
        low, high = np.where(only, 0.0, low), np.where(only, 0.0, high)
        low = np.where(allowed.closable, np.minimum(low, 0.0), low)
        high = np.where(allowed.closable, np.maximum(high, 0.0), high)
        others = np.arange(len(low)) != cash
        slack = ROUNDING_TOLERANCE * len(low)
        low[cash] = max(problem.lower[cash], 1.0 - float(high[others].sum())) - slack
        high[cash] = min(problem.upper[cash], 1.0 - float(low[others].sum())) + slack
        return low, high

    @cached_property
    def corners(self) -> Array | None:
        """The weights of the cash between which its function is straight at any prices: its bounds, and kinks within.

        None where the cash has risk of its own.
        """
        problem, cash = self.allowed.problem, self.allowed.problem.cash
        if self.split.own[cash] > 0:
            return None
        rows, low, high = problem.rows, self.ranges[0][cash], self.ranges[1][cash]
        found = [low, high]
        if problem.cost.long[cash] + problem.cost.short[cash] != 0 or np.any((rows.long + rows.short)[:, cash]):
            found.append(0.0)
        if np.any((rows.buy + rows.sell)[:, cash]):
            found.append(problem.before[cash])
        return np.unique(np.clip(found, low, high))

    def with_corners(self, points: Points) -> Points:
        """These points, of the cash its corners alone: others would be mixtures of them, and no program could tell how
        much of each is best."""
        if self.corners is None:
            return points
        cash = np.broadcast_to(np.arange(points.valid.shape[1]) == self.allowed.problem.cash, points.valid.shape)
        more = np.broadcast_to(self.corners[:, None], (len(self.corners), cash.shape[1]))
        none = np.zeros(more.shape, dtype=np.int64)
        kept = replace(points, valid=points.valid & ~cash)
        return kept.joined(Points(none, none > 0, more, np.broadcast_to(cash[0], more.shape))).distinct()

    def priced(self, prices: Prices) -> Separable:
        """Each asset's function at these prices, over the reals."""
        problem, m = self.allowed.problem, len(self.allowed.problem.rows.upper)
        planes = prices.rows[m : m + len(self.planes.limits)]
        slope = self.split.factors.T @ prices.factors + planes @ self.planes.normals + prices.budget
        low, high = self.ranges
        own = problem.aversion * self.split.own
        return replace(problem.separable(slope, prices.rows[:m]), curvature=own, lower=low, upper=high)

    def settled(self, prices: Prices) -> Prices:
        """The prices with the budget's at which the cash, wherever it may be, is worth the same."""
        f = self.priced(prices)
        cash = self.allowed.problem.cash
        at = np.clip(0.0, f.lower[cash], f.upper[cash])
        everywhere = np.full(len(f.lower), at + 0.5 * (f.upper[cash] - at))
        return replace(prices, budget=prices.budget - float(f.derivative(everywhere, -1)[cash]))

    def at(self, prices: Prices) -> Minimum:
        """The bound at these prices, safely below its value in real numbers; infinite if an asset has no point."""
        problem, f = self.allowed.problem, self.priced(prices)
        points = self._candidates(f, prices)
        values = np.where(points.valid, f.value(points.weights) + self._jumps(points, prices), np.inf)
        which = np.argmin(values, axis=0)[None]
        best = np.take_along_axis(values, which, axis=0)[0]
        chosen = points.pick(which)
        terms = [
            -0.5 * float(prices.factors @ prices.factors) / problem.aversion,
            -float(prices.factors @ (self.split.factors @ problem.target)),
            -float(prices.rows @ self.limits),
            -prices.budget,
        ]
        value = sum(terms) + float(np.sum(best))
        if not np.isfinite(value):
            return Minimum(value, chosen)
        # What the check of a plan tolerates of each row, and what rounding can have done to these sums.
        tolerated = ROUNDING_TOLERANCE * (float(np.sum(prices.rows)) + abs(prices.budget))
        sizes = np.abs(self.split.factors).T @ np.abs(prices.factors) + abs(prices.budget) + np.abs(f.slope)
        moved = sum(map(abs, terms)) + float(sizes @ np.abs(chosen.weights[0])) + float(np.sum(np.abs(best)))
        return Minimum(value - tolerated - _ROUNDING * (len(best) + len(prices.factors)) * moved, chosen)

    def _per_cost(self, prices: Prices) -> float:
        """What a unit of trading costs is worth at these prices."""
        rows = self.allowed.problem.rows.cost
        return 1.0 / self.allowed.problem.horizon + float(prices.rows[: len(rows)] @ rows)

    def jumps_at(self, prices: Prices) -> tuple[Array, Array]:
        """What an order, and a position, of each asset costs at these prices for being one: (n,) and (n,)."""
        fees, of_counts = self.allowed.problem.fees, prices.rows[len(prices.rows) - len(self.counts.upper) :]
        of_order = of_counts @ self.counts.orders + (0.0 if fees is None else self._per_cost(prices) * fees.most)
        return np.asarray(of_order), np.asarray(of_counts @ self.counts.names)

    def _candidates(self, f: Separable, prices: Prices) -> Points:
        """Points among which each asset's best is: f is convex, and fees bend it at no trade and their kinks only."""
        points, fees = self.allowed.around(f.minimiser()), self.allowed.problem.fees
        if fees is None or not np.any(kinks := fees.kinks):
            return points
        # Below the kink the minimum is paid whatever the size: as if there were no rate.
        free = self._per_cost(prices) * fees.rate
        below = replace(f, buy=f.buy - free, sell=f.sell - free).minimiser()
        return points.joined(*(self.allowed.around(at) for at in (below, f.before - kinks, f.before + kinks)))

    def _jumps(self, points: Points, prices: Prices) -> Array | float:
        """What fees and the prices of counts add to these points."""
        added: Array | float = 0.0
        problem, counts = self.allowed.problem, self.counts
        if problem.fees is not None:
            trades = self.allowed.trades(points.lots, points.closed)
            added = self._per_cost(prices) * problem.fees.each(trades)
        if len(counts.upper):
            of_counts = prices.rows[len(prices.rows) - len(counts.upper) :]
            added = added + np.tensordot(
                of_counts, counts.each(*self.allowed.indicators(points.lots, points.closed)), 1
            )
        return added

    def parts(self, points: Points) -> tuple[Array, Array]:
        """What the points cost a year without coupling, (K, n), and what they add to each row, (m + q, K, n)."""
        problem = self.allowed.problem
        w, trades = points.weights, points.weights - problem.before
        traded = problem.cost.each(trades)
        if problem.fees is not None:
            traded = traded + problem.fees.each(self.allowed.trades(points.lots, points.closed))
        own = 0.5 * problem.aversion * self.split.own * (w - problem.target) ** 2
        cost = own + traded / problem.horizon + problem.cost.carry(w)
        rows = problem.rows.cost[:, None, None] * traded
        for name in Parts.NAMES:
            coefficients = getattr(problem.rows, name)
            if coefficients.any():
                rows = rows + coefficients[:, None, :] * part(name, w, trades)
        counted = self.counts.each(*self.allowed.indicators(points.lots, points.closed))
        return cost, np.concatenate([rows, self.planes.normals[:, None, :] * w, counted])
