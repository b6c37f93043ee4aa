"""The rows of a problem, stacked into matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from equipoise.constraints.pieces import Array, Parts, Row, part


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a problem, stacked: coefficients (m, n), `upper` (m,), and `by_cash` (m, accounts).

    For a stack `upper` is (B, m), `by_cash` (B, m, accounts), and coefficients (B, m, n) where portfolios differ.
    """

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    weight: Array
    long: Array
    short: Array
    buy: Array
    sell: Array
    upper: Array
    #: By what a unit of costs that each cash pays raises a row.
    by_cash: Array

    def as_stack(self) -> Rows:
        """Those of one portfolio as those of a stack of one."""
        return replace(self, upper=self.upper[None], by_cash=self.by_cash[None])

    @cached_property
    def cost(self) -> Array:
        """By what a unit of costs raises each row (m,), whichever cash pays it."""
        return np.asarray(self.by_cash.max(axis=-1))

    def of(self, weights: Array, trades: Array, costs: Array) -> Array:
        """The left sides, counting what each cash pays: costs (accounts,), or (B, accounts)."""
        sides = sum(
            times(coefficients, part(name, weights, trades))
            for name in Parts.NAMES
            if (coefficients := getattr(self, name)).any()
        )
        return np.asarray(sides + times(self.by_cash, costs))


def times(matrix: Array, x: Array) -> Array:
    """matrix · x along the assets, (…, m, n) · (…, n), one portfolio at a time: its bits do not depend on others."""
    return np.asarray(np.matmul(matrix, x[..., None])[..., 0])
