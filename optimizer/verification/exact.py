"""The check of the orders themselves, in exact arithmetic.

From the table's own decimal numbers and the exact traded quantities, with integers and fractions only: what
is held after the trades, what they cost, what cash is left, and for every rule by how much it is kept. It uses
no solver and no cvxpy, and nothing of the search that made the orders. (Two things have no exact value: the
3/2 power of impact costs, which is rounded up, and the norm of a cone, which is squared; a custom rule is
asked itself.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from equipoise.constraints.pieces import (
    Array,
    Bound,
    Cone,
    Count,
    Envelope,
    Opaque,
    Parts,
    Row,
    Semicontinuous,
    Step,
    part,
)
from equipoise.optimizer.portfolio.exact_sums import denominator, products, weighted, whole
from equipoise.optimizer.portfolio.portfolio import exact
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE


@dataclass(frozen=True)
class Check:
    """One rule at the final orders: value and limit in the rule's own unit, slack in fractions of NAV.

    `slack` < 0 by more than the tolerance is a broken rule. `asset` is None for rules on several assets.
    """

    rule: str
    detail: str
    asset: str | None
    value: float
    limit: float
    at_least: bool
    slack: float
    passed: bool


@dataclass(frozen=True, eq=False)
class Verified:
    """What the orders lead to, exactly: money and quantities after them, and all checks."""

    quantities: tuple[Fraction, ...]
    cost: Fraction
    costs: tuple[Fraction, ...]
    cash: Fraction
    nav: Fraction
    weights: Array
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(
    problem: Problem, trades: Sequence[Fraction], *, whole_lots: bool, paid: Sequence[Fraction] | None = None
) -> Verified:
    """Check these traded quantities (signed units, one an asset, 0 for the cash) against the raw table.

    Bounds of 0 are exact. Rules stated in floating point (a band around 0.1) are kept if they are not broken by
    more than 1e-12 of NAV; where quantities are not whole lots but a continuous solver's answer, by 1e-9.
    `paid`: what each trade costs, in cash, where it is not sent as one order.
    """
    accounts = problem.accounts
    # The rules of the table's own rows, for what is held in each account in the end.
    asked, rates = problem.asked, problem
    account = asked.portfolio
    tolerance = Fraction(ROUNDING_TOLERANCE if whole_lots else FEASIBILITY_TOLERANCE)
    price = account.exact_price
    costs = paid_for(rates, trades) if paid is None else list(paid)
    unit = denominator(costs)
    cost = Fraction(sum(whole(costs, unit)), unit)
    traded, unit = products(trades, rates.portfolio.exact_price)
    if accounts is None:
        after = [q + x if x else q for q, x in zip(account.exact_quantity, trades, strict=True)]
        after[problem.cash] -= Fraction(sum(traded) - traded[problem.cash], unit) + cost
        cashes, each = [problem.cash], [cost]
    else:
        after = accounts.settled(trades, costs)
        cashes, each = list(accounts.cashes), accounts.costs_of(costs)
    every, problem = trades, asked
    trades = trades[: len(price)]
    # All amounts of money are whole numbers of this part of a unit of cash.
    value, own = products(after, price)
    held, before = products(account.exact_quantity, price)
    part = math.lcm(unit, own, before, denominator(each))
    value, traded, held = (
        [x * (part // of) for x in amounts]
        for amounts, of in ((value, own), (traded[: len(price)], unit), (held, before))
    )
    nav = sum(held)
    # Rules hold for the cash after costs and before them: a floor for the one, a cap for the other.
    earlier, charged = list(value), whole(each, part)
    for at, paid_here in zip(cashes, charged, strict=True):
        earlier[at] += paid_here
    money = Money(part, nav, tolerance)

    checks: list[Check] = []
    for title, piece in problem.pieces:
        match piece:
            case Bound() if piece.of_trade and accounts is not None:
                moved = [v + x for v, x in zip(held, traded, strict=True)]
                checks += _bounds(title, piece, problem, moved, moved, money, whole_lots, cashes)
            case Bound():
                checks += _bounds(title, piece, problem, value, earlier, money, whole_lots, cashes)
            case Row():
                on_cash = any(c is not None and c[cashes].any() for c in (piece.weight, piece.long, piece.short))
                states = [_row(title, piece, w, traded, money) for w in ((value, earlier) if on_cash else (value,))]
                checks.append(min(states, key=lambda check: check.slack))
            case Envelope():
                after_or_before = [_envelope(title, piece, w, traded, money) for w in (value, earlier)]
                checks.append(min(after_or_before, key=lambda check: check.slack))
            case Cone():
                checks.append(_cone(title, piece, value, money))
            case Step():
                checks += _steps(title, piece, problem, trades, after)
            case Semicontinuous():
                checks += _least(title, piece, problem, value, money)
            case Count():
                counted = [x for i, x in enumerate(trades if piece.of == "orders" else after) if piece.counted[i]]
                count = sum(x != 0 for x in counted)
                kept = count <= piece.limit
                slack = min(0.0, float(piece.limit - count))
                checks.append(Check(title, piece.label, None, float(count), float(piece.limit), False, slack, kept))
            case Opaque():
                w, z = money.weights(value), money.weights(traded)
                for at, paid_here in zip(cashes, charged, strict=True):
                    w[at] += paid_here / nav  # custom rules see the cash before costs
                    z[at] = w[at] - account.before[at]
                broken = piece.violation(w, z)
                kept = broken <= FEASIBILITY_TOLERANCE
                checks.append(Check(title, piece.label, None, broken, 0.0, False, -broken, kept))
    conserved = sum(value) + sum(charged) == nav
    checks.append(Check("Cash", "trades, costs and cash add up", None, 0.0, 0.0, False, 0.0, conserved))
    if accounts is not None:
        checks += [
            money.found(slack, exact_limit=sharp, **what) for slack, sharp, what in accounts.checks(every, costs, after)
        ]
    return Verified(
        tuple(after),
        cost,
        tuple(costs),
        Fraction(value[problem.cash], part),
        Fraction(nav, part),
        money.weights(value),
        tuple(checks),
    )


def paid_for(problem: Problem, trades: Sequence[Fraction]) -> list[Fraction]:
    """What each of these trades (and transfers) costs, in cash."""
    account = problem.portfolio
    held, unit = products(account.exact_quantity, account.exact_price)
    nav, nothing = Fraction(sum(held), unit), Fraction(0)  # nothing is held of a transfer
    return [
        _cost(problem, i, x * p, nav) if x else nothing
        for i, (x, p) in enumerate(zip(trades, account.exact_price, strict=True))
    ]


def _cost(problem: Problem, i: int, traded: Fraction, nav: Fraction) -> Fraction:
    """What this trade costs, in cash, as one order."""
    cost, fees = convex_cost(problem, i, traded, nav), problem.fees
    if fees is not None and traded:
        lacking = exact(float(fees.minimum[i])) - exact(float(fees.rate[i])) * abs(traded)
        cost += exact(float(fees.fixed[i])) + max(lacking, Fraction(0))
    return cost


def convex_cost(problem: Problem, i: int, traded: Fraction, nav: Fraction) -> Fraction:
    """The same without fees for each order: exact rates times exact money; bent costs rounded up."""
    terms, size = problem.cost, abs(traded)
    if not size:
        return Fraction(0)
    cost = exact(float(terms.buy[i] if traded > 0 else terms.sell[i])) * size
    if terms.quadratic[i]:
        cost += Fraction(float(terms.quadratic[i])) * size * size / nav
    if terms.impact[i]:
        z = size / nav
        # √z from above: an integer square root at 2⁻¹²⁸.
        root = Fraction(math.isqrt(math.ceil(z * 2**256)) + 1, 2**128)
        cost += Fraction(float(terms.impact[i])) * size * root
    return cost


@dataclass(frozen=True)
class Money:
    """Amounts of money as whole numbers: `unit` of them are one of cash, and `nav` is the NAV before trading."""

    unit: int
    nav: int
    tolerance: Fraction

    def weights(self, amounts: Sequence[int]) -> Array:
        """The floats nearest to amounts / NAV."""
        return np.array([x / self.nav for x in amounts])

    def found(self, slack: Fraction, **what: Any) -> Check:
        """A check of a slack in cash, judged by the tolerance."""
        slack *= self.unit
        return self.judged(slack.numerator, slack.denominator, **what)

    def judged(self, slack: int, per: int, *, exact_limit: bool = False, **what: Any) -> Check:
        """A check of the slack `slack / per`, in these units."""
        # A limit of 0 needs no tolerance: nobody can sell, or with whole lots spend, more than there is.
        most, of = self.tolerance.as_integer_ratio()
        passed = slack >= 0 or (not exact_limit and -slack * of <= most * self.nav * per)
        return Check(slack=slack / (per * self.nav), passed=passed, **what)


def _bounds(
    title: str,
    bound: Bound,
    problem: Problem,
    value: Sequence[int],
    earlier: Sequence[int],
    money: Money,
    whole_lots: bool,
    cashes: Sequence[int],
) -> Iterator[Check]:
    each = zip(problem.assets, bound.lower.tolist(), bound.upper.tolist(), strict=True)
    for i, (asset, low, high) in enumerate(each):
        sides = []  # slack, and per how much of it
        if math.isfinite(low):
            least, of = low.as_integer_ratio()
            sides.append((value[i] * of - least * money.nav, of, low, True))
        if math.isfinite(high):
            most, of = high.as_integer_ratio()
            sides.append((most * money.nav - earlier[i] * of, of, high, False))
        if not sides:
            continue
        slack, per, limit, at_least = sides[-1]
        if sides[0][0] * per <= slack * sides[0][1]:
            slack, per, limit, at_least = sides[0]
        yield money.judged(
            slack,
            per,
            exact_limit=limit == 0 and (i not in cashes or whole_lots),
            rule=title,
            detail=bound.label,
            asset=asset,
            value=value[i] / money.nav,
            limit=limit + float(bound.relaxed[i]) if at_least and bound.relaxed is not None else limit,
            at_least=at_least,
        )


def _of(parts: Parts, value: Sequence[int], traded: Sequence[int]) -> Fraction:
    total = Fraction(0)
    for name in Parts.NAMES:
        coefficients = getattr(parts, name)
        if coefficients is not None:
            at = np.flatnonzero(coefficients).tolist()
            total += weighted(coefficients[at], [part(name, value[i], traded[i]) for i in at])
    return total


def _envelope(title: str, piece: Envelope, value: Sequence[int], traded: Sequence[int], money: Money) -> Check:
    w, z = (np.array([Fraction(x, money.nav) for x in amounts], dtype=object) for amounts in (value, traded))
    return _row(title, piece.row, value, traded, money, sum(term.of(w, z) for term in piece.terms) * money.nav)


def _row(
    title: str,
    row: Row,
    value: Sequence[int],
    traded: Sequence[int],
    money: Money,
    more: Fraction = Fraction(0),
) -> Check:
    excess = _of(row, value, traded) - Fraction(row.upper) * money.nav + more
    per = Fraction(money.nav) if row.per is None else _of(row.per, value, traded)
    return money.judged(
        -excess.numerator,
        excess.denominator,
        rule=title,
        detail=row.label,
        asset=None,
        value=row.shown(excess / money.unit, per / money.unit),
        limit=row.stated,
        at_least=row.at_least,
    )


def _cone(title: str, cone: Cone, value: Sequence[int], money: Money) -> Check:
    length = cone.of(money.weights(value))
    # The norm in floating point, raised by more than its rounding error.
    slack, per = float(cone.upper - length * (1 + 1e-13)).as_integer_ratio()
    return money.judged(
        slack * money.nav,
        per,
        rule=title,
        detail=cone.label,
        asset=None,
        value=length,
        limit=cone.upper,
        at_least=False,
    )


def _steps(
    title: str, step: Step, problem: Problem, trades: Sequence[Fraction], after: Sequence[Fraction]
) -> Iterator[Check]:
    price = problem.portfolio.exact_price
    for i, asset in enumerate(problem.assets):
        size = abs(trades[i])
        if i == problem.cash or not size:
            continue
        for most, amount, unit, per in (
            (step.max_quantity, size, "largest quantity", price[i]),
            (step.max_notional, size * price[i], "largest notional", Fraction(1)),
        ):
            if most is not None and np.isfinite(most[i]):
                slack = exact(float(most[i])) - amount
                in_nav = float(slack * per) / problem.portfolio.nav
                yield Check(title, unit, asset, float(amount), float(most[i]), False, in_nav, slack >= 0)
        if after[i] == 0:  # closing a position is exempt from lots and minimums
            continue
        if step.lot[i] > 0:
            lots = size / exact(step.lot[i])
            yield Check(title, "whole lots", asset, float(lots), round(float(lots)), False, 0.0, lots.denominator == 1)
        for least, amount, unit, per in (
            (step.min_quantity[i], size, "least quantity", price[i]),
            (step.min_notional[i], size * price[i], "least notional", Fraction(1)),
        ):
            if least > 0:
                slack = amount - exact(least)
                in_nav = float(slack * per) / problem.portfolio.nav
                yield Check(title, unit, asset, float(amount), float(least), True, in_nav, slack >= 0)


def _least(title: str, piece: Semicontinuous, problem: Problem, value: Sequence[int], money: Money) -> Iterator[Check]:
    nav = Fraction(money.nav, money.unit)
    for i in np.flatnonzero((piece.weight > 0) | (piece.notional > 0)).tolist():
        least = max(exact(float(piece.weight[i])) * nav, exact(float(piece.notional[i])))
        size = Fraction(abs(value[i]), money.unit)
        if i != problem.cash and size:
            slack, limit = float((size - least) / nav), float(least / nav)
            yield Check(
                title, piece.label, problem.assets[i], float(size / nav), limit, True, slack, bool(size >= least)
            )
