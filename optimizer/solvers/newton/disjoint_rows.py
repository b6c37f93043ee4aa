"""The dual of a problem with many rows that share no asset: each of their prices is found by itself, inside the dual.

Limits of many groups, each asset in one, price every group's assets apart from all others: given the prices of the
factors and of the rows that couple groups, the best price t of group g is the zero of a falling function of one
variable, what the group's assets leave of their row. So the dual is maximised over those prices wherever it is
evaluated, and Newton's method (`iteration`) is left with the few prices that couple. The function that it sees is
concave again, its gradient is that of the dual at these prices, and its curvature that of the dual less what the
groups' prices give way (the Schur complement): with the slopes J of the coupling rows and a of the groups' rows,

    Σᵢ J̃ᵢJ̃ᵢᵀ/fᵢ″,   J̃ᵢ = Jᵢ − aᵢ·(Σ aJ/f″)/(Σ a²/f″),   the sums over the group of i, if its price is not 0.

A ceiling and a floor of one group are one row with a price of either sign: above 0 it is the ceiling's, below 0 that
of the floor. Source: partial maximisation of a concave function (Boyd and Vandenberghe 2004, 3.2.5 and A.5.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array, Index
from equipoise.optimizer.problem.threshold import Separable
from equipoise.optimizer.solvers.newton.dual import ALL, NOTHING, Dual, Point
from equipoise.optimizer.solvers.newton.iteration import EXACT, FAR, MANY, Ends, iterated

FEW, LEAST = MANY, MANY // 2  # rows in all for which this is not worth while, and groups for which it is
SEARCHES = 80  # for the zeros of all groups
SETTLED = 0.1 * EXACT  # what may be left of a group's row, in NAV
HALVING = 3  # once in so many searches, after the first few, the middle is tried
WIDEST = 2.0 * FAR  # a price beyond which none is looked for: nothing keeps this row


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows of one problem that share no asset; `ceiling` and `floor` are places among the dual's rows."""

    ceiling: NDArray[np.intp]  # (G,)
    floor: NDArray[np.intp]  # (G,): the row that is the other side of the band; −1: there is none
    of: NDArray[np.intp]  # (n,): the group of each asset; G: none
    order: NDArray[np.intp]  # the assets of groups, group by group
    starts: NDArray[np.intp]  # (G,): where in this order each begins
    rows: NDArray[np.bool_]  # (m,): the dual's rows that are these, or no lower

    def __len__(self) -> int:
        return len(self.ceiling)

    def sums(self, values: Array) -> Array:
        """Σ over each group, along the last axis: (…, n) to (…, G)."""
        return np.asarray(np.add.reduceat(values[..., self.order], self.starts, axis=-1))

    def spread(self, values: Array) -> Array:
        """Each group's value at its assets, 0 elsewhere: (…, G) to (…, n)."""
        nothing = np.zeros((*values.shape[:-1], 1))
        return np.concatenate([values, nothing], axis=-1)[..., self.of]


@dataclass(frozen=True, eq=False, kw_only=True)
class Grouped(Dual):
    """The dual of one problem in the prices that couple; those of the groups come last, and follow from these."""

    groups: Groups
    unit: Separable  #: what a price of 1 of each group's row adds to its assets
    floors: Array  #: (1, G): below which a group may not be; −inf: nothing says so
    full: Dual  #: the same with all its rows

    @property
    def coupling(self) -> int:
        return int(self.limits.shape[1]) - len(self.groups)

    @property
    def row_count(self) -> int:
        return self.coupling - self.factors - self.budget

    def take(self, at: Index, of: Dual | None = None) -> Dual:
        """Itself: there is one problem, and nobody asks for none."""
        return self

    def change(self, prices: Array) -> Separable:
        change = super().change(prices[:, : self.coupling])
        return change.plus(self.unit, self.groups.spread(prices[:, self.coupling :]))

    def sizes(self, prices: Array) -> Array:
        own = np.abs(self.groups.spread(prices[:, self.coupling :]) * self.unit.slope)
        return np.asarray(super().sizes(prices[:, : self.coupling]) + own)

    def gradient(self, prices: Array, weights: Array) -> Array:
        """What the weights leave of each row, and of each group's row, if that is not as its price says."""
        left = self._left(self.whole(prices)[:, self.coupling :], weights)
        return np.append(super().gradient(prices, weights), left, axis=1)

    def _left(self, price: Array, weights: Array) -> Array:
        """By how much each group's row is above what its price (1, G) says: below 0 if it is lower."""
        value = self.groups.sums(self.unit.value(weights))
        above, below = value - self.limits[:, self.coupling :], value - self.floors
        kinked = np.maximum(above, np.minimum(below, 0.0))
        return np.where(price > 0, above, np.where(price < 0, below, kinked))

    def settled(self, assets: Separable, prices: Array) -> tuple[Separable, Array, Array, Array]:
        """The assets at the best prices of the groups, by Newton's method between brackets."""
        unit, given = self.seen(self.unit), prices[:, self.coupling :]
        zero = np.zeros_like(given) if self.base is None else -self.base[:, self.coupling :]
        steepest = self._steepest(assets)
        low, high, price = np.full_like(given, -np.inf), np.full_like(given, np.inf), given
        for turn in range(SEARCHES):
            there = assets.plus(unit, self.groups.spread(price - given)) if turn else assets
            weights, moves = there.response()
            left = self._left(price - zero, weights)
            low, high = np.where(left > 0, price, low), np.where(left < 0, price, high)
            curvature = self.groups.sums(moves * np.square(self.slope(weights)))
            free = curvature > 1e-9 * steepest
            goal = price + left / np.where(free, curvature, steepest * 0.25**turn)
            # At 0 the price turns from the ceiling's to the floor's.
            goal = np.where((price - zero) * (goal - zero) < 0, zero, goal)
            goal = np.clip(goal, zero - WIDEST, zero + WIDEST)
            outside = (goal <= low) | (goal >= high) | ((turn > HALVING) & (turn % HALVING == 0))
            with np.errstate(invalid="ignore"):
                middle = 0.5 * (low + high)
            goal = np.where(outside & np.isfinite(middle), middle, goal)
            goal = np.where(np.abs(left) <= SETTLED, price, goal)
            if np.all(goal == price) or turn == SEARCHES - 1:
                break
            price = goal
        return there, np.append(prices[:, : self.coupling], price, axis=1), weights, moves

    def ray(self, prices: Array) -> Array:
        """Far out, so that the objective counts for nothing in what is best for the groups there."""
        whole, rows = self.whole(prices), slice(self.factors, self.coupling)
        size = np.abs(whole[:, rows]).sum()
        if size > 0:
            whole = whole.copy()
            whole[:, rows] *= FAR / size
            prices = whole if self.base is None else whole - self.base
            whole = self.whole(self.settled(self.priced(prices), prices)[1])
        return whole

    def _steepest(self, assets: Separable) -> Array:
        """The curvature of each group's price if all its assets were free."""
        stiffness = np.asarray(assets.curvature + 2.0 * assets.quadratic)
        kinks = [np.abs(getattr(self.unit, name)) for name in self.kinks]
        steepest = np.square(np.abs(self.unit.slope) + sum(kinks))
        return np.maximum(self.groups.sums(steepest / stiffness), np.finfo(float).tiny)

    def slope(self, weights: Array) -> Array:
        """a: the slope of each asset's own group's row (1, n)."""
        slope, trades = np.asarray(self.unit.slope), weights - self.assets.before
        for names, signed in ((("long", "short"), weights), (("buy", "sell"), trades)):
            if names[0] in self.kinks:
                up, down = (getattr(self.unit, name) for name in names)
                slope = slope + np.where(signed > 0, up, np.where(signed < 0, -down, 0.0))
        return np.broadcast_to(slope, weights.shape)

    def slopes(self, weights: Array, which: Index = ALL) -> Array:
        return super().slopes(weights, np.arange(self.coupling) if which is ALL else which)

    def curvature(self, point: Point, which: Index = ALL) -> Array:
        """Of the function that the coupling prices see: with the groups' prices at their best."""
        own, given = self.slope(point.weights), self.whole(point.prices)[:, self.coupling :]
        within = self.groups.sums(point.moves * np.square(own))
        gives = np.where((given != 0) & (within > 0), 1.0 / np.where(within > 0, within, 1.0), 0.0)
        slopes = self.slopes(point.weights, which)
        across = self.groups.sums(slopes * (point.moves * own)[:, None, :]) * gives[:, None, :]
        return self.squared(slopes - self.groups.spread(across) * own[:, None, :], point.moves, which)

    def bound(self, prices: Array, *, objective: float = 1.0) -> Array:
        return self.full.bound(self.of_all(prices), objective=objective)

    def of_all(self, prices: Array) -> Array:
        """The prices of all rows."""
        result, k, groups = np.zeros_like(self.full.limits), self.factors, self.groups
        result[:, _coupling(self.full, groups)] = prices[:, : self.coupling]
        price = prices[:, self.coupling :]
        result[:, k + groups.ceiling] = np.maximum(price, 0.0)
        banded = groups.floor >= 0
        result[:, k + groups.floor[banded]] = np.maximum(-price, 0.0)[:, banded]
        return result


def ends(dual: Dual, proximal: float) -> Ends | None:
    """Where the iteration ends with the prices of groups inside the dual; None where few rows share no asset."""
    if dual.row_count <= FEW:
        return None
    found = []
    for i in range(dual.size):
        one = dual.take(slice(i, i + 1))
        groups = _disjoint(one)
        if len(groups) < LEAST:
            return None
        grouped = _grouped(one, groups)
        end = iterated(grouped, proximal)
        found.append(end._replace(prices=grouped.of_all(end.prices)))
    return Ends(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _matrices(dual: Dual) -> dict[str, Array]:
    """The linear parts of the rows and their kinks, (m, n)."""
    every = {"slope": dual.linear[..., dual.rows, :], **dual.kinks}
    return {name: matrix[0] if matrix.ndim == 3 else matrix for name, matrix in every.items()}


def _disjoint(dual: Dual) -> Groups:
    """Rows that share no asset, without costs: those of fewest assets first, in their order; with their other sides."""
    m, n = dual.row_count, dual.assets.before.shape[1]
    matrices = _matrices(dual)
    row, asset = np.nonzero(np.any([matrix != 0 for matrix in matrices.values()], axis=0))
    begin = np.searchsorted(row, np.arange(m + 1))
    count, limits = np.diff(begin), dual.limits[0, dual.rows]
    eligible = (count > 0) & np.isfinite(limits)
    if dual.cost is not None:
        eligible &= ~dual.cost.reshape(m, -1).any(axis=1)
    chosen, free = [], np.ones(n, dtype=bool)
    for r in np.argsort(count, kind="stable"):
        its = asset[begin[r] : begin[r + 1]]
        if eligible[r] and free[its].all():
            free[its] = False
            chosen.append(r)
    of = np.full(n, len(chosen))
    for g, r in enumerate(chosen):
        of[asset[begin[r] : begin[r + 1]]] = g
    order = np.argsort(of, kind="stable")[: np.count_nonzero(~free)]
    groups = Groups(
        ceiling=np.array(chosen, dtype=np.intp),
        floor=np.full(len(chosen), -1),
        of=of,
        order=order,
        starts=np.searchsorted(of[order], np.arange(len(chosen))),
        rows=np.isin(np.arange(m), chosen),
    )
    return _with_parallels(groups, matrices, limits, eligible) if len(chosen) else groups


def _with_parallels(groups: Groups, matrices: dict[str, Array], limits: Array, eligible: NDArray[np.bool_]) -> Groups:
    """With the lowest of the ceilings, and of the floors, that are the same sum of each group without kinks."""
    own = matrices["slope"][groups.ceiling]
    straight = eligible & ~np.any([matrix.any(axis=1) for name, matrix in matrices.items() if name != "slope"], axis=0)
    ceiling, floor, rows = groups.ceiling.copy(), groups.floor.copy(), groups.rows.copy()
    first = np.argmax(matrices["slope"] != 0, axis=1)
    for sign, side in ((1.0, ceiling), (-1.0, floor)):
        for r in np.flatnonzero(straight & ~rows & (groups.of[first] < len(groups))):
            g = groups.of[first[r]]
            same = straight[ceiling[g]] and np.array_equal(sign * matrices["slope"][r], own[g])
            # A floor above its ceiling is left to the coupling rows, whose prices prove it.
            if same and (sign > 0 or limits[r] + limits[ceiling[g]] >= 0):
                rows[r] = True
                if side[g] < 0 or limits[r] < limits[side[g]]:
                    side[g] = r
    return replace(groups, ceiling=ceiling, floor=floor, rows=rows)


def _coupling(dual: Dual, groups: Groups) -> NDArray[np.bool_]:
    """Which prices of the dual are not those of groups."""
    prices = np.ones(dual.limits.shape[1], dtype=bool)
    prices[dual.rows] = ~groups.rows
    return prices


def _grouped(dual: Dual, groups: Groups) -> Grouped:
    k, rows, prices = dual.factors, ~groups.rows, _coupling(dual, groups)
    place = np.cumsum(rows) - 1
    asset = np.flatnonzero(groups.of < len(groups))
    row = groups.ceiling[groups.of[asset]]
    unit = {}
    for name, matrix in _matrices(dual).items():
        unit[name] = np.zeros((1, dual.assets.before.shape[1]))
        unit[name][0, asset] = matrix[row, asset]
    limits = dual.limits[0, k:]
    bands = []
    for one, other, opposite in dual.bands:
        both = rows[one] & rows[other]
        bands.append((place[one[both]], place[other[both]], np.atleast_2d(opposite)[:, both]))
    return Grouped(
        **{name: getattr(dual, name) for name in ("assets", "constant", "factors", "aversion", "horizon", "budget")},
        linear=np.ascontiguousarray(dual.linear[..., prices, :]),
        limits=np.append(dual.limits[:, prices], limits[None, groups.ceiling], axis=1),
        kinks={name: matrix[..., rows, :] for name, matrix in dual.kinks.items()},
        cost=None if dual.cost is None else dual.cost[:, rows],
        bands=tuple(bands),
        groups=groups,
        unit=replace(dual.assets, **(NOTHING | unit)),
        floors=np.where(groups.floor >= 0, -limits[groups.floor], -np.inf)[None],
        full=dual,
    )
