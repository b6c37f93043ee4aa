"""Is there a whole-lot plan at all? A small integer program, asked only where the search found none.

Every rule is linear in buys, sells, long and short parts, so that feasibility in whole lots is a mixed-integer
linear program (HiGHS, through scipy; one thread, a limit on nodes, so that the answer does not depend on the
machine; the clock may end it, too). Cones and costs that bend are met by tangent planes at the points that break
them, round by round: each program allows all that the rules allow, so that one without a solution is a proof.

Rows are in units of `_UNIT` of NAV: HiGHS takes a row for kept within 1e-6, which of NAV would be more than some plans
have room. Only points count that the search's own evaluation finds within the rules.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from equipoise.constraints.pieces import Array, Mask
from equipoise.optimizer.lots.points.points import SLACK
from equipoise.optimizer.problem.counts import least_positions

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

    from equipoise.optimizer.lots.points.points import Integers
    from equipoise.optimizer.lots.search.neighbours import Search, State

#: A matrix (… × variables) of numpy or scipy.sparse, whose types do not follow sparse blocks.
Matrix: TypeAlias = Any
#: (rows, lower, upper)
Limits: TypeAlias = tuple[Matrix, Array | float, Array | float]
#: Nodes: of the program for a point near the convex optimum, and of that for any point, unless asked for more.
_NEAR, NODES = 100, 20_000
_LARGE = 60  # assets beyond which there are fewer nodes, as each takes longer
_UNIT = 1e-4
#: Lots finer than this part of NAV, where there are so many, are taken for continuous; the search rounds them later.
_FINE, _MANY = 1e-7, 1e5
_CUTS = 20  # rounds of tangent planes
_INFEASIBLE = 2  # scipy's status
_BLOCKS = ("bought", "sold", "buys", "sells", "closes")


def feasible(search: Search, optimum: Array, nodes: int = NODES) -> tuple[State | None, bool]:
    """(the best state that the program leads to, or None; whether it is proven that there is no plan)."""
    program = _Program(search)
    best: State | None = None
    for _ in range(_CUTS):
        point, proven = program.solved(_NEAR, optimum)
        if point is None and not proven:
            point, proven = program.solved(nodes * _LARGE // max(_LARGE, program.n))
        if point is None:
            return best, proven and best is None
        state = search.state(*point)
        reached = search.run(state)
        if best is None or reached.better_than(best):
            best = reached
        if best.violation <= SLACK or not program.cut(state):
            return best, False
    return best, False


@dataclass(eq=False)
class _Program:
    """The rules of a search as rows over blocks of n variables:

    lots bought and sold; whether it buys, sells, or closes (0 or 1); where rules ask for them, the long and the short
    part and whether a position is long or short (0 or 1); the distance from the convex optimum; the fee of an order;
    and what bent costs add (one variable).
    """

    search: Search
    planes: list[tuple[Array, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        allowed, self.n = self.search.allowed.within_budget(), len(self.search.problem.assets)
        self.allowed, problem = allowed, self.search.problem
        self.sparse = importlib.import_module("scipy.sparse")
        # These are counted in NAVs: so that no choice of 0 or 1 stands before a large number.
        self.fine = (np.maximum(allowed.highest, -allowed.lowest) >= _MANY) & (allowed.size < _FINE)
        self.unit = np.where(self.fine, 1.0 / allowed.size, 1.0)
        self.size = allowed.size * self.unit
        self.most_bought = np.maximum(allowed.highest, 0) / self.unit
        self.most_sold = np.maximum(-allowed.lowest, 0) / self.unit
        fees, cost = problem.fees, problem.cost
        self.commissions = fees is not None and bool(np.any(fees.minimum > 0))
        self.bends = bool(np.any(cost.quadratic) or np.any(cost.impact))
        sides = bool({"long", "short"} & set(self.search.parts)) or bool(allowed.apart.any())
        names = [*_BLOCKS, *(("long", "short") if sides else ())]
        names += ["longs", "shorts"] if allowed.apart.any() else []
        names += ["distance", *(["fee"] if self.commissions else [])]
        self.at = {name: np.arange(k * self.n, (k + 1) * self.n) for k, name in enumerate(names)}
        self.width = len(names) * self.n + 1  # the last: what bent costs add

    def over(self, **columns: Array | float) -> Matrix:
        """A sparse matrix (n × variables) with these diagonals in their blocks."""
        rows = np.tile(np.arange(self.n), len(columns))
        places = np.concatenate([self.at[name] for name in columns])
        values = np.concatenate([np.broadcast_to(x, self.n) for x in columns.values()])
        return self.sparse.csr_array((values, (rows, places)), shape=(self.n, self.width))

    @cached_property
    def traded(self) -> tuple[Matrix, Matrix]:
        """z⁺ and z⁻ (n × variables) of all but the cash."""
        problem = self.search.problem
        others = np.arange(self.n) != problem.cash
        before, size = problem.before * others, self.size * others
        return (
            self.over(bought=size, closes=np.maximum(-before, 0.0)),
            self.over(sold=size, closes=np.maximum(before, 0.0)),
        )

    @cached_property
    def trades(self) -> Matrix:
        """z (n × variables), with the cash's before costs."""
        others = self.traded[0] - self.traded[1]
        paid = -others.sum(axis=0)
        where = np.flatnonzero(paid)
        at_cash = (np.full(len(where), self.search.problem.cash), where)
        return others + self.sparse.csr_array((paid[where], at_cash), shape=others.shape)

    @cached_property
    def price(self) -> Array:
        """What trading costs, as a row: rates and fees, and the variable that bent costs are above."""
        problem, (buys, sales) = self.search.problem, self.traded
        price = problem.cost.buy @ buys + problem.cost.sell @ sales
        if self.commissions:
            price[self.at["fee"]] = 1.0
        elif problem.fees is not None:
            price = price + problem.fees.most @ self.over(buys=1.0, sells=1.0, closes=1.0)
        price[-1] = float(self.bends)
        return np.asarray(price)

    def rules(self) -> tuple[Array, Array]:
        """(rows, upper) of all rules in rows."""
        search, problem = self.search, self.search.problem
        parts = {"weight": self.trades, "buy": self.traded[0], "sell": self.traded[1]}
        if "long" in self.at:
            parts |= {name: self.over(**{name: 1.0}) for name in ("long", "short")}
        rows = search.cost_weight[:, None] * self.price
        for name, coefficients in search.parts.items():
            rows = rows + coefficients @ parts[name]
        upper = search.upper - search.parts["weight"] @ problem.before
        finite = np.isfinite(upper)
        return rows[finite], upper[finite]

    def constraints(self) -> list[Limits]:
        """(rows, lower, upper) of everything: rules in units of `_UNIT`, then choices."""
        problem, allowed, one = self.search.problem, self.allowed, 1.0
        rows, upper = self.rules()
        found: list[Limits] = [(rows / _UNIT, -np.inf, upper / _UNIT)]
        found += [(plane[None] / _UNIT, -np.inf, limit / _UNIT) for plane, limit in self.planes]
        if "long" in self.at:  # w = long − short
            position = (self.trades - self.over(long=one, short=-one)) / _UNIT
            found.append((position, -problem.before / _UNIT, -problem.before / _UNIT))
        # Nothing, at least the minimum on one side, or the close.
        least = np.minimum(allowed.least, 2**40) / self.unit
        found += [
            (self.over(bought=one, buys=-self.most_bought), -np.inf, 0.0),
            (self.over(sold=one, sells=-self.most_sold), -np.inf, 0.0),
            (self.over(bought=one, buys=-least), 0.0, np.inf),
            (self.over(sold=one, sells=-least), 0.0, np.inf),
            (self.over(buys=one, sells=one, closes=one), -np.inf, 1.0),
        ]
        # An asset that must trade (its range excludes zero) says so; a close counts as being anywhere in the range.
        up, down = np.maximum(allowed.lowest, 0) / self.unit, np.maximum(-allowed.highest, 0) / self.unit
        if up.any() or down.any():
            total = self.over(bought=one, sold=-one)
            found.append(((total + self.over(closes=up + down))[up > 0], up[up > 0], np.inf))
            found.append(((total - self.over(closes=up + down))[down > 0], -np.inf, -down[down > 0]))
        return found + self._fees() + self._counts() + self._positions()

    def _fees(self) -> list[Limits]:
        """A fee is at least the fixed one, and at least what the commission lacks to its minimum."""
        fees = self.search.problem.fees
        if fees is None or not self.commissions:
            return []
        paid, commission = self.over(fee=1.0), self.sparse.diags_array(fees.rate) @ (self.traded[0] + self.traded[1])
        fixed, most = (self.over(buys=x, sells=x, closes=x) for x in (fees.fixed / fees.nav, fees.most))
        return [((x - paid) / _UNIT, -np.inf, 0.0) for x in (fixed, most - commission)]

    def _counts(self) -> list[Limits]:
        counts = self.search.counts
        if not len(counts.upper):
            return []
        rows = counts.orders @ self.over(buys=1.0, sells=1.0, closes=1.0)
        if "longs" in self.at:
            rows = rows + counts.names @ self.over(longs=1.0, shorts=1.0)
        return [(rows, -np.inf, counts.upper)]

    def _positions(self) -> list[Limits]:
        """A position whose zero stands apart is long, short, or none, and of its least size."""
        problem, apart, one = self.search.problem, self.allowed.apart, 1.0
        if not apart.any():
            return []
        smallest = np.array([float(x) for x in least_positions(problem)]) / problem.portfolio.nav
        largest = np.abs(problem.before) + np.maximum(self.most_bought, self.most_sold) * self.size
        found: list[Limits] = [(self.over(longs=one, shorts=one), -np.inf, 1.0)]
        for side, part in (("longs", "long"), ("shorts", "short")):
            up, down = (self.over(**{part: one, side: -edge})[apart] / _UNIT for edge in (largest, smallest))
            found += [(up, -np.inf, 0.0), (down, 0.0, np.inf)]
        return found

    def bounds(self) -> tuple[Array, Array, Integers]:
        """(lower, upper, whether it is whole) of the variables."""
        allowed, cash = self.allowed, self.search.problem.cash
        lower, upper, whole = np.zeros(self.width), np.full(self.width, np.inf), np.zeros(self.width)
        upper[self.at["bought"]], upper[self.at["sold"]] = self.most_bought, self.most_sold
        whole[self.at["bought"]] = whole[self.at["sold"]] = ~self.fine
        for name in ("buys", "sells", "closes", "longs", "shorts"):
            if name in self.at:
                whole[self.at[name]], upper[self.at[name]] = 1.0, 1.0
        upper[self.at["closes"]] = allowed.closable
        for name in ("longs", "shorts"):
            if name in self.at:
                upper[self.at[name]] = allowed.apart
        upper[[self.at[name][cash] for name in _BLOCKS]] = 0.0
        return lower, upper, whole.astype(np.int64)

    def solved(self, nodes: int, near: Array | None = None) -> tuple[tuple[Integers, Mask] | None, bool]:
        """(a point, one with a small Σ|w − w*| if asked for, or None; whether None is proven)."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        rows, goal = self.constraints(), np.zeros(self.width)
        if near is not None:
            goal[self.at["distance"]] = 1.0
            away, far = near - self.search.problem.before, self.over(distance=1.0)
            rows += [(self.trades - far, -np.inf, away), (self.trades + far, away, np.inf)]
        given = [LinearConstraint(self.sparse.csr_array(a), low, high) for a, low, high in rows]
        lower, upper, whole = self.bounds()

        def tried(**options: bool) -> OptimizeResult:
            left = self.search.clock.left
            limit = {} if left == np.inf else {"time_limit": max(left, 1e-3)}
            asked: Any = {"node_limit": nodes, "mip_rel_gap": 0.05, **limit, **options}
            return milp(goal, constraints=given, bounds=Bounds(lower, upper), integrality=whole, options=asked)

        found = tried()
        if found.x is None:
            # Said twice, with and without the solver's own reductions.
            return None, found.status == _INFEASIBLE and tried(presolve=False).status == _INFEASIBLE
        closed = found.x[self.at["closes"]] > 0.5
        lots = np.round((found.x[self.at["bought"]] - found.x[self.at["sold"]]) * self.unit).astype(np.int64)
        # A continuous number between two points, or one that ends at a zero that stands apart.
        return self.search.allowed.snapped(np.where(closed, 0, lots), closed), False

    def cut(self, state: State) -> bool:
        """Adds the tangent planes at a state that breaks cones or bends costs; whether there are any."""
        before, problem = len(self.planes), self.search.problem
        for _, cone in problem.cones:
            if (length := cone.of(state.weights)) > cone.upper:
                away = state.weights - cone.centre
                normal = (cone.matrix.T @ (cone.matrix @ away) + cone.diagonal**2 * away) / length
                limit = cone.upper + normal @ cone.centre - normal @ problem.before
                self.planes.append((normal @ self.trades, float(limit)))
        if self.bends:
            size, cost = np.abs(state.weights - problem.before), problem.cost
            size[problem.cash] = 0.0
            slope = 2.0 * cost.quadratic * size + 1.5 * cost.impact * np.sqrt(size)
            value = cost.quadratic * size**2 + cost.impact * size**1.5
            row = slope @ (self.traded[0] + self.traded[1])
            row[-1] -= 1.0
            self.planes.append((row, float(slope @ size - value.sum())))
        return len(self.planes) > before
