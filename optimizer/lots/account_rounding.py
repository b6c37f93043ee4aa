"""Whole lots where a portfolio lies in several accounts: lot by lot, with everything else solved again.

Transfers are of any size, so that what a lot changes in one account another can make up for; a search that trades
lots against the cash alone does not see that. So the trades are fixed one after the other, the one with the largest
lot first, each at the best of the lots around what is then its optimum, and all that is still free is solved anew as
the convex program; where that leads nowhere, the next best lot of an earlier one is tried. With `effort` the lots
are then moved by one, each in turn, as long as that helps. The gap is that to the convex program's bound, which holds
for whole lots too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Bound, Step
from equipoise.optimizer.lots.account_least import solved
from equipoise.optimizer.problem.counts import order_sizes
from equipoise.optimizer.problem.effort import ENDLESS, Clock
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution

#: Rounds of moving each order by a lot, for each unit of effort.
_ROUNDS = 2
#: For each order, how many times the search may fix an order.
_DIVES = 6


@dataclass(frozen=True, eq=False)
class Whole:
    """Weights, and the exact quantities of the trades that are in whole lots (or closed), by position."""

    weights: Array
    quantities: dict[int, Fraction]
    objective: float


def rounded(
    problem: Problem, solution: Solution, *, effort: int = 1, clock: Clock = ENDLESS
) -> tuple[Whole | None, str]:
    """The plan in whole lots, or None and why."""
    assert problem.accounts is not None and problem.step is not None and solution.weights is not None
    free = _free(problem, problem.step, problem.accounts.rows)
    found = _dived(_Search(problem, problem.step, {}, solution.weights), free, [_DIVES * len(free)], clock)
    if found is None:
        return (
            None,
            "No whole lots near the convex plan were found that keep all rules; that there are none is not proven.",
        )
    for _ in range(_ROUNDS * effort):
        start = found.objective
        for i in free:
            found = _by_a_lot(found, i, clock)
        if not found.objective < start:
            break
    return Whole(found.weights, found.fixed, found.objective), ""


def _free(problem: Problem, step: Step, n: int) -> list[int]:
    """Of n rows those that trade in lots or from a minimum on, the largest lot first."""
    lots = np.where((step.lot > 0) | (step.min_quantity > 0) | (step.min_notional > 0))[0]
    free = [int(i) for i in lots if i < n and i not in problem.cashes and problem.lower[i] < problem.upper[i]]
    return sorted(free, key=lambda i: (-step.lot[i] * problem.portfolio.price[i], i))


def _by_a_lot(found: _Search, i: int, clock: Clock) -> _Search:
    """With this trade moved by a lot, if that is better."""
    for units in found.next_to(i):
        better = None if clock.over else found.with_fixed(i, units)
        if better is not None and better.objective < found.objective:
            found = better
    return found


def _dived(found: _Search, free: list[int], left: list[int], clock: Clock) -> _Search | None:
    """All of these fixed, the best lot first; `left`: how many lots may still be tried."""
    if not free:
        return found
    left[0] -= 1
    if left[0] < 0 or clock.over:
        return None
    tried = [better for units in found.around(free[0]) if (better := found.with_fixed(free[0], units)) is not None]
    ends = (_dived(one, free[1:], left, clock) for one in sorted(tried, key=lambda one: one.objective))
    return next((end for end in ends if end is not None), None)


@dataclass(frozen=True, eq=False)
class _Search:
    """The trades that are fixed, in units, and the weights that are best with them."""

    problem: Problem
    step: Step
    fixed: dict[int, Fraction]
    weights: Array

    @property
    def objective(self) -> float:
        return float(self.problem.objective(self.weights))

    def with_fixed(self, i: int, units: Fraction) -> _Search | None:
        """With this trade fixed too, if that leaves a plan."""
        problem, fixed = self.problem, self.fixed | {i: units}
        account = problem.portfolio
        low, high = np.full(problem.shape, -np.inf), np.full(problem.shape, np.inf)
        for j, traded in fixed.items():
            at = float((account.exact_quantity[j] + traded) * account.exact_price[j]) / account.nav
            if not problem.lower[j] - 1e-12 <= at <= problem.upper[j] + 1e-12:
                return None
            low[j] = high[j] = min(max(at, problem.lower[j]), problem.upper[j])
        held = replace(problem, pieces=(*problem.pieces, ("whole lots", Bound(label="lots", lower=low, upper=high))))
        answer = solved(held)
        if answer is None or answer.weights is None:
            return None
        return _Search(problem, self.step, fixed, answer.weights)

    def _sizes(self, i: int) -> tuple[Fraction, Fraction]:
        return order_sizes(self.step, i, self.problem.portfolio.exact_price[i])

    def around(self, i: int) -> list[Fraction]:
        """Allowed trades on both sides of the present one, none, and closing the position."""
        lot, least = self._sizes(i)
        account = self.problem.portfolio
        at = exact((self.weights[i] - self.problem.before[i]) * account.nav / account.price[i])
        sizes = {at} if not lot else {lot * math.floor(at / lot), lot * math.ceil(at / lot)}
        smallest = least if not lot else lot * math.ceil(least / lot)
        sizes |= {smallest if at > 0 else -smallest} if abs(at) < smallest else set()
        return self._allowed(i, sizes | {Fraction(0)})

    def next_to(self, i: int) -> list[Fraction]:
        """One lot more, and one less."""
        lot, _ = self._sizes(i)
        return [x for x in self._allowed(i, {self.fixed[i] + lot, self.fixed[i] - lot}) if x != self.fixed[i]]

    def _allowed(self, i: int, sizes: set[Fraction]) -> list[Fraction]:
        _, least = self._sizes(i)
        held = self.problem.portfolio.exact_quantity[i]
        kept = {x for x in sizes if not x or abs(x) >= least}
        if held and any(x * held < 0 and abs(x) >= abs(held) for x in sizes):
            kept |= {-held}  # closing is exempt, whatever is left of a position
        if held and abs(held) < least:
            kept |= {-held}
        return sorted(kept)
