"""cvxportfolio: its single-period policy, compiled once; as in a backtest, every portfolio is a moment of time."""

from __future__ import annotations

import cvxportfolio as cvx
import numpy as np
import pandas as pd

from .instances import HORIZON, Array, Family, Instance
from .peer import One, UnstatedError


def policy(family: Family) -> One:
    like = family.instances[0]
    if not like.cash:
        raise UnstatedError("always has a cash account")
    if like.rows is not None:
        raise UnstatedError("no limit on w⁺ and w⁻ apart (collateral)")
    judged = family.instances[: family.judged]
    names = [*(f"A{i}" for i in range(like.n - 1)), "USD"]
    calendar = pd.date_range("2020-01-01", periods=len(judged), freq="D")
    moment = {id(p): t for p, t in zip(judged, calendar, strict=True)}

    def by_time(values: list[Array]) -> pd.DataFrame:
        return pd.DataFrame([v[:-1] for v in values], calendar, names[:-1])

    factors = pd.DataFrame(like.factors[:, :-1], columns=names[:-1])
    specific = pd.Series(like.specific[:-1], names[:-1])
    half_spread = pd.Series(like.cost[:-1] * HORIZON, names[:-1])
    risk, cost = cvx.FactorModelCovariance(F=factors, d=specific), cvx.TransactionCost(a=half_spread, b=None)
    invested = pd.Series([1.0 - p.upper[-1] for p in judged], calendar)
    planned = cvx.SinglePeriodOptimization(
        -0.5 * like.aversion * risk - cost * (1 / HORIZON),
        [
            cvx.MinWeights(by_time([p.lower for p in judged])),
            cvx.MaxWeights(by_time([p.upper for p in judged])),
            cvx.LongOnly(applies_to_cash=True),
            cvx.FactorMinLimit(pd.Series(1.0, names[:-1]), invested),  # the cap on the cash
        ],
        benchmark=pd.DataFrame([p.target for p in judged], calendar, names),
        include_cash_return=False,
        solver="CLARABEL",
    )
    planned.initialize_estimator_recursive(universe=pd.Index(names), trading_calendar=calendar)

    def one(p: Instance, account: int) -> Array | None:
        held = pd.Series(p.before, names)
        found = planned.values_in_time_recursive(
            t=moment[id(p)],
            current_weights=held,
            current_portfolio_value=1.0,
            past_returns=None,
            past_volumes=None,
            current_prices=None,
        )
        return np.asarray(found, dtype=float)

    one(like, 0)
    return one
