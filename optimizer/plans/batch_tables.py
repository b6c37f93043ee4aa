"""From verified portfolios to the two tables of a batch, `results` and `orders`, without a loop over them.

A `Part` holds some portfolios' rows of both tables as columns: numbers, and codes of a few texts. It is made of a
stack (`of_stack`) or of plans of portfolios that were taken one by one (`of_plans`); then `results` and `orders` put
the rows of all parts in the input's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from equipoise.constraints.numbers import Cells
from equipoise.constraints.pieces import Array, Indices, Mask
from equipoise.constraints.rules.trading import KINDS
from equipoise.optimizer.plans.plan import ORDER_COLUMNS, Plan
from equipoise.optimizer.plans.reasons import reasons
from equipoise.optimizer.plans.shortfall import shortfalls
from equipoise.optimizer.portfolio.columns import Coded
from equipoise.optimizer.problem.problem import Problem
from equipoise.optimizer.problem.solution import Status, close_enough, rounded_down
from equipoise.optimizer.sequence.listing import LISTINGS, listed
from equipoise.optimizer.verification.stacked import StackVerified

if TYPE_CHECKING:
    import pandas as pd

Column: TypeAlias = "Cells | Coded"

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
    "listing",
    "solver",
    "message",
)
_SIDES = ("sell", "buy")
_STATUSES = tuple(status.name for status in Status)
_NO_LOTS = -1


@dataclass(frozen=True, eq=False)
class Solved:
    """The answers of a stack of problems: weights (B, n) with the cash before costs, the prices of rows (B, m), and
    objective, bound (B,). `held` are those for which holding was found to be best; `solver` answered the others.

    Portfolios that did not pass (`checked.passed`) are left out of all tables: they are for `of_plans`.
    """

    problem: Problem
    weights: Array
    prices: Array
    objective: Array
    bound: Array
    held: Mask
    solver: str
    checked: StackVerified
    #: How many lots are traded (B, n), −1 where that is no whole number; None where no lots are asked for.
    lots: Indices | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Some portfolios' rows of the results (P,), with their places in the input's order, and of the orders (E,).

    The orders stand portfolio by portfolio, `counts` (P,) of each, and in the order of `Plan.orders`.
    """

    places: Indices
    names: Sequence[object]
    results: dict[str, Column]
    counts: Indices
    assets: Coded
    orders: dict[str, Column]


def of_stack(solved: Solved) -> Part:
    """The rows of the portfolios that passed."""
    problem, checked, stack = solved.problem, solved.checked, solved.problem.portfolio
    passed = np.flatnonzero(checked.passed)
    traded = (checked.trades != 0) & checked.passed[:, None]
    counts = traded.sum(axis=1)

    # Sales first, larger ones first, then by asset; what is not traded comes last. Read as integers, floats above 0
    # are in the order of their size, and those below are before them, in the same order.
    key = ~np.negative(checked.money).view(np.int64) - traded
    money = checked.money if len(passed) == len(traded) else np.where(traded, checked.money, 0.0)
    ranks, listing = listed(problem, money, checked.costs, stack.nav)
    order = np.argsort(key, axis=1, kind="stable")
    if ranks is not None:
        ranks = np.where(traded, ranks, ranks.max(initial=0) + 1)
        order = np.take_along_axis(order, np.argsort(np.take_along_axis(ranks, order, 1), axis=1, kind="stable"), 1)
    order += np.arange(0, order.size, order.shape[1])[:, None]
    at = order[np.arange(order.shape[1]) < counts[:, None]]

    def of_orders(values: Cells) -> Any:
        return np.take(values, at)

    why = reasons(problem, solved.weights, solved.prices, traded)
    quantity = of_orders(checked.trades)
    orders: dict[str, Column] = {
        "side": Coded(_SIDES, (quantity > 0).astype(np.intp)),
        "quantity": np.abs(quantity),
        "lots": np.full(len(at), _NO_LOTS) if solved.lots is None else of_orders(solved.lots),
        "price": of_orders(stack.price),
        "notional": np.abs(of_orders(checked.money)),
        "cost": of_orders(checked.costs),
        "reason": Coded(why.names, of_orders(why.codes)),
    }
    return Part(
        places=stack.places[passed],
        names=[stack.names[i] for i in passed.tolist()],
        results=_results(solved, counts, listing, passed),
        counts=counts[passed],
        assets=Coded(stack.universe, of_orders(stack.codes)),
        orders=orders,
    )


def _results(solved: Solved, counts: Indices, listing: Indices, passed: Indices) -> dict[str, Column]:
    problem = solved.problem
    nav, objective = problem.portfolio.nav[:, 0], solved.objective
    bound = rounded_down(objective, solved.bound)
    gap = objective - bound
    optimal = close_enough(objective, bound)
    found = np.where(optimal, *(_STATUSES.index(status.name) for status in (Status.OPTIMAL, Status.FEASIBLE)))
    found = np.where(solved.held | (optimal & (counts == 0)), _STATUSES.index(Status.NO_TRADE.name), found)
    buy, _ = KINDS["one_way"]
    said = _coded(shortfalls(problem))
    columns: dict[str, Cells] = {
        "status": found,
        "verified": solved.checked.passed,
        "nav": nav,
        "objective": objective,
        "bound": bound,
        "gap": gap,
        "tracking_error_before": problem.tracking_error(problem.before),
        "tracking_error": problem.tracking_error(solved.weights),
        "turnover": buy * np.abs(solved.checked.money).sum(axis=1) / nav,
        "cost": solved.checked.costs.sum(axis=1),
        "orders": counts,
        "listing": listing,
        "solver": solved.held.astype(np.intp),
        "message": said.codes,
    }
    texts = {"status": _STATUSES, "listing": LISTINGS, "solver": (solved.solver, "holding"), "message": said.names}
    return {
        name: Coded(texts[name], values[passed]) if name in texts else values[passed]
        for name, values in columns.items()
    }


def of_plans(placed: Sequence[tuple[int, Plan]]) -> Part:
    """The rows of plans, each with its place in the input's order, verified or not."""
    plans = [plan for _, plan in placed]
    rows = list(map(_order_rows, plans))
    counts = np.array(list(map(len, rows)), dtype=np.intp)
    flat = list(chain.from_iterable(rows))
    asset, *columns = zip(*flat, strict=True) if flat else ((),) * (1 + len(ORDER_COLUMNS))
    orders = dict(zip(ORDER_COLUMNS, columns, strict=True))
    lots = orders.pop("lots")
    texts = {"side", "reason"}
    return Part(
        places=np.array([place for place, _ in placed], dtype=np.intp),
        names=[plan.name for plan in plans],
        results={**_results_of_plans(plans), "orders": counts},
        counts=counts,
        assets=_coded(asset),
        orders={
            **{name: _coded(cells) if name in texts else _floats(cells) for name, cells in orders.items()},
            "lots": np.array(lots, dtype=np.int64),
        },
    )


def _results_of_plans(plans: Sequence[Plan]) -> dict[str, Column]:
    """The columns of the results; but for the number of orders."""
    found: dict[str, list[Any]] = {name: [] for name in RESULT_COLUMNS if name not in ("verified", "orders")}
    for plan in plans:
        before, after = plan.tracking_error
        row = {
            "status": plan.status.name,
            "nav": plan.problem.portfolio.nav if plan.problem else np.nan,
            "objective": plan.objective,
            "bound": plan.bound,
            "gap": plan.gap,
            "tracking_error_before": before,
            "tracking_error": after,
            "turnover": plan.turnover,
            "cost": plan.cost,
            "listing": plan.listing,
            "solver": plan.solver,
            "message": plan.message,
        }
        for name, cells in found.items():
            cells.append(row[name])
    texts = ("status", "listing", "solver", "message")
    columns = {name: _coded(cells) if name in texts else _floats(cells) for name, cells in found.items()}
    return {**columns, "verified": np.array([plan.status.ok for plan in plans], dtype=bool)}


def _order_rows(plan: Plan) -> list[tuple[object, ...]]:
    """The rows of `Plan.orders`, with reasons of few words: figures would make every text another."""
    if not plan.status.ok or plan.problem is None or plan.planned is None:
        return []
    prices = plan.solution.prices if plan.solution is not None else None
    traded = np.array([quantity != 0 for quantity in plan.trades], dtype=bool)
    why = reasons(plan.problem, plan.planned, None if prices is None else prices.rows, traded)
    by_asset = dict(zip(plan.problem.assets, why.codes.tolist(), strict=True))
    lots = 1 + ORDER_COLUMNS.index("lots")
    return [
        (*row[:lots], _NO_LOTS if row[lots] is None else row[lots], *row[lots + 1 : -1], why.names[by_asset[row[0]]])
        for row in plan.order_rows()
    ]


def results(parts: Sequence[Part]) -> pd.DataFrame:
    """Exactly one row a portfolio, in the input's order: status, certificate, figures, message. Money in cash, the
    rest per NAV."""
    import pandas as pd

    parts = parts or [of_plans([])]
    names, order = _in_order(parts)
    index = pd.Index([names[i] for i in order.tolist()], name="portfolio_id", dtype=object)
    columns = {name: _cells(_joined([part.results[name] for part in parts]), order) for name in RESULT_COLUMNS}
    return pd.DataFrame(columns, index=index)


def orders(parts: Sequence[Part]) -> pd.DataFrame:
    """All orders, keyed by portfolio_id and asset: portfolios in the input's order, orders as in `Plan.orders`."""
    import pandas as pd

    parts = parts or [of_plans([])]
    names, order = _in_order(parts)
    counts = np.concatenate([part.counts for part in parts])
    order = order[counts[order] > 0]
    each = counts[order]
    # Where each portfolio's orders begin, before and after.
    starts, ends = np.cumsum(counts) - counts, np.cumsum(each)
    at = np.arange(counts.sum()) + np.repeat(starts[order] - (ends - each), each)

    columns = {name: _joined([part.orders[name] for part in parts]) for name in ORDER_COLUMNS}
    lots = np.asarray(columns.pop("lots"))[at]
    table = {name: _cells(column, at) for name, column in columns.items()}
    table["lots"] = pd.arrays.IntegerArray(np.maximum(lots, 0), lots == _NO_LOTS)
    keys = _order_keys([names[i] for i in order.tolist()], each, _joined([part.assets for part in parts]), at)
    return pd.DataFrame({name: table[name] for name in ORDER_COLUMNS}, index=keys)


def _in_order(parts: Sequence[Part]) -> tuple[list[Any], Indices]:
    """The ids of all portfolios as they stand in the parts, and their places there in the input's order."""
    names = [name for part in parts for name in part.names]
    return names, np.argsort(np.concatenate([part.places for part in parts]), kind="stable")


def _order_keys(names: Sequence[Any], each: Indices, assets: Coded, at: Indices) -> pd.MultiIndex:
    """The ids of portfolios that have so many orders each, and the assets at these places."""
    import pandas as pd

    return pd.MultiIndex(
        levels=[pd.Index(names, dtype=object), pd.Index(assets.names, dtype=object)],  # type: ignore[list-item]
        codes=[np.repeat(np.arange(len(names)), each), assets.codes[at]],  # type: ignore[list-item]
        names=["portfolio_id", "asset"],
        verify_integrity=False,
    )


def _joined(columns: Sequence[Column]) -> Any:
    """One column of the parts' columns; texts that are alike have one code."""
    if len(columns) == 1:
        return columns[0]
    texts = [column for column in columns if isinstance(column, Coded)]
    if not texts:
        return np.concatenate([np.asarray(column) for column in columns])
    codes: dict[str, int] = {}
    own: dict[int, Indices] = {}  # stacks of one table share one list of assets
    for column in texts:
        if id(column.names) not in own:
            each = [codes.setdefault(name, len(codes)) for name in column.names]
            own[id(column.names)] = np.array(each, dtype=np.intp)
    return Coded(tuple(codes), np.concatenate([own[id(column.names)][column.codes] for column in texts]))


def _cells(column: Column, at: Indices) -> Any:
    """The cells of a column at these rows, as pandas would hold them."""
    import pandas as pd

    if isinstance(column, Coded):
        return pd.Series(list(column.names), dtype="str").array.take(column.codes[at])
    return column[at]


def _coded(texts: Sequence[str]) -> Coded:
    codes: dict[str, int] = {}
    each = np.array([codes.setdefault(text, len(codes)) for text in texts], dtype=np.intp)
    return Coded(tuple(codes), each)


def _floats(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float64)
