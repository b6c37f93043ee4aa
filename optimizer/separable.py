"""The threshold rule: the exact minimum of one asset's part of the problem.

    f(w) = ½a(w − t)² + g·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ + q·z² + p·|z|^{3/2},   z = w − w₀

over l ≤ w ≤ u, for arrays of any shape. f is convex (long + short, buy + sell, a, q, p ≥ 0) with kinks at 0
and at w₀ only, so that one of three pieces holds the minimum, and there it is in closed form: with y = |z|,
(a + 2q)·y + 1.5p·√y = m has the root √y = 2m / (1.5p + √((1.5p)² + 4(a + 2q)m)).
All three solvers and every lower bound rest on this one function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.constraints.base import Array


@dataclass(frozen=True, eq=False)
class Separable:
    """The coefficients of f; arrays or numbers that broadcast."""

    curvature: Any
    centre: Any
    slope: Any
    long: Any
    short: Any
    buy: Any
    sell: Any
    quadratic: Any
    impact: Any
    before: Any
    lower: Any
    upper: Any

    def value(self, weights: Array) -> Array:
        """f, bounds not counted."""
        trade = weights - self.before
        size = np.abs(trade)
        return np.asarray(
            0.5 * self.curvature * (weights - self.centre) ** 2
            + self.slope * weights
            + np.where(weights > 0, self.long, -np.asarray(self.short)) * weights
            + np.where(trade > 0, self.buy, self.sell) * size
            + self.quadratic * size**2
            + self.impact * size * np.sqrt(size)
        )

    def derivative(self, at: Any, side: int) -> Array:
        """The one-sided derivative at `at`: from the right (side = 1) or from the left (−1)."""
        at = np.asarray(at, dtype=float)
        trade = at - self.before
        buying = trade > 0 if side < 0 else trade >= 0
        positive = at > 0 if side < 0 else at >= 0
        size = np.abs(trade)
        grows = 2 * self.quadratic * size + 1.5 * self.impact * np.sqrt(size)
        return np.asarray(
            self.curvature * (at - self.centre)
            + self.slope
            + np.where(positive, self.long, -np.asarray(self.short))
            + np.where(buying, self.buy + grows, -(self.sell + grows))
        )

    def minimiser(self) -> Array:
        """The w that minimises f within the bounds; ±inf where f falls for ever and there is no bound."""
        near, far = np.minimum(self.before, 0.0), np.maximum(self.before, 0.0)
        above = self.derivative(far, 1) < 0
        below = self.derivative(near, -1) > 0
        # On the middle piece a long position is being sold, or a short one bought back.
        held_long = np.asarray(self.before) > 0
        buying = above | (~below & ~held_long)
        positive = above | (~below & held_long)
        side = np.where(buying, 1.0, -1.0)
        rate = np.where(buying, self.buy, self.sell)
        kink = np.where(positive, self.long, -np.asarray(self.short))
        pull = np.maximum(-(side * (self.curvature * (self.before - self.centre) + self.slope + kink) + rate), 0.0)
        stiffness = self.curvature + 2.0 * np.asarray(self.quadratic)
        rooted = 1.5 * np.asarray(self.impact)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            size = np.where(
                rooted > 0,
                (2.0 * pull / (rooted + np.sqrt(rooted**2 + 4.0 * stiffness * pull))) ** 2,
                np.where(pull > 0, pull / stiffness, 0.0),
            )
        free = self.before + side * size
        free = np.where(above, np.maximum(free, far), np.where(below, np.minimum(free, near), np.clip(free, near, far)))
        return np.asarray(np.clip(free, self.lower, self.upper))
