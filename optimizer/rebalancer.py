"""The front door: a policy, and portfolios to apply it to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from equipoise.constraints.errors import InputError
from equipoise.constraints.pieces import Fields
from equipoise.constraints.rules.rule import Rule
from equipoise.optimizer.plans.make import finished
from equipoise.optimizer.plans.plan import Plan
from equipoise.optimizer.portfolio.portfolio import Portfolio
from equipoise.optimizer.portfolio.transfers import Transfer
from equipoise.optimizer.problem.costs import Cost
from equipoise.optimizer.problem.effort import Effort
from equipoise.optimizer.problem.policy import Policy
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.risk.models import Risk
from equipoise.optimizer.solvers.choose import solve as solve_convex
from equipoise.optimizer.triggers import Moment

if TYPE_CHECKING:
    from os import PathLike

    import pandas as pd

    from equipoise.optimizer.batches.chunk import Chunk
    from equipoise.optimizer.batches.run import Options, Summary
    from equipoise.optimizer.batches.solve import Plans
    from equipoise.optimizer.batches.sources import Source
    from equipoise.optimizer.solvers.program.readable import ConvexProgram
    from equipoise.optimizer.triggers import Due, Trigger

_DEFAULT = Effort()


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
        self.policy = Policy(
            risk, tuple(costs), tuple(constraints), aversion, horizon, compiled, tuple(transfers), cash=cash
        )
        self.trigger = trigger

    @property
    def cash(self) -> str:
        """The label of the settlement cash."""
        return self.policy.settlement

    @property
    def accounts(self) -> dict[str, str]:
        """The cash of each account that trades; none for a portfolio in one account."""
        return self.policy.accounts

    def portfolio(self, table: pd.DataFrame, *, name: str | None = None, universe: Iterable[str] = ()) -> Portfolio:
        """The table, parsed and checked. Raises InputError; see `Portfolio.from_table`."""
        return self.policy.portfolio(table, name=name, universe=universe)

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
        of a Parquet file, an Arrow table), it is solved in chunks: see `batches.run.run` for what they mean. `effort`,
        `exact`, `gap`, `time_limit` (seconds a portfolio) and `solver` are those of `solve`.

        `allocate`: "own" for plans that each portfolio would have on its own (the default); "unbiased" for whole lots
        that add up, over the batch, to what the convex orders do (see `lots.unbiased`): a pass over the whole batch
        in its order, so that it cannot be had in chunks.

        Bad input, like everything else, costs only the portfolio it is in: its status is INVALID_INPUT.
        """
        from equipoise.optimizer.batches.solve import gathered, solve_batch

        others: Fields = dict(options)
        spent, unbiased = Effort.taken(others), _unbiased(others.pop("allocate", "own"))
        if not others and hasattr(source, "columns") and hasattr(source, "index"):
            table: Any = source
            return solve_batch(self.policy, table, spent=spent, unbiased=unbiased)
        from equipoise.optimizer.batches.run import run

        chunks = list(run(self.policy, source, **_in_chunks(options)))
        return gathered(self.policy, source, chunks, options.get("universe", ()), spent)

    def stream(self, source: Source, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Chunks of (results, orders) in the order of the source, at constant memory: see `batches.run.run`."""
        from equipoise.optimizer.batches.run import run

        self._without_transfers()
        return run(self.policy, source, **_in_chunks(options))

    def write_batch(
        self,
        source: Source,
        *,
        results: str | PathLike[str] | None = None,
        orders: str | PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> Summary:
        """From a source to Parquet or CSV files at constant memory: see `batches.run.write`."""
        from equipoise.optimizer.batches.run import write

        self._without_transfers()
        return write(self.policy, source, results=results, orders=orders, **_in_chunks(options))

    def _without_transfers(self) -> None:
        if self.policy.transfers:
            raise InputError("results and orders alone would lose the transfers: use solve_batch", column="transfers")

    def due(
        self, table: pd.DataFrame, *, now: Moment = None, last: Moment = None, trigger: Trigger | None = None
    ) -> Due:
        """Whether it is time to trade: each trigger's value, threshold and distance. See `triggers`."""
        asked = trigger if trigger is not None else self.trigger
        if asked is None:
            raise InputError("there is no trigger to ask; give the Rebalancer or this call one", column="trigger")
        problem = self.problem(table)
        return asked.due(problem.asked, now=now, last=last)


def _unbiased(allocate: object) -> bool:
    if allocate not in ("own", "unbiased"):
        raise InputError("must be 'own' or 'unbiased'", column="allocate", value=allocate)
    return allocate == "unbiased"


def _in_chunks(options: Options) -> Fields:
    """The options of a batch in chunks."""
    others: Fields = dict(options)
    if _unbiased(others.pop("allocate", "own")):
        raise InputError(
            "unbiased allocation passes over the whole batch in its order; solve a table in one go, without "
            "executor, chunk, timeout, checkpoint, progress, universe, streams and files",
            column="allocate",
        )
    return others


def solve_frame(
    rebalancer: Rebalancer,
    frame: pd.DataFrame,
    *,
    returns: Literal["results", "orders"] = "results",
    universe: Iterable[str] = (),
) -> pd.DataFrame:
    """One plain table from another, for engines that take such a function: Spark's applyInPandas, Ray's map_groups.

    frame: whole portfolios, one or many. The answer has portfolio_id (and asset) as columns, and always the same
    columns and types. Raises InputError for a frame without portfolio_id or asset.
    """
    if returns not in ("results", "orders"):
        raise InputError("must be 'results' or 'orders'", column="returns", value=returns)
    import pandas as pd

    from equipoise.optimizer.batches.chunk import empty, flat
    from equipoise.optimizer.batches.run import run

    chunks = [getattr(chunk, returns) for chunk in run(rebalancer.policy, frame, universe=universe, progress=False)]
    return flat(pd.concat([getattr(empty(), returns), *chunks]))
