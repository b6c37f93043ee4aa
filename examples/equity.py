"""Whole shares with real spreads, then a batch of accounts (see data/README.md). Run it whole or cell by cell."""

# %% One account and two years of daily returns
from importlib.resources import files

import pandas as pd

from equipoise import Drift, Rebalancer, read_table
from equipoise.constraints import DriftBand, LongOnly, LotSize
from equipoise.optimizer import CovarianceRisk, ProportionalCost

data = files("equipoise.data")
holdings = read_table(str(data / "equity.csv"))
returns = pd.read_csv(str(data / "equity_returns.csv"), index_col="date")

# %% The policy: the same as data/equity.toml
rebalancer = Rebalancer(
    cash="USD",
    risk=CovarianceRisk.from_returns(returns, method="ewma", half_life=63),
    costs=[ProportionalCost("half_spread")],
    constraints=[DriftBand(absolute=0.05, relative=0.25), LongOnly(), LotSize("lot")],
    horizon=0.5,
    trigger=Drift(),
)
print(rebalancer.solve(holdings))

# %% Ten accounts around the same model portfolio: each has its own quantities, the rest is shared
accounts = read_table(str(data / "accounts.csv")).join(holdings.drop(columns="quantity"), on="asset")
plans = rebalancer.solve_batch(accounts[accounts["portfolio_id"] <= "0010"])
print(plans.results[["status", "tracking_error_before", "tracking_error", "cost"]])
print(plans.orders[["side", "quantity", "notional", "cost"]].head())
