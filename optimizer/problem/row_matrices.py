"""The rows of a problem, stacked into matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from equipoise.constraints.pieces import Array, Parts, Row, part

#: A float for one portfolio, an array (B,) for a stack.
Figure: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a problem, stacked: coefficients (m, n), `upper` and `cost` (m,).

    For a stack `upper` and `cost` are (B, m), and coefficients (B, m, n) where portfolios differ in them.
    """

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    weight: Array
    long: Array
    short: Array
    buy: Array
    sell: Array
    cost: Array
    upper: Array
    #: With several accounts: `cost` for what the cash of each pays, (m, accounts); `cost` is the largest of them.
    by_cash: Array | None = None

    def of(self, weights: Array, trades: Array, cost: Figure) -> Array:
        """The left sides, costs counted against the cash; with several accounts `cost` is (accounts,)."""
        sides = sum(
            times(coefficients, part(name, weights, trades))
            for name in Parts.NAMES
            if (coefficients := getattr(self, name)).any()
        )
        if self.by_cash is not None:
            return np.asarray(sides + times(self.by_cash, np.atleast_1d(cost) * np.ones(self.by_cash.shape[-1])))
        return np.asarray(sides + self.cost * np.asarray(cost)[..., None])


def times(matrix: Array, x: Array) -> Array:
    """matrix · x along the assets, (…, m, n) · (…, n), one portfolio at a time: its bits do not depend on others."""
    return np.asarray(np.matmul(matrix, x[..., None])[..., 0])
