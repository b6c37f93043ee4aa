"""The order in which orders are listed: one that is safe on the way, if there is one, for single plans and for stacks.

Where no rule but the floor of the cash can break on the way (one account, no fees for orders, no rule on collateral,
margin or leverage), sales first is safe, however far each is filled: the cash rises while sales bring more than they
cost, and then falls to where the plan ends. Elsewhere arrays find most answers for all portfolios at once
(`stacked`): that nothing is safe in any slices, else a safe sequence of whole orders, else one of equal slices.
What they leave open is searched by `sequence` for a single plan, which takes up to some hundred milliseconds; a batch
leaves it open.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from equipoise.constraints.pieces import Array, Envelope, Indices, Mask, Row
from equipoise.constraints.rules.exposure import Leverage
from equipoise.optimizer.portfolio.exact_sums import nearest
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.sequence.stacked import Ways

if TYPE_CHECKING:
    from equipoise.optimizer.verification.outcome import Outcome

#: What is known of the orders as they are listed: sent one after the other and whole, they are safe on the way; they
#: are if some are cut into slices (`Plan.sequence`); no safe sequence was found; arrays found none, and nothing else
#: was asked; there are no orders.
WHOLE, SLICES, NONE, OPEN, NO_ORDERS = "whole", "slices", "none found", "not searched", ""
LISTINGS = (WHOLE, SLICES, NONE, OPEN, NO_ORDERS)

#: One of `LISTINGS`, and the rows of the orders in a safe sequence (none: in no order of their own).
Listing: TypeAlias = tuple[str, tuple[int, ...]]


def state_rows(problem: Problem) -> tuple[list[Row], list[Envelope]]:
    """The rules on the state of the account, beyond the floors of its cashes; see `rules.watched`."""
    leverage = {rule.title for rule in problem.rules if isinstance(rule, Leverage)}
    rows = [row for title, row in problem.of_kind(Row) if row.on_the_way(title in leverage, ())]
    return rows, [envelope for _, envelope in problem.envelopes if envelope.of_holdings]


def key_of(ways: Ways, number: int) -> Indices:
    """A key (B, n) by which orders could be sent, the smaller first: sales (0), or what reduces a position and of that
    sales (1) or buys (2)."""
    before, traded = ways.before, ways.traded
    sells, reduces = traded < 0, (before * traded < 0) & (np.abs(traded) <= np.abs(before))
    if not number:
        return np.where(sells, 0, 1)
    return np.where(reduces, np.where(sells, number - 1, 2 - number), np.where(sells, 2, 3))


#: Which portfolios (B,) are certainly safe, and the rows (B, n) of their orders in that order.
Tried: TypeAlias = tuple[Mask, Indices]
Attempt: TypeAlias = "Callable[[Ways], Tried]"


def by_key(number: int) -> Attempt:
    """Whole orders in the order of this one of the keys."""

    def attempt(ways: Ways) -> Tried:
        order = ways.sorted_by(key_of(ways, number))
        return ways.in_rounds(order, 1), order

    return attempt


def in_slices(rounds: int) -> Attempt:
    """Round by round in equal slices, what reduces risk first."""

    def attempt(ways: Ways) -> Tried:
        order = ways.sorted_by(key_of(ways, 1))
        return np.zeros(len(order), dtype=bool) if ways.lots else ways.in_rounds(order, rounds), order

    return attempt


def no_way(ways: Ways) -> Tried:
    """Where it is certain that there is no sequence in any slices: sales first."""
    return ways.none(), ways.sorted_by(key_of(ways, 0))


#: What is tried in arrays, in this order, and what is known of the orders where it succeeds: the quick ones first.
WHOLE_ATTEMPTS: tuple[tuple[str, Attempt], ...] = (
    (WHOLE, by_key(0)),
    (WHOLE, by_key(1)),
    (WHOLE, by_key(2)),
    (WHOLE, partial(Ways.greedy, backwards=False)),
    (WHOLE, partial(Ways.greedy, backwards=True)),
    (NONE, no_way),
    (WHOLE, Ways.of_all),
)
ATTEMPTS = (*WHOLE_ATTEMPTS, *((SLICES, in_slices(rounds)) for rounds in (4, 16, 64)))


def listed(
    problem: Problem, money: Array, costs: Array, nav: Array, attempts: tuple[tuple[str, Attempt], ...] = ATTEMPTS
) -> tuple[Indices | None, Indices]:
    """The rank (B, n) of each order in a safe sequence, None if sales first is one for all of them; and which of
    `LISTINGS` holds for each portfolio, (B,).

    money, costs: of each trade (B, n), signed, in cash; nav: (B, 1).
    """
    (rows, envelopes), any_orders = state_rows(problem), (money != 0).any(axis=-1)
    codes = np.where(any_orders, LISTINGS.index(WHOLE), LISTINGS.index(NO_ORDERS))
    bent = problem.cost.quadratic.any() or problem.cost.impact.any()  # rates alone are below what a sale brings
    if not (rows or envelopes) and not (bent and np.any((money < 0) & (costs > np.abs(money)))):
        return None, codes
    ways, at = Ways(problem, rows, money / nav, costs / nav), np.arange(len(money))
    ranks, places = np.empty(money.shape, dtype=np.intp), np.arange(money.shape[-1])
    ranks[at[:, None], ways.sorted_by(key_of(ways, 0))] = places
    if envelopes:
        blocked = any_orders & ways.none(envelopes)
        codes[blocked] = LISTINGS.index(NONE)
        any_orders, attempts = any_orders & ~blocked, ()
    ways, at = ways.take(any_orders), at[any_orders]
    for word, attempt in attempts:
        if not len(at):
            break
        found, order = attempt(ways)
        codes[at[found]] = LISTINGS.index(word)
        ranks[at[found, None], order[found]] = places
        ways, at = ways.take(~found), at[~found]
    codes[at] = LISTINGS.index(OPEN)
    return ranks, codes


def in_arrays(plan: Outcome, attempts: tuple[tuple[str, Attempt], ...] = ATTEMPTS) -> Listing:
    """What arrays find of it with these attempts."""
    if not plan.status.ok or plan.problem is None or plan.verified is None or not any(plan.trades):
        return NO_ORDERS, ()
    problem, nav = plan.problem, np.array([[plan.problem.portfolio.nav]])
    if problem.accounts is not None or problem.fees is not None:
        return OPEN, ()
    price = problem.portfolio.exact_price
    money = np.array([[nearest(x, p) for x, p in zip(plan.trades, price, strict=True)]])
    costs = np.array([list(map(float, plan.verified.costs))])
    ranks, codes = listed(problem.as_stack(), money, costs, nav, attempts)
    found = LISTINGS[int(codes[0])]
    if ranks is None or found in (NONE, OPEN):
        return found, ()
    return found, tuple(sorted(np.flatnonzero(money[0]).tolist(), key=lambda i: int(ranks[0, i])))
