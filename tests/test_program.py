"""The cvxpy program: against a formulation of the test's own, published frontiers, and solvers that lie."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from generators import CASH, names, problem
from strategies import many

from equipoise.constraints import (
    CashBand,
    CashFloor,
    Custom,
    FactorLimit,
    GroupLimit,
    HealthFactor,
    InputError,
    Leverage,
    LongOnly,
    ShortOnly,
    TrackingErrorLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer.problem.costs import HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Prices, Solution, Status
from equipoise.optimizer.risk.models import SquaredDistance
from equipoise.optimizer.solvers.program import cache, program
from equipoise.optimizer.solvers.program.cache import compiled
from equipoise.optimizer.solvers.program.cvxpy_model import Program, Raw
from equipoise.optimizer.solvers.program.program import LADDER
from equipoise.optimizer.solvers.program.supporting_plane import priced_plane
from equipoise.optimizer.verification.certificate import lower_bound

DATA = Path(__file__).parent / "data"
TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
# Said of the plain formulations, which have no scale.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")


# --- against a formulation of its own ----------------------------------------------------------------------


@dataclass
class Full:
    """The numbers of one problem with debts, a dense covariance, three costs, rows and a cone."""

    rng: np.random.Generator

    def __post_init__(self) -> None:
        rng, n = self.rng, 8
        x = rng.normal(size=(n, 20)) * rng.uniform(0.1, 0.5, n)[:, None]
        self.covariance = x @ x.T / 20
        self.held, self.goal = (self._weights(n) for _ in range(2))
        self.fee, self.sale = 10.0 ** rng.uniform(-4, -2, (2, n))
        self.square, self.volatility = rng.uniform(0, 0.3, n), rng.uniform(0.01, 0.05, n)
        self.volume = 10.0 ** rng.uniform(-1, 1, n)
        self.carry = np.append(np.zeros(6), [0.05, 0.08])
        self.threshold = np.append(rng.uniform(0.6, 0.9, 6), [0.0, 0.0])
        self.group = np.arange(n) % 3
        self.beta = rng.normal(1, 0.5, n)
        self.aversion, self.horizon = float(rng.uniform(2, 20)), float(rng.uniform(0.1, 1))
        self.floor = 0.9 * self.held[-1]
        # Limits between what is held and the target, so that several bind.
        part = rng.uniform(0.2, 0.9)
        self.turnover = part * 0.5 * float(np.abs(self.goal - self.held)[:n].sum())
        self.gross = 0.5 * sum(float(np.abs(w[:n]).sum()) for w in (self.held, self.goal)) - 0.02
        sums = [np.bincount(self.group, w[:n]) for w in (self.held, self.goal)]
        self.most, self.least = np.maximum(*sums) - 0.01, np.minimum(*sums) - 0.05
        self.factor = 0.8 * abs(float(self.beta @ (self.held - self.goal)[:n])) + 0.01
        health = [(self.threshold @ w[:n] + 0.5 * w[n]) / -w[6:8].sum() for w in (self.held, self.goal)]
        self.health = float(0.5 * sum(health))
        away = (self.held - self.goal)[:n]
        self.error = float(rng.uniform(0.5, 1.2) * np.sqrt(away @ self.covariance @ away))

    def _weights(self, n: int) -> np.ndarray:
        """Six assets and the cash for 1.3 times the NAV, two debts for .3 of it."""
        long, debt = self.rng.dirichlet(np.full(7, 3.0)) * 1.3, self.rng.dirichlet(np.full(2, 5.0)) * 0.3
        return np.concatenate([long[:6], -debt, long[6:]])

    def problem(self) -> Problem:
        """In the library's words."""
        debts = names(8)[6:]
        columns = {
            "fee": self.fee,
            "sale": self.sale,
            "square": self.square,
            "volatility": self.volatility,
            "volume": self.volume,
            "rate": self.carry,
            "lt": self.threshold,
            "beta": self.beta,
        }
        table: dict[str, Any] = {name: np.append(column, 0.0) for name, column in columns.items()}
        table["lt"][-1] = 0.5  # cash is collateral, too
        table["group"] = [*(f"g{g}" for g in self.group), None]
        labels = [f"g{g}" for g in range(3)]
        return problem(
            self.held,
            self.goal,
            CashFloor(float(self.floor)),
            LongOnly(except_=debts),
            ShortOnly(debts),
            Turnover(self.turnover),
            Leverage(gross=self.gross),
            GroupLimit("group", dict(zip(labels, self.most, strict=True)), dict(zip(labels, self.least, strict=True))),
            FactorLimit("beta", self.factor, -self.factor, relative=True),
            HealthFactor(self.health, "lt"),
            TrackingErrorLimit(self.error),
            covariance=self.covariance,
            columns=table,
            costs=(
                ProportionalCost("fee", "sale"),
                QuadraticCost("square"),
                ImpactCost("volatility", "volume"),
                HoldingCost(0.0, "rate"),
            ),
            aversion=self.aversion,
            horizon=self.horizon,
        )

    def plain(self) -> tuple[float, list[Any]]:
        """In cvxpy's words: the least objective (inf: none) and the rules that bind."""
        x, cash = cp.Variable(8), cp.Variable()
        z, away = x - self.held[:8], x - self.goal[:8]
        cost = self.fee @ cp.pos(z) + self.sale @ cp.neg(z) + self.square @ cp.square(z)
        cost += (self.volatility / np.sqrt(self.volume)) @ cp.power(cp.abs(z), 1.5)
        root = np.linalg.cholesky(self.covariance).T
        debt = -cp.sum(x[6:])
        member = np.eye(3)[:, self.group]
        rules = [
            cash - cost >= self.floor,
            cp.norm1(z) / 2 <= self.turnover,
            cp.norm1(x) <= self.gross,
            member @ x <= self.most,
            member @ x >= self.least,
            cp.abs(self.beta @ away) <= self.factor,
            self.threshold @ x + 0.5 * (cash - cost) >= self.health * debt,
            cp.norm(root @ away, 2) <= self.error,
        ]
        free = [cp.sum(x) + cash == 1, x[:6] >= 0, x[6:] <= 0]
        value = self.aversion / 2 * cp.sum_squares(root @ away) + cost / self.horizon - self.carry @ x
        least = cp.Problem(cp.Minimize(value), [*rules, *free]).solve(solver="CLARABEL", **TIGHT)
        return float(least), [r for r in rules if r.dual_value is not None and np.max(r.dual_value) > 1e-6]


def test_a_plain_formulation_agrees() -> None:
    """Dense covariance, three costs, debts with interest, eight rules: the same least objective, or none."""
    solved = infeasible = 0
    bound: set[int] = set()
    for seed in range(24):
        full = Full(np.random.default_rng([11, seed]))
        expected, binding = full.plain()
        given = full.problem()
        answer = program.solve(given)
        if np.isinf(expected):
            infeasible += 1
            assert answer.weights is None
            assert "infeasible" in answer.attempts[0].said
            continue
        solved += 1
        bound.add(len(binding))
        assert answer.status is Status.OPTIMAL
        assert answer.objective == pytest.approx(expected, rel=1e-7)
        assert answer.bound == pytest.approx(expected, rel=1e-6)
        assert given.violation(answer.weights) <= FEASIBILITY_TOLERANCE
    assert solved >= 12
    assert max(bound) >= 3


# --- published numbers -------------------------------------------------------------------------------------


def numbers(name: str) -> np.ndarray:
    with gzip.open(DATA / f"{name}.txt.gz", "rt") as file:
        return np.array(file.read().split(), dtype=float)


def frontier(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean returns, their covariance, and the published frontier (return, variance) of instance k."""
    raw = numbers(f"port{k}")
    n = int(raw[0])
    (mean, deviation), pairs = raw[1 : 1 + 2 * n].reshape(n, 2).T, raw[1 + 2 * n :].reshape(-1, 3)
    correlation = np.eye(n)
    i, j = pairs[:, :2].astype(int).T - 1
    correlation[i, j] = correlation[j, i] = pairs[:, 2]
    return mean, correlation * np.outer(deviation, deviation), numbers(f"portef{k}").reshape(-1, 2)


def least_variance(mean: np.ndarray, covariance: np.ndarray, wanted: float) -> Problem:
    """Minimum variance for a return: to track a target of cash only, with no cash, at aversion 2, without costs."""
    cash = np.append(np.zeros(len(mean)), 1.0)
    rules = LongOnly(), CashBand(0.0, 0.0), FactorLimit("mean", lower=wanted)
    columns = {"mean": np.append(mean, 0.0)}
    return problem(cash, cash, *rules, covariance=covariance, columns=columns, aversion=2.0)


@pytest.mark.parametrize("k", [1, 3])
def test_the_efficient_frontiers_of_the_or_library(k: int) -> None:
    """Ten points along the frontiers of 31 and of 89 assets (Chang, Meade, Beasley and Sharaiha 2000) to 1e-6,
    and the price of the return that is asked for is the frontier's slope."""
    mean, covariance, points = frontier(k)
    assert len(points) == 2000
    for at in np.linspace(0, 1999, 10).astype(int):
        wanted, variance = points[at]
        answer = program.solve(least_variance(mean, covariance, float(wanted)))
        assert answer.status is Status.OPTIMAL
        assert answer.objective == pytest.approx(variance, rel=1e-6)
        assert answer.bound == pytest.approx(variance, rel=1e-6)
        if 0 < at < 1999:
            (high, above), (low, below) = points[at - 1], points[at + 1]
            assert answer.prices is not None
            assert answer.prices.rows[0] == pytest.approx((above - below) / (high - low), rel=2e-3)


# --- bounds ------------------------------------------------------------------------------------------------


Solved = tuple[Problem, np.ndarray, Solution]


@pytest.fixture(scope="module")
def solved() -> list[Solved]:
    """Random problems of all kinds, each with a planted point that keeps every rule, and the program's answer."""
    made = [(instance.problem(), instance.planted_weights()) for instance in many(40, seed=12)]
    return [(given, planted, program.solve(given)) for given, planted in made]


def test_no_feasible_point_is_below_the_bound_and_the_gap_is_closed(solved: list[Solved]) -> None:
    """The planted point keeps all rules by construction, and is no better than the answer or its bound."""
    for given, planted, answer in solved:
        assert given.violation(planted) <= 1e-12
        assert answer.weights is not None
        assert given.violation(answer.weights) <= FEASIBILITY_TOLERANCE
        assert answer.objective == given.objective(answer.weights)
        assert answer.objective <= given.objective(planted) + 1e-9
        assert answer.bound <= given.objective(planted)
    assert sum(answer.status is Status.OPTIMAL for _, _, answer in solved) >= 38


def test_any_price_gives_a_valid_bound(solved: list[Solved]) -> None:
    """Random, zero, huge and misplaced prices, steered by random weights: never above a feasible objective;
    and only good ones are tight."""
    rng = np.random.default_rng(13)
    loose = tried = 0
    for given, planted, answer in solved:
        right = answer.prices
        assert right is not None
        # The best point breaks rules by up to 1e-9 of NAV: what that may save at the right prices.
        leeway = 1e-9 * (1.0 + abs(right.budget or 0.0) + float(right.rows.sum() + right.cones.sum()))
        for scale in (0.0, 0.1, 30.0):
            rows = scale * rng.exponential(size=len(right.rows)) * (rng.random(len(right.rows)) < 0.7)
            cones = scale * rng.exponential(size=len(right.cones))
            wrong = Prices(rows, cones, rng.normal(0, scale, 1) if rng.random() < 0.5 else None)
            factor = rng.uniform(0, 3)
            if right.slopes is None and rng.random() < 0.5:
                wrong = replace(right, rows=factor * right.rows, cones=factor * right.cones)
            steer = planted + rng.normal(0, rng.choice([0.0, 0.01, 0.3]), len(planted))
            bound = lower_bound(answer.problem or given, steer, wrong)
            assert bound <= min(answer.objective + leeway, given.objective(planted))
            loose += bound < answer.objective - 1e-3 * abs(answer.objective)
            tried += 1
    assert loose >= 0.5 * tried


def test_the_right_prices_make_the_bound_tight_and_half_of_them_do_not() -> None:
    """Turnover binds: its price is needed for the proof."""
    given = problem((0.4, 0.4, 0.2), (0.8, 0.1, 0.1), Turnover(0.1), covariance=[[0.04, 0.01], [0.01, 0.09]])
    answer = program.solve(given)
    assert answer.weights is not None
    assert answer.prices is not None
    assert abs(answer.gap) <= 1e-10
    half = replace(answer.prices, rows=0.5 * answer.prices.rows)
    assert lower_bound(given, answer.weights, half) < answer.objective - 1e-3


# --- solvers that lie --------------------------------------------------------------------------------------


GIVEN = {"covariance": [[0.04, 0.01], [0.01, 0.09]], "costs": (ProportionalCost(0.001),)}


def simple(*rules: Any) -> Problem:
    """Two correlated assets and cash; without rules the best is (.697, .201, .101)."""
    return problem((0.4, 0.4, 0.2), (0.7, 0.2, 0.1), *rules, **GIVEN)


@pytest.mark.parametrize(
    "garbage",
    [
        [np.nan, 0.5, 0.5],
        [np.nan] * 3,
        [np.inf, 0.0, 0.0],
        [3.0, -1.0, -1.0],  # leaves a debt of cash
        [1.1, 0.1, -0.2],
        [0.45, 0.549, 0.001],  # breaks the group's limit
    ],
)
@pytest.mark.parametrize("said", ["optimal", "optimal_inaccurate", "user_limit"])
def test_a_broken_rule_or_nan_is_never_accepted(monkeypatch: Any, garbage: list[float], said: str) -> None:
    given = problem(
        (0.4, 0.4, 0.2), (0.7, 0.2, 0.1), GroupLimit("kind", 0.9), columns={"kind": ["a", "a", None]}, **GIVEN
    )
    monkeypatch.setattr(Program, "solve", lambda *_: Raw(said, np.array(garbage), Prices.none(given), given))
    answer = program.solve(given)
    assert answer.status is Status.UNSOLVED
    assert answer.weights is None
    assert not answer.status.ok
    assert [a.solver for a in answer.attempts] == [rung.name for rung in LADDER]
    assert all(a.said == said and "refused" in a.verdict for a in answer.attempts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_prices_that_are_no_numbers_prove_nothing(monkeypatch: Any, bad: float) -> None:
    """Weights that keep all rules are no optimum without a proof; the bound is a number, and valid."""
    given = simple()
    prices = Prices(np.array([bad]), np.zeros(0), np.array([bad]))
    monkeypatch.setattr(Program, "solve", lambda *_: Raw("optimal", given.before.copy(), prices, given))
    with np.errstate(all="ignore"):
        answer = program.solve(given)
    assert answer.status in (Status.FEASIBLE, Status.UNSOLVED)
    if answer.status is Status.FEASIBLE:
        assert answer.bound <= 0.000497857143
        assert not np.isnan(answer.bound)


def test_a_poor_answer_is_not_called_optimal(monkeypatch: Any) -> None:
    """Feasible but far from the best: the gap says how far at most."""
    given = simple()
    monkeypatch.setattr(Program, "solve", lambda *_: Raw("optimal", given.before.copy(), Prices.none(given), given))
    answer = program.solve(given)
    assert answer.status is Status.FEASIBLE
    assert answer.gap >= given.objective(given.before) - 0.000497857143 > 0.02


def test_the_last_bits_of_the_numbers_decide_nothing() -> None:
    """Another NAV rounds the weights otherwise; the solver stops at the same step, with the same answer."""
    rng, risk, costs = np.random.default_rng(15), 0.04 * np.eye(4), (ProportionalCost(0.01),)
    rule = Custom(lambda t: cp.norm(t.trades, 2) <= 0.05)
    for _ in range(4):
        before, target = rng.dirichlet(np.ones(5), 2)
        drawn = [problem(before, target, rule, nav=nav, covariance=risk, costs=costs) for nav in (1.0, 1e7 / 3, 1e-12)]
        first, *others = (program.solve(given).weights for given in drawn)
        for other in others:
            np.testing.assert_allclose(other, first, rtol=0, atol=1e-14)


def test_prices_that_are_noise_are_no_reason_to_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets themselves are allowed and free: the least possible objective is 0, whatever prices a solver says."""
    given = problem([0.5, 0.3, 0.2], [0.2, 0.2, 0.6], FactorLimit({"A000": 1.0}, 0.9), covariance=np.eye(2))
    noise = Prices(np.full(len(given.rows.rows), 1e-9), np.zeros(0))
    monkeypatch.setattr(Program, "solve", lambda *_: Raw("optimal", given.target.copy(), noise, given))
    answer = program.solve(given)
    assert answer.status is Status.OPTIMAL
    assert -1e-12 <= answer.bound <= 0.0


@pytest.mark.parametrize("more", [[], [lambda t: t.weights[0] <= 1.0]])
def test_a_rule_that_cannot_be_evaluated_is_not_kept(monkeypatch: Any, more: list[Any]) -> None:
    """The logarithm of a debt is no number; that is no reason to accept the debt, also after a rule that is kept."""
    rules = [*more, lambda t: cp.sum(cp.log(t.weights)) >= -4.0]
    given = simple(Custom(lambda t: [rule(t) for rule in rules], name="spread"))
    debt = np.array([0.9, -0.1, 0.2])
    monkeypatch.setattr(Program, "solve", lambda *_: Raw("optimal", debt, Prices.none(given), given))
    with np.errstate(all="ignore"):
        assert not given.opaque[0][1].violation(debt, debt - given.before) <= FEASIBILITY_TOLERANCE
        answer = program.solve(given)
    assert answer.weights is None


@pytest.mark.parametrize("failure", [RuntimeError("panic"), cp.SolverError("failed"), BaseException("from Rust")])
def test_the_next_solver_answers_where_one_fails(monkeypatch: Any, failure: BaseException) -> None:
    """Clarabel raises, whatever it is: SCS is asked, its answer is checked, and all attempts are on record."""
    right, asked = cp.Problem.solve, []

    def solve(self: cp.Problem, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["solver"])  # named, never a default
        if kwargs["solver"] == "CLARABEL":
            raise failure
        return right(self, *args, **kwargs)

    monkeypatch.setattr(cp.Problem, "solve", solve)
    answer = program.solve(simple())
    assert asked == [rung.solver for rung in LADDER]
    assert answer.solver == "SCS"
    assert answer.objective == pytest.approx(0.00049785714, rel=1e-6)
    assert [a.solver for a in answer.attempts] == [rung.name for rung in LADDER]
    assert str(failure) in answer.attempts[0].said
    assert "accepted" in answer.attempts[-1].verdict


def test_an_interrupt_is_not_swallowed(monkeypatch: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cp.Problem, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.solve(simple())


def test_attempts_tell_users_who_was_asked_and_what_came_of_it() -> None:
    answer = program.solve(simple())
    (attempt,) = answer.attempts
    assert (attempt.solver, attempt.said) == ("CLARABEL", "optimal")
    assert attempt.verdict.startswith("accepted: gap ")
    nothing = program.solve(simple(WeightBounds(lower=0.6)))
    assert nothing.status is Status.UNSOLVED
    assert (nothing.attempts[0].said, nothing.attempts[0].verdict) == ("infeasible", "no answer")


def test_the_solvers_are_installed() -> None:
    """A missing solver must not make a green run."""
    assert {rung.solver for rung in LADDER} <= set(cp.installed_solvers())


# --- scales ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        # No risk, no cost in the direction that a bound asks for: every number of the objective that the
        # holdings and the target show is zero, yet sales would cost.
        {"held": (0.1, 0.9), "goal": (0.7, 0.3), "rules": (WeightBounds(0.7, 0.7),), "fee": (0.0, 0.001)},
        {"held": (0.9, 0.1), "goal": (0.6, 0.4), "rules": (CashBand(1.0, 1.001),), "fee": (0.0, 0.0)},
        {"held": (0.5, 0.5), "goal": (0.5, 0.5), "rules": (CashFloor(0.6),), "fee": (0.0, 0.5)},
        {"held": (0.5, 0.5), "goal": (0.5, 0.5), "rules": (CashBand(0.0, 0.4),), "fee": (0.5, 0.0)},
    ],
)
def test_an_objective_that_is_almost_nothing(given: dict[str, Any]) -> None:
    """A feasible problem is solved, and not called infeasible, however small its objective is."""
    costs = (ProportionalCost(*given["fee"]),)
    made = problem(given["held"], given["goal"], *given["rules"], covariance=[[0.0]], costs=costs, horizon=0.5)
    answer = program.solve(made)
    assert answer.weights is not None, answer.attempts
    assert answer.status is Status.OPTIMAL


@pytest.mark.parametrize("nav", [1e-9, 1e-3, 1e6, 1e12])
def test_a_nav_of_any_size(nav: float) -> None:
    """In money this problem spans 21 orders of magnitude; in fractions of NAV it is the same."""
    costs = (ProportionalCost(0.001), ImpactCost(0.02, nav))
    given = {"covariance": GIVEN["covariance"], "costs": costs}
    one = program.solve(problem((0.4, 0.4, 0.2), (0.8, 0.1, 0.1), Turnover(0.2), nav=nav, **given))
    costs = (ProportionalCost(0.001), ImpactCost(0.02, 1.0))
    other = program.solve(problem((0.4, 0.4, 0.2), (0.8, 0.1, 0.1), Turnover(0.2), **given | {"costs": costs}))
    assert one.objective == pytest.approx(other.objective, rel=1e-9)
    assert one.weights == pytest.approx(other.weights, abs=1e-7)


# --- custom rules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (lambda t: t.weight("A000") <= 0.5, WeightBounds(upper=0.5, assets=["A000"])),
        (lambda t: t.weight("A000") == 0.5, WeightBounds({"A000": 0.5, "A001": -9.0}, {"A000": 0.5, "A001": 9.0})),
        (lambda t: [t.weights[:2] >= 0.3, t.weights[:2] <= 0.6], WeightBounds(lower=0.3, upper=0.6)),
        (
            lambda t: t.vector({"A000": 1.0, "A001": 0.5}) @ t.weights <= 0.7,
            FactorLimit({"A000": 1.0, "A001": 0.5}, 0.7),
        ),
        (lambda t: cp.norm1(t.trades[:2]) / 2 <= 0.1, Turnover(0.1)),
        (lambda t: -cp.sum(cp.pos(t.trades[:2])) >= -0.15, Turnover(0.15, "buy")),
        (lambda t: cp.norm(t.weights - 1 / 3, 2) <= 0.2, None),
        (lambda t: cp.sum_squares(t.trades) <= 0.02, None),
        (lambda t: cp.max(cp.vstack([t.weight("A000"), 2 * t.weight("A001")])) <= 0.6, None),
        (lambda t: cp.sum(cp.log(t.weights)) >= -3.4, None),
        (lambda t: cp.norm(t.trades, "inf") <= 0.1, None),
    ],
)
def test_a_custom_rule_equals_the_rule_that_is_data(build: Callable[..., Any], data: Any) -> None:
    """Affine, vector, norm and curved rules: the objective of the same rule as data (or of plain cvxpy), proven
    by a bound that holds for weights that keep the rule."""
    given = simple(Custom(build, name="mine"))
    answer = program.solve(given)
    if data is not None:
        expected = program.solve(simple(data)).objective
    else:
        w = cp.Variable(3)
        trade = given.opaque[0][1].build(w, w - given.before)
        z, away = w - given.before, (w - given.target)[:2]
        cost = 0.001 * cp.norm1(z[:2])
        value = 5 * cp.quad_form(away, np.array(GIVEN["covariance"])) + cost
        expected = cp.Problem(cp.Minimize(value), [cp.sum(w) == 1, w[2] - cost >= 0, *trade]).solve(
            solver="CLARABEL", **TIGHT
        )
    assert expected > 0.001  # the rule binds: without it the least is .0005
    assert answer.status is Status.OPTIMAL
    assert answer.objective == pytest.approx(expected, rel=2e-7)
    assert answer.bound == pytest.approx(expected, rel=2e-6)
    assert "mine" in [title for title, _ in given.opaque]


@pytest.mark.parametrize("kinks", ["every", "some", "none"])
def test_a_custom_rule_with_kinks_is_proven(kinks: str) -> None:
    """At a kink (an asset that is not traded) cvxpy's gradient is one of many; the bound needs the one in balance."""
    rng = np.random.default_rng(41)
    before, target = rng.dirichlet(np.ones(13), 2)
    limit = {"every": 0.1, "some": 0.4, "none": 5.0}[kinks] * float(np.abs(target - before)[:12].sum())
    given = problem(before, target, Custom(lambda t: cp.norm1(t.trades[:12]) <= limit), covariance=np.eye(12) / 20)
    same = problem(before, target, Turnover(limit / 2), covariance=np.eye(12) / 20)
    answer = program.solve(given)
    assert answer.status is Status.OPTIMAL
    assert answer.attempts[0].verdict.startswith("accepted")
    assert answer.objective == pytest.approx(program.solve(same).objective, rel=1e-7, abs=1e-15)
    assert answer.prices is not None
    assert answer.prices.slopes is not None
    points = before + rng.normal(size=(40, 13))  # the plane is one of the rule's: it is below 0 wherever that is kept
    for point in points:
        part = limit / float(np.abs(point - before)[:12].sum())
        assert answer.prices.slopes @ (before + (point - before) * part) + answer.prices.offset <= 1e-9


def test_a_custom_bound_holds_for_every_point_that_keeps_the_rule() -> None:
    """The priced plane lies below 0 wherever the rule holds, at any multiple of the prices."""
    rng = np.random.default_rng(14)
    given = simple(Custom(lambda t: cp.norm(t.trades, 2) <= 0.1, name="small trades"))
    answer = program.solve(given)
    prices = answer.prices
    assert prices is not None
    assert prices.slopes is not None
    assert answer.weights is not None
    loose = 0
    for _ in range(60):
        step = rng.normal(size=3)
        step -= step.mean()
        point = given.before + step / np.linalg.norm(step) * rng.uniform(0, 0.1)
        assert prices.slopes @ point + prices.offset <= 1e-9
        factor = rng.uniform(0, 4)
        wrong = replace(prices, slopes=factor * prices.slopes, offset=factor * prices.offset)
        bound = lower_bound(given, answer.weights + rng.normal(0, 0.05, 3), wrong)
        assert bound <= answer.objective + 1e-9
        loose += bound < answer.objective - 1e-4
    assert loose >= 40


@pytest.mark.parametrize("wanted", [np.nan, np.array([0.0, np.inf]), np.array([-3.0, 7.0]), np.zeros(2)])
def test_no_price_makes_a_custom_rule_prove_too_much(wanted: Any) -> None:
    """Whatever a solver says the slopes should be: the plane is at most 0 at every point that is allowed."""
    x = cp.Variable(2)
    rules = [cp.norm1(x) <= 1.0, x[0] + x[1] == 0.5]
    cp.Problem(cp.Minimize(cp.sum_squares(x - 2.0)), rules).solve(solver="CLARABEL")
    slopes, offset = priced_plane(rules, x, wanted)
    for part in np.linspace(-0.25, 0.75, 21):
        assert slopes @ [part, 0.5 - part] + offset <= 1e-7


def test_a_custom_rule_without_a_gradient_has_a_plan_without_a_proof() -> None:
    """cvxpy's gradient of `cummax` raises: the plan is checked as all are, and its bound holds without the rule."""
    given = simple(Custom(lambda t: cp.cummax(t.weights[:2]) <= 0.4))
    answer = program.solve(given)
    free = program.solve(simple())
    assert answer.status is Status.FEASIBLE
    assert given.violation(answer.weights) <= FEASIBILITY_TOLERANCE
    assert answer.bound <= free.objective + 1e-9 <= answer.objective


def test_a_custom_rule_is_measured_by_its_own_violation() -> None:
    """cvxpy's violation: of a ≤ in its own units, of several the worst."""
    given = simple(Custom(lambda t: [t.weights[0] <= 0.3, cp.norm(t.trades, 2) <= 1.0, t.trades[1] == 0.05]))
    assert given.violation(np.array([0.4, 0.45, 0.15])) == pytest.approx(0.1, abs=1e-12)
    assert given.violation(np.array([0.3, 0.6, 0.1])) == pytest.approx(0.15, abs=1e-12)
    assert given.violation(np.array([0.2, 0.45, 0.35])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: True, "must return cvxpy constraints"),
        (lambda t: cp.norm(t.trades, 2) >= 0.1, "must be convex"),
        (lambda t: cp.SOC(cp.Constant(0.1), t.trades), "must have the form"),
        (lambda t: t.weight("XYZ") <= 0.1, "does not have"),
        (lambda t: [t.trades <= (y := cp.Variable(3)), -t.trades <= y, cp.sum(y) <= 0.1], "variable"),
    ],
)
def test_what_a_custom_rule_may_not_be_is_said(build: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        program.solve(simple(Custom(build)))


# --- compiled once -----------------------------------------------------------------------------------------


def test_a_structure_is_compiled_once(monkeypatch: Any) -> None:
    """Other holdings, targets, rates, limits, covariance and NAV of one structure share one program, whose
    numbers are all parameters; another structure has its own."""
    made: list[Program] = []
    right = Program.__init__

    def counted(self: Program, *args: Any) -> None:
        made.append(self)
        right(self, *args)

    monkeypatch.setattr(Program, "__init__", counted)
    chains = []
    construct = cp.Problem._construct_chain
    monkeypatch.setattr(cp.Problem, "_construct_chain", lambda *a, **k: chains.append(1) or construct(*a, **k))
    monkeypatch.setattr(cache, "_cache", threading.local())

    def numbered(x: float, *more: Any) -> Problem:
        covariance = np.array([[0.04, 0.01], [0.01, 0.09]]) * x
        held, goal = (0.3 + x / 10, 0.5, 0.2 - x / 10), (0.7, 0.2 + x / 10, 0.1 - x / 10)
        costs = (ProportionalCost(0.001 * x), ImpactCost(0.02 * x, 1.0))
        rules = Turnover(0.1 * x), TrackingErrorLimit(0.2 / x), LongOnly()
        return problem(held, goal, *rules, *more, covariance=covariance, costs=costs, aversion=4 * x, nav=1000 * x)

    problems = [numbered(x) for x in (0.8, 1.0, 1.3)]
    answers = [program.solve(given) for given in problems]
    assert len(made) == 1
    assert len(chains) == 1
    assert made[0].problem.is_dcp(dpp=True)
    assert all(compiled(given) is made[0] for given in problems)
    assert [a.status for a in answers] == [Status.OPTIMAL] * 3
    assert len({round(a.objective, 6) for a in answers}) == 3
    again = program.solve(problems[0])  # what was solved in between leaves no trace
    assert np.array_equal(again.weights, answers[0].weights)
    program.solve(numbered(1.0, Leverage(gross=0.9)))
    assert len(made) == 2


def test_every_thread_has_its_own_programs() -> None:
    """A cvxpy problem must not be shared between threads."""
    found: list[Program] = []
    given = simple()
    threads = [threading.Thread(target=lambda: found.append(compiled(given))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(p) for p in (*found, compiled(given))}) == 3


def test_answers_do_not_depend_on_what_was_solved_before() -> None:
    """In any order, the same bits."""
    problems = [Full(np.random.default_rng([15, seed])).problem() for seed in range(5)]
    forwards = [program.solve(given) for given in problems]
    backwards = [program.solve(given) for given in problems[::-1]][::-1]

    def bits(answers: list[Solution]) -> list[Any]:
        return [(a.status, None if a.weights is None else a.weights.tolist(), repr(a.bound)) for a in answers]

    assert bits(forwards) == bits(backwards)


def test_without_a_risk_model_the_distance_of_the_weights_counts() -> None:
    """½·aversion·Σ(w − b)² over all but the cash, projected on Σ w ≤ 1: from (.8, .6) to (.6, .4)."""
    given = problem((0.5, 0.3, 0.2), (0.8, 0.6, -0.4), Leverage(net=1.0), aversion=3.0)
    answer = program.solve(given)
    assert isinstance(given.risk, type(SquaredDistance().aligned(("A", CASH), CASH)))
    assert answer.weights == pytest.approx([0.6, 0.4, 0.0], abs=1e-8)
    assert answer.objective == pytest.approx(1.5 * 0.08, rel=1e-8)
