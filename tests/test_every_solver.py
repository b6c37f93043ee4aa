"""One table of problems with known answers, and every solver that takes them.

The weights were found by hand (the comment says how), not by a solver. Each line names who must take the problem,
so that a solver cannot pass by refusing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from generators import CASH, problem

from equipoise.constraints import (
    BuyOnly,
    CashBand,
    CashFloor,
    Custom,
    DriftBand,
    FactorLimit,
    GroupLimit,
    HealthFactor,
    Leverage,
    NoTrade,
    TrackingErrorLimit,
    TradeLimit,
    Turnover,
    WeightBounds,
)
from equipoise.optimizer.problem.costs import HoldingCost, ImpactCost, ProportionalCost, QuadraticCost
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Solution, Status
from equipoise.optimizer.solvers.choose import choose, solve
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.no_trade import holding
from equipoise.optimizer.solvers.program import program

HOLDING, THRESHOLD, NEWTON, PROGRAM = "holding", "threshold", "newton", "program"
CLOSED, COUPLED, CONIC = (THRESHOLD, PROGRAM), (NEWTON, PROGRAM), (PROGRAM,)


def by_threshold(given: Problem) -> Solution | None:
    return by_newton(given, separable=True)


def by_newton(given: Problem, separable: bool = False) -> Solution | None:
    taken = newton.refusal(given) is None and newton.separable(given) == separable
    return newton.solution(given)[0] if taken else None


def by_program(given: Problem) -> Solution | None:
    answer = program.solve(given)
    return answer if answer.weights is not None else None


SOLVERS: dict[str, Callable[[Problem], Solution | None]] = {
    HOLDING: holding,
    THRESHOLD: by_threshold,
    NEWTON: by_newton,
    PROGRAM: by_program,
}
#: How close the weights must be: exact but for rounding, or to a solver's tolerance.
CLOSE = {HOLDING: 1e-14, THRESHOLD: 1e-13, NEWTON: 1e-11, PROGRAM: 2e-6}


@dataclass(frozen=True)
class Known:
    """Holdings, target and rules, who takes it, the best weights of all but the cash, and its least objective."""

    name: str
    takers: tuple[str, ...]
    before: tuple[float, ...]
    target: tuple[float, ...]
    rules: tuple[Any, ...]
    best: tuple[float, ...]
    least: float
    policy: dict[str, Any]


def known(
    name: str, takers: Any, before: Any, target: Any, *rules: Any, best: Any, least: float, **policy: Any
) -> Known:
    return Known(name, takers, before, target, rules, best, least, policy)


TWO = [[0.04, 0.006], [0.006, 0.01]]
SWAP_COSTS = (ProportionalCost({"A000": 0.002, "A001": 0.001}),)
#: The weight that two assets of TWO at aversion 5 go to, from above: .6 + .003/(5·.038), and the variance there.
EDGE = 0.6 + 0.003 / 0.19

TABLE = [
    known("on target", (HOLDING, *CLOSED), (0.5, 0.3, 0.2), (0.5, 0.3, 0.2), best=(0.5, 0.3), least=0.0),
    known("no cost", CLOSED, (0.5, 0.3, 0.2), (0.1, 0.6, 0.3), best=(0.1, 0.6), least=0.0),
    known(  # to the edge: a = 4·.0625 = .25, c/horizon = .0125, c/a = .05; ½·.25·.05² + .0125·.15
        "the edge of a no-trade interval",
        CLOSED,
        (0.7, 0.3),
        (0.5, 0.5),
        best=(0.55,),
        least=0.0003125 + 0.001875,
        covariance=[[0.0625]],
        costs=(ProportionalCost(0.025),),
        aversion=4.0,
        horizon=2.0,
    ),
    known(
        "inside a no-trade interval",
        (HOLDING, *CLOSED),
        (0.54, 0.46),
        (0.5, 0.5),
        best=(0.54,),
        least=0.125 * 0.04**2,
        covariance=[[0.0625]],
        costs=(ProportionalCost(0.025),),
        aversion=4.0,
        horizon=2.0,
    ),
    known(  # Dybvig (2005): half-width (c₁ + c₂)/(aversion·σ²rel) = .0157894737
        "two correlated assets, outside",
        COUPLED,
        (0.7, 0.3, 0.0),
        (0.6, 0.4, 0.0),
        CashBand(-0.1, 0.0),
        best=(EDGE, 1 - EDGE),
        least=2.5 * 0.038 * (EDGE - 0.6) ** 2 + 0.003 * (0.7 - EDGE),
        covariance=TWO,
        costs=SWAP_COSTS,
        aversion=5.0,
    ),
    known(  # the same with an equivalent diagonal: Σᵢᵢ − 2·.003
        "two uncorrelated assets, outside",
        CLOSED,
        (0.7, 0.3, 0.0),
        (0.6, 0.4, 0.0),
        CashBand(-0.1, 0.0),
        best=(EDGE, 1 - EDGE),
        least=2.5 * 0.038 * (EDGE - 0.6) ** 2 + 0.003 * (0.7 - EDGE),
        covariance=np.diag([0.034, 0.004]),
        costs=SWAP_COSTS,
        aversion=5.0,
    ),
    known(
        "two correlated assets, inside",
        (HOLDING, NEWTON, PROGRAM),
        (0.61, 0.39, 0.0),
        (0.6, 0.4, 0.0),
        CashBand(-0.1, 0.0),
        best=(0.61, 0.39),
        least=2.5 * 0.038 * 0.01**2,
        covariance=TWO,
        costs=SWAP_COSTS,
        aversion=5.0,
    ),
    known(  # max(h, t + .05); aversion 10
        "new money fills the emptiest",
        CLOSED,
        (0.5, 0.2, 0.1, 0.2),
        (0.4, 0.25, 0.15, 0.2),
        BuyOnly(),
        CashBand(0.0, 0.0),
        best=(0.5, 0.3, 0.2),
        least=5 * (0.01 + 0.0025 + 0.0025),
    ),
    known(  # w + .01(w − .5) = 1
        "the cost is paid from the cash",
        CLOSED,
        (0.5, 0.5),
        (1.0, 0.0),
        best=(1.005 / 1.01,),
        least=0.5e4 * (1 - 1.005 / 1.01) ** 2 + 0.01 * (1.005 / 1.01 - 0.5),
        costs=(ProportionalCost(0.01),),
        aversion=1e4,
    ),
    known(  # without risk the cheaper sale pays: .1 + .99y = .3
        "a sale that only costs decide",
        CLOSED,
        (0.4, 0.5, 0.1),
        (0.4, 0.5, 0.1),
        CashFloor(0.3),
        best=(0.4 - 0.2 / 0.99, 0.5),
        least=0.01 * 0.2 / 0.99 / 0.5,
        covariance=np.zeros((2, 2)),
        costs=(ProportionalCost(0.0, {"A000": 0.01, "A001": 0.02}),),
        horizon=0.5,
    ),
    known(  # (a·b + 2q·w₀)/(a + 2q) with a = .4 and 2q = 1.2
        "a quadratic cost",
        CLOSED,
        (0.2, 0.8),
        (0.6, 0.4),
        best=(0.3,),
        least=0.2 * 0.09 + 0.6 * 0.01,
        covariance=[[0.04]],
        costs=(QuadraticCost(0.3),),
        horizon=0.5,
    ),
    known(  # δ − y = 1.5·.2·√y with δ = .28: y = .16
        "a 3/2-power cost",
        CLOSED,
        (0.1, 0.9),
        (0.38, 0.62),
        best=(0.26,),
        least=0.5 * 0.12**2 + 0.2 * 0.16**1.5,
        covariance=[[0.25]],
        costs=(ImpactCost(0.2, 1.0),),
        aversion=4.0,
    ),
    known(  # 2(w + .3) = .1
        "interest on a debt",
        CLOSED,
        (-0.3, 1.3),
        (-0.3, 1.3),
        best=(-0.25,),
        least=0.05**2 + 0.1 * 0.25,
        costs=(HoldingCost(0.0, {"A000": 0.1, CASH: 0.0}),),
        aversion=2.0,
    ),
    known(  # z = (.4, −.3) shrinks by .15 each to |z₁| + |z₂| = .4
        "turnover",
        COUPLED,
        (0.4, 0.4, 0.2),
        (0.8, 0.1, 0.1),
        Turnover(0.2),
        best=(0.65, 0.25),
        least=5 * 2 * 0.15**2,
    ),
    known(  # .2·|w − .5| ≤ .01
        "tracking error",
        CONIC,
        (0.7, 0.3),
        (0.5, 0.5),
        TrackingErrorLimit(0.01),
        best=(0.55,),
        least=0.5 * 0.01**2 + 0.1 * 0.15,
        covariance=[[0.04]],
        costs=(ProportionalCost(0.1),),
        aversion=1.0,
    ),
    known(  # both a tenth less than wanted
        "a limit on a group",
        COUPLED,
        (0.2, 0.2, 0.6),
        (0.5, 0.3, 0.2),
        GroupLimit("kind", 0.6),
        best=(0.4, 0.2),
        least=5 * 0.02,
        columns={"kind": ["a", "a", None]},
    ),
    known(  # the projection on 2w₁ + w₂ ≤ 1 of (.5, .3): less by .06·(2, 1)
        "a limit on a factor",
        COUPLED,
        (0.2, 0.2, 0.6),
        (0.5, 0.3, 0.2),
        FactorLimit({"A000": 2.0, "A001": 1.0}, upper=1.0),
        best=(0.38, 0.24),
        least=5 * (0.12**2 + 0.06**2),
    ),
    known(  # |w₁| + |w₂| ≤ .7 from (.5, −.4): each .1 less
        "gross leverage",
        COUPLED,
        (0.2, -0.2, 1.0),
        (0.5, -0.4, 0.9),
        Leverage(gross=0.7),
        best=(0.4, -0.3),
        least=5 * 0.02,
    ),
    known(  # the projection on .8c − 2.2d ≥ 0 of (1.5, .6), which it misses by .12: +.8k and −2.2k, k = .12/5.48
        "a health factor",
        COUPLED,
        (1.5, -0.6, 0.1),
        (1.5, -0.6, 0.1),
        HealthFactor(2.2, "lt"),
        best=(1.5 + 0.8 * 0.12 / 5.48, -0.6 + 2.2 * 0.12 / 5.48),
        least=5 * 0.12**2 / 5.48,
        columns={"lt": [0.8, 0.0, 0.0]},
    ),
    known(  # both limits of the cash bind: a swap of y and y costs .04y = .01
        "a swap between both limits of the cash",
        CLOSED,
        (0.79, 0.1, 0.11),
        (0.1, 0.79, 0.11),
        CashBand(0.1, 0.11),
        best=(0.54, 0.35),
        least=5 * 2 * 0.44**2 + 0.01,
        costs=(ProportionalCost(0.02),),
    ),
    known(
        "bounds of all kinds",
        CLOSED,
        (0.2, 0.2, 0.2, 0.1, 0.3),
        (0.5, 0.1, 0.0, 0.3, 0.1),
        NoTrade(["A001"]),
        TradeLimit(0.5, {"A000": 0.2, "A001": 9.0, "A002": 9.0, "A003": 9.0}),
        WeightBounds(0.05, 0.6, assets=["A002"]),
        DriftBand(absolute=0.1, inside=0.5, assets=["A003"]),
        best=(0.3, 0.2, 0.05, 0.3),
        least=5 * (0.04 + 0.01 + 0.0025),
    ),
    known(  # the ball around what is held: 1/4 of the way from (.4, .4, .2) to (.8, .1, .1), √.26 away
        "a custom rule",
        CONIC,
        (0.4, 0.4, 0.2),
        (0.8, 0.1, 0.1),
        Custom(lambda t: cp.norm(t.trades[:2], 2) <= 0.125, name="small trades"),
        best=(0.5, 0.325),
        least=5 * 0.375**2,
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_all_who_take_it_agree(case: Known) -> None:
    """Each solver either declines or gives the known weights and objective, with a proof; nobody declines who
    should not."""
    given = problem(case.before, case.target, *case.rules, **case.policy)
    takers = []
    for name, solver in SOLVERS.items():
        answer = solver(given)
        if answer is None:
            continue
        takers.append(name)
        assert answer.weights is not None
        assert answer.weights[:-1] == pytest.approx(case.best, abs=CLOSE[name]), name
        assert answer.weights[-1] == pytest.approx(1 - sum(case.best), abs=CLOSE[name] * 10), name
        assert answer.objective == pytest.approx(case.least, rel=1e-7, abs=1e-11), name
        assert answer.bound == pytest.approx(case.least, rel=1e-6, abs=1e-10), name
        held = name != PROGRAM and HOLDING in case.takers
        assert answer.status is (Status.NO_TRADE if held else Status.OPTIMAL)
        assert given.violation(answer.weights) <= FEASIBILITY_TOLERANCE
    assert tuple(takers) == case.takers


def test_the_chooser_gives_the_answers_of_the_solvers_it_names() -> None:
    """In one call for all: the objective of the table, and the first taker's name."""
    problems = [problem(case.before, case.target, *case.rules, **case.policy) for case in TABLE]
    for case, given in zip(TABLE, problems, strict=True):
        answer = solve(given)
        assert answer.objective == pytest.approx(case.least, rel=1e-7, abs=1e-11), case.name
        assert answer.solver == (case.takers[0] if case.takers != CONIC else "CLARABEL"), case.name
        chosen = choose(given)
        assert chosen.solver == case.takers[0], case.name
        assert all(reason for _, reason in chosen.refused)
