"""Portfolios, risk, costs, solvers and plans (see `equipoise` for the front door)."""

from equipoise.constraints.pieces import Check
from equipoise.optimizer.batches.solve import Plans
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.portfolio.portfolio import Portfolio, read_table
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.problem.costs import (
    Cost,
    CostTerms,
    FixedFee,
    HoldingCost,
    ImpactCost,
    MinimumCommission,
    ProportionalCost,
    QuadraticCost,
)
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Prices, Solution, Solver, Status
from equipoise.optimizer.rebalancer import Rebalancer
from equipoise.optimizer.risk.models import CovarianceRisk, FactoredRisk, FactorRisk, Risk, SquaredDistance
from equipoise.optimizer.sequence.steps import OrderSequence, OrderStep, sequenced
from equipoise.optimizer.solvers.choose import Choice, choose, register_solver
from equipoise.optimizer.triggers import Calendar, Drift, Due, Trigger
from equipoise.optimizer.verification.exact import Verified, verify

__all__ = [
    "Attempt",
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
    "Solver",
    "SquaredDistance",
    "Status",
    "Transfer",
    "Trigger",
    "Verified",
    "choose",
    "read_table",
    "register_solver",
    "sequenced",
    "verify",
]
