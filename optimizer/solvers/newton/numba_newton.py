"""The iteration as machine code: the steps and constants of `iteration`, one problem after the other, in loops.

Where numpy takes a whole chunk through memory array by array, here a problem stays in the processor's cache until it
is done, and what is common to all is computed once. The answers agree but for rounding, and numpy certifies both: the
bounds, the proofs of infeasibility and the checks are the same.

Loading this module loads numba.
"""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.threshold import Separable, absent
from equipoise.optimizer.solvers.newton import iteration, line_search
from equipoise.optimizer.solvers.newton.dual import KINKS, Dual
from equipoise.optimizer.solvers.newton.iteration import INFEASIBLE, SOLVED, UNSOLVED, Ends, infeasible
from equipoise.optimizer.solvers.newton.numba_dual import (
    ASSET,
    BASE,
    BEFORE,
    BUY,
    CENTRE,
    CURVATURE,
    IMPACT,
    LIMIT,
    LONG,
    LOWER,
    QUADRATIC,
    SELL,
    SHORT,
    SMOOTHED,
    UPPER,
    Flags,
    Indices,
    Point,
    Problem,
    evaluate,
    multiply,
    rebase,
)
from equipoise.optimizer.solvers.newton.numba_jit import jit, part
from equipoise.optimizer.solvers.newton.numba_step import Constants, Room, direct, pin, step

_NAMED = vars(iteration) | vars(line_search)
_CONSTANTS = Constants(**{name: _NAMED[name.upper()] for name in Constants._fields})


class _Stack(NamedTuple):
    """A `Dual` of B problems as arrays; where the first axis is 1, all share it."""

    assets: tuple[Array, ...]  # 12 × (B or 1, n)
    linear: Array  # (B or 1, K, n)
    kinks: tuple[Array, ...]  # 4 × (B or 1, m, n)
    cost: Array  # (B or 1, m)
    limits: Array  # (B, K)
    factors: int
    aversion: float
    horizon: float
    bands: tuple[Indices, Indices, Flags]  # `Dual.bands`, of all turns: (q,), (q,), (B, q)
    kinked: bool  # whether any row has a kink
    costly: bool  # whether costs raise any row
    shared: bool  # whether all have the same rows


class _Shared(NamedTuple):
    """Of the rows: what depends on them alone."""

    kinks: Array  # (4, m, n)
    present: Flags  # (4, m)
    squares: Array  # (n,): Σ of the squares of the factors
    scale: Array  # (K,): Σ of the squares of the steepest slopes


class _State(NamedTuple):
    """How far the problems are."""

    centre: Array  # (B, n)
    before: Array  # (B,): the least residual at these centres
    soft: Array  # (B,): what is left of the proximal weights
    moved: Flags  # (B,): whether its centre, from which prices are counted, has moved
    done: Flags  # (B,)
    weights: Array  # (B, n)
    prices: Array  # (B, K)
    steps: Indices  # (B,)


def iterated(dual: Dual, proximal: float = iteration.PROXIMAL[0]) -> Ends:
    """Newton's method on these problems, one after the other: see `iteration.iterated`."""
    size, n = dual.assets.before.shape
    stack, code = _stacked(dual), np.full(size, UNSOLVED)
    state = _State(
        centre=np.empty((size, n)),
        before=np.full(size, np.inf),
        soft=np.ones(size),
        moved=np.zeros(size, dtype=np.bool_),
        done=np.zeros(size, dtype=np.bool_),
        weights=np.empty((size, n)),
        prices=np.zeros_like(dual.limits),
        steps=np.zeros(size, dtype=np.intp),
    )
    open_ = np.arange(size)
    while len(open_):
        _iterate(stack, open_, _CONSTANTS, proximal, state)
        open_ = open_[~state.done[open_]]
        proven = infeasible(dual.take(open_), state.prices[open_])
        code[open_[proven]] = INFEASIBLE
        open_ = open_[~proven & (state.steps[open_] < iteration.STEPS)]
    code[state.done] = SOLVED
    state.weights[~state.done] = np.nan
    state.prices[~state.done] = 0.0
    return Ends(code, state.weights, state.prices, state.steps)


def _stacked(dual: Dual) -> _Stack:
    m, n = dual.row_count, dual.assets.before.shape[1]
    nothing, no_row = np.zeros((1, n)), np.zeros((1, m, n))
    own = [getattr(dual.assets, field.name) for field in fields(Separable)]

    def each(matrix: Array) -> Array:
        return np.ascontiguousarray(matrix if matrix.ndim == 3 else matrix[None])

    linear, kinks = each(dual.linear), tuple(each(dual.kinks[name]) if name in dual.kinks else no_row for name in KINKS)
    return _Stack(
        assets=tuple(nothing if absent(value) else np.ascontiguousarray(value) for value in own),
        linear=linear,
        kinks=kinks,
        cost=np.zeros((1, m)) if dual.cost is None else np.ascontiguousarray(dual.cost),
        limits=np.ascontiguousarray(dual.limits),
        factors=dual.factors,
        aversion=float(dual.aversion),
        horizon=float(dual.horizon),
        bands=_bands(dual),
        kinked=bool(dual.kinks),
        costly=dual.cost is not None,
        shared=all(len(matrix) == 1 for matrix in (linear, *kinks)),
    )


def _bands(dual: Dual) -> tuple[Indices, Indices, Flags]:
    nothing = np.zeros(0, dtype=np.intp)
    one = np.concatenate([nothing, *(one for one, _, _ in dual.bands)])
    other = np.concatenate([nothing, *(other for _, other, _ in dual.bands)])
    masks = [np.broadcast_to(mask, (dual.size, mask.shape[-1])) for _, _, mask in dual.bands]
    return one, other, np.hstack([np.zeros((dual.size, 0), dtype=bool), *masks])


@jit
def _iterate(stack: _Stack, which: Indices, constants: Constants, proximal: float, state: _State) -> None:
    """Take these problems on until they are done, or to where `iteration` looks for a proof of infeasibility."""
    n, count, rows = state.weights.shape[1], state.prices.shape[1], stack.cost.shape[1]
    assets, weight, scale = np.empty((ASSET, n)), np.empty(n), np.empty(count)
    limits, bands = np.empty((2, count)), np.zeros((3, 1 + len(stack.bands[0])), dtype=np.intp)
    pinned = np.empty(count, dtype=np.bool_)
    shared = _Shared(np.empty((4, rows, n)), np.empty((4, rows), dtype=np.bool_), np.empty(n), np.empty(count))
    room = Room(
        np.empty(n, dtype=np.intp),
        np.empty((count + 1, n)),
        np.empty((count, count)),
        np.empty((count, count)),
        np.empty((8, count)),
        np.empty((3, count), dtype=np.intp),
        np.empty((5, n)),
        np.empty((5, n)),
        np.empty((5, n)),
    )
    total = np.empty(count)
    here, there = _blank(n, count), _blank(n, count)
    for number in range(len(which)):
        b = which[number]
        problem = _one(stack, b, assets, shared, limits, bands, number == 0 or not stack.shared)
        centre, least = state.centre[b], state.before[b]
        _weigh(problem, shared.squares, weight, proximal, constants)
        if state.steps[b] == 0:
            _begin(problem, centre, state.prices[b])
        _scale(problem, weight, shared.scale, scale)
        weight *= state.soft[b]
        if state.moved[b]:
            problem.bands[SMOOTHED, SMOOTHED] = 1
        total[:] = state.prices[b]
        _smooth(stack, b, problem, weight, centre, total, here)
        evaluate(problem, here)
        resumed = state.steps[b] > 0
        while True:
            residual = pin(problem, here, pinned)
            size = _count_from_zero(problem, here, total)
            last = state.steps[b] == constants.rays[-1]
            stalled = residual <= constants.recentre and residual > constants.stalled * least
            near = residual <= constants.exact or (residual <= constants.nearly and (stalled or last))
            still = residual > constants.recentre or _still(problem, here, weight, centre, total, room, constants)
            far = size > constants.far or state.steps[b] in constants.rays
            state.done[b] = near and (still or last)
            if state.done[b] or (far and not resumed):
                break
            least, resumed = min(least, residual), False
            if stalled or not still:
                least = np.inf
                _recentre(stack, b, problem, weight, total, here, state, constants)
                residual = pin(problem, here, pinned)
            direct(problem, here, pinned, residual, scale, room, constants)
            step(problem, here, there, room, residual, constants)
            here, there = there, here
            state.steps[b] += 1
        state.before[b] = least
        state.prices[b] = total
        state.weights[b] = here.weights


@part
def _count_from_zero(problem: Problem, point: Point, total: Array) -> float:
    """The prices themselves, not as changes of the base: into `total`; the sum of those of rows and budgets."""
    size = 0.0
    for p in range(len(total)):
        total[p] = problem.limits[BASE, p] + point.prices[p]
        if p >= problem.factors:
            size += abs(total[p])
    return size


@part
def _recentre(
    stack: _Stack,
    b: int,
    problem: Problem,
    weight: Array,
    total: Array,
    point: Point,
    state: _State,
    constants: Constants,
) -> None:
    """`_State.recentred` in `iteration`: the centre at the weights, a smaller proximal weight on it."""
    problem.bands[SMOOTHED, SMOOTHED], state.moved[b] = 1, True
    weight *= max(constants.softer, constants.softest / state.soft[b])
    state.soft[b] = max(state.soft[b] * constants.softer, constants.softest)
    state.centre[b] = point.weights
    _smooth(stack, b, problem, weight, state.centre[b], total, point)
    evaluate(problem, point)


@part
def _still(
    problem: Problem, point: Point, weight: Array, centre: Array, total: Array, room: Room, constants: Constants
) -> bool:
    """`iteration._still`."""
    still, slopes = True, room.seen[0]
    if problem.bands[SMOOTHED, SMOOTHED]:
        slopes[:] = 0.0
        for p in range(len(total)):
            price = abs(total[p])
            for i in range(len(slopes)):
                slopes[i] += price * abs(problem.linear[p, i])
        for i in range(len(slopes)):
            away = abs(point.weights[i] - centre[i])
            pull = weight[i] * away
            still = still and (away <= constants.exact or pull <= constants.rounding * slopes[i] or pull <= 0.0)
    return still


@jit
def _blank(n: int, count: int) -> Point:
    return Point(np.empty(count), np.empty((5, n)), np.empty(n), np.empty(n), np.empty(count))


@part
def _one(stack: _Stack, b: int, assets: Array, shared: _Shared, limits: Array, bands: Indices, new: bool) -> Problem:
    """This problem, its assets in an array of their own; `new`: with other rows than the last."""
    n, k = assets.shape[1], stack.factors
    for name in range(12):
        given = stack.assets[name]
        at = b if len(given) > 1 else 0
        for i in range(n):
            assets[name, i] = given[at, i]
    linear = stack.linear[b if len(stack.linear) > 1 else 0]
    cost = stack.cost[b if len(stack.cost) > 1 else 0]
    limits[LIMIT] = stack.limits[b]
    if new:
        _look(stack, b, linear, shared)
    bands[SMOOTHED, SMOOTHED] = 0
    for q in range(len(stack.bands[0])):
        bands[0, 1 + q] = stack.bands[0][q]
        bands[1, 1 + q] = stack.bands[1][q]
        bands[2, 1 + q] = stack.bands[2][b, q]
    signed, bent = bool(np.any(shared.present[:2])), False
    for i in range(n):
        signed = signed or assets[LONG, i] != 0.0 or assets[SHORT, i] != 0.0
        bent = bent or assets[IMPACT, i] != 0.0
    return Problem(
        assets,
        linear,
        shared.kinks,
        shared.present,
        cost,
        limits,
        bands,
        k,
        stack.aversion,
        stack.horizon,
        signed,
        stack.kinked,
        stack.costly,
        bent,
    )


@part
def _look(stack: _Stack, b: int, linear: Array, shared: _Shared) -> None:
    """What depends on the rows alone: where they have kinks, and how steep they are."""
    k, (rows, n) = stack.factors, shared.kinks.shape[1:]
    for kind in range(4):
        given = stack.kinks[kind]
        at = b if len(given) > 1 else 0
        for r in range(rows):
            found = False
            for i in range(n):
                shared.kinks[kind, r, i] = given[at, r, i]
                found = found or given[at, r, i] != 0.0
            shared.present[kind, r] = found
    shared.squares[:] = 0.0
    for p in range(len(shared.scale)):
        total, r = 0.0, p - k
        for i in range(n):
            steepest = abs(linear[p, i])
            if p < k:
                shared.squares[i] += steepest**2
            elif stack.kinked and r < rows:
                for kind in range(4):
                    steepest += abs(shared.kinks[kind, r, i])
            total += steepest**2
        shared.scale[p] = total


@part
def _weigh(problem: Problem, squares: Array, weight: Array, proximal: float, constants: Constants) -> None:
    """The proximal weights of the assets that have no curvature of their own."""
    curvature, largest = problem.assets[CURVATURE], 0.0
    for i in range(len(weight)):
        weight[i] = problem.aversion * squares[i] + curvature[i]
        largest = max(largest, weight[i] + 2.0 * problem.assets[QUADRATIC, i])
    least = constants.proximal_riskless * (largest if largest > 0.0 else 1.0)
    for i in range(len(weight)):
        if curvature[i] > max(constants.no_curvature * weight[i], constants.no_curvature_at_all * largest):
            weight[i] = 0.0
        else:
            weight[i] = max(proximal * weight[i], least)
            problem.bands[SMOOTHED, SMOOTHED] = 1


@part
def _begin(problem: Problem, centre: Array, prices: Array) -> None:
    """The holdings within their bounds, and the prices of the factors there."""
    before, lower, upper = problem.assets[BEFORE], problem.assets[LOWER], problem.assets[UPPER]
    for i in range(len(centre)):
        centre[i] = min(max(before[i], lower[i]), upper[i])
    multiply(problem.linear, centre, prices)
    for p in range(len(prices)):
        prices[p] = problem.aversion * (prices[p] - problem.limits[LIMIT, p]) if p < problem.factors else 0.0


@part
def _smooth(stack: _Stack, b: int, problem: Problem, weight: Array, centre: Array, total: Array, point: Point) -> None:
    """Add ½·weight·(w − centre)² to every asset, and count prices from these on; without it, from 0."""
    own, wanted, assets = stack.assets[CURVATURE][b], stack.assets[CENTRE][b], problem.assets
    for i in range(len(weight)):
        if weight[i] > 0.0:
            assets[CURVATURE, i] = own[i] + weight[i]
            assets[CENTRE, i] = (own[i] * wanted[i] + weight[i] * centre[i]) / assets[CURVATURE, i]
    for p in range(len(total)):
        problem.limits[BASE, p] = 0.0
        point.prices[p] = 0.0 if problem.bands[SMOOTHED, SMOOTHED] else total[p]
        total[p] -= point.prices[p]
    rebase(problem, total, centre)


@part
def _scale(problem: Problem, weight: Array, squares: Array, scale: Array) -> None:
    """The curvature of each price if every asset were free."""
    k, own, largest = problem.factors, problem.assets, 0.0
    median = np.median(own[CURVATURE] + weight)
    for p in range(len(scale)):
        total, r = squares[p], p - k
        if 0 <= r < len(problem.cost) and problem.cost[r] > 0.0:
            total = 0.0
            for i in range(own.shape[1]):
                steepest = abs(problem.linear[p, i])
                for kind in range(4):
                    steepest += abs(problem.kinks[kind, r, i])
                rate = problem.horizon * (abs(own[BUY, i]) + abs(own[SELL, i]))
                total += (steepest + problem.cost[r] * rate) ** 2
        scale[p] = total / median
        largest = max(largest, scale[p])
    for p in range(len(scale)):
        scale[p] = max(scale[p], 1e-9 * largest)
