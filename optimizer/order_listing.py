"""The order in which orders are listed: one that is safe on the way, if there is one, for single plans and for stacks.

Where no rule but the floor of the cash can break on the way (one account, no fees for orders, no rule on collateral,
margin or leverage), sales first is safe, however far each is filled: the cash rises while sales bring more than they
cost, and then falls to where the plan ends. Elsewhere some orders of the orders are tried in arrays, at every prefix,
in floating point with a bound on the rounding errors (as in `verify_stack`): what passes is safe, by the argument of
`sequence`. What does not is searched by `sequence`, one portfolio at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array, Row
from equipoise.constraints.envelope import Envelope
from equipoise.constraints.exposure import Leverage
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE

if TYPE_CHECKING:
    from equipoise.optimizer.plan import Plan

#: What is known of the orders as they are listed: sent one after the other and whole, they are safe on the way; they
#: are if some are cut into slices (`Plan.sequence`); no safe sequence was found; there are no orders.
WHOLE, SLICES, NONE, NO_ORDERS = "whole", "slices", "none found", ""
LISTINGS = (WHOLE, SLICES, NONE, NO_ORDERS)

#: One of `LISTINGS`, and the rows of the orders in a safe sequence (none: in no order of their own).
Listing: TypeAlias = tuple[str, tuple[int, ...]]


def unsearched(_: int) -> Listing:
    """For who searches nothing."""
    return NONE, ()


#: With more orders than this nothing is searched beyond the orders that are tried in arrays.
_MOST = 150


def state_rows(problem: Problem) -> list[Row | Envelope]:
    """The rules on the state of the account, beyond the floors of its cashes; see `order_rules.watched`."""
    leverage = {rule.title for rule in problem.rules if isinstance(rule, Leverage)}
    rows = [(title, piece) for title, piece in problem.pieces if isinstance(piece, Row)]
    found: list[Row | Envelope] = [
        row
        for title, row in rows
        if title in leverage or any(c is not None and np.any(c) for c in (row.long, row.short))
    ]
    return found + [piece for _, piece in problem.envelopes if piece.of_holdings]


def candidates(before: Array, traded: Array) -> Iterator[NDArray[np.intp]]:
    """Keys (B, n) by which orders could be sent: the smaller first, and among equal ones the larger orders."""
    sells, reduces = traded < 0, (before * traded < 0) & (np.abs(traded) <= np.abs(before))
    yield np.where(sells, 0, 1)
    yield np.where(reduces, np.where(sells, 0, 1), np.where(sells, 2, 3))
    yield np.where(reduces, np.where(sells, 1, 0), np.where(sells, 2, 3))


def in_order(key: NDArray[np.intp], traded: Array) -> NDArray[np.intp]:
    """The assets (B, n) by this key, larger orders first; what is not traded comes last."""
    size = np.abs(traded)
    return np.lexsort((-size, np.where(traded != 0, key, 1 + key.max(initial=0))), axis=-1)


def listed(
    problem: Problem, money: Array, costs: Array, nav: Array, search: Callable[[int], Listing]
) -> tuple[NDArray[np.intp] | None, NDArray[np.intp]]:
    """The rank (B, n) of each order in a safe sequence, None if sales first is one for all of them; and which of
    `LISTINGS` holds for each portfolio, (B,).

    money, costs: of each trade (B, n), signed, in cash; nav: (B, 1). `search`: the listing of one, by `sequence`.
    """
    rows, any_orders = state_rows(problem), (money != 0).any(axis=-1)
    codes = np.where(any_orders, LISTINGS.index(WHOLE), LISTINGS.index(NO_ORDERS))
    bent = problem.cost.quadratic.any() or problem.cost.impact.any()  # rates alone are below what a sale brings
    if not rows and not (bent and np.any((money < 0) & (costs > np.abs(money)))):
        return None, codes
    traded, costs = money / nav, costs / nav
    ranks = np.zeros(traded.shape, dtype=np.intp)
    left = any_orders.copy()
    places = np.arange(traded.shape[-1])
    for number, key in enumerate(candidates(problem.before, traded)):
        order = in_order(key, traded)
        if number == 0:
            np.put_along_axis(ranks, order, np.broadcast_to(places, order.shape), -1)
        safe = left & certainly_safe(problem, rows, traded, costs, order)
        at = np.flatnonzero(safe)
        ranks[at[:, None], order[at]] = places
        left &= ~safe
        if not left.any():
            break
    for i in np.flatnonzero(left).tolist():
        found, way = search(i)
        codes[i] = LISTINGS.index(found)
        if way:
            ranks[i, list(way)] = np.arange(len(way)) - len(way)
    return ranks, codes


def of_plan(plan: Plan) -> Listing:
    """The listing of a single plan: one of `LISTINGS`, and the rows of its orders in that order."""
    if not plan.status.ok or plan.problem is None or plan.verified is None or not any(plan.trades):
        return NO_ORDERS, ()
    problem, nav = plan.problem, np.array([[plan.problem.portfolio.nav]])
    if problem.accounts is not None or problem.fees is not None:
        found, way = searched(plan)
    else:
        price = problem.portfolio.exact_price
        money = np.array([float(x * p) for x, p in zip(plan.trades, price, strict=True)])[None]
        costs = np.array([float(cost) for cost in plan.verified.costs])[None]
        ranks, codes = listed(problem.as_stack(), money, costs, nav, lambda _: searched(plan))
        found, way = LISTINGS[int(codes[0])], ()
        if ranks is not None and found != NONE:
            way = tuple(sorted(np.flatnonzero(money[0]).tolist(), key=lambda i: int(ranks[0, i])))
    return found, way


def searched(plan: Plan) -> Listing:
    """The same by a search for a safe sequence."""
    from equipoise.optimizer.sequence import sequenced

    if sum(map(bool, plan.trades)) > _MOST:
        return NONE, ()
    sequence = sequenced(plan, explain=False)
    if not sequence.safe:
        return NONE, ()
    at = {asset: i for i, asset in enumerate(plan.asked.assets)}
    rows = dict.fromkeys(at[step.asset] for step in sequence.steps if step.side != "move")
    return WHOLE if sequence.whole else SLICES, tuple(rows)


def certainly_safe(
    problem: Problem, rows: list[Row | Envelope], traded: Array, costs: Array, order: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which portfolios (B,) keep every rule after each prefix of these orders, in spite of any rounding error.

    The ends are known to be kept. Where a rule is broken at the start, or a row is an envelope, nothing is said.
    """
    before, cash = problem.before, problem.cash
    n, unit = traded.shape[-1], 2.0**-53
    gross, volume, fees = np.abs(before).sum(-1), np.abs(traded).sum(-1), costs.sum(-1)
    relative = 4.0 * (n + 16) * (1.0 + gross) * unit
    rounding = relative * (gross + 2.0 * volume + fees)
    lots = problem.discrete
    tolerance = ROUNDING_TOLERANCE if lots else FEASIBILITY_TOLERANCE

    def so_far(each: Array) -> Array:
        return np.asarray(np.cumsum(np.take_along_axis(each, order, -1), axis=-1))

    start = before[cash][:, None]
    levels = [start - so_far(traded), start - so_far(traded + costs)]
    ends = np.cumsum(np.take_along_axis(traded != 0, order, -1), -1) >= (traded != 0).sum(-1, keepdims=True)
    floor = problem.lower[cash]
    room = np.where(lots & (floor == 0), -rounding, tolerance - rounding)
    kept = np.asarray(((floor[:, None] - levels[1] <= room[:, None]) | ends).all(-1))
    for row in rows:
        if isinstance(row, Envelope):
            return np.zeros(len(traded), dtype=bool)
        up, down, buy, sell = _slopes(row, before.shape)

        def value(weights: Array, up: Array = up, down: Array = down) -> Array:
            return np.where(weights > 0, up, down) * weights

        own = value(before)
        changes = value(before + traded) - own + np.where(traded > 0, buy, -sell) * traded
        own[cash], changes[cash] = 0.0, 0.0
        at_cash = [np.where(x > 0, up[cash][:, None], down[cash][:, None]) * x for x in (*levels, start)]
        fixed = own.sum(-1, keepdims=True) - np.reshape(np.broadcast_to(row.upper, len(traded)), (-1, 1))
        excess = fixed + so_far(changes) + np.maximum(*at_cash[:2])
        steepest = 1.0 + np.sqrt(np.square(np.abs(up) + np.abs(down) + np.abs(buy) + np.abs(sell)).sum(-1))
        most = (tolerance - rounding * steepest)[:, None]
        kept &= ((excess <= most) | ends).all(-1) & ((fixed + at_cash[2])[:, 0] <= most[:, 0])
    return kept


def _slopes(row: Row, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The row's slopes where a weight is positive, and negative, and those of buys and sells: (B, n) each."""
    none = np.zeros(shape)
    weight, long, short, buy, sell = (
        none if (c := getattr(row, name)) is None else np.broadcast_to(c, shape) for name in row.NAMES
    )
    return weight + long, weight - short, buy, sell
