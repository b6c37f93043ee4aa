"""The threshold rule: the exact minimum of one asset's part of the problem.

    f(w) = ½a(w − t)² + g·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ + q·z² + p·|z|^{3/2},   z = w − w₀

over l ≤ w ≤ u, for arrays of any shape. f is convex (long + short, buy + sell, a, q, p ≥ 0) with kinks at 0
and at w₀ only. Without its kinks f is smooth around w₀ with the slope −m, m = −g − a(w₀ − t), and its minimum is

    w₀ + S(m),   S the inverse of  z ↦ (a + 2q)·z + 1.5p·√|z|·sign z,  increasing, in closed form.

With the lower kink at near = min(0, w₀), the upper one at far = max(0, w₀), and κ₁ ≤ κ₂ ≤ κ₃ what the kinks add
to the slope below, between and above them, y_i = w₀ + S(m − κ_i) are the minima of the three pieces, and

    w = max(y₃, min(far, max(y₂, min(near, y₁))))      clipped to the bounds.

All solvers and every lower bound rest on this one function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from equipoise.constraints.pieces import Array, Mask

#: Of assets, or of one; a plain 0.0 leaves its term out.
Coefficient: TypeAlias = Array | float
#: What depends on the prices in an asset's function.
PRICED = ("slope", "long", "short", "buy", "sell", "quadratic", "impact")


def absent(coefficient: Coefficient) -> bool:
    """Whether a term was left out altogether: a plain 0.0 instead of an array costs no time."""
    return isinstance(coefficient, float) and coefficient == 0.0


@dataclass(frozen=True, eq=False)
class Separable:
    """The coefficients of f: arrays or numbers that broadcast; a plain 0.0 leaves the term out."""

    curvature: Coefficient
    centre: Array
    slope: Coefficient
    long: Coefficient
    short: Coefficient
    buy: Coefficient
    sell: Coefficient
    quadratic: Coefficient
    impact: Coefficient
    before: Array
    lower: Array
    upper: Array

    def plus(self, other: Separable, times: Coefficient = 1.0) -> Separable:
        """The sum of both functions, the other one so many times: its own quadratic part is left out."""
        more = {
            name: getattr(self, name) + (added if isinstance(times, float) else times * added)
            for name in PRICED
            if not absent(added := getattr(other, name))
        }
        return replace(self, **more)

    def seen_from(self, sign: Array, trade: Array) -> Separable:
        """The same function but for a constant, with the kinks' slopes there within `slope`: where the weight has this
        sign and the trade that one (1, 0, −1). Near its minimum a small slope is left, and no difference of large ones.
        """
        slope, terms = self.slope, {}
        for side, (up, down) in ((sign, ("long", "short")), (trade, ("buy", "sell"))):
            one, other = getattr(self, up), getattr(self, down)
            if not (absent(one) and absent(other)):
                slope = slope + np.where(side > 0, one, np.where(side < 0, np.negative(other), 0.0))
                terms[up] = np.where(side > 0, 0.0, one + np.where(side < 0, other, 0.0))
                terms[down] = np.where(side < 0, 0.0, other + np.where(side > 0, one, 0.0))
        return replace(self, slope=slope, **terms)

    def value(self, weights: Array) -> Array:
        """f, bounds not counted."""
        trade = weights - self.before
        size = np.abs(trade)
        result = 0.5 * self.curvature * (weights - self.centre) ** 2 + self.slope * weights
        if not (absent(self.long) and absent(self.short)):
            result += np.where(weights > 0, self.long, -np.asarray(self.short)) * weights
        if not (absent(self.buy) and absent(self.sell)):
            result += np.where(trade > 0, self.buy, self.sell) * size
        if not absent(self.quadratic):
            result += self.quadratic * size**2
        if not absent(self.impact):
            result += self.impact * size * np.sqrt(size)
        return np.asarray(result)

    def derivative(self, at: Coefficient, side: int) -> Array:
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
        return self.response()[0]

    def response(self) -> tuple[Array, Array]:
        """(w, 1/f″(w)): the minimiser, and by how much it moves against the slope g; 0 where a kink or a bound
        holds it."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            stiffness = self.curvature if absent(self.quadratic) else self.curvature + 2.0 * self.quadratic
            m = -self.slope - self.curvature * (self.before - self.centre)
            if absent(self.long) and absent(self.short):
                # Only the kink at w₀: soft thresholding.
                pull = np.maximum(m - self.buy, 0.0) - np.maximum(-m - self.sell, 0.0)
                free = (m >= self.buy) | (m <= -np.asarray(self.sell))
                w = self.before + self._moved(pull, stiffness)
            else:
                w, free = self._between_two_kinks(m, stiffness)
            inside = (w > self.lower) & (w < self.upper)
            w = np.minimum(np.maximum(w, self.lower), self.upper)
            bends = stiffness
            if not absent(self.impact):
                root = np.sqrt(np.abs(w - self.before))
                bends = np.where(np.asarray(self.impact) > 0, stiffness + 0.75 * self.impact / root, stiffness)
            return np.asarray(w), np.where(free & inside, 1.0 / np.asarray(bends), 0.0)

    def _moved(self, pull: Array, stiffness: Coefficient) -> Array:
        """S(pull): the trade whose marginal cost is `pull`."""
        # Nothing pulls, nothing moves, also where the stiffness is 0.
        straight = np.where(pull == 0, 0.0, pull / stiffness)
        if absent(self.impact):
            return straight
        rooted, size = 1.5 * np.asarray(self.impact), np.abs(pull)
        bent = (2.0 * size / (rooted + np.sqrt(rooted**2 + 4.0 * stiffness * size))) ** 2
        return np.where(rooted > 0, np.copysign(bent, pull), straight)

    def _between_two_kinks(self, m: Array, stiffness: Coefficient) -> tuple[Array, Mask]:
        before = np.asarray(self.before)
        near, far = np.minimum(before, 0.0), np.maximum(before, 0.0)
        # Between the kinks a long position is being sold, or a short one bought back.
        middle = np.where(before > 0, np.subtract(self.long, self.sell), np.subtract(self.buy, self.short))
        below = before + self._moved(m + self.sell + self.short, stiffness)
        between = before + self._moved(m - middle, stiffness)
        above = before + self._moved(m - self.buy - self.long, stiffness)
        w = np.maximum(above, np.minimum(far, np.maximum(between, np.minimum(near, below))))
        free = (above >= far) | (below <= near) | ((between >= near) & (between <= far))
        return w, free
