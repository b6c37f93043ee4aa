"""The cvxpy program: the definition of the problem, for whatever the closed forms do not take (see `cvxpy_model`).

Solvers are asked one after the other, and none is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Solution, Status, first_proven
from equipoise.optimizer.solvers.program.cache import compiled
from equipoise.optimizer.solvers.program.cvxpy_model import Setting
from equipoise.optimizer.verification.certificate import judged

#: The settings with which solvers are asked: named, never defaulted; one thread each.
SETTINGS: Mapping[str, Mapping[str, Setting]] = MappingProxyType(
    {
        "CLARABEL": {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11, "max_iter": 200, "max_threads": 1},
        "SCS": {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iters": 50_000},
        "OSQP": {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iter": 100_000},
        "HIGHS": {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10, "threads": 1},
    }
)
#: Solvers of every cone that the program can have.
_EVERY_CONE = ("CLARABEL", "SCS")


@dataclass(frozen=True)
class CvxpySolver:
    """A solver that cvxpy knows as `solver`, with these settings, asked for the problem's program."""

    name: str
    solver: str
    settings: Mapping[str, Setting]

    def refuses(self, problem: Problem) -> str:
        """Why it does not take this kind of program, in cvxpy's words; empty if it does."""
        if self.solver in _EVERY_CONE:
            return ""
        program = compiled(problem)
        program.fill(problem)
        try:
            program.problem.get_problem_data(self.solver)
        except Exception as error:  # each of cvxpy's own kinds
            return str(error).strip().splitlines()[0]
        return ""

    def solve(self, problem: Problem) -> Solution:
        """Its answer, if it passes our own check, with its certificate."""
        said, raw, prices, form, _ = compiled(problem).solve(problem, self.solver, self.settings)
        found = form if form.found else None
        attempt = Attempt(self.name, said, "no answer")
        answer = Solution(Status.UNSOLVED, self.name, raw, prices, attempts=(attempt,), problem=found)
        return judged(problem, answer)


def settings_of(solver: str) -> Mapping[str, Setting]:
    """The settings of a solver that cvxpy knows; cvxpy's own where there are none here."""
    return SETTINGS.get(solver, {})


#: The solvers in the order in which they are tried. A later one is asked only if the earlier ones' answers did not pass
#: our own check.
LADDER = (
    CvxpySolver("CLARABEL", "CLARABEL", SETTINGS["CLARABEL"]),
    CvxpySolver(
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
    CvxpySolver("SCS", "SCS", SETTINGS["SCS"]),
)


def installed() -> list[str]:
    """The solvers that cvxpy can ask here, by name."""
    import cvxpy as cp

    return sorted(map(str, cp.installed_solvers()))


def solve(problem: Problem) -> Solution:
    """The first answer on the ladder that passes our own check, with its certificate.

    `status` UNSOLVED means that none did; if a solver called the problem infeasible, `attempts` says so
    (the explanation, which proves it or does not, is made elsewhere).
    """
    return first_proven(problem, iter(LADDER))
