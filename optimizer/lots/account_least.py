"""Least positions where a portfolio lies in several accounts: which are closed, and which are large enough.

That a position (a debt, say) is zero or at least a minimum is a choice. The convex program without minimums bounds
every plan. Where its answer lies between, both choices are solved, the node with the least bound first, and so on
within them (branch and bound: Land and Doig 1960). Few rows have minimums, so that a few programs find the best plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.pieces import Array, Bound, Piece, Row
from equipoise.optimizer.problem.accounts import of_holdings
from equipoise.optimizer.problem.counts import least_positions
from equipoise.optimizer.problem.effort import ENDLESS, Clock
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution, Status
from equipoise.optimizer.solvers.choose import solve

#: What counts as zero, and what a least position is kept by more, of NAV: the exact check knows no tolerance.
_ZERO, _MORE = 1e-11, 1e-11
_NODES = 200


@dataclass(frozen=True, eq=False)
class Decided:
    """The problem with its choices as rules, the best weights under them, and a bound on every plan."""

    problem: Problem
    weights: Array
    bound: float


@dataclass(frozen=True, eq=False)
class _Node:
    bound: float
    problem: Problem
    weights: Array
    chosen: frozenset[int] = frozenset()  # the rows that have been decided upon

    def __lt__(self, other: _Node) -> bool:
        return self.bound < other.bound

    @property
    def objective(self) -> float:
        return float(self.problem.objective(self.weights))


def decided(problem: Problem, solution: Solution, clock: Clock = ENDLESS) -> Decided | None:
    """The best plan with these minimums; None if none was found."""
    assert problem.accounts is not None and solution.weights is not None
    least = np.array([float(x) for x in least_positions(problem)])[: problem.accounts.rows] / problem.portfolio.nav
    best, bound = _best([_Node(solution.bound, problem, solution.weights)], least, clock)
    return None if best is None else Decided(best.problem, best.weights, bound)


def _best(heap: list[_Node], least: Array, clock: Clock) -> tuple[_Node | None, float]:
    """The best node with all minimums, grown from those on the heap, and the bound of all that were not divided."""
    best, objective, closed = None, np.inf, np.inf
    for _ in range(_NODES):
        if not heap or clock.over or heap[0].bound >= objective:
            break
        node = heapq.heappop(heap)
        between = _between(node, least)
        if between is None:
            closed = min(closed, node.bound)
            if node.objective < objective:
                best, objective = node, node.objective
            continue
        for child in _children(node, between, float(least[between])):
            if child is None:
                closed = min(closed, node.bound)
            else:
                heapq.heappush(heap, child)
    return best, min([closed, *(node.bound for node in heap)])


def _children(node: _Node, i: int, least: float) -> Iterator[_Node | None]:
    """The node with each choice for row i; None where that is neither solved nor proven to be impossible."""
    for problem in _choices(node.problem, i, least):
        found = solved(problem)
        if found is None:
            yield None
        elif found.weights is not None:
            yield _Node(max(found.bound, node.bound), problem, found.weights, node.chosen | {i})


def _between(node: _Node, least: Array) -> int | None:
    """The row that lies furthest between zero and its minimum, but for rounding, and is not decided upon."""
    assert node.problem.accounts is not None
    size = np.abs(node.problem.accounts.held(node.weights))
    size[list(node.chosen)] = 0.0
    missing = np.where((size > _ZERO) & (size < least), np.minimum(size, least - size), 0.0)
    return int(np.argmax(missing)) if missing.any() else None


def _choices(problem: Problem, i: int, least: float) -> Iterator[Problem]:
    """Row i closed; at least the minimum held; at least the minimum owed or short: as far as its bounds allow."""
    accounts = problem.accounts
    assert accounts is not None
    more = least * (1.0 + _MORE) + _MORE
    for lower, upper in ((0.0, 0.0), (more, np.inf), (-np.inf, -more)):
        touched = bool(accounts.moves[i].any())
        if touched and (lower > 0) == bool(accounts.owed[i]) and lower != upper:
            continue
        if not touched and (lower > problem.upper[i] or upper < problem.lower[i]):
            continue
        pieces = _limited(problem, i, lower, upper, touched)
        yield replace(problem, pieces=(*problem.pieces, *(("least position", piece) for piece in pieces)))


def _limited(problem: Problem, i: int, lower: float, upper: float, touched: bool) -> Iterator[Piece]:
    """lower ≤ wᵢ ≤ upper: a bound, or where transfers touch the row, rows."""
    accounts = problem.accounts
    assert accounts is not None
    if not touched:
        low, high = np.full(problem.shape, -np.inf), np.full(problem.shape, np.inf)
        low[i], high[i] = lower, upper
        yield Bound(label="least position", lower=low, upper=high)
        return
    unit = np.zeros(accounts.rows)
    unit[i] = 1.0
    coefficients = of_holdings(unit, accounts.moves)
    for sign, edge in ((-1.0, lower), (1.0, upper)):
        if np.isfinite(edge):
            yield Row(label="least position", weight=sign * coefficients, upper=sign * edge, at_least=sign < 0)


def solved(problem: Problem) -> Solution | None:
    """The convex answer; one without weights if it is proven that there is none; None if neither was reached."""
    answer = solve(problem)
    return None if answer.status is Status.UNSOLVED else answer
