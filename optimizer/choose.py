"""Which solver takes a problem, and why the others do not: by structure, asked beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.base import Bound
from equipoise.optimizer import newton
from equipoise.optimizer.certificate import certified
from equipoise.optimizer.explain import at_once, explain
from equipoise.optimizer.holding import holding
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import ROUNDING_TOLERANCE, Attempt, Prices, Solution, Status, close_enough


@dataclass(frozen=True)
class Choice:
    """The solver's name, and for each that is passed over the reason."""

    solver: str
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.solver} solves it", *(f"not {name}: {why}" for name, why in self.refused)])


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
    refused = [("holding", "what is held is not optimal, or breaks a rule")]
    why = newton.refusal(problem)
    if why is None and newton.separable(problem):
        return Choice("threshold", tuple(refused))
    refused.append(("threshold", why or newton.coupling(problem)))
    if why is None:
        return Choice("newton", tuple(refused))
    return Choice("program", (*refused, ("newton", why)))


def solve(problem: Problem) -> Solution:
    """The convex answer, which is one without fees: see `Problem.relaxation`."""
    problem = problem.relaxation
    contradiction = at_once(problem)
    if contradiction is not None:
        return Solution(contradiction.status, "none", explanation=contradiction.text)
    return holding(problem) or (_of_two_forms(problem) if problem.kinked else _of_one_form(problem))


def _of_one_form(problem: Problem) -> Solution:
    if newton.refusal(problem) is not None:
        return _by_program(problem)
    answer, attempt, problem = newton.answered(problem)
    if answer is not None:
        return answer
    if attempt.said == "infeasible" and (found := explain(problem)).status is Status.INFEASIBLE:
        return Solution(found.status, newton.NAME, explanation=found.text, attempts=(attempt,))
    handed_on = _by_program(problem)
    return replace(handed_on, attempts=(attempt, *handed_on.attempts))


def _of_two_forms(problem: Problem) -> Solution:
    """Rows whose slope depends on the sign of the cash: with the cash kept positive they are exact, with the
    steeper slope they are safe; the better answer counts. Bounds and proofs are those of the relaxation."""
    loosest = _of_one_form(replace(problem, cash_side="long"))
    if loosest.weights is None:
        return loosest  # what a relaxation cannot keep cannot be kept
    found = of_stricter_forms(problem)
    if not found:
        text = "No answer passed the check, and no conflict between the rules was proven."
        return replace(loosest, status=Status.UNSOLVED, weights=None, prices=None, explanation=text)
    best = min(found, key=lambda answer: answer.objective)
    status = Status.OPTIMAL if close_enough(best.objective, loosest.bound) else Status.FEASIBLE
    return replace(best, status=status, bound=loosest.bound)


def of_stricter_forms(problem: Problem) -> list[Solution]:
    """The answers, each with its form as its problem: with the cash kept positive, and with the steeper slope."""
    free = np.full(problem.shape, np.inf)
    floor = -free
    floor[list(problem.cashes)] = 0.0
    kept = Bound(label="cash floor", lower=floor, upper=free)
    positive = replace(problem, pieces=(*problem.pieces, ("cash kept positive", kept)))
    return [
        replace(answer, problem=answer.problem or form)
        for form in (positive, problem)
        if at_once(form) is None and (answer := _of_one_form(form)).weights is not None
    ]


def _by_program(problem: Problem) -> Solution:
    from equipoise.optimizer import program

    answer = program.solve(problem)
    if answer.status is not Status.UNSOLVED:
        return answer
    problem = answer.problem or problem
    found = explain(problem)
    if found.status is Status.UNSOLVED and answer.attempts and answer.attempts[-1].said == "infeasible":
        # Called infeasible, but not proven: the other solvers' turn.
        later = program.solve(problem, first=1)
        answer = replace(later, attempts=answer.attempts + later.attempts)
        if answer.status is not Status.UNSOLVED:
            return answer
    if found.status is Status.UNSOLVED and problem.violation(problem.before) <= ROUNDING_TOLERANCE:
        # What is held keeps every rule: a plan, if not a proven one; the bound says how far it may be.
        held = certified(problem, problem.before.copy(), Prices.none(problem), "holding")
        form = problem if problem.found else None
        attempts = (*answer.attempts, Attempt("holding", "keeps every rule", "accepted"))
        return replace(held, attempts=attempts, problem=form)
    verdict = "conflict proven" if found.status is Status.INFEASIBLE else "no conflict proven"
    attempts = (*answer.attempts, Attempt("elastic program", "explained", verdict))
    return replace(answer, status=found.status, explanation=found.text, attempts=attempts)
