"""The accounts of a portfolio that lies in several, and what they hold after a plan, in exact arithmetic.

Each account with a cash of its own pays for its own trades and their costs; transfers move units from row to row.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.optimizer.factored import FactoredRisk
from equipoise.optimizer.portfolio import Portfolio, exact
from equipoise.optimizer.transfers import Transfer

if TYPE_CHECKING:
    from equipoise.optimizer.problem import Problem
    from equipoise.optimizer.risk import Risk

#: What of a row is a solver's rounding, in fractions of NAV.
ROUNDING = 1e-9
_MORE = Fraction(1001, 1000)  # what is moved costs a little, too


@dataclass(frozen=True, eq=False)
class Accounts:
    """The budgets of several accounts, and the problem that was asked, over the table's rows alone."""

    asked: Problem
    transfers: tuple[Transfer, ...]
    ends: tuple[tuple[int, int], ...]  #: of each transfer, the rows that it leaves and reaches
    cashes: tuple[int, ...]
    owner: tuple[int, ...]  #: of each row, the position in `cashes` of its account's cash; −1: it has none
    moves: Array  #: M (rows, transfers), zero at the cashes
    spends: Array  #: S (accounts, rows + transfers)
    budgets: Array
    pays: Array  #: (accounts, rows + transfers): 1 where this account's cash pays the entry's costs
    owed: NDArray[np.bool_]  #: rows that transfers touch and that are debts
    #: For bounds that became rows: the bound's own label and asset.
    bound_rows: Mapping[tuple[str, str], tuple[str, str]]

    @property
    def rows(self) -> int:
        return len(self.asked.assets)

    def held(self, x: Array) -> Array:
        """w, what is held at the end, from the problem's vector (cashes before costs)."""
        return x[: self.rows] + self.moves @ x[self.rows :]

    def exposures(self, held: Array) -> dict[str, float]:
        """The economic exposure to each underlying of what is held (rows), in fractions of NAV, over all accounts."""
        account: Portfolio = self.asked.portfolio
        each = held * exposure(account)
        return {label: float(each[rows].sum()) for label, rows in account.members("underlying").items()}

    def settled(self, trades: Sequence[Fraction], costs: Sequence[Fraction]) -> list[Fraction]:
        """The exact quantities of all rows after these trades and transfers (units) and their costs (money)."""
        n, account = self.rows, self.asked.portfolio
        after = [q + x for q, x in zip(account.exact_quantity, trades[:n], strict=True)]
        for moved, (source, destination) in zip(trades[n:], self.ends, strict=True):
            after[source] -= moved
            after[destination] += moved
        for k, cash in enumerate(self.cashes):
            after[cash] += self._spent(k, trades, costs)
        return after

    def closed(
        self, trades: Sequence[Fraction], costs: Sequence[Fraction], *, fixed: Container[int] = ()
    ) -> tuple[Fraction, ...]:
        """A solver's trades and transfers, with rows that they empty but for rounding emptied exactly.

        The rest is traded, or else moved: back from where it came. A cash that is below 0 by rounding gets it by a
        transfer: from the row that has most of those that it is joined with. `costs`: what they cost; `fixed`: rows
        whose trades stay.
        """
        n, found, account = self.rows, list(trades), self.asked.portfolio
        dust = Fraction(ROUNDING) * exact(account.nav)
        touched = np.flatnonzero(np.any(self.moves != 0, axis=1)).tolist()
        # What only moves comes first, and once more for what that leaves elsewhere; trades take up the rest.
        free = [i for i in touched if found[i] and i not in fixed]
        for i in 2 * [i for i in touched if i not in free] + free:
            left = self.settled(found, [Fraction(0)] * len(found))[i]
            wrong = left > 0 if self.owed[i] else left < 0
            if not left or abs(left) * account.exact_price[i] > dust or not (wrong or abs(left) * 1000 < dust):
                continue
            flows = [e for e in range(len(self.ends)) if i in self.ends[e] and found[n + e]]
            if i in free:
                found[i] -= left
            elif flows:
                e = max(flows, key=lambda e: self._there(found, costs, sum(self.ends[e]) - i))
                found[n + e] += left if self.ends[e][0] == i else -left
        for cash in self.cashes:
            after = self.settled(found, costs)
            short = -after[cash]
            flows = [e for e in range(len(self.ends)) if cash in self.ends[e] and found[n + e]]
            if 0 < short * account.exact_price[cash] <= dust and flows:
                e = max(flows, key=lambda e: self._there(found, costs, sum(self.ends[e]) - cash))
                found[n + e] += short * (-_MORE if self.ends[e][0] == cash else _MORE)
        return tuple(found)

    def _there(self, trades: Sequence[Fraction], costs: Sequence[Fraction], row: int) -> Fraction:
        """What is held or owed in this row, in money."""
        return Fraction(abs(self.settled(trades, costs)[row] * self.asked.portfolio.exact_price[row]))

    def costs_of(self, costs: Sequence[Fraction]) -> list[Fraction]:
        """What each account's cash pays of these costs."""
        return [sum((c for c, pays in zip(costs, row, strict=True) if pays), Fraction(0)) for row in self.pays]

    def checks(
        self, trades: Sequence[Fraction], costs: Sequence[Fraction], after: Sequence[Fraction]
    ) -> Iterator[tuple[Fraction, bool, dict[str, Any]]]:
        """What must be true of transfers, as (slack in money, whether its limit is exact, the rest of a Check).

        Nothing is moved that is not there or beyond a transfer's limit, no account without a cash trades, and of each
        underlying the units over all accounts, in transit included, are what they were and what was traded.
        """
        n, account, price = self.rows, self.asked.portfolio, self.asked.portfolio.exact_price
        nav = account.nav
        for transfer, moved, (source, destination) in zip(self.transfers, trades[n:], self.ends, strict=True):
            if not transfer.two_way:
                yield moved * price[source], True, _check("one way", transfer.label, moved, 0.0, at_least=True)
            if np.isfinite(transfer.limit):
                limit = exact(transfer.limit)
                slack = (limit - abs(moved)) * price[source]
                yield slack, False, _check("limit of the transfer", transfer.label, abs(moved), transfer.limit)
            for i in (source, destination):
                if i not in self.cashes:
                    left = -after[i] if self.owed[i] else after[i]
                    what = _check("no more than there is", account.assets[i], float(left * price[i]) / nav, 0.0, True)
                    yield left * price[i], True, what
        for i, k in enumerate(self.owner):
            if k < 0 and trades[i]:
                yield (
                    -abs(trades[i]) * price[i],
                    True,
                    _check("no cash to trade with", account.assets[i], trades[i], 0.0),
                )
        underlying = account.labels("underlying")
        for label in sorted(set(map(str, underlying))):
            rows = [i for i in range(n) if underlying[i] == label]
            grown = sum((after[i] - account.exact_quantity[i] for i in rows), Fraction(0))
            for i in rows:
                grown -= trades[i] + (self._spent(self.cashes.index(i), trades, costs) if i in self.cashes else 0)
            what = _check("units over all accounts add up", label, float(grown), 0.0)
            yield -abs(grown), True, {**what, "rule": "Reconciliation"}

    def _spent(self, k: int, trades: Sequence[Fraction], costs: Sequence[Fraction]) -> Fraction:
        """What trades and costs add to the units of this account's cash."""
        price, cash = self.asked.portfolio.exact_price, self.cashes[k]
        spent = sum((trades[i] * price[i] for i in range(self.rows) if self.owner[i] == k and i != cash), Fraction(0))
        return Fraction(-(spent + self.costs_of(costs)[k]) / price[cash])


def _check(detail: str, asset: str, value: Any, limit: float, at_least: bool = False) -> dict[str, Any]:
    return {
        "rule": "Transfer",
        "detail": detail,
        "asset": asset,
        "value": float(value),
        "limit": limit,
        "at_least": at_least,
    }


def of_holdings(coefficients: Array, moves: Array) -> Array:
    """c·w, of what is held at the end, as coefficients of trades and transfers: (c, Mᵀc)."""
    return np.append(coefficients, moves.T @ coefficients)


def exposure(portfolio: Portfolio) -> Array:
    """What a unit of value of each row is an exposure of: the column `exposure`; 1 where it is blank or not there."""
    given = "exposure" if "exposure" in portfolio.columns else 1.0
    return portfolio.numbers(given, "exposure", missing=1.0, blank=True)


def look_through(model: Risk, portfolio: Portfolio) -> FactoredRisk:
    """The risk of the rows by their underlying: rows of the same one share its factors, and its specific risk."""
    underlying = [str(label) for label in portfolio.labels("underlying")]
    names = tuple(sorted(set(underlying)))
    risk = model.aligned(names, underlying[portfolio.cash])
    each = exposure(portfolio)
    at = np.array([names.index(label) for label in underlying])
    factors, specific = [risk.factors[:, at] * each], risk.specific[at] * np.square(each)
    for u in np.flatnonzero(risk.specific):
        if np.count_nonzero(shared := at == u) > 1:
            factors.append((np.sqrt(risk.specific[u]) * each * shared)[None])
            specific[shared] = 0.0
    return FactoredRisk(np.concatenate(factors), specific)
