"""The check of whole stacks in floating point, with a proven bound on its rounding errors.

`verify` checks the orders of one portfolio in exact arithmetic. Here the same figures are computed for B portfolios
at once in floats, and a portfolio passes only if no rounding error could hide a broken rule; any other is left to
`verify`. So what passes here passes there.

The bound. With u = 2⁻⁵³ every operation, and every float that stands for a decimal number, is off by a factor of at
most 1 ± u, and a sum of n numbers, in any order, by at most nu/(1 − nu) of the sum of their sizes. In fractions of NAV
all figures are sums of products of a quantity, a price, a rate and 1/NAV; the NAV itself is such a sum, off by at most
(n + 2)·u·gross/(1 − …) of itself, where gross = Σ|w₀| ≥ 1. Altogether a row with coefficients of at most c is off by
no more than

    rounding · (1 + c)  +  relative · |slack|        relative = 4·(n + 16)·(1 + gross)·u
                                                     rounding = relative · (Σ|w₀| + 2·Σ|z| + Σ costs)

which is about twice what the chain of operations comes to. Signs need no bound: decimals are in the same order as the
floats that stand for them, so that the float q + x is below, at or above 0 exactly where the decimals' sum is.
Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), lemma 3.1 and sections 3.1, 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from equipoise.constraints.errors import NotStackable
from equipoise.constraints.pieces import Array, Mask, StackState
from equipoise.optimizer.problem.costs import CostTerms
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE

_UNIT = 2.0**-53
_LARGEST = 0.01  # a relative error beyond this is more than the bound above was derived for
_ROOT = 2.0**-75  # far more than by what `verify` raises the roots of impact costs


@dataclass(frozen=True, eq=False)
class StackVerified:
    """What the orders of B portfolios lead to, up to rounding errors, and which of them certainly keep every rule.

    Where `passed` is false nothing is known: the portfolio may keep all rules, and takes the exact check.
    """

    #: Traded units (B, n), signed, 0 for the cash: each stands for the decimal number that shows it.
    trades: Array
    #: What they are worth, signed, and what they cost, in cash; the units held after all of that: (B, n).
    money: Array
    costs: Array
    quantities: Array
    #: Fractions of the NAV before trading, the cash after costs (B, n).
    weights: Array
    #: The least slack of all rules (B,) in fractions of NAV, and what it certainly is at least.
    slack: Array
    certain: Array
    #: By how much a weight, or all costs over the NAV, may be off, in fractions of NAV (B,).
    rounding: Array
    passed: Mask


def verified(problem: Problem, weights: Array, lots: Array | None = None) -> StackVerified:
    """Check the trades to these weights (B, n), the cash before costs, of a stack of problems.

    A rule is kept if it is not broken by more than 1e-9 of NAV, a bound of 0 only if it is kept exactly (but for the
    cash), as in `verify` without whole lots; rules on the cash hold before costs and after them. Where weights are
    NaN nothing passes.

    Problems in whole lots need `lots`, the traded units (B, n): floats that stand for whole multiples of the lots, 0 or
    not below the minimums, or a position's close (`points.grid` makes nothing else). Then the tolerance is 1e-12 of
    NAV, and a bound of 0 is exact for the cash, too.

    Raises NotStackable for problems in lots without them, and for custom rules.
    """
    if (problem.step is not None) != (lots is not None) or problem.opaque:
        raise NotStackable
    stack, cash, before = problem.portfolio, problem.cash, problem.before
    with np.errstate(all="ignore"):  # what is not finite does not pass
        trades = continuous(problem, weights) if lots is None else lots.copy()
        money = trades * stack.price
        traded = money / stack.nav
        size = np.abs(traded)
        costs = _costs(problem.cost, traded, size)
        fees = costs.sum(axis=-1)

        after = before + traded
        earlier = before[cash] - traded.sum(axis=-1)
        after[cash] = earlier - fees
        quantities = stack.quantity + trades
        kept = ~_beyond_zero(problem, quantities)

        gross, volume = np.abs(before).sum(axis=-1), size.sum(axis=-1)
        relative = 4.0 * (before.shape[-1] + 16) * (1.0 + gross) * _UNIT
        bent = problem.cost.impact.max(axis=-1) if problem.cost.impact.any() else 0.0
        rounding = relative * (gross + 2.0 * volume + fees + _ROOT * bent * volume)

        slack, certain = np.full_like(fees, np.inf), np.full_like(fees, np.inf)
        for found, steepness in _slacks(problem, StackState(after, traded, earlier, cash)):
            slack = np.minimum(slack, found)
            certain = np.minimum(certain, found - (rounding * (1.0 + steepness) + relative * np.abs(found)))
        passed = kept & (relative <= _LARGEST)
        if lots is None:
            passed &= certain >= -FEASIBILITY_TOLERANCE
        else:
            floor, ceiling, least = problem.lower[cash], problem.upper[cash], 2.0 * rounding
            passed &= (certain >= -ROUNDING_TOLERANCE) & ~np.isnan(weights).any(axis=-1)
            passed &= ((floor != 0) | (after[cash] >= least)) & ((ceiling != 0) | (earlier <= -least))

        costs *= stack.nav
        quantities[cash] -= money.sum(axis=-1) + costs.sum(axis=-1)
    return StackVerified(trades, money, costs, quantities, after, slack, certain, rounding, passed)


def continuous(problem: Problem, weights: Array) -> Array:
    """Traded units of any size; a position that would reach or cross a bound of 0 is closed exactly."""
    stack = problem.portfolio
    trades = np.asarray((weights - problem.before) * stack.nav / stack.price)
    trades[problem.cash] = 0.0
    left = stack.quantity + trades
    closed = weights == 0
    closed |= (problem.lower == 0) & (left < 0)
    closed |= (problem.upper == 0) & (left > 0)
    closed &= trades != 0
    np.copyto(trades, 0.0 - stack.quantity, where=closed)
    return trades


def _costs(terms: CostTerms, traded: Array, size: Array) -> Array:
    """What each trade costs, in fractions of NAV."""
    costs = terms.buy * np.maximum(traded, 0.0) - terms.sell * np.minimum(traded, 0.0)
    if terms.quadratic.any():
        costs += terms.quadratic * size * size
    if terms.impact.any():
        costs += terms.impact * size * np.sqrt(size)
    return np.asarray(costs)


def _beyond_zero(problem: Problem, quantities: Array) -> Mask:
    """Which portfolios hold less than nothing of an asset that may not be short, or more of one not long."""
    wrong = (problem.lower >= 0) & (quantities < 0)
    wrong |= (problem.upper <= 0) & (quantities > 0)
    wrong[problem.cash] = False
    return np.asarray(wrong.any(axis=-1))


def _slacks(problem: Problem, state: StackState) -> Iterator[tuple[Array, Array | float]]:
    """Each rule's slack (B,), and a number that its largest coefficient is not above."""
    yield (state.after - problem.lower).min(axis=-1), 1.0
    above = problem.upper - state.after
    above[state.cash] = problem.upper[state.cash] - state.earlier_cash
    yield above.min(axis=-1), 1.0
    for _, piece in problem.pieces:
        if (found := piece.slack(state)) is not None:
            yield found
