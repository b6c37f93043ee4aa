"""Newton's method on the dual: against formulations of the tests' own, the program, and a linear program's verdict."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog
from scorecard.hand_over import case, wrong
from strategies import CASH, many

from equipoise.constraints import (
    CashBand,
    CashFloor,
    DriftBand,
    FactorLimit,
    GroupLimit,
    Leverage,
    LongOnly,
    Turnover,
    WeightBounds,
)
from equipoise.constraints.pieces import Parts, part
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.stack import Stack, stacks
from equipoise.optimizer.problem.costs import ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.models import CovarianceRisk, FactorRisk
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.newton import INFEASIBLE, SOLVED, Answers
from equipoise.optimizer.solvers.program import program


def taken(count: int, seed: int, **options: Any) -> list[Problem]:
    """Random feasible problems without cones and custom rules."""
    problems = (instance.problem() for instance in many(count, seed, **options))
    return [problem for problem in problems if newton.refusal(problem) is None]


def plain_cvxpy(given: Problem) -> float:
    """The least objective, written down anew from the problem's arrays; inf if there is none."""
    n, cost, rows = len(given.assets), given.cost, given.rows
    w = cp.Variable(n)
    z = w - given.before
    parts = {"weight": w, "long": cp.pos(w), "short": cp.neg(w), "buy": cp.pos(z), "sell": cp.neg(z)}
    fees = cost.buy @ parts["buy"] + cost.sell @ parts["sell"]
    fees += cost.quadratic @ cp.square(z) + cost.impact @ cp.power(cp.abs(z), 1.5)
    carry = cost.long @ w + (cost.long + cost.short) @ cp.neg(w)
    away = w - given.target
    variance = given.risk.specific @ cp.square(away)
    if len(given.risk.factors):  # old versions of cvxpy know no empty matrix
        variance += cp.sum_squares(given.risk.factors @ away)
    # long·w⁺ + short·w⁻ = long·w + (long + short)·w⁻, which is convex where the pair adds up to no less than 0.
    kept = [cp.sum(w) == 1, w >= given.lower, w <= given.upper]
    if len(rows.upper):
        sides = rows.weight @ w + rows.long @ w + (rows.long + rows.short) @ parts["short"]
        sides += rows.buy @ z + (rows.buy + rows.sell) @ parts["sell"] + rows.cost * fees
        kept.append(sides <= rows.upper)
    least = cp.Problem(cp.Minimize(given.aversion / 2 * variance + fees / given.horizon + carry), kept)
    tight = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
    return float(least.solve(solver="CLARABEL", **tight))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_a_formulation_of_its_own_agrees() -> None:
    for given in taken(90, 21):
        answer, attempt = newton.solution(given)
        assert answer is not None, attempt
        assert answer.weights is not None
        assert answer.objective == pytest.approx(plain_cvxpy(answer.problem or given), rel=2e-6, abs=2e-9)
        assert given.violation(answer.weights) <= newton.VIOLATION
        assert answer.gap <= max(newton.GAP_RELATIVE * abs(answer.objective), newton.GAP_ABSOLUTE)


def test_random_feasible_problems_are_solved() -> None:
    """All rules, costs and kinds of risk of the generator; each with a planted feasible point it must not lose to."""
    for number, instance in enumerate(many(400, 5)):
        given = instance.problem()
        if newton.refusal(given) is not None:
            continue
        answer, attempt = newton.solution(given)
        assert answer is not None, (number, attempt)
        planted = given.objective(instance.planted_weights())
        assert answer.objective <= planted + 1e-12, number
        assert answer.bound <= planted + 1e-12, number


def test_the_bound_is_below_every_feasible_point() -> None:
    """At any prices, not only at the best: points of the simplex that keep the rules are never below."""
    rng = np.random.default_rng(3)
    from equipoise.optimizer.solvers.newton import dual

    for given in taken(60, 31):
        stack = given.as_stack()
        out = bool(given.lower[given.cash] >= 0 and given.risk.specific[given.cash] == 0)
        mine = dual.of(stack, np.zeros(1, dtype=np.intp), out=out, capped=False)
        answer, _ = newton.solution(given)
        assert answer is not None
        for _ in range(5):
            prices = rng.normal(size=mine.limits.shape) * 0.1
            prices[:, mine.rows] = np.abs(prices[:, mine.rows])
            with np.errstate(all="ignore"):
                assert mine.bound(prices)[0] <= answer.objective + 1e-9


RISKY = [f"S{i}" for i in range(8)]


def account(rng: np.random.Generator, size: int) -> pd.DataFrame:
    """A long table of `size` portfolios, of eight shares and cash, drifted."""
    goal = rng.dirichlet(np.full(8, 3.0), size) * 0.97
    held = goal * np.exp(0.2 * rng.normal(size=goal.shape))
    held = held / held.sum(axis=1, keepdims=True) * rng.uniform(0.9, 0.99, (size, 1))
    nav = 10.0 ** rng.uniform(3, 7, size)
    rows = []
    for i in range(size):
        for asset, weight, wanted in zip(RISKY, held[i], goal[i], strict=True):
            rows.append((f"P{i:03d}", asset, weight * nav[i], 1.0, wanted, "ab"[int(asset[1]) % 2]))
        rows.append((f"P{i:03d}", CASH, (1 - held[i].sum()) * nav[i], 1.0, 1 - goal[i].sum(), None))
    return pd.DataFrame(rows, columns=["portfolio_id", "asset", "quantity", "price", "target", "side"])


def policy(rng: np.random.Generator) -> Policy:
    loadings = pd.DataFrame(rng.normal(size=(3, 8)) * 0.15, columns=RISKY)
    return Policy(
        FactorRisk(loadings, pd.Series(rng.uniform(0.1, 0.3, 8) ** 2, RISKY)),
        (ProportionalCost(0.001, 0.002), ImpactCost(0.02, 1e6), QuadraticCost(0.01)),
        (
            DriftBand(relative=0.3),
            LongOnly(),
            Turnover(0.12),
            Leverage(gross=0.98),
            GroupLimit("side", {"a": 0.55, "b": 0.55}),
            FactorLimit({asset: 0.25 * i for i, asset in enumerate(RISKY)}, upper=0.9),
        ),
    )


def stacked(size: int = 40, seed: int = 8) -> tuple[Policy, Stack]:
    rng = np.random.default_rng(seed)
    rules = policy(rng)
    (stack,), odd = stacks(account(rng, size), CASH, universe=RISKY, label_columns=rules.label_columns)
    assert not odd
    return rules, stack


def bits(answers: Answers, at: Any) -> list[bytes]:
    return [
        np.ascontiguousarray(getattr(answers, name)[at]).tobytes()
        for name in Answers.__dataclass_fields__
        if name != "problem"
    ]


def test_a_stack_gives_the_bits_of_any_part_of_it() -> None:
    rules, stack = stacked()
    whole = newton.solve(rules.stacked(stack))
    assert np.sum(whole.code == SOLVED) >= 30
    for part_of in (np.array([7]), np.array([31, 2, 11]), np.arange(40)[::-1]):
        some = newton.solve(rules.stacked(stack.take(part_of)))
        assert bits(some, slice(None)) == bits(whole, part_of)


def test_a_stack_gives_the_answers_of_the_program() -> None:
    rules, stack = stacked(12)
    whole = newton.solve(rules.stacked(stack))
    for i in range(len(stack)):
        given = rules.problem(stack.portfolio(i))
        judge = program.solve(given)
        if whole.code[i] == SOLVED:
            assert judge.objective == pytest.approx(whole.objective[i], rel=1e-6)
            assert whole.bound[i] <= judge.objective + 1e-9
        else:
            assert judge.weights is None


def feasible(given: Problem) -> bool:
    """Whether bounds and rows (of proportional costs) can be kept, by a linear program of the test's own."""
    n, m, rows = len(given.assets), len(given.rows.upper), given.rows
    # w = w⁺ − w⁻ and z = z⁺ − z⁻ as four parts; at the least feasible sum of rows none needs both.
    matrix = np.hstack([rows.weight + rows.long, rows.short - rows.weight, rows.buy, rows.sell])
    fees = np.hstack([np.zeros(2 * n), given.cost.buy, given.cost.sell])
    matrix = matrix + rows.cost[:, None] * fees
    eye = np.eye(n)
    equal = np.vstack([np.hstack([eye, -eye, -eye, eye]), np.hstack([np.ones(n), -np.ones(n), np.zeros(2 * n)])[None]])
    bounds = [(max(0.0, low), max(0.0, high)) for low, high in zip(given.lower, given.upper, strict=True)]
    bounds += [(max(0.0, -high), max(0.0, -low)) for low, high in zip(given.lower, given.upper, strict=True)]
    bounds += [(0.0, None)] * (2 * n)
    found = linprog(np.zeros(4 * n), matrix, rows.upper, equal, np.append(given.before, 1.0), bounds)
    assert m == len(rows.upper)
    return bool(found.status == 0)


def test_what_it_calls_infeasible_is() -> None:
    """Against a linear program's verdict, over turnover limits from impossible to loose."""
    rng = np.random.default_rng(12)
    seen = {True: 0, False: 0}
    for _ in range(80):
        rules = Policy(
            policy(rng).risk,
            (ProportionalCost(0.001),),
            (
                WeightBounds(0.0, 0.3),
                Turnover(float(rng.uniform(0.0, 0.2))),
                FactorLimit({asset: float(rng.normal(1, 0.5)) for asset in RISKY}, lower=float(rng.uniform(0.7, 1.2))),
                CashFloor(float(rng.uniform(0.0, 0.1))),
            ),
        )
        (stack,), _ = stacks(account(rng, 1), CASH, universe=RISKY)
        given = rules.problem(stack.portfolio(0))
        code = newton.solve(given.as_stack()).code[0]
        assert code in (SOLVED, INFEASIBLE)
        assert (code == SOLVED) == feasible(given)
        seen[feasible(given)] += 1
    assert min(seen.values()) >= 10


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
def test_a_covariance_without_specific_risk(rank: int) -> None:
    """No asset has curvature of its own: the proximal point method has to find the way."""
    rng = np.random.default_rng(rank)
    loadings = rng.normal(size=(rank, 8)) * 0.2
    rules = Policy(
        FactorRisk(pd.DataFrame(loadings, columns=RISKY), pd.Series(0.0, RISKY)),
        (ProportionalCost(0.002),),
        (DriftBand(absolute=0.05), LongOnly(), Turnover(0.1)),
    )
    (stack,), _ = stacks(account(rng, 20), CASH, universe=RISKY)
    answers = newton.solve(rules.stacked(stack))
    for i in np.flatnonzero(answers.code == SOLVED):
        given = rules.problem(stack.portfolio(int(i)))
        assert answers.objective[i] == pytest.approx(plain_cvxpy(given), rel=1e-6, abs=1e-10)
    assert np.mean(answers.code == SOLVED) >= 0.9


def test_a_dense_covariance_of_more_assets_than_are_held() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 8)) * 0.2
    rules = Policy(CovarianceRisk(pd.DataFrame(x.T @ x / 60, RISKY, RISKY)), (ProportionalCost(0.001),), (LongOnly(),))
    (stack,), _ = stacks(account(rng, 10), CASH, universe=RISKY)
    answers = newton.solve(rules.stacked(stack))
    assert np.all(answers.code == SOLVED)
    for i in range(3):
        assert answers.objective[i] == pytest.approx(plain_cvxpy(rules.problem(stack.portfolio(i))), rel=1e-6)


GROUPS = 90


def of_groups(rng: np.random.Generator, rules: Any, riskless: float = 0.0) -> Problem:
    """Two assets in each of 90 groups; `rules(aimed, now)` makes those of groups from the weights of these."""
    n = 2 * GROUPS
    target = rng.dirichlet(np.full(n, 5.0)) * 0.95
    held = target * np.exp(rng.normal(0.0, 0.15, n))
    held *= 0.95 / held.sum()
    group = np.arange(n) % GROUPS
    names = [f"A{i:03d}" for i in range(n)]
    specific = pd.Series(np.where(rng.random(n) < riskless, 0.0, 0.04), names)
    loadings = pd.DataFrame(rng.normal(0.0, 0.1, (5, n)), columns=names)
    own = rules(*(pd.Series(np.bincount(group, w), [f"g{g}" for g in range(GROUPS)]) for w in (target, held)))
    policy = Policy(FactorRisk(loadings, specific), (ProportionalCost(0.001),), (LongOnly(), *own))
    table = pd.DataFrame(
        {"quantity": [*held, 0.05], "price": 1.0, "target": [*target, 0.05], "side": [*(f"g{g}" for g in group), None]},
        index=pd.Index([*names, CASH], name="asset"),
    )
    return policy.problem(Portfolio.from_table(table, CASH))


@pytest.mark.parametrize("binding", [0.05, 0.9])
def test_many_rows_of_which_few_or_most_bind(binding: float) -> None:
    """A cap for each group, beside rules with kinks: each finds its own price."""
    rng = np.random.default_rng(4)
    tight = rng.random(GROUPS) < binding

    def rules(aimed: pd.Series, now: pd.Series) -> Any:
        caps = np.where(tight, 0.99 * np.minimum(aimed, now), 1.5 * np.maximum(aimed, now))
        return GroupLimit("side", dict(zip(aimed.index, caps.tolist(), strict=True))), Turnover(0.1)

    given = of_groups(rng, rules)
    answers = newton.solve(given.as_stack())
    assert answers.code[0] == SOLVED
    assert answers.steps[0] <= 10
    assert abs(np.sum(answers.rows[0] > 1e-9) - tight.sum()) <= 3
    assert answers.objective[0] == pytest.approx(plain_cvxpy(given), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("riskless", [0.0, 0.3])
def test_ceilings_and_floors_of_many_groups(riskless: float) -> None:
    """Two of each that are the same sum, of which the narrower counts; some assets have no risk of their own."""

    def rules(aimed: pd.Series, now: pd.Series) -> Any:
        wide, narrow = (DriftBand(relative=width, by="side") for width in (0.1, 0.03))
        return narrow, wide, GroupLimit("side", dict(0.99 * np.maximum(aimed, now))), Turnover(0.2)

    given = of_groups(np.random.default_rng(5), rules, riskless)
    answers = newton.solve(given.as_stack())
    assert answers.code[0] == SOLVED
    assert answers.objective[0] == pytest.approx(plain_cvxpy(given), rel=1e-6, abs=1e-10)
    labels = np.array([row.label for row in given.rows.rows])
    for end in (" above its band", " below its band"):
        first, second = answers.rows[0][[label.endswith(end) for label in labels]].reshape(2, GROUPS)
        assert np.any(first > 1e-9)
        assert not np.any(second)


def test_many_groups_that_leave_no_room_are_proven_infeasible() -> None:
    """All together may hold half of it, and the cash a tenth."""

    def rules(aimed: pd.Series, now: pd.Series) -> Any:
        return GroupLimit("side", dict(0.5 / 0.95 * aimed)), CashBand(0.0, 0.1), Turnover(2.0)

    given = of_groups(np.random.default_rng(6), rules)
    assert newton.solve(given.as_stack()).code[0] == INFEASIBLE


def test_shadow_prices_are_what_a_limit_costs() -> None:
    """Against finite differences of the optimum."""
    rng = np.random.default_rng(77)
    risk = policy(rng).risk
    (stack,), _ = stacks(account(rng, 1), CASH, universe=RISKY)

    def solved(limit: float) -> Any:
        rules = Policy(risk, (ProportionalCost(0.001),), (LongOnly(), Turnover(limit)))
        return newton.solution(rules.problem(stack.portfolio(0)))[0]

    middle, step = solved(0.03), 1e-6
    slope = (solved(0.03 + step).objective - solved(0.03 - step).objective) / (2 * step)
    assert middle.prices.rows[0] > 1e-4
    assert middle.prices.rows[0] == pytest.approx(-slope, rel=1e-5)


def test_rows_hold_at_the_answer_part_by_part() -> None:
    """The sides computed from their definition, not by `Rows.of`."""
    for given in taken(40, 55):
        answer, _ = newton.solution(given)
        assert answer is not None
        assert answer.weights is not None
        trades, fees = answer.weights - given.before, given.trading_cost(answer.weights)
        for row, cost in zip(given.rows.rows, given.rows.cost, strict=True):
            each = [
                float(np.sum(c * part(name, answer.weights, trades)))
                for name in Parts.NAMES
                if (c := getattr(row, name)) is not None
            ]
            assert sum(each) + cost * fees <= row.upper + newton.VIOLATION


@pytest.mark.parametrize("drawn", [(7, 180), (7, 236), (7, 353), (9, 590), (9, 653)])
def test_degenerate_rows_do_not_stop_it(drawn: tuple[int, int]) -> None:
    """Rows that bind together but for 1e-9, prices with far to go for a residual of 1e-10, and assets whose curvature
    is so small that rounding of the prices moves them."""
    of = case(np.random.default_rng(drawn))
    problem = of.problem()
    assert not wrong(of, problem, answers := newton.solve(problem.as_stack()), by_program=False)
    assert answers.code[0] == SOLVED


@pytest.mark.skipif(find_spec("numba") is None, reason="needs numba")
@pytest.mark.parametrize("drawn", [(7, 180), (7, 353), (9, 590)])
def test_nor_do_they_stop_machine_code(drawn: tuple[int, int]) -> None:
    of = case(np.random.default_rng(drawn))
    problem = replace(of.problem(), compiled=True)
    assert not wrong(of, problem, answers := newton.solve(problem.as_stack()), by_program=False)
    assert answers.code[0] == SOLVED


def test_the_judge_of_answers_is_no_wider_than_their_rounding() -> None:
    """No risk is left, 2e-20: the judge's bound must be as close though the factors' prices have a little noise."""
    of = case(np.random.default_rng([7, 550]))
    assert not wrong(of, of.problem(), newton.solve(of.problem().as_stack()), by_program=False)
