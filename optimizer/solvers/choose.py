"""Which solver takes a problem, and why the others do not: by structure, asked beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Solution, Status, close_enough
from equipoise.optimizer.solvers.conflict import kept, with_cash_positive
from equipoise.optimizer.solvers.infeasible import at_once, explain
from equipoise.optimizer.solvers.newton import dense, newton
from equipoise.optimizer.solvers.no_trade import holding


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
    return holding(problem) or (_of_two_forms(problem) if problem.kinked else _explained(problem))


def _explained(problem: Problem) -> Solution:
    """The answer; where there is none, why."""
    answer = _of_one_form(problem)
    if answer.weights is not None:
        return answer
    found = explain(problem)
    if found.status is Status.UNSOLVED and [a.said for a in answer.attempts[-1:]] == ["infeasible"]:
        # Called infeasible, but not proven: the other solvers' turn.
        from equipoise.optimizer.solvers.program import program

        later = program.solve(problem, first=int(answer.solver != newton.NAME))
        answer = replace(later, attempts=answer.attempts + later.attempts)
        if answer.weights is not None:
            return answer
    verdict = "conflict proven" if found.status is Status.INFEASIBLE else "no conflict proven"
    attempts = (*answer.attempts, Attempt("elastic program", "explained", verdict))
    return replace(answer, status=found.status, explanation=found.text, attempts=attempts)


def _of_one_form(problem: Problem) -> Solution:
    """The answer of newton or of the program; without weights, `status` UNSOLVED."""
    from equipoise.optimizer.solvers.program import program

    if newton.refusal(problem) is not None:
        return program.solve(problem)
    attempts: list[Attempt] = []
    for solution in (dense.solution, newton.solution) if dense.takes(problem) else (newton.solution,):
        answer, attempt = solution(problem)
        attempts.append(attempt)
        if answer is not None:
            return replace(answer, attempts=tuple(attempts))
        if attempt.said == "infeasible":  # proven
            return Solution(Status.UNSOLVED, newton.NAME, attempts=tuple(attempts))
    handed_on = program.solve(problem)
    return replace(handed_on, attempts=(*attempts, *handed_on.attempts))


def _of_two_forms(problem: Problem) -> Solution:
    """Rows whose slope depends on the sign of the cash: with the cash kept positive they are exact, with the
    steeper slope they are safe; the better answer counts. Bounds and proofs are those of the relaxation."""
    relaxed = replace(problem, cash_side="long")
    loosest = _explained(relaxed)
    if loosest.weights is None:
        return loosest  # what a relaxation cannot keep cannot be kept
    if kept(relaxed, loosest.weights) is not None:
        return _as_asked(problem, loosest)  # what is best of more is best
    best = min(of_stricter_forms(problem), key=lambda answer: answer.objective, default=None)
    if best is not None and close_enough(best.objective, loosest.bound):
        return replace(best, status=Status.OPTIMAL, bound=loosest.bound)
    if problem.envelopes:
        from equipoise.optimizer.solvers.program import program

        exact = program.solve(relaxed)  # where envelopes count the cash as it is
        if exact.weights is not None and kept(relaxed, exact.weights) is not None:
            return _as_asked(problem, exact)
    if best is None:
        text = "No answer passed the check, and no conflict between the rules was proven."
        return replace(loosest, status=Status.UNSOLVED, weights=None, prices=None, explanation=text)
    return replace(best, status=Status.FEASIBLE, bound=loosest.bound)


def of_stricter_forms(problem: Problem) -> list[Solution]:
    """The answers, each with its form as its problem: with the cash kept positive, and with the steeper slope."""
    return [
        replace(answer, problem=answer.problem or form)
        for form in (with_cash_positive(problem), problem)
        if at_once(form) is None and (answer := _of_one_form(form)).weights is not None
    ]


def _as_asked(problem: Problem, answer: Solution) -> Solution:
    """A relaxation's answer, which keeps the rules, as one of the problem."""
    form = None if answer.problem is None else replace(answer.problem, cash_side=problem.cash_side)
    return replace(answer, problem=form)
