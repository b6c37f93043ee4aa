"""A plan's orders and transfers, and the rules that they are held to on the way, as whole numbers.

Prices, quantities and coefficients are fractions, so that with units small enough every amount is an integer: an order
is counted in `quantum`s, money in 1/`cents`, rules in 1/(`cents`·`grain`). One account is the case of one cash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from equipoise.constraints.pieces import Bound, Row, of_kind
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE
from equipoise.optimizer.sequence.moves import Move, moves
from equipoise.optimizer.sequence.rules import Titled, cashes_of

#: A slice of an order is at least one part in so many; without lots it is a whole number of 1e-9 of the order.
SMALLEST_SLICE, DIGITS = 10_000, 9

#: What the cashes may draw together, among the rules.
TEMPORARY = "temporary cash"

#: A rule's slopes where a value is positive, and where it is negative.
Slopes: TypeAlias = tuple[int, int]


class Model:
    """The orders and transfers of a plan, and the rules that are asked after every step.

    `pieces`: those rules. `temporary_cash`: money from outside that tops cashes up to their floors when they are below,
    so much over all of them; no rule counts it, neither as cash nor as debt.
    """

    def __init__(self, plan: Plan, pieces: Sequence[Titled], temporary_cash: float) -> None:
        assert plan.problem is not None and plan.verified is not None
        self.problem = asked = plan.asked
        account = asked.portfolio
        self.moves: tuple[Move, ...] = tuple(moves(plan))
        self.cashes = cashes_of(asked)
        self.place = {row: k for k, row in enumerate(self.cashes)}
        #: The moves that touch each row, with the sign of what they do to it.
        self.touching: dict[int, list[tuple[int, int]]] = {}
        for j, move in enumerate(self.moves):
            for row, sign in ((move.gains, 1), (move.loses, -1)):
                self.touching.setdefault(row, []).append((j, sign))
        self._sizes()
        worth = [q * p for q, p in zip(account.exact_quantity, account.exact_price, strict=True)]
        money = [m.price * u for m, u in zip(self.moves, self.quantum, strict=True)]
        cost = [m.cost / n for m, n in zip(self.moves, self.total, strict=True)]  # of a quantum, signed as the order
        rate = [m.rate * u for m, u in zip(self.moves, self.quantum, strict=True)]
        fees = [x for m in self.moves for x in (m.fixed, m.minimum)]
        self.cents = math.lcm(*(x.denominator for x in (*worth, *money, *cost, *rate, *fees)))
        self.price, self.cost, self.rate = ([int(x * self.cents) for x in each] for each in (money, cost, rate))
        self.fixed, self.minimum = (
            [int(getattr(m, name) * self.cents) for m in self.moves] for name in ("fixed", "minimum")
        )
        self.payer = [self.place[m.payer] for m in self.moves]
        self.worth = [int(x * self.cents) for x in worth]
        self.nav = int(plan.verified.nav * self.cents)
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
            held, total = move.held, move.total
            unit = move.lot or Fraction(10) ** (math.floor(math.log10(abs(total))) + 1 - DIGITS)
            shared = math.lcm(held.denominator, total.denominator, unit.denominator)
            quantum = Fraction(math.gcd(*(int(x * shared) for x in (held, total, unit))), shared)
            sizes = [int(x / quantum) for x in (held, total, unit)] + [math.ceil(move.least / quantum)]
            for into, size in zip((self.held, self.total, self.unit, self.least), sizes, strict=True):
                into.append(size)
            self.quantum.append(quantum)
            whole = move.pays_fees or move.at is None or len(self.touching[move.at]) > 1
            self.split.append(None if whole else _split(*sizes, whole_lots=bool(move.lot)))

    def _rules(self, pieces: Sequence[Titled], temporary_cash: Fraction, *, lots: bool) -> None:
        rows = of_kind(pieces, Row)
        edges = list(self._edges())
        self.cones = [(title, piece) for title, piece in pieces if not isinstance(piece, Row | Bound)]
        floors = [self._floor(pieces, cash) for cash in self.cashes]
        several = [] if len(floors) == 1 else [TEMPORARY]
        n = len(self.worth)
        named: list[tuple[Any, ...]] = [*rows, *edges, *floors]
        self.names = (*(title for title, *_ in named), *several, *(title for title, _ in self.cones))
        given = [
            [
                (np.zeros(n) if (c := getattr(row, name)) is None else np.asarray(c, float)).tolist()
                for name in row.NAMES
            ]
            for _, row in rows
        ]
        numbers: set[float] = {x for row in given for coefficients in row for x in coefficients}
        numbers |= {float(temporary_cash), *(floor for _, floor in floors), *(row.upper for _, row in rows)}
        self.grain = grain = max(x.as_integer_ratio()[1] for x in numbers)  # powers of two

        def whole(x: float) -> int:
            numerator, denominator = x.as_integer_ratio()
            return int(numerator * (grain // denominator))

        self.floors = [whole(floor) * self.nav for _, floor in floors]
        self.temporary_cash = int(temporary_cash * self.cents * self.grain)
        #: Of each row of the table, the rows of rules that it has a part in, with its slopes there; of each order those
        #: that its trade has a part in; of each rule the cashes that have one.
        self.of_row: dict[int, list[tuple[int, int, int]]] = {}
        self.of_trade: list[list[tuple[int, int]]] = [[] for _ in self.moves]
        self.of_cash: list[list[tuple[int, Slopes]]] = []
        starts: list[int] = []
        for r, ((_, row), (weight, long, short, buy, sell)) in enumerate(zip(rows, given, strict=True)):
            slopes = [(whole(w) + whole(a), whole(w) - whole(b)) for w, a, b in zip(weight, long, short, strict=True)]
            for j, move in enumerate(self.moves):
                if move.at is not None and (trade := buy[move.at] if move.total > 0 else -sell[move.at]):
                    self.of_trade[j].append((r, whole(trade)))
            self._add(r, slopes)
            held = sum(of(s, x) for i, (s, x) in enumerate(zip(slopes, self.worth, strict=True)) if i not in self.place)
            starts.append(held - whole(row.upper) * self.nav)
        for r, (_, i, sign) in enumerate(edges, len(rows)):
            self.of_row.setdefault(i, []).append((r, sign * grain, sign * grain))
            self.of_cash.append([])
            starts.append(sign * grain * self.worth[i])
        self.first_edge, self.first_floor, self.start_rows = len(rows), len(starts), tuple(starts)
        tolerance = int(Fraction(ROUNDING_TOLERANCE if lots else FEASIBILITY_TOLERANCE) * self.nav * grain)
        exact = [lots and floor == 0 for floor in self.floors]
        kept = [tolerance] * len(rows) + [0] * len(edges) + [0 if zero else tolerance for zero in exact]
        self.tolerances = [*kept, *[tolerance] * (len(several) + len(self.cones))]

    def _add(self, r: int, slopes: Sequence[Slopes]) -> None:
        cash: list[tuple[int, Slopes]] = []
        for i, pair in enumerate(slopes):
            if pair != (0, 0) and i in self.place:
                cash.append((self.place[i], pair))
            elif pair != (0, 0) and i in self.touching:
                self.of_row.setdefault(i, []).append((r, *pair))
        self.of_cash.append(cash)

    def _edges(self) -> Iterator[tuple[str, int, int]]:
        """Rows that several moves touch, which may not be sold, sent or repaid before it is there: title, row, sign."""
        bounds = self.problem.bounds
        for i, by in sorted(self.touching.items()):
            if i in self.place or len(by) == 1:
                continue
            found = [(t, -1) for t, b in bounds if b.lower[i] == 0] + [(t, 1) for t, b in bounds if b.upper[i] == 0]
            yield from ((title, i, sign) for title, sign in found)
            if not found and any(self.moves[j].at is None for j, _ in by):
                yield "Transfer", i, -1 if self.worth[i] >= 0 else 1

    def _floor(self, pieces: Sequence[Titled], cash: int) -> tuple[str, float]:
        """The highest floor under this cash, and the name of its rule."""
        found = [(title, float(bound.lower[cash])) for title, bound in of_kind(pieces, Bound)]
        if len(self.cashes) > 1:
            found += [(title, 0.0) for title, bound in self.problem.bounds if bound.lower[cash] == 0]
        return max(found, key=lambda one: one[1], default=("CashFloor", 0.0))


def of(slopes: Slopes, value: Any) -> Any:
    """What a value, of either sign, adds to a rule."""
    return (slopes[0] if value > 0 else slopes[1]) * value


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
