"""A crypto treasury with a loan, after the crash of 2021-05-19 (see data/README.md). Run it whole or cell by cell."""

# %% The account: one row an asset, quantities, prices, targets and whatever columns the rules name
from importlib.resources import files

import pandas as pd

from equipoise import Drift, Rebalancer, read_table
from equipoise.constraints import DriftBand, HealthFactor, LongOnly, LotSize, ShortOnly, Turnover
from equipoise.optimizer import CovarianceRisk, HoldingCost, ProportionalCost

data = files("equipoise.data")
holdings = read_table(str(data / "treasury.csv"))
covariance = pd.read_csv(str(data / "treasury_covariance.csv"), index_col=0)

# %% The policy: the same as data/treasury.toml
rebalancer = Rebalancer(
    cash="USDC",
    risk=CovarianceRisk(covariance, riskless=["USDC-debt"]),
    costs=[ProportionalCost("fee"), HoldingCost(short="borrow_rate")],
    constraints=[
        DriftBand(absolute=0.05, relative=0.25),
        LongOnly(except_=["USDC-debt"]),
        ShortOnly(assets=["USDC-debt"]),
        HealthFactor(at_least=1.6, threshold="liquidation_threshold"),
        Turnover(0.3),
        LotSize("lot", min_notional="min_notional"),
    ],
    aversion=5,
    horizon=0.25,
    trigger=Drift(),
)

# %% Is it time, and what is to be done?
print(rebalancer.due(holdings))
plan = rebalancer.solve(holdings)
print(plan)

# %% The orders, and what keeps the plan from being better: rules with a price, dearest first
print(plan.orders[["side", "quantity", "notional", "cost"]])
priced = plan.checks.query("shadow_price > 1e-9").sort_values("shadow_price", ascending=False)
print(priced[["rule", "asset", "value", "limit", "shadow_price"]])
