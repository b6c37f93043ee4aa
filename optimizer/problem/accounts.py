"""The accounts of a portfolio that lies in several, and what they hold after a plan, in exact arithmetic.

Each account with a cash of its own pays for its own trades and their costs; transfers move units from row to row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Check, Mask, Settlement
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.risk.factored import FactoredRisk

if TYPE_CHECKING:
    from equipoise.optimizer.risk.models import Risk


class Budgets(NamedTuple):
    """What each account has to spend, S·w = has, and what its cash pays for; a portfolio in one account has one."""

    spends: Array  #: S (accounts, n): what a unit of each entry takes of each account's cash
    has: Array  #: (accounts,): before costs, as fractions of NAV
    pays: Array  #: (accounts, n): 1 where this account's cash pays the entry's costs

    @classmethod
    def of_one(cls, n: int) -> Budgets:
        """Σ w = 1, and one cash pays for all."""
        return cls(np.ones((1, n)), np.ones(1), np.ones((1, n)))


@dataclass(frozen=True, eq=False)
class Accounts:
    """Several accounts: their budgets, over the rows of their portfolio and the transfers between them."""

    portfolio: Portfolio
    transfers: tuple[Transfer, ...]
    ends: tuple[tuple[int, int], ...]  #: of each transfer, the rows that it leaves and reaches
    cashes: tuple[int, ...]
    owner: tuple[int, ...]  #: of each row, the position in `cashes` of its account's cash; −1: it has none
    moves: Array  #: M (rows, transfers), zero at the cashes
    budgets: Budgets  #: over rows and transfers
    owed: Mask  #: rows that transfers touch and that are debts
    edges: tuple[Array, Array]  #: the least and the most of each row at the end; infinite where it has no limit
    #: For bounds that became rows: the bound's own label and asset.
    bound_rows: Mapping[tuple[str, str], tuple[str, str]]

    @property
    def rows(self) -> int:
        return len(self.portfolio.assets)

    def held(self, x: Array) -> Array:
        """w, what is held at the end, from the problem's vector (cashes before costs)."""
        return x[: self.rows] + self.moves @ x[self.rows :]

    def exposures(self, held: Array) -> dict[str, float]:
        """The economic exposure to each underlying of what is held (rows), in fractions of NAV, over all accounts."""
        each = held * self.portfolio.exposure("underlying")
        return {label: float(each[rows].sum()) for label, rows in self.portfolio.members("underlying").items()}

    def settled(self, trades: Sequence[Fraction], costs: Sequence[Fraction]) -> list[Fraction]:
        """The exact quantities of all rows after these trades and transfers (units) and their costs (money)."""
        n, account = self.rows, self.portfolio
        after = [q + x for q, x in zip(account.exact_quantity, trades[:n], strict=True)]
        for moved, (source, destination) in zip(trades[n:], self.ends, strict=True):
            after[source] -= moved
            after[destination] += moved
        for k, cash in enumerate(self.cashes):
            after[cash] += self._spent(k, trades, costs)
        return after

    def costs_of(self, costs: Sequence[Fraction]) -> list[Fraction]:
        """What each account's cash pays of these costs."""
        return [sum((c for c, pays in zip(costs, row, strict=True) if pays), Fraction(0)) for row in self.budgets.pays]

    def checks(self, trades: Sequence[Fraction], costs: Sequence[Fraction], settled: Settlement) -> Iterator[Check]:
        """What must be true of transfers.

        Nothing is moved that is not there or beyond a transfer's limit, no account without a cash trades, and of each
        underlying the units over all accounts, in transit included, are what they were and what was traded.
        """
        yield from self._transferred(trades[self.rows :], settled)
        account, after = self.portfolio, settled.after
        for i, k in enumerate(self.owner):
            if k < 0 and trades[i]:
                lacking = -abs(trades[i]) * settled.price[i]
                yield _check(settled, lacking, "no cash to trade with", account.assets[i], float(trades[i]))
        underlying = account.labels("underlying")
        for label in sorted(set(map(str, underlying))):
            rows = [i for i in range(self.rows) if underlying[i] == label]
            grown = sum((after[i] - account.exact_quantity[i] for i in rows), Fraction(0))
            for i in rows:
                grown -= trades[i] + (self._spent(self.cashes.index(i), trades, costs) if i in self.cashes else 0)
            what = "units over all accounts add up", label, float(grown)
            yield _check(settled, -abs(grown), *what, rule="Reconciliation")

    def _transferred(self, transferred: Sequence[Fraction], settled: Settlement) -> Iterator[Check]:
        """What is asked of each transfer, and of the rows that it leaves and reaches."""
        account, after = self.portfolio, settled.after
        for transfer, moved, ends in zip(self.transfers, transferred, self.ends, strict=True):
            worth, limit = settled.price[ends[0]], transfer.limit
            yield _check(settled, moved * worth, "one way", transfer.label, float(moved), at_least=True)
            if np.isfinite(limit):
                what = "limit of the transfer", transfer.label, float(abs(moved))
                yield _check(settled, (exact(limit) - abs(moved)) * worth, *what, limit=limit, sharp=False)
            for i in ends:
                if i not in self.cashes:
                    left = (-after[i] if self.owed[i] else after[i]) * settled.price[i]
                    what = "no more than there is", account.assets[i], float(left) / account.nav
                    yield _check(settled, left, *what, at_least=True)

    def _spent(self, k: int, trades: Sequence[Fraction], costs: Sequence[Fraction]) -> Fraction:
        """What trades and costs add to the units of this account's cash."""
        price, cash = self.portfolio.exact_price, self.cashes[k]
        spent = sum((trades[i] * price[i] for i in range(self.rows) if self.owner[i] == k and i != cash), Fraction(0))
        return Fraction(-(spent + self.costs_of(costs)[k]) / price[cash])


def _check(
    settled: Settlement,
    slack: Fraction,
    detail: str,
    asset: str,
    value: float,
    *,
    limit: float = 0.0,
    at_least: bool = False,
    rule: str = "Transfer",
    sharp: bool = True,
) -> Check:
    """The check of a slack in cash."""
    slack *= settled.unit
    what = rule, detail, asset, value, limit, at_least
    return settled.judged(what, slack.numerator, slack.denominator, exact_limit=sharp)


def of_holdings(coefficients: Array, moves: Array) -> Array:
    """c·w, of what is held at the end, as coefficients of trades and transfers: (c, Mᵀc)."""
    return np.append(coefficients, moves.T @ coefficients)


def look_through(model: Risk, portfolio: Portfolio) -> FactoredRisk:
    """The risk of the rows by their underlying: rows of the same one share its factors, and its specific risk."""
    underlying = [str(label) for label in portfolio.labels("underlying")]
    names = tuple(sorted(set(underlying)))
    risk = model.aligned(names, underlying[portfolio.cash])
    exposure = portfolio.exposure("underlying")
    at = np.array([names.index(label) for label in underlying])
    factors, specific = [risk.factors[:, at] * exposure], risk.specific[at] * np.square(exposure)
    for u in np.flatnonzero(risk.specific):
        if np.count_nonzero(shared := at == u) > 1:
            factors.append((np.sqrt(risk.specific[u]) * exposure * shared)[None])
            specific[shared] = 0.0
    return FactoredRisk(np.concatenate(factors), specific)
