"""Newton's iteration on a chunk of duals, in numpy: from prices that are guessed to those at which every row is kept.

Three things make it robust. The step length is the zero of the directional derivative, found by bracketing. Prices
of rows stay ≥ 0: a row at 0 that is kept takes no part in the step. An asset without curvature of its own (no
specific risk) gets a small proximal weight around its last value, moved along until it pulls no more: the proximal
point method, exact in the limit.

Sources: Rockafellar (1976) for the proximal point method; Qi and Sun (1993) for the semismooth Newton method;
Bertsekas (1982) for the bounds on the prices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.optimizer.dual import Dual, Point
from equipoise.optimizer.line_search import ACCEPTED, Line, searched

SOLVED, INFEASIBLE, UNSOLVED = 0, 1, 2

STEPS = 60
RAYS = (12, 25, 45, STEPS)  # the steps after which it looks for a proof that nothing is feasible,
FAR = 1e6  # and the sum of row prices (NAV per year and unit) from which on it does after every step
EXACT, NEARLY = 1e-13, 1e-11  # residuals in NAV: done; done if it gets no better
RECENTRE = 1e-7  # a residual this small is near enough to move the proximal centres
PULL = 1e-17  # what the proximal term may still pull, in NAV per year and unit
SINGULAR, FADING = 1e-9, 1e-5  # ridges, of the diagonal
HELD = 1e-3  # of the curvature if all were free, for a price with which no asset is free to move
NO_CURVATURE = 0.3e-3  # of the asset's whole variance
PROXIMAL, PROXIMAL_RISKLESS = 1e-3, 1e-5  # of its own variance, or of the largest


@dataclass(frozen=True, eq=False)
class _State:
    """A chunk on its way: the smoothed dual, the point, and the proximal term."""

    at: NDArray[np.intp]  # positions in the stack
    dual: Dual
    smooth: Dual
    point: Point
    centre: Array
    weight: Array  # of the proximal term; 0 where there is none
    scale: Array  # (B, K): the curvature of each price if every asset were free
    before: Array  # the last residual

    def take(self, at: Any) -> _State:
        arrays = {name: getattr(self, name)[at] for name in ("at", "centre", "weight", "scale", "before")}
        return _State(dual=self.dual.take(at), smooth=self.smooth.take(at), point=self.point.take(at), **arrays)

    def recentred(self, which: NDArray[np.bool_]) -> _State:
        """With the proximal centres of these problems at their weights."""
        centre = np.where(which[:, None], self.point.weights, self.centre)
        smooth = _smoothed(self.dual, centre, self.weight)
        return replace(self, centre=centre, smooth=smooth, point=smooth.at(self.point.prices))


def _smoothed(dual: Dual, centre: Array, weight: Array) -> Dual:
    """The dual with ½·weight·(w − centre)² added to every asset."""
    if not weight.any():
        return dual
    assets = dual.assets
    curvature = assets.curvature + weight
    both = (assets.curvature * assets.centre + weight * centre) / np.where(curvature > 0, curvature, 1.0)
    return replace(dual, assets=replace(assets, curvature=curvature, centre=np.where(weight > 0, both, assets.centre)))


def _started(dual: Dual, at: NDArray[np.intp]) -> _State:
    assets, k = dual.assets, dual.factors
    variance = dual.aversion * np.square(dual.linear[..., :k, :]).sum(axis=-2) + assets.curvature
    largest = variance.max(axis=1, keepdims=True)
    small = assets.curvature <= NO_CURVATURE * variance
    weight = np.where(variance > 0, PROXIMAL * variance, PROXIMAL_RISKLESS * np.where(largest > 0, largest, 1.0))
    weight = np.where(small, weight, 0.0)
    centre = np.minimum(np.maximum(assets.before, assets.lower), assets.upper)
    smooth = _smoothed(dual, centre, weight)
    # Prices of the factors as they are at the holdings.
    prices = np.zeros_like(dual.limits)
    held = np.matmul(dual.linear[..., :k, :], centre[..., None])[..., 0]
    prices[:, :k] = dual.aversion * (held - dual.limits[:, :k])
    steepest = np.abs(np.broadcast_to(dual.linear, (dual.size, *dual.linear.shape[-2:])))
    if dual.kinks or dual.cost is not None:
        steepest = steepest.copy()
        for matrix in dual.kinks.values():
            steepest[:, dual.rows] += np.abs(matrix)
        if dual.cost is not None:
            rate = np.broadcast_to(dual.horizon * (np.abs(assets.buy) + np.abs(assets.sell)), centre.shape)
            steepest[:, dual.rows] += dual.cost_of_entries * rate[:, None, :]
    scale = np.square(steepest).sum(axis=-1) / np.median(smooth.assets.curvature, axis=1)[:, None]
    scale = np.maximum(scale, 1e-9 * scale.max(axis=1, keepdims=True, initial=0.0))
    return _State(at, dual, smooth, smooth.at(prices), centre, weight, scale, np.full(len(at), np.inf))


class Ends(NamedTuple):
    """Where the iteration ended: codes (SOLVED: still to be certified; INFEASIBLE: proven), weights (B, n), prices
    (B, K) and steps."""

    code: NDArray[np.intp]
    weights: Array
    prices: Array
    steps: NDArray[np.intp]


def iterated(dual: Dual, *, steps: int = STEPS) -> Ends:
    """Newton's method on these problems, all at once."""
    size = dual.size
    ends = Ends(
        code=np.full(size, UNSOLVED),
        weights=np.full(dual.assets.before.shape, np.nan),
        prices=np.zeros_like(dual.limits),
        steps=np.zeros(size, dtype=np.intp),
    )
    state = _started(dual, np.arange(size))
    for step in range(steps + 1):
        pinned = _pinned(state)
        residual = np.abs(np.where(pinned, 0.0, state.point.gradient)).max(axis=1, initial=0.0)
        pull = np.abs(state.weight * (state.point.weights - state.centre)).max(axis=1)
        size_of_prices = _size(state)
        stalled = (residual <= NEARLY) & (residual > 0.1 * state.before)
        still = pull <= PULL * (1.0 + 100.0 * size_of_prices)
        done = ((residual <= EXACT) | stalled) & still
        ends.steps[state.at] = step
        ends.code[state.at[done]] = SOLVED
        ends.weights[state.at[done]] = state.point.weights[done]
        ends.prices[state.at[done]] = state.point.prices[done]
        far = ~done & ((size_of_prices > FAR) | (step in RAYS))
        if far.any():
            proven = far & infeasible(state.dual, state.point.prices)
            ends.code[state.at[proven]] = INFEASIBLE
            done = done | proven
        if done.all() or step == steps:
            break
        if done.any():
            state, residual, still = state.take(~done), residual[~done], still[~done]
            pinned = pinned[~done]
        off = (residual <= RECENTRE) & ~still
        state = replace(state, before=np.where(off & (residual > NEARLY), np.inf, residual))
        if off.any():
            state = state.recentred(off)
            pinned = _pinned(state)
        state = _stepped(state, pinned)
    return ends


def infeasible(dual: Dual, prices: Array) -> NDArray[np.bool_]:
    """Whether these prices prove that nothing is feasible: the bound of the zero function is above 0."""
    return np.asarray(dual.bound(prices, objective=0.0) > 1e-9 * np.abs(prices[:, dual.factors :]).sum(axis=1))


def _size(state: _State) -> Array:
    return np.asarray(np.abs(state.point.prices[:, state.dual.factors :]).sum(axis=1))


def _pinned(state: _State) -> NDArray[np.bool_]:
    """Prices of rows that are 0 and would fall: these rows are kept anyway."""
    rows, point = state.dual.rows, state.point
    pinned = np.zeros(point.prices.shape, dtype=bool)
    pinned[:, rows] = (point.prices[:, rows] <= 0) & (point.gradient[:, rows] <= 0)
    return pinned


def _stepped(state: _State, pinned: NDArray[np.bool_]) -> _State:
    """One step: the Newton direction, as far as prices stay ≥ 0 and the dual rises."""
    dual, point, rows = state.smooth, state.point, state.dual.rows
    direction = _direction(state, pinned)
    room = np.where(direction[:, rows] < 0, -point.prices[:, rows] / direction[:, rows], np.inf)
    furthest = room.min(axis=1, initial=np.inf)
    length = np.minimum(1.0, furthest)

    def moved(length: Array, which: Any) -> Array:
        prices = point.prices[which] + length[:, None] * direction[which]
        # A row whose price reaches 0 is exactly at 0.
        ends = room[which] <= length[:, None] * (1.0 + 1e-9)
        prices[:, rows] = np.where(ends, 0.0, np.maximum(prices[:, rows], 0.0))
        return np.asarray(prices)

    there = dual.at(moved(length, slice(None)))
    step = length[:, None] * direction
    here, slope = (point.gradient * step).sum(axis=1), (there.gradient * step).sum(axis=1)
    again = np.flatnonzero((slope < -ACCEPTED * here) | ((slope > 0.5 * here) & (furthest > length)))
    if len(again):
        part = dual.take(again)
        line = Line.between(part, point.take(again), there.take(again), step[again])
        factor = searched(line, here[again], slope[again], furthest[again] / length[again])
        better = part.at(moved(factor * length[again], again))
        there.put(again, better)
    return replace(state, point=there)


def _direction(state: _State, pinned: NDArray[np.bool_]) -> Array:
    """Newton's direction on the prices that are not pinned."""
    dual, point = state.smooth, state.point
    curvature = dual.curvature(point)
    price = np.arange(curvature.shape[1])
    diagonal = curvature[:, price, price]
    # Where no asset is free to move with a price, the step is that of the slope, as if all were. Where rows may do the
    # same to all that are free, a ridge that fades with the residual keeps the step from running off.
    residual = np.abs(np.where(pinned, 0.0, point.gradient)).max(axis=1, keepdims=True)
    is_row = price >= dual.factors
    several = np.sum(is_row & ~pinned, axis=1, keepdims=True) > 1
    ridge = (SINGULAR + FADING * np.minimum(residual, 1.0)) * diagonal * (several & is_row)
    curvature[:, price, price] += np.where(diagonal > 1e-9 * state.scale, ridge, HELD * state.scale)
    while True:
        system = np.where(pinned[:, :, None] | pinned[:, None, :], 0.0, curvature)
        system[:, price, price] += pinned
        unit = 1.0 / np.sqrt(system[:, price, price])
        slope = np.where(pinned, 0.0, point.gradient) * unit
        system *= unit[:, :, None] * unit[:, None, :]
        direction = unit * np.linalg.solve(system, slope[..., None])[..., 0]
        wrong = np.zeros_like(pinned)
        wrong[:, dual.rows] = (point.prices[:, dual.rows] <= 0) & (direction[:, dual.rows] < 0)
        wrong &= ~pinned
        if not wrong.any():
            return np.asarray(direction)
        pinned = pinned | wrong
