"""The descent over whole-lot plans of stacks of portfolios: what `search.neighbours` does for one, as arrays (B, n).

It works on the dual's form of a problem, from which the cash is taken out: the objective is (aversion/2)·|y|² + Σᵢ fᵢ
with y = F(w − b), and every row is a sum over the assets. So for moves dᵢ of single assets the objective changes by

    fᵢ(wᵢ + dᵢ) − fᵢ(wᵢ) + aversion·(Fᵢ·y)·dᵢ + (aversion/2)·|Fᵢ|²·dᵢ²,   for two by aversion·(Fᵢ·Fⱼ)·dᵢdⱼ more,

and rows change by the sum of what each move changes, exactly. Each step makes the best move of one asset, or where none
is left of a buy with a sale: in every portfolio its own. All is computed anew at each step, so that no error adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

import numpy as np

from equipoise.constraints.pieces import Array, Index, Indices, Mask, part
from equipoise.optimizer.lots.points.grid import Grid
from equipoise.optimizer.lots.points.points import SLACK, TIE, first
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton.dual import Dual

_PAIRS = 24, 0.8, 80  # buys and sales that are tried with each other: at least, for each asset, and at most
_STEPS = 50, 4  # at most so many, and so many for each asset
_WORTH = 1e-8  # a move must gain this fraction of the objective
_LEFT = 0.75  # of the portfolios: when fewer are still moving, those that are not are put aside
_FARTHEST = 10.0  # NAV: no move is longer
A = TypeVar("A", Grid, Separable)


@dataclass(frozen=True, eq=False)
class States:
    """Whole-lot plans (B, n) of the portfolios at `at` (B,) of a stack, their objective and violation of rows (B,)."""

    at: Indices
    lots: Array
    closed: Mask
    objective: Array
    violation: Array

    def take(self, which: Index) -> States:
        return States(*(getattr(self, f.name)[which] for f in fields(self)))

    def put(self, which: Index, other: States) -> None:
        for f in fields(self):
            getattr(self, f.name)[which] = getattr(other, f.name)


def better(one: States, other: States) -> Mask:
    """Where the first is better: by the violation, then by the objective."""
    within = one.violation <= SLACK
    lower = (other.violation > SLACK) | (one.objective < other.objective - TIE * np.abs(other.objective))
    return np.asarray(np.where(within, lower, one.violation < other.violation * (1 - 1e-9) - 1e-16))


def evaluated(dual: Dual, grid: Grid, at: Indices, lots: Array, closed: Mask) -> States:
    """These plans of the portfolios at `at`, whose duals and grids are given."""
    point = _at(dual, grid, lots, closed)
    return States(at, lots, closed, point.objective, np.maximum(point.room, 0.0).sum(axis=-1))


class _Here(NamedTuple):
    """A plan: trades, weights, each asset's f, exposures y, by how much rows are missed, and the objective."""

    trades: Array
    weights: Array
    own: Array
    exposure: Array
    room: Array
    objective: Array


def _at(dual: Dual, grid: Grid, lots: Array, closed: Mask) -> _Here:
    k, trades = dual.factors, grid.trades(lots, closed)
    weights = grid.before + trades
    own = dual.assets.value(weights)
    rows = dual.gradient(np.zeros_like(dual.limits), weights)
    exposure = rows[:, :k]
    objective = dual.constant + 0.5 * dual.aversion * np.square(exposure).sum(axis=1) + own.sum(axis=1)
    return _Here(trades, weights, own, exposure, rows[:, dual.rows], objective)


def descended(dual: Dual, grid: Grid, prices: Array, start: States, enough: Array, *, plain: bool) -> States:
    """The plans that moves from these lead to; `dual`, `grid`, the rows' `prices` (B, m) and `enough` are theirs.

    A plan whose objective is not above `enough` (B,) is not improved any more. `plain`: the grids have whole lots only.
    """
    result = States(*(np.array(getattr(start, f.name)) for f in fields(start)))
    left, lots, closed = np.arange(len(start.at)), start.lots.copy(), start.closed.copy()
    ended = np.zeros(len(left), dtype=bool)
    most, more = _STEPS
    for step in range(most + more * lots.shape[1] + 1):
        here = _at(dual, grid, lots, closed)
        violation = np.maximum(here.room, 0.0).sum(axis=-1)
        ended |= (here.objective <= enough) & (violation <= SLACK)
        moves = _Moves.of(dual, grid, here, plain)
        made = moves.single(violation, np.maximum(_WORTH * np.abs(here.objective), 1e-16)) & ~ended[:, None]
        still = np.flatnonzero(~made.any(axis=1) & ~ended)
        if len(still):
            worth = np.maximum(_WORTH * np.abs(here.objective[still]), 1e-16)
            made[still] = moves.take(still).pair(_factors(dual, still), prices[still], violation[still], worth)
        item, move = np.nonzero(made)
        asset = move % lots.shape[1]
        lots[item, asset], closed[item, asset] = moves.lots[item, move], moves.closed[item, move]
        ended |= ~made.any(axis=1)
        last = step == most + more * lots.shape[1]
        if last or ended.all() or np.count_nonzero(~ended) < _LEFT * len(ended):
            which = np.full(len(ended), True) if last else ended
            done = States(start.at[left[which]], lots[which], closed[which], here.objective[which], violation[which])
            result.put(left[which], done)
            if which.all():
                break
            on = np.flatnonzero(~ended)
            left, lots, closed, prices, enough = left[on], lots[on], closed[on], prices[on], enough[on]
            dual, grid, ended = dual.take(on), grid.take(on), ended[on]
    return result


def _factors(dual: Dual, at: Indices) -> Array:
    factors = dual.linear[..., : dual.factors, :]
    return factors[at] if factors.ndim == 3 else np.broadcast_to(factors, (len(at), *factors.shape))


@dataclass(frozen=True, eq=False)
class _Moves:
    """Moves of single assets (B, P·n): the lots they lead to, by how much the weight changes, what that gains of the
    objective (less is better; infinite for a move that is none), and what it adds to each row (B, m, P·n)."""

    lots: Array
    closed: Mask
    change: Array
    gain: Array
    rows: Array
    room: Array
    aversion: float

    def take(self, at: Index) -> _Moves:
        names = ("lots", "closed", "change", "gain", "rows", "room")
        return replace(self, **{name: getattr(self, name)[at] for name in names})

    @classmethod
    def of(cls, dual: Dual, grid: Grid, here: _Here, plain: bool) -> _Moves:
        """To the neighbouring points, to the asset's own best point, to no trade, to a close."""
        (size, n), a = here.trades.shape, dual.aversion
        assets, factors = dual.assets, dual.linear[..., : dual.factors, :]
        pull = a * np.matmul(here.exposure[:, None, :], factors)[:, 0, :]
        own = a * np.square(factors).sum(axis=-2)
        now = here.trades / grid.size
        best = now + _alone(assets, here, pull, own) / grid.size
        points, each = between(grid), between(assets)
        wanted = np.stack([now + 1.0, now - 1.0, np.round(best)], axis=1)
        upwards = np.array([[True], [False], [True]])
        to, shut = points.nearest(wanted, upwards)
        to = np.concatenate([to, np.zeros((size, 1 if plain else 2, n))], axis=1)
        stay = np.zeros((size, 1, n), dtype=bool)
        shut = np.concatenate([shut, stay] if plain else [shut, stay, points.closable], axis=1)
        trades = np.where(shut, -points.before, to * points.size)
        inside = shut | ((to >= points.lowest) & (to <= points.highest))
        weights = points.before + trades
        change = trades - here.trades[:, None, :]
        gain = each.value(weights) - here.own[:, None, :]
        gain += (pull[:, None, :] + 0.5 * np.broadcast_to(own, pull.shape)[:, None, :] * change) * change
        gain[~(inside & (change != 0))] = np.inf
        rows = _row_changes(replace(dual, assets=each), here, weights, trades, change)
        to, change, gain = (x.reshape(size, -1) for x in (to, change, gain))
        return cls(to, shut.reshape(size, -1), change, gain, rows.reshape(size, rows.shape[1], -1), here.room, a)

    def single(self, violation: Array, worth: Array) -> Mask:
        """The best move of each portfolio, if there is one (B, P·n)."""
        return _chosen(self.gain, self._left(), violation, worth)

    def _left(self) -> Array:
        """The violation that each leaves (B, P·n)."""
        return np.asarray(np.maximum(self.room[:, :, None] + self.rows, 0.0).sum(axis=1))

    def pair(self, factors: Array, prices: Array, violation: Array, worth: Array) -> Mask:
        """The best two moves of the most promising buys and sales."""
        size, n = len(self.gain), factors.shape[-1]
        least, each, most = _PAIRS
        count = min(max(least, int(each * n)), most, self.gain.shape[1])
        priced = self.gain + np.matmul(prices[:, None, :], self.rows)[:, 0, :]
        score = np.where((violation > SLACK)[:, None] & (self.gain < np.inf), self._left(), priced)
        item = np.arange(size)[:, None]
        sides = []
        for side in (self.change > 0, self.change < 0):
            order = _least(np.where(side, score, np.inf), count)
            sides.append((order, np.where(side[item, order], self.gain[item, order], np.inf)))
        (up, gain_up), (down, gain_down) = sides
        loaded = [
            np.take_along_axis(factors, (which % n)[:, None, :], axis=2) * self.change[item, which][:, None, :]
            for which in (up, down)
        ]
        gain = self.aversion * np.matmul(loaded[0].transpose(0, 2, 1), loaded[1])
        gain += gain_up[:, :, None]
        gain += gain_down[:, None, :]
        gain[(up % n)[:, :, None] == (down % n)[:, None, :]] = np.inf
        missed = np.zeros_like(gain)
        for j in range(self.rows.shape[1]):
            row = self.rows[:, j]
            room = (self.room[:, j, None] + row[item, up])[:, :, None] + row[item, down][:, None, :]
            missed += np.maximum(room, 0.0, out=room)
        made = _chosen(gain.reshape(size, -1), missed.reshape(size, -1), violation, worth)
        where, which = np.nonzero(made)
        both = np.zeros(self.closed.shape, dtype=bool)
        both[where, up[where, which // count]] = True
        both[where, down[where, which % count]] = True
        return both


def _chosen(gain: Array, left: Array, violation: Array, worth: Array) -> Mask:
    """Of each row the best entry, if it is good enough, as a mask: rows within the rules must gain; others must
    come nearer to them, or into them."""
    item = np.arange(len(gain))
    fine = np.where(left <= SLACK, gain, np.inf)
    best = first(fine, TIE / _WORTH * worth)
    reached = fine[item, best]
    outside = violation > SLACK
    good = np.where(outside, reached < np.inf, reached < -worth)
    lost = np.flatnonzero(outside & ~good)
    if len(lost):
        missed = np.where(gain[lost] < np.inf, left[lost], np.inf)
        least = missed.min(axis=1, keepdims=True)
        nearest = np.where(missed <= least * (1 + 1e-9), gain[lost], np.inf)
        best[lost] = first(nearest, TIE / _WORTH * worth[lost])
        good[lost] = least[:, 0] < violation[lost] * (1 - 1e-6)
    made = np.zeros(gain.shape, dtype=bool)
    made[item[good], best[good]] = True
    return made


def _least(values: Array, count: int) -> Indices:
    """Where so many of the smallest values of each row are: those below the last of them as they stand, then ties."""
    last = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    rank = (values >= last).view(np.uint8) + (values > last).view(np.uint8)
    return np.argsort(rank, axis=1, kind="stable")[:, :count]


def _alone(assets: Separable, here: _Here, pull: Array, own: Array) -> Array:
    """By how much each asset would best change if it were alone: one Newton step."""
    trades = here.trades
    rate = np.where(trades > 0, assets.buy, np.where(trades < 0, np.negative(assets.sell), 0.0))
    slope = pull + assets.curvature * (here.weights - assets.centre) + assets.slope + rate
    with np.errstate(divide="ignore", invalid="ignore"):
        step = -slope / (own + assets.curvature)
    return np.asarray(np.clip(np.nan_to_num(step, posinf=0.0, neginf=0.0), -_FARTHEST, _FARTHEST))


def _row_changes(dual: Dual, here: _Here, weights: Array, trades: Array, change: Array) -> Array:
    """What each move adds to each row: (B, m, P, n)."""
    size, m = len(change), dual.row_count
    rows = np.empty((size, m, *change.shape[1:]))
    linear = dual.linear[..., dual.rows, :]
    if not m:
        return rows
    np.multiply(change[:, None], linear[..., :, None, :], out=rows)
    for name, matrix in dual.kinks.items():
        moved = part(name, weights, trades) - part(name, here.weights, here.trades)[:, None, :]
        rows += moved[:, None] * matrix[..., :, None, :]
    if dual.cost is not None and dual.cost.any():
        paid = dual.trading(trades) - dual.trading(here.trades[:, None, :])
        rows += (dual.horizon * dual.cost)[:, :, None, None] * paid[:, None]
    return rows


def between(arrays: A) -> A:
    """The same arrays with an axis of moves between portfolios and assets."""
    given = {f.name: getattr(arrays, f.name) for f in fields(arrays)}
    return replace(
        arrays, **{k: v[:, None] if isinstance(v, np.ndarray) and v.ndim == 2 else v for k, v in given.items()}
    )
