"""Which solver takes a problem, and why the others do not: by structure, asked beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from equipoise.constraints.cash import CashFloor
from equipoise.optimizer import threshold
from equipoise.optimizer.certificate import certified
from equipoise.optimizer.explain import at_once, explain
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
    """The first of holding (nothing to trade), threshold (closed form) and program (cvxpy) that takes it.

    By structure: a problem that threshold takes may still be handed on to the program, where both limits of
    the cash bind at once.
    """
    if at_once(problem) is not None:
        return Choice("none", (("every solver", "the rules contradict each other; the explanation says how"),))
    if threshold.holding(problem) is not None:
        return Choice("holding")
    refused = [("holding", "what is held is not optimal, or breaks a rule")]
    why = threshold.refusal(problem)
    if why is None:
        return Choice("threshold", tuple(refused))
    return Choice("program", (*refused, ("threshold", why)))


def solve(problems: Sequence[Problem]) -> list[Solution]:
    """The convex answers, in the order of the problems; those that the closed form takes are solved together."""
    answers: list[Solution | None] = [None] * len(problems)
    closed: dict[int, list[int]] = {}
    for i, problem in enumerate(problems):
        contradiction = at_once(problem)
        if contradiction is not None:
            answers[i] = Solution(contradiction.status, "none", explanation=contradiction.text)
            continue
        answers[i] = threshold.holding(problem)
        if answers[i] is None and threshold.refusal(problem) is None:
            closed.setdefault(len(problem.assets), []).append(i)
    for group in closed.values():
        for i, answer in zip(group, threshold.solve([problems[i] for i in group]), strict=True):
            answers[i] = answer
    return [
        answer if answer is not None else _by_program(problem)
        for problem, answer in zip(problems, answers, strict=True)
    ]


def _by_program(problem: Problem) -> Solution:
    return _of_two_forms(problem) if problem.kinked else _by_one_program(problem)


def _of_two_forms(problem: Problem) -> Solution:
    """Rows whose slope depends on the sign of the cash: with the cash kept positive they are exact, with the
    steeper slope they are safe; the better answer counts. Bounds and proofs are those of the relaxation."""
    relaxed = replace(problem, cash_side="long")
    floor = CashFloor(0.0).pieces(problem.portfolio)
    positive = replace(problem, pieces=(*problem.pieces, *(("cash kept positive", piece) for piece in floor)))
    loosest = _by_one_program(relaxed)
    if loosest.weights is None:
        return loosest  # what a relaxation cannot keep cannot be kept
    found = [
        replace(answer, problem=form)
        for form in (positive, problem)
        if at_once(form) is None and (answer := _by_one_program(form)).weights is not None
    ]
    if not found:
        text = "No answer passed the check, and no conflict between the rules was proven."
        return replace(loosest, status=Status.UNSOLVED, weights=None, prices=None, explanation=text)
    best = min(found, key=lambda answer: answer.objective)
    status = Status.OPTIMAL if close_enough(best.objective, loosest.bound) else Status.FEASIBLE
    return replace(best, status=status, bound=loosest.bound)


def _by_one_program(problem: Problem) -> Solution:
    from equipoise.optimizer import program

    answer = program.solve(problem)
    if answer.status is not Status.UNSOLVED:
        return answer
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
        return replace(held, attempts=(*answer.attempts, Attempt("holding", "keeps every rule", "accepted")))
    verdict = "conflict proven" if found.status is Status.INFEASIBLE else "no conflict proven"
    attempts = (*answer.attempts, Attempt("elastic program", "explained", verdict))
    return replace(answer, status=found.status, explanation=found.text, attempts=attempts)
