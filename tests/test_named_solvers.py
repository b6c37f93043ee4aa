"""Solvers that are asked for by name, and one that is added from outside the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest

from equipoise import InputError, Plan, Rebalancer, Status
from equipoise.constraints import CashFloor, Custom, LongOnly, LotSize, TrackingErrorLimit, Turnover, WeightBounds
from equipoise.optimizer import CovarianceRisk, Prices, Problem, ProportionalCost, Solution, register_solver
from equipoise.optimizer.batches.solve import solve_batch
from equipoise.optimizer.batches.tasks import Job, packed, unpacked
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.solvers import choose
from equipoise.optimizer.solvers.choose import solve
from equipoise.optimizer.solvers.newton.newton import NewtonSolver
from equipoise.optimizer.solvers.program.program import CvxpySolver

TABLE = pd.DataFrame(
    {"quantity": [0.5, 0.3, 0.2], "price": 1.0, "target": [0.2, 0.5, 0.3]}, index=pd.Index(["A", "B", "USD"])
)
RISK = CovarianceRisk([[0.04, 0.01], [0.01, 0.09]], assets=("A", "B"))
FACTORS = {"cash": "USD", "risk": RISK, "costs": [ProportionalCost(0.001)], "constraints": [Turnover(0.1)]}
PLAIN: dict[str, Any] = {"cash": "USD", "costs": [ProportionalCost(0.001)]}


#: Older versions of cvxpy do not bring it.
HIGHS = pytest.param("HIGHS", marks=pytest.mark.skipif("HIGHS" not in cp.installed_solvers(), reason="not installed"))


def asked(solver: str, **policy: Any) -> Plan:
    return Rebalancer(**policy).solve(TABLE, solver=solver)


@pytest.mark.parametrize("solver", ["newton", "program", "CLARABEL", "clarabel", "SCS", "OSQP", HIGHS])
def test_whoever_is_asked_gives_the_same_plan(solver: str) -> None:
    best = asked("auto", **FACTORS)
    plan = asked(solver, **FACTORS)
    assert plan.status is best.status is Status.OPTIMAL
    assert plan.objective == pytest.approx(best.objective, rel=1e-8)
    assert plan.gap <= 1e-6 * plan.objective
    assert all(check.passed for check in plan.verified.checks)
    assert {a.solver for a in plan.solution.attempts} == {"CLARABEL" if solver == "program" else solver.upper()} or (
        solver == plan.solution.solver == "newton"
    )


def test_who_is_asked_answers_also_where_nothing_is_to_be_traded() -> None:
    """Without a test for doing nothing, and with the same status."""
    for solver, by in (("auto", "holding"), ("threshold", "holding"), ("CLARABEL", "CLARABEL")):
        plan = Rebalancer(**PLAIN).solve(TABLE.assign(target=[0.5, 0.3, 0.2]), solver=solver)
        assert (plan.status, plan.solution.solver, len(plan.orders)) == (Status.NO_TRADE, by, 0)
    assert plan.solution.attempts


@pytest.mark.parametrize(
    ("solver", "rule", "why"),
    [
        ("threshold", Turnover(0.1), "Turnover couples assets"),
        ("newton", TrackingErrorLimit(0.1), "TrackingErrorLimit is a cone"),
        ("newton", Custom(lambda t: cp.norm(t.trades) <= 0.1, name="mine"), "mine is a cvxpy expression"),
        ("OSQP", TrackingErrorLimit(0.1), "does not take this problem: .*OSQP"),
    ],
)
def test_one_that_does_not_take_the_problem_says_why(solver: str, rule: Any, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        asked(solver, cash="USD", risk=CovarianceRisk(np.diag([0.04, 0.09]), assets=("A", "B")), constraints=[rule])
    assert (caught.value.column, caught.value.value) == ("solver", solver)


@pytest.mark.parametrize(("name", "meant"), [("gurobi9", "there are auto"), ("neuton", "did you mean 'newton'")])
def test_one_that_is_not_there_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=meant):
        asked(name, **PLAIN)
    with pytest.raises(InputError, match="name of a solver"):
        asked(3, **PLAIN)  # type: ignore[arg-type]
    for batch in (Rebalancer(**PLAIN).solve_batch, Rebalancer(**PLAIN).stream):
        with pytest.raises(InputError, match=meant):
            batch(TABLE.rename_axis("asset").reset_index().assign(portfolio_id="1"), solver=name)


@pytest.mark.parametrize(("solver", "status"), [("SCS", Status.UNSOLVED), ("CLARABEL", Status.FEASIBLE)])
def test_an_inaccurate_answer_is_never_called_optimal(
    monkeypatch: pytest.MonkeyPatch, solver: str, status: Status
) -> None:
    """Their own word for it is "optimal", at a tenth: one breaks a rule, the other keeps them and is not the best."""
    coarse = {"SCS": ("eps_abs", "eps_rel"), "CLARABEL": ("tol_gap_abs", "tol_gap_rel", "tol_feas")}
    monkeypatch.setattr(choose, "settings_of", lambda name: dict.fromkeys(coarse[name], 0.1))
    plan, best = asked(solver, **FACTORS), asked("auto", **FACTORS)
    assert plan.status is status
    attempt = plan.solution.attempts[0]
    assert attempt.said == "optimal"
    if status is Status.UNSOLVED:
        assert attempt.verdict.startswith("refused: a rule is broken by")
        assert not len(plan.orders)
    else:
        assert plan.bound <= best.objective < plan.objective - 1e-4


def test_newton_alone_hands_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equipoise.optimizer.solvers.newton.newton.GAP_RELATIVE", -1.0)
    monkeypatch.setattr("equipoise.optimizer.solvers.newton.newton.GAP_ABSOLUTE", -1.0)
    assert asked("auto", **FACTORS).solution.solver == "CLARABEL"
    plan = asked("newton", **FACTORS)
    assert plan.status is Status.UNSOLVED
    assert [a.solver for a in plan.solution.attempts] == ["newton", "elastic program"]


def test_a_conflict_is_proven_whoever_is_asked() -> None:
    rules = [CashFloor(0.6), WeightBounds(0.3, 1.0), LongOnly()]
    texts = {asked(solver, cash="USD", constraints=rules).message for solver in ("auto", "SCS", "newton")}
    (text,) = texts
    assert "CashFloor" in text


def batch(count: int = 3) -> pd.DataFrame:
    rows = TABLE.rename_axis("asset").reset_index()
    return pd.concat([rows.assign(portfolio_id=f"P{i}", quantity=rows.quantity * (i + 1)) for i in range(count)])


@pytest.mark.parametrize("solver", ["threshold", "newton", "CLARABEL"])
def test_batches_ask_by_name(solver: str) -> None:
    best, found = (Rebalancer(**PLAIN).solve_batch(batch(), solver=name).results for name in ("auto", solver))
    assert set(found["solver"]) == {"CLARABEL" if solver == "CLARABEL" else "threshold"}
    assert found["verified"].all()
    np.testing.assert_allclose(found["objective"], best["objective"], rtol=1e-8)


def test_in_a_batch_a_refusal_costs_only_the_portfolio() -> None:
    found = Rebalancer(**FACTORS).solve_batch(batch(), solver="threshold").results
    assert set(found["status"]) == {Status.INVALID_INPUT.name}
    assert found["message"].str.contains("does not take this problem: the risk has factors").all()


def test_the_command_line_asks_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from equipoise.optimizer.command.main import main

    (tmp_path / "policy.toml").write_text('cash = "USD"\n')
    TABLE.rename_axis("asset").to_csv(tmp_path / "table.csv")
    command = ["solve", str(tmp_path / "table.csv"), "--policy", str(tmp_path / "policy.toml")]
    assert main([*command, "--out", str(tmp_path / "a"), "--solver", "SCS"]) == 0
    assert '"solver": "SCS"' in (tmp_path / "a" / "plan.json").read_text()
    assert main([*command, "--out", str(tmp_path / "b"), "--solver", "none"]) == 1
    assert "no solver that is registered" in capsys.readouterr().err


# --- one's own -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """Without costs and a risk model, under bounds and a floor under the cash: w = clip(b − ν, lower, upper), with the
    least ν ≥ 0 that leaves the cash its floor, by bisection. ν·aversion is the price of the floor."""

    name: str = "projection"

    def refuses(self, problem: Problem) -> str:
        flat = not problem.risk.factors.size and not problem.cost.buy.any() and not problem.cost.sell.any()
        others = [title for title in problem.rows.titles if title != "CashFloor"]
        others += [title for title, _ in (*problem.cones, *problem.opaque, *problem.envelopes)]
        return "" if flat and not others else "it has " + (f"the rule {others[0]}" if others else "risk or costs")

    def solve(self, problem: Problem) -> Solution:
        def at(down: float) -> np.ndarray:
            return problem.settled(np.clip(problem.target - down, problem.lower, problem.upper))

        low, high = 0.0, 4.0 * float(at(0.0)[problem.cash] < problem.lower[problem.cash])
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[problem.cash] < problem.lower[problem.cash] else (low, middle)
        prices = Prices(np.array([problem.aversion * high]), np.zeros(0))
        return Solution(Status.OPTIMAL, self.name, at(high), prices)


@dataclass(frozen=True)
class Liar(Projection):
    """The same with one thing changed."""

    changed: Any = None

    def solve(self, problem: Problem) -> Solution:
        return self.changed(super().solve(problem))


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_registered", {})


#: The targets, within bounds, and the least cash add up to 1.05, so that the floor binds.
OWN: dict[str, Any] = {"cash": "USD", "constraints": [WeightBounds(0.0, 0.35), CashFloor(0.5)]}


def test_one_of_ones_own_gives_a_certified_plan() -> None:
    register_solver(Projection())
    plan, best = asked("projection", **OWN), asked("auto", **OWN)
    assert (plan.status, plan.solution.solver) == (Status.OPTIMAL, "projection")
    assert plan.weights["after"].to_numpy() == pytest.approx([0.15, 0.35, 0.5], abs=1e-12)  # .05 below .2, and .35
    assert plan.objective == pytest.approx(best.objective, rel=1e-12)
    assert plan.gap <= 1e-9 * plan.objective
    assert plan.solution.attempts[0].verdict.startswith("accepted")
    with pytest.raises(InputError, match="it has risk or costs"):
        asked("projection", **PLAIN)
    in_lots = {**OWN, "constraints": [*OWN["constraints"], LotSize(0.1)]}
    assert asked("projection", **in_lots).objective == asked("auto", **in_lots).objective


def test_one_of_ones_own_goes_where_its_batch_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts knows those that were registered where the batch was started."""
    register_solver(Projection())
    job = packed(Job(Rebalancer(**OWN).policy, frozenset({"A", "B"}), Effort(solver="projection")))
    monkeypatch.setattr(choose, "_registered", {})
    known = unpacked(job)
    found = solve_batch(known.policy, batch(), spent=known.spent).results
    assert set(found["solver"]) == {"projection"}
    assert found["verified"].all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda s: replace(s, weights=s.weights + np.array([0.01, 0, 0])), "refused: a rule is broken by"),
        (lambda s: replace(s, weights=np.full(3, np.nan)), "no answer"),
        (lambda s: replace(s, weights=s.weights[:2]), "no answer"),
        (lambda s: replace(s, weights=None), "no answer"),
        (lambda s: 1 / 0, "no answer"),
    ],
)
def test_what_breaks_a_rule_is_no_answer(changed: Any, said: str) -> None:
    register_solver(Liar(changed=changed))
    plan = asked("projection", **OWN)
    assert plan.status is Status.UNSOLVED
    assert plan.solution.attempts[0].verdict.startswith(said)
    assert not len(plan.orders)


@pytest.mark.parametrize(
    "changed",
    [
        lambda p: None,
        lambda p: replace(p, rows=-100.0 * p.rows),
        lambda p: replace(p, rows=np.zeros(7)),
        lambda p: replace(p, rows=p.rows * np.nan),
        lambda p: replace(p, slopes=np.zeros(3), offset=1.0),
        lambda p: replace(p, rows=100.0 * p.rows),
    ],
)
def test_wrong_prices_prove_nothing(changed: Any) -> None:
    """Weights that are not the best, and prices that prove too little, or would prove too much."""
    worse = np.array([-0.05, 0.05, 0.0])
    register_solver(Liar(changed=lambda s: replace(s, weights=s.weights + worse, prices=changed(s.prices))))
    plan, best = asked("projection", **OWN), asked("auto", **OWN)
    assert plan.status is Status.FEASIBLE
    assert plan.objective > best.objective + 1e-3
    assert plan.bound <= best.objective + 1e-12


@pytest.mark.parametrize("name", ["auto", "newton", "", None])
def test_a_name_that_is_taken_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"name"):
        register_solver(replace(Projection(), name=name))
    with pytest.raises(InputError, match=r"must have a name, refuses\(problem\) and solve\(problem\)"):
        register_solver(object())  # type: ignore[arg-type]


def test_one_of_ones_own_is_asked_where_no_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Rebalancer(**OWN).problem(TABLE)
    with monkeypatch.context() as patched:
        for kind in (NewtonSolver, CvxpySolver):
            patched.setattr(kind, "solve", lambda *_: Solution(Status.UNSOLVED, "none"))
        assert solve(given).status is Status.UNSOLVED
        register_solver(Projection())
        assert solve(given).solver == "projection"
    assert asked("auto", **FACTORS).solution.solver == "newton"  # a problem that it does not take
