"""Newton's method on the dual: the exact answers of whole stacks of problems with factors and rows, in numpy.

Given the prices of the factors and of the rows every asset is a threshold rule in closed form, so that only the
few prices are unknown (`dual`). The dual is concave and piecewise smooth; where no kink is crossed one Newton step
is exact, so that a handful of steps, each a K × K system a problem, ends on the optimum's own active set.

Three things make it robust. The step length is the zero of the directional derivative, found by bracketing. Prices
of rows stay ≥ 0: a row at 0 that is kept takes no part in the step. An asset without curvature of its own (no
specific risk) gets a small proximal weight around its last value, moved along until it pulls no more: the proximal
point method, exact in the limit. What does not converge, or whose certificate is not tight, is handed on.

Sources: Rockafellar (1976) for the proximal point method; Qi and Sun (1993) for the semismooth Newton method;
Bertsekas (1982) for the bounds on the prices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array
from equipoise.optimizer import dual as duals
from equipoise.optimizer.dual import KINKS, PRICED, Dual, Point
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.separable import Separable
from equipoise.optimizer.solution import Attempt, Prices, Solution, Status

#: What it returns has at most this violation (of NAV), and a gap of at most this fraction or this part of NAV.
VIOLATION, GAP_RELATIVE, GAP_ABSOLUTE = 1e-10, 1e-9, 1e-14
#: Numbers in one chunk (problems × assets): they stay in the processor's cache.
CHUNK = 40_000

_STEPS = 60
_RAYS = (12, 25, 45, _STEPS)  # the steps after which it looks for a proof that nothing is feasible,
_FAR = 1e6  # and the sum of row prices (NAV per year and unit) from which on it does after every step
_EXACT, _NEARLY = 1e-13, 1e-11  # residuals in NAV: done; done if it gets no better
_RECENTRE = 1e-7  # a residual this small is near enough to move the proximal centres
_PULL = 1e-17  # what the proximal term may still pull, in NAV per year and unit
_ACCEPTED = 0.1  # a step may leave this part of the directional derivative
_SEARCHES, _WIDENINGS = 60, 40
_SINGULAR, _FADING = 1e-9, 1e-5  # ridges, of the diagonal
_NO_CURVATURE = 0.3e-3  # of the asset's whole variance
_PROXIMAL, _PROXIMAL_RISKLESS = 1e-3, 1e-5  # of its own variance, or of the largest

NAME = "newton"
SOLVED, INFEASIBLE, UNSOLVED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Answers:
    """For each problem of a stack: what became of it (`SOLVED`, `INFEASIBLE`, `UNSOLVED`), its weights with the
    cash before costs, prices of rows (B, m) and of the budget, objective, bound, violation, and Newton steps.

    INFEASIBLE is proven: at the row prices the bound of the zero function is above 0.
    """

    code: NDArray[np.intp]
    weights: Array
    rows: Array
    budget: Array
    objective: Array
    bound: Array
    violation: Array
    steps: NDArray[np.intp]


def solve(problem: Problem) -> Answers:
    """The exact answers of a stack of problems without cones and custom rules; lots are not looked at."""
    size, n = problem.shape
    m = problem.rows.upper.shape[1]
    answers = Answers(
        code=np.full(size, UNSOLVED),
        weights=np.full((size, n), np.nan),
        rows=np.zeros((size, m)),
        budget=np.full(size, np.nan),
        objective=np.full(size, np.nan),
        bound=np.full(size, -np.inf),
        violation=np.full(size, np.inf),
        steps=np.zeros(size, dtype=np.intp),
    )
    crossed = np.any(problem.lower > problem.upper, axis=1)
    answers.code[crossed] = INFEASIBLE
    chunk = max(1, CHUNK // n)
    for form, out, capped in _forms(problem):
        members = np.flatnonzero(form & ~crossed)
        for start in range(0, len(members), chunk):
            at = members[start : start + chunk]
            with np.errstate(all="ignore"):
                _solve(problem, duals.of(problem, at, out=out, capped=capped), at, answers)
    _certify(problem, answers)
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
    answers = solve(problem.as_stack())
    steps = f"{answers.steps[0]} Newton steps"
    if answers.code[0] == INFEASIBLE:
        return None, Attempt(NAME, "infeasible", f"proven by a ray of prices after {steps}")
    if answers.code[0] == UNSOLVED:
        return None, Attempt(NAME, "not solved", f"not certified after {steps}")
    weights, attempt = answers.weights[0], Attempt(NAME, "solved", f"accepted after {steps}")
    prices = Prices(answers.rows[0], np.zeros(0), float(answers.budget[0]))
    held = np.array_equal(np.delete(weights, problem.cash), np.delete(problem.before, problem.cash))
    status = Status.NO_TRADE if held else Status.OPTIMAL
    name = "threshold" if separable(problem) else NAME
    objective, bound = float(answers.objective[0]), float(answers.bound[0])
    return Solution(status, name, weights, prices, objective, bound, attempts=(attempt,)), attempt


def _forms(problem: Problem) -> list[tuple[NDArray[np.bool_], bool, bool]]:
    """Which problems go together: those whose cash can be taken out, under a cap or not, with kinks at 0 or not.

    What goes together must not depend on the neighbours, or bits would.
    """
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


@dataclass(frozen=True, eq=False)
class _State:
    """A chunk on its way: the smoothed dual, the point, and the proximal term."""

    at: NDArray[np.intp]  # positions in the stack
    dual: Dual
    smooth: Dual
    point: Point
    centre: Array
    weight: Array  # of the proximal term; 0 where there is none
    scale: Array  # (B, K): the curvature of each price if every asset were free
    before: Array  # the last residual

    def take(self, at: Any) -> _State:
        arrays = {name: getattr(self, name)[at] for name in ("at", "centre", "weight", "scale", "before")}
        return _State(dual=self.dual.take(at), smooth=self.smooth.take(at), point=self.point.take(at), **arrays)

    def recentred(self, which: NDArray[np.bool_]) -> _State:
        """With the proximal centres of these problems at their weights."""
        centre = np.where(which[:, None], self.point.weights, self.centre)
        smooth = _smoothed(self.dual, centre, self.weight)
        return replace(self, centre=centre, smooth=smooth, point=smooth.at(self.point.prices))


def _smoothed(dual: Dual, centre: Array, weight: Array) -> Dual:
    """The dual with ½·weight·(w − centre)² added to every asset."""
    if not weight.any():
        return dual
    assets = dual.assets
    curvature = assets.curvature + weight
    both = (assets.curvature * assets.centre + weight * centre) / np.where(curvature > 0, curvature, 1.0)
    return replace(dual, assets=replace(assets, curvature=curvature, centre=np.where(weight > 0, both, assets.centre)))


def _started(dual: Dual, at: NDArray[np.intp]) -> _State:
    assets, k = dual.assets, dual.factors
    variance = dual.aversion * np.square(dual.linear[..., :k, :]).sum(axis=-2) + assets.curvature
    largest = variance.max(axis=1, keepdims=True)
    small = assets.curvature <= _NO_CURVATURE * variance
    weight = np.where(variance > 0, _PROXIMAL * variance, _PROXIMAL_RISKLESS * np.where(largest > 0, largest, 1.0))
    weight = np.where(small, weight, 0.0)
    centre = np.minimum(np.maximum(assets.before, assets.lower), assets.upper)
    smooth = _smoothed(dual, centre, weight)
    # Prices of the factors as they are at the holdings.
    prices = np.zeros_like(dual.limits)
    held = np.matmul(dual.linear[..., :k, :], centre[..., None])[..., 0]
    prices[:, :k] = dual.aversion * (held - dual.limits[:, :k])
    steepest = np.abs(np.broadcast_to(dual.linear, (dual.size, *dual.linear.shape[-2:])))
    if dual.kinks or dual.cost is not None:
        steepest = steepest.copy()
        for matrix in dual.kinks.values():
            steepest[:, dual.rows] += np.abs(matrix)
        if dual.cost is not None:
            rate = np.broadcast_to(dual.horizon * (np.abs(assets.buy) + np.abs(assets.sell)), centre.shape)
            steepest[:, dual.rows] += dual.cost[:, :, None] * rate[:, None, :]
    scale = np.square(steepest).sum(axis=-1) / np.median(smooth.assets.curvature, axis=1)[:, None]
    scale = np.maximum(scale, 1e-9 * scale.max(axis=1, keepdims=True, initial=0.0))
    return _State(at, dual, smooth, smooth.at(prices), centre, weight, scale, np.full(len(at), np.inf))


def _solve(problem: Problem, dual: Dual, at: NDArray[np.intp], answers: Answers) -> None:
    """Newton's method on one chunk; what converges is written into `answers`."""
    state = _started(dual, at)
    for step in range(_STEPS + 1):
        pinned = _pinned(state)
        residual = np.abs(np.where(pinned, 0.0, state.point.gradient)).max(axis=1, initial=0.0)
        pull = np.abs(state.weight * (state.point.weights - state.centre)).max(axis=1)
        stalled = (residual <= _NEARLY) & (residual > 0.1 * state.before)
        still = pull <= _PULL * (1.0 + 100.0 * _size(state))
        done = ((residual <= _EXACT) | stalled) & still
        _keep(problem, state, done, step, answers)
        far = ~done & ((_size(state) > _FAR) | (step in _RAYS))
        if far.any():
            proven = far & (state.dual.bound(state.point.prices, objective=0.0) > 1e-9 * _size(state))
            answers.code[state.at[proven]] = INFEASIBLE
            done = done | proven
        if done.all() or step == _STEPS:
            return
        if done.any():
            state, residual, still = state.take(~done), residual[~done], still[~done]
            pinned = pinned[~done]
        off = (residual <= _RECENTRE) & ~still
        state = replace(state, before=np.where(off & (residual > _NEARLY), np.inf, residual))
        if off.any():
            state = state.recentred(off)
            pinned = _pinned(state)
        state = _stepped(state, pinned)


def _keep(problem: Problem, state: _State, done: NDArray[np.bool_], step: int, answers: Answers) -> None:
    at, point, dual = state.at[done], state.point, state.dual
    answers.weights[at] = point.weights[done]
    answers.steps[state.at] = step
    m = answers.rows.shape[1]
    prices = point.prices[done]
    answers.rows[at] = prices[:, dual.factors : dual.factors + m]
    if dual.budget:
        answers.budget[at] = prices[:, -1]
    else:
        # The budget's price is what leaves the cash, which was taken out, without a slope: at its upper bound, which
        # is no row of the problem, with that of the bound.
        own = (problem.at_cash(problem.rows.weight) + problem.at_cash(problem.rows.long))[at]
        answers.budget[at] = -problem.cost.long[problem.cash][at] - (answers.rows[at] * own).sum(axis=1)
        if dual.row_count > m:
            answers.budget[at] += prices[:, -1]
    answers.bound[at] = dual.take(done).bound(prices) if done.any() else 0.0
    answers.code[at] = SOLVED


def _size(state: _State) -> Array:
    return np.asarray(np.abs(state.point.prices[:, state.dual.factors :]).sum(axis=1))


def _pinned(state: _State) -> NDArray[np.bool_]:
    """Prices of rows that are 0 and would fall: these rows are kept anyway."""
    rows, point = state.dual.rows, state.point
    pinned = np.zeros(point.prices.shape, dtype=bool)
    pinned[:, rows] = (point.prices[:, rows] <= 0) & (point.gradient[:, rows] <= 0)
    return pinned


def _stepped(state: _State, pinned: NDArray[np.bool_]) -> _State:
    """One step: the Newton direction, as far as prices stay ≥ 0 and the dual rises."""
    dual, point, rows = state.smooth, state.point, state.dual.rows
    direction = _direction(state, pinned)
    room = np.where(direction[:, rows] < 0, -point.prices[:, rows] / direction[:, rows], np.inf)
    furthest = room.min(axis=1, initial=np.inf)
    length = np.minimum(1.0, furthest)

    def moved(length: Array, which: Any) -> Array:
        prices = point.prices[which] + length[:, None] * direction[which]
        # A row whose price reaches 0 is exactly at 0.
        ends = room[which] <= length[:, None] * (1.0 + 1e-9)
        prices[:, rows] = np.where(ends, 0.0, np.maximum(prices[:, rows], 0.0))
        return np.asarray(prices)

    there = dual.at(moved(length, slice(None)))
    step = length[:, None] * direction
    here, slope = (point.gradient * step).sum(axis=1), (there.gradient * step).sum(axis=1)
    again = np.flatnonzero((slope < -_ACCEPTED * here) | ((slope > 0.5 * here) & (furthest > length)))
    if len(again):
        part = dual.take(again)
        line = _Line.between(part, point.take(again), there.take(again), step[again])
        factor = _searched(line, here[again], slope[again], furthest[again] / length[again])
        better = part.at(moved(factor * length[again], again))
        there.put(again, better)
    return replace(state, point=there)


def _direction(state: _State, pinned: NDArray[np.bool_]) -> Array:
    """Newton's direction on the prices that are not pinned."""
    dual, point = state.smooth, state.point
    curvature = dual.curvature(point)
    price = np.arange(curvature.shape[1])
    diagonal = curvature[:, price, price]
    # Where no asset is free to move with a price, the step is that of the slope, as if all were. Where rows do the
    # same to all that are free, a ridge that fades with the residual keeps the step from running off.
    residual = np.abs(np.where(pinned, 0.0, point.gradient)).max(axis=1, keepdims=True)
    ridge = (_SINGULAR + _FADING * np.minimum(residual, 1.0)) * diagonal
    curvature[:, price, price] += np.where(diagonal > 1e-9 * state.scale, ridge, state.scale)
    while True:
        system = np.where(pinned[:, :, None] | pinned[:, None, :], 0.0, curvature)
        system[:, price, price] += pinned
        unit = 1.0 / np.sqrt(system[:, price, price])
        slope = np.where(pinned, 0.0, point.gradient) * unit
        system *= unit[:, :, None] * unit[:, None, :]
        direction = unit * np.linalg.solve(system, slope[..., None])[..., 0]
        wrong = np.zeros_like(pinned)
        wrong[:, dual.rows] = (point.prices[:, dual.rows] <= 0) & (direction[:, dual.rows] < 0)
        wrong &= ~pinned
        if not wrong.any():
            return np.asarray(direction)
        pinned = pinned | wrong


@dataclass(frozen=True, eq=False)
class _Line:
    """The dual's derivative along a step: each asset's coefficients are linear in the step's length."""

    start: Separable
    change: dict[str, Array]
    constant: Array
    per_length: Array

    @classmethod
    def between(cls, dual: Dual, here: Point, there: Point, step: Array) -> _Line:
        given = {name: (getattr(here.assets, name), getattr(there.assets, name)) for name in PRICED}
        change = {name: new - old for name, (old, new) in given.items() if isinstance(new, np.ndarray)}
        k = dual.factors
        constant = -(step * dual.limits).sum(axis=1) - (step[:, :k] * here.prices[:, :k]).sum(axis=1) / dual.aversion
        return cls(here.assets, change, constant, -np.square(step[:, :k]).sum(axis=1) / dual.aversion)

    def slope(self, length: Array) -> Array:
        """The derivative at these lengths (B,)."""
        far = length[:, None]
        at = {name: getattr(self.start, name) + far * change for name, change in self.change.items()}
        assets = replace(self.start, **at)
        weights = assets.response()[0]
        moved = replace(assets, curvature=0.0, **{name: self.change.get(name, 0.0) for name in at})
        return np.asarray(moved.value(weights).sum(axis=1) + self.constant + length * self.per_length)


def _searched(line: _Line, here: Array, there: Array, furthest: Array) -> Array:
    """The length at which the derivative is about 0, from its values at 0 and at 1; at most `furthest`."""
    wanted = _ACCEPTED * np.abs(here)
    low, high = np.zeros_like(here), np.ones_like(here)
    at_low, at_high = here.copy(), there.copy()
    for _ in range(_WIDENINGS):
        rising = (at_high > wanted) & (high < furthest)
        if not rising.any():
            break
        wider = np.where(rising, np.minimum(4.0 * high, furthest), high)
        slope = line.slope(wider)
        low, at_low = np.where(rising, high, low), np.where(rising, at_high, at_low)
        high, at_high = wider, np.where(rising, slope, at_high)
    length, open_ = high.copy(), at_high < -wanted
    for turn in range(_SEARCHES):
        if not open_.any():
            break
        # The secant, kept off the ends; every fourth time the middle.
        part = np.clip(at_low / (at_low - at_high), 0.02, 0.98) if turn % 4 < 3 else 0.5
        length = np.where(open_, low + (high - low) * part, length)
        slope = line.slope(length)
        open_ = open_ & (np.abs(slope) > wanted)
        rising = slope > 0
        low, high = np.where(rising, length, low), np.where(rising, high, length)
        # An end that stays counts for half: the Illinois rule.
        at_low, at_high = np.where(rising, slope, 0.5 * at_low), np.where(rising, 0.5 * at_high, slope)
    return length


def _certify(problem: Problem, answers: Answers) -> None:
    """Objective, violation and gap of the weights with the cash at the residual; what is not tight is not solved."""
    solved = answers.code == SOLVED
    weights = problem.settled(np.where(np.isnan(answers.weights), problem.before, answers.weights))
    answers.weights[:] = np.where(solved[:, None], weights, np.nan)
    answers.objective[solved] = problem.objective(weights)[solved]
    answers.violation[solved] = problem.violation(weights)[solved]
    gap = answers.objective - answers.bound
    tight = gap <= np.maximum(GAP_RELATIVE * np.abs(answers.objective), GAP_ABSOLUTE)
    answers.code[solved & ~(tight & (answers.violation <= VIOLATION))] = UNSOLVED
