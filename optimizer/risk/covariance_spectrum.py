"""A covariance, checked and taken apart: its correlations, their eigenvalues, and its factored form."""

from __future__ import annotations

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import LARGEST, Cells
from equipoise.constraints.pieces import Array
from equipoise.optimizer.risk.labelled_arrays import Labels, forbid, numbers

# Tolerances, in units of correlation. Rounding moves the eigenvalues of a correlation matrix by a few ε·λmax
# (1e-12 for some thousand assets): what lies below ROUNDING·λmax is taken for zero. INDEFINITE is far above
# that noise, and to clip what is smaller changes the variance of x by at most 1e-10·Σ(xᵢσᵢ)², too little to
# matter. A matrix that misses by more is wrong: pairs from different samples, a typing error, rounded digits.
ROUNDING = 16 * np.finfo(np.float64).eps
INDEFINITE = 1e-10
ASYMMETRY = 1e-10

#: From so many assets on a factorisation is tried before an eigendecomposition, which takes some thirty times as long.
LARGE = 1000
_LANCZOS = 30  # products for an estimate of the smallest eigenvalue
_SHIFTS = (0.75, 0.4, 0.1, 0.01)  # what is tried of it
_NULL = 1e-8  # a smaller one may be none, and the matrix of low rank
_BLOCK = 256  # rows that are worked on at once


def factored(cells: Cells, labels: Labels, column: str, repair: bool = False) -> tuple[Array, Array, float | None]:
    """F (m × n) and d² (n,) with Σ = FᵀF + diag(d²), and how far a repair moved C.

    With σ the volatilities and C the correlations, d² = θσ² and FᵀF = diag(σ)(C − θ)diag(σ), by the eigenvalues of
    C, θ the smallest of them; or, where C is large and surely positive definite, by a Cholesky factorisation of C − θ
    for a θ that is not much smaller. That it succeeds proves that C − θ is positive definite.
    """
    if len(cells) >= LARGE and (found := _triangular(cells, labels, column)) is not None:
        return *found, None
    σ, λ, V, repaired = spectrum(cells, labels, column, repair)
    variance = np.diag(cells).astype(np.float64)
    θ = λ.min(initial=1.0)
    kept = λ - θ > ROUNDING * λ.max(initial=1.0)
    return np.sqrt(λ[kept] - θ)[:, None] * V.T[kept] * σ, θ * variance, repaired


def spectrum(
    cells: Cells, labels: Labels, column: str, repair: bool = False
) -> tuple[Array, Array, Array, float | None]:
    """σ (n,), λ ≥ 0 (m,), V (n × m) with Σ = diag(σ) V diag(λ) Vᵀ diag(σ), and how far a repair moved C."""
    variance, C = _correlations(cells, labels, column)
    σ = np.sqrt(variance)
    live = np.flatnonzero(σ > 0)
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
            unit = np.where(σ > 0, σ, 1.0)
            cov = numbers(cells, column, problem, labels)
            beyond = np.abs(cov / np.outer(unit, unit)) > 1 + INDEFINITE
            forbid(beyond, cov, column, problem, labels)  # a correlation above 1 shows which pair it is
            raise InputError(problem, column=column)
        V /= np.sqrt(V**2 @ λ)[:, None]  # clipping has raised the diagonal: back to 1
        repaired = float(np.linalg.norm((V * λ) @ V.T - C))
    vectors = np.zeros((len(σ), len(live)))
    vectors[live] = V
    return σ, λ, vectors, repaired


def _correlations(cells: Cells, labels: Labels, column: str) -> tuple[Array, Array]:
    """σ² (n,), and C (m × m) of those that are not 0. In blocks of rows: the matrix may be large."""
    problem = "a covariance must be a finite number; estimate it, or leave the asset out"
    cov = numbers(cells, column, problem, labels)
    variance = np.diag(cov).copy()
    forbid(variance < 0, variance, column, "a variance must not be negative; correct the matrix", labels)
    σ = np.sqrt(variance)
    live = np.flatnonzero(σ > 0)
    if len(live) < len(σ):
        zero = (σ == 0)[:, None] | (σ == 0)
        problem = "what has zero variance cannot covary; correct the matrix, or list the asset in riskless=[...]"
        forbid((cov != 0) & zero, cov, column, problem, labels)

    unit = np.where(σ > 0, σ, 1.0)
    C = np.empty_like(cov)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(cov), _BLOCK)]
    for rows in blocks:
        np.divide(cov[rows], np.outer(unit[rows], unit), out=C[rows])
    problem = "a covariance this large cannot belong to variances so small; correct the matrix"
    forbid(np.abs(C) > LARGEST, cov, column, problem, labels)
    if max((np.abs(C[rows] - C[:, rows].T).max() for rows in blocks), default=0.0) > ASYMMETRY:
        asymmetry = np.abs(C - C.T)
        problem = "a covariance must be symmetric, and its mirror image is another number; correct one of them"
        forbid(asymmetry == asymmetry.max(), cov, column, problem, labels)
    for rows in blocks:
        rest = slice(rows.start, None)
        mean = (C[rows, rest] + C[rest, rows].T) / 2
        C[rows, rest], C[rest, rows] = mean, mean.T
    if len(live) < len(σ):
        C = C[np.ix_(live, live)]
    np.fill_diagonal(C, 1.0)
    return variance, C


def _triangular(cells: Cells, labels: Labels, column: str) -> tuple[Array, Array] | None:
    """The factored form by a Cholesky factorisation; None where there may be none, or where fewer factors may do."""
    variance, C = _correlations(cells, labels, column)
    lowest = _smallest(C) if variance.all() else 0.0
    for shift in _SHIFTS if lowest > _NULL else ():
        part, power = np.frexp(shift * lowest)
        θ = float(np.ldexp(np.floor(16.0 * part) / 16.0, power))  # no digits that rounding decides
        np.fill_diagonal(C, 1.0 - θ)
        try:
            F = np.asarray(np.linalg.cholesky(C).T, dtype=np.float64)
        except np.linalg.LinAlgError:
            continue
        F *= np.sqrt(variance)
        return F, θ * variance
    return None


def _smallest(C: Array) -> float:
    """About the smallest eigenvalue, from above; 0 where the matrix has only a few different ones (Lanczos)."""
    basis = np.zeros((_LANCZOS, len(C)))
    vector = np.random.default_rng(0).standard_normal(len(C))
    T = np.zeros((_LANCZOS, _LANCZOS))
    size = float(np.linalg.norm(vector))
    for i in range(_LANCZOS):
        basis[i] = vector / size
        vector = C @ basis[i]
        T[i, i] = basis[i] @ vector
        for _ in range(2):  # rounding undoes what one pass made orthogonal
            vector -= (basis[: i + 1] @ vector) @ basis[: i + 1]
        size = float(np.linalg.norm(vector))
        if size <= 1e-6 * abs(T[: i + 1, : i + 1]).max():
            return 0.0
        if i + 1 < _LANCZOS:
            T[i, i + 1] = T[i + 1, i] = size
    return float(np.linalg.eigvalsh(T)[0])
