"""A plan's orders and transfers, and the rules that they are held to on the way, as whole numbers.

Prices, quantities and coefficients are fractions, so that with units small enough every amount is an integer: an order
is counted in `quantum`s, money in 1/`cents`, rules in 1/(`cents`·`grain`). One account is the case of one cash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from equipoise.constraints.pieces import Bound, Row, of_kind
from equipoise.optimizer.portfolio.exact_sums import denominator, products, whole
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE
from equipoise.optimizer.sequence.moves import Move, moves
from equipoise.optimizer.sequence.rules import Titled, cashes_of
from equipoise.optimizer.verification.outcome import Outcome

#: A slice of an order is at least one part in so many; without lots it is a whole number of 1e-9 of the order.
SMALLEST_SLICE, DIGITS = 10_000, 9

#: What the cashes may draw together, among the rules.
TEMPORARY = "temporary cash"

#: Of the parts of a row (`Parts.NAMES`), one number for each row of the table.
Coefficients: TypeAlias = list[list[float]]


class Model:
    """The orders and transfers of a plan, and the rules that are asked after every step.

    `pieces`: those rules. `temporary_cash`: money from outside that tops cashes up to their floors when they are below,
    so much over all of them; no rule counts it, neither as cash nor as debt.
    """

    def __init__(self, plan: Outcome, pieces: Sequence[Titled], temporary_cash: float) -> None:
        assert plan.problem is not None and plan.verified is not None
        self.problem = asked = plan.asked
        self.moves: tuple[Move, ...] = tuple(moves(plan))
        self.cashes = cashes_of(asked)
        self.place = {row: k for k, row in enumerate(self.cashes)}
        #: The moves that touch each row, with the sign of what they do to it.
        self.touching: dict[int, list[tuple[int, int]]] = {}
        for j, move in enumerate(self.moves):
            for row, sign in ((move.gains, 1), (move.loses, -1)):
                self.touching.setdefault(row, []).append((j, sign))
        self._sizes()
        self._amounts(plan.verified.nav)
        self._ends()
        self._rules(pieces, Fraction(temporary_cash), lots=plan.problem.discrete and plan.problem.accounts is None)

    def _sizes(self) -> None:
        """Each order's quantum, and in quanta: what is held, the order, its slices' unit, least size and split."""
        self.quantum: list[Fraction] = []
        self.held: list[int] = []
        self.total: list[int] = []
        self.unit: list[int] = []
        self.least: list[int] = []
        self.split: list[int | None] = []
        for move in self.moves:
            unit = move.lot or Fraction(10) ** (math.floor(math.log10(abs(move.total))) + 1 - DIGITS)
            amounts = (move.held, move.total, unit)
            shared = denominator(amounts)
            counted = whole(amounts, shared)
            quantum = Fraction(common := math.gcd(*counted), shared)
            sizes = [x // common for x in counted] + [math.ceil(move.least / quantum) if move.least else 0]
            for into, size in zip((self.held, self.total, self.unit, self.least), sizes, strict=True):
                into.append(size)
            self.quantum.append(quantum)
            undivided = move.pays_fees or move.at is None or len(self.touching[move.at]) > 1
            self.split.append(None if undivided else _split(*sizes, whole_lots=bool(move.lot)))

    def _amounts(self, nav: Fraction) -> None:
        """Money in whole numbers of 1/`cents`: what is held, and of each order its price and costs a quantum, fees."""
        account = self.problem.portfolio
        worth, unit = products(account.exact_quantity, account.exact_price)
        common = math.gcd(unit, *worth)
        price = [m.price * u for m, u in zip(self.moves, self.quantum, strict=True)]
        cost = [m.cost / n for m, n in zip(self.moves, self.total, strict=True)]  # signed as the order
        rate = [m.rate * u if m.rate else m.rate for m, u in zip(self.moves, self.quantum, strict=True)]
        fixed, minimum = [m.fixed for m in self.moves], [m.minimum for m in self.moves]
        self.cents = math.lcm(unit // common, denominator(price, cost, rate, fixed, minimum))
        self.price, self.cost, self.rate = (whole(each, self.cents) for each in (price, cost, rate))
        self.fixed, self.minimum = whole(fixed, self.cents), whole(minimum, self.cents)
        self.pays_fees = any(self.fixed) or any(self.minimum)
        self.worth = [x // common * (self.cents * common // unit) for x in worth]
        self.nav = int(nav * self.cents)

    def _ends(self) -> None:
        """What a quantum of each order adds: `at_rows` to rows that are no cashes, `at_cashes` to cashes by place;
        `added`: of each row, the orders that move it, likewise. `payer`: the place of the cash that pays."""
        self.payer = [self.place[m.payer] for m in self.moves]
        self.at_rows: list[list[tuple[int, int]]] = []
        self.at_cashes: list[list[tuple[int, int]]] = []
        for move, one in zip(self.moves, self.price, strict=True):
            ends = ((move.gains, one), (move.loses, -one))
            self.at_rows.append([(i, by) for i, by in ends if i not in self.place])
            self.at_cashes.append([(self.place[i], by) for i, by in ends if i in self.place])
        self.added = {i: [(j, sign * self.price[j]) for j, sign in by] for i, by in self.touching.items()}

    def _rules(self, pieces: Sequence[Titled], temporary_cash: Fraction, *, lots: bool) -> None:
        """What is asked, in this order: rows, edges, the floors of the cashes, what they draw together, cones."""
        rows = of_kind(pieces, Row)
        edges = list(self._edges())
        floors = [self._floor(pieces, cash) for cash in self.cashes]
        together = [(TEMPORARY,)] if len(floors) > 1 else []
        self.cones = [(title, piece) for title, piece in pieces if not isinstance(piece, Row | Bound)]
        self.names = _titles(*rows, *edges, *floors, *together, *self.cones)
        given = [_coefficients(row, len(self.worth)) for _, row in rows]
        limits = [float(temporary_cash), *(floor for _, floor in floors), *(row.upper for _, row in rows)]
        self.grain, counted = _in_whole_numbers(limits, given)
        self.floors = [counted[floor] * self.nav for _, floor in floors]
        self.temporary_cash = int(temporary_cash * self.cents * self.grain)
        self.start_rows = self._starts(rows, given, edges, counted)
        self.first_edge, self.first_floor = len(rows), len(rows) + len(edges)
        self.tolerances = self._tolerances(len(together) + len(self.cones), lots=lots)

    def _starts(
        self,
        rows: Sequence[tuple[str, Row]],
        given: Sequence[Coefficients],
        edges: Sequence[tuple[str, int, int]],
        counted: Mapping[float, int],
    ) -> tuple[int, ...]:
        """What rows and edges are at the start, less their limits and without the cashes' part."""
        #: Of each row of the table, the rows of rules that it has a part in, with its slopes there; of each order those
        #: that its trade has a part in; and the cashes that have one in a row.
        self.of_row: dict[int, list[tuple[int, int, int]]] = {}
        self.of_trade: list[list[tuple[int, int]]] = [[] for _ in self.moves]
        self.of_cash: list[tuple[int, int, int, int]] = []
        starts: list[int] = []
        for r, ((_, row), coefficients) in enumerate(zip(rows, given, strict=True)):
            starts.append(self._row(r, coefficients, counted) - counted[row.upper] * self.nav)
            self._trades(r, coefficients, counted)
        for r, (_, i, sign) in enumerate(edges, len(rows)):
            self.of_row.setdefault(i, []).append((r, sign * self.grain, sign * self.grain))
            starts.append(sign * self.grain * self.worth[i])
        return tuple(starts)

    def _row(self, r: int, given: Coefficients, counted: Mapping[float, int]) -> int:
        """Adds the slopes of a row; returns what it is at the start without the cashes' part."""
        held = 0
        for i, (weight, long, short, _, _) in enumerate(zip(*given, strict=True)):
            if not (weight or long or short):
                continue
            up, down = counted[weight] + counted[long], counted[weight] - counted[short]
            if i in self.place:
                self.of_cash.append((r, self.place[i], up, down))
                continue
            held += (up if self.worth[i] > 0 else down) * self.worth[i]
            if i in self.touching:
                self.of_row.setdefault(i, []).append((r, up, down))
        return held

    def _trades(self, r: int, given: Coefficients, counted: Mapping[float, int]) -> None:
        """Adds the slopes of a row in trades."""
        *_, buy, sell = given
        for j, move in enumerate(self.moves):
            side, sign = (buy, 1) if move.total > 0 else (sell, -1)
            if move.at is not None and side[move.at]:
                self.of_trade[j].append((r, sign * counted[side[move.at]]))

    def _tolerances(self, others: int, *, lots: bool) -> list[int]:
        """By how much each rule may be over its limit; a floor of 0 is exact with lots, an edge always."""
        tolerance = int(Fraction(ROUNDING_TOLERANCE if lots else FEASIBILITY_TOLERANCE) * self.nav * self.grain)
        floors = [0 if lots and floor == 0 else tolerance for floor in self.floors]
        edges = [0] * (self.first_floor - self.first_edge)
        return [*[tolerance] * self.first_edge, *edges, *floors, *[tolerance] * others]

    def _edges(self) -> Iterator[tuple[str, int, int]]:
        """Rows that several moves touch, which may not be sold, sent or repaid before it is there: title, row, sign."""
        bounds = self.problem.bounds
        for i, by in sorted(self.touching.items()):
            if i in self.place or len(by) == 1:
                continue
            found = [(title, i, -1) for title, bound in bounds if bound.lower[i] == 0]
            found += [(title, i, 1) for title, bound in bounds if bound.upper[i] == 0]
            yield from found
            if not found and any(self.moves[j].at is None for j, _ in by):
                yield "Transfer", i, -1 if self.worth[i] >= 0 else 1

    def _floor(self, pieces: Sequence[Titled], cash: int) -> tuple[str, float]:
        """The highest floor under this cash, and the name of its rule."""
        found = [(title, float(bound.lower[cash])) for title, bound in of_kind(pieces, Bound)]
        if len(self.cashes) > 1:
            found += [(title, 0.0) for title, bound in self.problem.bounds if bound.lower[cash] == 0]
        return max(found, key=lambda one: one[1], default=("CashFloor", 0.0))


def _coefficients(row: Row, n: int) -> Coefficients:
    """Of weights, their long and short parts, buys and sells."""
    none = [0.0] * n
    return [none if (c := getattr(row, name)) is None else np.asarray(c, float).tolist() for name in row.NAMES]


def _titles(*named: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(str(one[0]) for one in named)


def _in_whole_numbers(limits: Iterable[float], given: Sequence[Coefficients]) -> tuple[int, dict[float, int]]:
    """The least unit of which all these are whole numbers, one by its inverse, a power of two; and each in it."""
    numbers = set(limits).union(*(each for coefficients in given for each in coefficients))
    ratios = {x: x.as_integer_ratio() for x in numbers}
    grain = max(below for _, below in ratios.values())
    return grain, {x: above * (grain // below) for x, (above, below) in ratios.items()}


def _split(held: int, total: int, unit: int, least: int, *, whole_lots: bool) -> int | None:
    """How much of an order closes the position that it turns around; None if it is not to be divided.

    The closing part is in whole lots, as the opening one must be. An order that lot sizes and minimums do not let
    divide crosses zero in one step.
    """
    if held * total >= 0 or abs(total) <= abs(held):
        return None
    size = abs(held) // unit * unit if whole_lots else abs(held)
    if size == 0 or (size < least and size != abs(held)) or abs(total) - size < least:
        return None
    return size if total > 0 else -size
