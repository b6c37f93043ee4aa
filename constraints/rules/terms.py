"""The terms of envelopes: convex functions of the weights, each the highest of a family of planes.

    Brackets    Σᵢ max_j (longᵢⱼ·wᵢ⁺ + shortᵢⱼ·wᵢ⁻ − offsetᵢⱼ)                     tiered margin
    Counted     −factor · max {Σu : u ≤ kept·w⁺, u ≤ cap, u ≤ share·Σu}             haircuts with concentration limits
    Tail        the mean of the worst `share` of S rows                             CVaR (Rockafellar and Uryasev 2000)
    Spread      ‖(M w, δ∘w)‖₂                                                       a move of k standard deviations
    Proceeds    Σ over venues of (what its sales bring − what its buys cost)⁺       unsettled cash

Each has its planes, and its exact form as a convex program (`modelled`), whose prices choose among them.
Arrays are (n,) or (B, n), with one more axis for brackets or scenarios; values of Fractions are exact (a norm, which
has no exact value, is raised by more than its rounding error).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Array, Figure, Indices, Mask, Modelled, Plane

if TYPE_CHECKING:
    import cvxpy as cp

_TINY = 1e-300
_NORM = 1e-13  # far more than the rounding error of a norm
_fractions: Callable[[Array], Array] = np.vectorize(Fraction, otypes=[object])


@dataclass(frozen=True, eq=False)
class Brackets:
    """Σᵢ max_j (longᵢⱼ·wᵢ⁺ + shortᵢⱼ·wᵢ⁻ − offsetᵢⱼ): (…, n, J)."""

    of_holdings: ClassVar[bool] = True

    long: Array
    short: Array
    offset: Array

    def _lines(self, weights: Array) -> Array:
        long, short, offset = (_numbers(c, weights) for c in (self.long, self.short, self.offset))
        return long * np.maximum(weights, 0)[..., None] + short * np.maximum(-weights, 0)[..., None] - offset

    def of(self, weights: Array, trades: Array) -> Figure:
        return self._lines(weights).max(axis=-1).sum(axis=-1)

    def plane(self, weights: Array, trades: Array) -> Plane:
        lines = self._lines(weights)
        highest = np.argmax(lines, axis=-1)[..., None]

        def chosen(values: Array) -> Array:
            return np.asarray(np.take_along_axis(np.broadcast_to(values, lines.shape), highest, axis=-1)[..., 0])

        return {"long": chosen(self.long), "short": chosen(self.short)}, -chosen(self.offset).sum(axis=-1)

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        at = np.flatnonzero(np.any((self.long != 0) | (self.short != 0) | (self.offset != 0), axis=-1))
        highest = cp.Variable(len(at))
        lines = [(self.long[at, j], self.short[at, j], self.offset[at, j]) for j in range(self.long.shape[-1])]
        above = [
            highest >= cp.multiply(long, parts["long"][at]) + cp.multiply(short, parts["short"][at]) - offset
            for long, short, offset in lines
        ]

        def plane(price: float) -> Plane:
            share = _shares(np.stack([_dual(c) for c in above], axis=-1), axis=-1)
            long, short = np.zeros(len(self.long)), np.zeros(len(self.long))
            long[at], short[at] = (self.long[at] * share).sum(axis=-1), (self.short[at] * share).sum(axis=-1)
            return {"long": long, "short": short}, -float((self.offset[at] * share).sum())

        return Modelled(cp.sum(highest), above, plane)

    def shocked(self, low: Array, high: Array) -> Brackets:
        ends = [low[..., None], high[..., None]] if np.any(low != high) else [low[..., None]]
        sides = [np.concatenate([side * end for end in ends], axis=-1) for side in (self.long, self.short)]
        offset = np.broadcast_to(np.concatenate([self.offset] * len(ends), axis=-1), sides[0].shape)
        return Brackets(sides[0], sides[1], offset)

    @property
    def steepness(self) -> Figure:
        return np.linalg.norm(np.maximum(np.abs(self.long), np.abs(self.short)).max(axis=-1), axis=-1)


@dataclass(frozen=True, eq=False)
class Counted:
    """−factor · max {Σu : u ≤ kept·w⁺, u ≤ cap, u ≤ share·Σu}: what of the collateral counts, above 0 only.

    With e the smaller of the first two, Σu = min over m·share < 1 of (Σ e without the m largest)/(1 − m·share).
    Convex where no asset that is kept can be short: the rule bounds those by 0.
    """

    of_holdings: ClassVar[bool] = True

    kept: Array
    cap: Array
    share: float
    factor: float

    def _least(self, weights: Array) -> tuple[Array, Indices, Indices, Array]:
        """(each e, its rank from the largest, the m that decides, 1 − m·share)."""
        each = np.minimum(_numbers(self.kept, weights) * np.maximum(weights, 0), self._limits(weights))
        rank = np.argsort(np.argsort(-each, axis=-1, kind="stable"), axis=-1, kind="stable")
        fewest = int(np.ceil(round(1.0 / self.share, 9)))  # of as many kinds at a share each nothing is left free
        count = np.arange(min(fewest, each.shape[-1] + 1))
        free = _numbers(1.0 - self.share * count, weights)
        left = np.stack([np.where(rank >= m, each, 0 * each).sum(axis=-1) for m in count], axis=-1) / free
        m = np.argmin(left, axis=-1)
        return each, rank, m, free[m]

    def _limits(self, weights: Array) -> Array:
        if weights.dtype != object:
            return self.cap
        return np.array([Fraction(float(c)) if np.isfinite(c) else c for c in np.broadcast_to(self.cap, weights.shape)])

    def of(self, weights: Array, trades: Array) -> Figure:
        each, rank, m, free = self._least(weights)
        left = np.where(rank >= np.asarray(m)[..., None], each, 0 * each).sum(axis=-1)
        return -(_numbers(np.asarray(self.factor), weights)[()] * left / free)

    def plane(self, weights: Array, trades: Array) -> Plane:
        _, rank, m, free = self._least(weights)
        scale = np.asarray(self.factor / free)[..., None] * (rank >= np.asarray(m)[..., None])
        capped = self.kept * np.maximum(weights, 0) > self.cap
        constant = np.where(capped, scale * np.where(capped, self.cap, 0.0), 0.0).sum(axis=-1)
        return {"weight": np.where(capped, 0.0, -scale * self.kept)}, -constant

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        at = np.flatnonzero(self.kept)
        kept, cap = self.kept[at], np.broadcast_to(self.cap, self.kept.shape)[at]
        capped = np.flatnonzero(np.isfinite(cap))
        counts = cp.Variable(len(at), nonneg=True)
        within = counts <= cp.multiply(kept, parts["weight"][at])
        # Empty arrays are unknown to the older versions of cvxpy.
        under = counts[capped] <= cap[capped] if len(capped) else None
        shared = counts <= self.share * cp.sum(counts)

        def plane(price: float) -> Plane:
            # By the dual of the linear program: α + β ≥ 1 + share·Σγ − γ of the three limits, times factor.
            unit = max(price, _TINY) * self.factor
            limit, gamma = np.zeros(len(at)), _dual(shared) / unit * (self.share < 1)
            limit[capped] = _dual(under) / unit if under is not None else 0.0
            own = _dual(within) / unit
            needed = np.maximum(0.0, 1.0 + self.share * gamma.sum() - gamma)
            both = own + limit
            part = np.where(np.isfinite(cap), np.divide(own, both, out=np.ones_like(own), where=both > 0), 1.0)
            slope = np.zeros(len(self.kept))
            slope[at] = -self.factor * needed * part * kept
            return {"weight": slope}, -float(self.factor * (needed * (1.0 - part))[capped] @ cap[capped])

        limits = [within, shared] if under is None else [within, under, shared]
        return Modelled(-self.factor * cp.sum(counts), limits, plane)

    def shocked(self, low: Array, high: Array) -> Counted:
        return replace(self, kept=self.kept * low)

    @property
    def steepness(self) -> Figure:
        fewest = int(np.ceil(round(1.0 / self.share, 9)))
        return self.factor * np.linalg.norm(self.kept, axis=-1) / (1.0 - self.share * (fewest - 1))


@dataclass(frozen=True, eq=False)
class Tail:
    """The mean of the worst `share` of S functions longₛ·w⁺ + shortₛ·w⁻ − offsetₛ: (…, S, n), offset (…, S)."""

    of_holdings: ClassVar[bool] = True

    long: Array
    short: Array
    offset: Array
    share: float

    def _worst(self, weights: Array) -> tuple[Array, Array]:
        """Each function's value, and its part in the mean."""
        long, short, offset = (_numbers(c, weights) for c in (self.long, self.short, self.offset))
        up, down = np.maximum(weights, 0)[..., None, :], np.maximum(-weights, 0)[..., None, :]
        value = (long * up + short * down).sum(axis=-1) - offset
        rank = np.argsort(np.argsort(-value, axis=-1, kind="stable"), axis=-1, kind="stable")
        number = value.shape[-1] * (Fraction(self.share) if weights.dtype == object else self.share)
        return value, np.clip(number - rank, 0, 1) / number

    def of(self, weights: Array, trades: Array) -> Figure:
        value, part = self._worst(weights)
        return (value * part).sum(axis=-1)

    def plane(self, weights: Array, trades: Array) -> Plane:
        _, part = self._worst(weights)
        slopes = {name: (getattr(self, name) * part[..., None]).sum(axis=-2) for name in ("long", "short")}
        return slopes, -(self.offset * part).sum(axis=-1)

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        number = self.share * len(self.long)
        threshold, beyond = cp.Variable(), cp.Variable(len(self.long), nonneg=True)
        worse = beyond >= self.long @ parts["long"] + self.short @ parts["short"] - self.offset - threshold

        def plane(price: float) -> Plane:
            part = np.minimum(_shares(_dual(worse), axis=-1), 1.0 / number)
            room = 1.0 / number - part
            if room.sum() > 0:
                part = part + room * min(1.0, (1.0 - part.sum()) / room.sum())
            return {"long": part @ self.long, "short": part @ self.short}, -float(part @ self.offset)

        return Modelled(threshold + cp.sum(beyond) / number, [worse], plane)

    def shocked(self, low: Array, high: Array) -> Tail:
        raise InputError("a rule on the tail of scenarios cannot be stressed again", column="rule")

    @property
    def steepness(self) -> Figure:
        return np.linalg.norm(np.maximum(np.abs(self.long), np.abs(self.short)).max(axis=-2), axis=-1)


@dataclass(frozen=True, eq=False)
class Spread:
    """‖(M w, δ∘w)‖₂: M (…, K, n), δ (…, n)."""

    of_holdings: ClassVar[bool] = True

    matrix: Array
    diagonal: Array

    def _norm(self, weights: Array) -> tuple[Array, Array]:
        exposure = np.matmul(self.matrix, weights[..., None])[..., 0]
        length = np.hypot(np.linalg.norm(exposure, axis=-1), np.linalg.norm(self.diagonal * weights, axis=-1))
        return exposure, length

    def of(self, weights: Array, trades: Array) -> Figure:
        if weights.dtype == object:
            return Fraction(float(self._norm(weights.astype(float))[1]) * (1.0 + _NORM))
        return self._norm(weights)[1]

    def plane(self, weights: Array, trades: Array) -> Plane:
        exposure, length = self._norm(weights)
        slope = np.matmul(exposure[..., None, :], self.matrix)[..., 0, :] + self.diagonal**2 * weights
        length = np.asarray(length)[..., None]
        return {"weight": np.divide(slope, length, out=np.zeros_like(slope), where=length > 0)}, 0.0

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        at = np.flatnonzero(self.diagonal)
        weights = parts["weight"]
        inside = []  # without what is empty, which older versions of cvxpy do not know
        if len(self.matrix):
            inside.append(self.matrix @ weights)
        if len(at):
            inside.append(cp.multiply(self.diagonal[at], weights[at]))
        if not inside:
            return Modelled(cp.Constant(0.0), (), lambda price: ({}, 0.0))

        def plane(price: float) -> Plane:
            return self.plane(np.asarray(weights.value, dtype=float), np.zeros(len(self.diagonal)))

        return Modelled(cp.norm(cp.hstack(inside), 2), (), plane)

    def shocked(self, low: Array, high: Array) -> Spread:
        raise InputError("a rule on a move of k sigmas cannot be stressed again", column="rule")

    @property
    def steepness(self) -> Figure:
        terms = 2.0 * (1.0 + self.matrix.shape[-2])
        return terms * np.sqrt(np.square(self.matrix).sum(axis=(-2, -1)) + np.square(self.diagonal).sum(axis=-1))


@dataclass(frozen=True, eq=False)
class Proceeds:
    """Σ over venues of (Σ early·z⁻ − Σ z⁺)⁺ over the venue's assets: `member` holds a mask (…, n) for each venue."""

    of_holdings: ClassVar[bool] = False

    member: tuple[Mask, ...]
    early: Array

    def _left(self, trades: Array) -> list[Array]:
        flow = _numbers(self.early, trades) * np.maximum(-trades, 0) - np.maximum(trades, 0)
        return [np.where(member, flow, 0 * flow).sum(axis=-1) for member in self.member]

    def of(self, weights: Array, trades: Array) -> Figure:
        return sum(np.maximum(left, 0) for left in self._left(trades))

    def plane(self, weights: Array, trades: Array) -> Plane:
        left = zip(self.member, self._left(trades), strict=True)
        active = np.zeros(np.shape(self.early))
        for member, value in left:
            active = active + member * (np.asarray(value) > 0)[..., None]
        return {"buy": -1.0 * active, "sell": self.early * active}, 0.0

    def modelled(self, parts: Mapping[str, cp.Expression]) -> Modelled:
        import cvxpy as cp

        flow = cp.multiply(self.early, parts["sell"]) - parts["buy"]
        left = cp.Variable(len(self.member), nonneg=True)
        matrix = np.array(self.member, dtype=float).reshape(-1, len(self.early))
        over = left >= matrix @ flow

        def plane(price: float) -> Plane:
            active = np.clip(_dual(over) / max(price, _TINY), 0.0, 1.0) @ matrix
            return {"buy": -active, "sell": self.early * active}, 0.0

        return Modelled(cp.sum(left), [over], plane)

    def shocked(self, low: Array, high: Array) -> Proceeds:
        raise InputError("a rule on trades cannot be stressed", column="rule")

    @property
    def steepness(self) -> Figure:
        return 2.0 * np.sqrt(np.shape(self.early)[-1])


def _dual(constraint: cp.Constraint) -> Array:
    """The prices of an inequality, at least 0."""
    value = 0.0 if constraint.dual_value is None else np.asarray(constraint.dual_value, dtype=float)
    return np.broadcast_to(np.maximum(np.nan_to_num(value), 0.0), constraint.shape).copy()


def _shares(prices: Array, axis: int) -> Array:
    """Prices as parts of their sum; all the same where there are none."""
    total = prices.sum(axis=axis, keepdims=True)
    return np.asarray(np.where(total > 0, prices / np.where(total > 0, total, 1.0), 1.0 / prices.shape[axis]))


def _numbers(coefficients: Array, like: Array) -> Array:
    """The coefficients as Fractions where the weights are."""
    return _fractions(coefficients) if like.dtype == object else coefficients
