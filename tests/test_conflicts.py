"""Conflicts between rules: which are named, whether that is proven, and whether the printed limits work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from generators import names, problem
from strategies import RISKS, RULES, instance, possible

from equipoise import constraints
from equipoise.constraints import (
    AfterMove,
    CashFloor,
    Custom,
    CVaR,
    HealthFactor,
    LongOnly,
    MaintenanceMargin,
    NoTrade,
    Rule,
    ShortOnly,
    Turnover,
    WeightBounds,
)
from equipoise.constraints.errors import InputError
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import ProportionalCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution, Status
from equipoise.optimizer.risk.models import CovarianceRisk
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.conflict import Conflict, Feasibility
from equipoise.optimizer.solvers.infeasible import explain
from equipoise.optimizer.solvers.program.program import CvxpySolver

CASES = json.loads((Path(__file__).parent / "data" / "conflicts.json").read_text(encoding="utf-8"))
BACKGROUND = ("cash after costs", "debts stay debts")


def case_problem(case: dict[str, Any], **changed: Any) -> Problem:
    """The case's problem, with the arguments of one rule changed: `rule`, and the arguments."""
    of, table = changed.pop("rule", None), pd.DataFrame(case["table"]).set_index("asset")
    rules: list[Rule] = [CashFloor(0.0, name=BACKGROUND[0])]
    if table.debt.any():
        rules.append(ShortOnly([str(label) for label in table.index[table.debt]], name=BACKGROUND[1]))
    for rule in case["rules"]:
        given = rule["params"] | (changed if rule["name"] == of else {})
        rules.append(getattr(constraints, rule["type"])(**given, name=rule["name"]))
    risk = CovarianceRisk(np.array(case["covariance"]), assets=[a for a in table.index if a != case["cash"]])
    cost = (ProportionalCost("cost_buy", "cost_sell"),)
    policy = Policy(risk, cost, tuple(rules), aversion=case["aversion"], horizon=case["horizon"])
    return policy.problem(Portfolio.from_table(table, case["cash"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_conflicts_are_minimal_and_printed_limits_work(case: dict[str, Any]) -> None:
    """Against every minimal set, and the nearest value of each single number, of an independent program."""
    asked = case_problem(case)
    said = explain(asked, background=BACKGROUND)
    assert said.status is Status.INFEASIBLE
    assert not said.undecided
    assert set(said.rules) in [set(found) for found in case["expected"]["minimal_conflicts"]]
    for repair in case["expected"]["repairs"]:
        rule, value = repair["rule"], repair["value"]
        argument, of = re.fullmatch(r"(\w+)(?:\[(.*)\])?", repair["param"]).groups()  # type: ignore[union-attr]
        (given,) = (r["params"] for r in case["rules"] if r["name"] == rule)
        found = re.findall(rf"(?:^|\. ){rule}: the [^;:]*? (?:at least|reaches) (-?[\d.]+)( %)?[ ;]", said.text)
        if value is None or len(found) != 1 or argument in ("absolute", "relative") or isinstance(given, list):
            continue
        if (argument in ("upper", "lower") and len(given) > 2) or (of is None and isinstance(given[argument], dict)):
            continue
        printed = float(found[0][0]) / (100.0 if found[0][1] else 1.0)
        sign = np.sign(value - repair["asked"])  # to the side that works, by less than a tenth of what is missing
        assert -1e-8 <= sign * (printed - value) <= 0.11 * abs(value - repair["asked"]) + 1e-7, repair
        new = printed if of is None else given[argument] | {of: printed}
        assert solve(case_problem(case, rule=rule, **{argument: new})).weights is not None, repair


@pytest.mark.slow
def test_no_portfolio_of_any_rule_kind_raises() -> None:
    """Limits beyond what a random plan keeps, of every kind; CVaR and AfterMove among them."""
    kinds = [name for name in RULES if name != "lot_size"]
    infeasible = 0
    for number in range(20):
        rng = np.random.default_rng([10, number])
        risk = RISKS[rng.integers(1, len(RISKS))]
        drawn = [str(name) for name in rng.permutation(kinds)[: rng.integers(1, 5)]]
        try:
            rules = possible([*drawn, "cvar", "after_move"][: 2 + number % 5], risk)
            made = instance(rng, rules=list(dict.fromkeys(rules)), risk=risk, slack=-float(rng.uniform(0.05, 0.5)))
            given = made.problem()
        except InputError:
            continue
        answer = solve(given)
        assert answer.status is not Status.UNSOLVED, (number, answer.explanation)
        infeasible += answer.status is Status.INFEASIBLE
    assert infeasible >= 6


HEALTH = HealthFactor(1.2, "threshold")
#: Collateral of 1.5 at a threshold of 0.8 for a debt of 0.6: the rules below ask for more, and nothing may be traded.
OWING: dict[str, Any] = {
    "columns": {"threshold": [0.8, 0.8, 0.0, 0.0]},
    "covariance": np.diag([0.2, 0.3, 0.25]),
}


@pytest.mark.parametrize(
    "rule",
    [
        CVaR(HEALTH, {f"{k}": {"A000": -0.1 * k, "A001": -0.1 * k} for k in range(6)}, level=0.6),
        AfterMove(HEALTH, years=0.05, sigmas=8.0),
        AfterMove(HEALTH, years=0.05, probability=1e-3, distribution="cantelli"),
        MaintenanceMargin({"A002": [(0, 0.1), (0.2, 0.3)]}, utilisation=0.05),
    ],
    ids=["tail", "sigmas", "cantelli", "tiers"],
)
def test_envelopes_in_conflict_are_explained(rule: Rule) -> None:
    held, wanted = [0.9, 0.6, -0.6, 0.1], [0.9, 0.6, -0.6, 0.1]
    idle = (Turnover(5.0), WeightBounds(upper=3.0), LongOnly(except_=["A002"]))
    given = problem(held, wanted, *idle, rule, NoTrade(), CashFloor(-1.0), **OWING)
    answer = solve(given)
    assert answer.status is Status.INFEASIBLE
    assert set(explain(given).rules) == {rule.title, "NoTrade"}
    assert rule.title in answer.explanation


def test_a_set_without_any_one_is_feasible_and_the_set_alone_is_not() -> None:
    """Three rules that conflict only together, and three that have nothing to do with it."""
    rules = [
        WeightBounds(upper=0.3, assets=["A000"], name="cap"),
        WeightBounds(upper=0.3, assets=["A001"], name="other cap"),
        constraints.CashBand(0.0, 0.39, name="cash"),  # 0.3 + 0.3 + 0.39 is less than 1
        Turnover(2.0, name="turnover"),
        LongOnly(name="long only"),
        constraints.Leverage(gross=1.5, name="gross"),
    ]
    given = problem([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], *rules, costs=(ProportionalCost(0.001),))
    found = Feasibility(given).minimal()
    assert isinstance(found, Conflict)
    assert set(found.titles) == {"cap", "other cap", "cash"}
    assert not found.undecided
    for left_out in found.titles:
        assert Feasibility(given).tried(set(found.titles) - {left_out}).weights is not None
    assert explain(given, background=("cap",)).rules == ("other cap", "cash")


@pytest.mark.parametrize("by", [1e-1, 1e-4, 1e-6, 1e-7, 2e-8])
def test_conflicts_of_any_size_are_proven(by: float) -> None:
    """A floor of `by` more than a cap, in a group of one; and no conflict at all where it is as much less."""
    floor = constraints.GroupLimit("sector", lower={"one": 0.25 + by})
    for cap, feasible in ((0.25, False), (0.25 + 2 * by, True)):
        columns = {"sector": ["one", "two", None]}
        given = problem([0.5, 0.3, 0.2], [0.2, 0.2, 0.6], floor, WeightBounds(upper=cap), columns=columns)
        answer = solve(given)
        assert (answer.weights is not None) == feasible
        assert feasible or answer.status is Status.INFEASIBLE


def test_a_custom_rule_in_conflict_is_named() -> None:
    given = problem(
        [0.5, 0.3, 0.2],
        [0.2, 0.2, 0.6],
        Custom(lambda t: t.weights[0] >= 0.6, name="mine"),
        WeightBounds(upper=0.4, name="caps"),
        Turnover(1.0, name="turnover"),
    )
    said = explain(given)
    assert said.status is Status.INFEASIBLE
    assert set(said.rules) == {"mine", "caps"}


@pytest.mark.parametrize("still", [1, 8])
def test_a_conflict_with_a_custom_rule_at_its_kinks_is_proven(still: int) -> None:
    """What must be sold is more than all may trade, and the others are best left as they are."""
    before = np.append(np.full(still + 1, 0.9 / (still + 1)), 0.1)
    labels = names(still + 1)
    pinned = WeightBounds({labels[0]: 0.0}, {labels[0]: 0.0}, [labels[0]], name="pinned")
    custom = Custom(lambda t: cp.norm1(t.trades[:-1]) <= 0.02, name="mine")
    said = explain(problem(before, before, LongOnly(), pinned, custom))
    assert said.status is Status.INFEASIBLE
    assert set(said.rules) == {"pinned", "mine"}


def test_holding_is_no_answer_where_no_solver_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held keeps every rule, but nobody knows how far it is from the best plan: unsolved."""
    given = problem([0.5, 0.3, 0.2], [0.2, 0.2, 0.6], Custom(lambda t: t.weights[0] >= 0.1))
    monkeypatch.setattr(CvxpySolver, "solve", lambda *_, **__: Solution(Status.UNSOLVED, "none"))
    answer = solve(given)
    assert answer.status is Status.UNSOLVED
    assert "what is held keeps all rules" in answer.explanation


@pytest.mark.parametrize(("assets", "tiers"), [(12, 3), (60, 8)])
def test_tiers_of_many_assets(assets: int, tiers: int) -> None:
    """The margin is the binding rule; its optimum equals that of a program written by hand, and the gap is closed."""
    rng = np.random.default_rng([assets, tiers])
    before, after = (np.append(w, 1 - w.sum()) for w in rng.normal(0, 2.0 / np.sqrt(assets), (2, assets)))
    floors = np.sort(rng.uniform(0, 1.0 / np.sqrt(assets), (assets, tiers)), axis=1)
    floors[:, 0] = 0.0
    rates = np.sort(rng.uniform(0.01, 0.5, (assets, tiers)), axis=1)
    steps = np.diff(rates, prepend=0.0, axis=1)

    def needed(size: Any, maximum: Any) -> Any:
        """Each slice at the rate of its own tier."""
        return [steps[i, j] * maximum(size[i] - floors[i, j], 0.0) for i in range(assets) for j in range(tiers)]

    use = 0.7 * float(sum(needed(np.abs(after[:-1]), np.maximum)))
    factors = rng.normal(0, 0.3, (3, assets))
    covariance = factors.T @ factors + np.diag(rng.uniform(0.05, 0.4, assets) ** 2)
    tables = [list(zip(f, r, strict=True)) for f, r in zip(floors.tolist(), rates.tolist(), strict=True)]
    brackets = dict(zip(names(assets), tables, strict=True))
    rule = MaintenanceMargin(brackets, utilisation=use)
    given = problem(before, after, rule, CashFloor(-90.0), covariance=covariance)
    answer = solve(given)
    assert answer.status is Status.OPTIMAL
    assert answer.gap <= 1e-6 * answer.objective

    w = cp.Variable(assets)
    away = factors @ (w - after[:-1])
    spread = cp.multiply(np.sqrt(np.diag(covariance - factors.T @ factors)), w - after[:-1])
    value = 0.5 * 10.0 * (cp.sum_squares(away) + cp.sum_squares(spread))
    cp.Problem(cp.Minimize(value), [cp.sum(needed(cp.abs(w), cp.maximum)) <= use]).solve(solver="CLARABEL")
    assert answer.objective == pytest.approx(float(value.value), rel=1e-6)
