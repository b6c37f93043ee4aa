"""Rules on the trades as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.constraints.pieces import Count, Piece, Row, Semicontinuous, Step
from equipoise.constraints.rules.rule import Account, Numbers, Rule, check_range, ones, refuse

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
class LotSize(Rule, stacks=True, blanks=("max_notional", "max_quantity")):
    """Traded quantities are whole multiples of `lot` units (0: any quantity), and either zero or at least
    `min_quantity` units and `min_notional` of cash, inclusive. Closing a position is exempt from these: it
    may be sold (or bought back) in full whatever is left of it.

    No order is above `max_quantity` units or `max_notional` of cash, inclusive; a close neither.
    A blank maximum, and an asset that a mapping leaves out, mean no limit; a lot and minimums are always given (0:
    none), or a lost cell would sell fractions of a share. The holdings themselves need not be whole lots.
    """

    lot: Numbers
    min_notional: Numbers = 0.0
    min_quantity: Numbers = 0.0
    max_notional: Numbers | None = None
    max_quantity: Numbers | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        least = ("lot", "min_notional", "min_quantity")
        found = {name: self.numbers(account, name, cash=0.0, missing=0.0) for name in least}
        for name, values in found.items():
            check_range(values, account, name, at_least=0.0)
        for name, most in (("max_notional", self.max_notional), ("max_quantity", self.max_quantity)):
            if most is None:
                continue
            found[name] = values = self.numbers(account, name, cash=np.inf, missing=np.inf)
            problem = "must be above zero; leave it blank for no limit, and forbid trading with NoTrade"
            refuse(~(values > 0), values, account, name, problem)
        return (Step(label="whole lots", **found),)


@dataclass(frozen=True)
class MinimumPosition(Rule, blanks=("weight", "notional")):
    """After trading a position, long or short, is zero or at least `weight` of NAV and `notional` of cash in size,
    inclusive.

    The field's minimum buy-in, and what lenders call dust: a debt is zero or at least the minimum. Blanks mean no
    minimum. It holds for what is not traded, too: a position that is smaller is closed or raised.
    """

    weight: Numbers = 0.0
    notional: Numbers = 0.0
    assets: Sequence[str] | None = None

    def pieces(self, account: Account) -> Sequence[Piece]:
        of = account.positions(self.assets, "assets")
        found = {name: self.numbers(account, name, cash=0.0, missing=0.0) for name in ("weight", "notional")}
        for name, values in found.items():
            check_range(values, account, name, at_least=0.0)
        if not any((values[of] > 0).any() for values in found.values()):
            raise InputError("gives no asset a minimum; give weight or notional", column=self.title, value=None)
        return (Semicontinuous(label="least position", **{k: np.where(of, x, 0.0) for k, x in found.items()}),)


@dataclass(frozen=True)
class _CountLimit(Rule):
    limit: float  # a whole number; files write every number as a float
    assets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_number(self.limit, "limit", at_least=0)
        if self.limit != int(self.limit):
            raise InputError("must be a whole number", column="limit", value=self.limit)

    def _count(self, account: Account, of: Literal["orders", "names"]) -> Sequence[Piece]:
        counted = account.positions(self.assets, "assets").copy()
        counted[account.cash] = False
        return (Count(label=f"number of {of}", of=of, counted=counted, limit=int(self.limit)),)


@dataclass(frozen=True)
class OrderLimit(_CountLimit):
    """At most `limit` of these assets (all but the cash) are traded; the settlement of the cash is no order."""

    def pieces(self, account: Account) -> Sequence[Piece]:
        return self._count(account, "orders")


@dataclass(frozen=True)
class NameLimit(_CountLimit):
    """At most `limit` of these assets (all but the cash) are held after trading: the cardinality of the portfolio.

    A name is an asset with a position that is not zero, debts and shorts included, whatever its size; the settlement
    cash is none.
    """

    def pieces(self, account: Account) -> Sequence[Piece]:
        return self._count(account, "names")
