"""What a plan's trades lead to, in fractions of the table's own decimals, and by how much each rule is kept there.

Written from docs/definitions.md, docs/rules-collateral.md and the rules' docstrings; shares nothing with the library.
Money is in cash, `x` of a row its signed value: above 0 held, below 0 owed or short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

#: What a plan of any quantity may break a rule by, and one in whole lots, in fractions of NAV.
ANY_SIZE, WHOLE = Fraction(1, 10**9), Fraction(1, 10**12)
#: Rounding in figures that have no exact value (roots), or that are computed in floating point by definition.
ROUNDED = Fraction(1, 10**13)


def exact(x: Any) -> Fraction:
    """The decimal number that a person sees."""
    return Fraction(repr(float(x)))


def root(x: Fraction) -> Fraction:
    """√x, to 1e-40 of itself."""
    if not x:
        return x
    shift = 10 ** (2 * max(0, 40 - (len(str(x.numerator)) - len(str(x.denominator))) // 2))
    return Fraction(math.isqrt(x.numerator * shift // x.denominator), math.isqrt(shift))


@dataclass(frozen=True, eq=False)
class Costs:
    """Rates by column of the table; None: no such cost. Money for fees."""

    fee: str | None = None
    sale: str | None = None
    square: str | None = None
    volume: str | None = None
    volatility: str | None = None
    ticket: str | None = None
    minimum: str | None = None
    commission: str | None = None


class Books:
    """One portfolio after its trades: `after` the costs and `early`, before them; money by asset."""

    def __init__(self, table: pd.DataFrame, cash: str, trades: dict[str, Fraction], costs: Costs) -> None:
        self.table, self.cash = table, cash
        self._columns: dict[str, dict[str, Fraction]] = {}
        self.assets = [str(x) for x in table.index]
        self.price = self.column("price")
        quantity = self.column("quantity")
        self.before = {a: quantity[a] * self.price[a] for a in self.assets}
        self.nav = sum(self.before.values(), Fraction(0))
        self.target = self.column("target")
        self.units = {a: trades.get(a, Fraction(0)) for a in self.assets if a != cash}
        self.traded = {a: units * self.price[a] for a, units in self.units.items()}
        self.left = {a: quantity[a] + units for a, units in self.units.items()}
        self.paid = sum((self._cost(costs, a, x) for a, x in self.traded.items() if x), Fraction(0))
        self.early = {a: self.left[a] * self.price[a] for a in self.units}
        self.early[cash] = self.before[cash] - sum(self.traded.values(), Fraction(0))
        self.after = {**self.early, cash: self.early[cash] - self.paid}

    def column(self, name: str) -> dict[str, Fraction]:
        """A column's decimals; blank: 0."""
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def _read(self, name: str) -> dict[str, Fraction]:
        return {a: Fraction(0) if pd.isna(x) else exact(x) for a, x in zip(self.assets, self.table[name], strict=True)}

    def cell(self, name: str, asset: str) -> Fraction:
        return self.column(name)[asset]

    def _cost(self, costs: Costs, a: str, x: Fraction) -> Fraction:
        size, paid = abs(x), Fraction(0)
        rate = costs.fee if x > 0 or costs.sale is None else costs.sale
        if rate:
            paid += self.cell(rate, a) * size
        if costs.square and costs.volume:
            paid += self.cell(costs.square, a) * size**2 / self.cell(costs.volume, a)
        if costs.volatility and costs.volume:
            paid += self.cell(costs.volatility, a) * size * root(size / self.cell(costs.volume, a))
        if costs.ticket:
            paid += self.cell(costs.ticket, a)
        if costs.minimum and costs.commission:
            paid += max(self.cell(costs.minimum, a), self.cell(costs.commission, a) * size)
        return paid


#: By how much a rule is kept: (what, slack in cash, whether its limit has no tolerance, more tolerance of NAV).
Kept: TypeAlias = tuple[str, Fraction, bool]
Judge: TypeAlias = Callable[[Books], Iterator[Kept]]
#: What a row's value adds to a ratio's excess; the rule is Σ of these ≤ 0.
Excess: TypeAlias = Callable[[Books, str, Fraction], Fraction]


def long(x: Fraction) -> Fraction:
    return max(x, Fraction(0))


def short(x: Fraction) -> Fraction:
    return max(-x, Fraction(0))


def total(
    books: Books, excess: Excess, held: dict[str, Fraction], factor: Callable[[str], Fraction] | None = None
) -> Fraction:
    """Σ over the rows, each value times its factor."""
    return sum((excess(books, a, x * (factor(a) if factor else 1)) for a, x in held.items()), Fraction(0))


def ratio(excess: Excess, upper: Callable[[Books], Fraction] | None = None) -> Judge:
    """Σ excess ≤ upper, before the costs and after them."""

    def judge(books: Books) -> Iterator[Kept]:
        most = upper(books) if upper else Fraction(0)
        for when, held in (("after costs", books.after), ("before costs", books.early)):
            yield when, most - total(books, excess, held), False

    return judge


def shocked(excess: Excess, fall: str, rise: str) -> Judge:
    """Each row at the worse of its two prices (what a price does to one row is convex)."""

    def judge(books: Books) -> Iterator[Kept]:
        low, high = books.column(fall), books.column(rise)
        for held in (books.after, books.early):
            worst = Fraction(0)
            for a, x in held.items():
                still = a == books.cash
                ends = (Fraction(1), Fraction(1)) if still else (1 - low[a], 1 + high[a])
                worst += max(excess(books, a, x * end) for end in ends)
            yield "after the shock", -worst, False

    return judge


def scenarios(excess: Excess, moves: Sequence[dict[str, float]], share: Fraction | None = None) -> Judge:
    """After each scenario by itself; with `share`, the mean of the worst part of them."""

    def judge(books: Books) -> Iterator[Kept]:
        for held in (books.after, books.early):
            found = [total(books, excess, held, lambda a, move=move: 1 + exact(move.get(a, 0.0))) for move in moves]
            if share is None:
                yield "after the scenarios", -max(found), False
                continue
            number, mean = share * len(found), Fraction(0)
            for rank, x in enumerate(sorted(found, reverse=True)):
                mean += x * min(max(number - rank, Fraction(0)), Fraction(1)) / number
            yield "in the tail", -mean, False

    return judge


def moved(excess: Excess, covariance: pd.DataFrame, k: float) -> Judge:
    """Σ excess + k·√((s∘x)ᵀΣ(s∘x)) ≤ 0; for a row on one side s·x is its excess."""

    def judge(books: Books) -> Iterator[Kept]:
        for held in (books.after, books.early):
            each = {a: excess(books, a, x) for a, x in held.items()}
            risky = np.array([float(each[a] / books.nav) for a in covariance.index])
            spread = k * math.sqrt(max(0.0, float(risky @ covariance.to_numpy() @ risky)))
            slack = -sum(each.values(), Fraction(0)) - exact(spread) * books.nav
            yield from stays(books, list(covariance.index))
            yield "after a move", slack + ROUNDED * 100 * books.nav, False

    return judge


def stays(books: Books, assets: Sequence[str]) -> Iterator[Kept]:
    """A position stays where it is held, or if it is not held, where it is wanted."""
    for a in assets:
        owed = books.before[a] < 0 or (not books.before[a] and books.target[a] < 0)
        yield f"{a} stays on its side", -books.after[a] if owed else books.after[a], True


def counted(each: list[Fraction], share: Fraction) -> Fraction:
    """The largest Σu with u ≤ e and u ≤ share·Σu: by trying how many are cut."""
    ranked = sorted(each, reverse=True)
    cut = [m for m in range(len(ranked) + 1) if m * share < 1]
    return min(sum(ranked[m:], Fraction(0)) / (1 - m * share) for m in cut)


def misses(books: Books, judges: dict[str, Judge], *, whole: bool) -> list[str]:
    """What is broken: rules beyond their tolerance, and books that do not add up."""
    tolerance = (WHOLE if whole else ANY_SIZE) + ROUNDED
    found = []
    for name, judge in judges.items():
        for what, slack, sharp in judge(books):
            if slack < (0 if sharp else -tolerance * books.nav):
                found.append(f"{name} ({what}) by {float(-slack / books.nav):.3g} of NAV")
    if sum(books.after.values(), Fraction(0)) + books.paid != books.nav:
        found.append("the books do not add up")
    return found
