"""From the convex optimum to whole lots.

The search starts from the convex optimum rounded to the safe side (buys down, sales up, debts not above the
optimum's while that costs next to nothing), moves by lots (`lot_search`) among the allowed points
(`lot_points`), and keeps every rule, trading costs included. Where it finds no plan within the rules, a small
integer program (`lot_program`) says whether there is one.

The convex bound bounds every whole-lot plan too, so that the gap of the result is certified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from equipoise.constraints.base import Array, Bound, Cone, Opaque, Piece, Row
from equipoise.constraints.custom import tightened
from equipoise.optimizer.lot_points import SLACK, Lots
from equipoise.optimizer.lot_search import Search, State
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE

_ROOM = 1e-10  # how much a decided order may still move, in fractions of NAV
_CUSTOM_TRIES = 5
_DECISIONS = 4  # rounds of deciding which orders below their minimum to drop


@dataclass(frozen=True, eq=False)
class LotPlan:
    """Whole-lot trades: exact quantities, and the weights after them (cash before costs)."""

    quantities: tuple[Fraction, ...]
    weights: Array


def starts(search: Search, optimum: Array) -> Iterator[State]:
    """Where the search starts: the optimum rounded to the safe side for the cash, and to the nearest lot.

    If both break a rule: the optimum of the rules tightened by what rounding can move them, which rounds to a
    point within the rules. With fine lots this is next to the optimum; with coarse lots there may be none.
    """
    allowed, problem = search.allowed, search.problem
    # Debts round up (less debt), everything else towards more cash.
    first = search.state(*allowed.nearest(optimum - problem.before, optimum < 0))
    second = _near(search, optimum)
    yield first
    yield second
    if np.all((allowed.lowest <= 0) & (allowed.highest >= 0)):
        nothing = search.state(np.zeros(len(optimum), dtype=np.int64), np.zeros(len(optimum), dtype=bool))
        # Doing nothing is a plan, too: worth a search where rounding costs more than all of trading gains.
        if nothing.violation <= SLACK and nothing.objective < min(first.objective, second.objective):
            yield nothing
    trades = np.abs(optimum - problem.before)
    if np.any((allowed.least > 1) & (trades > 0) & (trades < allowed.least * allowed.size)):
        yield from (_near(search, decided) for decided in _decided(search, optimum))
    if min(first.violation, second.violation) > SLACK and (inner := _tightened(search)) is not None:
        yield _near(search, inner)


def _near(search: Search, weights: Array) -> State:
    """The state of the allowed points nearest to these weights."""
    trades = weights - search.problem.before
    exactly = trades / search.allowed.size
    return search.state(*search.allowed.nearest(trades, np.round(exactly) > exactly))


def _decided(search: Search, optimum: Array) -> Iterator[Array]:
    """The optimum again, with orders below their minimum decided: dropped if below half, else raised to it.

    Each decision moves the others; a few rounds settle it.
    """
    from equipoise.optimizer.program import solve

    problem, minimum = search.problem, search.allowed.least * search.allowed.size
    # Every asset gets bounds, and none is fixed quite: all decisions then share one compiled program.
    lower, upper = np.maximum(problem.lower, -0.99 * problem.outer), np.minimum(problem.upper, 0.99 * problem.outer)
    lower, upper = np.minimum(lower, upper - _ROOM), np.maximum(upper, lower + _ROOM)
    weights = optimum
    for _ in range(_DECISIONS):
        trade = weights - problem.before
        small = (np.abs(trade) > 0) & (np.abs(trade) < minimum * (1 - 1e-9)) & (search.allowed.least > 1)
        small[problem.cash] = False
        if not small.any():
            return
        drop = small & (np.abs(trade) < 0.5 * minimum)
        raised = small & ~drop
        lower = np.where(drop, problem.before - _ROOM, np.where(raised & (trade > 0), problem.before + minimum, lower))
        upper = np.where(drop, problem.before + _ROOM, np.where(raised & (trade < 0), problem.before - minimum, upper))
        if np.any(lower > upper):
            return
        bounds = ("decided orders", Bound(label="decided", lower=lower, upper=upper))
        others = tuple((title, piece) for title, piece in problem.pieces if not isinstance(piece, Bound))
        floor = tuple((title, _only_cash(piece, problem.cash)) for title, piece in problem.bounds)
        answer = solve(replace(problem, pieces=(*others, *floor, bounds)))
        if answer.weights is None:
            return
        weights = answer.weights
        yield weights


def _only_cash(bound: Bound, cash: int) -> Bound:
    """The bound on the cash, nothing on the others."""
    here = np.arange(len(bound.lower)) == cash
    lower, upper = np.where(here, bound.lower, -np.inf), np.where(here, bound.upper, np.inf)
    return replace(bound, lower=lower, upper=upper)


def _tightened(search: Search, custom: float = 0.0) -> Array | None:
    """The optimum of the problem with every row tighter by the most that rounding to a lot can move it.

    Custom rules do not say how far that is: they get the margin `custom`.
    """
    from equipoise.optimizer.program import solve

    problem, size, cash = search.problem, search.allowed.size, search.problem.cash
    rates = problem.cost
    cost = size * (np.maximum(rates.buy, rates.sell) + 2.0 * rates.quadratic + 1.5 * rates.impact)
    size, cost = (np.where(np.arange(len(size)) == cash, 0.0, x) for x in (size, cost))

    def margin(row: Row) -> float:
        slope = np.zeros(len(size))
        for names in (("weight",), ("long", "short"), ("buy", "sell")):
            parts = [np.abs(c) for name in names if (c := getattr(row, name)) is not None]
            slope += np.max([np.zeros(len(size)), *parts], axis=0)
        return float(slope @ size + slope[cash] * (np.sum(size) + np.sum(cost)))

    def tighter(piece: Piece) -> Piece:
        if isinstance(piece, Row):
            return replace(piece, upper=piece.upper - margin(piece))
        if isinstance(piece, Bound):
            floor = np.where(np.arange(len(size)) == cash, np.sum(size) + np.sum(cost), 0.0)
            return replace(piece, lower=piece.lower + floor, upper=piece.upper - floor)
        if isinstance(piece, Cone):
            return replace(piece, upper=piece.upper - float(_norms(piece, cash) @ size))
        return tightened(piece, custom) if custom and isinstance(piece, Opaque) else piece

    inner = replace(problem, pieces=tuple((title, tighter(piece)) for title, piece in problem.pieces))
    if np.any(inner.lower > inner.upper) or any(cone.upper < 0 for _, cone in inner.cones):
        return None
    return solve(inner).weights


def _norms(cone: Cone, cash: int) -> Array:
    """By how much a unit of each asset's trade, paid from the cash, can move a cone's norm."""
    relative = cone.matrix - cone.matrix[:, [cash]]
    return np.asarray(np.sqrt(np.sum(relative**2, axis=0) + cone.diagonal**2 + cone.diagonal[cash] ** 2))


def rounded(problem: Problem, optimum: Array, *, margin: float = 0.0) -> tuple[LotPlan | None, str]:
    """The best whole-lot plan found near the convex optimum, or None and why there is none.

    Rows are kept by `margin` of NAV more: for a plan that missed the exact check by a rounding error.
    """
    # The safe side first: no debt above the optimum's. The rules' own bounds come in where that leaves no plan, or
    # only one that loses more than safety is worth.
    safe = np.where(optimum < 0, np.maximum(problem.lower, np.minimum(optimum, problem.upper)), problem.lower)
    first, reason = _searched(problem, optimum, safe, margin)
    good = first is not None and first.objective <= _worth(problem.objective(optimum))
    if good or not np.any(safe > problem.lower):
        return (first.plan if first else None), reason
    second, reason = _searched(problem, optimum, problem.lower, margin)
    if first is not None and (second is None or first.objective <= _worth(second.objective)):
        return first.plan, ""
    return (second.plan if second else None), reason


def _worth(objective: float) -> float:
    """What may be given for less debt: a hundredth of the objective, or a thousandth of a basis point of NAV."""
    return objective + max(0.01 * abs(objective), 1e-7)


@dataclass(frozen=True, eq=False)
class _Found:
    plan: LotPlan
    objective: float


def _searched(problem: Problem, optimum: Array, lower: Array, margin: float) -> tuple[_Found | None, str]:
    """The best plan within these lower bounds, or None and why."""
    from equipoise.optimizer.lot_program import feasible_point

    allowed = Lots.of(problem, lower)
    if len(none := allowed.empty()):
        return None, _no_point(problem, int(none[0]), allowed)
    search, reason = Search(allowed, margin), ""
    begun = list(starts(search, optimum))
    inside = [state for state in begun if state.violation <= SLACK]
    reached = [search.run(state) for state in inside or begun]
    best = min(reached, key=lambda s: (max(s.violation, SLACK), s.objective))
    if best.violation > SLACK and problem.opaque:
        best = min([best, *_custom_tries(search, best.violation)], key=lambda s: s.violation)
    if best.violation > SLACK:
        point, proven = feasible_point(search, optimum)
        if point is not None:
            best = search.run(search.state(*point))
        reason = _unkept(search, best, proven)
    if best.violation > SLACK:
        return None, reason
    return _Found(LotPlan(allowed.quantities(best.lots, best.closed), best.weights), best.objective), ""


def _custom_tries(search: Search, violation: float) -> Iterator[State]:
    """Plans for custom rules kept by more and more, until one is within them all."""
    for power in range(_CUSTOM_TRIES):
        inner = _tightened(search, violation * 4.0**power)
        if inner is None:
            return
        state = search.run(_near(search, inner))
        yield state
        if state.violation <= SLACK:
            return


def _no_point(problem: Problem, i: int, allowed: Lots) -> str:
    named = sorted(
        {title for title, b in problem.bounds if b.lower[i] == problem.lower[i] or b.upper[i] == problem.upper[i]}
    )
    assert problem.step is not None
    return (
        f"{' and '.join(named)} leave {problem.assets[i]} no whole number of lots: one lot of "
        f"{problem.step.lot[i]:g} is {100 * allowed.size[i]:.3g} % of NAV, and the weight must lie within "
        f"{100 * problem.lower[i]:.4g} % to {100 * problem.upper[i]:.4g} % "
        f"(now {100 * problem.before[i]:.4g} %, smallest order {100 * allowed.least[i] * allowed.size[i]:.3g} %)"
    )


def _unkept(search: Search, state: State, proven: bool) -> str:
    sides = search.sides(state.weights) - search.upper
    titles = [*search.problem.rows.titles, "the upper limit on cash"]
    broken = [f"{titles[j]} (by {100 * sides[j]:.3g} % of NAV)" for j in np.flatnonzero(sides > SLACK)]
    broken += [
        title
        for (title, _), (form, limit) in zip(search.problem.cones, search.cones, strict=True)
        if form.value(state.weights) > limit
    ]
    weights = state.weights
    broken += [
        title
        for title, piece in search.problem.opaque
        if piece.violation(weights, weights - search.problem.before) > FEASIBILITY_TOLERANCE
    ]
    how = (
        "no plan in whole lots keeps all rules (proven)"
        if proven
        else "no plan in whole lots was found that keeps all rules"
    )
    return f"{how}; the closest one breaks {', '.join(broken)}"
