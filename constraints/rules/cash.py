"""Rules on the settlement cash, after trades and trading costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Bound, Envelope, Piece, Row
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range, unbounded
from equipoise.constraints.rules.terms import Proceeds


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


@dataclass(frozen=True)
class SettledCash(Rule, stacks=True, blanks=("late",)):
    """Buys are paid from settled cash and from proceeds that are there at once:

        cash after costs − Σ late·z⁻ − Σ over venues of (Σ (1 − late)·z⁻ − Σ z⁺)⁺  ≥  unsettled / NAV

    `unsettled`: the part of the cash (money) that is still to come from earlier sales. `late`: the part of each
    asset's proceeds that comes only after settlement (1 for T+1, 0 for at once; blank: 0). With `by`, a label column,
    proceeds pay for buys of the same venue only: what a venue's sales leave over waits for settlement. Assets without
    a label pay for any.
    """

    unsettled: float = 0.0
    late: Numbers = 0.0
    by: str | None = None

    def __post_init__(self) -> None:
        check_number(self.unsettled, "unsettled", at_least=0.0)

    def pieces(self, account: Account) -> Sequence[Piece]:
        late = self.numbers(account, "late", cash=0.0, missing=0.0)
        check_range(late, account, "late", at_least=0.0, at_most=1.0)
        of_cash = np.zeros(account.shape)
        of_cash[account.cash] = -1.0
        waiting = np.broadcast_to(self.unsettled / np.asarray(account.nav), account.shape)[account.cash]
        row = Row(label="settled cash", weight=of_cash, sell=late, upper=-waiting, at_least=True)
        if self.by is None:
            return (row,)
        venues = tuple(member & account.positions(None, "by") for member in account.members(self.by).values())
        return (Envelope(row, (Proceeds(venues, 1.0 - late),)),)

    def label_columns(self) -> tuple[str, ...]:
        return () if self.by is None else (self.by,)


def _of(label: str, account: str | None) -> str:
    return label if account is None else f"{label} of {account}"
