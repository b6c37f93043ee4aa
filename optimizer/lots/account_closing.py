"""From a solver's trades and transfers over several accounts to exact ones.

A solver empties a position, repays a debt or spends a cash but for its rounding. What is left is not lost in a
tolerance: the rows and the trades and transfers between them are a graph (a transfer joins two rows, a trade joins a
row and its account's cash), and the rest is sent along a route to where there is room for it. Whatever lies on the
route passes on what it gets, so that it stays exact. First the rests of rows that must be empty are sent off; then
each cash that is below its floor after its own costs gets what it lacks, over and over, as routes cost a little, too.

A route may use what can move by so much within its limits: of a transfer, or of a trade in any size. It is the one
with the least weight (`_weight`): transfers and then trades that the plan makes already, few of them, and only then
such as it does not make. It ends where more than rounding can be taken or left (`_FREE`), else at a row that has room
for just this, else at a cash, whose floor and cap are kept to rounding.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Sequence
from fractions import Fraction

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.optimizer.problem.counts import least_positions
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.verification.exact import paid_for

#: In fractions of NAV: what of a row may be a solver's rounding; what is so little that no solver means it; and from
#: what room on a route ends without touching a limit.
_ROUNDING, _NOTHING, _FREE = Fraction(1, 10**8), Fraction(1, 10**12), Fraction(1, 10**7)
#: How often cashes get what they lack; and by how much more, of it, the n-th time: 2ⁿ times this.
_ROUNDS, _MORE = 40, Fraction(1, 1000)


def emptied(
    problem: Problem, trades: Sequence[Fraction], *, fixed: Container[int] = ()
) -> tuple[tuple[Fraction, ...], str]:
    """These trades and transfers (units), made exact, and what could not be: "" or a sentence.

    `fixed`: rows whose trades stay (whole lots).
    """
    books = _Books(problem, trades, fixed)
    stuck = [i for i in books.empty if not books.send(i, books.value(i))]
    books.settle_cashes()
    names = ", ".join(problem.assets[i] for i in stuck)
    return tuple(books.found), f"no trade or transfer is free to empty {names} exactly" if stuck else ""


class _Books:
    """What is traded and moved so far, and what that leaves in each row, in exact money."""

    def __init__(self, problem: Problem, trades: Sequence[Fraction], fixed: Container[int]) -> None:
        accounts = problem.accounts
        assert accounts is not None
        self.problem, self.accounts, self.fixed = problem, accounts, fixed
        self.rows = accounts.rows
        account = accounts.portfolio
        self.quantity: tuple[Fraction, ...] = account.exact_quantity
        self.price: tuple[Fraction, ...] = account.exact_price
        self.nav = sum((q * p for q, p in zip(self.quantity, self.price, strict=True)), Fraction(0))
        self.least = least_positions(problem.asked)
        self.low, self.high = (np.clip(edge, -problem.outer, problem.outer) for edge in accounts.edges)
        self.found = [self._within_limits(entry, trade) for entry, trade in enumerate(trades)]
        self.edges = list(self._edges())
        self.empty: list[int] = []
        self.empty = [i for i in range(self.rows) if i not in accounts.cashes and self._is_to_be_empty(i)]

    def _within_limits(self, entry: int, trade: Fraction) -> Fraction:
        low, high = self._limits(entry)
        if entry < self.rows:
            return Fraction(0) if self.accounts.owner[entry] < 0 else trade
        return max(low, min(high, trade)) if low is not None and high is not None else trade

    def _limits(self, entry: int) -> tuple[Fraction | None, Fraction | None]:
        """The least and the largest trade or transfer, in units; None where it has no limit."""
        if entry >= self.rows:
            transfer = self.accounts.transfers[entry - self.rows]
            most = exact(transfer.limit) if np.isfinite(transfer.limit) else None
            least = Fraction(0)
            return least, most
        edges = (Fraction(float(edge[entry])) for edge in (self.problem.lower, self.problem.upper))
        low, high = (edge * self.nav / self.price[entry] - self.quantity[entry] for edge in edges)
        return low, high

    def _edges(self) -> Iterator[tuple[int, int, int]]:
        """What may be moved: (entry, the row that more of it takes from, the row that it gives to)."""
        step, accounts = self.problem.step, self.accounts
        for e, (source, destination) in enumerate(accounts.ends):
            yield self.rows + e, source, destination
        for i, k in enumerate(accounts.owner):
            lots = step is not None and (step.lot[i] > 0 or step.min_quantity[i] > 0 or step.min_notional[i] > 0)
            if k >= 0 and i not in accounts.cashes and i not in self.fixed and not lots:
                yield i, accounts.cashes[k], i

    def value(self, row: int) -> Fraction:
        """What is in this row, in money, before costs."""
        return self._after(with_costs=False)[row] * self.price[row]

    def _after(self, *, with_costs: bool) -> list[Fraction]:
        costs = paid_for(self.problem, self.found) if with_costs else [Fraction(0)] * len(self.found)
        return self.accounts.settled(self.found, costs)

    def _is_to_be_empty(self, i: int) -> bool:
        """Whether this row is empty but for rounding: on the wrong side of 0, pinned there, below its least size, or
        less than anything that is meant."""
        left = self.value(i)
        if not left or abs(left) > _ROUNDING * self.nav:
            return False
        pinned = self.low[i] >= 0 >= self.high[i]
        wrong = (left < 0 and self.low[i] >= 0) or (left > 0 and self.high[i] <= 0)
        moved = left != self.quantity[i] * self.price[i]
        return bool(wrong or pinned or abs(left) < self.least[i] or (moved and abs(left) < _NOTHING * self.nav))

    def _room(self, row: int, amount: Fraction, after: Sequence[Fraction]) -> Fraction:
        """How much this row can take (amount > 0) or give (< 0), in money."""
        value = after[row] * self.price[row]
        low, high = Fraction(float(self.low[row])) * self.nav, Fraction(float(self.high[row])) * self.nav
        if row not in self.accounts.cashes:
            # Never below its least size, and never out of emptiness.
            low = max(low, self.least[row]) if value > 0 else low
            high = min(high, -self.least[row]) if value < 0 else high
            if not value or row in self.empty:
                return Fraction(0)
        return high - value if amount > 0 else value - low

    def _weight(self, entry: int) -> int:
        moves = entry >= self.rows
        return (1 if moves else 10) if self.found[entry] else (1_000 if moves else 10_000)

    def send(self, start: int, amount: Fraction) -> bool:
        """Send this much money out of a row (or into it, if negative), along the best route to the best end."""
        after = self._after(with_costs=amount < 0)  # a cap counts before costs, a floor after them
        routes = self._routes(start, amount)
        for need in (max(abs(amount), _FREE * self.nav), abs(amount)):
            for row, route in routes:
                if self._room(row, amount, after) >= need:
                    return self._take(route, amount)
        for row, route in routes:
            if row in self.accounts.cashes and start not in self.accounts.cashes:
                return self._take(route, amount)
        return False

    def _take(self, route: Sequence[tuple[int, int]], amount: Fraction) -> bool:
        for entry, sign in route:
            self.found[entry] += sign * amount / self._price(entry)
        return True

    def _price(self, entry: int) -> Fraction:
        return self.price[entry if entry < self.rows else self.accounts.ends[entry - self.rows][0]]

    def _routes(self, start: int, amount: Fraction) -> list[tuple[int, list[tuple[int, int]]]]:
        """The best route to each row that can be reached, the best first (Dijkstra)."""
        reached: list[tuple[int, list[tuple[int, int]]]] = []
        done: set[int] = set()
        heap: list[tuple[int, int, list[tuple[int, int]]]] = [(0, start, [])]
        while heap:
            weight, row, route = heapq.heappop(heap)
            if row in done:
                continue
            done.add(row)
            reached.append((row, route))
            for entry, tail, head in self.edges:
                for here, there, sign in ((tail, head, 1), (head, tail, -1)):
                    if here == row and there not in done and self._can_move(entry, sign * amount):
                        heapq.heappush(heap, (weight + self._weight(entry), there, [*route, (entry, sign)]))
        return reached[1:]

    def _can_move(self, entry: int, amount: Fraction) -> bool:
        low, high = self._limits(entry)
        then = self.found[entry] + amount / self._price(entry)
        return (low is None or then >= low) and (high is None or then <= high)

    def settle_cashes(self) -> None:
        """Each cash at or above its floor after its costs, as far as rounding took it below."""
        for turn in range(_ROUNDS):
            after = self._after(with_costs=True)
            short = {cash: -self._room(cash, Fraction(-1), after) for cash in self.accounts.cashes}
            sent = [
                self.send(cash, -lacks * (1 + _MORE * 2**turn))
                for cash, lacks in short.items()
                if 0 < lacks <= _ROUNDING * self.nav
            ]
            if not any(sent):
                return
