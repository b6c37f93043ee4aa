"""A solver's answer together with its proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np

from equipoise.constraints.numbers import FEASIBILITY_TOLERANCE as FEASIBILITY_TOLERANCE
from equipoise.constraints.numbers import ROUNDING_TOLERANCE as ROUNDING_TOLERANCE
from equipoise.constraints.pieces import Array, Figure
from equipoise.optimizer.problem.problem import Problem

#: It is called optimal if its gap is at most this fraction of the objective, or this fraction of NAV a year.
GAP_RELATIVE, GAP_ABSOLUTE = 1e-6, 1e-11


class Status(Enum):
    """How a rebalance ended; the value is the sentence that says it. Only the first three carry orders."""

    OPTIMAL = "Optimal: every rule holds and no better plan exists, within the certified gap."
    FEASIBLE = "Verified: every rule holds; the gap says how far from the best convex plan it can be at most."
    NO_TRADE = "Nothing to trade: holding is optimal and keeps every rule."
    INFEASIBLE = "Infeasible: no trades keep all rules; the explanation names those in conflict."
    NO_LOT_PLAN = "No whole-lot plan: the rules can be kept, but no plan in whole lots that keeps them was found."
    INVALID_INPUT = "Invalid input: the message names what is wrong, and where."
    UNSOLVED = "Unsolved: no solver gave an answer that passed the check; nothing should be traded on it."
    WORKER_DIED = "Worker died: the process that solved it ended, also when it did nothing else."
    TIMEOUT = "Timeout: no answer within the time that was given, also when nothing else ran; nothing is known of it."

    @property
    def ok(self) -> bool:
        """Whether there is a verified plan (which may be to do nothing)."""
        return self in (Status.OPTIMAL, Status.FEASIBLE, Status.NO_TRADE)


@dataclass(frozen=True)
class Attempt:
    """One solver's try: what it was, what it said, and why its answer counted or not."""

    solver: str
    said: str
    verdict: str


@dataclass(frozen=True, eq=False)
class Prices:
    """Shadow prices: what one unit of NAV more of each limit would save, in NAV per year and unit.

    One number for each of the problem's rows and cones; all ≥ 0. `slopes` and `offset` hold supporting
    planes of custom rules, already multiplied by their prices: slopes·w + offset ≤ 0 for all that they allow.
    """

    rows: Array
    cones: Array
    budgets: Array | None = None  #: of the budget of each account, of any sign
    slopes: Array | None = None
    offset: float = 0.0

    @property
    def budget(self) -> float | None:
        """That of the settlement cash."""
        return None if self.budgets is None else float(self.budgets[0])

    @classmethod
    def none(cls, problem: Problem) -> Prices:
        return cls(np.zeros(len(problem.rows.rows)), np.zeros(len(problem.cones)))


@dataclass(frozen=True, eq=False)
class Solution:
    """The convex program's answer: weights, prices, objective and a lower bound on any feasible objective.

    `gap` = objective − bound is the certificate, computed in numpy from the prices, whoever found them.
    `weights` is None exactly if `status` carries no plan.
    """

    status: Status
    solver: str
    weights: Array | None = None
    prices: Prices | None = None
    objective: float = np.nan
    bound: float = np.nan
    explanation: str = ""
    attempts: tuple[Attempt, ...] = field(default=())
    #: The form of the problem that was solved, where that is not the one that was asked (see `choose`).
    problem: Problem | None = field(default=None, repr=False)

    @property
    def said(self) -> str:
        """What the solver said last."""
        return self.attempts[-1].said if self.attempts else ""

    @property
    def gap(self) -> float:
        return self.objective - float(rounded_down(self.objective, self.bound))


class Solver(Protocol):
    """What takes convex problems. All that a user's own needs to be; see `choose.register_solver`."""

    @property
    def name(self) -> str:
        """What it is asked for by."""
        ...

    def refuses(self, problem: Problem) -> str:
        """Why it does not take this problem, from its structure alone; empty if it does."""
        ...

    def solve(self, problem: Problem) -> Solution:
        """Its answer: `weights`, with the cash before costs, and the `prices` that prove it, or `weights` None.

        Its last attempt says what happened; "infeasible" asks for a proof before other solvers are tried.
        """
        ...


def first_proven(problem: Problem, solvers: Iterator[Solver], *, stop: bool = True) -> Solution:
    """The first answer that is proven optimal; if none is, that with the least gap, or none (UNSOLVED).

    Solvers are asked one after the other, up to one that says that the problem is infeasible (`stop`).
    """
    attempts: tuple[Attempt, ...] = ()
    best = Solution(Status.UNSOLVED, "none")
    for solver in solvers:
        if solver.refuses(problem):
            continue
        answer = solver.solve(problem)
        attempts += answer.attempts
        if best.weights is None or (answer.weights is not None and answer.gap < best.gap):
            best = answer
        if best.status in (Status.OPTIMAL, Status.NO_TRADE) or (stop and answer.said == "infeasible"):
            break
    return replace(best, attempts=attempts)


def rounded_down(objective: Figure, bound: Figure) -> Figure:
    """The bound as it is reported, of one plan or of many: not above the plan's own objective.

    A bound holds for plans that keep every limit to the last bit. Limits are kept within a tolerance, so that a plan's
    objective may be below it by that tolerance times the limits' prices, and by rounding. What is more than that would
    be a false certificate, and stays to be seen.
    """
    explained = bound - objective <= FEASIBILITY_TOLERANCE + GAP_RELATIVE * np.abs(objective)
    return np.where(explained, np.minimum(bound, objective), bound)


def close_enough(objective: Figure, bound: Figure) -> Figure:
    """Whether a gap, or each of many, is small enough to call the answer optimal."""
    return objective - bound <= np.maximum(GAP_ABSOLUTE, GAP_RELATIVE * np.abs(objective))
