"""Orders and transfers of a portfolio in several accounts, in a sequence that is safe at every partial fill.

The argument is that of `sequence`: a step is one order against its account's cash, or one transfer, a segment in the
space of weights, and rules are convex, so that what holds at both ends of a step holds between them. Watched are the
rules on the state of each account (collateral, debt, margin, leverage, the floors under every cash), and that nothing
is sold, sent or repaid that is not there yet: what is withdrawn comes after what is repaid, what is used after it
arrived. Rules that are broken at the start may not be broken by more until they hold.

Whole steps first, in any order. If none is found, the largest safe slices (whole lots, least orders) of what cannot
be done in full; then all in 2, 4, 8, ... rounds of equal slices, which follow the straight line from start to end the
closer the more there are. All in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from equipoise.constraints.base import Row, part
from equipoise.constraints.envelope import Envelope
from equipoise.constraints.errors import InputError
from equipoise.optimizer.order_states import watched
from equipoise.optimizer.plan import Plan
from equipoise.optimizer.portfolio import exact
from equipoise.optimizer.sequence import OrderSequence, OrderStep

#: How many states the search may look at, for all attempts of one kind.
_STATES = 3000
#: How finely the largest safe slice of an action is looked for: parts of what is left of it.
_PARTS = 64
Values = tuple[Fraction, ...]


@dataclass(frozen=True)
class Action:
    """An order or a transfer, in full: `gross` is what it does to the value of each row, `cost` what it costs there.

    `lot` and `least` in its own units; `closes`: it empties a position, whose last slice may be any size.
    """

    label: str
    side: str
    total: Fraction
    gross: dict[int, Fraction]
    cost: tuple[int, Fraction]
    reduces: bool
    lot: Fraction
    least: Fraction
    closes: bool

    @property
    def cash(self) -> int:
        """The cash that it concerns."""
        return self.cost[0]

    @property
    def money(self) -> Fraction:
        return max(self.gross.values(), default=Fraction(0))


def in_accounts(plan: Plan, always: Collection[str], temporary_cash: float, most_slices: int) -> OrderSequence:
    """See `sequence.sequenced`. A transfer's asset is "from -> to", and its side "move"."""
    if temporary_cash:
        raise InputError("is not offered for several accounts: flash loans are one account's", column="temporary_cash")
    state = _State(plan, always)
    tries: list[Callable[[], list[OrderStep] | None]] = [partial(state.in_rounds, 1)]
    if most_slices > 1:
        tries.append(partial(state.in_largest_slices, most_slices))
        tries += [partial(state.in_rounds, 2**k) for k in range(1, int(math.log2(most_slices)) + 1)]
    for attempt in tries:
        path = attempt()
        if path is not None:
            cut = len({step.asset for step in path if step.fraction < 1})
            text = f"Every rule holds after each of {len(path)} steps and at any partial fill of them"
            broken = [name for name, x in zip(state.names, state.excess(state.start), strict=True) if x > 0]
            if broken:
                text += f"; {', '.join(dict.fromkeys(broken))} is broken at the start, and no step worsens it"
            text += f". Orders in several steps: {cut}." if cut else "."
            return OrderSequence(tuple(path), True, text, state.shown)
    by, rule, text = state.blocked()
    text = f"No safe sequence was found in up to {most_slices} slices of each: {text}"
    return OrderSequence((), False, text, state.shown, rule, by, proven=False, temporary_cash=math.nan)


class _State:
    """What is held after parts of the actions, and how far each rule is from its limit, in money."""

    def __init__(self, plan: Plan, always: Collection[str]) -> None:
        assert plan.problem is not None and plan.verified is not None and plan.problem.accounts is not None
        self.accounts = accounts = plan.problem.accounts
        self.asked = accounts.asked
        account = self.asked.portfolio
        self.nav = sum((q * p for q, p in zip(account.exact_quantity, account.exact_price, strict=True)), Fraction(0))
        self.begin = tuple(q * p for q, p in zip(account.exact_quantity, account.exact_price, strict=True))
        self.actions = tuple(sorted(_actions(plan), key=self._first))
        self.start = (Fraction(0),) * len(self.actions)
        self.rules = list(self._rules(always))
        self.names = tuple(name for name, _ in self.rules)
        self._known: dict[tuple[Fraction, ...], tuple[Fraction, ...]] = {}

    def _first(self, action: Action) -> tuple[int, str]:
        """What repays or reduces comes first, what borrows last."""
        repays = any(self.accounts.owed[i] and x > 0 for i, x in action.gross.items())
        borrows = any(self.accounts.owed[i] and x < 0 for i, x in action.gross.items())
        return (
            4 if borrows else 0 if repays else 1 if action.reduces else 3 if action.side == "buy" else 2
        ), action.label

    def _rules(self, always: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Each with its excess over its limit, in money, as a function of the values of the rows."""
        cashes, n = set(self.accounts.cashes), len(self.begin)
        # The floors of other cashes are bounds on assets to those who know one cash only.
        for title, piece in watched(self.asked, always):
            if isinstance(piece, Row):
                yield title, _RowOf(piece, self.nav)
            elif isinstance(piece, Envelope):
                yield title, _EnvelopeOf(piece, self.nav)
        for title, bound in self.asked.bounds:
            for i in range(n):
                low, high = float(np.broadcast_to(bound.lower, n)[i]), float(np.broadcast_to(bound.upper, n)[i])
                if (i in cashes and math.isfinite(low)) or low == 0:
                    yield title, _Edge(i, -1, Fraction(low) * self.nav)
                if high == 0 and i not in cashes:
                    yield title, _Edge(i, 1, Fraction(0))
        for i in np.flatnonzero(np.any(self.accounts.moves != 0, axis=1)).tolist():
            yield "Transfer", _Edge(i, 1 if self.accounts.owed[i] else -1, Fraction(0))

    def values(self, done: Sequence[Fraction]) -> tuple[Values, Values]:
        """The values of all rows after these parts of the actions: after their costs, and before them."""
        before = list(self.begin)
        costs = [Fraction(0)] * len(before)
        for action, part_done in zip(self.actions, done, strict=True):
            if part_done:
                for i, change in action.gross.items():
                    before[i] += part_done * change
                costs[action.cost[0]] += part_done * action.cost[1]
        return tuple(x - c for x, c in zip(before, costs, strict=True)), tuple(before)

    def excess(self, done: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
        """By how much each rule is broken, in money (below zero: kept), at the worse of both."""
        if done not in self._known:
            after, before = self.values(done)
            self._known[done] = tuple(max(rule.of(after), rule.of(before)) for _, rule in self.rules)
        return self._known[done]

    def safe(self, old: tuple[Fraction, ...], new: tuple[Fraction, ...]) -> bool:
        """Whether no rule is broken after the step, or by no more than before it or at the plan's end."""
        end = self.excess((Fraction(1),) * len(self.actions))
        states = zip(self.excess(new), self.excess(old), end, strict=True)
        return all(x <= max(was, last, Fraction(0)) for x, was, last in states)

    def in_rounds(self, rounds: int) -> list[OrderStep] | None:
        """All actions in so many rounds of equal slices, each round in any order that is safe."""
        here, path, left = self.start, list[OrderStep](), [_STATES]
        for k in range(1, rounds + 1):
            goal = tuple(self.stop(action, k, rounds) for action in self.actions)
            walked = self.walk(here, goal, left)
            if walked is None:
                return None
            here, path = goal, path + walked
        return path

    def in_largest_slices(self, most: int) -> list[OrderStep] | None:
        """Whatever can be done in full, else the largest safe slice of any action, until all is done."""
        here, path, slices = self.start, list[OrderStep](), [0] * len(self.actions)
        while any(part < 1 for part in here):
            reached = [self.largest(here, j) if part < 1 and slices[j] < most else part for j, part in enumerate(here)]
            moved = [(x - part) * abs(a.money) for x, part, a in zip(reached, here, self.actions, strict=True)]
            whole = [j for j, (x, part) in enumerate(zip(reached, here, strict=True)) if x == 1 and part < 1]
            j = whole[0] if whole else max(range(len(moved)), key=moved.__getitem__)
            if not moved[j]:
                return None
            there = (*here[:j], reached[j], *here[j + 1 :])
            path.append(self._step(self.actions[j], reached[j] - here[j], there))
            slices[j] += 1
            here = there
        return path

    def largest(self, here: tuple[Fraction, ...], j: int) -> Fraction:
        """How far action j can safely go from here, to 1/64 of what is left: what is safe is an interval."""
        action, low, high = self.actions[j], 0, _PARTS
        if self.safe(here, (*here[:j], Fraction(1), *here[j + 1 :])):
            return Fraction(1)
        reached, size = here[j], abs(action.total)
        while high - low > 1:
            middle = (low + high) // 2
            part = here[j] + (1 - here[j]) * middle / _PARTS
            if action.lot:
                part = size * part // action.lot * action.lot / size
            enough = (part - here[j]) * size >= max(action.least, action.lot)
            leaves = (1 - part) * size >= action.least or action.closes
            if part > here[j] and self.safe(here, (*here[:j], part, *here[j + 1 :])):
                low, reached = middle, part if enough and leaves else reached
            elif part > here[j]:
                high = middle
            else:
                low = middle
        return reached

    def walk(self, done: tuple[Fraction, ...], goal: tuple[Fraction, ...], left: list[int]) -> list[OrderStep] | None:
        """Safe steps from here to the goal, each action at most once, depth first."""
        seen = {done}
        path: list[OrderStep] = []

        def further(here: tuple[Fraction, ...]) -> bool:
            if here == goal:
                return True
            for j, action in enumerate(self.actions):
                if here[j] == goal[j]:
                    continue
                there = (*here[:j], goal[j], *here[j + 1 :])
                if there in seen or left[0] <= 0:
                    continue
                seen.add(there)
                left[0] -= 1
                if self.safe(here, there):
                    path.append(self._step(action, goal[j] - here[j], there))
                    if further(there):
                        return True
                    path.pop()
            return False

        return path if further(done) else None

    def _step(self, action: Action, fraction: Fraction, there: tuple[Fraction, ...]) -> OrderStep:
        """`cash` is what is left in the cash that the action concerns."""
        excess = self.excess(there)
        worst = max(range(len(excess)), key=excess.__getitem__) if excess else None
        slack, rule = (-excess[worst], self.names[worst]) if worst is not None else (Fraction(0), "")
        quantity, cash = abs(action.total) * fraction, self.values(there)[0][action.cash]
        return OrderStep(action.label, action.side, quantity, action.reduces, fraction, cash, slack, rule)

    def stop(self, action: Action, k: int, rounds: int) -> Fraction:
        """The part of the action that is done after round k, in whole lots and not below the least order."""
        if k == rounds:
            return Fraction(1)
        done, size = Fraction(0), abs(action.total)
        for at in range(1, k + 1):
            reached = size * at / rounds
            reached = reached // action.lot * action.lot if action.lot else reached
            rest = size - reached
            if reached - done >= max(action.least, action.lot) and (rest >= action.least or action.closes):
                done = reached
        return done / size

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.names))

    def blocked(self) -> tuple[float, str | None, str]:
        """Which rule stands in the way of each action as the first step: the least harmful, and all in words."""
        found, least = [], (math.inf, "")
        for j, action in enumerate(self.actions):
            there = (*self.start[:j], Fraction(1), *self.start[j + 1 :])
            was, now = self.excess(self.start), self.excess(there)
            allowed = [max(w, Fraction(0)) for w in was]
            over = [(x - a, name) for x, a, name in zip(now, allowed, self.names, strict=True) if x > a]
            if over:
                by, name = max(over)
                least = min(least, (float(by), name))
                found.append(f"{action.side} {action.label} first would break {name} by {float(by):,.2f}")
        if not found:
            return 0.0, None, "every order may come first, but no way on was found"
        return least[0] if len(found) == len(self.actions) else 0.0, least[1], "; ".join(found)


@dataclass(frozen=True)
class _Edge:
    """sign·(value of row i − limit) ≤ 0."""

    row: int
    sign: int
    limit: Fraction

    def of(self, values: Values) -> Fraction:
        return self.sign * (values[self.row] - self.limit)


@dataclass(frozen=True)
class _RowOf:
    """A row on what is held; trades are not counted on the way."""

    row: Row
    nav: Fraction

    def of(self, values: Values) -> Fraction:
        total = -Fraction(self.row.upper) * self.nav
        for name in ("weight", "long", "short"):
            coefficients = getattr(self.row, name)
            if coefficients is not None:
                for i in np.flatnonzero(coefficients).tolist():
                    total += Fraction(float(coefficients[i])) * part(name, values[i], Fraction(0))
        return total


@dataclass(frozen=True)
class _EnvelopeOf:
    """An envelope on what is held."""

    piece: Envelope
    nav: Fraction

    def of(self, values: Values) -> Fraction:
        weights = np.array([x / self.nav for x in values], dtype=object)
        terms = sum(term.of(weights, 0 * weights) for term in self.piece.terms)
        total: Fraction = _RowOf(self.piece.row, self.nav).of(values) + terms * self.nav
        return total


def _actions(plan: Plan) -> Iterator[Action]:
    assert plan.problem is not None and plan.verified is not None and plan.problem.accounts is not None
    accounts, problem = plan.problem.accounts, plan.problem
    account, n, step = accounts.asked.portfolio, accounts.rows, accounts.asked.step
    for i, quantity in enumerate(plan.trades):
        if not quantity:
            continue
        payer = accounts.cashes[int(np.argmax(accounts.pays[:, i]))]
        cost, zero = (payer, plan.verified.costs[i]), Fraction(0)
        money = quantity * problem.portfolio.exact_price[i]
        if i >= n:
            source, destination = accounts.ends[i - n]
            gross = {source: -money, destination: money}
            transfer = accounts.transfers[i - n]
            ends = (transfer.source, transfer.destination)
            label = " -> ".join(ends if quantity > 0 else ends[::-1])
            yield Action(label, "move", quantity, gross, cost, False, zero, zero, False)
            continue
        held = account.exact_quantity[i]
        lot, least = zero, zero
        if step is not None:
            lot = exact(step.lot[i])
            least = max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / account.exact_price[i])
        cash = accounts.cashes[accounts.owner[i]]
        reduces = held * quantity < 0 and abs(quantity) <= abs(held)
        side, closes = "buy" if quantity > 0 else "sell", plan.verified.quantities[i] == 0
        yield Action(account.assets[i], side, quantity, {i: money, cash: -money}, cost, reduces, lot, least, closes)
