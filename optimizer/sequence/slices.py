"""Slices of orders: the largest that are safe, and those that lots and minimums allow."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from equipoise.optimizer.sequence.model import SMALLEST_SLICE
from equipoise.optimizer.sequence.states import Quanta, State, States


class Orders(States):
    """The orders of a plan: their states, the steps from one to another, and how they can be cut."""

    def largest(self, state: State, j: int, quantity: int, aim: Sequence[Quanta]) -> Fraction:
        """The largest part of this trade of order j after which no rule's excess is above `aim`.

        The excess is convex in the part and, but for cones, linear between the points where a row's value or
        a cash changes its sign: the part lies where the first rule reaches its aim. (Of a cone the chord is
        taken, which lies above it.)
        """
        reached, excess = Fraction(0), state.excess
        if self.fee(j, 0):
            excess = self.moved(state, j, 0).excess
            if any(x > max(to, limit) for x, to, limit in zip(excess, aim, self.limits, strict=True)):
                return reached
        for part in self._bends(state, j, quantity):
            further = self.moved(state, j, part * quantity).excess
            over = [(new, old, to) for new, old, to in zip(further, excess, aim, strict=True) if new > to]
            if over:
                parts = [Fraction(to - old, new - old) for new, old, to in over if new > old]
                return Fraction(reached + (part - reached) * max(min(parts, default=Fraction(0)), Fraction(0)))
            reached, excess = part, further
        return reached

    def largest_part(self, state: State, j: int, quantity: int) -> Fraction:
        """The largest part of this trade of order j with which each rule holds, or is broken by no more than now; if
        there is any, one that leaves enough for the first fill of the next order to pay its fee."""
        step = (state.traded, j, quantity)
        if (known := self._parts.get(step)) is not None:
            return known
        aim = [max(x, 0) for x in state.excess]
        if self.pays_fees:
            reserved = self._with_reserve(aim, state, j, quantity)
            return self.largest(state, j, quantity, reserved) or self.largest(state, j, quantity, aim)
        found = self._parts[step] = self.largest(state, j, quantity, aim)
        return found

    def _with_reserve(self, aim: Sequence[Quanta], state: State, j: int, quantity: int) -> list[Quanta]:
        """`aim`, but of a cash that this spends so much is left that the next order's first fill can pay its fee."""
        found = list(aim)
        for k in range(len(self.cashes)):
            left = [i for i, end in enumerate(self.total) if i != j and self.payer[i] == k and state.traded[i] != end]
            if self._cash_change(j, quantity, k, self.fee(j, 0))[1] < 0 and left:
                found[self.first_floor + k] -= max(self.fee(i, 0) for i in left) * self.grain
        return found

    def slice(self, state: State, j: int, left: int, part: Fraction) -> int:
        """The most of what is left of order j, at most this part of it, that lots and minimums allow and that is a safe
        step: signed quanta, 0 if there is none."""
        step = (state.traded, j, left)
        if (known := self._slices.get(step)) is not None:
            return known
        sizes = self._slices_of(state, j, left, part)
        found = next((size for size in sizes if self.safe(state, self.moved(state, j, size))), 0)
        if not self.pays_fees:
            self._slices[step] = found
        return found

    def _slices_of(self, state: State, j: int, left: int, part: Fraction) -> list[int]:
        """Quantities of at most this part of what is left, largest first, that lots and minimums allow."""
        size, unit, least = abs(left), self.unit[j], self.least[j]
        closes = self.moves[j].exempt and state.traded[j] + left == self.total[j]
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
