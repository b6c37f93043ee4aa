"""A lower bound on every whole-lot plan, tight also where lots are coarse or orders have a minimum.

The prices of the lot dual (`bounds.dual`) come from the program over the hulls of the assets' lot points
(`bounds.hull`); points that these prices would rather take are added until there are none, or too little is left to
gain. The risk is split (`points.risk_split`) so that its diagonal favours the assets that the hulls mix most. The bound
is concave in that diagonal, and what they mix is its slope: mean slopes converge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.pieces import Array, Indices, Mask
from equipoise.optimizer.lots.bounds import hull as lot_hull
from equipoise.optimizer.lots.bounds.dual import LotDual, Minimum, Planes, Prices
from equipoise.optimizer.lots.points import risk_split as lot_split
from equipoise.optimizer.lots.points.points import QUANTUM, Integers, Lots, Points, first
from equipoise.optimizer.lots.points.risk_split import Split
from equipoise.optimizer.problem.effort import ENDLESS, Clock
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution

_ADDED = 4  # rounds of adding points to the hulls
LARGEST = 200  # assets for which a split is searched
_SPLITS_OF_JUMPS = 3  # times as many splits where fees, counts and minimums make mixtures jump
_NEAR = 0.005  # of the objective: what is left for another split is not worth it
_EVEN = 1e-9  # shares that are no nearer to each other differ
_TIGHT, _LITTLE = 1e-4, 0.1  # what is left to gain is too little: of the objective, of what would be enough


@dataclass(frozen=True, eq=False)
class LotBound:
    """The bound, and what found it: prices, the hulls' points, the mean weights and variances (n,) of their mixture.

    `scale` is the size of the objective that the search for prices assumed; `mixed` the points of that mixture and
    their shares (K, n).
    """

    value: float
    dual: LotDual
    points: Points
    scale: float
    prices: Prices | None = None
    weights: Array | None = None
    spread: Array | None = None
    mixed: tuple[Points, Array] | None = None

    def likeliest(self) -> tuple[Integers, Mask] | None:
        """Each asset's point with the largest share: (lots, closed)."""
        return None if self.mixed is None else _chosen(self.mixed[0], first(-self.mixed[1].T, _EVEN))

    def drawn(self, rng: np.random.Generator) -> tuple[Integers, Mask] | None:
        """A point of each asset, drawn by the shares: (lots, closed)."""
        if self.mixed is None:
            return None
        points, shares = self.mixed
        below = np.cumsum(shares, axis=0) < rng.random(shares.shape[1]) * shares.sum(axis=0)
        return _chosen(points, np.minimum(below.sum(axis=0), len(shares) - 1))


def _chosen(points: Points, which: Indices) -> tuple[Integers, Mask]:
    chosen = points.pick(which[None])
    return chosen.lots[0], chosen.closed[0]


def relaxed(problem: Problem) -> Problem:
    """The problem that bounds are of: rows at the cash with the slope that is never too steep."""
    return replace(problem, cash_side="long") if problem.kinked else problem


def lot_bound(allowed: Lots, solution: Solution, *, enough: float = np.inf, splits: int = 2) -> LotBound:
    """A number that no whole-lot plan's objective is below.

    `solution` is the convex program's; its prices give a first bound, and nothing more is done if that, or a later
    one, is `enough`. `splits`: how often the risk is split anew.
    """
    return Ascent(allowed, solution, enough).climbed(splits, enough)


class Ascent:
    """The bounds that splits of the risk lead to, one after the other; `best` is the best so far.

    It can be stopped and gone on with: more splits begin where fewer ended.
    """

    def __init__(self, allowed: Lots, solution: Solution, enough: float = np.inf, clock: Clock = ENDLESS) -> None:
        problem, allowed = allowed.problem, allowed.within_budget()
        assert solution.weights is not None
        # Without the digits that the convex solver leaves open, and that differ between processors.
        weights = problem.before + QUANTUM * np.round((solution.weights - problem.before) / QUANTUM)
        planes = Planes.of(allowed, replace(solution, weights=weights))
        self.dual = LotDual(allowed, lot_split.given(problem.risk), planes, clock)
        self.points = _first_points(self.dual, weights)
        below, above = self.points.beside(weights)
        between = np.isfinite(below) & np.isfinite(above)
        self.spread = np.where(between, (weights - below) * (above - weights), 0.0)
        self.spread[problem.cash] = 0.0
        variance = problem.risk.variances
        scale = max(abs(solution.objective) + 0.5 * problem.aversion * float(variance @ self.spread), 1e-14)
        # The convex optimum may be at the targets, for nothing, where no plan is.
        scale = max(scale, abs(enough)) if allowed.jumps and np.isfinite(enough) else scale
        part, power = np.frexp(scale)
        scale = float(np.ldexp(np.floor(16.0 * part) / 16.0, power))
        self.best = LotBound(at_convex_prices(self.dual, solution).value, self.dual, self.points, scale)
        if allowed.jumps:
            self.spread = self.spread + _anywhere(allowed, variance, weights)
        self.turn, self.ended = 0, False

    def climbed(self, splits: int, enough: float) -> LotBound:
        """The best bound after so many splits in all, or from when on it is `enough`, or nearly."""
        many = splits * (_SPLITS_OF_JUMPS if self.dual.allowed.jumps else 1)
        while self.turn < many and not self.ended and self.best.value < enough and not self.dual.clock.over:
            self._step(enough)
            if np.isfinite(enough) and enough - self.best.value <= _NEAR * abs(enough):
                break
        return self.best

    def _step(self, enough: float) -> None:
        """One split, and its bound."""
        allowed, spread, best = self.dual.allowed, self.spread, self.best
        split = lot_split.favouring(allowed.problem.risk, spread) if len(spread) <= LARGEST else None
        found = maximised(replace(self.dual, split=split or self.dual.split), self.points, best.scale, enough=enough)
        self.best = found if found.value > best.value or best.weights is None else best
        self.ended = split is None or found.spread is None
        if found.spread is not None:
            mixed = np.where(np.arange(len(spread)) == allowed.problem.cash, 0.0, found.spread)
            part = 1.0 / (0.5 * self.turn + 1.5) if allowed.jumps else 1.0 / (self.turn + 2)
            self.spread, self.points = (1.0 - part) * spread + part * mixed, found.points
        self.turn += 1


def _anywhere(allowed: Lots, variance: Array, weights: Array) -> Array:
    """A spread to begin with where mixtures jump over many lots: the same risk at every asset."""
    problem = allowed.problem
    spread = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
    spread[problem.cash] = 0.0
    count, moved = np.count_nonzero(spread), weights - problem.before
    return spread * (0.25 * float(variance @ moved**2) + 1e-18) / max(int(count), 1)


def maximised(dual: LotDual, points: Points, scale: float, *, enough: float = np.inf, rounds: int = _ADDED) -> LotBound:
    """The best bound of this dual, from these points on, to which others are added in so many `rounds`; `scale` is the
    size of the objective."""
    best = LotBound(-np.inf, dual, points, scale)
    if not np.all(points.valid.any(axis=0)):
        return replace(best, value=np.inf)
    points = dual.with_corners(points)
    for _ in range(rounds):
        if dual.clock.over:
            break
        mixture = lot_hull.solve(dual, points, scale, enough)
        if mixture is None:
            break
        tried = [(dual.at(prices), prices) for prices in (mixture.prices, dual.settled(mixture.prices))]
        minimum, prices = max(tried, key=lambda one: one[0].value)
        if minimum.value > best.value:
            mixed = (points, mixture.shares)
            best = LotBound(minimum.value, dual, points, scale, prices, mixture.weights, mixture.spread, mixed)
        more = dual.with_corners(points.joined(*(one.points for one, _ in tried)).distinct())
        left = mixture.objective - best.value
        little = max(_TIGHT * scale, _LITTLE * (enough - best.value) if np.isfinite(enough) else 0.0)
        if best.value >= enough or left <= little or np.sum(more.valid) == np.sum(points.valid):
            break
        points = more
    return replace(best, points=points)


def restricted(
    found: LotBound, allowed: Lots, *, split: Split | None = None, enough: float = np.inf, rounds: int = _ADDED
) -> LotBound:
    """The bound of a part of the lots, from that of them all on; its split of the risk, unless another is given."""
    kept, cash = found.points, allowed.problem.cash
    at = found.weights if found.weights is not None else allowed.problem.before
    valid = kept.valid & np.where(kept.closed, allowed.closable, allowed.inside(kept.lots))
    valid[:, cash] = kept.valid[:, cash]
    points = replace(kept, valid=valid).joined(allowed.around(at)).distinct()
    dual = replace(found.dual, allowed=allowed, split=split or found.dual.split)
    return maximised(dual, points, found.scale, enough=enough, rounds=rounds)


def at_convex_prices(dual: LotDual, solution: Solution) -> Minimum:
    """The bound at the prices of a convex program: of this problem, or of one with the same rows and other bounds."""
    problem, given = dual.allowed.problem, solution.prices
    assert solution.weights is not None
    rows = np.zeros(len(dual.limits))
    if given is not None and np.all(np.isfinite(given.rows)) and np.all(np.isfinite(given.cones)):
        cones = [p for (_, c), p in zip(problem.cones, given.cones, strict=True) if c.of(solution.weights) > 0]
        of_counts = np.zeros(len(dual.counts.upper))
        found = np.concatenate([given.rows, cones, [1.0] if given.slopes is not None else [], of_counts])
        # A stricter form of the problem may have had more rows; then the hulls find the prices.
        rows = found if len(found) == len(rows) else rows
    factors = problem.aversion * (dual.split.factors @ (solution.weights - problem.target))
    return dual.at(dual.settled(Prices(factors, rows, 0.0)))


def _first_points(dual: LotDual, weights: Array) -> Points:
    """The lot points around these weights: next to them, a lot further, least orders, no order, a close."""
    cash, (low, high) = dual.allowed.problem.cash, dual.ranges
    points, *wider = (dual.allowed.around(weights + step * dual.allowed.size) for step in (0.0, -1.0, 1.0))
    points = points.joined(*wider)
    if dual.corners is not None:
        return dual.with_corners(points)
    held = np.clip(weights[cash] + np.array([0.0, -0.1, 0.1, -0.5, 0.5, -1.0]), low[cash], high[cash])
    points.weights[: len(held), cash] = held
    points.valid[:, cash] = np.arange(len(points.valid)) < len(held)
    return points.distinct()
