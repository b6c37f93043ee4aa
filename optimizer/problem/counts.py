"""The rules that are not convex beside lots: how many orders and names there may be, and how small a position.

A name is an asset with a position that is not zero. All of this is judged on exact quantities: a position of exactly
its minimum is allowed, and one of a single unit counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from equipoise.constraints.numbers import exact
from equipoise.constraints.pieces import Array, Count, Mask, Semicontinuous, Step
from equipoise.optimizer.problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Counts:
    """All limits on counts, as rows over two indicators an asset: orders·[z ≠ 0] + names·[w ≠ 0] ≤ upper.

    orders, names: (c, n), 0 or 1; upper: (c,).
    """

    titles: tuple[str, ...]
    orders: Array
    names: Array
    upper: Array

    @classmethod
    def of(cls, problem: Problem) -> Counts:
        given = problem.of_kind(Count)
        shape = (len(given), len(problem.assets))
        orders, names = np.zeros(shape), np.zeros(shape)
        for j, (_, piece) in enumerate(given):
            (orders if piece.of == "orders" else names)[j] = piece.counted
        return cls(tuple(t for t, _ in given), orders, names, np.array([float(p.limit) for _, p in given]))

    def each(self, ordered: Mask, named: Mask) -> Array:
        """What points (…, n) with and without orders and positions add to each row: (c, …, n)."""
        middle = (slice(None), *(None,) * (ordered.ndim - 1))
        return self.orders[middle] * ordered + self.names[middle] * named


def order_sizes(step: Step, i: int, price: Fraction) -> tuple[Fraction, Fraction]:
    """An asset's lot (0: any size), and the least of its orders in units: by the decimals that the user wrote."""
    return exact(step.lot[i]), max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / price)


def least_positions(problem: Problem) -> tuple[Fraction, ...]:
    """The least size of each position that is not zero, in cash; 0 where there is none."""
    account, least = problem.portfolio, [Fraction(0)] * len(problem.assets)
    if given := problem.of_kind(Semicontinuous):
        nav = sum((q * p for q, p in zip(account.exact_quantity, account.exact_price, strict=True)), Fraction(0))
        for _, piece in given:
            for i, size in piece.least(nav).items():
                least[i] = max(least[i], size)
    return tuple(least)


def held_keeps(problem: Problem) -> bool:
    """Whether what is held keeps the limits on names and the least positions: whether trading nothing is allowed."""
    if not problem.discrete:
        return True
    account, counts = problem.portfolio, Counts.of(problem)
    held = np.array([q != 0 for q in account.exact_quantity], dtype=bool)
    large = all(
        q == 0 or abs(q) * p >= least
        for q, p, least in zip(account.exact_quantity, account.exact_price, least_positions(problem), strict=True)
    )
    return large and bool(np.all(counts.names @ held <= counts.upper))
