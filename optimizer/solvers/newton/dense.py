"""Newton's method on the dual for covariances of many factors: the factors' prices are those of trial weights.

Newton's method (`iteration`) takes a system of as many equations as there are factors and rows. A covariance of n
assets has up to n factors, but few of the assets are free to move in the end. At the best prices λ of the factors,
λ = γF(w − b); so they are looked for as λ = γF(x − b) of trial weights x. With G = FᵀF, every asset's minimiser w at
the slopes γG(x − b) + Jᵀμ, what is left r = w − x, and the curvatures M⁻¹ = f″, Newton's step is

    (M⁻¹ + γG)u + Jᵀdμ = −γGr,   Ju = −(what w leaves of the rows)       over the assets that are free to move,

u = 0 for all others, and x ← x + r + u. The dual rises along it, for it is the step of the prices. A step costs two
passes over F and a linear system of the free assets. Sources: as in `iteration`; the matrix inversion lemma.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.dust import without_dust
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Attempt, Prices, Solution, Status
from equipoise.optimizer.risk.models import FactoredRisk
from equipoise.optimizer.solvers.newton import dual as duals
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.dual import Dual, Point
from equipoise.optimizer.solvers.newton.iteration import infeasible
from equipoise.optimizer.solvers.newton.line_search import ACCEPTED, searched
from equipoise.optimizer.verification.certificate import certified

FACTORS = 200  #: Below, the systems of the prices are small.
STEPS = 400
EXACT, NEARLY = 1e-13, 1e-11  # residuals in NAV: done; done if it gets no better
RIDGE, HELD = 1e-12, 1e-3  # of the rows' curvature, and of what it is if all assets were free
RAYS = (12, 25, 45, 100, 200, 399)  # the steps after which it looks for a proof that nothing is feasible


def takes(problem: Problem) -> bool:
    """Whether this is for it: many factors, every asset with curvature of its own, rows and nothing else."""
    n, k = problem.shape[0], problem.risk.factors.shape[0]
    if k < FACTORS or 4 * k < n or problem.accounts is not None or problem.envelopes or newton.refusal(problem):
        return False
    curved = problem.risk.specific > 0
    curved[problem.cash] = True
    [(_, out, _)] = newton.forms(problem.as_stack())
    return bool(out and np.all(curved) and np.all(problem.lower <= problem.upper))


@dataclass(frozen=True)
class DenseSolver:
    """This method as a solver."""

    name: str = newton.NAME

    def refuses(self, problem: Problem) -> str:
        return "" if takes(problem) else "it is for one portfolio with many factors and rows"

    def solve(self, problem: Problem) -> Solution:
        return newton.tried(*solution(problem))


class _Free:
    """The factors of all assets that have been free so far, and G among them: each product is made once."""

    def __init__(self, factors: Array) -> None:
        self._all = factors
        self._place = np.full(factors.shape[1], -1)
        self._columns = np.zeros((0, len(factors)))  # a row for each asset
        self._gram = np.zeros((0, 0))

    def of(self, assets: NDArray[np.intp]) -> NDArray[np.intp]:
        """The places of these assets."""
        new = assets[self._place[assets] < 0]
        if len(new):
            columns, old = np.ascontiguousarray(self._all[:, new].T), len(self._columns)
            self._place[new] = old + np.arange(len(new))
            across = self._columns @ columns.T
            self._gram = np.block([[self._gram, across], [across.T, columns @ columns.T]])
            self._columns = np.vstack([self._columns, columns])
        return self._place[assets]

    def gram(self, at: NDArray[np.intp]) -> Array:
        return self._gram[np.ix_(at, at)]

    def against(self, at: NDArray[np.intp], y: Array) -> Array:
        """Fᵀy at these places."""
        return np.asarray((self._columns @ y)[at])

    def times(self, at: NDArray[np.intp], x: Array) -> Array:
        """Fx of weights x at these places."""
        spread = np.zeros(len(self._columns))
        spread[at] = x
        return np.asarray(spread @ self._columns)


@dataclass(frozen=True, eq=False)
class _Here:
    """Trial weights, prices of the rows, what they make of the assets, and what is left."""

    x: Array
    along: Array  # F(x − b)
    pull: Array  # γG(x − b)
    point: Point
    left: Array  # r = w − x
    factors: Array  # Fr: what is left of the factors' rows

    @property
    def prices(self) -> Array:
        return np.asarray(self.point.prices[0])

    @property
    def rows(self) -> Array:
        """What the weights leave of each row."""
        return np.asarray(self.point.gradient[0])


@dataclass(frozen=True, eq=False)
class _Dense:
    """The dual of one problem: that of its rows, which the factors' prices tilt."""

    dual: Dual
    factors: Array
    aversion: float
    centre: Array
    free: _Free

    def tilted(self, pull: Array, prices: Array) -> Point:
        own = self.dual.assets
        return replace(self.dual, assets=replace(own, slope=own.slope + pull[None])).at(prices[None])

    def pull(self, along: Array) -> Array:
        return np.asarray(self.aversion * (along @ self.factors))

    def at(self, x: Array, along: Array, pull: Array, prices: Array) -> _Here:
        point = self.tilted(pull, prices)
        weights = point.weights[0]
        return _Here(x, along, pull, point, weights - x, self.factors @ (weights - self.centre) - along)

    def started(self) -> _Here:
        own = self.dual.assets
        x = np.minimum(np.maximum(own.before, own.lower), own.upper)[0]
        along = self.factors @ (x - self.centre)
        return self.at(x, along, self.pull(along), np.zeros(self.dual.limits.shape[1]))


@dataclass(frozen=True, eq=False)
class _Step:
    """The derivative of the dual along a step, for `searched`."""

    dense: _Dense
    here: _Here
    x: Array
    pull: Array
    prices: Array

    def slope(self, length: Array) -> Array:
        t = float(length[0])
        point = self.dense.tilted(self.here.pull + t * self.pull, self.here.prices + t * self.prices)
        left = point.weights[0] - self.here.x - t * self.x
        return np.array([self.pull @ left + self.prices @ point.gradient[0]])


def solution(problem: Problem) -> tuple[Solution | None, Attempt]:
    """The answer, or None; and what happened. For problems that it `takes`."""
    stack = problem.as_stack()
    [(_, out, capped)] = newton.forms(stack)
    alone = replace(stack, risk=FactoredRisk(np.zeros((0, problem.shape[0])), problem.risk.specific))
    factors = problem.risk.factors
    with np.errstate(all="ignore"):
        dual = duals.of(alone, np.zeros(1, dtype=np.intp), out=out, capped=capped)
        centre = problem.target.copy()
        centre[problem.cash] = 0.0
        dense = _Dense(dual, factors, problem.aversion, centre, _Free(factors))
        here, steps, said = _iterated(dense)
    if said == "infeasible":
        return None, Attempt(newton.NAME, said, f"proven by a ray of prices after {steps} Newton steps")
    if said:
        return None, Attempt(newton.NAME, said, f"not certified after {steps} Newton steps")
    found = _certified(problem, here)
    if found is None:
        return None, Attempt(newton.NAME, "not solved", f"not certified after {steps} Newton steps")
    attempt = Attempt(newton.NAME, "solved", f"accepted after {steps} Newton steps")
    return replace(found, attempts=(attempt,)), attempt


def _iterated(dense: _Dense) -> tuple[_Here, int, str]:
    """Where it ended, after how many steps, and what is wrong with it."""
    here, before = dense.started(), np.inf
    for step in range(STEPS):
        pinned = (here.prices <= 0) & (here.rows <= 0)
        residual = max(np.abs(here.factors).max(), np.abs(np.where(pinned, 0.0, here.rows)).max(initial=0.0))
        if residual <= EXACT or (residual <= NEARLY and residual > 0.1 * before):
            return here, step, ""
        if step in RAYS and infeasible(dense.dual, here.point.prices)[0]:
            return here, step, "infeasible"
        before = residual
        here = _stepped(dense, here, pinned)
    return here, STEPS, "not solved"


def _stepped(dense: _Dense, here: _Here, pinned: NDArray[np.bool_]) -> _Here:
    """One step: Newton's direction, as far as prices stay ≥ 0 and the dual rises."""
    x, along, prices = _direction(dense, here, pinned)
    pull = dense.pull(along)
    room = np.where(prices < 0, -here.prices / prices, np.inf)
    furthest = room.min(initial=np.inf)
    length = min(1.0, furthest)

    def moved(length: float) -> _Here:
        there = np.where(room <= length * (1.0 + 1e-9), 0.0, np.maximum(here.prices + length * prices, 0.0))
        return dense.at(here.x + length * x, here.along + length * along, here.pull + length * pull, there)

    step = _Step(dense, here, length * x, length * pull, length * prices)
    start, end = step.slope(np.zeros(1)), step.slope(np.ones(1))
    if end[0] < -ACCEPTED * start[0] or (end[0] > 0.5 * start[0] and furthest > length):
        length *= float(searched(step, start, end, np.array([furthest / length]))[0])
    return moved(length)


def _direction(dense: _Dense, here: _Here, pinned: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Newton's direction of the trial weights, F times it, and that of the prices."""
    moves = here.point.moves[0]
    free = np.flatnonzero(moves > 0)
    slopes = dense.dual.slopes(here.point.weights)
    slopes = slopes[0] if slopes.ndim == 3 else slopes
    at = dense.free.of(free)
    system = dense.aversion * dense.free.gram(at)
    system[np.diag_indices(len(free))] += 1.0 / moves[free]
    J = slopes[:, free]
    push = dense.aversion * dense.free.against(at, here.factors)
    solved = np.linalg.solve(system, np.column_stack([J.T, push]))
    within, own = solved[:, :-1], solved[:, -1]
    curvature = J @ within
    all_free = np.square(slopes).sum(axis=1) / np.median(dense.dual.assets.curvature)
    diagonal = curvature.diagonal()
    curvature = curvature + np.diag(np.where(diagonal > 1e-9 * all_free, RIDGE * diagonal, HELD * all_free))
    wanted = here.rows - J @ own
    prices = np.zeros(len(pinned))
    while True:
        on = np.flatnonzero(~pinned)
        prices[:] = 0.0
        prices[on] = np.linalg.solve(curvature[np.ix_(on, on)], wanted[on])
        wrong = ~pinned & (here.prices <= 0) & (prices < 0)
        if not wrong.any():
            break
        pinned = pinned | wrong
    x = here.left.copy()
    moved = own + within @ prices
    x[free] -= moved
    return x, here.factors - dense.free.times(at, moved), prices


def _certified(problem: Problem, here: _Here) -> Solution | None:
    """The solution with its proof, if it is tight; without dust, if that is as certain."""
    m = len(problem.rows.rows)
    rows, capped = here.prices[:m], here.prices[m:]
    # The budget's price is what leaves the cash without a slope, at its upper bound with that of the bound.
    own = problem.at_cash(problem.rows.weight) + problem.at_cash(problem.rows.long)
    budget = -float(problem.cost.long[problem.cash]) - float(rows @ own) + float(capped.sum())
    prices = Prices(rows, np.zeros(0), np.array([budget]))
    weights = problem.settled(here.point.weights[0])
    best = None
    for found in (weights, without_dust(problem, weights)):
        answer = certified(problem, found, prices, newton.NAME)
        allowed = max(newton.GAP_RELATIVE * abs(answer.objective), newton.GAP_ABSOLUTE)
        if answer.gap <= allowed and problem.violation(found) <= newton.VIOLATION:
            best = answer
    if best is None or best.weights is None:
        return None
    others = np.arange(len(weights)) != problem.cash
    held = np.array_equal(best.weights[others], problem.before[others])
    return replace(best, status=Status.NO_TRADE) if held else best
