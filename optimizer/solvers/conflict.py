"""Which rules cannot hold together: a least set of them, with a proof of each part.

A set of rules is in conflict if no portfolio keeps them all; it is minimal if without any one of them the others can
be kept. One elastic program is compiled for the problem: all limits give way by one excess, which is made least, and a
rule is left out by limits that are none. An excess that the verifier would let pass comes with a point, which is
checked; any other with prices, which are a proof (Farkas): with them the bound of the zero function (`lower_bound`) is
above what the verifier lets pass. A solver's own word counts for nothing, so that a test may end undecided.

Source: the deletion filter (Chinneck and Dravnieks 1991), each time shrunk to what the last proof needs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.pieces import Array, Bound, Kind
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, Prices
from equipoise.optimizer.solvers.program.cache import compiled
from equipoise.optimizer.solvers.program.cvxpy_model import NO_LIMIT, Gives, Program, Raw
from equipoise.optimizer.solvers.program.program import LADDER
from equipoise.optimizer.verification.certificate import lower_bound, reduced_costs

#: Limits that can all be kept by this much (of NAV) are, in a test: far inside, every solver finds a point.
_INSIDE = 1e-3
_FREE = 10.0  # and where one limit is moved as far as it can be, that one by this much
_PUSHES, _TOUCHES = 1e-4, 1e-7  # a bound's price as a part of the largest, and how near it is (of NAV)
#: At most so many programs are solved for one problem; what is not decided then is called undecided.
MOST_TESTS = 50


@dataclass(frozen=True, eq=False)
class Trial:
    """Whether some rules can hold together: `weights` that keep them, or `prices` of `problem` that prove the
    contrary, or neither: undecided."""

    weights: Array | None = None
    prices: Prices | None = None
    problem: Problem | None = None
    #: Where the limits give way least; what prices of the curved ones are of.
    near: Array | None = None

    @property
    def infeasible(self) -> bool:
        return self.prices is not None


@dataclass(frozen=True)
class Conflict:
    """A set of rules that cannot hold together; each of those in `undecided` may be one too many."""

    titles: tuple[str, ...]
    undecided: tuple[str, ...]
    trial: Trial


class Feasibility:
    """The rules of one problem, to be tested for whether some of them can hold together."""

    def __init__(self, problem: Problem) -> None:
        # The program has the envelopes themselves. Proofs are of rows that ask no more than the rules (`cash_side`).
        self.problem = problem = replace(problem.relaxation, found=(), cash_side="long")
        self.titles = tuple(dict.fromkeys(title for title, piece in problem.pieces if not piece.discrete))
        self.left = MOST_TESTS
        self._last: tuple[object, Program] | None = None

    def tried(self, on: Container[str]) -> Trial:
        """Whether these can hold together."""
        rest = only(self.problem, on)
        if (held := kept(rest, rest.before)) is not None:
            return Trial(weights=held)
        custom = [title for title, _ in rest.opaque]
        pieces = tuple((t, p) for t, p in self.problem.pieces if t in custom or not p.opaque)
        return self._decided(rest, replace(self.problem, pieces=pieces))

    def with_limits(self, problem: Problem) -> Trial:
        """Whether all rules can hold together with other limits: those of this problem."""
        return self._decided(problem, problem)

    def _program(self, problem: Problem) -> Program:
        """The elastic program with this problem's structure; with the last one's expressions, if it is the same."""
        if not (problem.opaque or problem.envelopes):
            return compiled(problem, elastic=True)
        key = (problem.pieces, problem.cash_side)
        if self._last is None or self._last[0] != key:
            self._last = key, compiled(problem, elastic=True)
        return self._last[1]

    def least(self, problem: Problem, kind: str, place: int) -> Raw | None:
        """How far this limit of the problem (see `Gives`) must give way for all others to be kept; None: no answer."""
        gives = Gives.all(problem, 0.0, _FREE)
        getattr(gives, kind)[place] = 1.0
        answers = self._answers(problem, self._program(problem), gives)
        return next((raw for raw in answers if raw.said == "optimal"), None)

    def _decided(self, problem: Problem, structure: Problem) -> Trial:
        """Whether this problem's rules can hold together, by the program of another, of the same structure."""
        gives = Gives.all(problem, 1.0, _INSIDE)
        for raw in self._answers(problem, self._program(structure), gives):
            assert raw.weights is not None and raw.prices is not None
            if (point := kept(problem, raw.weights)) is not None:
                return Trial(weights=point)
            if proven(raw.problem, raw.weights, raw.prices):
                return Trial(prices=raw.prices, problem=raw.problem, near=raw.weights)
        if replace(problem, cash_side="short").kinked:
            # The rules ask for more than these rows; there may be a point where the rows are exact, or ask for more.
            for form in (with_cash_positive, _safe):
                safe = form(problem)
                for raw in self._answers(safe, self._program(form(structure)), Gives.all(safe, 1.0, _INSIDE)):
                    if raw.weights is not None and (point := kept(problem, raw.weights)) is not None:
                        return Trial(weights=point)
        return Trial()

    def _answers(self, problem: Problem, program: Program, gives: Gives) -> Iterator[Raw]:
        """One solver after the other."""
        for rung in LADDER:
            if self.left <= 0:
                return
            self.left -= 1
            raw = program.solve(problem, rung.solver, rung.settings, gives)
            if raw.said == "infeasible":
                return  # what is hard cannot be kept, which is proven elsewhere
            if raw.weights is not None and raw.said in ("optimal", "optimal_inaccurate"):
                yield raw

    def minimal(self, background: Container[str] = ()) -> Conflict | Trial:
        """A minimal conflict of the rules, those of the `background` always on; or a test that found none."""
        trial = self.tried(self.titles)
        if not trial.infeasible:
            return trial
        members = self._needed(trial, self.titles, background)
        undecided: list[str] = []
        for title in members:
            if title not in members:
                continue  # a later proof did without it
            without = [other for other in members if other != title]
            found = self.tried(_Either(without, background))
            if found.infeasible:
                trial, members = found, self._needed(found, without, background)
            elif found.weights is None:
                undecided.append(title)
        return Conflict(tuple(members), tuple(title for title in undecided if title in members), trial)

    def _needed(self, trial: Trial, on: Iterable[str], background: Container[str]) -> list[str]:
        """Those without which the proof is none."""
        assert trial.problem is not None and trial.prices is not None and trial.near is not None
        needed = [title for title in on if title not in background]
        for title in list(needed):
            without = [other for other in needed if other != title]
            rest = only(trial.problem, _Either(without, background))
            every = len(rest.opaque) == len(trial.problem.opaque)  # custom rules have their price together
            if proven(rest, trial.near, trial.prices if every else replace(trial.prices, slopes=None, offset=0.0)):
                needed = without
        return needed


@dataclass(frozen=True)
class _Either:
    """What is in one of the two."""

    one: Container[str]
    other: Container[str]

    def __contains__(self, title: object) -> bool:
        return title in self.one or title in self.other


def only(problem: Problem, on: Container[str]) -> Problem:
    """The problem with the limits of all other rules at none, and as many of them."""

    def limited(pieces: Iterable[tuple[str, Kind]]) -> tuple[tuple[str, Kind], ...]:
        return tuple((t, p if t in on else p.unlimited(NO_LIMIT)) for t, p in pieces if t in on or not p.opaque)

    return replace(problem, pieces=limited(problem.pieces), found=limited(problem.found))


def with_cash_positive(problem: Problem) -> Problem:
    """The problem with every cash at 0 or above: there its rows are exact."""
    floor, free = np.full(problem.shape, -np.inf), np.full(problem.shape, np.inf)
    floor[list(problem.cashes)] = 0.0
    bound = Bound(label="cash floor", lower=floor, upper=free)
    return replace(problem, pieces=(*problem.pieces, ("cash kept positive", bound)))


def _safe(problem: Problem) -> Problem:
    """With rows that ask no less than the rules (see `problem`)."""
    return replace(problem, cash_side="short")


def kept(problem: Problem, raw: Array) -> Array | None:
    """The weights within their bounds, if they keep all rules, with the cash before costs and after them."""
    if np.any(problem.lower > problem.upper):
        return None
    weights = problem.settled(np.clip(raw, problem.lower, problem.upper))
    worst = float(problem.violation(weights))
    if problem.cash_side == "long":  # whose rows are kept by more than the rules allow
        after, trades = problem.after_costs(weights), weights - problem.before
        sides = problem.rows.of(after, trades, np.zeros(len(problem.cashes)))
        worst = max(worst, float(np.max(sides - problem.rows.upper, initial=0.0)))
        worst = max(worst, float(replace(problem, cash_side="short").beyond(weights)))
    return weights if worst <= FEASIBILITY_TOLERANCE else None


def proven(problem: Problem, near: Array, prices: Prices) -> bool:
    """Whether these prices prove that no weights keep all rules, even if each may be exceeded by what the verifier
    lets pass."""
    if np.any(problem.lower > problem.upper + 2.0 * FEASIBILITY_TOLERANCE):
        return True
    none = problem.rows.upper >= NO_LIMIT
    cones = np.array([cone.upper < NO_LIMIT for _, cone in problem.cones], dtype=bool)
    prices = replace(prices, rows=np.where(none, 0.0, prices.rows), cones=prices.cones * cones)
    total = float(prices.rows.sum() + prices.cones.sum())
    bound = lower_bound(_boxed(problem), near, prices, objective=0.0)
    return bound > FEASIBILITY_TOLERANCE * max(1.0, total)


def _boxed(problem: Problem) -> Problem:
    """With the bounds that the others and the budget imply: what is left of rounding in prices then counts for less."""
    if problem.accounts is not None:
        return problem
    lower, upper = problem.lower, problem.upper
    least, most = 1.0 - (upper.sum() - upper), 1.0 - (lower.sum() - lower)
    low, high = np.where(least > lower, least, -np.inf), np.where(most < upper, most, np.inf)
    low[problem.cash], high[problem.cash] = -np.inf, np.inf
    if np.any(np.maximum(low, lower) > np.minimum(high, upper)):
        return problem
    return replace(problem, pieces=(*problem.pieces, ("", Bound(label="implied", lower=low, upper=high))))


def pushing(trial: Trial, title: str) -> list[tuple[str, str, int]]:
    """The bounds of this rule that hold the least excess up: label, 'lower' or 'upper', and asset."""
    assert trial.problem is not None and trial.prices is not None and trial.near is not None
    problem, near = trial.problem, trial.near
    pushed = reduced_costs(problem, near, trial.prices, objective=0.0)
    largest = max(float(np.max(np.abs(pushed))), float(np.max(trial.prices.rows, initial=0.0)))
    found: list[tuple[str, str, int]] = []
    for name, bound in problem.bounds:
        for side, sign in (("lower", 1.0), ("upper", -1.0)):
            at = (sign * pushed > _PUSHES * largest) & (sign * (near - getattr(bound, side)) < _TOUCHES)
            at[list(problem.cashes)] &= side == "upper"  # its floor is a row
            found += [(bound.label, side, int(i)) for i in np.flatnonzero(at) if name == title]
    return list(dict.fromkeys(found))
