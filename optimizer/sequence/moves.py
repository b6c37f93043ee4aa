"""What a plan sends: its orders and its transfers between accounts, each with what it moves and what it costs.

An order trades a row of the table against the cash of its account; a transfer moves units from one row to another.
Both pay their costs out of one cash: a share of the convex costs for each part, and for each order that is sent, from
its first fill on, its fee (a fixed fee, and what its commission lacks to a minimum).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.optimizer.problem.counts import order_sizes
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.verification.exact import convex_cost
from equipoise.optimizer.verification.outcome import Outcome


class Move(NamedTuple):
    """An order or a transfer, in full: `total` signed units at `price`.

    `gains`, `loses`: the rows of which a positive total brings more, and less. `payer`: the row of the cash that pays
    `cost` in proportion, and for each slice `fixed` + max(0, minimum − rate·units). `held`: the units of an order's row
    before it, `at` that row (None for a transfer). `lot`, `least`: of each slice, in units; `exempt`: the plan empties
    the row, so that its last slice may be of any size. `entry`: where the plan's trades have it.
    """

    label: str
    total: Fraction
    price: Fraction
    gains: int
    loses: int
    payer: int
    cost: Fraction
    entry: int
    at: int | None = None
    held: Fraction = Fraction(0)
    fixed: Fraction = Fraction(0)
    minimum: Fraction = Fraction(0)
    rate: Fraction = Fraction(0)
    lot: Fraction = Fraction(0)
    least: Fraction = Fraction(0)
    exempt: bool = False

    @property
    def pays_fees(self) -> bool:
        return bool(self.fixed or self.minimum)

    def fee(self, units: Fraction) -> Fraction:
        """What a slice of so many units costs for being an order."""
        return self.fixed + max(self.minimum - self.rate * abs(units), Fraction(0))


def moves(plan: Outcome) -> Iterator[Move]:
    """The orders of a verified plan, then its transfers."""
    asked = plan.asked
    for i, total in enumerate(plan.trades):
        if total and i not in asked.cashes:
            yield _order(plan, i, total) if i < len(asked.assets) else _transfer(plan, i, total)


def _order(plan: Outcome, i: int, total: Fraction) -> Move:
    assert plan.problem is not None and plan.verified is not None
    problem, asked, accounts = plan.problem, plan.asked, plan.problem.accounts
    price = problem.portfolio.exact_price[i]
    cash = asked.cash if accounts is None else accounts.cashes[accounts.owner[i]]
    held, exempt = asked.portfolio.exact_quantity[i], plan.verified.quantities[i] == 0
    sizes = order_sizes(asked.step, i, price) if asked.step is not None else (Fraction(0), Fraction(0))
    payer, cost = _paid(plan, i, total)
    own = *_fees(problem, i, price), *sizes
    return Move(asked.assets[i], total, price, i, cash, payer, cost, i, i, held, *own, exempt)


def _transfer(plan: Outcome, i: int, total: Fraction) -> Move:
    assert plan.problem is not None and plan.problem.accounts is not None
    accounts, e = plan.problem.accounts, i - len(plan.asked.assets)
    transfer, (source, destination) = accounts.transfers[e], accounts.ends[e]
    ends = (transfer.source, transfer.destination)
    label = " -> ".join(ends if total > 0 else ends[::-1])
    price = plan.problem.portfolio.exact_price[i]
    return Move(label, total, price, destination, source, *_paid(plan, i, total), i)


def _paid(plan: Outcome, i: int, total: Fraction) -> tuple[int, Fraction]:
    """The cash that pays for a move, and what it costs in full, without fees."""
    assert plan.problem is not None and plan.verified is not None
    problem, verified = plan.problem, plan.verified
    payer = problem.cashes[int(np.argmax(problem.budgets.pays[:, i]))]
    if problem.fees is None:
        return payer, verified.costs[i]
    return payer, convex_cost(problem, i, total * problem.portfolio.exact_price[i], verified.nav)


def _fees(problem: Problem, i: int, price: Fraction) -> tuple[Fraction, Fraction, Fraction]:
    """An order's fixed fee, its least commission, and its commission a unit."""
    fees = problem.fees
    if fees is None:
        return Fraction(0), Fraction(0), Fraction(0)
    fixed, minimum, rate = (exact(float(each[i])) for each in (fees.fixed, fees.minimum, fees.rate))
    return fixed, minimum, rate * price
