"""Lower bounds from prices: the proof of a convex answer, and of infeasibility.

For any prices μ ≥ 0 of the rows, s ≥ 0 of the cones, any factor prices λ, cone directions y and budget
price ν, weak duality gives for every feasible w

    objective(w) ≥ −|λ|²/(2·aversion) − λᵀFb − μᵀupper − Σ s·(upper + y·c) − ν
                   + Σᵢ min over [lᵢ, uᵢ] of  fᵢ(wᵢ) + (Fᵀλ + Σ s·y + ν)ᵢ·wᵢ

because ½γ|F(w − b)|² ≥ λᵀF(w − b) − |λ|²/(2γ) and y·x ≤ ‖x‖ for |y| ≤ 1. The minima are closed forms
(`separable`), so the bound holds whatever a solver did; good prices only make it tight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.dust import without_dust
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Prices, Solution, Status, close_enough

#: Trades below this fraction of NAV are taken for a conic solver's noise, if all rules hold without them.
_NOISE = 1e-7
_BISECTIONS = 100
_ROUNDS = 5  # of one budget price after the other
_TIGHT = 1e-12  # a gap of this part of the objective leaves nothing to look for


def certified(problem: Problem, weights: Array, prices: Prices, solver: str) -> Solution:
    """The solution with its objective and bound; its status says whether the gap is closed."""
    objective, bound = problem.objective(weights), lower_bound(problem, weights, prices)
    status = Status.OPTIMAL if close_enough(objective, bound) else Status.FEASIBLE
    return Solution(status, solver, weights, prices, objective, bound)


def lower_bound(
    problem: Problem, weights: Array, prices: Prices, *, objective: float = 1.0, search: bool = True
) -> float:
    """A number that no feasible objective can be below; `weights` only steer λ and y towards a tight one.

    With `objective` = 0: of the zero function, so that a bound above 0 proves that nothing is feasible. Without
    `search` several budgets' prices are only guessed (from the slopes of the cashes).
    """
    if not (np.all(np.isfinite(prices.rows)) and np.all(np.isfinite(prices.cones))):
        prices = Prices.none(problem)
    slope, constant = _linear_part(problem, weights, prices, objective)
    if problem.accounts is not None:
        return _of_accounts(problem, weights, prices, slope, constant, objective, _ROUNDS if search else 0)
    free = problem.separable(slope, prices.rows, objective=objective)

    def dual(budget: float) -> tuple[float, float]:
        """The bound at this budget price, and its derivative there."""
        at = problem.separable(slope + budget, prices.rows, objective=objective)
        best = at.minimiser()
        return constant - budget + float(np.sum(at.value(best))), float(np.sum(best)) - 1.0

    reached = problem.objective(weights) if objective else 0.0
    best = -np.inf
    guesses = [] if prices.budget is None or not np.isfinite(prices.budget) else [prices.budget]
    # The cash is free of costs: where it is strictly inside its bounds, its slope is the budget's price.
    guesses += [-float(free.derivative(weights, side)[problem.cash]) for side in (1, -1)]
    for guess in guesses:
        best = np.fmax(best, dual(guess)[0])
        if objective and reached - best <= _TIGHT * abs(reached):
            return float(best)
    if objective and close_enough(reached, best):
        return float(best)
    best = np.fmax(best, _maximised(dual, guesses[-1])[0])
    return float(best) if np.isfinite(best) else -np.inf


def reduced_costs(problem: Problem, weights: Array, prices: Prices, *, objective: float = 1.0) -> Array:
    """What each asset's bound costs: the Lagrangian's slope at the weights, 0 inside the bounds and kinks.

    Above 0 at a lower bound, below 0 at an upper one; in NAV per year and unit of weight.
    """
    slope, _ = _linear_part(problem, weights, prices, objective)
    free = problem.separable(slope, prices.rows, objective=objective)
    left, right = free.derivative(weights, -1), free.derivative(weights, 1)
    # The budget's price: that which leaves the cash, which costs nothing to trade, without a slope.
    budget: Any = -0.5 * float(left[problem.cash] + right[problem.cash])
    if problem.accounts is not None:
        cashes = list(problem.accounts.cashes)
        budget = -0.5 * (left[cashes] + right[cashes]) @ problem.spends
    return np.asarray(np.maximum(left + budget, 0.0) + np.minimum(right + budget, 0.0))


def _of_accounts(
    problem: Problem, weights: Array, prices: Prices, slope: Array, constant: float, objective: float, rounds: int
) -> float:
    """`lower_bound` where every account has a budget: the price of each by the slope of its cash, then one by one."""
    cashes, spends, budgets = list(problem.cashes), problem.spends, problem.budgets

    def dual(budget: Array) -> tuple[float, Array]:
        at = problem.separable(slope + budget @ spends, prices.rows, objective=objective)
        best = at.minimiser()
        return constant - float(budget @ budgets) + float(np.sum(at.value(best))), spends @ best - budgets

    free = problem.separable(slope, prices.rows, objective=objective)
    guesses = [-free.derivative(weights, side)[cashes] for side in (1, -1)]
    if prices.budgets is not None:
        guesses.insert(0, prices.budgets)
    best = max(guesses, key=lambda guess: dual(guess)[0])
    reached = problem.objective(weights) if objective else 0.0
    for _ in range(rounds):
        bound = dual(best)[0]
        if objective and reached - bound <= _TIGHT * abs(reached):
            return bound
        for k in range(len(budgets)):

            def along(price: float, k: int = k, others: Array = best) -> tuple[float, float]:
                value, derivative = dual(np.where(np.arange(len(budgets)) == k, price, others))
                return value, float(derivative[k])

            _, price = _maximised(along, float(best[k]))
            best = np.where(np.arange(len(budgets)) == k, price, best)
        if dual(best)[0] <= bound + _TIGHT * abs(bound):
            break
    found = dual(best)[0]
    return found if np.isfinite(found) else -np.inf


def _linear_part(problem: Problem, weights: Array, prices: Prices, objective: float) -> tuple[Array, float]:
    away = weights - problem.target
    exposure = problem.risk.factors @ away
    factor_prices = objective * problem.aversion * exposure
    slope = problem.risk.factors.T @ factor_prices
    constant = -0.5 * float(factor_prices @ exposure) - float(slope @ problem.target)
    constant -= float(prices.rows @ problem.rows.upper)
    for (_, cone), price in zip(problem.cones, prices.cones, strict=True):
        if price > 0 and (length := cone.of(weights)) > 0:
            offset = weights - cone.centre
            direction = cone.matrix.T @ (cone.matrix @ offset) / length + cone.diagonal**2 * offset / length
            slope = slope + price * direction
            constant -= price * (cone.upper + float(direction @ cone.centre))
    if prices.slopes is not None:
        slope, constant = slope + prices.slopes, constant + prices.offset
    return slope, constant


def _maximised(dual: Callable[[float], tuple[float, float]], start: float) -> tuple[float, float]:
    """The largest value of a concave function of one variable, and where, by the sign of its derivative."""
    step = max(abs(start), 1e-6)
    low, high = start - step, start + step
    for _ in range(_BISECTIONS):
        if dual(low)[1] >= 0:
            break
        low -= (step := 2 * step)
    for _ in range(_BISECTIONS):
        if dual(high)[1] <= 0:
            break
        high += (step := 2 * step)
    best = max((dual(at)[0], at) for at in (low, high))
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        value, derivative = dual(middle)
        best = max(best, (value, middle))
        low, high = (middle, high) if derivative > 0 else (low, middle)
    return best


def cleaned(problem: Problem, raw: Array) -> Array:
    """Weights within their bounds, without trades that are only a solver's noise, the cash as the residual."""
    inside = np.clip(raw, problem.lower, problem.upper)
    weights = problem.settled(inside)
    quiet = np.where(
        np.abs(inside - problem.before) < _NOISE, np.clip(problem.before, problem.lower, problem.upper), inside
    )
    for bound in (problem.lower, problem.upper):
        quiet = np.where(np.abs(quiet - bound) < 1e-9, bound, quiet)
    for still in (problem.settled(quiet), without_dust(problem, weights)):
        worse = problem.objective(still) - problem.objective(weights)
        keeps = problem.violation(still) <= FEASIBILITY_TOLERANCE
        if keeps and worse <= 1e-9 * abs(problem.objective(weights)) + 1e-15:
            return still
    return weights
