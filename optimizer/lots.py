"""From the convex optimum to whole lots.

Each asset's trade is one of its allowed points: no trade, a whole number of lots at least as large as its
minimum, or the closing of the position. The search starts from the convex optimum rounded to the safe side
(buys down, sales up, debts never above the optimum's) and moves one or two assets at a time: by one lot, to
the best points for that asset alone, to no trade, to a close. A move counts first by how much of the rules'
violation it removes, then by the objective; all moves of a round are priced at once, by what they change.
Cash is the residual, trading costs included. Where the search finds no plan within the rules, a small integer
program (`lot_program`) says whether there is one.

The convex bound bounds every whole-lot plan too, so that the gap of the result is certified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.base import Array, Bound, Cone, Parts, Piece, Row, part
from equipoise.optimizer.portfolio import exact
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import ROUNDING_TOLERANCE

Integers = NDArray[np.int64]

#: The search keeps rules to within half of what the exact check allows.
_SLACK = 0.5 * ROUNDING_TOLERANCE
_PAIRS = 12  # the best moves of each direction that are tried in pairs
_ROUNDS = 500
_WORTH = 1e-8  # a move must gain this fraction of the objective
#: Assets without a lot trade in decimal steps worth at most this fraction of NAV.
_QUANTUM = 1e-10


@dataclass(frozen=True, eq=False)
class Lots:
    """What may be traded: per asset the lot (exact, and as a weight), the least number of lots, the range."""

    problem: Problem
    lot: tuple[Fraction, ...]
    size: Array
    least: Integers
    lowest: Integers
    highest: Integers
    #: Whether the position may be closed exactly, and lies off the grid of whole lots so that this is a point of its own.
    closable: NDArray[np.bool_]

    @classmethod
    def of(cls, problem: Problem, lower: Array) -> Lots:
        """`lower` may be above the problem's own bounds (debts that must not grow)."""
        step, portfolio = problem.step, problem.portfolio
        assert step is not None
        lots, least = [], []
        for i, given in enumerate(step.lot):
            price = float(portfolio.price[i])
            lots.append(exact(given) if given > 0 else _quantum(portfolio.nav / price))
            # Minimums are inclusive; they are compared as the decimals that the user wrote.
            need = max(exact(step.min_quantity[i]), exact(step.min_notional[i]) / portfolio.exact_price[i])
            least.append(max(1, -((-need) // lots[-1])))
        size = np.array([float(lot) for lot in lots]) * portfolio.price / portfolio.nav
        with np.errstate(over="ignore"):
            lowest = np.ceil((lower - _SLACK - problem.before) / size)
            highest = np.floor((problem.upper + _SLACK - problem.before) / size)
        whole = [quantity % lot == 0 for quantity, lot in zip(portfolio.exact_quantity, lots, strict=True)]
        closable = (lower <= _SLACK) & (problem.upper >= -_SLACK) & (problem.before != 0)
        beyond = np.array([abs(q) < n * lot for q, n, lot in zip(portfolio.exact_quantity, least, lots, strict=True)])
        closable &= ~np.array(whole) | beyond
        limit = float(2**62)
        clipped = (np.clip(edge, -limit, limit).astype(np.int64) for edge in (lowest, highest))
        allowed = cls(problem, tuple(lots), size, np.array(least, dtype=np.int64), *clipped, closable)
        for edge in (allowed.lowest, allowed.highest):
            edge[problem.cash] = 0
        allowed.closable[problem.cash] = False
        return allowed

    def empty(self) -> Array:
        """The assets for which no point at all lies within their bounds."""
        holds = (self.lowest <= 0) & (self.highest >= 0)
        trades = (np.maximum(self.lowest, self.least) <= self.highest) | (
            self.lowest <= np.minimum(self.highest, -self.least)
        )
        return np.flatnonzero(~(holds | trades | self.closable))

    def nearest(self, trades: Array, upwards: NDArray[np.bool_] | bool) -> tuple[Integers, NDArray[np.bool_]]:
        """The allowed point next to these trades on one side, or failing that on the other: (lots, closed)."""
        exactly = trades / self.size
        whole = np.round(exactly)
        near = np.abs(exactly - whole) < 1e-6  # the optimum of fine lots is known no better than this
        rounded = np.where(near, whole, np.where(upwards, np.ceil(exactly), np.floor(exactly)))
        wanted = np.clip(rounded, self.lowest, self.highest).astype(np.int64)
        return self._allowed(wanted, np.broadcast_to(upwards, wanted.shape))

    def _allowed(self, lots: Integers, upwards: NDArray[np.bool_]) -> tuple[Integers, NDArray[np.bool_]]:
        """These numbers of lots, moved out of the gap below the minimum and into the range."""
        low, high, least = self.lowest, self.highest, self.least
        gap = (lots != 0) & (np.abs(lots) < least)
        options = [np.where(lots > 0, least, 0), np.where(lots > 0, 0, -least)]
        first = np.where(upwards, options[0], options[1])
        second = np.where(upwards, options[1], options[0])

        def inside(k: Integers) -> NDArray[np.bool_]:
            return (k >= low) & (k <= high)

        moved = np.where(gap, np.where(inside(first), first, second), lots)
        zero = inside(np.zeros_like(lots))
        # Nothing allowed where we are: no trade if that is inside, else the minimum on the side that is.
        outside = ~inside(moved) | ((moved != 0) & (np.abs(moved) < least))
        other = np.where(zero, 0, np.where(low > 0, np.maximum(low, least), np.minimum(high, -least)))
        moved = np.where(outside, other, moved)
        bad = ~inside(moved)
        return np.where(bad, 0, moved), bad & self.closable

    def trades(self, lots: Integers, closed: NDArray[np.bool_]) -> Array:
        """z of these numbers of lots, in fractions of NAV."""
        return np.where(closed, -self.problem.before, lots * self.size)

    def quantities(self, lots: Integers, closed: NDArray[np.bool_]) -> tuple[Fraction, ...]:
        """The traded quantities, exact."""
        held = self.problem.portfolio.exact_quantity
        return tuple(
            -q if c else int(k) * lot for k, lot, c, q in zip(lots, self.lot, closed, held, strict=True)
        )


def _quantum(units: float) -> Fraction:
    """The power of ten just below `_QUANTUM` of the NAV, in units of an asset of which NAV buys `units`."""
    return Fraction(10) ** int(np.floor(np.log10(_QUANTUM * units)))


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
    """Asset i's trade changes by di and asset j's by dj (0 for single moves); `to` are the points they reach."""

    i: Integers
    di: Array
    j: Integers
    dj: Array
    lots_i: Integers
    closed_i: NDArray[np.bool_]
    lots_j: Integers
    closed_j: NDArray[np.bool_]

    def pick(self, which: NDArray[np.intp]) -> Moves:
        return Moves(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(eq=False)
class _State:
    lots: Integers
    closed: NDArray[np.bool_]
    weights: Array
    objective: float
    violation: float


@dataclass(frozen=True, eq=False)
class LotPlan:
    """Whole-lot trades: exact quantities, number of lots, weights (cash before costs), objective."""

    quantities: tuple[Fraction, ...]
    lots: Integers
    closed: NDArray[np.bool_]
    weights: Array
    objective: float


class Search:
    """The descent of one portfolio. `run` returns the best state from a starting point."""

    def __init__(self, allowed: Lots) -> None:
        self.allowed = allowed
        self.problem = problem = allowed.problem
        risk = problem.risk
        self.risk = _Form(risk.factors, risk.specific, problem.target)
        self.cones = [
            (_Form(cone.matrix, cone.diagonal**2, cone.centre), cone.upper**2) for _, cone in problem.cones
        ]
        # The cash's upper bound is a row here: cash is a residual, not a point that can be kept inside.
        rows, cash = problem.rows, problem.cash
        cap = np.zeros((1, len(problem.assets)))
        cap[0, cash] = 1.0
        none = np.zeros_like(cap)
        self.parts = {
            name: np.vstack([getattr(rows, name), cap if name == "weight" else none]) for name in Parts.NAMES
        }
        self.cost_weight = np.append(rows.cost, 0.0)
        self.upper = np.append(rows.upper, problem.upper[cash])

    def state(self, lots: Integers, closed: NDArray[np.bool_]) -> _State:
        trades = self.allowed.trades(lots, closed)
        weights = self.problem.settled(self.problem.before + trades)
        excess = self._sides(weights) - self.upper
        forms = [form.value(weights) - limit for form, limit in self.cones]
        violation = float(np.sum(np.maximum(excess, 0.0)) + sum(max(f, 0.0) for f in forms))
        return _State(lots, closed, weights, self.problem.objective(weights), violation)

    def _sides(self, weights: Array) -> Array:
        trades = weights - self.problem.before
        sides = sum(self.parts[name] @ part(name, weights, trades) for name in Parts.NAMES)
        return np.asarray(sides + self.cost_weight * self.problem.trading_cost(weights))

    def run(self, state: _State) -> _State:
        for _ in range(_ROUNDS):
            better = self._step(state)
            if better is None:
                return state
            state = better
        return state

    def _step(self, state: _State) -> _State | None:
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

    def _best(self, state: _State, moves: Moves, gain: Array, violation: Array) -> _State | None:
        """The state after the best of these moves, if it is better by its own full evaluation."""
        fine = violation <= _SLACK
        worth = max(_WORTH * abs(state.objective), 1e-16)
        if fine.any() and (state.violation > _SLACK or np.min(gain[fine]) < -worth):
            order = np.flatnonzero(fine)[np.argsort(gain[fine], kind="stable")[:3]]
        elif state.violation > _SLACK:
            order = np.lexsort((gain, violation))[:3]
        else:
            return None
        for which in order:
            reached = self._moved(state, moves, int(which))
            if reached.violation <= _SLACK:
                if state.violation > _SLACK or reached.objective < state.objective - worth:
                    return reached
            elif reached.violation < state.violation * (1 - 1e-9) - 1e-16:
                return reached
        return None

    def _moved(self, state: _State, moves: Moves, which: int) -> _State:
        lots, closed = state.lots.copy(), state.closed.copy()
        for asset, k, c in (
            (moves.i[which], moves.lots_i[which], moves.closed_i[which]),
            (moves.j[which], moves.lots_j[which], moves.closed_j[which]),
        ):
            if asset >= 0:
                lots[asset], closed[asset] = k, c
        return self.state(lots, closed)

    def _singles(self, state: _State) -> Moves:
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

    def _alone(self, state: _State, now: Array) -> Array:
        """By how much each asset would best change if it were alone with the cash: one Newton step."""
        problem, cash = self.problem, self.problem.cash
        gradient = problem.aversion * problem.risk.gradient(state.weights - problem.target)
        relative = problem.risk.factors - problem.risk.factors[:, [cash]]
        specific = problem.risk.specific
        curvature = problem.aversion * (np.sum(relative**2, axis=0) + specific + specific[cash])
        rate = np.where(now > 0, problem.cost.buy, np.where(now < 0, -problem.cost.sell, 0.0)) / problem.horizon
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -(gradient - gradient[cash] + rate) / curvature
        return np.clip(np.nan_to_num(step, posinf=0.0, neginf=0.0), -10.0, 10.0)

    def _pairs(self, singles: Moves, gain: Array, violation: Array) -> Moves:
        """The most promising rises with the most promising falls of other assets, and all with all."""
        score = np.lexsort((gain, np.maximum(violation, _SLACK)))
        ranked = [
            np.array([k for k in score if side * singles.di[k] > 0][:_PAIRS], dtype=np.intp) for side in (1, -1)
        ]
        by_gain = np.argsort(gain, kind="stable")
        ranked += [np.array([k for k in by_gain if side * singles.di[k] > 0][:_PAIRS], dtype=np.intp) for side in (1, -1)]
        up, down = np.unique(np.concatenate(ranked[::2])), np.unique(np.concatenate(ranked[1::2]))
        both = np.unique(np.concatenate([up, down]))
        first, second = (grid.ravel() for grid in np.meshgrid(both, both, indexing="ij"))
        different = (first < second) & (singles.i[first] != singles.i[second])
        one, two = singles.pick(first[different]), singles.pick(second[different])
        return replace(one, j=two.i, dj=two.di, lots_j=two.lots_i, closed_j=two.closed_i)

    def _priced(self, state: _State, moves: Moves) -> tuple[Array, Array]:
        """For each move the change of the objective and the violation that remains."""
        problem, cash = self.problem, self.problem.cash
        w, before = state.weights, problem.before
        spent = moves.di + moves.dj
        cost_change = self._cost(moves.i, w, moves.di) + self._cost(moves.j, w, moves.dj)
        gain = 0.5 * problem.aversion * self.risk.change(w, moves, cash) + cost_change / problem.horizon
        for asset, change in ((moves.i, moves.di), (moves.j, moves.dj), (np.full(len(spent), cash), -spent)):
            held = problem.cost.of_assets(asset)
            gain = gain + held.carry(w[asset] + change) - held.carry(w[asset])
        sides = self._sides(w)[:, None] + self.cost_weight[:, None] * cost_change
        for name in Parts.NAMES:
            coefficients = self.parts[name]
            for asset, change in ((moves.i, moves.di), (moves.j, moves.dj), (np.full(len(spent), cash), -spent)):
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


def starts(search: Search, optimum: Array) -> Iterator[_State]:
    """Where the search starts: the optimum rounded to the safe side for the cash, and to the nearest lot.

    If both break a rule: the optimum of the rules tightened by what rounding can move them, which rounds to a
    point within the rules. With fine lots this is next to the optimum; with coarse lots there may be none.
    """
    allowed, problem = search.allowed, search.problem

    def near(weights: Array) -> _State:
        exactly = (weights - problem.before) / allowed.size
        return search.state(*allowed.nearest(weights - problem.before, np.round(exactly) > exactly))

    # Debts round up (less debt), everything else towards more cash.
    first = search.state(*allowed.nearest(optimum - problem.before, optimum < 0))
    second = near(optimum)
    yield first
    yield second
    if min(first.violation, second.violation) > _SLACK and (inner := _tightened(search)) is not None:
        yield near(inner)


def _tightened(search: Search) -> Array | None:
    """The optimum of the problem with every row tighter by the most that rounding to a lot can move it."""
    from equipoise.optimizer.program import solve

    problem, size, cash = search.problem, search.allowed.size, search.problem.cash
    rates = problem.cost
    cost = size * (np.maximum(rates.buy, rates.sell) + 2.0 * rates.quadratic + 1.5 * rates.impact)
    size, cost = (np.where(np.arange(len(size)) == cash, 0.0, x) for x in (size, cost))

    def margin(row: Row) -> float:
        slope = np.zeros(len(size))
        for names in (("weight",), ("long", "short"), ("buy", "sell")):
            parts = [np.abs(c) for name in names if (c := getattr(row, name)) is not None]
            slope += np.max([np.zeros(len(size)), *parts], axis=0)
        return float(slope @ size + slope[cash] * (np.sum(size) + np.sum(cost)))

    def tighter(piece: Piece) -> Piece:
        if isinstance(piece, Row):
            return replace(piece, upper=piece.upper - margin(piece))
        if isinstance(piece, Bound):
            floor = np.where(np.arange(len(size)) == cash, np.sum(size) + np.sum(cost), 0.0)
            return replace(piece, lower=piece.lower + floor, upper=piece.upper - floor)
        if isinstance(piece, Cone):
            return replace(piece, upper=piece.upper - float(_norms(piece, cash) @ size))
        return piece

    inner = replace(problem, pieces=tuple((title, tighter(piece)) for title, piece in problem.pieces))
    if np.any(inner.lower > inner.upper) or any(cone.upper < 0 for _, cone in inner.cones):
        return None
    return solve(inner).weights


def _norms(cone: Cone, cash: int) -> Array:
    """By how much a unit of each asset's trade, paid from the cash, can move a cone's norm."""
    relative = cone.matrix - cone.matrix[:, [cash]]
    return np.sqrt(np.sum(relative**2, axis=0) + cone.diagonal**2 + cone.diagonal[cash] ** 2)


def rounded(problem: Problem, optimum: Array) -> tuple[LotPlan | None, str]:
    """The best whole-lot plan found near the convex optimum, or None and why there is none."""
    from equipoise.optimizer.lot_program import feasible_point

    # The safe side first: no debt above the optimum's; only if that leaves no plan, the rules' own bounds.
    safe = np.where(optimum < 0, np.maximum(problem.lower, np.minimum(optimum, problem.upper)), problem.lower)
    reason = ""
    for lower in (safe, problem.lower) if np.any(safe > problem.lower) else (problem.lower,):
        allowed = Lots.of(problem, lower)
        if len(none := allowed.empty()):
            reason = _no_point(problem, int(none[0]), allowed)
            continue
        search = Search(allowed)
        begun = list(starts(search, optimum))
        inside = [state for state in begun if state.violation <= _SLACK]
        reached = [search.run(state) for state in inside or begun]
        best = min(reached, key=lambda s: (max(s.violation, _SLACK), s.objective))
        if best.violation > _SLACK:
            point, proven = feasible_point(search, optimum)
            if point is not None:
                best = search.run(search.state(*point))
            reason = _unkept(search, best, proven)
        if best.violation <= _SLACK:
            quantities = allowed.quantities(best.lots, best.closed)
            return LotPlan(quantities, best.lots, best.closed, best.weights, best.objective), ""
    return None, reason


def _no_point(problem: Problem, i: int, allowed: Lots) -> str:
    named = sorted(
        {title for title, b in problem.bounds if b.lower[i] == problem.lower[i] or b.upper[i] == problem.upper[i]}
    )
    assert problem.step is not None
    return (
        f"{' and '.join(named)} leave {problem.assets[i]} no whole number of lots: one lot of "
        f"{problem.step.lot[i]:g} is {allowed.size[i]:.3%} of NAV, and the weight must lie within "
        f"{problem.lower[i]:.3%} to {problem.upper[i]:.3%} (now {problem.before[i]:.3%}, smallest order "
        f"{allowed.least[i] * allowed.size[i]:.3%})"
    )


def _unkept(search: Search, state: _State, proven: bool) -> str:
    sides = search._sides(state.weights) - search.upper
    titles = [*search.problem.rows.titles, "the upper limit on cash"]
    broken = [f"{titles[j]} (by {sides[j]:.3%} of NAV)" for j in np.flatnonzero(sides > _SLACK)]
    broken += [
        title
        for (title, _), (form, limit) in zip(search.problem.cones, search.cones, strict=True)
        if form.value(state.weights) > limit
    ]
    how = "no plan in whole lots keeps all rules (proven)" if proven else "no plan in whole lots was found that keeps all rules"
    return f"{how}; the closest one breaks {', '.join(broken)}"
