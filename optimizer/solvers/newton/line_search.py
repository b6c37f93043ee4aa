"""The length of a step on the dual: where its derivative along the step is about 0, by bracketing.

The derivative falls along the step, with jumps at no kink: each asset's coefficients are linear in the length, and
its minimiser is in closed form, so that it costs one pass over the assets and no product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton.dual import Dual, Point

ACCEPTED = 0.1  #: A step may leave this part of the derivative.
SEARCHES, WIDENINGS = 60, 40


@dataclass(frozen=True, eq=False)
class Line:
    """The dual's derivative along a step: each asset's coefficients are linear in the step's length."""

    dual: Dual
    prices: Array
    start: Separable
    added: Separable  # to the start, for each length
    change: Separable  # the same as a function
    constant: Array
    per_length: Array

    @classmethod
    def along(cls, dual: Dual, here: Point, step: Array) -> Line:
        k, change = dual.factors, dual.change(step)
        factors = dual.whole(here.prices)[:, :k]
        constant = -(step * dual.limits).sum(axis=1) - (step[:, :k] * factors).sum(axis=1) / dual.aversion
        per_length = -np.square(step[:, :k]).sum(axis=1) / dual.aversion
        return cls(dual, here.prices, here.assets, dual.seen(change), change, constant, per_length)

    def slope(self, length: Array) -> Array:
        """The derivative at these lengths (B,)."""
        _, _, weights, _ = self.dual.settled(self.start.plus(self.added, length[:, None]), self.prices)
        return np.asarray(self.change.value(weights).sum(axis=1) + self.constant + length * self.per_length)


class Sloped(Protocol):
    """What has a derivative along a step."""

    def slope(self, length: Array) -> Array: ...


def searched(line: Sloped, here: Array, there: Array, furthest: Array) -> Array:
    """The length at which the derivative is about 0, from its values at 0 and at 1; at most `furthest`."""
    wanted = ACCEPTED * np.abs(here)
    low, high = np.zeros_like(here), np.ones_like(here)
    at_low, at_high = here.copy(), there.copy()
    for _ in range(WIDENINGS):
        rising = (at_high > wanted) & (high < furthest)
        if not rising.any():
            break
        wider = np.where(rising, np.minimum(4.0 * high, furthest), high)
        slope = line.slope(wider)
        low, at_low = np.where(rising, high, low), np.where(rising, at_high, at_low)
        high, at_high = wider, np.where(rising, slope, at_high)
    length, open_ = high.copy(), at_high < -wanted
    for turn in range(SEARCHES):
        if not open_.any():
            break
        # The secant, kept off the ends; every fourth time the middle.
        part = np.clip(at_low / (at_low - at_high), 0.02, 0.98) if turn % 4 < 3 else 0.5
        length = np.where(open_, low + (high - low) * part, length)
        slope = line.slope(length)
        open_ = open_ & (np.abs(slope) > wanted)
        rising = slope > 0
        low, high = np.where(rising, length, low), np.where(rising, high, length)
        # An end that stays counts for half: the Illinois rule.
        at_low, at_high = np.where(rising, slope, 0.5 * at_low), np.where(rising, 0.5 * at_high, slope)
    return length
