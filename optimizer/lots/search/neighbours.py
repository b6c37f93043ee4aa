"""The descent over whole-lot plans: moves of one or two assets, all priced at once.

A move counts first by how much of the rules' violation it removes, then by the objective. Assets meet in the risk's
factors, in the rows and in the cash, which is the residual after costs. For moves dᵢ, dⱼ of two assets against the
cash the objective changes by what each alone changes it, and by Sᵢⱼ·dᵢ·dⱼ with S the covariance relative to the
cash times the aversion; cones change alike, rows add up. So the moves are priced once for a whole sweep: after each
one that is made, the others' prices change by a row of S. A sweep ends in a full evaluation, and the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from equipoise.constraints.pieces import Array, Cone, Indices, Mask, Parts, part
from equipoise.optimizer.lots.points.points import SLACK, TIE, Integers, Lots, first, ranked
from equipoise.optimizer.problem.counts import Counts
from equipoise.optimizer.problem.effort import ENDLESS, Clock
from equipoise.optimizer.problem.solution import FEASIBILITY_TOLERANCE, ROUNDING_TOLERANCE

_PAIRS = 40  # the best moves of each direction that are tried in pairs
_SWEEPS = 200
_DENSE = 1000  # assets of which the whole matrix of couplings is kept
_WORTH = 1e-8  # a move must gain this fraction of the objective
_UPWARDS = np.array([[True], [False], [True], [False]])


@dataclass(frozen=True, eq=False)
class State:
    lots: Integers
    closed: Mask
    weights: Array
    objective: float
    violation: float

    def better_than(self, other: State, worth: float = 0.0) -> bool:
        """First by the violation, then by the objective."""
        if self.violation > SLACK:
            return self.violation < other.violation * (1 - 1e-9) - 1e-16
        worth = max(worth, TIE * abs(other.objective))
        return other.violation > SLACK or self.objective < other.objective - worth

    def kept(self, stays: Mask, lots: Integers, closed: Mask) -> tuple[Integers, Mask]:
        """Its points at the assets that stay, and these at the others."""
        return np.where(stays, self.lots, lots), np.where(stays, self.closed, closed)


def best_of(states: Iterable[State]) -> State:
    """The best one, of equals the first."""
    return reduce(lambda best, state: state if state.better_than(best) else best, states)


class _Form:
    """A quadratic form ‖M(w − c)‖² + ‖δ∘(w − c)‖², with moves of assets paid from the cash."""

    def __init__(self, matrix: Array, diagonal: Array, centre: Array, cash: int) -> None:
        self.matrix, self.diagonal, self.centre, self.cash = matrix, diagonal, centre, cash
        self.relative = matrix - matrix[:, [cash]]
        self.own = np.square(self.relative).sum(axis=0) + diagonal + diagonal[cash]
        small = len(centre) <= _DENSE
        self.matched = self._between(np.arange(len(centre)), np.arange(len(centre))) if small else None

    def value(self, w: Array) -> float:
        away = w - self.centre
        return float(np.sum((self.matrix @ away) ** 2) + np.sum(self.diagonal * away**2))

    def change(self, w: Array, asset: Integers, d: Array) -> Array:
        """The change for each move of one asset."""
        away = w - self.centre
        pull = 2.0 * (self.matrix.T @ (self.matrix @ away) + self.diagonal * away)
        return np.asarray((pull[asset] - pull[self.cash]) * d + self.own[asset] * d**2)

    def between(self, some: Integers, others: Integers) -> Array:
        """What a unit of trade in each of some and of the other assets changes beyond each alone (S × O)."""
        return self._between(some, others) if self.matched is None else self.matched[np.ix_(some, others)]

    def _between(self, some: Integers, others: Integers) -> Array:
        return np.asarray(2.0 * (self.relative[:, some].T @ self.relative[:, others] + self.diagonal[self.cash]))


def _of_cone(cone: Cone, cash: int, margin: float) -> tuple[_Form, float]:
    """‖x‖²/2u ≤ u/2: by how much it is broken is at the limit u what ‖x‖ − u is, a number like all others here."""
    scale = 0.5 / max(cone.upper, ROUNDING_TOLERANCE)
    form = _Form(np.sqrt(scale) * cone.matrix, scale * cone.diagonal**2, cone.centre, cash)
    return form, scale * max(cone.upper - margin, 0.0) ** 2


class Search:
    """The descent of one portfolio. `run` returns the best state from a starting point."""

    def __init__(self, allowed: Lots, margin: float = 0.0, clock: Clock = ENDLESS) -> None:
        self.allowed, self.clock = allowed, clock
        self.problem = problem = allowed.problem
        risk, cash = problem.risk, problem.cash
        self.risk = _Form(risk.factors, risk.specific, problem.target, cash)
        self.cones = [_of_cone(cone, cash, margin) for _, cone in problem.cones]
        # The cash's upper bound is a row here: cash is a residual, not a point that can be kept inside.
        rows = problem.rows
        cap = np.zeros((1, len(problem.assets)))
        cap[0, cash] = 1.0
        none = np.zeros_like(cap)
        stacked = {name: np.vstack([getattr(rows, name), cap if name == "weight" else none]) for name in Parts.NAMES}
        self.parts = {name: coefficients for name, coefficients in stacked.items() if np.any(coefficients)}
        self.carries = bool(np.any(problem.cost.long) or np.any(problem.cost.short))
        self.cost_weight = np.append(rows.cost, 0.0)
        self.upper = np.append(rows.upper, problem.upper[cash]) - margin
        self.counts = Counts.of(problem)

    def state(self, lots: Integers, closed: Mask) -> State:
        trades = self.allowed.trades(lots, closed)
        weights = self.problem.settled(self.problem.before + trades)
        excess = np.append(self.sides(weights) - self.upper, self.counted(lots, closed) - self.counts.upper)
        forms = [form.value(weights) - limit for form, limit in self.cones]
        # A custom rule is no data: it is asked itself, at each point that the search would go to.
        custom = [p.excess(weights, weights - self.problem.before) for _, p in self.problem.opaque]
        custom = [v for v in custom if v > FEASIBILITY_TOLERANCE]
        custom += [max(0.0, self.problem.beyond(weights))] if self.problem.envelopes else []
        violation = float(np.sum(np.maximum(excess, 0.0)) + sum(max(f, 0.0) for f in forms) + sum(custom))
        return State(lots, closed, weights, self.problem.objective(weights), violation)

    def sides(self, weights: Array) -> Array:
        trades = weights - self.problem.before
        sides = sum(coefficients @ part(name, weights, trades) for name, coefficients in self.parts.items())
        return np.asarray(sides + self.cost_weight * self.problem.trading_cost(weights))

    def counted(self, lots: Integers, closed: Mask) -> Array:
        """The left sides (c,) of the limits on counts."""
        return np.asarray(self.counts.each(*self.allowed.indicators(lots, closed)).sum(axis=-1))

    def run(self, state: State) -> State:
        for _ in range(_SWEEPS):
            if self.clock.over:
                break
            worth = max(_WORTH * abs(state.objective), 1e-16)
            better = self._swept(state, worth)
            if better is None:
                return state
            state = self._further(state, better)
        return state

    def _swept(self, state: State, worth: float) -> State | None:
        """The state after a sweep; after its first move alone, where kinks between the moves made it worse."""
        sweep = Sweep(self, state)
        made = sweep.made(worth)
        for moves in (made, made[:1]):
            if moves:
                reached = self.state(*sweep.after(moves))
                if reached.better_than(state, worth):
                    return reached
        return self._next_best(state, worth) if made else None

    def _next_best(self, state: State, worth: float) -> State | None:
        """The first of the best moves that is better by its own full evaluation: for rules that sweeps misjudge."""
        sweep = Sweep(self, state)
        for which in sweep.ranked(worth)[:_PAIRS]:
            reached = self.state(*sweep.after([int(which)]))
            if reached.better_than(state, worth):
                return reached
        return None

    def _further(self, state: State, better: State) -> State:
        """The same step again, twice as far each time, while that is better still: fine lots need big steps."""
        allowed, step = self.allowed, better.lots - state.lots
        if state.violation > SLACK or np.any(better.closed) or np.any(state.closed):
            return better
        while True:
            step = 2 * step
            lots = better.lots + step
            if not np.all(allowed.inside(lots)):
                return better
            further = self.state(lots, better.closed)
            if further.violation > SLACK or further.objective >= better.objective:
                return better
            better = further

    def alone(self, state: State, now: Array) -> Array:
        """By how much each asset would best change if it were alone with the cash: one Newton step."""
        problem, cash = self.problem, self.problem.cash
        gradient = problem.aversion * problem.risk.gradient(state.weights - problem.target)
        curvature = problem.aversion * self.risk.own
        rate = np.where(now > 0, problem.cost.buy, np.where(now < 0, -problem.cost.sell, 0.0)) / problem.horizon
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -(gradient - gradient[cash] + rate) / curvature
        return np.asarray(np.clip(np.nan_to_num(step, posinf=0.0, neginf=0.0), -10.0, 10.0))


class Sweep:
    """The moves of single assets from a state, priced; each that is made changes the prices of those left."""

    def __init__(self, search: Search, state: State) -> None:
        self.search, self.state = search, state
        allowed, problem, cash = search.allowed, search.problem, search.problem.cash
        n = len(problem.assets)
        now = allowed.trades(state.lots, state.closed)
        best = now + search.alone(state, now)
        # To the neighbouring points, to the asset's own best points, to no trade, to a close.
        wanted = np.stack([now + allowed.size, now - allowed.size, best, best])
        lots, closed = allowed.nearest(wanted, _UPWARDS)
        lots = np.concatenate([lots, np.zeros((2, n), dtype=np.int64)])
        closed = np.concatenate([closed, np.zeros((1, n), dtype=bool), allowed.closable[None]])
        trades = np.where(closed, -problem.before, lots * allowed.size)
        inside = closed | allowed.inside(lots)
        use = (trades != now) & inside
        use[:, cash] = False
        self.asset, self.lots, self.closed = np.nonzero(use)[1], lots[use], closed[use]
        self.left = np.ones(len(self.asset), dtype=bool)
        self._price(now, trades, use)
        self._count(lots, closed, use)

    def _price(self, now: Array, trades: Array, use: Mask) -> None:
        """What each move changes on its own: the objective, the rows, the cones."""
        search, w = self.search, self.state.weights
        problem, cash, asset = search.problem, search.problem.cash, self.asset
        change = trades - now
        self.d = d = change[use]
        cost = problem.cost
        paid = (problem.paid(trades) - problem.paid(now))[use]
        self.gain = 0.5 * problem.aversion * search.risk.change(w, asset, d) + paid / problem.horizon
        at_cash = w[cash] - d
        if search.carries:
            of_cash = np.where(at_cash > 0, cost.long[cash], -cost.short[cash]) * at_cash
            self.gain += (cost.carry(w + change) - cost.carry(w))[use] + of_cash - cost.carry(w)[cash]
        self.rows = search.cost_weight[:, None] * paid
        for name, coefficients in search.parts.items():
            moved = (part(name, w + change, trades) - part(name, w, now))[use]
            of_cash = part(name, at_cash, at_cash - problem.before[cash])
            of_cash = of_cash - part(name, w[cash : cash + 1], w[cash : cash + 1] - problem.before[cash])
            self.rows += coefficients[:, asset] * moved + coefficients[:, [cash]] * of_cash
        self.room = search.sides(w) - search.upper
        self.cones = [form.change(w, asset, d) for form, _ in search.cones]
        self.cone_room = [form.value(w) - limit for form, limit in search.cones]

    def _count(self, lots: Integers, closed: Mask, use: Mask) -> None:
        """What each move adds to the limits on counts, which are rows, too."""
        search, state, counts = self.search, self.state, self.search.counts
        if len(counts.upper):
            at, after = (search.allowed.indicators(*points) for points in ((state.lots, state.closed), (lots, closed)))
            self.rows = np.vstack([self.rows, (counts.each(*after) - counts.each(*at)[:, None])[:, use]])
            self.room = np.append(self.room, search.counted(state.lots, state.closed) - counts.upper)

    @property
    def violation(self) -> float:
        return float(np.sum(np.maximum(self.room, 0.0)) + sum(max(room, 0.0) for room in self.cone_room))

    def violations(self) -> Array:
        """What is left of the violation after each move."""
        left = np.maximum(self.room[:, None] + self.rows, 0.0).sum(axis=0)
        for room, change in zip(self.cone_room, self.cones, strict=True):
            left = left + np.maximum(room + change, 0.0)
        return np.asarray(left)

    def ranked(self, worth: float) -> Indices:
        """The moves, best first."""
        return ranked(self.gain, self.violations(), TIE / _WORTH * worth)

    def made(self, worth: float) -> list[int]:
        """The moves of one sweep, each the best single or pair of those left when it was made."""
        moves: list[int] = []
        while self.left.any():
            better = self._single(worth) or self._pair(worth)
            if not better:
                return moves
            for move in better:
                self._make(move)
            moves += better
        return moves

    def after(self, moves: list[int]) -> tuple[Integers, Mask]:
        lots, closed = self.state.lots.copy(), self.state.closed.copy()
        lots[self.asset[moves]], closed[self.asset[moves]] = self.lots[moves], self.closed[moves]
        return lots, closed

    def _make(self, move: int) -> None:
        asset, d = self.asset, self.d
        self.room = self.room + self.rows[:, move]
        self.cone_room = [room + change[move] for room, change in zip(self.cone_room, self.cones, strict=True)]
        both = d * d[move]
        half, one = 0.5 * self.search.problem.aversion, asset[move : move + 1]
        self.gain = self.gain + half * self.search.risk.between(one, asset)[0] * both
        for number, (form, _) in enumerate(self.search.cones):
            self.cones[number] = self.cones[number] + form.between(one, asset)[0] * both
        self.left = self.left & (asset != asset[move])

    def _single(self, worth: float) -> list[int]:
        violations, before = np.where(self.left, self.violations(), np.inf), self.violation
        fine = violations <= SLACK
        if fine.any():
            best = int(first(np.where(fine, self.gain, np.inf), TIE / _WORTH * worth))
            return [best] if before > SLACK or self.gain[best] < -worth else []
        best = int(ranked(self.gain, violations, TIE / _WORTH * worth)[0])
        return [best] if before > SLACK and violations[best] < before * (1 - 1e-6) else []

    def _promising(self, worth: float, broken: bool) -> Integers:
        """The best rises and falls: by the gain, and where a rule is broken by what they mend, too."""
        firsts = []
        for order in (np.argsort(self.gain, kind="stable"), *([self.ranked(worth)] if broken else [])):
            order = order[self.left[order]]
            firsts += [order[self.d[order] > 0][:_PAIRS], order[self.d[order] < 0][:_PAIRS]]
        return np.unique(np.concatenate(firsts))

    def _pair(self, worth: float) -> list[int]:
        """The best two moves of the most promising rises and falls."""
        before = self.violation
        both = self._promising(worth, before > SLACK)
        asset, d = self.asset[both], self.d[both]
        coupling = 0.5 * self.search.problem.aversion * self.search.risk.between(asset, asset)
        product = d[:, None] * d
        gain = self.gain[both][:, None] + self.gain[both] + coupling * product
        gain[asset[:, None] == asset] = np.inf
        left = np.zeros_like(gain)
        for room, rows in zip(self.room, self.rows[:, both], strict=True):
            left += np.maximum(room + rows[:, None] + rows, 0.0)
        for room, change, (form, _) in zip(self.cone_room, self.cones, self.search.cones, strict=True):
            at = change[both]
            left += np.maximum(room + at[:, None] + at + form.between(asset, asset) * product, 0.0)
        fine = left <= SLACK
        within = np.where(fine, gain, np.inf).ravel()
        if np.isfinite(within.min()):
            which = int(first(within, TIE / _WORTH * worth))
            if before <= SLACK and within[which] >= -worth:
                return []
        else:
            left = np.where(np.isfinite(gain), left, np.inf)
            which = int(ranked(gain.ravel(), left.ravel(), TIE / _WORTH * worth)[0])
            if before <= SLACK or left.flat[which] >= before * (1 - 1e-6):
                return []
        return [int(both[k]) for k in divmod(which, len(both))]
