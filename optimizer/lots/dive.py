"""A dive: from the mixture of a bound to a plan, by deciding asset by asset what it does at all.

Where orders or positions cost or count for being one, rounding each asset's mean is a poor plan: half an order
everywhere. A dive decides the assets of which the mixture is surest (no trade, no position, or a trade to a position),
bounds what is left again, and goes on until all are decided; the search starts from what each step suggests.

Berthold (2006), Primal Heuristics for Mixed Integer Programs, on diving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from equipoise.constraints.pieces import Mask
from equipoise.optimizer.lots.bounds.bound import LotBound, restricted
from equipoise.optimizer.lots.points.points import SLACK, Lots
from equipoise.optimizer.lots.polish import polished
from equipoise.optimizer.lots.search.neighbours import Search, State

_SURE = 0.9  # a share from which on what an asset does is decided
_PART = 0.25  # of the undecided assets are decided in each step at least
_STEPS = 12
_ROUNDS = 1  # of points added to what is left
_CLOSE = 0.05  # of the objective above the best plan: sizes are looked for
_KEPT = (0.4, 0.6)  # the part of the assets that do what they do in the best plan, when a dive goes around it


def dived(search: Search, bound: LotBound, best: State | None) -> State | None:
    """The better one of this plan and the best that a dive from the bound finds."""
    found, undecided = bound, bound.dual.allowed.jumping.copy()
    for _ in range(_STEPS):
        for state in _suggested(search, found):
            best = _better(search, state, best)
        if found.mixed is None or not undecided.any() or search.clock.over:
            break
        decided, allowed = _decided(found, undecided)
        if len(allowed.empty()):
            break
        undecided &= ~decided
        found = restricted(found, allowed.within_budget(), rounds=_ROUNDS)
        if not np.isfinite(found.value) or (best is not None and found.value >= best.objective):
            break
    return best


def _better(search: Search, state: State, best: State | None) -> State | None:
    """The better plan; one that is nearly as good as the best may be better with its orders in other sizes."""
    if best is None or state.objective <= best.objective + _CLOSE * abs(best.objective):
        state = polished(search, state)
    return state if state.violation <= SLACK and (best is None or state.better_than(best)) else best


def dived_around(search: Search, bound: LotBound, best: State, rng: np.random.Generator) -> State:
    """The better one of this plan and what a dive finds where part of the assets trade, or do not, as they do in it."""
    allowed = bound.dual.allowed
    ordered, _ = allowed.indicators(best.lots, best.closed)
    kept = allowed.jumping & (rng.random(len(ordered)) < rng.choice(_KEPT))
    part = _fixed(allowed, stays=kept & ~ordered, trades=kept & ordered & ~best.closed, ends=kept & best.closed)
    if len(part.empty()):
        return best
    return dived(search, restricted(bound, part.within_budget(), rounds=_ROUNDS), best) or best


def _fixed(allowed: Lots, *, stays: Mask, trades: Mask, ends: Mask) -> Lots:
    """The lots left when these assets do not trade, trade to a position, and end at none."""
    lowest = np.where(stays, 0, np.where(ends, 1, allowed.lowest))
    highest = np.where(stays | ends, 0, allowed.highest)
    closable = np.where(stays | (trades & allowed.apart), False, allowed.closable)
    return replace(allowed, lowest=lowest, highest=highest, closable=closable, holds=allowed.holds & ~trades)


def _suggested(search: Search, found: LotBound) -> Iterator[State]:
    if found.weights is None:
        return
    likeliest = found.likeliest()
    for point in (likeliest, search.allowed.closest(found.weights)):
        if point is not None:
            yield search.run(search.state(*search.allowed.snapped(*point)))


def _decided(found: LotBound, undecided: Mask) -> tuple[Mask, Lots]:
    """The assets that are decided in this step, and the lots that are left."""
    allowed = found.dual.allowed
    assert found.mixed is not None
    points, shares = found.mixed
    ordered, named = allowed.indicators(points.lots, points.closed)
    total = shares.sum(axis=0)
    none, gone = (shares * ~ordered).sum(axis=0) / total, (shares * (points.closed & ~named)).sum(axis=0) / total
    each = np.stack([none, gone, 1.0 - none - gone])
    what, share = np.argmax(each, axis=0), np.where(undecided, np.max(each, axis=0), -1.0)
    many = max(1, int(np.ceil(_PART * np.count_nonzero(undecided))))
    decided = undecided & ((share >= _SURE) | (share >= np.sort(share)[-many]))
    stays, ends, trades = (decided & (what == k) for k in range(3))
    return decided, _fixed(allowed, stays=stays, trades=trades, ends=ends)
