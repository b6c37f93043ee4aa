"""Portfolios, risk, costs, solvers and plans (see `equipoise` for the front door)."""

from equipoise.optimizer.batch import Plans
from equipoise.optimizer.choose import Choice, choose
from equipoise.optimizer.costs import (
    Cost,
    CostTerms,
    FixedFee,
    HoldingCost,
    ImpactCost,
    MinimumCommission,
    ProportionalCost,
    QuadraticCost,
)
from equipoise.optimizer.plan import Plan
from equipoise.optimizer.policy import Policy
from equipoise.optimizer.portfolio import Portfolio, read_table
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.risk import CovarianceRisk, FactoredRisk, FactorRisk, Risk, SquaredDistance
from equipoise.optimizer.sequence import OrderSequence, OrderStep, sequenced
from equipoise.optimizer.solution import Prices, Solution, Status
from equipoise.optimizer.transfers import Transfer
from equipoise.optimizer.triggers import Calendar, Drift, Due, Trigger
from equipoise.optimizer.verify import Check, Verified, verify

__all__ = [
    "Calendar",
    "Check",
    "Choice",
    "Cost",
    "CostTerms",
    "CovarianceRisk",
    "Drift",
    "Due",
    "FactorRisk",
    "FactoredRisk",
    "FixedFee",
    "HoldingCost",
    "ImpactCost",
    "MinimumCommission",
    "OrderSequence",
    "OrderStep",
    "Plan",
    "Plans",
    "Policy",
    "Portfolio",
    "Prices",
    "Problem",
    "ProportionalCost",
    "QuadraticCost",
    "Rebalancer",
    "Risk",
    "Solution",
    "SquaredDistance",
    "Status",
    "Transfer",
    "Trigger",
    "Verified",
    "choose",
    "read_table",
    "sequenced",
    "verify",
]
