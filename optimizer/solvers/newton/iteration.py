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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array, Index
from equipoise.optimizer.solvers.newton.dual import ALL, Dual, Point
from equipoise.optimizer.solvers.newton.line_search import ACCEPTED, Line, searched

SOLVED, INFEASIBLE, UNSOLVED = 0, 1, 2

STEPS = 100
RAYS = (12, 25, 45, 70, STEPS)  # the steps after which it looks for a proof that nothing is feasible,
FAR = 1e6  # and the sum of row prices (NAV per year and unit) from which on it does after every step
EXACT, NEARLY = 1e-13, 1e-11  # residuals in NAV: done; done if it gets no better
RECENTRE = 1e-9  # a residual this small is near enough to move the proximal centres
ROUNDING = 4 * float(np.finfo(float).eps)  # of a slope, of the sum of its terms' sizes
STALLED = 0.5  # no better: more than this part of the least residual so far
SOFTER, SOFTEST = 0.1, 1e-9  # what is left of the proximal weights each time their centres move, and at last
TURNS = 3  # at most so many times the number of prices, for the active set of a step
MANY = 64  # from more prices on, those that are pinned are left out of the systems
SINGULAR = 1e-13  # the least ridge, of the diagonal
#: What each NAV of residual adds to it: of the diagonal of rows, and for prices with which no asset is free to move, of
#: their curvature if all were.
RIDGE, HELD = 1e-5, 1e-3
NO_CURVATURE, NO_CURVATURE_AT_ALL = 0.3e-3, 1e-9  # of the asset's whole variance, of the largest
#: The proximal weights at first, of an asset's own variance, and, where they lead nowhere, of further tries; at least
#: so much of the largest variance.
PROXIMAL, PROXIMAL_RISKLESS = (0.1, 1.0, 1e-2), 1e-5


@dataclass(frozen=True, eq=False)
class _State:
    """A chunk on its way: the smoothed dual, the point, and the proximal term."""

    at: NDArray[np.intp]  # positions in the stack
    dual: Dual
    smooth: Dual
    point: Point
    centre: Array
    weight: Array  # of the proximal term; 0 where there is none
    least: Array  # down to which it falls
    scale: Array  # (B, K): the curvature of each price if every asset were free
    before: Array  # the least residual at these centres

    def take(self, at: Index) -> _State:
        arrays = {name: getattr(self, name)[at] for name in ("at", "centre", "weight", "least", "scale", "before")}
        dual = self.dual.take(at)
        return _State(dual=dual, smooth=self.smooth.take(at, of=dual), point=self.point.take(at), **arrays)

    @property
    def prices(self) -> Array:
        return self.smooth.whole(self.point.prices)

    def recentred(self, which: NDArray[np.bool_]) -> _State:
        """With the proximal centres of these problems at their weights, and a smaller weight on them."""
        centre = np.where(which[:, None], self.point.weights, self.centre)
        weight = np.where(which[:, None], np.maximum(self.weight * SOFTER, self.least), self.weight)
        base = np.where(which[:, None], self.prices, 0.0 if self.smooth.base is None else self.smooth.base)
        smooth, left = _smoothed(self.dual, base, centre, weight), np.where(which[:, None], 0.0, self.point.prices)
        return replace(self, centre=centre, weight=weight, smooth=smooth, point=smooth.at(left))


def _smoothed(dual: Dual, base: Array, centre: Array, weight: Array) -> Dual:
    """The dual with ½·weight·(w − centre)² added to every asset, in changes of the prices at `base`, if any."""
    own = (base != 0).any(axis=1, keepdims=True) | weight.any(axis=1, keepdims=True)
    if not own.any():
        return dual
    assets = dual.assets
    curvature = assets.curvature + weight
    both = (assets.curvature * assets.centre + weight * centre) / np.where(curvature > 0, curvature, 1.0)
    start = replace(dual.priced(base), curvature=curvature, centre=np.where(weight > 0, both, assets.centre))
    sides = np.where(own, np.sign(centre), 0.0), np.where(own, np.sign(centre - assets.before), 0.0)
    return replace(dual, base=np.asarray(base), start=start.seen_from(*sides), sides=sides)


def _started(dual: Dual, at: NDArray[np.intp], proximal: float) -> _State:
    assets, k = dual.assets, dual.factors
    variance = dual.aversion * np.square(dual.linear[..., :k, :]).sum(axis=-2) + assets.curvature
    largest = (variance + 2.0 * assets.quadratic).max(axis=1, keepdims=True)
    small = assets.curvature <= np.maximum(NO_CURVATURE * variance, NO_CURVATURE_AT_ALL * largest)
    least = PROXIMAL_RISKLESS * np.where(largest > 0, largest, 1.0)
    weight = np.where(small, np.maximum(proximal * variance, least), 0.0)
    centre = np.minimum(np.maximum(assets.before, assets.lower), assets.upper)
    # Prices of the factors as they are at the holdings.
    prices = np.zeros_like(dual.limits)
    held = np.matmul(dual.linear[..., :k, :], centre[..., None])[..., 0]
    prices[:, :k] = dual.aversion * (held - dual.limits[:, :k])
    smooth = _smoothed(dual, np.where(weight.any(axis=1, keepdims=True), prices, 0.0), centre, weight)
    steepest = np.abs(np.broadcast_to(dual.linear, (dual.size, *dual.linear.shape[-2:])))
    if dual.kinks or dual.cost is not None:
        steepest = steepest.copy()
        for matrix in dual.kinks.values():
            steepest[:, dual.rows] += np.abs(matrix)
        if dual.cost is not None:
            rate = np.broadcast_to(dual.horizon * (np.abs(assets.buy) + np.abs(assets.sell)), centre.shape)
            steepest[:, dual.rows] += dual.cost_of_entries * rate[:, None, :]
    scale = np.square(steepest).sum(axis=-1) / np.median(assets.curvature + weight, axis=1)[:, None]
    scale = np.maximum(scale, 1e-9 * scale.max(axis=1, keepdims=True, initial=0.0))
    point = smooth.at(prices - smooth.whole(np.zeros_like(prices)))
    return _State(at, dual, smooth, point, centre, weight, SOFTEST * weight, scale, np.full(len(at), np.inf))


class Ends(NamedTuple):
    """Where the iteration ended: codes (SOLVED: still to be certified; INFEASIBLE: proven), weights (B, n), prices
    (B, K) and steps."""

    code: NDArray[np.intp]
    weights: Array
    prices: Array
    steps: NDArray[np.intp]


def iterated(dual: Dual, proximal: float = PROXIMAL[0]) -> Ends:
    """Newton's method on these problems, all at once; `proximal` as in `PROXIMAL`."""
    size = dual.size
    ends = Ends(
        code=np.full(size, UNSOLVED),
        weights=np.full(dual.assets.before.shape, np.nan),
        prices=np.zeros_like(dual.limits),
        steps=np.zeros(size, dtype=np.intp),
    )
    state = _started(dual, np.arange(size), proximal)
    for step in range(STEPS + 1):
        pinned = _pinned(state)
        residual = np.abs(np.where(pinned, 0.0, state.point.gradient)).max(axis=1, initial=0.0)
        still = (residual > RECENTRE) | _still(state, residual <= RECENTRE)
        size_of_prices = np.abs(state.prices[:, dual.factors :]).sum(axis=1)
        stalled = (residual <= RECENTRE) & (residual > STALLED * state.before)
        done = ((residual <= EXACT) | (stalled & (residual <= NEARLY))) & still
        if step == STEPS:
            done |= residual <= NEARLY
        off = ~still | stalled
        ends.steps[state.at] = step
        ends.code[state.at[done]] = SOLVED
        ends.weights[state.at[done]] = state.point.weights[done]
        ends.prices[state.at[done]] = state.prices[done]
        far = ~done & ((size_of_prices > FAR) | (step in RAYS))
        if far.any():
            proven = far & infeasible(state.dual, state.smooth.ray(state.point.prices))
            ends.code[state.at[proven]] = INFEASIBLE
            done = done | proven
        if done.all() or step == STEPS:
            break
        if done.any():
            state, residual, off = state.take(~done), residual[~done], off[~done]
            pinned = pinned[~done]
        state = replace(state, before=np.where(off, np.inf, np.minimum(residual, state.before)))
        if off.any():
            state = state.recentred(off)
            pinned = _pinned(state)
        state = _stepped(state, pinned)
    return ends


def infeasible(dual: Dual, prices: Array) -> NDArray[np.bool_]:
    """Whether these prices prove that nothing is feasible: the bound of the zero function is above 0."""
    return np.asarray(dual.bound(prices, objective=0.0) > 1e-9 * np.abs(prices[:, dual.factors :]).sum(axis=1))


def _still(state: _State, asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the proximal term is at rest: weights no further from its centre than they are exact, or pulled by no
    more than the rounding of the slopes, which are sums of prices."""
    if not (asked.any() and state.weight.any()):
        return asked
    away = np.abs(state.point.weights - state.centre)
    slopes = state.dual.sizes(state.prices)
    pull = state.weight * away
    return np.asarray(np.all((away <= EXACT) | (pull <= ROUNDING * slopes) | (pull <= 0), axis=1))


def _pinned(state: _State) -> NDArray[np.bool_]:
    """Prices of rows that are 0 and would fall: these rows are kept anyway."""
    rows, point = state.dual.rows, state.point
    pinned = np.zeros(point.prices.shape, dtype=bool)
    pinned[:, rows] = (state.prices[:, rows] <= 0) & (point.gradient[:, rows] <= 0)
    return pinned


def _stepped(state: _State, pinned: NDArray[np.bool_]) -> _State:
    """One step: the Newton direction, as far as prices stay ≥ 0 and the dual rises."""
    dual, point, rows = state.smooth, state.point, state.dual.rows
    direction = _direction(state, pinned)
    prices = state.prices
    room = np.where(direction[:, rows] < 0, -prices[:, rows] / direction[:, rows], np.inf)
    furthest = room.min(axis=1, initial=np.inf)
    length = np.minimum(1.0, furthest)
    zero = np.zeros_like(prices) if dual.base is None else -dual.base

    def moved(dual: Dual, length: Array, which: Index = ...) -> Array:
        moved = point.prices[which] + length[:, None] * direction[which]
        # A row whose price reaches 0 is exactly at 0.
        ends, least = room[which] <= length[:, None] * (1.0 + 1e-9), zero[which][:, rows]
        moved[:, rows] = np.where(ends, least, np.maximum(moved[:, rows], least))
        return dual.netted(moved)

    there = dual.at(moved(dual, length))
    step = length[:, None] * direction
    here, slope = (point.gradient * step).sum(axis=1), (there.gradient * step).sum(axis=1)
    exact = np.abs(np.where(pinned, 0.0, point.gradient)).max(axis=1, initial=0.0) <= EXACT
    again = np.flatnonzero(~exact & ((slope < -ACCEPTED * here) | ((slope > 0.5 * here) & (furthest > length))))
    if len(again):
        part = dual.take(again)
        line = Line.along(part, point.take(again), step[again])
        factor = searched(line, here[again], slope[again], furthest[again] / length[again])
        better = part.at(moved(part, factor * length[again], again))
        there.put(again, better)
    return replace(state, point=there)


def _direction(state: _State, pinned: NDArray[np.bool_]) -> Array:
    """Newton's direction: the highest point of the quadratic model at which prices of rows are ≥ 0."""
    dual, point, size = state.smooth, state.point, state.dual.coupling
    if size <= MANY and size == pinned.shape[1]:
        return _working(dual, point, state.prices, state.scale, pinned)
    # Of many rows few bind: each problem by itself, without the prices that are pinned.
    direction = np.zeros_like(point.prices)
    for i in range(len(pinned)):
        one, which = slice(i, i + 1), np.flatnonzero(~pinned[i, :size])
        arguments = dual.take(one), point.take(one), state.prices[one], state.scale[one], pinned[one]
        direction[one, which] = _working(*arguments, which)
    return direction


def _working(
    dual: Dual, point: Point, prices: Array, scale: Array, pinned: NDArray[np.bool_], which: Index = ALL
) -> Array:
    """The direction in these prices (in ascending order)."""
    number = np.arange(pinned.shape[1])[which]
    pinned, gradient, scale = pinned[:, which], point.gradient[:, which], scale[:, which]
    curvature, price = dual.curvature(point, which), np.arange(len(number))
    diagonal = curvature[:, price, price]
    # Where no asset is free to move with a price, the step is that of the slope, as if all were. Where rows may do the
    # same to all that are free, a ridge keeps the step from running off. Both fade with the residual, the ridge to what
    # rounding needs: a price that has far to go for a small residual would creep.
    residual = np.abs(np.where(pinned, 0.0, gradient)).max(axis=1, keepdims=True, initial=0.0)
    is_row = (number >= dual.factors) & (number < dual.factors + dual.row_count)
    held, fading = diagonal <= 1e-9 * scale, np.minimum(residual, 1.0)
    ridge = np.where(held, HELD, RIDGE * (number >= dual.factors))
    curvature[:, price, price] += np.where(held, scale, diagonal) * (SINGULAR + ridge * fading)
    unit = 1.0 / np.sqrt(curvature[:, price, price])
    curvature *= unit[:, :, None] * unit[:, None, :]
    slope, least = gradient * unit, np.where(is_row, -prices[:, which] / unit, -np.inf)
    return np.asarray(unit * _highest(curvature, slope, least, pinned))


def _highest(curvature: Array, slope: Array, least: Array, pinned: NDArray[np.bool_]) -> Array:
    """The x ≥ least that maximises slope·x − ½xᵀ·curvature·x, from x = 0, by its active set; `fixed` is a guess.

    Every turn goes to the highest point on the face of those that are not fixed: cut off at `least` where that is
    higher than here, else as far as x stays ≥ least. So no turn loses height, and it ends (Moré and Toraldo 1991).
    """
    result: Array = np.zeros_like(slope)
    at = np.arange(len(slope))
    x, price, fixed = result, np.arange(slope.shape[1]), pinned

    def rise(x: Array) -> Array:
        return np.asarray(slope - np.matmul(curvature, x[..., None])[..., 0])

    for _ in range(TURNS * (1 + slope.shape[1])):
        free = ~fixed
        system = np.where(free[:, :, None] & free[:, None, :], curvature, 0.0)
        system[:, price, price] += fixed
        rising = rise(x)
        step = np.linalg.solve(system, np.where(fixed, 0.0, rising)[..., None])[..., 0]
        goal = x + step
        short = free & (goal < least)
        cut = np.maximum(goal, least) - x
        higher = np.sum(cut * (rising + rise(x + cut)), axis=1) > 0
        ratio = np.where(short, (least - x) / np.where(short, step, 1.0), np.inf)
        part = np.minimum(1.0, ratio.min(axis=1, initial=1.0))[:, None]
        short &= higher[:, None] | (ratio <= part)
        x = np.where(short, least, np.where(higher[:, None], x + cut, x + part * step))
        result[at] = x
        full = ~np.any(short, axis=1, keepdims=True)
        let_go = fixed & ~pinned & full & (rise(x) > 1e-12 * np.abs(slope).max(axis=1, keepdims=True, initial=0.0))
        fixed = (fixed | short) & ~let_go
        left = np.any(short | let_go, axis=1)
        if not left.any():
            break
        if not left.all():
            at, curvature, slope, least = at[left], curvature[left], slope[left], least[left]
            pinned, fixed, x = pinned[left], fixed[left], x[left]
    return result
