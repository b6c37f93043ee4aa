"""From the convex answer to a plan: whole lots, exact trades, and the check of the orders."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array
from equipoise.optimizer.lots.account_closing import emptied
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.plans.shortfall import shortfalls
from equipoise.optimizer.problem.counts import held_keeps
from equipoise.optimizer.problem.effort import Clock, Effort
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE, Solution, Status, close_enough
from equipoise.optimizer.solvers.choose import named, of_stricter_forms
from equipoise.optimizer.verification.exact import Verified, verify

if TYPE_CHECKING:
    from equipoise.optimizer.lots.alone import LotPlan
    from equipoise.optimizer.lots.stacked import Tried

_DEFAULT = Effort()


class _Orders(NamedTuple):
    """Exact trades in units, their check, the weights that they stand for, and a bound that counts their lots."""

    problem: Problem
    weights: Array
    trades: tuple[Fraction, ...]
    checked: Verified
    bound: float
    #: Rows that no trade or transfer was free to empty.
    stuck: str = ""


def finished(
    problem: Problem,
    solution: Solution,
    spent: Effort = _DEFAULT,
    tried: Tried | None = None,
    clock: Clock | None = None,
) -> Plan:
    """From the convex answer to verified orders: whole lots where lots are asked for, then the exact check.

    Lots are those of stacks (of one, unless it was `tried`), or where these have none that counts, of `lots`. The
    clock is that of `spent` from now on, unless it runs already.
    """
    name, asked, clock = problem.portfolio.name, problem, clock or spent.clock()
    if solution.problem is not None:
        problem = replace(solution.problem, fees=asked.fees)
    if solution.weights is None:
        return Plan(solution.status, name, solution.explanation, problem, solution)
    if problem.found:
        asked = replace(asked, found=problem.found)  # rows of envelopes, which bounds may use too
    if holds := solution.status is Status.NO_TRADE and held_keeps(problem):
        solution = replace(solution, solver="holding")  # whoever found that
        orders: _Orders | str = _held(problem, solution)
    else:
        orders = _ordered(asked, problem, solution, spent, tried, clock)
    if isinstance(orders, str):
        return Plan(Status.NO_LOT_PLAN, name, orders, problem, solution)
    status = solution.status if holds or not problem.discrete else _searched(orders)
    if status is Status.OPTIMAL and not any(orders.trades):
        status = Status.NO_TRADE
    [said] = shortfalls(orders.problem)
    weights, trades, checked, bound = orders.weights, orders.trades, orders.checked, orders.bound
    plan = Plan(status, name, said, orders.problem, solution, checked, trades, weights, bound)
    return plan if checked.passed else _refused(plan, orders.stuck)


def _ordered(
    asked: Problem, problem: Problem, solution: Solution, spent: Effort, tried: Tried | None, clock: Clock
) -> _Orders | str:
    if not problem.discrete:
        return _of_any_size(problem, solution)
    if problem.accounts is not None:
        return _over_accounts(problem, solution, spent, clock)
    return _of_one_account(asked, problem, solution, spent, tried, clock)


def _searched(orders: _Orders) -> Status:
    """What a plan is called that was searched order by order."""
    closed = close_enough(orders.problem.objective(orders.weights), orders.bound)
    return Status.OPTIMAL if closed else Status.FEASIBLE


def _refused(plan: Plan, stuck: str) -> Plan:
    """The plan without its orders, which did not pass the check."""
    broken = "; ".join(f"{c.rule} ({c.detail}{f' of {c.asset}' if c.asset else ''})" for c in plan.failed())
    said = f"the orders did not pass the exact check: {broken}{stuck and f' ({stuck})'}"
    return Plan(Status.UNSOLVED, plan.name, said, plan.problem, plan.solution, plan.verified)


def _held(problem: Problem, solution: Solution) -> _Orders:
    assert solution.weights is not None
    trades = (Fraction(0),) * len(problem.assets)
    checked = verify(problem, trades, whole_lots=problem.discrete)
    return _Orders(problem, solution.weights, trades, checked, solution.bound)


def _of_any_size(problem: Problem, solution: Solution) -> _Orders:
    assert solution.weights is not None
    trades, stuck = _continuous(problem, solution.weights), ""
    if problem.accounts is not None:
        trades, stuck = emptied(problem, trades)
    checked = verify(problem, trades, whole_lots=False)
    return _Orders(problem, solution.weights, trades, checked, solution.bound, stuck)


def _over_accounts(problem: Problem, solution: Solution, spent: Effort, clock: Clock) -> _Orders | str:
    """Least positions and whole lots over several accounts; a text says why there are none."""
    from equipoise.optimizer.lots.account_least import decided
    from equipoise.optimizer.lots.account_rounding import rounded

    decision = decided(problem, solution, clock)
    if decision is None:
        return "no choice of the least positions was found that keeps all rules"
    weights, fixed = decision.weights, {}
    if problem.step is not None:
        start = replace(solution, weights=weights)
        in_lots, why = rounded(decision.problem, start, effort=spent.effort, clock=clock)
        if in_lots is None:
            return why
        weights, fixed = in_lots.weights, in_lots.quantities
    every = [fixed.get(i, trade) for i, trade in enumerate(_continuous(decision.problem, weights))]
    trades, stuck = emptied(decision.problem, every, fixed=fixed)
    checked = verify(problem, trades, whole_lots=False)
    return _Orders(problem, weights, trades, checked, max(solution.bound, decision.bound), stuck)


def _of_one_account(
    asked: Problem, problem: Problem, solution: Solution, spent: Effort, tried: Tried | None, clock: Clock
) -> _Orders | str:
    """Whole lots, of a stricter form of the problem if need be; a text says why there are none."""
    found = _in_lots(asked, problem, solution, spent, tried, clock)
    stricter = isinstance(found, str) and asked.kinked
    for answer in of_stricter_forms(asked.relaxation, named(spent.solver)) if stricter else ():
        if isinstance(found, str) and answer.problem is not None:
            found = _in_lots(asked, replace(answer.problem, fees=asked.fees), answer, spent, None, clock)
    # Not the bound of a stricter form, which is none of what was asked.
    return found if isinstance(found, str) else found._replace(bound=max(solution.bound, found.bound))


def _in_lots(
    asked: Problem, problem: Problem, solution: Solution, spent: Effort, tried: Tried | None, clock: Clock
) -> _Orders | str:
    """The better of the plans of stacks and of `alone`, with the better bound."""
    from equipoise.optimizer.lots.alone import rounded
    from equipoise.optimizer.lots.stacked import Tried, alone

    if tried is None:
        tried = alone(problem, solution, spent, clock) if asked is problem else Tried(None, False)
    first = _in_whole_lots(problem, tried.plan)
    sound = all(orders.checked.passed for orders in first)
    if first and sound and tried.counts:
        return first[0]
    found, why = rounded(problem, solution, spent, clock, asked=asked, start=tried.plan if sound else None)
    own = _in_whole_lots(problem, found)
    if not all(orders.checked.passed for orders in own):
        # A rule missed by a rounding error of the search: once more, with all rules kept by a little more.
        again, _ = rounded(problem, solution, spent, clock, asked=asked, margin=4 * ROUNDING_TOLERANCE)
        own = _in_whole_lots(problem, again) or own
    plans = [*own, *(first if sound else [])]
    if not plans:
        return why
    best = min(plans, key=lambda orders: (not orders.checked.passed, problem.objective(orders.weights)))
    return best._replace(bound=max(orders.bound for orders in plans))


def _in_whole_lots(problem: Problem, plan: LotPlan | None) -> list[_Orders]:
    if plan is None:
        return []
    checked = verify(problem, plan.quantities, whole_lots=True)
    return [_Orders(problem, plan.weights, plan.quantities, checked, plan.bound)]


def _continuous(problem: Problem, weights: Array) -> tuple[Fraction, ...]:
    """Traded quantities of any size; a position that would reach or cross a bound of 0 is closed exactly."""
    portfolio = problem.portfolio
    units = (weights - problem.before) * portfolio.nav / portfolio.price
    trades = [Fraction(0)] * len(units)
    moves = weights != problem.before
    moves[list(problem.cashes)] = False
    for i in np.flatnonzero(moves).tolist():
        held, trade = portfolio.exact_quantity[i], exact(units[i])
        left = held + trade
        if trade and (weights[i] == 0 or (problem.lower[i] == 0 and left < 0) or (problem.upper[i] == 0 and left > 0)):
            trade = -held
        trades[i] = trade
    return tuple(trades)
