"""The closed form: worked examples, the cvxpy program and a formulation of the test's own as judges."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from generators import CASH, names, portfolio, problem, separable_problems

from equipoise.constraints import (
    BuyOnly,
    CashBand,
    CashFloor,
    Custom,
    FactorLimit,
    GroupLimit,
    LongOnly,
    SellOnly,
    TrackingErrorLimit,
    Turnover,
)
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.problem.costs import HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution, Status
from equipoise.optimizer.risk.models import CovarianceRisk
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.no_trade import holding
from equipoise.optimizer.solvers.program import program

STRUCTURES, DRAWS = 26, 48


def answers(problems: list[Problem]) -> list[Solution | None]:
    return [newton.solution(given)[0] for given in problems]


def closed(given: Problem) -> Solution:
    """The closed form's answer, certified."""
    assert newton.separable(given)
    (answer,) = answers([given])
    assert answer is not None
    assert answer.solver == "threshold"
    assert answer.status in (Status.OPTIMAL, Status.NO_TRADE)
    assert answer.weights is not None
    assert given.violation(answer.weights) <= 1e-12
    return answer


def weights(given: Problem) -> list[float]:
    found = closed(given).weights
    assert found is not None
    return found.tolist()


# --- worked examples ---------------------------------------------------------------------------------------


def two_assets(first: float) -> Problem:
    """Σ = [[.04, .006], [.006, .01]], aversion 5, costs of 20 and 10 bp, target (.6, .4), no cash to be left.

    Where the sum cannot move, Σ₁₂ = u + u with u = .003 is the same as the diagonal Σᵢᵢ − 2u.
    """
    return problem(
        (first, 1 - first, 0.0),
        (0.6, 0.4, 0.0),
        CashBand(-0.1, 0.0),
        covariance=np.diag([0.034, 0.004]),
        costs=(ProportionalCost({"A000": 0.002, "A001": 0.001}),),
        aversion=5.0,
    )


def test_two_assets_go_to_the_edge_of_the_no_trade_interval() -> None:
    """Half-width (c₁ + c₂)/(aversion·σ²rel) = .003/(5·.038) = .0157894737 (Dybvig 2005)."""
    half = 0.0157894737
    for outside in (0.7, 0.9, 0.6 + half + 1e-6):
        assert weights(two_assets(outside)) == pytest.approx([0.6 + half, 0.4 - half, 0], abs=1e-10)
    for inside in (0.6, 0.61, 0.6 + half - 1e-9):
        assert weights(two_assets(inside)) == pytest.approx([inside, 1 - inside, 0], abs=1e-13)


@pytest.mark.parametrize("away", [-0.3, -0.06, -0.04, 0.0, 0.04, 0.0501, 0.2])
def test_one_asset_and_free_cash(away: float) -> None:
    """Trade iff |δ| > c/a, and go to |δ| = c/a: with a = 4·.25², cost .025 over two years, c/a = .05."""
    given = problem(
        (0.5 + away, 0.5 - away),
        (0.5, 0.5),
        covariance=[[0.0625]],
        costs=(ProportionalCost(0.025),),
        aversion=4.0,
        horizon=2.0,
    )
    expected = 0.5 + np.clip(away, -0.05, 0.05)
    assert weights(given) == pytest.approx([expected, 1 - expected], abs=1e-13)
    assert (holding(given) is not None) == (abs(away) <= 0.05)


def test_a_quadratic_cost_moves_part_of_the_way() -> None:
    """w = (a·b + 2q·w₀)/(a + 2q): a = 10·.04, q = .3 over half a year, 2q/½ = 1.2: a quarter of the way."""
    costs = (QuadraticCost(0.3),)
    given = problem((0.2, 0.8), (0.6, 0.4), covariance=[[0.04]], costs=costs, aversion=10.0, horizon=0.5)
    assert weights(given) == pytest.approx([0.3, 0.7], abs=1e-13)


def test_a_three_halves_cost_by_hand() -> None:
    """a(δ − y) = 1.5·p·√y: with a = 1, p = .2 and δ = .28, y = .16 has .12 on both sides."""
    cost = ImpactCost(0.2, 1.0)
    given = problem((0.1, 0.9), (0.38, 0.62), covariance=[[0.25]], aversion=4.0, costs=(cost,))
    assert weights(given) == pytest.approx([0.26, 0.74], abs=1e-13)


def test_new_money_fills_the_emptiest_first() -> None:
    """x = max(h, t + λ) with Σ x = 1: t = (.4, .25, .15), h = (.5, .2, .1), λ = .05 (water-filling)."""
    given = problem((0.5, 0.2, 0.1, 0.2), (0.4, 0.25, 0.15, 0.2), BuyOnly(), CashBand(0.0, 0.0))
    assert weights(given) == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=1e-13)
    # The same money, and more wanted than there is: t = (.4, .35, .25) needs λ = −.05.
    given = problem((0.5, 0.2, 0.1, 0.2), (0.4, 0.35, 0.25, 0.0), BuyOnly())
    assert weights(given) == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=1e-13)


def test_water_filling_of_many_assets() -> None:
    """Against the textbook's loop: drop from the set of buyers whoever is above the water."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        n = int(rng.integers(2, 40))
        h, t = rng.dirichlet(np.ones(n + 1)), rng.dirichlet(np.ones(n + 1))
        variance = rng.uniform(0.01, 0.5, n)
        buyers = np.ones(n, dtype=bool)
        while True:
            level = (1.0 - h[:n][~buyers].sum() - t[:n][buyers].sum()) / np.sum(1 / variance[buyers])
            filled = np.where(buyers, t[:n] + level / variance, h[:n])
            if not np.any(above := buyers & (filled < h[:n])):
                break
            buyers &= ~above
        given = problem(h, t, BuyOnly(), CashBand(0.0, 0.0), covariance=np.diag(variance))
        assert weights(given)[:n] == pytest.approx(filled, abs=1e-13)


def test_costs_are_paid_out_of_the_cash() -> None:
    """All the cash goes into one asset at 1 %: w + .01·(w − .5) = 1."""
    fee = ProportionalCost(0.01)
    given = problem((0.5, 0.5), (1.0, 0.0), costs=(fee,), aversion=1e4)
    answer = closed(given)
    assert answer.weights is not None
    assert answer.weights[0] == pytest.approx(1.005 / 1.01, abs=1e-13)
    assert given.after_costs(answer.weights)[1] == pytest.approx(0.0, abs=1e-13)


def test_a_sale_pays_for_its_own_cost_and_for_the_purchase() -> None:
    """y sold at 2 % buys k·y at 1 %, with k = .98/1.01; the best y makes a quadratic function of y least."""
    a, k = 100.0, 0.98 / 1.01
    # From (1, 0, 0) towards (.2, .8, 0): ½a((.8 − y)² + (.8 − ky)²) + .02y + .01ky.
    sold = (0.8 * a * (1 + k) - 0.02 - 0.01 * k) / (a * (1 + k * k))
    cost = ProportionalCost({"A000": 0.01, "A001": 0.01}, {"A000": 0.02, "A001": 0.02})
    given = problem((1.0, 0.0, 0.0), (0.2, 0.8, 0.0), costs=(cost,), aversion=a)
    found = weights(given)
    assert found[:2] == pytest.approx([1 - sold, k * sold], abs=1e-13)
    assert given.after_costs(np.array(found))[2] == pytest.approx(0.0, abs=1e-13)


def test_the_price_of_the_floor_is_what_more_cash_would_save() -> None:
    """μ is the derivative of the optimal objective by the floor."""
    costs = (ProportionalCost(0.01), ImpactCost(0.1, 1.0))

    def at(floor: float) -> Solution:
        before, target = (0.3, 0.2, 0.5), (0.5, 0.5, 0.0)
        return closed(problem(before, target, CashFloor(floor), costs=costs, covariance=np.diag([0.09, 0.04])))

    step = 1e-4
    slope = (at(0.3 + step).objective - at(0.3 - step).objective) / (2 * step)
    prices = at(0.3).prices
    assert prices is not None
    assert slope > 0.01
    assert prices.rows.tolist() == pytest.approx([slope], rel=1e-6)


@pytest.mark.parametrize(("rate", "held"), [(0.02, True), (0.041, False)])
def test_a_holding_cost_is_paid_until_selling_is_cheaper(rate: float, held: bool) -> None:
    """On target, 2 % to sell, a horizon of half a year: selling pays once holding costs over 4 % a year."""
    costs = (ProportionalCost(0.02), HoldingCost({"A000": rate, CASH: 0.0}))
    given = problem((0.5, 0.5), (0.5, 0.5), costs=costs, covariance=[[0.04]], aversion=5.0, horizon=0.5)
    assert (holding(given) is not None) == held
    assert weights(given)[0] == pytest.approx(0.5 if held else 0.5 - 0.001 / 0.2, abs=1e-13)


# --- against the program -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_finds_nothing_better_and_nothing_else() -> None:
    """On 1,000 random problems: the same objective, every rule kept, the gap closed.

    Where it declines, the program finds nothing, but for a few in which both limits of the cash bind.
    """
    seen: Counter[str] = Counter()
    for structure in range(STRUCTURES):
        problems = list(separable_problems(np.random.default_rng([1, structure]), DRAWS))
        for given, answer in zip(problems, answers(problems), strict=True):
            assert newton.separable(given)
            judge = program.solve(given)
            if answer is None:
                if judge.weights is None:
                    seen["infeasible"] += 1
                    continue
                # Only where both limits of the cash bind, and money must be burnt between them.
                seen["handed on"] += 1
                cash, left = judge.weights[-1], given.after_costs(judge.weights)[-1]
                assert cash == pytest.approx(given.upper[-1], abs=1e-7)
                assert left == pytest.approx(given.lower[-1], abs=1e-7)
                continue
            seen["compared"] += 1
            cash, left = answer.weights[-1], given.after_costs(answer.weights)[-1]
            seen["both limits bind"] += abs(cash - given.upper[-1]) + abs(left - given.lower[-1]) < 1e-12
            size = abs(answer.objective)
            assert answer.weights is not None
            assert given.violation(answer.weights) <= 1e-11
            assert answer.status in (Status.OPTIMAL, Status.NO_TRADE)
            assert abs(answer.gap) <= 1e-9 * max(size, 0.1)
            assert judge.status is Status.OPTIMAL
            # The program may be off by what its certificate says, and may break a rule by 1e-9 of NAV.
            worse = judge.objective - answer.objective
            assert answer.prices is not None
            assert worse >= -1e-9 * (size + abs(float(answer.prices.budget or 0.0))) - 1e-12
            assert worse <= max(1e-7 * size, judge.gap) + 1e-12
    assert seen["compared"] >= 1000
    assert seen["infeasible"] >= 10
    assert seen["both limits bind"] >= 10
    assert seen["handed on"] <= 2


def plain_cvxpy(given: Problem) -> float:
    """The least objective of a problem of `separable_problems`, written down anew; inf if there is none."""
    n, cost, held, goal = len(given.assets), given.cost, given.before, given.target
    w = cp.Variable(n)
    z = w - held
    fees = cost.buy @ cp.pos(z) + cost.sell @ cp.neg(z)
    fees += cost.quadratic @ cp.square(z) + cost.impact @ cp.power(cp.abs(z), 1.5)
    # Yields on long positions are negative: long·w⁺ + short·w⁻ = long·w + (long + short)·w⁻.
    carry = cost.long @ w + (cost.long + cost.short) @ cp.neg(w)
    distance = given.risk.specific @ cp.square(w - goal)
    rules = [cp.sum(w) == 1, w[:-1] >= given.lower[:-1], w[:-1] <= given.upper[:-1]]
    rules += [w[-1] - fees >= given.lower[-1], w[-1] <= given.upper[-1]]
    least = cp.Problem(cp.Minimize(given.aversion / 2 * distance + fees / given.horizon + carry), rules)
    tight = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
    return float(least.solve(solver="CLARABEL", **tight))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_a_formulation_of_its_own_agrees() -> None:
    """Written without the program's parameters, splits and scales."""
    compared = 0
    for structure in range(42):
        given = next(separable_problems(np.random.default_rng([2, structure]), 1))
        (answer,) = answers([given])
        if answer is None:
            continue
        compared += 1
        expected = plain_cvxpy(given)
        assert answer.objective == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert given.objective(answer.weights) == answer.objective
    assert compared >= 30


# --- batches, scales, order --------------------------------------------------------------------------------


def same_bits(one: Solution | None, other: Solution | None) -> bool:
    if one is None or other is None:
        return one is other
    assert one.prices is not None
    assert other.prices is not None
    return (
        np.array_equal(one.weights, other.weights)
        and np.array_equal(one.prices.rows, other.prices.rows)
        and (one.prices.budget, one.objective, one.bound) == (other.prices.budget, other.objective, other.bound)
    )


def test_a_batch_gives_the_bits_of_its_single_problems() -> None:
    """Whatever else is in the batch, and in whatever order."""
    of_size: dict[int, list[Problem]] = {}
    for structure in range(16):
        for given in separable_problems(np.random.default_rng([3, structure]), 6):
            of_size.setdefault(len(given.assets), []).append(given)
    assert sum(len(batch) > 10 for batch in of_size.values()) >= 3
    different = []
    for size, batch in of_size.items():
        together, backwards = answers(batch), answers(batch[::-1])[::-1]
        for i, given in enumerate(batch):
            (alone,) = answers([given])
            if not (same_bits(alone, together[i]) and same_bits(alone, backwards[i])):
                different.append((size, i))
    assert different == []


def test_an_empty_batch() -> None:
    assert answers([]) == []


@pytest.mark.parametrize("power", [-30, -3, 10, 40])
def test_a_nav_of_any_size_gives_the_same_bits(power: int) -> None:
    """From 1e-9 to 1e12: a power of two changes no bit of a weight, so none of the answer."""
    for structure in range(6):
        seed, nav = [4, structure], 2.0**power
        ones = answers(list(separable_problems(np.random.default_rng(seed), 4)))
        scaled = answers(list(separable_problems(np.random.default_rng(seed), 4, nav=nav)))
        assert all(same_bits(one, other) for one, other in zip(ones, scaled, strict=True))


@pytest.mark.parametrize("nav", [1e-9, 1e-3, 1e5, 1e12])
def test_a_nav_of_any_size_gives_the_same_answer(nav: float) -> None:
    for structure in range(6):
        ones = answers(list(separable_problems(np.random.default_rng([4, structure]), 4)))
        scaled = answers(list(separable_problems(np.random.default_rng([4, structure]), 4, nav=nav)))
        for one, other in zip(ones, scaled, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other.objective == pytest.approx(one.objective, rel=1e-11, abs=1e-13)


def test_the_cash_may_stand_anywhere() -> None:
    """Its label's place in the alphabet, also among others in a batch, does not matter."""
    rng = np.random.default_rng(5)
    held, goal, fee = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)), [0.01, 0.002, 0.03, 0.0]

    def labelled(cash: str) -> Problem:
        table = pd.DataFrame({"quantity": held, "price": 1.0, "target": goal, "fee": fee}, ["B", "D", "F", cash])
        risk = CovarianceRisk(np.diag([0.1, 0.2, 0.3]), assets=["B", "D", "F"])
        return Policy(risk, (ProportionalCost("fee"),)).problem(Portfolio.from_table(table, cash))

    problems = [labelled(cash) for cash in "ACEG"]
    assert [p.cash for p in problems] == [0, 1, 2, 3]
    found = [np.delete(a.weights, p.cash) for p, a in zip(problems, answers(problems), strict=True) if a]
    assert len(found) == 4
    for other in found[1:]:
        assert found[0] == pytest.approx(other, abs=1e-13)
    assert not np.allclose(found[0], held[:3])


# --- limits of what it takes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "given"),
    [
        ((), {"covariance": [[0.04, 0.01], [0.01, 0.09]]}),
        ((Turnover(0.1),), {}),
        ((FactorLimit({"A000": 1.0, "A001": 0.5}, upper=0.3, name="growth"),), {}),
    ],
)
def test_what_couples_assets_is_not_separable(rules: tuple[Any, ...], given: dict[str, Any]) -> None:
    coupled = problem((0.4, 0.4, 0.2), (0.3, 0.3, 0.4), *rules, **given)
    assert not newton.separable(coupled)
    assert newton.refusal(coupled) is None


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (TrackingErrorLimit(0.1), "TrackingErrorLimit is a cone"),
        (Custom(lambda t: t.weights[0] <= 0.4, name="mine"), "mine is a cvxpy"),
    ],
)
def test_what_it_refuses_it_explains(rule: Any, why: str) -> None:
    given = problem((0.4, 0.4, 0.2), (0.3, 0.3, 0.4), rule, covariance=np.diag([0.04, 0.09]))
    assert why in str(newton.refusal(given))


def test_the_impossible_is_declined() -> None:
    assert answers([problem((0.5, 0.5), (0.5, 0.5), BuyOnly(), CashFloor(0.6))]) == [None]
    assert answers([problem((0.5, 0.5), (0.5, 0.5), SellOnly(), CashBand(0.0, 0.4))]) == [None]


def test_a_floor_at_what_is_there_is_kept_by_holding() -> None:
    """The floor is the cash's weight to the last bit; sums in another order must not make it infeasible."""
    rng = np.random.default_rng(6)
    for _ in range(50):
        n = int(rng.integers(2, 9))
        held, goal = rng.dirichlet(np.ones(n + 1)), rng.dirichlet(np.ones(n + 1))
        account = portfolio(held, goal)
        floor = float(account.before[-1])
        policy = Policy(costs=(ProportionalCost(0.01),), constraints=(BuyOnly(), CashFloor(floor)))
        assert weights(policy.problem(account))[:n] == pytest.approx(held[:n], abs=1e-13)


@pytest.mark.parametrize("other", [0.05, 0.2])
def test_the_higher_of_two_floors_counts(other: float) -> None:
    """A limit on a group or factor that is the cash alone is a floor, too."""
    label = {"kind": ["share", "share", "money"]}
    for rule in (GroupLimit("kind", lower={"money": other}), FactorLimit({CASH: 1.0}, lower=other)):
        given = problem((0.3, 0.3, 0.4), (0.5, 0.5, 0.0), rule, CashFloor(0.1), columns=label)
        each = (1 - max(other, 0.1)) / 2
        assert weights(given) == pytest.approx([each, each, 1 - 2 * each], abs=1e-13)


# --- doing nothing -----------------------------------------------------------------------------------------


def dense_problems(rng: np.random.Generator, draws: int) -> list[tuple[Problem, np.ndarray]]:
    """Problems of one structure with a dense covariance, near the target, and that covariance."""
    n = int(rng.integers(2, 7))
    unheld, kept = rng.random(n) < 0.2, names(n)[: int(rng.integers(0, 2))]
    found = []
    for _ in range(draws):
        x = rng.normal(size=(n, 2 * n)) * rng.uniform(0.1, 0.5, n)[:, None]
        covariance = x @ x.T / (2 * n)
        held = rng.dirichlet(np.full(n + 1, 5.0))
        held[:n][unheld] = 0.0
        held[n] = 1.0 - held[:n].sum()
        away = np.append(rng.normal(0, 10.0 ** rng.uniform(-4, -1), n), 0.0)
        goal = held + away
        goal[n] = 1.0 - goal[:n].sum()
        rates = {name: np.append(10.0 ** rng.uniform(-4, -2, n), 0.0) for name in ("buy", "sell")}
        given = problem(
            held,
            goal,
            LongOnly(),
            SellOnly(kept),
            covariance=covariance,
            columns=rates,
            costs=(ProportionalCost("buy", "sell"), QuadraticCost(0.1)),
            aversion=float(rng.uniform(1, 20)),
            horizon=float(rng.uniform(0.2, 2)),
        )
        found.append((given, covariance))
    return found


@pytest.mark.slow
def test_holding_is_chosen_exactly_where_the_program_cannot_beat_it() -> None:
    """For any covariance: 400 random problems, those on the edge itself left out, without a mismatch."""
    seen: Counter[str] = Counter()
    for structure in range(16):
        for given, covariance in dense_problems(np.random.default_rng([7, structure]), 25):
            n = len(covariance)
            held, cost = given.before, given.cost
            slope = given.aversion * covariance @ (held - given.target)[:n]
            may_sell, may_buy = held[:n] > 0, held[:n] < given.upper[:n]
            down = np.where(may_sell, slope - cost.sell[:n] / given.horizon, -np.inf)
            up = np.where(may_buy, slope + cost.buy[:n] / given.horizon, np.inf)
            gain = max(0.0, down.max()) - min(0.0, up.min())  # per unit moved; the cash costs nothing
            found = holding(given)
            if gain == 0 or gain > 1e-4:
                assert (found is not None) == (gain == 0)
                best = program.solve(given)
                assert best.weights is not None
                better = given.objective(held) - best.objective
                if found is None:
                    seen["traded"] += 1
                    assert better > max(best.gap, 0.0) + 1e-13
                else:
                    seen["held"] += 1
                    assert better <= 1e-9 * given.objective(held)
                    assert found.status is Status.NO_TRADE
                    assert np.array_equal(found.weights, held)
                    assert abs(found.gap) <= 1e-14
    assert seen["traded"] >= 80
    assert seen["held"] >= 80


def test_a_broken_rule_is_not_held() -> None:
    """On target, but a rule asks for a trade."""
    at_target = (0.5, 0.3, 0.2)
    assert holding(problem(at_target, at_target)) is not None
    for rule in (CashFloor(0.3), CashBand(0.0, 0.1), FactorLimit({"A000": 1.0}, upper=0.4)):
        assert holding(problem(at_target, at_target, rule)) is None
