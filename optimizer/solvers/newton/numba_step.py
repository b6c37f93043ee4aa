"""One step of the iteration in loops that numba compiles: the direction, the line search, the prices that stay ≥ 0.

The rules are those of `iteration` and `line_search`. Loading this module loads numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.solvers.newton.numba_dual import (
    BASE,
    BEFORE,
    IMPACT,
    LIMIT,
    QUADRATIC,
    Flags,
    Indices,
    Point,
    Problem,
    add,
    charge,
    charged,
    curve,
    curved,
    evaluate,
    respond,
    see,
)
from equipoise.optimizer.solvers.newton.numba_jit import jit, part


class Constants(NamedTuple):
    """Those of `iteration` and `line_search`, handed over: machine code on disk would not follow a changed global."""

    rays: tuple[int, ...]
    far: float
    exact: float
    nearly: float
    stalled: float
    recentre: float
    rounding: float
    softer: float
    softest: float
    turns: int
    accepted: float
    searches: int
    widenings: int
    singular: float
    ridge: float
    held: float
    no_curvature: float
    no_curvature_at_all: float
    proximal_riskless: float


#: The first axes of `Room.vectors` and `Room.places`.
RIGHT, UNIT, DIRECTION, RISE, LEAST, GOAL, STEP, CUT = range(8)
MOVING, KEPT, FACE = range(3)


class Room(NamedTuple):
    """Arrays to work in, the same for all problems: few, for references are counted to each."""

    free: Indices  # (n,)
    slopes: Array  # (K + 1, n)
    curvature: Array  # (K, K)
    system: Array
    vectors: Array  # (8, K)
    places: Indices  # (3, K)
    change: Array  # (5, n)
    seen: Array
    priced: Array


@part
def pin(problem: Problem, point: Point, pinned: Flags) -> float:
    """Mark the rows whose price is 0 and would fall; the largest residual of the others."""
    k, residual = problem.factors, 0.0
    for p in range(len(pinned)):
        row = k <= p < k + len(problem.cost)
        pinned[p] = row and problem.limits[BASE, p] + point.prices[p] <= 0.0 and point.gradient[p] <= 0.0
        if not pinned[p]:
            residual = max(residual, abs(point.gradient[p]))
    return residual


@part
def direct(
    problem: Problem, point: Point, pinned: Flags, residual: float, scale: Array, room: Room, constants: Constants
) -> None:
    """Newton's direction on the prices that are not pinned: the highest point of the quadratic model."""
    k, rows, curvature, moving = problem.factors, len(problem.cost), room.curvature, room.places[MOVING]
    unit, direction = room.vectors[UNIT], room.vectors[DIRECTION]
    count, fading = 0, min(residual, 1.0)
    for p in range(len(pinned)):
        direction[p] = 0.0
        if not pinned[p]:
            moving[count] = p
            count += 1
    curve(problem, point, moving, count, room.free, room.slopes, curvature)
    for a in range(count):
        p = moving[a]
        diagonal, all_free = curvature[a, a], scale[p]
        if diagonal > 1e-9 * all_free:
            curvature[a, a] += (constants.singular + (constants.ridge * fading if p >= k else 0.0)) * diagonal
        else:
            curvature[a, a] += (constants.singular + constants.held * fading) * all_free
        unit[a] = 1.0 / np.sqrt(curvature[a, a])
        price = problem.limits[BASE, p] + point.prices[p]
        room.vectors[LEAST, a] = -price / unit[a] if k <= p < k + rows else -np.inf
        room.vectors[RIGHT, a] = point.gradient[p] * unit[a]
        for c in range(a + 1):
            curvature[a, c] *= unit[a] * unit[c]
            curvature[c, a] = curvature[a, c]
    _climb(room, count, constants)
    for a in range(count):
        direction[moving[a]] = unit[a] * room.vectors[GOAL, a]


@part
def _climb(room: Room, count: int, constants: Constants) -> None:
    """`iteration._highest`: into the room's `goal`, by its `right` and `curvature`."""
    x, rise, right, face = room.vectors[GOAL], room.vectors[RISE], room.vectors[RIGHT], room.places[FACE]
    steepest = 0.0
    for a in range(count):
        x[a], face[a] = 0.0, True
        rise[a] = right[a]
        steepest = max(steepest, abs(rise[a]))
    for _ in range(constants.turns * (1 + count)):
        size = _step_on_face(room, count)
        nearest = _nearest(room, size)
        if nearest < np.inf:
            _cut_off(room, count, size, min(1.0, nearest))
        else:
            for a in range(size):
                x[room.places[KEPT, a]] += room.vectors[STEP, a]
            if size == count:
                break
        for a in range(count):
            rise[a] = right[a]
            for c in range(count):
                rise[a] -= room.curvature[a, c] * x[c]
        if nearest == np.inf and not _let_go(room, count, 1e-12 * steepest):
            break


@part
def _step_on_face(room: Room, count: int) -> int:
    """To the highest point on the face of those that are not fixed: into `step`; how many they are."""
    kept, face, step, rise, size = room.places[KEPT], room.places[FACE], room.vectors[STEP], room.vectors[RISE], 0
    for a in range(count):
        if face[a]:
            kept[size] = a
            step[size] = rise[a]
            size += 1
    for a in range(size):
        for c in range(size):
            room.system[a, c] = room.curvature[kept[a], kept[c]]
    _eliminate(room.system, step, size)
    return size


@part
def _nearest(room: Room, size: int) -> float:
    """The part of the step at which the first reaches its lower limit; infinite if the whole step keeps them."""
    x, least, step, nearest = room.vectors[GOAL], room.vectors[LEAST], room.vectors[STEP], np.inf
    for a in range(size):
        one = room.places[KEPT, a]
        if x[one] + step[a] < least[one]:
            nearest = min(nearest, (least[one] - x[one]) / step[a])
    return nearest


@part
def _cut_off(room: Room, count: int, size: int, nearest: float) -> None:
    """The step cut off at the lower limits, if that is higher than here, else as far as all keep them."""
    x, least, step, cut = room.vectors[GOAL], room.vectors[LEAST], room.vectors[STEP], room.vectors[CUT]
    kept, height = room.places[KEPT], 0.0
    for a in range(count):
        cut[a] = 0.0
    for a in range(size):
        one = kept[a]
        cut[one] = max(x[one] + step[a], least[one]) - x[one]
    for a in range(count):
        bent = 0.0
        for c in range(count):
            bent += room.curvature[a, c] * cut[c]
        height += cut[a] * (2.0 * room.vectors[RISE, a] - bent)
    higher = height > 0.0
    for a in range(size):
        one = kept[a]
        falls = x[one] + step[a] < least[one]
        if falls and (higher or (least[one] - x[one]) / step[a] <= nearest):
            x[one], room.places[FACE, one] = least[one], False
        else:
            x[one] += cut[one] if higher else nearest * step[a]


@part
def _let_go(room: Room, count: int, least: float) -> bool:
    """Free those at their limits that would rise; whether there are any."""
    face, found = room.places[FACE], False
    for a in range(count):
        if not face[a] and room.vectors[RISE, a] > least:
            face[a], found = True, True
    return found


@part
def step(problem: Problem, here: Point, there: Point, room: Room, residual: float, constants: Constants) -> None:
    """Fill in `there`: in the room's direction, as far as prices stay ≥ 0 and the dual rises."""
    direction, furthest = room.vectors[DIRECTION], np.inf
    for p in range(problem.factors, problem.factors + len(problem.cost)):
        if direction[p] < 0.0:
            furthest = min(furthest, -(problem.limits[BASE, p] + here.prices[p]) / direction[p])
    length = min(1.0, furthest)
    _move(problem, here, there, direction, length)
    evaluate(problem, there)
    at_here, at_there = 0.0, 0.0
    for p in range(len(direction)):
        at_here += here.gradient[p] * length * direction[p]
        at_there += there.gradient[p] * length * direction[p]
    short = at_there < -constants.accepted * at_here or (at_there > 0.5 * at_here and furthest > length)
    if short and residual > constants.exact:
        factor = _searched(problem, here, there, length, at_here, at_there, furthest / length, room, constants)
        _move(problem, here, there, direction, factor * length)
        evaluate(problem, there)


@part
def _move(problem: Problem, here: Point, there: Point, direction: Array, length: float) -> None:
    k, base, limits = problem.factors, problem.limits[BASE], problem.limits[LIMIT]
    for p in range(len(direction)):
        price = here.prices[p] + length * direction[p]
        if k <= p < k + len(problem.cost):
            # A row whose price reaches 0 is exactly at 0.
            ends = direction[p] < 0.0 and -(base[p] + here.prices[p]) / direction[p] <= length * (1.0 + 1e-9)
            price = -base[p] if ends else max(price, -base[p])
        there.prices[p] = price
    bands = problem.bands
    for q in range(1, bands.shape[1]):
        one, other = k + bands[0, q], k + bands[1, q]
        if bands[2, q] and limits[one] + limits[other] >= 0.0:
            both = min(base[one] + there.prices[one], base[other] + there.prices[other])
            there.prices[one] -= both
            there.prices[other] -= both


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
    for p in range(room.vectors.shape[1]):
        room.vectors[RISE, p] = unit * room.vectors[DIRECTION, p]
    room.change[:] = 0.0
    add(problem, room.vectors[RISE], room.change)
    room.seen[:] = room.change
    see(problem, room.seen)
    dearer = charged(problem, room.vectors[RISE])
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
    own, priced, added, weights = problem.assets, room.priced, room.change, there.weights
    n = len(weights)
    for name in range(5):
        for i in range(n):
            priced[name, i] = here.priced[name, i] + length * room.seen[name, i]
    by = charge(problem, here.prices) + length * dearer
    respond(own, priced, by, weights, there.moves, problem.signed, problem.bent)
    slope = 0.0
    for i in range(n):
        slope += added[0, i] * weights[i]
    if problem.signed:
        for i in range(n):
            long, short = added[1, i], -added[2, i]
            slope += (long if weights[i] > 0.0 else short) * weights[i]
    if problem.kinked or problem.costly:
        for i in range(n):
            trade, buy, sell = weights[i] - own[BEFORE, i], added[3, i], added[4, i]
            slope += (buy if trade > 0.0 else sell) * abs(trade)
            slope += dearer * curved(own[QUADRATIC, i], own[IMPACT, i], abs(trade), problem.bent)
    for p in range(room.vectors.shape[1]):
        step, limit = unit * room.vectors[DIRECTION, p], problem.limits[LIMIT, p]
        if p < problem.factors:
            limit += (problem.limits[BASE, p] + here.prices[p] + length * step) / problem.aversion
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
