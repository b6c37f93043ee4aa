"""The problem as a cvxpy program.

All numbers are parameters, by cvxpy's rules for disciplined parametrised programs (DPP), so that a program is compiled
once for each structure (see `cache`). Absent coefficients are left out: parameters that are mostly zero cost time.

    minimise   ½‖F(w − b)‖² + ½‖d∘(w − b)‖² + t/horizon + carry(v⁺, v⁻)
    subject to w = w₀ + u⁺ − u⁻,  Σ w = 1,  φ(u⁺, u⁻) ≤ t,  rows with t as the cost,  cones,  bounds,  envelopes

u⁺, u⁻ ≥ 0 and v⁺, v⁻ ≥ 0 (w = v⁺ − v⁻) may overlap in a solver's answer; by the rows' convexity the netted
trades keep every row all the more. cvxpy is imported when the first program is compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.constraints.pieces import Array
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Prices
from equipoise.optimizer.solvers.program.envelopes import Epigraph
from equipoise.optimizer.solvers.program.structure import Names, Structure, indices
from equipoise.optimizer.solvers.program.supporting_plane import priced_plane

if TYPE_CHECKING:
    import cvxpy as cp

#: What a parameter is given, of a problem and the objective's scale, or of what gives way.
Numbers: TypeAlias = Callable[..., Array | float]
#: How many numbers a parameter has; () is one.
Shape: TypeAlias = int | tuple[int, ...]
#: What a solver is told.
Setting: TypeAlias = float | str
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
    """One compiled structure: `fill` it with a problem's numbers, then solve. `constraints` are by name."""

    def __init__(self, structure: Structure, problem: Problem) -> None:
        """Names, and the expressions of custom rules and envelopes, are those of this problem; all numbers that
        others of the structure have too are parameters."""
        import cvxpy as cp

        self.structure = s = structure
        self._names = names = Names.of(problem)
        n = s.assets
        self._links: dict[str, cp.Constraint] = {}  # equalities that define auxiliary variables, as DPP wants them
        # (parameter, its value as a function of the problem and scale)
        self._filled: list[tuple[cp.Parameter, Numbers]] = []
        # (parameter, its value as a function of what gives way)
        self._given: list[tuple[cp.Parameter, Numbers]] = []
        self._excess = cp.Variable(name="excess") if s.elastic else None

        self.weights = w = cp.Variable(n, name="weights")
        away = cp.Variable(n, name="away")
        # Each account pays its own costs; there is one unless `budgets` says otherwise.
        spends, pays = self._accounts()
        self._cost = t = cp.Variable(len(spends), name="cost")
        spent = cp.sum(w) if np.all(spends == 1.0) else spends @ w
        self._budget = spent == self._parameter("budget", len(spends), lambda p, _: p.budgets.has)
        linked = {
            "distance from the target": away == w - self._parameter("target", n, lambda p, _: p.target),
            "budget": self._budget,
        }
        traded = sorted({i for _, packed in s.costs for i in indices(packed)} | self._used("buy", "sell"))
        bent = (packed for name, packed in s.carry if name != "weight")
        held = sorted({i for packed in bent for i in indices(packed)} | self._used("long", "short"))
        self._split = {
            name: self._column(name, at)
            for name, at in (("buy", traded), ("sell", traded), ("long", held), ("short", held))
        }
        if traded:
            before = self._parameter("before", len(traded), lambda p, _: p.before[traded])
            linked["trades"] = self._at(traded) == before + self._split["buy"][0] - self._split["sell"][0]
        if held:
            linked["holdings"] = self._at(held) == self._split["long"][0] - self._split["short"][0]
        linked |= self._bounds()
        for k, payer in enumerate(pays):
            called = "trading cost" if len(pays) == 1 else f"trading cost of {problem.assets[problem.cashes[k]]}"
            linked[called] = self._trading_cost(called, payer) <= t[k]

        self._rows = {names.rows[j]: self._row(j) for j in range(len(s.rows))}
        self._cones = {names.cones[j]: self._cone(j, away) for j in range(len(s.cones))}
        self._copy = cp.Variable(n, name="copy")
        self._copied = self._copy == w
        self._custom = self._opaque(problem)
        linked |= {"copy": self._copied} if self._custom else {}
        self._envelopes = self._epigraphs(problem)

        if self._excess is None:
            per_year = self._parameter("1/horizon", (), lambda p, scale: 1 / (p.horizon * scale), nonneg=True)
            objective = self._risk(away) + per_year * cp.sum(t) + self._carry()
        else:
            objective = self._excess
            inside = cp.Parameter(nonneg=True)
            self._given.append((inside, lambda g: g.inside))
            linked["inside"] = objective >= -inside
        self.constraints = {**linked, **self._links, **self._rows, **self._cones, **self._custom}
        for called, (_, epigraph) in self._envelopes.items():
            self.constraints |= epigraph.named(called)
        self.problem = cp.Problem(cp.Minimize(objective), list(self.constraints.values()))
        if not self.problem.is_dcp(dpp=not (problem.opaque or problem.envelopes)):
            raise AssertionError("the program is not DPP: every solve would compile it again")

    def fill(self, problem: Problem) -> None:
        """Give the parameters this problem's numbers, as they are: the objective is a fraction of NAV a year."""
        for parameter, value in self._filled:
            parameter.value = np.asarray(value(problem, 1.0), dtype=float)

    def _scaled(self, problem: Problem, scale: float, gives: Gives | None) -> None:
        """Give them the numbers with which solvers get along best: the objective over `scale`."""
        for parameter, value in self._filled:
            parameter.value = _shortened(value(problem, scale))
        for parameter, value in self._given:
            parameter.value = np.asarray(value(gives), dtype=float)

    def solve(self, problem: Problem, solver: str, settings: Mapping[str, Setting], gives: Gives | None = None) -> Raw:
        """What the solver said of this problem. Believes nothing."""
        scale = _scale(problem)
        self._scaled(problem, scale, gives)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.problem.solve(solver=solver, warm_start=False, **settings)
            except (KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:  # Rust panics are not Exceptions.
                return Raw(f"{type(error).__name__}: {error}".splitlines()[0], None, None, problem)
        said = str(self.problem.status)
        weights = self.weights.value
        if weights is None or not np.all(np.isfinite(weights)):
            return Raw(said, None, None, problem)
        # An elastic program's objective is the excess itself, without a scale.
        elastic = self._excess is not None
        form, prices = self._prices(problem, 1.0 if elastic else scale)
        excess = float(self.problem.value) if elastic else np.nan
        return Raw(said, np.array(weights, dtype=float), prices, form, excess)

    # --- the parts of the program -------------------------------------------------------------------

    def _parameter(self, name: str, shape: Shape, value: Numbers, *, nonneg: bool = False) -> cp.Parameter:
        import cvxpy as cp

        parameter = cp.Parameter(shape, nonneg=nonneg, name=name)
        self._filled.append((parameter, value))
        return parameter

    def _used(self, *names: str) -> set[int]:
        return {int(i) for _, parts in self.structure.rows for name, at in parts if name in names for i in indices(at)}

    def _column(self, name: str, positions: list[int]) -> tuple[cp.Variable, dict[int, int]]:
        import cvxpy as cp

        variable = cp.Variable(len(positions), nonneg=True, name=name) if positions else None
        return variable, {asset: place for place, asset in enumerate(positions)}

    def _at(self, at: list[int] | NDArray[np.intp]) -> cp.Expression:
        """The weights of these assets."""
        return self.weights if len(at) == self.structure.assets else self.weights[at]

    def _part(self, name: str, packed: bytes) -> cp.Expression:
        """w, w⁺, w⁻, z⁺ or z⁻ of these assets, as an expression."""
        at = indices(packed)
        if name == "weight":
            return self._at(at)
        variable, place = self._split[name]
        return variable if len(at) == len(place) else variable[[place[int(i)] for i in at]]

    def _limit(
        self,
        name: str,
        shape: Shape,
        value: Numbers,
        gives: Numbers,
        sign: float = 1.0,
    ) -> cp.Expression:
        """A limit; in an elastic program it gives way by as much as it says, times the excess."""
        import cvxpy as cp

        limit = self._parameter(name, shape, value)
        if self._excess is None:
            return limit
        parameter = cp.Parameter(shape, nonneg=True)
        self._given.append((parameter, gives))
        return limit + sign * (parameter * self._excess)

    def _upper(self, called: str, value: Callable[..., float], gives: Numbers) -> cp.Expression:
        return self._limit(f"{called}[limit]", (), lambda p, _: min(value(p), NO_LIMIT), gives)

    def _bounds(self) -> dict[str, cp.Constraint]:
        found = {}
        for side in ("fixed", "lower", "upper"):
            for called, packed in getattr(self.structure, side):
                if len(at := indices(packed)):
                    found[f"{called}, {side}"] = self._bound(f"{called}[{side}]", side, at)
        return found

    def _bound(self, name: str, side: str, at: NDArray[np.intp]) -> cp.Constraint:
        w, of = self._at(at), "upper" if side == "upper" else "lower"
        if side == "fixed":
            return w == self._parameter(name, len(at), lambda p, _: p.lower[at])
        sign = 1.0 if side == "upper" else -1.0
        limit = self._limit(name, len(at), lambda p, _: getattr(p, of)[at], lambda g: getattr(g, of)[at], sign)
        return w <= limit if side == "upper" else w >= limit

    def _accounts(self) -> tuple[Array, Array]:
        """What each entry takes of each budget, and which account pays its costs: (accounts, n) both."""
        cashes, *packed = self.structure.budgets
        spends, pays = (np.frombuffer(matrix).reshape(len(cashes), -1) for matrix in packed)
        return spends, pays

    def _trading_cost(self, called: str, payer: Array) -> cp.Expression | float:
        """buy·z⁺ + sell·z⁻ + quadratic·|z|² + impact·|z|^(3/2), of what this account pays."""
        import cvxpy as cp

        total = 0.0
        for name, packed in self.structure.costs:
            at = indices(packed)
            if not len(at := at[payer[at] > 0]):
                continue
            rate = self._parameter(
                f"{called}[{name}]", len(at), lambda p, _, at=at, name=name: getattr(p.cost, name)[at], nonneg=True
            )
            own = at.astype(np.int32).tobytes()
            if name in ("buy", "sell"):
                total += rate @ self._part(name, own)
            else:
                size = self._part("buy", own) + self._part("sell", own)
                total += rate @ (cp.square(size) if name == "quadratic" else cp.power(size, 1.5))
        return total

    def _carry(self) -> cp.Expression | float:
        """long·w⁺ + short·w⁻; long·w where both are one line."""
        total = 0.0
        for name, packed in self.structure.carry:
            if len(at := indices(packed)):
                rate = self._parameter(f"carry[{name}]", len(at), partial(_carry_rates, name=name, at=at))
                total += rate @ self._part(name, packed)
        return total

    def _row(self, j: int) -> cp.Constraint:
        """weight·w + long·w⁺ + short·w⁻ + buy·z⁺ + sell·z⁻ + what the costs take of the cash ≤ upper."""
        with_cost, parts = self.structure.rows[j]
        called, left = self._names.rows[j], 0.0
        for name, packed in parts:
            at = indices(packed)
            coefficient = self._parameter(
                f"{called}[{name}]", len(at), lambda p, _, at=at, name=name: getattr(p.rows, name)[j, at]
            )
            left += coefficient @ self._part(name, packed)
        if with_cost:
            per_cost = self._parameter(
                f"{called}[cost]", self._cost.shape[0], lambda p, _: _cost_slopes(p, j), nonneg=True
            )
            left += per_cost @ self._cost
        return left <= self._upper(called, lambda p: p.rows.upper[j], lambda g: g.rows[j])

    def _cone(self, j: int, away: cp.Variable) -> cp.Constraint:
        """‖(G(w − c), d∘(w − c))‖₂ ≤ upper, with c the centre."""
        import cvxpy as cp

        n, (size, diagonal), called = self.structure.assets, self.structure.cones[j], self._names.cones[j]
        at = indices(diagonal)
        # Centred on the target, as all cones so far are; another centre shifts by a constant.
        shift = self._parameter(f"{called}[shift]", n, lambda p, _: p.target - p.cones[j][1].centre)
        x = cp.Variable(n, name=f"distance of {called}")
        parts = []
        if size:
            parts.append(self._parameter(f"{called}[matrix]", (size, n), lambda p, _: p.cones[j][1].matrix) @ x)
        if len(at):
            scale = self._parameter(
                f"{called}[diagonal]", len(at), lambda p, _: p.cones[j][1].diagonal[at], nonneg=True
            )
            parts.append(cp.multiply(scale, x if len(at) == n else x[at]))
        self._links[f"{called}, distance"] = x == away + shift
        inside = cp.hstack(parts) if parts else cp.Constant(0.0)
        return cp.norm(inside, 2) <= self._upper(called, lambda p: p.cones[j][1].upper, lambda g: g.cones[j])

    def _opaque(self, problem: Problem) -> dict[str, cp.Constraint]:
        """Custom rules, of a copy of the weights: the price of `copy = weights` is their slope at the answer."""
        found = {}
        for called, (_, piece) in zip(self._names.custom, problem.opaque, strict=True):
            for k, rule in enumerate(piece.constraints(self._copy, self._copy - _shortened(problem.before))):
                found[f"{called}, {k + 1}" if k else called] = rule
        return found

    def _epigraphs(self, problem: Problem) -> dict[str, tuple[str, Epigraph]]:
        """Each envelope with the cash before costs, and where there are costs, with what is left after them."""
        cashes, states = list(problem.cashes), {"": self.weights}
        if any(packed for _, packed in self.structure.costs):
            takes = np.zeros((len(problem.assets), len(cashes)))
            takes[cashes, range(len(cashes))] = 1.0
            states[", after costs"] = self.weights - takes @ self._cost
        found = {}
        for j, (title, piece) in enumerate(problem.envelopes):
            called = self._names.envelopes[j]
            limit = self._upper(called, lambda p, j=j: p.envelopes[j][1].row.upper, lambda g, j=j: g.envelopes[j])
            trades = self.weights - _shortened(problem.before)
            for when, state in states.items():
                found[called + when] = title, Epigraph(piece, state, trades, limit, cashes)
        return found

    def _risk(self, away: cp.Variable) -> cp.Expression | float:
        """½·aversion·(‖F(w − b)‖² + ‖d∘(w − b)‖²)"""
        import cvxpy as cp

        s = self.structure
        total = 0.0
        if s.factors:
            exposure = cp.Variable(s.factors, name="exposure")
            factors = self._parameter(
                "√aversion·F", (s.factors, s.assets), lambda p, scale: np.sqrt(p.aversion / scale) * p.risk.factors
            )
            self._links["exposure"] = exposure == factors @ away
            total += 0.5 * cp.sum_squares(exposure)
        if len(at := indices(s.specific)):
            volatility = self._parameter(
                "√aversion·d", len(at), lambda p, scale: np.sqrt(p.aversion / scale * p.risk.specific[at]), nonneg=True
            )
            total += 0.5 * cp.sum_squares(cp.multiply(volatility, away if len(at) == s.assets else away[at]))
        return total

    def _prices(self, problem: Problem, scale: float) -> tuple[Problem, Prices]:
        """The prices, and the problem with the rows that they made of envelopes."""

        def dual(constraint: cp.Constraint) -> float:
            value = constraint.dual_value
            return 0.0 if value is None or not np.all(np.isfinite(value)) else max(float(np.sum(value)), 0.0) * scale

        met = [(title, *epigraph.row()) for title, epigraph in self._envelopes.values()]
        form = replace(problem, found=(*problem.found, *((title, row) for title, row, _ in met))) if met else problem
        budget = self._budget.dual_value
        prices = Prices(
            np.insert(
                [dual(row) for row in self._rows.values()], problem.found_rows.stop, [x * scale for *_, x in met]
            ),
            np.array([dual(cone) for cone in self._cones.values()]),
            None if budget is None else np.array(budget, dtype=float) * scale,
        )
        if not self._custom:
            return form, prices
        wanted = np.nan if self._copied.dual_value is None else -self._copied.dual_value
        slopes, offset = priced_plane(list(self._custom.values()), self._copy, wanted)
        return form, replace(prices, slopes=slopes * scale, offset=offset * scale)


def _shortened(values: Array | float) -> Array:
    """The numbers with 40 bits, 12 digits: the last ones, which the unit of money or a processor's kernel may change,
    would decide with which step a solver stops."""
    parts, exponents = np.frexp(np.asarray(values, dtype=float))
    return np.asarray(np.ldexp(np.round(np.ldexp(parts, 40)), exponents - 40))


def _cost_slopes(problem: Problem, j: int) -> Array:
    return np.asarray(problem.rows.by_cash[j])


def _carry_rates(problem: Problem, scale: float, *, name: str, at: NDArray[np.intp]) -> Array:
    cost = problem.cost
    straight = cost.long + cost.short == 0  # where both are one line, its slope
    rates = np.where(straight, cost.long, 0.0) if name == "weight" else np.where(straight, 0.0, getattr(cost, name))
    return np.asarray(rates[at] / scale)


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
