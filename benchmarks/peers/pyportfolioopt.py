"""PyPortfolioOpt: EfficientFrontier with its tracking error and cost objectives; the covariance is dense."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from pypfopt import EfficientFrontier, objective_functions

from .instances import Array, Family, Instance
from .peer import One


def frontier(family: Family) -> One:
    like = family.instances[0]
    covariance = like.factors.T @ like.factors + np.diag(like.specific)
    unit = float(np.max(like.cost))

    def one(p: Instance, account: int) -> Array | None:
        bounds = list(zip(p.lower, p.upper, strict=True))
        ef = EfficientFrontier(None, covariance, weight_bounds=bounds, solver="CLARABEL")
        ef.add_objective(lambda w: cp.norm1(cp.multiply(p.cost / unit, w - p.before)))
        if p.gain is not None:
            ef.add_objective(lambda w: (0.5 * p.penalty * cp.sum_squares(w - p.before) - p.gain @ w) / unit)
        if (r := p.rows) is not None:
            ef.add_constraint(
                lambda w: (
                    (r.weight + r.long) @ w + (r.long + r.short) @ cp.neg(w) + r.buy @ cp.abs(w - p.before) <= r.upper
                )
            )
        scaled = 0.5 * p.aversion / unit * covariance
        ef.convex_objective(objective_functions.ex_ante_tracking_error, cov_matrix=scaled, benchmark_weights=p.target)
        return np.asarray(ef.weights)

    return one
