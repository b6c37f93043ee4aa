"""The program in plain sight, beside the fast solvers and beside formulations that are written by hand.

For every rule (the cases of `test_every_rule`), cost and kind of risk: the same optimum, and points keep it or break it
as the formula says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from accounts_cases import random_case
from generators import names, problem
from test_every_rule import ASSETS, CASES, EVERY, Case, problem_of

from equipoise import Rebalancer
from equipoise.constraints import (
    CashBand,
    Custom,
    HealthFactor,
    LongOnly,
    LotSize,
    MinimumPosition,
    NameLimit,
    OrderLimit,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer import (
    CovarianceRisk,
    FactorRisk,
    FixedFee,
    HoldingCost,
    ImpactCost,
    ProportionalCost,
    QuadraticCost,
)
from equipoise.optimizer.problem import costs
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.program.program import SETTINGS
from equipoise.optimizer.solvers.program.readable import ConvexProgram, readable

# Said of programs in the user's units, which have no scale.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")

TABLE = pd.DataFrame(
    {"quantity": [0.6, 0.3, -0.2, 0.3], "price": 1.0, "target": [0.4, 0.4, -0.1, 0.3], "lt": [0.8, 0.7, 0.0, 0.0]},
    index=["BTC", "ETH", "DEBT", "USD"],
)
BASE: dict[str, Any] = {
    "cash": "USD",
    "risk": CovarianceRisk([[0.36, 0.2], [0.2, 0.5]], assets=("BTC", "ETH"), riskless=("DEBT",)),
    "costs": [ProportionalCost(0.001), HoldingCost(0.0, 0.05)],
}


def program(*rules: Any, **changed: Any) -> ConvexProgram:
    return Rebalancer(**{**BASE, "constraints": rules, **changed}).program(TABLE)


def objective(*rules: Any, **changed: Any) -> float:
    return Rebalancer(**{**BASE, "constraints": rules, **changed}).solve(TABLE).objective


# --- the same problem ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [pytest.param(cases[0], id=cls.__name__) for cls, cases in CASES.items()])
def test_every_rule_is_the_same_in_all_three(case: Case) -> None:
    """One formulation, three ways: its cvxpy text by Clarabel, the fastest solver, and the formula written by hand."""
    given = problem_of(case)
    plain, answer = readable(given), solve(given)
    assert plain.problem.is_dcp(dpp=not (given.opaque or given.envelopes))
    assert plain.solve() == pytest.approx(answer.objective, rel=1e-6, abs=1e-9)
    weights = dict(zip(plain.assets, plain.weights.value, strict=True))
    assert max(case.excess(weights[a] for a in ASSETS)) == pytest.approx(0.0, abs=1e-7)
    assert given.violation(plain.weights.value) <= 1e-8


N = 3
FEE, SQUARE, IMPACT, HELD, OWED = 0.002, 0.05, 0.03, 0.01, 0.04
COSTS: dict[str, tuple[Any, Any, Any]] = {
    "none": ((), lambda z: 0.0, lambda w: 0.0),
    "proportional": (
        ProportionalCost(FEE, 3 * FEE),
        lambda z: FEE * cp.sum(cp.pos(z)) + 3 * FEE * cp.sum(cp.neg(z)),
        lambda w: 0.0,
    ),
    "quadratic": (QuadraticCost(SQUARE), lambda z: SQUARE * cp.sum_squares(z), lambda w: 0.0),
    "impact": (ImpactCost(IMPACT, 1.0), lambda z: IMPACT * cp.sum(cp.power(cp.abs(z), 1.5)), lambda w: 0.0),
    "holding": (
        HoldingCost(HELD, OWED),
        lambda z: 0.0,
        lambda w: HELD * cp.sum(cp.pos(w)) + OWED * cp.sum(cp.neg(w)),
    ),
    "holding, one slope": (HoldingCost(HELD, -HELD), lambda z: 0.0, lambda w: HELD * cp.sum(w)),
}
LOADINGS, SPECIFIC = np.array([[0.2, 0.1], [0.1, -0.2], [0.0, 0.3]]), np.array([0.01, 0.04, 0.02])
DENSE = LOADINGS @ LOADINGS.T + np.diag(SPECIFIC)
RISKS: dict[str, tuple[Any, Any]] = {
    "none": (None, np.eye(N)),
    "dense": (CovarianceRisk(DENSE, assets=names(N)), DENSE),
    "diagonal": (CovarianceRisk(np.diag(SPECIFIC), assets=names(N)), np.diag(SPECIFIC)),
    "factors": (
        FactorRisk(LOADINGS.T, SPECIFIC, assets=names(N)),
        DENSE,
    ),
}


@pytest.mark.parametrize(
    ("cost", "risk"), [*((cost, "factors") for cost in COSTS), *(("proportional", risk) for risk in RISKS)]
)
def test_every_cost_and_risk_is_the_same_in_all_three(cost: str, risk: str) -> None:
    """And in a formulation of the test's own; assets and cash may be owed."""
    before, target, aversion, horizon = np.array([0.6, -0.2, 0.3, 0.3]), np.array([0.2, 0.1, 0.5, 0.2]), 4.0, 0.5
    (term, once, yearly), (model, covariance) = COSTS[cost], RISKS[risk]
    terms = (term,) if term else ()
    given = problem(before, target, Turnover(0.4), risk=model, costs=terms, aversion=aversion, horizon=horizon)
    w, cash = cp.Variable(N), cp.Variable()
    away, z = w - target[:N], w - before[:N]
    value = aversion / 2 * cp.quad_form(away, covariance) + once(z) / horizon + yearly(w)
    rules = [cp.sum(w) + cash == 1, cash - once(z) >= 0, cp.norm1(z) / 2 <= 0.4]
    expected = cp.Problem(cp.Minimize(value), rules).solve(solver="CLARABEL", **SETTINGS["CLARABEL"])
    assert readable(given).solve() == pytest.approx(expected, rel=1e-7)
    assert solve(given).objective == pytest.approx(expected, rel=1e-7)


def test_several_accounts_are_the_same() -> None:
    case = random_case(np.random.default_rng(3))
    plan, plain = case.rebalancer.solve(case.table), case.rebalancer.program(case.table)
    assert plain.solve() == pytest.approx(plan.objective, rel=1e-6, abs=1e-9)
    assert plain.weights.shape == (len(case.table),) == (len(plain.assets),)
    assert set(plain.assets) == set(case.labels)
    assert plain.transfers.value.min() >= -1e-9
    assert len(plain.routes) == plain.transfers.shape[0]
    assert plain.weights.value.sum() == pytest.approx(1.0, abs=1e-9)
    assert sum("trading cost of" in name for name in plain.constraints) == 3
    assert f"limit of the transfer, lower ({plain.routes[0]}" in str(plain)


def test_the_page_has_every_rule_and_every_cost() -> None:
    page = (Path(__file__).parents[1] / "docs" / "program.md").read_text(encoding="utf-8")
    known = [*EVERY, *(one for one in vars(costs).values() if isinstance(one, type) and issubclass(one, costs.Cost))]
    missing = [kind.__name__ for kind in known if f"`{kind.__name__}`" not in page and kind is not costs.Cost]
    assert not missing


# --- to read, to extend, to hand on ----------------------------------------------------------------------------


def test_it_is_named_by_rule_and_asset() -> None:
    rules = WeightBounds(0.1, 0.5, assets=["BTC"]), LongOnly(except_=["DEBT"]), HealthFactor(2.0, "lt"), Turnover(0.1)
    plain = program(
        *rules, Turnover(0.2), TrackingErrorLimit(0.3), Custom(lambda t: t.weight("ETH") <= 0.9, name="mine")
    )
    rules_of = {name: plain.entries.get(name) for name in plain.constraints if ": " in name or name == "mine"}
    assert rules_of == {
        "WeightBounds: weight, lower": ("BTC",),
        "WeightBounds: weight, upper": ("BTC",),
        "LongOnly: no short position, lower": ("ETH",),
        "HealthFactor: health factor": None,
        "Turnover: one-way turnover": None,
        "Turnover: one-way turnover (2)": None,
        "CashFloor: cash floor": None,
        "TrackingErrorLimit: tracking error, distance": None,
        "TrackingErrorLimit: tracking error": None,
        "mine": None,
    }
    assert len(set(map(id, plain.constraints.values()))) == len(plain.constraints) == len(plain.problem.constraints)
    assert len(plain.parameters) == len(plain.problem.parameters())
    threshold = plain.parameters["HealthFactor: health factor[long]"].value
    assert dict(zip(plain.assets, -threshold, strict=True)) == {"BTC": 0.8, "ETH": 0.7, "DEBT": 0.0, "USD": 0.0}
    assert plain.parameters["Turnover: one-way turnover (2)[limit]"].value == 0.2
    assert plain.parameters["target"].value.tolist() == list(plain.target)
    text = str(plain)
    assert "WeightBounds: weight, upper (BTC):\n      weights[0] <= WeightBounds: weight[upper]" in text
    assert "trading cost[buy] @ buy + trading cost[sell] @ sell <= cost[0]" in text
    names = {check.rule for check in Rebalancer(**BASE, constraints=rules).solve(TABLE).verified.checks}
    assert {name for name in names if not any(of.startswith(name) for of in plain.constraints)} == set()


def test_parameters_are_the_numbers_of_the_table() -> None:
    """With another limit and another target it is the other problem, and is not compiled again."""
    plain = program(Turnover(0.1))
    assert plain.solve() == pytest.approx(objective(Turnover(0.1)), rel=1e-8)
    plain.parameters["Turnover: one-way turnover[limit]"].value = 0.05
    assert plain.solve() == pytest.approx(objective(Turnover(0.05)), rel=1e-8)
    assert plain.constraints["Turnover: one-way turnover"].dual_value > 0


def test_it_is_extended_by_constraints_and_by_terms() -> None:
    """A constraint more is the custom rule; a term more is the cost."""
    plain = program(Turnover(0.2))
    mine = cp.Problem(cp.Minimize(0), [plain.weight("BTC") <= 0.42, plain.trade("ETH") >= -0.01])
    rule = Custom(lambda t: [t.weight("BTC") <= 0.42, t.trade("ETH") >= -0.01])
    extended = (plain.problem + mine).solve(solver="CLARABEL", **SETTINGS["CLARABEL"])
    assert extended == pytest.approx(objective(Turnover(0.2), rule), rel=1e-7)
    term = cp.Problem(cp.Minimize(0.3 * cp.sum_squares(plain.trades[:3])))
    with_cost = (plain.problem + term).solve(solver="CLARABEL", **SETTINGS["CLARABEL"])
    # In cash the cost would be paid from the cash too, which binds nowhere here.
    more = [*BASE["costs"], QuadraticCost(0.3)]
    assert with_cost == pytest.approx(objective(Turnover(0.2), costs=more), rel=1e-7)


@pytest.mark.parametrize("solver", ["SCS", "OSQP"])
def test_it_goes_to_any_solver(solver: str) -> None:
    assert program(Turnover(0.1)).solve(solver) == pytest.approx(objective(Turnover(0.1)), rel=1e-6)


def test_what_is_not_convex_is_left_out_and_said() -> None:
    rules = LotSize(0.1), MinimumPosition(0.05), NameLimit(3), OrderLimit(2)
    plain = program(*rules, HealthFactor(2.0, "lt"), costs=[*BASE["costs"], FixedFee(0.01)])
    assert plain.left_out == (
        "LotSize: whole lots",
        "MinimumPosition: least position",
        "NameLimit: number of names",
        "OrderLimit: number of orders",
        "costs: fees for each order",
    )
    assert str(plain).endswith("left out: costs: fees for each order")
    assert not program(Turnover(0.1)).left_out
    assert plain.solve() == pytest.approx(objective(HealthFactor(2.0, "lt")), rel=1e-7)


def test_rows_with_two_slopes_at_the_cash_have_the_safe_one() -> None:
    table = TABLE.assign(lt=[0.8, 0.7, 0.0, 0.9])
    policy = Rebalancer(**BASE, constraints=[HealthFactor(2.0, "lt"), CashBand(-0.5, 0.9)])
    plain = policy.program(table)
    assert [text for text in plain.left_out if "steeper" in text]
    assert plain.solve() >= policy.solve(table).objective - 1e-12
