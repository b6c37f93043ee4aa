"""The open door: convex sets that are no data, which only the cvxpy program can solve."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from equipoise.constraints.numbers import FEASIBILITY_TOLERANCE
from equipoise.constraints.pieces.parts import Array, Constraint, Expression, Figure
from equipoise.constraints.pieces.piece import Piece, Rounding, Wider
from equipoise.constraints.pieces.states import Check, Settlement


@dataclass(frozen=True, eq=False, kw_only=True)
class Shape(Piece):
    """A convex set of weights and trades: a new kind of piece says how cvxpy writes it, and how far outside a point is.

    It is solved by the cvxpy program, which asks `constraints`, and kept by plans in whole lots. Its check is that of
    `excess` in floats, with the cash before costs, unless it defines an exact one (`checks`).
    """

    opaque: ClassVar[bool] = True

    @abstractmethod
    def constraints(self, weights: Expression, trades: Expression) -> Sequence[Constraint]:
        """The set as cvxpy constraints on two cvxpy expressions."""

    @abstractmethod
    def excess(self, weights: Array, trades: Array) -> Figure: ...

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        w, z = settled.weights(settled.value), settled.weights(settled.traded)
        for at in settled.cashes:
            w[at] += (settled.earlier[at] - settled.value[at]) / settled.nav
            z[at] = w[at] - settled.before[at]
        broken = self.excess(w, z)
        yield Check(title, self.label, None, broken, 0.0, False, -broken, broken <= FEASIBILITY_TOLERANCE)

    def tightened(self, rounding: Rounding) -> Shape:
        """With its inequalities kept by `custom` more; what it breaks is unchanged."""
        if not rounding.custom:
            return self

        def build(weights: Expression, trades: Expression) -> Sequence[Constraint]:
            return [
                c.args[0] + rounding.custom <= c.args[1] if type(c).__name__ == "Inequality" else c
                for c in self.constraints(weights, trades)
            ]

        return Opaque(label=self.label, build=build, violation=self.excess)

    def joined(self, by: Wider) -> Shape:
        moves = by.moves
        n = len(moves)

        def build(weights: Expression, trades: Expression) -> Sequence[Constraint]:
            return self.constraints(weights[:n] + moves @ weights[n:], trades[:n])

        def violation(weights: Array, trades: Array) -> float:
            # One problem, or a stack of one.
            x, z = np.reshape(weights, -1), np.reshape(trades, -1)
            return float(self.excess(x[:n] + moves @ x[n:], z[:n]))

        return Opaque(label=self.label, build=build, violation=violation)


@dataclass(frozen=True, eq=False)
class Opaque(Shape):
    """The set that `build(weights, trades)` says by a list of cvxpy constraints; `violation` measures it at numbers."""

    label: str
    build: Callable[[Expression, Expression], Sequence[Constraint]]
    violation: Callable[[Array, Array], float]

    def constraints(self, weights: Expression, trades: Expression) -> Sequence[Constraint]:
        return self.build(weights, trades)

    def excess(self, weights: Array, trades: Array) -> float:
        return self.violation(weights, trades)
