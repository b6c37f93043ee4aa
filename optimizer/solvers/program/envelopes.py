"""An envelope in the cvxpy program: its exact convex form, and the one row that the prices make of it.

The rule holds with the cash before costs and with what is left after them, t: two epigraphs of the same function,
f(w) ≤ upper and f(w − t·e_cash) ≤ upper. A plane p ≤ f whose slope at the cash is s asks of every w that is allowed

    p(w) + max(0, −s)·φ(z) ≤ upper

so that each is a row like others (see `problem`); the planes that the solver's prices choose close the gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from equipoise.constraints.pieces import Envelope, Figure, Modelled, Row

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(eq=False)
class Split:
    """w⁺, w⁻, z⁺ and z⁻ of two expressions, as variables that may overlap: by convexity that only raises a rule."""

    weights: cp.Expression
    trades: cp.Expression
    constraints: list[cp.Constraint] = field(default_factory=list)
    parts: dict[str, cp.Expression] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts["weight"] = self.weights
        self._divide(self.weights, "long", "short")
        self._divide(self.trades, "buy", "sell")

    def _divide(self, of: cp.Expression, positive: str, negative: str) -> None:
        import cvxpy as cp

        self.parts[positive], self.parts[negative] = (cp.Variable(of.shape[0], nonneg=True) for _ in range(2))
        self.constraints.append(self.parts[positive] - self.parts[negative] == of)


class Epigraph:
    """One envelope at one state of the cash; `upper` is an expression."""

    def __init__(
        self,
        piece: Envelope,
        weights: cp.Expression,
        trades: cp.Expression,
        upper: cp.Expression,
        cashes: Sequence[int],
    ) -> None:
        split = Split(weights, trades)
        self._terms: list[Modelled] = [term.modelled(split.parts) for term in piece.terms]
        own = [c @ split.parts[name] for name, c in piece.row.given.items()]
        self._below = sum([*own, *(term.value for term in self._terms)]) <= upper
        self._link, self._piece, self._cashes = split.constraints[0], piece, list(cashes)
        self._auxiliary = [*split.constraints, *(c for term in self._terms for c in term.constraints)]

    def named(self, name: str) -> dict[str, cp.Constraint]:
        """Its constraints: those that define its variables, and under the name itself the limit."""
        defined = {f"{name}, part {k + 1}": constraint for k, constraint in enumerate(self._auxiliary)}
        return {**defined, name: self._below}

    def row(self) -> tuple[Row, float]:
        """After a solve: the row of the planes that the prices choose, and its price."""
        price = max(float(np.nan_to_num(np.sum(self._below.dual_value or 0.0))), 0.0)
        row = self._piece.with_planes(term.plane(price) for term in self._terms)
        return self._straight_at_cash(row, price), price

    def _straight_at_cash(self, row: Row, price: float) -> Row:
        """With one slope at each cash, the one that the prices choose: whether it is above zero is not known."""
        parts: dict[str, Figure] = {
            name: np.zeros(len(self._link.dual_value))
            if (c := getattr(row, name)) is None
            else np.array(c, dtype=float)
            for name in ("weight", "long", "short")
        }
        for cash in self._cashes:
            slope = -float(self._link.dual_value[cash]) / price if price > 0 else 0.0
            parts["weight"][cash] += np.clip(slope, -parts["short"][cash], parts["long"][cash])
            parts["long"][cash] = parts["short"][cash] = 0.0
        return replace(row, **parts)
