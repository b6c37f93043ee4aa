"""What custom rules g(w) ≤ 0 (or = 0) prove of all that they allow: one plane below Σ price·g, the priced plane.

By convexity each plane at any point is below Σ price·g, and so is every mean of such planes, whatever a solver did. At
a kink there are many, of which cvxpy's gradient is one; the proof needs the mean that the other prices are in balance
with, and its slopes are known: the price of `x = w` where the rules are about a copy x of the weights. Planes are taken
at points next to the answer, each in the direction in which the mean of those before falls short.

Where the rules hold, Σ price·g ≤ 0, and so is the plane: that is what it proves.

Source: the fully corrective conditional gradient (Frank and Wolfe 1956; Holloway 1974).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.constraints.pieces import Array

if TYPE_CHECKING:
    import cvxpy as cp

_STEP = 1e-7  # of NAV, next to the answer: above a solver's noise, and below what a curve bends
_NEAR = 1e-12  # slopes that miss by no more have nothing to gain
_MOST = 200  # planes


def priced_plane(
    constraints: Sequence[cp.Constraint], weights: cp.Variable, wanted: Array | float
) -> tuple[Array, float]:
    """`slopes` near those `wanted` and `offset`: slopes·w + offset ≤ 0 for every w that the constraints allow.

    They are solved ones of cvxpy on the variable `weights`. What has no price or no gradient proves nothing (0).
    """
    rules = [(_with_gradient(constraint.expr), _price(constraint)) for constraint in constraints]
    answer, last = weights.value, np.inf
    planes = [_at(answer, rules, weights)]
    slopes, offset = planes[0]
    for _ in range(_MOST):
        missing = wanted - slopes
        left = float(np.linalg.norm(missing))
        if not _NEAR < left < last:  # also where a solver's price is no number
            break
        planes.append(_at(answer + _STEP * missing / np.max(np.abs(missing)), rules, weights))
        parts = _nearest_mean(np.array([slope for slope, _ in planes]), wanted)
        slopes = sum((part * slope for part, (slope, _) in zip(parts, planes, strict=True)), np.zeros(len(answer)))
        offset = sum(part * at_zero for part, (_, at_zero) in zip(parts, planes, strict=True))
        planes, last = [plane for part, plane in zip(parts, planes, strict=True) if part > 0], left
    weights.value = answer
    return slopes, offset


def _nearest_mean(slopes: Array, wanted: Array | float) -> Array:
    """The parts, ≥ 0 and 1 together, of the mean of these rows that is nearest to what is wanted."""
    from scipy.optimize import nnls

    away = slopes - wanted
    away /= max(float(np.max(np.abs(away))), np.finfo(float).tiny)
    # The least ‖parts·away‖ with a sum of 1 is that with a free sum of which 1 is wanted, but for a factor.
    try:
        parts, _ = nnls(np.vstack([away.T, np.ones(len(slopes))]), np.append(np.zeros(away.shape[1]), 1.0))
    except RuntimeError:  # too many steps: any mean is a plane
        parts = np.ones(len(slopes))
    return np.asarray(parts / parts.sum())


def _price(constraint: cp.Constraint) -> Array:
    """Its price: of an inequality at least 0; 0 where a solver has none."""
    said = np.zeros(constraint.expr.shape) if constraint.dual_value is None else constraint.dual_value
    price = np.ravel(np.asarray(said, dtype=float), order="F")
    return np.maximum(price, 0.0) if type(constraint).__name__ == "Inequality" else price


def _with_gradient(expression: cp.Expression) -> cp.Expression:
    """The same expression without the one common atom that has no gradient in cvxpy: ‖x‖∞ is max |x|."""
    import cvxpy as cp

    if not expression.args:
        return expression
    args = [_with_gradient(each) for each in expression.args]
    if isinstance(expression, cp.norm_inf):
        return cp.max(cp.abs(args[0]), axis=expression.axis, keepdims=expression.keepdims)
    return expression.copy(args)


def _at(point: Array, rules: Sequence[tuple[cp.Expression, Array]], weights: cp.Variable) -> tuple[Array, float]:
    """The plane of all rules at one point, each by its price; without those whose gradient is not known there."""
    weights.value = point
    slopes, offset = np.zeros(len(point)), 0.0
    for expression, price in rules:
        try:
            gradient = expression.grad.get(weights)
        except (NotImplementedError, ValueError):  # of `tanh`, for example; and that of `cummax` fails
            continue
        if gradient is None:
            continue
        value = np.ravel(np.asarray(expression.value, dtype=float), order="F")
        slope = np.asarray(gradient @ price).ravel()
        slopes, offset = slopes + slope, offset + float(price @ value - slope @ point)
    known = np.isfinite(offset) and np.all(np.isfinite(slopes))
    return (slopes, offset) if known else (np.zeros(len(point)), 0.0)
