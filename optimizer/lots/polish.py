"""The best sizes of orders: the convex program in which each asset stays on its side of every jump.

Which assets trade, and which end long, short or at nothing, is as in the plan; fees are then a constant. Fine lots have
so many steps that moves of the search alone would take long to get there; the answer is rounded and searched on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.constraints.pieces import Array, Bound, Mask
from equipoise.optimizer.lots.bounds.bound import LotBound, at_convex_prices
from equipoise.optimizer.lots.points.points import Integers, Lots
from equipoise.optimizer.lots.search.neighbours import Search, State
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution
from equipoise.optimizer.solvers.newton import newton

#: Of NAV: lots below this have sizes worth a program.
FINE = 1e-3


def polished(search: Search, state: State) -> State:
    """This plan, or the better one with the same orders in other sizes."""
    if search.clock.over or not np.any(search.allowed.size < FINE):
        return state
    points = state.lots, state.closed
    answer = solved(_program(search.problem, *_sides(search.allowed, *points), _fees(search.allowed, *points)))
    if answer is None or answer.weights is None:
        return state
    best, trades = state, answer.weights - search.problem.before
    stays = ~search.allowed.indicators(state.lots, state.closed)[0] | state.closed
    exactly = trades / search.allowed.size
    for upwards in (answer.weights < 0, np.round(exactly) > exactly):
        begun = state.kept(stays, *search.allowed.nearest(trades, upwards))
        reached = search.run(search.state(*begun))
        best = reached if reached.better_than(best) else best
    return best


def decided(found: LotBound) -> tuple[LotBound, Array] | None:
    """The bound of fine lots of which none jumps, or nearly so: from the prices of the convex program in which each
    asset stays on the side where the mixture has it most.

    The prices bound all lots, as any prices do, and where the mixture is on one side they are as tight as that program;
    the hulls of a few points get there slowly. With the weights of that program; None if it has none.
    """
    dual, likeliest = found.dual, found.likeliest()
    allowed = dual.allowed
    if likeliest is None or not np.any(allowed.size < FINE):
        return None
    points = allowed.snapped(*likeliest)
    answer = solved(_program(allowed.problem, *_sides(allowed, *points), _fees(allowed, *points)))
    if answer is None or answer.weights is None:
        return None
    minimum = at_convex_prices(dual, answer)
    more = found.points.joined(minimum.points).distinct()
    return replace(found, value=max(found.value, minimum.value), points=more), answer.weights


def solved(program: Problem) -> Solution | None:
    """The convex answer; None if there is none."""
    if np.any(program.lower > program.upper):
        return None
    if newton.refusal(program) is None:
        return newton.solution(program)[0]
    from equipoise.optimizer.solvers.program.program import solve

    return solve(program)


def _sides(allowed: Lots, lots: Integers, closed: Mask) -> tuple[Array, Array]:
    """The weights between which each asset's order is of the same kind."""
    before = allowed.problem.before
    ordered, _ = allowed.indicators(lots, closed)
    still = np.where(closed, 0.0, before)
    lower, upper = still.copy(), still.copy()
    for low, high in zip(*allowed.intervals, strict=True):
        here = ordered & ~closed & (lots >= low) & (lots <= high)
        lower, upper = (
            np.where(here, before + low * allowed.size, lower),
            np.where(here, before + high * allowed.size, upper),
        )
    cash = allowed.problem.cash
    lower[cash], upper[cash] = -np.inf, np.inf
    return lower, upper


def _fees(allowed: Lots, lots: Integers, closed: Mask) -> float:
    fees = allowed.problem.fees
    return 0.0 if fees is None else float(fees.each(allowed.trades(lots, closed)).sum())


def _program(problem: Problem, lower: Array, upper: Array, fees: float) -> Problem:
    """The convex program within these bounds, with the cash less these fees."""
    rises = iter(problem.rows.cost)
    pieces = tuple((title, piece.paying(fees, problem.cash, rises)) for title, piece in problem.pieces)
    sides = Bound(label="orders as they are", lower=lower, upper=upper)
    return replace(problem.relaxation, pieces=(*pieces, ("orders as they are", sides)))
