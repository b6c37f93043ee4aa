"""Rules on the trades as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from equipoise.constraints.base import (
    Account,
    Numbers,
    Piece,
    Row,
    Rule,
    Step,
    check_number,
    check_range,
    ones,
)
from equipoise.constraints.errors import InputError

# The part of a buy and of a sale that counts, for each kind of turnover.
KINDS = {"one_way": (0.5, 0.5), "two_way": (1.0, 1.0), "buy": (1.0, 0.0), "sell": (0.0, 1.0)}


@dataclass(frozen=True)
class Turnover(Rule, stacks=True):
    """The trades of all assets but the cash, as a fraction of the pre-trade NAV, are at most `limit`.

    kind "one_way" (default): ½ Σ|z|; "two_way": Σ|z|; "buy": Σ z⁺; "sell": Σ z⁻.
    """

    limit: float
    kind: Literal["one_way", "two_way", "buy", "sell"] = "one_way"

    def __post_init__(self) -> None:
        check_number(self.limit, "limit", at_least=0.0)
        if self.kind not in KINDS:
            raise InputError(f"must be one of {', '.join(KINDS)}", column="kind", value=self.kind)

    def pieces(self, account: Account) -> Sequence[Piece]:
        buy, sell = KINDS[self.kind]
        label = f"{self.kind.replace('_', '-')} turnover"
        return (Row(label=label, buy=ones(account, value=buy), sell=ones(account, value=sell), upper=self.limit),)


@dataclass(frozen=True)
class LotSize(Rule, stacks=True):
    """Traded quantities are whole multiples of `lot` units (0: any quantity), and either zero or at least
    `min_quantity` units and `min_notional` of cash, inclusive. Closing a position is exempt from both: it
    may be sold (or bought back) in full whatever is left of it.

    Blanks mean no lot and no minimum. The holdings themselves need not be whole lots.
    """

    lot: Numbers
    min_notional: Numbers = 0.0
    min_quantity: Numbers = 0.0

    def pieces(self, account: Account) -> Sequence[Piece]:
        given = {"lot": self.lot, "min_notional": self.min_notional, "min_quantity": self.min_quantity}
        found = {name: account.numbers(value, name, cash=0.0, missing=0.0) for name, value in given.items()}
        for name, values in found.items():
            check_range(values, account, name, at_least=0.0)
        return (Step(label="whole lots", **found),)
