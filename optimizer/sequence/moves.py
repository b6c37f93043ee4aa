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
    assert plan.problem is not None and plan.verified is not None
    problem, asked, accounts = plan.problem, plan.asked, plan.problem.accounts
    account, nav = asked.portfolio, plan.verified.nav
    step, fees, n = asked.step, problem.fees, len(asked.assets)
    for i, total in enumerate(plan.trades):
        if not total or (i < n and i in asked.cashes):
            continue
        price = problem.portfolio.exact_price[i]
        payer = problem.cashes[int(np.argmax(problem.budgets.pays[:, i]))]
        cost = plan.verified.costs[i] if fees is None else convex_cost(problem, i, total * price, nav)
        if i >= n:
            assert accounts is not None
            transfer, (source, destination) = accounts.transfers[i - n], accounts.ends[i - n]
            ends = (transfer.source, transfer.destination)
            label = " -> ".join(ends if total > 0 else ends[::-1])
            yield Move(label, total, price, destination, source, payer, cost, i)
            continue
        lot = least = fixed = minimum = rate = Fraction(0)
        if step is not None:
            lot = exact(step.lot[i])
            if step.min_quantity[i] or step.min_notional[i]:
                least = max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / price)
        if fees is not None:
            fixed, minimum, rate = (exact(float(each[i])) for each in (fees.fixed, fees.minimum, fees.rate))
        cash = asked.cash if accounts is None else accounts.cashes[accounts.owner[i]]
        held, exempt = account.exact_quantity[i], plan.verified.quantities[i] == 0
        of_fees = (fixed, minimum, rate * price)
        yield Move(asked.assets[i], total, price, i, cash, payer, cost, i, i, held, *of_fees, lot, least, exempt)
