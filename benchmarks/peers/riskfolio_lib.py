"""Riskfolio-Lib: utility with mean γΣb and risk aversion γ/2, which is the tracking error up to a constant.

It has no trading costs, so that its answer is the optimum of another objective and its gap says what that costs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import riskfolio

from .instances import Array, Family, Instance
from .peer import One, UnstatedError


def utility(family: Family) -> One:
    like = family.instances[0]
    if like.rows is not None:
        raise UnstatedError("no limit on turnover, nor on w⁺ and w⁻ apart")
    if not like.cash:
        raise UnstatedError("no trading costs, and here the costs are the problem")
    names = [f"A{i}" for i in range(like.n)]
    covariance = like.factors.T @ like.factors + np.diag(like.specific)
    frame = pd.DataFrame(covariance, names, names)
    returns = pd.DataFrame(np.zeros((2, like.n)), columns=names)

    def one(p: Instance, account: int) -> Array | None:
        portfolio = riskfolio.Portfolio(returns=returns)
        portfolio.cov = frame
        portfolio.mu = pd.DataFrame([p.aversion * (covariance @ p.target)], columns=names)
        portfolio.lowerlng, portfolio.upperlng = p.lower[:, None], p.upper[:, None]
        portfolio.solvers, portfolio.sol_params = ["CLARABEL"], {"CLARABEL": {}}
        found = portfolio.optimization(model="Classic", rm="MV", obj="Utility", rf=0, l=0.5 * p.aversion, hist=True)
        return found["weights"].to_numpy() if found is not None else None

    return one
