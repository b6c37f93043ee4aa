"""Orders in a sequence that is safe after every step and at every partial fill.

`verify` says that a plan's rules hold at its end. On the way there an account can still be liquidated: collateral
leaves before the debt is repaid, a buy comes before the sale that pays for it. `sequenced` finds an order of the
orders, cut where that is needed, in which every rule on the account's *state* holds after every step: the floor
under the cash, collateral, debt, margin, leverage. Rules on the rebalance as a whole (turnover, drift bands, group
limits, lots) are kept at its end, which `verify` checked; a bound on a single asset is never broken by more on the
way than at an end, because each asset moves one way.

**Why the ends of steps are enough.** A step trades one asset against the cash. When the part 0 ≤ t ≤ 1 of it is
filled, and of its cost paid, the weights are w(t) = (1 − t)·w(0) + t·w(1): a segment. A rule is f(w) ≤ u with f convex
(`constraints.base`), so f(w(t)) ≤ (1 − t)·f(w(0)) + t·f(w(1)) ≤ max(f(w(0)), f(w(1))) ≤ u. The cash after costs is
linear in t, so that its floor holds between the ends, too. Should a fill cost less than its share (costs are convex:
a part costs at most its share), the cash lies between the cash after costs and that before all costs; rows are asked
at both, so that the point lies in the convex hull of points where f ≤ u.

**Fees for each order** are not convex: they count in proportion, though the first fill may pay them in full, and each
slice of an order again. Until an order is done the cash may be less by its fee than is said here.

**If a rule is broken at the start**, no step may worsen it until it holds: by the same inequality no partial fill
does.

**Whether there is a sequence.** The states in which all rules hold are convex, so that all orders at once, each in
proportion, would be safe: with room to spare, small enough slices always are. Without room there may be none: if
the cash is at its floor and the health factor at its limit, no sale may come before the repayment that it pays for
(what flash loans are for). Then `reason` says which rules block, by how much, and which temporary cash would do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.optimizer.order_states import SMALLEST_SLICE, Orders, State, reduces
from equipoise.optimizer.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

STEP_COLUMNS = ("step", "asset", "side", "quantity", "reduce_only", "fraction", "cash", "slack", "rule")
#: With up to nine orders an attempt looks at this many states: at every set of whole orders (2⁹).
_STATES, _ALL_SETS = 512, 9
#: With more orders a sequence of whole orders may turn back so often, one in slices has so many states an order.
_TURNS, _STATES_PER_ORDER = 50, 4
_HALVINGS = 4  # of the temporary cash for whole orders, in search of that for slices
_FEW_CUTS, _FEW = 4, 150  # fewer cuts that are tried once a sequence was found, in so many states each


@dataclass(frozen=True)
class OrderStep:
    """One order to send: trade `quantity` > 0 units, and wait for its fill before the next.

    `reduce_only`: it brings the position towards zero and not beyond. `fraction`: the part of the asset's whole
    order. `cash` after the step and its costs; `slack`: what is left of the tightest rule after it, in
    cash (below zero while a rule that was broken at the start is still broken); `rule`: that rule.
    """

    asset: str
    side: str
    quantity: Fraction
    reduce_only: bool
    fraction: Fraction
    cash: Fraction
    slack: Fraction
    rule: str


@dataclass(frozen=True)
class OrderSequence:
    """The steps of a plan, if there is a safe sequence of them; `reason` says what was found or what blocks it.

    If it is not safe there are no steps, `blocked_by` is the rule that the least harmful next order would
    break and `short_by` by how much, in cash. `proven`: no slices whatever (down to lots, minimums and 1/10,000
    of an order) would do. `temporary_cash`: so much money from outside, returned at the end, makes whole orders safe,
    and `temporary_cash_sliced` makes slices of them safe: the least found of the first, of its half, its quarter, down
    to a sixteenth (NaN: no amount was found that does). Of a safe sequence, `temporary_cash` is what it draws at
    most (0 unless some was given).
    """

    steps: tuple[OrderStep, ...]
    safe: bool
    reason: str
    rules: tuple[str, ...]
    blocked_by: str | None = None
    short_by: float = 0.0
    proven: bool = True
    temporary_cash: float = 0.0
    temporary_cash_sliced: float = 0.0

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a step, numbers as floats: see `OrderStep`."""
        import pandas as pd

        rows = [
            (
                number,
                step.asset,
                step.side,
                float(step.quantity),
                step.reduce_only,
                float(step.fraction),
                float(step.cash),
                float(step.slack),
                step.rule,
            )
            for number, step in enumerate(self.steps, 1)
        ]
        kinds = {"quantity": float, "reduce_only": bool, "fraction": float, "cash": float, "slack": float}
        return pd.DataFrame(rows, columns=list(STEP_COLUMNS)).astype(kinds).set_index("step")


def sequenced(
    plan: Plan, *, always: Collection[str] = (), temporary_cash: float = 0.0, most_slices: int = 20
) -> OrderSequence:
    """The plan's orders as steps after which, and at every partial fill of which, no rule on the state is broken.

    Those rules are the ones on long and short parts of positions (health factor, collateral ratio, margin, gross
    leverage), leverage, and the floor under the cash; `always` names further ones (by their names in
    `plan.checks`). What reduces risk comes first: sales before buys, repayments before withdrawals; a
    position is closed before it is opened the other way. An order is cut only if whole orders do not do, in at
    most `most_slices` whole-lot slices. `temporary_cash` is money that may be used on the way and is
    returned at the end, such as a flash loan; no rule counts it.

    Raises InputError for a plan without verified orders and for unknown names.
    """
    if not plan.status.ok or plan.verified is None or plan.problem is None:
        raise InputError("the plan has no verified orders to put in sequence; see its message", portfolio=plan.name)
    check_number(temporary_cash, "temporary_cash", at_least=0.0)
    check_number(most_slices, "most_slices", at_least=1)
    if isinstance(always, str):
        raise InputError("must be a list of names, not one text", column="always", value=always)
    if plan.problem.accounts is not None:
        from equipoise.optimizer.account_sequence import in_accounts

        return in_accounts(plan, always, temporary_cash, int(most_slices))
    orders = Orders(plan, always, temporary_cash)
    search = _Search(orders, int(most_slices))
    if 0 < temporary_cash < (least := orders.money(orders.floor - search.start.cash * orders.grain)):
        raise InputError(
            f"the cash is {least:,.2f} below its floor at the start: temporary cash cannot be less than that",
            portfolio=plan.name,
            column="temporary_cash",
            value=temporary_cash,
        )
    states = search.whole() or search.sliced()
    if states is None:
        return _blocked(orders, search)
    steps = _steps(orders, states)
    cut = len({step.asset for step in steps if step.fraction < 1})
    text = f"Every rule holds after each of {len(steps)} steps and at any partial fill of them"
    worse = [name for name, x, limit in zip(orders.names, states[0].excess, orders.limits, strict=True) if x > limit]
    if worse:
        text += f"; {', '.join(worse)} is broken at the start, and no step worsens it until it holds"
    text += f". Orders in several steps: {cut}." if cut else "."
    drawn = max(orders.floor - min(state.cash for state in states) * orders.grain, 0) if orders.temporary_cash else 0
    return OrderSequence(steps, True, text, orders.names, temporary_cash=orders.money(drawn))


class _Search:
    """Depth first, what reduces risk first."""

    def __init__(self, orders: Orders, most_slices: int) -> None:
        self.orders, self.most_slices = orders, most_slices
        self.start = orders.start()
        self.stuck = self.start  # the state with most orders done from which no whole order could go on

    def whole(self) -> list[State] | None:
        """The states of a sequence of whole orders (the start first), if one was found."""
        return self._walk(self.start, self.orders.goal, 0)

    def loops(self) -> list[State] | None:
        """The same with any cuts: whole orders where they are safe, else the largest safe slices."""
        cuts = self.most_slices * len(self.orders.goal)
        return self._walk(self.start, self.orders.goal, cuts) if self._may_slice else None

    def sliced(self) -> list[State] | None:
        """The same with fewer cuts, if they are found to do; or in even rounds, if the largest slices do not."""
        if found := self.loops():
            goal, few = self.orders.goal, range(1, min(found[-1].cuts, _FEW_CUTS))
            fewer = (self._walk(self.start, goal, cuts, states=_FEW) for cuts in few)
            return next((states for states in fewer if states), found)
        rounds = 2
        while self._may_slice and rounds <= self.most_slices:
            if found := self._in_rounds(rounds):
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
        budget = states or _states(len(goal), cuts)
        while path[-1].traded != goal:
            state = next(choices[-1], None)
            if state is None:
                choices.pop()
                dead = path.pop()
                if not cuts and goal == self.orders.goal and _begun(dead) > _begun(self.stuck):
                    self.stuck = dead
                if not path:
                    return None
            else:
                budget -= 1
                if budget < 0:
                    return None
                path.append(state)
                choices.append(self._moves(state, goal, cuts, seen))
        return path

    def _moves(
        self, state: State, goal: tuple[int, ...], cuts: int, seen: dict[tuple[int, ...], int]
    ) -> Iterator[State]:
        """The safe states one step on, best first: whole orders, then (with cuts left) largest safe slices.

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
        if state.cuts >= cuts:
            return
        aim, parts = [max(x, 0) for x in state.excess], []
        for j, leg in left:
            if state.slices[j] + 1 < self.most_slices:
                part = orders.largest(state, j, leg.quantity, aim)
                parts.append((-part * abs(leg.money), j, leg, part))
        for _, j, leg, part in sorted(parts):
            for quantity in orders.slices(state, j, leg.quantity, part):
                moved = orders.moved(state, j, quantity, cut=True)
                if orders.safe(state, moved):
                    if moved.cuts < seen.get(moved.traded, cuts + 1):
                        seen[moved.traded] = moved.cuts
                        yield moved
                    break

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
        largest = f"{float(quantity * orders.quantum[j]):.6g} {orders.problem.assets[orders.at[j]]}"
        return f"at most {largest} is safe as the first step, less than lots and minimums allow"

    @cached_property
    def can_finish(self) -> bool:
        """Whether the state before some last step, as small as is allowed, is safe."""
        orders, end = self.orders, self.start
        for j, total in enumerate(orders.goal):
            end = orders.moved(end, j, total)
        kept = zip(end.excess, self.start.excess, orders.limits, strict=True)
        aim = [math.inf if before > limit else max(limit, after) for after, before, limit in kept]
        for j, total in enumerate(orders.goal):
            back = total - (orders.split[j] or 0)
            exempt = orders.held[j] + total == 0
            smallest = max(-(-abs(total) // SMALLEST_SLICE), 1 if exempt else max(orders.least[j], orders.unit[j]))
            if orders.largest(end, j, -back, aim) * abs(back) >= smallest:
                return True
        return False


def _begun(state: State) -> int:
    return sum(map(bool, state.traded))


def _states(orders: int, cuts: int) -> int:
    """How many states an attempt may look at."""
    if orders <= _ALL_SETS:
        return _STATES
    return orders * _STATES_PER_ORDER if cuts else orders + _TURNS


def _blocked(orders: Orders, search: _Search) -> OrderSequence:
    """What stands in the way, and how much temporary cash would do."""
    stuck, broken = search.stuck, dict[str, tuple[float, str]]()
    aim = list(map(max, orders.limits, stuck.excess))
    for j, leg in orders.left(stuck, orders.goal):
        over = [new - most for new, most in zip(orders.moved(stuck, j, leg.quantity).excess, aim, strict=True)]
        if (money := orders.money(max(over))) > 0:
            name = orders.names[over.index(max(over))]
            order = f"{'buying' if leg.quantity > 0 else 'selling'} {orders.problem.assets[orders.at[j]]}"
            broken[name] = min(broken.get(name, (math.inf, "")), (money, order))
    rule, (short_by, _) = min(broken.items(), key=lambda found: found[1], default=(None, (0.0, "")))
    whys = [f"{order} would break {name} by {money:,.2f}" for name, (money, order) in broken.items()]
    blocks = " and ".join(whys) or "none of the others is safe at every partial fill"
    text = f"No safe sequence: after {_begun(stuck)} of {len(orders.total)} whole orders, {blocks}"
    proven = not orders.cones  # of which the largest safe part is known from below only
    if not search.can_start:
        text += f"; {search.first_slice()}"
    elif not search.can_finish:
        text += "; no slice of any order is safe as the last step"
    else:
        proven = False
        text += f"; none was found with up to {search.most_slices} slices an order"
    whole, sliced = _least_cash(orders, search)
    if math.isnan(whole):
        text += ". Temporary cash alone does not help."
    else:
        text += f". With {whole:,.2f} of temporary cash whole orders are safe"
        text += f", with {sliced:,.2f} slices of them." if sliced < whole else "."
    return OrderSequence((), False, text, orders.names, rule, short_by, proven, whole, sliced)


def _least_cash(orders: Orders, search: _Search) -> tuple[float, float]:
    """The least temporary cash with which whole orders were found to be safe, and slices of them; NaN if none was."""
    spent = sum(abs(n) * p + n * c for n, p, c in zip(orders.total, orders.price, orders.cost, strict=True))
    start = orders.floor - search.start.cash * orders.grain
    trial, least = spent * orders.grain + max(start, 0), 0
    while trial >= max(start, orders.temporary_cash, 1) and (found := _Search(orders.with_cash(trial), 1).whole()):
        least = orders.floor - min(state.cash for state in found) * orders.grain
        trial = least - orders.nav * orders.grain // 10**8  # by more than a tolerance, so that this ends
    if not least:
        return math.nan, math.nan
    sliced = least
    for _ in range(_HALVINGS):
        half = sliced // 2
        if half < max(start, orders.temporary_cash, 1):
            break
        if not _Search(orders.with_cash(half), search.most_slices).loops():
            break
        sliced = half
    return _at_least(orders, least), _at_least(orders, sliced)


def _at_least(orders: Orders, amount: int) -> float:
    """An amount in cash, rounded up."""
    near = orders.money(amount)
    return near if Fraction(near) * orders.cents * orders.grain >= amount else math.nextafter(near, math.inf)


def _steps(orders: Orders, states: list[State]) -> tuple[OrderStep, ...]:
    """The moves between these states; neighbours of one order that need not be told apart are one step."""
    steps: list[OrderStep] = []
    begun = states[0]
    for state, following in zip(states[1:], [*states[2:], None], strict=False):
        j = state.order
        quantity = state.traded[j] - begun.traded[j]
        reduce_only = reduces(orders.held[j] + begun.traded[j], quantity)
        if (
            following is not None
            and following.order == j
            and reduces(orders.held[j] + state.traded[j], following.quantity) == reduce_only
        ):
            continue
        rule = max(range(len(orders.names)), key=state.excess.__getitem__)
        steps.append(
            OrderStep(
                asset=orders.problem.assets[orders.at[j]],
                side="buy" if quantity > 0 else "sell",
                quantity=abs(quantity) * orders.quantum[j],
                reduce_only=reduce_only,
                fraction=Fraction(quantity, orders.total[j]),
                cash=Fraction(state.cash, orders.cents),
                slack=Fraction(-state.excess[rule], orders.cents * orders.grain),
                rule=orders.names[rule],
            )
        )
        begun = state
    return tuple(steps)
