"""The search for a safe sequence of orders: depth first, what reduces risk first, whole orders before slices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby

from equipoise.optimizer.sequence.model import SMALLEST_SLICE
from equipoise.optimizer.sequence.slices import Orders
from equipoise.optimizer.sequence.states import Leg, State
from equipoise.optimizer.verification.exact import verify
from equipoise.optimizer.verification.outcome import Outcome

#: With up to nine orders an attempt looks at this many states: at every set of whole orders (2⁹).
_STATES, _ALL_SETS = 512, 9
#: With more orders a sequence of whole orders may turn back so often, one in slices has so many states an order.
_TURNS, _STATES_PER_ORDER = 50, 4
_FEW_CUTS, _FEW = 4, 150  # fewer cuts that are tried once a sequence was found, in so many states each


class Search:
    """Depth first, what reduces risk first."""

    def __init__(self, orders: Orders, plan: Outcome, most_slices: int) -> None:
        self.orders, self.plan, self.most_slices = orders, plan, most_slices
        self.start = orders.start()
        self.stuck = self.start  # the state with most orders done from which no whole order could go on
        self.out_of_states = False  # whether the last attempt ended before it had seen all that it could reach

    def whole(self) -> list[State] | None:
        """The states of a sequence of whole orders (the start first), if one was found."""
        return self._walk(self.start, self.orders.goal, 0)

    def along(self, way: Sequence[int]) -> list[State] | None:
        """The same for the whole orders of these rows of the table in this order, if it is safe."""
        states, at = [self.start], {move.at: j for j, move in enumerate(self.orders.moves)}
        for j in (at[row] for row in way):
            begun_at = states[-1]
            goal = self.orders.done(begun_at, j, self.orders.total[j] - begun_at.traded[j])
            if (found := self._walk(begun_at, goal, 0)) is None:
                return None
            states += found[1:]
        return states if states[-1].traded == self.orders.goal else None

    def loops(self) -> list[State] | None:
        """The same with any cuts: whole orders where they are safe, else the largest safe slices."""
        cuts = self.most_slices * len(self.orders.goal)
        return self._kept(self._walk(self.start, self.orders.goal, cuts)) if self._may_slice else None

    def _kept(self, states: list[State] | None) -> list[State] | None:
        """These states, if the end keeps every rule with all the fees that were paid."""
        if states is None or states[-1].paid == self.orders.end.paid:
            return states
        plan, orders = self.plan, self.orders
        assert plan.problem is not None and plan.verified is not None
        paid = list(plan.verified.costs)
        for move, more in zip(orders.moves, orders.extra_fees(states), strict=True):
            paid[move.entry] += more
        whole = plan.problem.discrete and plan.problem.accounts is None
        return states if verify(plan.problem, plan.trades, whole_lots=whole, paid=paid).passed else None

    def sliced(self) -> list[State] | None:
        """The same with fewer cuts, if they are found to do; or in even rounds, if the largest slices do not."""
        if found := self.loops():
            goal, few = self.orders.goal, range(1, min(found[-1].cuts, _FEW_CUTS))
            fewer = (self._kept(self._walk(self.start, goal, cuts, states=_FEW)) for cuts in few)
            return next((states for states in fewer if states), found)
        rounds = 2
        while self._may_slice and rounds <= self.most_slices:
            if found := self._kept(self._in_rounds(rounds)):
                return found
            rounds *= 2
        return None

    @property
    def _may_slice(self) -> bool:
        return self.most_slices > 1 and self.can_start and self.can_finish

    def _in_rounds(self, rounds: int) -> list[State] | None:
        """Every order in this many equal slices, slice by slice, near the way on which all move in proportion."""
        orders, states = self.orders, [self.start]
        for k in range(1, rounds + 1):
            goal = [orders.stop(states[-1], j, abs(total) * k // rounds) for j, total in enumerate(orders.goal)]
            found = self._walk(states[-1], tuple(goal), 0)
            if found is None:
                return None
            states += found[1:]
        return states

    def _walk(self, start: State, goal: tuple[int, ...], cuts: int, *, states: int = 0) -> list[State] | None:
        """The first way found from here to the goal (signed quanta of each order) with at most this many cuts."""
        seen = {start.traded: start.cuts}
        path, choices = [start], [self._moves(start, goal, cuts, seen)]
        budget, self.out_of_states = states or _states(len(goal), cuts), False
        while path[-1].traded != goal:
            state = next(choices[-1], None)
            if state is None:
                choices.pop()
                dead = path.pop()
                if not cuts and goal == self.orders.goal and begun(dead) > begun(self.stuck):
                    self.stuck = dead
                if not path:
                    return None
            else:
                budget -= 1
                if budget < 0:
                    self.out_of_states = True
                    return None
                path.append(state)
                choices.append(self._moves(state, goal, cuts, seen))
        return path

    def _moves(
        self, state: State, goal: tuple[int, ...], cuts: int, seen: dict[tuple[int, ...], int]
    ) -> Iterator[State]:
        """The safe states one step on, best first: whole orders, then (with cuts left) the largest safe slices.

        `seen`: the states that were on a way already, with the cuts that had been made by then.
        """
        orders = self.orders
        left = orders.left(state, goal)
        # What only uses up room comes last: nothing is gained by doing it earlier.
        left = [(j, leg) for j, leg in left if not leg.uses] or left
        for j, leg in left:
            if seen.get(orders.done(state, j, leg.quantity), cuts + 1) > state.cuts:
                if (moved := orders.after(state, j, leg)) is None:
                    continue
                seen[moved.traded] = state.cuts
                yield moved
            if leg.frees:  # whatever is safe without this step is safe after it
                return
        if state.cuts < cuts:
            yield from self._slices(state, left, cuts, seen)

    def _slices(
        self, state: State, left: Sequence[tuple[int, Leg]], cuts: int, seen: dict[tuple[int, ...], int]
    ) -> Iterator[State]:
        """The safe states one slice on, the one of most value first."""
        orders, parts = self.orders, []
        for j, leg in left:
            if state.slices[j] + 1 < self.most_slices:
                part = orders.largest_part(state, j, leg.quantity)
                parts.append((-part * abs(leg.money), j, leg, part))
        for _, j, leg, part in sorted(parts):
            quantity = orders.slice(state, j, leg.quantity, part)
            if quantity and state.cuts + 1 < seen.get(orders.done(state, j, quantity), cuts + 1):
                moved = orders.moved(state, j, quantity, cut=True)
                seen[moved.traded] = moved.cuts
                yield moved

    @cached_property
    def can_start(self) -> bool:
        """Whether some order, or an allowed slice of it, is safe as the first step."""
        return next(self._moves(self.start, self.orders.goal, 1, {}), None) is not None

    def first_slice(self) -> str:
        """The largest safe slice of a first step, where lots and minimums do not allow it, in words."""
        orders, aim = self.orders, [max(x, 0) for x in self.start.excess]
        sizes = []
        for j, leg in orders.left(self.start, orders.goal):
            part = orders.largest(self.start, j, leg.quantity, aim)
            sizes.append((part * abs(leg.money), j, part * abs(leg.quantity)))
        _, j, quantity = max(sizes)
        if quantity * SMALLEST_SLICE < abs(orders.total[j]):
            return "no slice of any order is safe as the first step"
        largest = f"{float(quantity * orders.quantum[j]):.6g} {orders.moves[j].label}"
        return f"at most {largest} is safe as the first step, less than lots and minimums allow"

    @cached_property
    def can_finish(self) -> bool:
        """Whether the state before some last step, as small as is allowed, is safe."""
        orders, end = self.orders, self.orders.end._replace(order=-1, quantity=0)
        if orders.pays_fees:
            return True
        kept = zip(end.excess, self.start.excess, orders.limits, strict=True)
        aim = [math.inf if before > limit else max(limit, after) for after, before, limit in kept]
        for j, total in enumerate(orders.goal):
            back = total - (orders.split[j] or 0)
            exempt = orders.moves[j].exempt
            smallest = max(-(-abs(total) // SMALLEST_SLICE), 1 if exempt else max(orders.least[j], orders.unit[j]))
            if orders.largest(end, j, -back, aim) * abs(back) >= smallest:
                return True
        return False


def in_one_go(states: list[State] | None) -> bool:
    """Whether there are states, and no order that others come in between."""
    orders = [one for one, _ in groupby(state.order for state in states or ())]
    return bool(states) and len(set(orders)) == len(orders)


def begun(state: State) -> int:
    return sum(map(bool, state.traded))


def _states(orders: int, cuts: int) -> int:
    """How many states an attempt may look at."""
    if orders <= _ALL_SETS or cuts:
        return max(_STATES, orders * _STATES_PER_ORDER)
    return orders + _TURNS
