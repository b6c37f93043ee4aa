"""The problem as a cvxpy program, compiled.

It is compiled once for each structure (which assets are fixed or bounded, which coefficients each row has)
with the numbers as parameters, by cvxpy's rules for disciplined parametrised programs (DPP), and shared by
all portfolios of that structure. Absent coefficients are left out: parameters that are mostly zero cost time.

    minimise   ½‖F(w − b)‖² + ½‖d∘(w − b)‖² + t/horizon + carry(v⁺, v⁻)
    subject to w = w₀ + u⁺ − u⁻,  Σ w = 1,  φ(u⁺, u⁻) ≤ t,  rows with t as the cost,  cones,  bounds,  envelopes

u⁺, u⁻ ≥ 0 and v⁺, v⁻ ≥ 0 (w = v⁺ − v⁻) may overlap in a solver's answer; by the rows' convexity the netted
trades keep every row all the more. cvxpy is imported when the first program is compiled.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Prices
from equipoise.optimizer.solvers.program.envelopes import Epigraph
from equipoise.optimizer.solvers.program.structure import Structure, indices
from equipoise.optimizer.solvers.program.supporting_plane import priced_plane

_CACHE_SIZE = 64
_cache = threading.local()  # A cvxpy problem must not be shared between threads.

#: A limit of this many times the NAV is none.
NO_LIMIT = 1e6


class Raw(NamedTuple):
    """What a solver said: weights and prices (None if it has none), of `problem`, which is the one that was given with
    the rows that the prices made of its envelopes; and by how much the limits gave way, of an elastic program."""

    said: str
    weights: Array | None
    prices: Prices | None
    problem: Problem
    excess: float = np.nan


class Gives(NamedTuple):
    """For an elastic program: by how many times the one excess each limit gives way, which is made least; 0: hard.

    One number for each of the problem's rows, cones and envelopes; for lower and upper bounds one for each asset.
    `inside`: limits that can be kept are kept by this much, if they can: inside, every solver finds a point.
    """

    rows: Array
    cones: Array
    envelopes: Array
    lower: Array
    upper: Array
    inside: float

    @classmethod
    def all(cls, problem: Problem, value: float, inside: float) -> Gives:
        """The same for all limits."""
        rows, cones, envelopes = (
            np.full(len(part), value) for part in (problem.rows.rows, problem.cones, problem.envelopes)
        )
        return cls(rows, cones, envelopes, np.full(problem.shape, value), np.full(problem.shape, value), inside)


class Program:
    """One compiled structure: `fill` it with a problem's numbers, then solve."""

    def __init__(self, structure: Structure, problem: Problem | None = None) -> None:
        """`problem` is needed only for custom rules and envelopes, whose expressions belong to one portfolio."""
        import cvxpy as cp

        self.structure = s = structure
        n = s.assets
        self._links: list[Any] = []  # equalities that define auxiliary variables, as DPP wants them
        self._filled: list[tuple[Any, Any]] = []  # (parameter, its value as a function of the problem and scale)
        self._given: list[tuple[Any, Any]] = []  # (parameter, its value as a function of what gives way)
        self._excess = cp.Variable() if s.elastic else None

        self.weights = w = cp.Variable(n, name="w")
        away = cp.Variable(n, name="w - b")
        # Each account pays its own costs; there is one unless `budgets` says otherwise.
        spends, pays = self._accounts()
        self._cost = t = cp.Variable(len(spends), name="cost")
        linked = [away == w - self._parameter(n, lambda p, _: p.target)]
        linked.append(spends @ w == self._parameter(len(spends), lambda p, _: p.budgets.has))
        self._budget = linked[-1]

        traded = sorted({i for _, packed in s.costs for i in indices(packed)} | self._used("buy", "sell"))
        bent = (packed for name, packed in s.carry if name != "weight")
        held = sorted({i for packed in bent for i in indices(packed)} | self._used("long", "short"))
        self._split = {
            "buy": self._column(traded),
            "sell": self._column(traded),
            "long": self._column(held),
            "short": self._column(held),
        }
        if traded:
            before = self._parameter(len(traded), lambda p, _: p.before[traded])
            linked.append(w[traded] == before + self._split["buy"][0] - self._split["sell"][0])
        if held:
            linked.append(w[held] == self._split["long"][0] - self._split["short"][0])
        linked += list(self._bounds())
        linked += [self._trading_cost(payer) <= t[k] for k, payer in enumerate(pays)]

        self._rows = [self._row(j) for j in range(len(s.rows))]
        self._cones = [self._cone(j, away) for j in range(len(s.cones))]
        self._copy = cp.Variable(n)
        self._copied = self._copy == w
        self._custom = [] if problem is None else self._opaque(problem)
        linked += [self._copied] if self._custom else []
        self._envelopes = [] if problem is None else self._epigraphs(problem)

        if self._excess is None:
            per_year = self._parameter((), lambda p, scale: 1 / (p.horizon * scale), nonneg=True)
            objective = self._risk(away) + per_year * cp.sum(t) + self._carry()
        else:
            objective = self._excess
            inside = cp.Parameter(nonneg=True)
            self._given.append((inside, lambda g: g.inside))
            linked.append(objective >= -inside)
        exact = (c for _, epigraph in self._envelopes for c in epigraph.constraints)
        self._problem = cp.Problem(
            cp.Minimize(objective),
            [*linked, *self._links, *self._rows, *self._cones, *self._custom, *exact],
        )
        if not self._problem.is_dcp(dpp=problem is None):
            raise AssertionError("the program is not DPP: every solve would compile it again")

    def solve(self, problem: Problem, solver: str, settings: Mapping[str, Any], gives: Gives | None = None) -> Raw:
        """What the solver said of this problem. Believes nothing."""
        scale = _scale(problem)
        for parameter, value in self._filled:
            parameter.value = _shortened(value(problem, scale))
        for parameter, value in self._given:
            parameter.value = np.asarray(value(gives), dtype=float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._problem.solve(solver=solver, warm_start=False, **settings)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:  # Rust panics are not Exceptions.
                return Raw(f"{type(error).__name__}: {error}".splitlines()[0], None, None, problem)
        said = str(self._problem.status)
        weights = self.weights.value
        if weights is None or not np.all(np.isfinite(weights)):
            return Raw(said, None, None, problem)
        # An elastic program's objective is the excess itself, without a scale.
        elastic = self._excess is not None
        form, prices = self._prices(problem, 1.0 if elastic else scale)
        excess = float(self._problem.value) if elastic else np.nan
        return Raw(said, np.array(weights, dtype=float), prices, form, excess)

    # --- the parts of the program -------------------------------------------------------------------

    def _parameter(self, shape: Any, value: Any, *, nonneg: bool = False) -> Any:
        import cvxpy as cp

        parameter = cp.Parameter(shape, nonneg=nonneg)
        self._filled.append((parameter, value))
        return parameter

    def _used(self, *names: str) -> set[int]:
        return {int(i) for _, parts in self.structure.rows for name, at in parts if name in names for i in indices(at)}

    def _column(self, positions: list[int]) -> tuple[Any, dict[int, int]]:
        import cvxpy as cp

        variable = cp.Variable(len(positions), nonneg=True) if positions else None
        return variable, {asset: place for place, asset in enumerate(positions)}

    def _part(self, name: str, packed: bytes) -> Any:
        """w, w⁺, w⁻, z⁺ or z⁻ of these assets, as an expression."""
        at = indices(packed)
        if name == "weight":
            return self.weights[at]
        variable, place = self._split[name]
        return variable[[place[int(i)] for i in at]]

    def _slack(self, shape: Any, value: Any) -> Any:
        """By how much limits give way: 0 unless the program is elastic."""
        import cvxpy as cp

        if self._excess is None:
            return 0.0
        parameter = cp.Parameter(shape, nonneg=True)
        self._given.append((parameter, value))
        return parameter * self._excess

    def _bounds(self) -> Iterator[Any]:
        s, w = self.structure, self.weights
        if len(at := indices(s.fixed)):
            yield w[at] == self._parameter(len(at), lambda p, _, at=at: p.lower[at])
        if len(at := indices(s.lower)):
            slack = self._slack(len(at), lambda g, at=at: g.lower[at])
            yield w[at] >= self._parameter(len(at), lambda p, _, at=at: p.lower[at]) - slack
        if len(at := indices(s.upper)):
            slack = self._slack(len(at), lambda g, at=at: g.upper[at])
            yield w[at] <= self._parameter(len(at), lambda p, _, at=at: p.upper[at]) + slack

    def _accounts(self) -> tuple[Array, Array]:
        """What each entry takes of each budget, and which account pays its costs: (accounts, n) both."""
        cashes, *packed = self.structure.budgets
        spends, pays = (np.frombuffer(matrix).reshape(len(cashes), -1) for matrix in packed)
        return spends, pays

    def _trading_cost(self, payer: Array) -> Any:
        import cvxpy as cp

        total: Any = 0.0
        for name, packed in self.structure.costs:
            at = indices(packed)
            if not len(at := at[payer[at] > 0]):
                continue
            rate = self._parameter(len(at), lambda p, _, at=at, name=name: getattr(p.cost, name)[at], nonneg=True)
            own = at.astype(np.int32).tobytes()
            if name in ("buy", "sell"):
                total += rate @ self._part(name, own)
            else:
                size = self._part("buy", own) + self._part("sell", own)
                total += rate @ (cp.square(size) if name == "quadratic" else cp.power(size, 1.5))
        return total

    def _carry(self) -> Any:
        total: Any = 0.0
        for name, packed in self.structure.carry:
            if len(at := indices(packed)):
                of = "long" if name == "weight" else name  # where both are one line, its slope
                rate = self._parameter(len(at), lambda p, scale, at=at, of=of: getattr(p.cost, of)[at] / scale)
                total += rate @ self._part(name, packed)
        return total

    def _row(self, j: int) -> Any:
        with_cost, parts = self.structure.rows[j]
        left: Any = 0.0
        for name, packed in parts:
            at = indices(packed)
            coefficient = self._parameter(len(at), lambda p, _, at=at, name=name: getattr(p.rows, name)[j, at])
            left += coefficient @ self._part(name, packed)
        if with_cost:
            left += self._parameter(self._cost.shape[0], lambda p, _: _cost_slopes(p, j), nonneg=True) @ self._cost
        right = self._parameter((), lambda p, _: min(p.rows.upper[j], NO_LIMIT))
        return left <= right + self._slack((), lambda g: g.rows[j])

    def _cone(self, j: int, away: Any) -> Any:
        import cvxpy as cp

        size, diagonal = self.structure.cones[j]
        at = indices(diagonal)
        # Centred on the target, as all cones so far are; another centre shifts by a constant.
        shift = self._parameter(self.structure.assets, lambda p, _: p.target - p.cones[j][1].centre)
        x = cp.Variable(self.structure.assets)
        parts = []
        if size:
            parts.append(self._parameter((size, self.structure.assets), lambda p, _: p.cones[j][1].matrix) @ x)
        if len(at):
            parts.append(
                cp.multiply(self._parameter(len(at), lambda p, _: p.cones[j][1].diagonal[at], nonneg=True), x[at])
            )
        self._links.append(x == away + shift)
        inside = cp.hstack(parts) if parts else cp.Constant(0.0)
        limit = self._parameter((), lambda p, _: min(p.cones[j][1].upper, NO_LIMIT))
        return cp.norm(inside, 2) <= limit + self._slack((), lambda g: g.cones[j])

    def _opaque(self, problem: Problem) -> list[Any]:
        """Custom rules, of a copy of the weights: the price of `copy = weights` is their slope at the answer."""
        copy, built = self._copy, [piece.constraints for _, piece in problem.opaque]
        return [rule for build in built for rule in build(copy, copy - _shortened(problem.before))]

    def _epigraphs(self, problem: Problem) -> list[tuple[str, Epigraph]]:
        """Each envelope with the cash before costs, and where there are costs, with what is left after them."""
        cashes, states = list(problem.cashes), [self.weights]
        if any(packed for _, packed in self.structure.costs):
            takes = np.zeros((len(problem.assets), len(cashes)))
            takes[cashes, range(len(cashes))] = 1.0
            states.append(self.weights - takes @ self._cost)
        found = []
        for j, (title, piece) in enumerate(problem.envelopes):
            limit = self._parameter((), lambda p, _, j=j: min(p.envelopes[j][1].row.upper, NO_LIMIT))
            limit += self._slack((), lambda g, j=j: g.envelopes[j])
            trades = self.weights - _shortened(problem.before)
            found += [(title, Epigraph(piece, state, trades, limit, cashes)) for state in states]
        return found

    def _risk(self, away: Any) -> Any:
        import cvxpy as cp

        s = self.structure
        total: Any = 0.0
        if s.factors:
            exposure = cp.Variable(s.factors)
            factors = self._parameter(
                (s.factors, s.assets), lambda p, scale: np.sqrt(p.aversion / scale) * p.risk.factors
            )
            self._links.append(exposure == factors @ away)
            total += 0.5 * cp.sum_squares(exposure)
        if len(at := indices(s.specific)):
            volatility = self._parameter(
                len(at), lambda p, scale: np.sqrt(p.aversion / scale * p.risk.specific[at]), nonneg=True
            )
            total += 0.5 * cp.sum_squares(cp.multiply(volatility, away[at]))
        return total

    def _prices(self, problem: Problem, scale: float) -> tuple[Problem, Prices]:
        """The prices, and the problem with the rows that they made of envelopes."""

        def dual(constraint: Any) -> float:
            value = constraint.dual_value
            return 0.0 if value is None or not np.all(np.isfinite(value)) else max(float(np.sum(value)), 0.0) * scale

        met = [(title, *epigraph.row()) for title, epigraph in self._envelopes]
        form = replace(problem, found=(*problem.found, *((title, row) for title, row, _ in met))) if met else problem
        budget = self._budget.dual_value
        prices = Prices(
            np.insert([dual(row) for row in self._rows], problem.found_rows.stop, [price * scale for *_, price in met]),
            np.array([dual(cone) for cone in self._cones]),
            None if budget is None else np.array(budget, dtype=float) * scale,
        )
        if not self._custom:
            return form, prices
        wanted = np.nan if self._copied.dual_value is None else -self._copied.dual_value
        slopes, offset = priced_plane(self._custom, self._copy, wanted)
        return form, replace(prices, slopes=slopes * scale, offset=offset * scale)


def _shortened(values: Any) -> Array:
    """The numbers with 40 bits, 12 digits: the last ones, which the unit of money or a processor's kernel may change,
    would decide with which step a solver stops."""
    parts, exponents = np.frexp(np.asarray(values, dtype=float))
    return np.asarray(np.ldexp(np.round(np.ldexp(parts, 40)), exponents - 40))


def _cost_slopes(problem: Problem, j: int) -> Array:
    return np.asarray(problem.rows.by_cash[j])


def _scale(problem: Problem) -> float:
    """The size of the objective, so that a solver's absolute tolerances mean something."""
    away, cost = problem.before - problem.target, problem.cost
    size = 0.5 * problem.aversion * float(problem.risk.variance(away))
    size += problem.trading_cost(problem.target) / problem.horizon
    # Not less than a small part of its largest coefficient: where all of this is 0, bounds may ask for costs.
    spread = problem.aversion * float(np.max(problem.risk.specific + np.sum(problem.risk.factors**2, axis=0)))
    rates = float(max(np.max(rate) for rate in (cost.buy, cost.sell, cost.quadratic, cost.impact))) / problem.horizon
    carry = float(max(np.max(np.abs(cost.long)), np.max(np.abs(cost.short))))
    return max(size, 1e-4 * max(spread, rates, carry)) or 1.0


def compiled(problem: Problem, *, elastic: bool = False) -> Program:
    """The program of this problem's structure, from this thread's cache."""
    structure = Structure.of(problem, elastic=elastic)
    if problem.opaque or problem.envelopes:
        return Program(structure, problem)
    if not hasattr(_cache, "programs"):
        _cache.programs = OrderedDict()
    programs: OrderedDict[Structure, Program] = _cache.programs
    if structure not in programs:
        programs[structure] = Program(structure)
        if len(programs) > _CACHE_SIZE:
            programs.popitem(last=False)
    programs.move_to_end(structure)
    return programs[structure]
