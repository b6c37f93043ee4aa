"""The risk as a diagonal and a rest, Σ = diag(d) + GᵀG: what an asset risks on its own, and what couples assets.

A bound on whole-lot plans prices the coupling and takes every asset's own part over its lots exactly, so that a
larger d is a better bound. If the hull of an asset's lot points is taken and vᵢ is the variance of the mixture of
lots that the hull chose, the bound rises by (aversion/2)·vᵢ per unit of dᵢ. So d solves the semidefinite program

    maximise  v·d   subject to  Σ − diag(d) ⪰ 0,  d ≥ 0

by a barrier method: log det(Σ − diag(d)) + Σ log dᵢ has the Hessian −P∘P − diag(1/d²), P = (Σ − diag(d))⁻¹.

The factorisation of the rest is in floating point; what it may miss is measured and taken off the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.risk.factored import FactoredRisk

_REDUCTION, _ROUNDS, _NEWTON = 0.1, 4, 8
_FLOOR = 1e-3  # no asset counts for less than this part of the largest one
_SINGULAR = 1e-7  # a correlation matrix with an eigenvalue below this has no diagonal worth a search
FEW = 1 / 3  # factors an asset
_ROUNDING = 8 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Split:
    """Σ ⪰ diag(own) + factorsᵀ·factors: own (n,) ≥ 0, factors (k, n), both annual."""

    own: Array
    factors: Array


def given(risk: FactoredRisk) -> Split:
    """The split that a factor model has of itself: exact."""
    return Split(risk.specific, risk.factors)


def favouring(risk: FactoredRisk, spread: Array) -> Split | None:
    """The split whose diagonal is largest where `spread` (n,) is; None where there is none to find.

    That is where the risk is singular, and in factor models: the rest of few factors has no diagonal to spare.
    """
    if len(risk.factors) < FEW * len(spread):
        return None
    covariance = risk.covariance()
    σ = np.sqrt(np.diag(covariance))
    live = np.flatnonzero(σ > 0)
    if not len(live) or not np.any(spread[live] > 0):
        return None
    C = covariance[np.ix_(live, live)] / np.outer(σ[live], σ[live])
    lowest = float(np.linalg.eigvalsh(C)[0])
    if lowest < _SINGULAR:
        return None
    weight = spread[live] * σ[live] ** 2
    d = _diagonal(C, np.maximum(weight / weight.max(), _FLOOR), 0.5 * lowest) * σ[live] ** 2
    rest = covariance[np.ix_(live, live)] - np.diag(d)
    λ, V = np.linalg.eigh(rest)
    root = np.sqrt(np.maximum(λ, 0.0))[:, None] * V.T
    # The rest less rootᵀ·root is above −missed: a Frobenius norm is above all eigenvalues; both products were rounded.
    missed = float(np.linalg.norm(rest - root.T @ root)) + _ROUNDING * len(d) * float(np.trace(covariance))
    if np.any(d <= missed):
        return None
    own, factors = np.zeros(len(σ)), np.zeros((len(d), len(σ)))
    own[live], factors[:, live] = d - missed, root
    return Split(own, factors[λ > 0])


def _diagonal(C: Array, weight: Array, start: float) -> Array:
    """argmax weight·d with C − diag(d) ⪰ 0, nearly: strictly inside, by Newton's method on a falling barrier."""
    d = np.full(len(C), start)
    barrier = float(weight @ d) / len(C)
    for _ in range(_ROUNDS):
        for _ in range(_NEWTON):
            P = np.linalg.inv(C - np.diag(d))
            slope = weight / barrier - np.diag(P) + 1.0 / d
            step = np.linalg.solve(P * P + np.diag(1.0 / d**2), slope)
            decrement = float(slope @ step)
            length = 1.0 if decrement < 0.1 else 1.0 / (1.0 + np.sqrt(decrement))
            while not _inside(C, d + length * step):
                length *= 0.5
            d = d + length * step
            if decrement < 0.5:
                break
        barrier *= _REDUCTION
    return d


def _inside(C: Array, d: Array) -> bool:
    if np.any(d <= 0):
        return False
    try:
        np.linalg.cholesky(C - np.diag(d))
    except np.linalg.LinAlgError:
        return False
    return True
