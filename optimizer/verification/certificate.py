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
from dataclasses import replace
from functools import partial

import numpy as np

from equipoise.constraints.pieces import Array, dot
from equipoise.optimizer.problem.dust import without_dust
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import (
    FEASIBILITY_TOLERANCE,
    Attempt,
    Prices,
    Solution,
    Status,
    close_enough,
)

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


def judged(problem: Problem, found: Solution) -> Solution:
    """What our own check makes of a solver's answer, of whose word nothing is believed.

    Weights are cleaned (`cleaned`), must break no rule by more than 1e-9 of NAV, and have the bound that the prices
    prove, of `found.problem` if that is another form of the problem. Where they do not, `status` UNSOLVED.
    """
    name, said = found.solver, found.said
    if found.weights is None or found.prices is None:
        return Solution(Status.UNSOLVED, "none", attempts=(Attempt(name, said, "no answer"),))
    form = found.problem or problem
    weights = cleaned(form, found.weights)
    violation = problem.violation(weights)
    if not violation <= FEASIBILITY_TOLERANCE:
        verdict = f"refused: a rule is broken by {violation:.1e} of NAV"
        return Solution(Status.UNSOLVED, "none", attempts=(Attempt(name, said, verdict),))
    answer = certified(form, weights, found.prices, name)
    if answer.status is Status.FEASIBLE:  # where no limit is in the way, a solver's prices are its noise
        answer = min(answer, certified(form, weights, Prices.none(form), name), key=lambda each: each.gap)
    attempt = Attempt(name, said, f"accepted: gap {answer.gap:.1e}")
    return replace(answer, problem=found.problem, attempts=(attempt,))


def lower_bound(
    problem: Problem, weights: Array, prices: Prices, *, objective: float = 1.0, search: bool = True
) -> float:
    """A number that no feasible objective can be below; `weights` only steer λ and y towards a tight one.

    With `objective` = 0: of the zero function, so that a bound above 0 proves that nothing is feasible. Without
    `search` the budgets' prices are only guessed (from the slopes of the cashes).
    """
    if not (np.all(np.isfinite(prices.rows)) and np.all(np.isfinite(prices.cones))):
        prices = Prices.none(problem)
    slope, constant = _linear_part(problem, weights, prices, objective)
    cashes, (spends, has, _) = list(problem.cashes), problem.budgets

    def dual(budgets: Array) -> tuple[float, Array]:
        """The bound at these budgets' prices, and its derivatives there."""
        at = problem.separable(slope + budgets @ spends, prices.rows, objective=objective)
        best = at.minimiser()
        return constant - float(budgets @ has) + float(np.sum(at.value(best))), dot(spends, best) - has

    def tight(bound: float) -> bool:
        return bool(objective) and reached - bound <= _TIGHT * abs(reached)

    reached = problem.objective(weights) if objective else 0.0
    given = [] if prices.budgets is None or not np.all(np.isfinite(prices.budgets)) else [prices.budgets]
    # The cashes are free of costs: where one is strictly inside its bounds, its slope is its budget's price.
    free = problem.separable(slope, prices.rows, objective=objective)
    guesses = [*given, *(-free.derivative(weights, side)[cashes] for side in (1, -1))]
    best, bound = guesses[-1], -np.inf
    for guess in guesses:
        value = dual(guess)[0]
        if value > bound:
            best, bound = guess, value
        if tight(bound):
            return bound
    if search and not (objective and close_enough(reached, bound)):
        bound = max(bound, _searched(dual, best, tight))
    return bound if np.isfinite(bound) else -np.inf


def reduced_costs(problem: Problem, weights: Array, prices: Prices, *, objective: float = 1.0) -> Array:
    """What each asset's bound costs: the Lagrangian's slope at the weights, 0 inside the bounds and kinks.

    Above 0 at a lower bound, below 0 at an upper one; in NAV per year and unit of weight.
    """
    slope, _ = _linear_part(problem, weights, prices, objective)
    free = problem.separable(slope, prices.rows, objective=objective)
    left, right = free.derivative(weights, -1), free.derivative(weights, 1)
    # The budget's price: that which leaves the cash, which costs nothing to trade, without a slope.
    cashes = list(problem.cashes)
    budget = -0.5 * (left[cashes] + right[cashes]) @ problem.budgets.spends
    return np.asarray(np.maximum(left + budget, 0.0) + np.minimum(right + budget, 0.0))


def _searched(dual: Callable[[Array], tuple[float, Array]], best: Array, tight: Callable[[float], bool]) -> float:
    """The highest bound found along one budget's price after the other, from these; one price needs one round."""
    bound = -np.inf
    for _ in range(_ROUNDS if len(best) > 1 else 1):
        before = bound
        for k in range(len(best)):
            bound, price = _maximised(partial(_along, dual, best, k), float(best[k]))
            best = _with(best, k, price)
        if tight(bound) or bound <= before + _TIGHT * abs(before):
            break
    return float(bound)


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


def _along(dual: Callable[[Array], tuple[float, Array]], prices: Array, k: int, price: float) -> tuple[float, float]:
    """The bound with this price of budget k, the others as they are, and its derivative along it."""
    value, derivatives = dual(_with(prices, k, price))
    return value, float(derivatives[k])


def _with(prices: Array, k: int, price: float) -> Array:
    return np.where(np.arange(len(prices)) == k, price, prices)


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
