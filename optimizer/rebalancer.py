"""The front door: a policy, and portfolios to apply it to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import numpy as np

from equipoise.constraints.base import Array, Rule
from equipoise.constraints.errors import InputError
from equipoise.optimizer.lots.account_closing import emptied
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.plans.shortfall import shortfalls
from equipoise.optimizer.portfolio.portfolio import Portfolio, exact
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.portfolio.transfers import portfolio as in_accounts
from equipoise.optimizer.problem.costs import Cost
from equipoise.optimizer.problem.counts import held_keeps
from equipoise.optimizer.problem.effort import Clock, Effort, Spent
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import ROUNDING_TOLERANCE, Solution, Status, close_enough
from equipoise.optimizer.risk.models import Risk
from equipoise.optimizer.solvers.choose import named, of_stricter_forms
from equipoise.optimizer.solvers.choose import solve as solve_convex
from equipoise.optimizer.verification.exact import Verified, verify

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from os import PathLike

    import pandas as pd

    from equipoise.optimizer.batches.chunk import Chunk
    from equipoise.optimizer.batches.run import Summary
    from equipoise.optimizer.batches.solve import Plans
    from equipoise.optimizer.batches.sources import Source
    from equipoise.optimizer.lots.alone import LotPlan
    from equipoise.optimizer.lots.stacked import Tried
    from equipoise.optimizer.solvers.program.readable import ConvexProgram
    from equipoise.optimizer.triggers import Due, Trigger

_DEFAULT = Effort()


class Options(Spent, total=False):
    """How a batch is solved: see `engine.run`."""

    executor: int | Executor | None
    chunk: int | None
    timeout: float | None
    checkpoint: str | PathLike[str] | None
    progress: bool | None
    universe: Iterable[str]
    allocate: Literal["own", "unbiased"]


class Rebalancer:
    """Rebalances portfolios by one policy.

        minimise    (aversion/2)·(w − b)ᵀΣ(w − b) + cost(z)/horizon + carry(w)      in NAV per year
        subject to  every rule in `constraints`, and the cash after costs not below its floor

    risk: a model of the annual covariance Σ (`CovarianceRisk`, `FactorRisk`); None for the squared distance of
    the weights (the cash not counted). costs: `ProportionalCost`, `ImpactCost`, `QuadraticCost`, `HoldingCost`,
    and for orders `FixedFee`, `MinimumCommission`.
    cash: the label of the settlement cash, a row with price 1. aversion: how much a unit of annual variance
    around the target is worth in NAV per year. horizon: the years over which one-off trading costs are worth
    paying (1: a trade must earn its cost within a year). trigger: what `due` asks. compiled: whether Newton's
    iteration runs as machine code, for large batches (needs the extra `fast`; the answers agree to rounding).

    For a portfolio in several accounts, cash: the cash of each account that trades, such as {"exchange": "USDT",
    "perps": "USDC"}, the settlement cash first. Its table has the columns `account` and `asset`, and rows are known by
    "account/asset". Each account pays for its own trades; transfers: what may be moved between them (`Transfer`).
    """

    def __init__(
        self,
        *,
        cash: str | Mapping[str, str],
        risk: Risk | None = None,
        costs: Sequence[Cost] = (),
        constraints: Sequence[Rule] = (),
        aversion: float = 10.0,
        horizon: float = 1.0,
        trigger: Trigger | None = None,
        compiled: bool = False,
        transfers: Sequence[Transfer] = (),
    ) -> None:
        lists = ((costs, "costs"), (constraints, "constraints"), (transfers, "transfers"))
        for given, argument in lists:
            if not isinstance(given, Sequence) or isinstance(given, str):
                raise InputError("must be a list", column=argument, value=given)
        self.accounts = dict(cash) if isinstance(cash, Mapping) else {}
        if transfers and not self.accounts:
            raise InputError("transfers need accounts: give cash={account: asset, ...}", column="cash", value=cash)
        if isinstance(cash, Mapping):
            if not cash:
                raise InputError("needs the cash of one account at least", column="cash", value={})
            self.cash = "/".join(next(iter(cash.items())))
        else:
            self.cash = cash
        self.policy = Policy(risk, tuple(costs), tuple(constraints), aversion, horizon, compiled, tuple(transfers))
        self.trigger = trigger

    def portfolio(self, table: pd.DataFrame, *, name: str | None = None, universe: Iterable[str] = ()) -> Portfolio:
        """The table, parsed and checked. Raises InputError; see `Portfolio.from_table`."""
        known = {*universe, *getattr(self.policy.risk, "assets", ())}
        if self.accounts:
            transfers, own = self.policy.transfers, self.policy.asset_columns
            return in_accounts(table, self.accounts, transfers, asset_columns=own, name=name, universe=known)
        return Portfolio.from_table(table, self.cash, name=name, universe=known)

    def problem(self, table: pd.DataFrame, *, name: str | None = None) -> Problem:
        """The convex program of this table, for `choose` and for the curious."""
        return self.policy.problem(self.portfolio(table, name=name))

    def program(self, table: pd.DataFrame, *, name: str | None = None) -> ConvexProgram:
        """The convex program of this table in cvxpy, to read, to extend and to hand to any solver: see docs/program.md.

        Raises InputError for bad input.
        """
        from equipoise.optimizer.solvers.program.readable import readable

        return readable(self.problem(table, name=name))

    def solve(
        self,
        table: pd.DataFrame,
        *,
        name: str | None = None,
        effort: int = 1,
        exact: bool = False,
        gap: float = 1e-6,
        time_limit: float | None = 60.0,
        solver: str = "auto",
    ) -> Plan:
        """The verified plan for one portfolio: columns quantity, price, target, and those the rules name.

        With whole lots, `effort` says how much is spent on closing a plan's gap (0: rounded only), and `exact` goes on
        to the best plan and its proof: until its gap is at most `gap` of the objective. `time_limit` ends either after
        so many seconds (None: however long it takes). The gap of the plan says how far that came.

        `solver` asks for one by name: "threshold", "newton", "program", any that cvxpy has installed ("CLARABEL"), or
        one's own (`register_solver`); "auto" takes the fastest that can prove its answer. Certificate and checks
        are the same.

        Raises InputError for bad input, and for a solver that is not there or does not take the problem. An infeasible
        request is a plan without orders whose `status` and `message` say why.
        """
        spent = Effort(effort, exact, gap, time_limit, solver)
        clock = spent.clock()
        problem = self.problem(table, name=name)
        return finished(problem, solve_convex(problem, spent.solver), spent, clock=clock)

    def solve_batch(self, source: Source, **options: Unpack[Options]) -> Plans:
        """A plan for every `portfolio_id` of a long table, in the order of their first rows.

        Without options the table is a DataFrame and is solved in this process at once. With any of `executor`,
        `chunk`, `timeout`, `checkpoint`, `progress` and `universe`, or another source (an iterable of tables, the path
        of a Parquet file, an Arrow table), it is solved in chunks: see `engine.run` for what they mean. `effort`,
        `exact`, `gap`, `time_limit` (seconds a portfolio) and `solver` are those of `solve`.

        `allocate`: "own" for plans that each portfolio would have on its own (the default); "unbiased" for whole lots
        that add up, over the batch, to what the convex orders do (see `lot_diffusion`): a pass over the whole batch
        in its order, so that it cannot be had in chunks.

        Bad input, like everything else, costs only the portfolio it is in: its status is INVALID_INPUT.
        """
        from equipoise.optimizer.batches.solve import gathered, solve_batch

        others: dict[str, Any] = dict(options)
        spent, unbiased = Effort.taken(others), _unbiased(others.pop("allocate", "own"))
        if not others and hasattr(source, "columns") and hasattr(source, "index"):
            table: Any = source
            return solve_batch(self, table, spent=spent, unbiased=unbiased)
        from equipoise.optimizer.batches.run import run

        return gathered(
            self, source, list(run(self, source, **_in_chunks(options))), options.get("universe", ()), spent
        )

    def stream(self, source: Source, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Chunks of (results, orders) in the order of the source, at constant memory: see `engine.run`."""
        from equipoise.optimizer.batches.run import run

        self._without_transfers()
        return run(self, source, **_in_chunks(options))

    def write_batch(
        self,
        source: Source,
        *,
        results: str | PathLike[str] | None = None,
        orders: str | PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> Summary:
        """From a source to Parquet or CSV files at constant memory: see `engine.write`."""
        from equipoise.optimizer.batches.run import write

        self._without_transfers()
        return write(self, source, results=results, orders=orders, **_in_chunks(options))

    def _without_transfers(self) -> None:
        if self.policy.transfers:
            raise InputError("results and orders alone would lose the transfers: use solve_batch", column="transfers")

    def due(self, table: pd.DataFrame, *, now: Any = None, last: Any = None, trigger: Trigger | None = None) -> Due:
        """Whether it is time to trade: each trigger's value, threshold and distance. See `triggers`."""
        asked = trigger if trigger is not None else self.trigger
        if asked is None:
            raise InputError("there is no trigger to ask; give the Rebalancer or this call one", column="trigger")
        problem = self.problem(table)
        return asked.due(problem if problem.accounts is None else problem.accounts.asked, now=now, last=last)


def _unbiased(allocate: object) -> bool:
    if allocate not in ("own", "unbiased"):
        raise InputError("must be 'own' or 'unbiased'", column="allocate", value=allocate)
    return allocate == "unbiased"


def _in_chunks(options: Options) -> dict[str, Any]:
    """The options of a batch in chunks."""
    others: dict[str, Any] = dict(options)
    if _unbiased(others.pop("allocate", "own")):
        raise InputError(
            "unbiased allocation passes over the whole batch in its order; solve a table in one go, without "
            "executor, chunk, timeout, checkpoint, progress, universe, streams and files",
            column="allocate",
        )
    return others


def finished(
    problem: Problem,
    solution: Solution,
    spent: Effort = _DEFAULT,
    tried: Tried | None = None,
    clock: Clock | None = None,
) -> Plan:
    """From the convex answer to verified orders: whole lots where lots are asked for, then the exact check.

    Lots are those of stacks (of one, unless it was `tried`), or where these have none that counts, of `lots`. The
    clock is that of `spent` from now on, unless it runs already.
    """
    name, asked, clock = problem.portfolio.name, problem, clock or spent.clock()
    if solution.problem is not None:
        problem = replace(solution.problem, fees=asked.fees)
    if solution.weights is None:
        return Plan(solution.status, name, solution.explanation, problem, solution)
    if problem.found:
        asked = replace(asked, found=problem.found)  # rows of envelopes, which bounds may use too
    weights, bound = solution.weights, solution.bound
    whole, stuck = problem.discrete, ""
    holds = solution.status is Status.NO_TRADE and held_keeps(problem)
    if holds:
        solution = replace(solution, solver="holding")  # whoever found that
        trades: tuple[Fraction, ...] = (Fraction(0),) * len(problem.assets)
        checked = verify(problem, trades, whole_lots=whole)
    elif whole and problem.accounts is not None:
        from equipoise.optimizer.lots.account_least import decided
        from equipoise.optimizer.lots.account_rounding import rounded as rounded_in_accounts

        decision = decided(problem, solution, clock)
        if decision is None:
            why = "no choice of the least positions was found that keeps all rules"
            return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
        weights, bound, fixed = decision.weights, max(bound, decision.bound), {}
        if problem.step is not None:
            start = replace(solution, weights=weights)
            in_lots, why = rounded_in_accounts(decision.problem, start, effort=spent.effort, clock=clock)
            if in_lots is None:
                return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
            weights, fixed = in_lots.weights, in_lots.quantities
        every = [fixed.get(i, trade) for i, trade in enumerate(_continuous(decision.problem, weights))]
        trades, stuck = emptied(decision.problem, every, fixed=fixed)
        checked = verify(problem, trades, whole_lots=False)
    elif whole:
        found, why = _in_lots(asked, problem, solution, spent, tried, clock)
        for answer in (
            of_stricter_forms(asked.relaxation, named(spent.solver)) if found is None and asked.kinked else ()
        ):
            if found is None and answer.problem is not None:
                problem = replace(answer.problem, fees=asked.fees)
                found, why = _in_lots(asked, problem, answer, spent, None, clock)
        if found is None:
            return Plan(Status.NO_LOT_PLAN, name, why, problem, solution)
        chosen, checked = found
        weights, trades, bound = chosen.weights, chosen.quantities, max(bound, chosen.bound)
    else:
        trades = _continuous(problem, weights)
        if problem.accounts is not None:
            trades, stuck = emptied(problem, trades)
        checked = verify(problem, trades, whole_lots=False)
    status = solution.status
    if whole and not holds:
        closed = close_enough(problem.objective(weights), bound)
        status = Status.OPTIMAL if closed else Status.FEASIBLE
    if status is Status.OPTIMAL and not any(trades):
        status = Status.NO_TRADE
    [said] = shortfalls(problem)
    plan = Plan(status, name, said, problem, solution, checked, trades, weights, bound)
    if not checked.passed:
        broken = "; ".join(f"{c.rule} ({c.detail}{f' of {c.asset}' if c.asset else ''})" for c in plan.failed())
        return Plan(
            Status.UNSOLVED,
            name,
            f"the orders did not pass the exact check: {broken}{stuck and f' ({stuck})'}",
            problem,
            solution,
            checked,
        )
    return plan


#: A whole-lot plan and its exact check.
_Checked: TypeAlias = "tuple[LotPlan, Verified]"


def _in_lots(
    asked: Problem, problem: Problem, solution: Solution, spent: Effort, tried: Tried | None, clock: Clock
) -> tuple[_Checked | None, str]:
    """The whole-lot plan; None and why there is none."""
    from equipoise.optimizer.lots.alone import rounded
    from equipoise.optimizer.lots.stacked import Tried, alone

    def checked(plan: LotPlan | None) -> _Checked | None:
        return None if plan is None else (plan, verify(problem, plan.quantities, whole_lots=True))

    if tried is None:
        tried = alone(problem, solution, spent, clock) if asked is problem else Tried(None, False)
    first = checked(tried.plan)
    if first is not None and not first[1].passed:
        first = None
    if first is not None and tried.counts:
        return first, ""
    start = first[0] if first is not None else None
    found, why = rounded(problem, solution, spent, clock, asked=asked, start=start)
    second = checked(found)
    if second is not None and not second[1].passed:
        # A rule missed by a rounding error of the search: once more, with all rules kept by a little more.
        again, _ = rounded(problem, solution, spent, clock, asked=asked, margin=4 * ROUNDING_TOLERANCE)
        second = checked(again) or second
    if first is None or second is None:
        return first or second, why
    # The better of the two, with the better bound.
    bound = max(first[0].bound, second[0].bound)
    better = not second[1].passed or problem.objective(first[0].weights) < problem.objective(second[0].weights)
    plan, check = first if better else second
    return (replace(plan, bound=bound), check), ""


def _continuous(problem: Problem, weights: Array) -> tuple[Fraction, ...]:
    """Traded quantities of any size; a position that would reach or cross a bound of 0 is closed exactly."""
    portfolio = problem.portfolio
    units = (weights - problem.before) * portfolio.nav / portfolio.price
    trades = [Fraction(0)] * len(units)
    moves = weights != problem.before
    moves[list(problem.cashes)] = False
    for i in np.flatnonzero(moves).tolist():
        held, trade = portfolio.exact_quantity[i], exact(units[i])
        left = held + trade
        if trade and (weights[i] == 0 or (problem.lower[i] == 0 and left < 0) or (problem.upper[i] == 0 and left > 0)):
            trade = -held
        trades[i] = trade
    return tuple(trades)
