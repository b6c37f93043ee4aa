"""Rules on the settlement cash, after trades and trading costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.constraints.base import Account, Bound, Piece, Rule, check_number, unbounded
from equipoise.constraints.errors import InputError


@dataclass(frozen=True)
class CashFloor(Rule, stacks=True):
    """Cash after trading and its costs is at least `weight`·NAV, and at least `money` if that is given.

    Every portfolio has CashFloor(0) unless it is given a cash rule of its own; a negative floor lets it
    borrow that much. `account`: of this account's cash (see `Rebalancer`), the settlement cash unless given.
    """

    weight: float | None = None
    money: float | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        if self.weight is None and self.money is None:
            object.__setattr__(self, "weight", 0.0)
        for given, argument in ((self.weight, "weight"), (self.money, "money")):
            if given is not None:
                check_number(given, argument)

    def pieces(self, account: Account) -> Sequence[Piece]:
        low, high = unbounded(account)
        cash = account.cash_of(self.account)
        if self.weight is not None:
            low[cash] = self.weight
        if self.money is not None:
            floor = np.maximum(low, self.money / account.nav)
            low[cash] = floor[cash]
        return (Bound(label=_of("cash floor", self.account), lower=low, upper=high),)


@dataclass(frozen=True)
class CashBand(Rule, stacks=True):
    """lower ≤ cash / NAV after trading and its costs, and cash / NAV before the costs ≤ upper.

    The upper limit does not count on the costs to bring the cash down: that rule would not be convex, this one
    is and lies inside it. `account`: of this account's cash, the settlement cash unless given.
    """

    lower: float = 0.0
    upper: float = np.inf
    account: str | None = None

    def __post_init__(self) -> None:
        check_number(self.lower, "lower")
        if self.upper != np.inf:
            check_number(self.upper, "upper")
        if not self.upper >= self.lower:
            raise InputError(f"must be at least the lower limit {self.lower:g}", column="upper", value=self.upper)

    def pieces(self, account: Account) -> Sequence[Piece]:
        low, high = unbounded(account)
        cash = account.cash_of(self.account)
        low[cash], high[cash] = self.lower, self.upper
        return (Bound(label=_of("cash", self.account), lower=low, upper=high),)


def _of(label: str, account: str | None) -> str:
    return label if account is None else f"{label} of {account}"
