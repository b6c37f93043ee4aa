"""From the convex optimum to whole lots.

The search starts from the convex optimum rounded to the safe side (buys down, sales up, debts not above the
optimum's while that costs next to nothing), moves by lots (`search.neighbours`) among the allowed points
(`points.points`), and keeps every rule, trading costs included. Where it finds no plan within the rules, a small
integer program (`lots.feasibility`) says whether there is one.

Every result carries a lower bound on all whole-lot plans (`bounds.bound`). While the gap is open, the search goes on by
levels of effort (`lots.levels`), and in exact mode by branch and bound until it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from equipoise.constraints.pieces import Array, Figure, Rounding, Semicontinuous
from equipoise.optimizer.lots.bounds.bound import relaxed
from equipoise.optimizer.lots.levels import Found, Way
from equipoise.optimizer.lots.points.points import SLACK, Lots
from equipoise.optimizer.lots.polish import polished, solved
from equipoise.optimizer.lots.search.neighbours import Search, State, best_of
from equipoise.optimizer.problem.effort import ENDLESS, Clock, Effort
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Solution

_CUSTOM_TRIES = 5
_UNFOUND = "no plan in whole lots was found that keeps all rules"
_PROVEN = "no plan in whole lots keeps all rules (proven)"
_SUPPORTED = 8  # how often the rows of envelopes that a plan breaks are added


@dataclass(frozen=True, eq=False)
class LotPlan:
    """Whole-lot trades: exact quantities, the weights after them (cash before costs), and what no whole-lot plan's
    objective is below."""

    quantities: tuple[Fraction, ...]
    weights: Array
    bound: float


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
        held = bool(np.all(search.allowed.holds))
        if held and nothing.violation <= SLACK and nothing.objective < min(first.objective, second.objective):
            yield nothing
    if min(first.violation, second.violation) > SLACK and (inner := _tightened(search)) is not None:
        yield _near(search, inner)


def _near(search: Search, weights: Array) -> State:
    """The state of the allowed points nearest to these weights."""
    trades = weights - search.problem.before
    exactly = trades / search.allowed.size
    return search.state(*search.allowed.nearest(trades, np.round(exactly) > exactly))


def _tightened(search: Search, custom: float = 0.0) -> Array | None:
    """The optimum of the problem with every row tighter by the most that rounding to a lot can move it.

    Custom rules do not say how far that is: they get the margin `custom`.
    """
    problem, size, cash = search.problem, search.allowed.size, search.problem.cash
    rates = problem.cost
    cost = size * (np.maximum(rates.buy, rates.sell) + 2.0 * rates.quadratic + 1.5 * rates.impact)
    size, cost = (np.where(np.arange(len(size)) == cash, 0.0, x) for x in (size, cost))

    rounding = Rounding(size, cost, cash, custom)
    pieces, found = (tuple((title, p.tightened(rounding)) for title, p in of) for of in (problem.pieces, problem.found))
    inner = replace(problem.relaxation, pieces=pieces, found=found)
    if np.any(inner.lower > inner.upper) or any(cone.upper < 0 for _, cone in inner.cones):
        return None
    answer = None if search.clock.over else solved(inner)
    return None if answer is None else answer.weights


def rounded(
    problem: Problem,
    solution: Solution,
    spent: Effort,
    clock: Clock = ENDLESS,
    *,
    asked: Problem | None = None,
    margin: float = 0.0,
    start: LotPlan | None = None,
) -> tuple[LotPlan | None, str]:
    """The best whole-lot plan found near the convex optimum, with its proof; or None and why there is none.

    `asked` is the problem that the bound is of, where `problem` is a stricter form of it (see `choose`). Rows are kept
    by `margin` of NAV more: for a plan that missed the exact check by a rounding error. `start`: a plan known before.

    One level of effort after the other starts from the plan, the bound and the tree of nodes that the one before left,
    and exact mode goes on from there: more effort, or more time, goes further on the same way.
    """
    assert solution.weights is not None
    searching = partial(Search, margin=margin, clock=clock)
    strict = asked is not None and bool(asked.kinked)
    found, reason = _first(problem, solution.weights, searching, max(1, spent.effort))
    found = _begun(found, start)
    whole = relaxed(asked if asked is not None else problem)
    allowed = Lots.of(whole, whole.lower)

    def everywhere() -> Search:
        return searching(allowed if whole is problem else Lots.of(problem, problem.lower))

    way = Way(allowed, solution, found, everywhere, gap=spent.gap, strict=strict, clock=clock)
    for level in range(1, spent.effort + 1):
        if way.arrived or clock.over:
            break
        way.level(level)
    if spent.exact:
        way.to_the_end()
    return (None, _why(way, reason)) if way.found is None else (_plan(way.found, way.bound), "")


def _why(way: Way, reason: str) -> str:
    """Why there is no plan, with what is proven."""
    if way.strict:  # what a stricter form cannot keep, the rules may
        reason = reason.replace(_PROVEN, _UNFOUND)
    return reason.replace(_UNFOUND, _PROVEN) if way.tree is not None and way.tree.none else reason


def _begun(found: Found | None, start: LotPlan | None) -> Found | None:
    """From the better one of what was found and a plan known before."""
    if found is None or start is None:
        return found
    allowed = found.search.allowed
    state = found.search.state(*allowed.snapped(*allowed.traded(start.quantities)))
    return replace(found, best=state) if state.better_than(found.best) else found


def _plan(found: Found, bound: float) -> LotPlan:
    allowed, best = found.search.allowed, found.best
    return LotPlan(allowed.quantities(best.lots, best.closed), best.weights, bound)


def _first(
    problem: Problem, optimum: Array, searching: Callable[[Lots], Search], effort: int
) -> tuple[Found | None, str]:
    """The best plan from the optimum rounded, or None and why there is none."""
    # The safe side first: no debt above the optimum's. The rules' own bounds come in where that leaves no plan, or
    # only one that loses more than safety is worth.
    safe = np.where(optimum < 0, np.maximum(problem.lower, np.minimum(optimum, problem.upper)), problem.lower)
    safer = bool(np.any(safe > problem.lower))
    first, reason = _searched(problem, optimum, safe, searching, 0 if safer else effort)
    good = first is not None and first.best.objective <= worth(problem.relaxation.objective(optimum))
    if good or not safer:
        return first, reason
    second, reason = _searched(problem, optimum, problem.lower, searching, effort)
    if first is not None and (second is None or first.best.objective <= worth(second.best.objective)):
        return first, ""
    return second, reason


def worth(objective: Figure) -> Figure:
    """What may be given for less debt: a hundredth of the objective, or a thousandth of a basis point of NAV."""
    return objective + np.maximum(0.01 * abs(objective), 1e-7)


def _searched(
    problem: Problem,
    optimum: Array,
    lower: Array,
    searching: Callable[[Lots], Search],
    effort: int,
    rounds: int = _SUPPORTED,
) -> tuple[Found | None, str]:
    """The best plan within these lower bounds, or None and why; without effort no integer program is asked."""
    allowed = Lots.of(problem, lower)
    if len(none := allowed.empty()):
        return None, _no_point(problem, int(none[0]), allowed)
    search = searching(allowed)
    begun = list(starts(search, optimum))
    inside = [state for state in begun if state.violation <= SLACK]
    reached = [search.run(state) for state in inside or begun]
    best, proven = best_of(reached), False
    if best.violation > SLACK and rounds and problem.beyond(best.weights) > SLACK:
        return _searched(problem.supported(best.weights), optimum, lower, searching, effort, rounds - 1)
    if best.violation > SLACK:
        best, proven = _mended(search, optimum, reached, effort)
    return (None, _unkept(search, best, proven)) if best.violation > SLACK else (Found(search, best), "")


def _mended(search: Search, optimum: Array, reached: list[State], effort: int) -> tuple[State, bool]:
    """The plan nearest to the rules, where no search reached them; and whether it is proven that there is none."""
    from equipoise.optimizer.lots.feasibility import NODES, feasible

    best = best_of(reached)
    if search.problem.opaque:
        best = best_of([best, *_custom_tries(search, best.violation)])
    if best.violation > SLACK and search.allowed.jumps:
        best = best_of(polished(search, state) for state in reached)
    if best.violation <= SLACK or not effort:
        return best, False
    state, proven = feasible(search, optimum, NODES * effort)
    return best if state is None else best_of([best, state]), proven


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
    if allowed.apart[i]:
        named += [title for title, _ in problem.of_kind(Semicontinuous)]
    lot = f"one lot of {problem.step.lot[i]:g} is {100 * allowed.size[i]:.3g} % of NAV, and " if problem.step else ""
    return (
        f"{' and '.join(named)} leave {problem.assets[i]} no {'whole number of lots' if lot else 'quantity'}: {lot}the "
        f"weight must lie within {100 * problem.lower[i]:.4g} % to {100 * problem.upper[i]:.4g} % "
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
    counts = search.counts
    over = search.counted(state.lots, state.closed) - counts.upper
    broken += [f"{counts.titles[j]} (by {over[j]:.0f})" for j in np.flatnonzero(over > 0)]
    weights, trades = state.weights, state.weights - search.problem.before
    broken += [t for t, p in search.problem.opaque if p.excess(weights, trades) > FEASIBILITY_TOLERANCE]
    broken += [t for t, p in search.problem.envelopes if p.excess(weights, trades) > SLACK]
    how = _PROVEN if proven else _UNFOUND
    return f"{how}; the closest one breaks {', '.join(broken)}"
