"""One step of the iteration in loops that numba compiles: the direction, the line search, the prices that stay ≥ 0.

The rules are those of `iteration` and `line_search`. Loading this module loads numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from equipoise.constraints.base import Array
from equipoise.optimizer.compiled_dual import (
    BEFORE,
    IMPACT,
    QUADRATIC,
    Flags,
    Indices,
    Point,
    Problem,
    charge,
    curve,
    curved,
    evaluate,
    respond,
)
from equipoise.optimizer.compiled_jit import jit, part


class Constants(NamedTuple):
    """Those of `iteration` and `line_search`, handed over: machine code on disk would not follow a changed global."""

    rays: tuple[int, ...]
    far: float
    exact: float
    nearly: float
    recentre: float
    pull: float
    accepted: float
    searches: int
    widenings: int
    singular: float
    fading: float
    held: float
    no_curvature: float
    proximal: float
    proximal_riskless: float


class Room(NamedTuple):
    """Arrays to work in, the same for all problems."""

    free: Indices  # (n,)
    slopes: Array  # (K + 1, n)
    curvature: Array  # (K, K)
    system: Array
    right: Array  # (K,)
    unit: Array
    direction: Array
    moving: Indices
    kept: Indices
    change: Array  # (5, n)
    priced: Array


@part
def pin(problem: Problem, point: Point, pinned: Flags) -> float:
    """Mark the rows whose price is 0 and would fall; the largest residual of the others."""
    k, residual = problem.factors, 0.0
    for p in range(len(pinned)):
        row = k <= p < k + len(problem.cost)
        pinned[p] = row and point.prices[p] <= 0.0 and point.gradient[p] <= 0.0
        if not pinned[p]:
            residual = max(residual, abs(point.gradient[p]))
    return residual


@part
def direct(
    problem: Problem, point: Point, pinned: Flags, residual: float, scale: Array, room: Room, constants: Constants
) -> None:
    """Newton's direction on the prices that are not pinned."""
    k, rows, curvature, unit = problem.factors, len(problem.cost), room.curvature, room.unit
    count = 0
    for p in range(len(pinned)):
        if not pinned[p]:
            room.moving[count] = p
            room.kept[count] = count
            count += 1
    curve(problem, point, room.moving, count, room.free, room.slopes, curvature)
    # `moving` is in ascending order: whether there is more than one row.
    several = count > 1 and room.moving[count - 2] >= k
    for a in range(count):
        diagonal, all_free = curvature[a, a], scale[room.moving[a]]
        ridge = 0.0
        if several and room.moving[a] >= k:
            ridge = (constants.singular + constants.fading * min(residual, 1.0)) * diagonal
        curvature[a, a] += ridge if diagonal > 1e-9 * all_free else constants.held * all_free
        unit[a] = 1.0 / np.sqrt(curvature[a, a])
    while True:
        for a in range(count):
            one = room.kept[a]
            room.right[a] = point.gradient[room.moving[one]] * unit[one]
            for c in range(a + 1):
                other = room.kept[c]
                room.system[a, c] = room.system[c, a] = curvature[one, other] * (unit[one] * unit[other])
        _eliminate(room.system, room.right, count)
        for p in range(len(pinned)):
            room.direction[p] = 0.0
        right_ones = 0
        for a in range(count):
            one = room.kept[a]
            p = room.moving[one]
            room.direction[p] = room.right[a] * unit[one]
            if not (k <= p < k + rows and point.prices[p] <= 0.0 and room.direction[p] < 0.0):
                room.kept[right_ones] = one
                right_ones += 1
        if right_ones == count:
            break
        count = right_ones


@part
def step(problem: Problem, here: Point, there: Point, room: Room, constants: Constants) -> None:
    """Fill in `there`: in the room's direction, as far as prices stay ≥ 0 and the dual rises."""
    direction, furthest = room.direction, np.inf
    for p in range(problem.factors, problem.factors + len(problem.cost)):
        if direction[p] < 0.0:
            furthest = min(furthest, -here.prices[p] / direction[p])
    length = min(1.0, furthest)
    _move(problem, here, there, direction, length)
    evaluate(problem, there)
    at_here, at_there = 0.0, 0.0
    for p in range(len(direction)):
        at_here += here.gradient[p] * length * direction[p]
        at_there += there.gradient[p] * length * direction[p]
    if at_there < -constants.accepted * at_here or (at_there > 0.5 * at_here and furthest > length):
        factor = _searched(problem, here, there, length, at_here, at_there, furthest / length, room, constants)
        _move(problem, here, there, direction, factor * length)
        evaluate(problem, there)


@part
def _move(problem: Problem, here: Point, there: Point, direction: Array, length: float) -> None:
    k = problem.factors
    for p in range(len(direction)):
        price = here.prices[p] + length * direction[p]
        if k <= p < k + len(problem.cost):
            # A row whose price reaches 0 is exactly at 0.
            ends = direction[p] < 0.0 and -here.prices[p] / direction[p] <= length * (1.0 + 1e-9)
            price = 0.0 if ends else max(price, 0.0)
        there.prices[p] = price


@part
def _searched(
    problem: Problem,
    here: Point,
    there: Point,
    unit: float,
    at_here: float,
    at_there: float,
    furthest: float,
    room: Room,
    constants: Constants,
) -> float:
    """The length, of at most `furthest` units, at which the derivative along the direction is about 0."""
    wanted = constants.accepted * abs(at_here)
    low, high, at_low, at_high = 0.0, 1.0, at_here, at_there
    for name in range(5):
        for i in range(len(here.weights)):
            room.change[name, i] = there.priced[name, i] - here.priced[name, i]
    dearer = charge(problem, there.prices) - charge(problem, here.prices)
    for _ in range(constants.widenings):
        if at_high <= wanted or high >= furthest:
            break
        low, at_low = high, at_high
        high = min(4.0 * high, furthest)
        at_high = _along(problem, here, there, unit, dearer, high, room)
    length = high
    if at_high >= -wanted:
        return length
    for turn in range(constants.searches):
        # The secant, kept off the ends; every fourth time the middle.
        part = min(max(at_low / (at_low - at_high), 0.02), 0.98) if turn % 4 < 3 else 0.5
        length = low + (high - low) * part
        slope = _along(problem, here, there, unit, dearer, length, room)
        if abs(slope) <= wanted:
            break
        # An end that stays counts for half: the Illinois rule.
        if slope > 0.0:
            low, at_low, at_high = length, slope, 0.5 * at_high
        else:
            high, at_low, at_high = length, 0.5 * at_low, slope
    return length


@jit
def _along(problem: Problem, here: Point, there: Point, unit: float, dearer: float, length: float, room: Room) -> float:
    """The derivative at this length, in units; the coefficients of assets are linear in it.

    `there` has lent its weights to work in.
    """
    own, priced, change, weights = problem.assets, room.priced, room.change, there.weights
    n = len(weights)
    for name in range(5):
        for i in range(n):
            priced[name, i] = here.priced[name, i] + length * change[name, i]
    respond(problem, priced, charge(problem, here.prices) + length * dearer, weights, there.moves)
    slope = 0.0
    for i in range(n):
        slope += change[0, i] * weights[i]
    if problem.signed:
        for i in range(n):
            long, short = change[1, i], -change[2, i]
            slope += (long if weights[i] > 0.0 else short) * weights[i]
    if problem.kinked or problem.costly:
        for i in range(n):
            trade, buy, sell = weights[i] - own[BEFORE, i], change[3, i], change[4, i]
            slope += (buy if trade > 0.0 else sell) * abs(trade)
            slope += dearer * curved(own[QUADRATIC, i], own[IMPACT, i], abs(trade), problem.bent)
    for p in range(len(room.direction)):
        step, limit = unit * room.direction[p], problem.limits[p]
        if p < problem.factors:
            limit += (here.prices[p] + length * step) / problem.aversion
        slope -= step * limit
    return slope


@part
def _eliminate(system: Array, right: Array, size: int) -> None:
    """Solve system · x = right in place, with row exchanges."""
    for j in range(size):
        best = j
        for a in range(j + 1, size):
            if abs(system[a, j]) > abs(system[best, j]):
                best = a
        if best != j:
            right[j], right[best] = right[best], right[j]
            for c in range(j, size):
                system[j, c], system[best, c] = system[best, c], system[j, c]
        for a in range(j + 1, size):
            factor = system[a, j] / system[j, j]
            right[a] -= factor * right[j]
            for c in range(j + 1, size):
                system[a, c] -= factor * system[j, c]
    for j in range(size - 1, -1, -1):
        for c in range(j + 1, size):
            right[j] -= system[j, c] * right[c]
        right[j] /= system[j, j]
