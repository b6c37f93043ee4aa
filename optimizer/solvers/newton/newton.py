"""Newton's method on the dual: the exact answers of whole stacks of problems with factors and rows, in numpy.

Given the prices of the factors and of the rows every asset is a threshold rule in closed form, so that only the
few prices are unknown (`dual`). The dual is concave and piecewise smooth; where no kink is crossed one Newton step
is exact, so that a handful of steps, each a K × K system a problem, ends on the optimum's own active set.

The iteration stands in `iteration`, and compiled by numba, for those who ask for it, in `compiled`. Here is what goes
in and what comes out: what has not converged, or has no tight certificate, is handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.dust import without_dust
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Prices, Solution, Status
from equipoise.optimizer.solvers.newton import disjoint_rows
from equipoise.optimizer.solvers.newton import dual as duals
from equipoise.optimizer.solvers.newton.dual import KINKS, Dual
from equipoise.optimizer.solvers.newton.iteration import INFEASIBLE, PROXIMAL, SOLVED, UNSOLVED, Ends, iterated

#: What it returns has at most this violation (of NAV), and a gap of at most this fraction or this part of NAV.
VIOLATION, GAP_RELATIVE, GAP_ABSOLUTE = 1e-10, 1e-9, 1e-14
#: Numbers in one chunk (problems × assets): they stay in the processor's cache.
CHUNK = 40_000
#: How often it adds the rows of envelopes that an answer breaks. Few are enough for maxima of few rows and for norms;
#: of many assets with many tiers no number is: the program has the exact form.
SUPPORTS = 12

NAME, THRESHOLD = "newton", "threshold"


@dataclass(frozen=True, eq=False)
class Answers:
    """For each problem of a stack: what became of it (`SOLVED`, `INFEASIBLE`, `UNSOLVED`), its weights with the
    cash before costs, prices of rows (B, m) and budgets (B, accounts), objective, bound, violation, and Newton steps.

    INFEASIBLE is proven: at the row prices the bound of the zero function is above 0. `problem` is the one that was
    given, with the rows of its envelopes that were met.
    """

    problem: Problem
    code: NDArray[np.intp]
    weights: Array
    rows: Array
    budgets: Array
    objective: Array
    bound: Array
    violation: Array
    steps: NDArray[np.intp]


def solve(problem: Problem) -> Answers:
    """The exact answers of a stack of problems without cones and custom rules; lots are not looked at.

    Where an answer breaks an envelope, its highest row there is added and the problem solved again: the relaxations'
    bounds hold, and an answer that keeps the envelopes is that of the problem itself.
    """
    answers = _solve(problem, np.full(len(problem.before), True))
    for _ in range(SUPPORTS if problem.envelopes else 0):
        broken = (answers.code == SOLVED) & (problem.beyond(answers.weights) > VIOLATION)
        if not broken.any():
            break
        weights = np.where(np.isnan(answers.weights), problem.before, answers.weights)
        problem = problem.supported(weights)
        answers = _merged(answers, _solve(problem, broken), broken)
    if problem.envelopes:
        beyond = problem.beyond(np.where(np.isnan(answers.weights), problem.before, answers.weights))
        answers.code[(answers.code == SOLVED) & (beyond > VIOLATION)] = UNSOLVED
        answers.violation[:] = np.maximum(answers.violation, beyond)
    return answers


def _merged(old: Answers, new: Answers, solved: NDArray[np.bool_]) -> Answers:
    """The new answers where the problem was solved anew, elsewhere the old ones, with a price of 0 for the new rows."""
    place = old.problem.found_rows.stop
    zeros = np.zeros((len(old.rows), new.rows.shape[1] - old.rows.shape[1]))
    padded = replace(old, rows=np.hstack([old.rows[:, :place], zeros, old.rows[:, place:]]))
    for name in ("code", "weights", "rows", "budgets", "objective", "bound", "violation", "steps"):
        mine, theirs = getattr(new, name), getattr(padded, name)
        if name == "steps":
            mine += theirs
        else:
            mine[~solved] = theirs[~solved]
    return new


def _solve(problem: Problem, which: NDArray[np.bool_]) -> Answers:
    """The answers by rows alone, of those of the stack."""
    size, n = problem.shape
    m = problem.rows.upper.shape[1]
    answers = Answers(
        problem=problem,
        code=np.full(size, UNSOLVED),
        weights=np.full((size, n), np.nan),
        rows=np.zeros((size, m)),
        budgets=np.full((size, len(problem.budgets.has)), np.nan),
        objective=np.full(size, np.nan),
        bound=np.full(size, -np.inf),
        violation=np.full(size, np.inf),
        steps=np.zeros(size, dtype=np.intp),
    )
    crossed = np.any(problem.lower > problem.upper, axis=1)
    answers.code[crossed] = INFEASIBLE
    chunk = max(1, CHUNK // n)
    for proximal in PROXIMAL:
        left = which & (answers.code == UNSOLVED)
        for form, out, capped in forms(problem):
            members = np.flatnonzero(form & left)
            for start in range(0, len(members), chunk):
                at = members[start : start + chunk]
                with np.errstate(all="ignore"):
                    dual = duals.of(problem, at, out=out, capped=capped)
                    ends = disjoint_rows.ends(dual, proximal)
                    _record(problem, dual, at, ends or _iterated(problem)(dual, proximal), answers)
        _certify(problem, answers, left)
        if not np.any(which & (answers.code == UNSOLVED)):
            break
    return answers


def refusal(problem: Problem) -> str | None:
    """Why this method does not take the problem; None if it does."""
    if problem.cones:
        return f"{problem.cones[0][0]} is a cone"
    if problem.opaque:
        return f"{problem.opaque[0][0]} is a cvxpy expression"
    return None


def coupling(problem: Problem) -> str:
    """By what assets are coupled other than the cash; empty if each has its closed form and one price joins them."""
    if problem.accounts is not None:
        return "there are several accounts, each with a budget"
    if not problem.risk.is_diagonal:
        return "the risk has factors (assets move together)"
    rows = problem.rows
    others = np.count_nonzero(rows.weight, axis=-1) > (problem.at_cash(rows.weight) != 0)
    for name in KINKS:
        others = others | getattr(rows, name).any(axis=-1)
    others = others.reshape(-1, len(rows.titles)).any(axis=0)
    return f"{rows.titles[int(np.argmax(others))]} couples assets by a row other than the cash" if others.any() else ""


def separable(problem: Problem) -> bool:
    return not coupling(problem)


def solution(problem: Problem) -> tuple[Solution | None, Attempt]:
    """The answer of one problem, or None; and what happened."""
    return answered(problem)[:2]


@dataclass(frozen=True)
class NewtonSolver:
    """This method as a solver of single problems; as threshold, of assets that meet in the cash only."""

    name: str

    def refuses(self, problem: Problem) -> str:
        return refusal(problem) or (coupling(problem) if self.name == THRESHOLD else "")

    def solve(self, problem: Problem) -> Solution:
        return tried(*solution(problem))


def tried(answer: Solution | None, attempt: Attempt) -> Solution:
    """The answer with what happened; UNSOLVED where there is none."""
    return replace(answer or Solution(Status.UNSOLVED, NAME), attempts=(attempt,))


def answered(problem: Problem) -> tuple[Solution | None, Attempt, Problem]:
    """`solution`, and the problem with the rows of its envelopes that were met."""
    answers = solve(problem.as_stack())
    problem = with_rows(problem, answers, 0)
    steps = f"{answers.steps[0]} Newton steps"
    if answers.code[0] == INFEASIBLE:
        return None, Attempt(NAME, "infeasible", f"proven by a ray of prices after {steps}"), problem
    if answers.code[0] == UNSOLVED:
        return None, Attempt(NAME, "not solved", f"not certified after {steps}"), problem
    weights, attempt = answers.weights[0], Attempt(NAME, "solved", f"accepted after {steps}")
    prices = Prices(answers.rows[0], np.zeros(0), answers.budgets[0])
    cashes = list(problem.cashes)
    held = np.array_equal(np.delete(weights, cashes), np.delete(problem.before, cashes))
    status = Status.NO_TRADE if held else Status.OPTIMAL
    name = THRESHOLD if separable(problem) else NAME
    objective, bound = float(answers.objective[0]), float(answers.bound[0])
    form = problem if problem.found else None
    return (
        Solution(status, name, weights, prices, objective, bound, attempts=(attempt,), problem=form),
        attempt,
        problem,
    )


def with_rows(problem: Problem, answers: Answers, i: int) -> Problem:
    """Problem i of a stack, given by itself, with the rows that the stack's envelopes met."""
    return replace(problem, found=tuple((title, row.take(i)) for title, row in answers.problem.found))


def forms(problem: Problem) -> list[tuple[NDArray[np.bool_], bool, bool]]:
    """Which problems go together: those whose cash can be taken out, under a cap or not, with kinks at 0 or not.

    What goes together must not depend on the neighbours, or bits would.
    """
    if problem.accounts is not None:
        return [(np.full(len(problem.before), True), False, False)]
    cash, rows, cost, risk = problem.cash, problem.rows, problem.cost, problem.risk
    bends = np.zeros(len(problem.before), dtype=bool)
    for long, short in ((cost.long[cash], cost.short[cash]), (problem.at_cash(rows.long), problem.at_cash(rows.short))):
        differ = long + short != 0
        bends |= differ if differ.ndim == 1 else differ.any(axis=1)
    risky = np.broadcast_to(risk.specific, problem.shape)[cash] > 0
    risky = risky | (np.abs(problem.at_cash(risk.factors)) > 0).any(axis=1)
    out = ((problem.lower[cash] >= 0) | ~bends) & ~risky
    capped = problem.upper[cash] < problem.outer
    signed = np.any((cost.long != 0) | (cost.short != 0), axis=-1)
    for matrix in (rows.long, rows.short):
        signed = signed | np.any(matrix != 0, axis=(-2, -1))
    key = 4 * out + 2 * (capped & out) + 1 * np.broadcast_to(signed, out.shape)
    return [(key == value, bool(value & 4), bool(value & 2)) for value in np.unique(key).tolist()]


def _iterated(problem: Problem) -> Callable[[Dual, float], Ends]:
    """The iteration in numpy, or as machine code, which costs each process a while to load."""
    if problem.compiled:
        from equipoise.optimizer.solvers.newton.numba_newton import iterated as compiled

        return compiled
    return iterated


def _record(problem: Problem, dual: Dual, at: NDArray[np.intp], ends: Ends, answers: Answers) -> None:
    """Write the ends of a chunk, at these positions of the stack, into the answers."""
    answers.code[at], answers.weights[at] = ends.code, ends.weights
    answers.steps[at] += ends.steps
    k, m = dual.factors, answers.rows.shape[1]
    answers.rows[at] = ends.prices[:, k : k + m]
    if dual.budget:
        answers.budgets[at] = ends.prices[:, -dual.budget :]
    else:
        # The budget's price is what leaves the cash, which was taken out, without a slope: at its upper bound, which
        # is no row of the problem, with that of the bound.
        own = problem.at_cash(problem.rows.weight) + problem.at_cash(problem.rows.long)
        own = np.broadcast_to(own, (len(answers.code), m))[at]
        answers.budgets[at, 0] = -problem.cost.long[problem.cash][at] - (answers.rows[at] * own).sum(axis=1)
        if dual.row_count > m:
            answers.budgets[at, 0] += ends.prices[:, -1]
    answers.bound[at] = np.where(ends.code == SOLVED, dual.bound(ends.prices), -np.inf)


def _certify(problem: Problem, answers: Answers, tried: NDArray[np.bool_]) -> None:
    """Objective, violation and gap of the weights with the cash at the residual; what is not tight is not solved."""
    solved = tried & (answers.code == SOLVED)
    weights = problem.settled(np.where(np.isnan(answers.weights), problem.before, answers.weights))
    quiet = without_dust(problem, weights)
    certain = np.zeros(len(weights), dtype=bool)
    for found in (weights, quiet) if np.any(quiet != weights) else (weights,):
        objective, violation = problem.objective(found), problem.violation(found, envelopes=False)
        tight = objective - answers.bound <= np.maximum(GAP_RELATIVE * np.abs(objective), GAP_ABSOLUTE)
        kept = tight & (violation <= VIOLATION)
        better = solved & (kept | ~certain)  # without dust, if that is as certain
        for values, new in ((answers.objective, objective), (answers.violation, violation), (answers.weights, found)):
            values[better] = new[better]
        certain |= kept
    answers.weights[tried & ~solved] = np.nan
    answers.code[solved & ~certain] = UNSOLVED
