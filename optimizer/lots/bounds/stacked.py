"""The bound of whole lots and its prices, of stacks of portfolios: what `bounds.bound` does for one, as arrays (B, n).

For any prices p of the factors and rows, with the cash taken out (`dual`), every asset is on its own, and

    objective ≥ constant − |λ|²/(2·aversion) − p·limits + Σᵢ min over i's lot points of fᵢ(w; p)

where fᵢ is convex, so that the best of its whole lots are next to its minimum over the reals. The best prices maximise
this; they are found by Newton's method on a smooth form of it, the minimum replaced by −τ·log Σ exp(−fᵢ/τ) and the
bounds μ ≥ 0 by τ·log μ, with τ falling at each step. What counts is the sum above at the prices so found, whatever
they are. exp(−fᵢ/τ) also says how each asset's lots would be mixed: draws from it are where a search starts again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from equipoise.constraints.pieces import Array, Index, Indices, Mask, part
from equipoise.optimizer.lots.points.grid import Grid
from equipoise.optimizer.lots.search.descent import between
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton.dual import Dual, Point

_ROUNDS, _FALL = 18, 0.45  # steps, and by how much τ falls at each
_FIRST = 2.0  # τ at first, of what is to be gained for each asset
_WALL = 0.9  # of the way to a price of zero
_HALVINGS = 3
_ROUNDING = 4 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Priced:
    """The bound (B,) at prices (B, K), and points (B, P, n) of each asset with the parts they have in its mixture."""

    value: Array
    prices: Array
    lots: Array
    closed: Mask
    parts: Array

    def take(self, at: Index) -> Priced:
        return Priced(*(getattr(self, f.name)[at] for f in fields(self)))

    def put(self, at: Index, other: Priced) -> None:
        for f in fields(self):
            getattr(self, f.name)[at] = getattr(other, f.name)

    def spread(self, grid: Grid) -> Array:
        """The variance of each asset's mixture (B, n)."""
        before = grid.before[:, None]
        weights = before + np.where(self.closed, -before, self.lots * grid.size[:, None])
        mean = (self.parts * weights).sum(axis=1)
        return np.asarray((self.parts * np.square(weights - mean[:, None])).sum(axis=1))

    def likeliest(self) -> tuple[Array, Mask]:
        """The points (B, n) with the largest parts."""
        which = np.argmax(self.parts, axis=1)[:, None, :]
        return self._picked(which)

    def drawn(self, chance: Array) -> tuple[Array, Mask]:
        """The points (B, n) at which the parts add up to these chances, numbers from 0 to 1."""
        below = np.cumsum(self.parts, axis=1) < chance[:, None, :]
        # A part of 0 is never drawn, whatever rounding did to the sum.
        last = self.parts.shape[1] - 1 - np.argmax(self.parts[:, ::-1] > 0, axis=1)
        return self._picked(np.minimum(below.sum(axis=1), last)[:, None, :])

    def _picked(self, which: Indices) -> tuple[Array, Mask]:
        lots = np.take_along_axis(self.lots, which, axis=1)[:, 0]
        return lots, np.take_along_axis(self.closed, which, axis=1)[:, 0]


@dataclass(frozen=True, eq=False)
class _At:
    """The dual at some prices: the points, f there (inf: no point), trades and weights; the value (B,)."""

    prices: Array
    assets: Separable
    minimiser: Array
    moves: Array
    lots: Array
    closed: Mask
    trades: Array
    weights: Array
    values: Array
    value: Array


def _points(grid: Grid, minimiser: Array, plain: bool) -> tuple[Array, Mask, Mask]:
    """The lot points next to these weights: (B, P, n) lots, closes, and whether there is such a point."""
    down = np.floor((minimiser - grid.before) / grid.size)
    low, high, least = grid.lowest, grid.highest, grid.least
    if plain:
        lots = np.stack([np.minimum(np.maximum(k, low), high) for k in (down, down + 1.0)], axis=1)
        valid = np.ones(lots.shape, dtype=bool)
        valid[:, 1] = lots[:, 1] != lots[:, 0]
        return lots, np.zeros(lots.shape, dtype=bool), valid
    sides = (np.maximum(low, least), high), (low, np.minimum(high, -least))
    lots = np.stack(
        [np.clip(k, *side) for side in sides for k in (down, down + 1.0)] + 2 * [np.zeros_like(low)], axis=1
    )
    some = [side[0] <= side[1] for side in sides]
    holds = (low <= 0) & (high >= 0)
    valid = np.stack([some[0], some[0], some[1], some[1], holds, grid.closable], axis=1)
    for second in (1, 3):
        valid[:, second] &= lots[:, second] != lots[:, second - 1]
    closed = np.zeros(valid.shape, dtype=bool)
    closed[:, -1] = grid.closable
    return np.where(valid, lots, 0.0), closed, valid


def beside(grid: Grid, weights: Array, plain: bool) -> tuple[Array, Array]:
    """The nearest points at or below these weights and at or above them (B, n); ±inf where there is none."""
    lots, closed, valid = _points(grid, weights, plain)
    before, weights = grid.before[:, None, :], weights[:, None, :]
    at = before + np.where(closed, -before, lots * grid.size[:, None, :])
    below = np.where(valid & (at <= weights), at, -np.inf)
    above = np.where(valid & (at >= weights), at, np.inf)
    return below.max(axis=1), above.min(axis=1)


def _at(dual: Dual, grid: Grid, prices: Array, plain: bool) -> _At:
    assets = dual.priced(prices)
    minimiser, moves = assets.response()
    lots, closed, valid = _points(grid, minimiser, plain)
    before = grid.before[:, None, :]
    trades = np.where(closed, -before, lots * grid.size[:, None, :])
    weights = before + trades
    values = np.where(valid, between(assets).value(weights), np.inf)
    best = values.min(axis=1)
    spread = np.square(prices[:, : dual.factors]).sum(axis=1) / (2.0 * dual.aversion)
    priced = prices * dual.limits
    value = dual.constant - spread - priced.sum(axis=1) + best.sum(axis=1)
    # What the check of a plan tolerates of each row, and what rounding can have done to these sums.
    tolerated = ROUNDING_TOLERANCE * prices[:, dual.rows].sum(axis=1)
    sizes = (np.abs(assets.slope) * (np.abs(grid.before) + np.abs(weights).max(axis=1))).sum(axis=1)
    summed = np.matmul(np.abs(prices)[:, None, :], np.abs(dual.linear))[:, 0, :]
    sizes += (summed * np.abs(weights).max(axis=1)).sum(axis=1)
    moved = np.abs(dual.constant) + spread + np.abs(priced).sum(axis=1) + sizes + np.abs(best).sum(axis=1)
    value = value - tolerated - _ROUNDING * (best.shape[1] + prices.shape[1]) * moved
    return _At(prices, assets, minimiser, moves, lots, closed, trades, weights, values, value)


def priced(dual: Dual, grid: Grid, prices: Array, *, plain: bool) -> Priced:
    """The bound at these prices, safely below its value in real numbers; infinite if an asset has no point."""
    at = _at(dual, grid, prices, plain)
    parts = np.zeros(at.values.shape)
    np.put_along_axis(parts, np.argmin(at.values, axis=1)[:, None, :], 1.0, axis=1)
    return Priced(at.value, prices, at.lots, at.closed, parts)


def maximised(dual: Dual, grid: Grid, prices: Array, objective: Array, *, plain: bool) -> Priced:
    """The best bound found from these prices; `objective` (B,) is that of a plan, which says what is to be gained."""
    at = _at(dual, grid, prices, plain)
    best, chosen = at.value, prices
    live = ((at.values < np.inf).sum(axis=1) > 1).sum(axis=1)
    gap = np.maximum(objective - at.value, 1e-12 * np.abs(objective) + 1e-300)
    τ = _FIRST * gap / np.maximum(live, 1)
    rows, k = dual.rows, dual.factors
    # From a price of 0 there is no way to the inside.
    slack = np.maximum(-dual.gradient(prices, at.minimiser)[:, rows], 1e-6)
    start = prices.copy()
    start[:, rows] = np.maximum(start[:, rows], τ[:, None] / slack)
    at = _at(dual, grid, start, plain)
    for _ in range(_ROUNDS):
        smooth, parts = _smooth(dual, at, τ)
        gradient = _gradient(dual, at, parts)
        price = at.prices[:, rows]
        gradient[:, rows] += τ[:, None] / price
        mean = (parts * at.weights).sum(axis=1)
        spread = (parts * np.square(at.weights - mean[:, None])).sum(axis=1)
        moves = np.maximum(at.moves, spread / τ[:, None])
        curvature = dual.curvature(Point(at.prices, at.assets, at.minimiser, moves, gradient))
        own = np.arange(k, k + dual.row_count)
        curvature[:, own, own] += τ[:, None] / np.square(price)
        diagonal = np.arange(curvature.shape[1])
        unit = 1.0 / np.sqrt(curvature[:, diagonal, diagonal])
        curvature *= unit[:, :, None] * unit[:, None, :]
        curvature[:, diagonal, diagonal] += 1e-12
        step = unit * np.linalg.solve(curvature, (gradient * unit)[..., None])[..., 0]
        length = np.ones(len(step))
        if dual.row_count:
            falls = -step[:, rows] / price
            length = np.minimum(1.0, _WALL / np.maximum(falls.max(axis=1), 1e-300))
        there = _at(dual, grid, at.prices + length[:, None] * step, plain)
        for _ in range(_HALVINGS):
            after = _smooth(dual, there, τ)[0]
            worse = after < smooth
            if not worse.any():
                break
            length = np.where(worse, 0.5 * length, length)
            there = _at(dual, grid, at.prices + length[:, None] * step, plain)
        at = there
        improved = at.value > best
        best, chosen = np.where(improved, at.value, best), np.where(improved[:, None], at.prices, chosen)
        τ = τ * _FALL
    at = _at(dual, grid, chosen, plain)
    # The mixture at a τ of what is left for each asset.
    left = np.maximum(objective - best, 1e-12 * np.abs(objective) + 1e-300) / np.maximum(live, 1)
    parts = _smooth(dual, at, left)[1]
    return Priced(best, chosen, at.lots, at.closed, parts)


def _smooth(dual: Dual, at: _At, τ: Array) -> tuple[Array, Array]:
    """The smooth dual (B,), and the parts (B, P, n) that its points have."""
    least = at.values.min(axis=1, keepdims=True)
    parts = np.exp((least - at.values) / τ[:, None, None])
    total = parts.sum(axis=1, keepdims=True)
    barrier = np.log(np.maximum(at.prices[:, dual.rows], 1e-300)).sum(axis=1)
    value = at.value - τ * np.log(total[:, 0]).sum(axis=1) + τ * barrier
    return value, parts / total


def _gradient(dual: Dual, at: _At, parts: Array) -> Array:
    """What the mixture leaves of each row: (B, K)."""
    mean = (parts * at.weights).sum(axis=1)
    bare = replace(dual, kinks={}, cost=None)
    gradient = bare.gradient(at.prices, mean)
    for name, matrix in dual.kinks.items():
        expected = (parts * part(name, at.weights, at.trades)).sum(axis=1)
        gradient[:, dual.rows] += np.matmul(matrix, expected[..., None])[..., 0]
    if dual.cost is not None:
        paid = replace(dual, assets=between(dual.assets)).trading(at.trades)
        gradient[:, dual.rows] += dual.cost * (dual.horizon * (parts * paid).sum(axis=1).sum(axis=1, keepdims=True))
    return gradient
