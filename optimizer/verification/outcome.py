"""What a rebalance came to: its status, its exact trades, what they lead to, and figures of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from equipoise.constraints.pieces import Array, Check
from equipoise.constraints.rules.trading import KINDS
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Solution, Status, rounded_down
from equipoise.optimizer.verification.exact import Verified


@dataclass(frozen=True, eq=False)
class Outcome:
    """The data of a `Plan`, without its tables and texts.

    There are trades to send only if `status.ok`, and then they are verified, and every check has passed.
    """

    status: Status
    name: str | None
    message: str = ""
    problem: Problem | None = None
    solution: Solution | None = None
    verified: Verified | None = None
    #: Traded quantities in signed units, exact, one an asset in the order of `problem.assets`.
    trades: tuple[Fraction, ...] = ()
    #: The weights of the plan with the cash before costs: what the objective is about.
    planned: Array | None = field(default=None, repr=False)
    #: A bound on whole-lot plans alone: see `bounds.bound`.
    lot_bound: float = -math.inf

    @cached_property
    def objective(self) -> float:
        """(aversion/2)·tracking variance + cost/horizon + carry, of this plan; NaN without one."""
        return self.problem.objective(self.planned) if self.problem and self.planned is not None else math.nan

    @property
    def bound(self) -> float:
        """No plan that keeps the rules, in whole lots if lots are asked for, has an objective below this."""
        if self.solution is None or self.planned is None:
            return math.nan
        return float(rounded_down(self.objective, max(self.solution.bound, self.lot_bound)))

    @property
    def gap(self) -> float:
        """objective − bound: at most this much is lost against the best possible plan, in NAV per year."""
        return self.objective - self.bound

    @property
    def gap_money(self) -> float:
        """The gap in cash per year: what the best possible plan could be worth more than this one, at most."""
        return self.gap * self.problem.portfolio.nav if self.problem else math.nan

    @property
    def solver(self) -> str:
        return self.solution.solver if self.solution else "none"

    @property
    def cost(self) -> float:
        """What the orders cost, in cash."""
        return float(self.verified.cost) if self.status.ok and self.verified else 0.0

    @property
    def turnover(self) -> float:
        """One-way: half of the traded value of all assets but the cash, as a fraction of NAV."""
        if not (self.status.ok and self.problem):
            return 0.0
        prices = self.asked.portfolio.exact_price  # transfers, which come after the rows, are no turnover
        buy, sell = KINDS["one_way"]
        money = [float(x * p) for x, p in zip(self.trades, prices, strict=False)]
        return float(sum(buy * x if x > 0 else -sell * x for x in money) / self.problem.portfolio.nav)

    @property
    def tracking_error(self) -> tuple[float, float]:
        """(before, after): annual, √((w − b)ᵀΣ(w − b)); without a risk model the distance of the weights."""
        if self.problem is None:
            return math.nan, math.nan
        before = self.problem.tracking_error(self.problem.before)
        return before, self.problem.tracking_error(self.planned) if self.planned is not None else math.nan

    @property
    def asked(self) -> Problem:
        """The problem of the table's own rows."""
        assert self.problem is not None
        return self.problem.asked

    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.verified.checks if not check.passed) if self.verified else ()
