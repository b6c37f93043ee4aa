"""The factored form of a covariance, Σ = FᵀF + diag(d²), of one portfolio or of a stack of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError
from equipoise.constraints.numbers import entries, floats
from equipoise.constraints.pieces import Array, Index, Indices

#: How many numbers of factors are reduced at once.
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class FactoredRisk:
    """Σ = FᵀF + diag(d²), an annual covariance of returns, for n assets in a fixed order.

    `factors` is F (k × n, annual volatility per unit of factor), `specific` is d² (n,), an annual variance;
    both are copied to read-only float64. Raises InputError for shapes that do not fit, entries that are not
    finite, or a negative variance.

    For a stack of B portfolios, each of the two may have an axis more in front: (B, k, n) and (B, n). What one
    portfolio gets does not depend on the others, not by one bit: products are taken portfolio by portfolio.
    """

    factors: Array
    specific: Array

    def __post_init__(self) -> None:
        factors, specific = (_copied(part) for part in (self.factors, self.specific))
        sizes = {len(part) for part, single in ((factors, 2), (specific, 1)) if part.ndim == single + 1}
        fit = factors.ndim in (2, 3) and specific.ndim in (1, 2) and factors.shape[-1] == specific.shape[-1]
        if not fit or len(sizes) > 1:
            raise InputError(
                f"factors must be (k, n) and specific (n,), not {factors.shape} and {specific.shape}; "
                "a risk without factors has factors of shape (0, n)"
            )
        check(factors, specific)
        for name, part in (("factors", factors), ("specific", specific)):
            part.setflags(write=False)
            object.__setattr__(self, name, part)

    def __reduce__(self) -> tuple[object, ...]:
        return FactoredRisk, (self.factors, self.specific)  # an unpickled array would be writable

    def __repr__(self) -> str:
        return f"FactoredRisk({self.factors.shape[-1]} assets, {self.factors.shape[-2]} factors)"

    @property
    def is_diagonal(self) -> bool:
        """Whether there are no factors, so that assets do not interact."""
        return bool(self.factors.shape[-2] == 0)

    def variance(self, x: ArrayLike) -> Array:
        """xᵀΣx = ‖Fx‖² + Σ dᵢ²xᵢ² for x of shape (..., n), in O(nk): the annual variance of x."""
        x = np.asarray(x, dtype=np.float64)
        return np.asarray(np.square(self.exposure(x)).sum(axis=-1) + np.sum(np.square(x) * self.specific, axis=-1))

    @property
    def variances(self) -> Array:
        """The diagonal of Σ (..., n): each asset's own annual variance."""
        return np.asarray(self.specific + np.square(self.factors).sum(axis=-2))

    def gradient(self, x: ArrayLike) -> Array:
        """Σx for x of shape (..., n), the gradient of ½·xᵀΣx."""
        x = np.asarray(x, dtype=np.float64)
        return np.asarray(np.matmul(self.exposure(x)[..., None, :], self.factors)[..., 0, :] + x * self.specific)

    def exposure(self, x: Array) -> Array:
        """Fx (..., k) for x of shape (..., n)."""
        return np.asarray(np.matmul(self.factors, x[..., None])[..., 0])

    def covariance(self) -> Array:
        """Σ itself (n × n, or B × n × n). For reports and tests: solvers do not need it."""
        factors, n = self.factors, self.factors.shape[-1]
        return np.asarray(np.swapaxes(factors, -1, -2) @ factors + self.specific[..., None, :] * np.eye(n))

    def take(self, portfolios: int | Index) -> FactoredRisk:
        """The risk of these portfolios of a stack: a position, or whatever else selects along an axis."""
        factors = self.factors[portfolios] if self.factors.ndim == 3 else self.factors
        return of_checked(factors, self.specific[portfolios] if self.specific.ndim == 2 else self.specific)


def check(factors: Array, specific: Array) -> None:
    """Raises InputError for parts of a covariance that are none."""
    if not (np.isfinite(factors).all() and np.isfinite(specific).all() and (specific >= 0).all()):
        raise InputError("factors must be finite, and specific variances finite and not negative")


def _copied(given: ArrayLike) -> Array:
    """In rows, for the bits of a product depend on it. Floats of any size, for solvers compute them."""
    cells = entries(given)
    return np.array(cells if cells.dtype.kind == "f" else floats(cells, text=False)[0], dtype=np.float64, order="C")


def of_checked(factors: Array, specific: Array) -> FactoredRisk:
    """A FactoredRisk of parts of a checked one: not looked at again. Rows lie in a row in memory, also those of chosen
    columns, for the bits of a product depend on it."""
    risk = object.__new__(FactoredRisk)
    for name, part in (("factors", np.ascontiguousarray(factors)), ("specific", np.ascontiguousarray(specific))):
        part.setflags(write=False)
        object.__setattr__(risk, name, part)
    return risk


def same(rows: Indices) -> bool:
    """Whether all rows (B, n) are the same."""
    return bool(np.all(rows == rows[:1]))


def selected(model: FactoredRisk, columns: Indices, common: Sequence[int]) -> FactoredRisk:
    """The risk of a stack whose portfolio i has asset j in the column `columns[i, j]` of a model.

    `common` are the columns with specific risk that several assets may share: they are one asset then, and its
    specific risk becomes a factor. There are min(k + common, n) factors, whatever a portfolio holds, so that no
    portfolio changes its neighbours'. Where all are the same, they share one (k, n).
    """
    if shared := same(columns):
        columns = columns[:1]
    k, (B, n) = len(model.factors) + len(common), columns.shape
    specific, factors = model.specific[columns], np.empty((B, min(k, n), n))
    # Block by block: the factors of a dense model, before they are reduced, are many times those after.
    block = max(1, _BLOCK // (k * n + 1))
    for start in range(0, B, block):
        part = slice(start, start + block)
        factors[part] = _reduced(model, columns[part], specific[part], common)
    return of_checked(factors[0], specific[0]) if shared else of_checked(factors, specific)


def _reduced(model: FactoredRisk, columns: Indices, specific: Array, common: Sequence[int]) -> Array:
    """The factors of `selected`; entries of `specific` that become a factor are set to zero."""
    k, (B, n) = len(model.factors), columns.shape
    factors = np.empty((B, k + len(common), n))
    for row in range(k):
        factors[:, row] = model.factors[row][columns]
    for row, column in enumerate(common, k):
        held = columns == column
        held &= held.sum(axis=1, keepdims=True) > 1
        factors[:, row] = np.where(held, np.sqrt(model.specific[column]), 0.0)
        specific[held] = 0.0
    # FᵀF = RᵀR for F = QR: a few assets out of a large model need no more factors than there are assets.
    return np.asarray(np.linalg.qr(factors, mode="r")) if factors.shape[1] > n else factors
