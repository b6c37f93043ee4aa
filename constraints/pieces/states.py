"""What a piece is asked about: exactly what orders lead to, or the weights of a whole stack in floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np

from equipoise.constraints.pieces.parts import Array, Indices, part


@dataclass(frozen=True)
class Check:
    """One rule at the final orders: value and limit in the rule's own unit, slack in fractions of NAV.

    `slack` < 0 by more than the tolerance is a broken rule. `asset` is None for rules on several assets.
    """

    rule: str
    detail: str
    asset: str | None
    value: float
    limit: float
    at_least: bool
    slack: float
    passed: bool


#: What a check is of: rule, detail, asset, value, limit and at_least of `Check`.
What: TypeAlias = tuple[str, str, str | None, float, float, bool]


@dataclass(frozen=True, eq=False)
class Settlement:
    """What orders lead to, exactly; money in whole numbers, of which `unit` are one of cash.

    Rules hold for the cash after costs and before them: a floor for the one, a cap for the other.
    """

    assets: Sequence[str]
    #: The positions of all cashes, the settlement cash first.
    cashes: Sequence[int]
    unit: int
    #: The NAV before trading, in these units and as the float that the program divides by.
    nav: int
    cash_nav: float
    #: A limit of a rule may be missed by this part of NAV; one of 0 by nothing where quantities are whole lots.
    tolerance: Fraction
    whole_lots: bool
    #: Weights before trading.
    before: Array
    price: Sequence[Fraction]
    #: Signed units traded, and units held after all.
    trades: Sequence[Fraction]
    after: Sequence[Fraction]
    #: Money held after trades and costs; with the cash before costs; traded (signed); and what the trades alone leave
    #: of what is held, after costs and before them: between accounts, more is moved.
    value: Sequence[int]
    earlier: Sequence[int]
    traded: Sequence[int]
    without_transfers: tuple[Sequence[int], Sequence[int]]

    def weights(self, amounts: Sequence[int]) -> Array:
        """The floats nearest to amounts / NAV."""
        return np.array([x / self.nav for x in amounts])

    def judged(self, what: What, slack: int, per: int, *, exact_limit: bool = False) -> Check:
        """The check of `what` with the slack `slack / per` in money.

        A limit of 0 needs no tolerance: nobody can sell, or with whole lots spend, more than there is.
        """
        most, of = self.tolerance.as_integer_ratio()
        passed = slack >= 0 or (not exact_limit and -slack * of <= most * self.nav * per)
        return Check(*what, slack / (per * self.nav), passed)


@dataclass(frozen=True, eq=False)
class StackState:
    """B portfolios after their trades, in floats: weights after costs and trades (B, n), and the cash before costs."""

    after: Array
    traded: Array
    earlier_cash: Array
    cash: tuple[Indices, Indices]
    _parts: dict[str, Array] = field(default_factory=dict)

    def part(self, name: str) -> Array:
        """w, w⁺, w⁻, z⁺ or z⁻, by its name in `Parts`."""
        if name not in self._parts:
            self._parts[name] = part(name, self.after, self.traded)
        return self._parts[name]

    @cached_property
    def before_costs(self) -> Array:
        """The weights with the cash before costs."""
        weights = self.after.copy()
        weights[self.cash] = self.earlier_cash
        return weights
