"""The two tables of a batch, made of arrays, against the orders and figures that each portfolio's own plan gives."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOUNDS, CASH, COSTS, ROWS, instance

from equipoise import Plan, Rebalancer
from equipoise.constraints import DriftBand, GroupLimit, LongOnly, LotSize, Rule, Turnover
from equipoise.optimizer import FactorRisk, ProportionalCost
from equipoise.optimizer.plans.batch_tables import RESULT_COLUMNS, Part, Solved, of_plans, of_stack, orders, results
from equipoise.optimizer.plans.make import finished
from equipoise.optimizer.plans.plan import ORDER_COLUMNS
from equipoise.optimizer.plans.reasons import reasons, sentence
from equipoise.optimizer.portfolio.stack import Stack, stacks
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Prices, Solution, Status, close_enough
from equipoise.optimizer.sequence.listing import OPEN
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.verification.stacked import verified

#: What stands in a plan's reasons but not in the table of a batch.
FIGURES = re.compile(r" \((-?[0-9.]+%, limit|-?[0-9.]+% to) -?[0-9.]+%\)$")


def stacked(policy: Policy, table: pd.DataFrame) -> Problem:
    (stack,), odd = stacks(table, CASH, label_columns=policy.label_columns)
    assert odd == []
    return policy.stacked(stack)


def solved(problem: Problem, weights: np.ndarray | None = None) -> Solved:
    """The stack with its answers, or with these weights, checked."""
    answers = newton.solve(problem)
    wanted = answers.weights if weights is None else weights
    objective = answers.objective if weights is None else problem.objective(wanted)
    checked = verified(problem, wanted)
    held = ~(checked.trades != 0).any(axis=1)
    return Solved(problem, wanted, answers.rows, objective, answers.bound, held, "newton", checked)


def plan(policy: Policy, found: Solved, i: int) -> Plan:
    """Portfolio i of the stack by itself: the same weights and prices, the exact check, and its own orders."""
    problem = policy.problem(found.problem.portfolio.portfolio(i))
    objective, bound = float(found.objective[i]), float(found.bound[i])
    status = Status.OPTIMAL if close_enough(objective, bound) else Status.FEASIBLE
    status, name = (Status.NO_TRADE, "holding") if found.held[i] else (status, "newton")
    prices = Prices(found.prices[i], np.zeros(0))
    return finished(problem, Solution(status, name, found.weights[i].copy(), prices, objective, bound))


def books(table: pd.DataFrame, count: int, rng: np.random.Generator, noise: float = 0.02) -> pd.DataFrame:
    """`count` accounts that hold about what this table holds, some positions in no amount at all."""
    parts = []
    for number in range(count):
        one = table.rename_axis("asset").reset_index().assign(portfolio_id=f"book {number}")
        factor = 1.0 + noise * rng.normal(size=len(one)) * (rng.random(len(one)) < 0.7)
        parts.append(one.assign(quantity=one.quantity * factor))
    return pd.concat(parts, ignore_index=True)


def assert_orders(found: pd.DataFrame, plans: list[Plan]) -> None:
    """These are the plans' orders, in their order; reasons without their figures."""
    expected = {p.name: p.orders for p in plans if len(p.orders)}
    assert list(dict.fromkeys(found.index.get_level_values(0))) == list(expected)
    for name, own in expected.items():
        mine = found.loc[name]
        assert list(mine.index) == list(own.index)
        assert list(mine.columns) == list(own.columns)
        for column in ("side", "quantity", "lots", "price"):
            assert mine[column].tolist() == own[column].tolist()
        for column in ("notional", "cost"):
            assert mine[column].to_numpy() == pytest.approx(own[column].to_numpy(), rel=1e-13, abs=1e-300)
        assert mine.reason.tolist() == [FIGURES.sub("", text) for text in own.reason]


def assert_results(found: pd.DataFrame, plans: list[Plan]) -> None:
    assert list(found.index) == [p.name for p in plans]
    assert list(found.columns) == list(RESULT_COLUMNS)
    for row, p in zip(found.itertuples(), plans, strict=True):
        assert (row.status, row.verified, row.solver, row.message) == (
            p.status.name,
            p.status.ok,
            p.solver,
            p.message,
        )
        assert row.orders == len(p.orders)
        assert row.nav == (p.problem.portfolio.nav if p.problem else pytest.approx(np.nan, nan_ok=True))
        figures = (p.objective, p.bound, *p.tracking_error, p.turnover, p.cost)
        named = (row.objective, row.bound, row.tracking_error_before, row.tracking_error, row.turnover, row.cost)
        assert named == pytest.approx(figures, rel=1e-12, abs=1e-15, nan_ok=True)
        assert row.gap == pytest.approx(row.objective - row.bound, abs=0.0, nan_ok=True)


# --- the same as plan by plan -----------------------------------------------------------------------------------


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_a_stack_gives_what_its_plans_give(seed: int) -> None:
    """The shared generator's policies, with shorts, groups and all costs, on several books each."""
    rng = np.random.default_rng(seed)
    one = instance(rng, among=BOUNDS + ROWS)
    problem = stacked(one.policy, books(one.table, 8, rng))
    found = solved(problem)
    passed = np.flatnonzero(found.checked.passed)
    plans = [plan(one.policy, found, i) for i in passed]
    part = of_stack(found)
    assert all(p.status.ok for p in plans)
    made, of_all = results([part]), orders([part])
    assert_results(made, plans)
    # What arrays leave open stands sales first in a batch; a single plan's orders are searched.
    left_open = set(made.index[made["listing"] == OPEN])
    for one_plan in plans:
        if one_plan.name in left_open:
            assert set(of_all.loc[one_plan.name].index) == set(one_plan.orders.index)
    settled = [p for p in plans if p.name not in left_open]
    assert_orders(of_all[~of_all.index.get_level_values(0).isin(left_open)], settled)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=6)
def test_stacks_and_single_plans_interleave(seed: int) -> None:
    """Whoever of the input's portfolios was in which stack, or alone, with or without a plan: their rows are as if
    all had been alone."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(23).tolist()
    parts: list[Part] = []
    plans: dict[int, Plan] = {}
    alone: list[tuple[int, Plan]] = []
    for number in range(3):
        one = instance(rng, assets=int(rng.integers(2, 5)), among=BOUNDS, rules=["long_only"], shorts=0)
        table = books(one.table, 7, rng)
        problem = stacked(one.policy, table)
        stack = replace(
            problem.portfolio,
            names=tuple(f"{number}/{name}" for name in problem.portfolio.names),
            places=np.array([places.pop() for _ in range(7)]),
        )
        found = solved(replace(problem, portfolio=stack))
        parts.append(of_stack(found))
        for i, place in enumerate(stack.places.tolist()):
            plans[place] = replace(plan(one.policy, found, i), name=f"{number}/book {i}")
            if not found.checked.passed[i]:
                alone.append((place, plans[place]))
    lots = replace(one.policy, constraints=(*one.policy.constraints, LotSize(1e-3)))
    made = Rebalancer(cash=CASH, risk=lots.risk, costs=lots.costs, constraints=lots.constraints).solve(one.table)
    for single in (replace(made, name="in lots"), Plan(Status.INVALID_INPUT, "wrong", "no price")):
        plans[place := places.pop()] = single
        alone.append((place, single))
    parts.insert(int(rng.integers(0, 4)), of_plans(alone))
    expected = [plans[place] for place in sorted(plans)]
    assert_results(results(parts), expected)
    assert_orders(orders(parts), expected)


def test_a_batch_gives_what_its_portfolios_give_alone() -> None:
    """From the front door: with a group rule, factor risk, a wrong cell, one that is infeasible and one in lots."""
    rng = np.random.default_rng(4)
    one = instance(rng, assets=8, shorts=0, risk="factor", costs=list(COSTS), rules=["group_band", "turnover"])
    table = books(one.table, 6, rng, noise=0.3)
    table.loc[table.index[table.portfolio_id == "book 3"][0], "price"] = -1.0
    policy = one.policy
    rebalancer = Rebalancer(
        cash=CASH,
        risk=policy.risk,
        costs=policy.costs,
        constraints=policy.constraints,
        aversion=policy.aversion,
        horizon=policy.horizon,
    )
    batch = rebalancer.solve_batch(table)
    plans = []
    for name, rows in table.groupby("portfolio_id", sort=False):
        try:
            plans.append(rebalancer.solve(rows.drop(columns="portfolio_id"), name=name))
        except ValueError as error:
            plans.append(Plan(Status.INVALID_INPUT, name, str(error)))
    assert len({p.status for p in plans}) > 1
    assert list(batch.results.status) == [p.status.name for p in plans]
    assert list(batch.results.message) == [p.message for p in plans]
    for p in plans:
        own = p.orders
        assert list(batch.orders.loc[p.name].index if len(own) else []) == list(own.index)


# --- by hand ----------------------------------------------------------------------------------------------------


def by_hand() -> tuple[Policy, Solved]:
    """Two accounts of 1,000 in three assets and cash: one sells A and B in equal amounts and buys C, one holds."""
    table = pd.DataFrame(
        {
            "portfolio_id": np.repeat(["x", "y"], 4),
            "asset": ["C", "B", "A", CASH] * 2,
            "quantity": [0.0, 40.0, 20.0, 200.0, 10.0, 30.0, 15.0, 100.0],
            "price": [30.0, 10.0, 20.0, 1.0] * 2,
            "target": [0.3, 0.3, 0.3, 0.1] * 2,
        }
    )
    policy = Policy(costs=(ProportionalCost(0.001),), constraints=(DriftBand(absolute=0.05, assets=["A"]), LongOnly()))
    problem = stacked(policy, table)
    return policy, solved(problem, np.array([[0.3, 0.3, 0.15, 0.25], problem.before[1]]))


def test_orders_by_hand() -> None:
    """100 of A and of B sold, 150 of C bought, at 0.1 %; of two equal sales the first by label is first."""
    found = orders([of_stack(by_hand()[1])])
    assert list(found.index) == [("x", "A"), ("x", "B"), ("x", "C")]
    assert found.side.tolist() == ["sell", "sell", "buy"]
    assert found.quantity.to_numpy() == pytest.approx([5.0, 10.0, 5.0], rel=1e-14)
    assert found.price.tolist() == [20.0, 10.0, 30.0]
    assert found.notional.to_numpy() == pytest.approx([100.0, 100.0, 150.0], rel=1e-14)
    assert found.cost.to_numpy() == pytest.approx([0.1, 0.1, 0.15], rel=1e-14)
    assert found.lots.isna().all()
    assert found.reason.tolist() == ["above DriftBand", "towards its target", "towards its target"]


def test_results_by_hand() -> None:
    """Turnover (100 + 100 + 150)/2 of 1,000; distances of the weights, the cash not counted."""
    found = results([of_stack(by_hand()[1])])
    assert list(found.index) == ["x", "y"]
    assert found.verified.tolist() == [True, True]
    assert found.status.tolist()[1] == "NO_TRADE"
    assert found.solver.tolist() == ["newton", "holding"]
    assert found.nav.tolist() == [1000.0, 1000.0]
    assert found.turnover.to_numpy() == pytest.approx([0.175, 0.0], rel=1e-14)
    assert found.cost.to_numpy() == pytest.approx([0.35, 0.0], rel=1e-14)
    assert found.tracking_error_before["x"] == pytest.approx(np.sqrt(0.1**2 + 0.1**2 + 0.3**2), rel=1e-14)
    assert found.tracking_error["x"] == pytest.approx(0.15, rel=1e-14)
    assert found.orders.tolist() == [3, 0]


def test_the_smallest_orders_have_their_places() -> None:
    """Orders that are worth less than the least float are orders; they come last of their side."""
    _, found = by_hand()
    for units, expected in (([0.0, 5e-324, -5.0], ["C", "B"]), ([5e-324, -5e-324, 5.0], ["B", "C", "A"])):
        trades = found.checked.trades.copy()
        trades[0, :3] = units
        money = trades * np.array([1e-3, 1e-3, 1e-3, 1.0])
        part = of_stack(replace(found, checked=replace(found.checked, trades=trades, money=money)))
        assert [asset for _, asset in orders([part]).index] == expected


def test_a_portfolio_that_did_not_pass_is_in_no_table() -> None:
    _, found = by_hand()
    part = of_stack(replace(found, checked=replace(found.checked, passed=np.array([False, True]))))
    assert list(results([part]).index) == ["y"]
    assert orders([part]).empty


# --- what users meet --------------------------------------------------------------------------------------------


def test_types_and_keys() -> None:
    """One portfolio's orders by its id; text is text; the same types with orders or without, from stacks or plans."""
    policy, found = by_hand()
    part, none = of_stack(found), of_stack(replace(found, checked=replace(found.checked, passed=np.full(2, False))))
    table = orders([part])
    assert list(table.loc["x"].index) == ["A", "B", "C"]
    assert table.loc[("x", "C"), "price"] == 30.0
    assert table.index.names == ["portfolio_id", "asset"]
    assert all(type(label) is str for key in table.index for label in key)
    assert all(type(text) is str for column in ("side", "reason") for text in table[column])
    assert list(table.columns) == list(ORDER_COLUMNS)
    single = of_plans([(0, plan(policy, found, 0)), (1, plan(policy, found, 1))])
    for other in ([none], [part, none], [single], [none, single]):
        assert orders(other).dtypes.to_dict() == table.dtypes.to_dict()
        assert results(other).dtypes.to_dict() == results([part]).dtypes.to_dict()
    assert (results([]).shape, orders([]).shape) == ((0, len(RESULT_COLUMNS)), (0, len(ORDER_COLUMNS)))
    assert table.groupby("portfolio_id").notional.sum().to_dict() == pytest.approx({"x": 350.0})


def test_ids_that_are_missing_have_a_row() -> None:
    plans = [Plan(Status.INVALID_INPUT, None, "no id"), Plan(Status.INVALID_INPUT, "a", "no cash")]
    table = results([of_plans([(1, plans[0]), (0, plans[1])])])
    assert list(table.index) == ["a", None]
    assert table.message.tolist() == ["no cash", "no id"]


# --- reasons ----------------------------------------------------------------------------------------------------

#: before, after, target, and the reason: the band of A is 0.3 ± 0.05, B is long only, the others are free.
CASES: dict[str, tuple[float, float, float, str, str]] = {
    "A": (0.40, 0.35, 0.30, "above DriftBand", " (40.00%, limit 35.00%)"),
    "B": (0.10, 0.00, 0.00, "sold out: its target is 0", ""),
    "C": (-0.05, 0.00, 0.00, "closed: its target is 0", ""),
    "D": (0.05, 0.10, 0.20, "towards its target", " (5.00% to 20.00%)"),
    "E": (0.20, 0.15, 0.30, "for Turnover, GroupLimit", ""),
    "F": (0.10, 0.05, 0.10, "for Turnover", ""),
    CASH: (0.20, 0.30, 0.10, "for the whole portfolio (assets move together)", ""),
}


@pytest.fixture(name="told")
def _told() -> tuple[Policy, pd.DataFrame, list[Any]]:
    rules: list[Rule] = [
        DriftBand(absolute=0.05, assets=["A"]),
        LongOnly(["C"]),
        Turnover(0.2),
        GroupLimit("group", 0.6),
    ]
    table = pd.DataFrame(
        {
            "portfolio_id": "x",
            "asset": list(CASES),
            "quantity": [case[0] for case in CASES.values()],
            "price": 1.0,
            "target": [case[2] for case in CASES.values()],
            "group": ["g" if asset == "E" else None for asset in CASES],
        }
    )
    return Policy(constraints=tuple(rules)), table, [case[1] for case in CASES.values()]


def test_each_reason(told: tuple[Policy, pd.DataFrame, list[Any]]) -> None:
    """For one portfolio, with figures and without, and in a stack whose second has other prices."""
    policy, table, after = told
    two = pd.concat([table, table.assign(portfolio_id="y")], ignore_index=True)
    problem = stacked(policy, two)
    alone = policy.problem(problem.portfolio.portfolio(0))
    assert alone.rows.titles == ("Turnover", "GroupLimit", "CashFloor")
    prices = np.array([[0.01, 0.02, 0.0], [0.0, 0.02, 1e-12]])
    everything = np.full(alone.shape, True)

    found = reasons(alone, np.array(after), prices[0], everything)
    for i, (*_, text, figures) in enumerate(CASES.values()):
        assert found.names[found.codes[i]] == text
        assert sentence(alone, found, i) == text + figures

    both = reasons(problem, np.array([after, after]), prices, np.stack([everything, everything]))
    texts = [[both.names[code] for code in row] for row in both.codes.tolist()]
    assert texts[0] == [case[3] for case in CASES.values()]
    assert texts[1][4:6] == ["for GroupLimit", "for the whole portfolio (assets move together)"]
    assert texts[1][:4] == texts[0][:4]


def test_without_prices_assets_move_together(told: tuple[Policy, pd.DataFrame, list[Any]]) -> None:
    policy, table, after = told
    alone = policy.problem(stacked(policy, table).portfolio.portfolio(0))
    found = reasons(alone, np.array(after), None, np.full(alone.shape, True))
    assert found.names[found.codes[4]] == "for the whole portfolio (assets move together)"


def test_the_first_broken_rule_and_every_row_of_a_rule_count() -> None:
    """A short position breaks two bounds: the rule that was given first says why. Each label's row is the rule's."""
    table = pd.DataFrame(
        {
            "portfolio_id": "x",
            "asset": ["A", "B", CASH],
            "quantity": [-0.2, 0.4, 0.8],
            "price": 1.0,
            "target": [0.2, 0.4, 0.4],
            "group": ["g", "h", None],
        }
    )
    rules = (DriftBand(absolute=0.1, name="band"), LongOnly(), GroupLimit("group", 0.5))
    for order, first in ((rules, "below band"), ((rules[1], rules[0], rules[2]), "below LongOnly")):
        problem = stacked(Policy(constraints=order), table)
        found = reasons(problem, np.array([[-0.3, 0.3, 1.0]]), np.array([[0.1, 0.1, 0.0]]), np.full((1, 3), True))
        assert [found.names[code] for code in found.codes[0, :2]] == [first, "for GroupLimit"]
        free = replace(problem, pieces=problem.pieces[2:])
        found = reasons(free, np.array([[-0.3, 0.3, 1.0]]), np.array([[0.1, 0.1, 0.0]]), np.full((1, 3), True))
        assert [found.names[code] for code in found.codes[0, :2]] == ["for GroupLimit", "for GroupLimit"]


def test_many_rules_in_many_combinations() -> None:
    """More titles than bits in a word: each asset is told those, and only those, that price it and count it."""
    count, n = 80, 30
    rng = np.random.default_rng(2)
    member = rng.random((count, n + 1)) < 0.3
    assets = [*(f"A{i:02d}" for i in range(n)), CASH]
    rules = [Turnover(1.0, name="everything")]
    columns = {}
    for j in range(count):
        columns[f"column {j}"] = np.where(member[j], "in", None)
        rules.append(GroupLimit(f"column {j}", 1.0, name=f"limit {j}"))
    held = np.append(np.full(n, 0.02), 0.4)
    table = pd.DataFrame(
        {"portfolio_id": "x", "asset": assets, "quantity": held, "price": 1.0, "target": held, **columns}
    )
    policy = Policy(constraints=tuple(rules))
    problem = stacked(policy, table)
    assert isinstance(problem.portfolio, Stack)
    prices = np.append(rng.random((1, count + 1)) < 0.5, [[False]], axis=1) * 0.1
    traded = np.arange(n + 1)[None] < n
    found = reasons(problem, problem.before + 0.01, prices, traded)
    titles = ["everything", *(f"limit {j}" for j in range(count))]
    for i in range(n):
        expected = [titles[k] for k in range(count + 1) if prices[0, k] and (k == 0 or member[k - 1, i])]
        assert found.names[found.codes[0, i]] == f"for {', '.join(expected)}"


def test_a_plan_says_what_the_table_says_with_figures() -> None:
    """`Plan.orders` and the batch's table have one definition of a reason."""
    rng = np.random.default_rng(8)
    n = 12
    held, target = rng.dirichlet(np.ones(n + 1)), rng.dirichlet(np.ones(n + 1))
    assets = [*(f"A{i:02d}" for i in range(n)), CASH]
    table = pd.DataFrame({"quantity": held * 100, "price": 1.0, "target": target}, index=pd.Index(assets, name="asset"))
    risk = FactorRisk(rng.normal(size=(3, n)) * 0.2, rng.uniform(0.01, 0.05, n), assets=assets[:-1])
    rebalancer = Rebalancer(
        cash=CASH,
        risk=risk,
        costs=[ProportionalCost(0.002)],
        constraints=[LongOnly(), DriftBand(relative=0.8), Turnover(0.4)],
    )
    made = rebalancer.solve(table)
    assert made.problem is not None and made.planned is not None and made.solution is not None
    assert made.solution.prices is not None
    traded = np.array([x != 0 for x in made.trades])
    found = reasons(made.problem, made.planned, made.solution.prices.rows, traded)
    said = {asset: sentence(made.problem, found, i) for i, asset in enumerate(made.problem.assets)}
    assert len({FIGURES.sub("", text) for text in made.orders.reason}) > 2
    assert made.orders.reason.to_dict() == {asset: said[asset] for asset in made.orders.index}
