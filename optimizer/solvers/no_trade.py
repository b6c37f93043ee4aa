"""The test for doing nothing, which is exact for any covariance, and needs no solver."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.optimizer.problem.counts import held_keeps
from equipoise.optimizer.problem.dust import beyond_zero
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE, Prices, Solution, Status
from equipoise.optimizer.verification.certificate import certified, lower_bound

#: With several accounts: the gap that what is held may have, of NAV a year and of the objective.
_TIGHT = 1e-13


def holding(problem: Problem) -> Solution | None:
    """Hold, if that is optimal, for any covariance: with g = aversion·Σ(w₀ − b), if w₀ keeps every rule and

        max over what may be sold of (g − sell/horizon)  ≤  min over what may be bought of (g + buy/horizon)

    (the slopes of the objective at w₀ to the left and to the right; holding costs add theirs to g). It is "only
    if" as well while no row binds at w₀; where one does, holding may be optimal without this test seeing it.
    Source: the optimality condition of the budget-constrained problem (Dybvig and Pezzo 2019).
    """
    before = problem.before
    if beyond_zero(problem).any() or problem.violation(before) > ROUNDING_TOLERANCE or not held_keeps(problem):
        return None
    if problem.accounts is not None:
        reached = problem.objective(before)
        bound = lower_bound(problem, before, Prices.none(problem), search=False)
        tight = reached - bound <= max(_TIGHT, _TIGHT * abs(reached))
        held = Solution(Status.NO_TRADE, "holding", before.copy(), Prices.none(problem), reached, bound)
        return held if tight else None
    away, factors = before - problem.target, problem.risk.factors
    slopes = problem.separable(problem.aversion * (factors @ away) @ factors, Prices.none(problem).rows)
    sells = np.where(before > problem.lower, slopes.derivative(before, -1), -np.inf)
    buys = np.where(before < problem.upper, slopes.derivative(before, 1), np.inf)
    if np.max(sells) > np.min(buys):
        return None
    worst, best = float(np.max(sells)), float(np.min(buys))
    budget = -(worst if np.isinf(best) else best if np.isinf(worst) else 0.5 * (worst + best))
    prices = replace(Prices.none(problem), budgets=np.array([budget]))
    return replace(certified(problem, before.copy(), prices, "holding"), status=Status.NO_TRADE)
