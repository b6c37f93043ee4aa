"""Risk: what a distance from the target costs in variance.

Every model hands the solvers the same thing, the factored form of an annual covariance,

    Σ = FᵀF + diag(d²)        F (k × n) factors, d² (n,) specific variance,

so that a solver needs k factor prices instead of an n × n matrix, and nobody has to test Σ for definiteness
again: this form is positive semidefinite whatever the numbers. A covariance is checked and factored once, in
units of correlation (every asset divided by its own volatility), so that its scale does not matter.
Portfolios that hold a part of its assets, in any order, then select columns by label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from equipoise.constraints.errors import InputError, NotStackable
from equipoise.constraints.numbers import Cells, check_number
from equipoise.constraints.pieces import Array, Indices
from equipoise.optimizer.risk.covariance_spectrum import factored, spectrum
from equipoise.optimizer.risk.factored import FactoredRisk, check, of_checked, same, selected
from equipoise.optimizer.risk.labelled_arrays import (
    TRANSPOSED,
    Labels,
    Table,
    cells_of,
    forbid,
    is_frame,
    labelled_square,
    labelled_table,
    names,
    numbers,
    risky,
    unique,
)

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["CovarianceRisk", "FactorRisk", "FactoredRisk", "Risk", "SquaredDistance", "stacked", "stacks"]

STALE = 1e-14  # A return is price/price − 1, so a smaller spread than this is the rounding of the prices.


@runtime_checkable
class Risk(Protocol):
    """A risk model: anything that can give the risk of these assets, by label."""

    def aligned(self, assets: Sequence[str], cash: str) -> FactoredRisk:
        """The annual covariance of `assets`, in their order; `cash` is the settlement cash among them.

        The cash is the unit in which returns are measured, so it is riskless unless the model contains it.
        Raises InputError, naming the asset, for any other asset that the model does not know.
        """
        ...


#: Which entry of each row is the settlement cash: `codes[cash]` is (B,).
Cash: TypeAlias = tuple[Indices, Indices]


def stacked(risk: Risk, universe: Sequence[str], codes: Indices, cash: Cash) -> FactoredRisk:
    """The risk of a stack of portfolios: asset j of portfolio i is `universe[codes[i, j]]`.

    Where all hold the same assets, they share one (k, n). A model without a method `stacked(universe, codes, cash)`
    is aligned to these; if they differ, NotStackable is raised, as it is for those with assets it does not know.
    """
    if stacks(risk):
        found: FactoredRisk = risk.stacked(universe, codes, cash)  # type: ignore[attr-defined]
        return found
    if not same(codes):
        raise NotStackable
    return risk.aligned(tuple(universe[code] for code in codes[0]), universe[codes[cash][0]])


def stacks(risk: Risk) -> bool:
    """Whether the model takes stacks of different assets: by a `stacked` that no subclass has turned `aligned` from."""
    own = (vars(kind) for kind in type(risk).__mro__)
    return "stacked" in next((names for names in own if "aligned" in names or "stacked" in names), ())


@dataclass(frozen=True, eq=False)
class SquaredDistance:
    """No risk model: Σ = 1 for every asset and 0 for the settlement cash, so that xᵀΣx = Σ xᵢ².

    The squared distance of the weights from the target, for those who have no covariance. It is diagonal.
    """

    def aligned(self, assets: Sequence[str], cash: str) -> FactoredRisk:
        """See Risk.aligned; it knows every asset."""
        return FactoredRisk(np.zeros((0, len(assets))), np.array([float(asset != cash) for asset in assets]))

    def stacked(self, universe: Sequence[str], codes: Indices, cash: Cash) -> FactoredRisk:
        """See `stacked`."""
        specific = np.ones(codes.shape)
        specific[cash] = 0.0
        return of_checked(np.zeros((0, codes.shape[1])), specific[0] if same(codes) else specific)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class _Labelled:
    """A factored risk with a label on each column; `assets` are those that the model itself contains."""

    assets: tuple[str, ...]
    _model: FactoredRisk
    _columns: Mapping[str, int]

    def _store(
        self,
        assets: Sequence[str],
        factors: Array,
        specific: Array,
        riskless: tuple[str, ...],
        alias: Mapping[str, str] | None,
    ) -> None:
        # Column n, after those of the n assets, is all zero: that of the riskless.
        columns = {asset: i for i, asset in enumerate(assets)} | dict.fromkeys(riskless, len(assets))
        own = frozenset(columns)
        for asset, source in (alias or {}).items():
            if asset in own:
                raise InputError(
                    "an alias may not replace a risk of the asset's own; take it out of alias, "
                    "or out of the model and of riskless",
                    asset=asset,
                )
            if source not in own:
                raise InputError(
                    f"its alias {source!r} is not in the risk model; name an asset that the model contains "
                    "or that riskless lists (an alias of an alias does not count)",
                    asset=asset,
                )
            columns[asset] = columns[source]
        check(factors, specific)
        padded = np.zeros((len(factors), factors.shape[1] + 1))
        padded[:, :-1] = factors
        for name, value in (
            ("assets", tuple(assets)),
            ("_model", of_checked(padded, np.append(specific, 0.0))),
            ("_columns", columns),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.assets)} assets, {len(self._model.factors)} factors)"

    def aligned(self, assets: Sequence[str], cash: str) -> FactoredRisk:
        """See Risk.aligned. At most min(k, n) factors, and one for each asset in several rows by alias."""
        missing = [asset for asset in assets if asset not in self._columns and asset != cash]
        if missing:
            others = f" (nor {', '.join(map(repr, missing[1:]))})" if missing[1:] else ""
            raise InputError(
                f"the risk model does not contain it{others}; add it to the model, list it in "
                "riskless=[...], or give it the risk of another asset with alias={...}",
                asset=missing[0],
            )
        zero = len(self.assets)
        wanted = np.array([self._columns.get(asset, zero) for asset in assets], dtype=np.intp)
        used, position, times = np.unique(wanted, return_inverse=True, return_counts=True)
        specific = self._model.specific[used]
        # Rows that share a column are one asset: its specific risk is common to them, so it must be a factor.
        shared = np.flatnonzero((times > 1) & (specific > 0))
        common = np.zeros((len(shared), len(used)))
        common[np.arange(len(shared)), shared] = np.sqrt(specific[shared])
        specific[shared] = 0.0
        if len(self._model.factors) > len(used):
            # FᵀF = RᵀR for F = QR: a few assets out of a large model need no more factors than there are assets.
            factors = np.asarray(np.linalg.qr(self._model.factors[:, used], mode="r"))[:, position]
        else:
            factors = self._model.factors[:, wanted]
        some = factors.any(axis=1)
        if len(shared) or not some.all():
            factors = np.vstack([factors[some], common[:, position]])
        return of_checked(factors, specific[position])

    def stacked(self, universe: Sequence[str], codes: Indices, cash: Cash) -> FactoredRisk:
        """See `stacked`: min(k + aliased, n) factors, `aliased` the assets of the model that an alias names.

        That number does not depend on what a portfolio holds, so that no portfolio changes its neighbours'.
        """
        columns = np.array([self._columns.get(asset, -1) for asset in universe])[codes]
        columns[cash] = np.where(columns[cash] < 0, len(self.assets), columns[cash])  # the column of zeros
        if (unknown := (columns < 0).any(axis=1)).any():
            raise NotStackable(unknown)
        times = Counter(self._columns.values())
        common = [column for column, count in times.items() if count > 1 and self._model.specific[column] > 0]
        return selected(self._model, columns, common)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class CovarianceRisk(_Labelled):
    """The risk of an annual covariance matrix, given as a DataFrame or as an array with `assets=` labels.

    Checked and factored once: with σ the volatilities, C = VΛVᵀ the correlations and θ = λmin(C) ≥ 0,

        Σ = FᵀF + diag(d²),   F = (Λ − θ)^½ Vᵀ diag(σ),   d² = θσ²,

    which puts as much as it can into the diagonal, whose curvature makes the solvers' bounds tight. Rows of F
    that are zero are dropped; a diagonal Σ has none left. From 1,000 assets on F is a Cholesky factor of Σ − diag(d²)
    for a θ somewhat below λmin(C), if Σ has full rank: that takes a small part of the time.

    riskless: labels that get zero risk, whether or not the matrix contains them (what it says is not read).
    alias: {asset: other} gives an asset exactly the risk of another, such as a debt in the coin that is owed:
        the two are perfectly correlated.
    repair: a matrix that is not positive semidefinite is refused unless repair=True: then the negative
        eigenvalues of C are set to zero and its diagonal is scaled back to 1, so that correlations move and
        volatilities stay. `repaired` is the Frobenius norm of the change in C, None if there was none.

    Raises InputError, naming the asset or the pair, for labels that are not unique or differ between the axes
    (rows in another order than the columns are put right), entries that are not finite, a negative variance,
    a zero variance with a covariance that is not zero, an asymmetry above 1e-10·σᵢσⱼ (below it, the mean of
    both is taken), and an eigenvalue of C below −1e-10.
    """

    repaired: float | None

    def __init__(
        self,
        cov: DataFrame | ArrayLike,
        *,
        assets: Iterable[str] | None = None,
        riskless: Iterable[str] = (),
        alias: Mapping[str, str] | None = None,
        repair: bool = False,
    ) -> None:
        riskless = names(riskless)
        values, labels = labelled_square(cov, assets, "covariance")
        labels, at = risky(labels, riskless)
        if len(at) < len(values):
            values = values[np.ix_(at, at)]
        factors, specific, repaired = factored(values, labels, "covariance", repair)
        self._store(labels, factors, specific, riskless, alias)
        object.__setattr__(self, "repaired", repaired)

    @classmethod
    def from_returns(
        cls,
        returns: DataFrame,
        *,
        method: Literal["sample", "ewma", "ledoit_wolf"] = "sample",
        periods_per_year: float = 252,
        half_life: float | None = None,
        riskless: Iterable[str] = (),
        alias: Mapping[str, str] | None = None,
    ) -> CovarianceRisk:
        """The covariance of a table of simple returns: T periods, oldest first, × n assets (the columns).

        The covariance of one period is multiplied by periods_per_year: 252 for days of an exchange, 365 for
        days of coins, 52 for weeks, 12 for months. With rₜ the returns of period t = 1 … T:

        sample:       Σₜ (rₜ − r̄)(rₜ − r̄)ᵀ / (T − 1), r̄ the mean.
        ewma:         Σₜ pₜ(rₜ − m)(rₜ − m)ᵀ with m = Σₜ pₜrₜ and pₜ = 0.5^((T − t)/half_life), divided by
                      their sum; half_life in periods. No correction for bias; pandas calls it
                      ewm(halflife=half_life).cov(bias=True).
        ledoit_wolf:  scikit-learn's shrinkage to a multiple of the identity (Ledoit and Wolf 2004, "A
                      well-conditioned estimator for large-dimensional covariance matrices"); needs
                      equipoise[risk].

        Raises InputError for a return that is not finite (naming asset and row), fewer than 2 rows, an asset
        whose return never changes (a stale price) unless riskless lists it, and half_life without ewma or the
        reverse; ImportError if ledoit_wolf finds no scikit-learn. `riskless` and `alias` as for the class.
        """
        riskless = names(riskless)
        if method not in ("sample", "ewma", "ledoit_wolf"):
            raise InputError("method must be 'sample', 'ewma' or 'ledoit_wolf'", value=method)
        if (half_life is not None) != (method == "ewma"):
            raise InputError("half_life (in periods) belongs to method='ewma'; it needs it", value=half_life)
        for name, given in (("half_life", half_life), ("periods_per_year", periods_per_year)):
            if given is not None:
                check_number(given, name, above=0.0)
        cells, rows, columns = labelled_table(returns, None, "returns")
        labels, at = risky(columns, riskless)
        problem = "a return must be a finite number; fill or drop that row, or drop the asset"
        values = numbers(cells[:, at], "returns", problem, labels, rows)
        if len(values) < 2:
            raise InputError("a covariance needs returns of at least 2 periods", value=len(values))

        age = np.arange(len(values))[::-1]
        p = 0.5 ** (age / half_life) if half_life is not None else np.ones(len(values))
        p /= p.sum()
        r = values - p @ values
        spread = np.sqrt(p @ r**2)
        problem = "the return never changes (under these weights), which looks like a stale price"
        problem += "; drop the asset, or list it in riskless=[...] if it has no risk"
        forbid(spread <= STALE * (1 + np.abs(values).max(axis=0)), spread, "returns", problem, labels)
        if method == "ledoit_wolf" and labels:
            cov = _ledoit_wolf(values)
        else:
            cov = (p[:, None] * r).T @ r
            if method == "sample":
                cov *= len(values) / (len(values) - 1)
        return cls(periods_per_year * (cov + cov.T) / 2, assets=labels, riskless=riskless, alias=alias)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class FactorRisk(_Labelled):
    """The risk of a factor model: Σ = LᵀΩL + diag(s), annual.

    loadings: L (k × n), a row for each factor and a column for each asset: a DataFrame, or an array with
        `assets=` labels.
    specific_variance: s (n,), annual variances (not volatilities): by label (a Series or mapping, which may
        have more), or an array in the order of the columns of L.
    factor_covariance: Ω (k × k), annual: a DataFrame, matched to the rows of L by label, or an array in their
        order; the identity if omitted. It is checked as CovarianceRisk checks its matrix (without repair) and
        folded into F = RL with Ω = RᵀR.
    riskless, alias: as for CovarianceRisk.

    Raises InputError, naming asset and factor, for labels that are not unique or do not match (it says so
    when L looks transposed), entries that are not finite, a negative variance, and a faulty Ω.
    """

    def __init__(
        self,
        loadings: DataFrame | ArrayLike,
        specific_variance: Series[Any] | Mapping[str, float] | ArrayLike,
        *,
        assets: Iterable[str] | None = None,
        factor_covariance: DataFrame | ArrayLike | None = None,
        riskless: Iterable[str] = (),
        alias: Mapping[str, str] | None = None,
    ) -> None:
        riskless = names(riskless)
        cells, rows, columns = labelled_table(loadings, assets, "loadings")
        factors = unique(rows, "loadings")
        variances = _by_label(specific_variance, columns, factors, riskless)
        labels, at = risky(columns, riskless)
        L = numbers(cells[:, at], "loadings", "a loading must be a finite number; 0 for none", labels, factors)
        problem = "a specific variance must be a finite number, not negative; correct it"
        s = numbers(variances[at], "specific_variance", problem, labels)
        forbid(s < 0, s, "specific_variance", problem, labels)
        if factor_covariance is not None:
            L = _root(factor_covariance, factors, columns) @ L
        self._store(labels, L, s, riskless, alias)


def _root(omega: Table, factors: Labels, assets: Labels) -> Array:
    """R with Ω = RᵀR, its columns in the order of the factors."""
    column = "factor_covariance"
    values, labels = labelled_square(omega, None if is_frame(omega) else factors, column)
    for odd in sorted(set(labels) ^ set(factors), key=str):
        problem = f"its labels must be those of the rows of loadings, and {odd!r} is only in one of them"
        raise InputError(problem + (TRANSPOSED if set(labels) == set(assets) else ""), column=column)
    order = [labels.index(factor) for factor in factors]
    σ, λ, V, _ = spectrum(values[np.ix_(order, order)], factors, column)
    return np.sqrt(λ[λ > 0])[:, None] * V.T[λ > 0] * σ


def _by_label(given: Table, assets: Labels, factors: Labels, riskless: Labels) -> Cells:
    """Specific variances in the order of the assets; those of the riskless need not be there."""
    column = "specific_variance"
    if hasattr(given, "keys"):  # a Series or a mapping
        labels = unique(given.keys(), column)
        for asset in assets:
            if asset not in given and asset not in riskless:
                problem = "every asset needs one; 0 if it has none"
                raise InputError(
                    problem + (TRANSPOSED if set(factors) <= set(labels) else ""), asset=asset, column=column
                )
        given = [given.get(asset, 0.0) for asset in assets]
    values = cells_of(given, column)
    if values.shape != (len(assets),):
        problem = f"its shape is {values.shape}, and loadings has {len(assets)} columns"
        raise InputError(problem + (TRANSPOSED if values.shape == (len(factors),) else ""), column=column)
    return values


def _ledoit_wolf(returns: Array) -> Array:
    try:
        from sklearn.covariance import ledoit_wolf
    except ImportError:
        raise ImportError(
            "method='ledoit_wolf' needs scikit-learn: pip install 'equipoise[risk]', or use another method"
        ) from None
    return np.asarray(ledoit_wolf(returns)[0])
