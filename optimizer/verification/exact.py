"""The check of the orders themselves, in exact arithmetic.

From the table's own decimal numbers and the exact traded quantities, with integers and fractions only: what
is held after the trades, what they cost, what cash is left, and for every rule by how much it is kept. It uses
no solver and no cvxpy, and nothing of the search that made the orders. (Two things have no exact value: the
3/2 power of impact costs, which is rounded up, and the norm of a cone, which is squared; a custom rule is
asked itself.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Check, Settlement
from equipoise.optimizer.portfolio.exact_sums import denominator, products, whole
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE


@dataclass(frozen=True, eq=False)
class Verified:
    """What the orders lead to, exactly: money and quantities after them, and all checks."""

    quantities: tuple[Fraction, ...]
    cost: Fraction
    costs: tuple[Fraction, ...]
    cash: Fraction
    nav: Fraction
    weights: Array
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(
    problem: Problem, trades: Sequence[Fraction], *, whole_lots: bool, paid: Sequence[Fraction] | None = None
) -> Verified:
    """Check these traded quantities (signed units, one an asset, 0 for the cash) against the raw table.

    Bounds of 0 are exact. Rules stated in floating point (a band around 0.1) are kept if they are not broken by
    more than 1e-12 of NAV; where quantities are not whole lots but a continuous solver's answer, by 1e-9.
    `paid`: what each trade costs, in cash, where it is not sent as one order.
    """
    accounts = problem.accounts
    # The rules of the table's own rows, for what is held in each account in the end.
    asked = problem.asked
    costs = paid_for(problem, trades) if paid is None else list(paid)
    settled = _settlement(problem, trades, costs, whole_lots=whole_lots)
    checks = [check for title, piece in asked.pieces for check in piece.checks(title, settled)]
    conserved = sum(settled.earlier) == settled.nav
    checks.append(Check("Cash", "trades, costs and cash add up", None, 0.0, 0.0, False, 0.0, conserved))
    if accounts is not None:
        checks += accounts.checks(trades, costs, settled)
    return Verified(
        tuple(settled.after),
        _sum(costs),
        tuple(costs),
        Fraction(settled.value[asked.cash], settled.unit),
        Fraction(settled.nav, settled.unit),
        settled.weights(settled.value),
        tuple(checks),
    )


def _sum(numbers: Sequence[Fraction]) -> Fraction:
    unit = denominator(numbers)
    return Fraction(sum(whole(numbers, unit)), unit)


def _settlement(
    problem: Problem, trades: Sequence[Fraction], costs: Sequence[Fraction], *, whole_lots: bool
) -> Settlement:
    """What these trades and their costs lead to, of the table's own rows."""
    accounts, asked = problem.accounts, problem.asked
    account = asked.portfolio
    price = account.exact_price
    traded, unit = products(trades, problem.portfolio.exact_price)
    if accounts is None:
        after = [q + x if x else q for q, x in zip(account.exact_quantity, trades, strict=True)]
        paid = [_sum(costs)]
        after[problem.cash] -= Fraction(sum(traded) - traded[problem.cash], unit) + paid[0]
    else:
        after = accounts.settled(trades, costs)
        paid = accounts.costs_of(costs)
    # All amounts of money are whole numbers of this part of a unit of cash.
    value, own = products(after, price)
    held, before = products(account.exact_quantity, price)
    part = math.lcm(unit, own, before, denominator(paid))
    value, traded, held = (
        [x * (part // of) for x in amounts]
        for amounts, of in ((value, own), (traded[: len(price)], unit), (held, before))
    )
    earlier = list(value)
    for at, charged in zip(problem.cashes, whole(paid, part), strict=True):
        earlier[at] += charged
    moved = [v + x for v, x in zip(held, traded, strict=True)]
    return Settlement(
        assets=asked.assets,
        cashes=list(problem.cashes),
        unit=part,
        nav=sum(held),
        cash_nav=account.nav,
        tolerance=Fraction(ROUNDING_TOLERANCE if whole_lots else FEASIBILITY_TOLERANCE),
        whole_lots=whole_lots,
        before=account.before,
        price=price,
        trades=trades[: len(price)],
        after=after,
        value=value,
        earlier=earlier,
        traded=traded,
        without_transfers=(value, earlier) if accounts is None else (moved, moved),
    )


def paid_for(problem: Problem, trades: Sequence[Fraction]) -> list[Fraction]:
    """What each of these trades (and transfers) costs, in cash."""
    account = problem.portfolio
    held, unit = products(account.exact_quantity, account.exact_price)
    nav, nothing = Fraction(sum(held), unit), Fraction(0)  # nothing is held of a transfer
    return [
        _cost(problem, i, x * p, nav) if x else nothing
        for i, (x, p) in enumerate(zip(trades, account.exact_price, strict=True))
    ]


def _cost(problem: Problem, i: int, traded: Fraction, nav: Fraction) -> Fraction:
    """What this trade costs, in cash, as one order."""
    cost, fees = convex_cost(problem, i, traded, nav), problem.fees
    if fees is not None and traded:
        lacking = exact(float(fees.minimum[i])) - exact(float(fees.rate[i])) * abs(traded)
        cost += exact(float(fees.fixed[i])) + max(lacking, Fraction(0))
    return cost


def convex_cost(problem: Problem, i: int, traded: Fraction, nav: Fraction) -> Fraction:
    """The same without fees for each order: exact rates times exact money; bent costs rounded up."""
    terms, size = problem.cost, abs(traded)
    if not size:
        return Fraction(0)
    cost = exact(float(terms.buy[i] if traded > 0 else terms.sell[i])) * size
    if terms.quadratic[i]:
        cost += Fraction(float(terms.quadratic[i])) * size * size / nav
    if terms.impact[i]:
        z = size / nav
        # √z from above: an integer square root at 2⁻¹²⁸.
        root = Fraction(math.isqrt(math.ceil(z * 2**256)) + 1, 2**128)
        cost += Fraction(float(terms.impact[i])) * size * root
    return cost
