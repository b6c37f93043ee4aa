"""What an account is worth after some of its orders, exactly, and which next steps are safe.

A state is how much of each order is done. An order moves in proportion: a part of it trades that part of its
value and pays that part of its cost. So everything is linear between two states of one order, but for the rules'
own bends where a position or the cash changes its sign.

Exact means whole numbers: prices, quantities and coefficients are fractions, so that with units small enough every
amount is an integer. An order is counted in `quantum`s, cash in 1/`cents`, rules in 1/(`cents`·`grain`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from copy import copy
from fractions import Fraction
from operator import add
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from equipoise.constraints.base import Bound, Cone, Opaque, Piece, Row
from equipoise.constraints.envelope import Envelope
from equipoise.constraints.errors import InputError
from equipoise.constraints.exposure import Leverage
from equipoise.optimizer.plan import Plan
from equipoise.optimizer.portfolio import exact
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE

#: A slice of an order is at least one part in so many; without lots it is a whole number of 1e-9 of the order.
SMALLEST_SLICE, DIGITS = 10_000, 9


#: Whole quanta of an order; a Fraction of one only where the bend of a rule is asked for.
Quanta: TypeAlias = Any


class State(NamedTuple):
    """An account after some of its orders, and the step that led here. All whole numbers.

    `traded`: signed quanta of each order; `slices`: in how many steps. `cash` after the costs `paid`. `rows`: each
    row less its limit, without the cash's part; `excess`: of each rule (rows, cash floor, cones) by how much it is
    broken or, below zero, kept. `quantity` of `order` (signed quanta) is the step; `cuts` counts the steps
    that were less than what was left of their order.
    """

    traded: tuple[int, ...]
    slices: tuple[int, ...]
    cash: int
    paid: int
    rows: tuple[int, ...]
    excess: tuple[int, ...]
    order: int = -1
    quantity: int = 0
    cuts: int = 0


class Leg(NamedTuple):
    """What is left of an order, or of its part that turns a position around: signed quanta, money, cost.

    `change`: by how much it raises each row, but for the cash's part. `rank`: what reduces risk first. `frees`: it
    leaves every rule at least as much room, `uses`: at most as much, whatever other orders did before: a row
    is a sum over assets, and the cash's part of it is bounded by its steepest slope. (What follows a leg that uses
    room, when the position has turned around, uses room as well: a row is convex.)
    """

    quantity: int
    money: int
    cost: int
    change: tuple[int, ...]
    rank: tuple[int, int, int]
    frees: bool
    uses: bool


class Orders:
    """The orders of a plan, and the rules that are asked after every step.

    `always`: names of further rules to ask. `temporary_cash`: money from outside that tops the cash up to its
    floor when it is below; no rule counts it, neither as cash nor as debt.
    """

    def __init__(self, plan: Plan, always: Collection[str], temporary_cash: float) -> None:
        assert plan.problem is not None and plan.verified is not None
        self.problem = problem = plan.problem
        account, nav = problem.portfolio, plan.verified.nav
        self.at = [i for i, trade in enumerate(plan.trades) if trade and i != problem.cash]
        held = [account.exact_quantity[i] for i in self.at]
        price = [account.exact_price[i] for i in self.at]
        trades = [plan.trades[i] for i in self.at]
        self._sizes(held, price, trades)

        cost = [plan.verified.costs[i] / abs(n) for i, n in zip(self.at, self.total, strict=True)]  # of a quantum
        worth = [q * p for q, p in zip(account.exact_quantity, account.exact_price, strict=True)]
        money = [p * u for p, u in zip(price, self.quantum, strict=True)]
        self.cents = math.lcm(*(x.denominator for x in (*worth, *money, *cost)))
        self.price, self.cost = ([int(x * self.cents) for x in each] for each in (money, cost))
        self.worth = [int(x * self.cents) for x in worth]
        self.nav = int(nav * self.cents)
        # Signed as the order: times the signed trade it is the cost.
        self.cost = [c if n > 0 else -c for c, n in zip(self.cost, self.total, strict=True)]
        self._rules(watched(problem, always), Fraction(temporary_cash))

    def _sizes(self, held: list[Fraction], price: list[Fraction], trades: list[Fraction]) -> None:
        """Each order's quantum, and in quanta: what is held, the order, its slices' unit, least size and split."""
        step = self.problem.step
        self.quantum: list[Fraction] = []
        self.held: list[int] = []
        self.total: list[int] = []
        self.unit: list[int] = []
        self.least: list[int] = []
        self.split: list[int | None] = []
        for i, h, p, trade in zip(self.at, held, price, trades, strict=True):
            lot = exact(step.lot[i]) if step is not None else Fraction(0)
            least = (
                max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / p) if step is not None else Fraction(0)
            )
            unit = lot or Fraction(10) ** (math.floor(math.log10(abs(trade))) + 1 - DIGITS)
            shared = math.lcm(h.denominator, trade.denominator, unit.denominator)
            quantum = Fraction(math.gcd(*(int(x * shared) for x in (h, trade, unit))), shared)
            sizes = [int(x / quantum) for x in (h, trade, unit)] + [math.ceil(least / quantum)]
            for into, size in zip((self.held, self.total, self.unit, self.least), sizes, strict=True):
                into.append(size)
            self.quantum.append(quantum)
            self.split.append(_split(*sizes, whole_lots=bool(lot)))

    def _rules(self, pieces: list[tuple[str, Piece]], temporary_cash: Fraction) -> None:
        rows = [(title, piece) for title, piece in pieces if isinstance(piece, Row)]
        self.cones = [(title, piece) for title, piece in pieces if isinstance(piece, Cone | Envelope)]
        n, cash = len(self.problem.assets), self.problem.cash
        title, floor = max(
            ((title, float(piece.lower[cash])) for title, piece in pieces if isinstance(piece, Bound)),
            key=lambda found: found[1],
            default=("CashFloor", 0.0),
        )
        self.names = (*(t for t, _ in rows), title, *(t for t, _ in self.cones))
        given = [
            [
                (np.zeros(n) if (c := getattr(row, name)) is None else np.asarray(c, float)).tolist()
                for name in row.NAMES
            ]
            for _, row in rows
        ]
        numbers: set[float] = {x for row in given for coefficients in row for x in coefficients}
        numbers |= {floor, float(temporary_cash), *(row.upper for _, row in rows)}
        self.grain = grain = max(x.as_integer_ratio()[1] for x in numbers)  # powers of two

        def whole(x: float) -> int:
            numerator, denominator = x.as_integer_ratio()
            return int(numerator * (grain // denominator))

        self.floor = whole(floor) * self.nav
        self.temporary_cash = int(temporary_cash * self.cents * self.grain)
        lots = self.problem.step is not None
        tolerance = int(Fraction(ROUNDING_TOLERANCE if lots else FEASIBILITY_TOLERANCE) * self.nav * self.grain)
        at_floor = 0 if lots and floor == 0 else tolerance
        self.limits = (*(tolerance for _ in rows), at_floor, *(tolerance for _ in self.cones))
        # For each row and order: the slope where the value is positive, where it is negative, and of the trade.
        self._slopes, self._cash_slopes, starts = [], [], []
        for (_, row), (weight, long, short, buy, sell) in zip(rows, given, strict=True):
            slopes = [(whole(w) + whole(a), whole(w) - whole(b)) for w, a, b in zip(weight, long, short, strict=True)]
            trade = [buy[i] if total > 0 else -sell[i] for i, total in zip(self.at, self.total, strict=True)]
            self._slopes.append([(*slopes[i], whole(t)) for i, t in zip(self.at, trade, strict=True)])
            self._cash_slopes.append(slopes[cash])
            held = sum(_of(s, x) for i, (s, x) in enumerate(zip(slopes, self.worth, strict=True)) if i != cash)
            starts.append(held - whole(row.upper) * self.nav)
        self._start_rows = tuple(starts)
        self._legs: dict[tuple[int, int, int], Leg] = {}

    def with_cash(self, temporary_cash: int) -> Orders:
        """The same orders with this temporary cash."""
        other = copy(self)
        other.temporary_cash, other._legs = temporary_cash, {}
        return other

    @property
    def goal(self) -> tuple[int, ...]:
        """All orders in full."""
        return tuple(self.total)

    def money(self, excess: int) -> float:
        """An excess in cash."""
        return float(Fraction(excess, self.cents * self.grain))

    # States ------------------------------------------------------------------------------------------------

    def start(self) -> State:
        none, cash = (0,) * len(self.at), self.worth[self.problem.cash]
        return State(none, none, cash, 0, self._start_rows, self._excess(self._start_rows, cash, cash, none))

    def left(self, state: State, goal: tuple[int, ...]) -> list[tuple[int, Leg]]:
        """Every order that is not at its goal (signed quanta of each), with its next leg: by rank."""
        found = [(j, self._next(state, j, end)) for j, end in enumerate(goal) if state.traded[j] != end]
        return sorted(found, key=lambda one: one[1].rank)

    def _next(self, state: State, j: int, goal: int) -> Leg:
        """From here to the order's next stop: where it turns the position around, or its goal."""
        done = state.traded[j]
        if (known := self._legs.get((j, done, goal))) is not None:
            return known
        split = self.split[j]
        stop = split if split is not None and abs(done) < abs(split) < abs(goal) else goal
        made = self._legs[j, done, goal] = self._leg(j, done, stop)
        return made

    def _leg(self, j: int, done: int, stop: int) -> Leg:
        quantity = stop - done
        money, cost = quantity * self.price[j], quantity * self.cost[j]
        change = self._change(j, done, quantity)
        steepest = [max(slopes) for slopes in self._cash_slopes]
        if self.temporary_cash:  # below its floor no rule sees the cash move
            steepest = [max(slope, 0) for slope in steepest]
        moves = [(x - slope * money, x - slope * (money + cost)) for x, slope in zip(change, steepest, strict=True)]
        frees = not self.cones and money + cost <= 0 and all(max(move) <= 0 for move in moves)
        uses = not self.cones and money >= 0 and all(min(move) >= 0 for move in moves)
        worsens = any(move[1] > 0 for move in moves)
        rank = 0 if frees else (1 if reduces(self.held[j] + done, quantity) else 3) + worsens
        return Leg(quantity, money, cost, change, (rank, -abs(money), j), frees, uses)

    def _change(self, j: int, done: int, quantity: Quanta) -> tuple[int, ...]:
        before, money = (self.held[j] + done) * self.price[j], quantity * self.price[j]
        return tuple(
            _of(sides[j], before + money) - _of(sides[j], before) + sides[j][2] * money for sides in self._slopes
        )

    def done(self, state: State, j: int, quantity: Quanta) -> tuple[int, ...]:
        """What is traded of each order after this much more of order j."""
        return (*state.traded[:j], state.traded[j] + quantity, *state.traded[j + 1 :])

    def moved(self, state: State, j: int, quantity: Quanta, *, cut: bool = False) -> State:
        """The state after this much more of order j (signed quanta), safe or not."""
        change = self._change(j, state.traded[j], quantity)
        return self._moved(state, j, quantity, change, cut)

    def _moved(self, state: State, j: int, quantity: Quanta, change: tuple[int, ...], cut: bool) -> State:
        cost = quantity * self.cost[j]
        cash, paid = state.cash - quantity * self.price[j] - cost, state.paid + cost
        rows = tuple(map(add, state.rows, change))
        traded = self.done(state, j, quantity)
        slices = (*state.slices[:j], state.slices[j] + 1, *state.slices[j + 1 :])
        excess = self._excess(rows, cash, cash + paid, traded)
        return State(traded, slices, cash, paid, rows, excess, j, quantity, state.cuts + cut)

    def after(self, state: State, j: int, leg: Leg) -> State | None:
        """The state after this leg, or None if it is not safe."""
        floor = len(state.rows)
        # Most legs that are not safe fail here, and quickly.
        if self._below_floor(state.cash - leg.money - leg.cost) > max(self.limits[floor], state.excess[floor]):
            return None
        moved = self._moved(state, j, leg.quantity, leg.change, False)
        return moved if self.safe(state, moved) else None

    def _below_floor(self, cash: int) -> int:
        return self.floor - self.temporary_cash - cash * self.grain

    def _excess(self, rows: tuple[int, ...], cash: int, gross: int, traded: tuple[int, ...]) -> tuple[int, ...]:
        cones: tuple[int, ...] = ()
        if self.cones:
            weights = self.problem.before.copy()
            values = zip(self.held, traded, self.price, strict=True)
            weights[self.at] = [(held + done) * price / self.nav for held, done, price in values]
            weights[self.problem.cash] = cash / self.nav
            before_costs = weights.copy()
            before_costs[self.problem.cash] = gross / self.nav
            moves, states = weights - self.problem.before, (weights, before_costs)
            over = [Fraction(max(piece.over(w, moves) for w in states)) for _, piece in self.cones]
            cones = tuple(math.ceil(x * self.nav * self.grain) for x in over)
        return (*self._rows_with(rows, (cash, gross)), self._below_floor(cash), *cones)

    def _rows_with(self, rows: tuple[int, ...], levels: tuple[int, ...]) -> list[int]:
        """The rows with the worse of these levels of cash."""
        if self.temporary_cash:
            levels = tuple(max(cash, self.floor // self.grain) for cash in levels)
        low, high = min(levels), max(levels)
        # A row is convex in the cash: the worse level is one of the ends.
        return [
            row + max(_of(slopes, low), _of(slopes, high)) for row, slopes in zip(rows, self._cash_slopes, strict=True)
        ]

    def safe(self, state: State, moved: State) -> bool:
        """Whether every rule holds after the step, or, if it did not before, is broken by no more than then."""
        ends = [moved.excess]
        if self.temporary_cash and self._crosses_floor(state, moved):  # there, what the rules see bends
            parts = self._bends(state, moved.order, moved.quantity)[:-1]
            ends += [self.moved(state, moved.order, part * moved.quantity).excess for part in parts]
        return all(
            new <= limit or new <= old
            for end in ends
            for new, old, limit in zip(end, state.excess, self.limits, strict=True)
        )

    def _crosses_floor(self, state: State, moved: State) -> bool:
        levels = (state.cash, moved.cash, state.cash + state.paid, moved.cash + moved.paid)
        return min(levels) * self.grain < self.floor < max(levels) * self.grain

    # Slices ------------------------------------------------------------------------------------------------

    def largest(self, state: State, j: int, quantity: int, aim: Sequence[float]) -> Fraction:
        """The largest part of this trade of order j after which no rule's excess is above `aim`.

        The excess is convex in the part and, but for cones, linear between the points where the asset's value or
        the cash changes its sign: the part lies where the first rule reaches its aim. (Of a cone the chord is
        taken, which lies above it.)
        """
        reached, excess = Fraction(0), state.excess
        for part in self._bends(state, j, quantity):
            further = self.moved(state, j, part * quantity if part < 1 else quantity).excess
            over = [(new, old, to) for new, old, to in zip(further, excess, aim, strict=True) if new > to]
            if over:
                return reached + (part - reached) * min(Fraction(to - old) / (new - old) for new, old, to in over)
            reached, excess = part, further
        return reached

    def _bends(self, state: State, j: int, quantity: int) -> list[Fraction]:
        """The parts of this trade at which what the rules see may bend, and all of it."""
        money, cost = quantity * self.price[j], quantity * self.cost[j]
        value, gross = (self.held[j] + state.traded[j]) * self.price[j], state.cash + state.paid
        levels = {0, self.floor // self.grain} if self.temporary_cash else {0}
        falls = [
            (value, -money),
            *((cash - x, by) for x in levels for cash, by in ((state.cash, money + cost), (gross, money))),
        ]
        return [*sorted({Fraction(has, by) for has, by in falls if has * by > 0 and abs(has) < abs(by)}), Fraction(1)]

    def slices(self, state: State, j: int, left: int, part: Fraction) -> list[int]:
        """Quantities of at most this part of what is left, largest first, that lots and minimums allow."""
        size, unit, least = abs(left), self.unit[j], self.least[j]
        closes = self.held[j] + state.traded[j] + left == 0
        units = min(int(part * size), size if closes else size - least) // unit
        smallest = max(least, -(-abs(self.total[j]) // SMALLEST_SLICE))
        found = [unit * k for k in (units, units - 1) if k > 0 and smallest <= unit * k < size]
        return found if left > 0 else [-x for x in found]

    def stop(self, state: State, j: int, part: int) -> int:
        """The signed quanta of order j, near this many, to which lots and minimums let it go from here."""
        done, size, least = abs(state.traded[j]), abs(self.total[j]), max(self.least[j], 1)
        part = part // self.unit[j] * self.unit[j]
        ends = (abs(self.split[j] or size), size)
        part = next((end for end in ends if abs(end - part) < least), part)
        part = max(done, part if part in ends or part - done >= least else done)
        return part if self.total[j] > 0 else -part


def watched(problem: Problem, always: Collection[str]) -> list[tuple[str, Piece]]:
    """The rules that must hold after every step.

    Those on the long and short parts of positions (collateral, debt, margin, gross leverage), leverage as a whole,
    the floors under the cash, and those named in `always`. Raises InputError if a name is of no rule, or of one
    that cannot be asked.
    """
    titles = {title for title, _ in problem.pieces}
    for name in always:
        if name not in titles:
            raise InputError(
                f"there is no rule of this name; there are {', '.join(sorted(titles))}", column="always", value=name
            )
        if any(isinstance(piece, Opaque) for title, piece in problem.pieces if title == name):
            raise InputError("a custom rule can be asked of the whole plan only", column="always", value=name)
    named = {*always, *(rule.title for rule in problem.rules if isinstance(rule, Leverage))}
    found: list[tuple[str, Piece]] = []
    for title, piece in problem.pieces:
        match piece:
            case Row():
                of_parts = any(c is not None and np.any(c) for c in (piece.long, piece.short))
                if of_parts or title in named:
                    found.append((title, piece))
            case Bound():
                bounded = np.isfinite(piece.lower) | np.isfinite(piece.upper)
                alone = not np.any(np.delete(bounded, problem.cash))
                if (alone or title in named) and np.isfinite(piece.lower[problem.cash]):
                    found.append((title, piece))
            case Cone() | Envelope() if title in named or (isinstance(piece, Envelope) and piece.of_holdings):
                found.append((title, piece))
    return found


def _of(slopes: tuple[int, ...], value: int) -> int:
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


def reduces(position: int, quantity: int) -> bool:
    """Whether a trade brings a position towards zero and not beyond."""
    return position * quantity < 0 and abs(quantity) <= abs(position)
