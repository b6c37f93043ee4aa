"""Levels of effort: from the first whole-lot plan on, as long as its gap is open.

Each level improves the bound (`bounds.bound`), searches from the lots that the bound likes best and from draws around
them, and, where orders or positions cost or count for being one, dives (`lots.dive`); where the gap stays wide it grows
some nodes of the tree (`branch_and_bound`). The next level starts from the plan, the bound and the tree that the one
before left, so that more effort goes further on the same way. Draws and dives are seeded, each level's by its own
seed: the same problem has the same plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from equipoise.constraints.pieces import Figure
from equipoise.optimizer.lots.bounds.bound import Ascent, LotBound
from equipoise.optimizer.lots.branch_and_bound import Tree
from equipoise.optimizer.lots.dive import dived, dived_around
from equipoise.optimizer.lots.points.points import Lots
from equipoise.optimizer.lots.search.neighbours import Search, State, best_of
from equipoise.optimizer.problem.effort import Clock
from equipoise.optimizer.problem.solution import Solution

_RESTARTS, _PATIENCE = 12, 6  # in each level of effort: draws, and draws without a better plan
_OF_JUMPS = 3  # times as many where orders or positions cost or count for being one
WORTH, NEAR = 1e-7, 0.05  # of the objective: what makes a plan better, and the gap at which patience ends
GAP_RELATIVE, GAP_ABSOLUTE = 1e-4, 1e-8  # a gap this small is not worth an effort: of the objective, of NAV
SEED = 20
STAYING = (0.0, 0.75)  # the part of the assets that stay where they are in the best plan, in turn
STAYING_OF_JUMPS = (0.75, 0.9, 0.85, 0.5)
_DIVE = 6  # where there are jumps, every so many turns a dive takes the place of a draw
_EXACT_SPLITS = 4  # of the root of a branch and bound in exact mode
_NODES = 40  # of a branch and bound in each level of effort


@dataclass(frozen=True, eq=False)
class Found:
    """A search, and the best plan that it has found."""

    search: Search
    best: State


def close(objective: Figure) -> Figure:
    """The gap at which no more effort is spent."""
    return np.maximum(GAP_RELATIVE * abs(objective), GAP_ABSOLUTE)


class Way:
    """The way from the first plan on: the best plan, the bound, and, once it is needed, the tree of nodes."""

    def __init__(
        self,
        allowed: Lots,
        solution: Solution,
        found: Found | None,
        everywhere: Callable[[], Search],
        *,
        gap: float,
        strict: bool,
        clock: Clock,
    ) -> None:
        self.allowed, self.found, self.everywhere, self.clock = allowed, found, everywhere, clock
        self.exactly, self.strict = gap, strict
        self.ascent = Ascent(allowed, solution, self.enough, clock)
        self.tree: Tree | None = None

    @property
    def bound(self) -> float:
        return max(self.ascent.best.value, self.tree.bound if self.tree is not None else -np.inf)

    @property
    def gap(self) -> float:
        return np.inf if self.found is None else self.found.best.objective - self.bound

    @property
    def enough(self) -> float:
        """The bound at which no more effort is spent."""
        return np.inf if self.found is None else self.found.best.objective - close(self.found.best.objective)

    @property
    def arrived(self) -> bool:
        return self.bound >= self.enough or (self.tree is not None and not self.tree.open)

    def level(self, level: int) -> None:
        """One level of effort: a better bound, the search from where it says that lots are best, and some nodes."""
        before = self.ascent.best
        bound = self.ascent.climbed(1 + level, self.enough)
        if self.found is not None and not self.arrived:
            self.found = improved(self.found, replace(bound, value=self.bound), level, fresh=bound is not before)
        # Where orders cost or count, draws can miss the plan that a few nodes find.
        far = self.found is None or self.gap > NEAR * abs(self.found.best.objective)
        if not self.arrived and (self.found is None or level > 1 or (far and self.allowed.jumps)):
            self.grow(_NODES)

    def to_the_end(self) -> None:
        """Branch and bound until the gap is as small as asked for."""
        enough = np.inf
        if self.found is not None:
            enough = self.found.best.objective - self.exactly * abs(self.found.best.objective)
            if self.bound >= enough:
                return
        if self.tree is None:
            self.ascent.climbed(_EXACT_SPLITS, enough)
        self.grow(np.inf, self.exactly)

    def grow(self, nodes: float, gap: float = 0.0) -> None:
        """So many nodes of branch and bound, from the best plan on."""
        best = self.found.best if self.found is not None else None
        if self.tree is None:
            self.tree = Tree(self.everywhere(), self.ascent.best, best, self.exactly, strict=self.strict)
        if best is not None:
            self.tree.best = best
        self.tree.grow(nodes, gap)
        if self.tree.best is not None and self.tree.best is not best:
            self.found = Found(self.found.search if self.found is not None else self.tree.search, self.tree.best)


def improved(found: Found, bound: LotBound, level: int, *, fresh: bool) -> Found:
    """The best plan from where the bound says that lots are best, if that is `fresh`, and from draws around there.

    The draws are each level's own.
    """
    search, best, allowed = found.search, found.best, found.search.allowed
    if bound.weights is None or bound.spread is None or bound.prices is None:
        return found
    if fresh:
        liked = bound.weights, bound.dual.at(bound.prices).points.weights[0]
        best = best_of([best, *(search.run(search.state(*allowed.closest(weights))) for weights in liked)])
        if allowed.jumps and best.objective - bound.value > close(best.objective):
            best = dived(search, bound, best) or best
    return replace(found, best=_around(search, bound, best, level))


def _around(search: Search, bound: LotBound, best: State, level: int) -> State:
    """The best plan of several turns around the best so far, as long as there is a gap and patience."""
    jumps, last = search.allowed.jumps, 0
    rng = np.random.default_rng(SEED if level == 1 else (SEED, level))
    more = _OF_JUMPS if jumps else 1
    for turn in range(_RESTARTS * more):
        gap = best.objective - bound.value
        patient = turn - last < _PATIENCE * more or not (jumps or gap <= NEAR * abs(best.objective))
        if gap <= close(best.objective) or not patient or search.clock.over:
            break
        reached = _turn(search, bound, best, rng, turn)
        if reached is not best:
            best, last = reached, turn
    return best


def _turn(search: Search, bound: LotBound, best: State, rng: np.random.Generator, turn: int) -> State:
    """The better one of this plan and what is reached from a draw around it, or by a dive."""
    allowed, worth = search.allowed, abs(best.objective)
    if allowed.jumps and turn % _DIVE == _DIVE - 1 and best.objective - bound.value > NEAR * worth:
        return dived_around(search, bound, best, rng)
    assert bound.weights is not None and bound.spread is not None
    # The hulls' mixture of lots: drawn by its shares where it jumps, or by its means and spreads.
    likely = bound.drawn(rng) if allowed.jumps else None
    drawn = bound.weights + np.sqrt(bound.spread) * rng.standard_normal(len(bound.weights))
    lots, closed = allowed.snapped(*likely) if likely else allowed.closest(drawn)
    staying = STAYING_OF_JUMPS if allowed.jumps else STAYING
    stays = rng.random(len(lots)) < staying[turn % len(staying)]
    reached = search.run(search.state(*best.kept(stays, lots, closed)))
    return reached if reached.better_than(best, WORTH * worth) else best
