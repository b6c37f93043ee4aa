"""The cvxpy program: the definition of the problem, for whatever the closed forms do not take (see `cvxpy_model`).

Solvers are asked one after the other, and none is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Attempt, Prices, Solution, Status
from equipoise.optimizer.solvers.program.cvxpy_model import compiled
from equipoise.optimizer.verification.certificate import certified, cleaned

#: The solvers in the order in which they are tried, each with its settings: named, never defaulted; one
#: thread each. A later one is asked only if the earlier ones' answers did not pass our own check.
LADDER: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    (
        "CLARABEL",
        "CLARABEL",
        {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11, "max_iter": 200, "max_threads": 1},
    ),
    (
        "CLARABEL, regularised",
        "CLARABEL",
        {
            "tol_gap_abs": 1e-9,
            "tol_gap_rel": 1e-9,
            "tol_feas": 1e-10,
            "max_iter": 500,
            "max_threads": 1,
            "static_regularization_constant": 1e-7,
            "iterative_refinement_max_iter": 50,
        },
    ),
    ("SCS", "SCS", {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iters": 50_000}),
)


def solve(problem: Problem, *, first: int = 0) -> Solution:
    """The first answer on the ladder (from rung `first` on) that passes our own check, with its certificate.

    `status` UNSOLVED means that none did; if a solver called the problem infeasible, `attempts` says so
    (the explanation, which proves it or does not, is made elsewhere).
    """
    program = compiled(problem)
    attempts: list[Attempt] = []
    best: Solution | None = None
    for name, solver, settings in LADDER[first:]:
        said, raw, prices, form, _ = program.solve(problem, solver, settings)
        if raw is None or prices is None:
            attempts.append(Attempt(name, said, "no answer"))
            if said == "infeasible" and not first:
                break  # worth a proof before other solvers are asked
            continue
        weights = cleaned(form, raw)
        violation = problem.violation(weights)
        if not violation <= FEASIBILITY_TOLERANCE:
            attempts.append(Attempt(name, said, f"refused: a rule is broken by {violation:.1e} of NAV"))
            continue
        answer = certified(form, weights, prices, name)
        if answer.status is Status.FEASIBLE:  # where no limit is in the way, a solver's prices are its noise
            answer = min(answer, certified(form, weights, Prices.none(form), name), key=lambda each: each.gap)
        answer = replace(answer, problem=form if form.found else None)
        attempts.append(Attempt(name, said, f"accepted: gap {answer.gap:.1e}"))
        if best is None or answer.gap < best.gap:
            best = answer
        if best.status is Status.OPTIMAL:
            break
    if best is None:
        return Solution(Status.UNSOLVED, "none", attempts=tuple(attempts))
    return replace(best, attempts=tuple(attempts))
