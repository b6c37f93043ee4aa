"""From the convex answer to a plan: whole lots, exact trades, and the check of the orders."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

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
from equipoise.optimizer.solvers.choose import of_stricter_forms
from equipoise.optimizer.verification.exact import Verified, verify

if TYPE_CHECKING:
    from equipoise.optimizer.lots.alone import LotPlan
    from equipoise.optimizer.lots.stacked import Tried

_DEFAULT = Effort()


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
    weights, bound = solution.weights, solution.bound
    whole, stuck = problem.discrete, ""
    holds = solution.status is Status.NO_TRADE and held_keeps(problem)
    if holds:
        solution = replace(solution, solver="holding")  # whoever found that
        trades: tuple[Fraction, ...] = (Fraction(0),) * len(problem.assets)
        checked = verify(problem, trades, whole_lots=whole)
    elif whole and problem.accounts is not None:
        from equipoise.optimizer.lots.account_least import decided
        from equipoise.optimizer.lots.account_rounding import rounded as rounded_in_accounts

        decision = decided(problem, solution, clock)
        if decision is None:
            why = "no choice of the least positions was found that keeps all rules"
            return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
        weights, bound, fixed = decision.weights, max(bound, decision.bound), {}
        if problem.step is not None:
            start = replace(solution, weights=weights)
            in_lots, why = rounded_in_accounts(decision.problem, start, effort=spent.effort, clock=clock)
            if in_lots is None:
                return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
            weights, fixed = in_lots.weights, in_lots.quantities
        every = [fixed.get(i, trade) for i, trade in enumerate(_continuous(decision.problem, weights))]
        trades, stuck = emptied(decision.problem, every, fixed=fixed)
        checked = verify(problem, trades, whole_lots=False)
    elif whole:
        found, why = _in_lots(asked, problem, solution, spent, tried, clock)
        for answer in of_stricter_forms(asked.relaxation) if found is None and asked.kinked else ():
            if found is None and answer.problem is not None:
                problem = replace(answer.problem, fees=asked.fees)
                found, why = _in_lots(asked, problem, answer, spent, None, clock)
        if found is None:
            return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
        chosen, checked = found
        weights, trades, bound = chosen.weights, chosen.quantities, max(bound, chosen.bound)
    else:
        trades = _continuous(problem, weights)
        if problem.accounts is not None:
            trades, stuck = emptied(problem, trades)
        checked = verify(problem, trades, whole_lots=False)
    status = solution.status
    if whole and not holds:
        closed = close_enough(problem.objective(weights), bound)
        status = (Status.OPTIMAL if any(trades) else Status.NO_TRADE) if closed else Status.FEASIBLE
    [said] = shortfalls(problem)
    plan = Plan(status, name, said, problem, solution, checked, trades, weights, bound)
    if not checked.passed:
        broken = "; ".join(f"{c.rule} ({c.detail}{f' of {c.asset}' if c.asset else ''})" for c in plan.failed())
        return Plan(
            Status.UNSOLVED,
            name,
            f"the orders did not pass the exact check: {broken}{stuck and f' ({stuck})'}",
            problem,
            solution,
            checked,
        )
    return plan


#: A whole-lot plan and its exact check.
_Checked: TypeAlias = "tuple[LotPlan, Verified]"


def _in_lots(
    asked: Problem, problem: Problem, solution: Solution, spent: Effort, tried: Tried | None, clock: Clock
) -> tuple[_Checked | None, str]:
    """The whole-lot plan; None and why there is none."""
    from equipoise.optimizer.lots.alone import rounded
    from equipoise.optimizer.lots.stacked import Tried, alone

    def checked(plan: LotPlan | None) -> _Checked | None:
        return None if plan is None else (plan, verify(problem, plan.quantities, whole_lots=True))

    if tried is None:
        tried = alone(problem, solution, spent, clock) if asked is problem else Tried(None, False)
    first = checked(tried.plan)
    if first is not None and not first[1].passed:
        first = None
    if first is not None and tried.counts:
        return first, ""
    start = first[0] if first is not None else None
    found, why = rounded(problem, solution, spent, clock, asked=asked, start=start)
    second = checked(found)
    if second is not None and not second[1].passed:
        # A rule missed by a rounding error of the search: once more, with all rules kept by a little more.
        again, _ = rounded(problem, solution, spent, clock, asked=asked, margin=4 * ROUNDING_TOLERANCE)
        second = checked(again) or second
    if first is None or second is None:
        return first or second, why
    # The better of the two, with the better bound.
    bound = max(first[0].bound, second[0].bound)
    better = not second[1].passed or problem.objective(first[0].weights) < problem.objective(second[0].weights)
    plan, check = first if better else second
    return (replace(plan, bound=bound), check), ""


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
