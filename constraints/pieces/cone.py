"""Limits on a norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from equipoise.constraints.pieces.parts import Array, Figure
from equipoise.constraints.pieces.piece import Piece, Rounding, Wider
from equipoise.constraints.pieces.states import Check, Settlement, StackState

#: By this part norms in floating point are raised: more than their rounding error.
_NORM = 1e-13


@dataclass(frozen=True, eq=False, kw_only=True)
class Cone(Piece):
    """‖(M (w − c), δ∘(w − c))‖₂ ≤ upper: M (k × n) and δ (n) around the centre c (n).

    For a stack, M is (k, n) or (B, k, n), and δ and c are (n,) or (B, n).
    """

    upper: float
    matrix: Array
    diagonal: Array
    centre: Array

    def of(self, weights: Array) -> Figure:
        """The left side: a float, or (B,) for the weights of a stack."""
        away = weights - self.centre
        exposure = np.matmul(self.matrix, away[..., None])[..., 0]
        length = np.hypot(np.linalg.norm(exposure, axis=-1), np.linalg.norm(self.diagonal * away, axis=-1))
        return length if length.ndim else float(length)

    def excess(self, weights: Array, trades: Array) -> Figure:
        return self.of(weights) - self.upper

    def over(self, weights: Array, trades: Array) -> float:
        return float(self.of(weights) * (1.0 + _NORM) - self.upper)

    def checks(self, title: str, settled: Settlement) -> Iterator[Check]:
        length = self.of(settled.weights(settled.value))
        slack, per = float(self.upper - length * (1 + _NORM)).as_integer_ratio()
        what = title, self.label, None, length, self.upper, False
        yield settled.judged(what, slack * settled.nav, per)

    def slack(self, state: StackState) -> tuple[Array, Figure]:
        """The coefficient covers the rounding errors of two norms, here and in `checks`."""
        length = self.of(state.after)
        steepest = np.sqrt(np.square(self.matrix).sum(axis=-2) + np.square(self.diagonal)).max(axis=-1)
        size = 1.0 + np.abs(self.centre).sum(axis=-1)
        terms = 2.0 * (1.0 + self.matrix.shape[-2] / self.matrix.shape[-1])
        return self.upper - length * (1.0 + _NORM), np.asarray(terms * (steepest * size + length + self.upper))

    def on_the_way(self, named: bool, cashes: Sequence[int]) -> bool:
        return named

    def restated(self, limit: float, at: Sequence[int] = (), side: str = "lower") -> Cone:
        return replace(self, upper=limit)

    def unlimited(self, none: float) -> Self:
        return replace(self, upper=none)

    def tightened(self, rounding: Rounding) -> Cone:
        # By how much a unit of each asset's trade, paid from the cash, can move the norm.
        relative = self.matrix - self.matrix[:, [rounding.cash]]
        each = np.sqrt(np.sum(relative**2, axis=0) + self.diagonal**2 + self.diagonal[rounding.cash] ** 2)
        return replace(self, upper=self.upper - float(each @ rounding.size))

    def joined(self, by: Wider) -> Cone:
        own = np.diag(self.diagonal)[by.touched & (self.diagonal != 0)]
        matrix = np.concatenate([self.matrix, own])
        return replace(
            self,
            matrix=np.concatenate([matrix, matrix @ by.moves], axis=1),
            diagonal=by.wide(np.where(by.touched, 0.0, self.diagonal)),
            centre=by.wide(self.centre),
        )
