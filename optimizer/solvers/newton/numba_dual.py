"""The dual of one problem in loops that numba compiles: what `dual` does for a stack in numpy.

The formulas and their letters are those of `separable` and `dual`. Only the prices and the assets that are free to
move enter the Hessian. Loading this module loads numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array
from equipoise.optimizer.solvers.newton.numba_jit import jit, part, summed

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]

#: The first axis of `Problem.assets`: the coefficients of `Separable`, in its order.
CURVATURE, CENTRE, SLOPE, LONG, SHORT, BUY, SELL, QUADRATIC, IMPACT, BEFORE, LOWER, UPPER = range(12)
#: Behind them what the base makes of slope, long, short, buy and sell, and from where that is seen (`seen_from`).
START, SIDES, ASSET = 12, 17, 19
#: The rows of `Problem.limits`, and where in `Problem.bands` it is said whether there is a proximal term.
LIMIT, BASE = 0, 1
SMOOTHED = 0
#: There are few arrays, for references are counted to each of them at every call.


class Problem(NamedTuple):
    """One problem of a `Dual`; its assets are smoothed by the proximal term."""

    assets: Array  # (12, n)
    linear: Array  # (K, n)
    kinks: Array  # (4, m, n)
    present: Flags  # (4, m): which rows have such kinks
    cost: Array  # (m,)
    limits: Array  # (2, K): the limits, and the base: the prices that are looked for are changes of these
    bands: Indices  # (3, 1 + q): pairs of rows that may be the sides of a band, and whether they are; first `SMOOTHED`
    factors: int
    aversion: float
    horizon: float
    signed: bool | np.bool_  # whether anything has a kink at 0
    kinked: bool  # whether any row has a kink
    costly: bool  # whether costs raise any row
    bent: bool | np.bool_  # whether any asset has impact costs


class Point(NamedTuple):
    """The dual at some prices; `priced` (5, n): what prices make of slope, long, short, buy and sell."""

    prices: Array
    priced: Array
    weights: Array
    moves: Array
    gradient: Array


@jit
def evaluate(problem: Problem, point: Point) -> None:
    """Fill in the point at its prices."""
    copy(problem.assets, point.priced, problem.signed)
    add(problem, point.prices, point.priced)
    see(problem, point.priced)
    dearer = charge(problem, point.prices)
    respond(problem.assets, point.priced, dearer, point.weights, point.moves, problem.signed, problem.bent)
    _grade(problem, point)


@part
def charge(problem: Problem, prices: Array) -> float:
    """By what factor prices of rows make trading dearer."""
    return 1.0 + charged(problem, problem.limits[BASE]) + charged(problem, prices)


@part
def charged(problem: Problem, prices: Array) -> float:
    total = 0.0
    for r in range(len(problem.cost)):
        total += prices[problem.factors + r] * problem.cost[r]
    return problem.horizon * total


@part
def add(problem: Problem, prices: Array, priced: Array) -> None:
    """`Dual.change`: add to slope, long, short, buy and sell (5, n) what these prices make of them."""
    own, k, n = problem.assets, problem.factors, priced.shape[1]
    if problem.costly:
        dearer = charged(problem, prices)
        for i in range(n):
            priced[3, i] += own[BUY, i] * dearer
            priced[4, i] += own[SELL, i] * dearer
    for p in range(len(prices)):
        price = prices[p]
        if price != 0.0:
            for i in range(n):
                priced[0, i] += price * problem.linear[p, i]
    if problem.kinked:
        for kind in range(4):
            for r in range(len(problem.cost)):
                price = prices[k + r]
                if problem.present[kind, r] and price != 0.0:
                    for i in range(n):
                        priced[1 + kind, i] += price * problem.kinks[kind, r, i]


@part
def see(problem: Problem, priced: Array) -> None:
    """`Separable.seen_from` these sides."""
    if problem.bands[SMOOTHED, SMOOTHED]:
        for side in range(0 if problem.signed else 1, 2):
            up, down = 1 + 2 * side, 2 + 2 * side
            for i in range(priced.shape[1]):
                one, other, at = priced[up, i], priced[down, i], problem.assets[SIDES + side, i]
                priced[0, i] += one if at > 0.0 else (-other if at < 0.0 else 0.0)
                priced[up, i] = 0.0 if at > 0.0 else one + (other if at < 0.0 else 0.0)
                priced[down, i] = 0.0 if at < 0.0 else other + (one if at > 0.0 else 0.0)


@part
def copy(assets: Array, priced: Array, signed: bool | np.bool_) -> None:
    for name in range(5):
        if signed or name == 0 or name > 2:
            for i in range(priced.shape[1]):
                priced[name, i] = assets[START + name, i]


@part
def rebase(problem: Problem, prices: Array, centre: Array) -> None:
    """Take these prices for the base, and the assets as they are seen from the centre."""
    own, start = problem.assets, problem.assets[START:SIDES]
    for i in range(len(centre)):
        start[0, i], start[3, i], start[4, i] = own[SLOPE, i], own[BUY, i], own[SELL, i]
    if problem.signed:
        for i in range(len(centre)):
            start[1, i], start[2, i] = own[LONG, i], own[SHORT, i]
    problem.limits[BASE] = prices
    if problem.bands[SMOOTHED, SMOOTHED]:
        for i in range(len(centre)):
            own[SIDES, i] = np.sign(centre[i])
            own[SIDES + 1, i] = np.sign(centre[i] - own[BEFORE, i])
        add(problem, prices, start)
        see(problem, start)


@jit
def respond(
    own: Array,
    priced: Array,
    charged: float,
    weights: Array,
    moves: Array,
    signed: bool | np.bool_,
    bent: bool | np.bool_,
) -> None:
    """`Separable.response` of these assets.

    Which way an asset goes cannot be foretold, so that a branch would cost more than both its ways: all loops over
    assets are written without.
    """
    for i in range(len(weights)):
        before, impact = own[BEFORE, i], charged * own[IMPACT, i]
        buy, sell, lower, upper = priced[3, i], priced[4, i], own[LOWER, i], own[UPPER, i]
        stiffness = own[CURVATURE, i] + 2.0 * charged * own[QUADRATIC, i]
        m = -priced[0, i] - own[CURVATURE, i] * (before - own[CENTRE, i])
        if signed:
            long, short = priced[1, i], priced[2, i]
            near, far = min(before, 0.0), max(before, 0.0)
            middle = long - sell if before > 0.0 else buy - short
            below = before + _moved(m + sell + short, stiffness, impact, bent)
            between = before + _moved(m - middle, stiffness, impact, bent)
            above = before + _moved(m - buy - long, stiffness, impact, bent)
            w = max(above, min(far, max(between, min(near, below))))
            free = (above >= far) | (below <= near) | ((between >= near) & (between <= far))
        else:
            w = before + _moved(max(m - buy, 0.0) - max(-m - sell, 0.0), stiffness, impact, bent)
            free = (m >= buy) | (m <= -sell)
        free &= (w > lower) & (w < upper)
        w = min(max(w, lower), upper)
        bends = stiffness
        if bent:
            bends = stiffness + 0.75 * impact / np.sqrt(abs(w - before)) if impact > 0.0 else stiffness
        weights[i] = w
        moves[i] = (1.0 if free else 0.0) / (bends if free else 1.0)


@part
def _moved(pull: float, stiffness: float, impact: float, bent: bool | np.bool_) -> float:
    """S(pull): the trade whose marginal cost is `pull`."""
    if bent and impact > 0.0:
        rooted, size = 1.5 * impact, abs(pull)
        bends = (2.0 * size / (rooted + np.sqrt(rooted**2 + 4.0 * stiffness * size))) ** 2
        return float(np.copysign(bends, pull))
    # Nothing pulls, nothing moves, also where the stiffness is 0.
    return pull / (stiffness if pull != 0.0 else 1.0)


@part
def _grade(problem: Problem, point: Point) -> None:
    """The gradient: what the weights leave of each row."""
    own, weights, gradient, k = problem.assets, point.weights, point.gradient, problem.factors
    n = len(weights)
    multiply(problem.linear, weights, gradient)
    for p in range(len(gradient)):
        gradient[p] -= problem.limits[LIMIT, p]
        if p < k:
            gradient[p] -= (problem.limits[BASE, p] + point.prices[p]) / problem.aversion
    if problem.kinked:
        for r in range(len(problem.cost)):
            if problem.present[0, r] or problem.present[1, r]:
                for i in range(n):
                    long, short = problem.kinks[0, r, i], problem.kinks[1, r, i]
                    gradient[k + r] += (long if weights[i] > 0.0 else short) * abs(weights[i])
            if problem.present[2, r] or problem.present[3, r]:
                for i in range(n):
                    trade, buy, sell = weights[i] - own[BEFORE, i], problem.kinks[2, r, i], problem.kinks[3, r, i]
                    gradient[k + r] += (buy if trade > 0.0 else sell) * abs(trade)
    if problem.costly:
        spent = 0.0
        for i in range(n):
            trade, buy, sell = weights[i] - own[BEFORE, i], own[BUY, i], own[SELL, i]
            spent += (buy if trade > 0.0 else sell) * abs(trade)
            spent += curved(own[QUADRATIC, i], own[IMPACT, i], abs(trade), problem.bent)
        for r in range(len(problem.cost)):
            gradient[k + r] += problem.cost[r] * problem.horizon * spent


@part
def curved(quadratic: float, impact: float, size: float, bent: bool | np.bool_) -> float:
    """q·size² + p·size^{3/2}. (Handing over an array for each asset would count references to it.)"""
    result = quadratic * size * size
    return result + impact * size * np.sqrt(size) if bent else result


@part
def curve(
    problem: Problem, point: Point, moving: Indices, count: int, assets: Indices, slopes: Array, curvature: Array
) -> None:
    """Minus the Hessian of the first `count` of the `moving` prices: its lower half.

    `assets` (n,) and `slopes` (K + 1, n) are room for the free assets, their slopes and their √(1/f″).
    """
    own, k, root = problem.assets, problem.factors, slopes[len(slopes) - 1]
    free = 0
    for i in range(len(point.moves)):
        assets[free] = i
        free += point.moves[i] > 0.0
    for f in range(free):
        root[f] = np.sqrt(point.moves[assets[f]])
    for a in range(count):
        p = moving[a]
        r = p - k
        for f in range(free):
            slopes[a, f] = problem.linear[p, assets[f]]
        if 0 <= r < len(problem.cost):
            if problem.kinked:
                _add_kinks(problem, point, r, a, free, assets, slopes)
            if problem.cost[r] > 0.0:
                for f in range(free):
                    i = assets[f]
                    trade, buy, sell = point.weights[i] - own[BEFORE, i], own[BUY, i], own[SELL, i]
                    grows = 2.0 * own[QUADRATIC, i] * abs(trade)
                    if problem.bent:
                        grows += 1.5 * own[IMPACT, i] * np.sqrt(abs(trade))
                    rate = buy + grows if trade > 0.0 else -sell - grows
                    slopes[a, f] += problem.cost[r] * problem.horizon * rate
        for f in range(free):
            slopes[a, f] *= root[f]
    squared(slopes, count, free, curvature)
    for a in range(count):
        if moving[a] < k:
            curvature[a, a] += 1.0 / problem.aversion


@part
def _add_kinks(problem: Problem, point: Point, r: int, a: int, free: int, assets: Indices, slopes: Array) -> None:
    """Add the slopes of the row's kinks at the free assets."""
    for kind in range(4):
        if problem.present[kind, r]:
            sign = 1.0 if kind == 0 or kind == 2 else -1.0
            for f in range(free):
                i = assets[f]
                signed = point.weights[i] if kind < 2 else point.weights[i] - problem.assets[BEFORE, i]
                slope = sign * problem.kinks[kind, r, i]
                slopes[a, f] += slope if sign * signed > 0.0 else 0.0


@summed
def multiply(matrix: Array, x: Array, result: Array) -> None:
    """result = matrix·x"""
    for p in range(len(result)):
        total = 0.0
        for i in range(len(x)):
            total += matrix[p, i] * x[i]
        result[p] = total


@summed
def squared(rows: Array, count: int, length: int, result: Array) -> None:
    """The lower half of rows·rowsᵀ, of the first `count` rows of this length, in blocks of two by two."""
    for a in range(0, count, 2):
        b = min(a + 1, count - 1)
        for c in range(0, b + 1, 2):
            d = min(c + 1, b)
            one = two = three = four = 0.0
            for f in range(length):
                one += rows[a, f] * rows[c, f]
                two += rows[a, f] * rows[d, f]
                three += rows[b, f] * rows[c, f]
                four += rows[b, f] * rows[d, f]
            result[a, c], result[a, d], result[b, c], result[b, d] = one, two, three, four
