"""Many portfolios by one policy: a long table in, one result a portfolio and all orders out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from equipoise.constraints.errors import InputError
from equipoise.optimizer.choose import solve as solve_convex
from equipoise.optimizer.plan import ORDER_COLUMNS, Plan
from equipoise.optimizer.portfolio import blank
from equipoise.optimizer.problem import Problem
from equipoise.optimizer.solution import Solution, Status

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.optimizer.rebalancer import Rebalancer

_T = TypeVar("_T")

RESULT_COLUMNS = (
    "status",
    "verified",
    "nav",
    "objective",
    "bound",
    "gap",
    "tracking_error_before",
    "tracking_error",
    "turnover",
    "cost",
    "orders",
    "solver",
    "message",
)


@dataclass(frozen=True, eq=False)
class Plans:
    """The plans of a batch, in the order of the portfolios' first rows; `plans["001"]` is one of them."""

    plans: tuple[Plan, ...]

    def __getitem__(self, portfolio_id: str) -> Plan:
        for plan in self.plans:
            if plan.name == portfolio_id:
                return plan
        raise KeyError(portfolio_id)

    def __iter__(self) -> Iterator[Plan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)

    @cached_property
    def results(self) -> pd.DataFrame:
        """Exactly one row a portfolio: status, certificate, figures, message. Money in cash, the rest per NAV."""
        import pandas as pd

        rows = [
            (
                plan.status.name,
                plan.status.ok,
                plan.problem.portfolio.nav if plan.problem else float("nan"),
                plan.objective,
                plan.bound,
                plan.gap,
                *plan.tracking_error,
                plan.turnover,
                plan.cost,
                sum(1 for quantity in plan.trades if quantity) if plan.status.ok else 0,
                plan.solver,
                plan.message,
            )
            for plan in self.plans
        ]
        index = pd.Index([plan.name for plan in self.plans], name="portfolio_id", dtype=object)
        return pd.DataFrame(rows, columns=list(RESULT_COLUMNS), index=index)

    @cached_property
    def orders(self) -> pd.DataFrame:
        """All orders of all verified plans, keyed by portfolio_id and asset."""
        import pandas as pd

        parts = {plan.name: plan.orders for plan in self.plans if plan.status.ok and any(plan.trades)}
        if not parts:
            keys = pd.MultiIndex.from_arrays([[], []], names=["portfolio_id", "asset"])
            return pd.DataFrame(columns=list(ORDER_COLUMNS), index=keys)
        return pd.concat(parts, names=["portfolio_id"])


def solve_batch(rebalancer: Rebalancer, table: pd.DataFrame) -> Plans:
    """See `Rebalancer.solve_batch`."""
    from equipoise.optimizer.rebalancer import finished

    table = _keyed(table)
    tables, universe = _split(table), _assets(table)
    problems: list[Problem | Plan] = []
    for name, rows in tables:
        problems.append(_guarded(name, partial(_problem, rebalancer, name, rows, universe)))
    asked = [problem for problem in problems if isinstance(problem, Problem)]
    answers = iter(_answers(asked))
    plans: list[Plan] = []
    for (name, _), problem in zip(tables, problems, strict=True):
        if isinstance(problem, Plan):
            plans.append(problem)
            continue
        answer = next(answers)
        plans.append(answer if isinstance(answer, Plan) else _guarded(name, partial(finished, problem, answer)))
    return Plans(tuple(plans))


def _problem(rebalancer: Rebalancer, name: Any, rows: pd.DataFrame, universe: set[str]) -> Problem:
    if not isinstance(name, str):
        raise InputError(
            "a portfolio_id must be text; read ids as text (equipoise.read_table, or dtype=str)",
            column="portfolio_id",
            value=name,
        )
    if not name or name != name.strip():
        raise InputError(
            "a portfolio_id must not be empty or have white space around it", column="portfolio_id", value=name
        )
    return rebalancer.policy.problem(rebalancer.portfolio(rows, name=name, universe=universe))


def _answers(problems: list[Problem]) -> list[Solution | Plan]:
    """The convex answers; if solving all at once fails, each alone, so that only the culprit fails."""
    try:
        return list(solve_convex(problems))
    except Exception:
        return [_guarded(p.portfolio.name, partial(_alone, p)) for p in problems]


def _alone(problem: Problem) -> Solution:
    return solve_convex([problem])[0]


def _guarded(name: Any, work: Callable[[], _T]) -> _T | Plan:
    """The result of this work, or a plan that says why there is none: nothing leaves its own portfolio."""
    try:
        return work()
    except InputError as error:
        return Plan(Status.INVALID_INPUT, name, str(error))
    except Exception as error:
        return Plan(Status.UNSOLVED, name, f"internal error, please report it: {type(error).__name__}: {error}")


def _assets(table: pd.DataFrame) -> set[str]:
    """The text labels among a batch's assets: what its rules may name."""
    return {label for label in table["asset"] if isinstance(label, str)}


def _split(table: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Each portfolio's rows, in the order of the first rows; a missing id is a portfolio of its own."""
    rows: dict[Any, list[int]] = {}
    names: dict[Any, Any] = {}
    for row, name in enumerate(table["portfolio_id"]):
        key = ("", "") if blank(name) else (type(name).__name__, repr(name))  # ids need not be hashable
        rows.setdefault(key, []).append(row)
        names.setdefault(key, None if blank(name) else name)
    others = table.drop(columns="portfolio_id")
    return [(names[key], others.iloc[found]) for key, found in rows.items()]


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with portfolio_id and asset as columns, each there once."""
    if not (hasattr(table, "columns") and hasattr(table, "index")):
        raise InputError("a batch is a DataFrame with the columns portfolio_id and asset", value=type(table))
    for key in ("portfolio_id", "asset"):
        places = [*table.columns, *(table.index.names or ())].count(key)
        if places != 1:
            what = "needs a column" if not places else "has more than one column or index level"
            raise InputError(f"a batch {what} {key}", column=key)
    levels = [key for key in ("portfolio_id", "asset") if key in table.index.names]
    return table.reset_index(level=levels).reset_index(drop=True) if levels else table.reset_index(drop=True)
