"""The descent over whole-lot plans: one or two assets move at a time, all moves of a round priced at once.

A move counts first by how much of the rules' violation it removes, then by the objective. Assets meet in the
risk's factors, in the rows and in the cash, which is the residual after costs; each of these changes by a
closed form in the moved quantities, so that a round costs O(moves·(k + m)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array, Parts, part
from equipoise.optimizer.lot_points import SLACK, Integers, Lots, Mask
from equipoise.optimizer.solution import FEASIBILITY_TOLERANCE

_PAIRS = 12  # the best moves of each direction that are tried in pairs
_ROUNDS = 500
_WORTH = 1e-8  # a move must gain this fraction of the objective


@dataclass(eq=False)
class State:
    lots: Integers
    closed: Mask
    weights: Array
    objective: float
    violation: float


@dataclass(frozen=True, eq=False)
class _Form:
    """A quadratic form ‖M(w − c)‖² + ‖δ∘(w − c)‖², and what it changes by when trades change."""

    matrix: Array
    diagonal: Array
    centre: Array

    def value(self, w: Array) -> float:
        away = w - self.centre
        return float(np.sum((self.matrix @ away) ** 2) + np.sum(self.diagonal * away**2))

    def change(self, w: Array, moves: Moves, cash: int) -> Array:
        """The change for each move; the cash moves against the assets."""
        away = w - self.centre
        exposure = self.matrix @ away
        pull = 2.0 * (self.matrix.T @ exposure + self.diagonal * away)
        relative = self.matrix - self.matrix[:, [cash]]
        first, second = (relative[:, i] * d for i, d in ((moves.i, moves.di), (moves.j, moves.dj)))
        moved = moves.di + moves.dj
        own = self.diagonal[moves.i] * moves.di**2 + self.diagonal[moves.j] * moves.dj**2
        return np.asarray(
            pull[moves.i] * moves.di
            + pull[moves.j] * moves.dj
            - pull[cash] * moved
            + np.sum((first + second) ** 2, axis=0)
            + own
            + self.diagonal[cash] * moved**2
        )


@dataclass(frozen=True, eq=False)
class Moves:
    """Asset i's trade changes by di and asset j's by dj (single moves: 0, j = −1), to these lots or a close."""

    i: Integers
    di: Array
    j: Integers
    dj: Array
    lots_i: Integers
    closed_i: Mask
    lots_j: Integers
    closed_j: Mask

    def pick(self, which: NDArray[np.intp]) -> Moves:
        return Moves(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


class Search:
    """The descent of one portfolio. `run` returns the best state from a starting point."""

    def __init__(self, allowed: Lots, margin: float = 0.0) -> None:
        self.allowed = allowed
        self.problem = problem = allowed.problem
        risk = problem.risk
        self.risk = _Form(risk.factors, risk.specific, problem.target)
        self.cones = [(_Form(cone.matrix, cone.diagonal**2, cone.centre), cone.upper**2) for _, cone in problem.cones]
        # The cash's upper bound is a row here: cash is a residual, not a point that can be kept inside.
        rows, cash = problem.rows, problem.cash
        cap = np.zeros((1, len(problem.assets)))
        cap[0, cash] = 1.0
        none = np.zeros_like(cap)
        stacked = {name: np.vstack([getattr(rows, name), cap if name == "weight" else none]) for name in Parts.NAMES}
        self.parts = {name: coefficients for name, coefficients in stacked.items() if np.any(coefficients)}
        self.carries = bool(np.any(problem.cost.long) or np.any(problem.cost.short))
        self.cost_weight = np.append(rows.cost, 0.0)
        self.upper = np.append(rows.upper, problem.upper[cash]) - margin

    def state(self, lots: Integers, closed: Mask) -> State:
        trades = self.allowed.trades(lots, closed)
        weights = self.problem.settled(self.problem.before + trades)
        excess = self.sides(weights) - self.upper
        forms = [form.value(weights) - limit for form, limit in self.cones]
        # A custom rule is no data: it is asked itself, at each point that the search would go to.
        custom = [p.violation(weights, weights - self.problem.before) for _, p in self.problem.opaque]
        custom = [v for v in custom if v > FEASIBILITY_TOLERANCE]
        violation = float(np.sum(np.maximum(excess, 0.0)) + sum(max(f, 0.0) for f in forms) + sum(custom))
        return State(lots, closed, weights, self.problem.objective(weights), violation)

    def sides(self, weights: Array) -> Array:
        trades = weights - self.problem.before
        sides = sum(coefficients @ part(name, weights, trades) for name, coefficients in self.parts.items())
        return np.asarray(sides + self.cost_weight * self.problem.trading_cost(weights))

    def run(self, state: State) -> State:
        for _ in range(_ROUNDS):
            better = self._step(state)
            if better is None:
                return state
            state = self._further(state, better)
        return state

    def _further(self, state: State, better: State) -> State:
        """The same step again, twice as far each time, while that is better still: fine lots need big steps."""
        allowed, step = self.allowed, better.lots - state.lots
        if state.violation > SLACK or np.any(better.closed) or np.any(state.closed):
            return better
        while True:
            step = 2 * step
            lots = better.lots + step
            gap = (lots != 0) & (np.abs(lots) < allowed.least)
            if np.any(gap | (lots < allowed.lowest) | (lots > allowed.highest)):
                return better
            further = self.state(lots, better.closed)
            if further.violation > SLACK or further.objective >= better.objective:
                return better
            better = further

    def _step(self, state: State) -> State | None:
        singles = self._singles(state)
        if not len(singles.i):
            return None
        gain, violation = self._priced(state, singles)
        chosen = self._best(state, singles, gain, violation)
        if chosen is not None:
            return chosen
        pairs = self._pairs(singles, gain, violation)
        if not len(pairs.i):
            return None
        return self._best(state, pairs, *self._priced(state, pairs))

    def _best(self, state: State, moves: Moves, gain: Array, violation: Array) -> State | None:
        """The state after the best of these moves, if it is better by its own full evaluation."""
        fine = violation <= SLACK
        worth = max(_WORTH * abs(state.objective), 1e-16)
        if fine.any() and (state.violation > SLACK or np.min(gain[fine]) < -worth):
            order = np.flatnonzero(fine)[np.argsort(gain[fine], kind="stable")[:3]]
        elif state.violation > SLACK:
            order = np.lexsort((gain, violation))[:3]
        else:
            return None
        for which in order:
            reached = self._moved(state, moves, int(which))
            if reached.violation <= SLACK:
                if state.violation > SLACK or reached.objective < state.objective - worth:
                    return reached
            elif reached.violation < state.violation * (1 - 1e-9) - 1e-16:
                return reached
        return None

    def _moved(self, state: State, moves: Moves, which: int) -> State:
        lots, closed = state.lots.copy(), state.closed.copy()
        for asset, k, c in (
            (moves.i[which], moves.lots_i[which], moves.closed_i[which]),
            (moves.j[which], moves.lots_j[which], moves.closed_j[which]),
        ):
            if asset >= 0:
                lots[asset], closed[asset] = k, c
        return self.state(lots, closed)

    def _singles(self, state: State) -> Moves:
        """Every asset to its neighbouring points, to its own best points, to no trade and to a close."""
        allowed, problem = self.allowed, self.problem
        n = len(problem.assets)
        now = allowed.trades(state.lots, state.closed)
        best = now + self._alone(state, now)
        targets = [
            allowed.nearest(now + allowed.size, True),
            allowed.nearest(now - allowed.size, False),
            allowed.nearest(best, True),
            allowed.nearest(best, False),
            (np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)),
            (np.zeros(n, dtype=np.int64), allowed.closable),
        ]
        lots = np.concatenate([k for k, _ in targets])
        closed = np.concatenate([c for _, c in targets])
        asset = np.tile(np.arange(n), len(targets))
        reached = np.where(closed, -problem.before[asset], lots * allowed.size[asset])
        change = reached - now[asset]
        inside = closed | ((lots >= allowed.lowest[asset]) & (lots <= allowed.highest[asset]))
        keep = np.flatnonzero((change != 0) & inside & (asset != problem.cash))
        nothing = np.full(len(keep), -1)
        return Moves(
            asset[keep],
            change[keep],
            nothing,
            np.zeros(len(keep)),
            lots[keep],
            closed[keep],
            nothing,
            np.zeros(len(keep), dtype=bool),
        )

    def _alone(self, state: State, now: Array) -> Array:
        """By how much each asset would best change if it were alone with the cash: one Newton step."""
        problem, cash = self.problem, self.problem.cash
        gradient = problem.aversion * problem.risk.gradient(state.weights - problem.target)
        relative = problem.risk.factors - problem.risk.factors[:, [cash]]
        specific = problem.risk.specific
        curvature = problem.aversion * (np.sum(relative**2, axis=0) + specific + specific[cash])
        rate = np.where(now > 0, problem.cost.buy, np.where(now < 0, -problem.cost.sell, 0.0)) / problem.horizon
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -(gradient - gradient[cash] + rate) / curvature
        return np.asarray(np.clip(np.nan_to_num(step, posinf=0.0, neginf=0.0), -10.0, 10.0))

    def _pairs(self, singles: Moves, gain: Array, violation: Array) -> Moves:
        """The most promising rises with the most promising falls of other assets, and all with all."""
        score = np.lexsort((gain, np.maximum(violation, SLACK)))
        ranked = [np.array([k for k in score if side * singles.di[k] > 0][:_PAIRS], dtype=np.intp) for side in (1, -1)]
        by_gain = np.argsort(gain, kind="stable")
        ranked += [
            np.array([k for k in by_gain if side * singles.di[k] > 0][:_PAIRS], dtype=np.intp) for side in (1, -1)
        ]
        up, down = np.unique(np.concatenate(ranked[::2])), np.unique(np.concatenate(ranked[1::2]))
        both = np.unique(np.concatenate([up, down]))
        first, second = (grid.ravel() for grid in np.meshgrid(both, both, indexing="ij"))
        different = (first < second) & (singles.i[first] != singles.i[second])
        one, two = singles.pick(first[different]), singles.pick(second[different])
        return replace(one, j=two.i, dj=two.di, lots_j=two.lots_i, closed_j=two.closed_i)

    def _priced(self, state: State, moves: Moves) -> tuple[Array, Array]:
        """For each move the change of the objective and the violation that remains."""
        problem, cash = self.problem, self.problem.cash
        w, before = state.weights, problem.before
        spent = moves.di + moves.dj
        cost_change = self._cost(moves.i, w, moves.di) + self._cost(moves.j, w, moves.dj)
        gain = 0.5 * problem.aversion * self.risk.change(w, moves, cash) + cost_change / problem.horizon
        changes = [(moves.i, moves.di), (np.full(len(spent), cash), -spent)]
        if np.any(moves.dj):
            changes.append((moves.j, moves.dj))
        if self.carries:
            for asset, change in changes:
                held = problem.cost.of_assets(asset)
                gain = gain + held.carry(w[asset] + change) - held.carry(w[asset])
        sides = self.sides(w)[:, None] + self.cost_weight[:, None] * cost_change
        for name, coefficients in self.parts.items():
            for asset, change in changes:
                at, trade = w[asset], w[asset] - before[asset]
                moved = part(name, at + change, trade + change) - part(name, at, trade)
                sides = sides + coefficients[:, asset] * moved
        violation = np.sum(np.maximum(sides - self.upper[:, None], 0.0), axis=0)
        for form, limit in self.cones:
            value = form.value(w) + form.change(w, moves, cash)
            violation = violation + np.maximum(value - limit, 0.0)
        return gain, violation

    def _cost(self, asset: Integers, w: Array, change: Array) -> Array:
        """The change of φ when this asset's trade changes (asset −1 with change 0: none)."""
        rates = self.problem.cost.of_assets(asset)
        trade = w[asset] - self.problem.before[asset]
        return rates.each(trade + change) - rates.each(trade)
