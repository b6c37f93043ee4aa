"""Whole-lot plans of stacks of portfolios, in arrays: rounding, descent, bound and restarts for all at once.

The convex optimum is rounded to the safe side (buys down, sales up, no debt above the optimum's) and to the nearest
lots, and both descend by moves of lots (`search.descent`). While a gap is open, the bound of whole lots
(`bounds.stacked`) is maximised, and the search starts again from the lots that it likes best and from draws of its
mixture, wave by wave. The
draws are the same for all portfolios of as many assets, and everything else is done portfolio by portfolio along the
last axes, so that a plan depends on its own portfolio and the policy alone, bit by bit.

What comes out counts (`accepted`) if it is within the rules and its gap at most 10 % of the objective. All other
portfolios go through `lots` on their own: those with cones, custom rules, cash that may be negative, more digits than
a float holds; those for which no plan was found here; and those whose debts could be much better than on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from equipoise.constraints.pieces import Array, Bound, Figure, Index, Indices, Mask, Row, Step
from equipoise.optimizer.lots.alone import LotPlan, worth
from equipoise.optimizer.lots.bounds.bound import LARGEST
from equipoise.optimizer.lots.bounds.stacked import Priced, beside, maximised, priced
from equipoise.optimizer.lots.levels import GAP_ABSOLUTE, NEAR, SEED, STAYING, WORTH, close
from equipoise.optimizer.lots.points import risk_split as lot_split
from equipoise.optimizer.lots.points.grid import Grid, grid, ten_to
from equipoise.optimizer.lots.points.points import SLACK, Integers
from equipoise.optimizer.lots.search.descent import States, better, descended, evaluated
from equipoise.optimizer.problem.costs import CostTerms
from equipoise.optimizer.problem.effort import Clock, Effort
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution
from equipoise.optimizer.risk.factored import of_checked
from equipoise.optimizer.solvers.newton import dual as duals
from equipoise.optimizer.solvers.newton import newton
from equipoise.optimizer.solvers.newton.dual import Dual

_WAVE, _WAVES = 4, 3  # restarts at once, and waves
_TINY = 0.1  # of a gap that is not worth an effort: a descent that is so near to the bound has arrived
_COUNTS = 0.1  # of the objective: a gap with which a plan counts
_SMALL = 50  # assets up to which
_SPLIT = 0.05, 0.005  # of the objective: a gap that is worth another split, of more assets and of so many
_CHUNK = 20_000  # assets × portfolios at once
_STEP = frozenset({"label", "lot", "min_notional", "min_quantity"})
_TERMS = frozenset({"buy", "sell", "quadratic", "impact", "long", "short"})


@dataclass(frozen=True, eq=False)
class Convex:
    """What is given of each portfolio: units and prices (B, n), NAV (B, 1), and the convex program's answer: weights
    (B, n), prices of rows (B, m), objective and bound (B,). Where weights are NaN there is none."""

    quantity: Array
    price: Array
    nav: Array
    weights: Array
    rows: Array
    objective: Array
    bound: Array


class Tried(NamedTuple):
    """What came out for one portfolio: a plan, or None, and whether it counts or `lots` goes on."""

    plan: LotPlan | None
    counts: bool


@dataclass(frozen=True, eq=False)
class LotPlans:
    """The plans of a stack. Where `objective` (B,) is finite: lots and closes (B, n) on the `grid`, the weights with
    the cash before costs, and a bound on every whole-lot plan's. `accepted`: those that count."""

    accepted: Mask
    grid: Grid
    lots: Array
    closed: Mask
    weights: Array
    objective: Array
    bound: Array

    def tried(self, i: int) -> Tried:
        """Portfolio i's plan, exact."""
        if not np.isfinite(self.objective[i]):
            return Tried(None, False)
        quantities = self.grid.take(i).quantities(self.lots[i], self.closed[i])
        return Tried(LotPlan(quantities, self.weights[i].copy(), float(self.bound[i])), bool(self.accepted[i]))

    def at(self, problem: Problem, lots: Array, closed: Mask) -> LotPlans:
        """Those that are accepted, at other lots."""
        weights = problem.settled(problem.before + self.grid.trades(lots, closed))
        objective = np.where(self.accepted, problem.objective(weights), self.objective)
        return replace(self, lots=lots, closed=closed, weights=weights, objective=objective)

    def units(self) -> Array:
        """The traded quantities (B, n) as the floats that stand for them; 0 where there is no plan."""
        return np.where(self.accepted[:, None], self.grid.units(self.lots, self.closed), 0.0)

    def counted(self, lot: Array | float) -> Integers:
        """How many lots of these sizes (B, n) are traded; −1 where that is no whole number, or there are no lots."""
        whole, digits = self.grid.whole(self.lots, self.closed)
        size = np.broadcast_to(np.asarray(lot, dtype=float), whole.shape) * ten_to(digits)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A lot is a whole number of units, or, where many fine lots are taken together, a part of one.
            each = np.where(size >= 0.5, np.round(size), 1.0).astype(np.int64)
            parts = np.where((size > 0) & (size < 0.5), np.round(1.0 / size), 1.0).astype(np.int64)
        count = np.abs(whole) // each * parts
        return np.where((size > 0) & (whole % each == 0), count, -1)


def taken_whole(problem: Problem) -> bool:
    """Whether stacks take this kind of problem: lots with minimums, bounds and rows, separable costs."""
    pieces = [piece for _, piece in problem.pieces]
    plain = problem.fees is None and problem.accounts is None
    if problem.step is None or not plain or not all(isinstance(piece, Bound | Row | Step) for piece in pieces):
        return False
    return _only(problem.step, _STEP) and _only(problem.cost, _TERMS)


def _only(terms: Step | CostTerms, names: frozenset[str]) -> bool:
    """Whether nothing but these is given."""
    others = (getattr(terms, f.name) for f in fields(terms) if f.name not in names)
    return not any(value is not None and np.any(np.asarray(value) != 0) for value in others)


def alone(problem: Problem, solution: Solution, spent: Effort, clock: Clock | None = None) -> Tried:
    """The plan of one portfolio, taken as a stack of one."""
    if not taken_whole(problem) or solution.weights is None or solution.prices is None:
        return Tried(None, False)
    account, stack = problem.portfolio, problem.as_stack()
    convex = Convex(
        quantity=account.quantity[None],
        price=account.price[None],
        nav=np.array([[account.nav]]),
        weights=solution.weights[None],
        rows=solution.prices.rows[None],
        objective=np.array([solution.objective]),
        bound=np.array([solution.bound]),
    )
    return planned(stack, convex, spent, clock).tried(0)


def planned(problem: Problem, convex: Convex, spent: Effort, clock: Clock | None = None) -> LotPlans:
    """Whole-lot plans of a stack of problems. What counts: without effort every plan, with the default one that of a
    gap of 10 %, else one that no more effort would be spent on, and with `spent.exact` one that is proven.

    Without a `clock`, each chunk of portfolios has the time of all of them together.
    """
    before, weights = problem.before, convex.weights
    solved = np.asarray(~np.isnan(weights).any(axis=1) & (problem.lower <= problem.upper).all(axis=1))
    weights = np.where(solved[:, None], weights, before)
    # No debt above the optimum's.
    safe = np.where(weights < 0, np.maximum(problem.lower, np.minimum(weights, problem.upper)), problem.lower)
    points = grid(problem, safe, convex.quantity, convex.price, convex.nav)
    plans = LotPlans(
        accepted=np.zeros(len(before), dtype=bool),
        grid=points,
        lots=np.zeros(before.shape),
        closed=np.zeros(before.shape, dtype=bool),
        weights=before.copy(),
        objective=np.full(len(before), np.inf),
        bound=convex.bound.copy(),
    )
    fit = solved & points.sound & ~points.empty() & (problem.lower[problem.cash] >= 0) & ~np.asarray(problem.kinked)
    debts = (safe > problem.lower).any(axis=1)
    whole = points if not debts.any() else grid(problem, problem.lower, convex.quantity, convex.price, convex.nav)
    plain, size = points.plain & whole.plain, max(1, _CHUNK // problem.shape[1])
    for form, out, capped in newton.forms(problem) if fit.any() else ():
        for kind in (True, False):
            members = np.flatnonzero(form & fit & (plain == kind)) if out else np.zeros(0, dtype=np.intp)
            for start in range(0, len(members), size):
                at = members[start : start + size]
                with np.errstate(all="ignore"):
                    group = _Group.of(problem, points, whole, replace(convex, weights=weights), at, capped, kind)
                    states, bound = group.solved(spent.effort, clock or spent.clock(len(at)))
                    _record(plans, states, bound, at)
    settled = problem.settled(before + points.trades(plans.lots, plans.closed))
    found = fit & (plans.objective < np.inf) & points.counted(np.where(plans.closed, 0.0, plans.lots))
    objective = np.where(found, problem.objective(settled), np.inf)
    gap, part = objective - plans.bound, np.abs(objective)
    within = gap <= np.minimum(_counts(spent.effort, objective), spent.gap * part if spent.exact else np.inf)
    near = ~debts | (objective <= worth(convex.objective)) | (spent.effort == 0)
    return replace(plans, accepted=found & within & near, weights=settled, objective=objective)


def _counts(effort: int, objective: Array) -> Figure:
    """The gap up to which a plan counts."""
    if not effort:
        return np.inf
    return np.maximum(_COUNTS * np.abs(objective), GAP_ABSOLUTE) if effort == 1 else close(objective)


def _record(plans: LotPlans, states: States, bound: Array, at: Index) -> None:
    plans.lots[at], plans.closed[at] = states.lots, states.closed
    plans.bound[at] = np.maximum(plans.bound[at], bound)
    plans.objective[at] = np.where(states.violation <= SLACK, states.objective, np.inf)


@dataclass(frozen=True, eq=False)
class _Group:
    """Portfolios of a stack that go the same way: their dual, the points that are searched and all there are."""

    dual: Dual
    grid: Grid
    whole: Grid
    weights: Array  # the convex optimum's, 0 for the cash
    rows: Array  # prices of the dual's rows
    bound: Array
    cash: Indices
    plain: bool

    @classmethod
    def of(
        cls,
        problem: Problem,
        points: Grid,
        whole: Grid,
        convex: Convex,
        at: Indices,
        capped: bool,
        plain: bool,
    ) -> _Group:
        dual = duals.of(problem, at, out=True, capped=capped)
        weights = convex.weights[at].copy()
        cash = np.asarray(problem.cash[1])[at]
        weights[np.arange(len(at)), cash] = 0.0
        rows = np.zeros((len(at), dual.row_count))
        rows[:, : convex.rows.shape[1]] = convex.rows[at]
        return cls(dual, points.take(at), whole.take(at), weights, rows, convex.bound[at], cash, plain)

    def take(self, at: Index) -> _Group:
        arrays = {name: getattr(self, name)[at] for name in ("weights", "rows", "bound", "cash")}
        return replace(self, dual=self.dual.take(at), grid=self.grid.take(at), whole=self.whole.take(at), **arrays)

    def solved(self, effort: int, clock: Clock) -> tuple[States, Array]:
        """The best plans found, and bounds on all plans (B,): the same for any effort above 0."""
        best = self._first()
        bound = np.maximum(self.bound, priced(self.dual, self.whole, self._prices(), plain=self.plain).value)
        bound = np.where(np.isfinite(bound), bound, self.bound)
        open_ = np.flatnonzero((best.objective - bound > close(best.objective)) & (best.violation <= SLACK))
        if effort and len(open_) and not clock.over:
            group, there = self.take(open_), best.take(open_)
            mixture = group._maximised(there.objective)
            bound[open_] = np.maximum(bound[open_], mixture.value)
            best.put(open_, group._again(there, mixture, bound[open_], clock))
        return best, bound

    def _prices(self) -> Array:
        """The convex optimum's: of the factors, and of the rows."""
        k = self.dual.factors
        exposure = np.matmul(self.dual.linear[..., :k, :], self.weights[..., None])[..., 0] - self.dual.limits[:, :k]
        return np.concatenate([self.dual.aversion * exposure, self.rows], axis=1)

    def _first(self) -> States:
        """The best of what rounding to the safe side, to the nearest lots, and doing nothing lead to."""
        exactly, size = (self.weights - self.grid.before) / self.grid.size, len(self.weights)
        starts = [
            self.grid.nearest(exactly, self.weights < 0),  # debts round up (less debt), the rest towards more cash
            self.grid.nearest(exactly, np.round(exactly) > exactly),
            (np.zeros(exactly.shape), np.zeros(exactly.shape, dtype=bool)),
        ]
        each = [evaluated(self.dual, self.grid, np.arange(size), *start) for start in starts]
        nothing = each[2]
        idle = ((self.grid.lowest <= 0) & (self.grid.highest >= 0)).all(axis=1) & (nothing.violation <= SLACK)
        idle &= nothing.objective < np.minimum(each[0].objective, each[1].objective)
        same = (each[0].lots == each[1].lots).all(axis=1) & (each[0].closed == each[1].closed).all(axis=1)
        which = [np.arange(size), np.flatnonzero(~same), np.flatnonzero(idle)]
        return self._best([one.take(at) for one, at in zip(each, which, strict=True)], each[0])

    def _best(self, starts: list[States], best: States) -> States:
        """The best of these plans and of what descents from the starts lead to."""
        begun = States(*(np.concatenate([getattr(one, f.name) for one in starts]) for f in fields(States)))
        enough = self.bound + _TINY * close(self.bound)
        at = begun.at
        reached = descended(self.dual.take(at), self.grid.take(at), self.rows[at], begun, enough[at], plain=self.plain)
        best = _copied(best)
        first = 0
        for one in starts:
            mine = reached.take(slice(first, first + len(one.at)))
            first += len(one.at)
            won = better(mine, best.take(mine.at))
            best.put(mine.at[won], mine.take(won))
        return best

    def _maximised(self, objective: Array) -> Priced:
        """The best bound; where the risk is dense, of splits that favour the assets whose lots matter."""
        n = self.weights.shape[1]
        if not lot_split.FEW * n <= self.dual.factors <= n <= LARGEST:
            return maximised(self.dual, self.whole, self._prices(), objective, plain=self.plain)
        below, above = beside(self.whole, self.weights, self.plain)
        between = np.isfinite(below) & np.isfinite(above)
        spread = np.where(between, (self.weights - below) * (above - self.weights), 0.0)
        group = self._split(spread)
        best = maximised(group.dual, group.whole, group._prices(), objective, plain=self.plain)
        at = np.flatnonzero(objective - best.value > _SPLIT[n <= _SMALL] * np.abs(objective))
        if len(at):
            mixed = 0.5 * (spread[at] + best.take(at).spread(self.whole.take(at)))
            group = self.take(at)._split(mixed)
            again = maximised(group.dual, group.whole, group._prices(), objective[at], plain=self.plain)
            won = again.value > best.value[at]
            best.put(at[won], again.take(won))
        return best

    def _split(self, spread: Array) -> _Group:
        """The same with the risk split as `points.risk_split` would, for these spreads."""
        dual, (size, n), k = self.dual, spread.shape, self.dual.factors
        item, linear = np.arange(size), np.broadcast_to(dual.linear, (size, *dual.linear.shape[-2:]))
        own = np.array(np.broadcast_to(dual.assets.curvature, spread.shape))
        own[item, self.cash] = 0.0  # the dual gives it one, but it has no risk
        factors = np.zeros((size, n, n))
        factors[:, :k] = linear[:, :k]
        for i in range(size):
            found = lot_split.favouring(of_checked(linear[i, :k].copy(), own[i] / dual.aversion), spread[i])
            if found is not None:
                factors[i] = 0.0
                factors[i, : len(found.factors)] = found.factors
                own[i] = dual.aversion * found.own
        own[item, self.cash] = 1.0
        centre = np.matmul(factors, dual.assets.centre[..., None])[..., 0]
        split = replace(
            dual,
            assets=replace(dual.assets, curvature=own),
            linear=np.concatenate([factors, linear[:, k:]], axis=1),
            limits=np.concatenate([centre, dual.limits[:, k:]], axis=1),
            factors=n,
        )
        return replace(self, dual=split)

    def _again(self, best: States, mixture: Priced, bound: Array, clock: Clock) -> States:
        """The best plans from the likeliest lots on, and from draws of the mixture."""
        n = self.weights.shape[1]
        chance = np.random.default_rng(SEED)
        left = np.arange(len(best.at))
        own = replace(_copied(best), at=np.arange(len(best.at)))
        for wave in range(_WAVES):
            at = left[own.objective[left] - bound[left] > close(own.objective[left])]
            if not len(at) or clock.over:
                break
            group, some, now = self.take(at), mixture.take(at), own.take(at)
            starts = []
            for turn in range(_WAVE):
                draw, stays = chance.random(n), chance.random(n) < STAYING[turn % 2]
                if wave == turn == 0:
                    lots, closed = some.likeliest()
                else:
                    lots, closed = some.drawn(np.broadcast_to(draw, (len(at), n)))
                    lots, closed = np.where(stays, now.lots, lots), np.where(stays, now.closed, closed)
                lots, closed = group.grid.within(lots, closed, now.lots, now.closed)
                starts.append(evaluated(group.dual, group.grid, np.arange(len(at)), lots, closed))
            reached = group._best(starts, replace(now, at=np.arange(len(at))))
            gained = now.objective - reached.objective
            own.put(at, replace(reached, at=at))
            gap = reached.objective - bound[at]
            stale = (gained <= WORTH * np.abs(now.objective)) & (gap <= NEAR * np.abs(now.objective))
            left = at[~stale]
        return replace(own, at=best.at)


def _copied(states: States) -> States:
    return States(*(np.array(getattr(states, f.name)) for f in fields(States)))
