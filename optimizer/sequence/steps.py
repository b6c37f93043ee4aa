"""Orders in a sequence that is safe after every step and at every partial fill.

`verify` says that a plan's rules hold at its end. On the way there an account can still be liquidated: collateral
leaves before the debt is repaid, a buy comes before the sale that pays for it. `sequenced` finds an order of the
orders, and of the transfers between accounts, cut where that is needed, in which every rule on the accounts' *state*
holds after every step: the floors under the cashes, collateral, debt, margin, leverage; with several accounts also that
nothing is sold, sent or repaid that is not there yet. Rules on the rebalance as a whole (turnover, drift bands, group
limits, lots) are kept at its end, which `verify` checked; a bound on a single asset that only one order moves is never
broken by more on the way than at an end.

**Why the ends of steps are enough.** A step trades one asset against its cash, or moves units from row to row. When the
part 0 < t ≤ 1 of it is filled, and of its convex cost paid, the weights are w(t) = (1 − t)·w(0) + t·w(1): a segment. A
rule is f(w) ≤ u with f convex (`constraints.pieces`), so f(w(t)) ≤ max(f(w(0)), f(w(1))) ≤ u. The cash after costs
is linear in t, so that its floor holds between the ends, too. Should a fill cost less than its share (costs are convex:
a part costs at most its share), the cash lies between the cash after costs and that before all costs; rows are asked
at both, so that the point lies in the convex hull of points where f ≤ u.

**Fees for each order** are paid in full with the first fill of each slice, so that w(0) is the state after the fee and
before the trade: it is asked as well. From there on a minimum commission is convex in t, and the argument is the same.
Slices cost more than the order that the plan paid for: the end is verified again with all that was paid.

**A rule that is broken at the start** may not be worsened by any step until it holds: by the same inequality no
partial fill does. Where nothing can come first in this way (a health factor below its target, no cash to repay with), a
ratio with a known liquidation may be lowered by a tenth of what it is above that; `on_the_way` says otherwise.

**Whether there is a sequence.** The states in which all rules hold are convex, so that all orders at once, each in
proportion, would be safe: with room to spare, small enough slices always are. Without room there may be none: if
the cash is at its floor and the health factor at its limit, no sale may come before the repayment that it pays for
(what flash loans are for). Then `reason` says which rules block, by how much, and which temporary cash would do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import check_number
from equipoise.optimizer.sequence.listing import NONE, OPEN, SLICES, WHOLE, WHOLE_ATTEMPTS, Listing, in_arrays
from equipoise.optimizer.sequence.rules import (
    Limits,
    Titled,
    asked_limits,
    limited,
    repair_limits,
    watched,
    worst_ratios,
)
from equipoise.optimizer.sequence.search import Search, begun, in_one_go
from equipoise.optimizer.sequence.slices import Orders
from equipoise.optimizer.sequence.stacked import MOST
from equipoise.optimizer.sequence.states import State
from equipoise.optimizer.verification.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd

STEP_COLUMNS = ("step", "asset", "side", "quantity", "reduce_only", "fraction", "cash", "slack", "rule")
_ACTING = {"move": "moving", "buy": "buying", "sell": "selling"}
_HALVINGS = 4  # of the temporary cash for whole orders, in search of that for slices


@dataclass(frozen=True)
class OrderStep:
    """One order to send: trade `quantity` > 0 units, and wait for its fill before the next.

    `side` is buy, sell, or move for a transfer, whose `asset` is "from -> to". `reduce_only`: it brings the position
    towards zero and not beyond. `fraction`: the part of the asset's whole order. `cash` of the account that pays,
    after the step and its costs; `slack`: what is left of the tightest rule after it, in cash (below zero while a rule
    that was broken at the start is still broken), and `rule`: that rule, with its limit on the way.
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

    `worst`: the worst value of each ratio that is watched (a health factor, a margin) at any moment from start to end,
    in its own words, by its rule (and its label, where a rule has several). `on_the_way`: the limits in force on the
    way where they are others than at the end, likewise. `fees`: what the slices pay in fees beyond the plan's cost.
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
    worst: Mapping[str, float] = field(default_factory=dict)
    on_the_way: Mapping[str, float] = field(default_factory=dict)
    fees: Fraction = Fraction(0)

    @property
    def whole(self) -> bool:
        """Whether it is safe without cutting any order. (One that turns a position around is two steps on end.)"""
        begun = [step.asset for k, step in enumerate(self.steps) if not k or self.steps[k - 1].asset != step.asset]
        return self.safe and len(set(begun)) == len(begun)

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
    plan: Outcome,
    *,
    always: Collection[str] = (),
    on_the_way: Mapping[str, float] | None = None,
    temporary_cash: float = 0.0,
    most_slices: int = 100,
    explain: bool = True,
) -> OrderSequence:
    """The plan's orders as steps after which, and at every partial fill of which, no rule on the state is broken.

    Those rules are the ones on long and short parts of positions (health factor, collateral ratio, margin, gross
    leverage), leverage, and the floors under the cashes; `always` names further ones (by their names in
    `plan.checks`). What reduces risk comes first: sales before buys, repayments before withdrawals; a
    position is closed before it is opened the other way. An order is cut only if whole orders do not do, in at
    most `most_slices` whole-lot slices, each of which pays its own fee.

    `on_the_way`: limits until the end is reached, by the rule's name and in its own words, such as {"HealthFactor":
    1.1} for a rule that asks for 1.5 at the end. Rules that are not named have the same limit on the way; one that is
    broken at the start may not get worse. Only if that finds nothing, and the venue's liquidation is known (a health
    factor of 1, a margin ratio of 1), a ratio that is broken at the start may use up a tenth of what it is above that.

    `temporary_cash` is money that may be used on the way and is returned at the end, such as a flash loan, in any of
    the accounts; no rule counts it. `explain`: where there is no sequence, look for what blocks it and how much
    temporary cash would do, which takes longer than the search.

    Raises InputError for a plan without verified orders, for unknown names and for limits that a rule cannot have.
    """
    if not plan.status.ok or plan.verified is None or plan.problem is None:
        raise InputError("the plan has no verified orders to put in sequence; see its message", portfolio=plan.name)
    check_number(temporary_cash, "temporary_cash", at_least=0.0)
    check_number(most_slices, "most_slices", at_least=1)
    _check_names(always, on_the_way)
    pieces = watched(plan.asked, always)
    limits = asked_limits(plan.asked, pieces, on_the_way or {})
    repair = {key: limit for key, limit in repair_limits(pieces, plan.asked.before).items() if key not in limits}
    found = _searched(plan, pieces, limits, temporary_cash, int(most_slices), explain=explain and not repair)
    if not found.safe and repair:
        loosened = {**limits, **repair}
        found = _searched(plan, pieces, loosened, temporary_cash, int(most_slices), explain=explain)
    return found


def _check_names(always: object, on_the_way: object) -> None:
    if isinstance(always, str):
        raise InputError("must be a list of names, not one text", column="always", value=always)
    if on_the_way is not None and not isinstance(on_the_way, Mapping):
        raise InputError("must give limits by the names of rules", column="on_the_way", value=on_the_way)


def listing(plan: Outcome) -> Listing:
    """The listing of a single plan: one of `LISTINGS`, and the rows of its orders in that order."""
    found, way = in_arrays(plan)
    return _listing_of(plan) if found == OPEN else (found, way)


def _listing_of(plan: Outcome) -> Listing:
    """What a search for a safe sequence finds of it."""
    if sum(map(bool, plan.trades)) > MOST:
        return NONE, ()
    sequence = sequenced(plan, explain=False)
    if not sequence.safe:
        return NONE, ()
    at = {asset: i for i, asset in enumerate(plan.asked.assets)}
    rows = dict.fromkeys(at[step.asset] for step in sequence.steps if step.side != "move")
    return WHOLE if sequence.whole else SLICES, tuple(rows)


def _searched(
    plan: Outcome, pieces: list[Titled], limits: Limits, temporary_cash: float, most_slices: int, *, explain: bool
) -> OrderSequence:
    """The sequence with these limits on the way."""
    orders = Orders(plan, limited(plan.asked, pieces, limits), temporary_cash)
    search = Search(orders, plan, most_slices)
    if 0 < temporary_cash < (least := orders.money(orders.drawn(search.start))):
        raise InputError(
            f"the cash is {least:,.2f} below its floor at the start: temporary cash cannot be less than that",
            portfolio=plan.name,
            column="temporary_cash",
            value=temporary_cash,
        )
    states = search.whole()
    if explain and not in_one_go(states) and (states or search.out_of_states):
        states = search.along(in_arrays(plan, WHOLE_ATTEMPTS)[1]) or states
    if states := states or search.sliced():
        return _safe(orders, states, pieces, _named(limits))
    none = OrderSequence((), False, "No safe sequence was found.", orders.shown, proven=False)
    return _blocked(orders, search) if explain else none


def _safe(orders: Orders, states: list[State], pieces: list[Titled], on_the_way: Mapping[str, float]) -> OrderSequence:
    """The sequence of these states, with these limits on the way."""
    steps, fees = _steps(orders, states), sum(orders.extra_fees(states), Fraction(0))
    drawn = max(map(orders.drawn, orders.moments(states))) if orders.temporary_cash else 0
    worst = worst_ratios(pieces, orders.weights(states))
    text = f"Every rule holds after each of {len(steps)} steps and at any partial fill of them"
    start = zip(orders.names, states[0].excess, orders.limits, strict=True)
    if worse := dict.fromkeys(name for name, x, limit in start if x > limit):
        text += f"; {', '.join(worse)} is broken at the start, and no step worsens it until it holds"
    if on_the_way:
        text += f"; on the way {', '.join(f'{name} may be {limit:.6g}' for name, limit in on_the_way.items())}"
    if fees:
        text += f"; fees of slices cost {float(fees):,.2f} more"
    text += f". Orders in several steps: {cut}." if (cut := len({s.asset for s in steps if s.fraction < 1})) else "."
    return OrderSequence(
        steps,
        True,
        text,
        orders.shown,
        temporary_cash=orders.money(drawn),
        worst=_named(worst),
        on_the_way=on_the_way,
        fees=fees,
    )


def _named(values: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """By the rule's title, and its label where a title has several."""
    titles = [title for title, _ in values]
    return {
        title if titles.count(title) == 1 else f"{title} ({label})": value for (title, label), value in values.items()
    }


def _blocked(orders: Orders, search: Search) -> OrderSequence:
    """What stands in the way, and how much temporary cash would do."""
    stuck = search.stuck
    broken = _broken(orders, stuck)
    rule, (short_by, _) = min(broken.items(), key=lambda found: found[1], default=(None, (0.0, "")))
    whys = [f"{order} would break {name} by {money:,.2f}" for name, (money, order) in broken.items()]
    blocks = " and ".join(whys) or "none of the others is safe at every partial fill"
    text = f"No safe sequence: after {begun(stuck)} of {len(orders.total)} whole orders, {blocks}"
    # Of cones the largest safe part is known from below only, and fees depend on the slices.
    proven = not orders.cones and not orders.pays_fees
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
    return OrderSequence((), False, text, orders.shown, rule, short_by, proven, whole, sliced)


def _broken(orders: Orders, stuck: State) -> dict[str, tuple[float, str]]:
    """The rules that the next orders would break: by how much money at least, and which order."""
    broken, aim = dict[str, tuple[float, str]](), list(map(max, orders.limits, stuck.excess))
    for j, leg in orders.left(stuck, orders.goal):
        ends = [orders.moved(stuck, j, quantity).excess for quantity in (0, leg.quantity)]
        over = [max(new) - most for *new, most in zip(*ends, aim, strict=True)]
        if (money := orders.money(max(over))) > 0:
            name = orders.names[over.index(max(over))]
            order = f"{_ACTING[_side(orders, j, leg.quantity)]} {orders.moves[j].label}"
            broken[name] = min(broken.get(name, (math.inf, "")), (money, order))
    return broken


def _side(orders: Orders, j: int, quantity: int) -> str:
    return "move" if orders.moves[j].at is None else "buy" if quantity > 0 else "sell"


def _least_cash(orders: Orders, search: Search) -> tuple[float, float]:
    """The least temporary cash with which whole orders were found to be safe, and slices of them; NaN if none was."""
    spent = sum(abs(n) * p + n * c for n, p, c in zip(orders.total, orders.price, orders.cost, strict=True))
    spent += sum(orders.fixed) + sum(orders.minimum)
    start = orders.drawn(search.start)
    trial, least = spent * orders.grain + start, 0
    while trial >= max(start, orders.temporary_cash, 1):
        more = orders.with_cash(trial)
        if not (found := Search(more, search.plan, 1).whole()):
            break
        least = max(map(more.drawn, more.moments(found)))
        # By more than a tolerance, and at least by one unit, so that this ends.
        trial = least - max(orders.nav * orders.grain // 10**8, 1)
    if not least:
        return math.nan, math.nan
    sliced = least
    for _ in range(_HALVINGS):
        half = sliced // 2
        if half < max(start, orders.temporary_cash, 1):
            break
        if not Search(orders.with_cash(half), search.plan, search.most_slices).loops():
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
        move, quantity = orders.moves[j], state.traded[j] - begun.traded[j]
        reduce_only = orders.reduces(begun, j, quantity)
        if following is not None and following.order == j:
            more = following.traded[j] - state.traded[j]
            if move.pays_fees or orders.reduces(state, j, more) == reduce_only:
                continue
        rule = max(range(len(orders.names)), key=state.excess.__getitem__)
        steps.append(
            OrderStep(
                asset=move.label,
                side=_side(orders, j, quantity),
                quantity=abs(quantity) * orders.quantum[j],
                reduce_only=reduce_only,
                fraction=Fraction(quantity, orders.total[j]),
                cash=Fraction(state.cash[orders.payer[j]] - state.paid[orders.payer[j]], orders.cents),
                slack=Fraction(-state.excess[rule], orders.cents * orders.grain),
                rule=orders.names[rule],
            )
        )
        begun = state
    return tuple(steps)
