"""What the accounts are worth after some of a plan's orders, exactly, and which next steps are safe.

A state is how much of each order, and of each transfer, is done. An order moves in proportion: a part of it trades that
part of its value and pays that part of its convex cost; its fee it pays in full with its first fill. So everything is
linear between the first fill and the end of a step, but for the rules' own bends where a position or a cash changes
its sign, and the one of a minimum commission.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from fractions import Fraction
from itertools import chain, pairwise
from operator import gt, sub
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.sequence.model import TEMPORARY, Model
from equipoise.optimizer.sequence.rules import Titled
from equipoise.optimizer.verification.outcome import Outcome

#: Whole quanta of an order; a Fraction of one only where the bend of a rule is asked for.
Quanta: TypeAlias = Any


#: What is traded of each order, the one that is next, and how much of it: signed quanta.
Step: TypeAlias = tuple[tuple[int, ...], int, int]


class State(NamedTuple):
    """The accounts after some of the orders, and the step that led here. All whole numbers.

    `traded`: signed quanta of each order; `slices`: in how many steps. `cash` of each account before the costs `paid`
    out of it. `rows`: each row less its limit, without the cashes' part; `excess`: of each rule (rows, floors, cones)
    by how much it is broken or, below zero, kept. `quantity` of `order` (signed quanta) is the step so far: what
    follows of the same order belongs to it; `cuts` counts the steps that were less than what was left of their order.
    """

    traded: tuple[int, ...]
    slices: tuple[int, ...]
    cash: tuple[int, ...]
    paid: tuple[int, ...]
    rows: tuple[int, ...]
    excess: tuple[int, ...]
    order: int = -1
    quantity: int = 0
    cuts: int = 0


class Leg(NamedTuple):
    """What is left of an order, or of its part that turns a position around: signed quanta, and money.

    `rank`: what reduces risk first. `frees`: it leaves every rule at least as much room, `uses`: at most as much,
    whatever other orders did before: a row is a sum over positions, each of its parts bounded by its steepest slope.
    (What follows a leg that uses room, when the position has turned around, uses room as well: a row is convex.)
    """

    quantity: int
    money: int
    rank: tuple[int, int, int]
    frees: bool
    uses: bool


def _bent(value: Quanta, up: int, down: int) -> Quanta:
    """A value's part in a row: `up` a unit above zero, `down` below."""
    return (up if value > 0 else down) * value


class States(Model):
    """The states between the orders, and the steps from one to another."""

    def __init__(self, plan: Outcome, pieces: Sequence[Titled], temporary_cash: float) -> None:
        super().__init__(plan, pieces, temporary_cash)
        self._forget()
        self.end = self.start()  # all orders done, each in one step
        for j, total in enumerate(self.total):
            self.end = self._moved(self.end, j, total)
        self.end = self._judged(self.end)
        #: Nothing is asked that the plan's own end, with the worst of its levels of cash, does not keep.
        self.limits: tuple[int, ...] = tuple(map(max, self.tolerances, self.end.excess))

    def with_cash(self, temporary_cash: int) -> Self:
        """The same orders with this temporary cash."""
        other = copy(self)
        other.temporary_cash = temporary_cash
        other._forget()
        return other

    def _forget(self) -> None:
        """What is known of steps, by what is traded before them, the order and its quantity. Without fees a state is
        what is traded, however it was reached, and what was found of its steps once is not asked for again."""
        self._legs: dict[tuple[int, int, int], Leg] = {}
        self._unsafe = set[Step]()
        self._parts = dict[Step, Fraction]()
        self._slices = dict[Step, int]()

    @property
    def goal(self) -> tuple[int, ...]:
        """All orders in full."""
        return tuple(self.total)

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the rules that are asked, each once."""
        return tuple(dict.fromkeys(name for name in self.names if name != TEMPORARY))

    def moments(self, states: Sequence[State]) -> list[State]:
        """These states, and those after the first fill of each step that pays a fee."""
        fills = [self.moved(before, after.order, 0) for before, after in pairwise(states) if self.fee(after.order, 0)]
        return [*states, *fills]

    def extra_fees(self, states: Sequence[State]) -> list[Fraction]:
        """What the steps between these states pay in fees beyond one fee for each order, by order, in cash."""
        found = [-self.fee(j, total) for j, total in enumerate(self.total)]
        for state, following in zip(states[1:], [*states[2:], None], strict=False):
            if following is None or following.order != state.order:
                found[state.order] += self.fee(state.order, state.quantity)
        return [Fraction(x, self.cents) for x in found]

    def money(self, excess: int) -> float:
        """An excess in cash."""
        return float(Fraction(excess, self.cents * self.grain))

    def value(self, state: State, row: int) -> Quanta:
        """What is held in a row that is no cash."""
        value, traded = self.worth[row], state.traded
        for j, by in self.added.get(row, ()):
            value += by * traded[j]
        return value

    def weights(self, states: Sequence[State]) -> Array:
        """What is held in all rows at every moment of these steps (S, n), in fractions of NAV: with the cashes before
        costs and after them, at the steps' ends and after their first fills."""
        here, found = self.problem.before.copy(), list[Array]()

        def add(state: State) -> None:
            for levels in (state.cash, map(sub, state.cash, state.paid)):
                for row, level in zip(self.cashes, levels, strict=True):
                    here[row] = level / self.nav  # of whole numbers: rounded once
                found.append(here.copy())

        for i in self.touching:
            here[i] = here[i] if i in self.place else self.value(states[0], i) / self.nav
        add(states[0])
        for before, after in pairwise(states):
            if self.fee(after.order, 0):
                add(self.moved(before, after.order, 0))
            for i, _ in self.at_rows[after.order]:
                here[i] = self.value(after, i) / self.nav
            add(after)
        return np.array(found)

    def reduces(self, state: State, j: int, quantity: int) -> bool:
        """Whether this much more of an order brings its position towards zero and not beyond."""
        at = self.moves[j].at
        position, traded = (0, 0) if at is None else (self.value(state, at), quantity * self.price[j])
        return bool(position * traded < 0 and abs(traded) <= abs(position))

    def start(self) -> State:
        none, cash = (0,) * len(self.moves), tuple(self.worth[i] for i in self.cashes)
        return self._judged(State(none, none, cash, (0,) * len(cash), self.start_rows, ()))

    def left(self, state: State, goal: tuple[int, ...]) -> list[tuple[int, Leg]]:
        """Every order that is not at its goal (signed quanta of each), with its next leg: by rank."""
        known, found = self._legs, list[tuple[int, Leg]]()
        for j, (done, end) in enumerate(zip(state.traded, goal, strict=True)):
            if done != end:
                found.append((j, known.get((j, done, end)) or self._next(state, j, end)))
        return sorted(found, key=lambda one: one[1].rank)

    def _next(self, state: State, j: int, goal: int) -> Leg:
        """From here to the order's next stop: where it turns the position around, or its goal."""
        done, split = state.traded[j], self.split[j]
        stop = split if split is not None and abs(done) < abs(split) < abs(goal) else goal
        made = self._legs[j, done, goal] = self._leg(state, j, stop - done)
        return made

    def _leg(self, state: State, j: int, quantity: int) -> Leg:
        money = quantity * self.price[j]
        cashes = [self._cash_change(j, quantity, k, self.fee(j, 0)) for k in range(len(self.cashes))]
        low, high = self._changes(state, j, quantity, cashes)
        frees = not self.cones and max(high, default=0) <= 0 and min(map(min, cashes)) >= 0
        uses = not self.cones and min(low, default=0) >= 0 and max(map(max, cashes)) <= 0
        worsens = any(x > 0 for x in high[: self.first_edge])
        rank = 0 if frees else (3 if self._is_risky(state, j, quantity) else 1) + worsens
        return Leg(quantity, money, (rank, -abs(money), j), frees, uses)

    def _is_risky(self, state: State, j: int, quantity: int) -> bool:
        """Whether an order opens or adds to a position, or a transfer brings more of a debt."""
        move = self.moves[j]
        if move.at is not None:
            return not self.reduces(state, j, quantity)
        lowered = move.loses if quantity > 0 else move.gains
        return lowered not in self.place and self.worth[lowered] < 0

    def _changes(
        self, state: State, j: int, quantity: int, cashes: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int]]:
        """By how much a leg lowers or raises each row at least and at most, whatever other orders did before.

        `cashes`: what it adds to each of them.
        """
        low, high = [0] * len(self.start_rows), [0] * len(self.start_rows)
        for r, changes in chain(self._by_rows(state, j, quantity), self._by_cashes(cashes)):
            low[r] += min(changes)
            high[r] += max(changes)
        return low, high

    def _by_rows(self, state: State, j: int, quantity: int) -> Iterator[tuple[int, Sequence[int]]]:
        """The ends of what a leg may add to rows through the positions that it changes, and as a trade."""
        for i, one in self.at_rows[j]:
            value, by = self.value(state, i), quantity * one
            alone = len(self.touching[i]) == 1 and value * (value + by) >= 0 and (value or by)
            grows = value + by > 0 or value > 0
            for r, up, down in self.of_row.get(i, ()):
                yield r, ((up if grows else down) * by,) if alone else (up * by, down * by)
        for r, slope in self.of_trade[j]:
            yield r, (slope * quantity * self.price[j],)

    def _by_cashes(self, cashes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Sequence[int]]]:
        """The same through the cashes."""
        for r, k, up, down in self.of_cash:
            slopes = (up, down, 0) if self.temporary_cash else (up, down)  # below its floor no rule sees it move
            yield r, [slope * by for slope in slopes for by in cashes[k]]

    def _cash_change(self, j: int, quantity: Quanta, k: int, fee: Quanta) -> tuple[Quanta, Quanta]:
        """What so much of an order adds to a cash, before its costs and after them."""
        gross = quantity * sum(by for at, by in self.at_cashes[j] if at == k)
        paid = quantity * self.cost[j] + fee if self.payer[j] == k else 0
        return gross, gross - paid

    def done(self, state: State, j: int, quantity: Quanta) -> tuple[int, ...]:
        """What is traded of each order after this much more of order j."""
        return (*state.traded[:j], state.traded[j] + quantity, *state.traded[j + 1 :])

    def fee(self, j: int, quantity: Quanta) -> Quanta:
        """What a slice of so many quanta costs for being an order; of 0 quanta: when its first fill comes."""
        if not self.minimum[j]:
            return self.fixed[j]
        return self.fixed[j] + max(self.minimum[j] - self.rate[j] * abs(quantity), 0)

    def _begun(self, state: State, j: int) -> Quanta:
        """How much of this slice is filled already."""
        return state.quantity if state.order == j else 0

    def _more_fee(self, state: State, j: int, quantity: Quanta) -> Quanta:
        """What so much more of an order adds to its fee: a slice that goes on has paid for what it began with."""
        begun = self._begun(state, j)
        return self.fee(j, begun + quantity) - (self.fee(j, begun) if state.order == j else 0)

    def moved(self, state: State, j: int, quantity: Quanta, *, cut: bool = False) -> State:
        """The state after this much more of order j (signed quanta; 0: after its first fill), safe or not."""
        return self._judged(self._moved(state, j, quantity, cut=cut))

    def _moved(self, state: State, j: int, quantity: Quanta, *, cut: bool = False) -> State:
        """The same without its excess."""
        goes_on, begun = state.order == j, self._begun(state, j)
        rows, cash, paid = list(state.rows), list(state.cash), list(state.paid)
        for i, by in self.at_rows[j]:
            if i in self.of_row:
                value = self.value(state, i)
                after = value + quantity * by
                for r, up, down in self.of_row[i]:
                    rows[r] += _bent(after, up, down) - _bent(value, up, down)
        for r, slope in self.of_trade[j]:
            rows[r] += slope * quantity * self.price[j]
        for k, by in self.at_cashes[j]:
            cash[k] += quantity * by
        paid[self.payer[j]] += quantity * self.cost[j] + self._more_fee(state, j, quantity)
        slices = state.slices if goes_on else (*state.slices[:j], state.slices[j] + 1, *state.slices[j + 1 :])
        traded, cuts = self.done(state, j, quantity), state.cuts + cut
        return State(traded, slices, tuple(cash), tuple(paid), tuple(rows), (), j, begun + quantity, cuts)

    def after(self, state: State, j: int, leg: Leg) -> State | None:
        """The state after this leg, or None if it is not safe."""
        if (step := (state.traded, j, leg.quantity)) in self._unsafe:
            return None
        if not self._overdrawn(state, j, leg.quantity) and self.safe(
            state, moved := self.moved(state, j, leg.quantity)
        ):
            return moved
        if not self.pays_fees:
            self._unsafe.add(step)
        return None

    def _overdrawn(self, state: State, j: int, quantity: int) -> bool:
        """Whether the cash that pays is too far below its floor after this: quick, and true of most unsafe steps."""
        if self.fee(j, 0):
            return False
        k = self.payer[j]
        net = state.cash[k] - state.paid[k] + self._cash_change(j, quantity, k, 0)[1]
        below, floor = self.floors[k] - net * self.grain - self.temporary_cash, self.first_floor + k
        return bool(below > self.limits[floor] and below > state.excess[floor])

    def drawn(self, state: State) -> int:
        """How much of temporary cash is in use, in units of excess."""
        return sum(max(x, 0) for x in self._below(map(sub, state.cash, state.paid)))

    def _below(self, levels: Iterable[Quanta]) -> list[Quanta]:
        """By how much each cash is below its floor, in units of excess."""
        return [floor - level * self.grain for floor, level in zip(self.floors, levels, strict=True)]

    def _judged(self, state: State) -> State:
        """The state with its excess: of the rows, the floors, what the cashes draw together, and the cones."""
        after = list(map(sub, state.cash, state.paid))
        below, found = self._below(after), self._rows_with(state, after)
        found += [x - self.temporary_cash for x in below]
        if len(below) > 1:
            lent = self.temporary_cash or self.nav * self.grain  # none is given: it is the floors that are asked
            found.append(sum(max(x, 0) for x in below) - lent)
        if self.cones:
            found += self._over_cones(state)
        return state._replace(excess=tuple(found))

    def _rows_with(self, state: State, after: Sequence[Quanta]) -> list[Quanta]:
        """The rows with the worse level of each cash: after costs, or before them. (A row is convex in it.)"""
        found = list(state.rows)
        for r, k, up, down in self.of_cash:
            gross, net = state.cash[k], after[k]
            if self.temporary_cash:
                gross, net = (max(x, self.floors[k] // self.grain) for x in (gross, net))
            found[r] += max(_bent(gross, up, down), _bent(net, up, down))
        return found

    def _over_cones(self, state: State) -> Iterator[int]:
        """The excess of each cone, and envelope, rounded up."""
        levels = self.weights([state])
        for _, piece in self.cones:
            over = max(piece.over(w, w - self.problem.before) for w in levels)
            yield math.ceil(Fraction(over) * self.nav * self.grain)

    def safe(self, state: State, moved: State) -> bool:
        """Whether every rule holds after the step, or, if it did not before, is broken by no more than then; and so
        from its first fill on."""
        kept = list(map(max, self.limits, state.excess))
        if any(map(gt, moved.excess, kept)):
            return False
        j, quantity = moved.order, moved.traded[moved.order] - state.traded[moved.order]
        parts: list[Quanta] = [0] if self.fee(j, 0) else []
        if self.temporary_cash:  # where a cash crosses its floor, what the rules see bends
            parts += self._bends(state, j, quantity)[:-1]
        between = (self.moved(state, j, part * quantity).excess for part in parts)
        return not any(any(map(gt, excess, kept)) for excess in between)

    def _bends(self, state: State, j: int, quantity: int) -> list[Quanta]:
        """The parts of this trade at which what the rules see may bend, and all of it."""
        marks, trade = list[Quanta]([0, 1]), self.rate[j] * abs(quantity)
        open_ = self.minimum[j] - self.rate[j] * abs(self._begun(state, j))  # of the minimum, when this trade begins
        if 0 < open_ < trade:
            marks.insert(1, Fraction(open_, trade))
        found = set(marks[1:])
        levels = [self._levels(state, j, part * quantity) for part in marks]
        for (start, stop), ends in zip(pairwise(marks), pairwise(levels), strict=True):
            crossed = [Fraction(x, x - y) for x, y in zip(*ends, strict=True) if x < 0 < y or y < 0 < x]
            found |= {start + (stop - start) * part for part in crossed}
        return sorted(found)

    def _levels(self, state: State, j: int, quantity: Quanta) -> list[Quanta]:
        """What bends rules where it is 0, after this much of an order: values of rows, cashes before and after costs,
        with temporary cash also above their floors."""
        fee = self._more_fee(state, j, quantity)
        found = [self.value(state, i) + quantity * by for i, by in self.at_rows[j]]
        for k in {self.payer[j], *(k for k, _ in self.at_cashes[j])}:
            gross, net = self._cash_change(j, quantity, k, fee)
            levels = [state.cash[k] + gross, state.cash[k] - state.paid[k] + net]
            found += levels
            if self.temporary_cash:
                found += [x - self.floors[k] // self.grain for x in levels]
        return found
