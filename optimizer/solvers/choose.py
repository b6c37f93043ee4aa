"""Which solver takes a problem, and why the others do not: by structure, asked beforehand; and solvers by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np

from equipoise.constraints.errors import InputError
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Prices, Solution, Solver, Status, close_enough, first_proven
from equipoise.optimizer.solvers.conflict import kept, with_cash_positive
from equipoise.optimizer.solvers.infeasible import at_once, explain
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.dense import DenseSolver
from equipoise.optimizer.solvers.newton.newton import NewtonSolver
from equipoise.optimizer.solvers.no_trade import holding
from equipoise.optimizer.solvers.program.program import LADDER, CvxpySolver, installed, settings_of
from equipoise.optimizer.verification.certificate import judged

AUTO = "auto"
#: The solvers by the names under which they are asked for, in the order in which they are; those under one name one
#: after the other, the last of them the one that takes the most.
_SOLVERS: dict[str, tuple[Solver, ...]] = {
    newton.THRESHOLD: (NewtonSolver(newton.THRESHOLD),),
    newton.NAME: (DenseSolver(), NewtonSolver(newton.NAME)),
    "program": LADDER,
}
#: Users' own.
_registered: dict[str, _Registered] = {}


@dataclass(frozen=True)
class Choice:
    """The solver's name, and for each that is passed over the reason."""

    solver: str
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.solver} solves it", *(f"not {name}: {why}" for name, why in self.refused)])


@dataclass(frozen=True)
class _Registered:
    """A user's own solver, whose answers count for as much as our own check finds in them."""

    solver: Solver

    @property
    def name(self) -> str:
        return self.solver.name

    def refuses(self, problem: Problem) -> str:
        return self.solver.refuses(problem)

    def solve(self, problem: Problem) -> Solution:
        try:
            found = self.solver.solve(problem)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return Solution(Status.UNSOLVED, "none", attempts=(Attempt(self.name, said, "no answer"),))
        attempts = found.attempts or (Attempt(self.name, found.status.name.lower(), ""),)
        weights = None if found.weights is None else np.array(found.weights, dtype=float)
        if weights is not None and not (weights.shape == problem.shape and np.all(np.isfinite(weights))):
            weights = None
        prices = _proving(problem, found.prices)
        return judged(problem, Solution(found.status, self.name, weights, prices, attempts=attempts))


def _proving(problem: Problem, prices: Prices | None) -> Prices:
    """Those of the prices that prove something, whoever gives them: of the problem's own rows and cones, at least 0.

    Those of budgets are found from them (`lower_bound`)."""
    none = Prices.none(problem)
    if prices is None or (prices.rows.shape, prices.cones.shape) != (none.rows.shape, none.cones.shape):
        return none
    return Prices(np.maximum(prices.rows, 0.0), np.maximum(prices.cones, 0.0))


def register_solver(solver: Solver) -> None:
    """Make a solver of one's own known by its name, in this process and in those that its batches start.

    It is asked where it is asked for (`Rebalancer.solve(..., solver=name)`), and after all others where these give no
    answer that is proven. Its weights pass the same check as everybody's, and the bound is worked out from its prices.
    A second one of the same name replaces the first. Raises InputError for a name that is taken, or no solver at all.
    """
    name = getattr(solver, "name", None)
    if not isinstance(name, str) or not all(callable(getattr(solver, of, None)) for of in ("refuses", "solve")):
        raise InputError("must have a name, refuses(problem) and solve(problem)", column="solver", value=solver)
    if name in _SOLVERS or name in (AUTO, "holding", "none", ""):
        raise InputError("is no name for a solver of one's own", column="solver", value=name)
    _registered[name] = _Registered(solver)


def registered_solvers() -> tuple[Solver, ...]:
    """The solvers that were registered."""
    return tuple(own.solver for own in _registered.values())


def _groups() -> dict[str, tuple[Solver, ...]]:
    return {**_SOLVERS, **{name: (own,) for name, own in _registered.items()}}


def named(name: str) -> tuple[Solver, ...]:
    """The solvers that are meant, in the order in which they are asked.

    "auto": all; "threshold", "newton", "program"; one that is registered; or one that cvxpy has installed, such as
    "CLARABEL". Raises InputError for any other name.
    """
    groups = _groups()
    if name == AUTO:  # threshold is newton's method, too
        return tuple(solver for of, group in groups.items() if of != newton.THRESHOLD for solver in group)
    if name in groups:
        return groups[name]
    if name.upper() in (found := installed()):
        return (CvxpySolver(name.upper(), name.upper(), settings_of(name.upper())),)
    known = [AUTO, *groups, *found]
    near = get_close_matches(name, known, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(
        f"is no solver that is registered, or that cvxpy has installed{meant}; there are {', '.join(known)}",
        column="solver",
        value=name,
    )


def choose(problem: Problem) -> Choice:
    """The first of holding (nothing to trade), threshold (assets that meet in the cash only), newton (factors and
    rows) and program (cvxpy) that takes it.

    By structure: what threshold and newton, which are one method, do not certify is still handed on to the program.
    Lots, fees and limits on counts are searched for from the answer.
    """
    problem = problem.relaxation
    if at_once(problem) is not None:
        return Choice("none", (("every solver", "the rules contradict each other; the explanation says how"),))
    if holding(problem) is not None:
        return Choice("holding")
    reasons = [(name, group[-1].refuses(problem)) for name, group in _groups().items()]
    taken = next(k for k, (_, why) in enumerate(reasons) if not why)
    return Choice(reasons[taken][0], (("holding", "what is held is not optimal, or breaks a rule"), *reasons[:taken]))


def solve(problem: Problem, solver: str = AUTO) -> Solution:
    """The convex answer, which is one without fees: see `Problem.relaxation`.

    solver: who is asked, see `named`; "auto" for whoever takes it. A solver that is asked for answers even where what
    is held is optimal. Raises InputError where there is none of that name, or it does not take the problem.
    """
    problem = problem.relaxation
    solvers = named(solver)
    contradiction = at_once(problem)
    if contradiction is not None:
        return Solution(contradiction.status, "none", explanation=contradiction.text)
    if solver == AUTO and (held := holding(problem)) is not None:
        return held
    if solver != AUTO and (why := solvers[-1].refuses(problem)):
        raise InputError(
            f"does not take this problem: {why}", portfolio=problem.portfolio.name, column="solver", value=solver
        )
    return _of_two_forms(problem, solvers) if problem.kinked else _explained(problem, solvers)


def _explained(problem: Problem, solvers: tuple[Solver, ...]) -> Solution:
    """The answer; where there is none, why."""
    left = iter(solvers)
    answer = first_proven(problem, left)
    if answer.weights is not None:
        return answer
    found, attempts = explain(problem), answer.attempts
    if found.status is Status.UNSOLVED:
        # Called infeasible, but not proven: the other solvers' turn.
        answer = first_proven(problem, left, stop=False)
        attempts += answer.attempts
        if answer.weights is not None:
            return replace(answer, attempts=attempts)
    verdict = "conflict proven" if found.status is Status.INFEASIBLE else "no conflict proven"
    attempts = (*attempts, Attempt("elastic program", "explained", verdict))
    return replace(answer, status=found.status, explanation=found.text, attempts=attempts)


def _of_two_forms(problem: Problem, solvers: tuple[Solver, ...]) -> Solution:
    """Rows whose slope depends on the sign of the cash: with the cash kept positive they are exact, with the
    steeper slope they are safe; the better answer counts. Bounds and proofs are those of the relaxation."""
    relaxed = replace(problem, cash_side="long")
    loosest = _explained(relaxed, solvers)
    if loosest.weights is None:
        return loosest  # what a relaxation cannot keep cannot be kept
    if kept(relaxed, loosest.weights) is not None:
        return _as_asked(problem, loosest)  # what is best of more is best
    best = min(of_stricter_forms(problem, solvers), key=lambda answer: answer.objective, default=None)
    if best is not None and close_enough(best.objective, loosest.bound):
        return replace(best, status=Status.OPTIMAL, bound=loosest.bound)
    if problem.envelopes:  # which the program counts with the cash as it is
        exact = first_proven(relaxed, (solver for solver in solvers if isinstance(solver, CvxpySolver)))
        if exact.weights is not None and kept(relaxed, exact.weights) is not None:
            return _as_asked(problem, exact)
    if best is None:
        text = "No answer passed the check, and no conflict between the rules was proven."
        return replace(loosest, status=Status.UNSOLVED, weights=None, prices=None, explanation=text)
    return replace(best, status=Status.FEASIBLE, bound=loosest.bound)


def of_stricter_forms(problem: Problem, solvers: tuple[Solver, ...]) -> list[Solution]:
    """The answers, each with its form as its problem: with the cash kept positive, and with the steeper slope."""
    return [
        replace(answer, problem=answer.problem or form)
        for form in (with_cash_positive(problem), problem)
        if at_once(form) is None and (answer := first_proven(form, iter(solvers))).weights is not None
    ]


def _as_asked(problem: Problem, answer: Solution) -> Solution:
    """A relaxation's answer, which keeps the rules, as one of the problem."""
    form = None if answer.problem is None else replace(answer.problem, cash_side=problem.cash_side)
    return replace(answer, problem=form)
