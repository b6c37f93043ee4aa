"""A covariance, checked and taken apart: volatilities, and the eigenvalues of its correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST
from equipoise.optimizer.labelled import Labels, forbid, numbers

# Tolerances, in units of correlation. Rounding moves the eigenvalues of a correlation matrix by a few ε·λmax
# (1e-12 for some thousand assets): what lies below ROUNDING·λmax is taken for zero. INDEFINITE is far above
# that noise, and to clip what is smaller changes the variance of x by at most 1e-10·Σ(xᵢσᵢ)², too little to
# matter. A matrix that misses by more is wrong: pairs from different samples, a typing error, rounded digits.
ROUNDING = 16 * np.finfo(np.float64).eps
INDEFINITE = 1e-10
ASYMMETRY = 1e-10


def spectrum(
    cells: NDArray[Any], labels: Labels, column: str, repair: bool = False
) -> tuple[Array, Array, Array, float | None]:
    """σ (n,), λ ≥ 0 (m,), V (n × m) with Σ = diag(σ) V diag(λ) Vᵀ diag(σ), and how far a repair moved C."""
    problem = "a covariance must be a finite number; estimate it, or leave the asset out"
    cov = numbers(cells, column, problem, labels)
    variance = np.diag(cov)
    forbid(variance < 0, variance, column, "a variance must not be negative; correct the matrix", labels)
    σ = np.sqrt(variance)
    live = np.flatnonzero(σ > 0)
    zero = (σ == 0)[:, None] | (σ == 0)
    problem = "what has zero variance cannot covary; correct the matrix, or list the asset in riskless=[...]"
    forbid((cov != 0) & zero, cov, column, problem, labels)

    unit = np.where(σ > 0, σ, 1.0)
    C = cov / np.outer(unit, unit)
    problem = "a covariance this large cannot belong to variances so small; correct the matrix"
    forbid(np.abs(C) > LARGEST, cov, column, problem, labels)
    asymmetry = np.abs(C - C.T)
    worst = (asymmetry > ASYMMETRY) & (asymmetry == asymmetry.max(initial=0.0))
    problem = "a covariance must be symmetric, and its mirror image is another number; correct one of them"
    forbid(worst, cov, column, problem, labels)
    beyond = np.abs(C) > 1 + INDEFINITE
    C = (C + C.T)[np.ix_(live, live)] / 2
    np.fill_diagonal(C, 1.0)
    λ, V = np.linalg.eigh(C)
    lowest = λ.min(initial=0.0)
    λ = np.where(λ > ROUNDING * λ.max(initial=1.0), λ, 0.0)
    repaired = None
    if lowest < -INDEFINITE:
        if not repair:
            problem = (
                "a covariance matrix must be positive semidefinite, and the smallest eigenvalue of its "
                f"correlations is {lowest:.6g}; estimate all pairs from the same periods, or let "
                "CovarianceRisk(..., repair=True) move the correlations"
            )
            forbid(beyond, cov, column, problem, labels)  # a correlation above 1 shows which pair it is
            raise InputError(problem, column=column)
        V /= np.sqrt(V**2 @ λ)[:, None]  # clipping has raised the diagonal: back to 1
        repaired = float(np.linalg.norm((V * λ) @ V.T - C))
    vectors = np.zeros((len(cov), len(live)))
    vectors[live] = V
    return σ, λ, vectors, repaired
