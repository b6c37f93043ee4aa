"""The best whole-lot plan, proven: branch and bound over the lot bound.

A node is a part of the lots: ranges of every asset. Its bound is that of the hulls of the points left (`bounds.bound`),
with the risk split for the assets that are still mixed. Where the mixture of one asset lies between two of its points,
the node falls into the points below and those above. The node with the least bound comes next, so that the least bound
of all that are left is a proof at any time; the search rounds and improves what the nodes suggest.

Land and Doig (1960) for branch and bound.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from equipoise.constraints.pieces import Array, Mask
from equipoise.optimizer.lots.bounds.bound import LARGEST, LotBound, restricted
from equipoise.optimizer.lots.dive import dived_around
from equipoise.optimizer.lots.points import risk_split as lot_split
from equipoise.optimizer.lots.points.points import SLACK, Integers, Lots, Points
from equipoise.optimizer.lots.polish import FINE, decided, polished
from equipoise.optimizer.lots.search.neighbours import Search, State

_POLISH = 8  # every so many nodes the search goes on from the node's plan, every time while there is no plan
_SEED, _STAYING = 21, 0.85  # of what a search goes on from now and then: the part of the best plan
_DIVE = 80  # every so many nodes a dive around the best plan starts from the node
_MIXED_SHARE = 0.01  # of no trade, or no position, in a mixture that is worth splitting there
_GAP = 1e-6  # of the objective: nodes within it are closed
_MIXED = 1e-9  # of a lot: a mixture that stays this near to its mean is a point


@dataclass(frozen=True, eq=False)
class _Node:
    bound: float
    found: LotBound
    spread: Array

    @cached_property
    def jumps(self) -> list[Lots] | None:
        """The parts that it falls into at a jump; None if no asset jumps."""
        return _jump(self.found, self.spread)

    def __lt__(self, other: _Node) -> bool:
        return self.bound < other.bound


class Tree:
    """The nodes that are left, and the best plan so far: grown by so many nodes at a time.

    `strict`: the search asks for more than the rules do, so that a plan that it refuses is not refuted. `gap`: of the
    objective, within which no better plan is looked for; it may be less than what is asked for in the end.
    """

    def __init__(self, search: Search, root: LotBound, best: State | None, gap: float, *, strict: bool) -> None:
        self.search, self.best, self.scale, self.strict = search, best, root.scale, strict
        self.gap = min(gap, _GAP)
        self.root, self.closed, self.nodes, self.unclear = root.value, np.inf, 0, False
        self.seen, self.rng = 0, np.random.default_rng(_SEED)
        self.worst = _worst(search.allowed)
        spread = np.zeros(len(root.dual.split.own)) if root.spread is None else root.spread
        self.heap = [_Node(root.value, root, spread)]

    @property
    def open(self) -> bool:
        """Whether a node is left that may hold a plan that is better, by more than the gap."""
        return bool(self.heap) and self.heap[0].bound < self.limit

    @property
    def none(self) -> bool:
        """Whether it is proven that there is no plan."""
        return self.best is None and not self.open and not self.unclear

    @property
    def bound(self) -> float:
        """What no plan's objective is below; infinite if there is none."""
        left = min(self.closed, self.heap[0].bound if self.heap else np.inf)
        return max(self.root, min(left, np.inf if self.best is None else self.best.objective))

    def grow(self, nodes: float = np.inf, gap: float = 0.0) -> None:
        """So many nodes more, until the gap is at most this part of the objective, or the time is over."""
        last, clock = self.nodes + nodes, self.search.clock
        while self.open and self.nodes < last and not clock.over:
            if self.best is not None and self.best.objective - self.bound <= gap * abs(self.best.objective):
                break
            node = heapq.heappop(self.heap)
            if node.jumps is None and (node := self._decided(node)).bound >= self.limit:
                self.closed = min(self.closed, node.bound)
                continue
            self._divide(node)

    def _divide(self, node: _Node) -> None:
        """A node's children take its place; one without any is a leaf."""
        before = self.nodes
        for child in self._children(node):
            self.nodes += 1
            if child.bound < self.limit:
                heapq.heappush(self.heap, child)
            else:
                self.closed = min(self.closed, child.bound)
            if self.search.clock.over:
                self._left_out(node)  # the children not seen
                break
        if self.nodes == before:
            self._leaf(node)

    def _leaf(self, node: _Node) -> None:
        """Looks at the only plan of a node."""
        lots = node.found.dual.allowed
        state = self.search.state(*self.search.allowed.snapped(*lots.closest(lots.problem.before)))
        self._seen(state)
        if self.strict and state.violation > SLACK:
            self._left_out(node)

    def _left_out(self, node: _Node) -> None:
        self.closed, self.unclear = min(self.closed, node.bound), True

    @property
    def limit(self) -> float:
        """A node with a bound from here on has no plan that is worth more than the gap."""
        if self.best is None:
            return self.worst
        return self.best.objective - max(self.gap * abs(self.best.objective), 1e-15)

    def _decided(self, node: _Node) -> _Node:
        """The node with the bound of fine lots, and what that suggests as a plan."""
        told = decided(node.found) if self.search.allowed.jumps else None
        if told is None:
            return node
        found, weights = told
        if found.value < self.limit:
            state = self.search.run(self.search.state(*self.search.allowed.closest(weights)))
            self._seen(polished(self.search, state))
        return _Node(max(found.value, node.bound), found, node.spread)

    def _seen(self, state: State) -> None:
        if state.violation <= SLACK and (self.best is None or state.better_than(self.best)):
            self.best = state

    def _children(self, node: _Node) -> Iterator[_Node]:
        found = node.found
        at = found.weights if found.weights is not None else found.dual.allowed.problem.before
        # With fine lots all jumps are decided first: then the bound is that of a convex program.
        fine = np.any(found.dual.allowed.size < FINE)
        parts = node.jumps or (_jump(found, node.spread, mixed=False) if fine else None)
        parts = parts or list(_parts(found.dual.allowed, at, node.spread))
        for allowed in parts:
            yield self._node(allowed, node, at)

    def _node(self, allowed: Lots, parent: _Node, at: Array) -> _Node:
        before, allowed = parent.found, allowed.within_budget()
        split = None
        if np.any(parent.spread > 0) and len(at) <= LARGEST:
            split = lot_split.favouring(allowed.problem.risk, parent.spread)
        found = restricted(before, allowed, split=split, enough=self.limit)
        bound = max(found.value, parent.bound)
        if found.value < self.limit:
            self._suggested(found)
        spread = 0.5 * (parent.spread + found.spread) if found.spread is not None else parent.spread
        spread = np.where(np.arange(len(spread)) == allowed.problem.cash, 0.0, spread)
        return _Node(bound, found, spread)

    def _suggested(self, found: LotBound) -> None:
        """Looks at the plan nearest to a node's mixture, and now and then improves it."""
        if found.weights is None:
            return
        if self.best is not None and self.seen % _DIVE == _DIVE - 1 and self.search.allowed.jumps:
            self.best = dived_around(self.search, found, self.best, self.rng)
        polish = self.seen % _POLISH == 0
        self.seen += 1
        point = self._likely(found, polish) if self.search.allowed.jumps else None
        state = self.search.state(*self.search.allowed.snapped(*point or self.search.allowed.closest(found.weights)))
        if self.best is None or polish:
            state = self.search.run(state)
        self._seen(state)

    def _likely(self, found: LotBound, polish: bool) -> tuple[Integers, Mask] | None:
        """The likeliest point of a node's mixture; to `polish`, one drawn from it around the best plan."""
        best, drawn = self.best, None
        if best is not None and polish:
            drawn = found.drawn(self.rng)
        if best is None or drawn is None:
            return found.likeliest()
        stays = self.rng.random(len(best.lots)) < _STAYING
        return best.kept(stays, *drawn)


def _jump(found: LotBound, spread: Array, *, mixed: bool = True) -> list[Lots] | None:
    """Where the asset that is mixed most jumps from or to no trade, or no position: that alone, and all but that.

    None if no asset jumps there, or, if `mixed`, none that is in both.
    """
    allowed = found.dual.allowed
    if not allowed.jumps or found.mixed is None or found.prices is None:
        return None
    problem, (points, shares) = allowed.problem, found.mixed
    ordered, named = allowed.indicators(points.lots, points.closed)
    held, gone = (shares * ~ordered).sum(axis=0), (shares * (points.closed & ~named)).sum(axis=0)
    held[problem.cash] = gone[problem.cash] = 0.0
    # What the mixture saves against its mean: risk where it spreads, and what an order or a name costs at the prices.
    of_order, of_name = found.dual.jumps_at(found.prices)
    apart = held * (1.0 - held) * (of_order + of_name * (problem.before == 0)) + gone * (1.0 - gone) * of_name
    variance = problem.risk.variances
    saved = 0.5 * problem.aversion * variance * spread + apart
    can_stay = allowed.stays
    several = can_stay.astype(int) + allowed.closable + np.any(np.less_equal(*allowed.intervals), axis=0)
    undecided = allowed.jumping & (several > 1) & (can_stay | allowed.closable)
    if not undecided.any():
        return None
    i = int(np.argmax(np.where(undecided, saved, -1.0)))
    stays = bool(can_stay[i]) and not (
        allowed.closable[i] and min(gone[i], 1.0 - gone[i]) > min(held[i], 1.0 - held[i])
    )
    share = held[i] if stays else gone[i]
    if mixed and not _MIXED_SHARE <= share <= 1.0 - _MIXED_SHARE:
        return None
    return _with_and_without(allowed, i, stays=stays)


def _with_and_without(allowed: Lots, i: int, *, stays: bool) -> list[Lots]:
    """The part where an asset does not trade (`stays`), or ends at no position, and all but that."""
    here = np.arange(len(allowed.size)) == i
    nothing = np.where(here, 0, allowed.lowest), np.where(here, 0, allowed.highest)
    if stays:
        only = replace(allowed, lowest=nothing[0], highest=nothing[1], closable=allowed.closable & ~here)
        rest = replace(allowed, holds=allowed.holds & ~here)
    else:
        # No lots at all: the range is empty, and the close is left.
        only = replace(allowed, lowest=np.where(here, 1, allowed.lowest), highest=nothing[1])
        rest = replace(allowed, closable=allowed.closable & ~here)
    return [part for part in (only, rest) if not len(part.empty())]


def _parts(allowed: Lots, at: Array, spread: Array) -> Iterator[Lots]:
    """The lots below and above the mean of the asset that is mixed most; nothing if only one plan is left."""
    problem = allowed.problem
    points = allowed.around(at)
    points.valid[:, problem.cash] = False
    below, above = points.beside(at)
    variance = problem.risk.variances
    mixed = variance * np.where(np.isfinite(below) & np.isfinite(above) & (above > below), spread, 0.0)
    if np.all(mixed <= np.max(variance) * (_MIXED * allowed.size) ** 2):
        # Nothing is mixed, yet the node is open: any asset with more than one point.
        several = allowed.several()
        if not several.any():
            return
        i = int(np.argmax(several))
        cut = _beside(allowed, points, i)
    else:
        i = int(np.argmax(mixed))
        cut = 0.5 * (below[i] + above[i])
    last = int(np.floor((cut - problem.before[i]) / allowed.size[i]))
    for under in (True, False):
        lowest, highest, closable = allowed.lowest.copy(), allowed.highest.copy(), allowed.closable.copy()
        if under:
            highest[i] = min(highest[i], last)
        else:
            lowest[i] = max(lowest[i], last + 1)
        closable[i] &= (cut > 0) == under
        part = replace(allowed, lowest=lowest, highest=highest, closable=closable)
        if not len(part.empty()):
            yield part


def _beside(allowed: Lots, points: Points, i: int) -> float:
    """A weight between two points of this asset: of those given, or of one of them and the next."""
    near = np.sort(points.weights[points.valid[:, i], i])
    if near[-1] > near[0]:
        return float(0.5 * (near[0] + near[near > near[0]][0]))
    low, high = (edge[:, i] for edge in allowed.intervals)
    before, each = allowed.problem.before, slice(i, i + 1)
    lots = before[i] + allowed.size[i] * np.concatenate([low[low <= high], high[low <= high]])
    ends = np.concatenate([lots, before[each][allowed.stays[each]], np.zeros(1)[allowed.closable[each]]])
    away = ends[np.argmax(np.abs(ends - near[0]))] - near[0]
    return float(near[0] + 0.5 * np.sign(away) * min(allowed.size[i], abs(away)))


def _worst(allowed: Lots) -> float:
    """More than the objective of any plan: a bound above it is a proof that there is none."""
    problem = allowed.problem
    low, high = (problem.before + edge * allowed.size for edge in (allowed.lowest, allowed.highest))
    low[problem.cash], high[problem.cash] = problem.lower[problem.cash], problem.upper[problem.cash]
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    away = np.maximum(np.abs(low - problem.target), np.abs(high - problem.target))
    volatility = np.sqrt(problem.risk.variances)
    cost, size = problem.cost, np.maximum(np.abs(low - problem.before), np.abs(high - problem.before))
    paid = np.maximum(cost.each(size), cost.each(-size)) + (0.0 if problem.fees is None else problem.fees.most)
    carried = np.maximum(cost.carry(low), cost.carry(high))
    return float(0.5 * problem.aversion * (volatility @ away) ** 2 + paid.sum() / problem.horizon + carried.sum())
