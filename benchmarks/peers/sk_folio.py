"""skfolio: MeanRisk with a utility objective, a target, linear costs, and a prior that holds the factor model."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
from skfolio import RiskMeasure
from skfolio.optimization import MeanRisk, ObjectiveFunction
from skfolio.prior import BasePrior, FactorModel, ReturnDistribution

from .instances import Array, Family, Instance
from .peer import One


class Given(BasePrior):
    """A prior whose return distribution is known."""

    def __init__(self, distribution: ReturnDistribution | None = None) -> None:
        self.distribution = distribution

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Given:
        self.return_distribution_ = self.distribution
        return self


def _distribution(p: Instance) -> ReturnDistribution:
    k, n = p.factors.shape
    names = np.array([f"A{i}" for i in range(n)])
    model = FactorModel(
        observations=np.arange(2),
        asset_names=names,
        factor_names=np.array([f"F{i}" for i in range(k)]),
        factor_families=None,
        loading_matrix=p.factors.T.copy(),
        exposures=None,
        factor_covariance=np.eye(k),
        factor_mu=np.zeros(k),
        factor_returns=None,
        idio_covariance=p.specific,
        idio_mu=None,
        idio_returns=None,
        idio_variances=None,
    )
    covariance = p.factors.T @ p.factors + np.diag(p.specific)
    return ReturnDistribution(mu=np.zeros(n), covariance=covariance, returns=np.zeros((2, n)), factor_model=model)


def mean_risk(family: Family) -> One:
    like = family.instances[0]
    distribution = _distribution(like)
    X = np.zeros((2, like.n))

    def one(p: Instance, account: int) -> Array | None:
        def rows(w: Any) -> Any:
            r = p.rows
            assert r is not None
            left = (r.weight + r.long) @ w + (r.long + r.short) @ cp.neg(w) + r.buy @ cp.abs(w - p.before)
            return [left <= r.upper]

        def terms(w: Any) -> Any:
            return p.gain @ w - 0.5 * p.penalty * cp.sum_squares(w - p.before)  # added to the utility

        return np.asarray(
            MeanRisk(
                objective_function=ObjectiveFunction.MAXIMIZE_UTILITY,
                risk_measure=RiskMeasure.VARIANCE,
                risk_aversion=0.5 * p.aversion,
                prior_estimator=Given(distribution),
                min_weights=p.lower,
                max_weights=p.upper,
                budget=1.0,
                transaction_costs=p.cost,
                previous_weights=p.before,
                target_weights=p.target,
                add_constraints=rows if p.rows is not None else None,
                add_objective=terms if p.gain is not None else None,
                solver="CLARABEL",
            )
            .fit(X)
            .weights_
        )

    return one
